"""`adbench golden`: reference values of the authors' own code against the code that trains here.

A reference file holds inputs (logits, images, noise, weights of small networks) and what published code made of
them. Nothing is computed twice for the comparison: each entry is replayed through the plugin's own `attack`, `loss`
and parts, on real modules, in float64 on the CPU.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from adbench.attacks import linf
from adbench.attacks.linf import Objective
from adbench.data import parse_fraction
from adbench.errors import UserError
from adbench.losses import Classes, hard_rank, margin, soft_rank, spearman
from adbench.models import Network
from adbench.system import files
from adbench.training.configured import configured
from adbench.training.method import Method
from adbench.training.step import Ball, Need, Net, Step, Teacher

FILE = Path(__file__).with_name("golden.json")
"""The values that adbench comes with; their entries say whose code made them."""
EXACT = 1e-12
"""Largest absolute error of an adversarial example's pixels."""

RELATIVE = 1e-9
"""Largest relative error |found - expected| / (|expected| + 0.001) of everything else."""


class Node(dict[str, Any]):
    """A table of the reference file that knows where it stands, so that what is missing can be named."""

    def __init__(self, content: dict[str, Any], path: str) -> None:
        super().__init__({k: _node(v, f"{path}.{k}" if path else k) for k, v in content.items()})
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"the reference's {self.path or 'top level'} has no '{key}'")

    def table(self, key: str) -> Node:
        """The table under `key`; an empty one where there is none."""
        found = self.get(key, {})
        return found if isinstance(found, Node) else Node({}, f"{self.path}.{key}")

    def only(self, *known: str) -> Node:
        """This table. Raises UserError for a key that the replay would ignore."""
        for key in self:
            if key not in known:
                raise UserError(f"{self.path}: unknown parameter '{key}'; known are {', '.join(known) or 'none'}")
        return self


def _node(value: Any, path: str) -> Any:
    if isinstance(value, dict):
        return Node(value, path)
    return [_node(item, f"{path}[{i}]") for i, item in enumerate(value)] if isinstance(value, list) else value


def read(path: Path) -> Node:
    """The reference file. Raises UserError unless it is JSON with a table at the top."""
    try:
        content = json.loads(files.user_text(path, "reference"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"reference '{path}' cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"reference '{path}' is not a JSON object with sections such as 'outer' and 'attacks'")
    return Node(content, "")


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Comparison:
    """The errors of one entry: every value found against the value expected."""

    def __init__(self) -> None:
        self.absolute = 0.0
        self.relative = 0.0
        self.wrong: list[str] = []

    def pixels(self, what: str, found: Tensor, expected: Any) -> None:
        """Adversarial examples: equal to EXACT."""
        self._compare(what, found, expected, exact=True)

    def values(self, what: str, found: Tensor | float, expected: Any) -> None:
        """Losses, gradients, statistics: equal to RELATIVE."""
        self._compare(what, torch.as_tensor(found, dtype=torch.float64), expected, exact=False)

    def _compare(self, what: str, found: Tensor, expected: Any, exact: bool) -> None:
        wanted = tensor(expected)
        found = found.detach()
        if found.shape != wanted.shape:
            self.wrong.append(f"{what} has shape {tuple(found.shape)}, expected {tuple(wanted.shape)}")
            return
        if not wanted.numel():
            return
        # NaN is infinitely wrong: a comparison with it must not pass.
        error = (found - wanted).abs().nan_to_num(nan=torch.inf)
        absolute, relative = error.max().item(), (error / (wanted.abs() + 1e-3)).max().item()
        self.absolute, self.relative = max(self.absolute, absolute), max(self.relative, relative)
        if not (absolute <= EXACT if exact else relative <= RELATIVE):
            self.wrong.append(what)


@dataclass(frozen=True)
class Result:
    """One entry's outcome; `wrong` names what differs."""

    name: str
    absolute: float
    relative: float
    wrong: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.wrong

    def __str__(self) -> str:
        line = f"{'pass' if self.passed else 'FAIL'}  {self.name:40}  abs {self.absolute:.1e}  rel {self.relative:.1e}"
        return line + (f"  {'; '.join(self.wrong)}" if self.wrong else "")


# --- networks -----------------------------------------------------------------------------------------------------


class Table(Network):
    """A network whose logits are given: those at x' for images of ones, those at x for images of zeros."""

    def __init__(self, clean: Tensor, adv: Tensor) -> None:
        super().__init__(channels=1)
        self.clean, self.adv = nn.Parameter(clean.clone()), nn.Parameter(adv.clone())

    def forward(self, x: Tensor) -> Tensor:
        return (self.adv if x[0, 0, 0, 0] > 0.5 else self.clean) + 0.0 * x.sum()

    @property
    def classifier(self) -> nn.Linear:
        return nn.Linear(1, self.adv.shape[1])


class Toy(Network):
    """A reference's small network, from its description ("Conv2d(3,4,3,p=1) BN ReLU ... Linear(6,10)") and state."""

    def __init__(self, entry: Node) -> None:
        super().__init__(channels=3)
        body, mark, head = str(entry["arch"]).partition("[feature map]")
        linear = re.search(r"Linear\((\d+),\s*(\d+)\)", head)
        words = re.findall(r"Conv2d\([^)]*\)|BN|ReLU|\S+", body)
        if not mark or not linear:
            raise UserError(f"{entry.path}.arch: '{entry['arch']}' does not end in a feature map and Linear(K,C)")
        self.order: list[str] = []
        layer: nn.Module
        channels = convolutions = 0
        for word in words:
            if conv := re.fullmatch(r"Conv2d\((\d+),\s*(\d+),\s*(\d+)(?:,\s*s=(\d+))?(?:,\s*p=(\d+))?\)", word):
                inputs, channels, kernel, stride, padding = (int(part or 0) for part in conv.groups())
                convolutions += 1
                name, layer = f"conv{convolutions}", nn.Conv2d(inputs, channels, kernel, stride or 1, padding)
            elif word == "BN":
                name, layer = f"bn{convolutions}", nn.BatchNorm2d(channels)
            elif word == "ReLU":
                name, layer = f"relu{convolutions}", nn.ReLU()
            else:
                raise UserError(f"{entry.path}.arch: unknown layer '{word}'; known are Conv2d(...), BN and ReLU")
            self.add_module(name, layer)
            self.order.append(name)
        self.fc = nn.Linear(int(linear[1]), int(linear[2]))
        self.double()
        state = {key: tensor(value) for key, value in entry["state"].items()}
        try:
            missing, unexpected = self.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise UserError(f"{entry.path}: state and arch do not fit: {error}") from error
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        if missing or unexpected:
            raise UserError(f"{entry.path}: state and arch do not fit: missing {missing}, unexpected {unexpected}")

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def features(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.get_submodule(name)(x)
        return x


# --- steps --------------------------------------------------------------------------------------------------------


class Replay(Step):
    """A training step that remembers what its attack maximised."""

    objective: Objective

    def ascend(self, objective: Objective, **how: Any) -> Tensor:
        self.objective = objective
        return super().ascend(objective, **how)

    def noted(self, name: str) -> float:
        """The last value logged under `name`: the mean of a term over the batch."""
        return self.logged[name][-1].item()


def step_for(
    student: Network, x: Tensor, y: Tensor, teachers: dict[Need, Network], threat: Ball, **changes: Any
) -> Replay:
    settings: dict[str, Any] = {"epoch": 0, "epochs": 200, "iteration": 1, "lr": 0.1}
    return Replay(
        x=x,
        y=y,
        student=Net(student.train()),
        teachers={need: Teacher(network) for need, network in teachers.items()},
        threat=threat,
        generator=torch.Generator().manual_seed(0),
        **(settings | changes),
    )


@contextmanager
def noise(gauss: Tensor | None, unit: Tensor | None) -> Iterator[None]:
    """The reference's noise for N(0, 1) and U(-1, 1); what a start makes of it remains the attack's own."""

    def given(values: Tensor | None, name: str) -> Tensor:
        if values is None:
            raise UserError(f"the reference's attack_inputs has no '{name}'")
        return values

    with (
        patch.object(linf, "gauss_noise", lambda *_: given(gauss, "noise_gauss")),
        patch.object(linf, "unit_noise", lambda *_: given(unit, "noise_unit")),
    ):
        yield


class Reference:
    """The inputs of a reference file."""

    def __init__(self, content: Node) -> None:
        self.content = content

    def tables(self, name: str) -> tuple[dict[str, Tensor], Tensor]:
        """A set of logits by name, and their labels."""
        chosen = self.content["logit_sets"][name]
        found = Node({}, chosen.path)
        found.update({k: tensor(v) for k, v in chosen.items() if isinstance(v, list) and k != "labels"})
        return found, torch.tensor(chosen["labels"])

    def table_step(self, logits: str, scale: tuple[float, float] = (1.0, 1.0), **changes: Any) -> tuple[Replay, Tensor]:
        """A step on given logits (the student's at x and x' scaled), and its x'."""
        z, y = self.tables(logits)
        x = torch.zeros(len(y), 1, 2, 2, dtype=torch.float64)
        student = Table(z["student_clean"] * scale[0], z["student_adv"] * scale[1])
        names = {Need.TEACHER: "teacher", Need.NATURAL_TEACHER: "nat_teacher"}
        teachers: dict[Need, Network] = {
            need: Table(z[f"{name}_clean"], z[f"{name}_adv"]) for need, name in names.items() if f"{name}_adv" in z
        }
        return step_for(student, x, y, teachers, Ball(8 / 255, 2 / 255, 10), **changes), torch.ones_like(x)

    def image_step(self, student: str, entry: Node) -> Replay:
        """A step on the reference's images and networks, with the entry's radius, step and number of steps."""
        inputs, nets = self.content["attack_inputs"], self.content["nets"]
        eps, size, steps = ((entry if key in entry else inputs)[key] for key in ("eps", "step", "steps"))
        teachers: dict[Need, Network] = {need: Toy(nets["teacher"]) for need in Need if "teacher" in nets}
        ball = Ball(float(parse_fraction(str(eps))), float(parse_fraction(str(size))), int(steps))
        labels = torch.tensor(inputs["labels"])
        return step_for(Toy(nets[student]), tensor(inputs["x_uint8"]) / 255, labels, teachers, ball)

    def noise(self) -> Any:
        inputs = self.content["attack_inputs"]
        return noise(*(tensor(inputs[key]) if key in inputs else None for key in ("noise_gauss", "noise_unit")))


Replayer = Callable[[Reference, str, Node, Comparison], None]


# --- losses -------------------------------------------------------------------------------------------------------


def _gradients(step: Step, entry: Node, seen: Comparison) -> None:
    """The gradient in the student's logits at x' and x; null stands for no dependence."""
    student = step.student.module
    for key, table in (("grad_student_adv", "adv"), ("grad_student_clean", "clean")):
        if key in entry:
            parameter = student.get_parameter(table)
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            wanted = entry[key]
            seen.values(key, found, torch.zeros_like(found).tolist() if wanted is None else wanted)


def _loss(
    reference: Reference, method: Method, entry: Node, seen: Comparison, epoch: int = 0, epochs: int = 200
) -> Replay:
    """One step's loss and its gradients."""
    step, x_adv = reference.table_step(entry["logits"], epoch=epoch, epochs=epochs)
    loss = method.loss(step, x_adv).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    seen.values("loss", loss, entry["loss"])
    _gradients(step, entry, seen)
    return step


def _plain(method: str, **renamed: str) -> Replayer:
    """A loss whose parameters are hyperparameters of `method`, under the names `renamed` gives them."""

    def replay(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
        params = entry.table("params").only(*renamed)
        _loss(reference, configured(method, {renamed[k]: v for k, v in params.items()}), entry, seen)

    return replay


def _ard(reference: Reference, name: str, entry: Node, seen: Comparison) -> None:
    summed = name.startswith("ard_iadrepo")
    params = entry.table("params").only("alpha", "tau")
    reduction = Classes.SUM if summed else Classes.MEAN
    _loss(reference, configured("ard", {**params, "kl_reduction": reduction}), entry, seen)


def _iad(reference: Reference, name: str, entry: Node, seen: Comparison) -> None:
    second = name.startswith("iad2")
    own = ("alpha1", "alpha2") if second else ("alpha",)
    params = entry.table("params").only(*own, "tau", "beta", "begin", "epoch")
    epoch = params.get("epoch", 0)
    epochs = max(200, epoch + 1, params.get("begin", 0))
    hyper = {k: v for k, v in params.items() if k not in ("begin", "epoch")}
    hyper |= {"variant": "II" if second else "I"}
    if "begin" in params:
        hyper["begin_frac"] = params["begin"] / epochs
    if "table1_form" in name:
        hyper |= {"teacher_weighting": True, "begin_frac": 0.0}
    step = _loss(reference, configured("iad", hyper), entry, seen, epoch, epochs)
    if "Alpha" in entry:
        # Before the end of the warm-up the teacher is trusted wholly, and nothing is logged.
        reliability = step.noted("teacher_reliability") if "teacher_reliability" in step.logged else 1.0
        seen.values("mean of Alpha", reliability, sum(entry["Alpha"]) / len(entry["Alpha"]))


def _rslad(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
    params = entry.table("params").only("alpha", "kl")
    reductions = {"elementwise mean": Classes.MEAN, "elementwise mean x10": Classes.MEAN_X10, "sum": Classes.SUM}
    if "kl" in params and params["kl"] not in reductions:
        raise UserError(f"{params.path}.kl: unknown reduction '{params['kl']}'; known are {', '.join(reductions)}")
    hyper = {k: v for k, v in params.items() if k != "kl"}
    hyper |= _reduction(reference, entry, Classes.MEAN_X10, reductions.get(params.get("kl", "")))
    _loss(reference, configured("rslad", hyper), entry, seen)


def _adaad(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
    hyper = entry.table("params").only("alpha") | _reduction(reference, entry, Classes.SUM)
    _loss(reference, configured("adaad", hyper), entry, seen)


def _reduction(reference: Reference, entry: Node, many: Classes, stated: Classes | None = None) -> dict[str, Classes]:
    """The reduction over classes that the entry states, or that its authors have for its data set.

    As a hyperparameter only where the default would not find it by itself: up to 10 classes the mean, else `many`.
    """
    hundred = re.search(r"cifar100|_c100(_| |$)", f"{entry.path} {entry.get('source', '')}".lower())
    wanted = stated or (many if hundred else Classes.MEAN)
    classes = reference.tables(entry["logits"])[0]["student_adv"].shape[1]
    return {} if wanted is (Classes.MEAN if classes <= 10 else many) else {"kl_reduction": wanted}


def _mtard(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
    """Steps in a row: the weights depend on all losses before."""
    params = entry.table("params").only("weight_learn_rate", "bert")
    rate = params["weight_learn_rate"]
    reduction = _reduction(reference, entry, Classes.MEAN_X10)
    method = configured("mtard", {"weight_lr": rate, "balance": params["bert"], **reduction})
    for number, expected in enumerate(entry["steps"], 1):
        scale = (expected["scale_student_clean"], expected["scale_student_adv"])
        step, x_adv = reference.table_step(entry["logits"], scale, iteration=number)
        if number == 1:
            method.setup(step)
        if expected["weight_learn_rate"] != rate:
            method.on_lr_change(expected["weight_learn_rate"] / rate)
            rate = expected["weight_learn_rate"]
        loss = method.loss(step, x_adv).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        natural = method.state_dict()["w_n"]
        found = {
            "loss": loss,
            "kl_adv": step.noted("kl_adversarial"),
            "kl_nat": step.noted("kl_natural"),
            "weight_nat": natural,
            "weight_adv": 1 - natural,
        }
        for key, value in found.items():
            seen.values(f"{key} of step {number}", value, expected[key])
        _gradients(step, expected, seen)


def _margin(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
    """The evaluation's C&W loss."""
    entry.table("params").only()
    z, y = reference.tables(entry["logits"])
    logits = z["student_adv"].requires_grad_()
    loss = margin(logits, y).mean()
    seen.values("loss", loss, entry["loss"])
    seen.values("grad_student_adv", torch.autograd.grad(loss, logits)[0], entry["grad_student_adv"])


# --- attacks ------------------------------------------------------------------------------------------------------


def _attack(*methods: str, **hyper: Any) -> Replayer:
    """Training examples of each of `methods`, which must all be the entry's."""

    def replay(reference: Reference, name: str, entry: Node, seen: Comparison) -> None:
        own = dict(hyper)
        if entry.get("bn_mode") == "train":
            own["attack_bn"] = "train"
        if name.startswith("smaraad"):
            norm = re.search(r"norm=(\w+)", str(entry.get("source", "")))
            own["cam_norm"] = norm[1] if norm else name.removeprefix("smaraad_")
        if "beta" in entry:
            own["beta"] = entry["beta"]
        for method_name in methods:
            method = configured(method_name, own)
            step = reference.image_step(str(entry["model"]).partition("+")[0], entry)
            with reference.noise():
                x_adv = method.attack(step)
            seen.pixels("x_adv", x_adv, entry["x_adv"])
            _at_the_examples(step, x_adv, entry, seen)
            if "grad_params" in entry:
                _parameter_loss(method, step, x_adv, entry, seen)

    return replay


def _at_the_examples(step: Replay, x_adv: Tensor, entry: Node, seen: Comparison) -> None:
    """What the reference says about its examples: distance, objective, logits, batch-norm statistics."""
    student = step.student.module
    found: dict[str, Callable[[], Tensor]] = {
        "linf": lambda: (x_adv - step.x).abs().max(),
        "final_ce": lambda: step.objective(x_adv).sum() / len(x_adv),
        "final_kl_sum": lambda: step.objective(x_adv).sum(),
        "final_objective_sum": lambda: step.objective(x_adv).sum(),
        "student_adv_logits": lambda: step.student(x_adv),
        "teacher_adv_logits": lambda: step.teacher(x_adv),
    }
    with step.still(), torch.no_grad():
        for key, value in found.items():
            if key in entry:
                seen.values(key, value(), entry[key])
    if entry.get("bn_mode") == "train":
        step.student.observe(x_adv)  # the reference's statistics include the final forward of the loss
    buffers = dict(student.named_buffers())
    for key, expected in entry.items():
        if statistic := re.fullmatch(r"(running_mean|running_var)_(\w+)", key):
            seen.values(key, buffers[f"{statistic[2]}.{statistic[1]}"], expected)
        elif key == "num_batches_tracked":
            seen.values(key, buffers["bn1.num_batches_tracked"].double(), float(expected))


def _parameter_loss(method: Method, step: Step, x_adv: Tensor, entry: Node, seen: Comparison) -> None:
    """The loss at given examples and its gradient in the student's parameters."""
    loss = method.loss(step, x_adv).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    seen.values("loss", loss, entry["loss"])
    for name, expected in entry["grad_params"].items():
        parameter = step.student.module.get_parameter(name)
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        seen.values(f"gradient of {name}", found, expected)


# LAS-AT counts in 1/255 and starts in +-8/255 whatever an image's radius is.
_LAS_AT_BALL = Node({"eps": "8/255", "step": "2/255", "steps": 10}, "LAS-AT")


def _las_at(step: Step, entry: Node, **hyper: Any) -> tuple[Any, dict[str, Tensor]]:
    """The method with just the choices that the entry makes, and these as actions."""
    keys = {"eps": "epsilon", "steps": "attack_iters", "step": "step_size"}
    chosen = {name: [int(policy[key]) for policy in entry["policies"]] for name, key in keys.items()}
    choices = {name: sorted(set(values)) for name, values in chosen.items()}
    method = configured("las-at", {"policy": "cnn-2", **{f"{n}_choices": c for n, c in choices.items()}, **hyper})
    method.setup(step)
    return method, {n: torch.tensor([choices[n].index(value) for value in values]) for n, values in chosen.items()}


def _las_at_attack(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
    step = reference.image_step(entry["model"], _LAS_AT_BALL)
    method, actions = _las_at(step, entry)
    with reference.noise():
        x_adv = method.craft(step, actions)
    seen.pixels("x_adv", x_adv, entry["x_adv"])
    if "per_sample_linf" in entry:
        seen.values("per_sample_linf", (x_adv - step.x).abs().amax(dim=(1, 2, 3)), entry["per_sample_linf"])


def _las_at_reward(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
    step = reference.image_step("student_bn", _LAS_AT_BALL)
    weights = {"robust_reward": entry["R2_param"], "clean_reward": entry["R3_param"], "true_mass": entry["factor"]}
    method, actions = _las_at(step, entry, **weights)
    zero = torch.zeros_like(step.x)
    with noise(zero, zero):  # the reference was made with every uniform start at the image itself
        reward = method.reward(step, method.craft(step, actions))
    for key, part in (("R1", "caused"), ("R2", "robust"), ("R3", "clean")):
        seen.values(key, step.noted(f"reward_{part}"), entry[key])
    seen.values("reward", reward, entry["reward"])


def _las_at_policy(_: Reference, __: str, entry: Node, seen: Comparison) -> None:
    method: Any = configured("las-at", {})
    heads = {str(i): tensor(logits).requires_grad_() for i, logits in enumerate(entry["head_logits"])}
    actions = {str(i): torch.tensor(choice) for i, choice in enumerate(entry["actions"])}
    loss = method.policy_loss(heads, actions, entry["reward"])
    seen.values("loss", loss, entry["loss"])
    for (name, head), expected in zip(heads.items(), entry["grad_heads"], strict=True):
        seen.values(f"gradient of head {name}", torch.autograd.grad(loss, head, retain_graph=True)[0], expected)


# --- SmaraAD ------------------------------------------------------------------------------------------------------


def _slack(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
    z, _labels = reference.tables(entry["logits"])
    method: Any = configured("smaraad", {"gamma": entry["gamma"]})
    student = z[_ranked(entry, "u")].requires_grad_()
    slack = method.slack(student, z[_ranked(entry, "v")])
    seen.values("per_sample_l_sm", slack, entry["per_sample_l_sm"])
    if "official_stub_rho" in entry:
        seen.values("official_stub_rho", -slack, entry["official_stub_rho"])
    seen.values("soft_rank_student_row0", method.ranks(student)[0], entry["soft_rank_student_row0"])
    (gradient,) = torch.autograd.grad(slack.sum(), student)
    seen.values("grad_of_sum_wrt_student_adv", gradient, entry["grad_of_sum_wrt_student_adv"])


def _ranked(entry: Node, key: str) -> str:
    found = re.fullmatch(r"softmax\((\w+)\)", entry[key])
    if not found:
        raise UserError(f"{entry.path}.{key}: '{entry[key]}' is not of the form softmax(LOGITS)")
    return found[1]


def _hand(_: Reference, __: str, entry: Node, seen: Comparison) -> None:
    u, v = (tensor([entry[key]]) for key in "uv")
    for key, vector in (("ranks_u_desc", u), ("ranks_v_desc", v)):
        seen.values(key, hard_rank(vector)[0] + 0.5, entry[key])  # the reference's ranks begin at 1
    seen.values("rho_hard", spearman(hard_rank(u), hard_rank(v))[0], entry["rho_hard"])
    seen.values("rho_gamma1e6", spearman(soft_rank(u, 1e6), soft_rank(v, 1e6))[0], entry["rho_gamma1e6"])


def _smaraad(reference: Reference, _: str, entry: Node, seen: Comparison) -> None:
    """The loss of Eq. 9 or 10 with its parts and parameter gradients, at the examples of `smaraad_minmax`."""
    config = entry["config"].only("variant", "alpha", "c", "gamma", "lam", "norm", "w_source", "self_sign")
    hyper = {"alpha": config["alpha"], "c": config["c"], "gamma": config["gamma"], "cam_norm": config["norm"]}
    if config["variant"] not in ("smaraad", "smaraad++"):
        raise UserError(f"{config.path}.variant: '{config['variant']}' is neither 'smaraad' nor 'smaraad++'")
    eq9: Any = configured("smaraad", hyper)
    method = eq9
    if config["variant"] == "smaraad++":
        hyper |= {"reliability_exponent": config["lam"], "self_rho_sign": int(config["self_sign"])}
        method = configured("smaraad-pp", hyper | {"w_source": config["w_source"]})
    step = reference.image_step("student", Node({}, entry.path))
    x_adv = tensor(reference.content["attacks"]["smaraad_minmax"]["x_adv"])
    _parameter_loss(method, step, x_adv, entry, seen)

    logged = {"p_t_pow_lambda": "trust", "w": "certainty", "self_rho": "self_rho", "ce_clean": "cross_entropy"}
    parts = entry.table("parts")
    for key, name in logged.items():
        if key in parts and method is not eq9:
            seen.values(f"mean of {key}", step.noted(name), sum(parts[key]) / len(parts[key]))
    with torch.no_grad():
        for key, per_example in (("eq9_per_sample", eq9), ("eq10_per_sample", method)):
            if key in parts:
                seen.values(key, per_example.loss(step, x_adv), parts[key])
        for where, x in (("clean", step.x), ("adv", x_adv)):
            student, teacher = step.student.features(x), step.teacher.features(x)
            if (key := f"l_sm_{where}") in parts:
                seen.values(key, method.slack(student[0], teacher[0]), parts[key])
            if (key := f"l_align_{where}") in parts:
                seen.values(key, method.align(step, student, teacher), parts[key])


# --- the file -----------------------------------------------------------------------------------------------------

# By section: the beginning of an entry's name, and its replay. The first that fits counts.
REPLAYS: dict[str, Sequence[tuple[str, Replayer]]] = {
    "outer": (
        ("pgd_at", _plain("pgd-at")),
        ("trades", _plain("trades", beta="beta")),
        ("ard_official", _ard),
        ("ard_iadrepo", _ard),
        ("iad", _iad),
        ("rslad", _rslad),
        ("mtard", _mtard),
        ("adaad", _adaad),
        ("lasat_target", _plain("las-at", factor="true_mass")),
        ("eval_cw_margin", _margin),
    ),
    "attacks": (
        ("ce_pgd_uniform", _attack("pgd-at")),
        ("ce_pgd_gauss", _attack("mtard")),
        ("ce_pgd_ard", _attack("ard", "iad")),
        ("rslad", _attack("rslad")),
        ("adaad", _attack("adaad", "kd", "slack")),
        ("trades", _attack("trades")),
        ("lasat_policy", _las_at_attack),
        ("smaraad", _attack("smaraad", "smaraad-pp", "kd-align")),
    ),
    "lasat": (("reward", _las_at_reward), ("policy_loss", _las_at_policy)),
    "smaraad.slack_matching": (("", _slack),),
    "smaraad": (("hand_example", _hand),),
    "smaraad.outer": (("eq", _smaraad),),
}

# Inputs, and remarks of those who made the file.
NOT_REPLAYED = {"meta", "logit_sets", "nets", "attack_inputs"}
REMARKS = {"cross_checks"}


def entries(content: Node) -> Iterator[tuple[str, str, Node]]:
    """Section, name and table of everything in the file that has to be replayed; texts are remarks."""
    for section, table in content.items():
        if section in NOT_REPLAYED or isinstance(table, str):
            continue
        if not isinstance(table, Node):
            raise UserError(f"the reference's {section} is not a table of entries")
        if section != "smaraad":
            yield from ((section, name, entry) for name, entry in table.items() if isinstance(entry, Node))
            continue
        for part, inner in table.items():
            if part == "hand_example":
                yield "smaraad", part, inner
            elif part not in REMARKS and isinstance(inner, Node):
                yield from (
                    (f"smaraad.{part}", name, entry) for name, entry in inner.items() if isinstance(entry, Node)
                )


def replay(content: Node, beginning: str = "") -> Iterator[Result]:
    """Every entry's outcome, in the file's order, of those whose name has the given beginning.

    Raises UserError for a file that is not of the format.
    """
    reference = Reference(content)
    for section, name, entry in entries(content):
        label = f"{section}.{name}"
        if not label.startswith(beginning):
            continue
        replays = (run for begin, run in REPLAYS.get(section, ()) if name.startswith(begin))
        run = next(replays, None)
        seen = Comparison()
        if run is None:
            seen.wrong.append("no such method or attack is known, so it was not replayed")
        else:
            try:
                run(reference, name, entry, seen)
            except UserError as error:
                raise UserError(f"{label}: {error}") from error
            except Exception as error:
                seen.wrong.append(f"{type(error).__name__}: {error}")
        yield Result(label, seen.absolute, seen.relative, tuple(dict.fromkeys(seen.wrong)))
