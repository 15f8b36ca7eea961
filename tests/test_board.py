"""The board: what is taken and what is refused, what checks and challenges do to a row, and that nothing of it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from test_page import PHONE, Visit, browser  # noqa: F401
from tiny import PLUGIN, TEACHER, cli, run

from adbench.attacks.linf import Start, ascend
from adbench.board import folders, rules, standings
from adbench.board.folders import Submission
from adbench.board.standings import groups, holm
from adbench.data import sources
from adbench.data.batches import to_float
from adbench.experiment import spelling
from adbench.experiment.config import ThreatModel, Train
from adbench.losses import margin
from adbench.registry import METHODS
from adbench.results import document, layout, record
from adbench.results.stats import wilson
from adbench.system.files import sha256
from adbench.weights import networks

SCRIPT = "<script>window.broken = 1</script>"
SETTINGS = {
    "train__epochs": "4",
    "train__batch_size": "64",
    "train__val_every": "4",
    "data__train_images": "600",
    "eval__attacks": '["pgd20"]',
}
WHOLE = ("--set", "eval.images=360")
"""All test images, which records spell as none."""


def recorded(results: Path, method: str) -> Path:
    """The record of the one student of a method."""
    (path,) = results.glob(f"digits/{method}/*/*/*/record.json")
    return path


def submitted(results: Path, out: Path, label: str, *more: str | Path) -> Any:
    return cli("board", "submit", results, "--label", label, "--weights", "https://host/w", "--out", out, *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three people, with weights: "honest" of PGD-AT, "plugin" of a method that says when it is imported,
    and "guided", whose teacher has the name of adbench's."""
    home = tmp_path_factory.mktemp("home")
    teacher = home / "digits-robust.toml"
    teacher.write_text(TEACHER, encoding="utf-8")
    plugin = home / "mine.py"
    plugin.write_text(f"open({str(home / 'ran')!r}, 'w').close()\nprint('IMPORTED')\n{PLUGIN}", encoding="utf-8")
    assert run("--methods", "pgd-at", "--results", home / "honest", *WHOLE, **SETTINGS).exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_files", "_codes", "_loaded", "_members"):
            patch.setattr(METHODS, name, {})
        brief = SETTINGS | {"train__epochs": "1", "data__train_images": "64"}
        assert (
            run("--plugin", plugin, "--methods", "mine", "--results", home / "plugin", *WHOLE, **brief).exit_code == 0
        )
    (home / "ran").unlink()
    guided = run("--jobs", "1", "--methods", "ard", "--teacher", teacher, "--results", home / "guided", *WHOLE, **brief)
    assert guided.exit_code == 0, guided.output
    for path in home.rglob(layout.RECORD):  # as if nothing of adbench were changed, whoever runs this
        data = json.loads(path.read_text(encoding="utf-8"))
        data["provenance"]["git_dirty"] = False
        document.write(path, data)
    return home


def inflate(results: Path, points: float) -> None:
    """Call so many broken images survivors of PGD-20, in everything that can be made to fit."""
    path = recorded(results, "pgd-at")
    data = json.loads(path.read_text(encoding="utf-8"))
    table = pd.read_parquet(path.parent / layout.OUTCOMES)
    broken = np.flatnonzero(table["clean"].to_numpy(bool) & ~table["pgd20"].to_numpy(bool))
    false = np.random.default_rng(0).permutation(broken)[: int(np.ceil(points / 100 * len(table)))]
    table.loc[false, "pgd20"] = True
    table.to_parquet(path.parent / layout.OUTCOMES, index=False)
    right = table["pgd20"].to_numpy(bool)
    classes = [[int(right[table["label"] == k].sum()), int((table["label"] == k).sum())] for k in range(10)]
    correct = int(right.sum())
    data["metrics"]["pgd20"] |= {
        "correct": correct,
        "value": correct / len(right),
        "ci_test": list(wilson(correct, len(right))),
        "per_class": classes,
    }
    data["outcomes"]["sha256"] = sha256(path.parent / layout.OUTCOMES)
    document.write(path, data)


@pytest.fixture(scope="module")
def made(home: Path) -> Path:
    """A board of the repository's own results and three submissions, one with inflated survivors, one of a plugin."""
    board = home / "board"
    shutil.copytree(home / "honest", home / "inflated")
    inflate(home / "inflated", 3)
    for name in ("honest", "inflated"):
        result = submitted(home / name, board / "submissions" / name, name)
        assert result.exit_code == 0, result.output
    plugin = submitted(home / "plugin", board / "submissions/plugin", SCRIPT, "--plugin", home / "mine.py")
    assert plugin.exit_code == 0, plugin.output
    own(board / "submissions" / "own")
    return board


def own(folder: Path) -> None:
    """The repository's own results as a submission: those of `mini` where it has them, else SmaraAD's on digits."""
    results = next(path for name in ("mini", "smaraad") if (path := ROOT / "results" / name).is_dir())
    for path in sorted(results.rglob(layout.RECORD)):
        found = record.read(path)
        if found.kind == "student" and found.done and not rules.unranked(found):
            for kept in (path, path.parent / layout.OUTCOMES, path.parents[1] / layout.LOG):
                target = folder / "cells" / kept.relative_to(results)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(kept, target)
    said = {"schema_version": 1, "label": "adbench", "weights": "https://host/own", "date": "2026-01-01"}
    text = folders.as_toml(Submission(**said, adbench="0.1.0"))
    (folder / "submission.toml").write_text(text, encoding="utf-8")


def built(board: Path, out: Path, code: int = 0) -> str:
    """The board's page."""
    result = cli("board", "build", board, "--out", out)
    assert result.exit_code == code, result.output
    return (out / "index.html").read_text(encoding="utf-8") + ("" if code == 0 else result.output)


@pytest.fixture
def board(made: Path, tmp_path: Path) -> Path:
    """A copy of the board, without the repository's own results, that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "board", ignore=shutil.ignore_patterns("own")))


def line(board: Path, label: str) -> standings.BoardRow:
    """The one row of a submission."""
    (found,) = (line for line in standings.Board(board).lines if line.entry.said.label == label)
    return found


def checked(board: Path, results: Path, seed: int) -> Any:
    """What `verify --survivors` says of results with their weights, stored as a check of the board."""
    result = cli("verify", results, "--survivors", "--seed", str(seed), "--format", "json")
    (board / "checks").mkdir(exist_ok=True)
    (board / "checks" / f"{results.name}.json").write_text(result.stdout, encoding="utf-8")
    return result


def test_an_inflated_claim_is_found_out_under_every_seed_and_an_honest_one_is_attacked_again(
    home: Path, board: Path, tmp_path: Path
) -> None:
    assert line(board, "inflated").claimed.mean - line(board, "honest").claimed.mean >= 3
    assert "found out" not in built(board, tmp_path / "before"), "nobody has looked yet"
    for seed in range(20):
        result = checked(board, home / "inflated", seed)
        assert result.exit_code == 1
        (wrong,) = (f for f in json.loads(result.stdout)["records"][0]["findings"] if f["answer"] == "contradicts")
        assert wrong["what"] == "pgd20 survivors"
    assert checked(board, home / "honest", 3).exit_code == 0
    assert (line(board, "honest").level, line(board, "inflated").level) == ("re-attacked", "claimed")
    found = standings.Board(board)
    assert [one.entry.said.label for one in found.false] == ["inflated"]
    assert "inflated" not in {one.entry.said.label for lines in found.ranked.values() for one in lines}
    assert "1 found out" in built(board, tmp_path / "after")


def test_a_check_is_of_the_very_file_and_of_all_its_attacks(home: Path, board: Path) -> None:
    checked(board, home / "honest", 3)
    path = board / "checks" / "honest.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    few = whole | {"asked": whole["asked"] | {"survivors": 20}}
    none = json.loads(json.dumps(whole))
    for finding in none["records"][0]["findings"]:
        if finding["what"].endswith("survivors"):
            finding["answer"] = "not shown"
    other = json.loads(json.dumps(whole))
    other["records"][0]["sha256"] = "0" * 64
    for changed, level in ((whole, "re-attacked"), (few, "claimed"), (none, "claimed"), (other, "claimed")):
        path.write_text(json.dumps(changed), encoding="utf-8")
        assert line(board, "honest").level == level


def again(board: Path, label: str, **changed: Any) -> None:
    """A reproduction of the honest submission by `label`, with changes of its record (see `edited`)."""
    folder = board / "reproductions" / label
    shutil.copytree(board / "submissions/honest", folder)
    told = folder / folders.SUBMISSION
    told.write_text(told.read_text(encoding="utf-8").replace('"honest"', f'"{label}"'), encoding="utf-8")
    data = edited(folder / "cells", provenance__finished="2030-01-01T00:00:00+00:00", **changed)
    document.write(recorded(folder / "cells", "pgd-at"), data)


def test_a_cell_that_somebody_else_trained_again_is_reproduced(board: Path) -> None:
    again(board, "others")
    assert line(board, "honest").level == "reproduced"
    assert line(board, "inflated").level == "claimed", "the same weights, but other figures"


def test_who_made_it_does_not_reproduce_it_and_a_copy_does_not_either(board: Path) -> None:
    again(board, "honest")
    assert line(board, "honest").level == "claimed"
    path = recorded(board / "reproductions/honest/cells", "pgd-at")
    shutil.copy(recorded(board / "submissions/honest/cells", "pgd-at"), path)
    told = board / "reproductions/honest" / folders.SUBMISSION
    told.write_text(told.read_text(encoding="utf-8").replace('"honest"', '"others"'), encoding="utf-8")
    assert line(board, "honest").level == "claimed", "the very file"


def test_intervals_that_a_record_states_reproduce_nothing(board: Path) -> None:
    """Inflated figures with other weights and intervals from 0 to 1 beside an honest reproduction."""
    again(board, "others")
    path = recorded(board / "submissions/inflated/cells", "pgd-at")
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"]["weights_sha256"] = data["training"]["weights"]["best"] = "1" * 64
    for metric in data["metrics"].values():
        metric["ci_test"] = [0.0, 1.0]
    data["metrics"]["pgd20"]["correct"] = 300
    data["metrics"]["pgd20"]["value"] = 300 / 360
    for_all = json.loads(recorded(board / "submissions/honest/cells", "pgd-at").read_text(encoding="utf-8"))
    pairs = [SimpleNamespace(**metric) for metric in (data["metrics"]["pgd20"], for_all["metrics"]["pgd20"])]
    assert not standings._overlap(*pairs)


def test_columns_of_text_are_not_unpacked(board: Path, tmp_path: Path) -> None:
    path = recorded(board / "submissions/honest/cells", "pgd-at").parent / layout.OUTCOMES
    table = pd.read_parquet(path)
    table["label"] = "x" * 20_000
    table.to_parquet(path, index=False)
    assert "something else than numbers and truth values" in built(board, tmp_path / "site", 1)


def test_a_submissions_odd_number_is_one_sentence(board: Path, tmp_path: Path) -> None:
    told = board / "submissions/honest" / folders.SUBMISSION
    told.write_text(f"schema_version = {'1' * 5000}\n", encoding="utf-8")
    assert "is not valid TOML" in built(board, tmp_path / "site", 1)


def test_nothing_of_a_plugin_runs_and_its_source_goes_along_as_text(home: Path, made: Path, tmp_path: Path) -> None:
    text = next((made / "submissions/plugin/code").iterdir())
    assert text.suffix == ".txt"
    assert text.read_bytes() == (home / "mine.py").read_bytes()
    assert "IMPORTED" not in built(made, tmp_path)
    assert not (home / "ran").exists()
    assert "mine" not in METHODS


def test_a_source_that_is_not_the_records_is_refused(home: Path, board: Path, tmp_path: Path) -> None:
    other = tmp_path / "mine.py"
    other.write_text((home / "mine.py").read_text(encoding="utf-8") + "\nX = 1\n", encoding="utf-8")
    refused = submitted(home / "plugin", tmp_path / "out", "x", "--plugin", other)
    assert refused.exit_code == 2
    assert "'mine'" in refused.output
    assert "'mine'" in submitted(home / "plugin", tmp_path / "out", "x").output
    assert not (tmp_path / "out").exists()
    next((board / "submissions/plugin/code").iterdir()).write_text("X = 1\n", encoding="utf-8")
    assert "'mine'" in built(board, tmp_path / "site", 1)
    assert not (home / "ran").exists()


def edited(results: Path, **changed: Any) -> dict[str, Any]:
    """A record with other values at places such as "provenance__git_dirty"."""
    data: dict[str, Any] = json.loads(recorded(results, "pgd-at").read_text(encoding="utf-8"))
    for place, value in changed.items():
        *above, last = place.split("__")
        holder = data
        for key in above:
            holder = holder[key]
        holder[last] = value
    return data


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"config__evaluation__images": 100}, "not judged on all 360 test images"),
        ({"config__training__threat": {"eps": "14/255", "step": "7/255"}}, "another threat model: eps 14/255"),
        ({"config__evaluation__step": "1/255"}, "a step or a start of their own"),
        ({"metrics__pgd20__attack__steps": 2}, "another attack than that of this name"),
        ({"teacher": "somebody"}, "unknown teacher 'somebody'"),
        ({"provenance__git_dirty": True}, "uncommitted changes"),
        ({"dataset": "mine.npz"}, "'mine.npz' is not one of"),
        ({"config__training__network": "0" * 64}, "not adbench's own"),
        ({"kind": "checkpoint"}, "it is a checkpoint"),
        ({"config__training__normalisation": [[0.5], [0.001]]}, "its train_id, id is not its configuration's"),
        ({"train_id": "0" * 16}, "its train_id is not its configuration's"),
        ({"metrics__clean__n": 50, "metrics__clean__correct": 50, "metrics__clean__value": 1.0}, "of 360 test images"),
    ],
)
def test_what_cannot_be_ranked_is_refused_with_its_reason(
    changed: dict[str, Any], says: str, home: Path, board: Path, tmp_path: Path
) -> None:
    path = recorded(board / "submissions/honest/cells", "pgd-at")
    document.write(path, edited(home / "honest", **changed))
    page = built(board, tmp_path / "site", 1)
    assert says in page
    assert line(board, "inflated"), "others are there"


def test_a_contradiction_and_a_teacher_that_has_anothers_name_are_refused(home: Path, tmp_path: Path) -> None:
    refused = submitted(home / "guided", tmp_path / "out", "x")
    assert refused.exit_code == 2
    assert "unknown teacher: its 'digits-robust'" in refused.output
    results = Path(shutil.copytree(home / "honest", tmp_path / "results"))
    document.write(recorded(results, "pgd-at"), edited(results, label="Another"))
    refused = submitted(results, tmp_path / "out", "x")
    assert "configuration does not follow: label" in refused.output
    assert refused.exit_code == 2
    assert not list(tmp_path.glob("out*"))


def test_a_board_may_take_teachers_of_its_own(home: Path) -> None:
    found = record.read(recorded(home / "guided", "ard"))
    found.teacher = found.network.name = "elsewhere"
    assert found.teachers.robust is not None
    found.teachers.robust.name = "elsewhere"
    assert "unknown teacher" in rules.unranked(found)[0]
    assert not rules.unranked(found, {"elsewhere": found.teachers.robust.weights_sha256})
    assert rules.unranked(found, {"elsewhere": "0" * 64})


@pytest.mark.parametrize(
    ("label", "weights", "says"),
    [
        ("x", "javascript:alert(1)", "https://"),
        ("x", "file:///etc/passwd", "https://"),
        ("x", "https://host/\"onclick='x'", "https://"),
        ("x", "https://user:secret@host/", "https://"),
        ("", "https://host/", "printable"),
        ("a\x1b[31m", "https://host/", "printable"),
        ("a" * 101, "https://host/", "printable"),
    ],
)
def test_a_label_or_an_address_that_no_board_takes(label: str, weights: str, says: str, tmp_path: Path) -> None:
    result = cli("board", "submit", tmp_path, "--label", label, "--weights", weights, "--out", tmp_path / "o")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert says in result.stderr


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


HOSTILE = {
    "a linked record": lambda s: link(recorded(s / "cells", "pgd-at")),
    "a linked folder": lambda s: (s / "cells/digits/more").symlink_to("/etc"),
    "a linked source": lambda s: ((s / "code").mkdir(), (s / "code/x.txt").symlink_to("/etc/hostname")),
    "code": lambda s: (s / "cells/conftest.py").write_text("raise SystemExit"),
    "a workflow": lambda s: ((s / ".github").mkdir(), (s / ".github/x.yml").write_text("")),
    "weights": lambda s: (recorded(s / "cells", "pgd-at").parents[1] / "best.safetensors").write_bytes(b""),
    "a large file": lambda s: os.truncate(recorded(s / "cells", "pgd-at").parents[1] / "log.jsonl", 2**30),
    "a pipe": lambda s: os.mkfifo(s / "cells/record.json"),
    "an odd name": lambda s: (s / "cells/a b").mkdir(),
    "an address that runs": lambda s: (s / "submission.toml").write_text(
        (s / "submission.toml").read_text().replace("https://host/w", "javascript:alert(1)")
    ),
    "no description": lambda s: (s / "submission.toml").unlink(),
    "binary toml": lambda s: (s / "submission.toml").write_bytes(b"\xff\xfe"),
    "odd outcomes": lambda s: (recorded(s / "cells", "pgd-at").parent / "outcomes.parquet").write_bytes(b"PAR1"),
    "a nested record": lambda s: recorded(s / "cells", "pgd-at").write_text("[" * 100_000),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_submission_is_left_out_and_the_others_are_shown(what: str, board: Path, tmp_path: Path) -> None:
    HOSTILE[what](board / "submissions/honest")
    page = built(board, tmp_path / "site", 1)
    assert "submissions/honest: " in page
    assert str(tmp_path) not in page.partition("left out  ")[0], "where the board lies is nobody's business"
    assert {one.entry.said.label for one in standings.Board(board).lines} == {"inflated", SCRIPT}


def test_outcomes_of_a_size_that_only_unpacking_shows_are_not_unpacked(board: Path, tmp_path: Path) -> None:
    path = recorded(board / "submissions/honest/cells", "pgd-at")
    pd.DataFrame({"pgd20": np.zeros(20_000_000, bool)}).to_parquet(path.parent / layout.OUTCOMES)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["outcomes"]["sha256"] = sha256(path.parent / layout.OUTCOMES)
    document.write(path, data)
    assert "20,000,000 rows" in built(board, tmp_path, 1)


def test_the_page_is_the_same_bytes_wherever_the_board_lies_and_needs_no_torch(made: Path, tmp_path: Path) -> None:
    first = built(made, tmp_path / "one")
    moved = tmp_path / "elsewhere"
    for path in sorted((path for path in made.rglob("*") if path.is_file()), reverse=True):
        target = moved / path.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    program = (
        "import sys; sys.modules['torch'] = None\nfrom pathlib import Path\nfrom adbench.board import site\n"
        "from adbench.board.standings import Board\nsite.build(Board(Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", program, moved, tmp_path / "two"], check=True)
    assert (tmp_path / "two/index.html").read_text(encoding="utf-8") == first
    assert "<script>window.broken" not in first
    assert not re.search(r"(src|href)=\"(?!data:|#|https://host/)", first)


def test_the_page_works_offline_and_axe_finds_nothing_serious(
    browser: Any,  # noqa: F811
    home: Path,
    board: Path,
    tmp_path: Path,
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    checked(board, home / "inflated", 0)
    built(board, tmp_path)
    for size in ((1280, 800), PHONE):
        visit = Visit(browser, tmp_path / "index.html", size)
        visit.settle()
        page = visit.page
        assert page.evaluate("window.broken") is None
        assert page.locator("td", has_text="<script>window").first.is_visible()
        page.locator("td button").first.click()
        page.evaluate("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
        visit.settle()
        found = axe.Axe().run(page).response["violations"]
        serious = [v for v in found if v["impact"] in ("serious", "critical")]
        assert not serious, [(v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"]) for v in serious]
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert not visit.complaints
        assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
        visit.context.close()


def examples(home: Path) -> dict[str, Any]:
    """Examples against the honest network, made with an attack of which its record knows nothing."""
    found = record.read(recorded(home / "honest", "pgd-at"))
    dataset = networks.dataset_of(found, home)
    network = networks.network_of(found, dataset, home)
    x, y = to_float(dataset.test.images), dataset.test.labels
    eps = float(dataset.threat.eps)
    generator = torch.Generator().manual_seed(5)
    best = x.clone()
    fallen = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(3):
        x_adv = ascend(
            x,
            partial(lambda y, at: margin(network(at), y), y),
            eps=eps,
            step=eps / 4,
            steps=40,
            start=Start.UNIFORM,
            generator=generator,
        )
        broken = network(x_adv).argmax(1) != y
        best[broken & ~fallen] = x_adv[broken & ~fallen]
        fallen |= broken
    return {"x": best.numpy(), "index": np.arange(len(x)), "stands": ~fallen.numpy()}


def test_a_challenge_lowers_the_best_known_accuracy_of_its_row(home: Path, board: Path, tmp_path: Path) -> None:
    made = examples(home)
    before = line(board, "honest")
    stood = before.networks[0].stands
    new = int((stood & ~made["stands"]).sum())
    assert new > 0, "nothing to prove"
    np.savez(tmp_path / "x.npz", x=made["x"], index=made["index"])
    (board / "challenges").mkdir()
    path = recorded(home / "honest", "pgd-at")
    out = board / "challenges" / "one.json"
    result = cli("board", "challenge", path, tmp_path / "x.npz", "--by", SCRIPT, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"of {stood.sum()} that stood {stood.sum() - new} stand" in result.output
    after = line(board, "honest")
    assert after.best.mean == pytest.approx(100 * (stood & made["stands"]).mean())
    assert after.claimed == before.claimed
    assert line(board, SCRIPT).best == line(board, SCRIPT).claimed, "another network"
    assert "<script>window" not in built(board, tmp_path / "site").partition('id="evidence"')[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: {"x": x + np.float32(0.2)}, "outside the ball"),
        (lambda x: {"x": x - np.float32(0.05)}, "outside the ball"),
        (lambda x: {"x": x * np.float32(np.nan)}, "outside the ball"),
        (lambda x: {"x": x.astype(np.float64)}, "float64"),
        (lambda x: {"x": x[:, :, :4]}, "shape"),
        (lambda x: {"x": x, "index": np.arange(len(x)) + 1}, "index"),
        (lambda _: {"x": np.array([object()])}, "cannot be read"),
        (lambda _: {"x": np.zeros(2_000_000, np.float32)}, "cannot be read"),
        (lambda _: {"y": np.zeros(3, np.float32)}, "cannot be read"),
        (lambda x: {"x": x}, "breaks no image"),
    ],
)
def test_examples_that_prove_nothing_are_refused(change: Any, says: str, home: Path, tmp_path: Path) -> None:
    path = recorded(home / "honest", "pgd-at")
    found = record.read(path)
    x = to_float(networks.dataset_of(found, home).test.images).numpy()
    np.savez_compressed(tmp_path / "x.npz", **change(x))
    result = cli("board", "challenge", path, tmp_path / "x.npz")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    assert says in result.stderr
    assert not (tmp_path / "x.challenge.json").exists()


def row(*stands: Any) -> Any:
    """A row whose networks, one a seed, are right on the given images."""
    return SimpleNamespace(
        networks=[SimpleNamespace(record=SimpleNamespace(seed=k), best=one) for k, one in enumerate(stands)]
    )


def test_rows_that_are_not_told_apart_are_one_group() -> None:
    images = np.arange(1000)
    one = [row(images < 600), row(images < 598), row(images < 500), row((images > 200) & (images < 700))]
    assert groups(one) == [1, 1, 2, 2]
    noise = np.random.default_rng(0)
    scattered = [row(*(images < 600 - 2 * k + noise.integers(-9, 9) for _ in range(3))) for k in range(5)]
    assert groups(scattered) == [1] * 5
    apart = [row(*(images < 600 - 200 * k + seed for seed in range(3))) for k in range(3)]
    assert groups(apart) == [1, 2, 3]


def test_two_rows_of_two_seeds_are_compared_on_the_images() -> None:
    images = np.arange(1000)
    better, worse = row(images < 600, images < 610), row(images < 500, images < 480)
    assert groups([better, worse]) == [1, 2], "a t-test over two seeds would say nothing"
    assert groups([better, row(images < 500, images < 608)]) == [1, 1], "one of the pairs differs by two images"


def test_pairs_that_point_in_opposite_directions_tell_nothing_apart() -> None:
    def first(n: int) -> Any:
        return np.arange(1000) < n

    assert standings.compared(row(first(700), first(500)), row(first(580), first(600))) == 1.0
    assert standings.compared(row(first(700), first(700)), row(first(580), first(600))) < 0.001


def test_one_image_on_each_of_three_seeds_tells_nothing_apart() -> None:
    def first(n: int) -> Any:
        return np.arange(360) < n

    better, other = (row(*(first(n + more) for n in (180, 189, 199))) for more in (1, 0))
    assert standings.compared(better, other) > 0.05


def test_holms_correction_goes_from_step_to_step() -> None:
    assert holm({(0, 1): 0.01, (0, 2): 0.02, (1, 2): 0.04}) == {(0, 1), (0, 2), (1, 2)}
    assert holm({(0, 1): 0.01, (0, 2): 0.03, (1, 2): 0.04}) == {(0, 1)}
    assert holm({(0, 1): 0.017, (0, 2): 0.02, (1, 2): 0.04}) == set()


def test_the_boards_threat_models_are_those_of_the_data_sets() -> None:
    arrays = sources.digits(Path())
    tested = rules.RANKED["digits"]
    assert (tested.eps, tested.images) == (str(arrays.threat), len(arrays.y_test))
    assert {rules.RANKED[name].eps for name in rules.RANKED if name != "digits"} == {str(sources.CIFAR_THREAT)}


def test_the_recipe_track_is_the_preset_that_trains_so(home: Path) -> None:
    found = record.read(recorded(home / "honest", "pgd-at"))
    assert rules.track(found) == rules.OWN
    found.config.training["data"]["train_images"] = None
    recipe = Train()  # the paper's
    found.config.training["train"] = spelling.recipe(recipe, ThreatModel(**found.config.training["threat"]))
    assert "paper" in rules.track(found).split(", ")
    found.config.training["train"]["lr"] = 0.2
    assert rules.track(found) == rules.OWN


TEMPLATE = ROOT / "docs" / "examples" / "board"


def test_the_delivered_recipe_has_no_rights_and_runs_nothing_of_a_pull_request() -> None:
    (text,) = (path.read_text(encoding="utf-8") for path in (TEMPLATE / ".github" / "workflows").iterdir())
    assert re.search(r"^on:\n  pull_request:$", text, re.MULTILINE)
    assert "pull_request_target" not in text
    assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)
    assert ": write" not in text
    assert "secrets" not in text
    assert "persist-credentials: false" in text
    scripts = re.findall(r"^ +run: \|\n((?: {10}.*\n|\n)+)", text, re.MULTILINE)
    assert len(scripts) >= 2
    assert not any("${{" in script for script in scripts), "nothing is spelt into a shell"


@pytest.mark.parametrize(
    ("path", "fine"),
    [
        ("submissions/lab/submission.toml", True),
        ("submissions/lab/cells/a/record.json", True),
        ("checks/x.json", False),
        (".github/workflows/check.yml", False),
        ("submissions/lab.toml", False),
        ("submissions/a\nb/x", False),
    ],
)
def test_the_delivered_recipe_lets_a_pull_request_touch_one_submission(path: str, fine: bool, tmp_path: Path) -> None:
    (text,) = (path.read_text(encoding="utf-8") for path in (TEMPLATE / ".github" / "workflows").iterdir())
    script = next(s for s in re.findall(r"^ +run: \|\n((?: {10}.*\n|\n)+)", text, re.MULTILINE) if "git diff" in s)

    def git(*words: str) -> None:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        subprocess.run(command, check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    git("commit", "-q", "--allow-empty", "-m", "begin")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("x", encoding="utf-8")
    git("add", "-A")
    git("commit", "-q", "-m", "more")
    shell = ["bash", "-e", "-c", script]
    done = subprocess.run(shell, cwd=tmp_path, env=os.environ | {"BASE": "main"}, capture_output=True)
    assert (done.returncode == 0) == fine
