"""By how much ONNX and torch.export differ from the network itself, for every built-in kind of student.

    python benchmarks/exports.py [IMAGES]

The largest difference of a logit on so many random images (1,000 by default) of 32 x 32, beside the largest logit. Some
minutes on two cores; needs the extra `onnx`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from adbench.models import Network, build
from adbench.weights import graphs

STUDENTS = ("rn18", "rn34", "rn56", "prn18", "mn-v2", "wrn-10-2", "dm-wrn-10-2", "cnn-16")
"""The named students, and one of each family that is built of numbers."""


def lively(student: str) -> Network:
    """A network whose batch-norm has statistics, whose logits are as large as trained ones', and that normalises."""
    torch.manual_seed(0)
    network = build(student, classes=10, channels=3, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))
    with torch.no_grad():
        network(torch.rand(32, 3, 32, 32))
        network.eval()
        scale = 10 / network(torch.rand(8, 3, 32, 32)).abs().max()
        for parameter in network.classifier.parameters():
            parameter.mul_(scale)
    return network


def main() -> None:
    images = torch.rand(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, 3, 32, 32)
    with tempfile.TemporaryDirectory() as folder:
        for student in STUDENTS:
            network = lively(student)
            with torch.no_grad():
                largest = float(network(images).abs().max())
            files = {kind: Path(folder) / f"net{suffix}" for kind, suffix in graphs.SUFFIXES.items()}
            away = {kind: graphs.write(network, images, file, kind, {}) for kind, file in files.items()}
            told = ", ".join(f"{kind} {difference:.1e}" for kind, difference in away.items())
            print(f"{student:12} {len(images):,} images: {told} (largest logit {largest:.1f})", flush=True)


if __name__ == "__main__":
    main()
