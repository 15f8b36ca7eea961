"""How long `adbench report` takes, and how much memory, on many synthetic records.

    python benchmarks/report.py RESULTS [--records 10000] [--shape seeds|runs]

Makes the records below RESULTS unless they are there: nothing is trained, the numbers are drawn. "seeds" is a matrix of
two data sets, six students and six teachers over many seeds; "runs" the same with as many settings, one seed each, so
that every tie has to be looked for in the images' outcomes. Prints wall seconds and the peak memory of all processes.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from synthetic import TEACHERLESS, add

from adbench.results.runs import METHODS

STUDENTS = ("rn18", "mn-v2", "cnn-16", "cnn-32", "wrn-10-2", "wrn-16-4")
TEACHERS = ("wrn-28-10", "wrn-34-10", "wrn-34-20", "wrn-40-4", "wrn-70-16", "rn152")
DATASETS = ("cifar10", "cifar100")
PROXIES = ("proxy-a", "proxy-b")
IMAGES = 10_000
EPOCHS = 200


def cells() -> Iterator[tuple[str, str, str, str | None]]:
    """Data set, student, method and teacher of every run of one seed."""
    for dataset, student, method in product(DATASETS, STUDENTS, METHODS):
        for teacher in [None] if method in TEACHERLESS else [*TEACHERS]:
            yield dataset, student, method, teacher


def metrics(draw: random.Random, worth: float) -> dict[str, float]:
    """Accuracies that fall with the strength of the attack and scatter from seed to seed."""
    found = {"clean": 0.80, "fgsm": 0.62, "pgd20": 0.52, "cw": 0.50, "aa": 0.47}
    found |= {f"transfer:{proxy}:{attack}": 0.63 for proxy, attack in product(PROXIES, ("pgd20", "cw"))}
    return {name: share + worth + draw.gauss(0, 0.004) for name, share in found.items()}


def make(results: Path, records: int, shape: str) -> None:
    """At least `records` records below `results`, with outcomes of 10,000 images and logs of 200 epochs."""
    draw = random.Random(0)
    for dataset, name in product(DATASETS, TEACHERS):
        add(
            results,
            kind="teacher",
            dataset=dataset,
            label=name,
            student=name,
            seed=None,
            n=IMAGES,
            metrics=metrics(draw, 0.1 + 0.01 * TEACHERS.index(name)),
            epochs=EPOCHS,
            per_class=True,
        )
    made = len(DATASETS) * len(TEACHERS)
    for turn in range(records):
        for dataset, student, method, teacher in cells():
            settings: dict[str, Any] = {"hyper": {"gamma": turn}} if shape == "runs" else {}
            worth = 0.01 * list(METHODS).index(method) - 0.02 * STUDENTS.index(student)
            add(
                results,
                dataset=dataset,
                student=student,
                method=method,
                teacher=teacher,
                n=IMAGES,
                checked=False,
                metrics=metrics(draw, worth),
                seed=0 if settings else turn,
                epochs=EPOCHS,
                settings=settings,
                per_class=True,
            )
            made += 1
        if made >= records:
            return


def measure(results: Path, options: list[str]) -> tuple[float, float, int]:
    """Seconds, MiB (of all processes at a time, at its peak) and exit code of one `adbench report`."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "adbench", "report", "--results", str(results), "--out", out, *options]
        began = time.perf_counter()
        process = subprocess.Popen(command)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(resident, family(process.pid))))
            time.sleep(0.1)
        return time.perf_counter() - began, peak / 2**20, process.returncode


def family(pid: int) -> Iterator[int]:
    """A process and its children."""
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from family(int(child))


def resident(pid: int) -> int:
    """Bytes of a process's own memory and its share of what it has in common with others."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next((line.split()[1] for line in lines if line.startswith("Pss:")), 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--shape", choices=("seeds", "runs"), default="seeds")
    given, options = parser.parse_known_args()
    if not given.results.exists():
        began = time.perf_counter()
        make(given.results, given.records, given.shape)
        print(f"made in {time.perf_counter() - began:.0f} s")
    found = sum(1 for _ in given.results.rglob("record.json"))
    seconds, memory, code = measure(given.results, options)
    print(f"{found} records on {os.cpu_count()} cores: {seconds:.1f} s, {memory:.0f} MiB, exit code {code}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.1f} s of processor time; largest process {used.ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
