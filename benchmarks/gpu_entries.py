"""What the GPU campaign (benchmarks/gpu_campaign.py) finds out, an entry a function.

Each writes down what it has found as soon as it has it, most valuable first, and minds the seconds that it has.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import math
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import autoattack
import numpy as np
import parts
import plain
import step
import torch
from safetensors.torch import load_file
from torch import Tensor

from adbench import __version__
from adbench.cli import main as adbench
from adbench.data import Dataset, load
from adbench.data.batches import to_float
from adbench.evaluation.evaluator import Evaluator, Outcome
from adbench.execution.engines.worker import set_up_torch
from adbench.execution.place import Place
from adbench.losses import cross_entropy
from adbench.models import Network, build
from adbench.models.flops import multiply_adds
from adbench.results import provenance
from adbench.results.layout import BEST, LOG
from adbench.system import files
from adbench.training.configured import configured
from adbench.training.resume import Store
from adbench.training.trainer import peak_memory, reset_peak_memory
from adbench.weights import checkpoint

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")
LEADING = ("pgd-at", "smaraad", "rslad", "adaad")
"""The methods of which steps are measured, most telling first."""


@dataclass
class Job:
    """An entry under way: what it is given, and what it has found.

    folder: its own; below `results` in it lie records that are kept, and so is NAME.kept.safetensors. shared: the
    campaign's. ends: when it is ended, by time.monotonic. data, teacher: CIFAR-10 as a `.npz` and a robust WRN-10-2.
    """

    folder: Path
    shared: Path
    ends: float
    device: str
    small: bool
    data: Path | None
    teacher: Path | None
    said: dict[str, Any] = field(default_factory=lambda: {"facts": {}, "rows": [], "wrong": []})

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def fact(self, **facts: Any) -> None:
        self.said["facts"] |= facts
        self._write()

    def row(self, what: str, **values: Any) -> None:
        """A line of the table `what`."""
        self.said["rows"].append({"what": what, **values})
        self._write()

    def found(self, text: str) -> None:
        """The entry's outcome in a line."""
        self.said["found"] = text
        self._write()

    def wrong(self, text: str) -> None:
        """Something is not as it should be: the entry goes on, and has failed."""
        print(f"wrong: {text}")
        self.said["wrong"].append(text[:500])
        self._write()

    @contextmanager
    def trying(self, label: str) -> Iterator[None]:
        """What goes wrong within is written down, and the entry goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.wrong(f"{label}: {type(error).__name__}: {error}")

    def apart(self, label: str, work: Callable[..., None], *arguments: Any, limit: float = math.inf) -> None:
        """Have work(job, *arguments) done in a process of its own, which may crash or hang without harm to others.

        On a GPU it has a context of its own, so this process must not have begun one.
        """
        limit = min(limit, self.left)
        if limit < 1:
            self._not_reached(label)
            return
        process = FORK.Process(target=self._alone, args=(label, work, *arguments))
        process.start()
        process.join(limit)
        with suppress(FileNotFoundError):
            self.said = json.loads((self.folder / "progress.json").read_text(encoding="utf-8"))
        if process.is_alive():
            process.kill()
            process.join(10)
            if self.left > 1:
                self.wrong(f"{label}: no end after {limit:.0f} s")
            else:
                self._not_reached(f"{label} (in part)")
        elif process.exitcode:
            self.wrong(f"{label}: its process ended with {process.exitcode}")

    def _not_reached(self, label: str) -> None:
        self.said["facts"].setdefault("not reached", []).append(label)
        self._write()

    def _alone(self, label: str, work: Callable[..., None], *arguments: Any) -> None:
        with self.trying(label):
            work(self, *arguments)

    def _write(self) -> None:
        files.write_json(self.folder / "progress.json", _plain(self.said))


def _plain(value: Any) -> Any:
    """As JSON can hold it: no NaN, no infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def cli(job: Job, *words: str | Path) -> tuple[int, str]:
    """An adbench command in this process; its exit code and what it said. One that fails is written down."""
    said, text = io.StringIO(), [str(word) for word in words]
    sys.argv = ["adbench", *text]  # what records name as their command
    code = 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            adbench(text, prog_name="adbench")
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            traceback.print_exc()
            code = 1
    print(f"$ adbench {' '.join(text)}\n{said.getvalue()}exit code {code}")
    if code:
        job.wrong(f"adbench {text[0]}: exit code {code}: {' '.join(said.getvalue().split())[-300:]}")
    return code, said.getvalue()


def settings(**values: Any) -> list[str]:
    """Options --set; __ stands for the dot."""
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


# What networks are trained and judged on


@dataclass(frozen=True)
class Problem:
    """Data, and a robust teacher on it, as options of adbench and as files."""

    dataset: str
    data_dir: Path
    architecture: str
    weights: Path | None

    @property
    def options(self) -> list[str]:
        return ["--dataset", self.dataset, "--data-dir", str(self.data_dir)]

    @property
    def teacher(self) -> list[str]:
        return ["--teacher", f"{self.architecture}@{self.weights}"]

    def loaded(self, images: int) -> tuple[Network, Dataset]:
        """The teacher on the CPU, and the data with so many test images."""
        data = load(self.dataset, self.data_dir, test_images=images)
        network = build(self.architecture, classes=data.classes, channels=data.image_shape[0])
        assert self.weights
        checkpoint.load(network, self.weights)
        return network.eval().requires_grad_(False), data


def problem(job: Job) -> Problem:
    """CIFAR-10 and the teacher given; in a rehearsal without them some digits, and a network trained in a moment."""
    if job.data and (job.teacher or not job.small):
        folder = job.shared / "data"
        folder.mkdir(exist_ok=True)
        with suppress(FileExistsError):
            (folder / "cifar10.npz").symlink_to(job.data)
        return Problem("cifar10", folder, "wrn-10-2", job.teacher)
    data, weights = job.shared / "digits.npz", job.shared / "digits.safetensors"
    if not weights.exists():
        _digits(data, weights)
    return Problem(str(data), job.shared, "cnn-8", weights)


def _digits(data: Path, weights: Path) -> None:
    """Faint ones, so that no image resists long: AutoAttack takes seconds."""
    digits = load("digits", Path(), val_images=16, test_images=64)
    x, y = digits.train.images // 8, digits.train.labels
    arrays = {"x_train": x, "y_train": y, "x_test": digits.test.images // 8, "y_test": digits.test.labels}
    files.write_npz(data, {key: (a.permute(0, 2, 3, 1) if a.ndim == 4 else a).numpy() for key, a in arrays.items()})
    torch.manual_seed(0)
    network = build("cnn-8", classes=10, channels=1)
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for part in [slice(begin, begin + 40) for begin in range(0, 1000, 40)] * 4:
        optimiser.zero_grad()
        cross_entropy(network(to_float(x[part])), y[part]).mean().backward()
        optimiser.step()
    checkpoint.save_weights(weights, network, {})


# (a) The device


def device(job: Job) -> None:
    """Device, versions, the rates of matrix products, and the tests that want a GPU."""
    job.fact(
        adbench=__version__,
        commit=provenance.provenance("", 0, None, "")["git_commit"],
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        pyautoattack=version("pyautoattack"),
        cores=len(os.sched_getaffinity(0)),
        platform=platform.platform(),
        processor=step.cpu(),
    )
    job.apart("device", _device, limit=0.5 * job.left)
    job.apart("the tests marked gpu", _tests)


def _device(job: Job) -> None:
    place, name = torch.device(job.device), "CPU"
    if job.on_gpu:
        about = torch.cuda.get_device_properties(place)
        name = about.name
        job.fact(
            gpu=name,
            memory_gib=about.total_memory / 2**30,
            multiprocessors=about.multi_processor_count,
            capability=f"{about.major}.{about.minor}",
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
        )
        with job.trying("nvidia-smi"):
            asked = ["nvidia-smi", "--query-gpu=driver_version,memory.used,clocks.sm", "--format=csv,noheader"]
            job.fact(driver=subprocess.run(asked, capture_output=True, text=True, timeout=10).stdout.strip())
    rates = matrix_rates(job)
    for dtype, rate in rates.items():
        job.row("matrix products", precision=dtype, tera_multiply_adds=rate / 1e12)
    job.found(f"{name}, torch {torch.__version__}; bfloat16 {2 * rates['bfloat16'] / 1e12:.3g} TFLOP/s")


class _Counted:
    """Counts pytest's outcomes."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or not report.passed:
            self.outcomes[report.outcome] += 1


def _tests(job: Job) -> None:
    """pytest -m gpu on the modules that have such tests: others may import what is not installed here."""
    import pytest

    modules = [path for path in sorted(ROOT.glob("tests/test_*.py")) if "pytest.mark.gpu\n" in path.read_text("utf-8")]
    counted = _Counted()
    os.chdir(ROOT)
    code = pytest.main(["-m", "gpu", "-q", "-p", "no:cacheprovider", *map(str, modules)], plugins=[counted])
    said = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counted.outcomes.items()))
    job.fact(tests=said or "none")
    job.found(f"{job.said.get('found', '')}; tests: {said or 'none'}")
    if code or (job.on_gpu and not counted.outcomes["passed"]):
        job.wrong(f"the tests marked gpu: {said or 'none'}, exit code {int(code)}")


def matrix_rates(job: Job) -> dict[str, float]:
    """Multiply-adds a second, by precision."""
    place = torch.device(job.device)
    side = 128 if job.small else 8192 if job.on_gpu else 2048
    found = {}
    for name, precision in (("float32", "highest"), ("tf32", "high")):
        torch.set_float32_matmul_precision(precision)
        found[name] = parts.rate(place, torch.float32, 4, side)
    torch.set_float32_matmul_precision("highest")
    found["bfloat16"] = parts.rate(place, torch.bfloat16, 4, side)
    return found


# (b) Training steps

STEPS: dict[str, tuple[str, str, dict[str, bool]]] = {
    "plain": ("plain", "tf32", {}),
    "bfloat16": ("bfloat16", "bfloat16", {}),
    "auto": ("auto", "tf32", {}),
    "float32 as written": ("exact", "float32", {}),
    "bfloat16, cuDNN searches": ("bfloat16", "bfloat16", {"benchmark": True}),
    "plain, cuDNN searches": ("plain", "tf32", {"benchmark": True}),
}
"""Ways to take a step: one of `step.WAYS`, the matrix rate that it is held against, and settings of cuDNN.

The plain loop has torch's defaults, under which convolutions on a GPU run in TF32.
"""


def bench_for(job: Job, student: str, batch: int | None = None) -> step.Bench:
    """Random images and weights, which cost as much as real ones."""
    small = job.small
    return step.Bench(
        argparse.Namespace(
            student=student,
            teacher_arch="cnn-4" if small else "wrn-34-10",
            teacher=None,
            data=None,
            batch=batch or (16 if small else 256),
            classes=10,
            device=job.device,
        )
    )


def students(job: Job) -> tuple[str, ...]:
    return ("cnn-4",) if job.small else ("rn18", "mn-v2")


def pairs(job: Job) -> list[tuple[str, str]]:
    """Methods and students, most telling first."""
    methods = LEADING[:2] if job.small else LEADING
    return [(method, student) for student in students(job) for method in methods]


def steps(job: Job) -> None:
    """Every pair by every way."""
    for method, student in pairs(job):
        job.apart(f"{method}, {student}", _steps_of, method, student)
    told(job)


def told(job: Job) -> None:
    """How the ways compare, pair by pair."""
    rows = [row for row in job.said["rows"] if row["what"] == "step"]
    medians = {(row["method"], row["student"], row["way"]): row["seconds"] for row in rows}
    first = next(iter(medians), None)
    if first:
        others = {way: seconds for (*pair, way), seconds in medians.items() if pair == list(first[:2])}
        job.found(f"{first[0]}, {first[1]}: " + ", ".join(f"{way} {seconds:.3g} s" for way, seconds in others.items()))


def _steps_of(job: Job, method: str, student: str) -> None:
    rates, bench = matrix_rates(job), bench_for(job, student)
    for name, (way, precision, cudnn) in STEPS.items():
        if cudnn and not job.on_gpu:
            continue
        with job.trying(f"{method}, {student}, {name}"):
            begun = time.perf_counter()
            held = _held(bench.device)

            def work(way: str = way, cudnn: dict[str, bool] = cudnn) -> Callable[[], Any]:
                taken = bench.way(method, way)
                for setting, value in cudnn.items():
                    setattr(torch.backends.cudnn, setting, value)
                return taken

            measured(job, bench, (method, student, name), work, rates[precision], held)
            torch.backends.cudnn.benchmark = False
            print(f"{name}: {time.perf_counter() - begun:.1f} s in all")


def _held(place: torch.device) -> int:
    """Bytes of tensors on a GPU now that nothing else is kept there."""
    if place.type != "cuda":
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(place)


def measured(
    job: Job,
    bench: step.Bench,
    names: tuple[str, str, str],
    prepare: Callable[[], Callable[[], Any]],
    rate: float,
    held: int,
) -> None:
    """Write down a way's step: median seconds, the share of a matrix rate, the peak of its memory.

    held: bytes on a GPU before, of networks that are in no way's own peak but plain's, which asks the same teacher.
    """
    method, student, name = names
    reset_peak_memory(bench.device)
    begun = time.perf_counter()
    work = prepare()
    step.seconds(work, bench.device)
    first = time.perf_counter() - begun
    rounds, most = (2, 1.0) if job.small else (7, 6.0)
    taken = [step.seconds(work, bench.device)]
    while len(taken) < rounds and (sum(taken) < most or len(taken) < 2):
        taken.append(step.seconds(work, bench.device))
    teacher = sum(p.nbytes for p in bench.teacher.parameters()) if configured(method, {}).needed() else 0
    own = peak_memory(bench.device) - held + (teacher if name.startswith("plain") else 0)
    median = statistics.median(taken)
    job.row(
        "step",
        method=method,
        student=student,
        way=name,
        seconds=median,
        spread=max(taken) / min(taken),
        rounds=len(taken),
        share=step_work(bench, method) / median / rate,
        peak_gib=own / 2**30,
        first=first,
    )


def step_work(bench: step.Bench, method: str) -> float:
    """Multiply-adds of one step: a pass for the input's gradient is two forward passes, one for the weights' three."""
    cost, steps = configured(method, {}).passes(plain.STEPS), plain.STEPS
    student, teacher = (multiply_adds(net, (3, 32, 32)) for net in (bench.student, bench.teacher))
    trained = max(0.0, cost.student - steps)
    mine = 2 * cost.student + trained + cost.student_forward
    theirs = 2 * cost.teacher + cost.teacher_forward + cost.natural_forward
    return float(bench.args.batch * (mine * student + theirs * teacher))


def graphs(job: Job) -> None:
    """bfloat16 in CUDA graphs; each in a process of its own, since a failed capture spoils what follows."""
    if not job.on_gpu:
        job.fact(graphs="not on a CPU")
        return
    for method, student in sorted(pairs(job), key=lambda pair: pair[0] not in LEADING[:2]):
        job.apart(f"{method}, {student}, graphs", _graphs, method, student, limit=max(60.0, 0.5 * job.left))
    told(job)


def _graphs(job: Job, method: str, student: str) -> None:
    rates, bench = matrix_rates(job), bench_for(job, student)
    names = (method, student, "bfloat16, graphs")
    measured(job, bench, names, lambda: graphed(bench, method), rates["bfloat16"], _held(bench.device))


def graphed(bench: step.Bench, method: str) -> Callable[[], None]:
    """A whole step of the trainer, captured and played again; on the same images."""
    trainer = bench.trainer(method, "bfloat16")
    trainer.set_up()
    trainer.watch.every = sys.maxsize  # the host must not ask the device while it captures
    noise = torch.Generator(device=bench.device).manual_seed(0)
    ((index, crops),) = trainer.batches()
    trainer.iteration = 1

    def whole() -> None:
        trainer.train_step(index, crops, noise)
        trainer.watch._since.clear()

    graph, beside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    graph.register_generator_state(noise)
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            whole()
    torch.cuda.current_stream().wait_stream(beside)
    with torch.cuda.graph(graph):
        whole()
    before = [p.detach().clone() for p in trainer.student.parameters()]
    graph.replay()
    moved = [not torch.equal(p, old) for p, old in zip(trainer.student.parameters(), before, strict=True)]
    if not all(moved) or trainer.watch.failed:
        raise RuntimeError("the graph does not train: weights stay as they are, or are not finite")
    return graph.replay


# (c) Attacks


def attacks(job: Job) -> None:
    """PGD-20 and C&W, then AutoAttack by the authors' package and by adbench, and whose verdicts differ."""
    some, many = (8, 16) if job.small else (500, 10_000)
    network, data = problem(job).loaded(many)
    place = torch.device(job.device)
    set_up_torch(Place(job.folder, job.folder, job.device), torch.get_num_threads())
    network.to(place)
    evaluator = Evaluator(network, data.test, data.threat, seed=0, batch_size=250, device=place)
    job.row("attack", by="clean", images=many, seconds=evaluator.clean.seconds, **_right(evaluator.clean))
    for name in ("pgd20", "cw"):
        with job.trying(name):
            found = evaluator.under(name, many)
            job.row("attack", by=name, images=many, seconds=found.seconds, **_right(found))
    split = data.test.first(some)
    first: Tensor | None = None
    told = []
    for by in ("package", "fast", "exact"):
        with job.trying(f"AutoAttack, {by}"):
            begun = time.perf_counter()
            if by == "package":
                survive = autoattack.plain(network, split, place, 0)
            else:
                survive = autoattack.ours(network, split, place, 0, by)
            seconds = time.perf_counter() - begun
            first = survive if first is None else first
            job.row(
                "attack",
                by=f"AutoAttack, {by}",
                images=some,
                seconds=seconds,
                survive=int(survive.sum()),
                broken_here_alone=(first & ~survive).nonzero().flatten().tolist(),
                missed_here=(survive & ~first).nonzero().flatten().tolist(),
            )
            told.append(f"{by} {seconds:.1f} s ({int(survive.sum())} survive)")
            job.found(f"AutoAttack, {some} images: " + ", ".join(told))


def _right(outcome: Outcome) -> dict[str, int]:
    return {"survive": int(outcome.right.sum())}


# (d) A robust teacher


def teacher(job: Job) -> None:
    """The fastest recipe: adversarial training in bfloat16 with three inner steps, as many epochs as 90 s hold."""
    posed, student = problem(job), "cnn-4" if job.small else "wrn-16-4"
    inner, seconds = 3, min(80.0, job.left - 40)
    epochs = 2 if job.small else max(2, int(seconds / epoch_seconds(job, "pgd-at", student, inner)))
    recipe: dict[str, Any] = {
        "train__epochs": epochs,
        "train__attack_steps": inner,
        "train__attack_step": '"4/255"',
        "train__val_every": epochs,
        "eval__attacks": '["pgd20","cw"]',
        "eval__masking": 0,
        "eval__images": 2000,
    }
    cli(
        job,
        "run",
        *posed.options,
        "--methods",
        "pgd-at",
        "--student",
        student,
        "--precision",
        "bfloat16",
        "--device",
        job.device,
        "--results",
        job.results,
        *sized(job, recipe),
    )
    for path, found in records(job):
        row = _row_of(found)
        job.row("network", weights="float32", **row)
        job.found(f"{student}, {epochs} epochs in {row['train_s']:.0f} s: clean {row['clean']}, PGD-20 {row['pgd20']}")
        _halved(job, posed, student, path.parents[1] / BEST)


def _halved(job: Job, posed: Problem, architecture: str, weights: Path) -> None:
    """Keep the weights in half precision, and judge what is kept."""
    kept = job.folder / "teacher.kept.safetensors"
    half = {key: value.half() if value.is_floating_point() else value for key, value in load_file(weights).items()}
    checkpoint.save_state(kept, half, {"architecture": architecture})
    data = load(posed.dataset, posed.data_dir, test_images=16 if job.small else 2000)
    network = build(architecture, classes=data.classes, channels=data.image_shape[0])
    checkpoint.load(network, kept)
    judge = Evaluator(network, data.test, data.threat, seed=0, batch_size=250, device=torch.device(job.device))
    robust = judge.under("pgd20", len(data.test)).metric()["value"]
    job.row("network", weights="half", student=architecture, clean=judge.clean.metric()["value"], pgd20=robust)
    job.fact(kept=f"{kept.stat().st_size / 2**20:.2f} MiB")


def epoch_seconds(job: Job, method: str, student: str, inner: int) -> float:
    """What an epoch of CIFAR-10 in bfloat16 takes: a step of ten inner steps is measured, and scaled to `inner`."""
    bench = step.Bench(
        argparse.Namespace(
            student=student, teacher_arch="wrn-10-2", teacher=None, data=None, batch=256, classes=10, device=job.device
        )
    )
    work = bench.way(method, "bfloat16")
    step.seconds(work, bench.device)
    taken = statistics.median(step.seconds(work, bench.device) for _ in range(5))
    an_epoch = 1.15 * 49_000 / 256 * taken * (2 * inner + 3) / (2 * plain.STEPS + 3)
    job.fact(**{f"seconds an epoch, {method}, {student}": an_epoch})
    return an_epoch


def sized(job: Job, recipe: dict[str, Any]) -> list[str]:
    """The recipe as options; in a rehearsal on few images, and so that no image keeps AutoAttack busy."""
    small = {
        "data__train_images": 640,
        "data__val_images": 16,
        "train__batch_size": 32,
        "train__val_steps": 2,
        "train__attack_steps": 1,
        "train__attack_eps": '"1/255"',
        "threat__eps": '"32/255"',
        "eval__images": 16,
    }
    return settings(**recipe | (small if job.small else {}))


def records(job: Job) -> list[tuple[Path, dict[str, Any]]]:
    """The entry's records of students, oldest first."""
    paths = sorted(job.results.rglob("record.json"), key=lambda path: path.stat().st_mtime_ns)
    read = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return [(path, found) for path, found in read if found["kind"] == "student" and found["status"] == "done"]


def _row_of(found: dict[str, Any]) -> dict[str, Any]:
    """A record in a line."""
    trained = found["training"]
    return {
        "student": found["student"],
        "method": found["method"],
        "epochs": trained["epochs"],
        "train_s": trained["seconds"],
        "images_s": trained["images_per_second"],
        "peak_gib": trained["peak_memory_bytes"] / 2**30,
        "evaluate_s": found["timing"]["evaluate"],
        **{name: metric["value"] for name, metric in found["metrics"].items()},
    }


# (e) A short table

JUDGING = 80.0
"""Seconds set aside for judging a cell, AutoAttack included: RN-18 took 75 on an H200, 30 by the fast search."""


def table(job: Job) -> None:
    """Cells of CIFAR-10, one after another, by the ordinary command; 30, 10 or 3 epochs, as the time allows."""
    posed = problem(job)
    methods = ("rslad",) if job.small else ("pgd-at", "smaraad", "adaad", "rslad", "trades")
    cells = [
        (method, student) for student in (("cnn-4", "cnn-8") if job.small else students(job)) for method in methods
    ]
    choices = (2,) if job.small else (30, 10, 3)
    seconds = {cell: 1.0 if job.small else epoch_seconds(job, *cell, 10) for cell in cells[:2]}
    longest = max(seconds.values())
    epochs = next((n for n in choices if 3 * (n * longest + JUDGING) < job.left), choices[-1])
    job.fact(epochs=epochs)
    recipe: dict[str, Any] = {
        "train__epochs": epochs,
        "eval__images": 2000,
        "eval__aa_images": 4 if job.small else 500,
        "eval__aa_shard": 500,
        "eval__masking": 0,
        "hyper__smaraad__gamma": 10,
    }
    not_begun: list[str] = []
    for method, student in cells:
        each = seconds.get((method, student)) or epoch_seconds(job, method, student, 10)
        if not job.small and job.left < epochs * each + JUDGING / 2:
            not_begun.append(f"{method}, {student}")
            continue
        words = [*posed.options, *posed.teacher, "--methods", method, "--student", student, "--preset", "short"]
        words += ["--precision", "bfloat16", "--device", job.device, "--results", str(job.results)]
        cli(job, "run", *words, *sized(job, recipe))
        done = [found for _, found in records(job)]
        if len(done) > len(job.said["rows"]):
            job.row("cell", **_row_of(done[-1]))
            job.found(f"{len(done)} cells of {epochs} epochs")
    if not_begun:
        job.fact(**{"not begun": not_begun})


# (f) Faults


def faults(job: Job) -> None:
    """What only a real device shows of interruptions, of memory, and of processes that share it."""
    job.apart("SIGTERM", _sigterm, limit=0.6 * job.left)
    job.apart("out of memory", _out_of_memory, limit=0.5 * job.left)
    job.apart("processes", _processes, limit=0.6 * job.left)
    job.apart("--jobs 2", _jobs)
    ended = [row for row in job.said["rows"] if row["what"] == "SIGTERM"]
    memory = [row for row in job.said["rows"] if row["what"] == "out of memory"]
    if ended and memory:
        job.found(
            f"SIGTERM after {ended[0]['batches']} batches of epoch {ended[0]['epoch']}, the rest differs by "
            f"{ended[0]['difference']:.1g}; out of memory: {memory[0]['micro_batch']} of {memory[0]['batch']} at a time"
        )


def training(job: Job, results: str, **changed: Any) -> list[str | Path]:
    """The words of a short training whose epochs last long enough to be hit in the middle."""
    if job.data or job.small:
        options, student = problem(job).options, "cnn-4" if job.small else "rn18"
    else:
        options, student = ["--dataset", "digits", "--data-dir", str(job.shared)], "cnn-16"
    many = {
        "data__train_images": 1000 if job.small or not job.data else 6400,
        "train__batch_size": 10 if job.small else 64,
    }
    recipe = (
        {
            "train__epochs": 3,
            "train__attack_steps": 2,
            "train__val_every": 3,
            "train__val_steps": 2,
            "data__val_images": 16,
            "eval__images": 16,
            "eval__attacks": '["fgsm"]',
            "eval__masking": 0,
        }
        | many
        | changed
    )
    return [
        "run",
        *options,
        "--methods",
        "pgd-at",
        "--student",
        student,
        "--threads",
        "1",
        "--device",
        job.device,
        "--results",
        job.folder / results,
        *settings(**recipe),
    ]


def _sigterm(job: Job) -> None:
    """SIGTERM in the middle of an epoch; whether the training goes on, and ends as one that nobody disturbed."""
    words = training(job, "stopped")
    process = FORK.Process(target=adbench, args=([str(word) for word in words],))
    process.start()
    log = _first_epoch(job, process)
    an_epoch = json.loads(log.read_text(encoding="utf-8").splitlines()[0])["seconds"]
    time.sleep(an_epoch / 4)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(max(1.0, job.left))
    code = process.exitcode
    kept, _ = Store(log.parent).load(torch.device("cpu"))
    batches = (kept or {}).get("under_way") and kept["under_way"]["batch"]  # type: ignore[index]
    if code != 143 or not batches:
        job.wrong(f"SIGTERM in mid-epoch: exit code {code}, {batches} batches of the epoch kept")
    epoch = kept["epoch"] + 1 if kept else 0
    cli(job, *words)
    cli(job, *training(job, "undisturbed"))
    one, other = (load_file(next((job.folder / name).rglob(BEST))) for name in ("stopped", "undisturbed"))
    apart = max(float((one[key].double() - other[key].double()).abs().max()) for key in one)
    job.row("SIGTERM", exit_code=code, epoch=epoch, batches=batches, difference=apart)
    if apart and not job.on_gpu:
        job.wrong(f"a training that was stopped ends in other weights: {apart}")


def _first_epoch(job: Job, process: BaseProcess) -> Path:
    """The log of a training, once its first epoch is in it."""
    while process.is_alive() and job.left > 0:
        for log in (job.folder / "stopped").rglob(LOG):
            return log
        time.sleep(0.01)
    raise RuntimeError(f"the training ended with {process.exitcode} before it had finished an epoch")


def _out_of_memory(job: Job) -> None:
    """Less memory than a batch needs: it has to go through in parts. On a CPU the lack is pretended."""
    bench = bench_for(job, students(job)[0])
    batch, place = bench.args.batch, bench.device
    needed = 0
    if job.on_gpu:
        work = bench.ours("pgd-at", "auto")
        held = _held(place)
        torch.cuda.reset_peak_memory_stats(place)
        step.seconds(work, place)
        needed = torch.cuda.max_memory_allocated(place)
        del work
    trainer = bench.trainer("pgd-at", "auto")
    trainer.set_up()
    if job.on_gpu:
        held = max(held, _held(place))
        allowed = held + 0.6 * (needed - held)
        torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(place).total_memory)
    else:
        trainer.student.register_forward_pre_hook(_refuses(batch // 2))
    noise = torch.Generator(device=place).manual_seed(0)
    ((index, crops),) = trainer.batches()
    loss = float(trainer.iterate(index, crops, noise, {}))
    job.row(
        "out of memory",
        batch=batch,
        micro_batch=trainer.micro_batch,
        loss=loss,
        needed_gib=needed / 2**30,
        pretended=not job.on_gpu,
    )
    if not trainer.micro_batch or not math.isfinite(loss):
        job.wrong(f"out of memory: micro-batches of {trainer.micro_batch}, loss {loss}")


def _refuses(most: int) -> Callable[[Any, Any], None]:
    def refuse(_: Any, given: Sequence[Tensor]) -> None:
        if len(given[0]) > most:
            raise torch.OutOfMemoryError(f"no memory for {len(given[0])} images (pretended)")

    return refuse


def _processes(job: Job) -> None:
    """A step's time with the device to itself, and beside another process that does the same."""
    for count in (1, 2):
        barrier, times = FORK.Barrier(count), FORK.SimpleQueue()
        others = [FORK.Process(target=_beside, args=(job, barrier, times)) for _ in range(count)]
        for process in others:
            process.start()
        for process in others:
            process.join(max(1.0, job.left))
        if any(process.exitcode for process in others):
            raise RuntimeError(f"{count} processes on one device ended with {[p.exitcode for p in others]}")
        taken = [times.get() for _ in others]
        job.row(
            "processes on one device", processes=count, seconds_a_step=max(taken), steps_a_second=count / max(taken)
        )


def _beside(job: Job, barrier: Any, times: Any) -> None:
    bench = bench_for(job, students(job)[0])
    work = bench.ours("pgd-at", "bfloat16")
    step.seconds(work, bench.device)
    barrier.wait(60)
    times.put(statistics.median(step.seconds(work, bench.device) for _ in range(3 if job.small else 8)))


def _jobs(job: Job) -> None:
    """Two cells at a time by the ordinary command, each in a worker process."""
    words = training(job, "jobs", train__epochs=1, train__val_every=1)
    code, _ = cli(job, *words, "--jobs", "2", "--seeds", "2")
    job.row("cells at a time", jobs=2, exit_code=code)


# (g) Verification


def verify(job: Job) -> None:
    """A record made on each of CPU and device, verified on each."""
    posed, images = problem(job), 12 if job.small else 500
    assert posed.weights
    held = 0
    for made in dict.fromkeys(("cpu", job.device)):
        results = job.results / made.replace(":", "-")
        cli(
            job,
            "eval",
            posed.weights,
            "--arch",
            posed.architecture,
            *posed.options,
            "--attacks",
            "fgsm,pgd20,cw",
            "--images",
            str(images),
            "--keep-adversarial",
            "--device",
            made,
            "--results",
            results,
        )
        (path,) = results.rglob("record.json")
        for judged in dict.fromkeys(("cpu", job.device)):
            begun = time.perf_counter()
            words = ("--device", judged, "--data-dir", posed.data_dir, "--again", str(images // 4))
            code, said = cli(job, "verify", path, *words)
            broken = [line for line in said.splitlines() if line.strip().startswith("CONTRADICTS")]
            job.row(
                "verified",
                made_on=made,
                judged_on=judged,
                exit_code=code,
                seconds=time.perf_counter() - begun,
                does_not_follow=broken,
            )
            held += not code
    job.found(f"{held} of {len(job.said['rows'])} verifications hold")
