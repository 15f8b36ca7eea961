"""`adbench cross`: every network's adversarial examples against every other network, and how the report shows them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import add, conform
from tiny import cli, family, records
from torch import Tensor

from adbench.analysis import cross as crossing
from adbench.analysis.common import Testbed
from adbench.attacks.named import gradient_attack
from adbench.data.batches import to_float
from adbench.errors import UserError
from adbench.models import Network
from adbench.report import writer as report
from adbench.report.view import View
from adbench.results import analyses, document
from adbench.results.networks import Wanted, groups, names, select
from adbench.results.record import read_all
from adbench.results.stats import wilson
from adbench.system.files import content_id, write_json
from adbench.weights.networks import dataset_of, network_of

pytestmark = pytest.mark.usefixtures("one_thread")

NASTY = r"<script>alert(1)</script> a_b & 100% $x$ {~^\} `#|*"
THREAT = {"threat": {"eps": "8/255", "step": "2/255"}}


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, ARD, SmaraAD and PGD-AT; not to be written to."""
    return family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def results(trained_here: Path, tmp_path: Path) -> Path:
    """A copy of these results."""
    return Path(shutil.copytree(trained_here, tmp_path / "results"))


@pytest.fixture(scope="module")
def crossed(trained_here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another copy, crossed on the 40 images that the records speak of; not to be written to."""
    copy = Path(shutil.copytree(trained_here, tmp_path_factory.mktemp("crossed") / "results"))
    result = cli("cross", "--results", copy, "--images", "40")
    assert result.exit_code == 0, result.output
    return copy


def matrix(results: Path) -> dict[str, Any]:
    (path,) = results.glob("digits/cross/*/cross.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def by_weights(results: Path) -> dict[str, dict[str, Any]]:
    return {record["model"]["weights_sha256"]: record for record in records(results).values()}


def counted(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None] = lambda _: None) -> list[int]:
    """The sources that are attacked from now on, by number; `before` may stop the command at one of them."""
    calls: list[int] = []
    crafted = Testbed.crafted

    def counting(bed: Testbed, network: Network, restart: int = 0) -> Tensor:
        before(len(calls))
        calls.append(len(calls))
        return crafted(bed, network, restart)

    monkeypatch.setattr(Testbed, "crafted", counting)
    return calls


# The matrix


def test_the_diagonal_and_the_clean_figures_are_those_of_the_records(crossed: Path) -> None:
    found, recorded = matrix(crossed), by_weights(crossed)
    assert len(found["networks"]) == 4
    for place, network in enumerate(found["networks"]):
        metrics = recorded[network["weights_sha256"]]["metrics"]
        assert found["matrix"][place][place]["correct"] == metrics["pgd20"]["correct"]
        assert network["clean"]["correct"] == metrics["clean"]["correct"]
    white = {row[place]["correct"] for place, row in enumerate(found["matrix"])}
    assert len(white) > 1, "networks that fare alike would show nothing"


def test_what_is_made_on_the_teacher_is_the_records_transfer_from_it(crossed: Path) -> None:
    found, recorded = matrix(crossed), by_weights(crossed)
    assert found["networks"][0]["kind"] == "teacher"
    students = [i for i, network in enumerate(found["networks"]) if network["kind"] == "student"]
    for place in students:
        record = recorded[found["networks"][place]["weights_sha256"]]
        assert found["matrix"][0][place]["correct"] == record["metrics"]["transfer:tiny:pgd20"]["correct"]
    off = [found["matrix"][s][t]["correct"] for s in students for t in students if s != t]
    assert min(off) < max(off), "rows and columns could be exchanged unnoticed"


def test_it_is_described_by_the_published_schema(crossed: Path) -> None:
    found = matrix(crossed)
    conform(found, analyses.Cross)
    entry = found["matrix"][1][2]
    assert entry["n"] == found["data"]["images"] == 40
    assert entry["ci_test"] == list(wilson(entry["correct"], 40))
    assert found["attack"]["eps"] == found["setting"]["eps"] == "12/255"


def test_an_image_counts_only_if_the_target_is_right_on_it_and_at_every_restart(results: Path) -> None:
    assert cli("cross", "--results", results, "--images", "30", "--attack", "pgd2x3").exit_code == 0
    found = matrix(results)
    (group,) = groups(read_all(results))
    dataset = dataset_of(group.networks[0].record, Path(), whole_test=True)
    x, y = to_float(dataset.test.images[:30]), dataset.test.labels[:30]
    attack = gradient_attack("pgd2x3", Fraction(12, 255), Fraction(3, 255))
    networks = [network_of(one.record, dataset, Path()) for one in group.networks]
    for s, source in enumerate(networks):
        for t, target in enumerate(networks):
            with torch.no_grad():
                right = target(x).argmax(1) == y
            for restart in range(3):
                x_adv = attack(source, x, y, torch.arange(30), 0, restart)
                with torch.no_grad():
                    right &= target(x_adv).argmax(1) == y
            assert found["matrix"][s][t]["correct"] == int(right.sum())


# Killed, finished, printed


def test_a_killed_run_goes_on_with_the_next_source(
    crossed: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(call: int) -> None:
        if call == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        counted(patched, stop)
        assert cli("cross", "--results", results, "--images", "40").exit_code == 130
    assert len(list(results.glob("digits/cross/*/source-*.json"))) == 2
    assert not list(results.rglob("cross.json"))
    calls = counted(monkeypatch)
    assert cli("cross", "--results", results, "--images", "40").exit_code == 0
    assert len(calls) == 2
    assert matrix(results)["matrix"] == matrix(crossed)["matrix"]
    assert not list(results.rglob("source-*.json"))


def test_a_damaged_part_is_made_again(results: Path) -> None:
    assert cli("cross", "--results", results, "--images", "10").exit_code == 0
    (path,) = results.glob("digits/cross/*/cross.json")
    whole = matrix(results)
    path.unlink()
    (path.parent / f"source-{whole['networks'][1]['weights_sha256'][:16]}.json").write_text('{"id": "0123')
    assert cli("cross", "--results", results, "--images", "10").exit_code == 0
    assert matrix(results)["matrix"] == whole["matrix"]


@pytest.mark.parametrize(
    "change", [{"id": 7}, {"correct": None}, {"correct": {}}, {"seconds": "1"}, "text", [1], {"correct": "all 11"}]
)
def test_an_odd_part_is_made_again(change: Any, tmp_path: Path) -> None:
    path, weights = tmp_path / "source.json", ["a", "b"]
    part = {"id": "0123", "correct": {"a": 10, "b": 0}, "seconds": 1.0}
    document.write(path, part)
    assert crossing._part(path, "0123", weights, 10) == part
    if change == {"correct": "all 11"}:
        change = {"correct": {"a": 11, "b": 0}}
    odd = {**part, **change} if isinstance(change, dict) else change
    path.write_text(json.dumps({**odd, "digest": content_id(odd)} if isinstance(odd, dict) else odd), encoding="utf-8")
    assert crossing._part(path, "0123", weights, 10) is None


def test_a_finished_matrix_is_printed_and_not_made_again(
    crossed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Path(shutil.copytree(crossed, tmp_path / "results"))
    for weights in results.rglob("*.safetensors"):
        weights.unlink()
    (path,) = results.glob("digits/cross/*/cross.json")
    before = path.stat().st_mtime_ns, path.read_bytes()
    calls = counted(monkeypatch)
    result = cli("cross", "--results", results, "--images", "40")
    assert result.exit_code == 0, result.output
    assert (path.stat().st_mtime_ns, path.read_bytes(), calls) == (*before, [])
    found = matrix(results)
    rows = [line.split() for line in result.output.splitlines()]
    for number, (network, entries) in enumerate(zip(found["networks"], found["matrix"], strict=True), 1):
        shares = [f"{100 * entry['correct'] / 40:.2f}" for entry in entries]
        assert [str(number), *network["name"].split(), *shares] in rows


def test_another_attack_or_number_of_images_is_another_matrix(results: Path) -> None:
    for options in (["--images", "10"], ["--images", "11"], ["--images", "10", "--attack", "fgsm"]):
        assert cli("cross", "--results", results, *options).exit_code == 0
    assert len(list(results.glob("digits/cross/*/cross.json"))) == 3
    assert len(list(read_all(results))) == 4, "records are found as before"


# Which networks


def test_networks_of_another_threat_model_or_setting_are_never_in_one_matrix(tmp_path: Path) -> None:
    other = {"threat": {"eps": "4/255", "step": "1/255"}}
    add(tmp_path, method="rslad", metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0})
    add(tmp_path, method="ard", metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0})
    add(tmp_path, method="ard", weights="b", metrics={"clean": 0.9}, settings=other, evaluation={"seed": 0})
    add(tmp_path, method="iad", metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0, "start": "gauss"})
    add(tmp_path, method="trades", metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0, "step": "1/255"})
    add(tmp_path, dataset="cifar10", metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0})
    found = [[one.label for one in group.networks] for group in groups(read_all(tmp_path))]
    assert sorted(found) == [["ARD"], ["ARD", "RSLAD"], ["IAD"], ["RSLAD"], ["TRADES"]]


def test_a_network_that_was_judged_twice_stands_in_the_matrix_once(tmp_path: Path) -> None:
    for images in (100, 200):
        judged = {"seed": 0, "images": images}
        add(tmp_path, method="rslad", metrics={"clean": 0.9}, n=images, settings=THREAT, evaluation=judged)
    ((group),) = groups(read_all(tmp_path))
    assert [(one.label, one.record.metrics["clean"].n) for one in group.networks] == [("RSLAD", 200)]


def test_of_several_seeds_the_lowest_is_taken_unless_asked(tmp_path: Path) -> None:
    for method, seeds in (("rslad", (1, 2)), ("ard", (0, 1))):
        for seed in seeds:
            add(
                tmp_path,
                method=method,
                seed=seed,
                weights=f"{method} {seed}",
                metrics={"clean": 0.9},
                settings=THREAT,
                evaluation={"seed": 0},
            )
    add(tmp_path, kind="teacher", label="t", metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0})

    def chosen(seed: int | str | None) -> list[str]:
        (group,) = select(tmp_path, Wanted(seed=seed))
        return names(group.networks)

    assert chosen(None) == ["teacher t", "ARD", "RSLAD"]
    assert chosen(2) == ["teacher t", "RSLAD"]
    assert chosen("all") == ["teacher t", "ARD, seed 0", "ARD, seed 1", "RSLAD, seed 1", "RSLAD, seed 2"]


def test_names_say_what_tells_these_networks_apart(tmp_path: Path) -> None:
    for teacher, student in (("a", "cnn-16"), ("b", "cnn-16"), ("b", "cnn-32")):
        add(
            tmp_path,
            method="ard",
            teacher=teacher,
            student=student,
            weights=teacher + student,
            metrics={"clean": 0.9},
            settings=THREAT,
            evaluation={"seed": 0},
        )
    (group,) = groups(read_all(tmp_path))
    assert names(group.networks) == ["ARD, cnn-16, from a", "ARD, cnn-16, from b", "ARD, cnn-32, from b"]
    assert names(group.networks[:1]) == ["ARD"]


def test_filters_leave_teachers_in(results: Path) -> None:
    assert cli("cross", "--results", results, "--images", "5", "--methods", "ARD,pgd-at").exit_code == 0
    assert [network["name"] for network in matrix(results)["networks"]] == ["teacher tiny", "PGD-AT", "ARD"]


# What cannot be done


def test_missing_weights_are_named_and_can_be_left_out(results: Path) -> None:
    (weights,) = results.glob("digits/ard/*/*/best.safetensors")
    weights.unlink()
    result = cli("cross", "--results", results, "--images", "5")
    assert result.exit_code == 2
    assert str(weights) in result.output
    assert "--skip-missing" in result.output
    assert not list(results.rglob("cross.json"))
    result = cli("cross", "--results", results, "--images", "5", "--skip-missing")
    assert result.exit_code == 0, result.output
    assert f"left out: the weights of '{next(weights.parent.glob('eval-*/record.json'))}'" in result.output
    assert len(matrix(results)["networks"]) == 3
    for weights in results.rglob("*.safetensors"):
        weights.unlink()
    result = cli("cross", "--results", results, "--images", "6", "--skip-missing")
    assert result.exit_code == 2
    assert "0 finished networks with weights, no matrix" in result.output


def test_weights_of_another_network_are_refused(results: Path) -> None:
    (ours,), (others) = results.glob("digits/ard/*/*/best.safetensors"), results.glob("digits/smaraad/*/*/best*")
    shutil.copy(next(others), ours)
    result = cli("cross", "--results", results, "--images", "5")
    assert result.exit_code == 2
    assert "SHA-256" in result.output


def test_bad_input_is_one_sentence(results: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    shutil.copytree(next(results.glob("digits/ard/*/*")), one / "digits/ard/x/s0")
    for options, said in [
        (["--attack", "aa"], "AutoAttack leaves no single x'"),
        (["--attack", "pgdd20"], "unknown attack 'pgdd20'"),
        (["--dataset", "digits,digit"], "unknown dataset 'digit'; did you mean 'digits'?"),
        (["--methods", "smarad"], "unknown method 'smarad'; did you mean 'smaraad'?"),
        (["--student", "cnn-5"], "unknown student 'cnn-5'"),
        (["--seed", "7"], "has the seed 7"),
        (["--seed", "first"], "neither a seed nor 'all'"),
        (["--images", "100000"], "has 360 test images, not 100000"),
        (["--results", one], "a matrix needs two finished networks"),
        (["--results", tmp_path / "none"], "does not exist"),
    ]:
        result = cli("cross", "--results", results, *options)
        assert result.exit_code == 2, said
        assert said in result.output
        assert result.output.startswith("adbench: ")
        assert len(result.output.splitlines()) == 1
    assert not list(results.rglob("cross.json"))


# The report


def written(results: Path, shares: dict[str, list[float]], images: int = 1000, finished: str = "2026-02-01") -> Path:
    """A matrix of synthetic records (`add`), by label; the weights are their labels'."""
    attack = {
        "name": "pgd20",
        "implementation": "adbench 0.1.0",
        "loss": "cross-entropy",
        "eps": "8/255",
        "step": "2/255",
        "steps": 20,
        "start": "uniform",
        "restarts": 1,
        "seed": 0,
    }

    def entry(share: float) -> dict[str, Any]:
        correct = round(share * images)
        return {"correct": correct, "n": images, "ci_test": list(wilson(correct, images))}

    origin = document.opened(next(read_all(results)).path)["provenance"]
    network = {"kind": "student", "method": None, "student": "cnn-16", "teacher": None, "seed": 0, "record": "r"}
    content = {
        "schema_version": 1,
        "id": content_id([shares, finished])[:16],
        "dataset": "digits",
        "data": {"fingerprint": content_id("digits"), "images": images},
        "setting": {"eps": "8/255", "step": "2/255", "start": "uniform", "seed": 0},
        "attack": attack,
        "networks": [
            network | {"name": label, "weights_sha256": content_id(label), "clean": entry(0.9)} for label in shares
        ],
        "matrix": [[entry(share) for share in row] for row in shares.values()],
        "seconds": [1.0] * len(shares),
        "provenance": origin | {"finished": f"{finished}T00:00:00+00:00"},
    }
    conform(content, analyses.Cross)
    path = results / "digits/cross" / content["id"][:8] / "cross.json"
    write_json(path, content)
    return path


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """Records of RSLAD, ARD and a method with a name like code."""
    results = tmp_path / "synthetic"
    for label in ("RSLAD", "ARD", NASTY):
        add(results, method=label.lower(), label=label, metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0})
    return results


def test_the_report_shows_the_matrix_with_its_attack_and_images(synthetic: Path, tmp_path: Path) -> None:
    written(synthetic, {"RSLAD": [0.5, 0.7], "ARD": [0.75, 0.4]})
    out = tmp_path / "report"
    report.write(synthetic, out)
    lines = list(csv.DictReader((out / "tables/cross_digits.csv").open(encoding="utf-8")))
    found = {line["Made on"]: (line["Accuracy of: RSLAD"], line["Accuracy of: ARD"]) for line in lines}
    assert found == {"Clean images": ("90.00", "90.00"), "RSLAD": ("50.00", "70.00"), "ARD": ("75.00", "40.00")}
    page = (out / "index.html").read_text(encoding="utf-8")
    assert '<h2 id="cross-transfer">Cross-transfer</h2>' in page
    caption = page.partition("<figcaption><b>Cross-transfer, digits")[2].partition("</figcaption>")[0]
    for said in ("PGD-20 (20 steps of 2/255) within ε = 8/255", "n = 1\u202f000 test images", "white-box"):
        assert said in caption
    assert (out / "figures/cross_digits.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "figures/cross_digits.pdf").is_file()


def test_without_a_matrix_there_is_no_section(synthetic: Path, tmp_path: Path) -> None:
    report.write(synthetic, tmp_path / "report")
    assert "Cross-transfer" not in (tmp_path / "report/index.html").read_text(encoding="utf-8")


def test_a_later_matrix_of_the_same_or_more_networks_wins(synthetic: Path) -> None:
    written(synthetic, {"RSLAD": [0.1, 0.2], "ARD": [0.3, 0.4]}, finished="2026-03-01")
    written(synthetic, {"RSLAD": [0.5, 0.6], "ARD": [0.7, 0.8]}, finished="2026-04-01")
    (found,) = analyses.latest(analyses.read_all(synthetic, analyses.Cross))
    assert found.matrix[0][0].correct == 500
    more = {"RSLAD": [0.5] * 3, "ARD": [0.7] * 3, NASTY: [0.6] * 3}
    written(synthetic, more, finished="2026-03-15")
    assert len(analyses.latest(analyses.read_all(synthetic, analyses.Cross))) == 2, "an earlier one with more stays"
    written(synthetic, more, finished="2026-05-01")
    (found,) = analyses.latest(analyses.read_all(synthetic, analyses.Cross))
    assert len(found.networks) == 3


def test_a_matrix_of_networks_that_are_not_in_the_report_is_not_shown(synthetic: Path, tmp_path: Path) -> None:
    written(synthetic, {"RSLAD": [0.5, 0.7], "gone": [0.75, 0.4]})
    report.write(synthetic, tmp_path / "report")
    assert "Cross-transfer" not in (tmp_path / "report/index.html").read_text(encoding="utf-8")


def test_names_in_the_matrix_are_text_and_figures_have_the_same_bytes_twice(synthetic: Path, tmp_path: Path) -> None:
    written(synthetic, {"RSLAD": [0.5, 0.7], NASTY: [0.75, 0.4]})
    outs = [tmp_path / "one", tmp_path / "other"]
    for out in outs:
        report.write(synthetic, out)
    page, tex = ((outs[0] / name).read_text(encoding="utf-8") for name in ("index.html", "tables/cross_digits.tex"))
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page.partition('id="cross-transfer"')[2].partition("<h2")[0]
    assert r"a\_b \& 100\% \$x\$" in tex
    for name in ("index.html", "figures/cross_digits.png", "figures/cross_digits.pdf"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_a_target_that_falls_to_others_more_than_to_itself_is_named(synthetic: Path) -> None:
    from adbench.report import cross

    written(synthetic, {"RSLAD": [0.5, 0.3], "ARD": [0.75, 0.4]})
    ((table,), _) = cross.contents(View(synthetic, list(read_all(synthetic))))
    (note,) = table.footnotes
    assert note.startswith("ARD is right on fewer images made on RSLAD than on its own (30.00 against 40.00)")


def test_the_report_of_a_matrix_needs_no_torch(crossed: Path, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from adbench.report import writer as report
report.write(Path(sys.argv[1]), Path(sys.argv[2]))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, crossed, tmp_path], check=True)
    assert (tmp_path / "tables/cross_digits.csv").is_file()


def test_a_damaged_analysis_is_named(synthetic: Path, tmp_path: Path) -> None:
    path = written(synthetic, {"RSLAD": [0.5, 0.7], "ARD": [0.75, 0.4]})
    content = json.loads(path.read_text(encoding="utf-8"))

    def changed(**fields: Any) -> str:
        return json.dumps(document.sealed({**content, **fields}))

    for text, said in [
        ("{", "is not a readable cross"),
        (json.dumps(content | {"schema_version": 9}), "schema version 9"),
        (json.dumps({k: v for k, v in content.items() if k != "matrix"}), "lacks matrix"),
        (changed(attack={**content["attack"], "steps": "x"}), "attack.steps"),
        (changed(setting={**content["setting"], "eps": "x"}), "setting.eps"),
        (changed(provenance={**content["provenance"], "finished": 7}), "provenance.finished"),
        (changed(matrix=content["matrix"] * 2), "matrix has 4 entries"),
        (changed(seconds=[]), "seconds has 0 entries"),
        (changed(networks=content["networks"] * 2), "of 4 networks"),
    ]:
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=said):
            report.write(synthetic, tmp_path / "report")
