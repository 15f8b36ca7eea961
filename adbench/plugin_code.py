"""The hash of a plugin's code: of its file and of the local modules that it imports.

The hash covers the syntax tree without docstrings, comments and `doc=` texts, in a form that is equal on every Python
version. It does not cover paths: a file that is reworded, formatted or moved keeps its hash. A local module lies beside
the plugin's file, in its package, or elsewhere on the path without being installed. adbench's own modules are covered
by its revision, except for its methods. Nothing is imported, so dependencies that are chosen at run time (a computed
module name, a data file) are not in the hash.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import tomllib
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.resources import files
from importlib.util import spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any

from adbench.errors import UserError
from adbench.system.files import content_id

BUILT_IN = "adbench.methods"
# Libraries are known by their versions, also where they are built in a checkout.
_LIBRARIES = frozenset({"torch", "torchvision", "numpy", "scipy"})
_INSTALLED = frozenset({"site-packages", "dist-packages"})


@dataclass(frozen=True)
class Module:
    """A module's source. name: the import name; "" for a file that is run from its path."""

    name: str
    path: Path
    content: bytes

    @property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class Code:
    """The source of a plugin and of the local modules that it imports, as read."""

    main: Module
    helpers: tuple[Module, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """The hash of the code, wherever it lies; of a built-in method that was only rewritten, the earlier hash."""
        trees = {_named(helper.name, self.main.package): _tree_hash(helper.content) for helper in self.helpers}
        hashed = content_id({"": _tree_hash(self.main.content), **trees})
        return _rewritten().get(hashed, hashed)


NONE = Code(Module("", Path(), b""))
"""The code of a plugin without readable source."""


@cache
def _rewritten() -> dict[str, str]:
    """Hashes of built-in methods, to those of the earlier code that gives the same numbers."""
    table = tomllib.loads((files(BUILT_IN) / "rewritten.toml").read_text(encoding="utf-8"))
    return {now: table["then"][name] for name, now in table["now"].items()}


def _named(name: str, package: str) -> str:
    """A module's name relative to `package`, whose own name may differ on another machine."""
    return name.removeprefix(package) if package and name.startswith(f"{package}.") else name


def read(path: Path, name: str = "") -> Code:
    """The code of the plugin file `path` and of all local modules that it imports, directly or not.

    name: its import name, "" for a file that is run from its path. Raises OSError for a file that cannot be read.
    """
    main = Module(name, path, path.read_bytes())
    known: dict[str, Module | None] = {name: None}
    waiting = [main]
    while waiting:
        for imported in _imported(waiting.pop()):
            if imported not in known:
                known[imported] = _local(imported, main)
                waiting += filter(None, [known[imported]])
    return Code(main, tuple(helper for _, helper in sorted(known.items()) if helper))


def locate(name: str, folder: Path | None = None) -> ModuleSpec | None:
    """The spec of the module `name`, without importing its parent packages; None if there is no such module.

    folder: searched instead of the interpreter's path.
    """
    path: list[str] | None = [str(folder)] if folder else None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        if count > 1 and path is None:
            return None
        spec = _spec(".".join(parts[:count]), path, [PathFinder] if folder else sys.meta_path)
        if spec is None:
            return None
        path = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
    return spec


def _spec(name: str, path: list[str] | None, finders: Sequence[Any]) -> ModuleSpec | None:
    for finder in finders:
        if isinstance(finder, _Helpers):
            continue
        try:
            spec: ModuleSpec | None = finder.find_spec(name, path)
        except Exception:  # a finder of somebody else's, or a path that cannot be read
            continue
        if spec is not None:
            return spec
    return None


def _local(name: str, main: Module) -> Module | None:
    """The module `name` if its source is local to `main`, else None."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in _LIBRARIES:
        return None
    if top == "adbench" and not name.startswith(f"{BUILT_IN}."):
        return None
    spec = locate(name)
    if spec is None and not main.name:
        # Its author may have put its folder on the path.
        spec = locate(name, main.path.parent)
    if spec is None or not spec.has_location or not spec.origin or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin)
    own = bool(main.name) and top == main.name.partition(".")[0]
    if not own and top != "adbench" and _INSTALLED & set(path.parts):
        return None
    try:
        return Module(name, path, path.read_bytes())
    except OSError:
        return None


class _Helpers(MetaPathFinder):
    """An importer of plugins' local modules as first read.

    The files may be edited during a run, and are missing on machines that a plugin was sent to.
    """

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.owners: dict[str, Path] = {}

    def serve(self, code: Code, added: Collection[Path]) -> None:
        """Make a plugin file's local modules importable. added: all plugin files in use.

        Raises UserError if another plugin has a different module of the same name.
        """
        own = code.main.path
        served = {helper.name: helper for helper in code.helpers if not helper.name.startswith(f"{BUILT_IN}.")}
        for owner in set(self.owners.values()) - set(added):
            self._forget(owner)
        for name, helper in served.items():
            if self.owners.get(name, own) != own and self.modules[name].content != helper.content:
                raise UserError(
                    f"plugins '{self.owners[name]}' and '{own}' each import a module '{name}' of their own; rename one"
                )
        if served != {name: self.modules[name] for name, owner in self.owners.items() if owner == own}:
            self._forget(own)
        for name, helper in served.items():
            self.modules.setdefault(name, helper)
            self.owners.setdefault(name, own)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def _forget(self, owner: Path) -> None:
        for name in [name for name, path in self.owners.items() if path == owner]:
            sys.modules.pop(name, None)
            del self.modules[name], self.owners[name]

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name in self.modules:
            module = self.modules[name]
            return spec_from_file_location(name, module.path, loader=_AsRead(module))
        inside = [module for other, module in self.modules.items() if other.startswith(f"{name}.")]
        if not inside:
            return None
        # A folder without an __init__.py.
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(_folder(name, inside[0]))]
        return spec


def _folder(package: str, module: Module) -> Path:
    """The folder of `package`, which contains `module`."""
    up = module.name.count(".") - package.count(".") - (module.path.name != "__init__.py")
    return module.path.parents[up]


class _AsRead(SourceFileLoader):
    """A loader of the source as read, not of the current file or cached bytecode."""

    def __init__(self, module: Module) -> None:
        super().__init__(module.name, str(module.path))
        self.content = module.content

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = compile(self.content, self.path, "exec", dont_inherit=True)
        return code


HELPERS = _Helpers()


def _imported(module: Module) -> Iterator[str]:
    """Full names of imported modules, of their parent packages, and of imported names that may be modules.

    Parent packages of the module itself are left out unless it imports from them.
    """
    around = f"{module.package}."
    for name in _written(module):
        parts = name.split(".")
        for way in (".".join(parts[:count]) for count in range(1, len(parts))):
            if not around.startswith(f"{way}."):
                yield way
        yield name


def _written(module: Module) -> Iterator[str]:
    tree = _parsed(module.content)
    for node in ast.walk(tree) if tree else ():
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                if base := _absolute(module, node.module or "", node.level):
                    yield base
                    yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                level = len(name) - len(name.lstrip("."))
                if base := _absolute(module, name[level:], level):
                    yield base


def _absolute(module: Module, name: str, level: int) -> str:
    """The full name of a relative import with `level` dots; "" outside any package."""
    if not level:
        return name
    parts = module.package.split(".") if module.package else []
    if level > len(parts):
        return ""
    return ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])


@cache
def _tree_hash(content: bytes) -> str:
    """SHA-256 of a source's syntax tree; of its bytes if it is not Python."""
    tree = _parsed(content)
    if tree is None:
        return hashlib.sha256(content).hexdigest()
    hashed = hashlib.sha256()
    for token in _tokens(tree):
        hashed.update(token.encode())
        hashed.update(b"\n")
    return hashed.hexdigest()


def _parsed(content: bytes) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


class _Token(str):
    """Punctuation between the values of a tree."""


def _tokens(tree: ast.AST) -> Iterator[str]:
    """A syntax tree as text, depth first, without empty fields, which differ between Python versions."""
    waiting: list[Any] = [tree]
    while waiting:
        match waiting.pop():
            case _Token() as token:
                yield token
            case ast.AST() as node:
                yield f"({type(node).__name__}"
                waiting.append(_Token(")"))
                for field, value in sorted(_fields(node), reverse=True):
                    waiting += [value, _Token(field)]
            case list() as values:
                waiting += [_Token("]"), *reversed(values), _Token("[")]
            case int() as value if not isinstance(value, bool):
                yield f"int {value:x}"
            case value:
                # `ascii`, because the letters that `repr` escapes differ between versions.
                yield f"{type(value).__name__} {value!a}"


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    if isinstance(node, ast.Constant):
        yield "value", node.value
        return
    for field in node._fields:
        value: Any = getattr(node, field, None)
        if isinstance(value, list):
            value = [one for one in value if not _idle(one)]
        if field == "keywords" and _called(node) in ("hyper", "Field"):
            value = [one for one in value if one.arg not in ("doc", "description")]
        elif isinstance(node, ast.JoinedStr):
            value = _joined(value)
        if value is not None and value != [] and field not in ("ctx", "type_comment", "type_ignores"):
            yield field, value


def _idle(statement: ast.AST) -> bool:
    """Whether a statement has no effect: a docstring, `...` or `pass`."""
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string, with adjacent texts merged and empty ones dropped."""
    parts: list[ast.expr] = []
    for value in values:
        last = parts[-1] if parts else None
        if isinstance(value, ast.Constant) and isinstance(last, ast.Constant):
            parts[-1] = ast.Constant(str(last.value) + str(value.value))
        elif not (isinstance(value, ast.Constant) and not value.value):
            parts.append(value)
    return parts
