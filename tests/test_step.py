"""What a method is told of its training, and what it may ask for: indices, totals, modes, selection, flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_methods import make, step_for
from test_train import run, trainer
from tiny import cli, options, record_of
from torch import Tensor, nn

from adbench.attacks.linf import Start
from adbench.data import Split, load
from adbench.errors import UserError
from adbench.execution.engines.inline import Inline
from adbench.execution.runner import Local
from adbench.losses import cross_entropy
from adbench.models import build
from adbench.plugins import validate
from adbench.registry import METHODS
from adbench.training.configured import configured, passes
from adbench.training.step import SELECTIONS, Ball, Mode, Net
from adbench.training.trainer import held_out

AROUND = '''
"""A method around another one."""

from functools import cached_property

from adbench import Method, hyper
from adbench.training.configured import configured


class Around(Method):
    """Twice what another method minimises."""

    around: str = hyper("rslad", doc="the other method")

    @cached_property
    def base(self):
        return configured(self.around, {})

    label = property(lambda self: f"2 x {self.base.label}")
    needs = property(lambda self: self.base.needs)
    selects = property(lambda self: self.base.selects)
    separable = property(lambda self: self.base.separable)
    divisible = property(lambda self: self.base.divisible)
    shares = property(lambda self: self.base.shares)

    def needed(self):
        return self.base.needed()

    def reach(self):
        return self.base.reach()

    def passes(self, steps):
        return self.base.passes(steps)

    def setup(self, step):
        self.base.setup(step)

    def on_lr_change(self, factor):
        self.base.on_lr_change(factor)

    def attack(self, step):
        return self.base.attack(step)

    def loss(self, step, x_adv):
        return 2 * self.base.loss(step, x_adv)

    def state_dict(self):
        return self.base.state_dict()

    def load_state_dict(self, state):
        self.base.load_state_dict(state)
'''


@pytest.fixture(autouse=True)
def _forget_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_files", {})
    monkeypatch.setattr(METHODS, "_loaded", {})


@pytest.mark.parametrize("around", ["rslad", "las-at", "mtard", "natural"])
def test_a_method_around_another_follows_it_in_all_that_it_declares(around: str, tmp_path: Path) -> None:
    (file := tmp_path / "around.py").write_text(AROUND)
    name = METHODS.add_file(file)
    found, base = configured(name, {"around": around}), configured(around, {})
    for flag in ("needs", "selects", "separable", "divisible", "shares", "shareable"):
        assert getattr(found, flag) == getattr(base, flag), flag
    assert found.label == f"2 x {base.label}"
    assert (found.needed(), found.reach(), passes(found, name, 7)) == (base.needed(), base.reach(), base.passes(7))


def test_a_method_around_another_keeps_every_promise_and_is_run_as_that_one(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Local, "engine", lambda *given: Inline(given[2], 1, given[4]))
    Path("around.py").write_text(AROUND)
    assert [v for v in validate.validate(METHODS.add_file(Path("around.py"))) if v.error] == []
    words = ["run", "--methods", "around", "--plugin", "around.py", *options(), "--results", "r"]
    refused = cli(*words, "--set", "hyper.around.around=mtard", "--set", "train.micro_batch=8", "--dry-run")
    assert refused.exit_code == 2
    assert "train.micro_batch" in refused.stderr
    done = cli(*words, "--set", "hyper.around.around=natural")
    assert done.exit_code == 0, done.output
    record = record_of(Path("r"), "around")
    assert record["label"].startswith("2 x ")
    assert record["teacher"] is None  # since the method inside needs none


def test_a_method_that_selects_by_what_nobody_measures_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "around.py").write_text(AROUND.replace("self.base.selects", "'val_best'"))
    with pytest.raises(UserError, match=r"val_best.*val_robust_worst"):
        configured(METHODS.add_file(file), {})


@pytest.mark.parametrize("word", SELECTIONS)
def test_the_best_epoch_is_the_one_with_the_highest_score_by_the_methods_word(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each word has its highest score in another epoch."""
    scores = {name: [0.1, 0.1, 0.1, 0.1] for name in SELECTIONS}
    for epoch, name in enumerate(SELECTIONS):
        scores[name][epoch] = 0.5
    epochs = iter([{name: values[epoch] for name, values in scores.items()} for epoch in range(4)])
    it = trainer(tmp_path, make("natural", {}), epochs=4)
    monkeypatch.setattr(type(it.method), "selects", word)
    monkeypatch.setattr(it, "_validate", lambda: next(epochs))
    entries: list[dict[str, Any]] = []
    summary = it.run(entries.append, lambda *_: None)
    assert summary.best_epoch == 1 + SELECTIONS.index(word)
    # Other methods' logs have the columns that they had.
    assert all({*SELECTIONS} & {*entry} == {"val_clean", "val_robust", word} for entry in entries)


def test_what_may_choose_an_epoch_is_counted_on_the_held_out_split() -> None:
    net = build("cnn-4", classes=10, channels=1)
    val = Split(torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8), torch.arange(40) % 3)
    x = val.images.float() / 255
    with torch.no_grad():
        labels = net.eval()(x).argmax(1)
    val = Split(val.images, torch.where(torch.arange(40) % 4 == 0, (labels + 1) % 10, labels))
    ball = Ball(0.0, 0.0, 1)
    found = held_out(Net(net), val, ball, 7, seed=0)
    right = (labels == val.labels).double()
    worst = min(right[val.labels == c].mean().item() for c in set(val.labels.tolist()))
    assert found["val_clean"] == found["val_robust"] == found["val_mean"] == 0.75
    assert found["val_robust_worst"] == pytest.approx(worst)
    assert worst < 0.75


def test_indices_and_the_number_of_iterations_are_the_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor, int, int]] = []
    it = trainer(tmp_path, make("natural", {}), epochs=2, micro_batch=8)
    whole = type(it.method).loss

    def loss(self: Any, step: Any, x_adv: Tensor) -> Tensor:
        seen.append((step.index, step.y, step.iteration, step.iterations))
        return whole(self, step, x_adv)

    monkeypatch.setattr(type(it.method), "loss", loss)
    run(it)
    labels = load("digits", tmp_path, train_images=70, val_images=20, test_images=10).train.labels
    assert all(torch.equal(labels[index], y) for index, y, *_ in seen)
    assert {of for *_, of in seen} == {seen[-1][2]}
    half = len(seen) // 2
    assert sorted(torch.cat([index for index, *_ in seen[:half]]).tolist()) == list(range(len(labels)))


def reference(network: nn.Module, x: Tensor) -> Tensor:
    """The CNN's logits on the batch's own statistics, layer by layer."""
    for layer in network.body:
        if isinstance(layer, nn.BatchNorm2d):
            x = F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
        else:
            x = layer(x)
    return network.linear(x.mean(dim=(2, 3)))


def test_in_the_mode_batch_the_statistics_are_the_batchs_and_the_running_ones_stay() -> None:
    step = step_for(make("pgd-at", {}))
    module = step.student.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with step.still(Mode.BATCH):
        torch.testing.assert_close(step.student(step.x), reference(module, step.x))
    again = step.ascend(lambda x: cross_entropy(step.student(x), step.y), start=Start.CLEAN, bn=Mode.BATCH)
    by_hand = step.x.clone()
    for _ in range(step.threat.steps):
        by_hand.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(reference(module, by_hand), step.y, reduction="sum"), by_hand)
        by_hand = (by_hand.detach() + step.threat.step * gradient.sign()).clamp(
            step.x - step.threat.eps, step.x + step.threat.eps
        )
        by_hand = by_hand.clamp(0, 1)
    assert (again - by_hand).abs().mean() < 1e-4  # a sign at zero may differ
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    # Afterwards it learns as ever.
    assert all(m.training and getattr(m, "track_running_stats", True) for m in module.modules())
    step.student(step.x)
    assert not torch.equal(module.state_dict()["body.1.running_mean"], before["body.1.running_mean"])


def test_after_an_error_in_the_mode_batch_the_student_is_as_before() -> None:
    step = step_for(make("pgd-at", {}))
    with pytest.raises(ZeroDivisionError), step.still(Mode.BATCH):
        _ = 1 / 0
    assert all(getattr(m, "track_running_stats", True) for m in step.student.module.modules())


def test_methods_take_the_mode_batch_as_their_hyperparameter(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "trades"
    whole = validate.configured
    monkeypatch.setattr(validate, "configured", lambda name, hyper: whole(name, hyper | {"attack_bn": "batch"}))
    assert [v for v in validate.validate(name) if v.error] == []
    moved = make(name, {"attack_bn": "batch"}).attack(step_for(make(name, {})))
    assert not torch.equal(moved, make(name, {}).attack(step_for(make(name, {}))))


def test_a_class_that_the_batch_lacks_counts_none() -> None:
    step = step_for(make("natural", {}))
    counts = step.total(torch.bincount(step.y, minlength=10))
    assert counts.tolist() == [1, 1, 1, 1, 1, 0, 0, 0, 0, 1]
    assert counts.dtype == torch.int64
    least, most = step.extremes(torch.tensor([0.5, -2.0, 3.0], requires_grad=True))
    assert (least.item(), most.item(), most.requires_grad) == (-2.0, 3.0, False)
