"""The recipes: what the paper, each method's authors and an equal budget make of the ten methods."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from adbench.data import Threat
from adbench.errors import UserError
from adbench.execution.execute import _training_attack
from adbench.execution.expand import expand, recipe
from adbench.experiment import teacher
from adbench.experiment.cell import Cell
from adbench.experiment.config import Experiment, Train, experiment, layered, merged, parse_setting, read_preset
from adbench.experiment.teacher import Trained
from adbench.registry import METHODS, PAPER
from adbench.training.configured import configured
from adbench.training.method import Passes
from adbench.training.schedule import momentum, rate
from adbench.training.step import Ball

THREAT = Threat(Fraction(8, 255), Fraction(2, 255))


def students(*presets: str, dataset: str = "cifar10", own: tuple[str, ...] = (), **file: Any) -> dict[str, Cell]:
    """The student cells of presets, a file and --set by method; no data is read."""

    def lookup(_: str, __: Experiment) -> Any:
        return SimpleNamespace(fingerprint="a" * 64, threat=THREAT, whole=(49_000, 1_000, 10_000), extra=None)

    line = merged({"datasets": [dataset]}, *map(parse_setting, own))
    settings = layered(*map(read_preset, presets), file, line)
    return {str(cell.method): cell for cell in expand(experiment(settings), lookup).students}


def test_the_papers_recipe_is_the_same_for_all_and_the_default() -> None:
    assert {cell.train for cell in students("paper").values()} == {Train()}
    assert (Train().epochs, Train().batch_size, Train().drops()) == (200, 256, [115, 160, 185])


# epochs, the epochs before which the rate drops, weight decay, batch size (the table of methods.md, section 0.1)
OFFICIAL = {
    "pgd-at": (205, [102, 154], 2e-4, 128),
    "trades": (76, [74], 2e-4, 128),
    "las-at": (110, [99, 104], 5e-4, 128),
    "ard": (200, [100, 150], 2e-4, 128),
    "iad": (200, [100, 150], 2e-4, 128),
    "rslad": (300, [215, 260, 285], 2e-4, 128),
    "mtard": (300, [215, 260, 285], 2e-4, 128),
    "adaad": (200, [100, 150], 5e-4, 128),
    "smaraad": (200, [115, 160, 185], 5e-4, 256),
    "smaraad-pp": (200, [115, 160, 185], 5e-4, 256),
}


def test_the_official_recipe_is_each_methods_own() -> None:
    cells = students("official")
    assert tuple(cells) == PAPER
    found = {
        m: (t.epochs, t.drops(), t.weight_decay, t.batch_size) for m, t in ((m, c.train) for m, c in cells.items())
    }
    assert found == OFFICIAL
    trained_in = {m for m, c in cells.items() if c.hyper.get("attack_bn") == "train"}
    assert trained_in == {"pgd-at", "ard", "iad"}
    assert _training_attack(cells["trades"].train, THREAT) == Ball(0.031, 0.007, 10)
    assert _training_attack(cells["ard"].train, THREAT) == Ball(8 / 255, 2 / 255, 10)
    assert cells["trades"].threat.eps == "8/255"  # what it is judged by


def test_the_official_recipe_of_cifar100_differs_where_the_authors_does() -> None:
    ten, hundred = students("official"), students("official", dataset="cifar100")
    assert (ten["ard"].hyper["tau"], hundred["ard"].hyper["tau"], hundred["ard"].hyper["alpha"]) == (30, 5, 0.95)
    assert (ten["ard"].train.batch_size, hundred["ard"].train.batch_size) == (128, 256)
    assert hundred["las-at"].hyper["policy_momentum"] == 0.9
    assert ten["las-at"].hyper["policy_momentum"] == 0


def test_what_the_user_sets_wins_over_a_recipes_overrides() -> None:
    cells = students("official", own=("train.epochs=7", "hyper.ard.tau=3.0"), dataset="cifar100")
    assert {cell.train.epochs for cell in cells.values()} == {7}
    assert cells["rslad"].train.weight_decay == 2e-4  # the rest of the recipe stays
    assert cells["ard"].hyper["tau"] == 3.0
    own = [{"methods": ["rslad"], "train": {"epochs": 9}}]
    assert students("official", override=own)["rslad"].train.epochs == 9
    assert students("official", own=("train.epochs=7",), override=own)["rslad"].train.epochs == 7


def test_of_several_presets_the_later_one_wins() -> None:
    assert {cell.train.epochs for cell in students("official", "quick").values()} == {5}
    assert {cell.train.epochs for cell in students("fair", "quick").values()} == {5}
    assert students("quick", "fair")["pgd-at"].train.epochs == 200
    assert {cell.train.epochs for cell in students("fair", own=("train.epochs=3",)).values()} == {3}


def test_an_override_wins_over_the_hyperparameters_of_an_earlier_layer_and_yields_to_those_of_a_later() -> None:
    own = [{"methods": ["smaraad"], "datasets": ["cifar10"], "hyper": {"gamma": 50}}]
    assert students("digits", override=own)["smaraad"].hyper["gamma"] == 50
    assert students("digits", override=own, dataset="cifar100")["smaraad"].hyper["gamma"] == 10
    for_all = [{"methods": ["all"], "hyper": {"attack_bn": "train"}}]
    cells = students("digits", methods=["smaraad", "ard"], override=for_all)
    assert {c.hyper["attack_bn"] for c in cells.values()} == {"train"}
    assert cells["smaraad"].hyper["gamma"] == 10
    assert students("digits", own=("hyper.smaraad.gamma=60",), override=own)["smaraad"].hyper["gamma"] == 60


def test_an_override_wins_over_the_hyperparameters_of_its_own_layer_and_of_groups() -> None:
    own = {
        "hyper": {"ard": {"tau": 30.0}, "absld": {"alpha": 0.5}},
        "override": [
            {"methods": ["ard"], "datasets": ["cifar100"], "hyper": {"tau": 5.0}},
            {"methods": ["fairness"], "hyper": {"alpha": 0.25}},
        ],
    }
    for first in ({}, {"hyper": {"absld": {"alpha": 0.75}}}):
        one = experiment(layered(first, own))
        taus = [recipe(one, "ard", dataset)[0].settings()["tau"] for dataset in ("cifar100", "cifar10")]
        assert taus == [5.0, 30.0]
        assert recipe(one, "absld", "cifar10")[0].settings()["alpha"] == 0.25
    later = experiment(layered(own, {"hyper": {"ard": {"tau": 7.0}}}))
    assert recipe(later, "ard", "cifar100")[0].settings()["tau"] == 7.0


def test_an_overrides_epochs_and_a_budget_of_an_earlier_or_later_layer() -> None:
    rule = {"override": [{"methods": ["ard"], "train": {"epochs": 5}}]}
    assert recipe(experiment(layered({"budget": 4400}, rule)), "ard", "cifar10")[1].epochs == 5
    assert recipe(experiment(layered(rule, {"budget": 4400})), "ard", "cifar10")[1].epochs > 100


def test_an_ablation_on_digits_compares_equal_ranks() -> None:
    cells = students("digits", "ablation", dataset="digits")
    assert cells["slack"].hyper["gamma"] == cells["smaraad"].hyper["gamma"] == 10


def test_the_fair_recipe_gives_every_method_the_same_number_of_passes() -> None:
    cells = students("fair", methods=["all", "kd"])
    assert cells["pgd-at"].train.epochs == 200
    for name, cell in cells.items():
        cost = configured(name, cell.hyper).passes(10).total
        assert 4400 - cost < cell.train.epochs * cost <= 4400, name
    assert students("fair", dataset="cifar100")["las-at"].train.epochs > cells["las-at"].train.epochs
    epochs = {name: cell.train.epochs for name, cell in cells.items()}
    assert epochs["smaraad-pp"] <= epochs["adaad"] == epochs["smaraad"] == 100 < epochs["rslad"] < 200


def test_passes_count_forward_and_backward_of_every_network() -> None:
    assert Passes(student=11).total == 22
    assert Passes(student=11, student_forward=1, teacher=10, teacher_forward=1, natural_forward=2, own=1).total == 47


def test_an_ablation_is_four_methods_under_any_recipe() -> None:
    assert list(students("short", "ablation")) == ["kd", "kd-align", "slack", "smaraad"]
    assert {cell.train.epochs for cell in students("short", "ablation").values()} == {30}


def test_the_radius_of_training_scales_its_step_unless_both_are_given() -> None:
    assert _training_attack(Train(attack_eps="16/255"), THREAT) == Ball(16 / 255, 4 / 255, 10)
    assert _training_attack(Train(attack_step="4/255"), THREAT) == Ball(8 / 255, 4 / 255, 10)
    nothing = Threat(Fraction(0), Fraction(0))
    assert _training_attack(Train(), nothing) == Ball(0, 0, 10)
    assert _training_attack(Train(attack_eps="8/255", attack_step="2/255"), nothing) == Ball(8 / 255, 2 / 255, 10)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 9, "train": {"epochs": 3}}, "budget and train.epochs are both set"),
        ({"budget": 10}, "one epoch of 'pgd-at' takes 22 passes an image; give more"),
        ({"budget": -1}, "budget = -1"),
        ({"override": [{"methods": ["rslda"]}]}, r"unknown method 'rslda'.*in an \[\[override\]\]"),
        ({"override": [{"train": {"epochs": 3}}]}, r"\[\[override\]\] number 1: 'methods' is missing"),
        ({"override": [{"methods": ["ard"], "train": {"epoch": 3}}]}, "number 1: train = .*: unknown key 'epoch'"),
        ({"override": [{"methods": ["ard"], "datasets": ["cifar-10"]}]}, "unknown dataset 'cifar-10'"),
        ({"override": [{"methods": ["ard"], "train": {"epochs": 0}}]}, "number 1: train = .*: epochs = 0"),
        ({"override": [{"methods": ["pgd-at"], "hyper": {"beta": 3}}]}, r"hyper\.pgd-at: unknown key 'beta'"),
        ({"override": 3}, "override = 3"),
        ({"train": 3}, "train = 3"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        students("official", **settings)


# --- what `adbench info` and the source say of a method ---


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_says_what_it_does_and_what_its_authors_do_differently(name: str) -> None:
    from adbench.plugins.describe import card

    said = card(name)
    for part in ("attack: ", "loss", "needs ", "cost "):
        assert f"\n{part}" in said, part
    if name != "natural":
        assert "\ndiffers: " in said
    for key, field in type(configured(name, {})).model_fields.items():
        assert field.description, key
        assert field.description.endswith(")"), f"{key} names no source"


def test_a_card_has_needs_cost_defaults_and_bounds() -> None:
    from adbench.plugins.describe import card

    said = card("mtard")
    assert "needs   a robust teacher, a naturally trained teacher" in said
    assert "cost    26 passes an iteration with 10 attack steps: 12 x student forward and backward" in said
    assert "  weight_lr       0.025: rho, rate of the weights (authors' code) [>= 0, <= 1]" in said
    assert "reach   up to 1.875 eps" in card("las-at")


def test_a_method_file_is_a_page() -> None:
    from adbench.registry import METHODS

    for name in METHODS.names():
        path = METHODS._path(name)
        assert path is not None
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= (225 if name == "las-at" else 120), path


def test_the_recipe_of_wang_2023_is_the_preset_and_the_teacher() -> None:
    """The rates are those of the authors' one-cycle schedule: lr / 25 first, all of it from the tenth of 400 epochs."""
    cell = students("wang2023", own=("methods=['trades']",))["trades"]
    train, source = cell.train, teacher.find("cifar10-wrn-28-10-wang2023").source
    assert isinstance(source, Trained)
    assert source.train == train
    assert configured("trades", source.hyper).settings() == cell.hyper
    assert cell.hyper == {"beta": 5.0, "start": "uniform", "attack_bn": "batch", "label_smoothing": 0.1}
    assert [rate(train, epoch, 0, 98) for epoch in (0, 9)] == pytest.approx([0.008, 0.2])
    assert [momentum(train, epoch, 0, 98) for epoch in (0, 9)] == pytest.approx([0.95, 0.85])
    assert (cell.data.val_images, train.batch_size, train.decay_norm) == (1024, 512, False)


def test_the_recipe_of_perturbed_weights_is_its_authors_for_both_of_its_rows() -> None:
    at, trades = students("awp").values()
    assert (at.method, at.train.awp, at.train.awp_start, at.train.drops()) == ("pgd-at", 0.01, 0, [100, 150])
    # The authors count epochs from 1: perturbed from the 10th, drops before the 100th and 150th.
    assert (trades.train.awp, round(trades.train.awp_start * 200), trades.train.drops()) == (0.005, 9, [99, 149])
    for cell in (at, trades):
        assert (cell.train.epochs, cell.train.batch_size, cell.train.weight_decay) == (200, 128, 5e-4)
        assert _training_attack(cell.train, THREAT) == Ball(8 / 255, 2 / 255, 10)
    assert (at.hyper["attack_bn"], trades.hyper["attack_bn"]) == ("train", "eval")


def test_saad_c_is_saad_with_its_clean_term_under_a_name_of_its_own() -> None:
    for dataset, beta in (("cifar10", 0.2), ("cifar100", 0.5)):
        (cell,) = students("official", "saad-c", dataset=dataset).values()
        assert cell.hyper["beta"] == beta
        assert cell.train == students("official", dataset=dataset, own=("methods=['saad']",))["saad"].train
        assert configured("saad", cell.hyper).label == "SAAD-C"
    assert configured("saad", {}).label == "SAAD"


def test_ciards_recipe_has_the_rates_of_its_authors() -> None:
    (cell,) = students("official", own=("methods=['ciard']",)).values()
    assert [rate(cell.train, epoch - 1, 0, 390) for epoch in (1, 149, 151, 299, 300)] == pytest.approx(
        [0.1, 0.1, 0.09998898973418141, 1.085815729597103e-05, 0], abs=1e-15
    )
    assert [round(share * 300) for share in cell.hyper["rate_drops"]] == [215, 260, 285]


@pytest.mark.parametrize("preset", ["paper", "short", "half", "fair", "quick", "official"])
def test_lbgat_begins_at_its_authors_first_rate_under_every_recipe_for_large_networks(preset: str) -> None:
    (cell,) = students(preset, own=("methods=['lbgat']",)).values()
    assert [rate(cell.train, epoch, 0, 390) for epoch in range(3)] == [0.02, 0.1, 0.1]
