"""AutoAttack in shards and by the fast search: what counts is float32, and nothing finished is lost."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import time
from fractions import Fraction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pyautoattack
import pytest
import torch
from tiny import SETTINGS
from torch import Tensor, nn

from adbench.attacks import autoattack
from adbench.cli import main
from adbench.data import Split, Threat
from adbench.evaluate import Evaluator, Outcome, evaluate
from adbench.models import build

EPS = Fraction(32, 255)


@pytest.fixture(scope="module")
def few(trained: tuple[nn.Module, Split]) -> tuple[nn.Module, Split]:
    """The small network and the first 30 of its images."""
    net, split = trained
    return net, Split(split.images[:30], split.labels[:30])


def evaluator(net: nn.Module, split: Split, search: str = "exact", shard: int = 30, eps: Fraction = EPS) -> Evaluator:
    threat, cpu = Threat(eps, eps / 4), torch.device("cpu")
    return Evaluator(net, split, threat, seed=1, batch_size=64, device=cpu, search=search, shard=shard)  # type: ignore[arg-type]


def test_shards_make_up_the_whole_and_a_known_shard_is_not_attacked_again(few) -> None:
    kept: dict[str, Outcome] = {}
    whole = evaluate(evaluator(*few, shard=12), ("aa",), on_attack=kept.__setitem__)["aa"]
    labels = ["aa, images 0 to 11", "aa, images 12 to 23", "aa, images 24 to 29"]
    assert list(kept) == [*labels, "aa"]
    assert torch.equal(whole.right, torch.cat([kept[label].right for label in labels]))
    attacked: list[str] = []
    known = {label: kept[label] for label in labels[:2]}
    resumed = evaluator(*few, shard=12)
    again = evaluate(resumed, ("aa",), known=known, on_attack=lambda name, _: attacked.append(name))["aa"]
    assert attacked == [labels[2], "aa"]
    assert torch.equal(again.right, whole.right)
    first = evaluate(evaluator(*few, shard=12), ("aa",), aa_images=12)["aa"]
    assert torch.equal(first.right, whole.right[:12]), "a whole shard's verdicts do not depend on what follows"


def test_the_fast_search_gives_the_exact_verdicts_here_and_says_what_it_is(few, monkeypatch) -> None:
    monkeypatch.setattr(autoattack, "faster", lambda *_: True)
    found = {search: evaluate(evaluator(*few, search=search), ("aa",))["aa"] for search in autoattack.SEARCHES}
    assert torch.equal(found["fast"].right, found["exact"].right)
    assert 0 < found["exact"].right.sum() < 30
    assert found["exact"].definition["search"] == "float32"
    assert found["fast"].definition["search"] == "bfloat16, decided in float32 (near 0.1, starts 3)"


def test_where_bfloat16_is_not_faster_the_search_is_exact(few, monkeypatch) -> None:
    monkeypatch.setattr(autoattack, "faster", lambda *_: False)
    found = evaluate(evaluator(*few, search="fast"), ("aa",), aa_images=2)["aa"]
    assert found.definition["search"] == "float32"


def test_an_interrupted_fast_search_stays_fast(few, monkeypatch) -> None:
    monkeypatch.setattr(autoattack, "faster", lambda *_: True)
    kept: dict[str, Outcome] = {}
    split = Split(few[1].images[:4], few[1].labels[:4])
    evaluate(evaluator(few[0], split, search="fast", shard=2), ("aa",), on_attack=kept.__setitem__)
    monkeypatch.setattr(autoattack, "faster", lambda *_: False)
    resumed = evaluator(few[0], split, search="fast", shard=2)
    first = "aa, images 0 to 1"
    found = evaluate(resumed, ("aa",), known={first: kept[first]})["aa"]
    assert found.definition["search"].startswith("bfloat16")


class UnlikeInHalf(nn.Module):
    """A network that is another one under autocast, as a bad bfloat16 arithmetic would make it."""

    def __init__(self, net: nn.Module, half: nn.Module) -> None:
        super().__init__()
        self.net, self.other = net, half

    def forward(self, x: Tensor) -> Tensor:
        traced_by_no_tracer = bool(x.isfinite().all())  # so that each pass asks anew
        return (self.other if traced_by_no_tracer and torch.is_autocast_enabled("cpu") else self.net)(x)


class Wrong(nn.Module):
    """Predicts the next class, surely."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).roll(1, dims=1)


@pytest.mark.parametrize("half", ["wrong", "another"])
def test_float32_decides_whatever_bfloat16_says(few, half: str, monkeypatch) -> None:
    net, split = few
    torch.manual_seed(3)
    other = Wrong(net) if half == "wrong" else build("cnn-4", classes=5, channels=1).eval()
    deceptive = UnlikeInHalf(net, other)
    few_images = Split(split.images[:10], split.labels[:10])
    monkeypatch.setattr(autoattack, "faster", lambda *_: True)
    exact = evaluate(evaluator(net, few_images, shard=4, eps=EPS * 3 / 4), ("aa",))["aa"].right
    fast = evaluate(evaluator(deceptive, few_images, "fast", shard=4, eps=EPS * 3 / 4), ("aa",))["aa"]  # type: ignore[arg-type]
    assert 0 < exact.sum() < len(exact)
    assert torch.equal(fast.right, exact)


class SureInHalf(nn.Module):
    """A network that takes everything but the given images for another class, under autocast alone."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.x = net, x

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        unknown = (x[:, None] - self.x).abs().flatten(2).amax(2).amin(1) > 0
        if not unknown.any() or not torch.is_autocast_enabled("cpu"):
            return logits
        return torch.where(unknown[:, None], logits.roll(1, dims=1), logits)


def test_what_only_bfloat16_calls_broken_meets_the_next_attack_and_apgd_in_float32(few, monkeypatch) -> None:
    net, split = few
    met: dict[str, list[int]] = {}
    whole = pyautoattack.AutoAttack.__init__

    def watched(self: Any, *args: Any, **options: Any) -> None:
        whole(self, *args, **options)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
        self.square.n_queries = 20
        for name in ("apgd", "apgd_targeted", "fab", "square"):
            attack = getattr(self, name)

            def perturb(x: Tensor, *rest: Any, _name: str = name, _perturb: Any = attack.perturb) -> Tensor:
                met.setdefault(_name, []).append(len(x))
                return _perturb(x, *rest)

            attack.perturb = perturb

    monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", watched)
    x = split.images.float() / 255
    y = net(x).argmax(1)
    found = autoattack.attack(SureInHalf(net, x), x, y, EPS, seed=0, search="fast")
    right = [int((~found.broken).sum()), *(met[name][0] for name in ("square", "fab", "apgd_targeted", "apgd"))]
    assert right[-1] == 30
    assert right == sorted(right)
    assert right[1] > 0, "the last attack met what float32 still had right"
    met.clear()
    again = autoattack.attack(SureInHalf(net, x), x[found.doubtful], y[found.doubtful], EPS, seed=0, search="again")
    copies = autoattack.STARTS * int(found.doubtful.sum())
    assert list(met) == ["apgd", "apgd_targeted"]
    assert met["apgd"] == [copies]
    assert met["apgd_targeted"][0] <= copies
    assert len(again.broken) == int(found.doubtful.sum())
    exact = autoattack.attack(net, x, y, EPS, seed=0, search="exact")
    assert not (exact.broken & ~found.broken & ~found.doubtful).any()


def test_a_debugger_or_coverage_goes_on_tracing(few) -> None:
    before = sys.gettrace()

    def tracer(*_: object) -> None:
        return None

    try:
        sys.settrace(tracer)
        evaluate(evaluator(*few), ("aa",), aa_images=2)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(("name", "version"), [("aa-rand", "rand"), ("aa-plus", "plus")])
def test_the_other_versions_run_and_are_recorded(few, name: str, version: str) -> None:
    found = evaluate(evaluator(*few, eps=Fraction(1, 2)), (name,), aa_images=2)[name]
    assert found.definition["version"] == version
    assert not found.right.any()


def shorter(*words: str, iterations: int = 5) -> None:
    """`adbench WORDS` in a process of its own, with an AutoAttack of few iterations, so that a shard takes a moment."""
    whole = pyautoattack.AutoAttack.__init__

    def built(self: Any, *args: Any, **options: Any) -> None:
        whole(self, *args, **options)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = iterations
        self.square.n_queries = 20 * iterations

    pyautoattack.AutoAttack.__init__ = built
    torch.set_num_threads(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    main(words)


def parts(folder: Path) -> int:
    return len(list(folder.rglob("partial-*")))


@pytest.mark.slow
def test_ten_sigkills_change_no_verdict(tmp_path: Path) -> None:
    small = {"train.epochs": "6", "threat.eps": "16/255", "eval.images": "90", "eval.attacks": '["aa"]'}
    small |= {"data.train_images": "600", "eval.aa_shard": "1", "data.val_images": "20"}
    # Forked from a process that has loaded torch: ten starts would take longer than all that is killed.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_autoattack", "adbench.runner", "torch._dynamo", "sklearn.datasets"])

    def started(name: str) -> BaseProcess:
        settings = [word for key, value in (SETTINGS | small).items() for word in ("--set", f"{key}={value}")]
        words = ("run", "--methods", "natural", "--student", "cnn-4", *settings, "--device", "cpu")
        process = context.Process(target=shorter, args=(*words, "--results", str(tmp_path / name)))
        process.start()
        return process

    def finished(name: str) -> pd.DataFrame:
        process = started(name)
        process.join()
        assert process.exitcode == 0
        (path,) = (tmp_path / name).rglob("outcomes.parquet")
        return pd.read_parquet(path)

    whole = finished("whole")
    draw = random.Random(0)
    for _ in range(10):
        before = parts(tmp_path / "killed")
        process = started("killed")
        while parts(tmp_path / "killed") <= before and process.is_alive():
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        assert process.is_alive(), "it came to its end before ten kills"
        process.kill()
        process.join()
    pd.testing.assert_frame_equal(finished("killed"), whole)
    assert 0 < whole["aa"].sum() < 90
    assert parts(tmp_path / "killed") == 0, "a finished evaluation leaves no parts"
