"""JSON that adbench reads is held to its schema: odd content is one sentence that names file and field."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from synthetic import add

from adbench.errors import UserError
from adbench.results import analyses, document, fields, plans, record, tuning
from adbench.system.files import content_id

ODD: tuple[Any, ...] = (None, True, "x", "", -1, -0.5, 7.0, 2**63, [], ["x"], {}, {"x": 1}, [[]], 0, "9" * 40)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return add(tmp_path, teacher="t", metrics={"clean": 0.9, "pgd20": 0.5}, per_class=True)


def leaves(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a document, of tables and lists too."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*where, key)
        if isinstance(inner, dict | list):
            yield from leaves(inner, (*where, key))


def put(data: Any, where: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(data)
    holder = changed
    for key in where[:-1]:
        holder = holder[key]
    holder[where[-1]] = value
    return changed


def refusal(path: Path) -> str:
    try:
        record.read(path)
    except UserError as error:
        return str(error)
    return ""


PUBLISHED = {
    "record": record.Record,
    "plan": plans.Plan,
    "cross": analyses.Cross,
    "cam": analyses.Cam,
    "log": fields.Log,
    "tuning": tuning.Tuning,
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_schemas_are_those_of_the_types(kind: str) -> None:
    schema = json.loads((Path(document.__file__).parent / f"{kind}.schema.json").read_text(encoding="utf-8"))
    assert schema == document.schema(PUBLISHED[kind]), f"write it again with `python {__file__}`"


@pytest.mark.parametrize("digest", [True, False])
def test_an_odd_value_is_refused_by_name_or_read_as_it_stands(digest: bool, path: Path) -> None:
    data = document.opened(path)
    places = sorted(leaves(data), key=str)
    refused = 0
    for where in random.Random(0).sample(places, 50):
        for value in random.Random(str(where)).sample(ODD, 4):
            changed = put(data, where, value)
            path.write_text(json.dumps(changed | ({"digest": content_id(changed)} if digest else {})), encoding="utf-8")
            if said := refusal(path):
                assert str(path) in said, where
                assert str(where[0]) in said, where
                refused += 1
            else:
                found = taken(asdict(record.read(path)), where)
                assert (found, isinstance(found, bool)) == (value, isinstance(value, bool)), where
    assert refused > 100


def taken(data: Any, where: tuple[Any, ...]) -> Any:
    for key in where:
        data = data[key]
    return data


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("seed",), "0"),
        (("seed",), 2**63),
        (("metrics",), None),
        (("model",), None),
        (("status",), "finished"),
        (("metrics", "pgd20", "value"), 7.0),
        (("metrics", "pgd20", "value"), -0.5),
        (("schema_version",), True),
        (("metrics", "pgd20", "value"), 0.75),
        (("metrics", "pgd20", "correct"), 2000),
        (("timing", "train"), "1 s"),
        (("metrics", "pgd20", "attack", "eps"), "1/0"),
        (("config", "training"), None),
        (("surplus",), 1),
    ],
)
def test_the_field_that_is_wrong_is_named(where: tuple[str, ...], value: Any, path: Path) -> None:
    document.write(path, put(document.opened(path), where, value))
    with pytest.raises(UserError) as told:
        record.read(path)
    assert f"'{path}'" in str(told.value)
    field = "schema version" if where == ("schema_version",) else ".".join(where).replace(".correct", ".value")
    assert field in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 1000 + "1" + "}" * 1000,
        '{"status": NaN}',
        '{"a": 1e999}',
        '{"a": Infinity}',
        '{"a": "\\ud800"}',
        '{"a": ' + "1" * 5000 + "}",
        "\ufeff{}",
        "",
        "null",
        "[]",
        '"x"',
        "7",
    ],
)
def test_json_that_python_alone_would_take_is_one_sentence(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"record\.json"):
        record.read(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "gone"])
def test_what_is_no_file_is_not_waited_for(kind: str, path: Path) -> None:
    path.unlink()
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
    with pytest.raises(UserError, match=r"record\.json"):
        record.read(path)


def test_records_that_cannot_be_read_are_left_out_and_told(tmp_path: Path) -> None:
    whole, damaged = (add(tmp_path, seed=seed, metrics={"clean": 0.9}) for seed in (0, 1))
    damaged.write_text(json.dumps(document.opened(damaged) | {"seed": "one"}), encoding="utf-8")
    left_out: list[str] = []
    assert [found.path for found in record.read_all(tmp_path, left_out.append)] == [whole]
    assert len(left_out) == 1
    assert f"'{damaged}'" in left_out[0]
    assert "seed" in left_out[0]
    with pytest.raises(UserError, match="seed"):
        list(record.read_all(tmp_path))


if __name__ == "__main__":
    for kind, of in PUBLISHED.items():
        file = Path(document.__file__).parent / f"{kind}.schema.json"
        file.write_text(json.dumps(document.schema(of), indent=1) + "\n", encoding="utf-8")
