"""Several processes that share one training: the student of one process, and one end for all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import options, record_of, records
from torch import Tensor

from adbench.config import Train
from adbench.data import load
from adbench.errors import UserError
from adbench.matrix import configured
from adbench.method import Ball
from adbench.models import build
from adbench.ranks import ALONE, Ranks
from adbench.train import BEST, LAST, LOG, RESUME, SUMMARY, Trainer

METHODS = ("pgd-at", "trades", "las-at", "ard", "iad", "rslad", "mtard", "adaad", "smaraad", "smaraad-pp")
SHARED = [f"{name}/written" for name in METHODS] + ["smaraad/lean", "trades/parts", "rslad/moving"]
UNEQUAL = ["las-at/written", "mtard/written", "iad/written"]
"""What three ranks do, with parts of 10 and 11 images: methods with state, and one without."""
TOLERANCE = 1e-13
PATIENCE = 240
NAN = '''
from adbench.losses import cross_entropy
from adbench.method import Method


class Broken(Method):
    """Not a number from the fourth iteration on."""

    label = "Broken"

    def attack(self, step):
        return step.x

    def loss(self, step, x_adv):
        return cross_entropy(step.student(x_adv), step.y) * (float("nan") if step.iteration > 3 else 1)
'''


def torchrun(size: int, *words: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """A command in `size` processes, in a session of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.Popen(
        [*command, *map(str, words)], env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, cwd=cwd,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def adbench(*words: str | Path, **settings: str) -> subprocess.Popen[str]:
    """A tiny `adbench run` in two processes."""
    return torchrun(2, "-m", "adbench", "run", "--device", "cpu", *options(**settings), *words)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, said


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The trainings of tests/ranked.py, by the number of processes that shared each."""
    script, found = Path(__file__).with_name("ranked.py"), {}
    for size, wanted in ((1, SHARED), (2, SHARED), (3, UNEQUAL)):
        found[size] = tmp_path_factory.mktemp(f"ranks-{size}")
        code, said = ended(torchrun(size, script, found[size], *wanted))
        assert code == 0, said
    return found


def leaves(value: Any) -> list[float]:
    """All numbers in a value, in order."""
    if isinstance(value, dict):
        return [number for key in value for number in leaves(value[key])]
    if isinstance(value, list | tuple):
        return [number for item in value for number in leaves(item)]
    if isinstance(value, Tensor):
        return [float(number) for number in value.double().flatten()]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.slow
@pytest.mark.parametrize(("size", "name"), [*((2, name) for name in SHARED), *((3, name) for name in UNEQUAL)])
def test_a_student_is_the_same_however_many_devices_share_its_training(
    trainings: dict[int, Path], size: int, name: str
) -> None:
    """Weights, batch-norm statistics, the method's state and the log, but for rounding in float64."""
    method, way = name.split("/")
    alone = torch.load(trainings[1] / f"{method}-{way}-0.pt", weights_only=True)
    assert alone["devices"] == 1
    assert len(alone["log"]) == 2
    for rank in range(size):
        shared = torch.load(trainings[size] / f"{method}-{way}-{rank}.pt", weights_only=True)
        assert shared["devices"] == size
        for what in ("weights", "method", *(["log"] if rank == 0 else [])):
            assert leaves(shared[what]) == pytest.approx(leaves(alone[what]), rel=0, abs=TOLERANCE), what
        # One writes.
        assert shared["files"] == (sorted([BEST, LAST, LOG, SUMMARY]) if rank == 0 else [])


def test_only_noise_tells_ranks_apart() -> None:
    """Two of a size have streams of their own, and the first has the stream of one that is alone."""
    assert (ALONE.own, ALONE.part(5)) == ((), (slice(0, 5), 5))
    second, third = Ranks(), Ranks()
    for rank, ranks in ((1, second), (2, third)):
        ranks.rank, ranks.size = rank, 3
    assert (second.own, third.own) == ((1,), (2,))
    assert [(ranks.part(11), ranks.part(2)) for ranks in (second, third)] == [
        ((slice(3, 7), 11), (slice(0, 2), 6)),
        ((slice(7, 11), 11), (slice(0, 2), 6)),
    ]


@pytest.mark.parametrize(
    ("size", "changed", "says"), [(2, {"compile": True}, "train.compile"), (5, {"batch_size": 4}, "batches of 4")]
)
def test_what_ranks_cannot_do_is_said_at_once(tmp_path: Path, size: int, changed: dict[str, Any], says: str) -> None:
    ranks = Ranks()
    ranks.size = size
    with pytest.raises(UserError, match=says):
        Trainer(
            method=configured("pgd-at", {}), student=build("cnn-4", classes=10, channels=1), teachers={},
            dataset=load("digits", tmp_path, train_images=16, val_images=4, test_images=4), seed=0,
            attack=Ball(0.1, 0.03, 1), validation=Ball(0.1, 0.03, 1), config=Train(**changed), folder=tmp_path,
            device=torch.device("cpu"), ranks=ranks,
        )  # fmt: skip


@pytest.mark.slow
def test_a_run_by_torchrun_records_its_cells_and_outlives_one_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(NAN, encoding="utf-8")
    words = ("--plugin", broken, "--methods", "broken,mtard", "--results", tmp_path)
    code, said = ended(adbench(*words, train__epochs="3"))
    assert code == 1, said
    assert "1 of" in said
    failed, done = record_of(tmp_path, "broken"), record_of(tmp_path, "mtard")
    assert failed["status"] == "failed"
    assert "loss is nan in epoch 2" in failed["error"]["message"]
    assert done["training"]["devices"] == 2
    assert done["provenance"]["device"].startswith("2 x ")
    # Its teachers were trained by both as well.
    assert {found["status"] for found in records(tmp_path).values() if found["method"] != "broken"} == {"done"}
    assert len(list(tmp_path.rglob("failure*.pt"))) == 2, "a batch has two parts"


def shared(results: Path) -> subprocess.Popen[str]:
    """Twelve epochs of a method with state, in two processes."""
    words = ("--methods", "las-at", "--set", "hyper.las-at.policy=cnn-4", "--set", "hyper.las-at.interval=2")
    return adbench(*words, "--results", results, train__epochs="12")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("undisturbed")
    code, said = ended(shared(results))
    assert code == 0, said
    return results


def _ranks(process: subprocess.Popen[str]) -> dict[str, int]:
    """The processes that torchrun started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    found = {}
    for child in children:
        names = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        found |= {name.removeprefix("RANK="): int(child) for name in names if name.startswith("RANK=")}
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("rank", [None, "1"])
def test_a_shared_training_goes_on_from_its_last_whole_epoch(
    tmp_path: Path, undisturbed: Path, rank: str | None
) -> None:
    """After SIGTERM to all of it, or SIGKILL to one process; it ends in the bits of one that nobody disturbed."""
    first = shared(tmp_path)
    until = time.monotonic() + PATIENCE
    while not list(tmp_path.rglob(RESUME)) and time.monotonic() < until:
        time.sleep(0.02)
    if rank is None:
        first.terminate()
    else:
        os.kill(_ranks(first)[rank], signal.SIGKILL)
    code, said = ended(first)
    assert code != 0, said
    assert not records(tmp_path), "that a process is gone is no failure of the cell"
    code, said = ended(shared(tmp_path))
    assert code == 0, said
    ends = [load_file(next(folder.rglob(LAST))) for folder in (undisturbed, tmp_path)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    epochs = [json.loads(line)["epoch"] for line in next(tmp_path.rglob(LOG)).read_text(encoding="utf-8").splitlines()]
    assert epochs == list(range(1, 13))


@pytest.mark.parametrize("words", [("--jobs", "2"), ("--timeout", "1h"), ("--engine", "ray")])
def test_torchrun_refuses_what_starts_processes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    from tiny import run

    for name, value in (("TORCHELASTIC_RUN_ID", "1"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    found = run("--methods", "pgd-at", "--results", tmp_path, "--device", "cpu", *words)
    assert found.exit_code == 2
    assert "torchrun" in found.output
