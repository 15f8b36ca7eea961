"""Training and evaluation under a GPU's rules, on a pretended one (`pretend.py`); tests marked gpu want a real one."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pretend
import pytest
import torch
from test_train import Watching, run, teacher_for, trainer

from adbench.data import Split, load
from adbench.evaluation.evaluator import Evaluator, evaluate
from adbench.models import build
from adbench.registry import METHODS
from adbench.system import signals
from adbench.training.configured import configured
from adbench.training.step import Teacher

SMALL: dict[str, dict[str, Any]] = {"las-at": {"policy": "cnn-4", "interval": 2}}


def test_the_pretended_gpu_keeps_its_tensors_apart_and_counts_what_waits_for_it() -> None:
    with pretend.gpu() as places:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (there.device.type, (there + 1).device.type, here.device.type) == ("cuda", "cuda", "cpu")
        with pytest.raises(RuntimeError, match="expected all tensors on the GPU"):
            there + here
        number = torch.tensor(2.0)
        assert (there * number).device.type == "cuda", "a pointwise operation takes a number from the processor"
        for together in (torch.stack, torch.cat):
            with pytest.raises(RuntimeError, match="expected all tensors on the GPU"):
                together([there.sum(), number] if together is torch.stack else [there, number.expand(1)])
        with pytest.raises(RuntimeError, match="expected a generator for cuda:0"):
            torch.rand(3, generator=torch.Generator(), device="cuda")
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert places.waits.total() == 0
        assert float(there.sum()) == float(there.cpu().sum()) == 3
        assert places.waits.total() == 2


RECIPES: dict[str, dict[str, Any]] = {
    "trades": {"awp": 0.01, "average": "ema", "schedule": "cosine", "per": "iteration"},
    "pgd-at": {"awp": 0.01, "awp_form": "restore-first", "average": "swa"},
}


@pytest.mark.parametrize("name", METHODS.names())
def test_training_stays_on_the_gpu_and_does_not_wait_for_it_within_an_epoch(tmp_path: Path, name: str) -> None:
    with pretend.gpu() as places:
        method = configured(name, SMALL.get(name, {}))
        recipe = RECIPES.get(name, {})
        it = trainer(tmp_path, method, device="cuda", images=96, epochs=1, attack_steps=2, **recipe)
        it.teachers = {need: Teacher(teacher_for(need).to("cuda"), it.precision) for need in method.needed()}
        it.watch.every = 1000
        waits: list[int] = []

        def on_batch(*_: int) -> None:
            waits.append(places.waits.total())

        it.run(lambda _: None, on_batch)
        # LAS-AT asks once an attack how many steps the longest strategy has: every batch, and where its policy learns;
        # and there after a step on the copy whether it is right about any image (here of neither restart it is).
        allowed = {"las-at": [4, 1]}.get(name, [0, 0])
        assert [after - before for before, after in pairwise(waits)] == allowed
        assert {p.device.type for p in it.student.parameters()} == {"cuda"}


def test_a_training_goes_on_on_the_gpu_from_its_state(tmp_path: Path) -> None:
    with pretend.gpu():
        whole = trainer(tmp_path / "whole", device="cuda", epochs=2)
        run(whole)
        cut = trainer(tmp_path / "cut", device="cuda", epochs=2)
        with pytest.raises(KeyboardInterrupt):
            cut.run(lambda _: (_ for _ in ()).throw(KeyboardInterrupt), lambda *_: None)
        again = trainer(tmp_path / "cut", device="cuda", epochs=2)
        entries = run(again)
        assert [entry["epoch"] for entry in entries] == [2]
        for one, other in zip(whole.student.parameters(), again.student.parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_training_that_is_terminated_in_mid_epoch_goes_on_on_the_gpu_though_its_method_logs_a_number(
    tmp_path: Path,
) -> None:
    entries = []
    with pretend.gpu():
        it = trainer(tmp_path, Watching(), device="cuda", epochs=1)
        with signals.handled(), pytest.raises(signals.Stopped):
            it.run(lambda _: None, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        trainer(tmp_path, Watching(), device="cuda", epochs=1).run(entries.append, lambda *_: None)
    assert [entry["half"] for entry in entries] == [0.5]


def test_attacks_run_on_the_gpu_and_find_what_they_find_here() -> None:
    torch.manual_seed(0)
    network = build("cnn-4", classes=10, channels=1).eval()
    data = load("digits", Path(), train_images=50, val_images=10, test_images=24)
    with torch.no_grad():
        said = network(data.test.images.float() / 255).argmax(1)
    split = Split(data.test.images, said)
    names = ("fgsm", "mi-fgsm", "pgd5", "cw5", "pgd2x2")

    def found(device: str) -> dict[str, list[bool]]:
        judge = Evaluator(network, split, data.threat, seed=0, batch_size=16, device=torch.device(device), keep=True)
        return {name: outcome.right.tolist() for name, outcome in evaluate(judge, names).items()}

    here = found("cpu")
    with pretend.gpu():
        assert found("cuda") == here
