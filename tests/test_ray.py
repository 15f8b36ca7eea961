"""Cells on a Ray cluster: two nodes on this machine, of which one is killed in the middle."""

from __future__ import annotations

import builtins
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import PLUGIN, TEACHER, lasting, records, run

from adbench.errors import UserError
from adbench.execution.engines import ray as engine
from adbench.execution.place import Place
from adbench.results import record
from adbench.system import locks

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("pgd-at", "rslad", "mine")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head and a second node, a cell at a time each, on loopback ports."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray>=2.40')")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 300, "health_check_failure_threshold": 3}
    with engine._own_signals():
        made = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
        )
        made.second = made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def _worker(raylet: int, results: Path) -> int | None:
    """A process that this raylet started and that holds a cell."""
    for path in results.rglob(locks.FILE):
        with suppress(OSError, ValueError):  # no note: nobody holds it
            holder = json.loads(path.read_text(encoding="utf-8"))["pid"]
            parent = Path(f"/proc/{holder}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
            if parent == str(raylet) and locks.holder(path.parent):
                return int(holder)
    return None


def _lose_a_node(cluster: Any, results: Path, ended: threading.Event) -> None:
    """Kill the second node with a cell on it, when a third of the matrix is done."""
    raylet = cluster.second.all_processes["raylet"][0].process.pid
    while not ended.wait(0.02):
        worker = _worker(raylet, results)
        if worker is None or len(list(results.rglob("record.json"))) < 3:
            continue
        # A worker outlives its raylet for a moment, in which it could end its cell.
        try:
            os.kill(worker, signal.SIGSTOP)
        except ProcessLookupError:
            continue
        if _worker(raylet, results) != worker:
            os.kill(worker, signal.SIGCONT)
            continue
        try:
            cluster.remove_node(cluster.second, allow_graceful=False)
        finally:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        return


@pytest.mark.slow
def test_two_nodes_of_which_one_is_lost_end_in_the_records_of_one_process(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TEACHER, encoding="utf-8")
    Path("mine.py").write_text(PLUGIN, encoding="utf-8")
    words = ("--methods", ",".join(METHODS), "--seeds", "2", "--teacher", "tiny.toml", "--plugin", "mine.py")
    settings = {"train__epochs": "8", "data__train_images": "128"}

    ended = threading.Event()
    killer = threading.Thread(target=_lose_a_node, args=(cluster, tmp_path / "spread", ended))
    killer.start()
    spread = run(
        *words, "--results", "spread", "--engine", "ray", "--address", cluster.address, "--threads", "1", **settings
    )
    ended.set()
    killer.join()
    assert spread.exit_code == 0, spread.output
    assert "it goes on in another" in spread.output, "no cell was lost with the node"

    here = run(*words, "--results", "here", "--jobs", "2", "--threads", "1", **settings)
    assert here.exit_code == 0, here.output
    one, other = (lasting(records(Path(folder))) for folder in ("here", "spread"))
    assert len(one) == 2 * len(METHODS) + 1
    assert other == one
    assert all(record.finished(Path("spread") / path) for path in other)
    commands = {found["provenance"]["command"] for found in records(Path("spread")).values()}
    assert len(commands) == 1, "a record says how it was asked for, not how Ray starts a worker"
    assert not list(Path("spread").rglob("*.tmp"))
    assert not [path for path in Path("spread", engine.PROBE).iterdir() if path.name != locks.FILE]


# What is refused


def test_without_ray_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    really = builtins.__import__

    def without_ray(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ImportError(name)
        return really(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(UserError, match=r"needs Ray, which is not installed: pip install 'ray>=2\.40'"):
        engine._ray()


def test_an_address_where_no_cluster_is_is_refused_at_once() -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray>=2.40')")
    result = run("--methods", "pgd-at", "--engine", "ray", "--address", "127.0.0.1:1")
    assert result.exit_code == 2
    assert "no Ray cluster at '127.0.0.1:1'" in result.stderr
    assert "`ray start --head` begins one" in result.stderr


def _context(home: Path) -> engine.RunContext:
    results = home / "results"
    return engine.RunContext(Place(results, home, "cpu"), 1, {}, home, [], results / engine.PROBE / "1")


def test_a_node_that_does_not_share_the_folders_is_unfit(tmp_path: Path) -> None:
    context, same = _context(tmp_path), engine.versions()
    context.probe.parent.mkdir(parents=True)
    said = engine._node_problem(replace(context, home=tmp_path / "missing"), same)
    assert said is not None
    assert "where adbench was started, is not there" in said
    said = engine._node_problem(context, same)
    assert said is not None
    assert f"it does not see the driver's results folder '{tmp_path / 'results'}'" in said
    context.probe.touch()
    said = engine._node_problem(context, same)
    assert said is not None
    assert "file locks" in said
    assert "do not reach it" in said
    with locks.locked(context.probe.parent):
        assert engine._node_problem(context, same) is None
        said = engine._node_problem(context, same | {"torch": "1.0"})
    assert said is not None
    assert "the driver 1.0; use one environment on all nodes" in said


def test_a_task_on_a_node_that_joined_without_the_folders_ends_the_run(tmp_path: Path) -> None:
    told = engine._cell(None, 0, None, _context(tmp_path))  # type: ignore[arg-type]
    assert told["what"] == "refused"
    assert "does not see the driver's results folder" in told["why"]


def test_shares_of_gpus_are_for_gpus(tmp_path: Path) -> None:
    cpu, gpu, second = (Place(tmp_path, tmp_path, device) for device in ("cpu", "cuda", "cuda:1"))
    assert engine.RayCluster().gpu_share(cpu) == 0
    assert engine.RayCluster().gpu_share(gpu) == 1
    assert engine.RayCluster(gpus=0.25).gpu_share(gpu) == 0.25
    with pytest.raises(UserError, match="cells run on the CPU"):
        engine.RayCluster(gpus=0.25).gpu_share(cpu)
    with pytest.raises(UserError, match="write --device cuda, not cuda:1"):
        engine.RayCluster().gpu_share(second)


@pytest.mark.parametrize(("option", "value"), [("--address", "auto"), ("--gpus", "0.5")])
def test_rays_options_without_ray_are_refused(option: str, value: str) -> None:
    result = run("--methods", "pgd-at", option, value)
    assert result.exit_code == 2
    assert f"{option} is for --engine ray" in result.stderr
