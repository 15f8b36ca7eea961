"""A finished network as a graph that runs without adbench: ONNX, and torch.export's .pt2.

Both take images as float32 (N, C, H, W) in [0, 1], any number at a time, and give logits (N, classes); the
normalisation is inside. What was written is loaded again and has to give the network's logits.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adbench.errors import UserError
from adbench.models import Network
from adbench.system import files

OPSET = 18
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-5
"""Largest difference of a logit, relative to the network's largest where that is above 1."""


def write(network: Network, x: Tensor, path: Path, kind: str, said: Mapping[str, str]) -> float:
    """Write the graph of a network to `path`, load it again, and return by how much a logit of it differs at most.

    x: (N, C, H, W) images in [0, 1] to compare on. kind: "onnx" or "torch.export". said: what the file's metadata has.
    Raises UserError where the network cannot be written as one graph, and, the file removed, where it gives others.
    """
    said = {**said, "input": INPUT, "input_size": json.dumps(list(x.shape[1:])), "input_range": "[0, 1]"}
    writing, reading = _FORMS[kind]
    with torch.no_grad():
        due = network(x)
    try:
        # A .pt2 holds the images that it was made with, of a view all that it is a part of.
        files.write_bytes(path, writing(network, x[:2].clone(), said))
        found = reading(path)(x)
    except UserError:
        raise
    except Exception as error:  # of many kinds: operations that the format has not, control flow on values
        path.unlink(missing_ok=True)
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the network cannot be written as {kind} ({type(error).__name__}: {reason})") from error
    away = float((found - due).abs().max())
    if not away <= TOLERANCE * max(1.0, float(due.abs().max())):
        path.unlink()
        raise UserError(f"'{path}' gave logits that differ from the network's by {away:.2g}; it was removed")
    return away


def _program(network: Network, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(network.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _written_pt2(network: Network, x: Tensor, said: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_program(network, x), buffer, extra_files={"metadata.json": json.dumps(dict(said), indent=1)})
    return buffer.getvalue()


def _read_pt2(path: Path) -> Callable[[Tensor], Tensor]:
    module = torch.export.load(path).module()

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = module(x)
        return logits

    return forward


def _written_onnx(network: Network, x: Tensor, said: Mapping[str, str]) -> bytes:
    import onnx

    program = torch.onnx.export(
        _program(network, x),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {**said, "opset": str(OPSET), "output": OUTPUT})
    content: bytes = model.SerializeToString()
    return content


def _read_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run([OUTPUT], {INPUT: x.numpy()})[0]))

    return forward


_FORMS = {"onnx": (_written_onnx, _read_onnx), "torch.export": (_written_pt2, _read_pt2)}
"""How each kind is written to bytes, and read as a function of images."""
SUFFIXES = {"onnx": ".onnx", "torch.export": ".pt2"}
