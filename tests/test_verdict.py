"""What counts as right: no image without finite logits, none whose label ties with another class, in any figure."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import cli, shorten_autoattack
from torch import Tensor, nn

from adbench.analysis.common import Testbed
from adbench.attacks.linf import NOT_FOLLOWED
from adbench.data import Split, Threat
from adbench.errors import UserError
from adbench.evaluation import stored_examples
from adbench.evaluation.evaluator import Evaluator, evaluate
from adbench.models import build, verdict
from adbench.training import trainer
from adbench.training.step import Ball, Net
from adbench.weights.checkpoint import load

NAN, INF = float("nan"), float("inf")
EPS = Fraction(8, 255)

ROWS = [
    ([3.0, 1, 2], 0, True, None),
    ([3.0, 1, 4], 0, False, None),
    ([3.0, 3, 2], 0, False, "tied"),
    ([3.0, 3, 2], 1, False, "tied"),
    ([3.0, 3, 4], 0, False, None),
    ([3.0, NAN, 2], 0, False, "unfinite"),
    ([NAN, 1, 2], 0, False, "unfinite"),
    ([3.0, 1, -INF], 0, False, "unfinite"),
    ([INF, 1, 2], 0, False, "unfinite"),
    ([NAN, NAN, NAN], 2, False, "unfinite"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_right_is_a_finite_logit_above_all_others(dtype: torch.dtype) -> None:
    logits = torch.tensor([row for row, *_ in ROWS], dtype=dtype)
    y = torch.tensor([label for _, label, *_ in ROWS])
    found = verdict.Verdict.of(logits, y)
    assert found.right.tolist() == [right for _, _, right, _ in ROWS]
    assert found.tied.tolist() == [why == "tied" for *_, why in ROWS]
    assert found.unfinite.tolist() == [why == "unfinite" for *_, why in ROWS]
    assert torch.equal(verdict.right(logits, y), found.right)
    assert torch.equal(verdict.predicted(logits, y) == y, found.right)
    ordinary = ~(found.tied | found.unfinite)
    assert torch.equal(verdict.predicted(logits, y)[ordinary], logits[ordinary].argmax(1))
    right, unclear = stored_examples.verdicts(logits, y)
    assert torch.equal(right, found.right)
    assert not unclear[found.unfinite].any(), "what is not finite is no matter of rounding"


def test_flags_of_the_parts_of_a_test_set_are_added_up() -> None:
    one = verdict.Verdict(*(torch.tensor(given) for given in ([False] * 3, [True, True, False], [False, False, True])))
    assert one.flags() == [
        "counted as wrong: 2 images with logits that are not finite",
        "counted as wrong: 1 image whose label ties with another class",
    ]
    assert verdict.summed(["warned", *one.flags(), "warned", one.flags()[1]]) == [
        "warned",
        "counted as wrong: 2 images with logits that are not finite",
        "counted as wrong: 2 images whose label ties with another class",
    ]


class Odd(nn.Module):
    """A network whose logits are odd on what is no test image: NaN in all or just in the label's column, or equal."""

    def __init__(self, net: nn.Module, x: Tensor, y: Tensor, way: str) -> None:
        super().__init__()
        self.net, self.x, self.y, self.way = net, x, y, way

    def forward(self, z: Tensor) -> Tensor:
        logits, moved = self.net(z), torch.zeros(len(z), 1)
        apart, nearest = (z.detach()[:, None] - self.x).abs().flatten(2).amax(2).min(1)
        if bool((apart > 0).any()):  # which no tracer passes
            moved[apart > 0] = 1
        if self.way == "equal":
            return logits * (1 - moved)
        own = nn.functional.one_hot(self.y[nearest], logits.shape[1]).bool()
        return logits + torch.where((own | (self.way == "all")) & (moved > 0), NAN, 0.0)


@pytest.fixture
def judged(trained: tuple[nn.Module, Split]) -> tuple[nn.Module, Split]:
    """The small network and 12 images that it is right on."""
    net, split = trained
    with torch.no_grad():
        places = (net(split.images.float() / 255).argmax(1) == split.labels).nonzero().squeeze(1)[:12]
    return net, Split(split.images[places], split.labels[places])


def evaluator(net: Any, split: Split, **options: Any) -> Evaluator:
    return Evaluator(
        net, split, Threat(EPS, EPS / 4), seed=1, batch_size=5, device=torch.device("cpu"), shard=7, **options
    )


@pytest.mark.parametrize("search", ["exact", "fast"])
@pytest.mark.parametrize("way", ["all", "label", "equal"])
def test_odd_logits_under_attack_count_as_wrong_and_are_counted(
    judged: tuple[nn.Module, Split], way: str, search: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_autoattack(monkeypatch, 2)
    net, split = judged
    x = split.images.float() / 255
    odd = Odd(net, x, split.labels, way)
    attacks = ("fgsm", "pgd2", "cw2", *(("aa",) if way != "equal" else ()))
    found = evaluate(evaluator(odd, split, keep=True, search=search), attacks)
    assert found["clean"].right.all()
    assert found["clean"].flags == []
    reason = "whose label ties with another class" if way == "equal" else "with logits that are not finite"
    for name in attacks:
        assert not found[name].right.any(), name
        assert f"counted as wrong: 12 images {reason}" in found[name].flags, name
        x_adv = found[name].x_adv
        assert x_adv is not None
        assert ((x_adv - x).abs() <= float(EPS) + 1e-6).all(), name
    transferred = evaluator(odd, split).transferred("pgd2", "itself", net, 12)  # type: ignore[arg-type]
    assert not transferred.right.any()


@pytest.mark.parametrize("value", [0.0, NAN, INF])
def test_a_network_without_a_first_class_is_right_nowhere(value: float) -> None:
    net = build("cnn-4", classes=3, channels=1).eval()
    with torch.no_grad():
        net.classifier.weight.zero_()
        net.classifier.bias.fill_(value)
    split = Split(torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6) % 3)
    found = evaluate(evaluator(net, split), ("fgsm", "pgd2", "aa"))
    assert all(not outcome.right.any() for outcome in found.values())
    assert [flag.partition(" images")[0] for flag in found["clean"].flags] == ["counted as wrong: 6"]
    assert (evaluator(net, split).predicted != split.labels).all(), "as outcomes on disk are read"
    x, y = split.images.float() / 255, split.labels
    held_out = trainer.held_out(Net(net), Split(split.images, y), Ball(0.1, 0.03, 1), 4, seed=0)
    assert set(held_out.values()) == {0.0}
    assert not Testbed.right(SimpleNamespace(y=y), net, x).any()  # type: ignore[arg-type]


class Steep(nn.Module):
    """A network with a gradient that is NaN at black pixels, and finite logits everywhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z) + 0 * z.abs().sqrt().flatten(1).sum(1, keepdim=True)


def test_a_gradient_that_is_not_a_number_leads_to_no_x_adv_that_is_none(
    judged: tuple[nn.Module, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_autoattack(monkeypatch, 2)
    net, split = judged
    black = Split(split.images.clone(), split.labels)
    black.images[:, :, :2] = 0
    found = evaluate(evaluator(Steep(net), black, keep=True), ("fgsm", "mi-fgsm", "aa"))
    for name, outcome in found.items():
        assert outcome.x_adv is None or outcome.x_adv.isfinite().all()
        assert any(f"{NOT_FOLLOWED}" in flag for flag in outcome.flags) == (name != "clean")
        assert not any(verdict.COUNTED in flag for flag in outcome.flags)
    assert found["fgsm"].flags == [f"12 images with {NOT_FOLLOWED}"]
    assert evaluate(evaluator(net, black), ("fgsm", "aa"))["fgsm"].flags == []


def diverged(path: Path, kind: str) -> str:
    """A file of weights for a cnn-4 that are not finite; the name of one such tensor."""
    state = build("cnn-4", classes=10, channels=1).state_dict()
    name = next(key for key, value in state.items() if value.dim() == 4)
    if kind == "nan":
        state[name][0, 0, 0, 0] = NAN
    elif kind == "overflow":
        state[name] = (1e7 * (state[name] + 1)).half()
    elif kind == "double":  # beyond float32
        state[name] = state[name].double() + 1e300
    else:
        name = next(key for key in state if key.endswith("running_var"))
        state[name][0] = INF
    torch.save(state, path)
    return name


@pytest.mark.parametrize("kind", ["nan", "overflow", "double", "statistics"])
def test_weights_that_are_not_finite_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "diverged.pt"
    name = diverged(path, kind)
    with pytest.raises(UserError) as refused:
        load(build("cnn-4", classes=10, channels=1), path)
    assert str(path) in str(refused.value)
    assert name in str(refused.value)
    assert "not finite" in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "{file}", "--arch", "cnn-4", "--attacks", "fgsm"),
        ("run", "--methods", "rslad", "--student", "cnn-4", "--teacher", "cnn-4@{file}"),
    ],
)
def test_no_command_takes_weights_that_are_not_finite(words: tuple[str, ...], tmp_path: Path) -> None:
    diverged(tmp_path / "diverged.pt", "nan")
    found = cli(*(word.format(file=tmp_path / "diverged.pt") for word in words), "--results", tmp_path / "results")
    assert found.exit_code == 2, found.output
    assert "not finite" in found.output
    assert not list((tmp_path / "results").rglob("record.json"))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_normalisation_that_is_not_finite_is_refused(value: str, tmp_path: Path) -> None:
    torch.save(build("cnn-4", classes=10, channels=1).state_dict(), tmp_path / "net.pt")
    for mean, std in ((value, "1"), ("0", value), ("0", "0")):
        words = ("eval", tmp_path / "net.pt", "--arch", "cnn-4", f"--mean={mean}", f"--std={std}", "--attacks", "fgsm")
        found = cli(*words, "--results", tmp_path / "results")
        assert found.exit_code == 2, found.output
        teacher = f'dataset = "digits"\narchitecture = "cnn-4"\nmean = [{mean}]\nstd = [{std}]\n'
        (tmp_path / "mine.toml").write_text(f'{teacher}[source]\nkind = "file"\npath = "{tmp_path / "net.pt"}"\n')
        found = cli("run", "--methods", "rslad", "--teacher", tmp_path / "mine.toml", "--results", tmp_path / "results")
        assert found.exit_code == 2, found.output
        assert "'mine'" in found.output
        assert found.exception is None or isinstance(found.exception, SystemExit)
    with pytest.raises(UserError, match="std"):
        build("cnn-4", classes=10, channels=1, mean=(0.5,), std=(float(np.float32(value)),))
