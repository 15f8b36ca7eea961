"""From an experiment to cells: what is shared, what makes a cell another cell, and what is refused."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import fields
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adbench import registry as registries
from adbench.data import Threat
from adbench.errors import UserError
from adbench.execution.cost import steps
from adbench.execution.engines.ray import RayCluster
from adbench.execution.expand import expand
from adbench.execution.place import Place
from adbench.execution.runner import Local
from adbench.experiment import attack_names
from adbench.experiment.cell import Cell, Matrix
from adbench.experiment.config import Data, Evaluation, Experiment, Section, ThreatModel, Train, experiment, merged
from adbench.plugin_code import Code, Module
from adbench.registry import METHODS, PAPER
from adbench.results import layout
from adbench.system import locks

THREATS = {"digits": Threat(Fraction(28, 255), Fraction(7, 255)), "cifar10": Threat(Fraction(8, 255), Fraction(2, 255))}


def cells(content: str = "a" * 64, **settings: Any) -> Matrix:
    """The matrix of an experiment on data that is not there."""

    def lookup(name: str, experiment: Experiment) -> Any:
        threat = THREATS.get(name, THREATS["cifar10"])
        extra = SimpleNamespace(sha256="e" * 64) if experiment.data.extra else None
        return SimpleNamespace(fingerprint=content, threat=threat, whole=(900, 100, 500), extra=extra)

    return expand(experiment(merged({"methods": ["rslad"], "eval": {"proxies": []}}, settings)), lookup)


def one(content: str = "a" * 64, **settings: Any) -> Cell:
    (cell,) = cells(content, **settings).students
    return cell


def test_all_is_the_ten_methods_of_the_paper_and_each_is_registered() -> None:
    assert [cell.method for cell in cells(methods=["all"]).students] == list(PAPER)
    assert set(PAPER) <= set(METHODS.names())


def test_a_matrix_is_every_combination_but_methods_without_a_teacher_run_once() -> None:
    matrix = cells(
        methods=["trades", "rslad"],
        students=["cnn-4", "cnn-8"],
        seeds=[0, 1],
        teachers=["digits-robust", "digits-natural"],
    )
    assert len([c for c in matrix.students if c.method == "rslad"]) == 2 * 2 * 2
    assert len([c for c in matrix.students if c.method == "trades"]) == 2 * 2
    assert sorted(c.name for c in matrix.teachers) == ["digits-natural", "digits-robust"]


def test_a_method_around_another_has_it_as_the_recipe_has_it_alone() -> None:
    summed = {"hyper": {"rslad": {"kl_reduction": "sum", "alpha": 0.5}}, "methods": ["fair"]}
    assert one(**summed).hyper["base_hyper"] == {"kl_reduction": "sum", "alpha": 0.5}
    own = {"fair": {"base_hyper": {"alpha": 0.7}}}
    assert one(**merged(summed, {"hyper": own})).hyper["base_hyper"] == {"kl_reduction": "sum", "alpha": 0.7}
    other = {"fair": {"base": "iad"}}
    assert one(**merged(summed, {"hyper": other})).hyper["base_hyper"] == {}, "IAD has no such hyperparameter"
    rule = {"methods": ["adaad"], "hyper": {"kl_reduction": "mean"}}
    ruled = {"methods": ["igdm"], "override": [rule]}
    assert one(**ruled).hyper["base_hyper"] == {"kl_reduction": "mean"}
    assert one(methods=["igdm"]).hyper["base_hyper"] == {}
    with pytest.raises(UserError, match="base"):
        one(methods=["igdm"], hyper={"igdm": {"base": ["rslad"]}})


def test_only_what_needs_the_natural_teacher_brings_it() -> None:
    assert [c.name for c in cells().teachers] == ["digits-robust"]
    assert [c.name for c in cells(methods=["mtard"]).teachers] == ["digits-robust", "digits-natural"]
    assert one(methods=["mtard"]).natural is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"train": {"lr": 0.05}},
        {"seeds": [1]},
        {"students": ["cnn-4"]},
        {"hyper": {"rslad": {"alpha": 0.5}}},
        {"threat": {"eps": "1/10"}},
        {"data": {"train_images": 100}},
        {"teachers": ["digits-natural"]},
    ],
)
def test_every_setting_that_changes_the_weights_makes_another_cell(changed: dict[str, Any]) -> None:
    assert one(**changed).train_id != one().train_id


def test_other_data_under_the_same_name_is_another_cell() -> None:
    assert one("b" * 64).train_id != one().train_id


@pytest.mark.parametrize("changed", [{"images": 10}, {"attacks": ["fgsm"]}, {"seed": 1}, {"checkpoint": "last"}])
def test_another_evaluation_is_another_record_of_the_same_weights(changed: dict[str, Any]) -> None:
    assert one(eval=changed).train_id == one().train_id
    assert one(eval=changed).id != one().id


@pytest.mark.parametrize("eps", ["28/255", "56/510"])
def test_the_datasets_own_threat_model_spelt_out_is_no_other_cell(eps: str) -> None:
    assert one(threat={"eps": eps}).id == one().id


def test_equal_numbers_spelt_differently_are_one_cell_and_scale_the_step() -> None:
    assert len({one(threat={"eps": eps}).id for eps in ("0.1", "1/10", 0.1)}) == 1
    assert (
        one(threat={"eps": "14/255"}).threat.step == "7/510" or one(threat={"eps": "14/255"}).threat.step == "3.5/255"
    )


def test_the_batch_size_of_the_evaluation_changes_no_identity() -> None:
    assert one(eval={"batch_size": 7}).id == one().id


def test_another_version_of_the_fast_search_is_another_judgement_of_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searches: list[dict[str, Any]] = [{"aa_search": "fast"}, {"aa_search": "exact"}, {"attacks": ["fgsm"]}]
    before = [one(eval=settings) for settings in searches]
    ids = [cell.id for cell in before]
    monkeypatch.setattr("adbench.experiment.cell.FAST_SEARCH", 99)
    after = [one(eval=settings) for settings in searches]
    assert [cell.id == known for cell, known in zip(after, ids, strict=True)] == [False, True, True]
    assert after[0].train_id == before[0].train_id


OTHERWISE: dict[str, dict[str, Any]] = {
    "train": {
        "epochs": 3,
        "batch_size": 7,
        "lr": 0.3,
        "momentum": 0.1,
        "weight_decay": 0.3,
        "optimiser": "adamw",
        "nesterov": True,
        "decay": "kernels",
        "decay_norm": False,
        "bn_momentum": 0.2,
        "schedule": "cosine",
        "per": "iteration",
        "schedule_start": 0.5,
        "schedule_end": 1.1,
        "schedule_shift": 1,
        "cosine_damping": 0.01,
        "points": [[0, 1], [1, 0]],
        "warmup": 0.1,
        "warmup_lr": 0.01,
        "lr_min": 0.001,
        "cycle_momentum": True,
        "milestones": [0.1],
        "lr_factor": 0.9,
        "augment": ["cutout"],
        "average": "ema",
        "average_start": 0.5,
        "average_decay": 0.9,
        "average_warmup": 0.1,
        "average_buffers": "averaged",
        "awp": 0.01,
        "awp_start": 0.5,
        "awp_form": "restore-first",
        "init": "begin.pt",
        "init_sha256": sha256(b"weights").hexdigest(),
        "precision": "bfloat16",
        "micro_batch": 16,
        "grad_clip": 1.0,
        "attack_steps": 3,
        "attack_eps": "1/255",
        "attack_step": "1/510",
        "val_every": 3,
        "val_steps": 3,
    },
    "data": {"train_images": 100, "val_images": 10, "resize": 16, "extra": "more.npz", "extra_share": 0.5},
    "threat": {"eps": "1/255", "step": "1/510"},
    "eval": {
        "attacks": ["fgsm"],
        "images": 7,
        "aa_images": 7,
        "proxies": ["digits-natural"],
        "transfer_attacks": ["fgsm"],
        "step": "1/510",
        "start": "gauss",
        "aa_search": "fast",
        "aa_shard": 7,
        "masking": 7,
        "keep_adversarial": True,
        "checkpoint": "last",
        "batch_size": 7,
        "seed": 1,
    },
}
# What a setting needs beside it to have an effect.
BESIDE: dict[str, dict[str, Any]] = {
    "transfer_attacks": {"proxies": ["digits-natural"]},
    "extra_share": {"extra": "more.npz"},
    "per": {"schedule": "cosine"},
    "schedule_start": {"schedule": "cosine"},
    "lr_min": {"schedule": "cosine"},
    "schedule_end": {"schedule": "cosine"},
    "schedule_shift": {"schedule": "cosine"},
    "cosine_damping": {"schedule": "cosine"},
    "points": {"schedule": "linear", "points": [[0, 1]]},
    "warmup_lr": {"warmup": 0.1},
    "cycle_momentum": {"schedule": "onecycle", "warmup": 0.1},
    "average_start": {"average": "swa"},
    "average_decay": {"average": "ema"},
    "average_warmup": {"average": "ema"},
    "average_buffers": {"average": "ema"},
    "awp_start": {"awp": 0.01},
    "awp_form": {"awp": 0.01},
    "init_sha256": {"init": "begin.pt"},
}
# What decides where the work is done, or in how many pieces; and a hash that the file has anyhow.
WITHOUT_EFFECT = {("eval", "batch_size"), ("train", "init_sha256")}


@pytest.mark.parametrize(
    ("section", "model"), [("train", Train), ("data", Data), ("threat", ThreatModel), ("eval", Evaluation)]
)
def test_every_setting_is_in_the_identity_unless_it_cannot_change_a_number(
    section: str, model: type[Section], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that somebody adds is in one of the two lists, or this fails."""
    monkeypatch.chdir(tmp_path)
    Path("begin.pt").write_bytes(b"weights")
    changed = OTHERWISE[section]
    assert set(changed) == set(model.model_fields)
    for key, value in changed.items():
        beside = BESIDE.get(key, {})
        before, after = one(**{section: beside}), one(**{section: beside | {key: value}})
        assert (after.id == before.id) == ((section, key) in WITHOUT_EFFECT), key


def test_nothing_of_where_a_cell_runs_is_known_when_it_gets_its_identity() -> None:
    """Device, ranks, engine, jobs, threads, data folder are the place's and the engine's; a cell does not have them."""
    known = {field.name for field in fields(Cell)}
    assert known == {
        "kind",
        "dataset",
        "fingerprint",
        "data",
        "threat",
        "architecture",
        "train",
        "evaluation",
        "seed",
        "method",
        "hyper",
        "extra",
        "told",
        "namesake",
        "spec",
        "teacher",
        "natural",
        "proxies",
    }
    where = {name for kind in (Place, Local, RayCluster) for name in (field.name for field in fields(kind))}
    assert where == {"results", "data_dir", "device", "ranks", "jobs", "threads", "address", "gpus"}
    assert not known & where


def test_the_same_teachers_file_elsewhere_is_the_same_cell(tmp_path: Path) -> None:
    ids = set()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "best.pt").write_text("the same weights")
        ids.add(one(teachers=[f"cnn-4@{tmp_path / folder / 'best.pt'}"]).id)
    assert len(ids) == 1
    (tmp_path / "b" / "best.pt").write_text("other weights")
    assert one(teachers=[f"cnn-4@{tmp_path / 'b' / 'best.pt'}"]).id not in ids


@pytest.mark.parametrize(("registry", "name"), [("MODELS", "cnn-16"), ("DATASETS", "digits"), ("METHODS", "rslad")])
def test_the_source_of_somebody_elses_plugin_is_in_the_identity(
    registry: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = one().train_id
    theirs = set()
    for source in (b"as_it_was", b"edited"):
        with monkeypatch.context() as patch:
            found = getattr(registries, registry)
            patch.setattr(found, "built_in", lambda asked: asked != name)
            patch.setattr(found, "code", lambda _, source=source: Code(Module("", Path(), source)))
            theirs.add(one().train_id)
    assert len({ours, *theirs}) == 3


def test_each_dataset_takes_the_teachers_that_are_for_it() -> None:
    matrix = cells(datasets=["digits", "cifar10"], teachers=["digits-robust", "cifar10-wrn-34-10"])
    assert {(c.dataset, c.teacher_name) for c in matrix.students} == {
        ("digits", "digits-robust"),
        ("cifar10", "cifar10-wrn-34-10"),
    }
    with pytest.raises(UserError, match="is for 'digits', not for 'cifar10'"):
        cells(datasets=["cifar10"], teachers=["digits-robust"])


def test_a_proxy_is_left_out_where_it_does_not_fit() -> None:
    (cell,) = cells(datasets=["cifar10"], methods=["pgd-at"], eval={"proxies": ["digits-robust"]}).students
    assert cell.proxies == ()


def test_two_proxies_of_one_name_are_refused(tmp_path: Path) -> None:
    names = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "best.pt").write_text(folder)
        names.append(f"cnn-4@{tmp_path / folder / 'best.pt'}")
    with pytest.raises(UserError, match="two of best, best have the same name"):
        cells(eval={"proxies": names})


def test_a_teacher_is_judged_with_the_weights_it_teaches_with() -> None:
    matrix = cells(eval={"checkpoint": "last"})
    assert matrix.teachers[0].evaluation.checkpoint == "best"
    assert matrix.students[0].evaluation.checkpoint == "last"


def test_a_students_recipe_does_not_change_a_teacher_that_has_its_own() -> None:
    for dataset in ("digits", "cifar10"):
        plain, changed = cells(datasets=[dataset]), cells(datasets=[dataset], train={"lr": 0.05, "epochs": 3})
        assert plain.teachers[0].train_id == changed.teachers[0].train_id


def test_a_records_folder_follows_from_names_and_cannot_leave_the_results_folder() -> None:
    cell = one(datasets=["../../etc/data.npz"], teachers=["digits-robust"], methods=["pgd-at"])
    path = layout.record_path(cell, Path("results"))
    assert ".." not in path.parts
    assert path.parts[:2] == ("results", "data")


def test_the_plan_counts_an_attacks_steps() -> None:
    assert [steps(name) for name in ("fgsm", "pgd7", "pgd200", "cw")] == [1, 7, 200, 20]


def _hold(folder: Path, held: Path, left: Path) -> None:
    with locks.locked(folder):
        held.touch()
        time.sleep(1)
        left.touch()


def test_a_folder_in_use_by_another_process_is_waited_for(tmp_path: Path) -> None:
    held, left = tmp_path / "held", tmp_path / "left"
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "cell", held, left))
    process.start()
    while not held.exists():
        time.sleep(0.01)
    with locks.locked(tmp_path / "cell"):
        assert left.exists()
    process.join()


def test_a_plugin_without_a_loss_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    from adbench.registry import Registry

    path = tmp_path / "half_done.py"
    path.write_text(
        "from adbench import Method\n\n\nclass HalfDone(Method):\n"
        '    label = "half"\n\n    def attack(self, step):\n        return step.x\n'
    )
    with pytest.MonkeyPatch.context() as patch:
        registry = Registry("method", "adbench.methods")
        registry.add_file(path)
        for module in ("adbench.registry", "adbench.training.configured", "adbench.execution.expand"):
            patch.setattr(f"{module}.METHODS", registry)
        with pytest.raises(UserError, match="does not implement `loss`"):
            cells(methods=["half-done"])


# What cannot make a difference makes no other cell. The data have 900 training, 100 held-out and 500 test images.
EQUAL_JUDGING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "images of no AutoAttack": ({"attacks": ["pgd20"]}, {"attacks": ["pgd20"], "aa_images": 10}),
    "search of no AutoAttack": ({"attacks": ["pgd20"]}, {"attacks": ["pgd20"], "aa_search": "fast", "aa_shard": 7}),
    "all images for AutoAttack": ({}, {"aa_images": 500}),
    "more images for AutoAttack than there are": ({"images": 50}, {"images": 50, "aa_images": 200}),
    "all images": ({}, {"images": 500}),
    "transfer from nobody": ({}, {"transfer_attacks": ["fgsm"]}),
    "the start that is meant": ({}, {"start": "uniform"}),
    "the step that is meant": ({}, {"step": "7/255"}),
    "step and start of no attack": ({"attacks": ["fgsm"]}, {"attacks": ["fgsm"], "step": "1/255", "start": "gauss"}),
    "seed of no chance": ({"attacks": ["fgsm", "mi-fgsm"]}, {"attacks": ["fgsm", "mi-fgsm"], "seed": 3}),
    "seed of PGD from the image": (
        {"attacks": ["pgd20"], "start": "clean"},
        {"attacks": ["pgd20"], "start": "clean", "seed": 3},
    ),
    "an attack twice": ({"attacks": ["fgsm", "pgd20"]}, {"attacks": ["fgsm", "pgd20", "fgsm"]}),
    "order of the attacks": ({"attacks": ["fgsm", "pgd20"]}, {"attacks": ["pgd20", "fgsm"]}),
    "a radius spelt otherwise": ({"attacks": ["pgd20@4/255"]}, {"attacks": ["pgd20@0.0157"]}),
    "masking on all images": ({"masking": 500}, {"masking": 1000}),
    "batches": ({}, {"batch_size": 7}),
}
OTHER_JUDGING: dict[str, dict[str, Any]] = {
    "fewer images": {"images": 499},
    "fewer images for AutoAttack": {"aa_images": 499},
    "another start": {"start": "gauss"},
    "another step": {"step": "3/255"},
    "another seed": {"seed": 1},
    "fewer attacks": {"attacks": ["fgsm"]},
    "the last state": {"checkpoint": "last"},
    "tests of masking": {"masking": 10},
}


@pytest.mark.parametrize("case", EQUAL_JUDGING)
def test_judging_that_cannot_differ_is_the_same(case: str) -> None:
    here, there = (one(eval={"proxies": [], **settings}) for settings in EQUAL_JUDGING[case])
    assert (here.eval_id, here.train_id) == (there.eval_id, there.train_id)
    teachers = {cells(eval={"proxies": [], **settings}).teachers[0].id for settings in EQUAL_JUDGING[case]}
    assert len(teachers) == 1


@pytest.mark.parametrize("case", OTHER_JUDGING)
def test_judging_that_can_differ_is_another(case: str) -> None:
    assert one(eval=OTHER_JUDGING[case]).eval_id != one().eval_id


def test_proxies_without_attacks_are_none() -> None:
    with_proxies = one(eval={"proxies": ["digits-natural"], "transfer_attacks": []})
    assert with_proxies.eval_id == one().eval_id
    assert not with_proxies.proxies


EQUAL_TRAINING: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the radius that is meant": ({}, {"train": {"attack_eps": "28/255"}}),
    "the step that is meant": ({}, {"train": {"attack_step": "7/255"}}),
    "the step that goes with a radius": (
        {"train": {"attack_eps": "14/255"}},
        {"train": {"attack_eps": "14/255", "attack_step": "7/510"}},
    ),
    "the threat model that is meant": ({}, {"threat": {"eps": "28/255", "step": "7/255"}}),
    "decimals of Python": ({"threat": {"eps": "8/255"}}, {"threat": {"eps": str(8 / 255)}}),
    "decimals by hand": ({"threat": {"eps": "8/255"}}, {"threat": {"eps": 0.0314}}),
    "blanks": ({"threat": {"eps": "8/255"}}, {"threat": {"eps": "8 / 255"}}),
    "drops after the end": (
        {"train": {"epochs": 1, "milestones": [0.9]}},
        {"train": {"epochs": 1, "milestones": [0.8, 0.7]}},
    ),
    "drops by nothing": ({"train": {"lr_factor": 1.0}}, {"train": {"lr_factor": 1.0, "milestones": [0.1]}}),
    "the size of no drop": ({"train": {"milestones": []}}, {"train": {"milestones": [], "lr_factor": 0.5}}),
    "validation after the end": ({"train": {"epochs": 2, "val_every": 2}}, {"train": {"epochs": 2, "val_every": 9}}),
    "parts of a batch that it is": ({}, {"train": {"micro_batch": 256}}),
    "all images": ({}, {"data": {"train_images": 900, "val_images": 100}}),
    "all that are not held out": ({"data": {"val_images": 50}}, {"data": {"val_images": 50, "train_images": 950}}),
}


@pytest.mark.parametrize("case", EQUAL_TRAINING)
def test_training_that_cannot_differ_is_the_same(case: str) -> None:
    here, there = (one(methods=["trades"], **settings) for settings in EQUAL_TRAINING[case])
    assert here.id == there.id


def test_training_that_can_differ_is_another() -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"train": {"attack_eps": "0.031"}},
        {"train": {"attack_step": "1/255"}},
        {"train": {"val_every": 2}},
        {"train": {"milestones": [0.5]}},
        {"train": {"milestones": []}},
        {"train": {"lr_factor": 0.5}},
        {"train": {"micro_batch": 128}},
        {"data": {"train_images": 899}},
        {"data": {"val_images": 99}},
        {"train": {"milestones": [0.5, 0.5]}},
    ]
    assert len({one(methods=["trades"], **each).train_id for each in settings}) == len(settings)


def test_weights_from_elsewhere_are_the_same_whatever_others_are_trained_on() -> None:
    teachers = {
        cells(datasets=["cifar10"], teachers=["Carmon2019Unlabeled"], **settings).teachers[0].id
        for settings in ({}, {"data": {"train_images": 100}}, {"train": {"epochs": 3}})
    }
    assert len(teachers) == 1


@pytest.mark.parametrize(
    ("attack", "takes", "autoattack"),
    [
        ("pgd20", True, False),
        ("cw100", True, False),
        ("somebodys-attack", True, False),
        ("aardvark", True, False),
        ("fgsm", False, False),
        ("mi-fgsm", False, False),
        ("aa", False, True),
        ("aa-rand", False, True),
        ("aa-square", False, True),
    ],
)
def test_step_and_start_count_for_every_attack_but_those_with_their_own(
    attack: str, takes: bool, autoattack: bool
) -> None:
    """So that of an attack which is added later nothing is dropped from the identity."""
    assert attack_names.takes_step(attack) == takes
    assert attack_names.autoattack(attack) == autoattack
    judged = {"attacks": [attack], "masking": 0}
    plain, stepped = (one(eval=judged | step) for step in ({}, {"step": "1/255"}))
    assert (plain.id != stepped.id) == takes
