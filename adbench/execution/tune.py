"""`adbench tune`: random search over settings of a method, on the held-out images alone.

A search spends a budget of forward and backward passes an image, the same for every method: one whose iterations cost
more tries fewer settings. The recipe as it is comes first, and is part of the budget. Test images are withheld: the
dataset that trains has none.
"""

from __future__ import annotations

import itertools
import json
import random
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adbench import __version__
from adbench.data.dataset import without_test
from adbench.errors import UserError
from adbench.execution.engines.worker import set_up_torch
from adbench.execution.execute import train
from adbench.execution.expand import expand
from adbench.execution.place import Place
from adbench.execution.runner import OnEvent
from adbench.experiment.cell import Cell
from adbench.experiment.config import Experiment
from adbench.experiment.settings import variants
from adbench.results import document, tuning
from adbench.results.provenance import now
from adbench.results.tuning import Trial, Tuning
from adbench.system import terminal
from adbench.system.files import content_id
from adbench.training.configured import configured, training_passes
from adbench.weights.networks import cell_dataset, lookup


@dataclass(frozen=True)
class Drawn:
    """A setting to be tried, its student and what its training costs in passes an image."""

    settings: dict[str, Any]
    cell: Cell
    passes: float


class Search:
    """A search that is drawn and paid for, of which nothing is trained yet.

    experiment: of one method, dataset, student and teacher. over: values by the key of their setting. budget: passes an
    image. seed: of the draw. Raises UserError for values that a setting cannot have, and where the budget does not pay
    for the recipe as it is and one setting more.
    """

    def __init__(
        self, experiment: Experiment, over: Mapping[str, Sequence[Any]], budget: float, seed: int, place: Place
    ) -> None:
        self.over, self.budget, self.seed, self.place = dict(over), budget, seed, place
        combinations = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
        random.Random(seed).shuffle(combinations)
        self.drawn: list[Drawn] = []
        left = budget
        for settings in [{}, *combinations]:
            one = self._drawn(experiment, settings)
            if one.passes > left:
                break
            if all(one.cell.train_id != other.cell.train_id for other in self.drawn):
                self.drawn.append(one)
                left -= one.passes
        if len(self.drawn) < 2:
            least = 2 * self._drawn(experiment, {}).passes
            raise UserError(
                f"--budget {budget:g}: the recipe as it is and one setting beside it take about {least:g} passes an "
                "image, if they differ; give more, or fewer epochs (--set train.epochs=N)"
            )
        self.cell = self.drawn[0].cell
        identity = [self.cell.train_id, self.over, budget, seed]
        self.path = tuning.path_of(place.results, content_id(identity)[:16])

    def _drawn(self, experiment: Experiment, settings: dict[str, Any]) -> Drawn:
        swept = {key: (value,) for key, value in settings.items()}
        (one,) = variants(experiment.model_copy(update={"sweep": swept}))
        students = expand(one, lookup(self.place.data_dir)).students
        if len(students) != 1:
            raise UserError("a search is of one method, dataset, student, teacher and seed; name one of each")
        (cell,) = students
        cost = training_passes(configured(str(cell.method), cell.hyper), str(cell.method), cell.train)
        return Drawn(settings, cell, cost.total * cell.train.epochs)

    def run(self, threads: int, on_event: OnEvent) -> Tuning:
        """Train every setting that was drawn, or go on with it, and leave the record of the search.

        Raises UserError where a teacher cannot be trained, or another process trains one of the cells.
        """
        set_up_torch(self.place, threads)
        for guide in (self.cell.teacher, self.cell.natural):
            if guide and guide.method:
                self._train(guide, on_event)
        trials: list[Trial] = []
        for drawn in self.drawn:
            trials.append(self._trial(drawn, on_event))
            self._write(trials)
        return tuning.read(self.path)

    def _train(self, cell: Cell, on_event: OnEvent) -> Any:
        on_event(cell, {"what": "start"})
        dataset = without_test(cell_dataset(cell, self.place.data_dir))
        return train(cell, self.place, lambda event: on_event(cell, event), dataset)

    def _trial(self, drawn: Drawn, on_event: OnEvent) -> Trial:
        cell = drawn.cell
        try:
            done = self._train(cell, on_event)
        except UserError as error:
            failure = {"phase": "train", "message": str(error)}
            on_event(cell, {"what": "end", "record": {"status": "failed", "error": failure, "metrics": {}}})
            failed = str(error)
            return Trial(drawn.settings, cell.train_id, drawn.passes, cell.train.epochs, 0.0, None, 0, failed)
        metrics = {f"{tuning.told(drawn.settings)}: held-out robust": {"value": done.best_val_robust}}
        on_event(cell, {"what": "end", "record": {"status": "done", "metrics": metrics}})
        figures = (done.seconds, done.best_val_robust, done.best_epoch)
        return Trial(drawn.settings, cell.train_id, drawn.passes, cell.train.epochs, *figures)

    def _write(self, trials: Sequence[Trial]) -> None:
        cell = self.cell
        content = {
            "schema_version": document.SCHEMA_VERSION,
            "id": self.path.stem,
            "adbench": __version__,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "written": now(),
            "method": cell.method,
            "dataset": cell.dataset,
            "student": cell.architecture,
            "teacher": cell.teacher_name,
            "seed": self.seed,
            "budget": self.budget,
            "held_out": len(cell_dataset(cell, self.place.data_dir).val),
            "over": {key: list(values) for key, values in self.over.items()},
            "trials": [asdict(trial) for trial in trials],
        }
        document.write(self.path, content)


def lines(found: Tuning) -> Iterator[str]:
    """The search as lines that fit the terminal, and the options that judge the best setting beside the recipe's."""
    yield f"{len(found.trials)} settings for {found.spent:g} of {found.budget:g} passes an image"
    rows = [("settings", "held-out robust %", "best epoch", "passes")]
    for trial in found.trials:
        robust = "failed" if trial.val_robust is None else f"{100 * trial.val_robust:.2f}"
        rows.append((tuning.told(trial.settings), robust, str(trial.best_epoch), f"{trial.passes:g}"))
    yield from terminal.table(rows)
    if found.best is None:
        yield "all failed"
        return
    yield from terminal.wrapped(f"best on {found.held_out} held-out images: {tuning.told(found.best.settings)}")
    options = " ".join(f"--set {shlex.quote(f'{key}={json.dumps(v)}')}" for key, v in found.best.settings.items())
    if options:
        yield from terminal.wrapped(f"to judge it beside the recipe as it is: adbench run with and without {options}")
