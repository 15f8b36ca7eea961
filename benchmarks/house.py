"""How the package is built, in figures: modules, lines, long functions, untyped dictionaries, imports, circles.

One column a revision; without any, the working tree.

    python benchmarks/house.py HEAD~100 .
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "adbench"
LONG = 40
"""Lines that a function may have before it counts as long."""


@dataclass(frozen=True)
class Import:
    """A module of the package that another one imports. line: of the statement. local: inside a function."""

    target: str
    line: int
    local: bool


def sources(revision: str = ".") -> dict[str, str]:
    """The text of the package's files by their path; revision: of git, or "." for the working tree."""
    if revision == ".":
        return {f"{path.relative_to(ROOT)}": path.read_text("utf-8") for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    archive = subprocess.run(["git", "archive", revision, PACKAGE], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers() if member.name.endswith(".py")}
        return {name: file.read().decode() for name, file in files.items() if file}


def module_name(path: str) -> str:
    """adbench/data/own.py -> adbench.data.own; a package is named by its folder."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(files: Mapping[str, str]) -> dict[str, list[Import]]:
    """What each module of the package imports of it, wherever the statement stands, also for types alone."""
    modules = {module_name(path) for path in files}
    return {
        module_name(path): list(_imports(ast.parse(text), path, modules, local=False)) for path, text in files.items()
    }


def inside(graph: Mapping[str, list[Import]]) -> dict[str, list[Import]]:
    """The same without the package's own file: the face for others, of which the modules take constants alone."""
    return {
        name: [found for found in imported if found.target != PACKAGE]
        for name, imported in graph.items()
        if name != PACKAGE
    }


def _imports(node: ast.AST, path: str, modules: set[str], *, local: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield from (Import(name, child.lineno, local) for name in _targets(child, path) if name in modules)
            if isinstance(child, ast.ImportFrom):
                yield from (
                    Import(package, child.lineno, local)
                    for package in _targets(child, path, whole=True)
                    if package in modules and _takes_a_name(child, package, modules)
                )
        inside = local or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _imports(child, path, modules, local=inside)


def _targets(statement: ast.Import | ast.ImportFrom, path: str, *, whole: bool = False) -> list[str]:
    """The modules that a statement may mean: `from a import b` means a.b or, as a whole, a."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    folders = path.split("/")[: -statement.level] if statement.level else []
    package = ".".join([*folders, *([statement.module] if statement.module else [])])
    return [package] if whole else [f"{package}.{alias.name}" for alias in statement.names]


def _takes_a_name(statement: ast.ImportFrom, package: str, modules: set[str]) -> bool:
    """Whether the statement takes something other than modules from the package."""
    return any(f"{package}.{alias.name}" not in modules for alias in statement.names)


def circles(graph: Mapping[str, list[Import]]) -> list[list[str]]:
    """Groups of modules each of which reaches every other one of its group."""
    reached = {name: _reached(name, graph) for name in graph}
    groups = {tuple(sorted({name, *(other for other in reached[name] if name in reached[other])})) for name in graph}
    return [list(group) for group in sorted(groups) if len(group) > 1]


def _reached(start: str, graph: Mapping[str, list[Import]]) -> set[str]:
    """The modules that `start` imports, directly or through others."""
    reached: set[str] = set()
    ahead = [start]
    while ahead:
        for found in graph[ahead.pop()]:
            if found.target not in reached:
                reached.add(found.target)
                ahead.append(found.target)
    return reached


def figures(files: Mapping[str, str]) -> dict[str, int]:
    """What is counted of one revision."""
    graph = inside(imports(files))
    trees = [ast.parse(text) for text in files.values()]
    functions = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return {
        "modules": len(files),
        "modules on the top level": sum(path.count("/") == 1 for path in files),
        "lines": sum(text.count("\n") for text in files.values()),
        "functions": len(functions),
        f"functions over {LONG} lines": sum((f.end_lineno or 0) - f.lineno + 1 > LONG for f in functions),
        "dict[str, Any]": sum(text.count("dict[str, Any]") for text in files.values()),
        "imports inside functions": sum(_local_imports(tree) for tree in trees),
        "formatting switched off": sum(len(re.findall(r"# fmt: (?:skip|off)", text)) for text in files.values()),
        "circles": len(circles(graph)),
        "modules in circles": sum(map(len, circles(graph))),
    }


def _local_imports(node: ast.AST, *, local: bool = False) -> int:
    """Import statements inside functions, whatever they import."""
    count = 0
    for child in ast.iter_child_nodes(node):
        count += local and isinstance(child, ast.Import | ast.ImportFrom)
        count += _local_imports(child, local=local or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", default=["."], metavar="REV", help='"." is the working tree')
    revisions = parser.parse_args().revisions
    columns = {revision: figures(sources(revision)) for revision in revisions}
    rows = [["", *columns], *([name, *(f"{c[name]:,}" for c in columns.values())] for name in columns[revisions[0]])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        print("  ".join([name.ljust(widths[0]), *(v.rjust(w) for v, w in zip(values, widths[1:], strict=True))]))


if __name__ == "__main__":
    main()
