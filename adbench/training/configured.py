"""The registered methods, with their hyperparameters and what they declare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from adbench.errors import UserError
from adbench.experiment.config import Train, validated
from adbench.registry import METHODS
from adbench.training.method import Method, Passes
from adbench.training.step import SELECTIONS

T = TypeVar("T")


def configured(name: str, hyper: dict[str, Any]) -> Method:
    """The method `name` with its hyperparameters. Raises UserError that lists those that are wrong."""
    cls = METHODS.load(name)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"method '{name}' ({METHODS.source(name)}) is not a subclass of adbench.Method")
    for part in ("attack", "loss"):
        if getattr(cls, part) is getattr(Method, part):
            raise UserError(f"method '{name}' ({METHODS.source(name)}) does not implement `{part}`")
    method = validated(cls, hyper, f"hyper.{name}")
    # Of the method and not of its class: where it is around another one, it may follow that one.
    if not isinstance(getattr(method, "label", None), str):
        raise UserError(f"method '{name}' ({METHODS.source(name)}) has no `label`, the name that tables print")
    if method.selects not in SELECTIONS:
        raise UserError(
            f"method '{name}' ({METHODS.source(name)}) selects by {method.selects!r}; known are {', '.join(SELECTIONS)}"
        )
    return method


def passes(method: Method, name: str, steps: int) -> Passes:
    """The cost that the method declares. Raises UserError where a plugin's declaration fails."""
    cost = declared(name, "passes", lambda: method.passes(steps))
    if not isinstance(cost, Passes) or cost.total <= 0:
        raise UserError(f"method '{name}': passes() gave {cost!r}, expected Passes with something to count")
    return cost


def training_passes(method: Method, name: str, train: Train) -> Passes:
    """The mean cost of an iteration over a training: the method's, and that of a rehearsal where there is one."""
    cost = passes(method, name, train.attack_steps)
    if not train.awp:
        return cost
    outer = declared(name, "outer", lambda: method.outer(train.attack_steps))
    share = 1 - train.awp_start
    return replace(cost, student=cost.student + share * outer.student, own=cost.own + share * outer.own)


def check_fits(method: Method, name: str, train: Train) -> None:
    """Raise UserError for a recipe that a method cannot be trained by."""
    if train.micro_batch and not method.divisible:
        raise UserError(f"train.micro_batch: '{name}' needs its batches whole; unset it for this method")
    if train.awp and not method.rehearsable:
        raise UserError(
            f"train.awp: '{name}' keeps state, and does not declare that its loss may be rehearsed (`rehearses`); "
            "unset it for this method"
        )


def declared(name: str, what: str, of: Callable[[], T]) -> T:
    """What a plugin's declaration gives. Raises UserError where it fails."""
    try:
        return of()
    except (Exception, SystemExit) as error:
        raise UserError(f"method '{name}': {what}() raised {type(error).__name__}: {error}") from error
