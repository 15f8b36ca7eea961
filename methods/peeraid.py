import copy
from typing import Literal

import torch
from torch import Tensor, nn

from adbench import ATTACK_BN, Method, Mode, Net, Passes, Start, Step, hyper
from adbench.losses import Classes, cross_entropy, kl


class PeerAiD(Method):
    """Adversarial distillation from a specialised peer tutor (Jung et al., CVPR 2024).

    attack:  max  KL(S(x'), P(x))
    loss:    L_P + L_S,   KL of means over classes
             L_P = g1 CE(P(x'), y) + g2 r^2 KL_r(P(x'), S(x')),   gradient through both
             L_S = l1 CE(S(x'), y) + l2 tau^2 KL_tau(S(x'), P(x')) + l3 tau^2 KL_tau(S(x'), S(x)),   through S alone
    with     P a peer of the student's architecture that learns along, in evaluation mode in the attack

    differs: the authors run x' through the student once more for L_P, which moves batch-norm (`extra_forwards`). They
    judge the student's weight average (`official`). Their peer is initialised by itself; here it has the student's
    first weights, shuffled.
    """

    label = "PeerAiD"
    soft_labels = True
    tau: float = hyper(5.0, gt=0, doc="temperature of L_S (authors' configuration)")
    l1: float = hyper(0.0, ge=0, doc="weight of the student's cross-entropy (authors' configuration)")
    l2: float = hyper(1.0, ge=0, doc="weight of the student's distance from the peer (authors' configuration)")
    l3: float = hyper(1.0, ge=0, doc="weight of the student's consistency (authors' configuration)")
    g1: float = hyper(1.0, ge=0, doc="weight of the peer's cross-entropy (authors' configuration)")
    g2: float | None = hyper(
        None, ge=0, doc="weight of the peer's distance from the student; none: 0.1, 1 over 10 classes (authors)"
    )
    r: float = hyper(1.0, gt=0, doc="temperature of L_P (authors' configuration)")
    peer_target_grad: bool = hyper(True, doc="L_P moves the student, too (authors' code and poster)")
    extra_forwards: Literal["none", "authors"] = hyper(
        "none", doc="an adversarial pass for batch-norm alone (authors' code has it)"
    )
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (authors' code)")
    attack_bn: Mode = ATTACK_BN

    def parts(self, step: Step) -> dict[str, nn.Module]:
        peer = copy.deepcopy(step.student.module)
        for parameter in peer.parameters():  # shuffled: another start of the same distribution, in any architecture
            order = torch.randperm(parameter.numel()).to(parameter.device)
            parameter.data = parameter.data.flatten()[order].view_as(parameter)
        return {"peer": peer}

    def attack(self, step: Step) -> Tensor:
        target = self.target(step)
        return step.ascend(lambda x: kl(step.student(x), target), start=self.start, bn=self.attack_bn)

    def target(self, step: Step) -> Tensor:
        """The peer's logits (B, C) at x, in evaluation mode."""
        peer = self._peer(step)
        with torch.no_grad(), peer.still():
            return peer(step.x)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        if self.extra_forwards == "authors":
            step.student.observe(x_adv)
        peer, adversarial, clean = self._peer(step)(x_adv), step.student(x_adv), step.student(step.x)
        g2 = self.g2 if self.g2 is not None else 0.1 if clean.shape[1] <= 10 else 1.0
        seen = adversarial if self.peer_target_grad else adversarial.detach()
        peer_loss = self.g1 * step.term("cross_entropy_peer", cross_entropy(peer, step.target))
        peer_loss = peer_loss + g2 * self.r**2 * step.term("kl_peer", kl(peer, seen, Classes.MEAN, self.r))
        distilled = step.term("kl_adversarial", kl(adversarial, peer.detach(), Classes.MEAN, self.tau))
        consistent = step.term("kl_consistency", kl(adversarial, clean, Classes.MEAN, self.tau))
        student_loss = self.tau**2 * (self.l2 * distilled + self.l3 * consistent)
        if self.l1:
            student_loss = student_loss + self.l1 * step.term("cross_entropy", cross_entropy(adversarial, step.target))
        step.log("loss_peer", peer_loss)
        step.log("loss_student", student_loss)
        return peer_loss + student_loss

    def _peer(self, step: Step) -> Net:
        return Net(step.parts["peer"], step.student.precision)  # type: ignore[arg-type]

    def passes(self, steps: int) -> Passes:
        forward = self.extra_forwards == "authors"
        return Passes(student=steps + 2, student_forward=forward, own=3)

    def outer(self, steps: int) -> Passes:
        return Passes(student=2, own=2)
