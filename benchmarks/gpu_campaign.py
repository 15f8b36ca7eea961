"""All that there is to learn on a GPU, most valuable first, within the seconds there are: one command.

    python benchmarks/gpu_campaign.py --seconds 560 --out campaign --data cifar10.npz --teacher wrn-10-2.pt
    python benchmarks/gpu_campaign.py --seconds 90 --out rehearsal --device cpu --small

Each entry (benchmarks/gpu_entries.py) runs in a process of its own, with its own limit and never beyond the whole
one. What it has found is in OUT/results.json as soon as it is there, also if the entry is killed later; a failure is a
result too, with the last lines of its output. OUT/summary.md has the tables, records.tar.gz the records,
teacher.safetensors the trained teacher in half precision, log.txt what the entries printed. An entry whose files are
missing is reported as skipped. The campaign ends by itself; SIGTERM and Ctrl-C end it early, and leave what is
finished.

--small is for a rehearsal: the same entries with the smallest networks, and the embedded digits where no data is given.
Exit code 0 if every entry that was reached has done what it should, 1 if not, 2 for bad input, 143 if it was ended.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import multiprocessing
import os
import resource
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adbench.system import files, signals

HERE = Path(__file__).resolve().parent
LARGEST = 16 * 2**20
"""Bytes of a file in OUT, at most."""
PACKED = {".json", ".jsonl", ".parquet", ".toml", ".txt"}
"""What is kept of the entries' results folders; weights and adversarial examples are too large."""
LAST_LINES = 30
CLOSING = 5.0
"""Seconds kept back from the whole limit, for packing and the summary."""
LEAST = 3.0
"""Seconds with which no entry is begun any more."""


@dataclass(frozen=True)
class Entry:
    """One thing to find out.

    work: "module:function", called with a `gpu_entries.Job`. limit: seconds, at most; with more time than all limits
    together need, each grows alike. least: seconds that earlier entries leave to it. needs: of "data" and "teacher".
    """

    name: str
    about: str
    work: str
    limit: float
    least: float
    needs: tuple[str, ...] = ()


FILES = ("data", "teacher")

ENTRIES = (
    Entry("device", "device, versions, matrix rates, the tests marked gpu", "gpu_entries:device", 60, 20),
    Entry("steps", "training steps: plain loop, float32, bfloat16", "gpu_entries:steps", 120, 40),
    Entry("graphs", "training steps: CUDA graphs", "gpu_entries:graphs", 80, 30),
    Entry("attacks", "AutoAttack by the package and by adbench, PGD-20, C&W", "gpu_entries:attacks", 150, 60, FILES),
    Entry("teacher", "a robust teacher in 90 seconds", "gpu_entries:teacher", 130, 60, ("data",)),
    Entry("table", "cells of a short table, with AutoAttack", "gpu_entries:table", 150, 60, FILES),
    Entry("faults", "SIGTERM, out of memory, two processes on one device", "gpu_entries:faults", 80, 40),
    Entry("verify", "the same record verified on CPU and device", "gpu_entries:verify", 50, 25, FILES),
)


def allowance(entry: Entry, later: Sequence[Entry], left: float, scale: float = 1.0) -> float:
    """The seconds an entry gets of those that are left: its limit, but what the entries after it need at least."""
    kept = 0.0
    for other in later:
        if left - entry.least - kept < other.least:
            break
        kept += other.least
    return min(entry.limit * scale, left - kept)


class Campaign:
    """Entries one after another, and what came of them, in one folder."""

    def __init__(self, entries: Sequence[Entry], *, seconds: float, out: Path, options: dict[str, Any]) -> None:
        """options: device, small, and the files data and teacher (a path or None), as `gpu_entries.Job` has them."""
        self.entries, self.out, self.options = entries, out, options
        self.began = time.monotonic()
        self.ends = self.began + seconds - min(CLOSING, seconds / 10)
        self.scale = max(1.0, (self.ends - self.began) / sum(entry.limit for entry in entries))
        self.scratch = Path(tempfile.mkdtemp(prefix="gpu-campaign-"))
        self.results: dict[str, Any] = {
            "command": shlex.join(sys.argv),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "options": {key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
            "entries": {entry.name: {"about": entry.about, "status": "not reached"} for entry in entries},
        }
        out.mkdir(parents=True, exist_ok=True)
        self.context: Any = None
        self.log = out / "log.txt"
        self.log.write_bytes(b"")
        self._write()

    def run(self) -> None:
        """Carry out the entries in turn. Whatever happens, what is finished is whole and the summary is written."""
        try:
            seconds = self.results["seconds"]
            self.context, self.results["processes"] = context_for(self.options["device"], seconds / 3)
            for number, entry in enumerate(self.entries if self.context else ()):
                self._carry_out(entry, self.entries[number + 1 :])
        finally:
            with signals.deferred():
                self.results["took"] = round(time.monotonic() - self.began, 1)
                self._write()
                files.write_text(self.out / "summary.md", summary(self.results))
                shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def good(self) -> bool:
        """Whether nothing that was tried went wrong."""
        return bool(self.context) and all(
            found["status"] in ("done", "skipped", "not reached") for found in self.results["entries"].values()
        )

    def _carry_out(self, entry: Entry, later: Sequence[Entry]) -> None:
        found = self.results["entries"][entry.name]
        missing = [f"--{need}" for need in entry.needs if not (self.options[need] or self.options["small"])]
        limit = allowance(entry, later, self.ends - time.monotonic(), self.scale)
        if missing:
            found |= {"status": "skipped", "why": f"needs {' and '.join(missing)}"}
        elif limit < LEAST:
            found["why"] = f"{max(limit, 0):.0f} s were left"
        else:
            found |= {"status": "running", "limit": round(limit, 1)}
            begun = time.monotonic()
            try:
                self._watch(entry, limit, found)
            except BaseException:
                found["status"] = "interrupted"
                raise
            finally:
                with signals.deferred():
                    found["seconds"] = round(time.monotonic() - begun, 1)
                    self._gather(entry, found)
        self._write()
        print(f"{entry.name:10} {found['status']:12} {found.get('seconds', 0):6.1f} s  {headline(found)}", flush=True)

    def _watch(self, entry: Entry, limit: float, found: dict[str, Any]) -> None:
        """Start the entry's process, and take over what it finds until it ends or its limit is reached."""
        folder = self.scratch / entry.name
        folder.mkdir()
        ends = time.monotonic() + limit
        arguments = self.options | {"folder": folder, "shared": self.scratch, "ends": ends - min(2.0, limit / 10)}
        process = self.context.Process(target=_entry, args=(entry.work, arguments), name=entry.name)
        process.start()
        seen = 0
        try:
            while process.is_alive() and time.monotonic() < ends:
                process.join(0.1)
                if (now := _changed(folder / PROGRESS)) != seen:
                    seen = now
                    found |= _progress(folder)
                    self._write()
            if process.is_alive():
                found |= {"status": "timed out", "why": f"ended after {limit:.0f} s"}
                # Where it hung: faulthandler answers with the stacks of all threads.
                with suppress(ProcessLookupError):
                    os.kill(process.pid or 0, signal.SIGABRT)
                process.join(1.0)
            else:
                found |= _progress(folder)
                wrong = found.get("wrong", [])
                found["status"] = "failed" if process.exitcode or wrong else "done"
                if process.exitcode:
                    found["why"] = f"its process ended with {process.exitcode}"
        finally:
            with signals.deferred():
                _end(process)

    def _gather(self, entry: Entry, found: dict[str, Any]) -> None:
        """Take over what an entry has left: findings, output, records, weights."""
        folder = self.scratch / entry.name
        found |= _progress(folder)
        lines = _last_lines(folder / OUTPUT, 2000)
        if found["status"] != "done":
            found["last lines"] = lines[-LAST_LINES:]
        text = f"=== {entry.name}: {found['status']}\n" + "".join(line + "\n" for line in lines)
        with self.log.open("ab") as log:
            log.write(text.encode()[-LARGEST // 16 :])
        for weights in folder.glob("*.kept.safetensors"):
            if weights.stat().st_size <= LARGEST:
                shutil.copy(weights, self.out / ".weights")
                (self.out / ".weights").replace(self.out / weights.name.replace(".kept", ""))
            else:
                found["weights"] = f"{weights.stat().st_size / 2**20:.1f} MiB, more than fit"
        if left_out := pack(self.scratch, self.out / "records.tar.gz"):
            self.results["left out of the archive"] = left_out

    def _write(self) -> None:
        files.write_json(self.out / "results.json", self.results)


def pack(folder: Path, archive: Path, largest: int = LARGEST) -> list[str]:
    """Pack the entries' results folders, whole or not at all; the largest files are left out until it is no larger.

    Returns the names of those that are left out.
    """
    kept = [path for path in sorted(folder.glob("*/results/**/*")) if path.suffix in PACKED and path.is_file()]
    left_out: list[str] = []
    while kept:
        temporary = archive.with_name(f".{archive.name}")
        with tarfile.open(temporary, "w:gz") as tar:
            for path in kept:
                tar.add(path, path.relative_to(folder))
        if temporary.stat().st_size <= largest:
            temporary.replace(archive)
            break
        temporary.unlink()
        kept.sort(key=lambda path: path.stat().st_size)
        left_out += [str(path.relative_to(folder)) for path in kept[len(kept) - len(kept) // 4 - 1 :]]
        kept = sorted(kept[: len(kept) - len(kept) // 4 - 1])
    return left_out


# The entry's process

PROGRESS, OUTPUT = "progress.json", "output.txt"
PRELOADED = ["adbench.cli.matrix_run", "sklearn.datasets", "gpu_entries"]
"""What the server of the entries' processes imports; nothing of it may touch a GPU, which would be lost to forks."""


def context_for(device: str, patience: float) -> tuple[Any, list[str]]:
    """How processes are started that can compute on the device (None: in no way), and what went wrong on the way.

    patience: seconds in which a process has to begin, imports included.

    Forked from a server that has imported everything, they start at once; where that does not work, each imports anew.
    """
    said: list[str] = []
    for method in ("forkserver", "spawn"):
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=_probe, args=(device,), daemon=True)
        process.start()
        process.join(patience)
        if process.exitcode == 0:
            return context, said
        process.kill()
        said.append(f"{method}: no process computes on '{device}' (it ended with {process.exitcode})")
        print(said[-1], flush=True)
    return None, said


def _probe(device: str) -> None:
    import gpu_entries  # noqa: F401  # without it there is nothing to begin
    import torch

    float(torch.ones(1, device=device).sum())


def _entry(work: str, arguments: dict[str, Any]) -> None:
    """What an entry's process does: the leader of a group that ends with it, and that ends when the campaign does."""
    os.setsid()
    folder: Path = arguments["folder"]
    output = os.open(folder / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    for text in (sys.stdout, sys.stderr):
        text.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.enable()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = work.partition(":")
    from gpu_entries import Job

    getattr(importlib.import_module(module), name)(Job(**arguments))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os.killpg(0, signal.SIGKILL)


def _end(process: Any) -> None:
    """End an entry's process with all that it started. One that the driver does not let go is waited for no longer."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():  # it may not have had a group of its own yet
        process.kill()
        process.join(10)


def _changed(path: Path) -> int:
    """When a file was last written, 0 where it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _progress(folder: Path) -> dict[str, Any]:
    """What an entry has found so far."""
    try:
        found: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {}
    return found


def _last_lines(path: Path, count: int) -> list[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip()[:500] for line in deque(file, count)]
    except FileNotFoundError:
        return []


# What is said of it


def headline(found: dict[str, Any]) -> str:
    """An entry in a line."""
    first = [found["found"]] if found.get("found") else []
    wrong = found.get("wrong", [])
    why = [found["why"]] if found.get("why") else []
    return "; ".join([*first, *why, *wrong[:2]]).replace("|", "/").replace("\n", " ")


def summary(results: dict[str, Any]) -> str:
    """All results as Markdown."""
    lines = [f"# GPU campaign, {results['began']}", "", f"`{results['command']}`", ""]
    lines += ["| entry | what | status | seconds | found |", "| --- | --- | --- | ---: | --- |"]
    for name, found in results["entries"].items():
        cells = (name, found["about"], found["status"], f"{found.get('seconds', 0):.1f}", headline(found))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"{results.get('took', 0)} of {results['seconds']} seconds."]
    for name, found in results["entries"].items():
        lines += _section(name, found)
    return "\n".join(lines) + "\n"


def _section(name: str, found: dict[str, Any]) -> Iterator[str]:
    facts, rows = found.get("facts", {}), found.get("rows", [])
    wrong, last = found.get("wrong", []), found.get("last lines", [])
    if not (facts or rows or wrong or last):
        return
    yield from ("", f"## {name}")
    yield from ("", *(f"- {key}: {_cell(value)}" for key, value in facts.items())) if facts else ()
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(row["what"], []).append(row)
    for what, same in kinds.items():
        columns = [column for column in dict.fromkeys(key for row in same for key in row) if column != "what"]
        yield from ("", f"| {' | '.join([what, *columns[1:]])} |", f"|{' --- |' * len(columns)}")
        yield from (f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |" for row in same)
    yield from ("", *(f"- wrong: {_cell(text)}" for text in wrong)) if wrong else ()
    yield from ("", "```", *last, "```") if last else ()


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")


# The command


def set_environment() -> None:
    """Of all processes to come: they find modules where this one does, and not in their working directory, which may
    hold a source tree; and nobody asks a GPU before it is needed, since a process that has cannot be forked."""
    absolute = [str(Path(part).resolve()) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(HERE), *absolute]))
    os.environ["PYTHONSAFEPATH"] = os.environ["PYTHONUNBUFFERED"] = "1"
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, required=True, help="the whole campaign ends within so many")
    parser.add_argument("--out", type=Path, required=True, help="folder of what comes of it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a rehearsal with the smallest networks")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(entry.name for entry in ENTRIES)}")
    parser.add_argument("--data", type=Path, help=".npz with CIFAR-10: x_train, y_train, x_test, y_test")
    parser.add_argument("--teacher", type=Path, help="the weights of a robust WRN-10-2 on it")
    asked = parser.parse_args()
    known = [entry.name for entry in ENTRIES]
    names = asked.only.split(",") if asked.only else known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only: there is no entry '{unknown[0]}'; known are {', '.join(known)}")
    for path in (asked.data, asked.teacher):
        if path and not path.is_file():
            parser.error(f"there is no file '{path}'")
    options = {"device": asked.device, "small": asked.small}
    options |= {name: path and path.resolve() for name, path in (("data", asked.data), ("teacher", asked.teacher))}
    set_environment()
    with signals.handled():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
        entries = [entry for entry in ENTRIES if entry.name in names]
        campaign = Campaign(entries, seconds=asked.seconds, out=asked.out.resolve(), options=options)
        try:
            campaign.run()
        except signals.Stopped:
            code = signals.EXIT_CODE
        else:
            code = 0 if campaign.good else 1
    print((campaign.out / "summary.md").read_text(encoding="utf-8"), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
