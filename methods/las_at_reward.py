"""What LAS-AT's policy learns from: how a copy of the student fares after one update on the examples that it made."""

import copy

import torch
from torch import Tensor

from adbench import Method, Net, Start, Step, hyper
from adbench.attacks.linf import climb, start_point
from adbench.losses import cross_entropy, wide

RESTARTS = 2  # of the attack on the updated copy (authors' code)


class Rewarding(Method):
    """A method that trains on label-smoothed cross-entropy and can tell what adversarial examples are worth."""

    true_mass: float | None = hyper(None, gt=0, le=1, doc="label mass on y (authors: 0.7, 0.6 over 10 classes)")
    copy_momentum: float = hyper(0.9, ge=0, lt=1, doc="momentum of the copy's one update (authors' code)")
    copy_weight_decay: float = hyper(5e-4, ge=0, doc="weight decay of the copy's one update (authors' code)")
    robust_reward: float = hyper(4.0, ge=0, doc="weight of the copy's robust accuracy (authors' code)")
    early_end: bool = hyper(
        True, later=True, doc="a restart of the copy's attack ends where the copy is right of no image (authors' code)"
    )
    clean_reward: float = hyper(2.0, ge=0, doc="weight of the copy's clean accuracy (authors' code)")

    def smoothed(self, logits: Tensor, y: Tensor) -> Tensor:
        """The target's label-smoothed cross-entropy, (B,)."""
        default = 0.7 if logits.shape[1] <= 10 else 0.6
        return cross_entropy(logits, y, default if self.true_mass is None else self.true_mass)

    def reward(self, step: Step, x_adv: Tensor) -> Tensor:
        """What examples x_adv are worth: R1 + R2 + R3, one number for the batch."""
        with step.still(), torch.no_grad():
            caused = step.mean(cross_entropy(step.student(x_adv), step.y)).clamp(0, 10)

        trained = Net(copy.deepcopy(step.student.module).train(), step.student.precision)
        optimiser = torch.optim.SGD(
            trained.module.parameters(), step.lr, momentum=self.copy_momentum, weight_decay=self.copy_weight_decay
        )
        optimiser.zero_grad()
        step.backward(self.smoothed(trained(x_adv), step.y).mean(), trained.module)
        optimiser.step()

        # The authors attack the copy in training mode: its batch-norm statistics move.
        examples = self._strongest(step, trained)
        trained.module.eval()
        with torch.no_grad():
            robust = step.mean(wide(trained(examples).argmax(1) == step.y, step.x.device))
            clean = step.mean(wide(trained(step.x).argmax(1) == step.y, step.x.device))
        parts = {"caused": caused, "robust": self.robust_reward * robust, "clean": self.clean_reward * clean}
        for name, part in parts.items():
            step.log(f"reward_{name}", part)
        return caused + parts["robust"] + parts["clean"]

    def _strongest(self, step: Step, net: Net) -> Tensor:
        """PGD on `net` (in training mode) from uniform starts; per image the restart of the largest loss."""
        net.module.train().requires_grad_(False)
        best, highest = step.x, torch.full_like(step.y, -1, dtype=step.x.dtype)
        for _ in range(RESTARTS):
            x_adv = start_point(step.x, Start.UNIFORM, step.threat.eps, step.generator)
            for _ in range(step.threat.steps):
                x_adv, right = self._one_step(step, net, x_adv)
                # In training mode every further pass would move the statistics.
                if self.early_end and not step.mean(wide(right, step.x.device)):
                    break
            with torch.no_grad():
                loss = cross_entropy(net(x_adv), step.y)
            better = loss >= highest
            best = torch.where(better[:, None, None, None], x_adv, best)
            highest = torch.where(better, loss, highest)
        return best

    def _one_step(self, step: Step, net: Net, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """One ascent step of the images that `net` still classifies correctly (B,), and which these are."""
        right = torch.zeros_like(step.y, dtype=torch.bool)

        def objective(x: Tensor) -> Tensor:
            logits = net(x)
            right.copy_(logits.argmax(1) == step.y)
            return cross_entropy(logits, step.y)

        x_next = climb(step.x, objective, x_adv, eps=step.threat.eps, step=step.threat.step, steps=1)
        return torch.where(right[:, None, None, None], x_next, x_adv), right
