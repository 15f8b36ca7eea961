"""Networks of one's own from a file, and timm's: built, trained, distilled, judged, exported, or refused."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import cli, options, record_of, records
from torch import nn

from adbench.errors import UserError
from adbench.execution.engines.inline import Inline
from adbench.execution.runner import Local
from adbench.models import build, names
from adbench.models.precision import Lean, Precision
from adbench.registry import METHODS, MODELS
from adbench.training.step import Net
from adbench.weights.checkpoint import load

NETS = '''
import torch
from helper_of_mine import WIDTH
from torch import nn


class Flat(nn.Module):
    """A head of two linear layers on the flattened map."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.AdaptiveAvgPool2d(4)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(16 * WIDTH, 8), nn.ReLU(), nn.Linear(8, num_classes))

    def forward(self, x):
        return self.head(self.body(x))


def pooled(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, classes),
    )


class Named(Flat):
    """Says where its map is."""

    adbench_map, adbench_head = "body.2", "head.3"


def ten():
    return Flat(10, 3)


def fails(classes):
    raise ValueError("no such luck")


def nothing(classes):
    return 3


def wants(width):
    return ten()


def tuples(classes, channels):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat = Flat(classes, channels)

        def forward(self, x):
            return self.flat(x), x

    return Two()


number = 3
'''


def given(text: str) -> str:
    """A name of the command line, as it is known afterwards."""
    names.given(text)
    return names.canonical(text)


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for registry in (METHODS, MODELS):
        for table in ("_files", "_members", "_loaded", "_codes"):
            monkeypatch.setattr(registry, table, {})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    Path("mine/helper_of_mine.py").write_text("WIDTH = 4\n")
    Path("mine/nets.py").write_text(NETS)
    return Path("mine/nets.py")


def test_a_file_gives_networks_that_are_given_what_they_take(nets: Path) -> None:
    x = torch.rand(3, 1, 8, 8)
    assert given(f"{nets}:Flat") == "nets.py:Flat"
    assert build("nets.py:Flat", classes=7, channels=1)(x).shape == (3, 7)
    assert build(given(f"{nets}:pooled"), classes=5, channels=1)(x).shape == (3, 5)
    normalising = build("nets.py:Flat", classes=7, channels=1, mean=(0.5,), std=(0.2,))
    plain = build("nets.py:Flat", classes=7, channels=1)
    plain.load_state_dict(normalising.state_dict())
    torch.testing.assert_close(normalising.eval()(x), plain.eval()((x - 0.5) / 0.2))
    assert {key.split(".")[0] for key in plain.state_dict()} == {"body", "head"}  # the module's own keys


def test_the_last_map_and_the_head_are_found_or_named_or_missing_in_a_sentence(nets: Path) -> None:
    x = torch.rand(3, 1, 8, 8)
    found = build(given(f"{nets}:pooled"), classes=5, channels=1)
    logits, maps = found.eval().forward_features(x)
    torch.testing.assert_close(found.classifier(maps.mean(dim=(2, 3))), logits)
    named = build(given(f"{nets}:Named"), classes=5, channels=1).eval()
    assert named.forward_features(x)[1].shape == (3, 4, 8, 8)
    assert named.classifier.out_features == 5
    flat = build(given(f"{nets}:Flat"), classes=5, channels=1).train()
    flat(x)
    assert not flat.shows_features
    assert all(m.training for m in flat.modules())
    assert flat.classifier is flat.module.head[3]
    with pytest.raises(UserError, match="adbench_map"):
        flat.forward_features(x)


def test_info_and_methods_name_its_stages_as_the_module_does(nets: Path) -> None:
    assert "body.2" in cli("info", f"{nets}:Flat").output
    net = Net(build(given(f"{nets}:Flat"), classes=5, channels=1))
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(net.stages(x, "body.2")[1]["body.2"], net.stages(x, "module.body.2")[1]["module.body.2"])
    assert net.shape(x, "body.2") == (4, 8, 8)


@pytest.mark.parametrize("name", ["Flat", "pooled", "Named"])
def test_the_lean_form_folds_them_too(nets: Path, name: str) -> None:
    network = build(given(f"{nets}:{name}"), classes=5, channels=1)
    x = torch.rand(3, 1, 8, 8)
    network(x)
    lean = Lean(network.eval(), Precision(lean=True))
    assert len(lean._folded) == 1
    torch.testing.assert_close(lean(x), network(x), rtol=1e-4, atol=1e-5)
    if name == "Named":
        torch.testing.assert_close(lean.forward_features(x)[1], network.forward_features(x)[1], rtol=1e-4, atol=1e-5)


WRONG = {
    "fails": "no such luck",
    "nothing": "int",
    "wants": "width",
    "ten": r"\(2, 7\)",
    "tuples": "tuple",
    "absent": "absent",
    "number": "number",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_a_network_is_refused_in_a_sentence(nets: Path, name: str) -> None:
    with pytest.raises(UserError, match=WRONG[name]):
        build(given(f"{nets}:{name}"), classes=7, channels=1)(torch.rand(2, 1 if name != "ten" else 3, 8, 8))


def test_images_of_a_size_that_the_network_cannot_take_are_refused(nets: Path) -> None:
    with pytest.raises(UserError, match=r"\(2, 8, 8\)"):
        build(given(f"{nets}:Flat"), classes=7, channels=1)(torch.rand(2, 2, 8, 8))
    with pytest.raises(UserError, match="no file"):
        given("none.py:Flat")


@pytest.mark.usefixtures("nets")
def test_a_file_that_only_another_file_names_is_not_executed() -> None:
    Path("evil.py").write_text("raise SystemExit('executed')")
    Path("evil.toml").write_text('students = ["evil.py:f"]\nteachers = ["evil.py:f@evil.py"]\n')
    for name in ("evil.py:f", f"{Path.cwd()}/evil.py:f"):
        with pytest.raises(UserError, match="--network"):
            build(name, classes=7)
    result = cli("run", "--config", "evil.toml", "--methods", "rslad,natural", "--dry-run")
    assert result.exit_code == 2
    assert "--network" in result.stderr


def test_the_code_of_the_file_and_what_it_imports_is_the_cells_not_its_place(nets: Path, tmp_path: Path) -> None:
    before = names.code(given(f"{nets}:Flat"))
    MODELS._files.clear(), MODELS._members.clear(), MODELS._codes.clear()
    nets.write_text("# a comment\n" + NETS)
    assert names.code(given(f"{tmp_path / nets}:Flat")) == before
    MODELS._files.clear(), MODELS._members.clear(), MODELS._codes.clear()
    Path("mine/helper_of_mine.py").write_text("WIDTH = 5\n")
    assert names.code(given(f"{nets}:Flat")) != before


def folder_of_images(folder: Path) -> None:
    """Of three classes, of mixed sizes and colour modes."""
    rng = np.random.default_rng(0)
    modes = ("RGB", "RGBA", "L", "P")
    for part, count in (("train", 24), ("test", 8)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 100, (8, 8, 3), dtype=np.uint8)
                image[:, :, label] += 120
                mixed = Image.fromarray(image).resize((8 + number % 3, 8)).convert(modes[number % 4])
                mixed.save(folder / part / name / f"{number}.png")


def test_an_own_network_on_own_images_from_training_to_export(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained as a teacher, distilled into itself, judged, verified and exported; and read again by its own code."""
    monkeypatch.setattr(Local, "engine", lambda *given: Inline(given[2], 1, given[4]))
    folder_of_images(Path("animals"))
    Path("own.toml").write_text(
        f'architecture = "{nets}:Flat"\n[source]\nkind = "train"\nmethod = "pgd-at"\n'
        "[source.train]\nepochs = 2\nbatch_size = 16\nattack_steps = 2\nval_steps = 1\n"
    )
    settings = options(train__batch_size="16", eval__images="12", data__train_images="48", data__val_images="12")[2:]
    words = ["run", "--dataset", "./animals", "--teacher", "own.toml", "--methods", "rslad", *settings]
    words += ["--set", "data.resize=8"]
    done = cli(*words, "--student", f"{nets}:Flat", "--results", "r")
    assert done.exit_code == 0, done.output
    record = record_of(Path("r"), "rslad")
    assert record["student"] == "nets.py:Flat"
    assert record["config"]["training"]["network"] == names.code("nets.py:Flat")
    (path,) = (Path("r") / p for p, r in records(Path("r")).items() if r["method"] == "rslad")
    # What needs a map of it is refused with a sentence.
    refused = cli(*[word if word != "rslad" else "smaraad" for word in words], "--student", f"{nets}:Flat")
    assert refused.exit_code == 1
    assert "adbench_map" in " ".join(refused.output.split())
    assert record["dataset"] == "./animals"
    # In another process nobody knows the file until it is named.
    MODELS._files.clear(), MODELS._members.clear(), MODELS._loaded.clear()
    assert "--network" in cli("export", path, "--out", "shared").stderr
    exported = cli("export", path, "--out", "shared", "--network", f"{nets}:Flat", "--name", "own")
    assert exported.exit_code == 0, exported.output
    checked = cli("verify", path, "--network", f"{nets}:Flat")
    assert checked.exit_code == 0, checked.output
    assert "ant, bee, cat" in Path("shared/own.json").read_text()
    again = build("nets.py:Flat", classes=3, channels=3)
    load(again, Path("shared/own.pt"))
    again.module.load_state_dict(torch.load("shared/own.pt", weights_only=True))
    judged = cli(
        "eval",
        "shared/own.safetensors",
        "--arch",
        f"{nets}:Flat",
        "--dataset",
        "./animals",
        "--attacks",
        "fgsm",
        "--resize",
        "8",
        "--results",
        "e",
    )
    assert judged.exit_code == 0, judged.output
    (own,) = (r for r in records(Path("e")).values())
    assert own["data"]["class_names"] == ["ant", "bee", "cat"]


def test_timm_is_asked_for_its_network_and_only_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "version", missing)
    with pytest.raises(UserError, match="pip install timm"):
        names.canonical("timm:resnet18")
    assert "timm" not in sys.modules
    asked: list[Any] = []

    def create_model(name: str, **settings: Any) -> nn.Module:
        asked.append((name, settings))
        return nn.Sequential(nn.Flatten(), nn.Linear(192, settings["num_classes"]))

    monkeypatch.setattr(names, "version", lambda _: "1.0")
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    assert build("timm:some_net.v1", classes=5, channels=3)(torch.rand(2, 3, 8, 8)).shape == (2, 5)
    assert asked == [("some_net.v1", {"pretrained": False, "num_classes": 5, "in_chans": 3})]
    assert names.code("timm:some_net.v1") == "timm 1.0"


def missing(_: str) -> str:
    raise names.PackageNotFoundError
