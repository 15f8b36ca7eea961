"""Whole official iterations through the trainer: those of the authors' codes, and others that are computed here."""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_golden import assert_noticed
from test_recipes import THREAT, students
from torch import Tensor

from adbench.execution.execute import _training_attack
from adbench.experiment.cell import Cell
from adbench.plugins import golden as reference
from adbench.plugins.golden import Node, Replay, Result
from adbench.training import schedule
from adbench.training.configured import configured

MUTATIONS = tomllib.loads((Path(__file__).parent / "mutations.toml").read_text(encoding="utf-8"))["iteration"]


@pytest.fixture(scope="module")
def iterations() -> dict[str, Any]:
    return reference.read(reference.ITERATIONS)


def test_every_entry_of_the_shared_iterations_agrees(shared: Path) -> None:
    results = list(reference.replay(reference.read(shared / "golden" / "golden_iterations.json")))
    assert [str(r) for r in results if not r.passed] == []


def test_every_entry_agrees(iterations) -> None:
    results = list(reference.replay(iterations))
    assert len(results) == 18
    assert [str(r) for r in results if not r.passed] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m["name"])
def test_a_mistake_in_the_order_of_an_iteration_is_noticed(
    iterations, monkeypatch: pytest.MonkeyPatch, mutation: dict[str, str]
) -> None:
    assert_noticed(iterations, mutation, monkeypatch)


# --- whose settings the published iterations were made with ---

PUBLISHED = {
    "pgd_at_madry_kernels_only": "pgd-at",
    "trades_as_published": "trades",
    "ard": "ard",
    "iad1_as_published": "iad",
    "rslad": "rslad",
    "mtard": "mtard",
    "adaad_as_published": "adaad",
    "las_at_as_published": "las-at",
    "smaraad": "smaraad",
    "smaraad_pp": "smaraad-pp",
}
OTHERS = {"trades_clean_once": "trades", "iad1_clean_once": "iad", "adaad_as_published": "adaad"}


def replay_of(content: Node, name: str, method: str) -> Replay:
    entry = content["trajectories"][name]
    rule: dict[str, Any] = next((r for p, r in reference.RULES["entry"].items() if fnmatchcase(entry.path, p)), {})
    return Replay(content, entry, rule, method, Result(name))


def differing(method: Any, cell: Cell) -> dict[str, tuple[Any, Any]]:
    """The hyperparameters in which a replayed method differs from a cell's, but for what defaults come to."""
    here, there = method.model_dump(mode="json"), configured(str(cell.method), cell.hyper).model_dump(mode="json")
    auto = {"kl_reduction": "mean", "begin_frac": 0.3, "true_mass": 0.7, "steps_choices": list(range(3, 15))}
    there = {name: auto.get(name) if value in (None, "auto") else value for name, value in there.items()}
    return {name: (value, there[name]) for name, value in here.items() if value not in (there[name], None, "auto")}


@pytest.mark.parametrize(("name", "method"), PUBLISHED.items())
def test_the_official_recipe_is_that_of_the_published_iterations(iterations, name: str, method: str) -> None:
    replay, cell = replay_of(iterations, name, method), students("official")[method]
    trainer, entry = replay._trainer(), replay.entry
    smaller = {"policy", "interval"} if method == "las-at" else set()
    assert differing(replay.method, cell).keys() == smaller
    for setting in ("epochs", "momentum", "nesterov", "weight_decay", "decay", "decay_norm"):
        assert getattr(trainer.config, setting) == getattr(cell.train, setting), setting
    assert [schedule.rate(cell.train, epoch, 0, 9) for epoch in entry["epoch_from_0"]] == pytest.approx(
        entry["recipe"]["lr"]
    )
    assert trainer.attack == _training_attack(cell.train, THREAT)


@pytest.mark.parametrize(("name", "method"), OTHERS.items())
def test_other_recipes_have_the_simplifications_that_are_documented(iterations, name: str, method: str) -> None:
    for preset in ("paper", "fair", "short", "quick", "rslad-protocol"):
        cell = students(preset).get(method)
        if cell:
            assert differing(replay_of(iterations, name, method).method, cell).keys() <= {"attack_bn"}, preset


# --- other networks, sizes and numbers of classes, computed here by other means ---

CLASSES, EPS, SIZE, RATES = 12, 8 / 255, 2 / 255, [0.1, 0.1, 0.01]
EPOCHS = {
    "trades": [1, 1, 2],
    "iad1": [59, 60, 100],
    "rslad": [0, 0, 1],
    "mtard": [0, 0, 1],
    "adaad": [0, 0, 1],
    "ard": [0, 0, 1],
}


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Network:
    """Two convolutions with batch-norm, the mean over the map and a linear layer, from a table of tensors."""

    def __init__(self, width: int, seed: int) -> None:
        self.arch = (
            f"Conv2d(3,4,3,p=1) BN ReLU Conv2d(4,{width},3,s=2,p=1) BN ReLU [feature map] mean over HxW, "
            f"Linear({width},{CLASSES})"
        )
        self.state: dict[str, Tensor] = {"fc.weight": 2 * numbers(CLASSES, width, seed=seed)}
        self.state["fc.bias"] = numbers(CLASSES, seed=seed + 1)
        for i, shape in ((1, (4, 3, 3, 3)), (2, (width, 4, 3, 3))):
            self.state[f"conv{i}.weight"] = 0.4 * numbers(*shape, seed=seed + 2 * i)
            for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 2)):
                part = value + 0.2 * numbers(shape[0], seed=seed + 10 * i + len(name))
                self.state[f"bn{i}.{name}"] = part
            self.state[f"conv{i}.bias"] = 0.1 * numbers(shape[0], seed=seed + 2 * i + 1)
        self.learning = [name for name in self.state if "running" not in name]
        self.momentum: dict[str, Tensor] = {}

    def __call__(self, x: Tensor, *, train: bool = False) -> Tensor:
        s = self.state
        for i in (1, 2):
            x = F.conv2d(x, s[f"conv{i}.weight"], s[f"conv{i}.bias"], stride=i, padding=1)
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3))
            if train:
                for name, value in (("running_mean", mean), ("running_var", var)):
                    s[f"bn{i}.{name}"] = 0.9 * s[f"bn{i}.{name}"] + 0.1 * value.detach()
                mean, var = mean, x.var((0, 2, 3), correction=0)
            else:
                mean, var = s[f"bn{i}.running_mean"], s[f"bn{i}.running_var"]
            mean, var, weight, bias = (v[:, None, None] for v in (mean, var, s[f"bn{i}.weight"], s[f"bn{i}.bias"]))
            x = ((x - mean) / (var + 1e-5).sqrt() * weight + bias).relu()
        return F.linear(x.mean((2, 3)), s["fc.weight"], s["fc.bias"])

    def update(self, loss: Tensor, rate: float, decay: float) -> None:
        """SGD with momentum 0.9."""
        gradients = torch.autograd.grad(loss, [self.state[name] for name in self.learning])
        for name, gradient in zip(self.learning, gradients, strict=True):
            p = self.state[name].detach()
            d = gradient + decay * p
            self.momentum[name] = 0.9 * self.momentum[name] + d if name in self.momentum else d
            self.state[name] = (p - rate * self.momentum[name]).requires_grad_()

    def table(self) -> dict[str, Any]:
        return {name: value.tolist() for name, value in self.state.items()}


def divergence(student: Tensor, teacher: Tensor, floor: float = 0.0) -> Tensor:
    """KL(teacher || student) of logits, (B,)."""
    p = teacher.softmax(1)
    return (p * ((p + floor).log() - student.log_softmax(1))).sum(1)


class Iterations:
    """Three iterations of a method, and what the reference would say of them."""

    def __init__(self, method: str, *, as_published: bool) -> None:
        self.method, self.as_published = method, as_published
        self.student, self.teacher, self.natural = Network(5, 100), Network(6, 200), Network(4, 300)
        for name in self.student.learning:
            self.student.state[name].requires_grad_()
        self.nets = {
            name: {"arch": net.arch, "state": net.table()}
            for name, net in (("s", self.student), ("t", self.teacher), ("n", self.natural))
        }
        self.uniform = method in ("iad1", "ard")
        self.w, self.first, self.rho = 0.5, None, 0.025

    def objective(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        if self.method in ("iad1", "mtard", "ard"):
            return F.cross_entropy(self.student(x_adv, train=self.uniform), y, reduction="sum")
        target = {"trades": self.student(x).detach(), "rslad": self.teacher(x), "adaad": self.teacher(x_adv)}
        return divergence(self.student(x_adv), target[self.method]).sum()

    def loss(self, x: Tensor, y: Tensor, x_adv: Tensor, epoch: int) -> Tensor:
        def student(z: Tensor) -> Tensor:
            return self.student(z, train=True)

        if self.method == "trades":
            hard, adversarial = F.cross_entropy(student(x), y), student(x_adv)
            clean = student(x) if self.as_published else self.of_batch(x)
            return hard + 6 * divergence(adversarial, clean).mean()
        if self.method == "adaad":
            if self.as_published:
                student(x)
            loss = divergence(student(x_adv), self.teacher(x_adv)).mean() / CLASSES
            if not self.as_published:
                student(x)
            return loss
        adversarial = student(x_adv)
        if self.method == "iad1":
            trust = self.teacher(x_adv).softmax(1)[range(len(y)), y] ** 0.1
            if self.as_published:
                student(x_adv)
            clean = student(x)
            distilled = divergence(adversarial, self.teacher(x))
            if epoch < 60:
                return distilled.mean()
            if self.as_published:
                clean = student(x)
            return (distilled + (1 - trust) * divergence(adversarial, clean)).mean()
        clean = student(x)
        if self.method == "ard":
            return 900 * divergence(adversarial / 30, self.teacher(x) / 30).mean() / CLASSES
        robust = divergence(adversarial, self.teacher(x_adv if self.method == "mtard" else x), 1e-5).mean() / CLASSES
        natural = (
            divergence(clean, self.natural(x) if self.method == "mtard" else self.teacher(x), 1e-5).mean() / CLASSES
        )
        if self.method == "rslad":
            return 5 / 6 * robust + natural / 6
        self.first = self.first or (robust.item(), natural.item())
        robust_share, natural_share = robust.item() / self.first[0], natural.item() / self.first[1]
        self.w -= self.rho * (self.w - natural_share / (robust_share + natural_share))
        return (1 - self.w) * robust + self.w * natural

    def of_batch(self, x: Tensor) -> Tensor:
        """The student's logits in training mode without a trace."""
        before = dict(self.student.state)
        logits = self.student(x, train=True)
        self.student.state = before
        return logits

    def content(self) -> dict[str, Any]:
        pixels = torch.randint(0, 256, (9, 3, 7, 6), generator=torch.Generator().manual_seed(9))
        labels = torch.tensor([11, 0, 3, 3, 10, 1, 7, 2, 6])
        batches, epochs = [[0, 1, 2, 3, 4], [8, 5], [6, 7, 0]], EPOCHS[self.method]
        noise = [numbers(5, 3, 7, 6, seed=20 + i).clamp(-1, 1) for i in range(3)]
        steps = []
        for indices, epoch, rate, drawn in zip(batches, epochs, RATES, noise, strict=True):
            x, y, start = pixels[indices].double() / 255, labels[indices], drawn[: len(indices)]
            self.rho = 0.25 * rate
            x_adv = x + (EPS if self.uniform else 0.001) * start
            for _ in range(3):
                x_adv = x_adv.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.objective(x, y, x_adv), x_adv)
                x_adv = (x_adv.detach() + SIZE * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
            loss = self.loss(x, y, x_adv, epoch)
            self.student.update(loss, rate, 2e-4)
            momentum = {name: value.tolist() for name, value in self.student.momentum.items()}
            block = {"lr": rate, "loss": loss.item(), "x_adv_255": (255 * x_adv).tolist()}
            steps.append(block | {"state_after": self.student.table(), "momentum_after": momentum})
            if self.method == "mtard":
                first = self.first or (0.0, 0.0)
                state = {"w_n": self.w, "rho": self.rho, "first_adv": first[0], "first_nat": first[1]}
                steps[-1]["method_state"] = state
        entry = {
            "method": self.method,
            "params": {
                "trades": {"beta": 6.0, "clean_forwards": 1 + self.as_published},
                "iad1": {"begin": 60, "repeated": self.as_published},
                "adaad": {"order": "clean first" if self.as_published else "adversarial first"},
            }.get(self.method, {}),
            "nets": {"student": "s", "teacher": "t", "nat_teacher": "n"},
            "attack": {
                "eps": "8/255",
                "step": "2/255",
                "steps": 3,
                "student_mode": "train" if self.uniform else "eval",
            },
            "recipe": {"epochs": 200, "lr": RATES, "momentum": 0.9, "weight_decay": 2e-4, "decay_on": "all parameters"},
            "epoch_from_0": epochs,
            "batch": [0, 1, 2],
            "draws": [[["unit" if self.uniform else "gauss", i]] for i in range(3)],
            "steps": steps,
        }
        pool = [values.tolist() for values in noise]
        inputs = {"x_uint8": pixels.tolist(), "labels": labels.tolist(), "classes": CLASSES, "batches": batches}
        inputs |= {"noise_gauss": pool, "noise_unit": pool}
        return {"inputs": inputs, "nets": self.nets, "trajectories": {f"{self.method}_other": entry}}


CASES = [(method, True) for method in EPOCHS] + [(method, False) for method in ("trades", "iad1", "adaad")]


@pytest.mark.parametrize(("method", "as_published"), CASES)
def test_iterations_of_other_sizes_agree_with_a_loop_of_their_own(method: str, as_published: bool) -> None:
    content = Iterations(method, as_published=as_published).content()
    (result,) = reference.replay(Node(content, ""))
    assert result.passed, str(result)
    assert result.compared > 60
    content["trajectories"][f"{method}_other"]["steps"][2]["state_after"]["bn2.running_var"][1] *= 1 + 1e-8
    (result,) = reference.replay(Node(content, ""))
    assert result.wrong == ["state_after bn2.running_var"]
