"""The smallest real runs: digits, a CNN of width 4, one epoch on 64 images, two attacks on 16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyautoattack
import pytest
from click.testing import CliRunner, Result

from adbench.cli import main

SETTINGS = {
    "train.epochs": "1",
    "train.batch_size": "32",
    "train.attack_steps": "2",
    "train.val_steps": "2",
    "data.train_images": "64",
    "data.val_images": "16",
    "eval.images": "16",
    "eval.attacks": '["fgsm","pgd20"]',
    "eval.proxies": "[]",
    "eval.masking": "0",
}

TEACHER = """
summary = "trained for an epoch"
dataset = "digits"
architecture = "cnn-4"

[source]
kind = "train"
method = "pgd-at"

[source.train]
epochs = 1
batch_size = 32
attack_steps = 2
"""


PLUGIN = '''
from adbench import Method
from adbench.losses import cross_entropy


class Mine(Method):
    """Cross-entropy at the image itself."""

    label = "Mine, really"

    def attack(self, step):
        return step.x

    def loss(self, step, x_adv):
        return cross_entropy(step.student(x_adv), step.y)
'''


# What differs from run to run: times, hosts, and what is computed over them.
VARIABLE = (
    "seconds",
    "timing",
    "latency",
    "latency_runs",
    "provenance",
    "images_per_second",
    "peak_memory_bytes",
    "digest",
    "log_sha256",
)


def cli(*args: str | Path, env: dict[str, str] | None = None) -> Result:
    """One adbench command in this process. env: changes of its environment."""
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="adbench", env=env)


def options(**changed: str) -> list[str]:
    """The options of a tiny run; `changed` settings are written with __ for the dot."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changed.items()}
    return ["--student", "cnn-4", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]


def run(*args: str | Path, **changed: str) -> Result:
    """A tiny `adbench run`."""
    return cli("run", *options(**changed), *args)


def records(results: Path) -> dict[str, dict[str, Any]]:
    """The records below a folder by their path in it."""
    return {
        str(path.relative_to(results)): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.rglob("record.json"))
    }


def shorten_autoattack(patch: pytest.MonkeyPatch, iterations: int = 5) -> None:
    """The package's attacks with few iterations, in adbench and without it."""
    whole = pyautoattack.AutoAttack.__init__

    def built(self: Any, *args: Any, **options: Any) -> None:
        whole(self, *args, **options)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = iterations
        self.square.n_queries = 20 * iterations

    patch.setattr(pyautoattack.AutoAttack, "__init__", built)


def lasting(value: Any) -> Any:
    """What is the same in every run of a cell on one machine."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if key not in VARIABLE}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def record_of(results: Path, method: str) -> dict[str, Any]:
    """The one student's record of a method."""
    (found,) = (r for r in records(results).values() if r["method"] == method and r["kind"] == "student")
    return found


def family(folder: Path) -> Path:
    """A results folder with a teacher, two students of it and one of nobody, judged on 40 images, also by transfer.

    Trained long enough for PGD-20 to leave different networks different images.
    """
    teacher = folder / "tiny.toml"
    teacher.write_text(TEACHER.replace("epochs = 1", "epochs = 6"), encoding="utf-8")
    settings = {
        "train__epochs": "4",
        "data__train_images": "400",
        "eval__images": "40",
        "eval__attacks": '["pgd20"]',
        "eval__proxies": f'["{teacher}"]',
        "eval__transfer_attacks": '["pgd20"]',
        "threat__eps": "12/255",
    }
    result = run("--methods", "pgd-at,ard,smaraad", "--teacher", teacher, "--results", folder / "results", **settings)
    assert result.exit_code == 0, result.output
    return folder / "results"
