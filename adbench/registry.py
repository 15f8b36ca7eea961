"""Names to factories, for methods, models and datasets alike.

A registry is filled from an entry-point group (adbench's own `pyproject.toml` fills it exactly as a
third-party package would) and, for methods, from single files that the user names. Nothing is imported
before it is used: listing names and their one-line summaries reads source text only.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from adbench import DISTRIBUTION
from adbench.errors import UserError, unknown


class Registry:
    """The entries of one entry-point group, plus those added from files."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._files: dict[str, Path] = {}
        # What the files held when they were first used, and what was made of it: they may be edited during a run.
        self._contents: dict[str, bytes] = {}
        self._loaded: dict[str, Any] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        # adbench's own entries come first, so that a third party cannot silently replace a baseline.
        ours_first = sorted(entry_points(group=self.group), key=lambda e: (_owner(e) != DISTRIBUTION, e.name))
        for entry in ours_first:
            taken = found.setdefault(entry.name, entry)
            if taken.value != entry.value:
                raise UserError(
                    f"the packages '{_owner(taken)}' and '{_owner(entry)}' both register a {self.kind} "
                    f"'{entry.name}'; uninstall one or rename its entry point in '{self.group}'"
                )
        return found

    def names(self) -> list[str]:
        return sorted({*self._entry_points, *self._files})

    def __contains__(self, name: str) -> bool:
        return name in self._entry_points or name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def load(self, name: str) -> Any:
        """Import and return the object registered under `name`.

        Raises UserError when nothing has that name or its module cannot be imported.
        """
        if name in self._files:
            if name not in self._loaded:
                self._loaded[name] = _class_of_file(self._files[name], self._content(name), self.kind)
            return self._loaded[name]
        if name not in self._entry_points:
            raise unknown(self.kind, name, self.names())
        entry = self._entry_points[name]
        try:
            return entry.load()
        except Exception as error:
            raise UserError(
                f"the {self.kind} '{name}' ({entry.value}, from '{_owner(entry)}') cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error

    def add_file(self, path: Path, content: bytes | None = None) -> str:
        """Register the one plugin class that the Python file `path` defines; returns its name.

        The name is the file's, with dashes for underscores. The file is not executed until it is used.
        content: what the file holds, where another process has read it; it need not be there then.
        """
        if path.suffix != ".py" or not (content is not None or path.is_file()):
            raise UserError(f"plugin '{path}': no such Python file; give the path of a .py file")
        name = path.stem.replace("_", "-")
        if name in self._entry_points:
            raise UserError(f"plugin '{path}': a {self.kind} '{name}' is already registered; rename the file")
        if self._files.get(name, path.resolve()) != path.resolve():
            raise UserError(f"plugin '{path}': '{self._files[name]}' has the same name; rename one of the files")
        self._files[name] = path.resolve()
        self._contents.pop(name, None)
        self._loaded.pop(name, None)
        if content is not None:
            self._contents[name] = content
        return name

    def files(self) -> dict[Path, bytes]:
        """The plugin files that were added, with what this process takes them to hold: for `add_file` elsewhere."""
        return {path: self._content(name) for name, path in self._files.items()}

    def paths(self) -> dict[str, Path]:
        """Where the plugin files are that were added, by name."""
        return dict(self._files)

    def _content(self, name: str) -> bytes:
        if name not in self._contents:
            try:
                self._contents[name] = self._files[name].read_bytes()
            except OSError as error:
                raise UserError(f"plugin '{self._files[name]}' cannot be read: {error.strerror or error}") from error
        return self._contents[name]

    def source(self, name: str) -> str:
        """Where `name` comes from: a distribution's name or a file's path."""
        return str(self._files[name]) if name in self._files else _owner(self._entry_points[name])

    def built_in(self, name: str) -> bool:
        """Whether adbench itself ships `name`."""
        return name not in self._files and _owner(self._entry_points[name]) == DISTRIBUTION

    def _path(self, name: str) -> Path | None:
        if name in self._files:
            return self._files[name]
        try:
            spec = importlib.util.find_spec(self._entry_points[name].module)
        except Exception:  # finding a module imports the package around it, which may be broken in any way
            return None
        return Path(spec.origin) if spec and spec.origin else None

    def source_hash(self, name: str) -> str:
        """SHA-256 of the source file that defines `name` ('' where there is none), as it was when it was loaded."""
        if name in self._contents:
            return hashlib.sha256(self._contents[name]).hexdigest()
        path = self._path(name)
        return hashlib.sha256(path.read_bytes()).hexdigest() if path else ""

    def summary(self, name: str) -> str:
        """The first docstring line of the object registered under `name`, read without importing it."""
        found = self.docstring(name)
        return "(its source file cannot be read)" if found is None else found.partition("\n")[0]

    def docstring(self, name: str) -> str | None:
        """The docstring of the object registered under `name`, read without importing it; None for no readable file."""
        path = self._path(name)
        try:
            tree = ast.parse(path.read_text(encoding="utf-8")) if path else None
        except (OSError, SyntaxError, ValueError):
            tree = None
        if tree is None:
            return None
        wanted = None if name in self._files else self._entry_points[name].attr
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and wanted in (None, node.name):
                doc = ast.get_docstring(node)
                if doc:
                    return doc
        return ""


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


def _class_of_file(path: Path, content: bytes, kind: str) -> Any:
    """Execute a plugin file and return the class it defines (`plugin = ...` settles it if there are several)."""
    module_name = f"adbench_plugin_{path.stem}"
    module = ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module
    try:
        # What was hashed is what is executed: not the file, which may have changed, nor its bytecode in a cache.
        exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
    except Exception as error:
        raise UserError(f"plugin '{path}' cannot be imported: {type(error).__name__}: {error}") from error
    own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module_name]
    public = [v for v in own if not v.__name__.startswith("_") and hasattr(v, "loss")]
    if hasattr(module, "plugin"):
        return module.plugin
    if len(public) != 1:
        raise UserError(
            f"plugin '{path}' defines {len(public)} classes that could be the {kind}; "
            f"define exactly one, or name it with `plugin = TheClass`"
        )
    return public[0]


METHODS = Registry("method", "adbench.methods")
MODELS = Registry("model", "adbench.models")
DATASETS = Registry("dataset", "adbench.datasets")
