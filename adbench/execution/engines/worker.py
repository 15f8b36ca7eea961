"""What every process does that runs cells, and what it says of them."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adbench.errors import Caution, UserError
from adbench.execution.execute import execute
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.plugin_code import Code
from adbench.registry import METHODS

Say = Callable[[dict[str, Any]], None]


def prepare_torch(place: Place, threads: int) -> None:
    """Its share of the cores, float32 that is float32, determinism."""
    import torch

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


def begin(place: Place, threads: int, plugins: Mapping[Path, Code]) -> None:
    """Make a fresh process ready for cells."""
    warnings.simplefilter("ignore", Caution)  # the process that planned the cells has said them
    prepare_torch(place, threads)
    for path, code in plugins.items():
        METHODS.add_file(path, code)


def work(cell: Cell, place: Place, say: Say, every: float = 0.2) -> None:
    """Carry out one cell and say its last word. every: least seconds between two batches that are told of."""
    last = 0.0

    def report(event: dict[str, Any]) -> None:
        nonlocal last
        # Batches may come by the thousand a second; the display needs a few.
        if event["what"] != "batch" or time.monotonic() - last > every:
            last = time.monotonic()
            say(event)

    try:
        record = execute(cell, place, report)
    except UserError as error:  # not the cell's fault: its folder cannot be written, or locks do not work there
        say({"what": "refused", "why": str(error)})
        return
    say({"what": "record", "record": record} if record else {"what": "busy"})
