"""The examples of docs/examples as their reader would use them: validated, run, compared and put into a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import TEACHER, cli, options, record_of

from adbench.execution.engines.inline import Inline
from adbench.execution.runner import Local
from adbench.registry import METHODS

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for table in ("_files", "_loaded", "_codes"):
        monkeypatch.setattr(METHODS, table, {})
    monkeypatch.setattr(Local, "engine", lambda *given: Inline(given[2], 1, given[4]))
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLES / "feature_matching.py", tmp_path)
    return "feature_matching.py"


def test_a_method_with_feature_matching_and_a_projection_of_its_own(example: str) -> None:
    """With averaged weights, a cosine schedule, generated images and perturbed weights, beside a built-in method."""
    Path("tiny.toml").write_text(TEACHER)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez("more.npz", image=images, label=rng.integers(0, 10, 60))
    checked = cli("validate", example)
    assert checked.output.splitlines()[-1] == "all promises kept", checked.output
    assert "stage" in cli("info", example).output
    done = cli(
        "run",
        "--methods",
        "feature-matching,rslad",
        "--plugin",
        example,
        "--teacher",
        "tiny.toml",
        *options(),
        "--set",
        "train.average=ema",
        "--set",
        "train.schedule=cosine",
        "--set",
        "data.extra=more.npz",
        "--set",
        "train.awp=0.01",
        "--results",
        "r",
    )
    assert done.exit_code == 0, done.output
    record = record_of(Path("r"), "feature-matching")
    assert record["training"]["passes"]["own"] == 4  # 2 in the loss, and as many in its rehearsal
    assert "P(F_S(x'))" in record["objectives"]["loss"]
    assert "objectives" not in record_of(Path("r"), "rslad")
    assert cli("compare", "feature-matching", "rslad", "--results", "r").exit_code == 0
    # The table has the method's formulas, also where nobody has its file any more.
    METHODS._files.clear()
    assert cli("report", "--results", "r", "--out", "paper", "--format", "markdown,csv").exit_code == 0
    (table,) = Path("paper").rglob("objectives.csv")
    (row,) = (line for line in table.read_text().splitlines() if line.startswith("Feature matching"))
    assert "KL(S(x'), T(x))" in row
    assert "P(F_S(x'))" in row
