"""The ten methods against values that their authors' own code produced (float64, on the CPU).

Skipped where `../shared/golden/golden.json` is not at hand. Nothing is re-implemented here: the plugins' own
`attack` and `loss` run on the reference's inputs.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adbench.attacks.linf import Start, ascend, attacking
from adbench.losses import margin, soft_rank, spearman
from adbench.matrix import configured
from adbench.method import Ball, Method, Need, Net, Step, Teacher
from adbench.models import Network

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


@pytest.fixture(scope="module")
def golden(shared) -> dict[str, Any]:
    return json.loads((shared / "golden" / "golden.json").read_text())


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Table(Network):
    """A network that looks its logits up: image i of an input filled with the number k gives row i of table k."""

    def __init__(self, **tables: Tensor) -> None:
        super().__init__(channels=1)
        self.tables = nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in tables.items()})

    def forward(self, x: Tensor) -> Tensor:
        return self.tables["adv" if x[0, 0, 0, 0] > 0.5 else "clean"] + 0.0 * x.sum()

    @property
    def classifier(self) -> nn.Linear:
        return nn.Linear(1, self.tables["adv"].shape[1])


class Toy(Network):
    """The reference's small networks: two convolutions, ReLU, mean pool, linear; batch-norm where it has some."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(channels=3)
        state = {k: tensor(v) for k, v in entry["state"].items()}
        width = state["conv2.weight"].shape[0]
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, width, 3, padding=1, stride=2 if "s=2" in entry["arch"] else 1)
        if "bn1.weight" in state:
            self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 10)
        self.double()
        self.load_state_dict(state, strict=False)

    @property
    def classifier(self) -> nn.Linear:
        return self.fc

    def features(self, x: Tensor) -> Tensor:
        if hasattr(self, "bn1"):
            return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.conv2(self.conv1(x).relu()).relu()


def step_for(student: Network, x: Tensor, y: Tensor, teachers: dict[Need, Network], **changes: Any) -> Step:
    settings: dict[str, Any] = {
        "epoch": 0, "epochs": 200, "iteration": 1, "lr": 0.1, "threat": Ball(8 / 255, 2 / 255, 10),
        "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    return Step(
        x=x, y=y, student=Net(student), teachers={n: Teacher(t) for n, t in teachers.items()}, **(settings | changes)
    )


OUTER = {
    "pgd_at": ("pgd-at", {}),
    "trades_beta1": ("trades", {"beta": 1.0}),
    "trades_beta6": ("trades", {}),
    "ard_official_tau30_alpha1": ("ard", {}),
    "ard_official_tau30_alpha0.9": ("ard", {"alpha": 0.9}),
    "ard_official_tau1_alpha1": ("ard", {"tau": 1.0}),
    "ard_official_c100_tau5_alpha0.95": ("ard", {"tau": 5.0, "alpha": 0.95}),
    "ard_iadrepo_tau1_alpha1": ("ard", {"tau": 1.0, "kl_reduction": "sum"}),
    "ard_iadrepo_tau30_alpha1": ("ard", {"kl_reduction": "sum"}),
    "iad1_warmup_tau1": ("iad", {}),
    "iad1_warmup_tau2": ("iad", {"tau": 2.0}),
    "iad1_after_tau1": ("iad", {}),
    "iad1_after_tau2": ("iad", {"tau": 2.0}),
    "iad1_after_tau1_alpha0.8": ("iad", {"alpha": 0.8}),
    "iad2_warmup": ("iad", {"variant": "II"}),
    "iad2_after": ("iad", {"variant": "II"}),
    "iad1_table1_form_derived": ("iad", {"teacher_weighting": True, "begin_frac": 0.0}),
    "rslad_c10": ("rslad", {}),
    "rslad_c100": ("rslad", {}),
    "adaad_c10_alpha1": ("adaad", {}),
    "adaad_c10_alpha0.6": ("adaad", {"alpha": 0.6}),
    "adaad_c100_alpha1": ("adaad", {}),
    "adaad_c100_alpha0.6": ("adaad", {"alpha": 0.6}),
    "lasat_target_c10": ("las-at", {}),
    "lasat_target_c100": ("las-at", {}),
}


def tables(golden: dict[str, Any], which: str) -> tuple[dict[str, Tensor], Tensor]:
    logits = golden["logit_sets"][which]
    return {k: tensor(v) for k, v in logits.items() if k != "labels"}, torch.tensor(logits["labels"])


def images(n: int) -> tuple[Tensor, Tensor]:
    """A clean and an adversarial input of n images that `Table` can tell apart."""
    return torch.zeros(n, 1, 2, 2, dtype=torch.float64), torch.ones(n, 1, 2, 2, dtype=torch.float64)


def gradients(student: Table) -> tuple[Tensor, Tensor]:
    found = [student.tables[k].grad for k in ("adv", "clean")]
    return tuple(
        torch.zeros_like(student.tables[k]) if g is None else g for k, g in zip(("adv", "clean"), found, strict=True)
    )  # type: ignore[return-value]


def check_gradients(student: Table, entry: dict[str, Any]) -> None:
    for found, key in zip(gradients(student), ("grad_student_adv", "grad_student_clean"), strict=True):
        expected = torch.zeros_like(found) if entry[key] is None else tensor(entry[key])
        torch.testing.assert_close(found, expected, **TIGHT)


@pytest.mark.parametrize("name", OUTER)
def test_outer_losses_and_their_gradients_equal_the_authors(golden, name: str) -> None:
    entry = golden["outer"][name]
    z, y = tables(golden, entry["logits"])
    method_name, hyper = OUTER[name]
    method = configured(method_name, hyper)
    student = Table(clean=z["student_clean"], adv=z["student_adv"]).double()
    teachers = {
        Need.TEACHER: Table(clean=z["teacher_clean"], adv=z["teacher_adv"]),
        Need.NATURAL_TEACHER: Table(clean=z["nat_teacher_clean"], adv=z["nat_teacher_adv"]),
    }
    x, x_adv = images(len(y))
    step = step_for(student, x, y, teachers, epoch=entry["params"].get("epoch", 0))
    loss = method.loss(step, x_adv)
    assert loss.shape == y.shape
    loss.mean().backward()
    torch.testing.assert_close(loss.mean().item(), entry["loss"], **TIGHT)
    check_gradients(student, entry)


@pytest.mark.parametrize("name", ["mtard_c10", "mtard_c100"])
def test_mtards_six_stateful_steps_equal_the_authors(golden, name: str) -> None:
    entry = golden["outer"][name]
    z, y = tables(golden, entry["logits"])
    method = configured("mtard", {})
    teachers = {
        Need.TEACHER: Table(clean=z["teacher_clean"], adv=z["teacher_adv"]),
        Need.NATURAL_TEACHER: Table(clean=z["nat_teacher_clean"], adv=z["nat_teacher_adv"]),
    }
    x, x_adv = images(len(y))
    rate = entry["params"]["weight_learn_rate"]
    for number, expected in enumerate(entry["steps"]):
        student = Table(
            clean=z["student_clean"] * expected["scale_student_clean"],
            adv=z["student_adv"] * expected["scale_student_adv"],
        )
        step = step_for(student, x, y, teachers)
        if number == 0:
            method.setup(step)
        if expected["weight_learn_rate"] != rate:
            method.on_lr_change(expected["weight_learn_rate"] / rate)
            rate = expected["weight_learn_rate"]
        loss = method.loss(step, x_adv).mean()
        loss.backward()
        torch.testing.assert_close(method.state_dict()["w_n"], expected["weight_nat"], **TIGHT)
        torch.testing.assert_close(loss.item(), expected["loss"], **TIGHT)
        for found, key in zip(gradients(student), ("grad_student_adv", "grad_student_clean"), strict=True):
            if key in expected:  # the reference holds them for some of its steps
                torch.testing.assert_close(found, tensor(expected[key]), **TIGHT)
    assert "grad_student_adv" in entry["steps"][0]


ATTACKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ce_pgd_uniform": ("pgd-at", {}, "uniform"),
    "ce_pgd_uniform_bn_eval": ("pgd-at", {}, "uniform"),
    "ce_pgd_gauss_mtard": ("mtard", {}, "gauss"),
    "ce_pgd_ard_bn_train": ("ard", {"attack_bn": "train"}, "uniform-unclamped"),
    "ce_pgd_ard_nobn": ("ard", {}, "uniform-unclamped"),
    "rslad": ("rslad", {}, "gauss"),
    "adaad": ("adaad", {}, "gauss"),
    "rslad_big": ("rslad", {}, "gauss"),
    "adaad_big": ("adaad", {}, "gauss"),
    "ce_pgd_uniform_big": ("pgd-at", {}, "uniform"),
    "ce_pgd_ard_big": ("iad", {}, "uniform-unclamped"),
    "trades": ("trades", {}, "gauss"),
    "smaraad_minmax": ("smaraad", {}, "gauss"),
    "smaraad_none": ("smaraad-pp", {"cam_norm": "none"}, "gauss"),
}


@pytest.fixture
def noise(golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference's noise instead of random noise; the kinds of start stay the code's own."""
    inputs = golden["attack_inputs"]
    monkeypatch.setattr(torch, "randn", lambda *_, **__: tensor(inputs["noise_gauss"]))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: (tensor(inputs["noise_unit"]) + 1) / 2)


def attack_step(golden: dict[str, Any], entry: dict[str, Any], **changes: Any) -> Step:
    inputs = golden["attack_inputs"]
    x = tensor(inputs["x_uint8"]) / 255
    student = Toy(golden["nets"]["student_bn" if entry.get("model") == "student_bn" else "student"])
    teacher = Toy(golden["nets"]["teacher"])
    eps, size = (int(str(entry.get(key, inputs[key])).partition("/")[0]) / 255 for key in ("eps", "step"))
    ball = Ball(eps, size, int(entry.get("steps", inputs["steps"])))
    return step_for(
        student, x, torch.tensor(inputs["labels"]), {Need.TEACHER: teacher, Need.NATURAL_TEACHER: teacher},
        threat=ball, **changes,
    )  # fmt: skip


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_equal_the_authors_pixel_for_pixel(golden, name: str) -> None:
    entry = golden["attacks"][name]
    method_name, hyper, start = ATTACKS[name]
    method = configured(method_name, hyper)
    assert getattr(method, "start", None) == start
    step = attack_step(golden, entry)
    x_adv = method.attack(step)
    assert (x_adv - tensor(entry["x_adv"])).abs().max() <= 1e-12
    student = step.student.module
    if "running_mean_bn1" in entry:
        if entry["bn_mode"] == "train":  # the reference's statistics include the final forward of the loss
            student.train()
            student(x_adv)
            assert int(student.bn1.num_batches_tracked) - 0 == entry["num_batches_tracked"]
        torch.testing.assert_close(student.bn1.running_mean, tensor(entry["running_mean_bn1"]), **TIGHT)
    if name == "trades":
        method.loss(step, x_adv).mean().backward()
        for key, parameter in student.named_parameters():
            torch.testing.assert_close(parameter.grad, tensor(entry["grad_params"][key]), **TIGHT)


def test_the_evaluations_margin_loss_equals_the_authors(golden) -> None:
    entry = golden["outer"]["eval_cw_margin"]
    z, y = tables(golden, entry["logits"])
    logits = z["student_adv"].requires_grad_()
    loss = margin(logits, y).mean()
    torch.testing.assert_close(loss.item(), entry["loss"], **TIGHT)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], tensor(entry["grad_student_adv"]), **TIGHT)


def lasat(entry: dict[str, Any], step: Step) -> tuple[Method, dict[str, Tensor]]:
    method = configured("las-at", {"policy": "cnn-2"})
    method.setup(step)
    chosen = {k: [int(p[v]) for p in entry["policies"]] for k, v in
              {"eps": "epsilon", "steps": "attack_iters", "step": "step_size"}.items()}  # fmt: skip
    actions = {
        k: torch.tensor([method._choices[k].index(value) for value in values])  # type: ignore[attr-defined]
        for k, values in chosen.items()
    }
    return method, actions


@pytest.mark.usefixtures("noise")
def test_las_ats_examples_equal_the_authors(golden) -> None:
    entry = golden["attacks"]["lasat_policy"]
    step = attack_step(golden, entry)
    step.student.module.eval()
    method, actions = lasat(entry, step)
    x_adv = method.craft(step, actions)  # type: ignore[attr-defined]
    assert (x_adv - tensor(entry["x_adv"])).abs().max() <= 1e-12


def test_las_ats_reward_equals_the_authors(golden) -> None:
    entry = golden["lasat"]["reward"]
    step = attack_step(golden, {"model": "student_bn"})
    method, actions = lasat(entry, step)
    x_adv = method.craft(step, actions, start=step.x)  # type: ignore[attr-defined]
    reward = method.reward(step, x_adv, starts=(step.x, step.x))  # type: ignore[attr-defined]
    torch.testing.assert_close(reward, entry["reward"], **TIGHT)


def test_las_ats_policy_loss_equals_the_authors(golden) -> None:
    from methods.las_at import policy_loss

    entry = golden["lasat"]["policy_loss"]
    heads = {str(i): tensor(h).requires_grad_() for i, h in enumerate(entry["head_logits"])}
    actions = {str(i): torch.tensor(a) for i, a in enumerate(entry["actions"])}
    loss = policy_loss(heads, actions, entry["reward"])
    loss.backward()
    torch.testing.assert_close(loss.item(), entry["loss"], **TIGHT)
    for i, head in enumerate(heads.values()):
        torch.testing.assert_close(head.grad, tensor(entry["grad_heads"][i]), **TIGHT)


@pytest.mark.parametrize("name", ["c10_gamma10", "c10_gamma1000", "c100_gamma10", "c100_gamma1000"])
def test_slack_matching_equals_the_derivation(golden, name: str) -> None:
    entry = golden["smaraad"]["slack_matching"][name]
    z, _ = tables(golden, entry["logits"])
    student = z["student_adv"].requires_grad_()
    ranks = soft_rank(student.softmax(1), entry["gamma"])
    loss = -spearman(ranks, soft_rank(z["teacher_adv"].softmax(1), entry["gamma"]))
    torch.testing.assert_close(loss.detach(), tensor(entry["per_sample_l_sm"]), **TIGHT)
    torch.testing.assert_close(ranks[0].detach(), tensor(entry["soft_rank_student_row0"]), **TIGHT)
    gradient = torch.autograd.grad(loss.sum(), student)[0]
    torch.testing.assert_close(gradient, tensor(entry["grad_of_sum_wrt_student_adv"]), **TIGHT)


SMARAAD_OUTER = ["eq9_default", "eq9_alpha0.5", "eq9_gamma10", "eq9_norm_none", "eq9_norm_l2", "eq10_default",
                 "eq10_alpha0.5", "eq10_w_student_adv", "eq10_plus_rho_literal", "eq10_gamma10"]  # fmt: skip


@pytest.mark.parametrize("name", SMARAAD_OUTER)
def test_smaraads_losses_and_parameter_gradients_equal_the_derivation(golden, name: str) -> None:
    entry = golden["smaraad"]["outer"][name]
    config = entry["config"]
    hyper: dict[str, Any] = {
        "alpha": config["alpha"],
        "gamma": config["gamma"],
        "cam_norm": config["norm"],
        "c": config["c"],
    }
    if name.startswith("eq10"):
        hyper |= {"self_rho_sign": int(config["self_sign"]), "w_source": config["w_source"]}
    method = configured("smaraad-pp" if name.startswith("eq10") else "smaraad", hyper)
    step = attack_step(golden, {})
    x_adv = tensor(golden["attacks"]["smaraad_minmax"]["x_adv"])
    loss = method.loss(step, x_adv).mean()
    loss.backward()
    torch.testing.assert_close(loss.item(), entry["loss"], **TIGHT)
    assert entry["grad_params"]
    for key, expected in entry["grad_params"].items():
        parameter = step.student.module.get_parameter(key)
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, tensor(expected), **TIGHT)


def test_an_attack_leaves_modes_flags_and_gradients_as_they_were(golden) -> None:
    net = Toy(golden["nets"]["student_bn"]).train()
    net.conv1.weight.requires_grad_(False)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with attacking(net):
        assert not net.bn1.training
        ascend(x, lambda z: net(z).sum(1), eps=0.1, step=0.05, steps=2, start=Start.CLEAN)
    assert net.bn1.training
    assert not net.conv1.weight.requires_grad
    assert net.conv2.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
