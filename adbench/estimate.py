"""What a matrix will cost: passes counted from the methods, their time measured in a short probe."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch

from adbench import masking
from adbench.attacks import autoattack
from adbench.attacks.named import gradient_attack
from adbench.cell import Place, cell_dataset, network_for, weights_of
from adbench.losses import cross_entropy
from adbench.matrix import Cell, configured, passes
from adbench.train import LOG

# Standard AutoAttack on an image that survives: 100 + 9 x 100 APGD steps, 9 x 100 FAB steps of about one and a half
# passes each, 5,000 queries of Square. An image that falls costs a small part of it.
AA_PASSES, AA_QUERIES, AA_SURVIVING = 100 + 900 + 1350, 5000, 0.5


def steps(attack: str) -> int:
    """How many passes forward and back an attack takes an image that survives."""
    found = gradient_attack(attack, Fraction(0), Fraction(0))
    return found.steps * found.restarts


@dataclass(frozen=True)
class Speed:
    """Seconds an image of one forward and backward pass, and of one forward pass."""

    both: float
    forward: float


class Estimator:
    """Estimates for the cells of one run; each pair of architecture and data is probed once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._speeds: dict[tuple[str, str, str], Speed] = {}

    def of(self, cell: Cell, search: str = "exact") -> Speed:
        """Speed of a cell's network on random images, at its batch size but at most 64, or as AutoAttack runs it."""
        key = (cell.architecture, cell.dataset, search)
        if key not in self._speeds:
            self._speeds[key] = self._probe(cell, search)
        return self._speeds[key]

    def _probe(self, cell: Cell, search: str) -> Speed:
        dataset, device = cell_dataset(cell, self.place), self.place.torch_device
        network = network_for(cell, dataset) if cell.method else weights_of(cell, self.place, dataset, "best")
        network.to(device).eval()
        model = network if search == "exact" else autoattack.searching(network, search)
        x = torch.rand((min(64, cell.train.batch_size), *dataset.image_shape), device=device)
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
            if self.place.torch_device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - begun)
        return best

    def seconds(self, cell: Cell, state: str) -> float:
        """Expected wall seconds of what is left of a cell on one job."""
        if state == "done":
            return 0.0
        evaluation = self._evaluation(cell)
        if state == "evaluate":
            return evaluation
        log = cell.folder(self.place.results) / LOG
        begun = log.read_text(encoding="utf-8").count("\n") if state == "continue" and log.is_file() else 0
        return self._training(cell) * (1 - begun / cell.train.epochs) + evaluation

    def _training(self, cell: Cell) -> float:
        assert cell.method is not None
        dataset = cell_dataset(cell, self.place)
        cost = passes(configured(cell.method, cell.hyper), cell.method, cell.train.attack_steps)
        student = self.of(cell)
        # A method's own network is taken to be about the student's size.
        image = cost.student * student.both + (cost.student_forward + cost.own) * student.forward
        if cell.teacher:
            teacher = self.of(cell.teacher)
            image += cost.teacher * teacher.both + cost.teacher_forward * teacher.forward
        if cell.natural:
            image += cost.natural_forward * self.of(cell.natural).forward
        validation = (cell.train.val_steps * student.both + 2 * student.forward) * len(dataset.val)
        return cell.train.epochs * (image * len(dataset.train) + validation / cell.train.val_every)

    def _evaluation(self, cell: Cell) -> float:
        dataset = cell_dataset(cell, self.place)
        n, speed = len(dataset.test), self.of(cell)
        total = 0.0
        for name in cell.evaluation.attacks:
            if name in autoattack.VERSIONS:
                images = min(n, cell.evaluation.aa_images or n) * AA_SURVIVING
                # A fast search that would be slower is none.
                searched = min(speed, self.of(cell, cell.evaluation.aa_search), key=lambda found: found.both)
                total += images * (AA_PASSES * searched.both + AA_QUERIES * searched.forward)
            else:
                total += n * steps(name) * speed.both
        if cell.evaluation.masking:
            both, forward = masking.passes()
            total += min(n, cell.evaluation.masking) * (both * speed.both + forward * speed.forward)
        for proxy in cell.proxies:
            total += sum(map(steps, cell.evaluation.transfer_attacks)) * n * self.of(proxy).both
        return total
