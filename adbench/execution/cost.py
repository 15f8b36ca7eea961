"""What a matrix will cost: passes counted from the methods, their time measured in a short probe.

Beside the expected time stands a floor: the multiply-adds of all these passes at the rate that the device reaches in
matrix products. No implementation can be faster, and the distance says what is left to gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch

from adbench.attacks import autoattack
from adbench.attacks.named import gradient_attack
from adbench.evaluation import masking
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.losses import cross_entropy
from adbench.models.flops import matrix_rate, multiply_adds_of, synchronize
from adbench.results import layout
from adbench.training.configured import configured, training_passes
from adbench.training.method import Passes
from adbench.weights.networks import cell_dataset, initial

# Standard AutoAttack on an image that survives: 100 + 9 x 100 APGD steps, 9 x 100 FAB steps of about one and a half
# passes each, 5,000 queries of Square. An image that falls costs a small part of it.
AA_PASSES, AA_QUERIES, AA_SURVIVING = 100 + 900 + 1350, 5000, 0.5


def steps(attack: str) -> int:
    """How many passes forward and back an attack takes an image that survives."""
    definition = gradient_attack(attack, Fraction(0), Fraction(0))
    return definition.steps * definition.restarts


@dataclass(frozen=True)
class Speed:
    """Seconds an image of one forward and backward pass, and of one forward pass."""

    both: float
    forward: float


@dataclass(frozen=True)
class Cost:
    """What a cell costs, whatever of it is done already.

    passes: of the training, an image and epoch; None for a network that is not trained. multiply_adds: the same, in
    multiply-adds. floor: seconds of the whole training at the device's matrix rate. seconds: expected wall seconds of
    what is left, evaluation included. whole: the same of all its training and all its evaluation, 0 where it is done.
    """

    passes: Passes | None
    multiply_adds: float
    floor: float
    seconds: float
    whole: tuple[float, float]


class Estimator:
    """Estimates for the cells of one run; each pair of architecture and data is probed once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._speeds: dict[tuple[str, str, str], Speed] = {}

    def of(self, cell: Cell, search: str = "") -> Speed:
        """Speed of a cell's network on random images, at its batch size but at most 64, or as AutoAttack runs it.

        search: AutoAttack's.
        """
        key = (cell.architecture, cell.dataset, search)
        if key not in self._speeds:
            self._speeds[key] = self._probe(cell, search)
        return self._speeds[key]

    def _probe(self, cell: Cell, search: str) -> Speed:
        dataset, device = cell_dataset(cell, self.place.data_dir), self.place.torch_device
        network = initial(cell, dataset).to(device).eval()
        x = torch.rand((min(64, cell.train.batch_size), *dataset.image_shape), device=device)
        model = autoattack.searching(network, search) if search else network
        y = torch.zeros(len(x), dtype=torch.long, device=device)

        def forward() -> None:
            with torch.no_grad():
                model(x)

        def both() -> None:
            x.requires_grad_(True)
            torch.autograd.grad(cross_entropy(model(x), y).sum(), x)
            x.requires_grad_(False)

        return Speed(self._time(both) / len(x), self._time(forward) / len(x))

    def _time(self, work: Callable[[], None]) -> float:
        """The faster of two runs, after one that warms up: seconds."""
        work()
        best = float("inf")
        for _ in range(2):
            begun = time.perf_counter()
            work()
            synchronize(self.place.torch_device)
            best = min(best, time.perf_counter() - begun)
        return best

    def whole(self, cell: Cell, state: str) -> tuple[float, float]:
        """Expected wall seconds of a cell's training and evaluation on one job, 0 of a cell that is done."""
        if state == "done":
            return 0.0, 0.0
        return self._training(cell) if cell.method else 0.0, self._evaluation(cell)

    def _left(self, cell: Cell, state: str, whole: tuple[float, float]) -> float:
        training, evaluation = whole
        if state in ("done", "evaluate"):
            return evaluation
        log = cell.folder(self.place.results) / layout.LOG
        begun = log.read_text(encoding="utf-8").count("\n") if state == "continue" and log.is_file() else 0
        return training * (1 - begun / cell.train.epochs) + evaluation

    def cost(self, cell: Cell, state: str) -> Cost:
        """Passes, multiply-adds, floor and expected time of a cell."""
        cost, whole = self._passes(cell), self.whole(cell, state)
        left = self._left(cell, state, whole)
        if cost is None:
            return Cost(None, 0.0, 0.0, left, whole)
        each = self._multiply_adds(cell, cost)
        total = each * len(cell_dataset(cell, self.place.data_dir).train) * cell.train.epochs
        rate = matrix_rate(self.place.torch_device, torch.float32)
        return Cost(cost, each, total / rate, left, whole)

    def _passes(self, cell: Cell) -> Passes | None:
        if cell.method is None:
            return None
        return training_passes(configured(cell.method, cell.hyper), cell.method, cell.train)

    def _multiply_adds(self, cell: Cell, cost: Passes) -> float:
        """Of one training image in one epoch."""
        dataset = cell_dataset(cell, self.place.data_dir)

        def of(one: Cell | None) -> int:
            return multiply_adds_of(one.architecture, dataset.classes, dataset.image_shape) if one else 0

        # A backward pass to the input costs as much as a forward pass, one to the weights as much again. The attack
        # needs none of these, and an update at most that of a clean and an adversarial batch.
        attack = min(cell.train.attack_steps, cost.student - 1)
        student = 2 * cost.student + min(2, cost.student - attack) + cost.student_forward + cost.own
        teacher = 2 * cost.teacher + cost.teacher_forward
        return student * of(cell) + teacher * of(cell.teacher) + cost.natural_forward * of(cell.natural)

    def _training(self, cell: Cell) -> float:
        dataset, cost = cell_dataset(cell, self.place.data_dir), self._passes(cell)
        assert cost is not None
        student = self.of(cell)
        # A method's own network is taken to be about the student's size.
        image = cost.student * student.both + (cost.student_forward + cost.own) * student.forward
        if cell.teacher:
            teacher = self.of(cell.teacher)
            image += cost.teacher * teacher.both + cost.teacher_forward * teacher.forward
        if cell.natural:
            image += cost.natural_forward * self.of(cell.natural).forward
        validation = (cell.train.val_steps * student.both + 2 * student.forward) * len(dataset.val)
        if cell.train.statistics.startswith("re-estimated"):
            validation += student.forward * len(dataset.train)
        return cell.train.epochs * (image * len(dataset.train) + validation / cell.train.val_every)

    def _evaluation(self, cell: Cell) -> float:
        dataset = cell_dataset(cell, self.place.data_dir)
        n, speed = len(dataset.test), self.of(cell)
        total = 0.0
        for name in cell.evaluation.attacks:
            if name in autoattack.VERSIONS:
                images = min(n, cell.evaluation.aa_images or n) * AA_SURVIVING
                searched = self.of(cell, cell.evaluation.aa_search)
                ascents = 0 if name == autoattack.SQUARE else AA_PASSES
                total += images * (ascents * searched.both + AA_QUERIES * searched.forward)
            else:
                total += n * steps(name) * speed.both
        if cell.evaluation.masking:
            both, forward = masking.passes()
            total += min(n, cell.evaluation.masking) * (both * speed.both + forward * speed.forward)
        for proxy in cell.proxies:
            total += sum(map(steps, cell.evaluation.transfer_attacks)) * n * self.of(proxy).both
        return total
