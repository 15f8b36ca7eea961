"""The documentation as a site: it builds without a warning, and what its gallery tells people to type works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tiny import cli

from adbench.experiment import config
from adbench.registry import METHODS

BLOCK = re.compile(r'^```(sh|python)(?: title="(.+?)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
GALLERY = sorted((ROOT / "docs" / "gallery").glob("*.md"))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("page", GALLERY, ids=lambda page: page.stem)
def test_a_page_of_the_gallery_runs_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one epoch, judged on fewer images than the page's preset has."""
    whole = config.read_preset
    fewer = {"train": {"epochs": 1}, "eval": {"images": 32, "masking": 8}}
    monkeypatch.setattr(
        config, "read_preset", lambda name: config.merged(whole(name), fewer if name == "quick" else {})
    )
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert sum(kind == "sh" for kind, *_ in blocks) >= 3
    for kind, file, text in blocks:
        if file:
            (tmp_path / file).write_text(text, encoding="utf-8")
        elif kind == "python":
            exec(compile(text, page.name, "exec"), {})
        else:
            for line in text.splitlines():
                _run(line, monkeypatch)
    if page.stem == "compare":
        assert (tmp_path / "reports" / "index.html").is_file()


def _run(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of a shell, which ends as its comment says."""
    program, *words = shlex.split(line, comments=True)
    due = int(said[1]) if (said := re.search(r"# exit code (\d)", line)) else 0
    if program == "python":
        assert subprocess.run([sys.executable, *words], check=False).returncode == due, line
        return
    assert program == "adbench"
    # Each command begins anew, as a process does.
    monkeypatch.setattr(METHODS, "_files", {})
    monkeypatch.setattr(METHODS, "_loaded", {})
    result = cli(*words)
    assert result.exit_code == due, f"{line}\n{result.output}"


def test_the_site_builds_without_a_warning_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra `docs`)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    build = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert build.returncode == 0, build.stdout + build.stderr
    site = tmp_path / "site"
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert len(pages) > 20
    start = pages[site / "index.html"]
    assert "adbench run --methods all" in re.sub(r"<[^>]+>", "", start)
    for path, text in pages.items():
        for address in re.findall(r'(?:href|src)="([^"#]*)', text):
            assert not address.startswith(("http:", "//")), (path, address)
            if address and not address.startswith(("https:", "mailto:", "data:")) and path.name != "404.html":
                assert (path.parent / address).exists(), (path, address)
    method = pages[site / "api" / "method.html"]
    assert "adbench.training.method.Method" in method
    assert "the batch" in method.lower()
