"""Networks as graphs that run without adbench: ONNX and torch.export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import cli, run

from adbench.errors import UserError
from adbench.models import Network, build
from adbench.results import record
from adbench.weights import graphs
from adbench.weights.networks import dataset_of, network_of

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
    monkeypatch.setattr("adbench.cli.export.find_spec", lambda _: None)
    found = cli("export", results, "--out", tmp_path / "out", "--format", "onnx")
    assert found.exit_code == 2
    assert "[onnx]" in found.output
    assert not (tmp_path / "out").exists()
