"""The settings of an experiment by their keys: what there is, and those with several values, which make a cell each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from pydantic import BaseModel

from adbench.errors import UserError
from adbench.experiment.config import Experiment, Section, experiment, merged
from adbench.experiment.declared import field_model
from adbench.registry import METHODS

SWEPT = ("train", "data", "threat", "eval", "hyper", "budget")
"""Where settings stand of which several values can be given."""


class Key(NamedTuple):
    """A setting: as `--set` takes it, its default, what it may be, and what it is."""

    key: str
    default: str
    bounds: str
    says: str


def keys(model: type[BaseModel] = Experiment, prefix: str = "") -> Iterator[Key]:
    """Every setting, in the order of its table. Hyperparameters are their methods', which `adbench info` lists."""
    schema = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        key = field.alias or name
        kind = field.annotation
        if key == "hyper" and model is Experiment:
            yield Key("hyper.METHOD.NAME", "the method's", "adbench info METHOD", field.description or "")
        elif isinstance(kind, type) and issubclass(kind, Section):
            yield from keys(kind, f"{prefix}{key}.")
        else:
            default = field.get_default(call_default_factory=True)
            yield Key(f"{prefix}{key}", _written(default), _bounds(schema[key]), field.description or "")


def _written(value: Any) -> str:
    """A default as TOML has it; none where it has no word."""
    return "none" if value is None else json.dumps(value)


def _bounds(schema: Mapping[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_bounds(one) for one in schema["anyOf"] if one.get("type") != "null")
    if choices := schema.get("enum"):
        return " | ".join(map(str, choices))
    kind = schema.get("type")
    if kind == "array":
        if parts := schema.get("prefixItems"):
            return f"[{', '.join(map(_bounds, parts))}]"
        items = schema.get("items", {})
        return f"list of {_bounds(items)}" if items else "list"
    if kind in ("integer", "number"):
        words = "whole number" if kind == "integer" else "number"
        if "minimum" in schema and "maximum" in schema:
            return f"{words} {schema['minimum']:,} to {schema['maximum']:,}"
        signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
        limits = [f"{sign} {schema[name]:,}" for name, sign in signs.items() if name in schema]
        return f"{words} {', '.join(limits)}".rstrip()
    if kind == "string":
        return str(schema.get("format", "text"))
    return {"boolean": "true | false", "object": "table"}.get(str(kind), "tables" if "$ref" in schema else "any")


def swept(layer: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """A layer of settings without those that have a list where one value belongs, and these lists by their keys.

    Of a setting that is a list itself, a list of such lists has several values.
    """
    rest: dict[str, Any] = dict(layer)
    found: dict[str, list[Any]] = {}
    for name in SWEPT:
        if name in layer:
            rest[name] = _without_lists(layer[name], name, found)
            if name in found:
                del rest[name]
    return rest, found


def _without_lists(value: Any, key: str, found: dict[str, list[Any]]) -> Any:
    if isinstance(value, Mapping):
        inner = {name: _without_lists(part, f"{key}.{name}", found) for name, part in value.items()}
        return {name: part for name, part in inner.items() if f"{key}.{name}" not in found}
    if isinstance(value, list) and _several(key, value):
        found[key] = value
    return value


def _several(key: str, value: list[Any]) -> bool:
    """Whether a list under `key` is several values; of a setting that is not known it is one, which will be refused."""
    schema = _schema(key)
    if schema is None:
        return False
    if (items := _items(schema)) is not None:
        return bool(value) and all(_is_list(item, items) for item in value)
    return schema.get("type") != "object"


def _items(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of a list's items; None where no list is meant."""
    lists = (one for one in (schema, *schema.get("anyOf", ())) if one.get("type") == "array")
    return next((one.get("items", {}) for one in lists), None)


def _is_list(value: Any, items: Mapping[str, Any]) -> bool:
    """Whether a value is a list of such items, as deep as they are."""
    inner = _items(items)
    return isinstance(value, list) and (inner is None or all(_is_list(part, inner) for part in value))


def _schema(key: str) -> dict[str, Any] | None:
    """The JSON schema of a setting; None where there is none of this key."""
    model: type[BaseModel] = Experiment
    parts = key.split(".")
    if parts[0] == "hyper":
        if len(parts) != 3 or parts[1] not in METHODS:
            return None
        model, parts = field_model(parts[1], parts[2]) or METHODS.load(parts[1]), parts[2:]
    for part in parts[:-1]:
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        inner = fields.get(part)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        model = inner
    found: dict[str, Any] | None = model.model_json_schema()["properties"].get(parts[-1])
    return found


def variants(whole: Experiment) -> list[Experiment]:
    """The experiments that an experiment is: one for each combination of the values in `sweep`.

    A value wins over every layer and every [[override]]. Raises UserError for a value that its setting cannot have.
    """
    if not whole.sweep:
        return [whole]
    base = {key: value for key, value in whole.model_dump(exclude_unset=True, by_alias=True).items() if key != "sweep"}
    found = []
    for values in product(*whole.sweep.values()):
        chosen: dict[str, Any] = {}
        for key, value in zip(whole.sweep, values, strict=True):
            chosen = merged(chosen, _nested(key, value))
        for table in ("train", "hyper"):
            if not isinstance(chosen.get(table, {}), Mapping):
                raise UserError(f"sweep: '{table}' is a table; give values of one of its settings, as {table}.NAME")
        settings = merged(base, chosen)
        if "epochs" in chosen.get("train", {}) and "budget" not in chosen:
            settings.pop("budget", None)
        settings["override"] = [_yielding(rule, chosen) for rule in base.get("override", ())]
        found.append(experiment(settings))
    return found


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    if not isinstance(value, dict):
        raise UserError(f"sweep: '{key}' is no setting")
    return value


def _yielding(rule: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """An [[override]] without what a sweep sets for all methods; to a method's own hyperparameters it yields anyway."""
    train = {key: value for key, value in rule.get("train", {}).items() if key not in chosen.get("train", {})}
    return {**rule, "train": train}
