"""AutoAttack in shards and by the fast search: what counts is float32, and nothing finished is lost."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forked
import pandas as pd
import pyautoattack
import pytest
import torch
from pyautoattack import autopgd_base, fab_base
from pyautoattack.fab_projections import projection_linf
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from tiny import SETTINGS, cli, shorten_autoattack
from torch import Tensor, nn

from adbench import FAST_SEARCH
from adbench.attacks import autoattack, targeted
from adbench.attacks.hyperplane import nearest_in_box
from adbench.attacks.linf import attacking
from adbench.cli import main
from adbench.data import Split, Threat
from adbench.evaluation.evaluator import Evaluator, Outcome, evaluate
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


def test_shards_make_up_the_whole_and_a_known_shard_is_not_attacked_again(few, monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
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


@pytest.mark.parametrize("other", [{"seed": 7}, {"search": "float32"}, {"search": autoattack.SEARCHES["fast"]}])
def test_what_another_attack_left_behind_is_not_taken_for_this_ones(few, other: dict[str, Any], monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
    split = Split(few[1].images[:4], few[1].labels[:4])
    kept: dict[str, Outcome] = {}
    whole = evaluate(evaluator(few[0], split, shard=2), ("aa",), on_attack=kept.__setitem__)["aa"]
    attacked: list[str] = []
    for label in ("aa, images 0 to 1", "aa"):
        known = kept | {label: replace(kept[label], right=~whole.right, definition=whole.definition | other)}
        if label != "aa":
            del known["aa"]
        again = evaluate(
            evaluator(few[0], split, shard=2), ("aa",), known=known, on_attack=lambda n, _: attacked.append(n)
        )["aa"]
        assert torch.equal(again.right, whole.right)
        assert again.definition == whole.definition
    assert attacked == ["aa, images 0 to 1", "aa", "aa"]


def directly(net: nn.Module, split: Split, shard: int, version: str = "standard", classes: int = 5) -> Tensor:
    """x' of the authors' package, called as its README says on one shard after the other; nothing of adbench."""
    found = []
    for images, labels in zip(split.images.split(shard), split.labels.split(shard), strict=True):
        adversary = pyautoattack.AutoAttack(net, norm="Linf", eps=float(EPS), version=version, seed=1, device="cpu")
        adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = classes - 1  # its 9 are not there
        found.append(adversary.run_standard_evaluation(images.float() / 255, labels, batch_size=shard)[0])
    return torch.cat(found)


@pytest.fixture(scope="module")
def large() -> tuple[nn.Module, Split]:
    """A wide residual network and colour images as large as CIFAR's, some of which its attacks break."""
    torch.manual_seed(5)
    net = build("wrn-10-2", classes=5, channels=3).eval()
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        labels = net(images.float() / 255).argmax(1)
    return net, Split(images, labels)


@pytest.mark.parametrize(
    ("size", "version"), [("few", "standard"), ("few", "plus"), ("few", "rand"), ("large", "standard")]
)
def test_the_default_is_the_authors_package_bit_for_bit(
    size: str, version: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_autoattack(monkeypatch)
    net, split = request.getfixturevalue(size)
    split, shard = split.first(12), {"few": 5, "large": 4}[size]
    theirs = directly(net, split, shard, version)
    threat = Threat(EPS, EPS / 4)
    judge = Evaluator(net, split, threat, seed=1, batch_size=64, device=torch.device("cpu"), shard=shard, keep=True)  # type: ignore[arg-type]
    name = next(name for name, called in autoattack.VERSIONS.items() if called == version)
    found = evaluate(judge, (name,))[name]
    assert found.x_adv is not None
    assert torch.equal(found.x_adv, theirs)
    with torch.no_grad():
        assert torch.equal(found.right, net(theirs).argmax(1) == split.labels)
    assert (theirs != split.images.float() / 255).flatten(1).any(1).sum() > 0
    assert found.definition["search"] == "authors' package, float32"


def test_the_fast_search_differs_from_the_exact_one_at_the_boundary_alone(few, monkeypatch) -> None:
    shorten_autoattack(monkeypatch, 40)
    net, split = few
    eps = EPS * 3 / 4
    judged = {search: evaluate(evaluator(net, split, search, eps=eps), ("aa",))["aa"] for search in autoattack.SEARCHES}
    fast, exact = judged["fast"].right, judged["exact"].right
    with attacking(net):
        close, _ = autoattack.probe(net, split.images.float() / 255, split.labels, eps)
    # At the boundary either search breaks by chance what the other one misses.
    boundary = close.abs() <= 2 * autoattack.CLOSE
    assert not ((fast != exact) & ~boundary).any()
    assert boundary.any()
    assert 3 <= (exact & ~boundary).sum() <= 27
    assert (~exact & ~boundary).sum() >= 3


def test_what_is_configured_runs_whatever_the_device_can_do(few, monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
    split = Split(few[1].images[:4], few[1].labels[:4])
    definitions = {}
    for can in (True, False):
        monkeypatch.setattr("adbench.models.precision.multiplies_bfloat16", lambda _, can=can: can)
        for search in autoattack.SEARCHES:
            found = evaluate(evaluator(few[0], split, search), ("aa",))["aa"]
            assert definitions.setdefault(search, found.definition) == found.definition
    assert definitions["fast"]["search"] == f"fast search {FAST_SEARCH}: bfloat16, decided in float32"


@pytest.mark.parametrize(("words", "search"), [((), "exact"), (("--fast-aa",), "fast")])
def test_the_fast_search_is_asked_for(
    words: tuple[str, ...], search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_autoattack(monkeypatch)
    torch.save(build("cnn-4", classes=10, channels=1).state_dict(), tmp_path / "net.pt")
    words = ("eval", str(tmp_path / "net.pt"), "--arch", "cnn-4", "--images", "5", "--attacks", "aa", *words)
    found = cli(*words, "--device", "cpu", "--results", tmp_path / "results")
    assert found.exit_code == 0, found.output
    (path,) = (tmp_path / "results").rglob("record.json")
    record = json.loads(path.read_text())
    assert record["metrics"]["aa"]["attack"]["search"] == autoattack.SEARCHES[search]
    assert record["config"]["evaluation"]["aa_search"] == search


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
    shorten_autoattack(monkeypatch, 20)
    net, split = few
    torch.manual_seed(3)
    other = Wrong(net) if half == "wrong" else build("cnn-4", classes=5, channels=1).eval()
    deceptive = UnlikeInHalf(net, other)
    few_images = Split(split.images[:10], split.labels[:10])
    exact = evaluate(evaluator(net, few_images, shard=4, eps=EPS * 3 / 4), ("aa",))["aa"].right
    fast = evaluate(evaluator(deceptive, few_images, "fast", shard=4, eps=EPS * 3 / 4), ("aa",))["aa"]  # type: ignore[arg-type]
    assert 0 < exact.sum() < len(exact)
    assert torch.equal(fast.right, exact)


def test_images_that_only_the_network_as_written_has_right_are_searched_in_it(few, monkeypatch) -> None:
    """As rounding can have it beside the boundary: attacks pass over what their network misclassifies as it is."""
    shorten_autoattack(monkeypatch, 20)
    net, split = few
    x, y = split.images[:10].float() / 255, split.labels[:10]
    with torch.no_grad():
        right = net(x).argmax(1) == y
    x, y = x[right], y[right]
    exact = autoattack.attack(net, x, y, EPS, seed=0)
    really = autoattack.searching

    def misled(network: nn.Module, search: str) -> nn.Module:
        return really(network, search) if search == "exact" else Wrong(network)

    monkeypatch.setattr(autoattack, "searching", misled)
    fast = autoattack.attack(net, x, y, EPS, seed=0, search="fast")
    assert torch.equal(fast.broken, exact.broken)
    assert exact.broken.sum() > 0
    again = autoattack.attack(net, x[exact.broken], y[exact.broken], EPS, seed=0, search="again")
    assert again.broken.any()


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
    aimed: list[int] = []
    whole = pyautoattack.AutoAttack.__init__

    def watched(self: Any, *args: Any, **options: Any) -> None:
        whole(self, *args, **options)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
        self.square.n_queries = 20
        for name in ("apgd", "square"):
            attack = getattr(self, name)
            attack.perturb = partial(meet, name, attack.perturb)

    def meet(name: str, perturb: Any, *given: Any) -> Tensor:
        met.setdefault(name, []).append(len(given[-1]))
        if name == "apgd_targeted":
            aimed.append(given[0].n_target_classes)
        found: Tensor = perturb(*given)
        return found

    monkeypatch.setattr(targeted, "apgd", partial(meet, "apgd_targeted", targeted.apgd))
    monkeypatch.setattr(targeted, "fab", partial(meet, "fab", targeted.fab))
    monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", watched)
    x = split.images.float() / 255
    y = net(x).argmax(1)
    found = autoattack.attack(SureInHalf(net, x), x, y, EPS, seed=0, search="fast")
    right = [int((~found.broken).sum()), *(met[name][0] for name in ("square", "fab", "apgd_targeted", "apgd"))]
    assert right[-1] == 30
    assert right == sorted(right)
    assert right[1] > 0, "the last attack met what float32 still had right"
    met.clear()
    doubtful = (x[found.doubtful], y[found.doubtful])
    again = autoattack.attack(SureInHalf(net, x), *doubtful, EPS, seed=0, search="again")
    close, rank = autoattack.probe(net, *doubtful, EPS)
    assert set(aimed[:-1]) == {4}
    assert aimed[-1] == min(4, int(rank.max()) + 1)
    copies = sum(autoattack.STARTS if each <= autoattack.CLOSEST else 1 for each in close.tolist())
    assert len(close) < copies < autoattack.STARTS * len(close)
    assert list(met) == ["apgd", "apgd_targeted"]
    assert met["apgd"] == [copies]
    assert met["apgd_targeted"][0] <= copies
    assert len(again.broken) == int(found.doubtful.sum())
    beside = tuple(part[rank == 1] for part in doubtful)
    autoattack.attack(SureInHalf(net, x), *beside, EPS, seed=0, search="again")
    assert aimed[-1] == 2, "the class that all of them came closest to, and one more"
    exact = autoattack.attack(net, x, y, EPS, seed=0, search="exact")
    assert not (exact.broken & ~found.broken & ~found.doubtful).any()


@pytest.mark.parametrize("reach", [0.001, 0.1, 0.4, 3.0])
@pytest.mark.parametrize("pixels", [1, 7, 3072])
def test_fabs_projection_without_sorting_leads_to_the_packages_own_point(reach: float, pixels: int) -> None:
    torch.manual_seed(pixels)
    points = (1.4 * torch.rand(40, pixels) - 0.2).clamp(0, 1)  # some of them at the box's sides
    w = torch.randn(40, pixels) * torch.rand(40, 1)
    w[torch.rand_like(w) < 0.1] = 0
    w[0] = 0
    b = (w * points).sum(1) + w.abs().sum(1) * reach * torch.randn(40)
    mine, theirs = nearest_in_box(points, w, b), projection_linf(points, w, b)
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)
    assert (points + mine).min() >= 0
    assert (points + mine).max() <= 1
    off = ((w * (points + mine)).sum(1) - b).abs()
    reached = off <= 1e-4 * (1 + b.abs())
    beyond = ((points + mine == 0) | (points + mine == 1) | (w == 0)).all(1)
    assert (reached | beyond).all(), "what misses the hyperplane is a corner of the box"
    assert reached.any()


def test_only_a_fast_search_projects_without_sorting(few, monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
    net, split = few
    asked: list[int] = []

    def counted(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
        asked.append(len(points))
        return nearest_in_box(points, w, b)

    monkeypatch.setattr(autoattack, "nearest_in_box", counted)
    x = split.images[:4].float() / 255
    for search in autoattack.SEARCHES:
        autoattack.attack(net, x, net(x).argmax(1), Fraction(1, 255), seed=0, search=search)
        assert bool(asked) == (search == "fast")
        assert fab_base.projection_linf is projection_linf
        asked.clear()


def test_targets_are_taken_together_by_rank_until_one_breaks_the_image() -> None:
    logits = torch.tensor([[4.0, 3, 2, 1, 0], [0, 5, 4, 3, 2], [9, 0, 1, 2, 3], [3, 4, 5, 2, 1]])
    x, y = torch.arange(4.0).reshape(4, 1, 1, 1), torch.tensor([0, 1, 1, 2])  # the third is misclassified as it is
    asked: list[tuple[list[float], list[int]]] = []

    def run(images: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        asked.append((images.flatten().tolist(), targets.tolist()))
        assert labels.tolist() == y[images.flatten().long()].tolist()
        return images + 10.0 * (1 + targets.reshape(-1, 1, 1, 1))

    def falls(images: Tensor, x_adv: Tensor, _: Tensor) -> Tensor:
        toward = x_adv.flatten() // 10 - 1
        return ((images.flatten() == 1) & (toward >= 3)) | ((images.flatten() == 0) & (toward == 4))

    found = targeted.together(run, falls, x, y, logits, classes=4, most=6)
    assert asked == [([0, 0, 1, 1, 3, 3], [1, 2, 2, 3, 1, 0]), ([0, 0, 3, 3], [3, 4, 3, 4])]
    assert found.flatten().tolist() == [50, 41, 2, 3]
    asked.clear()
    targeted.together(run, falls, x, y, logits, classes=1, most=1)
    assert asked == [([0, 1, 3], [1, 2, 1])], "at least one target, and no more than there are to be"


@pytest.mark.parametrize("named", ["fab", "apgd_targeted"])
def test_targets_together_break_what_the_package_breaks(few, named: str, monkeypatch) -> None:
    shorten_autoattack(monkeypatch, 50)
    net, split = few
    x, y = split.images.float() / 255, split.labels
    with attacking(net), torch.no_grad():
        right = net(x).argmax(1) == y
        x, y = x[right], y[right]
        adversary = pyautoattack.AutoAttack(net, norm="Linf", eps=float(EPS), version="standard", seed=0, device="cpu")
        one = getattr(adversary, named)
        one.seed, one.targeted, one.n_restarts, one.n_target_classes = 0, True, 1, 4
        theirs = autoattack.falls(net, x, one.perturb(x, y), y, EPS)
        together = targeted.fab if named == "fab" else targeted.apgd
        for most in (1, 64, 1000):
            found = together(one, partial(autoattack.falls, net, eps=EPS), most, x, y)
            ours = autoattack.falls(net, x, found, y, EPS)
            # FAB begins at the image; APGD at noise, drawn as in the package where it takes a target at a time.
            chance = 1 if named == "apgd_targeted" and most > 1 else 0
            assert (ours != theirs).sum() <= chance, most
            assert 0 < ours.sum() < len(x)
            assert torch.equal(found[~ours], x[~ours]), "what is not broken comes back as it was"


def test_fab_without_targets_is_the_packages_own(few) -> None:
    net, split = few
    x, y = split.images[:8].float() / 255, split.labels[:8]
    with attacking(net):
        one = pyautoattack.AutoAttack(net, norm="Linf", eps=float(EPS), version="plus", seed=0, device="cpu").fab
        one.seed, one.targeted, one.n_iter, one.n_restarts = 0, False, 5, 2
        theirs = one.perturb(x, y)
        one.perturb = partial(targeted.fab, one, partial(autoattack.falls, net, eps=EPS), 64)
        assert torch.equal(one.perturb(x, y), theirs)
        one.targeted, one.n_target_classes = True, 4
        one.perturb(x, y)
        one.targeted = False
        assert torch.equal(one.perturb(x, y), theirs), "also after a targeted run"


def test_only_a_search_that_may_takes_several_targets(few, monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
    net, split = few
    x, y = split.images.float() / 255, split.labels
    with torch.no_grad():
        right = net(x).argmax(1) == y
    took: list[int] = []
    really = targeted.together

    def counting(*given: Any) -> Tensor:
        took.append(given[-1])
        return really(*given)

    monkeypatch.setattr(targeted, "together", counting)
    autoattack.attack(net, x[right], y[right], EPS / 4, seed=0)
    assert not took
    autoattack.attack(net, x[right], y[right], EPS / 4, seed=0, search="fast")
    assert set(took) == {autoattack.TOGETHER}
    took.clear()
    many = x[right].repeat(6, 1, 1, 1)
    monkeypatch.setattr(targeted, "together", lambda *given: took.append(given[-1]) or given[2])
    autoattack.attack(net, many, y[right].repeat(6), Fraction(1, 255), seed=0, search="fast")
    assert set(took) == {len(many)}, "as many pairs as there are images, where these are more"
    assert len(many) > autoattack.TOGETHER


def test_the_probe_names_the_class_beside_each_image_by_its_rank_there() -> None:
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0, 0], [-5, 0, 0, 0], [0, 0, 0, 0]]))
        linear.bias.copy_(torch.tensor([0, 0, 4.4, -1]))
    x = torch.tensor([[0.8, 1, 0, 0], [0.9, 1, 0, 0]]).view(2, 1, 2, 2)
    # The first pixel falls by eps. That brings the first image's logits from (0.8, 0.5, 0.4) to (0.75, 0.5, 0.65), the
    # second's from (0.9, 0.5, -0.1) to (0.85, 0.5, 0.15).
    distance, rank = autoattack.probe(nn.Sequential(nn.Flatten(), linear), x, torch.tensor([0, 0]), Fraction(1, 20))
    assert rank.tolist() == [2, 1]
    assert distance.tolist() == pytest.approx([0.1 / 0.25, 0.35 / 0.7], abs=1e-4)


def test_a_debugger_or_coverage_goes_on_tracing(few, monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
    before = sys.gettrace()

    def tracer(*_: object) -> None:
        return None

    try:
        sys.settrace(tracer)
        evaluate(evaluator(*few), ("aa",), aa_images=2)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


FEW_CLASSES = [
    (2, "aa", "standard, 2 classes: targeted DLR as a difference of logits"),
    (3, "aa", "standard, 3 classes: targeted DLR as a difference of logits"),
    (2, "aa-plus", "plus, 2 classes: DLR and targeted DLR as a difference of logits"),
    (3, "aa-plus", "plus, 3 classes: targeted DLR as a difference of logits"),
    (2, "aa-rand", "rand, 2 classes: DLR as a difference of logits"),
    (3, "aa-rand", "rand"),
    (4, "aa", "standard"),
    (4, "aa-plus", "plus"),
]


class Pairs(nn.Module):
    """A linear network of so many classes on images of 2 x 2 pixels, each class by a pixel of its own."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4)[:classes])

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("search", autoattack.SEARCHES)
@pytest.mark.parametrize(("classes", "name", "version"), FEW_CLASSES)
def test_with_few_classes_every_attack_runs_without_the_loss_that_needs_more(
    classes: int, name: str, version: str, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_autoattack(monkeypatch, 3)
    ran: list[str] = []
    for attack, method in (
        (autopgd_base.APGDAttack_targeted, "attack_single_run"),
        (FABAttack_PT, "perturb"),
        (SquareAttack, "perturb"),
    ):
        really = getattr(attack, method)
        monkeypatch.setattr(
            attack,
            method,
            lambda self, *a, really=really, **o: ran.append(type(self).__name__) or really(self, *a, **o),
        )
    pixels = torch.tensor([[200, 150, 120, 90], [90, 200, 150, 120], [200, 20, 10, 0], [160, 150, 149, 148]])
    images = pixels.to(torch.uint8).view(4, 1, 2, 2)
    net = Pairs(classes)
    split = Split(images, net(images.float()).argmax(1))
    found = evaluate(evaluator(net, split, search, shard=4, eps=Fraction(30, 255)), (name,))[name]  # type: ignore[arg-type]
    # The label's pixel and the best other one can both move by eps.
    top = images.flatten(1)[:, :classes].int().sort(dim=1, descending=True).values
    assert found.right.tolist() == (top[:, 0] - top[:, 1] > 60).tolist()
    assert 0 < found.right.sum() < 4
    assert found.definition["version"] == version
    assert found.definition["target_classes"] == classes - 1
    assert not any("class" in flag for flag in found.flags)
    if name != "aa-rand":
        assert {"APGDAttack_targeted", "SquareAttack"} <= set(ran)
        assert "FABAttack_PT" in ran or search == "fast"


@pytest.mark.parametrize(
    ("name", "version"), [("aa-rand", "rand"), ("aa-plus", "plus"), ("aa-square", "custom: square")]
)
def test_the_other_versions_run_and_are_recorded(few, name: str, version: str, monkeypatch) -> None:
    shorten_autoattack(monkeypatch)
    for search in autoattack.SEARCHES:
        found = evaluate(evaluator(*few, search=search, eps=Fraction(1, 2)), (name,), aa_images=2)[name]
        assert found.definition["version"] == version
        assert not found.right.any()


def test_square_alone_is_the_packages_and_asks_for_no_gradient(few) -> None:
    network, split = few
    one = evaluator(network, split, eps=Fraction(8, 255))
    found = one.shard("aa-square", torch.arange(len(split.labels)))
    attacked = one.x[one.right]
    direct = SquareAttack(
        network, p_init=0.8, n_queries=5000, eps=8 / 255, norm="Linf", n_restarts=1, seed=one.seed, resc_schedule=False
    )
    with torch.no_grad():
        x_adv = direct.perturb(attacked, one.y[one.right])
        due = network(x_adv).argmax(1) == one.y[one.right]
    assert found.right[one.right].tolist() == due.tolist()
    assert due.sum() > 0

    class Forward(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return network(x.detach()).detach()

    again = evaluator(Forward(), split, eps=Fraction(8, 255)).shard("aa-square", torch.arange(len(split.labels)))
    assert again.right.tolist() == found.right.tolist()


def shorter(*words: str) -> None:
    """`adbench WORDS` in a process of its own, with an AutoAttack of few iterations, so that a shard takes a moment."""
    shorten_autoattack(pytest.MonkeyPatch())
    torch.set_num_threads(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    main(words)


def parts(folder: Path) -> int:
    return len(list(folder.rglob("partial-*")))


@pytest.mark.slow
def test_sigkills_change_no_verdict(tmp_path: Path) -> None:
    small = {"train.epochs": "6", "threat.eps": "16/255", "eval.images": "40", "eval.attacks": '["aa"]'}
    small |= {"data.train_images": "300", "eval.aa_shard": "1", "data.val_images": "20"}
    # Forked from a process that has loaded torch: six starts would take longer than all that is killed.
    context = forked.context()

    def started(name: str) -> BaseProcess:
        settings = [word for key, value in (SETTINGS | small).items() for word in ("--set", f"{key}={value}")]
        words = ("run", "--methods", "natural", "--student", "cnn-4", *settings, "--device", "cpu")
        process: BaseProcess = context.Process(target=shorter, args=(*words, "--results", str(tmp_path / name)))
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
    for _ in range(5):
        before = parts(tmp_path / "killed")
        process = started("killed")
        while parts(tmp_path / "killed") <= before and process.is_alive():
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        assert process.is_alive(), "it came to its end before five kills"
        process.kill()
        process.join()
    pd.testing.assert_frame_equal(finished("killed"), whole)
    assert 0 < whole["aa"].sum() < 40
    assert parts(tmp_path / "killed") == 0, "a finished evaluation leaves no parts"
