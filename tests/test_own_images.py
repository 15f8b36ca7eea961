"""An engineer's folder, from images of many sizes and colour modes to a network for others that knows its classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import cli, records, run

from adbench.weights import checkpoint

CLASSES = ("bolt", "nut", "washer")
MODES = ("RGB", "L", "RGBA", "P", "LA", "CMYK", "1")
TEACHER = """
summary = "trained on the folder"
architecture = "cnn-4"

[source]
kind = "train"
method = "pgd-at"

[source.train]
epochs = 1
batch_size = 16
attack_steps = 1
"""


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three classes, each a brightness, in seven colour modes and as many sizes."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 14), ("test", 7)):
        for label, name in enumerate(CLASSES):
            (tmp_path / "parts" / part / name).mkdir(parents=True)
            for i in range(count):
                height, width = draw.integers(9, 40, 2)
                pixels = draw.integers(80 * label, 80 * label + 60, (height, width, 3)).astype(np.uint8)
                image = Image.fromarray(pixels).convert(MODES[i % len(MODES)])
                suffix = "tif" if image.mode == "CMYK" else "png"
                image.save(tmp_path / "parts" / part / name / f"{i}.{suffix}")
    return tmp_path / "parts"


def test_images_of_any_kind_train_a_teacher_and_a_student_that_knows_its_classes(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TEACHER)
    results, out = tmp_path / "results", tmp_path / "out"
    own = {"data__resize": "12", "data__train_images": "30", "data__val_images": "6", "train__batch_size": "16"}
    words = ("--dataset", parts, "--methods", "rslad", "--teacher", tmp_path / "mine.toml", "--results", results)
    assert "data.resize" in run(*words, **own | {"data__resize": "0"}).output
    done = run(*words, **own)
    assert done.exit_code == 0, done.output
    found = {data["kind"]: (path, data) for path, data in records(results).items()}
    assert {*found} == {"teacher", "student"}
    for _, data in found.values():
        assert data["data"]["class_names"] == list(CLASSES)
        assert data["data"]["image_shape"] == [3, 12, 12]
        assert data["config"]["training"]["data"]["resize"] == 12
    path = results / found["student"][0]
    assert cli("verify", path).exit_code == 0
    done = cli("export", path, "--out", out)
    assert done.exit_code == 0, done.output
    (tensors,) = out.glob("*.safetensors")
    assert json.loads(checkpoint.metadata(tensors)["class_names"]) == list(CLASSES)
    (card,) = out.glob("*.json")
    assert ", ".join(CLASSES) in json.loads(card.read_text())["footnote"]
    assert "--resize 12" in done.output
    judged = cli(
        *("eval", tensors, "--arch", "cnn-4", "--dataset", parts, "--resize", "12", "--attacks", "fgsm"),
        *("--results", tmp_path / "again"),
    )
    assert judged.exit_code == 0, judged.output
    assert cli("report", "--results", results, "--out", tmp_path / "report").exit_code == 0
    told = "".join(page.read_text() for page in (tmp_path / "report").rglob("*.html"))
    assert all(name in told for name in CLASSES)
