"""`adbench compare`: paired over test images and over seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.stats
from synthetic import add
from tiny import cli

from adbench.errors import UserError
from adbench.results import paired
from adbench.results.record import read, read_all
from adbench.results.runs import collect
from adbench.results.stats import mcnemar, student_t


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 5), (3, 12), (40, 8), (1, 0)])
def test_mcnemars_p_value_is_the_exact_binomials(b: int, c: int) -> None:
    expected = 1.0 if b + c == 0 else min(1.0, 2 * scipy.stats.binom.cdf(min(b, c), b + c, 0.5))
    assert mcnemar(b, c) == pytest.approx(expected)


def test_two_networks_are_compared_on_the_images_that_both_were_attacked_on(tmp_path: Path) -> None:
    one = add(
        tmp_path,
        method="rslad",
        metrics={"clean": 0.9, "pgd20": 0.5, "aa": 0.4},
        n={"clean": 100, "pgd20": 100, "aa": 50},
    )
    other = add(tmp_path, method="ard", metrics={"clean": 0.8, "pgd20": 0.6}, n=100)
    clean, pgd = paired.networks(read(one), read(other))
    assert (clean.attack, pgd.attack) == ("clean", "pgd20")
    # The synthetic network is right on the first images.
    assert (clean.n, clean.only_first, clean.only_second) == (100, 10, 0)
    assert (pgd.only_first, pgd.only_second, pgd.p_value) == (0, 10, mcnemar(0, 10))
    assert (pgd.first, pgd.second) == (0.5, 0.6)


def test_two_methods_are_compared_over_the_seeds_that_both_have(tmp_path: Path) -> None:
    shares = {"rslad": (0.50, 0.52, 0.57, 0.9), "ard": (0.48, 0.51, 0.50)}
    for method, values in shares.items():
        for seed, value in enumerate(values):
            add(tmp_path, method=method, teacher="t", seed=seed, metrics={"pgd20": value}, n=100)
    rslad, ard = sorted(collect(read_all(tmp_path), "student"), key=lambda run: run.label, reverse=True)
    (found,), pairs = paired.methods(rslad, ard)
    assert found.seeds == len(pairs) == 3
    assert (found.difference, found.half) == pytest.approx(student_t([0.02, 0.01, 0.07]))


def test_the_command_compares_methods_wherever_both_ran_and_records_by_path(tmp_path: Path) -> None:
    for teacher in ("t1", "t2"):
        for seed in (0, 1):
            add(tmp_path, method="rslad", teacher=teacher, seed=seed, metrics={"clean": 0.9, "aa": 0.5}, n=100)
    for seed in (0, 1):
        add(tmp_path, method="trades", seed=seed, metrics={"clean": 0.9, "aa": 0.45 - seed / 50}, n=100)
    result = cli("compare", "rslad", "TRADES", "--results", tmp_path)
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.output.splitlines()]
    assert lines[0] == "digits, cnn-16 taught by t1: RSLAD against TRADES"
    assert "attack seeds RSLAD TRADES difference 95% interval over seeds" in lines
    assert "AA 2 50.00 44.00 +6.00 +5.00 to +7.00 (range)" in lines
    assert "AA 1 100 50.00 43.00 7 0 0.0156" in lines
    assert sum(line.startswith("digits, ") for line in lines) == 2
    paths = sorted(tmp_path.rglob("record.json"))[:2]
    both, head, *_ = cli("compare", *paths).output.splitlines()
    assert both.split() == ["both:", "eps", "8/255,", "n", "100,", "AutoAttack:", "exact"]
    assert head.split()[:3] == ["attack", "seed", "images"]


def test_what_cannot_be_compared_is_refused_by_name(tmp_path: Path) -> None:
    path = add(tmp_path, method="rslad", metrics={"clean": 0.9})
    add(tmp_path, method="ard", student="cnn-32", metrics={"clean": 0.9})
    add(tmp_path, dataset="cifar10", method="iad", metrics={"clean": 0.9})
    failed = add(tmp_path, method="mtard", error="out of memory")
    for first, second, said in [
        ("rslad", "rsald", "did you mean"),
        ("rslad", "ard", "have no data set, student and teacher in common"),
        (path, failed, "the record of a failed cell"),
        (path, tmp_path, "holds 4 records; name one record.json"),
        (path, tmp_path / "none.json", "there is no record"),
    ]:
        result = cli("compare", first, second, "--results", tmp_path)
        assert result.exit_code == 2
        assert said in result.output
    other = next(r for r in read_all(tmp_path) if r.dataset == "cifar10")
    with pytest.raises(UserError, match="different test images"):
        paired.networks(read(path), other)
