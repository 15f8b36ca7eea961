"""Feature maps inside students and teachers, by name: as the networks are written, and in the lean form."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_methods import make, step_for
from tiny import cli
from torch import Tensor, nn

from adbench.errors import UserError
from adbench.models import Network, build
from adbench.models.precision import AS_WRITTEN, Lean, Precision
from adbench.models.stages import levels, stages
from adbench.training.step import Net, Teacher

LEAN, HALF = Precision(lean=True), Precision("bfloat16", lean=True)
FORMS = {
    "cnn-4": ("body.2", "body.5", "body.8"),
    "rn18": ("layer1", "layer2.0", "layer4"),
    "wrn-10-1": ("conv1", "block1", "block3.layer.0.conv1"),
    "dm-wrn-10-1": ("layer.0", "layer.2"),
    "mn-v2": ("layers.3", "conv2"),
}


def used(name: str) -> Network:
    """With statistics that are not those of an untrained network."""
    torch.manual_seed(0)
    network = build(name, classes=10, channels=3)
    network(torch.rand(16, 3, 16, 16))
    return network.eval()


def by_hand(network: nn.Module, name: str, x: Tensor) -> Tensor:
    """A map from a hook of the test's own, before anybody can write over it."""
    seen: list[Tensor] = []
    with torch.no_grad(), network.get_submodule(name).register_forward_hook(lambda _, __, o: seen.append(o.clone())):
        network(x)
    return seen[-1]


@pytest.mark.parametrize("architecture", FORMS)
def test_both_forms_give_the_maps_of_the_modules_and_the_same_gradient(architecture: str) -> None:
    network, names = used(architecture), FORMS[architecture]
    x = torch.rand(3, 3, 16, 16)
    gradients = []
    for precision in (AS_WRITTEN, LEAN):
        net = Net(network, precision)
        with net.still():
            z = x.clone().requires_grad_()
            logits, maps = net.stages(z, *names)
            torch.testing.assert_close(logits, network(z), rtol=1e-4, atol=1e-5)
            sum(value.square().mean() for value in maps.values()).backward()  # type: ignore[union-attr]
        for name in names:
            torch.testing.assert_close(maps[name].detach(), by_hand(network, name, x), rtol=1e-3, atol=1e-5)
        assert z.grad is not None
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


def test_the_lean_form_is_still_folded_where_no_stage_needs_the_layers_apart() -> None:
    network = used("rn18")
    assert len(Lean(network, LEAN, ("layer2",))._folded) == len(Lean(network, LEAN)._folded) > 0
    assert len(Lean(network, LEAN, ("layer2.0.conv1",))._folded) == len(Lean(network, LEAN)._folded) - 1


def test_a_teacher_computes_stages_once_a_batch_and_beside_its_other_outputs() -> None:
    for precision in (AS_WRITTEN, LEAN, HALF):
        teacher = Teacher(used("cnn-4"), precision)
        x = torch.rand(3, 3, 8, 8)
        logits = teacher(x)
        again, maps = teacher.stages(x, "body.2", -1)
        last = teacher.features(x)[1]
        assert teacher.stages(x, "body.2")[1]["body.2"] is maps["body.2"]
        assert teacher.features(x)[1] is last
        torch.testing.assert_close(logits, again)
        torch.testing.assert_close(maps[-1], last, rtol=1e-2, atol=1e-2)
        assert maps["body.2"].dtype == torch.float32
        assert not maps["body.2"].requires_grad


def test_a_students_stages_learn_and_asking_for_them_moves_nothing_else() -> None:
    step = step_for(make("natural", {}))
    module = step.student.module
    as_ever = copy.deepcopy(module).train()
    logits, maps = step.student.stages(step.x, 0, -1)
    assert torch.equal(logits, as_ever(step.x))
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), as_ever.state_dict().values(), strict=True)
    )
    maps[0].mean().backward()
    assert module.body[0].weight.grad is not None  # type: ignore[union-attr, index]
    assert module.body[3].weight.grad is None  # type: ignore[union-attr, index]
    assert all(m.training for m in module.modules())
    assert not any(m._forward_hooks for m in module.modules())


def test_levels_are_the_last_maps_of_each_resolution() -> None:
    found = {name: levels(stages(used(name), torch.zeros(1, 3, 16, 16))) for name in FORMS}
    assert found["rn18"] == ["layer1", "layer2", "layer3", "layer4"]
    assert found["wrn-10-1"] == ["block1", "block2", "block3"]
    assert found["cnn-4"] == ["body.2", "body"]


class Overwriting(Network):
    """Its first map is written over by the layer after it."""

    def __init__(self) -> None:
        super().__init__(channels=3)
        self.first, self.relu, self.linear = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 10)

    @property
    def classifier(self) -> nn.Linear:
        return self.linear

    def features(self, x: Tensor) -> Tensor:
        maps: Tensor = self.relu(self.first(x))
        return maps


@pytest.mark.parametrize("stage", ["layer2", "linear", "first", 7, -2, ""])
def test_what_is_no_stage_is_refused_with_those_that_are(stage: Any) -> None:
    with pytest.raises(UserError, match=r"no stage.*relu.*0 to 0"):
        Net(Overwriting()).stages(torch.rand(2, 3, 8, 8), stage)


def test_info_lists_the_stages_of_an_architecture() -> None:
    lines = cli("info", "ResNet-18").output.splitlines()
    assert lines[0].startswith("rn18: ")
    (line,) = (line for line in lines if line.split()[:1] == ["layer2"])
    assert "128 x 16 x 16" in line
    assert "level 1, -3" in line
    for wrong in ("wrn-11-3", "rnn18", "cnn-0"):
        assert cli("info", wrong).exit_code == 2
    assert "rslad:" in cli("info", "rslad").output
