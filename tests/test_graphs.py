"""Networks as graphs that run without adbench: ONNX and torch.export."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny import cli, run

from adbench.errors import UserError
from adbench.models import Network, build
from adbench.results import record
from adbench.weights import graphs
from adbench.weights.networks import dataset_of, network_of
from adbench.weights.onnx_file import OnnxNetwork

sys.path.append(str(ROOT / "benchmarks"))
import exports

pytestmark = pytest.mark.usefixtures("one_thread")

NEED_ONNX = "needs onnx, onnxruntime and onnxscript (the extra onnx)"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PGD-AT on digits."""
    folder = tmp_path_factory.mktemp("graphs") / "results"
    found = run("--methods", "pgd-at", "--results", folder)
    assert found.exit_code == 0, found.output
    return folder


def need_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=NEED_ONNX)


def images_and_logits(results: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    found = record.read(record.only(results))
    dataset = dataset_of(found, Path(), whole_test=True)
    x = dataset.test.images[:count].float() / 255
    with torch.no_grad():
        return x, network_of(found, dataset, Path())(x)


def test_onnx_says_what_it_is_and_gives_the_networks_logits(results: Path, tmp_path: Path) -> None:
    need_onnx()
    import onnx
    import onnxruntime

    found = cli("export", results, "--out", tmp_path, "--name", "net", "--format", "onnx")
    assert found.exit_code == 0, found.output
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    model = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(model)
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["class_names"]) == list("0123456789")
    assert (said["input_size"], said["input_range"], said["opset"]) == ("[1, 8, 8]", "[0, 1]", "18")
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 7, 300):
        x, due = images_and_logits(results, count)
        np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], due.numpy(), atol=1e-5, rtol=0)


def test_torch_export_gives_the_networks_logits(results: Path, tmp_path: Path) -> None:
    words = ("--format", "torch.export", "--format", "weights")
    found = cli("export", results, "--out", tmp_path, "--name", "net", *words)
    assert found.exit_code == 0, found.output
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt2", ".pt", ".json", ".safetensors"}
    # The images that it was compared on are not in it.
    assert (tmp_path / "net.pt2").stat().st_size < (tmp_path / "net.pt").stat().st_size + 60_000
    extra = {"metadata.json": ""}
    module = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    assert json.loads(json.loads(extra["metadata.json"])["class_names"]) == list("0123456789")
    for count in (1, 300):
        x, due = images_and_logits(results, count)
        torch.testing.assert_close(module(x), due, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["torch.export", "onnx"])
def test_the_normalisation_is_inside(kind: str, tmp_path: Path) -> None:
    if kind == "onnx":
        need_onnx()
    network = build("cnn-4", classes=3, channels=3, mean=[0.2, 0.4, 0.6], std=[0.1, 0.2, 0.3]).eval()
    x = torch.rand(5, 3, 8, 8)
    assert graphs.write(network, x, tmp_path / "net", kind, {}) <= 1e-5
    plain = build("cnn-4", classes=3, channels=3).eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert (plain(x) - network(x)).abs().max() > 1e-3  # so that a graph without it would have been found out


def test_a_file_with_other_logits_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        graphs._FORMS, "torch.export", (lambda *_: b"graph", lambda _: lambda x: torch.full((len(x), 3), 9.0))
    )
    network = build("cnn-4", classes=3, channels=1).eval()
    with pytest.raises(UserError, match="differ"):
        graphs.write(network, torch.rand(4, 1, 8, 8), tmp_path / "net.pt2", "torch.export", {})
    assert not [*tmp_path.iterdir()]


class Branching(Network):
    """What it does depends on the images, which no graph can have."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.features(x).flatten(1)


def test_what_is_no_graph_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written as torch\.export"):
        graphs.write(Branching(channels=1).eval(), torch.rand(4, 1, 8, 8), tmp_path / "x.pt2", "torch.export", {})
    assert not [*tmp_path.iterdir()]


def test_without_the_extra_it_says_what_to_install(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adbench.models.names.find_spec", lambda _: None)
    for asked in (("--format", "onnx"), ("--quantise", "int8")):
        found = cli("export", results, "--out", tmp_path / "out", *asked)
        assert found.exit_code == 2
        assert "[onnx]" in found.output
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["torch.export", "onnx"])
@pytest.mark.parametrize("student", exports.STUDENTS)
def test_every_built_in_student_gives_its_logits(student: str, kind: str, tmp_path: Path) -> None:
    if kind == "onnx":
        need_onnx()
    away = graphs.write(exports.lively(student), torch.rand(16, 3, 32, 32), tmp_path / "net", kind, {})
    assert away <= 1e-4, "logits are around 10; write itself allows 1e-5 of the largest"


# ONNX files from anywhere, and int8 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(results: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Everything that `--quantise int8` writes of the network, and what it said."""
    need_onnx()
    out = tmp_path_factory.mktemp("int8")
    found = cli("export", results, "--out", out, "--name", "net", "--quantise", "int8", "--square-images", 12)
    assert found.exit_code == 0, found.output
    return out, found.output


def judged(out: Path, name: str) -> record.Record:
    (path,) = (out / "records").glob(f"digits/checkpoints/{name}-*/*/record.json")
    return record.read(path)


def test_int8_has_a_record_of_its_own_beside_the_float_networks(exported: tuple[Path, str]) -> None:
    out, said = exported
    number, int8 = judged(out, "net"), judged(out, "net.int8")
    assert set(number.metrics) == {"clean", "pgd20", "cw", "aa-square"}
    assert set(int8.metrics) == {"clean", "transfer:net:pgd20", "transfer:net:cw", "aa-square"}, "nothing white-box"
    assert (int8.student, int8.metrics["aa-square"].n) == ("onnx", 12)
    assert int8.network.footprint is not None
    assert number.network.footprint is not None
    assert int8.network.footprint.bytes < number.network.footprint.bytes / 2
    assert int8.network.footprint.multiply_adds is None
    told = {line[:24].strip(): line for line in said.splitlines()}
    for words, attack in (("clean", "clean"), ("PGD-20, found on float", "transfer:net:pgd20")):
        lost = (number.right(attack.rpartition(":")[2]) & ~int8.right(attack)).sum()
        assert f"{100 * int8.metrics[attack].value:.1f}%   n = 16: {lost} lost" in told[words]
    assert "all of these" in told


def test_the_int8_network_is_another_one_that_is_nearly_the_same(exported: tuple[Path, str], results: Path) -> None:
    x, due = images_and_logits(results, 300)
    found = OnnxNetwork(exported[0] / "net.int8.onnx", 1)(x)
    assert 1e-4 < (found - due).abs().max() < 0.2 * due.abs().max()
    assert (found.argmax(1) == due.argmax(1)).float().mean() > 0.95


def test_exporting_again_writes_the_same_bytes_and_judges_nothing_again(
    exported: tuple[Path, str], results: Path
) -> None:
    out, _ = exported
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.suffix != ".pt"}
    found = cli("export", results, "--out", out, "--name", "net", "--quantise", "int8", "--square-images", 12)
    assert found.exit_code == 0, found.output
    assert {path: path.read_bytes() for path in before} == before


def test_no_figure_of_the_float_network_is_in_the_int8_file(exported: tuple[Path, str]) -> None:
    import onnx

    out, _ = exported
    number, int8 = (
        {entry.key for entry in onnx.load(out / name).metadata_props} for name in ("net.onnx", "net.int8.onnx")
    )
    assert {"accuracy", "record"} <= number
    assert int8 == number - {"accuracy", "record"} | {"quantised"}


def test_the_report_tells_what_transfers_to_an_int8_network(exported: tuple[Path, str], tmp_path: Path) -> None:
    done = cli("report", "--results", exported[0] / "records", "--out", tmp_path, "--format", "markdown")
    assert done.exit_code == 0, done.output
    text = "\n".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.md"))
    assert "Black-box transfer to evaluated checkpoints" in text
    assert "net.int8" in text.partition("Black-box transfer to evaluated checkpoints")[2]


def test_a_record_of_an_onnx_file_is_verified_and_its_survivors_attacked(exported: tuple[Path, str]) -> None:
    path = judged(exported[0], "net.int8").path
    found = cli("verify", path, "--survivors", 6)
    assert found.exit_code == 0, found.output
    for attack in ("aa-square", "transfer:net:pgd20", "transfer:net:cw"):
        assert f"{attack} survivors: of" in found.output, "the float network, its proxy, is found beside it"
    assert ", 0 contradict" in found.output


def test_an_onnx_file_is_judged_by_what_needs_no_gradient(exported: tuple[Path, str], tmp_path: Path) -> None:
    file, results = exported[0] / "net.onnx", ("--results", tmp_path)
    found = cli("eval", file, "--images", 16, "--proxies", exported[0] / "net.toml", *results)
    assert found.exit_code == 0, found.output
    one = record.read(record.only(tmp_path))
    assert set(one.metrics) == {"clean", "aa-square", "transfer:net:pgd20", "transfer:net:cw"}
    white_box = judged(exported[0], "net").right("pgd20")
    assert (one.right("transfer:net:pgd20") == white_box).all(), "the same network, in float32"
    for words, complaint in (
        (("--attacks", "pgd20,aa"), "aa, pgd20 would need"),
        (("--masking", 5), "gradient masking would need"),
        (("--std", "1"), "normalisation inside"),
    ):
        found = cli("eval", file, *words, *results)
        assert found.exit_code == 2
        assert complaint in found.output


def test_what_cannot_be_had_of_an_onnx_file_is_one_sentence(
    exported: tuple[Path, str], results: Path, tmp_path: Path
) -> None:
    file = exported[0] / "net.onnx"
    (tmp_path / "torn.onnx").write_bytes(file.read_bytes()[:1000])
    three = build("cnn-4", classes=3, channels=1).eval()
    graphs.write(three, torch.rand(4, 1, 8, 8), tmp_path / "three.onnx", "onnx", {})
    for words, complaint in (
        (("eval", tmp_path / "torn.onnx"), "cannot be read as ONNX"),
        (("eval", tmp_path / "three.onnx"), "expected logits (2, 10)"),
        (("eval", exported[0] / "net.pt"), "missing option '--arch'"),
        (("run", "--student", "onnx", "--dry-run"), "judged by `adbench eval`"),
        (("run", "--methods", "rslad", "--teacher", f"onnx@{file}", "--dry-run"), "no gradients"),
        (("export", results, "--square-images", 3, "--out", tmp_path), "is for --quantise"),
        (("eval", file, "--fast-aa"), "has no other search"),
        (("eval", file, "--arch", "cnn-4"), "has its architecture inside"),
        (("cross", "--results", exported[0] / "records"), "needs two finished networks"),
    ):
        found = cli(*words)
        assert found.exit_code == 2, found.output
        assert complaint in found.output
        assert "Traceback" not in found.output


def test_a_graph_for_one_image_at_a_time_takes_many(tmp_path: Path) -> None:
    need_onnx()
    network = build("cnn-4", classes=3, channels=1).eval()
    program = torch.export.export(network, (torch.rand(2, 1, 8, 8),))
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "fixed.onnx")  # type: ignore[union-attr]
    x = torch.rand(5, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(OnnxNetwork(tmp_path / "fixed.onnx", 1)(x), network(x), atol=1e-6, rtol=0)
