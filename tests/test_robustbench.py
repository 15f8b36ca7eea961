"""RobustBench's models as teachers: with a stand-in for the package, and with the real one if installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adbench.errors import UserError
from adbench.models import build
from adbench.weights.robustbench import RobustBenchNetwork, _package, load


class Pooled(nn.Module):
    """conv, ReLU as a function, pooling as a module, head: the map is nobody's output as it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(F.relu(self.conv(x))).flatten(1))


class MaxPooled(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(x)).amax(dim=(2, 3)))


class Softmaxed(Pooled):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(dim=1)


class Twice(Pooled):
    """One module called twice: only the second call gives the last map."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.deeper = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.deeper(self.act(self.conv(x))))
        return self.head(x.mean(dim=(2, 3)))


class WithConstants(Pooled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mu", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - self.mu)


def broken() -> nn.Module:
    raise RuntimeError("Unknown timm model")


class Dataset(Enum):
    CIFAR10 = "cifar10"


class Threat(Enum):
    LINF = "Linf"


Download = Callable[[str, Path], None]


def offline(_address: str, _path: Path) -> None:
    raise ConnectionError("no route to host\nmore")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Callable[[Download], None]:
    """Put a stand-in for robustbench in place, with the given downloader."""

    def install(download: Download) -> None:
        entries = {
            "Pooled2020": {"model": Pooled, "gdrive_id": "abc"},
            "Constants2020": {"model": WithConstants, "gdrive_id": "abc"},
            "Ensemble2020": {"model": Pooled, "gdrive_id": ["abc", "def"]},
            "Broken2020": {"model": broken, "gdrive_id": "abc"},
        }
        contents: dict[str, dict[str, Any]] = {
            "robustbench": {},
            "robustbench.model_zoo": {},
            "robustbench.model_zoo.models": {"model_dicts": {Dataset.CIFAR10: {Threat.LINF: entries}}},
            "robustbench.utils": {"download_gdrive_new": download},
            "autoattack": {},
        }
        for name, attributes in contents.items():
            module = ModuleType(name)
            module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
            vars(module).update(attributes)
            monkeypatch.setitem(sys.modules, name, module)

    return install


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"pip install robustbench==1\.1\.1"):
        load("Wang2023Better_WRN-28-10", "cifar10", cache_dir=tmp_path)


def test_a_mistyped_model_is_told_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"for 'robustbench:Wang2023Better_WRN-28-10'\)?.*pip install"):
        load("Wang2023Beter_WRN-28-10", "cifar10", cache_dir=tmp_path)


def test_a_package_that_cannot_be_imported_says_why(
    tmp_path: Path, package: Callable[[Download], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    package(offline)
    monkeypatch.setitem(sys.modules, "robustbench.utils", None)
    with pytest.raises(UserError, match=r"cannot be imported \(.*robustbench\.utils"):
        load("Pooled2020", "cifar10", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("model_id", "dataset", "says"),
    [
        ("Pooled2021", "cifar10", "unknown RobustBench model 'Pooled2021'; did you mean 'Pooled2020'"),
        ("Pooled2020", "mnist", "no models for mnist under Linf"),
        ("Ensemble2020", "cifar10", "an ensemble"),
        ("Broken2020", "cifar10", r"cannot build 'Broken2020' \(RuntimeError: Unknown timm model\)"),
    ],
)
def test_a_model_that_cannot_be_had_is_refused(
    tmp_path: Path, package: Callable[[Download], None], model_id: str, dataset: str, says: str
) -> None:
    package(lambda _address, path: torch.save(Pooled().state_dict(), path))
    with pytest.raises(UserError, match=says):
        load(model_id, dataset, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("download", "says"), [(offline, "ConnectionError: no route to host"), (lambda *_: None, "came back empty")]
)
def test_a_failed_download_is_told_and_leaves_no_file(
    tmp_path: Path, package: Callable[[Download], None], download: Download, says: str
) -> None:
    package(download)
    with pytest.raises(UserError, match=rf"could not be downloaded \(.*{says}\).*Pooled2020\.pt.*abc"):
        load("Pooled2020", "cifar10", cache_dir=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_model_is_downloaded_once_and_read_as_weights_only(
    tmp_path: Path, package: Callable[[Download], None]
) -> None:
    original, asked = Pooled(), []

    def download(address: str, path: Path) -> None:
        asked.append(address)
        torch.save({"state_dict": {f"module.{k}": v for k, v in original.state_dict().items()}}, path)

    package(download)
    x = torch.rand(2, 3, 32, 32)
    for _ in range(2):
        network = load("Pooled2020", "cifar10", cache_dir=tmp_path)
        assert torch.equal(network(x), original(x))
        assert not network.training
    assert asked == ["abc"]
    assert (tmp_path / "cifar10" / "Linf" / "Pooled2020.pt").is_file()


def test_constants_that_a_file_leaves_out_are_the_architectures_own(
    tmp_path: Path, package: Callable[[Download], None]
) -> None:
    original = WithConstants()
    weights = {k: v for k, v in original.state_dict().items() if k != "mu"}
    package(lambda _address, path: torch.save(weights, path))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load("Constants2020", "cifar10", cache_dir=tmp_path)(x), original(x))


@pytest.mark.parametrize("architecture", [Pooled, Twice])
def test_the_last_feature_map_is_found_before_it_is_pooled(architecture: type[Pooled]) -> None:
    model = architecture()
    network = RobustBenchNetwork(model, "x")
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits, maps = network.forward_features(x)
    assert torch.equal(logits, model(x))
    assert network.classifier is model.head
    assert maps.shape == ((2, 4, 30, 30) if architecture is Pooled else (2, 4, 28, 28))
    torch.testing.assert_close(model.head(maps.mean(dim=(2, 3))), logits)
    assert torch.autograd.grad(maps.sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize("architecture", [MaxPooled, Softmaxed])
def test_an_architecture_without_an_average_pooled_map_still_gives_logits(architecture: type[Pooled]) -> None:
    model = architecture()
    network = RobustBenchNetwork(model, "Odd2020")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(network(x), model(x))
    for use in (lambda: network.forward_features(x), lambda: network.classifier):
        with pytest.raises(UserError, match="feature maps of RobustBench's 'Odd2020' are unavailable"):
            use()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_id", "ours"),
    [
        ("Sehwag2021Proxy_R18", "rn18"),  # the same architectures as ours, written by others
        ("Zhang2019Theoretically", "wrn-34-10"),
        ("Rebuffi2021Fixing_R18_ddpm", None),
        ("Wang2023Better_WRN-28-10", "dm-wrn-28-10"),
    ],
)
def test_models_of_the_real_package_are_read_and_show_their_maps(
    tmp_path: Path, model_id: str, ours: str | None
) -> None:
    if importlib.util.find_spec("robustbench") is None:
        pytest.skip("robustbench is not installed")
    zoo, _ = _package()
    entries = next(v for k, v in zoo.items() if k.value == "cifar10")
    original = next(v for k, v in entries.items() if k.value == "Linf")[model_id]["model"]().eval()
    path = tmp_path / "cifar10" / "Linf" / f"{model_id}.pt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": original.state_dict()}, path)
    network = load(model_id, "cifar10", cache_dir=tmp_path)
    with torch.no_grad():
        x = torch.rand(1, 3, 32, 32)
        logits, maps = network.forward_features(x)
        torch.testing.assert_close(logits, original(x))
        torch.testing.assert_close(network.classifier(maps.mean(dim=(2, 3))), logits, rtol=0, atol=1e-4)
        if ours is not None:
            inside = getattr(original, "mean", None)
            normalisation = {k: tuple(getattr(original, k).flatten().tolist()) for k in ("mean", "std")}
            twin = build(ours, classes=10, **(normalisation if inside is not None else {})).eval()
            twin.load_state_dict({k: v for k, v in original.state_dict().items() if "sub_block1" not in k})
            for mine, theirs in zip(twin.forward_features(x), (logits, maps), strict=True):
                torch.testing.assert_close(mine, theirs)
