"""Cells as Ray tasks, on one machine with many GPUs or on many machines.

All nodes work in one results folder, under one path: that is where a student finds its teacher, where a cell goes on
after the loss of a node, and whose locks keep two of them off the same cell. Every node is asked at the start whether
it sees that folder and the driver's lock in it. Ray's own retries are off: the runner starts a cell again.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adbench import REVISION, __version__
from adbench.errors import UserError
from adbench.execution.engines import FINAL_EVENTS, Emit
from adbench.execution.engines.worker import Plugins, plugins_in_use, run_cell, set_up_worker
from adbench.execution.place import Place
from adbench.experiment.cell import Cell
from adbench.system import files, locks, signals
from adbench.system.machine import cores

PROBE = ".ray"
"""A folder in the results during a run; a node that does not see it has another file system there."""
GRACE = 60.0
"""Seconds that tasks have to end when they are cancelled."""


@dataclass(frozen=True)
class RayCluster:
    """Cells on a Ray cluster.

    address: of a running cluster ("auto": the one that this machine belongs to); None starts one on this machine, for
    as long as the run takes. gpus, threads: each cell's share, in GPUs (0.25 puts four cells on one) and in processor
    cores; on a CPU, figures can differ in the last bits between numbers of threads. jobs: most cells at a time; None
    for as many as there is room for.
    """

    address: str | None = None
    gpus: float | None = None
    threads: int = 1
    jobs: int | None = None

    def engine(self, cells: list[Cell], place: Place, isolated: bool, emit: Emit) -> RayEngine:
        """The engine; `cells` and `isolated` are for others, since tasks are apart in any case."""
        return RayEngine(self, place, emit)

    @property
    def share(self) -> int:
        """The threads of one cell."""
        return self.threads

    def gpu_share(self, place: Place) -> float:
        """GPUs of one cell. Raises UserError where that and the device do not fit."""
        on_gpu = place.torch_device.type == "cuda"
        if self.gpus and not on_gpu:
            raise UserError("a share of a GPU is asked for, but cells run on the CPU; leave --gpus out or add --device")
        if on_gpu and place.torch_device.index is not None:
            raise UserError(f"Ray chooses the GPU of each cell; write --device cuda, not {place.device}")
        return (1.0 if self.gpus is None else self.gpus) if on_gpu else 0.0


@dataclass(frozen=True)
class RunContext:
    """What a node needs to know of the run. home, argv: the working folder and command line of the driver."""

    place: Place
    threads: int
    plugins: Plugins
    home: Path
    argv: list[str]
    probe: Path


class RayEngine:
    """One run's connection to a cluster. Raises UserError where there is no Ray, no cluster, or a node is unfit."""

    def __init__(self, cluster: RayCluster, place: Place, emit: Emit) -> None:
        self.ray = _ray()
        self.emit, self.jobs = emit, cluster.jobs or math.inf
        self.numbers = itertools.count()
        self.tasks: dict[Any, tuple[int, Cell]] = {}
        absolute = Place(place.results.absolute(), place.data_dir.absolute(), place.device)
        probe = absolute.results / PROBE / f"{os.getpid()}-{time.time_ns()}"
        self.context = RunContext(absolute, cluster.threads, plugins_in_use(), Path.cwd(), sys.argv, probe)
        share = cluster.gpu_share(place)
        with signals.deferred(), _own_signals():
            _connect(self.ray, cluster.address)
        try:
            self._check_nodes(share)
            # On this node: the loss of another must not silence the rest.
            here = self._only_on(self.ray.get_runtime_context().get_node_id())
            self.mailbox = self.ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
            self.task = self.ray.remote(_cell).options(
                num_cpus=cluster.threads, num_gpus=share, max_retries=0, scheduling_strategy="SPREAD"
            )
        except BaseException:
            self.stop(gently=False)
            raise

    def room(self) -> bool:
        return len(self.tasks) < self.jobs

    def start(self, cell: Cell) -> None:
        number = next(self.numbers)
        self.tasks[self.task.remote(self.mailbox, number, cell, self.context)] = number, cell

    def wait(self, seconds: float) -> None:
        if not self.tasks:
            time.sleep(seconds)
            return
        # An exception that a signal handler raises within Ray's compiled code is replaced by another.
        with signals.deferred():
            self._deliver(seconds)

    def _deliver(self, seconds: float) -> None:
        # Take all that are ready, but wait for one only: events come in meanwhile.
        self.ray.wait(list(self.tasks), num_returns=1, timeout=seconds)
        ready, _ = self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=0)
        cells = dict(self.tasks.values())
        for number, event in self.ray.get(self.mailbox.take.remote()):
            if number in cells:
                self.emit(cells[number].id, event)
        for task in ready:
            # The event of one may have ended others.
            if task in self.tasks:
                _, cell = self.tasks.pop(task)
                self.emit(cell.id, self._outcome(task))

    def _outcome(self, task: Any) -> dict[str, Any]:
        try:
            last: dict[str, Any] = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            return {"what": "died", "how": f"with {type(error).__name__} ({reason[:200]})"}
        return last

    def kill(self, cell: Cell) -> None:
        for task in [task for task, (_, running) in self.tasks.items() if running.id == cell.id]:
            del self.tasks[task]
            self.ray.cancel(task, force=True)
            self.ray.wait([task], timeout=GRACE)
        # The machine may be slow to end it.
        deadline = time.monotonic() + GRACE
        while locks.holder(cell.folder(self.context.place.results)) and time.monotonic() < deadline:
            time.sleep(0.1)

    def stop(self, *, gently: bool) -> None:
        if not self.ray.is_initialized():
            return
        tasks, self.tasks = list(self.tasks), {}
        if gently and tasks:
            for task in tasks:
                self.ray.cancel(task)
            self.ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
        for task in tasks:
            self.ray.cancel(task, force=True)
        self.context.probe.unlink(missing_ok=True)
        # Ends the cluster if this run started it, else only the connection.
        self.ray.shutdown()

    def _only_on(self, node: str) -> Any:
        strategies = self.ray.util.scheduling_strategies
        return strategies.NodeAffinitySchedulingStrategy(node, soft=False)

    def _check_nodes(self, share: float) -> None:
        """Ask every node whether it can run a cell. Raises UserError with the first that cannot."""
        have = self.ray.cluster_resources()
        for resource, needed, option in (("CPU", self.context.threads, "--threads"), ("GPU", share, "--gpus")):
            most = max((node["Resources"].get(resource, 0) for node in self.ray.nodes() if node["Alive"]), default=0)
            if needed > most:
                raise UserError(
                    f"a cell needs {needed:g} {resource}s, and no node of the cluster has more than {most:g} "
                    f"({have.get(resource, 0):g} in all); ask for less with {option}"
                )
        files.write_text(self.context.probe, "")
        ask = self.ray.remote(num_cpus=0, max_retries=2)(_node_problem)
        with locks.locked(self.context.probe.parent):
            asked = [
                (
                    node["NodeManagerHostname"],
                    ask.options(scheduling_strategy=self._only_on(node["NodeID"])).remote(self.context, versions()),
                )
                for node in self.ray.nodes()
                if node["Alive"]
            ]
            for host, answer in asked:
                try:
                    complaint = self.ray.get(answer, timeout=300)
                except self.ray.exceptions.RayError as error:
                    complaint = f"adbench does not start there ({' '.join(str(error).split())[-200:]})"
                if complaint:
                    raise UserError(f"node {host} of the Ray cluster: {complaint}")


class _Mailbox:
    """Events of the workers on all nodes, until the driver takes them."""

    def __init__(self) -> None:
        self.events: list[tuple[int, dict[str, Any]]] = []

    def put(self, number: int, event: dict[str, Any]) -> None:
        self.events.append((number, event))

    def take(self) -> list[tuple[int, dict[str, Any]]]:
        events, self.events = self.events, []
        return events


def _ray() -> Any:
    # Nothing leaves the machine that need not: Ray reports its usage to its authors otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise UserError("the engine 'ray' needs Ray, which is not installed: pip install 'ray>=2.40'") from error
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray's would end the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is not None:
            _check_reachable(address)
        # Ray puts the folder that it is started in on its workers' path, first, and with it whatever lies there.
        with chdir(os.sep):
            if address is None:
                ray.init("local", num_cpus=cores(), include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
            else:
                ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster at '{address}' ({' '.join(str(error).split())[:200]}); `ray start --head` begins one "
            f"(docs/cluster.md)"
            if address
            else f"Ray does not start on this machine: {' '.join(str(error).split())[:300]}"
        ) from error


def _check_reachable(address: str) -> None:
    """Raise OSError where nobody answers at HOST:PORT: Ray takes two minutes to find that out."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def versions() -> dict[str, str]:
    """Versions that must be equal on all nodes."""
    return {"adbench": f"{__version__} revision {REVISION}", "torch": torch.__version__}


def _node_problem(context: RunContext, wanted: Mapping[str, str]) -> str | None:
    """Runs on a node: why it cannot do cells of a run whose driver has these versions."""
    for name, version in wanted.items():
        if versions()[name] != version:
            return f"it has {name} {versions()[name]}, the driver {version}; use one environment on all nodes"
    if complaint := _missing_folder(context):
        return complaint
    if locks.holder(context.probe.parent) is None:
        return (
            f"file locks in '{context.place.results}' do not reach it; mount the file system with locks that do "
            f"(docs/cluster.md)"
        )
    return None


def _missing_folder(context: RunContext) -> str | None:
    """Why this node does not see the driver's folders."""
    if not context.home.is_dir():
        return f"'{context.home}', where adbench was started, is not there; start it in a folder that all nodes share"
    if not context.probe.is_file():
        results = context.place.results
        return f"it does not see the driver's results folder '{results}'; all nodes have to share it under one path"
    return None


def _cell(mailbox: Any, number: int, cell: Cell, context: RunContext) -> dict[str, Any]:
    """One cell as a Ray task; returns its final event, the others go through the mailbox."""
    # A node that joined later was not asked at the start.
    if complaint := _missing_folder(context):
        return {"what": "refused", "why": f"node {platform.node()} of the Ray cluster: {complaint}"}
    last: list[dict[str, Any]] = []

    def send(event: dict[str, Any]) -> None:
        if event["what"] in FINAL_EVENTS:
            last.append(event)
        else:
            mailbox.put.remote(number, event)

    # Datasets and teachers may be given by relative paths, and a record says how it was asked for.
    os.chdir(context.home)
    sys.argv = context.argv
    set_up_worker(context.place, context.threads, context.plugins)
    run_cell(cell, context.place, send, every=1.0)
    return last[0]
