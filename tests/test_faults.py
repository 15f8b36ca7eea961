"""What goes wrong on machines and disks, injected: nothing finished is lost, nothing damaged is believed."""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_resume import STATEFUL, assert_same_training, finish, small_cell, without_times
from tiny import cli, records, run

from adbench import data
from adbench.errors import UserError
from adbench.execution.execute import execute
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.experiment.config import Train
from adbench.models import build
from adbench.results import document, layout, provenance, record
from adbench.results.analyses import Cross
from adbench.results.summary import Summary, finished
from adbench.system import files, signals
from adbench.training import resume, trainer
from adbench.training.configured import configured
from adbench.training.step import Ball, Need
from adbench.weights import file_reader
from adbench.weights.checkpoint import save_weights

EPOCHS, BATCHES = 4, 4


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.use_deterministic_algorithms(True)


def trainer_of(method: str, folder: Path, *, dropout: bool = False) -> trainer.Trainer:
    torch.manual_seed(7)
    networks = [build("cnn-4", classes=10, channels=1) for _ in range(3)]
    if dropout:
        networks[0].register_forward_pre_hook(lambda net, x: (torch.nn.functional.dropout(x[0], 0.1, net.training),))
    return trainer.Trainer(
        method=configured(method, STATEFUL.get(method, {})),
        student=networks[0],
        teachers={Need.TEACHER: networks[1], Need.NATURAL_TEACHER: networks[2]},
        dataset=data.load("digits", Path(), train_images=16 * BATCHES, val_images=16, test_images=16),
        attack=Ball(0.1, 0.05, 2),
        validation=Ball(0.1, 0.05, 2),
        config=Train(epochs=EPOCHS, batch_size=16, attack_steps=2, val_steps=2, milestones=(0.5,)),
        seed=3,
        folder=folder,
        device=torch.device("cpu"),
    )


def train_on(method: str, folder: Path, **extra: Any) -> Summary:
    return trainer_of(method, folder, **extra).run(on_epoch=lambda _: None, on_batch=lambda *_: None)


def terminate_at(moment: tuple[int, int]) -> Any:
    """As on_batch: sends this process SIGTERM when it is at that batch of that epoch."""

    def on_batch(epoch: int, batch: int, _: int) -> None:
        if (epoch, batch) == moment:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_batch


# SIGTERM


@pytest.mark.parametrize("method", ["mtard", "las-at", "pgd-at"])
def test_training_that_is_terminated_saves_its_batch_and_ends_in_the_same_bits(method: str, tmp_path: Path) -> None:
    dropout = method == "pgd-at"
    train_on(method, tmp_path / "undisturbed", dropout=dropout)
    stopped = tmp_path / "stopped"
    for moment in ((0, 1), (0, 3), (1, BATCHES), (2, 2), (2, 3)):
        with signals.handled(), pytest.raises(signals.Stopped):
            trainer_of(method, stopped, dropout=dropout).run(on_epoch=lambda _: None, on_batch=terminate_at(moment))
        kept, _ = resume.Store(stopped).load(torch.device("cpu"))
        assert kept is not None
        assert (kept["epoch"], kept["under_way"]["batch"]) == moment, "the batch under way was finished and no other"
    train_on(method, stopped, dropout=dropout)
    assert_same_training(stopped, tmp_path / "undisturbed")


def test_sigterm_outside_training_ends_the_process_at_once() -> None:
    def asked() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    begun = time.monotonic()
    with signals.handled(), pytest.raises(signals.Stopped):
        asked()
    assert time.monotonic() - begun < 30


def test_sigterm_during_evaluation_keeps_what_is_finished(tmp_path: Path) -> None:
    cell = small_cell(eval={"images": 16, "attacks": ["fgsm", "pgd3", "pgd5"]})
    expected = finish(cell, tmp_path / "undisturbed")
    attacked: list[str] = []

    def terminate(event: dict[str, Any]) -> None:
        if event["what"] == "attack":
            attacked.append(event["name"])
            if event["name"] == "pgd3":
                os.kill(os.getpid(), signal.SIGTERM)

    place = Place(tmp_path, tmp_path, "cpu")
    with signals.handled(), pytest.raises(signals.Stopped):
        execute(cell, place, terminate)
    assert not layout.record_path(cell, tmp_path).exists(), "it is neither finished nor failed"
    found = execute(cell, place, terminate)
    assert attacked == ["fgsm", "pgd3", "pgd5"], "each was run once"
    assert found is not None
    assert found["outcomes"] == expected["outcomes"]


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_sigterm_ends_the_run_also_where_the_cell_fails_meanwhile(
    phase: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for the cell's failure, no further cell begins, and the exit code says what happened."""

    def terminated(*_: Any, **__: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise RuntimeError("what the interruption has broken")

    if phase == "train":
        monkeypatch.setattr(trainer.Trainer, "iterate", terminated)
    else:
        monkeypatch.setattr("adbench.execution.execute.evaluate", terminated)
    result = run("--methods", "pgd-at,trades", "--results", tmp_path)
    assert result.exit_code == signals.EXIT_CODE == 143
    assert not list(tmp_path.rglob("record.json")), "neither cell has failed"
    assert len(list(tmp_path.rglob("cell.json"))) == 1, "the second did not begin"


def test_sigterm_that_leads_to_another_refusal_is_still_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> Any:
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            raise UserError("a sentence")

    monkeypatch.setattr("adbench.plugins.listing.sections", refused)
    assert cli("list").exit_code == 143


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_is_terminated_exits_with_143_and_goes_on(jobs: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "adbench", "run", "--methods", "pgd-at,trades", "--student", "cnn-4", "--jobs", jobs]
    settings = ["train.epochs=60", "train.batch_size=32", "data.train_images=512", "data.val_images=16"]
    settings += ["eval.images=16", 'eval.attacks=["fgsm"]', "eval.proxies=[]", "eval.masking=0", "train.attack_steps=2"]
    words += [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    patience = time.monotonic() + 120
    while not list(tmp_path.rglob(layout.STATES[0])):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < patience
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == signals.EXIT_CODE == 143
    assert "adbench: stopped by SIGTERM; the same command goes on" in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("record.json"))
    found = [resume.Store(path.parent).load(torch.device("cpu")) for path in tmp_path.rglob(layout.STATES[0])]
    assert all(kept and not wrong for kept, wrong in found), "what is on disk is whole"


# Damaged files


def flip(path: Path, place: float) -> None:
    """One bit of a file, so far from its beginning (0) to its end (1)."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 16
    path.write_bytes(content)


def cut(path: Path, _: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path, _: float) -> None:
    path.write_bytes(b"")


def stop_after(folder: Path, epochs: int) -> None:
    """Leave a training of `folder` as a process does that is killed after so many epochs."""

    class Killed(BaseException):
        pass

    def killed(entry: dict[str, Any]) -> None:
        if entry["epoch"] == epochs:
            raise Killed

    with pytest.raises(Killed):
        trainer_of("las-at", folder).run(on_epoch=killed, on_batch=lambda *_: None)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.use_deterministic_algorithms(True)
    folder = tmp_path_factory.mktemp("undisturbed")
    train_on("las-at", folder)
    return folder


@pytest.mark.parametrize(
    ("damage", "place"), [(flip, 0.0), (flip, 0.001), (flip, 0.5), (flip, 0.999), (flip, 1.0), (cut, 0), (empty, 0)]
)
def test_a_damaged_state_is_passed_over_for_the_one_before(
    damage: Any, place: float, undisturbed: Path, tmp_path: Path
) -> None:
    stop_after(tmp_path, 3)
    newest = max((tmp_path / name for name in layout.STATES), key=lambda path: path.stat().st_mtime_ns)
    damage(newest, place)
    told: list[str] = []
    summary = trainer_of("las-at", tmp_path).run(lambda _: None, lambda *_: None, told.append)
    assert len(told) == 1
    assert told[0].startswith(f"'{newest}' is damaged (")
    assert told[0].endswith("the training goes on from the state after epoch 2")
    assert summary.notes == told, "the record says so too"
    (tmp_path / layout.SUMMARY).write_text(
        json.dumps(json.loads((tmp_path / layout.SUMMARY).read_text()) | {"notes": []}), encoding="utf-8"
    )
    assert_same_training(tmp_path, undisturbed)


def test_where_both_states_are_damaged_the_training_starts_over(undisturbed: Path, tmp_path: Path) -> None:
    stop_after(tmp_path, 3)
    for name in layout.STATES:
        flip(tmp_path / name, 0.7)
    told: list[str] = []
    trainer_of("las-at", tmp_path).run(lambda _: None, lambda *_: None, told.append)
    assert len(told) == 2
    assert all(said.endswith("the training starts over") for said in told)
    assert all(
        torch.equal(a, load_file(undisturbed / layout.BEST)[k]) for k, a in load_file(tmp_path / layout.BEST).items()
    )


def test_any_flipped_bit_of_a_state_is_noticed(tmp_path: Path) -> None:
    store = resume.Store(tmp_path)
    store.save({"weights": torch.arange(40.0)}, 1)
    path = tmp_path / layout.STATES[0]
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        kept, said = store.load(torch.device("cpu"))
        assert kept is None, f"byte {place}"
        assert len(said) == 1


def test_any_flipped_bit_of_saved_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, build("cnn-4", classes=3, channels=1), {})
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in [*range(start, len(whole), max(1, (len(whole) - start) // 50)), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="damaged, its weights have another SHA-256 than it states"):
            file_reader.read(path)


def test_a_cell_whose_weights_are_damaged_fails_with_the_remedy_and_the_others_go_on(tmp_path: Path) -> None:
    cell = small_cell()
    finish(cell, tmp_path)
    flip(cell.folder(tmp_path) / layout.BEST, 0.9)
    layout.record_path(cell, tmp_path).unlink()
    found = finish(cell, tmp_path)
    assert found["status"] == "failed"
    assert "is damaged" in found["error"]["message"]
    assert "delete its folder to train again" in found["error"]["message"]


@pytest.fixture(scope="module")
def finished_cell(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cell, Path, dict[str, Any]]:
    torch.use_deterministic_algorithms(True)
    cell, results = small_cell(), tmp_path_factory.mktemp("finished")
    return cell, results, finish(cell, results)


def test_any_flipped_bit_of_a_record_is_noticed_or_changes_nothing(
    finished_cell: tuple[Cell, Path, dict[str, Any]], tmp_path: Path
) -> None:
    cell, results, found = finished_cell
    whole = layout.record_path(cell, results).read_bytes()
    path, noticed = tmp_path / "record.json", 0
    (tmp_path / layout.OUTCOMES).write_bytes((layout.record_path(cell, results).parent / layout.OUTCOMES).read_bytes())
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 7]) + whole[place + 1 :])
        if said := record.damage(path):
            noticed += 1
            told = ("is damaged", "not a readable record", "schema version", "as its schema has it")
            assert any(words in said for words in told)
        else:  # white space, or the name of the digest itself
            read = document.opened(path)
            assert {key: read[key] for key in found} == found
    assert noticed > 0.8 * len(whole) / 3


@pytest.mark.parametrize("name", ["record.json", "outcomes.parquet"])
@pytest.mark.parametrize("damage", [flip, cut, empty, lambda path, _: path.unlink()])
def test_a_cell_with_a_damaged_record_or_outcomes_is_judged_again_and_not_trained(
    name: str, damage: Any, finished_cell: tuple[Cell, Path, dict[str, Any]]
) -> None:
    cell, results, expected = finished_cell
    weights = (cell.folder(results) / layout.BEST).stat().st_mtime_ns
    damage(layout.record_path(cell, results).parent / name, 0.5)
    told: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        if event["what"] == "note":
            told.append(event["says"])

    found = execute(cell, Place(results, results, "cpu"), listen)
    assert found is not None
    assert found["status"] == "done"
    assert without_times(found["metrics"]) == without_times(expected["metrics"])
    assert found["outcomes"] == expected["outcomes"]
    assert (cell.folder(results) / layout.BEST).stat().st_mtime_ns == weights
    if (name, damage.__name__) != ("record.json", "<lambda>"):
        assert len(told) == 1
        assert name in told[0]


@pytest.mark.usefixtures("one_thread")
def test_a_damaged_record_does_not_keep_a_run_from_the_other_cells(tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert run("--methods", "pgd-at,trades", "--results", results).exit_code == 0
    first, second = sorted(results.rglob("record.json"))
    before = records(results)
    cut(first, 0)
    for command in ("results", "report"):
        result = cli(command, "--results", results, *(["--out", tmp_path / "out"] if command == "report" else []))
        assert result.exit_code == 1
        assert f"'{first}' is not a readable record" in result.output
        assert "run its cell again" in result.output
    result = run("--methods", "pgd-at,trades", "--results", results)
    assert result.exit_code == 0, result.output
    assert "the cell is judged again" in result.output
    after = records(results)
    assert after[str(second.relative_to(results))] == before[str(second.relative_to(results))], "it was left alone"
    for path, found in after.items():
        assert without_times(found["metrics"]) == without_times(before[path]["metrics"])


def test_a_report_does_not_draw_on_damaged_outcomes(finished_cell: tuple[Cell, Path, dict[str, Any]]) -> None:
    cell, results, _ = finished_cell
    found = record.read(layout.record_path(cell, results))
    outcomes = found.path.parent / layout.OUTCOMES
    whole = outcomes.read_bytes()
    flip(outcomes, 0.4)
    with pytest.raises(UserError, match="is damaged: it has another SHA-256 than its record states"):
        found.verdicts()
    outcomes.write_bytes(whole)
    assert len(found.verdicts()) == 16


def test_a_damaged_log_or_summary_of_a_training_is_told(tmp_path: Path) -> None:
    cell = small_cell()
    finish(cell, tmp_path)
    found = record.read(layout.record_path(cell, tmp_path))
    log, summary = cell.folder(tmp_path) / layout.LOG, cell.folder(tmp_path) / layout.SUMMARY
    assert len(found.log()) == 3
    flip(log, 0.5)
    with pytest.raises(UserError, match=r"log.jsonl' is damaged .*; delete it to go on without its curve"):
        found.log()
    log.unlink()
    assert found.log() == []
    text = summary.read_text(encoding="utf-8")
    summary.write_text(text.replace('"best_epoch": ', '"best_epoch": 1'), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"training.json' is damaged .*another SHA-256.*; delete its folder to train again"
    ):
        finished(cell.folder(tmp_path))


# Disks


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_disk_that_takes_no_more_is_named_and_costs_one_epoch_at_most(
    number: int, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's own call fails, in the middle of a write, from the third epoch on."""
    fsync, asked = os.fsync, []

    def failing(handle: int) -> None:
        asked.append(handle)
        if len(asked) > 5:  # log and state of each epoch
            raise OSError(number, os.strerror(number))
        return fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(UserError, match=rf"cannot write '.*': {os.strerror(number)}; free the disk or choose another"):
        train_on("las-at", tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    assert not list(tmp_path.glob(".*.tmp"))
    kept, said = resume.Store(tmp_path).load(torch.device("cpu"))
    assert kept is not None
    assert (kept["epoch"], said) == (2, [])
    train_on("las-at", tmp_path)
    assert_same_training(tmp_path, undisturbed)


def _small_disk(folder: Path) -> list[str]:
    """A command prefix under which `folder` is a disk of one megabyte of its own."""
    prefix = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=1m none "{folder}" && exec "$@"', "sh"]
    if not folder.is_dir():
        folder.mkdir()
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk is not allowed here (unshare -rm)")
    return prefix


def test_a_run_on_a_full_disk_ends_with_one_sentence(tmp_path: Path) -> None:
    prefix = _small_disk(tmp_path / "disk")
    words = ["run", "--methods", "pgd-at", "--student", "cnn-32", "--results", str(tmp_path / "disk" / "results")]
    for setting in (
        "train.epochs=2",
        "data.train_images=64",
        "data.val_images=16",
        "eval.images=16",
        "eval.proxies=[]",
    ):
        words += ["--set", setting]
    result = subprocess.run([*prefix, sys.executable, "-m", "adbench", *words], capture_output=True, text=True)
    assert result.returncode in (1, 2)
    assert "No space left on device; free the disk or choose another folder" in " ".join(
        (result.stdout + result.stderr).split()
    )
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("one_thread")
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_trained() -> None:
    result = run("--methods", "pgd-at", "--results", Path("/proc/adbench"))
    assert result.exit_code == 2
    assert "cannot write '/proc/adbench/" in result.output
    assert "choose another folder" in result.output


def test_finished_results_are_read_where_nothing_can_be_written(
    finished_cell: tuple[Cell, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files.tempfile, "mkstemp", refused)
    _, results, _ = finished_cell
    result = cli("results", "--results", results)
    assert result.exit_code == 0
    assert "LAS-AT" in result.output
    refusal = cli("report", "--results", results, "--out", tmp_path / "out")
    assert refusal.exit_code == 2
    assert "Read-only file system" in refusal.output


# The tables


@pytest.mark.parametrize("page", ["reliability.md", "security.md"])
def test_every_test_that_the_tables_name_exists(page: str) -> None:
    here = Path(__file__).resolve().parent
    sources = "\n".join(path.read_text(encoding="utf-8") for path in here.glob("test_*.py"))
    tests = re.findall(r"^def (test_\w+)", sources, re.MULTILINE)
    named = re.findall(r"`(test_[\w.]+)`", (here.parent / "docs" / page).read_text(encoding="utf-8"))
    assert len(named) > 10
    for name in named:
        there = (here / name).is_file() if name.endswith(".py") else fnmatch.filter(tests, name.replace("...", "*"))
        assert there, name


# Clocks


def test_a_clock_that_jumps_back_changes_no_time_and_no_result(
    finished_cell: tuple[Cell, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, _, expected = finished_cell
    asked: list[datetime] = []

    class Jumping(datetime):
        @classmethod
        def now(cls, _tz: Any = None) -> Any:
            asked.append(datetime(2026, 5, 1, tzinfo=UTC) - timedelta(days=30 * len(asked)))
            return asked[-1]

    monkeypatch.setattr(provenance, "datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: 1e9 - 1e6 * len(asked))
    found = finish(cell, tmp_path)
    assert found["status"] == "done"
    assert len(asked) > 1
    assert without_times(found["metrics"]) == without_times(expected["metrics"])
    assert all(0 <= seconds < 600 for seconds in found["timing"].values())
    assert all(0 <= metric["seconds"] < 600 for metric in found["metrics"].values())
    assert record.finished(layout.record_path(cell, tmp_path)), "and it is not run again"


def test_documents_hold_what_was_written_and_older_ones_need_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    (written,) = (Path(__file__).parent / "before").rglob("cross.json")
    content = {key: value for key, value in json.loads(written.read_text("utf-8")).items() if key != "digest"}
    document.write(path, content)
    first = document.read(path, Cross, "")
    assert first.networks[0].clean.correct == content["networks"][0]["clean"]["correct"]
    files.write_json(path, content)
    assert document.read(path, Cross, "") == first
    files.write_json(path, content | {"digest": "0" * 64})
    with pytest.raises(UserError, match=r"\(it is damaged: its content has another SHA-256 than it states\); do this"):
        document.read(path, Cross, "do this")
