"""Several processes that share one training: the student of one process, and one end for all of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forked
import pytest
import ranked
import torch
import torch.distributed as dist
import torch.nn.functional as F
from adbench.methods.pgd_at import PGDAT
from safetensors.torch import load_file
from tiny import PLUGIN, options, record_of, records
from torch import Tensor

from adbench.errors import UserError
from adbench.experiment.config import Train
from adbench.results.layout import BEST, LAST, LOG, SUMMARY
from adbench.training import distributed as ranks_module
from adbench.training.configured import configured
from adbench.training.distributed import ALONE, ENDED, Parted, Ranks
from adbench.training.resume import Epoch
from adbench.training.trainer import Trainer, check_sharing

METHODS = ("pgd-at", "trades", "las-at", "ard", "iad", "rslad", "mtard", "adaad", "smaraad", "smaraad-pp")
SHARED = [f"{name}/written" for name in METHODS] + ["smaraad/lean", "trades/parts", "rslad/moving"]
SHARED += ["mtard/perturbed", "trades/restored", "trades/mixed"]
SHARED += [
    "ciard/written",
    "ciard/perturbed",
    "lbgat/parts",
    "peeraid/written",
    "adr/perturbed",
    "fair/written",
    "absld/written",
]
UNEQUAL = ["las-at/written", "mtard/written", "iad/written", "ciard/written", "peeraid/written"]
"""What three ranks do, with parts of 10 and 11 images: methods with state, and one without."""
TOLERANCE = 1e-12
PATIENCE = 240
NAN = PLUGIN.replace(
    "return cross_entropy(step.student(x_adv), step.y)",
    "wrong = step.iteration > 3 and step.ranks.rank == 1\n"
    "        return cross_entropy(step.student(x_adv), step.y) * (float('nan') if wrong else 1)",
)
"""Not a number on one of two devices, from the fourth iteration on."""


def torchrun(*words: str | Path) -> tuple[int, str]:
    """The exit code of a command in two processes, and what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, *map(str, words)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE
    )
    return done.returncode, done.stdout


def ended(processes: list[BaseProcess]) -> list[int | None]:
    """Their exit codes. Those that take too long are killed."""
    until = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def trainings(size: int, out: Path, *wanted: str) -> dict[str, dict[str, Any]]:
    """What the trainings of tests/ranked.py leave, by the name of their file."""
    out.mkdir()
    said = out.with_suffix(".txt")
    assert ended(forked.ranks(size, ranked.main, out, wanted, said=said)) == [0] * size, said.read_text()
    return {path.stem: torch.load(path, weights_only=True) for path in out.iterdir()}


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
def test_a_student_is_the_same_however_many_devices_share_its_training(tmp_path: Path) -> None:
    """Weights, batch-norm statistics, the method's state and the log, but for rounding in float64."""
    alone = trainings(1, tmp_path / "alone", *SHARED)
    for size, wanted in ((2, SHARED), (3, UNEQUAL)):
        shared = trainings(size, tmp_path / str(size), *wanted)
        for name, rank in product(wanted, range(size)):
            stem = name.replace("/", "-")
            found, expected = shared[f"{stem}-{rank}"], alone[f"{stem}-0"]
            assert (found["devices"], expected["devices"], len(expected["log"])) == (size, 1, 2)
            for what in ("weights", "method", "parts", *(["log", "judged"] if rank == 0 else [])):
                told = f"{what} of {name}, rank {rank} of {size}"
                assert leaves(found[what]) == pytest.approx(leaves(expected[what]), rel=0, abs=TOLERANCE), told
            # One writes.
            assert found["files"] == (sorted([BEST, LAST, LOG, SUMMARY]) if rank == 0 else [])


def test_each_rank_has_noise_of_its_own_and_the_first_that_of_one_alone() -> None:
    """Also in an epoch that one process began alone, and several go on with."""
    device, name = torch.device("cpu"), (7, 2)
    begun = [Epoch.started(*name, device, stream) for stream in ((), (1,), (2,))]
    begun[0].batch = 3
    kept = begun[0].state(device)
    gone_on = [Epoch.restored(kept, *name, device, stream) for stream in ((), (1,), (2,))]
    draws = [torch.rand(4, generator=epoch.noise) for epoch in (*begun, *gone_on)]
    assert [torch.equal(a, b) for a, b in zip(draws[:3], draws[3:], strict=True)] == [True, True, True]
    assert len({tuple(draw.tolist()) for draw in draws}) == 3
    assert [epoch.batch for epoch in gone_on] == [3, 3, 3]


def test_sums_extremes_and_a_methods_own_networks_are_those_of_one_device(tmp_path: Path) -> None:
    """Also with a batch that has fewer images than there are devices, and is on each of them."""
    found, learnt = {}, {}
    for size in (1, 3):
        (out := tmp_path / str(size)).mkdir()
        said = out / "said.txt"
        assert ended(forked.ranks(size, ranked.counted, out, said=said)) == [0] * size, said.read_text()
        found[size] = [json.loads((out / f"{rank}.json").read_text()) for rank in range(size)]
        learnt[size] = [leaves(torch.load(out / f"{rank}.pt", weights_only=True)) for rank in range(size)]
    (alone,) = found[1]
    assert found[3] == [alone] * 3
    for weights in learnt[3]:
        assert weights == pytest.approx(learnt[1][0], rel=0, abs=TOLERANCE)
    assert [(row[0], row[1], sum(row[2:12])) for row in alone] == [(n, 6, 2 if n % 3 == 0 else 12) for n in range(1, 7)]
    assert all(0 <= low < high < 26 for *_, low, high in alone)


def test_a_batch_is_divided_as_equally_as_can_be() -> None:
    assert (ALONE.stream, ALONE.part(5)) == ((), (slice(0, 5), 5))
    second, third = Ranks(), Ranks()
    for rank, ranks in ((1, second), (2, third)):
        ranks.rank, ranks.size = rank, 3
    assert (second.stream, third.stream) == ((1,), (2,))
    assert [(ranks.part(11), ranks.part(2)) for ranks in (second, third)] == [
        ((slice(3, 7), 11), (slice(0, 2), 6)),
        ((slice(7, 11), 11), (slice(0, 2), 6)),
    ]


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (6, 3)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_batch_norm_of_one_rank_is_torchs(shape: tuple[int, ...], affine: bool, dtype: torch.dtype) -> None:
    """Values, running statistics, gradients, and the gradient of a gradient."""
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=draw, dtype=torch.float64).to(dtype)
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    weight, bias = (torch.rand(3, generator=draw, dtype=wide) if affine else None for _ in range(2))
    found = []
    own = F.batch_norm
    for context in (nullcontext(), ranks_module.Torchrun.whole_batch(None)):  # type: ignore[arg-type]
        mean, variance = torch.zeros(3, dtype=wide), torch.ones(3, dtype=wide)
        z = x.clone().requires_grad_()
        with context:
            assert F.batch_norm is own, "torch stays as it is"
            out = F.batch_norm(z, mean, variance, weight, bias, True, 0.1, 1e-5)
        assert (type(out.grad_fn).__name__ == "NativeBatchNormBackward0") is isinstance(context, nullcontext)
        assert out.dtype is dtype
        (first,) = torch.autograd.grad(out.double().pow(3).sum(), z, create_graph=True)
        (second,) = torch.autograd.grad(first.double().square().sum(), z)
        found.append([t.double() for t in (out, mean, variance, first, second)])
    tolerance = 1e-10 if dtype is torch.float64 else 0.05
    for theirs, mine in zip(*found, strict=True):
        assert (theirs - mine).norm() <= tolerance * theirs.norm()


def test_what_ranks_cannot_do_is_said_at_once() -> None:
    check_sharing(configured("pgd-at", {}), Train(batch_size=4), 4)
    for changed, key in (({"batch_size": 4}, "train.batch_size"), ({"micro_batch": 4}, "train.micro_batch")):
        with pytest.raises(UserError, match=f"5 devices cannot share 4 images.* {key}"):
            check_sharing(configured("pgd-at", {}), Train(**changed), 5)


@pytest.mark.parametrize(("shares", "works"), [(False, False), (True, True)])
def test_a_method_that_needs_its_batches_whole_has_to_say_that_it_can_share_them(shares: bool, works: bool) -> None:
    class Whole(PGDAT):
        divisible = False

    Whole.shares = shares
    check_sharing(Whole(), Train(), 1)
    with nullcontext() if works else pytest.raises(UserError, match="needs its batches whole"):
        check_sharing(Whole(), Train(), 2)


@pytest.mark.slow
def test_what_fails_on_one_rank_alone_is_told_by_all_and_ends_the_run(tmp_path: Path) -> None:
    codes = ended(forked.ranks(2, ranked.one_sided, tmp_path, said=tmp_path / "said.txt"))
    said = (tmp_path / "said.txt").read_text(encoding="utf-8")
    assert any(codes), said
    assert "[1] ValueError: no such luck" in said
    assert "[0] UserError: rank 1: no such luck" in said
    assert "begun:" not in said
    assert "another process of this training ended" in said


@pytest.mark.slow
def test_a_run_by_torchrun_records_its_cells_and_outlives_one_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(NAN, encoding="utf-8")
    words = ("--plugin", broken, "--methods", "broken,mtard", "--results", tmp_path)
    code, said = torchrun("-m", "adbench", "run", "--device", "cpu", *options(train__epochs="3"), *words)
    assert code == 1, said
    assert "1 of" in said
    failed, done = record_of(tmp_path, "broken"), record_of(tmp_path, "mtard")
    assert failed["status"] == "failed"
    # What was wrong on the second device, not what the first met of it.
    assert "loss is nan in epoch 2" in failed["error"]["message"]
    assert "losses: 16 of 16 examples" in failed["error"]["message"]
    assert "failure-1.pt" in failed["error"]["message"]
    assert done["training"]["devices"] == 2
    assert done["provenance"]["device"].startswith("2 x ")
    # Its teachers were trained by both as well.
    assert {found["status"] for found in records(tmp_path).values() if found["method"] != "broken"} == {"done"}
    assert len(list(tmp_path.rglob("failure*.pt"))) == 2, "a batch has two parts"


def shared(results: Path) -> list[BaseProcess]:
    """Twenty epochs of a method with state, in two processes."""
    words = ("--methods", "las-at", "--set", "hyper.las-at.policy=cnn-4", "--set", "hyper.las-at.interval=2")
    command = ["run", "--device", "cpu", *options(train__epochs="20"), *words, "--results", str(results)]
    return forked.ranks(2, forked.adbench, *command, said=results.with_suffix(".txt"))


def lines(results: Path) -> list[str]:
    """The log of the one training there."""
    return [line for log in results.rglob(LOG) for line in log.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_shared_training_goes_on_from_its_last_whole_epoch(tmp_path: Path) -> None:
    """After SIGTERM to all of it, and SIGKILL to one process; it ends in the bits of one that nobody disturbed."""
    undisturbed = tmp_path / "undisturbed"
    assert ended(shared(undisturbed)) == [0, 0]
    results = tmp_path / "disturbed"
    epochs: list[str] = []
    for how in (signal.SIGTERM, signal.SIGKILL):
        running = shared(results)
        until = time.monotonic() + PATIENCE
        while len(lines(results)) <= len(epochs):
            assert time.monotonic() < until, "no epoch was finished"
            time.sleep(0.02)
        if how is signal.SIGTERM:
            for process in running:
                process.terminate()
        else:
            running[1].kill()
        assert 0 not in ended(running)
        assert not records(results), "that a process is gone is no failure of the cell"
        done, epochs = epochs, lines(results)
        assert epochs[: len(done)] == done, "what was done, with the time that it took, was done again"
    assert ended(shared(results)) == [0, 0]
    ends = [load_file(next(folder.rglob(LAST))) for folder in (undisturbed, results)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert lines(results)[: len(epochs)] == epochs
    assert [json.loads(line)["epoch"] for line in lines(results)] == list(range(1, 21))


def test_that_another_process_of_a_training_ended_is_no_failure_of_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import run

    def parted(*_: object, **__: object) -> None:
        raise Parted(ENDED)

    monkeypatch.setattr(Trainer, "run", parted)
    found = run("--methods", "pgd-at", "--results", tmp_path)
    assert found.exit_code != 0
    assert not records(tmp_path)


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
