"""Stored adversarial examples and `adbench verify`: honest records pass, tampered ones do not, each for its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pyautoattack
import pytest
import torch
from tiny import cli, run
from torch import Tensor

from adbench import FAST_SEARCH, adversarial, document, record
from adbench.files import content_id, sha256
from adbench.stats import wilson

EPS = Fraction(12, 255)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with one student of 40 images, its adversarial examples kept."""
    results = tmp_path_factory.mktemp("honest") / "results"
    settings = {
        "train__epochs": "8", "data__train_images": "800", "eval__images": "40", "eval__aa_images": "6",
        "eval__attacks": '["fgsm","pgd20","pgd20@24/255","cw","aa"]', "eval__aa_shard": "4", "threat__eps": '"12/255"',
        "eval__masking": "8",
    }  # fmt: skip
    whole = pyautoattack.AutoAttack.__init__

    def shorter(self: Any, *args: Any, **options: Any) -> None:
        whole(self, *args, **options)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 5
        self.square.n_queries = 100

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyautoattack.AutoAttack, "__init__", shorter)
        found = run("--methods", "natural", "--keep-adversarial", "--results", results, **settings)
    assert found.exit_code == 0, found.output
    return results


@pytest.fixture
def copy(honest: Path, tmp_path: Path) -> Path:
    """The record of a copy that a test may change."""
    shutil.copytree(honest, tmp_path / "results")
    (path,) = (tmp_path / "results").rglob("record.json")
    return path


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def save(path: Path, data: dict[str, Any]) -> None:
    document.write(path, data)


def test_an_honest_record_passes_also_when_attacked_anew(copy: Path) -> None:
    data = load(copy)
    jsonschema.validate(data, record.schema())
    assert set(data["metrics"]) == {"clean", "fgsm", "pgd20", "pgd20@24/255", "cw", "aa"}
    assert data["metrics"]["pgd20@24/255"]["attack"]["eps"] == "24/255", "outside the threat model's ball, and verified"
    broken = data["metrics"]["clean"]["correct"] - data["metrics"]["pgd20"]["correct"]
    assert broken > 3, "nothing to prove"
    result = cli("verify", copy, "--again", "10")
    assert result.exit_code == 0, result.output
    assert "FAILS" not in result.output
    assert "pgd20 again: 10 images" in result.output
    assert cli("verify", copy.parent).exit_code == 0, "the record's folder will do"


def test_a_cell_is_tested_for_masking_and_the_report_says_how_it_went(copy: Path, tmp_path: Path) -> None:
    entry = load(copy)["masking"]
    assert entry["images"] == 8
    assert {"more-steps", "black-box", "zero-gradients", "determinism"} <= {test["name"] for test in entry["tests"]}
    result = cli("report", "--results", tmp_path / "results", "--out", tmp_path / "reports")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "reports" / "index.html").read_text(encoding="utf-8")
    assert "Gradient masking" in page
    assert "Accuracy by class" in page


def test_an_image_goes_through_one_class_of_the_per_class_counts(copy: Path) -> None:
    data = load(copy)
    table = pd.read_parquet(copy.parent / record.OUTCOMES)
    for name, metric in data["metrics"].items():
        rows = table[table[name].notna()] if name != "clean" else table
        for label, (correct, n) in enumerate(metric["per_class"]):
            mine = rows[rows["label"] == label]
            assert (correct, n) == (int(mine[name].sum()), len(mine))


def digit(path: Path) -> None:
    data = load(path)
    data["metrics"]["pgd20"]["value"] += 0.01
    save(path, data)


def figure(path: Path) -> None:
    """A better figure, consistent in itself."""
    data = load(path)
    metric = data["metrics"]["pgd20"]
    correct = metric["correct"] + 2
    metric |= {"correct": correct, "value": correct / 40, "ci_test": list(wilson(correct, 40))}
    save(path, data)


def outcomes(path: Path) -> None:
    """A better figure, with outcomes and their hash to match."""
    data = load(path)
    table = pd.read_parquet(path.parent / record.OUTCOMES)
    turned = table.index[(table["pgd20"] == False) & (table["prediction"] == table["label"])][0]  # noqa: E712
    table.loc[turned, "pgd20"] = True
    table.to_parquet(path.parent / record.OUTCOMES, index=False)
    metric = data["metrics"]["pgd20"]
    correct = metric["correct"] + 1
    metric |= {"correct": correct, "value": correct / 40, "ci_test": list(wilson(correct, 40))}
    metric["per_class"][int(table.loc[turned, "label"])][0] += 1
    data["outcomes"]["sha256"] = sha256(path.parent / record.OUTCOMES)
    save(path, data)


def example(path: Path, change: Callable[[dict[str, Any]], None], attack: str = "pgd20") -> None:
    data = load(path)
    stored = data["metrics"][attack]["adversarial"]
    file = path.parent / stored["file"]
    with np.load(file) as content:
        arrays = dict(content)
    change(arrays)
    np.savez_compressed(file, **arrays)
    stored["sha256"] = sha256(file)
    save(path, data)


def outside(path: Path) -> None:
    """One x' far away from its image."""

    def change(arrays: dict[str, Any]) -> None:
        arrays["exact_index"] = np.append(arrays["exact_index"], 7)
        arrays["exact"] = np.append(arrays["exact"], np.ones((1, *arrays["exact"].shape[1:]), np.float32), axis=0)

    example(path, change)


def weaker(path: Path) -> None:
    """Every x' is the image itself."""
    example(path, lambda arrays: arrays.update(delta=np.zeros_like(arrays["delta"]), exact=arrays["exact"][:0],
                                               exact_index=arrays["exact_index"][:0]))  # fmt: skip


def bytes_only(path: Path) -> None:
    """Stored examples that are not those of the hash."""
    data = load(path)
    stored = data["metrics"]["pgd20"]["adversarial"]
    other = data["metrics"]["cw"]["adversarial"]
    (path.parent / stored["file"]).write_bytes((path.parent / other["file"]).read_bytes())


def dropped(path: Path) -> None:
    """Evidence left away."""
    data = load(path)
    del data["metrics"]["fgsm"]["adversarial"]
    save(path, data)


def left_out(path: Path) -> None:
    """An attack left away, of which the outcomes still speak."""
    data = load(path)
    del data["metrics"]["aa"]
    save(path, data)


def radius(path: Path) -> None:
    """An attack said to have been a larger one."""
    data = load(path)
    data["metrics"]["pgd20"]["attack"]["eps"] = "16/255"
    save(path, data)


def settings(path: Path) -> None:
    """A recipe that is not the one the cell is named by."""
    data = load(path)
    data["config"]["training"]["train"]["epochs"] = 200
    save(path, data)


def threat(path: Path) -> None:
    """A larger ball throughout, with identities to match: the x' are then no longer what the attack would be."""
    data = load(path)
    data["config"]["training"]["threat"]["eps"] = "6/255"
    for name, metric in data["metrics"].items():
        if name != "clean":
            metric["attack"]["eps"] = "6/255"
            if name == "fgsm":
                metric["attack"]["step"] = "6/255"
    data["train_id"] = content_id(data["config"]["training"])[:16]
    data["id"] = content_id([data["train_id"], data["eval_id"]])[:16]
    save(path, data)


def prediction(path: Path) -> None:
    data = load(path)
    table = pd.read_parquet(path.parent / record.OUTCOMES)
    table.loc[3, "prediction"] = (table.loc[3, "prediction"] + 1) % 10
    table.to_parquet(path.parent / record.OUTCOMES, index=False)
    data["outcomes"]["sha256"] = sha256(path.parent / record.OUTCOMES)
    save(path, data)


def search(path: Path) -> None:
    """An exact search that calls itself a fast one."""
    data = load(path)
    assert data["metrics"]["aa"]["attack"]["search"] == "float32"
    data["metrics"]["aa"]["attack"]["search"] = "bfloat16"
    save(path, data)


def log(path: Path) -> None:
    data = load(path)
    data["training"]["best_val_robust"] = 0.999
    save(path, data)


def hash_of_weights(path: Path) -> None:
    data = load(path)
    data["model"]["weights_sha256"] = "0" * 64
    save(path, data)


@pytest.mark.parametrize(
    ("tamper", "finding"),
    [
        (digit, "pgd20: value"),
        (figure, "pgd20: correct"),
        (outcomes, "pgd20: 1 outcomes do not follow"),
        (outside, "pgd20: x' of image 7 lies outside"),
        (weaker, "outcomes do not follow"),
        (bytes_only, "has another SHA-256"),
        (dropped, "fgsm: no adversarial examples"),
        (left_out, "attacks: does not follow: aa"),
        (radius, "pgd20: eps"),
        (search, "attacks: does not follow: aa: search"),
        (settings, "configuration: does not follow: train_id, id"),
        (threat, "x' of image 0 lies outside"),
        (prediction, "outcomes: does not follow: predictions"),
        (log, "training log: does not follow: best_val_robust"),
        (hash_of_weights, "give the checkpoint that the record is about"),
    ],
)
def test_a_tampered_record_fails_by_name(copy: Path, tamper: Callable[[Path], None], finding: str) -> None:
    tamper(copy)
    result = cli("verify", copy)
    assert result.exit_code == 1, result.output
    failing = [line for line in result.output.splitlines() if line.lstrip().startswith("FAILS")]
    assert any(finding in line for line in failing), result.output


@pytest.mark.parametrize(("version", "passes"), [(FAST_SEARCH, False), (FAST_SEARCH - 1, True), (None, True)])
def test_a_fast_search_is_held_to_the_words_of_its_own_version(copy: Path, version: int | None, passes: bool) -> None:
    data = load(copy)
    judged = data["config"]["evaluation"]
    judged |= {"aa_search": "fast"} | ({} if version is None else {"fast_search": version})
    data["metrics"]["aa"]["attack"]["search"] = "bfloat16, in words of another version"
    data["eval_id"] = content_id(judged)[:16]
    data["id"] = content_id([data["train_id"], data["eval_id"]])[:16]
    save(copy, data)
    result = cli("verify", copy)
    assert result.exit_code == (0 if passes else 1), result.output
    assert ("attacks: does not follow: aa: search" in result.output) != passes


def test_another_checkpoint_fails(copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert run("--methods", "pgd-at", "--results", other).exit_code == 0
    (weights,) = other.rglob("best.safetensors")
    result = cli("verify", copy, "--checkpoint", weights)
    assert result.exit_code == 1
    assert "FAILS" in result.output
    assert "SHA-256" in result.output
    # The same file put in the checkpoint's place is not taken either.
    shutil.copy(weights, copy.parent.parent / "best.safetensors")
    assert cli("verify", copy).exit_code == 1


def test_survivors_that_are_none_fail_when_attacked_anew(copy: Path) -> None:
    """A record whose weak x' and outcomes agree follows by itself; attacking anew shows it."""
    data = load(copy)
    table = pd.read_parquet(copy.parent / record.OUTCOMES)
    table["pgd20"] = (table["prediction"] == table["label"]).astype("boolean")
    table.to_parquet(copy.parent / record.OUTCOMES, index=False)
    clean = data["metrics"]["clean"]
    data["metrics"]["pgd20"] |= {key: clean[key] for key in ("correct", "value", "ci_test", "per_class")}
    data["outcomes"]["sha256"] = sha256(copy.parent / record.OUTCOMES)
    save(copy, data)
    weaker(copy)
    assert cli("verify", copy).exit_code == 0, "no stored x' shows that a survivor survives"
    result = cli("verify", copy, "--again", "40")
    assert result.exit_code == 1
    assert "FAILS  pgd20 again" in result.output


def test_what_is_no_record_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}", encoding="utf-8")
    assert cli("verify", tmp_path / "record.json").exit_code == 2
    result = cli("verify", tmp_path / "none.json")
    assert result.exit_code == 2
    assert f"there is no record '{tmp_path / 'none.json'}'" in result.stderr


def always(right: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda x: (torch.full((len(x),), right), torch.zeros(len(x), dtype=torch.bool))


def test_examples_on_the_grid_are_stored_in_whole_steps_and_come_back_exactly() -> None:
    images = torch.randint(0, 256, (4, 1, 3, 3), dtype=torch.uint8)
    steps = torch.randint(-12, 13, images.shape)
    x_adv = ((images.int() + steps).clamp(0, 255)) / 255
    arrays = adversarial.pack(images, x_adv, torch.ones(4, dtype=torch.bool), EPS, always(True))
    assert arrays["delta"].dtype == np.int8
    assert torch.equal(adversarial.unpack(images, arrays, EPS), x_adv)


def test_other_examples_come_back_in_the_ball_and_with_their_verdict() -> None:
    images = torch.randint(0, 256, (50, 1, 3, 3), dtype=torch.uint8)
    x = images.float() / 255
    x_adv = (x + float(EPS) * (2 * torch.rand(x.shape) - 1)).clamp(0, 1)
    # A judge that tells float16 from float32: verdicts at the boundary are kept by storing such x' in full.
    mean = x_adv.double().mean((1, 2, 3))

    def judge(z: Tensor) -> tuple[Tensor, Tensor]:
        return z.double().mean((1, 2, 3)) >= mean, torch.zeros(len(z), dtype=torch.bool)

    arrays = adversarial.pack(images, x_adv, torch.ones(50, dtype=torch.bool), EPS, judge)
    read = adversarial.unpack(images, arrays, EPS)
    assert arrays["delta"].dtype == np.float16
    assert 0 < len(arrays["exact_index"]) < 50
    assert judge(read)[0].all()
    assert not adversarial.outside(images, read, EPS).any()
    assert (read - x_adv).abs().max() < 3e-5


def test_an_example_without_its_verdict_is_not_written() -> None:
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="does not have its verdict"):
        adversarial.pack(images, torch.zeros(2, 1, 3, 3), torch.ones(2, dtype=torch.bool), EPS, always(False))
