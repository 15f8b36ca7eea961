"""How the package is built: which part may import which, and which parts do without torch."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import house

ORDER = [
    "errors",
    "system",
    "seeding",
    "plugin_code",
    "registry",
    "losses",
    "data",
    "models",
    "experiment",
    "results",
    "report",
    "weights",
    "attacks",
    "training",
    "evaluation",
    "execution",
    "analysis",
    "verification",
    "board",
    "plugins",
    "cli",
    "__main__",
]
"""Packages and modules; each may import those before it. `adbench` itself is the face that others see."""

TORCH_FREE = ("system", "experiment", "results", "report", "cli")


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return house.sources()


@pytest.fixture(scope="module")
def graph(files: dict[str, str]) -> dict[str, list[house.Import]]:
    """What each module imports, without the face, through which nobody inside goes."""
    return house.inside(house.imports(files))


def short(name: str) -> str:
    return name.removeprefix(f"{house.PACKAGE}.")


def test_every_part_has_a_place_in_the_order(graph):
    assert {short(name).split(".")[0] for name in graph} <= set(ORDER)


def test_the_top_level_is_small(files):
    assert sum(path.count("/") == 1 for path in files) <= 8


def test_imports_run_one_way(graph):
    arrows = {(short(name), short(found.target)) for name, found_in in graph.items() for found in found_in}
    place = {part: number for number, part in enumerate(ORDER)}
    parts = [(arrow, *(name.split(".")[0] for name in arrow)) for arrow in arrows]
    backwards = {arrow for arrow, source, target in parts if source != target and place[source] < place[target]}
    assert not backwards


def test_no_two_files_import_each_other(graph):
    assert not house.circles(graph)


def test_the_face_gives_others_nothing_but_constants_inside(files):
    """What plugin authors import from adbench, adbench itself imports from where it is defined."""
    modules = set(map(house.module_name, files))
    taken = {
        alias.name
        for path, text in files.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.module == house.PACKAGE and not node.level
        for alias in node.names
        if f"{house.PACKAGE}.{alias.name}" not in modules
    }
    assert all(name.isupper() or name == "__version__" for name in taken), taken


def test_whole_packages_do_without_torch(files):
    """Each of their modules can be imported where torch cannot."""
    names = [module for module in map(house.module_name, files) if short(module).split(".")[0] in TORCH_FREE]
    program = """
import importlib, sys
sys.modules["torch"] = None
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name)
"""
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=True)
    assert not done.stdout


def test_circles_are_found():
    program = {
        "adbench/a.py": "from adbench import b",
        "adbench/b.py": "def f():\n    from adbench.c.d import x",
        "adbench/c/__init__.py": "",
        "adbench/c/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..a import y",
        "adbench/e.py": "import adbench.a",
    }
    graph = house.imports(program)
    assert house.circles(graph) == [["adbench.a", "adbench.b", "adbench.c.d"]]
    assert graph["adbench.e"] == [house.Import("adbench.a", 1, False)]
    assert graph["adbench.b"] == [house.Import("adbench.c.d", 2, True)]


def test_no_two_classes_have_one_name(files):
    found: dict[str, list[str]] = {}
    for name, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(short(name))
    assert {name: places for name, places in found.items() if len(places) > 1} == {}
