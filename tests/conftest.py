"""Fixtures: a small trained network, and real data, which not every checkout has (tests of it are then skipped)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adbench.data import Split
from adbench.losses import cross_entropy
from adbench.models import build

ROOT = Path(__file__).resolve().parents[1]

# Test processes share the cores; more threads than cores would only wait for each other. Also in what they start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Coverage goes on after a test, and fixtures, that call pyautoattack itself, which leaves no trace function."""
    tracing = sys.gettrace()
    try:
        return (yield)
    finally:
        sys.settrace(tracing)


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


@pytest.fixture
def robust_teacher(shared: Path) -> Any:
    """The shared WRN-10-2, adversarially trained on CIFAR-10."""
    from adbench.weights.checkpoint import load

    net = build("wrn-10-2", classes=10)
    load(net, shared / "data" / "teachers" / "wrn-10-2_cifar10_linf.pt")
    return net


@pytest.fixture(scope="session")
def trained() -> tuple[Any, Any]:
    """A small network that is right on most of 40 images and breakable on many of them."""
    generator = torch.Generator().manual_seed(6)
    torch.manual_seed(0)
    centres = torch.rand(5, 1, 8, 8, generator=generator)
    y = torch.arange(200) % 5
    x = (centres[y] + 0.25 * torch.randn(200, 1, 8, 8, generator=generator)).clamp(0, 1)
    net = build("cnn-8", classes=5, channels=1)
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        cross_entropy(net(x), y).mean().backward()
        optimiser.step()
    return net.eval(), Split((255 * x[:40]).round().to(torch.uint8), y[:40])


@pytest.fixture(autouse=True)
def apart_from_other_tests() -> Iterator[None]:
    """What a test's commands leave in this process is gone after it: plugin files, threads, torch's determinism."""
    from adbench.registry import METHODS

    torch.set_num_threads(1)
    files, deterministic = dict(METHODS._files), torch.are_deterministic_algorithms_enabled()
    yield
    METHODS._files = files
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Commands take one thread."""
    from adbench.execution import runner

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runner, "threads_per_job", lambda _: 1)
        yield
