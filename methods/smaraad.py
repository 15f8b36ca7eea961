from typing import Literal

from torch import Tensor

from adbench.attacks.linf import Start
from adbench.losses import (
    CamNorm,
    alignment,
    cam,
    hard_rank,
    kl,
    normalise_map,
    soft_rank,
    spearman,
)
from adbench.method import ATTACK_BN, Method, Mode, Need, Net, Passes, Step, hyper

Output = tuple[Tensor, Tensor]  # logits (B, C) and the last feature map (B, K, H, W)


class SmaraAD(Method):
    """Slack matching and attribution region alignment (Yin et al., CVPR 2024), Eq. 2-9.

    attack:  max  KL(S(x'), T(x')) + L_align(x'),   gradient through student and teacher
    loss:    c + (1 - alpha) (L_sm(x) + L_align(x)) + alpha (L_sm(x') + L_align(x')),   alpha = 1
    L_sm is minus the Spearman correlation of the two soft rankings of the classes, L_align the squared distance
    of the two class activation maps. The authors published no training code; what the paper leaves open is a
    hyperparameter here, with the reading that trains as default.
    """

    label = "SmaraAD"
    needs = frozenset({Need.TEACHER})
    alpha: float = hyper(1.0, ge=0, le=1, doc="weight of the adversarial terms (paper, Sec. 4.2)")
    c: float = hyper(2.0, ge=0, doc="constant of Eq. 9; moves the value, not the gradient (Sec. 4.2)")
    gamma: float = hyper(1000.0, gt=0, doc="hardness of the soft ranks (Sec. 4.2)")
    rank_space: Literal["prob", "logit"] = hyper("prob", doc="what is ranked (Eq. 5: probabilities)")
    teacher_rank: Literal["soft", "hard"] = hyper("soft", doc="ranks of the teacher (Eq. 4 for both)")
    cam_class: Literal["label", "teacher_pred", "own_pred"] = hyper("label", doc="class of the maps (open)")
    cam_norm: CamNorm = hyper(CamNorm.MINMAX, doc="map normalisation (open; 'none' diverges at lr 0.1)")
    cam_relu: bool = hyper(False, doc="keep only positive attribution, as Grad-CAM tools do (Eq. 6: no)")
    cam_size: Literal["max", "student", "teacher", "input"] = hyper("max", doc="common size of the maps (open)")
    inner_kl: Literal["ts", "st"] = hyper("ts", doc="KL(T || S), as everywhere, or KL(S || T) in the attack")
    inner_align_weight: float = hyper(1.0, ge=0, doc="weight of L_align in the attack (Eq. 8: 1)")
    inner_teacher_grad: bool = hyper(True, doc="differentiate the teacher's map in the attack (Eq. 8)")
    always_clean_forward: bool = hyper(True, doc="at alpha = 1, show the clean batch to batch-norm (as AdaAD)")
    start: Start = hyper(Start.GAUSS, doc="start of the inner ascent (open; AdaAD's)")
    attack_bn: Mode = ATTACK_BN

    def attack(self, step: Step) -> Tensor:
        def objective(x: Tensor) -> Tensor:
            student, teacher = step.student.features(x), step.teacher.features(x)
            pair = (student[0], teacher[0]) if self.inner_kl == "ts" else (teacher[0], student[0])
            return kl(*pair) + self.inner_align_weight * self.align(
                step, student, teacher, detach_teacher=not self.inner_teacher_grad
            )

        return step.ascend(objective, start=self.start, bn=self.attack_bn)

    def loss(self, step: Step, x_adv: Tensor) -> Tensor:
        guidance = self.c + self.alpha * self.match(step, step.student.features(x_adv), x_adv)
        if self.alpha < 1:
            clean = self.match(step, step.student.features(step.x), step.x)
            return guidance + (1 - self.alpha) * clean
        if self.always_clean_forward:
            step.student.observe(step.x)
        return guidance

    def match(self, step: Step, student: Output, x: Tensor) -> Tensor:
        """L_sm(x) + L_align(x) for the student's output at x: (B,)."""
        teacher = step.teacher.features(x)
        slack = -spearman(self.ranks(student[0]), self.ranks(teacher[0], of_teacher=True))
        region = self.align(step, student, teacher)
        step.log("slack_matching", slack)
        step.log("alignment", region)
        return slack + region

    def ranks(self, logits: Tensor, *, of_teacher: bool = False) -> Tensor:
        """The ranks (B, C) that slack matching compares (Eq. 4)."""
        scores = logits.softmax(dim=1) if self.rank_space == "prob" else logits
        if of_teacher and self.teacher_rank == "hard":
            return hard_rank(scores)
        return soft_rank(scores, self.gamma)

    def align(self, step: Step, student: Output, teacher: Output, *, detach_teacher: bool = False) -> Tensor:
        """L_align (Eq. 6-7) of two networks' outputs at one input: (B,)."""
        size = {
            "max": (
                max(student[1].shape[2], teacher[1].shape[2]),
                max(student[1].shape[3], teacher[1].shape[3]),
            ),
            "student": tuple(student[1].shape[2:]),
            "teacher": tuple(teacher[1].shape[2:]),
            "input": tuple(step.x.shape[2:]),
        }[self.cam_size]

        def region(net: Net, output: Output) -> Tensor:
            classes = {"label": step.y, "teacher_pred": teacher[0].argmax(1), "own_pred": output[0].argmax(1)}
            maps = cam(output[1], net.weight, classes[self.cam_class])
            return normalise_map(maps, (size[0], size[1]), self.cam_norm, self.cam_relu)

        teachers = region(step.teacher, teacher)
        return alignment(region(step.student, student), teachers.detach() if detach_teacher else teachers)

    def passes(self, steps: int) -> Passes:
        clean_loss = self.alpha < 1
        return Passes(
            student=steps + 1 + clean_loss,
            student_forward=float(not clean_loss and self.always_clean_forward),
            teacher=steps,
            teacher_forward=1 + clean_loss,
        )
