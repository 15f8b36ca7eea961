"""The network in an ONNX file: what it says of images, and no gradient.

Needs the extra `onnx`, which is imported when a file is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adbench.data import Dataset
from adbench.errors import UserError
from adbench.models import Network
from adbench.models.names import check_onnx
from adbench.system.files import sha256


class OnnxNetwork(Network):
    """A graph that takes images (B, C, H, W) in [0, 1] as float32 and gives logits (B, classes), run by onnxruntime on
    the CPU.

    Its tensors are parameters here, which its hash is taken of, beside the graph's own.
    """

    def __init__(self, path: Path, channels: int) -> None:
        """Raises UserError for a file that is no such graph."""
        super().__init__(channels=channels)
        import onnx
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            initializers = onnx.load(path).graph.initializer
        except Exception as error:  # onnxruntime's have no common class
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"'{path}' cannot be read as ONNX ({reason})") from error
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            found = ", ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs)
            raise UserError(f"'{path}' takes {found}; expected one input of images as float32 (N, C, H, W)")
        self.input, self.output = inputs[0].name, outputs[0].name
        fixed = inputs[0].shape[0]
        self.at_a_time = fixed if isinstance(fixed, int) else None
        self.tensors = nn.ParameterList(
            nn.Parameter(_tensor(onnx.numpy_helper.to_array(one)), requires_grad=False) for one in initializers
        )
        digest = torch.frombuffer(bytearray.fromhex(sha256(path)), dtype=torch.uint8)
        self.register_buffer("graph", digest)

    @property
    def shows_features(self) -> bool:
        return False

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x.detach().cpu(), self.at_a_time) if self.at_a_time else (x.detach().cpu(),)
        return torch.cat([self._logits(part) for part in parts]).to(x.device)

    def _logits(self, x: Tensor) -> Tensor:
        """Of images, at most as many as a graph of a fixed number takes."""
        lacking = self.at_a_time - len(x) if self.at_a_time else 0
        padded = torch.cat([x, x.new_zeros(lacking, *x.shape[1:])]) if lacking else x
        found: Any = self.session.run([self.output], {self.input: padded.numpy()})[0]
        return torch.from_numpy(np.asarray(found, dtype=np.float32))[: len(x)]


def load(path: Path, dataset: Dataset, due: str | None = None) -> OnnxNetwork:
    """The network of a file for a dataset. due: SHA-256 of the file.

    Raises UserError where the file is another one, no network for its images, or has another number of classes.
    """
    check_onnx(f"'{path}'")
    if due is not None and (digest := sha256(path)) != due:
        raise UserError(f"'{path}' has SHA-256 {digest[:12]}..., it was planned with {due[:12]}...; run again")
    network = OnnxNetwork(path, dataset.image_shape[0])
    shape = (2, *dataset.image_shape)
    try:
        logits = network(torch.zeros(shape))
    except Exception as error:  # as above
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"'{path}' does not take images of {dataset.image_shape} ({reason})") from error
    if logits.shape != (due_shape := (2, dataset.classes)):
        raise UserError(
            f"'{path}' gives {tuple(logits.shape)} for two images, expected logits {due_shape} for {dataset.name}"
        )
    return network


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """A tensor of the file; of a type that torch has not, its bytes."""
    array = np.array(array)  # onnx gives views that cannot be written to
    try:
        return torch.from_numpy(array)
    except TypeError:
        return torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
