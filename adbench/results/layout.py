"""The names and places of a results folder's files. Nothing else knows them; importing it costs nothing.

results/plans/ID.json                               what a run set out to do
results/tuning/ID.json                              a search for settings
results/DATASET/METHOD/TEACHER__STUDENT/sSEED-ID/   a student (ID: the beginning of its train_id)
results/DATASET/teachers/NAME-ID/                   a teacher; checkpoints/NAME-ID/: other weights
    cell.json  log.jsonl  training.json  best.safetensors  last.safetensors
    resume.pt  resume-2.pt                          of a training under way
    failure.pt                                      of one that became non-finite
    eval-ID/record.json  eval-ID/outcomes.parquet   an evaluation (ID: the beginning of its eval_id)
    eval-ID/adversarial/ATTACK-ID.npz               kept adversarial examples
    eval-ID/partial-ID.npz                          of an evaluation under way
    eval-ID/traceback.txt                           of a cell that failed
results/DATASET/cross/ID/cross.json  results/DATASET/cam/ID/cam.json, examples.npz
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adbench.errors import UserError

if TYPE_CHECKING:
    from adbench.experiment.cell import Cell

CONFIGURATION = "cell.json"
LOG = "log.jsonl"
SUMMARY = "training.json"
BEST, LAST = "best.safetensors", "last.safetensors"
WEIGHTS = {"last": LAST, "best": BEST}
STATES = ("resume.pt", "resume-2.pt")
"""Written in turn, so that the one before the last is whole whatever happens to the last."""
FAILURE = "failure{}.pt"
TRAINING = (CONFIGURATION, LOG, SUMMARY, BEST, LAST, *STATES)

RECORD = "record.json"
OUTCOMES = "outcomes.parquet"
ADVERSARIAL = "adversarial"
PARTIAL = "partial-{}.npz"
TRACEBACK = "traceback.txt"

PLANS = "plans"
TUNING = "tuning"
TEACHERS, CHECKPOINTS = "teachers", "checkpoints"
ANALYSES = ("cross", "cam")
"""Kinds of analysis: their folder, and their file's stem."""
EXAMPLES = "examples.npz"

_EVALUATION = "eval-"


def record_path(cell: Cell, results: Path) -> Path:
    """Where a cell's record lies."""
    return cell.folder(results) / f"{_EVALUATION}{cell.eval_id[:8]}" / RECORD


def is_evaluation(name: str) -> bool:
    """Whether a folder of that name in a network's folder holds an evaluation."""
    return name.startswith(_EVALUATION)


def guide_records(dataset_folder: Path, train_id: str) -> list[Path]:
    """The records among the results of a dataset of what may have taught or been attacked in a student's place: the
    teacher, or the weights from elsewhere, with this `train_id`."""
    folders = (dataset_folder / kind for kind in (TEACHERS, CHECKPOINTS))
    return [path for own in folders for path in sorted(own.glob(f"*-{train_id[:8]}/{_EVALUATION}*/{RECORD}"))]


def analysis_path(results: Path, dataset: str, kind: str, identity: str) -> Path:
    """Where an analysis lies. dataset: its folder's name."""
    return results / dataset / kind / identity[:8] / f"{kind}.json"


def check_there(results: Path) -> None:
    """Raise UserError for a results folder that is not there."""
    if not results.is_dir():
        raise UserError(f"results folder '{results}' does not exist; `adbench run` makes it")
