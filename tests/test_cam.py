"""`adbench cam`: where students look and where their teacher looks, in numbers and in the report."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from synthetic import add, conform
from tiny import cli, family
from torch import Tensor, nn

from adbench.analysis import cam
from adbench.analysis.common import Testbed
from adbench.attacks.named import gradient_attack
from adbench.data.batches import to_float
from adbench.errors import UserError
from adbench.models import Network, build
from adbench.report import writer as report
from adbench.report.view import View
from adbench.results import analyses, document
from adbench.results.networks import groups
from adbench.results.record import read_all
from adbench.system.files import sha256
from adbench.weights.networks import dataset_of, network_of

pytestmark = pytest.mark.usefixtures("one_thread")

THREAT = {"threat": {"eps": "8/255", "step": "2/255"}}


def maps(*rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Two maps


def test_a_map_agrees_with_itself_wholly_whatever_its_scale() -> None:
    one = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for other in (one, 7 * one - 3):
        cosine, mse = cam.compared(one, other)
        assert cosine == pytest.approx(1, abs=1e-9)
        assert mse == pytest.approx(0, abs=1e-9)


def test_two_maps_compare_as_worked_out_by_hand() -> None:
    # In [0, 1]: (0, 1/3, 2/3, 1) and (1, 2/3, 1/3, 0).
    cosine, mse = cam.compared(maps([[0, 1], [2, 3]]), maps([[7, 5], [3, 1]]))
    assert float(cosine) == pytest.approx(2 / 7, rel=1e-6)
    assert float(mse) == pytest.approx(5 / 9, rel=1e-6)


def test_the_smaller_map_is_resized_bilinearly_to_the_larger_before_both_are_normalised() -> None:
    # Each of two values covers two of four pixels, whose centres lie a quarter and three quarters on the way.
    small, large = maps([[0, 8], [0, 8]]), maps([[0, 2, 6, 8]] * 4)
    for one, other in ((small, large), (large, small)):
        cosine, mse = cam.compared(one, other)
        assert float(cosine) == pytest.approx(1, abs=1e-9)
        assert float(mse) == pytest.approx(0, abs=1e-9)
    wide, tall = cam.compared(maps([[0, 1, 2, 3]]), maps([[0], [1]]))
    assert wide.shape == tall.shape == (1,), "the larger in each direction"


def test_a_constant_map_has_no_cosine_and_counts_as_zero_everywhere() -> None:
    constant, other = torch.full((1, 3, 3), 0.7), maps([[0, 1, 0, 1]] * 4)
    cosine, mse = cam.compared(constant, other)
    assert cosine.isnan().all()
    assert float(mse) == pytest.approx(0.5, rel=1e-6), "the mean of the other's squares, no rounding blown up"
    found = cam.agreement(torch.cat([constant, maps([[0, 1, 2]] * 3)]), maps([[0, 1, 2]] * 3, [[0, 1, 2]] * 3))
    assert found["cosine"] == {"mean": pytest.approx(1), "ci_test": None, "n": 1}
    assert found["mse"]["n"] == 2
    assert cam.agreement(constant, constant)["cosine"] == {"mean": None, "ci_test": None, "n": 0}
    rounded = torch.full((1, 4, 4), 1000.0)
    rounded[0, 1, 2] = rounded[0, 1, 2].nextafter(torch.tensor(2000.0))
    assert cam.compared(rounded, other)[0].isnan().all(), "float32 rounding is no attribution"


def test_the_interval_is_students_over_images() -> None:
    values = torch.tensor([0.1, 0.4, 0.7, 0.2], dtype=torch.float64)
    found = cam._mean(values)
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=values.std() / 2)
    assert found["ci_test"] == pytest.approx(list(expected))
    assert (found["mean"], found["n"]) == (pytest.approx(0.35), 4)


# The maps


class TwoMaps(Network):
    """Its features are the image and one minus the image."""

    def __init__(self) -> None:
        super().__init__(channels=1)
        self.head = nn.Linear(2, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, -1.0]]))

    @property
    def classifier(self) -> nn.Linear:
        return self.head

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x, 1 - x], dim=1)


def test_a_map_is_that_of_the_label_as_worked_out_by_hand() -> None:
    x = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]]).repeat(3, 1, 1, 1)
    found = cam.maps_of(TwoMaps(), x, torch.arange(3))
    assert torch.equal(found, torch.stack([x[0, 0], 1 - x[0, 0], 3 * x[0, 0] - 1]))


def test_a_maps_mean_is_the_labels_logit_without_its_bias() -> None:
    torch.manual_seed(0)
    network = build("cnn-4", classes=10, channels=1).eval()
    x, y = torch.rand(300, 1, 8, 8), torch.arange(300) % 10  # more than one batch
    with torch.no_grad():
        expected = (network(x) - network.classifier.bias)[torch.arange(300), y]
    assert torch.allclose(cam.maps_of(network, x, y).mean(dim=(1, 2)), expected, atol=1e-5)


def test_examples_are_the_first_of_each_class_that_the_teacher_gets_right() -> None:
    y = torch.tensor([7, 0, 0, 1, 2, 2, 3, 4, 5, 6, 7])
    right = torch.tensor([0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1], dtype=torch.bool)
    assert cam.examples(y, right) == [2, 4, 6, 7, 8, 9]
    assert cam.examples(y, torch.zeros(11, dtype=torch.bool)) == []


# The command


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, ARD, SmaraAD and PGD-AT, their maps compared on 40 images; not to be written to."""
    results = family(tmp_path_factory.mktemp("family"))
    result = cli("cam", "--results", results, "--images", "40")
    assert result.exit_code == 0, result.output
    return results


@pytest.fixture
def results(trained_here: Path, tmp_path: Path) -> Path:
    """A copy of these results."""
    return Path(shutil.copytree(trained_here, tmp_path / "results"))


def written(results: Path) -> Path:
    (path,) = results.glob("digits/cam/*/cam.json")
    return path


def content(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(written(results).read_text(encoding="utf-8"))
    return found


def test_it_is_described_by_the_published_schema(trained_here: Path) -> None:
    found = content(trained_here)
    conform(found, analyses.Cam)
    assert [network["name"] for network in found["networks"]] == ["teacher tiny", "PGD-AT", "ARD", "SmaraAD"]
    assert found["attack"]["name"] == "pgd20"
    assert (found["attack"]["eps"], found["data"]["images"]) == ("12/255", 40)


def test_its_figures_are_those_of_maps_on_images_made_on_the_teacher(trained_here: Path) -> None:
    """Recomputed in numpy from the networks' features."""
    found = content(trained_here)
    (group,) = groups(read_all(trained_here))
    dataset = dataset_of(group.networks[0].record, Path(), whole_test=True)
    x, y = to_float(dataset.test.images[:40]), dataset.test.labels[:40]
    networks = [network_of(one.record, dataset, Path()) for one in group.networks]
    attack = gradient_attack("pgd20", Fraction(12, 255), Fraction(3, 255))
    inputs = {"clean": x, "adversarial": attack(networks[0], x, y, torch.arange(40), 0)}
    for which, images in inputs.items():
        seen = []
        for network in networks:
            with torch.no_grad():
                features = network.forward_features(images)[1].double().numpy()
            rows = network.classifier.weight.detach().double().numpy()[y.numpy()]
            raw = (features * rows[:, :, None, None]).sum(axis=1).reshape(40, -1)
            low, high = raw.min(axis=1, keepdims=True), raw.max(axis=1, keepdims=True)
            seen.append((raw - low) / (high - low))
        for student, agreement in zip(seen[1:], found["agreement"], strict=True):
            cosines = (student * seen[0]).sum(axis=1) / np.sqrt((student**2).sum(axis=1) * (seen[0] ** 2).sum(axis=1))
            assert agreement[which]["cosine"]["mean"] == pytest.approx(cosines.mean(), abs=1e-5)
            assert agreement[which]["mse"]["mean"] == pytest.approx(((student - seen[0]) ** 2).mean(), abs=1e-5)
    assert found["agreement"][0]["adversarial"] != found["agreement"][0]["clean"]


def test_the_examples_beside_it_are_the_images_and_maps_that_were_compared(trained_here: Path) -> None:
    found = content(trained_here)
    with np.load(written(trained_here).parent / found["examples"]["file"], allow_pickle=False) as arrays:
        stored = dict(arrays)
    (group,) = groups(read_all(trained_here))
    dataset = dataset_of(group.networks[0].record, Path(), whole_test=True)
    index = [image["index"] for image in found["examples"]["images"]]
    assert np.array_equal(stored["x"], dataset.test.images[index].numpy())
    assert 0 < np.abs(stored["x_adv"] - stored["x"] / 255).max() <= 12 / 255 + 1e-6
    for place in range(1, 4):
        cosine, _ = cam.compared(*(torch.from_numpy(stored[f"map{i}"]) for i in (place, 0)))
        assert [image["cosine"][place - 1] for image in found["examples"]["images"]] == pytest.approx(cosine.tolist())


def test_a_finished_comparison_is_printed_and_not_made_again(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(results).stat().st_mtime_ns
    monkeypatch.setattr(Testbed, "crafted", lambda *_: pytest.fail("attacked again"))
    result = cli("cam", "--results", results, "--images", "40")
    assert result.exit_code == 0, result.output
    assert written(results).stat().st_mtime_ns == before
    first = content(results)["agreement"][0]["adversarial"]["cosine"]["mean"]
    assert f"{first:.4f}" in next(line for line in result.output.splitlines() if "PGD-AT" in line)


def test_students_are_compared_with_their_own_teacher_and_those_of_nobody_with_each(tmp_path: Path) -> None:
    for label in ("a", "b", "idle"):
        add(tmp_path, kind="teacher", label=label, metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0})
    for method, teacher in (("rslad", "a"), ("ard", "b"), ("trades", None)):
        add(tmp_path, method=method, teacher=teacher, metrics={"clean": 0.9}, settings=THREAT, evaluation={"seed": 0})
    (group,) = groups(read_all(tmp_path))
    found = {teacher.label: [s.label for s in students] for teacher, students in cam.classes(group)}
    assert found == {"a": ["TRADES", "RSLAD"], "b": ["TRADES", "ARD"]}


def test_a_teacher_without_a_known_feature_map_is_refused_by_name(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opaque(TwoMaps):
        @property
        def classifier(self) -> nn.Linear:
            raise UserError("the feature maps of RobustBench's 'opaque' are unavailable; choose another teacher")

    def loaded(networks: Any, *_: Any) -> Any:
        return [(one, Opaque()) for one in networks], []

    monkeypatch.setattr(cam, "load_all", loaded)
    result = cli("cam", "--results", results, "--images", "5")
    assert result.exit_code == 2
    assert "skipped: the feature maps of RobustBench's 'opaque'" in result.output
    assert len(list(results.rglob("cam.json"))) == 1


def test_bad_input_is_one_sentence(results: Path) -> None:
    (weights,) = results.glob("digits/ard/*/*/best.safetensors")
    weights.unlink()
    for options, said in [
        (["--images", "5"], str(weights)),
        (["--images", "100000"], "has 360 test images, not 100000"),
        (["--methods", "pgd-at"], "a finished student that it taught; none is here"),
        (["--results", results / "digits/ard"], "a finished student that it taught; none is here"),
    ]:
        result = cli("cam", "--results", results, *options)
        assert result.exit_code == 2, said
        assert said in result.output
    assert cli("cam", "--results", results, "--images", "5", "--skip-missing").exit_code == 0


# The report


@pytest.fixture(scope="module")
def reported(trained_here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on it in all formats."""
    out = tmp_path_factory.mktemp("report")
    report.write(trained_here, out)
    return out


def test_the_report_shows_the_maps_and_their_agreement(trained_here: Path, reported: Path) -> None:
    (table,) = reported.glob("tables/attribution_*.csv")
    found = content(trained_here)
    lines = {line["Student"]: line for line in csv.DictReader(table.open(encoding="utf-8"))}
    for network, agreement in zip(found["networks"][1:], found["agreement"], strict=True):
        line = lines[network["name"]]
        for group, kind in (("Adversarial images", "adversarial"), ("Clean images", "clean")):
            for title, what in (("Cosine", "cosine"), ("MSE", "mse")):
                low, high = agreement[kind][what]["ci_test"]
                assert line[f"{group}: {title}"] == f"{agreement[kind][what]['mean']:.4f}"
                assert line[f"{group}: {title} ±"] == f"{(high - low) / 2:.4f}"
    page = (reported / "index.html").read_text(encoding="utf-8")
    caption = page.partition("<figcaption><b>Attribution maps")[2].partition("</figcaption>")[0]
    assert "made on teacher tiny by PGD-20 (20 steps of 3/255) within ε = 12/255" in caption
    assert next(reported.glob("figures/attribution_*.png")).read_bytes().startswith(b"\x89PNG")


def test_class_names_are_text(results: Path, tmp_path: Path) -> None:
    found = content(results)
    for image in found["examples"]["images"]:
        image["label"] = "<b>&$x_1$"
    document.write(written(results), found)
    report.write(results, tmp_path / "out", formats=["html"])
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<b>&$x_1$" not in page
    assert "&lt;b&gt;&amp;$x_1$" in page


def test_what_has_no_cosine_is_a_dash_with_a_note(results: Path) -> None:
    from adbench.report import attribution

    found = content(results)
    found["agreement"][0]["clean"]["cosine"] = {"mean": None, "ci_test": None, "n": 0}
    found["examples"]["images"][0]["cosine"][0] = None
    document.write(written(results), found)
    ((table,), (plot,)) = attribution.contents(View(results, list(read_all(results))))
    assert table.rows[0].cells[3].text == "–"
    assert table.footnotes == ("PGD-AT, clean images: on 40 a map is constant, which has no cosine.",)
    assert plot.render("svg").startswith(b"<svg")
    assert not any(math.isnan(float(cell.text)) for cell in table.rows[1].cells[1:])


def test_a_long_name_is_broken_between_its_parts() -> None:
    from adbench.report.attribution import _wrapped

    assert _wrapped("teacher wrn-10-2_cifar10_linf") == "teacher\nwrn-10-2_\ncifar10_linf"
    assert _wrapped("Adversarial image") == "Adversarial\nimage"


def test_changed_examples_are_refused_by_name(results: Path, tmp_path: Path) -> None:
    arrays = written(results).parent / "examples.npz"
    arrays.write_bytes(arrays.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"examples\.npz' is not there or was changed"):
        report.write(results, tmp_path / "report")


@pytest.mark.parametrize("change", ["no map", "flat", "more images", "text", "no zip"])
def test_examples_that_are_none_are_named_and_left_out(change: str, results: Path, tmp_path: Path) -> None:
    path = written(results)
    arrays = dict(np.load(path.with_name("examples.npz")))
    match change:
        case "no map":
            del arrays["map0"]
        case "flat":
            arrays["map1"] = arrays["map1"].reshape(-1)
        case "more images":
            arrays["x_adv"] = np.concatenate([arrays["x_adv"]] * 2)
        case "text":
            arrays["x_adv"] = np.array("x")
    np.savez(path.with_name("examples.npz"), **arrays)
    if change == "no zip":
        path.with_name("examples.npz").write_bytes(b"PK\3\4")
    found = content(results)
    found["examples"]["sha256"] = sha256(path.with_name("examples.npz"))
    document.write(path, found)
    result = cli("report", "--results", results, "--out", tmp_path / "report", "--format", "figures")
    assert result.exit_code == 1
    assert "examples.npz' cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("field", "value"), [("agreement", []), ("attack", {"name": "pgd20"}), ("provenance", {}), ("setting", {"eps": 8})]
)
def test_an_odd_comparison_is_named_with_its_field(field: str, value: Any, results: Path) -> None:
    path = written(results)
    found = content(results)
    document.write(path, {**found, field: {**found[field], **value} if value and field == "setting" else value})
    with pytest.raises(UserError, match=field):
        analyses.read(path, analyses.Cam)


def test_the_report_of_maps_needs_no_torch_and_has_the_same_bytes_twice(
    trained_here: Path, reported: Path, tmp_path: Path
) -> None:
    script = """
import sys
from pathlib import Path
from adbench.report import writer as report
report.write(Path(sys.argv[1]), Path(sys.argv[2]))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, trained_here, tmp_path], check=True)
    assert list(tmp_path.glob("figures/attribution_*.pdf"))
    first, second = (
        {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} for out in (reported, tmp_path)
    )
    assert first == second
