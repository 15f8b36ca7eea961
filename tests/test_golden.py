"""The ten methods against values that their authors' own code produced, and what that comparison would notice."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import math
import types
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adbench import golden as reference
from adbench.attacks.linf import Start, ascend, attacking
from adbench.golden import Node, Result
from adbench.registry import METHODS
from tiny import cli

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "golden" / "golden.json"
NAMES = [
    f"{section}.{name}" for section, name, _ in reference.entries(Node(json.loads(SHARED.read_text()), ""))
] if SHARED.is_file() else []  # fmt: skip


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "golden.json").read_text())


def replayed(content: dict[str, Any], wanted: str) -> list[Result]:
    """The outcomes of the entries whose name has `wanted` at its beginning or after a dot."""
    content = copy.copy(content)
    for section in ("outer", "attacks", "lasat"):
        content[section] = {k: v for k, v in content[section].items() if f"{section}.{k}".startswith(wanted)}
    content["smaraad"] = {
        part: {k: v for k, v in inner.items() if f"smaraad.{part}.{k}".startswith(wanted)}
        for part, inner in content["smaraad"].items()
        if part in ("slack_matching", "outer")
    }
    if "smaraad.outer" in wanted:
        content["attacks"] = {"smaraad_minmax": golden_attack(content)}
    return list(reference.replay(Node(content, "")))


def golden_attack(content: dict[str, Any]) -> Any:
    return json.loads(SHARED.read_text())["attacks"]["smaraad_minmax"]


def test_every_entry_of_the_reference_agrees(golden) -> None:
    results = list(reference.replay(Node(golden, "")))
    assert len(results) == 60
    assert [str(r) for r in results if not r.passed] == []


@pytest.mark.usefixtures("golden")
def test_the_command_prints_a_line_an_entry_and_fails_for_a_wrong_value(tmp_path: Path) -> None:
    content = json.loads(SHARED.read_text())
    content = {k: content[k] for k in ("logit_sets", "outer")}
    content["outer"] = {k: content["outer"][k] for k in ("pgd_at", "trades_beta6")}
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(content))
    result = cli("golden", path)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == "2 of 2 entries agree"
    content["outer"]["trades_beta6"]["loss"] *= 1 + 1e-8
    path.write_text(json.dumps(content))
    result = cli("golden", path)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith("pass  outer.pgd_at")
    assert lines[1].startswith("FAIL  outer.trades_beta6")
    assert lines[1].endswith("loss")
    assert lines[2] == "1 of 2 entries agree"


# --- mutations: where, what is changed into what, and an entry that must notice ---

LOSSES, LINF, METHOD = "adbench.losses", "adbench.attacks.linf", "adbench.method"
GUIDED, PLUS, LAS, IAD, MTARD = (f"methods.{n}" for n in ("guided", "smaraad_pp", "las_at", "iad", "mtard"))
MUTATIONS = {
    "KL the other way round": (LOSSES, "kl", "p_t * (entropy_term - log_s)", "log_s.exp() * (log_s - log_t)", "outer.trades"),
    "mean over classes missing": (LOSSES, "kl", "/ student.shape[1])", ")", "outer.ard_official"),
    "times 10 missing": (LOSSES, "kl", "(10 if", "(1 if", "outer.rslad_c100"),
    "temperature on the student only": (LOSSES, "kl", "F.log_softmax(teacher / tau", "F.log_softmax(teacher", "outer.ard_iadrepo_tau30"),
    "floor of the logarithm missing": (LOSSES, "kl", "if floor else", "if False else", "outer.rslad_c10"),
    "smoothing over all classes": (LOSSES, "cross_entropy", "(logits.shape[1] - 1)", "logits.shape[1]", "outer.lasat_target"),
    "margin includes the label": (LOSSES, "margin", "others.amax", "logits.amax", "outer.eval_cw"),
    "ranks ascending": (LOSSES, "soft_rank", "u[:, None, :] - some[:, :, None]", "some[:, :, None] - u[:, None, :]", "smaraad.slack"),
    "rho with n for n - 1": (LOSSES, "spearman", "n * n - 1", "n * n", "smaraad.slack"),
    "corners aligned": (LOSSES, "normalise_map", "align_corners=False", "align_corners=True", "smaraad.outer.eq9_default"),
    "map not moved to zero": (LOSSES, "normalise_map", "(maps - low)", "maps", "smaraad.outer.eq9_default"),
    "entropy not normalised": (LOSSES, "entropy_weight", "/ math.log(logits.shape[1])", "", "smaraad.outer.eq10_default"),
    "gradient for its sign": (LINF, "ascend", "gradient.sign()", "gradient", "attacks.ce_pgd_uniform"),
    "a step less": (LINF, "ascend", "else steps):", "else steps - 1):", "attacks.ce_pgd_uniform"),
    "not clipped to images": (LINF, "ascend", ".clamp(low, high).clamp(0, 1)\n        if", ".clamp(low, high)\n        if", "attacks.adaad_big"),
    "every start clamped": (LINF, "start_point", "else begun", "else begun.clamp(0, 1)", "attacks.ce_pgd_ard_big"),
    "attack in evaluation mode": (METHOD, "Step.still", "bn is Mode.TRAIN", "False", "attacks.ce_pgd_ard_bn_train"),
    "attack in training mode": (METHOD, "Step.still", "bn is Mode.TRAIN", "True", "attacks.ce_pgd_uniform_bn_eval"),
    "TRADES: S(x) detached": ("methods.trades", "TRADES.loss", "kl(step.student(x_adv), clean)", "kl(step.student(x_adv), clean.detach())", "outer.trades"),
    "TRADES: attack on CE": ("methods.trades", "TRADES.attack", "kl(step.student(x), clean)", "cross_entropy(step.student(x), step.y)", "attacks.trades"),
    "ARD: no tau squared": ("methods.ard", "ARD.loss", "self.tau**2", "1", "outer.ard_official_tau30"),
    "ARD: T(x') for T(x)": ("methods.ard", "ARD.loss", "step.teacher(step.x)", "step.teacher(x_adv)", "outer.ard_official"),
    "IAD: T(x') for T(x)": (IAD, "IAD._loss_1", "step.teacher(step.x)", "step.teacher(x_adv)", "outer.iad1"),
    "IAD: weights swapped": (IAD, "IAD._loss_1", "(1 - reliability)", "reliability", "outer.iad1_after"),
    "IAD: S(x) detached": (IAD, "IAD._loss_1", "kl(adversarial, clean)", "kl(adversarial, clean.detach())", "outer.iad1_after"),
    "IAD: warm-up an epoch longer": (IAD, "IAD.loss", ">=", ">", "outer.iad1_after"),
    "IAD: mean before weighting": (IAD, "IAD._loss_1", "* itself", "* itself.mean()", "outer.iad1_after"),
    "IAD-II: natural teacher at x": (IAD, "IAD._loss_2", "natural_teacher(x_adv)", "natural_teacher(step.x)", "outer.iad2"),
    "RSLAD: attack against T(x')": ("methods.rslad", "RSLAD.attack", "kl(step.student(x), target)", "kl(step.student(x), step.teacher(x))", "attacks.rslad_big"),
    "RSLAD: weights swapped": ("methods.rslad", "RSLAD.loss", "self.alpha * robust + (1 - self.alpha) * clean", "self.alpha * clean + (1 - self.alpha) * robust", "outer.rslad"),
    "MTARD: natural teacher at x'": (MTARD, "MTARD.loss", "natural_teacher(step.x)", "natural_teacher(x_adv)", "outer.mtard"),
    "MTARD: weights the other way": (MTARD, "MTARD._rebalance", "r_natural / (r_robust", "r_robust / (r_robust", "outer.mtard"),
    "MTARD: rate never drops": (MTARD, "MTARD.on_lr_change", "*= factor", "*= 1", "outer.mtard"),
    "AdaAD: teacher detached": ("methods.adaad", "AdaAD.attack", "step.teacher(x)", "step.teacher(x.detach())", "attacks.adaad"),
    "AdaAD: T(x) for T(x')": ("methods.adaad", "AdaAD.loss", "target = step.teacher(x_adv)", "target = step.teacher(step.x)", "outer.adaad"),
    "SmaraAD: sign of rho": (GUIDED, "Slack.slack", "-spearman", "spearman", "smaraad.slack"),
    "SmaraAD: CAM not attacked": (GUIDED, "Regions.difference", "self.inner_align_weight * region", "0 * region", "attacks.smaraad"),
    "SmaraAD: teacher's map detached": (GUIDED, "Regions.difference", "not self.inner_teacher_grad", "True", "attacks.smaraad"),
    "SmaraAD: alpha ignored": (GUIDED, "Guided.loss", "if self.alpha < 1:", "if False:", "smaraad.outer.eq9_alpha0.5"),
    "SmaraAD++: mean before weighting": (PLUS, "SmaraADPlusPlus.loss", "trust * certainty * guidance", "trust * certainty * guidance.mean()", "smaraad.outer.eq10"),
    "SmaraAD++: no entropy weight": (PLUS, "SmaraADPlusPlus.loss", "trust * certainty * guidance", "trust * guidance", "smaraad.outer.eq10"),
    "SmaraAD++: exponent lost": (PLUS, "SmaraADPlusPlus.loss", " ** self.reliability_exponent", "", "smaraad.outer.eq10"),
    "SmaraAD++: weights with gradient": (PLUS, "SmaraADPlusPlus.loss", "if self.detach_weights:", "if False:", "smaraad.outer.eq10_w_student"),
    "SmaraAD++: sign of self-learning": (PLUS, "SmaraADPlusPlus.loss", "self.self_rho_sign * rho", "-self.self_rho_sign * rho", "smaraad.outer.eq10"),
    "LAS-AT: start within the own radius": (LAS, "LASAT.craft", "start_point(step.x, start, step.threat.eps", "start_point(step.x, start, chosen['eps'].to(step.x) * unit", "attacks.lasat"),
    "LAS-AT: everyone takes all steps": (LAS, "LASAT.craft", 'steps=chosen["steps"]', 'steps=int(chosen["steps"].max())', "attacks.lasat"),
    "LAS-AT: policy loss summed": (LAS, "LASAT.policy_loss", ".mean()", ".sum()", "lasat.policy_loss"),
    "LAS-AT: reward at the clean images": (LAS, "LASAT.reward", "cross_entropy(step.student(x_adv), step.y)", "cross_entropy(step.student(step.x), step.y)", "lasat.reward"),
    "LAS-AT: copy attacked in evaluation mode": (LAS, "LASAT._strongest", "net.train()", "net.eval()", "lasat.reward"),
}  # fmt: skip
DEFAULTS = {
    "TRADES: uniform start": ("trades", "start", "uniform", "attacks.trades"),
    "PGD-AT: start not clamped": ("pgd-at", "start", "uniform-unclamped", "attacks.ce_pgd_uniform_big"),
    "ARD: start clamped": ("ard", "start", "uniform", "attacks.ce_pgd_ard_big"),
    "MTARD: uniform start": ("mtard", "start", "uniform", "attacks.ce_pgd_gauss"),
    "RSLAD: batchmean": ("rslad", "kl_reduction", "sum", "outer.rslad_c10"),
    "AdaAD: one reduction for all": ("adaad", "kl_reduction", "mean", "outer.adaad_c100"),
    "SmaraAD: each network's own class": ("smaraad", "cam_class", "own_pred", "attacks.smaraad_minmax"),
    "SmaraAD: KL(S || T) in the attack": ("smaraad", "inner_kl", "st", "attacks.smaraad"),
    "SmaraAD: ranks of logits": ("smaraad", "rank_space", "logit", "smaraad.slack"),
}


def function(module: Any, qualified: str) -> Any:
    found = module
    for part in qualified.split("."):
        found = inspect.getattr_static(found, part)
    return inspect.unwrap(getattr(found, "__func__", found))


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_formula_is_noticed(golden, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module_name, qualified, old, new, wanted = MUTATIONS[name]
    module = importlib.import_module(module_name)
    original = function(module, qualified)
    body = inspect.getsource(original)
    assert body.count(old) == 1, f"{qualified} has {body.count(old)} times {old!r}"
    twin = types.ModuleType(module_name)
    exec(inspect.getsource(module).replace(body, body.replace(old, new)), twin.__dict__)
    assert all(r.passed for r in replayed(golden, wanted))
    monkeypatch.setattr(original, "__code__", function(twin, qualified).__code__)
    results = replayed(golden, wanted)
    assert results
    assert not all(r.passed for r in results)


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_changed_default_is_noticed(golden, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    method, hyper, value, wanted = DEFAULTS[name]
    load = METHODS.load

    def changed(asked: str) -> Any:
        cls = load(asked)
        if asked != method:
            return cls
        mutant = pydantic.create_model(cls.__name__, __base__=cls, **{hyper: (cls.model_fields[hyper].annotation, value)})
        mutant.model_config["validate_default"] = True
        mutant.model_rebuild(force=True)
        return mutant

    monkeypatch.setattr(METHODS, "load", changed)
    results = replayed(golden, wanted)
    assert results
    assert not all(r.passed for r in results)


# --- the file is data: other inputs, computed here by other means ---


def numbers(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def other_logits() -> dict[str, Any]:
    """Five images of seven classes."""
    sets: dict[str, Any] = {
        key: numbers(5, 7, seed=i, scale=2.0).tolist()
        for i, key in enumerate(f"{who}_{x}" for who in ("student", "teacher", "nat_teacher") for x in ("clean", "adv"))
    }
    return {"seven": sets | {"labels": [6, 0, 3, 3, 1]}}


def with_gradients(loss: Any, sets: dict[str, Any]) -> dict[str, Any]:
    adv, clean = (torch.tensor(sets[f"student_{x}"], dtype=torch.float64, requires_grad=True) for x in ("adv", "clean"))
    value = loss(adv, clean)
    gradients = torch.autograd.grad(value, (adv, clean), allow_unused=True)
    return {
        "logits": "seven",
        "loss": value.item(),
        "grad_student_adv": None if gradients[0] is None else gradients[0].tolist(),
        "grad_student_clean": None if gradients[1] is None else gradients[1].tolist(),
    }


def test_other_logits_and_parameters_agree_with_pytorchs_own_losses() -> None:
    sets = other_logits()["seven"]
    y = torch.tensor(sets["labels"])
    teacher = torch.tensor(sets["teacher_clean"], dtype=torch.float64)

    def trades(adv: Tensor, clean: Tensor) -> Tensor:
        return F.cross_entropy(clean, y) + 2.5 * F.kl_div(adv.log_softmax(1), clean.softmax(1), reduction="batchmean")

    def ard(adv: Tensor, clean: Tensor) -> Tensor:
        soft = F.kl_div((adv / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="none").mean()
        return 0.3 * 16 * soft + 0.7 * F.cross_entropy(clean, y)

    def smoothed(adv: Tensor, _: Tensor) -> Tensor:
        target = torch.full((5, 7), 0.2 / 6, dtype=torch.float64).scatter(1, y[:, None], 0.8)
        return F.cross_entropy(adv, target)

    outer = {
        "trades_other": with_gradients(trades, sets) | {"params": {"beta": 2.5}},
        "ard_official_other": with_gradients(ard, sets) | {"params": {"alpha": 0.3, "tau": 4.0}},
        "lasat_target_other": with_gradients(smoothed, sets) | {"params": {"factor": 0.8}},
    }
    results = list(reference.replay(Node({"logit_sets": other_logits(), "outer": outer}, "")))
    assert [r.name for r in results] == [f"outer.{name}" for name in outer]
    assert [str(r) for r in results if not r.passed] == []
    outer["trades_other"]["params"]["beta"] = 2.6
    (wrong,) = [r for r in reference.replay(Node({"logit_sets": other_logits(), "outer": outer}, "")) if not r.passed]
    assert wrong.name == "outer.trades_other"


def test_other_networks_and_images_agree_with_an_attack_written_out() -> None:
    state = {
        "conv1.weight": numbers(5, 3, 3, 3, seed=1, scale=0.4), "conv1.bias": numbers(5, seed=2),
        "bn1.weight": numbers(5, seed=3).abs() + 0.5, "bn1.bias": numbers(5, seed=4),
        "bn1.running_mean": numbers(5, seed=5), "bn1.running_var": numbers(5, seed=6).abs() + 0.5,
        "fc.weight": numbers(4, 5, seed=7, scale=3.0), "fc.bias": numbers(4, seed=8),
    }  # fmt: skip
    pixels = torch.randint(0, 256, (3, 3, 6, 6), generator=torch.Generator().manual_seed(9))
    labels, noise = torch.tensor([0, 3, 2]), numbers(3, 3, 6, 6, seed=10).clamp(-1, 1)
    x = pixels.double() / 255

    def network(z: Tensor) -> Tensor:
        z = F.conv2d(z, state["conv1.weight"], state["conv1.bias"], stride=2, padding=1)
        z = F.batch_norm(z, state["bn1.running_mean"], state["bn1.running_var"], state["bn1.weight"], state["bn1.bias"])
        return F.linear(z.relu().mean((2, 3)), state["fc.weight"], state["fc.bias"])

    x_adv = (x + 16 / 255 * noise).clamp(0, 1)
    for _ in range(4):
        x_adv.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(x_adv), labels), x_adv)
        x_adv = (x_adv.detach() + 3 / 255 * gradient.sign()).clamp(x - 16 / 255, x + 16 / 255).clamp(0, 1)
    entry = {
        "model": "mine", "bn_mode": "eval", "eps": "16/255", "step": "3/255", "steps": 4,
        "x_adv": x_adv.tolist(), "linf": (x_adv - x).abs().max().item(),
        "running_mean_bn1": state["bn1.running_mean"].tolist(),
        "final_ce": F.cross_entropy(network(x_adv), labels).item(),
    }  # fmt: skip
    net = {
        "arch": "Conv2d(3,5,3,s=2,p=1) BN ReLU [feature map] mean over HxW, Linear(5,4)",
        "state": {k: v.tolist() for k, v in state.items()},
    }
    inputs = {
        "x_uint8": pixels.tolist(), "labels": labels.tolist(), "noise_unit": noise.tolist(),
        "noise_gauss": noise.tolist(), "eps": "8/255", "step": "2/255", "steps": 10,
    }  # fmt: skip
    content = {"nets": {"mine": net, "teacher": net}, "attack_inputs": inputs, "attacks": {"ce_pgd_uniform_x": entry}}
    (result,) = reference.replay(Node(content, ""))
    assert result.passed, str(result)
    entry["x_adv"][0][0][0][0] += 1e-11
    (result,) = reference.replay(Node(content, ""))
    assert result.wrong == ("x_adv",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["outer"]["t"].pop("loss"), "outer.t has no 'loss'"),
        (lambda c: c["outer"]["t"].update(params={"gamma": 3}), "unknown parameter 'gamma'; known are beta"),
        (lambda c: c["outer"]["t"].update(params={"beta": -3}), "hyper.trades: beta"),
        (lambda c: c["outer"]["t"].update(logits="eight"), "logit_sets has no 'eight'"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    sets = other_logits()
    entry = with_gradients(lambda adv, clean: F.cross_entropy(adv, torch.tensor(sets["seven"]["labels"])), sets["seven"])
    content = {"logit_sets": sets, "outer": {"t": entry | {"params": {"beta": 1.0}}}}
    content["outer"] = {"trades_t": content["outer"]["t"]}
    change({"outer": {"t": content["outer"]["trades_t"]}})
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(content))
    result = cli("golden", path)
    assert result.exit_code == 2
    assert said.replace("outer.t", "outer.trades_t") in result.output


def test_files_that_are_no_reference_are_refused(tmp_path: Path) -> None:
    for text, said in (("[1]", "is not a JSON object"), ("{", "cannot be read"), ("{}", "has no entry to replay")):
        path = tmp_path / "golden.json"
        path.write_text(text)
        result = cli("golden", path)
        assert result.exit_code == 2
        assert said in result.output
    result = cli("golden", tmp_path / "none.json")
    assert result.exit_code == 2


def test_an_entry_of_an_unknown_method_and_a_nan_are_failures() -> None:
    content = {"outer": {"new_method": {"loss": 1.0}}}
    (result,) = reference.replay(Node(content, ""))
    assert not result.passed
    seen = reference.Comparison()
    seen.values("loss", math.nan, 1.0)
    assert seen.wrong == ["loss"]
    assert seen.absolute == math.inf


def test_an_attack_leaves_modes_flags_and_gradients_as_they_were() -> None:
    net = reference.Toy(
        Node(
            {
                "arch": "Conv2d(3,4,3,p=1) BN ReLU [feature map] mean over HxW, Linear(4,10)",
                "state": {
                    "conv1.weight": numbers(4, 3, 3, 3, seed=0).tolist(), "conv1.bias": [0.0] * 4,
                    "bn1.weight": [1.0] * 4, "bn1.bias": [0.0] * 4, "bn1.running_mean": [0.0] * 4,
                    "bn1.running_var": [1.0] * 4, "fc.weight": numbers(10, 4, seed=1).tolist(), "fc.bias": [0.0] * 10,
                },
            },
            "net",
        )
    ).train()  # fmt: skip
    net.conv1.weight.requires_grad_(False)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with attacking(net):
        assert not net.bn1.training
        ascend(x, lambda z: net(z).sum(1), eps=0.1, step=0.05, steps=2, start=Start.CLEAN)
    assert net.bn1.training
    assert not net.conv1.weight.requires_grad
    assert net.fc.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
