"""The architectures: sizes, names, the last feature map, and what `build` accepts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from adbench.errors import UserError
from adbench.models import Network, build, canonical, count_parameters
from adbench.registry import MODELS
from adbench.weights.checkpoint import load

SMALL = ["wrn-10-2", "dm-wrn-10-2", "wrn-10-1", "cnn-8", "mn-v2", "rn18"]


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def awake(network: Network) -> Network:
    """In evaluation mode, with head and batch-norm statistics that a mistake could not hide behind."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.classifier.bias.uniform_(-1, 1, generator=generator)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.uniform_(-0.1, 0.1, generator=generator)
                module.bias.uniform_(-0.1, 0.1, generator=generator)
    return network.eval()


# Counts for 10 classes as published with the architectures; 90 more classes add 90 rows of the head.
@pytest.mark.parametrize(
    ("name", "parameters", "k"),
    [
        ("rn18", 11_173_962, 512),
        ("rn34", 21_282_122, 512),
        ("rn56", 853_018, 64),
        ("prn18", 11_172_170, 512),
        ("mn-v2", 2_296_922, 1280),
        ("wrn-10-2", 303_706, 128),
        ("wrn-28-10", 36_479_194, 640),
        ("wrn-34-10", 46_160_474, 640),
        ("wrn-34-20", 184_531_674, 1280),
        ("dm-wrn-28-10", 36_479_194, 640),
        ("cnn-16", 3 * 9 * 16 + 16 * 9 * 32 + 32 * 9 * 32 + 2 * (16 + 32 + 32) + 10 * 33, 32),
    ],
)
def test_an_architecture_has_its_published_size(
    name: str, parameters: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.init, "normal_", lambda tensor, **_: tensor)  # slow to start on the meta device
    with torch.device("meta"):
        ten, hundred = build(name, classes=10), build(name, classes=100)
    assert count_parameters(ten) == parameters
    assert count_parameters(hundred) == parameters + 90 * (k + 1)
    assert hundred.classifier.weight.shape == (100, k)


@pytest.mark.parametrize(
    ("name", "map_shape"),
    [
        ("rn18", (512, 4, 4)),
        ("rn56", (64, 8, 8)),
        ("prn18", (512, 4, 4)),
        ("mn-v2", (1280, 4, 4)),
        ("wrn-10-2", (128, 8, 8)),
        ("wrn-28-1", (64, 8, 8)),
        ("cnn-16", (32, 16, 16)),
    ],
)
def test_the_last_map_of_a_32x32_image_has_its_published_shape(name: str, map_shape: tuple[int, ...]) -> None:
    logits, maps = build(name, classes=100).eval().forward_features(images(2, 3, 32, 32))
    assert logits.shape == (2, 100)
    assert maps.shape == (2, *map_shape)


RESNET_KEYS = """
    conv1.weight bn1.running_var layer1.0.conv1.weight layer1.0.bn1.bias layer2.0.shortcut.0.weight
    layer4.0.shortcut.1.num_batches_tracked linear.weight linear.bias
"""
PREACT_KEYS = """
    conv1.weight layer1.0.bn1.weight layer2.0.shortcut.0.weight layer4.1.conv2.weight bn.running_mean linear.bias
"""
MOBILENET_KEYS = """
    conv1.weight bn1.weight layers.0.conv1.weight layers.16.bn3.running_mean layers.0.shortcut.0.weight
    layers.0.shortcut.1.bias conv2.weight bn2.weight linear.weight
"""
WIDE_KEYS = """
    conv1.weight block1.layer.0.bn1.weight block1.layer.0.convShortcut.weight block3.layer.1.conv2.weight
    bn1.running_mean fc.weight fc.bias
"""


@pytest.mark.parametrize(
    ("name", "some_keys"),
    [("rn18", RESNET_KEYS), ("mn-v2", MOBILENET_KEYS), ("prn18", PREACT_KEYS), ("wrn-16-2", WIDE_KEYS)],
)
def test_state_dicts_have_the_keys_of_published_checkpoints(name: str, some_keys: str) -> None:
    plain = build(name, classes=10).state_dict().keys()
    normalising = build(name, classes=10, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)).state_dict().keys()
    assert set(some_keys.split()) <= plain
    assert normalising == plain


def test_a_narrow_resnets_shortcut_is_every_second_pixel_and_zeros() -> None:
    """Where the convolutions of the block that changes the resolution give nothing, what is left is the shortcut."""
    network = build("rn56", classes=10).eval()
    block = network.layer2[0]
    with torch.no_grad():
        block.conv2.weight.zero_()
        x = images(2, 16, 8, 8)
        out = block(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
    assert not any("shortcut" in key for key in network.state_dict())


def test_a_pre_activation_block_computed_by_hand() -> None:
    network = awake(build("prn18", classes=10))
    block, x = network.layer2[0], images(2, 64, 8, 8)
    first = torch.relu(block.bn1(x))
    expected = block.conv2(torch.relu(block.bn2(block.conv1(first)))) + block.shortcut[0](first)
    torch.testing.assert_close(block(x), expected)
    block, x = network.layer2[1], images(2, 128, 4, 4)
    expected = block.conv2(torch.relu(block.bn2(block.conv1(torch.relu(block.bn1(x)))))) + x
    torch.testing.assert_close(block(x), expected)


def test_only_blocks_that_need_it_have_a_projecting_shortcut() -> None:
    wide = build("wrn-16-2", classes=10).state_dict()
    mobile = build("mn-v2", classes=10).state_dict()
    assert sum("convShortcut" in key for key in wide) == 3
    # Stage changes without a stride: 32 -> 16, 16 -> 24, 64 -> 96 and 160 -> 320.
    assert sum("shortcut.0" in key for key in mobile) == 4


def test_deepminds_network_pads_as_tensorflow_does() -> None:
    """Computed anew from its published keys: each 3x3 convolution padded so that ceil(size / stride) values come out,
    of an odd number of zeros the larger half to the right and below (TensorFlow's "SAME")."""
    network = awake(build("dm-wrn-10-1", classes=10, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))).double()
    weights = network.state_dict()

    def norm(x: Tensor, key: str) -> Tensor:
        mean, var, scale, shift = (weights[f"{key}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return ((x.movedim(1, -1) - mean) / (var + 1e-5).sqrt() * scale + shift).movedim(-1, 1)

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def same(x: Tensor, key: str, stride: int = 1) -> Tensor:
        kernel, size = weights[f"{key}.weight"], x.shape[-1]
        zeros = max((-(-size // stride) - 1) * stride + kernel.shape[-1] - size, 0)
        before = zeros // 2
        return nn.functional.conv2d(nn.functional.pad(x, [before, zeros - before] * 2), kernel, stride=stride)

    x = images(2, 3, 32, 32, dtype=torch.float64)
    out = (x - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    out = same(out, "init_conv")
    for group, stride in enumerate((1, 2, 2)):
        key = f"layer.{group}.block.0"
        active = swish(norm(out, f"{key}.batchnorm_0"))
        inner = swish(norm(same(active, f"{key}.conv_0", stride), f"{key}.batchnorm_1"))
        shortcut = same(active, f"{key}.shortcut", stride) if f"{key}.shortcut.weight" in weights else out
        out = shortcut + same(inner, f"{key}.conv_1")
    pooled = swish(norm(out, "batchnorm")).mean((2, 3))
    torch.testing.assert_close(network(x), pooled @ weights["logits.weight"].T + weights["logits.bias"])


@pytest.mark.parametrize("name", SMALL)
def test_the_mean_of_a_class_activation_map_is_the_logit_without_its_bias(name: str) -> None:
    network = awake(build(name, classes=7)).double()
    logits, maps = network.forward_features(images(2, 3, 32, 32, dtype=torch.float64))
    head = network.classifier
    cam = torch.einsum("ck,bkhw->bchw", head.weight, maps)
    torch.testing.assert_close(cam.mean(dim=(2, 3)), logits - head.bias, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_a_feature_map_is_activated_and_comes_with_the_logits_of_forward(name: str) -> None:
    network, x = awake(build(name, classes=5)), images(2, 3, 32, 32)
    logits, maps = network.forward_features(x)
    assert torch.equal(network(x), logits)
    if name.startswith("dm-"):
        assert -0.2785 < maps.min() < 0, "the least value of SiLU is -0.27846"
    else:
        assert maps.min() == 0
    assert maps.max() > 0


@pytest.mark.parametrize("name", SMALL)
def test_grey_digits_of_8x8_pixels_train_every_parameter(name: str) -> None:
    network = build(name, classes=10, channels=1).train()
    network(images(4, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_normalisation_happens_inside_the_network(name: str) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    plain, inside = awake(build(name, classes=4)), awake(build(name, classes=4, mean=mean, std=std))
    inside.load_state_dict(plain.state_dict())
    x = images(2, 3, 32, 32)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(inside(x), plain(by_hand))
    assert not torch.allclose(inside(x), plain(x))


def test_double_precision_reaches_the_normalisation_too() -> None:
    network = build("cnn-4", classes=3, mean=(0.5,), std=(0.2,), channels=1).double()
    assert network(images(2, 1, 8, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        ((0.5,), None, "needs both"),
        (None, (0.5,), "needs both"),
        ((0.5,), (0.2,), "1 numbers, but the images have 3"),
        ((0.5, 0.5, 0.5), (0.2, 0.0, 0.2), "positive"),
    ],
)
def test_an_impossible_normalisation_is_refused(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        build("cnn-4", classes=3, mean=mean, std=std)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *[(s, "prn18") for s in ("prn-18", "PreActResNet-18", "preact_resnet18", "PRN18")],
        *[(s, "rn56") for s in ("ResNet-56", "rn56")],
        *[(s, "rn18") for s in ("rn18", "RN-18", "resnet18", "ResNet-18", "resnet_18", " ResNet18 ")],
        *[(s, "mn-v2") for s in ("mn-v2", "mnv2", "MobileNetV2", "mobilenet-v2", "MobileNet_V2")],
        *[(s, "wrn-34-10") for s in ("wrn-34-10", "wrn34-10", "WRN_34_10", "WideResNet-34-10")],
        ("wide-resnet-34-10", "wrn-34-10"),
        ("wrn-70-16", "wrn-70-16"),
        ("WRN16-1", "wrn-16-1"),
        ("DM-WRN-28-10", "dm-wrn-28-10"),
        ("dm-wide-resnet-70-16", "dm-wrn-70-16"),
        ("cnn-16", "cnn-16"),
        ("CNN7", "cnn-7"),
    ],
)
def test_the_spellings_of_the_field_mean_one_name(spelling: str, name: str) -> None:
    assert canonical(spelling) == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wrm-34-10", "did you mean 'wrn-34-10'"),
        ("mn-v3", r"did you mean 'mn-v2'\? \(adbench list students"),
        ("transformer", "known are cnn-16, "),
        ("", "unknown model"),
        ("wrn-11-2", "no WideResNet of depth 11 .*6n \\+ 4"),
        ("wrn-4-2", "no WideResNet of depth 4"),
        ("dm-wrn-12-2", "no WideResNet of depth 12"),
        ("wrn-10-0", "no WideResNet of width 0"),
        ("cnn-0", "no CNN of width 0"),
        ("cnn-99999999", "cnn-99999999 would have about .* parameters"),
        ("wrn-9999999994-9999999", "wrn-9999999994-9999999 would have about .* parameters"),
        ("dm-wrn-60000004-1", "would have about .* parameters"),
        ("wrn-" + 5000 * "9" + "-1", "unknown model"),
    ],
)
def test_a_name_that_cannot_be_built_is_refused_with_what_would_be_right(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build(name, classes=10)


@pytest.mark.parametrize(
    ("mean", "std", "says"),
    [
        (125.3, 63.0, r"mean is \[125\.3\], but images are in \[0, 1\]; did you mean 0\.4914\?"),
        (0.49, 63.0, r"std is \[63\.0\].*did you mean 0\.2471\?"),
        (float("nan"), 1.0, "mean is .*numbers"),
        (0.5, float("inf"), "std is .*numbers"),
    ],
)
def test_a_normalisation_of_other_images_is_refused(mean: float, std: float, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build("cnn-4", classes=10, channels=1, mean=(mean,), std=(std,))


def test_every_registered_architecture_is_known_by_its_own_name_and_summarised() -> None:
    for name in MODELS:
        assert canonical(name) == name
        assert MODELS.summary(name)


def test_a_width_that_nobody_registered_is_built() -> None:
    assert build("cnn-3", classes=2).classifier.in_features == 6
    assert build("WRN-16-1", classes=2).classifier.in_features == 64


def test_a_third_party_factory_has_to_return_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def factory(**_: object) -> nn.Module:
        return nn.Flatten()

    load: Callable[[str], object] = lambda _name: factory  # noqa: E731
    monkeypatch.setattr(MODELS, "load", load)
    with pytest.raises(UserError, match=r"'cnn-16' .* is a Flatten; .* an adbench.models.Network"):
        build("cnn-16", classes=2)


def test_names_are_resolved_without_torch() -> None:
    code = "import sys, adbench.models as m; m.canonical('ResNet-18'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_published_teacher_classifies_real_images_as_well_as_its_card_says(shared: Path) -> None:
    data = shared / "data"
    network = build("wrn-10-2", classes=10).eval()
    load(network, data / "teachers" / "wrn-10-2_cifar10_linf.pt")
    labels = torch.tensor(json.loads((data / "cifar10" / "test_labels.json").read_text())[:500])
    with Image.open(data / "cifar10" / "test_batch.png") as sprite:
        rows = np.asarray(sprite.convert("RGB").crop((0, 0, 1024, 500)))
    x = torch.from_numpy(rows.reshape(500, 32, 32, 3).copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        accuracy = (network(x).argmax(dim=1) == labels).float().mean().item()
    # 67.87 % of all 10,000; the standard error of 500 images is 2.1 points.
    assert accuracy == pytest.approx(0.6787, abs=3 * 0.021)


@pytest.mark.parametrize("name", ["cnn-16", "rn18", "mn-v2", "wrn-10-2", "dm-wrn-10-1"])
def test_images_of_64x64_pixels_need_no_other_network(name: str) -> None:
    """The strides stay: the last map has twice the side of a 32x32 image's, and its mean is what is classified."""
    network = build(name, classes=200).eval()
    with torch.no_grad():
        (small, _), (large, _) = (tuple(network.forward_features(torch.rand(1, 3, n, n))[::-1]) for n in (32, 64))
        logits = network(torch.rand(2, 3, 64, 64))
    assert [2 * side for side in small.shape[2:]] == [*large.shape[2:]]
    assert logits.shape == (2, 200)
