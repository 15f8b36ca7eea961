"""What a network takes where it is used: measured when it is judged, told by the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from synthetic import add

from adbench.evaluation.footprint import MOST, footprint
from adbench.models import build
from adbench.models.flops import multiply_adds_of
from adbench.report import footprints
from adbench.report.view import View
from adbench.results import document
from adbench.results.record import read_all
from adbench.results.runs import Run, collect


def test_it_counts_arithmetic_and_bytes_and_changes_nothing() -> None:
    network = build("cnn-4", classes=10, channels=1, mean=[0.5], std=[0.2]).eval()
    before, drawn = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    found = footprint(network, (1, 8, 8))
    assert found.bytes == 4 * sum(p.numel() for p in network.parameters()) + sum(
        b.numel() * b.element_size() for b in network.buffers()
    )
    assert found.multiply_adds == multiply_adds_of("cnn-4", 10, (1, 8, 8))
    assert 0 < found.latency < 1
    assert 1 <= found.latency_runs <= MOST
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def measured(results: Path, latency: float, machine: str = "CPU (1 threads)", **what: Any) -> None:
    path = add(results, metrics={"clean": 0.9, "aa": 0.5, **what.pop("metrics", {})}, **what)
    data = document.opened(path)
    footprint = {"multiply_adds": 2_000_000, "bytes": 2**20, "latency": latency, "latency_runs": 100}
    data["model"]["footprint"] = footprint
    data["provenance"]["device"] = machine
    document.write(path, data)


def students(results: Path) -> tuple[list[Run], View]:
    records = list(read_all(results))
    return collect(records, "student"), View(results, records)


def test_latencies_of_several_machines_are_rows_of_their_own_and_those_of_one_a_median(tmp_path: Path) -> None:
    for seed, latency in enumerate((0.002, 0.009, 0.003)):
        measured(tmp_path, latency, seed=seed)
    measured(tmp_path, 0.0004, "NVIDIA H100", method="trades", metrics={"aa": 0.6})
    (table,), plots = footprints.contents(*students(tmp_path))
    assert [[cell.text for cell in row.cells[:6]] for row in table.rows] == [
        ["cnn-16", "NVIDIA H100", "11.2", "2", "1", "0.4"],
        ["cnn-16", "CPU (1 threads)", "11.2", "2", "1", "3"],
    ]
    assert {row.cells[6].text for row in table.rows} == {"TRADES"}
    assert {row.cells[7].text for row in table.rows} == {"60.00"}
    assert not plots, "one student has one size"
    (tmp_path / "one").mkdir()
    measured(tmp_path / "one", 0.002)
    (table,), _ = footprints.contents(*students(tmp_path / "one"))
    assert [column.title for column in table.columns][:2] == ["Student", "Parameters (M)"]
    assert "on CPU (1 threads)" in table.caption


def test_accuracy_is_drawn_against_every_size_where_students_differ(tmp_path: Path) -> None:
    measured(tmp_path, 0.002)
    measured(tmp_path, 0.001, student="cnn-4", metrics={"aa": 0.4})
    _, (plot,) = footprints.contents(*students(tmp_path))
    assert plot.data is not None
    assert [panel.x.title for panel in plot.data.panels] == [size.title for size in footprints.SIZES]
    (series,) = plot.data.panels[-1].series
    assert [(round(p.x, 6), p.y, p.note.partition(";")[0]) for p in series.points] == [
        (1.0, 40.0, "cnn-4"),
        (2.0, 50.0, "cnn-16"),
    ]


def test_records_from_before_tell_none(tmp_path: Path) -> None:
    add(tmp_path, metrics={"clean": 0.9, "aa": 0.5})
    assert footprints.contents(*students(tmp_path)) == ((), ())
