"""A method's hyperparameters as its source declares them: read and not run, since a method imports torch for seconds.

So a mistyped one is answered at once. What the text does not tell (a type of the method's own, a bound that is
computed, a validator) is left to the method itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, Literal

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


def _model(name: str, fields: Mapping[str, tuple[Any, Any] | None]) -> type[BaseModel]:
    whole: dict[str, Any] = {field: told or (Any, None) for field, told in fields.items()}
    return create_model(name, __base__=Section, **whole)


def stated(name: str) -> dict[str, tuple[Any, Any] | None] | None:
    """The hyperparameters of method `name`, each with its type and its default and bounds, as pydantic takes them.

    None in place of these where the type is not told; None for a method of which a base is not found, or which is not
    the only class that its file could mean.
    """
    code = METHODS.code(name)
    modules = _Modules(code)
    cls = modules.class_called(code.main, METHODS.attribute(name))
    return None if cls is None else modules.fields(code.main, cls)


class _Modules:
    """The modules of a plugin's code as syntax."""

    def __init__(self, code: Code) -> None:
        self.modules = {module.name: module for module in (code.main, *code.helpers)}
        self.trees: dict[str, ast.Module] = {}

    def _tree(self, module: Module) -> ast.Module:
        if module.name not in self.trees:
            try:
                self.trees[module.name] = ast.parse(module.content)
            except (SyntaxError, ValueError):  # which its import will tell
                self.trees[module.name] = ast.Module([], [])
        return self.trees[module.name]

    def class_called(self, module: Module, name: str | None) -> ast.ClassDef | None:
        """The class of that name in a module; of no name the only public one, if there is no other word on it."""
        body = self._tree(module).body
        classes = [node for node in body if isinstance(node, ast.ClassDef)]
        if name is not None:
            return next((one for one in classes if one.name == name), None)
        chosen = any(isinstance(node, ast.Assign) and _named(node.targets[0]) == "plugin" for node in body)
        public = [one for one in classes if not one.name.startswith("_")]
        return public[0] if len(public) == 1 and not chosen else None

    def fields(self, module: Module, cls: ast.ClassDef) -> dict[str, tuple[Any, Any] | None] | None:
        found: dict[str, tuple[Any, Any] | None] = {}
        for base in reversed(cls.bases):
            inherited = self._inherited(module, base)
            if inherited is None:
                return None
            found |= inherited
        return found | dict(_own(cls))

    def _inherited(self, module: Module, base: ast.expr) -> dict[str, tuple[Any, Any] | None] | None:
        name = _named(base)
        for node in self._tree(module).body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return self.fields(module, node)
            if isinstance(node, ast.ImportFrom):
                asked = next((one.name for one in node.names if name == (one.asname or one.name)), None)
                if asked is None:
                    continue
                if (node.level, node.module, asked) == (0, "adbench", "Method"):
                    return {}
                where = self.modules.get(_absolute(node, module))
                there = self.class_called(where, asked) if where else None
                return self.fields(where, there) if where and there else None
        return None


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    """The name of the module that is imported from."""
    parts = module.package.split(".")
    above = parts[: len(parts) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def _own(cls: ast.ClassDef) -> Iterator[tuple[str, tuple[Any, Any] | None]]:
    """The fields that a class body declares: what is annotated, public and no class variable."""
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        outer = node.annotation.value if isinstance(node.annotation, ast.Subscript) else node.annotation
        if not name.startswith("_") and _named(outer) != "ClassVar":
            yield name, _typed(node.annotation, node.value)


def _typed(annotation: ast.expr, value: ast.expr | None) -> tuple[Any, Any] | None:
    """Type, default and bounds; None where the type is not told. A default is not checked, so that there is none."""
    words = {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}
    if not words <= TYPES.keys() or any(isinstance(node, ast.Call | ast.Attribute) for node in ast.walk(annotation)):
        return None
    kind = eval(compile(ast.Expression(annotation), "", "eval"), {"__builtins__": {}}, TYPES)
    bounds = {}
    for keyword in value.keywords if isinstance(value, ast.Call) else ():
        if keyword.arg in BOUNDS:
            try:
                bounds[keyword.arg] = ast.literal_eval(keyword.value)
            except ValueError:
                continue
    return kind, Field(None, **bounds)


def _named(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""
