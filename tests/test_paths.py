"""Paths and files as users write them: one rule for `~`, for commas, for byte-order marks, wherever they are given."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TEACHER, cli, options, run

from adbench.cli.options import listed
from adbench.data import load
from adbench.errors import UserError
from adbench.experiment import config, teacher
from adbench.models import build
from adbench.results import record
from adbench.system import files
from adbench.weights import networks
from adbench.weights.checkpoint import weights_sha256


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder; the working folder is another."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def saved(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(build("cnn-4", classes=10, channels=1).state_dict(), path)
    return path


def data(path: Path) -> Path:
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    for part, n in (("train", 40), ("test", 12)):
        arrays |= {f"x_{part}": rng.integers(0, 256, (n, 8, 8), dtype=np.uint8), f"y_{part}": np.arange(n) % 4}
    np.savez(path, **arrays)
    return path


# --- ~ ---


def test_home_is_meant_in_every_option_and_no_folder_called_tilde_is_made(home: Path) -> None:
    saved(home / "w.pt")
    result = cli("eval", "~/w.pt", "--arch", "cnn-4", "--attacks", "fgsm", "--images", "4", "--results=~/results")
    assert result.exit_code == 0, result.output
    assert list((home / "results").rglob("record.json"))
    assert not list(Path().iterdir())


def test_home_is_meant_in_names_and_lists(home: Path) -> None:
    data(home / "d.npz")
    saved(home / "w.pt")
    (home / "mine.toml").write_text(TEACHER, encoding="utf-8")
    (home / "other.toml").write_text(
        'architecture = "cnn-4"\n[source]\nkind = "file"\npath = "~/w.pt"\n', encoding="utf-8"
    )
    assert load("~/d.npz", Path("unused")).classes == 4
    assert teacher.find("~/mine.toml").name == "mine"
    for text in ("cnn-4@~/w.pt", "~/other.toml"):
        source = teacher.find(text).source
        assert isinstance(source, teacher.LocalFile)
        assert source.path == home / "w.pt"
    assert config.read_toml(Path("~/mine.toml"))["architecture"] == "cnn-4"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """No home folder: neither a variable nor an entry for the user."""

    def nobody(*_: object) -> None:
        raise KeyError("nobody")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_what_needs_none_works_and_the_rest_is_one_sentence() -> None:
    assert cli("run", *options(), "--methods", "natural", "--dry-run").exit_code == 0
    wanted = cli("run", "--dataset", "cifar10", "--methods", "natural", "--dry-run")
    asked = cli("run", "--methods", "natural", "--dry-run", "--results=~/x")
    for result in (wanted, asked):
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "no home folder is known for '~'" in result.stderr
    assert not list(Path().iterdir())


# --- commas ---


def test_what_exists_as_a_whole_is_one_name() -> None:
    data(Path("a,b/d.npz"))
    saved(Path("a,b/w.pt"))
    assert listed("a,b/d.npz") == ["a,b/d.npz"]
    assert listed("digits,a,b/d.npz,cifar10") == ["digits", "a,b/d.npz", "cifar10"]
    assert listed("cnn-4@a,b/w.pt,digits-robust") == ["cnn-4@a,b/w.pt", "digits-robust"]
    assert listed("cnn-4@a,b/w.pt#ema") == ["cnn-4@a,b/w.pt#ema"]
    assert listed("a,b/gone.npz") == ["a", "b/gone.npz"]
    assert listed("rslad, adaad,,") == ["rslad", "adaad"]
    assert listed(",".join(["x" * 300] * 3)) == ["x" * 300] * 3


def test_a_checkpoint_whose_name_has_a_hash_sign_is_meant_as_a_whole() -> None:
    path = saved(Path("run#3.pt"))
    assert teacher.split_key(path) == (path, None)
    assert teacher.split_key(Path("run#3.pt#ema")) == (path, "ema")


def test_the_key_of_a_network_in_a_file_is_a_part_of_the_teachers_identity() -> None:
    saved(Path("w.pt"))
    plain, keyed = (teacher.find(f"cnn-4@w.pt{key}").identity() for key in ("", "#ema"))
    assert "key" not in plain["source"]
    assert keyed["source"] == {**plain["source"], "key": "ema"}


def test_one_of_two_networks_in_a_file_is_judged_by_its_key_and_found_again() -> None:
    first, second = (build("cnn-4", classes=10, channels=1) for _ in range(2))
    torch.save({"model": first.state_dict(), "model_ema": second.state_dict(), "epoch": 9}, "both.pt")
    words = ("--arch", "cnn-4", "--attacks", "fgsm", "--images", "4", "--results", "results")
    asked = cli("eval", "both.pt", *words)
    assert asked.exit_code == 2
    assert "model, model_ema" in asked.stderr
    assert "'both.pt#model_ema'" in asked.stderr
    assert cli("eval", "both.pt#model_ema", *words).exit_code == 0
    (path,) = Path("results").rglob("record.json")
    found = record.read(path)
    assert found.network.weights_sha256 == weights_sha256(second)
    dataset = networks.dataset_of(found, Path())
    again = networks.network_of(found, dataset, Path())
    assert weights_sha256(again) == weights_sha256(second)
    given = networks.network_of(found, dataset, Path(), Path("both.pt#model_ema"))
    assert weights_sha256(given) == weights_sha256(second)
    with pytest.raises(UserError, match="give the checkpoint that the record is about"):
        networks.network_of(found, dataset, Path(), Path("both.pt#model"))


# --- text ---


def test_a_byte_order_mark_is_no_setting() -> None:
    text = 'methods = ["natural"]\n'
    Path("utf8.toml").write_bytes(codecs.BOM_UTF8 + text.encode())
    assert config.read_toml(Path("utf8.toml")) == {"methods": ["natural"]}
    for name in ("utf-16", "utf-16-le", "utf-32"):
        Path("wide.toml").write_bytes(text.encode(name))
        with pytest.raises(UserError, match=r"wide\.toml' is in UTF-16 or UTF-32; save it as UTF-8"):
            config.read_toml(Path("wide.toml"))
    Path("latin.toml").write_bytes("# Größe\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.toml' is not in UTF-8"):
        config.read_toml(Path("latin.toml"))


def test_a_reference_file_may_have_a_byte_order_mark_too() -> None:
    Path("golden.json").write_bytes(codecs.BOM_UTF8 + json.dumps({}).encode())
    assert "has no entry to replay" in cli("golden", "golden.json").stderr


def test_a_pipe_is_no_configuration() -> None:
    os.mkfifo("pipe.toml")
    with pytest.raises(UserError, match=r"pipe\.toml' is a pipe or a device"):
        files.user_text(Path("pipe.toml"), "configuration")


# --- what a plan looks at ---


def test_a_dry_run_fetches_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("far.toml").write_text(
        'dataset = "digits"\narchitecture = "cnn-4"\n[source]\nkind = "download"\nurls = ["https://example.invalid/w"]\n',
        encoding="utf-8",
    )

    def fetch(*_: object) -> None:
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(networks, "teacher_file", fetch)
    result = run("--methods", "rslad", "--teacher", "far.toml", "--dry-run")
    assert result.exit_code == 0, result.output


def test_a_dry_run_looks_at_weights_that_are_here() -> None:
    torch.save(build("cnn-8", classes=10, channels=1).state_dict(), "w.pt")
    result = run("--methods", "rslad", "--teacher", "cnn-4@w.pt", "--dry-run")
    assert result.exit_code == 2
    assert "w.pt" in result.stderr
