"""The README's tutorial is run as it stands, and what the documents name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT
from tiny import cli, records

from adbench.experiment import config
from adbench.registry import METHODS


@pytest.mark.usefixtures("one_thread")
def test_the_tutorial_of_adding_a_method_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged on fewer images than its preset has."""
    block = re.search(
        r"<!-- tutorial -->\n```sh\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert block is not None
    commands = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert [(name, verb) for name, verb, *_ in commands] == [
        ("adbench", verb) for verb in ("new-method", "validate", "run", "report")
    ]
    whole = config.read_preset
    fewer = {"eval": {"images": 64, "masking": 8}}
    monkeypatch.setattr(
        config, "read_preset", lambda name: config.merged(whole(name), fewer if name == "quick" else {})
    )
    monkeypatch.chdir(tmp_path)
    said = {}
    for _, *words in commands:
        # Each begins anew, as a process does.
        monkeypatch.setattr(METHODS, "_files", {})
        monkeypatch.setattr(METHODS, "_loaded", {})
        result = cli(*words)
        assert result.exit_code == 0, result.output
        said[words[0]] = result.output
    assert "all promises kept" in said["validate"]
    found = {r["label"]: r for r in records(tmp_path / "results").values() if r["kind"] == "student"}
    assert set(found) == {"mine", "RSLAD"}
    assert all(r["status"] == "done" and r["metrics"]["clean"]["value"] > 0.2 for r in found.values())
    assert "mine" in (tmp_path / "reports" / "report.md").read_text(encoding="utf-8")


def test_every_test_that_the_documents_name_is_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    names = re.findall(r"def (test_\w+)", tests)
    said = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"`(test_\w+(?:\.\.\.|\.py)?)`", said))
    assert len(named) > 150
    for name in named:
        if name.endswith(".py"):
            assert (ROOT / "tests" / name).is_file(), name
        elif name.endswith("..."):
            assert any(one.startswith(name.removesuffix("...")) for one in names), name
        else:
            assert name in names, name
