"""What SmaraAD and the variants of its ablation (Figure 4) share: Eq. 8 and 9 around a guidance that they choose."""

from abc import abstractmethod
from typing import Literal

from torch import Tensor

from adbench import ATTACK_BN, Method, Mode, Need, Net, Passes, Start, Step, hyper
from adbench.losses import CamNorm, alignment, cam, hard_rank, kl, normalise_map, soft_rank, spearman

Output = tuple[Tensor, Tensor]  # logits (B, C) and the last feature map (B, K, H, W)


class Guided(Method):
    """A student that follows a robust teacher at the examples on which they differ most (SmaraAD, Sec. 3.4).

    attack:  max  KL(S(x'), T(x')) [+ L_align(x')],   gradient through student and teacher
    loss:    alpha guidance(x') + (1 - alpha) guidance(x)

    In training mode the student sees x' first and then x (no code was published; AdaAD's has x first).
    """

    needs = frozenset({Need.TEACHER})
    alpha: float = hyper(1.0, ge=0, le=1, doc="weight of the adversarial terms (paper, Sec. 4.2)")
    inner_kl: Literal["ts", "st"] = hyper("ts", doc="KL(T || S) or KL(S || T) in the attack (open; Table 1's)")
    always_clean_forward: bool = hyper(True, doc="at alpha = 1, show the clean batch to batch-norm, after x' (open)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (open; AdaAD's)")
    attack_bn: Mode = ATTACK_BN

    @abstractmethod
    def guidance(self, step: Step, student: Output, teacher: Output) -> Tensor:
        """What the student minimises given both networks' outputs at one input: (B,)."""

    def difference(self, step: Step, student: Output, teacher: Output) -> Tensor:
        """What the attack maximises (Eq. 8), given both networks' outputs at one input: (B,)."""
        return kl(student[0], teacher[0]) if self.inner_kl == "ts" else kl(teacher[0], student[0])

    def attack(self, step: Step) -> Tensor:
        return step.ascend(
            lambda x: self.difference(step, step.student.features(x), step.teacher.features(x)),
            start=self.start,
            bn=self.attack_bn,
        )

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        adversarial = self.guidance(step, step.student.features(x_adv), step.teacher.features(x_adv))
        if self.alpha < 1:
            clean = self.guidance(step, step.student.features(step.x), step.teacher.features(step.x))
            return self.alpha * adversarial + (1 - self.alpha) * clean
        if self.always_clean_forward:
            step.student.observe(step.x)
        return adversarial

    def passes(self, steps: int) -> Passes:
        clean_loss = self.alpha < 1
        return Passes(
            student=steps + 1 + clean_loss,
            student_forward=float(not clean_loss and self.always_clean_forward),
            teacher=steps,
            teacher_forward=1 + clean_loss,
        )


class Slack(Guided):
    """Slack matching: minus Spearman's correlation of the two soft rankings of the classes (Eq. 2-5)."""

    c: float = hyper(2.0, ge=0, doc="constant of Eq. 9; moves the value, not the gradient (Sec. 4.2)")
    gamma: float = hyper(1000.0, gt=0, doc="hardness of the soft ranks (Sec. 4.2)")
    rank_space: Literal["prob", "logit"] = hyper("prob", doc="what is ranked (Eq. 5: probabilities)")
    teacher_rank: Literal["soft", "hard"] = hyper("soft", doc="ranks of the teacher (Eq. 4 for both)")

    def slack(self, student: Tensor, teacher: Tensor) -> Tensor:
        """L_sm of two networks' logits (B, C) (Eq. 5): (B,) in about [-1, 1]."""
        return -spearman(self.ranks(student), self.ranks(teacher, hard=self.teacher_rank == "hard"))

    def ranks(self, logits: Tensor, *, hard: bool = False) -> Tensor:
        """The ranks (B, C) of the classes (Eq. 4)."""
        scores = logits.softmax(dim=1) if self.rank_space == "prob" else logits
        return hard_rank(scores) if hard else soft_rank(scores, self.gamma)


class Regions(Guided):
    """Attribution region alignment: the squared distance of the two class activation maps (Eq. 6-7)."""

    cam_class: Literal["label", "teacher_pred", "own_pred"] = hyper("label", doc="class of the maps (open)")
    cam_norm: CamNorm = hyper(CamNorm.MINMAX, doc="map normalisation (open; 'none' diverges at lr 0.1)")
    cam_relu: bool = hyper(False, doc="keep only positive attribution, as Grad-CAM tools do (Eq. 6: no)")
    cam_size: Literal["max", "student", "teacher", "input"] = hyper("max", doc="common size of the maps (open)")
    inner_align_weight: float = hyper(1.0, ge=0, doc="weight of L_align in the attack (Eq. 8: 1)")
    inner_teacher_grad: bool = hyper(True, doc="differentiate the teacher's map in the attack (Eq. 8)")

    def difference(self, step: Step, student: Output, teacher: Output) -> Tensor:
        region = self.align(step, student, teacher, detach_teacher=not self.inner_teacher_grad)
        return super().difference(step, student, teacher) + self.inner_align_weight * region

    def align(self, step: Step, student: Output, teacher: Output, *, detach_teacher: bool = False) -> Tensor:
        """L_align of two networks' outputs at one input: (B,)."""
        here, there = student[1].shape[2:], teacher[1].shape[2:]
        height, width = {
            "max": (max(here[0], there[0]), max(here[1], there[1])),
            "student": tuple(here),
            "teacher": tuple(there),
            "input": tuple(step.x.shape[2:]),
        }[self.cam_size]

        def region(net: Net, output: Output) -> Tensor:
            classes = {"label": step.y, "teacher_pred": teacher[0].argmax(1), "own_pred": output[0].argmax(1)}
            maps = cam(output[1], net.weight, classes[self.cam_class])
            return normalise_map(maps, (height, width), self.cam_norm, self.cam_relu)

        teachers = region(step.teacher, teacher)
        return alignment(region(step.student, student), teachers.detach() if detach_teacher else teachers)
