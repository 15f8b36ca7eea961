"""The README's tutorial is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tiny import records

ROOT = Path(__file__).resolve().parents[1]


def test_the_tutorial_of_adding_a_method_works_as_written(tmp_path: Path) -> None:
    block = re.search(
        r"<!-- tutorial -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert block is not None
    for verb in ("new-method", "validate", "run", "report"):
        assert f"adbench {verb}" in block[1]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    # One thread: beside other tests, a second one only waits.
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block[1]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all promises kept" in done.stdout
    found = {r["label"]: r for r in records(tmp_path / "results").values() if r["kind"] == "student"}
    assert set(found) == {"mine", "RSLAD"}
    assert all(r["status"] == "done" and r["metrics"]["clean"]["value"] > 0.2 for r in found.values())
    assert "mine" in (tmp_path / "reports" / "report.md").read_text(encoding="utf-8")
