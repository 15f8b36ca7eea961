"""SIGKILL at random moments of everything that writes: nothing finished is lost, nothing unreadable stays behind.

    python tests/kills.py --kills 200 --seed 0

Training, evaluation (AutoAttack too), merge, report and prepare are killed on their way, alone and with workers, each
several times before it may end. After every kill each file that is there is read, and each record that was finished is
compared with what it was. In the end all records have to be those of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors import safe_open
from tiny import TEACHER, lasting, options, records

from adbench.cli import main
from adbench.models import build
from adbench.results import layout, record
from adbench.training import resume

# Trained as good as naturally and attacked in a large ball: no image keeps AutoAttack busy for long.
SETTINGS = {
    "eval__aa_search": "exact",
    "train__epochs": "2",
    "train__attack_eps": "1/255",
    "train__attack_steps": "1",
    "data__train_images": "1000",
    "threat__eps": "100/255",
    "eval__attacks": '["fgsm","pgd20","aa"]',
    "eval__aa_images": "4",
    "eval__aa_shard": "1",
}

# In the order in which they are run; for each how often it is killed at most in one round.
COMMANDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "run": (8, ("run", "--methods", "pgd-at,rslad", "--results", "one", "--threads", "1")),
    "run another": (5, ("run", "--methods", "trades,rslad", "--results", "two", "--threads", "1")),
    "merge": (3, ("merge", "one", "two", "--into", "all")),
    "run with workers": (4, ("run", "--methods", "natural,ard", "--results", "all", "--threads", "1", "--jobs", "2")),
    "report": (3, ("report", "--results", "all", "--out", "report")),
    "prepare": (2, ("prepare", "--data-dir", "data")),
}


def _words(name: str, teacher: Path) -> list[str]:
    _, words = COMMANDS[name]
    matrix = options(**SETTINGS) if words[0] == "run" else []
    return [*words, *matrix, *(["--teacher", str(teacher)] if words[0] in ("run", "prepare") else [])]


def _command(words: list[str], work: Path) -> None:
    """One adbench command in a process of its own."""
    torch.set_num_threads(1)
    os.chdir(work)
    with Path("log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["adbench", *words]
    main(words)


def _start(words: list[str], work: Path) -> BaseProcess:
    process: BaseProcess = forked.context().Process(target=_command, args=(words, work))
    process.start()
    return process


# What has to hold after every kill

READERS: dict[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_bytes()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()],
    ".parquet": pd.read_parquet,
    ".npz": lambda path: [np.load(path)[key] for key in np.load(path)],
    ".pt": lambda path: resume._read(path) if path.name in layout.STATES else torch.load(path, weights_only=True),
    ".png": lambda path: Image.open(path).verify(),
}


def _read(path: Path) -> None:
    """Read a file to its end. Raises what its reader raises where that cannot be done."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            assert [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    elif path.suffix == ".pdf":
        assert path.read_bytes().rstrip().endswith(b"%%EOF"), path
    elif path.suffix == ".html":
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path
    elif path.suffix in READERS:
        READERS[path.suffix](path)
    else:
        assert path.stat().st_size or path.suffix == ".txt", path


@dataclass
class Watch:
    """What was finished in a round so far."""

    finished: dict[Path, str] = field(default_factory=dict)
    files_read: int = 0

    def check(self, work: Path) -> None:
        """Raise AssertionError for a finished cell that is lost or changed, or for a file that cannot be read."""
        for path in sorted(work.rglob("*")):
            if not path.is_file() or path.name.startswith(".") or path.name == "log.txt":
                continue
            self.files_read += 1
            try:
                _read(path)
            except FileNotFoundError:  # a worker that had not ended yet took it away
                continue
            if path.name == layout.RECORD:
                damage = record.damage(path)
                assert damage is None, damage
                if record.read(path).done:
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    assert self.finished.setdefault(path, digest) == digest, f"{path} was finished, and has changed"
        lost = [path for path in self.finished if not path.is_file()]
        assert not lost, f"lost: {lost}"


# A teacher to download, slowly


@contextmanager
def _server(content: bytes) -> Iterator[str]:
    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.send_header("ETag", '"one"')
            self.end_headers()
            for start in range(first, len(content), len(content) // 10):
                try:
                    self.wfile.write(content[start : start + len(content) // 10])
                    self.wfile.flush()
                except OSError:  # who asked was killed
                    return
                time.sleep(0.05)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/weights.pt"
    server.shutdown()
    server.server_close()


@contextmanager
def _teachers(folder: Path) -> Iterator[dict[str, Path]]:
    """For `run` one that is trained, for `prepare` one that is downloaded."""
    folder.mkdir()
    trained, downloaded, weights = folder / "tiny.toml", folder / "far.toml", folder / "weights.pt"
    trained.write_text(TEACHER, encoding="utf-8")
    torch.save(build("cnn-32", classes=10, channels=1).state_dict(), weights)
    with _server(weights.read_bytes()) as url:
        downloaded.write_text(
            f'dataset = "digits"\narchitecture = "cnn-32"\n\n[source]\nkind = "download"\nurls = ["{url}"]\n',
            encoding="utf-8",
        )
        yield {name: downloaded if name == "prepare" else trained for name in COMMANDS}


# Rounds


@dataclass
class Outcome:
    kills: Counter[str]
    rounds: int
    finished: int
    files_read: int

    def __str__(self) -> str:
        told = ", ".join(f"{name} {count}" for name, count in self.kills.items())
        return (
            f"{self.kills.total()} kills in {self.rounds} rounds ({told}); {self.finished} finished cells, none lost; "
            f"{self.files_read} files read, none unreadable; all records equal to those of an undisturbed run"
        )


def kill(number: int, seed: int, folder: Path, say: Callable[[str], None] = print) -> Outcome:
    """Kill so many times. Raises AssertionError where something that was finished is lost, changed or unreadable."""
    moments, kills, rounds, finished, files_read = random.Random(seed), Counter[str](), 0, 0, 0
    with _teachers(folder / "teachers") as teachers:
        took, expected = _undisturbed(folder / "undisturbed", teachers)
        say("undisturbed: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in took.items()))
        while kills.total() < number:
            work, watch = folder / f"round-{rounds}", Watch()
            work.mkdir()
            rounds += 1
            for name, (most, _) in COMMANDS.items():
                quota = min(most, number - kills.total())
                kills[name] += _until_done(_words(name, teachers[name]), work, quota, took[name], moments, watch)
            apart = list(_apart(_end(work), expected))
            assert not apart, f"after {kills.total()} kills these differ: {'; '.join(apart[:20])}"
            finished += len(watch.finished)
            files_read += watch.files_read
            say(f"round {rounds}: {kills.total()} kills so far")
            shutil.rmtree(work)
    return Outcome(kills, rounds, finished, files_read)


def _undisturbed(work: Path, teachers: dict[str, Path]) -> tuple[dict[str, float], dict[str, Any]]:
    """How long each command takes, and what all end in."""
    work.mkdir()
    took = {}
    _until_done(["list", "presets"], work, 0, 0.0, random.Random(), Watch())  # begins the server, which takes time
    for name in COMMANDS:
        begun = time.monotonic()
        _until_done(_words(name, teachers[name]), work, 0, 0.0, random.Random(), Watch())
        took[name] = time.monotonic() - begun
    return took, _end(work)


def _until_done(words: list[str], work: Path, quota: int, seconds: float, moments: random.Random, watch: Watch) -> int:
    """Run one command that takes `seconds`, killing it up to `quota` times on its way; how often it was killed."""
    killed = 0
    while True:
        process = _start(words, work)
        if killed < quota:
            # What was done before is not done again, so later attempts are shorter than the whole.
            process.join(moments.uniform(0, seconds / 2))
            if process.exitcode is None:
                process.kill()
                process.join()
                killed += 1
                watch.check(work)
                continue
        process.join()
        assert process.exitcode == 0, (
            f"{words[:4]}: exit code {process.exitcode}\n{(work / 'log.txt').read_text()[-2000:]}"
        )
        watch.check(work)
        return killed


def _end(work: Path) -> dict[str, Any]:
    """All that lasts: every record without its times, the names of the report's files, what was downloaded."""
    found = {path: lasting(data) for path, data in records(work / "all").items()}
    report = sorted(
        str(path.relative_to(work)) for path in (work / "report").rglob("*") if not path.name.startswith(".")
    )
    data = {
        str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((work / "data").rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
    assert len(found) == 6
    assert data
    assert report
    return {"records": found, "report": report, "data": data}


def _apart(found: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Where two values differ, and how."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted({*found, *expected}):
            yield from _apart(found.get(key), expected.get(key), f"{where}/{key}")
    elif found != expected:
        yield f"{where}: {found!r}, undisturbed {expected!r}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(kill(arguments.kills, arguments.seed, Path(temporary), lambda said: print(said, flush=True)))
