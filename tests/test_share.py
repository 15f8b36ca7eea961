"""Export: other people's tools read the files, and the files give the same logits."""

from __future__ import annotations

import json
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import TEACHER, cli, records, run

from adbench.errors import UserError
from adbench.models import build
from adbench.results import record
from adbench.weights import checkpoint, export, networks

pytestmark = pytest.mark.usefixtures("one_thread")

# The fields of RobustBench's ModelInfo that its cards for L-infinity have.
CARD = {
    "link",
    "name",
    "authors",
    "additional_data",
    "number_forward_passes",
    "dataset",
    "venue",
    "architecture",
    "eps",
    "clean_acc",
    "reported",
    "autoattack_acc",
    "footnote",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and its teacher, which normalises its inputs."""
    folder = tmp_path_factory.mktemp("shared")
    teacher = folder / "tiny.toml"
    teacher.write_text(TEACHER.replace("[source]", "mean = [0.31]\nstd = [0.37]\n[source]", 1), encoding="utf-8")
    result = run("--methods", "ard", "--teacher", teacher, "--results", folder / "results")
    assert result.exit_code == 0, result.output
    return folder / "results"


def record_path(results: Path, kind: str) -> Path:
    (found,) = (results / path for path, one in records(results).items() if one["kind"] == kind)
    return found


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_exported_files_give_the_same_logits_here_and_elsewhere(kind: str, results: Path, tmp_path: Path) -> None:
    path = record_path(results, kind)
    result = cli("export", path, "--out", tmp_path, "--name", "Tiny2026")
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["Tiny2026.json", "Tiny2026.pt", "Tiny2026.safetensors"]

    judged = record.read(path)
    dataset = networks.dataset_of(judged, Path())
    network = networks.network_of(judged, dataset, Path())
    x = dataset.test.images[:16].float() / 255

    # Elsewhere: torch alone, a network of that architecture, strictly all keys.
    plain = torch.load(tmp_path / "Tiny2026.pt", weights_only=True)
    twin = build("cnn-4", classes=10, channels=1).eval()
    twin.load_state_dict(plain, strict=True)
    normalised = (x - 0.31) / 0.37 if kind == "teacher" else x
    with torch.no_grad():
        torch.testing.assert_close(twin(normalised), network(x), rtol=0, atol=1e-6)
    assert (kind == "student") == torch.equal(twin(x), network(x))

    # Here: the command that export prints, on either file.
    words = result.output.strip().splitlines()[-1].removeprefix("read again with: adbench ").split()
    for suffix in (".safetensors", ".pt"):
        words[1] = str(tmp_path / f"Tiny2026{suffix}")
        again = tmp_path / f"again{suffix}"
        extra = ["--results", again, "--images", "16", "--attacks", "fgsm,pgd20"]
        evaluated = cli(*words, *extra)
        assert evaluated.exit_code == 0, evaluated.output
        (found,) = records(again).values()
        assert found["model"]["weights_sha256"] == judged.network.weights_sha256
        assert {name: m["correct"] for name, m in found["metrics"].items()} == {
            name: metric.correct for name, metric in judged.metrics.items()
        }


def test_the_safetensors_say_what_they_are(results: Path, tmp_path: Path) -> None:
    cli("export", record_path(results, "teacher").parent, "--out", tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        said = opened.metadata()
    assert said["architecture"] == "cnn-4"
    assert json.loads(said["classes"]) == 10
    assert json.loads(said["class_names"]) == list("0123456789")
    trained = record_path(results, "teacher").parent.parent / "best.safetensors"
    assert json.loads(checkpoint.metadata(trained)["class_names"]) == list("0123456789")
    assert record.read(record_path(results, "teacher")).images.class_names == list("0123456789")
    assert json.loads(said["normalisation"])["mean"] == pytest.approx([0.31])
    assert json.loads(said["threat"]) == {"eps": "28/255", "step": "7/255"}
    assert json.loads(said["accuracy"])["clean"][1] == 16
    assert said["record"] == record.read(record_path(results, "teacher")).id


def test_weights_beside_an_exported_card_are_held_to_it(results: Path, tmp_path: Path) -> None:
    for kind in ("student", "teacher"):
        assert cli("export", record_path(results, kind), "--out", tmp_path / kind, "--name", "x").exit_code == 0
    judged = record.read(record_path(results, "student"))
    assert judged.network.weights_sha256 in (tmp_path / "student" / "x.json").read_text(encoding="utf-8")
    eval_ = ("--arch", "cnn-4", "--attacks", "fgsm", "--images", "4", "--results", tmp_path / "results")
    for suffix in ("pt", "safetensors"):
        path = tmp_path / "student" / f"x.{suffix}"
        assert cli("eval", path, *eval_).exit_code == 0
        shutil.copy(tmp_path / "teacher" / path.name, path)
        refused = cli("eval", path, *eval_)
        assert refused.exit_code == 2
        assert f"'{path.with_name('x.json')}'" in refused.stderr
    for text in ("", "[]", '{"footnote": 7}', '{"architectures": ["x"]}'):
        (tmp_path / "student" / "x.json").write_text(text, encoding="utf-8")
        assert cli("eval", path, *eval_).exit_code == 0, "somebody else's file"
    again = cli("export", record_path(results, "student"), "--out", tmp_path / "teacher", "--name", "x")
    assert again.exit_code == 0, "written over"


def test_the_card_is_robustbenchs_and_claims_autoattack_of_all_images_alone(results: Path) -> None:
    judged = record.read(record_path(results, "teacher"))
    dataset = networks.dataset_of(judged, Path(), whole_test=True)
    network = networks.network_of(judged, dataset, Path())
    written, left = export.card(judged, dataset, network)
    assert written.keys() <= CARD
    assert "autoattack_acc" not in written
    assert "clean_acc" not in written, "it was measured on a part"
    assert left == (
        "link, authors and venue are yours to fill in; clean_acc is left out, since it was measured on 16 images of "
        "360; autoattack_acc is left out, since AutoAttack was not run"
    )
    clean = replace(judged.metrics["clean"], value=0.25, correct=90, n=360)
    judged.metrics["clean"] = clean
    assert export.card(judged, dataset, network)[0]["clean_acc"] == "25.00"
    assert written["eps"] == "28/255"
    assert "mean" in written["footnote"]

    def with_autoattack(n: int, eps: str) -> tuple[dict[str, Any], str]:
        attack = {"name": "aa", "eps": eps}
        judged.metrics["aa"] = replace(clean, value=0.5, correct=n // 2, n=n, attack=attack)
        return export.card(judged, dataset, network)

    written, _ = with_autoattack(360, "28/255")
    assert (written["autoattack_acc"], written["reported"]) == ("50.00", "50.00")
    assert written.keys() <= CARD
    assert with_autoattack(100, "28/255")[1].endswith("since AutoAttack ran on 100 images of 360")
    assert "autoattack_acc" not in with_autoattack(360, "8/255")[0]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("wrn-34-10", "WideResNet-34-10"),
        ("dm-wrn-28-10", "WideResNet-28-10 (SiLU)"),
        ("rn18", "ResNet-18"),
        ("cnn-4", "cnn-4"),
    ],
)
def test_architectures_are_named_as_papers_name_them(ours: str, theirs: str) -> None:
    assert export.spoken(ours) == theirs


def test_a_name_cannot_lead_out_of_the_folder(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert cli("export", record_path(results, "student"), "--out", out, "--name", "../../evil").exit_code == 0
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".pt", ".safetensors"]
    assert [path for path in tmp_path.rglob("*") if path.is_file() and out not in path.parents] == []


def test_what_cannot_be_exported_is_refused(results: Path, tmp_path: Path) -> None:
    cli("export", record_path(results, "student"), "--out", tmp_path, "--name", "x")
    assert (
        cli(
            "eval",
            tmp_path / "x.pt",
            "--arch",
            "cnn-4",
            "--images",
            "16",
            "--attacks",
            "fgsm",
            "--results",
            tmp_path / "other",
        ).exit_code
        == 0
    )
    result = cli("export", record_path(tmp_path / "other", "checkpoint"), "--out", tmp_path)
    assert result.exit_code == 2
    assert "weights from elsewhere; export is for networks trained by adbench" in result.output

    strange = build("cnn-4", classes=10, channels=1)
    torch.save(strange.state_dict(), tmp_path / "strange.pt")
    result = cli("export", record_path(results, "student"), "--out", tmp_path, "--checkpoint", tmp_path / "strange.pt")
    assert result.exit_code == 2
    assert "give the checkpoint that the record is about" in result.output

    found = record.read(record_path(results, "student"))
    failed = copy(found)
    failed.status = "failed"
    with pytest.raises(UserError, match="the record of a failed cell"):
        list(export.export(failed, tmp_path, Path()))
