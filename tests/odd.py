"""Documents with odd content and a right digest, through every command: named, left out, counted, or harmless.

    python tests/odd.py --contents 100 --seed 0

Of a results folder with students, a teacher, a matrix and attribution maps one value of one document is replaced, or
left out, as a foreign tool or a hand would; then the commands run on it. None may end in a traceback or another exit
code than 0, 1 and 2, and a document that cannot be read is named by every command that reads it, with exit code 1 or 2.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tiny import TEACHER, cli, options

from adbench.errors import UserError
from adbench.results import analyses, document, plans, record, summary

VALUES: tuple[Any, ...] = (
    None,
    True,
    "x",
    "",
    "\0",
    "\x1b[31m",
    "x" * 5000,
    -1,
    -0.5,
    7.0,
    1e308,
    2**62,
    2**70,
    [],
    ["x"],
    {},
    {"x": 1},
    [[]],
    [None],
    0,
    "9" * 40,
    "8/0",
    "inf",
    "a/b/c",
    "../x",
)

FILES = {
    "student's record": ("digits/ard/*/*/*/record.json", record.read),
    "teacher's record": ("digits/teachers/*/*/record.json", record.read),
    "cross.json": ("digits/cross/*/cross.json", lambda path: analyses.read(path, analyses.Cross)),
    "cam.json": ("digits/cam/*/cam.json", lambda path: analyses.read(path, analyses.Cam)),
    "plan": ("plans/*.json", plans.read),
    "training.json": ("digits/ard/*/*/training.json", lambda path: summary.finished(path.parent)),
    "cell.json": ("digits/ard/*/*/cell.json", None),
    "log.jsonl": ("digits/ard/*/*/log.jsonl", None),
}
"""Where a document lies in the results, and what reads it: raises UserError for one that cannot be used."""

NAMING = {
    "student's record": ("results", "report", "compare", "merge", "verify", "cross", "cam", "export"),
    "teacher's record": ("results", "report", "compare", "merge", "verify", "cross", "cam"),
    "cross.json": ("report", "merge", "cross"),
    "cam.json": ("report", "merge", "cam"),
    "plan": ("status", "merge"),
    "training.json": ("verify",),
}
"""The commands that read a document, and so have to name one that they cannot use."""


def words(*more: str) -> list[str]:
    return [*options(eval__masking="4"), *more]


def make(folder: Path) -> Path:
    """The results with every kind of document; the teacher's file lies beside them."""
    (folder / "tiny.toml").write_text(TEACHER, encoding="utf-8")
    results = folder / "results"
    for line in (
        ("run", "--methods", "pgd-at,ard", "--teacher", folder / "tiny.toml", "--keep-adversarial", *words()),
        ("cross", "--images", "8"),
        ("cam", "--images", "8"),
    ):
        result = cli(*line, "--results", results)
        assert result.exit_code == 0, result.output
    return results


def commands(results: Path, out: Path) -> dict[str, tuple[Any, ...]]:
    """Command lines by the name of their command."""
    (judged,) = results.glob("digits/ard/*/*/eval-*")
    asked = ("--methods", "pgd-at,ard", "--teacher", results.parent / "tiny.toml", "--keep-adversarial", *words())
    return {
        "status": ("status", "--results", results),
        "results": ("results", "--results", results),
        "report": ("report", "--results", results, "--out", out / "report", "--format", "csv,markdown,figures"),
        "compare": ("compare", "pgd-at", "ard", "--results", results),
        "merge": ("merge", results, "--into", out / "merged"),
        "verify": ("verify", results, "--again", "4"),
        "cross": ("cross", "--results", results, "--images", "8"),
        "cam": ("cam", "--results", results, "--images", "8"),
        "export": ("export", judged, "--out", out / "shared"),
        "run": ("run", *asked, "--results", results),
    }


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in a document, of tables and lists too."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*where, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*where, key))


def changed(data: Any, where: tuple[Any, ...], value: Any, drop: bool) -> Any:
    """A copy with another value at a place, or with none."""
    found = copy.deepcopy(data)
    holder = found
    for key in where[:-1]:
        holder = holder[key]
    if drop:
        del holder[where[-1]]
    else:
        holder[where[-1]] = value
    return found


def write(path: Path, data: Any) -> None:
    """The document with a right digest; of a log its line, whose hash the record then has."""
    if path.suffix != ".jsonl":
        document.write(path, data)
        return
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")
    (judged,) = path.parent.glob("eval-*/record.json")
    found = document.opened(judged)
    found["training"]["log_sha256"] = document.files.sha256(path)
    record.write(judged, found)


def try_out(
    results: Path, kind: str, draw: random.Random, only: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, int]]:
    """Change one value of a document of that kind, and run the commands: the name of each, and its exit code.

    Raises AssertionError where one ends otherwise than it may.
    """
    pattern, read = FILES[kind]
    (path,) = (found.relative_to(results) for found in results.glob(pattern))
    text = (results / path).read_text(encoding="utf-8")
    data = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
    data.pop(document.DIGEST, None)
    where, value = draw.choice(list(places(data))), draw.choice(VALUES)
    drop = draw.random() < 0.15 and isinstance(where[-1], str)
    odd = f"{kind}: {'.'.join(map(str, where))} {'left out' if drop else repr(value)[:40]}"
    for name in commands(results, results):
        if not only(name):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            work = Path(temporary)
            shutil.copytree(results, work / "results")
            shutil.copy(results.parent / "tiny.toml", work)
            write(work / "results" / path, changed(data, where, value, drop))
            unusable = False
            if read is not None:
                try:
                    read(work / "results" / path)
                except UserError:
                    unusable = True
            result = cli(*commands(work / "results", work)[name])
            crashed = result.exception is not None and not isinstance(result.exception, SystemExit)
            assert not crashed, (odd, name, result.exc_info)
            assert result.exit_code in (0, 1, 2), (odd, name, result.output)
            if unusable and name in NAMING.get(kind, ()):
                assert result.exit_code in (1, 2), (odd, name, result.output)
                assert path.name in result.output, (odd, name, result.output)
            yield name, result.exit_code


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--contents", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seen = Counter[tuple[str, int]]()
    with tempfile.TemporaryDirectory() as folder:
        made = make(Path(folder))
        for number in range(arguments.contents):
            seen.update(try_out(made, list(FILES)[number % len(FILES)], random.Random(f"{arguments.seed} {number}")))
    for name in dict.fromkeys(name for name, _ in seen):
        codes = ", ".join(f"{seen[name, code]} times exit code {code}" for code in (0, 1, 2) if seen[name, code])
        print(f"{name:8} {codes}")
