"""Whatever a user gets wrong, or meets: one sentence on stderr and exit code 2; inside a matrix, a failed cell."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from synthetic import conform
from tiny import TEACHER, cli, record_of, records, run

from adbench import models
from adbench.cli import main
from adbench.execution import runner
from adbench.registry import METHODS
from adbench.system import files
from adbench.weights.checkpoint import save_weights


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, no plugins, one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(METHODS, "_files", {})
    monkeypatch.setattr(METHODS, "_loaded", {})
    monkeypatch.setattr(runner, "threads_per_job", lambda _: 1)


def sentence(result: Result) -> str:
    """The one sentence with which bad input is refused."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("adbench: ")
    assert "Traceback" not in result.output
    return lines[0].removeprefix("adbench: ")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        # Names, each with the nearest one that exists
        ("run --methods rslda", "unknown method 'rslda'; did you mean 'rslad'?"),
        ("run --methods natural --teacher digits-robst", "unknown teacher 'digits-robst'; did you mean"),
        ("run --teacher digits-robst", "unknown teacher 'digits-robst'; did you mean 'digits-robust'?"),
        ("run --student cnn-l6", "unknown model 'cnn-l6'; did you mean 'cnn-16'?"),
        ("run --dataset digitz", "unknown dataset 'digitz'; did you mean 'digits'?"),
        ("run --dataset cifar1O --teacher digits-robust", "unknown dataset 'cifar1O'; did you mean 'cifar10'?"),
        ("run --preset quik", "unknown preset 'quik'; did you mean 'quick'?"),
        ('run --set eval.attacks=["fgsn"]', "unknown attack 'fgsn'; did you mean 'fgsm'?"),
        ('run --set eval.transfer_attacks=["aa"]', "AutoAttack is not transferred"),
        ('run --set eval.proxies=["digits-robst"]', "unknown teacher 'digits-robst'; did you mean 'digits-robust'?"),
        ("eval x.pt --arch cnn-4 --dataset digitz", "checkpoint 'x.pt' does not exist"),
        ("teachers digits-robst", "unknown teacher 'digits-robst'; did you mean 'digits-robust'?"),
        # Settings
        ("run --set train.epoch=3", "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("run --set trian.epochs=3", "unknown key 'trian'; did you mean 'train'?"),
        ("run --set train=3", "train = 3: "),
        ("run --set datasets=5", "datasets = 5: input should be a valid list"),
        ("run --set methods=[]", "methods = []: "),
        ("run --set seeds=[-1]", "seeds.0 = -1: "),
        ("run --set train.milestones=[115,160]", "train.milestones.0 = 115: input should be less than 1"),
        ("run --set train.epochs", "--set train.epochs: write key=value"),
        ("run --set =3", "--set =3: write key=value"),
        ("run --set threat.eps=9/8", "threat.eps = '9/8': '9/8' is no number in [0, 1]"),
        ("run --set threat.step=-0.1", "threat.step = -0.1: "),
        # What no setting can be, wherever it stands
        ("run --set train.lr=inf", "train.lr = inf: give a finite number"),
        ("run --set train.weight_decay=nan", "train.weight_decay = nan: give a finite number"),
        ("run --set budget=inf", "budget = inf: give a finite number"),
        ("run --set hyper.smaraad.gamma=inf", "hyper.smaraad.gamma = inf: give a finite number"),
        ("run --set hyper.trades.beta=-inf", "hyper.trades.beta = -inf: give a finite number"),
        ("run --methods rslad --set hyper.trades.beta=[[nan]]", "hyper.trades.beta.0.0 = nan: give a finite number"),
        ("run --set eval.seed=99999999999999999999", "eval.seed is beyond 9223372036854775807"),
        ("run --set seeds=[9223372036854775808]", "seeds.0 is beyond 9223372036854775807"),
        ("run --seeds 18446744073709551616,", "'18446744073709551616,': give at least one seed"),
        ("run --set train.epochs=9223372036854775807", "train.epochs = 9223372036854775807: input should be less than"),
        ("run --set train.attack_steps=1000000000", "train.attack_steps = 1000000000: input should be less than"),
        ("run --set hyper.rslad.alpha=1979-05-27", "hyper.rslad.alpha = 1979-05-27: it is a date or a time"),
        ("run --engine ray --gpus nan", "--gpus nan: give a share"),
        ("run --engine ray --gpus inf", "--gpus inf: give a share"),
        ("run --set data.train_images=99999", "digits: 99999 training images asked for; ask for 1 to "),
        ("run --methods mtard --set hyper.mtard.weight_natural=2", "hyper.mtard: weight_natural = 2: "),
        (
            "run --methods mtard --set hyper.mtard.balanse=1",
            "hyper.mtard: unknown key 'balanse'; did you mean 'balance'?",
        ),
        ("run --set hyper.rslda.alpha=1", "unknown method 'rslda'; did you mean 'rslad'? (in the table [hyper])"),
        # Seeds and devices
        ("run --seeds x", "'x' is neither a number of seeds nor a list like 0,1,2"),
        ("run --seeds 0", "'0': give at least one seed"),
        ("run --seeds=-1,2", "none below 0"),
        ("run --seeds=", "give at least one seed"),
        ("run --seeds 20240101", "for that one seed write '20240101,'"),
        ("run --device cdua", "device 'cdua' cannot be used here; choose cpu, cuda or cuda:N"),
        ("run --device cuda:99", "device 'cuda:99' cannot be used here"),
        ("run --device meta", "device 'meta' cannot be used here"),
        # Files that are not there
        ("run --config nope.toml", "configuration 'nope.toml' does not exist"),
        ("run --config .", "configuration '.' is a folder"),
        ("run --teacher nope.toml", "'nope.toml' does not exist"),
        ("run --teacher cnn-4@nope.pt", "checkpoint 'nope.pt' does not exist"),
        ("eval nope.pt --arch cnn-4", "checkpoint 'nope.pt' does not exist"),
        ("run --dataset nope.npz --teacher digits-robust", "dataset 'nope.npz' does not exist"),
        ("run --plugin nope.py", "plugin 'nope.py': no such Python file"),
        ("report --results nope", "results folder 'nope' does not exist"),
        ("results --results nope", "results folder 'nope' does not exist"),
        ("run --results ", "invalid value for '--results': no folder is named"),
        ("report --results ", "invalid value for '--results': no folder is named"),
        # The command line itself
        ("rn --methods all", "unknown command 'rn'; did you mean 'run'?"),
        ("run --presett x", "unknown option '--presett'; did you mean '--preset'? (adbench run --help)"),
        ("--metods", "unknown option '--metods' (adbench --help)"),
        ("run --eps 4/255", "unknown option '--eps'; it is a setting: --set threat.eps=VALUE (adbench run --help)"),
        ("run --batch-size 64", "it is a setting: --set train.batch_size=VALUE"),
        ("report --eps 4/255", "unknown option '--eps' (adbench report --help)"),
        ("run --set eps=4/255", "unknown key 'eps'; did you mean 'threat.eps'?"),
        ("run --jobs 0", "invalid value for '--jobs': 0 is not in the range"),
        ("run --jobs", "option '--jobs' requires an argument"),
        ("list planets", "'planets' is not one of 'methods'"),
        ("eval x.pt", "missing option '--arch'"),
        ("new-method", "missing argument 'NAME'"),
        ("new-method Not_A_Name", "'Not_A_Name' cannot be a method's name"),
        ("new-method trades", "a method 'trades' is there already"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(command: str, said: str) -> None:
    assert said in sentence(cli(*command.split(" ")))
    assert not list(Path().iterdir()), "a refused command leaves nothing behind"


def test_lists_a_thousand_deep_are_refused() -> None:
    assert "more than 20 deep" in sentence(cli("run", "--set", f"hyper.rslad.alpha={'[' * 1000}{']' * 1000}"))
    deep = f"hyper.rslad.alpha={'[' * 25}{']' * 25}"
    assert "more than 20 deep" in sentence(cli("run", "--set", deep))


def test_infinity_in_a_teacher_file_is_named() -> None:
    Path("odd.toml").write_text(TEACHER.replace("epochs = 1", "epochs = 1\nlr = inf"), encoding="utf-8")
    assert "source.train.lr = inf: give a finite number" in sentence(cli("run", "--teacher", "odd.toml"))


@pytest.mark.parametrize(
    "words",
    [
        "compare {long} rslad",
        "compare rslad {long}",
        "eval {long} --arch cnn-4",
        "new-method {long}",
        "export {long} --out made",
        "verify {long}",
        "golden {long}",
        "report --results {long}",
        "merge {long} --into made",
        "run --config {long}",
        "run --plugin {long}.py",
        "run --teacher cnn-4@{long}",
        "run --teacher {long}.toml",
        "run --dataset ./{long}",
        "run --dataset {long}.npz",
        "status --results {long}",
    ],
)
def test_a_name_that_no_file_can_have_is_refused(words: str) -> None:
    assert len(sentence(cli(*words.format(long="x" * 300).split()))) < 800


def test_a_dataset_and_a_teacher_with_the_longest_names_are_judged(checkpoint: Path) -> None:
    long = Path("t" * 240 + ".safetensors")
    long.write_bytes(checkpoint.read_bytes())
    result = cli("eval", long, "--arch", "cnn-4", "--attacks", "fgsm", "--images", "8")
    assert result.exit_code == 0, result.output
    assert len(list(Path("results").glob("digits/checkpoints/t*-*/eval-*/record.json"))) == 1


@pytest.mark.parametrize("encoding", ["latin-1", "cp437"])
def test_a_terminal_that_lacks_a_letter_shows_a_question_mark(encoding: str) -> None:
    result = CliRunner(charset=encoding).invoke(main, ["run", "--dataset", "./数据.npz"])
    assert result.exit_code == 2
    assert b"??" in result.stderr_bytes


def test_a_name_whose_bytes_are_no_text_is_refused() -> None:
    assert "is not text in UTF-8" in sentence(cli("run", "--dataset", "./\udcff.npz"))


def test_every_wrong_setting_is_named_at_once() -> None:
    wrong = ["train.lr=-1", "train.epochs=0", "eval.imags=5", "threat.eps=2", "data.val_images=1.5"]
    said = sentence(cli("run", *(word for setting in wrong for word in ("--set", setting))))
    assert all(key in said for key in ("train.lr = -1", "train.epochs = 0", "'eval.imags'", "threat.eps = 2"))
    assert "data.val_images = 1.5" in said
    assert "did you mean 'images'?" in said


def test_a_config_that_is_not_toml_is_refused_with_the_place_of_the_mistake() -> None:
    Path("mine.toml").write_text("[train]\nepochs = = 3\n", encoding="utf-8")
    assert "'mine.toml' is not valid TOML" in (said := sentence(cli("run", "--config", "mine.toml")))
    assert "line 2" in said


def test_a_mistake_in_a_config_file_suggests_the_key() -> None:
    Path("mine.toml").write_text("[train]\nepocs = 3\n", encoding="utf-8")
    assert "'train.epocs'; did you mean 'epochs'?" in sentence(cli("run", "--config", "mine.toml"))


# Checkpoints and teachers


@pytest.fixture
def checkpoint() -> Path:
    path = Path("net.safetensors")
    save_weights(path, models.build("cnn-4", classes=10, channels=1), {})
    return path


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_a_truncated_checkpoint_is_refused(checkpoint: Path, keep: float) -> None:
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(keep * len(whole)) if keep < 1 else int(keep)])
    said = sentence(run("--methods", "rslad", "--teacher", f"cnn-4@{checkpoint}"))
    assert "net.safetensors" in said
    assert "truncated or damaged" in said


def test_a_corrupt_torch_file_is_refused() -> None:
    torch.save(models.build("cnn-4", classes=10, channels=1).state_dict(), "net.pt")
    whole = bytearray(Path("net.pt").read_bytes())
    Path("net.pt").write_bytes(whole[: len(whole) // 2])
    assert "truncated or damaged" in sentence(cli("eval", "net.pt", "--arch", "cnn-4"))


def test_a_checkpoint_of_another_architecture_is_refused(checkpoint: Path) -> None:
    assert "do not fit" in sentence(cli("eval", checkpoint, "--arch", "cnn-8"))
    assert "do not fit" in sentence(run("--methods", "rslad", "--teacher", f"rn18@{checkpoint}"))
    assert not Path("results").exists()


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return os.rename, ("harmless", "executed")


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(save: str) -> None:
    Path("harmless").touch()
    if save == "torch":
        torch.save({"state_dict": _Payload()}, "evil.pt")
    else:
        Path("evil.pt").write_bytes(pickle.dumps(_Payload()))
    said = sentence(run("--methods", "rslad", "--teacher", "cnn-4@evil.pt"))
    assert "could run code" in said
    assert not Path("executed").exists()


def _teacher(text: str) -> Path:
    path = Path("mine.toml")
    path.write_text(text, encoding="utf-8")
    return path


def test_a_checkpoint_with_another_hash_than_its_teacher_states_is_refused(checkpoint: Path) -> None:
    path = _teacher(f'architecture = "cnn-4"\n[source]\nkind = "file"\npath = "{checkpoint}"\nsha256 = "{"0" * 64}"\n')
    said = sentence(run("--methods", "rslad", "--teacher", path))
    assert "the teacher states 000000000000..." in said
    assert files.sha256(checkpoint)[:12] in said


def test_a_teacher_for_another_dataset_is_refused() -> None:
    path = _teacher(TEACHER.replace('"digits"', '"cifar10"'))
    said = sentence(run("--methods", "rslad", "--teacher", path))
    assert "teacher 'mine' is for 'cifar10', not for 'digits'" in said


def test_a_teacher_trained_by_a_method_that_needs_a_teacher_is_refused() -> None:
    path = _teacher(TEACHER.replace('"pgd-at"', '"rslad"'))
    assert "method 'rslad' needs a teacher itself" in sentence(run("--methods", "rslad", "--teacher", path))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kind =", "king =", "source = "),
        ('method = "pgd-at"', 'methode = "pgd-at"', "'source.method' is missing"),
        ('method = "pgd-at"', 'methode = "pgd-at"', "'source.methode'; did you mean 'method'?"),
        ("epochs = 1", "epocs = 1", "'source.train.epocs'; did you mean 'epochs'?"),
        ('architecture = "cnn-4"', "", "'architecture' is missing"),
        ('architecture = "cnn-4"', 'architecture = "cnn-l6"', "did you mean 'cnn-16'?"),
        ('"pgd-at"', '"pgd-a"', "unknown method 'pgd-a'; did you mean 'pgd-at'?"),
        ("epochs = 1", "epochs = = 1", "is not valid TOML"),
    ],
)
def test_a_mistake_in_a_teacher_file_is_named(old: str, new: str, said: str) -> None:
    assert old in TEACHER
    assert said in sentence(run("--methods", "rslad", "--teacher", _teacher(TEACHER.replace(old, new))))


# Data


def _npz(path: Path, classes: int) -> Path:
    labels = np.arange(24) % classes
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 8, 8), dtype=np.uint8)
    np.savez(path, x_train=images[0], y_train=labels, x_test=images[1], y_test=labels)
    return path


def test_a_truncated_dataset_is_refused() -> None:
    path = _npz(Path("data.npz"), 10)
    path.write_bytes(path.read_bytes()[:1000])
    assert "'data.npz' is not a whole .npz archive" in sentence(run("--methods", "pgd-at", "--dataset", path))


def test_a_dataset_without_the_arrays_is_refused() -> None:
    np.savez("data.npz", images=np.zeros((2, 8, 8), np.uint8))
    said = sentence(run("--methods", "pgd-at", "--dataset", "data.npz"))
    assert "lacks x_train, y_train, x_test, y_test; it holds images" in said


def test_a_method_without_a_teacher_runs_on_a_dataset_without_one() -> None:
    path = _npz(Path("data.npz"), 3)
    small = {"data__train_images": "8", "data__val_images": "8", "train__batch_size": "4"}
    assert run("--methods", "pgd-at", "--dataset", path, **small).exit_code == 0
    assert "dataset 'data.npz' has no teacher of its own" in sentence(
        run("--methods", "rslad", "--dataset", path, **small)
    )


# The results folder and the disk


def test_a_results_folder_below_a_file_is_refused() -> None:
    Path("file").touch()
    assert "cannot write" in sentence(run("--methods", "pgd-at", "--results", "file/results"))
    assert "'file' is a file" in sentence(run("--methods", "pgd-at", "--results", "file"))


def test_a_results_folder_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    assert "Permission denied; choose another folder" in sentence(run("--methods", "pgd-at"))


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes of any file fails in the kernel, as on a disk that is almost full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_too_full_for_checkpoints_fails_the_cell_with_that_reason() -> None:
    assert run("--methods", "pgd-at").exit_code == 0
    kept = records(Path("results"))
    with _largest_file(8000):
        result = run("--methods", "pgd-at,natural")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    failed = record_of(Path("results"), "natural")
    assert failed["error"]["phase"] == "train"
    assert failed["error"]["message"].startswith("cannot write '")
    assert "File too large" in failed["error"]["message"]
    assert records(Path("results")).items() > kept.items()


@pytest.mark.parametrize("writes", [1, 3, 5])
def test_a_full_disk_is_reported_and_nothing_finished_is_lost(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--methods", "pgd-at").exit_code == 0
    kept = records(Path("results"))
    done = 0

    def fsync(_: int) -> None:
        nonlocal done
        done += 1
        if done > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", fsync)
        assert "No space left on device; free the disk" in sentence(run("--methods", "pgd-at,natural"))
    assert records(Path("results")) == kept
    result = run("--methods", "pgd-at,natural")
    assert result.exit_code == 0
    assert "1 of 2 cells to do" in result.output
    assert records(Path("results")).items() > kept.items()


@pytest.mark.parametrize(
    "damage", ['{"schema_version": 1, "kind": "stu', "[]", "{}", '{"schema_version": 1}', "\x00\xff"]
)
def test_a_damaged_record_is_named_by_results_and_report_and_made_anew_by_run(damage: str) -> None:
    assert run("--methods", "pgd-at").exit_code == 0
    (path,) = Path("results").rglob("record.json")
    path.write_text(damage, encoding="latin-1")
    for result in (cli("results"), cli("report")):
        assert result.exit_code == 1
        assert f"left out: '{path}'" in result.output
    assert not Path("reports").exists()
    result = run("--methods", "pgd-at")
    assert result.exit_code == 0
    assert f"'{path}'" in result.output
    assert "the cell is judged again" in result.output
    assert cli("results").exit_code == 0


def test_a_record_of_another_version_is_not_written_over() -> None:
    assert run("--methods", "pgd-at").exit_code == 0
    (path,) = Path("results").rglob("record.json")
    path.write_text('{"schema_version": 99}', encoding="utf-8")
    said = f"'{path}' has schema version 99; this adbench reads version 1"
    assert said in sentence(run("--methods", "pgd-at"))
    for result in (cli("results"), cli("report")):
        assert result.exit_code == 1
        assert f"left out: {said}" in result.output
    assert path.read_text(encoding="utf-8") == '{"schema_version": 99}'


def test_a_damaged_summary_of_a_training_fails_its_cell_alone() -> None:
    assert run("--methods", "pgd-at").exit_code == 0
    (summary,) = Path("results").rglob("training.json")
    summary.write_text("{", encoding="utf-8")
    assert run("--methods", "pgd-at,natural", eval__seed="1").exit_code == 1
    failed = [r for r in records(Path("results")).values() if r["status"] == "failed"]
    assert [r["method"] for r in failed] == ["pgd-at"]
    assert "delete its folder to train again" in failed[0]["error"]["message"]


# Plugins

HEAD = "from adbench import Method\nfrom adbench.losses import cross_entropy\n"
METHOD = (
    HEAD
    + '''
class Mine(Method):
    """Mine."""

    label = "Mine"

    def attack(self, step):
        return step.x

    def loss(self, step, x_adv):
        return {loss}
'''
)


def _plugin(name: str, text: str) -> Path:
    path = Path(f"{name}.py")
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class Broken(:\n    pass\n", "cannot be imported: SyntaxError"),
        ("raise ValueError('first\\nsecond')\n", "cannot be imported: ValueError: first second"),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("class Mine:\n    def loss(self):\n        return 0\n", "is not a subclass of adbench.Method"),
        ("plugin = 3\n", "is not a subclass of adbench.Method"),
        ("x = 1\n", "defines 0 classes that could be the method"),
        (METHOD + METHOD.replace("Mine", "Other").replace(HEAD, ""), "defines 2 classes"),
        (METHOD.replace('    label = "Mine"\n', ""), "has no `label`"),
    ],
    ids=["syntax", "raises", "import", "no-method", "no-class-at-all", "empty", "two", "no-label"],
)
def test_a_plugin_that_cannot_be_a_method_is_refused(text: str, said: str) -> None:
    path = _plugin("mine", text)
    assert said in sentence(run("--methods", "mine", "--plugin", path))
    assert not Path("results").exists()


def test_a_plugin_that_takes_the_name_of_another_is_refused() -> None:
    assert "already registered; rename the file" in sentence(cli("list", "--plugin", _plugin("trades", METHOD)))
    Path("other").mkdir()
    first, second = _plugin("mine", METHOD), _plugin("other/mine", METHOD)
    assert "has the same name; rename" in sentence(cli("list", "--plugin", first, "--plugin", second))


def test_a_plugin_with_a_syntax_error_does_not_stop_the_list() -> None:
    result = cli("list", "methods", "--plugin", _plugin("mine", "class Broken(:\n"))
    assert result.exit_code == 0
    assert "(its source file cannot be read)" in result.output


BROKEN = {
    "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
    "not-a-number": ("cross_entropy(step.student(x_adv), step.y) * float('nan')", "the loss is nan in epoch 1"),
    "infinite": ("cross_entropy(step.student(x_adv), step.y) * float('inf')", "the loss is inf in epoch 1"),
    "scalar": ("cross_entropy(step.student(x_adv), step.y).mean()", "loss has shape (), expected one value an example"),
    "wide": ("step.student(x_adv)", "loss has shape (32, 10), expected one value an example, (32,)"),
    "a-number": ("3.0", "loss is a float, expected one value an example"),
    "constant": ("cross_entropy(step.student(x_adv), step.y).detach()", ""),
    "lonely": ("cross_entropy(step.teacher(x_adv), step.y)", ""),
}


def test_broken_plugins_fail_their_own_cells_with_the_reason_and_the_others_finish() -> None:
    plugins = [_plugin(name.replace("-", "_"), METHOD.format(loss=loss)) for name, (loss, _) in BROKEN.items()]
    named = [word for path in plugins for word in ("--plugin", str(path))]
    result = run("--methods", ",".join([*BROKEN, "pgd-at"]), *named)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert f"{len(BROKEN)} of {len(BROKEN) + 1} cells failed" in result.output
    assert record_of(Path("results"), "pgd-at")["status"] == "done"
    for name, (_, reason) in BROKEN.items():
        found = record_of(Path("results"), name)
        assert found["status"] == "failed"
        assert found["error"]["phase"] == "train"
        assert reason in found["error"]["message"]
        assert len(found["error"]["message"].split()) > 3
    assert len(list(Path("results").rglob("traceback.txt"))) == len(BROKEN)


def test_a_plugin_that_broke_only_once_is_tried_again_and_its_traceback_goes() -> None:
    text = METHOD.format(loss="cross_entropy(step.student(x_adv), step.y) / (not Path('stop').exists())")
    path = _plugin("mine", "from pathlib import Path\n" + text)
    Path("stop").touch()
    assert run("--methods", "mine", "--plugin", path).exit_code == 1
    Path("stop").unlink()
    result = run("--methods", "mine", "--plugin", path)
    assert result.exit_code == 0
    assert record_of(Path("results"), "mine")["status"] == "done"
    assert not list(Path("results").rglob("traceback.txt"))


def test_records_of_failed_cells_are_valid_and_reported() -> None:
    plugin = _plugin("raises", METHOD.format(loss="1 / 0"))
    line = next(n for n, text in enumerate(Path(plugin).read_text().splitlines(), start=1) if "1 / 0" in text)
    assert run("--methods", "raises,pgd-at", "--plugin", plugin).exit_code == 1
    for data in records(Path("results")).values():
        conform(data)
    listed = cli("results", "--status", "failed", "--format", "json")
    assert json.loads(listed.output)[0]["error"] == f"ZeroDivisionError: division by zero (raises.py, line {line})"
