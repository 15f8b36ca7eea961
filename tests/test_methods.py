"""What every method must do, whatever it computes; their formulas are held in test_golden.py."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from adbench.errors import UserError
from adbench.losses import cross_entropy
from adbench.models import build
from adbench.plugins.validate import counted
from adbench.registry import PAPER
from adbench.training.configured import configured
from adbench.training.method import Method
from adbench.training.step import COLUMNS, Ball, Need, Net, Step, Teacher

SMALL = {"las-at": {"policy": "cnn-2", "interval": 2, "eps_choices": [8], "steps_choices": [4], "step_choices": [2]}}
ALTERNATIVES = [
    *((name, {}) for name in (*PAPER, "natural")),
    ("ard", {"alpha": 0.5}),
    ("iad", {"variant": "II"}),
    ("adaad", {"alpha": 0.5}),
    ("smaraad", {"alpha": 0.5}),
    ("smaraad", {"always_clean_forward": False}),
    ("smaraad-pp", {"alpha": 0.5}),
    ("smaraad-pp", {"w_source": "teacher_clean"}),
    ("smaraad-pp", {"begin_frac": 0.5}),
    *(("smaraad", {"cam_size": size}) for size in ("student", "teacher", "input")),
    *(("smaraad", {"cam_class": which}) for which in ("teacher_pred", "own_pred")),
    ("smaraad", {"rank_space": "logit", "teacher_rank": "hard", "cam_relu": True, "inner_kl": "st"}),
    ("smaraad", {"inner_teacher_grad": False, "inner_align_weight": 0.5, "cam_norm": "l2"}),
    ("smaraad-pp", {"detach_weights": False, "self_detach_clean": True, "w_source": "student_clean"}),
    ("mtard", {"dynamic": False, "weight_natural": 0.25, "kl_reduction": "sum"}),
    ("las-at", {"cap_eps": 8, "true_mass": 0.9}),
    ("las-at", {"early_end": False}),
    ("trades", {"extra_forwards": "authors"}),
    ("adaad", {"clean_pass": "last", "alpha": 0.5}),
    *((name, {"extra_forwards": "authors", "begin_frac": 0.0}) for name in ("iad", "adaiad")),
]
IDS = [f"{name}-{'-'.join(map(str, hyper.values()))}".rstrip("-") for name, hyper in ALTERNATIVES]


def make(name: str, hyper: dict[str, Any]) -> Method:
    return configured(name, SMALL.get(name, {}) | hyper)


def step_for(method: Method, seed: int = 0, **changes: Any) -> Step:
    torch.manual_seed(seed)
    student = build("cnn-4", classes=10, channels=1).train()
    teachers = {need: Teacher(build("cnn-8", classes=10, channels=1)) for need in Need}
    generator = torch.Generator().manual_seed(seed)
    settings: dict[str, Any] = {"epoch": 0, "epochs": 10, "iteration": 1, "lr": 0.1, "threat": Ball(0.1, 0.03, 4)}
    images = {"x": torch.rand(6, 1, 8, 8, generator=generator), "y": torch.tensor([0, 1, 2, 3, 4, 9])}
    step = Step(
        student=Net(student),
        generator=torch.Generator().manual_seed(seed),
        teachers={need: t for need, t in teachers.items() if need in method.needed()},
        **(images | settings | changes),
    )
    method.setup(step)
    return step


@pytest.mark.parametrize("name", COLUMNS)
def test_no_column_of_the_log_can_be_logged_over(name: str) -> None:
    step = step_for(make("natural", {}))
    for log in (step.log, step.term):
        with pytest.raises(UserError, match=f"'{name}'"):
            log(name, torch.ones(6))
    assert not step.logged


@pytest.mark.parametrize(("name", "hyper"), ALTERNATIVES, ids=IDS)
def test_a_step_gives_bounded_examples_and_one_finite_loss_each_that_reaches_the_student_alone(name, hyper) -> None:
    method = make(name, hyper)
    step = step_for(method)
    x_adv = method.attack(step)
    largest = 15 / 8 if name == "las-at" else 1
    assert x_adv.shape == step.x.shape
    assert not x_adv.requires_grad
    assert ((x_adv - step.x).abs() <= largest * step.threat.eps + 1e-6).all()
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()
    assert step.student.module.training
    assert all(p.grad is None for p in step.student.module.parameters())
    loss = method.loss(step, x_adv)
    assert loss.shape == (6,)
    assert torch.isfinite(loss).all()
    loss.mean().backward()
    gradients = [p.grad for p in step.student.module.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    assert all(g is None or torch.isfinite(g).all() for g in gradients)
    for teacher in step.teachers.values():
        assert all(p.grad is None for p in teacher.module.parameters())
        assert not any(m.training for m in teacher.module.modules())


def test_igdms_term_is_between_images_as_far_as_asked_for_and_these_leave_the_range() -> None:
    x, x_adv = torch.tensor([0.25, 1.0]).view(1, 1, 1, 2), torch.tensor([0.5, 0.75]).view(1, 1, 1, 2)
    step = step_for(make("igdm", {}), x=x)
    for hyper, near, far in (({}, [0.5, 0.75], [0, 1.25]), ({"beta": 0.5, "gamma": 2.0}, [0.375, 0.875], [-0.25, 1.5])):
        found = make("igdm", hyper).points(step, x_adv)  # type: ignore[attr-defined]
        assert [points.flatten().tolist() for points in found] == [near, far]


@pytest.mark.parametrize("base", ["adaad", "ard", "rslad", "pgd-at", "trades"])
@pytest.mark.parametrize("hyper", [{}, {"beta": 0.5}, {"extra_forwards": "authors"}, {"gamma": 2.0, "beta": 0.5}])
def test_igdm_declares_the_passes_of_its_options(base: str, hyper: dict[str, Any]) -> None:
    method = make("igdm", {"base": base} | hyper)
    step = step_for(method, parts={})
    with counted(step.student.module) as student, counted(step.teacher.module) as teacher:
        method.loss(step, method.attack(step)).mean()
    cost = method.passes(step.threat.steps)
    unused = hyper.get("extra_forwards") == "authors" and base in ("adaad", "ard", "pgd-at")  # S(x) with its graph
    assert student["both"] - unused == cost.student
    assert student["forward"] + unused == cost.student_forward
    assert teacher["both"] == cost.teacher
    assert teacher["forward"] == cost.teacher_forward


@pytest.mark.parametrize(("name", "hyper"), ALTERNATIVES, ids=IDS)
def test_the_same_seed_gives_the_same_step(name, hyper) -> None:
    found = []
    for _ in range(2):
        method = make(name, hyper)
        step = step_for(method, iteration=2)
        x_adv = method.attack(step)
        found.append((x_adv, method.loss(step, x_adv)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(("name", "hyper"), ALTERNATIVES, ids=IDS)
def test_the_declared_cost_is_the_cost_of_a_step(name, hyper) -> None:
    method = make(name, hyper)
    step = step_for(method, epoch=9, iteration=3)  # after every warm-up
    with ExitStack() as counting:
        student = counting.enter_context(counted(step.student.module))
        teachers = {need: counting.enter_context(counted(t.module)) for need, t in step.teachers.items()}
        method.loss(step, method.attack(step)).mean().backward()
    declared = method.passes(step.threat.steps)
    if name == "las-at":  # the declared cost has every twentieth iteration's policy update in it
        assert declared.student > student["both"] == 4 + 1
        return
    assert student["both"] == declared.student
    assert student["forward"] == declared.student_forward
    robust, natural = (teachers.get(need, Counter()) for need in (Need.TEACHER, Need.NATURAL_TEACHER))
    assert robust["both"] == declared.teacher
    assert robust["forward"] == declared.teacher_forward
    assert natural["forward"] == declared.natural_forward


@pytest.mark.parametrize("name", [n for n in PAPER if n != "las-at"])
def test_a_few_steps_lower_the_loss_on_a_fixed_batch(name) -> None:
    method = make(name, {"gamma": 10} if name.startswith("smaraad") else {})
    step = step_for(method)
    optimiser = torch.optim.SGD(step.student.module.parameters(), 0.05)
    x_adv = method.attack(step)
    values = []
    for _ in range(12):
        loss = method.loss(step, x_adv).mean()
        values.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert values[-1] < values[0]


def test_a_teacher_is_asked_once_a_batch_for_the_same_input() -> None:
    network = build("cnn-4", classes=10, channels=1)
    teacher = Teacher(network)
    x = torch.rand(2, 1, 8, 8)
    with counted(network) as count:
        first = teacher(x)
        assert teacher(x) is first
        teacher.features(x)
        assert torch.equal(teacher(x), first)
        assert count["forward"] == 2, "features need one pass of their own, then serve logits too"
        teacher.forget()
        teacher(x)
        assert count["forward"] == 3
    z = x.clone().requires_grad_()
    teacher(z).sum().backward()
    assert z.grad is not None


def test_mtards_state_survives_saving_and_loading() -> None:
    one, other = make("mtard", {}), make("mtard", {})
    step = step_for(one)
    other.setup(step)
    for _ in range(3):
        one.loss(step, step.x + 0)
    one.on_lr_change(0.1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.loss(step, step.x), other.loss(step, step.x))
    assert one.state_dict() == other.state_dict()
    assert one.state_dict()["rho"] == pytest.approx(0.0025)


def test_las_ats_policy_learns_and_its_state_survives_saving_and_loading() -> None:
    one, other = make("las-at", {"policy_lr": 0.1}), make("las-at", {"policy_lr": 0.1})
    step = step_for(one, iteration=2)
    before = {k: v.clone() for k, v in one.state_dict()["policy"].items()}
    one.attack(step)
    assert any(not torch.equal(before[k], v) for k, v in one.state_dict()["policy"].items())
    assert "reward" in step.logged
    other.setup(step)
    other.load_state_dict(one.state_dict())
    for key, value in one.state_dict()["policy"].items():
        assert torch.equal(other.state_dict()["policy"][key], value)


def test_iad_begins_to_doubt_its_teacher_after_the_warm_up() -> None:
    method = make("iad", {})
    losses = []
    for epoch in (2, 3):  # 30% of 10 epochs
        step = step_for(method, epoch=epoch)
        losses.append(method.loss(step, (step.x + 0.05).clamp(0, 1)))
    assert (losses[1] > losses[0]).all()


def test_hyperparameters_are_checked_and_named() -> None:
    with pytest.raises(UserError, match=r"hyper\.rslad: .*alpha"):
        configured("rslad", {"alpha": 2})
    with pytest.raises(UserError, match="did you mean 'beta'"):
        configured("trades", {"bta": 2})


def test_the_smoothed_target_of_las_at_depends_on_the_number_of_classes() -> None:
    method: Any = make("las-at", {})
    for classes, mass in ((10, 0.7), (100, 0.6)):
        z, y = torch.randn(3, classes), torch.tensor([0, 1, 2])
        expected: Tensor = cross_entropy(z, y, mass)
        assert torch.equal(method.smoothed(z, y), expected)


def test_ciard_pushes_from_no_image_that_the_natural_teacher_has_right_and_its_teacher_begins_to_learn_in_time() -> (
    None
):
    for epoch, learns in ((1, False), (2, True)):  # of 10, a sixth without
        method = make("ciard", {})
        step = step_for(method, epoch=epoch)
        step.parts = {name: part.module.train() for name, part in method.parts(step).items()}  # type: ignore[union-attr]
        before = {key: value.clone() for key, value in step.teacher.module.state_dict().items()}
        x_adv = method.attack(step)
        step.y = step.natural_teacher(x_adv).argmax(dim=1)
        loss = method.loss(step, x_adv).mean()
        loss.backward()
        found = {name: values[-1].item() for name, values in step.logged.items()}
        assert found["push_factor"] == found["push"] == 0
        assert found["loss_student"] == pytest.approx((found["kl_adversarial"] + found["kl_natural"]) / 2)
        expected = found["loss_student"] + learns * found["cross_entropy_teacher"]
        assert loss.item() == pytest.approx(expected)
        assert learns == all(p.grad is not None for p in step.parts["teacher"].parameters())
        assert all(torch.equal(value, before[key]) for key, value in step.teacher.module.state_dict().items())
