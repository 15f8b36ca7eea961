"""Networks of a method's own: trained with the student as by hand, and there again after an interruption."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import run, trainer
from torch import Tensor, nn

from adbench import Method, Part, Step
from adbench.errors import UserError
from adbench.losses import cross_entropy
from adbench.training.parts import Parts
from adbench.training.trainer import Trainer


class Projected(Method):
    """A head after the student, by the student's recipe, and a batch-norm after that, by one of its own."""

    label = "Projected"

    def parts(self, step: Step) -> dict[str, Any]:
        norm = nn.BatchNorm1d(10)
        return {"head": nn.Linear(10, 10), "norm": Part(norm, torch.optim.Adam(norm.parameters(), 0.01))}

    def attack(self, step: Step) -> Tensor:
        return step.x

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        value = cross_entropy(step.parts["norm"](step.parts["head"](step.student(x_adv))), step.y)
        return value * (float("nan") if step.iteration == BAD else 1)


BAD = -1


def state(it: Trainer) -> dict[str, Tensor]:
    parts = {f"{name}.{k}": v for name, part in it.parts.modules.items() for k, v in part.state_dict().items()}
    return {**it.student.state_dict(), **parts}


@pytest.mark.parametrize("micro_batch", [None, 8])
def test_they_are_trained_with_the_student_as_by_hand(tmp_path: Path, micro_batch: int | None) -> None:
    it = trainer(tmp_path, Projected(), micro_batch=micro_batch, weight_decay=0.01)
    it.set_up()
    student, head, norm = (copy.deepcopy(m) for m in (it.student, *it.parts.modules.values()))
    sgd = torch.optim.SGD(
        [*student.parameters(), *head.parameters()], it.config.lr, momentum=it.config.momentum, weight_decay=0.01
    )
    adam = torch.optim.Adam(norm.parameters(), 0.01)
    for index, crops in it.batches()[:3]:
        it.iteration += 1
        it.iterate(index, crops, torch.Generator(), {})
        sgd.zero_grad()
        adam.zero_grad()
        for step, images in it._steps(index, crops, torch.Generator()):
            losses = nn.functional.cross_entropy(norm(head(student.train()(step.x))), step.y, reduction="sum")
            (losses / images).backward()
        sgd.step()
        adam.step()
    for one, other in ((it.student, student), (it.parts.modules["head"], head), (it.parts.modules["norm"], norm)):
        for (name, value), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("batch", [None, 1])
def test_an_interrupted_training_ends_in_the_same_bits(tmp_path: Path, batch: int | None, monkeypatch: Any) -> None:
    """Interrupted after an epoch, or in the middle of one."""
    whole = trainer(tmp_path / "whole", Projected())
    run(whole)
    cut = trainer(tmp_path / "cut", Projected())
    with pytest.raises(KeyboardInterrupt):
        cut.run(lambda _: interrupt(), lambda *_: None)
    if batch is not None:
        cut = trainer(tmp_path / "cut", Projected())
        asked = iter([False, True])
        monkeypatch.setattr("adbench.system.signals.stop_requested", lambda: next(asked, True))
        monkeypatch.setattr("adbench.system.signals.stop_if_requested", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(cut)
        monkeypatch.undo()
    again = trainer(tmp_path / "cut", Projected())
    run(again)
    assert again.epoch == whole.epoch
    for name, value in state(whole).items():
        assert torch.equal(value, state(again)[name]), name


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_failure_keeps_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "BAD", 2)
    it = trainer(tmp_path, Projected())
    with pytest.raises(UserError, match="not finite"):
        run(it)
    kept = torch.load(tmp_path / "failure.pt", weights_only=True)
    assert torch.equal(kept["parts"]["head"]["module"]["weight"], it.parts.modules["head"].weight)
    assert torch.isfinite(it.parts.modules["norm"].weight).all()


def test_the_rate_of_those_that_the_students_optimiser_trains_drops_with_it(tmp_path: Path) -> None:
    it = trainer(tmp_path, Projected(), epochs=2, milestones=(0.5,))
    run(it)
    rates = {id(p): group["lr"] for group in it.optimiser.param_groups for p in group["params"]}
    assert rates[id(it.parts.modules["head"].weight)] == pytest.approx(it.config.lr * it.config.lr_factor)
    assert it.parts.optimisers["norm"].param_groups[0]["lr"] == 0.01


def test_two_parts_do_not_hold_the_same_parameters() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"'b'.*'a'"):
        Parts.of({"a": layer, "b": nn.Sequential(layer)}, torch.zeros(1), [])
