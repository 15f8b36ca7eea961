"""Processes forked from a server that has imported everything: to start Python and torch anew takes seconds each."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# torch.optim imports torch._dynamo when it is first used; the digits are read with sklearn.
PRELOADED = [
    "forked",
    "adbench.cli",
    "adbench.execution.runner",
    "adbench.execution.cost",
    "adbench.report.writer",
    "torch._dynamo",
    "torch.distributed",
    "sklearn.datasets",
    "matplotlib.pyplot",
    *(f"adbench.methods.{name}" for name in ("las_at", "mtard", "natural", "pgd_at", "rslad", "trades")),
]


def context() -> Any:
    """Whose `Process` is forked from the server. It is the server of adbench's own workers too."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def _run(function: Callable[..., object], words: tuple[Any, ...], environment: dict[str, str], said: Path) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    with said.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*words)


def start(function: Callable[..., object], *words: Any, said: Path, **environment: str) -> BaseProcess:
    """A process that calls a function of a module, and what it prints goes to the file `said`."""
    process: BaseProcess = context().Process(target=_run, args=(function, words, environment, said))
    process.start()
    return process


def adbench(*words: str) -> None:
    """One command, for `start` and `ranks`."""
    from adbench.cli import main

    sys.argv = ["adbench", *words]
    main(list(words))


def ranks(size: int, function: Callable[..., object], *words: Any, said: Path) -> list[BaseProcess]:
    """The processes of one training, as torchrun starts them: which is which is in their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "forked"}
    return [
        start(function, *words, said=said, **meeting, **sizes, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(size)
    ]
