"""Whether there is what an experiment names: methods, students, teachers, datasets, attacks. No torch.

Asked before torch is loaded, so that a mistyped name is answered at once. Whether they fit each other shows later.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from adbench.data.identity import check_extra
from adbench.data.identity import known as known_dataset
from adbench.errors import UserError
from adbench.experiment import attack_names, declared, teacher
from adbench.experiment.config import Experiment
from adbench.models.names import ONNX, canonical, together
from adbench.registry import method_names
from adbench.system.files import expanded


def check(experiment: Experiment) -> None:
    """Raise UserError for the first name that there is not."""
    method_names(experiment.methods)
    for name in experiment.datasets:
        known_dataset(name)
    for name in experiment.students:
        if canonical(name) == ONNX:
            raise UserError("an ONNX file is judged by `adbench eval`; a student's architecture is to be trained")
        if len(together(canonical(name))) > 1:
            raise UserError(f"'{name}' is an ensemble; a student is one network")
    if experiment.train.init is not None:
        teacher.check_file(teacher.split_key(Path(experiment.train.init))[0], "train.init")
    if experiment.data.extra is not None:
        check_extra(expanded(Path(experiment.data.extra)))
    judged = experiment.evaluation
    for name in (*experiment.teachers, *judged.proxies):
        _teacher(name, experiment.datasets[0])
    for name in (*judged.attacks, *judged.transfer_attacks):
        attack_names.known(name)


def hyperparameters(experiment: Experiment, given: Collection[str]) -> None:
    """Raise UserError for hyperparameters that a method does not have, or not of these values, as far as its source
    tells. given: the methods that the user set some of."""
    for name in method_names(experiment.methods):
        if name in given:
            declared.check(name, experiment.hyper.get(name, {}))


def _teacher(name: str, dataset: str) -> None:
    """Raise UserError for a teacher that there is not; of a checkpoint, whose hash takes a while, for no file."""
    architecture, at, file = name.partition("@")
    if not at or name.endswith(".toml"):
        teacher.find(name, dataset)
        return
    canonical(architecture)
    path, _ = teacher.split_key(expanded(Path(file)))
    teacher.check_file(path, f"teacher '{path.stem}'")
