"""The ten methods against values that their authors' own code produced, and what that comparison would notice."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import tomllib
import types
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
import torch.nn.functional as F
from tiny import cli
from torch import Tensor

from adbench.attacks.linf import Start, ascend, attacking
from adbench.errors import UserError
from adbench.plugins import golden as reference
from adbench.plugins.golden import Node, Result
from adbench.registry import METHODS


def test_every_entry_of_the_shared_reference_agrees(shared: Path) -> None:
    content = json.loads((shared / "golden" / "golden.json").read_text(encoding="utf-8"))
    assert [str(r) for r in reference.replay(Node(content, "")) if not r.passed] == []


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(reference.FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def training() -> dict[str, Any]:
    return json.loads(reference.TRAINING.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def later() -> dict[str, Any]:
    return reference.read(reference.LATER)


def replayed(content: dict[str, Any], wanted: str) -> list[Result]:
    """The outcomes of the entries whose name begins with `wanted`."""
    return list(reference.replay(Node(content, ""), wanted))


def test_every_entry_of_the_reference_agrees(golden) -> None:
    results = list(reference.replay(Node(golden, "")))
    assert len(results) == 60
    assert [str(r) for r in results if not r.passed] == []


def test_every_entry_of_the_reference_of_trainings_agrees(training) -> None:
    results = list(reference.replay(Node(training, "")))
    assert Counter(r.name.partition(".")[0] for r in results) == {"awp": 5, "averages": 5, "schedules": 21}
    assert [str(r) for r in results if not r.passed] == []


def test_every_entry_of_a_method_that_came_later_agrees(later) -> None:
    results = list(reference.replay(later))
    assert [str(r) for r in results if r.wrong] == []
    assert sum(r.passed for r in results) >= 95
    ruled = {rule["skip"] for rule in reference.RULES["entry"].values() if "skip" in rule}
    for why in (r.skipped for r in results if r.skipped):
        assert why in ruled or "is not installed" in why or "has no hyperparameter" in why


def test_fair_weights_are_the_authors(later) -> None:
    from adbench.methods.fair import Fair

    for case in later["stateful"]["fair_class_weights"]["cases"]:
        kappa, expected = (torch.tensor(case[key], dtype=torch.float64) for key in ("kappa", "weights"))
        torch.testing.assert_close(Fair(beta=case["beta"]).weights(kappa), expected, rtol=1e-12, atol=0)


def test_the_command_prints_a_line_an_entry_and_fails_for_a_wrong_value(golden, tmp_path: Path) -> None:
    outer = {name: dict(golden["outer"][name]) for name in ("pgd_at", "trades_beta6")}
    content = {"logit_sets": golden["logit_sets"], "outer": outer}
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


MUTATIONS = tomllib.loads((Path(__file__).parent / "mutations.toml").read_text(encoding="utf-8"))


def function(module: Any, qualified: str) -> Any:
    found = module
    for part in qualified.split("."):
        found = inspect.getattr_static(found, part)
    return inspect.unwrap(getattr(found, "__func__", found))


AGREED: dict[tuple[int, str], bool] = {}


def agree(content: dict[str, Any], wanted: str) -> bool:
    """Whether the entries agree with the code as it is; remembered, since many mutations ask it of the same entries."""
    key = id(content), wanted  # a fixture's, which lives as long as its module's tests
    if key not in AGREED:
        AGREED[key] = not any(r.wrong for r in replayed(content, wanted))
    return AGREED[key]


def assert_noticed(content: dict[str, Any], mutation: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries agree with the code as it is, and one of them does not with its mutant."""
    module_name, qualified = mutation["function"].split(":")
    module = importlib.import_module(module_name)
    original = function(module, qualified)
    body = inspect.getsource(original)
    assert body.count(mutation["old"]) == 1
    twin = types.ModuleType(module_name)
    mutated = body.replace(mutation["old"], mutation["new"])
    exec(inspect.getsource(module).replace(body, mutated), twin.__dict__)
    assert agree(content, mutation["noticed"])
    monkeypatch.setattr(original, "__code__", function(twin, qualified).__code__)
    results = replayed(content, mutation["noticed"])
    assert any(r.wrong for r in results)


@pytest.mark.parametrize("mutation", MUTATIONS["formula"], ids=lambda m: m["name"])
def test_a_mutated_formula_is_noticed(golden, monkeypatch: pytest.MonkeyPatch, mutation: dict[str, str]) -> None:
    assert_noticed(golden, mutation, monkeypatch)


@pytest.mark.parametrize("mutation", MUTATIONS["later"], ids=lambda m: m["name"])
def test_a_mutated_later_method_is_noticed(later, monkeypatch: pytest.MonkeyPatch, mutation: dict[str, str]) -> None:
    assert_noticed(later, mutation, monkeypatch)


@pytest.mark.parametrize("mutation", MUTATIONS["training"], ids=lambda m: m["name"])
def test_a_mutated_training_is_noticed(training, monkeypatch: pytest.MonkeyPatch, mutation: dict[str, str]) -> None:
    assert_noticed(training, mutation, monkeypatch)


@pytest.mark.parametrize("mutation", MUTATIONS["default"], ids=lambda m: m["name"])
def test_a_changed_default_is_noticed(golden, monkeypatch: pytest.MonkeyPatch, mutation: dict[str, str]) -> None:
    load, hyper = METHODS.load, mutation["hyper"]

    def changed(asked: str) -> Any:
        cls = load(asked)
        if asked != mutation["method"]:
            return cls
        default = (cls.model_fields[hyper].annotation, mutation["value"])
        mutant = pydantic.create_model(cls.__name__, __base__=cls, **{hyper: default})
        mutant.model_config["validate_default"] = True
        mutant.model_rebuild(force=True)
        return mutant

    monkeypatch.setattr(METHODS, "load", changed)
    results = replayed(golden, mutation["noticed"])
    assert any(r.wrong for r in results)


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
        "conv1.weight": numbers(5, 3, 3, 3, seed=1, scale=0.4),
        "conv1.bias": numbers(5, seed=2),
        "bn1.weight": numbers(5, seed=3).abs() + 0.5,
        "bn1.bias": numbers(5, seed=4),
        "bn1.running_mean": numbers(5, seed=5),
        "bn1.running_var": numbers(5, seed=6).abs() + 0.5,
        "fc.weight": numbers(4, 5, seed=7, scale=3.0),
        "fc.bias": numbers(4, seed=8),
    }
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
        "model": "mine",
        "bn_mode": "eval",
        "eps": "16/255",
        "step": "3/255",
        "steps": 4,
        "x_adv": x_adv.tolist(),
        "linf": (x_adv - x).abs().max().item(),
        "running_mean_bn1": state["bn1.running_mean"].tolist(),
        "final_ce": F.cross_entropy(network(x_adv), labels).item(),
    }
    net = {
        "arch": "Conv2d(3,5,3,s=2,p=1) BN ReLU [feature map] mean over HxW, Linear(5,4)",
        "state": {k: v.tolist() for k, v in state.items()},
    }
    inputs = {
        "x_uint8": pixels.tolist(),
        "labels": labels.tolist(),
        "noise_unit": noise.tolist(),
        "noise_gauss": noise.tolist(),
        "eps": "8/255",
        "step": "2/255",
        "steps": 10,
    }
    content = {"nets": {"mine": net, "teacher": net}, "attack_inputs": inputs, "attacks": {"ce_pgd_uniform_x": entry}}
    (result,) = reference.replay(Node(content, ""))
    assert result.passed, str(result)
    entry["x_adv"][0][0][0][0] += 1e-11
    (result,) = reference.replay(Node(content, ""))
    assert result.wrong == ["x_adv"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entry: entry.pop("loss"), "outer.trades_t has no 'loss'"),
        (lambda entry: entry.update(params={"gamma": 3}), "unknown key 'gamma'"),
        (lambda entry: entry.update(params={"beta": -3}), "hyper.trades: beta"),
        (lambda entry: entry.update(logits="eight"), "logit_sets has no 'eight'"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    sets = other_logits()
    entry = with_gradients(lambda adv, _: F.cross_entropy(adv, torch.tensor(sets["seven"]["labels"])), sets["seven"])
    content = {"logit_sets": sets, "outer": {"trades_t": entry | {"params": {"beta": 1.0}}}}
    change(content["outer"]["trades_t"])
    path = tmp_path / "golden.json"
    path.write_text(json.dumps(content))
    result = cli("golden", path)
    assert result.exit_code == 2
    assert said in result.output


def test_what_an_entry_does_not_use_may_be_missing_and_texts_are_remarks() -> None:
    sets = other_logits()
    seven = {k: v for k, v in sets["seven"].items() if not k.startswith(("teacher", "nat_teacher"))}
    y = torch.tensor(seven["labels"])
    entry = with_gradients(lambda adv, _: F.cross_entropy(adv, y), sets["seven"])
    content = {
        "version": "2",
        "logit_sets": {"seven": seven | {"note": "no teacher"}},
        "outer": {"pgd_at": entry, "rslad_without": entry | {"params": {}}, "note": "one entry"},
        "smaraad": {"note": "nothing"},
    }
    one, other = reference.replay(Node(content, ""), "outer.pgd_at"), Node(content, "")
    assert [r.passed for r in one] == [True]
    with pytest.raises(UserError, match=r"outer\.rslad_without: .*no 'teacher'"):
        list(reference.replay(other))


@pytest.mark.parametrize(("name", "classes"), [("adaad_c10_x", 43), ("adaad_c100_x", 7), ("rslad_c10", 12)])
def test_the_data_set_decides_the_reduction_and_not_the_number_of_classes(name: str, classes: int) -> None:
    sets: dict[str, Any] = {
        f"{who}_{where}": numbers(3, classes, seed=i).tolist()
        for i, (who, where) in enumerate(product(("student", "teacher"), ("clean", "adv")))
    }
    target = torch.tensor(sets["teacher_adv" if "adaad" in name else "teacher_clean"], dtype=torch.float64).softmax(1)

    def loss(adv: Tensor, clean: Tensor) -> Tensor:
        sums = [F.kl_div(z.log_softmax(1), target, reduction="batchmean") for z in (adv, clean)]
        if name == "adaad_c100_x":
            return sums[0] + 0 * sums[1]
        if "adaad" in name:
            return sums[0] / classes + 0 * sums[1]
        floor = (target * ((target + 1e-5).log() - target.log())).sum(1).mean() / classes
        return (5 * sums[0] + sums[1]) / 6 / classes + floor

    entry = with_gradients(loss, sets | {"labels": [0, 1, 2]}) | {"logits": "other", "params": {}}
    content = {"logit_sets": {"other": sets | {"labels": [0, 1, 2]}}, "outer": {name: entry}}
    (result,) = reference.replay(Node(content, ""))
    assert result.passed, str(result)


def test_files_that_are_no_reference_are_refused(tmp_path: Path) -> None:
    for text, said in (("[1]", "is not a JSON object"), ("{", "cannot be read"), ("{}", "has no entry to replay")):
        path = tmp_path / "golden.json"
        path.write_text(text)
        result = cli("golden", path)
        assert result.exit_code == 2
        assert said in result.output
    result = cli("golden", tmp_path / "none.json")
    assert result.exit_code == 2


def test_methods_that_are_not_installed_are_skipped_by_name_and_are_no_success(tmp_path: Path) -> None:
    content = {"outer": {"later": {"method": "no-such", "loss": 1.0}, "last": {"method": "none-such", "loss": 1.0}}}
    path = tmp_path / "later.json"
    path.write_text(json.dumps(content))
    result = cli("golden", path)
    assert result.exit_code == 1
    first, second, last = result.output.splitlines()
    assert first.startswith("skip  outer.later")
    assert "'no-such'" in first
    assert "'none-such'" in second
    assert last == "0 of 0 entries agree, 2 skipped"


def test_a_value_that_no_rule_names_is_not_passed_over(golden) -> None:
    entry = golden["outer"]["pgd_at"] | {"accuracy": 0.5}
    (result,) = reference.replay(Node({"logit_sets": golden["logit_sets"], "outer": {"pgd_at": entry}}, ""))
    assert result.wrong == ["accuracy is in no rule"]


def test_an_entry_of_an_unknown_method_and_a_nan_are_failures() -> None:
    content = {"outer": {"new_method": {"loss": 1.0}}}
    (result,) = reference.replay(Node(content, ""))
    assert result.wrong
    assert not result.skipped
    result = Result("outer.nan")
    result.compare("loss", math.nan, 1.0)
    assert result.wrong == ["loss"]
    assert result.absolute == math.inf


def test_an_attack_leaves_modes_flags_and_gradients_as_they_were() -> None:
    net = reference.Toy(
        Node(
            {
                "arch": "Conv2d(3,4,3,p=1) BN ReLU [feature map] mean over HxW, Linear(4,10)",
                "state": {
                    "conv1.weight": numbers(4, 3, 3, 3, seed=0).tolist(),
                    "conv1.bias": [0.0] * 4,
                    "bn1.weight": [1.0] * 4,
                    "bn1.bias": [0.0] * 4,
                    "bn1.running_mean": [0.0] * 4,
                    "bn1.running_var": [1.0] * 4,
                    "fc.weight": numbers(10, 4, seed=1).tolist(),
                    "fc.bias": [0.0] * 10,
                },
            },
            "net",
        )
    ).train()
    net.conv1.weight.requires_grad_(False)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with attacking(net):
        assert not net.bn1.training
        ascend(x, lambda z: net(z).sum(1), eps=0.1, step=0.05, steps=2, start=Start.CLEAN)
    assert net.bn1.training
    assert not net.conv1.weight.requires_grad
    assert net.fc.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())
