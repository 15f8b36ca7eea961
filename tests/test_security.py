"""docs/security.md, claim by claim: what comes from outside cannot run code, lead astray, or break the report."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic import add
from tiny import PLUGIN as WORKS
from tiny import cli, options
from torchvision.datasets import CIFAR10

from adbench.data import load
from adbench.errors import UserError
from adbench.evaluation import outcome_files
from adbench.experiment import cell, teacher
from adbench.experiment.cell import safe
from adbench.results import document, record
from adbench.training import resume
from adbench.weights import file_reader

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*ROOT.glob("adbench/**/*.py"), *ROOT.glob("methods/*.py"), *ROOT.glob("teachers/*.py")]


class Payload:
    """Pickled, it leaves a file behind when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file by which a payload shows that it ran; a plain load shows that it would."""
    path = tmp_path / "it-ran"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.exists()
    path.unlink()
    return path


# 1. Files run nothing


def test_no_module_calls_what_would_run_a_file() -> None:
    """The whole source: no eval, no bare pickle, torch and numpy only in their safe modes, no archive unpacked."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            forbidden = name in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
            forbidden |= name.split(".")[0] in {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
            forbidden |= name == "torch.load" and words.get("weights_only") != "True"
            forbidden |= name == "np.load" and words.get("allow_pickle") != "False"
            forbidden |= name in {"torch.jit.load", "torch.hub.load", "urllib.request.urlopen"}
            forbidden |= name.endswith((".extractall", ".extract", ".unpack_archive", "exec_module"))
            forbidden |= words.get("shell") == "True"
            if forbidden:
                found.append(f"{path.relative_to(ROOT)}: {name}")
    # A refusal that is raised; and the plugin that the user names, with its local modules.
    plugin = {"adbench/registry.py: compile", "adbench/registry.py: exec", "adbench/plugin_code.py: compile"}
    assert set(found) == {"adbench/data/cifar.py: pickle.UnpicklingError"} | plugin


@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_that_would_run_code_are_refused(wrapped: bool, mark: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    content: Any = {"weight": torch.zeros(1), "extra": Payload(mark)}
    torch.save({"state_dict": content} if wrapped else content, path)
    with pytest.raises(UserError, match="refused, because the file holds Python objects"):
        file_reader.read(path)
    result = cli("eval", path, "--arch", "cnn-4", "--results", tmp_path / "results")
    assert result.exit_code == 2
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match="refused"):
        file_reader.read(path)
    assert not mark.exists()


def test_a_resume_state_that_would_run_code_is_refused(mark: Path, tmp_path: Path) -> None:
    """Also one with a right checksum: whoever can write the file can write that too."""
    store = resume.Store(tmp_path)
    store.save({"epoch": 1, "student": Payload(mark)}, 1)
    with pytest.raises(pickle.UnpicklingError):
        store.load(torch.device("cpu"))
    assert not mark.exists()


def test_arrays_that_would_run_code_are_refused(mark: Path, tmp_path: Path) -> None:
    arrays: dict[str, Any] = dict.fromkeys(("x_train", "y_train", "x_test", "y_test"), np.array([Payload(mark)]))
    for name in ("mine.npz", "cifar10.npz"):
        np.savez(tmp_path / name, **arrays)
    for name in (str(tmp_path / "mine.npz"), "cifar10"):
        with pytest.raises(UserError, match="no objects, no pickles"):
            load(name, tmp_path)
    np.savez(tmp_path / "partial-1.npz", right=np.array([Payload(mark)]), meta=np.array([Payload(mark)]))
    assert outcome_files.load(tmp_path, "") == {}
    assert not mark.exists()


def cifar10_of(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `content` be the published file, with its right MD5 sum."""
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["data_batch_1", md5]])


def test_a_cifar_pickle_makes_arrays_and_nothing_else(
    mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rows = np.zeros((10, 3072), np.uint8)
    for data in (Payload(mark), [rows, Payload(mark)], np.array([Payload(mark)])):
        content = pickle.dumps({"data": data, "labels": list(range(10))})
        (folder / "data_batch_1").write_bytes(content)
        cifar10_of(content, monkeypatch)
        with pytest.raises(UserError, match=r"'data_batch_1' was refused.*it asks for (pathlib|posix|_io)"):
            load("cifar10", tmp_path)
    assert not mark.exists()


def test_an_archive_is_read_and_never_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3072), np.uint8)
    content = pickle.dumps({"data": images, "labels": [i % 10 for i in range(20)]})
    cifar10_of(content, monkeypatch)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in ("../../escaped", str(tmp_path / "absolute"), f"{CIFAR10.base_folder}/../escaped"):
            tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo(f"{CIFAR10.base_folder}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
        member = tarfile.TarInfo(f"{CIFAR10.base_folder}/data_batch_1")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    data = tmp_path / "deep" / "data"
    data.mkdir(parents=True)
    (data / CIFAR10.filename).write_bytes(buffer.getvalue())
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(buffer.getvalue(), usedforsecurity=False).hexdigest())
    assert len(load("cifar10", data, val_images=10).test) == 20
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()}
    assert files == {"deep/data/cifar-10-python.tar.gz", "deep/data/cifar10.npz", "deep/data/.lock"} - (
        {"deep/data/.lock"} - files
    )


# 2. Names are no paths


HOSTILE = ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b\\c", "\x00", "~root", "$(id)", "-rf", "con\n", "😀"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_becomes_one_harmless_path_component(name: str, tmp_path: Path) -> None:
    part = safe(name)
    assert re.fullmatch(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*", part)
    assert (tmp_path / part).resolve().parent == tmp_path.resolve()
    for path in (cell.dataset_folder(name), teacher.robustbench_file(tmp_path, name, name).name):
        assert "/" not in path
    file = teacher.robustbench_file(tmp_path, name, name)
    assert file.resolve().is_relative_to((tmp_path / "robustbench").resolve())


def test_a_cell_of_hostile_names_stays_in_the_results_folder(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text(
        'name = "../../../evil"\narchitecture = "cnn-4"\n[source]\nkind = "train"\nmethod = "pgd-at"\n',
        encoding="utf-8",
    )
    words = [
        "run",
        "--methods",
        "ard",
        "--teacher",
        file,
        "--student",
        "cnn-4",
        "--results",
        tmp_path / "a" / "results",
    ]
    for setting in ("train.epochs=1", "data.train_images=32", "data.val_images=16", "eval.images=8", "eval.proxies=[]"):
        words += ["--set", setting]
    words += ["--set", 'eval.attacks=["fgsm"]', "--set", "eval.masking=0", "--set", "train.attack_steps=1"]
    result = cli(*words)
    assert result.exit_code == 0, result.output
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and "results" not in p.relative_to(tmp_path).parts]
    assert outside == [file]


def test_a_record_has_no_file_read_that_is_not_its_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"epoch": 1}', encoding="utf-8")
    found = record.read(add(tmp_path / "results", metrics={"clean": 0.9}))
    assert found.log(), "its own is read"
    for name in ("../../../secret.json", str(secret)):
        data = document.opened(found.path)
        record.write(tmp_path / "other.json", data | {"training": data["training"] | {"log": name}})
        with pytest.raises(UserError, match=r"training\.log"):
            record.read(tmp_path / "other.json")
        with pytest.raises(UserError, match="a file outside its folder; it was not read"):
            document.beside(found.path, name)
    assert document.beside(found.path, "adversarial/fgsm.npz") == found.path.parent / "adversarial" / "fgsm.npz"
    (found.path.parent / "link").symlink_to(secret)
    with pytest.raises(UserError, match="outside its folder"):
        document.beside(found.path, "link")


# 3. The report escapes


HOSTILE_TEXT = "<script>alert(1)</script>\"'&lt; \\input{/etc/passwd} $x^{$ | `rm` [a](javascript:b) {{7*7}} %"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on records in which every text is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    transfer = f"transfer:{HOSTILE_TEXT}:cw"
    for seed in (0, 1):
        add(
            folder / "results",
            dataset=HOSTILE_TEXT[:20],
            label=HOSTILE_TEXT,
            teacher=HOSTILE_TEXT,
            seed=seed,
            student=f"<b>{seed}</b>",
            metrics={"clean": 0.9, "pgd20": 0.5 + seed / 10, transfer: 0.6},
            flags={"pgd20": [HOSTILE_TEXT]},
        )
    add(folder / "results", kind="teacher", label=HOSTILE_TEXT, metrics={"clean": 0.9}, dataset=HOSTILE_TEXT[:20])
    add(folder / "results", kind="checkpoint", label="=HYPERLINK(1)", method=None, metrics={"clean": 0.9})
    add(folder / "results", method="ard", label=HOSTILE_TEXT, error=HOSTILE_TEXT)
    result = cli("report", "--results", folder / "results", "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return folder


def test_the_page_shows_hostile_text_and_runs_none_of_it(report: Path) -> None:
    page = (report / "out" / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "<b>0</b>" not in page
    assert not re.search(r"""(href|src)\s*=\s*["']?\s*javascript""", page, re.IGNORECASE)
    assert not re.search(r"<[^>]*\son\w+\s*=", page)
    assert "{{7*7}}" in page


def test_the_other_forms_escape_too(report: Path) -> None:
    latex = "\n".join(path.read_text(encoding="utf-8") for path in (report / "out").rglob("*.tex"))
    assert r"\textbackslash{}input\{/etc/passwd\}" in latex
    assert "\\input{/etc" not in latex
    markdown = (report / "out" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown.replace(r"\<script", "")
    assert "](javascript" not in markdown.replace(r"\](", "")
    for path in (report / "out").rglob("*.csv"):
        for value in pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().ravel():
            assert not str(value).startswith(("=", "+", "@")), "a spreadsheet would compute it"


def test_nothing_is_written_beside_the_report(report: Path) -> None:
    assert sorted(path.name for path in report.iterdir()) == ["out", "results"]
    for path in (report / "out").rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._+-]+", path.name), path.name


# 4. Plugins


PLUGIN = '''
"""A method that shows that it was imported."""
import pathlib
pathlib.Path(r"{mark}").touch()
from adbench.methods.pgd_at import PGDAT
class Mine(PGDAT):
    """Mine."""
    label = "Mine"
'''


def test_a_plugin_is_run_when_the_user_names_it_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "imported"
    (tmp_path / "mine.py").write_text(PLUGIN.format(mark=mark), encoding="utf-8")
    add(tmp_path / "results", method="mine", label="Mine", metrics={"clean": 0.9})
    (tmp_path / "t.toml").write_text(
        'architecture = "cnn-4"\n[source]\nkind = "train"\nmethod = "mine"\n', encoding="utf-8"
    )

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "adbench", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "mine" not in cli("list", "methods").output
    assert cli("results").exit_code == 0
    assert "unknown method 'mine'" in cli("run", "--methods", "mine").output
    assert "unknown method 'mine'" in cli("run", "--methods", "ard", "--teacher", "t.toml", "--dry-run").output
    assert "Mine." in call("list", "methods", "--plugin", "mine.py").stdout, "listing reads and does not import"
    assert not mark.exists()
    assert call("info", "mine.py").returncode == 0
    assert mark.exists()


# 5. Configuration is data


@pytest.mark.parametrize("text", ["x = __import__('os')", "!!python/object:os.system", "{{7*7}}"])
def test_configuration_is_toml_and_nothing_else(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text, encoding="utf-8")
    result = cli("run", "--config", file, "--dry-run")
    assert result.exit_code == 2
    assert "is not valid TOML" in result.output


def test_a_record_is_json_and_nothing_else(mark: Path, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(UserError, match="not a readable record"):
        record.read(tmp_path / "record.json")
    assert not mark.exists()


# What this leaves open, said in docs/security.md too


def test_a_digest_tells_damage_and_not_forgery(tmp_path: Path) -> None:
    path = add(tmp_path, metrics={"clean": 0.9})
    forged = json.loads(path.read_text(encoding="utf-8")) | {"label": "forged"}
    document.write(path, {key: value for key, value in forged.items() if key != "digest"})
    assert record.read(path).label == "forged"


HOSTILE = ("torch", "sklearn", "random", "threading", "socket", "json", "adbench", "click")


def hostile_folder(folder: Path) -> None:
    """Modules that leave a file `ran` behind, a plugin that does nothing of the kind."""
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'a').write('{name} ')\nraise ImportError")
    for name in ("methods", "teachers"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text((folder / "json.py").read_text())
    (folder / "mine.py").write_text(WORKS)


def test_modules_in_the_working_folder_are_not_run(tmp_path: Path) -> None:
    """With worker processes, whose servers multiprocessing starts by itself. For `python -m` see test_wheel.py."""
    hostile_folder(tmp_path)
    words = ["run", "--methods", "mine,natural", "--plugin", "mine.py", "--jobs", "2", *options()]
    unsafe = {name: value for name, value in os.environ.items() if name not in ("PYTHONSAFEPATH", "PYTHONPATH")}
    start = Path(sys.executable).with_name("adbench")
    done = subprocess.run([start, *words], cwd=tmp_path, env=unsafe, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()


def test_listing_methods_imports_no_package_of_a_third_party(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "__init__.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (tmp_path / "theirs" / "fine.py").write_text(WORKS)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[adbench.methods]\ntheirs = theirs.fine:Mine\n")
    script = "from adbench.cli import main; main(['list', 'methods'])"
    paths = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=paths, capture_output=True, text=True)
    assert "Cross-entropy at the image itself. [theirs]" in done.stdout, done.stderr
    assert not ran.exists()
