"""The code of a plugin as a part of its cells' identity: what makes another one, and what does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from tiny import PLUGIN, cli, options, record_of, records, run

from adbench import plugin_code
from adbench.errors import UserError
from adbench.registry import METHODS, Registry

SPELT = '''
"""A module."""
import math
from adbench.training.method import Method, hyper


class Mine(Method):
    """Says what it is."""

    label = "mine"
    alpha: float = hyper(0.5, ge=0, doc="weight of the first term")

    def attack(self, step):
        """x'."""
        return step.x

    def loss(self, step, x_adv):
        name = f"{'a' 'b'}{step.x!r:>{10}}" "end"
        return math.pi * step.x if step else -1.5e-3
'''

SAME = {
    "docstring": ('"""Says what it is."""', '"""Says it otherwise,\n\n    in two paragraphs."""'),
    "no docstring": ('        """x\'."""\n', ""),
    "doc of a hyperparameter": ("weight of the first term", "how much the first term weighs"),
    "comment": ("return step.x\n", "return step.x  # as it is\n"),
    "formatting": ("return step.x\n", "return (\n            step.x\n        )\n\n"),
    "quotes": ('label = "mine"', "label = 'mine'"),
    "number written otherwise": ("-1.5e-3", "-0.0015"),
}
OTHER = {
    "constant": ("-1.5e-3", "-1.5e-4"),
    "sign": ("-1.5e-3", "1.5e-3"),
    "default": ("hyper(0.5", "hyper(0.25"),
    "bound": ("ge=0", "gt=0"),
    "type": ("alpha: float", "alpha: int"),
    "int for float": ("hyper(0.5", "hyper(1"),
    "name": ("math.pi", "math.e"),
    "text": ('"end"', '"END"'),
    "statement": ("        return math.pi", "        step.x += 1\n        return math.pi"),
    "order of a branch": ("if step else", "if not step else"),
}


def of(text: str, folder: Path, name: str = "mine.py") -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return plugin_code.read(folder / name).sha256


@pytest.mark.parametrize("change", SAME)
def test_words_and_formatting_are_no_other_code(change: str, tmp_path: Path) -> None:
    assert SAME[change][0] in SPELT
    assert of(SPELT, tmp_path / "here") == of(SPELT.replace(*SAME[change]), tmp_path / "there", "other.py")


@pytest.mark.parametrize("change", OTHER)
def test_whatever_decides_a_number_is_other_code(change: str, tmp_path: Path) -> None:
    assert OTHER[change][0] in SPELT
    assert of(SPELT, tmp_path) != of(SPELT.replace(*OTHER[change]), tmp_path)


# What versions of Python have parsed, or written, otherwise.
ODD = r"""
x = 3
w = 10
s = f"{x!r:>{w}}" f"{x=}" "tail" f"" f"{x:}" f"{x:{w}.{2}f}" 'é☃\U0001FAE8' f"a{{b}}{x}"
s2 = f'''
{x
 + 1}'''
b = b"\x00\xff"; c = 1e309; d = -0.0; e = 1_000; h = 0xFF; z = 1j; el = ...
def f(a, /, b, *, c=None, **k) -> None:
    'doc'
    match a:
        case [1, *rest] if rest: return 1
        case {"k": v, **r}: pass
        case None | True: pass
        case _: ...
    with (open("a") as q, open("b") as r): pass
    try: pass
    except* ValueError as error: raise
    return a[1:2, ..., ::3]
async def g():
    async for i in h(): yield i
    await h()
class K(metaclass=type): pass
y: int
lambda *a, b=1: (yield)
import os.path as p
from . import t
[i async for i in x]
{**a, 'b': 1}
"\d"
'\d' + "x"
"""


def test_a_hash_is_the_same_on_every_version_of_python(tmp_path: Path) -> None:
    """Made with 3.11, and found equal on 3.12 (which parses f-strings anew), 3.13 and 3.14 (which leave fields out)."""
    assert of(ODD, tmp_path) == "e1a95760b85b09ff564ea43e6e3d4d3b112782c58d493565df91aee609b8ee90"


# Local modules

IMPORTS = {
    "import helper": ("import helper\nSCALE = helper.SCALE\n", "helper.py"),
    "from": ("from helper import SCALE\n", "helper.py"),
    "star": ("from helper import *\n", "helper.py"),
    "as, in a function": ("def scale():\n    import helper as h\n    return h.SCALE\nSCALE = scale()\n", "helper.py"),
    "module of a package": ("import pkg.sub\nSCALE = pkg.sub.SCALE\n", "pkg/sub.py"),
    "name of a package": ("from pkg import sub\nSCALE = sub.SCALE\n", "pkg/sub.py"),
    "package itself": ("from pkg import SCALE\n", "pkg/__init__.py"),
    "relative, inside": ("from pkg.outer import SCALE\n", "pkg/sub.py"),
    "folder without init": ("from space.deep import SCALE\n", "space/deep.py"),
    "import_module": ("import importlib\nSCALE = importlib.import_module('helper').SCALE\n", "helper.py"),
}
FILES = {
    "helper.py": "SCALE = 1.0\n",
    "pkg/__init__.py": "SCALE = 1.0\n",
    "pkg/sub.py": "SCALE = 1.0\n",
    "pkg/outer.py": "from .sub import SCALE\n",
    "space/deep.py": "SCALE = 1.0\n",
    "unused.py": "SCALE = 1.0\n",
}


def _project(folder: Path, imports: str) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "mine.py").write_text(f"{imports}{PLUGIN.replace('step.y)', 'step.y) * SCALE')}", encoding="utf-8")
    return folder / "mine.py"


@pytest.mark.parametrize("form", IMPORTS)
def test_a_local_module_that_a_plugin_imports_is_part_of_its_code(form: str, tmp_path: Path) -> None:
    imports, decides = IMPORTS[form]
    path = _project(tmp_path / "here", imports)
    before = plugin_code.read(path).sha256
    assert plugin_code.read(_project(tmp_path / "there", imports)).sha256 == before
    (tmp_path / "here/unused.py").write_text("SCALE = 0.0\n", encoding="utf-8")
    (tmp_path / "here" / decides).write_text('"""Reworded."""\nSCALE = 1.0  # so\n', encoding="utf-8")
    assert plugin_code.read(path).sha256 == before
    # What is hashed is what is executed, though the folder is not on the path and the file is another by now.
    registry = Registry("method", "adbench.methods")
    name = registry.add_file(path)
    assert registry.code(name).sha256 == before
    (tmp_path / "here" / decides).write_text("SCALE = 0.0\n", encoding="utf-8")
    assert sys.modules[registry.load(name).__module__].SCALE == 1.0
    assert plugin_code.read(path).sha256 != before
    # Nor is it there where the plugin is sent to.
    sent = Registry("method", "adbench.methods")
    shutil.rmtree(tmp_path / "here")
    for file, code in registry.files().items():
        assert sent.code(sent.add_file(file, code)).sha256 == before
    assert sys.modules[sent.load(name).__module__].SCALE == 1.0


def test_an_edited_helper_is_executed_as_it_is_when_the_plugin_is_added_again(tmp_path: Path) -> None:
    path = _project(tmp_path, "from helper import SCALE\n")
    registry = Registry("method", "adbench.methods")
    for value in (1.0, 2.0):
        (tmp_path / "helper.py").write_text(f"SCALE = {value}\n", encoding="utf-8")
        assert value == sys.modules[registry.load(registry.add_file(path)).__module__].SCALE


def test_two_plugins_with_helpers_of_one_name_are_told_apart(tmp_path: Path) -> None:
    registry = Registry("method", "adbench.methods")
    for folder in ("one", "other"):
        path = _project(tmp_path / folder, "from helper import SCALE\n")
        (tmp_path / folder / "helper.py").write_text(f"SCALE = {len(folder)}\n", encoding="utf-8")
        path.rename(path.with_name(f"{folder}.py"))
    registry.load(registry.add_file(tmp_path / "one" / "one.py"))
    with pytest.raises(UserError, match="'helper'"):
        registry.load(registry.add_file(tmp_path / "other" / "other.py"))


@pytest.mark.parametrize("name", ["random", "torch", "adbench"])
def test_what_is_installed_is_not_taken_from_beside_the_plugin(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('wrong module')\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text(f"import {name}\n{PLUGIN}", encoding="utf-8")
    assert not plugin_code.read(tmp_path / "mine.py").helpers
    registry = Registry("method", "adbench.methods")
    assert registry.load(registry.add_file(tmp_path / "mine.py")).label == "Mine, really"


def test_a_package_keeps_its_hash_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    hashes = []
    for name in ("theirs", "renamed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ValueError('is not imported to be hashed')\n")
        (tmp_path / name / "fine.py").write_text(f"from .parts import SCALE\n{PLUGIN}", encoding="utf-8")
        (tmp_path / name / "parts.py").write_text("SCALE = 1\n", encoding="utf-8")
        hashes.append(plugin_code.read(tmp_path / name / "fine.py", f"{name}.fine").sha256)
    (tmp_path / "renamed" / "parts.py").write_text("SCALE = 2\n", encoding="utf-8")
    hashes.append(plugin_code.read(tmp_path / "renamed" / "fine.py", "renamed.fine").sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_methods_count_what_they_share() -> None:
    for name in ("smaraad", "smaraad-pp", "kd", "slack"):
        assert "adbench.methods.guided" in {helper.name for helper in METHODS.code(name).helpers}, name
    assert not METHODS.code("rslad").helpers  # nothing of adbench's core, which its revision stands for


# Commands


@pytest.mark.usefixtures("one_thread")
def test_an_edited_helper_is_a_new_cell_and_one_edited_during_a_run_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _project(tmp_path, "from helper import SCALE\n")
    path.write_text(
        path.read_text().replace(
            "        return step.x", "        open('helper.py', 'w').write('SCALE = 3.0')\n        return step.x"
        )
    )
    assert run("--methods", "mine", "--plugin", "mine.py", "--seeds", "2").exit_code == 0
    first, second = records(Path("results")).values()
    assert first["config"]["training"]["source"] == second["config"]["training"]["source"]
    assert (first["status"], second["status"]) == ("done", "done")
    assert "1 of 1 cells" in run("--methods", "mine", "--plugin", "mine.py", "--dry-run").output
    said = cli("status").output
    assert said.count("the code of method 'mine' changed since") == 2
    (tmp_path / "helper.py").write_text(FILES["helper.py"], encoding="utf-8")
    assert "0 of 1 cells" in run("--methods", "mine", "--plugin", "mine.py", "--dry-run").output


@pytest.mark.usefixtures("one_thread")
def test_an_edited_built_in_method_is_a_new_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a copy of adbench, which Python finds first."""
    monkeypatch.chdir(tmp_path)
    assert run("--methods", "pgd-at,natural").exit_code == 0
    copy = tmp_path / "copy" / "adbench"
    for inside, folder in (("", "adbench"), ("methods", "methods"), ("teachers", "teachers")):
        shutil.copytree(ROOT / folder, copy / inside, ignore=shutil.ignore_patterns("__pycache__"))
    method = copy / "methods" / "pgd_at.py"
    text = method.read_text(encoding="utf-8")

    def adbench(*words: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(copy.parent)}
        command = [sys.executable, "-m", "adbench", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    method.write_text(text.replace('    """', '    """In other words: ', 1), encoding="utf-8")
    assert "changed since" not in adbench("status")
    method.write_text(text.replace("return step.term(", "return 0 * step.term("), encoding="utf-8")
    said = adbench("status")
    assert "pgd-at cnn-4 seed 0" in said
    assert "the code of method 'pgd-at' changed since" in said
    assert "natural cnn-4 seed 0" not in said
    asked = adbench("run", "--methods", "pgd-at,natural", *options(), "--dry-run")
    assert "1 of 2 cells" in asked
    # The record says what it was made with, whatever is installed.
    assert record_of(tmp_path / "results", "pgd-at")["config"]["training"]["source"] == METHODS.code("pgd-at").sha256
