"""Fixtures for real data, which not every checkout has: a test that asks for one is skipped, visibly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def _shared() -> Path:
    folder = Path(os.environ.get("ADBENCH_TEST_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared test data in '{folder}' (set ADBENCH_TEST_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared test data: ADBENCH_TEST_SHARED, else `shared` beside the checkout."""
    return _shared()


@pytest.fixture(scope="session")
def cifar10_npz(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All of CIFAR-10 as one `.npz` (x_train, y_train, x_test, y_test; uint8, NHWC).

    ADBENCH_CIFAR10 names one, or a folder in torchvision's layout; else it is made of the shared sprites.
    """
    given = Path(os.environ.get("ADBENCH_CIFAR10", ""))
    if given.is_file():
        yield given
        return
    made = tmp_path_factory.mktemp("cifar10") / "cifar10.npz"
    if "ADBENCH_CIFAR10" in os.environ:
        from adbench.data.sources import cifar10

        official = cifar10(given)
        np.savez(made, **{key: getattr(official, key) for key in ("x_train", "y_train", "x_test", "y_test")})
    else:
        data = _shared() / "data"
        if not (data / "cifar10").is_dir():
            pytest.skip(f"no CIFAR-10 in '{data}' (set ADBENCH_CIFAR10 to a .npz or a torchvision folder)")
        subprocess.run([sys.executable, data / "make_npz.py", data / "cifar10", made], check=True)
    yield made
    made.unlink()  # 180 MB, which pytest would keep for three sessions
