"""The wheel as a user has it: built, unpacked into a folder, and used beside other people's files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from test_security import hostile_folder
from tiny import options, records

from adbench import DISTRIBUTION

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds and nothing else, as `pip install --no-deps --target` leaves it."""
    pytest.importorskip("setuptools", "77", reason="the wheel is built with setuptools 77 or newer")
    folder = tmp_path_factory.mktemp("wheel")
    for part in ("adbench", "methods", "teachers"):
        shutil.copytree(ROOT / part, folder / "source" / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder / "source")
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith(DISTRIBUTION.replace("-", "_"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    assert {path.name for path in (folder / "site").iterdir() if not path.name.endswith(".dist-info")} == {"adbench"}
    shutil.rmtree(folder / "source")
    return folder / "site"


def test_the_wheel_works_in_any_folder(site: Path, tmp_path: Path) -> None:
    """Also where modules lie about that are called as those it imports, and with worker processes."""
    hostile_folder(tmp_path)
    (tmp_path / "adbench.py").unlink()  # which `python -m` takes for adbench, before anything can be done about it

    def adbench(*words: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        environment["PYTHONPATH"] = str(site)
        command = [sys.executable, "-m", "adbench", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = adbench("list")
    assert "  rslad " in listed
    assert "  digits-robust " in listed
    assert re.search(r"^([0-9]{2,}) of \1 entries agree", adbench("golden"), re.MULTILINE)
    adbench("run", "--methods", "mine,natural", "--plugin", "mine.py", "--jobs", "2", *options())
    found = records(tmp_path / "results")
    assert [data["status"] for data in found.values()] == ["done", "done"]
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


OURS = (
    "*.md",
    "docs/*.md",
    "adbench/**/*.py",
    "adbench/**/*.toml",
    "adbench/report/templates/*",
    "methods/*.py",
    "teachers/*",
    "benchmarks/*.py",
    "pyproject.toml",
    "Makefile",
    "results/*.md",
    "reports/*.md",
)


def test_no_text_tells_anybody_to_install_the_other_adbench() -> None:
    """`adbench` on the package index is another project."""
    files = [path for pattern in OURS for path in ROOT.glob(pattern) if path.is_file()]
    assert len(files) > 100
    wrong = re.compile(
        r"(pip3?|uv|pipx|uvx|poetry|pdm)\b[^\n`]*\b(install|add|run)\b[^\n`]*?['\"\s]adbench\b(?![./\\-])"
    )
    found = [
        f"{path.relative_to(ROOT)}: {told[0]}" for path in files for told in wrong.finditer(path.read_text("utf-8"))
    ]
    assert found == []
    for told in ("pip install adbench", "pip install 'adbench[ray]'", 'pip install "adbench[robustbench]==0.1"'):
        assert wrong.search(told), told
    for fine in (f"pip install {DISTRIBUTION}", "pip install -e .", "pip install 'ray>=2.40'"):
        assert not wrong.search(fine), fine
