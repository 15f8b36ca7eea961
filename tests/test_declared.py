"""What a method's source says of its hyperparameters, against the method itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adbench import plugin_code
from adbench.errors import UserError
from adbench.experiment import declared
from adbench.registry import METHODS
from adbench.system import machine

BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "type", "anyOf")


@pytest.mark.parametrize("name", METHODS.names())
def test_a_source_states_what_the_method_has(name: str) -> None:
    fields, cls = declared.stated(name), METHODS.load(name)
    assert fields is not None
    assert fields.keys() == cls.model_fields.keys()
    schema = cls.model_json_schema()["properties"]
    for field, told in fields.items():
        if told:
            model = declared.field_model(name, field)
            assert model is not None
            own = model.model_json_schema()["properties"][field]
            assert {key: own.get(key) for key in BOUNDS} == {key: schema[field].get(key) for key in BOUNDS}, field


def test_most_hyperparameters_are_told_with_their_types() -> None:
    told = [field for name in METHODS.names() for field in (declared.stated(name) or {}).values()]
    assert sum(field is not None for field in told) > 0.6 * len(told)


HELPER = """
from adbench import Method, hyper

class Base(Method):
    weight: float = hyper(1.0, ge=0, doc="weight")
    def attack(self, step): return step.x
    def loss(self, step, x_adv): return step.student(x_adv).sum(1)
"""
INHERITED = """
import helper_of_mine
from helper_of_mine import Base
from adbench import hyper

class Mine(Base):
    label = "Mine"
    share: float | None = hyper(None, le=1 / 2, doc="share")
    how: "str" = "a"
    _private: int = 3
"""
LAST = """
from adbench import Method as M, hyper

class Other(M):
    label = "Other"
    one: int = hyper(1, doc="one")
    def attack(self, step): return step.x
    def loss(self, step, x_adv): return step.student(x_adv).sum(1)

class Mine(Other):
    two: int = hyper(2, ge=2, doc="two")

plugin = Mine
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_files", dict(METHODS._files))
    (tmp_path / "helper_of_mine.py").write_text(HELPER, encoding="utf-8")
    for name, text in (("inherited", INHERITED), ("last", LAST), ("broken", "class Mine(Method:\n")):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        METHODS.add_file(tmp_path / f"{name}.py")


@pytest.mark.usefixtures("plugins")
def test_what_a_base_in_another_file_declares_counts() -> None:
    fields = declared.stated("inherited")
    assert fields is not None
    assert list(fields) == ["weight", "share", "how"]
    declared.check("inherited", {"weight": 2, "share": 7})  # a bound that is computed is the method's own matter
    with pytest.raises(UserError, match=r"hyper\.inherited: unknown key 'wieght'; did you mean 'weight'"):
        declared.check("inherited", {"wieght": 2})
    with pytest.raises(UserError, match=r"hyper\.inherited: weight = -1: input should be greater"):
        declared.check("inherited", {"weight": -1})


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("name", ["last", "broken"])
def test_where_the_source_does_not_tell_the_method_is_asked(name: str) -> None:
    assert declared.stated(name) is None
    declared.check(name, {"anything": 1})
    assert declared.field_model(name, "two") is None


HEAD = """
from typing import Annotated, ClassVar, Optional
from pydantic import ConfigDict, Field, field_validator
from adbench import ATTACK_BN, Method, Mode, hyper
"""
ODD = {
    "early": """
    radius: float = hyper(0.1, doc="radius")
    @field_validator("radius", mode="before")
    @classmethod
    def _fraction(cls, value): return value
""",
    "alias": '    lambda_: float = hyper(1.0, alias="lambda", doc="weight")',
    "noted": '    lambda_: Annotated[float, Field(alias="lambda")] = 1.0',
    "branch": "    if True:\n        one: int = 1",
    "extra": '    model_config = ConfigDict(extra="allow")',
    "typed-extra": '    model_config: ClassVar = ConfigDict(extra="allow")',
    "made": "    one: float = make(1.0)",
    "named": "    one: float = ONE",
}
"""Bodies of classes that take more than their fields say."""


@pytest.mark.parametrize("name", ODD)
def test_a_method_that_is_written_otherwise_is_asked_itself(name: str, tmp_path: Path) -> None:
    assert source(tmp_path, f"class Mine(Method):\n{ODD[name]}\n") is None


@pytest.mark.parametrize(
    "text",
    [
        "class Mine(Method):\n    pass\nplugin: type = Mine",
        "class Mine(Method):\n    pass\na = plugin = Mine",
        "class Mine(Method):\n    pass\nfrom elsewhere import Theirs as plugin",
        "class Mine(Method):\n    one: int = 1\nclass Mine(Method):\n    two: int = 2",
        "class Mine:\n    one: int = 1",
        "class Mine(Method, extra='allow'):\n    one: int = 1",
        "@changed\nclass Mine(Method):\n    one: int = 1",
        "class Mine(Mine):\n    one: int = 1",
        "Mine = Method\nclass Mine(Mine):\n    one: int = 1",
        "try:\n    from x import A\nexcept ImportError:\n    from y import A\nclass Mine(A):\n    one: int = 1",
        "import adbench\nclass Mine(adbench.Method):\n    one: int = 1",
        "from elsewhere import Theirs\nclass Mine(Theirs):\n    one: int = 1",
    ],
)
def test_where_it_is_not_plain_which_class_it_is_the_method_is_asked(text: str, tmp_path: Path) -> None:
    assert source(tmp_path, text) is None


def test_types_that_are_not_understood_are_left_to_the_method(tmp_path: Path) -> None:
    body = """
    one: "Mode" = hyper(Mode.EVAL, doc="one")
    two: Optional[float] = hyper(None, doc="two")
    three: "Mode | None" = None
    four: Mode | None = None
    attack_bn: Mode = ATTACK_BN
    five: list[float] = [1.0]
    kind: ClassVar[int] = 3
    label = "Mine"
"""
    found = source(tmp_path, f"class Mine(Method):\n{body}")
    assert found is not None
    assert [name for name, told in found.items() if told] == ["five"]
    assert list(found) == ["one", "two", "three", "four", "attack_bn", "five"]


def source(folder: Path, text: str) -> declared.FieldsOf | None:
    """What is stated by a plugin file of that text."""
    path = folder / "mine.py"
    path.write_text(HEAD + text, encoding="utf-8")
    return declared._stated(plugin_code.read(path), None, "mine")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is asked")
def test_a_gpu_without_a_driver_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.may_have("cpu")
    assert not machine.may_have("mps")
    monkeypatch.setattr(machine, "_loads", lambda library: library == "libcuda.so.1")
    assert machine.may_have("cuda:3")
    monkeypatch.setattr(machine, "_loads", lambda _: False)
    assert machine.may_have("cuda") == any(Path(driver).exists() for driver in machine.DRIVERS)
    script = "import torch; print(torch.cuda.is_available())"
    found = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    monkeypatch.undo()
    assert machine.may_have("cuda") or found.strip() == "False"
