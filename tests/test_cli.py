"""The commands as a user meets them: help, lists, plans, tiny real runs and what they leave behind."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pandas as pd
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from synthetic import conform
from tiny import PLUGIN, SETTINGS, TEACHER, cli, lasting, options, record_of, records, run, shorten_autoattack

from adbench.cli import COMMANDS, WANTS, main
from adbench.cli.display import Display
from adbench.execution import execute
from adbench.execution.expand import expand
from adbench.experiment.cell import Cell
from adbench.experiment.config import experiment, layered, merged, parse_setting, read_preset
from adbench.registry import METHODS
from adbench.system.files import sha256
from adbench.weights.networks import lookup

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and no plugins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(METHODS, "_files", {})
    monkeypatch.setattr(METHODS, "_loaded", {})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that is trained here for one epoch."""
    path = tmp_path_factory.mktemp("teachers") / "tiny.toml"
    path.write_text(TEACHER, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run: a teacher, PGD-AT and RSLAD. Not to be written to."""
    results = tmp_path_factory.mktemp("finished") / "results"
    result = run("--methods", "pgd-at,rslad", "--teacher", teacher, "--results", results)
    assert result.exit_code == 0, result.output
    return results


def weights(results: Path, method: str) -> Path:
    (path,) = results.glob(f"digits/{method}/*/*/best.safetensors")
    return path


def files_of(results: Path) -> dict[str, tuple[int, bytes]]:
    """What is there of results; plans and locks are of runs."""
    found = [p for p in results.rglob("*") if p.is_file() and p.name != ".lock" and p.parent.name != "plans"]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in found}


# Help and lists


def test_commands_that_only_read_do_not_import_torch(finished: Path) -> None:
    script = """
import sys
from adbench.cli import main
for args in sys.argv[1:]:
    try:
        main(args.split())
    except SystemExit as ended:
        assert not ended.code, args
    assert "torch" not in sys.modules, args
"""
    commands = ["--help", "run --help", "list", "teachers", "teachers digits-robust"]
    commands += [f"show {weights(finished, 'rslad').parent}"]
    commands += [f"results --results {finished}", f"report --results {finished} --out reports"]
    commands += [f"status --results {finished}", f"merge {finished} --into merged"]
    subprocess.run([sys.executable, "-c", script, *commands], check=True, capture_output=True, text=True)
    assert Path("reports/index.html").is_file()


WRONG = {
    "run --methods rsald": "'rslad'",
    "run --student rn19": "'rn18'",
    "run --dataset cifar1": "'cifar10'",
    "run --teacher digit-robust": "'digits-robust'",
    "run --teacher cnn-16@nowhere.pt": "'nowhere.pt' does not exist",
    "run --preset papr": "'paper'",
    "run --set train.epoch=3": "'epochs'",
    "run --set train.lr=-1": "train.lr = -1",
    'run --set eval.attacks=["pgd"]': "'pgd20'",
    'run --set eval.proxies=["nobody"]': "unknown teacher",
    "run --device cpuu": "choose cpu",
    "run --set hyper.rslad.alhpa=1": "did you mean 'alpha'",
    "run --set hyper.rslad.alpha=7": "alpha = 7",
    "run --set hyper.rslad.alpha=[0.5,7]": "alpha = 7",
    "run --set train.init=nowhere.pt": "'nowhere.pt' does not exist",
    "run --set data.extra=nowhere.npz": "'nowhere.npz' does not exist",
    "tune rslad --over hyper.alhpa=[0.5,0.7] --budget 9": "did you mean 'alpha'",
    "tune rslad --over hyper.alpha=0.5 --budget 9": "two values or more",
    "report --results nowhere": "'nowhere'",
    "results --results nowhere": "'nowhere'",
    "run --engine local --gpus 2": "--engine ray",
    "run --seeds x": "'x'",
    "cost --methods rsald": "'rslad'",
    "prepare --methods rsald": "'rslad'",
    "eval nowhere.pt --arch rn18": "'nowhere.pt' does not exist",
    "eval nowhere.pt --arch rn18 --attacks pgd": "'pgd20'",
    "teachers nobody --verify": "unknown teacher",
    "validate rsald": "'rslad'",
    "info rsald": "'rslad'",
    "golden nowhere.json": "'nowhere.json' does not exist",
    "verify nowhere": "'nowhere' does not exist",
    "export nowhere --out x": "'nowhere'",
    "reproduce nowhere": "'nowhere'",
    "show nowhere": "'nowhere'",
    "compare a/b c/d": "'a/b'",
    "cross --results nowhere": "'nowhere'",
    "cam --results nowhere": "'nowhere'",
}
"""Wrong words, and what the answer names."""


def test_wrong_words_are_answered_before_torch_is_loaded() -> None:
    script = """
import json, sys
from adbench.cli import main
words, modules = json.loads(sys.argv[1])
for name in modules:
    sys.modules[name] = None
for args in words:
    try:
        main(args.split())
    except SystemExit as ended:
        assert ended.code == 2, args
        print(args, file=sys.stderr)
"""
    names = [line for line in WRONG if re.match(r"run --(methods|student|dataset|device)|validate|info|golden", line)]
    for words, modules in ((list(WRONG), ["torch"]), (names, ["torch", "numpy", "pydantic"])):
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps([words, modules])], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = done.stderr.splitlines()
        assert lines[1::2] == words
        assert [line for line, said in zip(words, lines[::2], strict=True) if WRONG[line] not in said] == []


@pytest.mark.parametrize(("before", "then"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_do_not_spin_unless_they_are_told_to(before: str | None, then: str) -> None:
    """It has to be said before torch is loaded, which reads it once."""
    script = "import os, sys, adbench.cli; print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    surroundings = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    surroundings |= {"OMP_WAIT_POLICY": before} if before else {}
    found = subprocess.run([sys.executable, "-c", script], env=surroundings, check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["False", then]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself_with_an_example(name: str) -> None:
    result = cli(name, "--help")
    assert result.exit_code == 0
    example = result.output.partition("Example")[2]
    assert f"adbench {name}" in example
    for parameter in main.get_command(click.Context(main), name).params:
        if isinstance(parameter, click.Option) and parameter.name != "form":
            assert parameter.help, f"--{parameter.name} says nothing"


def test_adbench_alone_prints_its_help() -> None:
    for args in ([], ["-h"], ["--help"]):
        result = cli(*args)
        assert result.exit_code == 0
        assert [name in result.output for name in COMMANDS] == [True] * len(COMMANDS)


def test_the_overview_has_every_command_once_in_whole_sentences_of_one_line() -> None:
    assert sorted(name for names in WANTS.values() for name in names) == sorted(COMMANDS)
    lines = cli("--help", env={"COLUMNS": "80"}).output.splitlines()
    for name, (_, says) in COMMANDS.items():
        assert says[0].isupper()
        assert says.endswith(".")
        assert f"  {name:10}  {says}" in lines
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == ["Options:", *(f"{w}:" for w in WANTS)]


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(finished: Path, columns: int) -> None:
    for words in ("results", "results --spread ci", "compare pgd-at rslad"):
        found = cli(*words.split(), "--results", finished, env={"COLUMNS": str(columns)})
        assert found.exit_code == 0, found.output
        assert max(map(cell_len, found.output.splitlines())) <= columns
    for words in ("list", "list settings", "teachers"):
        assert max(map(cell_len, cli(*words.split(), env={"COLUMNS": str(columns)}).output.splitlines())) <= columns


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_a_terminal_of_80_columns(name: str) -> None:
    for line in cli(*name.split(), "--help", env={"COLUMNS": "80"}).output.splitlines():
        assert cell_len(line) <= 80, line


def test_the_list_shows_every_section() -> None:
    shown = cli("list").output
    assert [line for line in shown.splitlines() if line and not line.startswith(" ")] == [
        "methods",
        "teachers",
        "students",
        "datasets",
        "attacks",
        "presets",
    ]
    for name in ("rslad", "smaraad-pp", "digits-robust", "cnn-16", "wrn-34-10", "cifar100", "pgdK", "aa", "quick"):
        assert f"\n  {name} " in shown
    assert cli("list", "presets").output.splitlines()[0] == "presets"


def test_every_listed_thing_has_a_summary() -> None:
    # Names stand two blanks in; what does not fit beside one goes on further in.
    listed = re.split(r"^  (?=\S)", cli("list").output, flags=re.MULTILINE)[1:]
    lines = [entry.split(maxsplit=1) for entry in listed]
    assert len(lines) > 60
    assert [words[0] for words in lines if len(words) < 2] == []


def test_teachers_are_listed_and_shown() -> None:
    assert "digits-robust" in cli("teachers").output
    shown = cli("teachers", "digits-robust").output
    assert "cnn-48" in shown
    assert "come with adbench" in shown
    assert "pgd-at, 60 epochs" in shown
    assert "trained here by trades" in cli("teachers", "cifar10-wrn-34-10").output


# Runs


def test_a_dry_run_prints_the_plan_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    result = run("--methods", "pgd-at,rslad", "--seeds", "2", "--dry-run")
    assert result.exit_code == 0
    assert "5 of 5 cells to do" in result.output
    assert "(teacher) digits-robust" in result.output
    assert not list(Path().iterdir())


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_the_plan_cuts_no_name_on_any_terminal(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = run("--methods", "pgd-at,rslad", "--dry-run").output
    assert "\u2026" not in shown
    assert ("GMAC" in shown) == (columns == "120"), "the counts have room on a wide one"
    if columns != "40":
        assert re.search(r"\(teacher\)( |.*\n +)digits-robust", shown), "in one piece, if need be on the next line"


def test_a_run_leaves_valid_records_of_every_cell(finished: Path) -> None:
    found = records(finished)
    assert sorted((r["kind"], r["method"]) for r in found.values()) == [
        ("student", "pgd-at"),
        ("student", "rslad"),
        ("teacher", "pgd-at"),
    ]
    for data in found.values():
        conform(data)
        assert data["status"] == "done"
        assert set(data["metrics"]) == {"clean", "fgsm", "pgd20"}
        assert all(metric["n"] == 16 for metric in data["metrics"].values())
        assert (data["data"]["train_images"], data["data"]["val_images"]) == (64, 16)
    rslad, teacher = record_of(finished, "rslad"), next(r for r in found.values() if r["kind"] == "teacher")
    assert rslad["teacher"] == "tiny"
    assert rslad["training"]["passes"] == {"student": 4, "teacher_forward": 1, "total": 9}, (
        "two steps, loss, clean images"
    )
    assert rslad["teachers"]["robust"]["weights_sha256"] == teacher["model"]["weights_sha256"]
    assert record_of(finished, "pgd-at")["teacher"] is None


def test_a_records_figures_are_those_of_its_outcomes(finished: Path) -> None:
    for path in finished.rglob("record.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        assert sha256(path.parent / "outcomes.parquet") == data["outcomes"]["sha256"]
        outcomes = pd.read_parquet(path.parent / "outcomes.parquet")
        for name, metric in data["metrics"].items():
            assert metric["correct"] == outcomes[name].sum()


def test_a_second_run_skips_everything(finished: Path, teacher: Path) -> None:
    before = files_of(finished)
    result = run("--methods", "pgd-at,rslad", "--teacher", teacher, "--results", finished)
    assert result.exit_code == 0
    assert "0 of 3 cells to do" in result.output
    assert files_of(finished) == before


def test_another_setting_makes_another_cell_and_leaves_the_old() -> None:
    assert run("--methods", "pgd-at").exit_code == 0
    before = files_of(Path("results"))
    result = run("--methods", "pgd-at", train__lr="0.05")
    assert "1 of 1 cells to do" in result.output
    assert len(records(Path("results"))) == 2
    assert files_of(Path("results")).items() > before.items()


def test_another_evaluation_trains_nothing_again() -> None:
    assert run("--methods", "pgd-at").exit_code == 0
    before = files_of(Path("results"))
    result = run("--methods", "pgd-at", eval__attacks='["fgsm"]')
    assert result.exit_code == 0
    assert "evaluate" in result.output
    after = files_of(Path("results"))
    assert after.items() > before.items()
    assert {Path(path).name for path in after.keys() - before.keys()} == {"record.json", "outcomes.parquet"}
    first, second = records(Path("results")).values()
    assert first["train_id"] == second["train_id"]
    assert first["metrics"]["fgsm"]["correct"] == second["metrics"]["fgsm"]["correct"]


def test_a_changed_batch_of_the_evaluation_is_the_same_cell() -> None:
    assert run("--methods", "pgd-at").exit_code == 0
    assert "0 of 1 cells to do" in run("--methods", "pgd-at", eval__batch_size="7").output


def test_methods_without_a_teacher_run_once_for_two_teachers(teacher: Path) -> None:
    other = teacher.with_name("other.toml")
    other.write_text(TEACHER.replace("epochs = 1", "epochs = 2"), encoding="utf-8")
    result = run("--methods", "pgd-at,rslad", "--teacher", f"{teacher},{other}", "--dry-run")
    assert "5 of 5 cells to do" in result.output  # two teachers, pgd-at once, rslad twice
    assert "5 of 5" in run("--methods", "pgd-at", "--teacher", teacher, "--seeds", "5", "--dry-run").output


def test_precedence_is_preset_then_file_then_set_then_options() -> None:
    Path("mine.toml").write_text('seeds = [4]\nmethods = ["trades"]\n[train]\nepochs = 7\nlr = 0.5\n', encoding="utf-8")
    command = ["--config", "mine.toml", "--set", "train.lr=0.05", "--seeds", "1,", *options(), "--results", "r"]
    result = cli("run", *command[:4], "--methods", "pgd-at", *command[4:])
    assert result.exit_code == 0, result.output
    data = record_of(Path("r"), "pgd-at")
    assert data["seed"] == 1
    assert data["config"]["training"]["train"]["lr"] == 0.05
    assert data["config"]["training"]["train"]["epochs"] == 1
    # From the preset alone: of its own LAS-AT policy, and of one epoch only the first can be validated.
    asked = experiment(layered(read_preset("digits"), {"train": {"epochs": 8}}))
    assert asked.train.val_every == read_preset("digits")["train"]["val_every"] != 1


@pytest.mark.slow
def test_two_jobs_end_in_the_records_of_one(teacher: Path) -> None:
    plugin = Path("mine.py")
    plugin.write_text(PLUGIN, encoding="utf-8")
    asked = ("--methods", "rslad,mine", "--teacher", teacher, "--plugin", plugin)
    for jobs in ("1", "2"):
        result = run(*asked, "--jobs", jobs, "--results", f"jobs{jobs}")
        assert result.exit_code == 0, result.output
    one, two = (lasting(records(Path(f"jobs{jobs}"))) for jobs in "12")
    assert len(one) == 3
    assert one == two


# Other commands


def test_eval_finds_what_the_run_found(finished: Path) -> None:
    path = weights(finished, "rslad")
    result = cli("eval", path, "--arch", "cnn-4", "--attacks", "fgsm,pgd20", "--images", "16")
    assert result.exit_code == 0, result.output
    assert "checkpoint best" in result.output
    (data,) = records(Path("results")).values()
    conform(data)
    assert (data["kind"], data["method"], data["seed"], data["training"]) == ("checkpoint", None, None, None)
    known = record_of(finished, "rslad")
    assert data["model"]["weights_sha256"] == known["model"]["weights_sha256"]
    for name, metric in known["metrics"].items():
        assert data["metrics"][name]["correct"] == metric["correct"]


def test_eval_at_another_radius_scales_the_step_along(finished: Path) -> None:
    path = weights(finished, "rslad")
    assert cli("eval", path, "--arch", "cnn-4", "--attacks", "pgd20", "--images", "4", "--eps", "0.05").exit_code == 0
    (data,) = records(Path("results")).values()
    usual = record_of(finished, "rslad")["metrics"]["pgd20"]["attack"]
    found = data["metrics"]["pgd20"]["attack"]
    assert found["eps"] == "0.05"
    assert _number(found["step"]) / 0.05 == pytest.approx(_number(usual["step"]) / _number(usual["eps"]))


def _number(text: str) -> float:
    numerator, _, denominator = text.partition("/")
    return float(numerator) / float(denominator or 1)


def test_a_teacher_is_verified_against_its_claim(finished: Path) -> None:
    found = record_of(finished, "rslad")["metrics"]
    clean, pgd = found["clean"]["value"], found["pgd20"]["value"]

    def claiming(clean: float) -> list[str]:
        text = f'architecture = "cnn-4"\ndataset = "digits"\n[source]\nkind = "file"\npath = "{path}"\n'
        Path("mine.toml").write_text(f"{text}[expected]\nclean = {clean}\npgd20 = {pgd}\n", encoding="utf-8")
        return ["teachers", "mine.toml", "--verify", "--images", "16"]

    path = weights(finished, "rslad")
    right = cli(*claiming(clean))
    assert right.exit_code == 0, right.output
    assert f"{100 * clean:.2f}%  claimed {100 * clean:.2f}%  n = 16  agrees" in right.output
    wrong = cli(*claiming(1 - clean if abs(clean - 0.5) > 0.4 else 1.0))
    assert wrong.exit_code == 1
    assert "DIFFERS" in wrong.output
    assert "pgd20" in wrong.output


def test_every_claim_of_a_teacher_is_compared_and_measured_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(finished, "rslad")
    (tmp_path / "mine.toml").write_text(
        f'architecture = "cnn-4"\ndataset = "digits"\n[source]\nkind = "file"\npath = "{path}"\n'
        f"[expected]\nclean = 0.1\naa = 1.0\ntolerance = 0.9\n",
        encoding="utf-8",
    )
    words = ["teachers", tmp_path / "mine.toml", "--verify", "--images", "8", "--results", tmp_path / "results"]
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    shorten_autoattack(monkeypatch)
    first = cli(*words)
    assert not torch.backends.cudnn.allow_tf32
    (found,) = records(tmp_path / "results").values()
    assert found["metrics"].keys() == {"clean", "aa"}
    correct = found["metrics"]["aa"]["correct"]
    assert f"aa     {100 * correct / 8:6.2f}%  claimed 100.00%" in first.output
    assert "compared: clean, aa; not claimed: pgd20" in first.output
    monkeypatch.setattr(execute, "_evaluate", None)  # a second evaluation would fail
    assert f"aa     {100 * correct / 8:6.2f}%" in cli(*words).output


def test_results_are_exported_in_every_format(finished: Path) -> None:
    def shown(form: str, *more: str) -> str:
        result = cli("results", "--results", finished, "--format", form, *more)
        assert result.exit_code == 0, result.output
        return result.output

    value = record_of(finished, "rslad")["metrics"]["pgd20"]["value"]
    table = pd.read_csv(io.StringIO(shown("csv"))).set_index(["kind", "method"])
    assert len(table) == 3
    assert table.loc[("student", "rslad"), "pgd20"] == pytest.approx(value)
    rows = json.loads(shown("json"))
    assert [r["pgd20"] for r in rows if r["method"] == "rslad"] == [pytest.approx(value)]
    assert shown("parquet", "--out", "all.parquet") == ""
    assert pd.read_parquet("all.parquet")["pgd20"].tolist() == [r["pgd20"] for r in rows]
    for form in ("latex", "markdown", "table"):
        text = shown(form)
        assert f"{100 * value:.2f}" in text
        assert "RSLAD" in text
    assert "toprule" in shown("latex")
    assert shown("markdown").splitlines()[1].startswith("| ---")


def test_results_are_filtered(finished: Path) -> None:
    def count(*wanted: str) -> int:
        return len(json.loads(cli("results", "--results", finished, "--format", "json", *wanted).output))

    assert count("--kind", "student") == 2
    assert count("--method", "rslad") == 1
    assert count("--method", "pgd-at", "--kind", "teacher") == 1
    assert count("--teacher", "tiny") == 1
    assert count("--status", "done", "--student", "cnn-4", "--dataset", "digits") == 3
    assert count("--method", "rslad,pgd-at") == count("--method", "rslad", "--methods", "pgd-at") == 3
    assert count("--method", "RSLAD") == 1, "by its label"
    assert count("--method", "distillation") == 1, "of a group those that are there"
    assert count("--method", "rslad,trades") == 1
    assert count("--students", "cnn-4,", "--datasets", "digits", "--teachers", "tiny") == 1
    result = cli("results", "--results", finished, "--method", "trades")
    assert result.exit_code == 2
    assert "matches (method = trades)" in result.stderr
    for option, name, near in (
        ("--method", "rslda", "rslad"),
        ("--teacher", "tinny", "tiny"),
        ("--student", "cnn-5", "cnn-4"),
        ("--dataset", "digit", "digits"),
    ):
        result = cli("results", "--results", finished, option, name)
        assert result.exit_code == 2
        assert f"'{name}'; did you mean '{near}'?" in result.stderr


def test_results_without_and_with_seeds_stand_in_one_table(finished: Path) -> None:
    for form in ("table", "latex", "markdown"):
        assert run("--methods", "pgd-at", "--seeds", "1").exit_code == 0
        assert (
            cli("eval", weights(finished, "rslad"), "--arch", "cnn-4", "--attacks", "fgsm", "--images", "4").exit_code
            == 0
        )
        text = cli("results", "--format", form).output
        assert "0.0" not in [word.strip("&| ") for word in text.split()], "a seed is a whole number"


# Methods of one's own


def _is_there(method: str, label: str, results: Path, *plugin: str) -> None:
    """In the list, in a run, and in the report."""
    assert f"  {method} " in cli("list", "methods", *plugin).output
    data = record_of(results, method)
    assert (data["status"], data["label"]) == ("done", label)
    assert cli("report", "--results", results, "--out", "reports").exit_code == 0
    assert label in Path("reports/index.html").read_text(encoding="utf-8")


def test_a_new_method_runs_as_it_is_written(teacher: Path) -> None:
    assert cli("new-method", "my-own").exit_code == 0
    result = run("--methods", "my-own", "--teacher", teacher, "--plugin", "my_own.py")
    assert result.exit_code == 0, result.output
    _is_there("my-own", "my-own", Path("results"), "--plugin", "my_own.py")
    assert "there already" in cli("new-method", "my-own").stderr


def test_an_edited_plugin_is_a_new_cell() -> None:
    Path("mine.py").write_text(PLUGIN, encoding="utf-8")
    assert run("--methods", "mine", "--plugin", "mine.py").exit_code == 0
    _is_there("mine", "Mine, really", Path("results"), "--plugin", "mine.py")
    before = files_of(Path("results"))
    assert "0 of 1 cells" in run("--methods", "mine", "--plugin", "mine.py").output
    Path("mine.py").write_text(PLUGIN.replace("step.y)", "step.y) * 2"), encoding="utf-8")
    assert "1 of 1 cells" in run("--methods", "mine", "--plugin", "mine.py").output
    assert files_of(Path("results")).items() > before.items()
    first, second = records(Path("results")).values()
    assert first["train_id"] != second["train_id"]
    assert first["provenance"]["method_source_sha256"] != second["provenance"]["method_source_sha256"]


def test_a_plugin_edited_while_it_runs_still_trains_what_its_cell_is_named_by() -> None:
    text = PLUGIN.replace("from adbench.losses", "from pathlib import Path\nfrom adbench.losses").replace(
        "        return step.x", "        Path('mine.py').write_text('raise ValueError')\n        return step.x"
    )
    Path("mine.py").write_text(text, encoding="utf-8")
    planned = sha256(Path("mine.py"))
    assert run("--methods", "mine", "--plugin", "mine.py", "--seeds", "2").exit_code == 0
    assert {r["provenance"]["method_source_sha256"] for r in records(Path("results")).values()} == {planned}


def test_a_third_party_package_needs_no_edit_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    (site / "others").mkdir(parents=True)
    (site / "others" / "__init__.py").touch()
    (site / "others" / "fine.py").write_text(PLUGIN, encoding="utf-8")
    info = site / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[adbench.methods]\ntheirs = others.fine:Mine\nlost = nowhere.at_all:Lost\n", encoding="utf-8"
    )
    assert "theirs" not in METHODS.names()
    monkeypatch.delitem(vars(METHODS), "_entry_points")
    monkeypatch.syspath_prepend(site)
    listed = cli("list").output
    assert "Cross-entropy at the image itself. [others]" in listed
    assert "(its source file cannot be read) [others]" in listed  # a broken neighbour stops nobody
    for command in (["run", "--methods", "theirs", *options()], ["report"]):
        result = cli(*command)
        assert result.exit_code == 0, result.output
    data = record_of(Path("results"), "theirs")
    assert (data["status"], data["label"]) == ("done", "Mine, really")
    assert data["provenance"]["method_source_sha256"] == sha256(site / "others" / "fine.py")
    assert "Mine, really" in Path("reports/index.html").read_text(encoding="utf-8")


# What is shown while cells run


@pytest.fixture
def cells() -> tuple[Cell, ...]:
    settings = merged(*(parse_setting(f"{key}={value}") for key, value in SETTINGS.items()))
    asked = experiment({**settings, "methods": ["pgd-at", "natural"], "students": ["cnn-4"]})
    return expand(asked, lookup(Path())).students


def _show(cells: tuple[Cell, ...], *, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    metrics = {"clean": {"value": 0.5}, "pgd20": {"value": 0.25}, "transfer:t:cw": {"value": 0.1}}
    failure = {"phase": "train", "type": "UserError", "message": "the loss is [nan]\nin epoch 1 " + "and so on " * 20}
    ends = [
        {"status": "done", "error": None, "metrics": metrics},
        {"status": "failed", "error": failure, "metrics": {}},
    ]
    with Display(console, len(cells)) as display:
        for cell, end in zip(cells, ends, strict=True):
            display(cell, {"what": "start"})
            display(cell, {"what": "batch", "epoch": 0, "batch": 1, "of": 2})
            epoch = {"what": "epoch", "epoch": 1, "seconds": 1.0, "images_per_second": 64.0, "loss": 2.303}
            display(cell, {**epoch, "val_clean": None, "val_robust": None})
            display(cell, {**epoch, "val_clean": 0.5, "val_robust": 0.25})
            display._progress.refresh()
            display(cell, {"what": "attack", "name": "pgd20", "value": 0.25})
            display(cell, {"what": "end", "record": end})
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_a_terminal_sees_bars(cells: tuple[Cell, ...]) -> None:
    shown = _show(cells, terminal=True)
    assert "\x1b[" in shown
    assert "loss 2.303" in shown
    assert "robust 25.0" in shown


def test_a_line_above_the_bars_tells_how_far_all_cells_are(
    cells: tuple[Cell, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two cells that are thought to take 100 and 300 seconds; a tenth of the work took 80 seconds."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)
    one, other = (replace(cell, train=cell.train.model_copy(update={"epochs": 5})) for cell in cells)
    display = Display(console, 2, {one.id: 100.0, other.id: 300.0})

    def line() -> str:
        with console.capture() as captured:
            console.print(display._progress.get_renderable())
        shown = captured.get().splitlines()
        assert max(map(cell_len, shown)) <= 80
        return shown[0]

    display(one, {"what": "start"})
    display(one, {"what": "batch", "epoch": 0, "batch": 0, "of": 4})
    assert line().startswith("all: 0 of 2 cells")
    now = 80.0
    display(one, {"what": "batch", "epoch": 2, "batch": 0, "of": 4})
    assert "about 12 min 00 s left" in line()
    display(one, {"what": "end", "record": {"status": "done", "metrics": {}}})
    assert line().startswith("all: 1 of 2 cells ━")
    assert "about 4 min 00 s left" in line()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("architecture", ["cnn-4", "wrn-34-10-of-a-very-long-name-[red]-数据"])
def test_a_progress_line_fits_the_terminal_with_its_bar_and_the_time_left(
    width: int, architecture: str, cells: tuple[Cell, ...]
) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    cell = replace(cells[0], architecture=architecture)
    epoch = {"what": "epoch", "epoch": 1, "loss": 0.795, "val_clean": 0.91, "val_robust": 0.41}
    display = Display(console, 1)  # not begun: nothing but the line is printed
    display(cell, {"what": "start"})
    display(cell, {**epoch, "seconds": 2000.0, "images_per_second": 334.0})
    display._progress.update(display._tasks[cell.id], total=10)
    with console.capture() as captured:
        console.print(display._progress.get_renderable())
    display(cell, {"what": "attack", "name": "transfer:digits-robust:pgd20", "value": 0.25})
    with console.capture() as attacked:
        console.print(display._progress.get_renderable())
    (line,) = [line for line in captured.get().splitlines() if "left" in line]
    assert cell_len(line.rstrip()) <= width
    assert line.startswith("pgd-at ")
    assert " seed 0 ━" in line
    assert line.rstrip().endswith(("left", "robust 41.0", "natural 91.0", "loss 0.795", "334 images/s")), line
    assert ("334 images/s" in line) == (width == 120 and architecture == "cnn-4")
    assert "25.0 transfer" in attacked.get()


def test_off_a_terminal_every_cell_is_one_line(cells: tuple[Cell, ...]) -> None:
    lines = _show(cells, terminal=False).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("[1/2] pgd-at cnn-4 seed 0: clean 50.0  pgd20 25.0  (")
    assert lines[1].startswith("[2/2] natural cnn-4 seed 0: failed in train: the loss is [nan] in epoch 1 and so on")
