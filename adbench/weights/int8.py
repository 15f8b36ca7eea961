"""A network in whole numbers of eight bits: an ONNX file quantised by onnxruntime, calibrated on training images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adbench.data import Split
from adbench.data.batches import to_float
from adbench.errors import UserError
from adbench.system import files
from adbench.weights import graphs

CALIBRATION = 512
"""Training images, evenly spaced among all, whose activations set the scales."""
BATCH = 64


def write(source: Path, path: Path, train: Split) -> int:
    """Write the network of the ONNX file `source` to `path`, weights by channel and activations by tensor as int8.

    Returns how many images it was calibrated on. Normalisation and logits stay outside: the file takes and gives what
    `source` does. Raises UserError where onnxruntime cannot quantise it.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    places = torch.linspace(0, len(train) - 1, min(CALIBRATION, len(train))).long()
    images = to_float(train.images[places])
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        try:
            quant_pre_process(str(source), str(prepared))
            quantize_static(
                str(prepared),
                str(written),
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # of many kinds
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"'{source}' cannot be quantised ({type(error).__name__}: {reason})") from error
        model = onnx.load(written)
    # Accuracies and record are the float network's; int8 has a record of its own.
    props = onnx.load(source).metadata_props
    said = {entry.key: entry.value for entry in props if entry.key not in ("accuracy", "record")}
    said |= {"quantised": f"int8, weights by channel, calibrated on {len(images)} training images"}
    onnx.helper.set_model_props(model, said)
    files.write_bytes(path, model.SerializeToString())
    return len(images)


class _Reader:
    """Batches of images, as onnxruntime's calibration asks for them."""

    def __init__(self, images: Tensor) -> None:
        self.parts = iter(torch.split(images, BATCH))

    def get_next(self) -> dict[str, Any] | None:
        part = next(self.parts, None)
        return None if part is None else {graphs.INPUT: part.numpy()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice that onnxruntime's tools log to the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
