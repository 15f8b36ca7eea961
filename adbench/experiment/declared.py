"""A method's hyperparameters as its source declares them: read and not run, since a method imports torch for seconds.

So a mistyped one is answered at once. What the text does not tell (a type of the method's own, a bound that is
computed, a check after the fields) is left to the method itself; so is a class that is written in any other way than as
a plain list of fields and functions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, Field, create_model

from adbench.experiment.config import Section, validated
from adbench.plugin_code import Code, Module
from adbench.registry import METHODS

TYPES: dict[str, Any] = {
    **{kind.__name__: kind for kind in (bool, float, int, str, list, tuple, dict)},
    "Literal": Literal,
    "Any": Any,
}
"""The names that a type may consist of to be understood."""

BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length")
WORDS = (*BOUNDS, "default", "doc", "description", "later")
"""What a field may be told beside its type, by keyword."""

MAKERS = ("hyper", "Field")
"""What makes a field; either could be another function of that name, which is not looked into."""

PLAIN = (ast.AnnAssign, ast.Assign, ast.FunctionDef, ast.Pass)
EARLY = ("before", "wrap", "plain")
"""Modes of a validator that may take another value than the field's type has."""

FieldsOf = dict[str, tuple[Any, Any] | None]
"""Hyperparameters, each with its type, default and bounds, as pydantic takes them; None: its type is not told."""


class _Untold(Exception):
    """The source does not tell; the method has to be asked."""


def check(name: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for hyperparameters that method `name` plainly does not have, or not of these values."""
    fields = stated(name)
    if fields is not None:
        validated(_model(name, fields), settings, f"hyper.{name}")


def known(name: str, hyperparameter: str) -> None:
    """Raise UserError where method `name` plainly has no hyperparameter of that name."""
    fields = stated(name)
    if fields is not None and hyperparameter not in fields:
        check(name, {hyperparameter: None})


def field_model(name: str, hyperparameter: str) -> type[BaseModel] | None:
    """A model of that field alone; None where there is none or the source does not tell its type."""
    told = (stated(name) or {}).get(hyperparameter)
    return _model(name, {hyperparameter: told}) if told else None


def stated(name: str) -> FieldsOf | None:
    """The hyperparameters of method `name`; None where its source does not tell which these are."""
    return _stated(METHODS.code(name), METHODS.attribute(name), name)


@lru_cache(maxsize=256)
def _stated(code: Code, attribute: str | None, name: str) -> FieldsOf | None:
    try:
        fields = _Classes(code).fields(code.main, attribute)
        _model(name, fields)
    except Exception:  # what pydantic makes of a type that was misunderstood, and a source that loops
        return None
    return fields


def _model(name: str, fields: FieldsOf) -> type[BaseModel]:
    whole: dict[str, Any] = {field: told or (Any, None) for field, told in fields.items()}
    return create_model(name, __base__=Section, **whole)


class _Bound(NamedTuple):
    """What a name of a module stands for: a class there, or a name of another module."""

    cls: ast.ClassDef | None = None
    source: ast.ImportFrom | None = None
    name: str = ""


class _Classes:
    """The classes of a plugin's code, as syntax."""

    def __init__(self, code: Code) -> None:
        self.modules = {module.name: module for module in (code.main, *code.helpers)}

    def fields(self, module: Module, name: str | None) -> FieldsOf:
        """Of the class called `name` in a module; of no name, of its only public one. Raises _Untold."""
        bound = _bound(module)
        if name is None:
            public = [one for one, what in bound.items() if what and what.cls and not one.startswith("_")]
            if len(public) != 1 or "plugin" in bound:
                raise _Untold
            name = public[0]
        found = bound.get(name)
        if found is None:
            raise _Untold
        if found.source:
            return self._imported(module, found.source, found.name)
        assert found.cls is not None
        if not found.cls.bases or found.cls.keywords or found.cls.decorator_list:
            raise _Untold
        fields: FieldsOf = {}
        for base in reversed(found.cls.bases):
            fields |= self.fields(module, _named(base))
        return fields | dict(_own(found.cls))

    def _imported(self, module: Module, source: ast.ImportFrom, name: str) -> FieldsOf:
        if (source.level, source.module, name) == (0, "adbench", "Method"):
            return {}
        where = self.modules.get(_absolute(source, module))
        if where is None:
            raise _Untold
        return self.fields(where, name)


def _bound(module: Module) -> dict[str, _Bound | None]:
    """What the names of a module stand for; None for one that is bound in another way, or twice."""
    found: dict[str, _Bound | None] = {}

    def bind(name: str, what: _Bound | None) -> None:
        found[name] = None if name in found else what

    tree = ast.parse(module.content)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bind(node.name, _Bound(cls=node))
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                bind(one.asname or one.name, _Bound(source=node, name=one.name))
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    bind(inner.id, None)
                elif isinstance(inner, ast.ClassDef | ast.FunctionDef):
                    bind(inner.name, None)
                elif isinstance(inner, ast.Import | ast.ImportFrom):
                    for one in inner.names:
                        bind((one.asname or one.name).partition(".")[0], None)
    return found


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    """The name of the module that is imported from."""
    parts = module.package.split(".")
    above = parts[: len(parts) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def _own(cls: ast.ClassDef) -> Iterator[tuple[str, tuple[Any, Any] | None]]:
    """The fields that a class body declares: what is annotated, public and no class variable. Raises _Untold."""
    for node in cls.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):  # a docstring
            continue
        if not isinstance(node, PLAIN):
            raise _Untold
        names = [getattr(target, "id", "") for target in getattr(node, "targets", [getattr(node, "target", None)])]
        if "model_config" in names or (isinstance(node, ast.FunctionDef) and any(map(_early, node.decorator_list))):
            raise _Untold
        if isinstance(node, ast.Assign) and "validator" in ast.dump(node.value):
            raise _Untold
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            outer = node.annotation.value if isinstance(node.annotation, ast.Subscript) else node.annotation
            if not node.target.id.startswith("_") and getattr(outer, "id", getattr(outer, "attr", "")) != "ClassVar":
                yield node.target.id, _typed(node.annotation, node.value)


def _early(decorator: ast.expr) -> bool:
    """Whether a function's decorator may be a validator that sees a value before the field's type is looked at."""
    call = decorator if isinstance(decorator, ast.Call) else None
    name = getattr(call.func if call else decorator, "id", getattr(call.func if call else decorator, "attr", ""))
    if "validator" not in name and "serializer" not in name:
        return False
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] if call else []
    return any(not isinstance(mode, ast.Constant) or mode.value in EARLY for mode in modes)


def _typed(annotation: ast.expr, value: ast.expr | None) -> tuple[Any, Any] | None:
    """Type, default and bounds; None where the type is not told. A default is not checked, so that there is none.
    Raises _Untold for a field that has more to it."""
    if isinstance(value, ast.Call):
        if _named(value.func) not in MAKERS or any(keyword.arg not in WORDS for keyword in value.keywords):
            raise _Untold
    elif isinstance(value, ast.Name) and value.id != "ATTACK_BN":
        raise _Untold
    if any(isinstance(node, ast.Call) for node in ast.walk(annotation)):
        raise _Untold
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return None
    nodes = list(ast.walk(annotation))
    words = {node.id for node in nodes if isinstance(node, ast.Name)}
    if not words <= TYPES.keys() or any(isinstance(node, ast.Attribute) for node in nodes):
        return None
    bounds = {}
    for keyword in value.keywords if isinstance(value, ast.Call) else ():
        if keyword.arg in BOUNDS:
            try:
                bounds[keyword.arg] = ast.literal_eval(keyword.value)
            except ValueError:
                continue
    return _type(annotation), Field(None, **bounds)


def _type(node: ast.expr) -> Any:
    """The type that an annotation of TYPES spells. Raises _Untold for other syntax."""
    if isinstance(node, ast.Name):
        return TYPES[node.id]
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):  # -1
        return ast.literal_eval(node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _type(node.left) | _type(node.right)
    if isinstance(node, ast.Subscript):
        inner = node.slice
        return _type(node.value)[tuple(map(_type, inner.elts)) if isinstance(inner, ast.Tuple) else _type(inner)]
    raise _Untold


def _named(node: ast.expr) -> str:
    if not isinstance(node, ast.Name):
        raise _Untold
    return node.id
