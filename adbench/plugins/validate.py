"""`adbench validate`: what the harness relies on in a method, tried out on a tiny problem in seconds.

The problem is eight images of 3 x 8 x 8 pixels, a student of four channels and teachers of eight, all random. As in
training, torch's global stream is set before every call, so layers and losses with randomness of their own may use
it.
"""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from inspect import isfunction
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from adbench.errors import UserError, located
from adbench.models import Network, build
from adbench.models.precision import AS_WRITTEN, Precision
from adbench.training.configured import configured, passes
from adbench.training.method import Method, form_error
from adbench.training.parts import Parts
from adbench.training.step import Ball, Mode, Need, Net, Step, Teacher

IMAGES, CLASSES = 8, 10
BALL, SMALL_BALL = Ball(0.1, 0.03, 4), Ball(0.02, 0.01, 2)
EPOCHS = 10
CLASS_NUMBERS = (2, 10, 100, 1000)
DECLARED_COST_MAY_BE_OFF = 0.25
"""By this share of what one iteration is seen to take: LAS-AT's cost is a mean over random numbers of steps."""


class Broken(Exception):
    """A promise that the method does not keep; the message says what was seen."""


class NotClaimed(Exception):
    """The method does not make this promise."""


@dataclass(frozen=True)
class PromiseCheck:
    """The outcome of one check. error: what was seen where the promise is broken; claimed: whether it was made."""

    check: str
    error: str | None = None
    claimed: bool = True


def validate(name: str) -> Iterator[PromiseCheck]:
    """The verdict of every check on the method `name`. Raises UserError for a method that cannot be loaded."""
    configured(name, {})
    for check in CHECKS:
        assert check.__doc__ is not None
        promise = check.__doc__.splitlines()[0].rstrip(".")
        try:
            check(Problem(name))
        except NotClaimed:
            yield PromiseCheck(promise, claimed=False)
        except Broken as broken:
            yield PromiseCheck(promise, str(broken))
        except (Exception, SystemExit) as error:
            yield PromiseCheck(
                promise, " ".join(str(error).split()) if isinstance(error, UserError) else located(error)
            )
        else:
            yield PromiseCheck(promise)


class Problem:
    """A tiny problem for one method, deterministic in its arguments."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.parts = Parts()

    def optimisers(self, step: Step, rate: float) -> list[torch.optim.Optimizer]:
        """Of the student with the method's own networks, and of those that have one of their own."""
        joint = (step.student.module, *self.parts.joint)
        together = torch.optim.SGD([p for module in joint for p in module.parameters()], rate)
        return [together, *self.parts.optimisers.values()]

    def begin(
        self, *, classes: int = CLASSES, images: int = IMAGES, precision: Precision = AS_WRITTEN, **changes: Any
    ) -> tuple[Method, Step]:
        """The method, set up as training sets it up, and a step. changes: of the step."""
        torch.manual_seed(0)
        networks = [build(f"cnn-{width}", classes=classes, channels=3) for width in (4, 8, 8)]
        for network in networks:  # statistics that are not those of an untrained network
            network(torch.rand(16, 3, 8, 8))
        method = configured(self.name, {})
        teachers = {need: Teacher(network, precision) for need, network in zip(Need, networks[1:], strict=True)}
        step = Step(
            student=Net(networks[0].train(), precision),
            teachers={need: teacher for need, teacher in teachers.items() if need in method.needed()},
            **self.batch(classes, images, 1),
        )
        torch.manual_seed(1)
        # As training does: before the first iteration, with two images.
        first = replace(step, x=step.x[:2], y=step.y[:2], index=step.index[:2], epoch=0, iteration=0)
        method.setup(first)
        self.parts = Parts.of(method.parts(first), step.x, networks)
        self.parts.begin()
        return method, replace(step, **{"parts": self.parts.modules} | changes)

    @staticmethod
    def batch(classes: int, images: int, iteration: int) -> dict[str, Any]:
        """A step except for its networks, late in training, after every warm-up."""
        draw = torch.Generator().manual_seed(iteration)
        return {
            "x": torch.rand(images, 3, 8, 8, generator=draw),
            "y": torch.randint(classes, (images,), generator=draw),
            "epoch": EPOCHS - 1,
            "epochs": EPOCHS,
            "iteration": iteration,
            "iterations": 10 * EPOCHS,
            "index": torch.arange(images),
            "lr": 0.1,
            "threat": BALL,
            "generator": torch.Generator().manual_seed(iteration),
            "logged": {},
        }


# --- the checks, in order; the first line of each docstring is what the user reads ---


def its_own_networks_can_be_trained(problem: Problem) -> None:
    """Its own networks can be trained by the loop, and are the same for the same seed."""
    weights = []
    for _ in range(2):
        _, step = problem.begin()
        weights.append({key: value for name, part in step.parts.items() for key, value in _state(part, name)})
    for key, value in weights[0].items():
        if not torch.equal(value, weights[1][key]):
            raise Broken(f"{key} differs between two runs with one seed; draw from torch")


def attack_stays_in_the_ball(problem: Problem) -> None:
    """The attack stays in the ball and in [0, 1]."""
    for epoch, iteration, ball in product((0, EPOCHS - 1), (1, 20), (BALL, SMALL_BALL)):
        method, step = problem.begin(epoch=epoch, iteration=iteration, threat=ball)
        x_adv = _attack(method, step)
        if not isinstance(x_adv, Tensor) or x_adv.shape != step.x.shape:
            shape = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
            raise Broken(f"attack gave {shape}, expected images of shape {tuple(step.x.shape)}")
        if x_adv.requires_grad:
            raise Broken("attack gave images that require gradient; detach them")
        if not torch.isfinite(x_adv).all():
            raise Broken("attack gave pixels that are not finite")
        if x_adv.min() < 0 or x_adv.max() > 1:
            raise Broken(f"pixels reach from {x_adv.min():.3g} to {x_adv.max():.3g}, expected [0, 1]")
        distance = ((x_adv - step.x).abs().max() / ball.eps).item()
        if distance > method.reach() + 1e-5:
            raise Broken(f"images move {distance:.3g} eps, expected at most {method.reach():g} (`reach`)")


def loss_is_finite_and_teaches_the_student_alone(problem: Problem) -> None:
    """The loss is finite, one value an example, and its gradient reaches the student and no teacher."""
    reached: set[str] = set()
    for epoch, iteration in product((0, EPOCHS - 1), (1, 20)):
        method, step = problem.begin(epoch=epoch, iteration=iteration)
        before = {name: [p.detach().clone() for p in part.parameters()] for name, part in step.parts.items()}
        loss = _loss(method, step)
        loss.mean().backward()  # type: ignore[no-untyped-call]
        for name, part in step.parts.items():
            if not all(torch.equal(p, then) for p, then in zip(part.parameters(), before[name], strict=True)):
                raise Broken(f"the method moves the weights of its part '{name}'; the loop does that")
            reached |= {name} if any(p.grad is not None for p in part.parameters()) else set()
        gradients = [p.grad for p in step.student.module.parameters() if p.grad is not None]
        if not gradients or not any(g.abs().sum() > 0 for g in gradients):
            raise Broken("no gradient reaches the student")
        if not all(torch.isfinite(g).all() for g in gradients):
            raise Broken("the gradient in the student is not finite")
        for need, teacher in step.teachers.items():
            if any(p.requires_grad or p.grad is not None for p in teacher.module.parameters()):
                raise Broken(f"a gradient reaches {need.value}; leave its parameters frozen")
            if any(m.training for m in teacher.module.modules()):
                raise Broken(f"{need.value} is not in evaluation mode any more")
        if unreached := sorted(step.parts.keys() - reached) if (epoch, iteration) == (EPOCHS - 1, 20) else []:
            raise Broken(f"no gradient reaches the part '{unreached[0]}'")


def attack_leaves_the_student_as_it_was(problem: Problem) -> None:
    """The attack leaves the student's mode, weights, statistics and gradients as they were, and its own networks'."""
    for iteration in (1, 20):
        method, step = problem.begin(iteration=iteration)
        module = step.student.module
        before = {key: value.clone() for key, value in module.state_dict().items()}
        own = {key: value.clone() for name, part in step.parts.items() for key, value in _state(part, name)}
        _attack(method, step)
        for name, part in step.parts.items():
            if not all(torch.equal(value, own[key]) for key, value in _state(part, name)):
                raise Broken(f"the attack changed the part '{name}'; put it into evaluation mode meanwhile")
            if not part.training or any(p.grad is not None for p in part.parameters()):
                raise Broken(f"the attack left the part '{name}' in another mode, or with gradients")
        if not all(m.training for m in module.modules()):
            raise Broken("the student is not in training mode any more; `step.ascend` and `step.still` restore it")
        if any(p.grad is not None for p in module.parameters()):
            raise Broken("the attack left gradients in the student's parameters; use autograd.grad for the input's")
        if not all(p.requires_grad for p in module.parameters()):
            raise Broken("the attack left frozen parameters; `step.ascend` and `step.still` restore them")
        moved = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
        # Methods with the option `attack_bn` move the statistics in their authors' mode.
        if moved and getattr(method, "attack_bn", Mode.EVAL) is not Mode.TRAIN:
            raise Broken(f"the attack changed the student ({moved[0]}); attack it in evaluation mode")


def same_seed_gives_the_same_result(problem: Problem) -> None:
    """The same seed gives the same result."""
    runs = []
    for _ in range(2):
        method, step = problem.begin(iteration=20)
        x_adv = _attack(method, step)
        runs.append((x_adv, _loss(method, step, x_adv).detach()))
    for what, (one, two) in zip(("attack", "loss"), zip(*runs, strict=True), strict=True):
        if not torch.equal(one, two):
            raise Broken(f"{what} differs between two runs with one seed; draw from step.generator or from torch")


def state_survives(problem: Problem) -> None:
    """State survives saving and loading in the middle of a run."""

    def train(method: Method, step: Step, iterations: range) -> list[Tensor]:
        optimisers = problem.optimisers(step, 0.05)
        losses = []
        for iteration in iterations:
            _forget(step)
            # An epoch's last batch may be a smaller one.
            images = IMAGES - 3 if iteration % 10 == 0 else IMAGES
            step = replace(step, **problem.batch(CLASSES, images, iteration))
            loss = _loss(method, step)
            _descend(loss, optimisers)
            losses.append(loss.detach())
        return losses

    method, step = problem.begin()
    train(method, step, range(18, 22))
    method.on_lr_change(0.1)
    content = io.BytesIO()
    try:
        torch.save({"method": method.state_dict(), "parts": problem.parts.state()}, content)
        content.seek(0)
        state = torch.load(content, weights_only=True)
    except Exception as error:
        raise Broken(f"state_dict() holds what cannot be saved and loaded safely ({type(error).__name__})") from error
    student = copy.deepcopy(step.student.module.state_dict())
    uninterrupted = train(method, step, range(22, 42))

    method, step = problem.begin()
    method.load_state_dict(state["method"])
    problem.parts.load(state["parts"])
    step.student.module.load_state_dict(student)
    resumed = train(method, step, range(22, 42))
    for number, (one, two) in enumerate(zip(uninterrupted, resumed, strict=True), 1):
        if not torch.equal(one, two):
            raise Broken(f"{number} iterations after loading, the loss differs; put all state into state_dict()")


def rehearsal_leaves_no_trace(problem: Problem) -> None:
    """A rehearsal of the loss gives the same loss and moves no state."""

    def train(*, rehearsed: bool) -> list[Tensor]:
        method, step = problem.begin()
        optimisers = problem.optimisers(step, 0.05)
        losses = []
        for iteration in range(18, 24):
            _forget(step)
            step = replace(step, **problem.batch(CLASSES, IMAGES, iteration))
            x_adv = _attack(method, step)
            modules = [step.student.module, *step.parts.values()]
            before = [copy.deepcopy(module.state_dict()) for module in modules], step.generator.get_state()
            first = _loss(method, replace(step, rehearsal=True, logged={}), x_adv).detach() if rehearsed else None
            for module, state in zip(modules, before[0], strict=True):  # batch-norm's statistics move in any pass
                module.load_state_dict(state)
            step.generator.set_state(before[1])
            loss = _loss(method, step, x_adv)
            if first is not None and not torch.equal(first, loss.detach()):
                raise Broken("with `step.rehearsal` the loss is another than without")
            _descend(loss, optimisers)
            losses.append(loss.detach())
        return losses

    if not problem.begin()[0].rehearsable:
        raise NotClaimed
    for number, (one, two) in enumerate(zip(train(rehearsed=False), train(rehearsed=True), strict=True), 1):
        if not torch.equal(one, two):
            raise Broken(
                f"in iteration {number} the loss differs after a rehearsal; leave all state as it was where "
                "`step.rehearsal` says so, or declare `rehearses = False`"
            )


def soft_labels_stand_for_labels(problem: Problem) -> None:
    """Where images are mixed, it goes by their soft labels, and not by y."""
    found = []
    for other in range(2):
        method, step = problem.begin()
        if not method.soft_labels:
            raise NotClaimed
        soft = torch.rand(IMAGES, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
        step = replace(step, y=(step.y + other) % CLASSES, soft=soft)
        x_adv = _attack(method, step)
        found.append({"attack": x_adv, "loss": _loss(method, step, x_adv).detach()})
    for what, value in found[0].items():
        if not torch.equal(value, found[1][what]):
            raise Broken(f"{what} of mixed images depends on `step.y`; use `step.target`, or drop `soft_labels`")


def loss_of_a_batch_is_the_mean_of_its_examples(problem: Problem) -> None:
    """A batch's loss is the mean of its examples' losses."""
    method, step = problem.begin()
    if not method.separable:
        raise NotClaimed
    x_adv = _attack(method, step)
    _fix_statistics(step)
    together = _loss(method, step, x_adv).detach()
    method, again = problem.begin(iteration=step.iteration + 1)
    _fix_statistics(again)
    if not torch.equal(_loss(method, replace(again, x=step.x, y=step.y), x_adv).detach(), together):
        raise NotClaimed  # by chance or by iteration, so that examples cannot be compared one by one
    for i in range(IMAGES):
        method, alone = problem.begin()
        _fix_statistics(alone)
        alone = replace(alone, x=step.x[i : i + 1], y=step.y[i : i + 1])
        value = _loss(method, alone, x_adv[i : i + 1]).detach()
        if not torch.allclose(value[0], together[i], rtol=1e-3, atol=1e-4):
            raise Broken(
                f"the loss of example {i} is {together[i]:.6g} in its batch and {value[0]:.6g} alone; "
                "return one value an example, or declare `separable = False`"
            )


def any_number_of_classes(problem: Problem) -> None:
    """It works with 2, 10, 100 and 1000 classes."""
    for classes in CLASS_NUMBERS:
        try:
            method, step = problem.begin(classes=classes)
            _loss(method, step).mean().backward()  # type: ignore[no-untyped-call]
        except Exception as error:
            raise Broken(f"with {classes} classes: {type(error).__name__}: {' '.join(str(error).split())}") from error


def bfloat16(problem: Problem) -> None:
    """It works with networks in the lean form and in bfloat16, and gives about the same loss."""
    losses: list[Tensor] = []
    x_adv: Tensor | None = None
    for precision in (AS_WRITTEN, Precision(lean=True), Precision("bfloat16", lean=True)):
        method, step = problem.begin(precision=precision)
        examples = _attack(method, step)
        if examples.dtype != step.x.dtype:
            raise Broken(f"attack gives {examples.dtype}, expected the images' {step.x.dtype}")
        _forget(step)
        x_adv = examples if x_adv is None else x_adv  # the same for both
        losses.append(_loss(method, step, x_adv))
        losses[-1].mean().backward()  # type: ignore[no-untyped-call]
        if not all(p.grad is None or torch.isfinite(p.grad).all() for p in step.student.module.parameters()):
            raise Broken("the gradient in the student is not finite")
    single, lean, half = (loss.mean().item() for loss in losses)
    if abs(lean - single) > 0.005 * abs(single) + 1e-4:
        raise Broken(f"the loss is {lean:.4g} in the lean form for {single:.4g} as the networks are written")
    if abs(half - single) > 0.05 * abs(single) + 1e-4:
        raise Broken(f"the loss is {half:.4g} for {single:.4g} in float32")


def few_steps_lower_the_loss(problem: Problem) -> None:
    """A few steps lower the loss on a fixed batch."""
    ends = []
    for rate in (0.1, 0.02, 0.004):
        method, step = problem.begin()
        x_adv = _attack(method, step)
        optimisers = problem.optimisers(step, rate)
        values: list[float] = []
        for _ in range(16):
            loss = _loss(method, step, x_adv, finite=not values)
            values.append(loss.mean().item())
            _descend(loss, optimisers)
        if values[-1] < values[0]:
            return
        ends.append(f"{values[0]:.4g} to {values[-1]:.4g} at rate {rate}")
    raise Broken(f"the loss went from {', '.join(ends)}")


def declared_cost_is_what_it_takes(problem: Problem) -> None:
    """The declared cost is what an iteration takes."""
    for ball in (BALL, replace(BALL, steps=10)):
        method, step = problem.begin(iteration=3, threat=ball)
        networks = [step.student.module, *(teacher.module for teacher in step.teachers.values())]
        with ExitStack() as counting:
            counts = [counting.enter_context(counted(network)) for network in networks]
            _loss(method, step).mean().backward()  # type: ignore[no-untyped-call]
        seen = sum(2 * count["both"] + count["forward"] for count in counts)
        cost = passes(method, problem.name, ball.steps)
        declared = cost.total - cost.own  # its own networks are out of sight
        if abs(declared - seen) > DECLARED_COST_MAY_BE_OFF * seen:
            raise Broken(
                f"`passes` declares {declared:g} forward and backward passes of student and teachers for "
                f"{ball.steps} attack steps, seen were {seen}"
            )
    method, step = problem.begin(iteration=3)
    x_adv = _attack(method, step)
    with counted(step.student.module) as count:
        _loss(method, step, x_adv)
    due = method.outer(BALL.steps).student
    if method.rehearsable and abs(due - count["both"]) > DECLARED_COST_MAY_BE_OFF * count["both"]:
        raise Broken(f"`outer` declares {due:g} passes of the student in the loss, seen were {count['both']}")


def names_are_the_contracts(problem: Problem) -> None:
    """Nothing is almost called what training looks for."""
    method = type(configured(problem.name, {}))
    known = {name for name, value in vars(Method).items() if isfunction(value)} | Method.__class_vars__
    own = {name for kind in method.__mro__[: method.__mro__.index(Method)] for name in vars(kind)}
    for name in sorted(own - known - set(method.model_fields)):
        near = get_close_matches(name, known - own, n=1, cutoff=0.85)
        if near and not name.startswith("_"):
            raise Broken(f"`{name}` is used by nobody but the method; did you mean `{near[0]}`?")


CHECKS: tuple[Callable[[Problem], None], ...] = (
    its_own_networks_can_be_trained,
    attack_stays_in_the_ball,
    loss_is_finite_and_teaches_the_student_alone,
    attack_leaves_the_student_as_it_was,
    same_seed_gives_the_same_result,
    state_survives,
    rehearsal_leaves_no_trace,
    soft_labels_stand_for_labels,
    loss_of_a_batch_is_the_mean_of_its_examples,
    any_number_of_classes,
    bfloat16,
    few_steps_lower_the_loss,
    declared_cost_is_what_it_takes,
    names_are_the_contracts,
)


def _attack(method: Method, step: Step) -> Tensor:
    """The method's examples; x and y must stay as they are."""
    torch.manual_seed(step.iteration)
    return _unchanged(step, lambda: method.attack(step))


def _unchanged(step: Step, call: Callable[[], Tensor]) -> Tensor:
    x, y = step.x.clone(), step.y.clone()
    result = call()
    if not torch.equal(step.x, x) or not torch.equal(step.y, y):
        raise Broken("the batch itself was changed; work on a copy of step.x and step.y")
    return result


def _loss(method: Method, step: Step, x_adv: Tensor | None = None, *, finite: bool = True) -> Tensor:
    """The loss, (B,), of the given examples or of the method's own. finite: it has to be."""
    x_adv = _attack(method, step) if x_adv is None else x_adv
    torch.manual_seed(step.iteration)
    loss = _unchanged(step, lambda: method.loss(step, x_adv))
    if message := form_error(loss, step.y):
        raise Broken(message)
    if finite and not torch.isfinite(loss).all():
        raise Broken(f"the loss is not finite ({loss.mean().item()})")
    return loss


def _fix_statistics(step: Step) -> None:
    """Put all that learns in evaluation mode: batch-norm is the one thing that examples may share."""
    for network in (step.student.module, *step.parts.values()):
        network.eval()


def _descend(loss: Tensor, optimisers: list[torch.optim.Optimizer]) -> None:
    """An update by the mean of the losses, (B,)."""
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.mean().backward()  # type: ignore[no-untyped-call]
    for optimiser in optimisers:
        optimiser.step()


def _state(part: nn.Module, name: str) -> list[tuple[str, Tensor]]:
    """The weights and buffers of a method's own network, under what a user calls them."""
    return [(f"part '{name}', {key}", value) for key, value in part.state_dict().items()]


def _forget(step: Step) -> None:
    for teacher in step.teachers.values():
        teacher.forget()


@contextmanager
def counted(network: Network) -> Iterator[Counter[str]]:
    """Counts passes while it lasts, at the head, which each ends in: "both" forward and backward, or "forward"."""
    counts: Counter[str] = Counter()

    def seen(_: nn.Module, __: Any, output: Tensor) -> None:
        counts["both" if output.requires_grad else "forward"] += 1

    handle = network.classifier.register_forward_hook(seen)
    try:
        yield counts
    finally:
        handle.remove()
