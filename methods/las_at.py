from typing import Annotated, Any

import torch
from pydantic import Field, PrivateAttr, field_validator
from torch import Tensor, nn

from adbench import Passes, Start, Step, hyper
from adbench.attacks.linf import choice, start_point
from adbench.losses import cross_entropy
from adbench.models import build, canonical

from .las_at_reward import Rewarding

Choices = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


class Policy(nn.Module):
    """The strategy network: for each image, a distribution over attack radii, step counts and step sizes."""

    def __init__(self, architecture: str, channels: int, choices: dict[str, int]) -> None:
        super().__init__()
        self.body = build(architecture, classes=2, channels=channels)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(self.body.classifier.in_features, n) for name, n in choices.items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (B, C, H, W) in [0, 1]. Returns the logits of each head, (B, number of choices)."""
        pooled = self.body.forward_features(x)[1].mean(dim=(2, 3))
        return {name: head(pooled) for name, head in self.heads.items()}


class LASAT(Rewarding):
    """Learnable attack strategy (Jia et al., CVPR 2022), the PGD variant that SmaraAD compares with.

    attack:  max  CE(S(x'), y) with radius, steps and step size drawn for each image by a policy network
    loss:    label-smoothed CE(S(x'), y)
    policy:  min  -log pi(action) (clamp(CE(S(x'), y), 0, 10) + 4 robust + 2 clean accuracy of an updated copy of S)
    Every `interval` iterations the policy takes a REINFORCE step on one reward for the batch: the loss it caused,
    plus the robust and the clean accuracy of a copy of the student after one update on its examples. Radii and
    step sizes are in eighths of the threat model's eps: 1/255 each at eps 8/255. They go up to 15/8 of eps, so
    the method trains outside the threat model unless `cap_eps` is set.

    differs: the code's learning-rate schedule for the policy never takes effect (milestones in the target's
    iterations, steps in the policy's), so here the rate is constant. The copy is updated with the optimiser's
    rate; the code asks its scheduler, which is wrong at a milestone.
    """

    label = "LAS-AT"
    divisible = False  # one reward for the whole batch
    shares = True
    rehearses = True  # the policy learns in the attack
    eps_choices: Choices = hyper(tuple(range(3, 16)), doc="radii in eps/8 (authors' README)")
    steps_choices: Choices | None = hyper(None, doc="numbers of steps (authors: 3-14, 3-12 over 10 classes)")
    step_choices: Choices = hyper(tuple(range(1, 6)), doc="step sizes in eps/8 (authors' README)")
    cap_eps: int | None = hyper(None, ge=1, doc="largest radius in eps/8; 8 keeps to the threat model (authors: none)")
    policy: str = hyper("rn18", doc="architecture of the policy network (authors' code)")
    policy_lr: float = hyper(1e-4, gt=0, doc="learning rate of the policy's SGD (authors' code)")
    policy_momentum: float = hyper(0.0, ge=0, lt=1, doc="its momentum (authors' CIFAR-100 script: 0.9)")
    policy_weight_decay: float = hyper(0.0, ge=0, doc="its weight decay (authors' CIFAR-100 script: 5e-4)")
    interval: int = hyper(20, ge=1, doc="iterations between policy updates (authors' code)")

    @field_validator("policy")
    @classmethod
    def _known(cls, name: str) -> str:
        return canonical(name)

    _policy: Policy = PrivateAttr()
    _optimiser: torch.optim.SGD = PrivateAttr()
    _choices: dict[str, tuple[int, ...]] = PrivateAttr()

    def radii(self) -> tuple[int, ...]:
        """The radii to choose from, in eps/8."""
        return tuple(min(e, self.cap_eps or e) for e in self.eps_choices)

    def reach(self) -> float:
        return max(1.0, max(self.radii()) / 8)  # the random start is in the ball whatever the radius

    def setup(self, step: Step) -> None:
        classes = step.student.module.classifier.out_features
        counts = self.steps_choices or tuple(range(3, 15 if classes <= 10 else 13))
        self._choices = {"eps": self.radii(), "steps": counts, "step": self.step_choices}
        sizes = {name: len(values) for name, values in self._choices.items()}
        self._policy = Policy(self.policy, step.x.shape[1], sizes).to(step.x.device, step.x.dtype)
        self._optimiser = torch.optim.SGD(
            self._policy.parameters(),
            lr=self.policy_lr,
            momentum=self.policy_momentum,
            weight_decay=self.policy_weight_decay,
        )

    def attack(self, step: Step) -> Tensor:
        if step.iteration % self.interval == 0:
            self._improve_policy(step)
        self._policy.eval()
        with torch.no_grad():
            return self.craft(step, self.sample(self._policy(step.x), step))

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        return step.term("cross_entropy", self.smoothed(step.student(x_adv), step.y))

    def sample(self, logits: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """One choice (an index) for each image and head."""
        return {name: choice(head.softmax(dim=1), step.generator) for name, head in logits.items()}

    def craft(self, step: Step, actions: dict[str, Tensor]) -> Tensor:
        """Examples by the chosen strategies."""
        chosen = {
            name: torch.tensor(self._choices[name], device=step.x.device)[index] for name, index in actions.items()
        }
        unit = step.threat.eps / 8
        return step.ascend(
            lambda x: cross_entropy(step.student(x), step.y),
            # Whatever an image's own radius is, it starts in the threat model's ball.
            start=start_point(step.x, Start.UNIFORM, step.threat.eps, step.generator),
            eps=chosen["eps"].to(step.x) * unit,
            step=chosen["step"].to(step.x) * unit,
            steps=chosen["steps"],
        )

    @staticmethod
    def policy_loss(logits: dict[str, Tensor], actions: dict[str, Tensor], reward: Tensor | float) -> Tensor:
        """REINFORCE without a baseline: -log pi(action) times the reward, mean over the batch, sum over heads."""
        terms = [cross_entropy(logits[name], actions[name]).mean() for name in logits]
        return reward * torch.stack(terms).sum()

    def _improve_policy(self, step: Step) -> None:
        self._policy.train()
        logits = self._policy(step.x)
        actions = self.sample(logits, step)
        reward = self.reward(step, self.craft(step, actions))
        step.log("reward", reward)
        self._optimiser.zero_grad()
        step.backward(self.policy_loss(logits, actions, reward), self._policy)
        nn.utils.clip_grad_norm_(self._policy.parameters(), 1.0)
        self._optimiser.step()

    def passes(self, steps: int) -> Passes:
        counts = self.steps_choices or tuple(range(3, 15))
        # Every interval: one more set of examples, one update, two restarts of PGD with their losses, accuracies.
        extra = max(counts) + 1 + 2 * steps
        return Passes(
            student=max(counts) + 1 + extra / self.interval,
            student_forward=5 / self.interval,
            own=1 + 2 / self.interval,  # the policy chooses every time, and learns now and then
        )

    def outer(self, steps: int) -> Passes:
        return Passes(student=1)

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self._policy.state_dict(), "optimiser": self._optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._policy.load_state_dict(state["policy"])
        self._optimiser.load_state_dict(state["optimiser"])
