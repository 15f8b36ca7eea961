"""Names to factories, for methods, models and datasets alike.

A registry is filled from an entry-point group (adbench's own `pyproject.toml` fills it exactly as a
third-party package would) and, for methods, from single files that the user names. Nothing is imported
before it is used: listing names and their one-line summaries reads source text only.
"""

from __future__ import annotations

import ast
import signal
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from adbench import DISTRIBUTION, plugin_code
from adbench.errors import UserError, unknown
from adbench.plugin_code import Code
from adbench.system.signals import Stopped

PAPER = ("pgd-at", "trades", "las-at", "ard", "iad", "rslad", "mtard", "adaad", "smaraad", "smaraad-pp")
"""The ten methods of SmaraAD's tables, in their order."""

LATER = ("kd-swa", "adaiad", "fair", "dgad", "absld", "b-mtard", "peeraid", "igdm", "ciard", "saad")
"""Distillation beside the paper's ten and after it, in the order of publication."""

GROUPS = {
    "all": PAPER,
    "paper": PAPER,
    "adversarial-training": ("pgd-at", "trades", "mart", "lbgat", "las-at", "hat", "adr"),
    "distillation": (*PAPER[3:], *LATER),
    "fairness": ("fair", "absld"),
    "2024": ("adr", "dgad", "absld", "b-mtard", "peeraid"),
    "2025": ("igdm", "ciard"),
    "2026": ("saad",),
    "every": (*PAPER, "mart", "lbgat", "hat", "adr", *LATER),
}
"""Names for groups of methods."""


def members(asked: Iterable[str]) -> list[str]:
    """The methods asked for, once each: those of a group for its name, any other name as it is."""
    return list(dict.fromkeys(name for a in asked for name in GROUPS.get(a, (a,))))


class Registry:
    """The entries of one entry-point group, plus those added from files."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._files: dict[str, Path] = {}
        self._members: dict[str, str] = {}
        # Code as first read, and classes made from files: the files may be edited during a run.
        self._codes: dict[str, Code] = {}
        self._loaded: dict[str, Any] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        entries: dict[str, EntryPoint] = {}
        # adbench's own entries come first, so that a third party cannot silently replace a baseline.
        ours_first = sorted(entry_points(group=self.group), key=lambda e: (_owner(e) != DISTRIBUTION, e.name))
        for entry in ours_first:
            first = entries.setdefault(entry.name, entry)
            if first.value != entry.value:
                raise UserError(
                    f"the packages '{_owner(first)}' and '{_owner(entry)}' both register a {self.kind} "
                    f"'{entry.name}'; uninstall one or rename its entry point in '{self.group}'"
                )
        return entries

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
                self._loaded[name] = self._of_file(name)
            return self._loaded[name]
        if name not in self._entry_points:
            raise unknown(self.kind, name, self.names())
        entry = self._entry_points[name]
        with importing(f"the {self.kind} '{name}' ({entry.value}, from '{_owner(entry)}')"):
            return entry.load()

    def add_file(self, path: Path, code: Code | None = None) -> str:
        """Register the one plugin class of the Python file `path`; returns its name.

        The name is the file's, with dashes for underscores. The file is not executed until it is used.
        code: the file's, read by another process; the file need not exist then.
        """
        if path.suffix != ".py" or not (code is not None or path.is_file()):
            raise UserError(f"plugin '{path}': no such Python file; give the path of a .py file")
        name = path.stem.replace("_", "-")
        if name in GROUPS or not name.strip() or "," in name:
            raise UserError(
                f"plugin '{path}': no {self.kind} can be called '{name}', which --methods reads otherwise; "
                f"rename the file"
            )
        if name in self._entry_points:
            raise UserError(f"plugin '{path}': a {self.kind} '{name}' is already registered; rename the file")
        if self._files.get(name, path.resolve()) != path.resolve():
            raise UserError(f"plugin '{path}': '{self._files[name]}' has the same name; rename one of the files")
        self._files[name] = path.resolve()
        self._codes.pop(name, None)
        self._loaded.pop(name, None)
        if code is not None:
            self._codes[name] = code
        return name

    def add_member(self, path: Path, attribute: str, code: Code | None = None) -> str:
        """Register an object of the Python file `path`; returns its name, FILE.py:ATTRIBUTE without the folder.

        The file is not executed until it is used. code: the file's, read by another process; the file need not exist.
        """
        if not (code is not None or path.is_file()):
            raise UserError(f"{self.kind} '{path}:{attribute}': there is no file '{path}'")
        name, path = f"{path.name}:{attribute}", path.resolve()
        if self._files.get(name, path) != path:
            raise UserError(f"{self.kind} '{path}': '{self._files[name]}' has the same name; rename one of the files")
        if name not in self._files:
            self._files[name], self._members[name] = path, attribute
        if code is not None:
            self._codes[name] = code
        return name

    def in_file(self, name: str) -> bool:
        """Whether `name` is an object of a file that a user named."""
        return name in self._members

    def members(self) -> list[tuple[Path, str, Code]]:
        """What was added by `add_member`, with the code as read by this process: for `add_member` in another one."""
        return [(self._files[name], attribute, self.code(name)) for name, attribute in self._members.items()]

    def _of_file(self, name: str) -> Any:
        """The object that a file defines under `name`."""
        if name not in self._members:
            return _class_of_file(self.code(name), self.kind, self._files.values())
        module = _executed(self.code(name), f"the {self.kind} '{name}'", self._files.values())
        if not callable(found := getattr(module, self._members[name], None)):
            raise UserError(f"'{self._files[name]}' defines no function or class '{self._members[name]}'")
        return found

    def files(self) -> dict[Path, Code]:
        """The added plugin files with their code as read by this process: for `add_file` in another one."""
        return {path: self.code(name) for name, path in self._files.items()}

    def paths(self) -> dict[str, Path]:
        """Paths of the added plugin files, by name."""
        return dict(self._files)

    def code(self, name: str) -> Code:
        """The code of `name`, with the local modules that it imports, as first read.

        Raises UserError where its file cannot be read.
        """
        if name not in self._codes:
            path = self._path(name)
            try:
                module = "" if name in self._files else self._entry_points[name].module
                self._codes[name] = plugin_code.read(path, module) if path else plugin_code.NONE
            except OSError as error:
                raise UserError(f"{self.kind} '{path}' cannot be read: {error.strerror or error}") from error
        return self._codes[name]

    def source(self, name: str) -> str:
        """The origin of `name`: a distribution's name or a file's path."""
        return str(self._files[name]) if name in self._files else _owner(self._entry_points[name])

    def built_in(self, name: str) -> bool:
        """Whether adbench itself ships `name`."""
        return name not in self._files and _owner(self._entry_points[name]) == DISTRIBUTION

    def _path(self, name: str) -> Path | None:
        if name in self._files:
            return self._files[name]
        spec = plugin_code.locate(self._entry_points[name].module)
        return Path(spec.origin) if spec and spec.has_location and spec.origin else None

    def source_hash(self, name: str) -> str:
        """SHA-256 of the bytes of the file that defines `name` ('' where there is none), as `code` read it."""
        code = self.code(name)
        return "" if code is plugin_code.NONE else code.main.sha256

    def summary(self, name: str) -> str:
        """The first docstring line of the object registered under `name`, read without importing it."""
        text = self.docstring(name)
        return "(its source file cannot be read)" if text is None else text.partition("\n")[0]

    def docstring(self, name: str) -> str | None:
        """The docstring of the object registered under `name`, read without importing it; None for no readable file."""
        path = self._path(name)
        try:
            tree = ast.parse(path.read_text(encoding="utf-8")) if path else None
        except (OSError, SyntaxError, ValueError):
            tree = None
        if tree is None:
            return None
        target = self.attribute(name)
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and target in (None, node.name):
                doc = ast.get_docstring(node)
                if doc:
                    return doc
        return ""

    def attribute(self, name: str) -> str | None:
        """What the object is called in its module; None of a plugin file, which has one class."""
        return self._members.get(name) if name in self._files else self._entry_points[name].attr


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"


@contextmanager
def importing(what: str) -> Iterator[None]:
    """Import of a plugin's code. Raises UserError that names the plugin for any exception of its, `sys.exit()` too.

    A request to stop (Stopped, KeyboardInterrupt after SIGINT) passes through.
    """
    signals: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    hears = threading.current_thread() is threading.main_thread() and callable(before)

    def interrupted(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if callable(before):
            before(number, frame)

    if hears:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        if signals:
            raise
        message = f"{type(error).__name__}: {error}".removesuffix(": ")
        if isinstance(error, SystemExit):
            message = f"it ends the program with sys.exit({error.code or ''}); a plugin is imported, it is no script"
        raise UserError(f"{what} cannot be imported: {message}") from error
    finally:
        if hears:
            signal.signal(signal.SIGINT, before)


def _executed(code: Code, what: str, added: Collection[Path]) -> ModuleType:
    """The module of a user's file, executed. added: the files of its registry."""
    path, content = code.main.path, code.main.content
    module = ModuleType(f"adbench_plugin_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    plugin_code.HELPERS.serve(code, {*added, *METHODS.paths().values(), *MODELS.paths().values()})
    with importing(what):
        # What was hashed is what is executed: not the file, which may have changed, nor its bytecode in a cache.
        exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
    return module


def _class_of_file(code: Code, kind: str, added: Collection[Path]) -> Any:
    """Execute a plugin file and return the class it defines (`plugin = ...` settles it if there are several)."""
    path = code.main.path
    module = _executed(code, f"plugin '{path}'", added)
    module_name = module.__name__
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


def method_names(asked: tuple[str, ...]) -> list[str]:
    """Registered method names, those of a group for its name. Raises UserError for an unknown one."""
    names = members(asked)
    for name in names:
        if name not in METHODS:
            raise unknown("method", name, [*METHODS.names(), *GROUPS])
    return names
