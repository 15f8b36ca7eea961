"""The GPU campaign, rehearsed on the CPU: its results are whole at every moment, whatever becomes of its entries."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import gpu_campaign
from gpu_campaign import Campaign, Entry

from adbench.models import build
from adbench.results import record
from adbench.weights import checkpoint

if TYPE_CHECKING:
    from gpu_entries import Job

OPTIONS = {"device": "cpu", "small": True, "data": None, "teacher": None}
MARK = "ADBENCH_TEST_CAMPAIGN"


def start(out: Path, *words: str) -> subprocess.Popen[str]:
    """A rehearsal as its user starts it; all its processes carry a mark."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks/gpu_campaign.py"),
        "--device",
        "cpu",
        "--small",
        "--out",
        str(out),
    ]
    environment = os.environ | {MARK: str(out), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *words], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def processes_of(out: Path, called: str = "") -> list[str]:
    """The processes that carry the mark, with `called` in their command."""
    mark, found = f"{MARK}={out}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(f"{folder.name}: {(folder / 'cmdline').read_bytes()[:200]!r}")
        except OSError:
            continue
    return [command for command in found if called in command]


def all_gone(out: Path, patience: float = 120.0) -> bool:
    ends = time.monotonic() + patience
    while processes_of(out) and time.monotonic() < ends:
        time.sleep(0.1)
    return not processes_of(out)


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class Rehearsal:
    out: Path
    code: int
    said: str


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    out = tmp_path_factory.mktemp("campaign") / "out"
    process = start(out, "--seconds", "1500")
    said, _ = process.communicate(timeout=1500)
    return Rehearsal(out, process.returncode, said)


@pytest.mark.slow
def test_a_rehearsal_carries_out_every_entry_and_leaves_few_small_files(rehearsal: Rehearsal) -> None:
    found = read(rehearsal.out)
    assert {name: entry["status"] for name, entry in found["entries"].items()} == {
        entry.name: "done" for entry in gpu_campaign.ENTRIES
    }, rehearsal.said
    assert rehearsal.code == 0
    assert all(entry["rows"] or name == "graphs" for name, entry in found["entries"].items()), (
        "a CPU has no CUDA graphs"
    )
    assert found["processes"] == []
    files = list(rehearsal.out.iterdir())
    assert len(files) <= 8
    assert max(path.stat().st_size for path in files) <= 16 * 2**20
    summary = (rehearsal.out / "summary.md").read_text(encoding="utf-8")
    assert summary.strip() in rehearsal.said
    assert all(f"| {entry.name} |" in summary for entry in gpu_campaign.ENTRIES)
    assert all_gone(rehearsal.out)


@pytest.mark.slow
def test_a_rehearsals_records_and_weights_can_be_used(rehearsal: Rehearsal, tmp_path: Path) -> None:
    with tarfile.open(rehearsal.out / "records.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    kept = [record.read(path) for path in tmp_path.rglob("record.json")]
    assert {"student", "checkpoint"} <= {found.kind for found in kept}
    cells = [row for row in read(rehearsal.out)["entries"]["table"]["rows"] if row["what"] == "cell"]
    recorded = {(found.student, found.metrics["aa"].value) for found in kept if "aa" in found.metrics}
    assert {(row["student"], row["aa"]) for row in cells} == recorded
    checkpoint.load(build("cnn-4", classes=10, channels=1), rehearsal.out / "teacher.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_campaign_killed_at_a_random_moment_leaves_whole_results(
    number: signal.Signals, rehearsal: Rehearsal, tmp_path: Path
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # shown where the test fails
    out = tmp_path / "out"
    names = ("steps", "attacks", "teacher", "verify")
    whole = {name: read(rehearsal.out)["entries"][name] for name in names}
    process = start(out, "--seconds", "1500", "--only", ",".join(names))
    while not (out / "results.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    while not processes_of(out, "forkserver"):  # which imports everything
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 5 + sum(entry["seconds"] for entry in whole.values())))
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert all_gone(out), processes_of(out)
    found = read(out)["entries"]
    for name, entry in found.items():
        assert entry["status"] in ("done", "running", "interrupted", "not reached"), (seed, name, entry)
        whats = [row["what"] for row in entry.get("rows", [])]
        expected = [row["what"] for row in whole[name]["rows"]]
        assert whats == (expected if entry["status"] == "done" else expected[: len(whats)]), (seed, name)
    if process.returncode == 143:
        assert "running" not in {entry["status"] for entry in found.values()}
        assert (out / "summary.md").read_text(encoding="utf-8").strip() in said
    else:
        assert process.returncode in (-number, 0), seed


# Entries that misbehave


def hangs(job: Job) -> None:
    job.row("seen", number=1)
    sleeper = subprocess.Popen(["sleep", "1000"])
    job.fact(sleeper=sleeper.pid)
    sleeper.wait()


def crashes(job: Job) -> None:
    job.row("seen", number=2)
    print("about to crash")
    os.kill(os.getpid(), signal.SIGSEGV)


def raises(job: Job) -> None:
    job.row("seen", number=3)
    raise ValueError("no such thing")


def complains(job: Job) -> None:
    with job.trying("a part"):
        raise ValueError("half of it")
    job.row("seen", number=float("nan"))


def works(job: Job) -> None:
    job.row("seen", number=4)
    job.found("all well")


def entry(name: str, limit: float = 30.0, needs: tuple[str, ...] = ()) -> Entry:
    return Entry(name, f"what {name}", f"test_gpu_campaign:{name}", limit, 1.0, needs)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a campaign changes in its process is put back."""
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTORCH_NVML_BASED_CUDA_CHECK"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    gpu_campaign.set_environment()


@pytest.mark.slow
@pytest.mark.usefixtures("environment")
def test_what_hangs_crashes_or_raises_is_told_and_stops_nothing(tmp_path: Path) -> None:
    entries = [entry("hangs", 3.0), entry("crashes"), entry("raises"), entry("complains"), entry("works")]
    campaign = Campaign(entries, seconds=120, out=tmp_path / "out", options=OPTIONS)
    campaign.run()
    found = read(tmp_path / "out")["entries"]
    assert {name: each["status"] for name, each in found.items()} == {
        "hangs": "timed out",
        "crashes": "failed",
        "raises": "failed",
        "complains": "failed",
        "works": "done",
    }
    assert [len(each["rows"]) for each in found.values()] == [1] * 5
    assert found["hangs"]["seconds"] < 8
    assert "sleeper.wait" in "".join(found["hangs"]["last lines"]) or "in hangs" in "".join(
        found["hangs"]["last lines"]
    )
    assert "about to crash" in "".join(found["crashes"]["last lines"])
    assert f"{-signal.SIGSEGV}" in found["crashes"]["why"]
    assert "ValueError: no such thing" in "".join(found["raises"]["last lines"])
    assert "half of it" in found["complains"]["wrong"][0]
    assert not Path(f"/proc/{found['hangs']['facts']['sleeper']}").exists()
    assert not campaign.good
    assert not campaign.scratch.exists()
    summary = (tmp_path / "out/summary.md").read_text(encoding="utf-8")
    assert "| works | what works | done |" in summary
    assert "all well" in summary


@pytest.mark.usefixtures("environment")
def test_an_entry_whose_files_are_missing_is_skipped_and_not_passed(tmp_path: Path) -> None:
    options = OPTIONS | {"small": False}
    campaign = Campaign([entry("works", needs=("data",))], seconds=60, out=tmp_path / "out", options=options)
    campaign.context = object()
    campaign._carry_out(campaign.entries[0], ())
    found = campaign.results["entries"]["works"]
    assert (found["status"], found["why"]) == ("skipped", "needs --data")


def test_an_earlier_entry_leaves_later_ones_what_they_need_least() -> None:
    first, second, third = (Entry(name, "", "", 100, 40) for name in ("first", "second", "third"))
    assert gpu_campaign.allowance(first, (second, third), 500) == 100
    assert gpu_campaign.allowance(first, (second, third), 130) == 50
    # Where not all can have what they need, the last goes without.
    assert gpu_campaign.allowance(first, (second, third), 90) == 50
    assert gpu_campaign.allowance(first, (second, third), 30) == 30
    assert gpu_campaign.allowance(first, (), 500, scale=3) == 300


def test_the_archive_fits_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    results = tmp_path / "table" / "results" / "digits"
    results.mkdir(parents=True)
    (results / "record.json").write_text("{}", encoding="utf-8")
    (results / "last.safetensors").write_bytes(b"0")
    (results / "outcomes.parquet").write_bytes(random.Random(0).randbytes(20_000))
    left_out = gpu_campaign.pack(tmp_path, tmp_path / "records.tar.gz", largest=2000)
    assert left_out == ["table/results/digits/outcomes.parquet"]
    with tarfile.open(tmp_path / "records.tar.gz") as archive:
        assert archive.getnames() == ["table/results/digits/record.json"]


@pytest.mark.slow
def test_what_is_imported_before_the_processes_part_asks_nothing_of_a_gpu(tmp_path: Path) -> None:
    asked = (
        "import torch\n"
        "def refuse(*_): raise SystemExit('a GPU was asked for')\n"
        "torch._C._cuda_getDeviceCount = torch._C._cuda_init = torch.cuda._lazy_init = refuse\n"
        f"for name in {gpu_campaign.PRELOADED}: __import__(name)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks"), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run([sys.executable, "-c", asked], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
