"""A worker: how a process is set up for cells, runs one and reports events."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adbench.errors import Caution, UserError
from adbench.execution.execute import execute
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.plugin_code import Code
from adbench.registry import METHODS, MODELS

Send = Callable[[dict[str, Any]], None]


def set_up_torch(place: Place, threads: int) -> None:
    """Set the number of threads, full float32 (no TF32 but where `Precision` allows it), and on a CPU determinism."""
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(place.torch_device.type == "cpu")


@contextmanager
def safe_path() -> Iterator[None]:
    """Within, Python processes that are started do not look for modules in the working folder.

    multiprocessing starts its servers with `python -c`, which would take a `torch.py` that lies there for torch.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


@dataclass(frozen=True)
class Plugins:
    """The files of a run's methods and networks, as its first process read them."""

    methods: dict[Path, Code]
    networks: list[tuple[Path, str, Code]]


def plugins_in_use() -> Plugins:
    """Those that this process was told of."""
    return Plugins(METHODS.files(), MODELS.members())


def set_up_worker(place: Place, threads: int, plugins: Plugins) -> None:
    """Set up a fresh process for cells: torch and the plugins of the run."""
    warnings.simplefilter("ignore", Caution)  # the planning process has printed them
    set_up_torch(place, threads)
    for path, code in plugins.methods.items():
        METHODS.add_file(path, code)
    for path, name, code in plugins.networks:
        MODELS.add_member(path, name, code)


def run_cell(cell: Cell, place: Place, send: Send, every: float = 0.2) -> None:
    """Run one cell and send its events, the final one last. every: least seconds between two batch events."""
    last = 0.0

    def report(event: dict[str, Any]) -> None:
        nonlocal last
        # There may be a thousand batches a second; the display needs a few.
        if event["what"] != "batch" or time.monotonic() - last > every:
            last = time.monotonic()
            send(event)

    try:
        record = execute(cell, place, report)
    except UserError as error:  # the folder cannot be written or locked: no failure of the cell
        send({"what": "refused", "why": str(error)})
        return
    send({"what": "record", "record": record} if record else {"what": "busy"})
