"""LaTeX and Markdown stay the bytes that they were, until somebody means to change them.

After a change that is meant: python tests/test_report_snapshots.py, and look at what git shows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from synthetic import add

from adbench.report import render
from adbench.report import writer as report
from adbench.report.tables import robustness
from adbench.report.view import View
from adbench.results.record import read_all
from adbench.results.runs import collect

SNAPSHOTS = Path(__file__).parent / "snapshots"


def records(results: Path) -> None:
    """Three methods, two teachers, three seeds: best, second, tied, missing, failed, and a name that means mischief."""
    add(results, kind="teacher", label="robust", student="wrn-10-2", seed=None, metrics={"pgd20": 0.62, "aa": 0.55})
    add(results, kind="teacher", label="strong", student="wrn-10-2", seed=None, metrics={"pgd20": 0.70, "aa": 0.65})
    for teacher, worth in (("robust", 0.0), ("strong", 0.02)):
        for method, share in (("ard", 0.40), ("rslad", 0.43), ("smaraad", 0.44)):
            for seed in range(3):
                aa = share + worth + 0.004 * seed * (1 if method == "rslad" else -1)
                metrics = {
                    "clean": 0.9 - share / 10,
                    "pgd20": aa + 0.05,
                    "aa": aa,
                    "transfer:p:pgd20": 0.7 + share / 10,
                }
                add(
                    results,
                    method=method,
                    teacher=teacher,
                    seed=seed,
                    metrics=metrics,
                    outcomes=False,
                    passes={"student": 11, "total": 22},
                    per_class=True,
                )
    add(results, method="pgd-at", metrics={"clean": 0.88, "aa": 0.402}, outcomes=False)
    add(
        results,
        method="mine",
        label=r"<b>a_b</b> & 100% $x$ {~^\} `#|*",
        teacher="robust",
        metrics={"aa": 0.36},
        outcomes=False,
    )
    add(results, method="iad", teacher="robust", error="out of memory")


def texts(results: Path) -> dict[str, str]:
    """What is compared: the tables of two kinds in two languages."""
    view = View(results, list(read_all(results)))
    runs = collect(view.records, "student")
    (white_box,), (transfer,) = robustness.white_box(runs, view), robustness.transfer(runs, view)
    return {
        "whitebox.tex": render.latex(white_box),
        "whitebox.md": render.markdown(white_box),
        "transfer.tex": render.latex(transfer),
        "transfer.md": render.markdown(transfer),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    results = tmp_path_factory.mktemp("results")
    records(results)
    return texts(results)


@pytest.mark.parametrize("name", ["whitebox.tex", "whitebox.md", "transfer.tex", "transfer.md"])
def test_tables_are_spelt_as_they_were(made: dict[str, str], name: str) -> None:
    assert made[name] == (SNAPSHOTS / name).read_text(encoding="utf-8")


def test_the_whole_report_has_the_same_bytes_every_time(tmp_path: Path) -> None:
    records(tmp_path / "results")
    formats = ("latex", "markdown", "csv", "parquet")
    first, second = (
        {
            path.relative_to(out).as_posix(): path.read_bytes()
            for path in report.write(tmp_path / "results", out, formats=formats)
        }
        for out in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        records(Path(folder))
        SNAPSHOTS.mkdir(exist_ok=True)
        for name, text in texts(Path(folder)).items():
            (SNAPSHOTS / name).write_text(text, encoding="utf-8")
