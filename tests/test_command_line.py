"""Any words at all on the command line: an answer or one sentence, and an exit code that scripts can rely on."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import click
import hypothesis
import pytest
from click.testing import CliRunner
from hypothesis import strategies as st
from tiny import TEACHER, run

from adbench.cli import COMMANDS, main
from adbench.execution import runner
from adbench.experiment.config import Data, Evaluation, Experiment, ThreatModel, Train
from adbench.registry import METHODS

EXAMPLES = int(os.environ.get("ADBENCH_CLI_EXAMPLES", "500"))
EXIT_CODES = (0, 1, 2, 130, 143)

ODD = (
    "",
    " ",
    ".",
    "~",
    "~nobody/x",
    "-",
    "--",
    "-1",
    "0",
    "1",
    "2",
    "1.5",
    "1e3",
    "1e999",
    "inf",
    "-inf",
    "nan",
    "1e-999999999",
    "9" * 20,
    "9" * 5000,
    "0/0",
    "8/255",
    "1/3",
    "true",
    "null",
    "[]",
    "{}",
    "[[]]",
    "[" * 2000,
    "a,b",
    ",",
    ",,",
    "=",
    "a=b",
    "a.b.c=1",
    "x.npz",
    "./x",
    "x.toml",
    "./x.toml",
    "cnn-4@x.pt",
    "robustbench:",
    "robustbench:x",
    "cnn-4@",
    "@",
    "@x",
    "a" * 300,
    "a/" * 2000,
    "é",
    "数据",
    "\x1b[31mred",
    "\u202eabc",
    "\ud800",
    "%s",
    "{0}",
    "'",
    '"',
    "\n",
    "\t=1+1",
    "*",
    "\\",
    "/dev/null",
    "/dev/full",
    "/dev/zero",
    "/etc/passwd",
    "/proc/self/mem",
    "loop",
    "fifo",
    "rslad",
    "pgd-at",
    "all",
    "digits",
    "cnn-4",
    "cnn-0",
    "wrn-9999999994-9999999",
    "tiny.toml",
    "results",
    "csv",
    "html",
    "cpu",
    "cuda",
    "cuda:99",
    "meta",
    "mps",
    "pgd20",
    "pgd0",
    "pgd20x0",
    "pgd20@2",
    "pgd20@1e-9",
    "aa",
    "fgsm@nan",
    "pgd9999",
    "train.epochs=3",
    "1979-05-27",
    "0x10",
    "1_000",
    "+1",
    "٣",
)
TABLES = {"train": Train, "data": Data, "threat": ThreatModel, "eval": Evaluation}
SETTINGS = (
    *(f"{table}.{name}" for table, model in TABLES.items() for name in model.model_fields),
    *(field.alias or name for name, field in Experiment.model_fields.items()),
    "hyper.rslad.alpha",
    "hyper.smaraad.gamma",
    "hyper.nobody.x",
    "train.epochs.x",
    "x",
    "override.x",
)
# What would train for minutes, fetch from the network or never end.
LEFT_OUT = {"--watch", "--verify", "--from", "--help", "--address", "--engine"}
HARMLESS = {
    "run": ("--dry-run",),
    "eval": ("--images", "4", "--aa-images", "1"),
    "report": ("--format", "csv"),
    "prepare": ("--dataset", "digits", "--teacher", "tiny.toml", "--methods", "pgd-at"),
}
# What "all" is slow with, and what makes a plan of an embedded dataset large.
SLOW = {"validate": {"all", "rslad", "pgd-at"}, "golden": set(), "cost": {"all"}, "run": {"all"}}


# Arguments that a command can work with, by the name of its parameter.
FITTING = {
    "checkpoint": "best.safetensors",
    "record_path": "record.json",
    "folders": "results",
    "method": "rslad",
    "what": "methods",
    "first": "pgd-at",
    "second": "record.json",
    "name": "mine",
    "file": "tiny.toml",
    "methods": "natural",
    "arch": "cnn-4",
    "out": "made",
    "into": "made",
    "attacks": "fgsm",
    "images": "4",
}


def line_of(seed: int) -> list[str]:
    """The command line that a number stands for: a command, up to four of its options, odd or fitting values."""
    draw = random.Random(seed)
    if draw.random() < 0.05:
        return draw.sample(ODD, draw.randrange(3))
    name = draw.choice([*COMMANDS, "run", "run", "run", "eval", "eval", "status", "cost"])
    command = main.get_command(click.Context(main), name)
    odd = [value for value in ODD if value not in SLOW.get(name, ())]

    def value(parameter: click.Parameter) -> str:
        if "--set" in parameter.opts:
            return f"{draw.choice(SETTINGS)}={draw.choice(odd)}"
        fitting = [*getattr(parameter.type, "choices", ())] or [FITTING.get(str(parameter.name), "1")]
        return draw.choice(fitting if draw.random() < 0.4 else odd)

    options = [p for p in command.params if isinstance(p, click.Option) and not LEFT_OUT & set(p.opts)]
    needed = [p for p in options if p.required and draw.random() < 0.9]
    some = {p.name: p for p in [*needed, *draw.sample(options, min(len(options), draw.randrange(4)))]}
    line = [name, *HARMLESS.get(name, ())]
    for option in some.values():
        line += [option.opts[0]] if option.is_flag else [option.opts[0], value(option)]
    for argument in (p for p in command.params if isinstance(p, click.Argument)):
        line += [value(argument) for _ in range(draw.randrange(3) if argument.nargs < 0 else argument.nargs)]
    return line


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one finished student, its teacher's file, a loop of links and a pipe."""
    folder = tmp_path_factory.mktemp("line")
    (folder / "tiny.toml").write_text(TEACHER, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "threads_per_job", lambda _: 1)
        assert run("--methods", "pgd-at", "--results", folder / "results").exit_code == 0
    for file in ("record.json", "best.safetensors"):
        shutil.copy(next((folder / "results").glob(f"**/{file}")), folder)
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "fifo")
    return folder


def test_no_command_line_ends_in_a_traceback(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", offline)
    monkeypatch.setattr(runner, "threads_per_job", lambda _: 1)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("HOME", str(tmp_path))
    work = tmp_path / "work"
    shutil.copytree(prepared, work, symlinks=True, ignore=shutil.ignore_patterns("fifo"))
    os.mkfifo(work / "fifo")
    monkeypatch.chdir(work)

    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.integers(0, 2**64).map(line_of))
    def answers(line: list[str]) -> None:
        METHODS._files.clear()
        METHODS._loaded.clear()
        result = CliRunner().invoke(main, line, prog_name="adbench")
        assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exc_info)
        assert result.exit_code in EXIT_CODES, (line, result.output)
        assert "Traceback" not in result.output, line
        if result.exit_code == 2:
            said = result.stderr.splitlines()
            assert said[-1].startswith("adbench: "), (line, said)

    answers()
