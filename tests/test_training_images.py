"""Where training's batches come from: a second source of images, augmentation, and random streams of their own."""

from __future__ import annotations

import json
import math
import pickle
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import cli, run
from torchvision.transforms import v2

from adbench.data import Dataset, idbh, load
from adbench.data.augment import CROP, Augmentation
from adbench.data.batches import mixed_batches, to_float
from adbench.data.operations import RANDOM, acted, actions
from adbench.data.policies import policy, spelt
from adbench.data.training_images import TrainingImages
from adbench.errors import UserError
from adbench.experiment.config import Train, validated
from adbench.losses import cross_entropy
from adbench.models import build
from adbench.seeding import generator
from adbench.system.files import sha256
from adbench.system.signals import Stopped
from adbench.training import trainer as training
from adbench.training.configured import configured
from adbench.training.step import Ball
from adbench.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated digits: 40 images, each of one grey value that is its own, under EDM's keys."""
    path = tmp_path_factory.mktemp("extra") / "generated.npz"
    values = np.arange(40, dtype=np.uint8)
    np.savez(path, image=np.broadcast_to(values[:, None, None], (40, 8, 8)), label=values.astype(np.int64) % 10)
    return path


def digits(folder: Path, **more: Any) -> Dataset:
    return load("digits", folder, train_images=50, val_images=20, test_images=10, **more)


@pytest.mark.parametrize(
    ("own", "extra", "size", "share", "per_batch"),
    [
        (23, 40, 10, 0.7, [[3, 7]] * 7 + [[2, 8], [3, 7]]),
        (23, 40, 8, 0.5, [[4, 4]] * 4),
        (50, 200, 16, 0.7, [[5, 11]] * 10),
    ],
)
def test_batches_of_two_sources_are_those_of_wangs_sampler(
    own: int, extra: int, size: int, share: float, per_batch: list[list[int]]
) -> None:
    """The numbers are the authors' code's (wzekai99/DM-Improves-AT, core/data/semisup.py)."""
    order, drawn = generator(0, "order"), generator(0, "extra")
    found = mixed_batches(own, extra, size, share, len(per_batch), order, drawn)
    assert [[int((b < own).sum()), int((b >= own).sum())] for b in found] == per_batch
    ours = torch.cat([b[b < own] for b in found])
    for start in range(0, len(ours) - own + 1, own):  # each permutation holds every image once
        assert sorted(ours[start : start + own].tolist()) == list(range(own))
    assert all(own <= i < own + extra for b in found for i in b.tolist() if i >= own)
    # A part of a batch is like the whole.
    assert any(b[0] >= own for b in found)
    assert any(b[0] < own for b in found)


def test_an_epoch_with_a_second_source_is_as_long_as_the_whole_training_set(generated: Path, tmp_path: Path) -> None:
    some = digits(tmp_path, extra=str(generated), extra_share=0.5)
    assert some.epoch_images == 50
    whole = load("digits", tmp_path, extra=str(generated))
    assert (len(whole.train), whole.epoch_images) == (1437 - 144, 1437)
    assert load("digits", tmp_path).epoch_images == 1437 - 144
    batches = TrainingImages(whole, CPU).epoch(512, 0, 0)
    assert [len(index) for index, _ in batches] == [512] * math.ceil(1437 / 512)


def test_images_of_both_sources_come_with_their_labels_and_are_looked_up_in_the_file(
    generated: Path, tmp_path: Path
) -> None:
    dataset = digits(tmp_path, extra=str(generated), extra_share=0.5)
    assert dataset.extra is not None
    assert isinstance(dataset.extra.images, np.memmap)
    source = TrainingImages(replace(dataset, pad=0), CPU)
    seen = set()
    for epoch in range(4):
        for index, drawn in source.epoch(16, 0, epoch):
            x, y, soft = source.examples(index, drawn, torch.float32)
            assert soft is None
            for i, image, label in zip(index.tolist(), x, y.tolist(), strict=True):
                if i < 50:
                    assert torch.equal(image, to_float(dataset.train.images[i]))
                    assert label == dataset.train.labels[i]
                else:
                    assert torch.equal(image, torch.full((1, 8, 8), (i - 50) / 255))
                    assert label == (i - 50) % 10
                    seen.add(i)
    assert len(seen) > 30


@pytest.mark.parametrize(
    ("content", "save", "word"),
    [
        ({"image": np.zeros((4, 8, 8), np.uint8)}, np.savez, "'label'"),
        ({"x_train": np.zeros(3)}, np.savez, "'image'"),
        ({"image": np.zeros((4, 8, 8)), "label": np.zeros(4, int)}, np.savez, "float64"),
        ({"image": np.zeros((4, 9, 8), np.uint8), "label": np.zeros(4, int)}, np.savez, "9x8x1"),
        ({"image": np.zeros((4, 8, 8, 3), np.uint8), "label": np.zeros(4, int)}, np.savez, "8x8x3"),
        ({"image": np.zeros((0, 8, 8), np.uint8), "label": np.zeros(0, int)}, np.savez, "(0, 8, 8)"),
        ({"image": np.zeros((4, 8, 8), np.uint8), "label": np.zeros(3, int)}, np.savez, "(3,)"),
        ({"image": np.zeros((4, 8, 8), np.uint8), "label": np.zeros(4)}, np.savez, "label"),
        ({"image": np.zeros((4, 8, 8), np.uint8), "label": np.array([0, 1, 2, 10])}, np.savez, "0..10"),
        ({"image": np.zeros((4, 8, 8), np.uint8), "label": np.array([0, -1, 2, 3])}, np.savez, "-1..3"),
        ({"image": np.zeros((4, 8, 8), np.uint8), "label": np.zeros(4, int)}, np.savez_compressed, "compressed"),
        ({"image": np.zeros((8, 8, 4), np.uint8).T, "label": np.zeros(4, int)}, np.savez, "Fortran"),
        ({"image": np.array([{}, {}]), "label": np.zeros(2, int)}, np.savez, "never run"),
    ],
)
def test_what_is_wrong_with_extra_images_is_one_sentence(content: Any, save: Any, word: str, tmp_path: Path) -> None:
    path = tmp_path / "more.npz"
    save(path, **content)
    with pytest.raises(UserError, match=r"data\.extra") as error:
        digits(tmp_path, extra=str(path))
    assert word in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("damage", ["absent", "text", "cut", "pickle", "folder"])
def test_a_file_of_extra_images_that_is_none_is_refused(damage: str, generated: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.npz"
    whole = generated.read_bytes()
    if damage == "folder":
        path.mkdir()
    elif damage != "absent":
        path.write_bytes({"text": b"no archive", "cut": whole[:-200], "pickle": pickle.dumps({"data": 1})}[damage])
    with pytest.raises(UserError, match=r"data\.extra"):
        digits(tmp_path, extra=str(path))


def test_extra_images_are_in_identity_and_record_and_are_verified(generated: Path, tmp_path: Path) -> None:
    results, mine = tmp_path / "results", tmp_path / "mine.npz"
    mine.write_bytes(generated.read_bytes())
    more = {"data__extra": str(mine), "data__extra_share": "0.5"}
    assert run("--methods", "pgd-at", "--results", results, **more).exit_code == 0
    path = next(results.rglob("record.json"))
    data = json.loads(path.read_text())
    assert data["data"]["extra"] == {
        "images": 40,
        "share": 0.5,
        "sha256": sha256(mine),
        "file": str(mine),
        "epoch_images": 64,
    }
    assert data["config"]["training"]["data"]["extra"] == {"sha256": sha256(mine), "share": 0.5}
    verified = cli("verify", path)
    assert (verified.exit_code, "extra images" in verified.output) == (0, True)
    # Another place is no other cell; another share, or no such images, is one.
    moved = mine.rename(tmp_path / "moved.npz")
    assert "not shown" in cli("verify", path).output
    elsewhere = more | {"data__extra": str(moved)}
    assert "0 of 1 cells" in run("--methods", "pgd-at", "--results", results, "--dry-run", **elsewhere).output
    mine.write_bytes(whole := generated.read_bytes().replace(b"\x05" * 64, b"\x06" * 64))
    assert whole != generated.read_bytes()
    assert cli("verify", path).exit_code == 1


def test_a_share_that_gives_no_image_is_refused(generated: Path, tmp_path: Path) -> None:
    done = run("--methods", "pgd-at", "--results", tmp_path, data__extra=str(generated), data__extra_share="0.01")
    assert done.exit_code == 2
    assert "data.extra_share" in done.output


# Augmentation


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("cutout", "cutout"),
        ("cutout( 16 )", "cutout(16)"),
        ("cutmix(1.0)", "cutmix"),
        ("cutmix(1, 0.5)", "cutmix(1,0.5)"),
        ("mixup(0.20)", "mixup(0.2,1)"),
        ("randaugment(2, 9)", "randaugment"),
        ("randaugment(2,14)", "randaugment(2,14)"),
        ("autoaugment(cifar10)", "autoaugment"),
        ("autoaugment(svhn)", "autoaugment(svhn)"),
        ("idbh( weak )", "idbh"),
        ("idbh(svhn)", "idbh(svhn)"),
    ],
)
def test_a_policy_has_one_spelling(written: str, expected: str) -> None:
    assert spelt(written) == expected
    assert spelt(expected) == expected
    assert Train(augment=(written,)).augment == (expected,)


@pytest.mark.parametrize(
    "text",
    [
        "cutuot",
        "cutout(0)",
        "cutout(a)",
        "mixup(-1)",
        "cutmix(1,2)",
        "randaugment(2,31)",
        "cutout(1,2)",
        "autoaugment(mnist)",
        "idbh(cifar10)",
        "idbh(weak,strong)",
        "",
    ],
)
def test_a_policy_that_there_is_not_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        policy(text)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_operations_are_torchvisions(channels: int) -> None:
    images = torch.randint(256, (5, channels, 16, 16), dtype=torch.uint8, generator=generator(0, "x"))
    theirs = v2.RandAugment()
    magnitudes = dict(actions(policy("randaugment(2,14)"), (channels, 16, 16)))
    assert {*magnitudes} == {*RANDOM}
    bins = theirs._AUGMENTATION_SPACE
    for name, (levels, signed) in bins.items():
        level = levels(31, 16, 16)
        magnitude = 0.0 if level is None else float(level[14])
        ours = 255 * magnitude if name == "Solarize" else magnitude
        for sign in (1, -1) if signed else (1,):
            expected = theirs._apply_image_or_video_transform(
                images, name, sign * magnitude, interpolation=v2.InterpolationMode.NEAREST, fill={}
            )
            assert torch.equal(acted(images, name, sign * ours), expected), name
        assert abs(magnitudes[name]) == pytest.approx(ours), name


def augmented(dataset: Dataset, *policies: str) -> tuple[TrainingImages, torch.Tensor, torch.Tensor]:
    source = TrainingImages(dataset, CPU, policies)
    ((index, drawn), *_) = source.epoch(50, 3, 0)
    return source, index, drawn


@pytest.mark.parametrize(
    "policies",
    [("cutout",), ("randaugment",), ("autoaugment",), ("cutmix",), ("mixup", "cutout"), ("idbh",), ("idbh", "cutmix")],
)
def test_a_part_of_a_batch_is_augmented_as_the_whole_is(policies: tuple[str, ...], tmp_path: Path) -> None:
    dataset = digits(tmp_path)
    source, index, drawn = augmented(dataset, *policies)
    whole = source.examples(index, drawn, torch.float32)
    parts = [source.examples(index[part], drawn[:, part], torch.float32) for part in torch.arange(50).tensor_split(3)]
    for what, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert what is None or torch.equal(what, torch.cat(pieces))
    # Crops come from the stream that they came from before there was more; an epoch is not another's.
    plain = augmented(replace(dataset, pad=0) if "idbh" in policies else dataset)[2]
    assert torch.equal(drawn[:CROP], plain)
    assert not torch.equal(drawn, source.epoch(50, 3, 1)[0][1])
    assert torch.equal(drawn, source.epoch(50, 3, 0)[0][1])
    assert not torch.equal(whole.x, augmented_x(dataset, index, drawn))


def augmented_x(dataset: Dataset, index: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    return TrainingImages(dataset, CPU).examples(index, drawn[:CROP], torch.float32).x


def test_cutout_hides_a_square_around_any_pixel() -> None:
    it = Augmentation([policy("cutout(4)")], (3, 10, 12), pad=0, flip=False)
    count = 4000
    drawn = it.draw([torch.arange(count)], lambda *names: generator(0, *names))
    hidden = it.apply(torch.full((count, 3, 10, 12), 7, dtype=torch.uint8), drawn) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 2])
    sizes = hidden[:, 0].flatten(1).sum(1)
    assert sizes.max() == 16
    assert sizes.min() == 4, "centred on a corner, a quarter of it, or a little more, is inside"
    for row, column in ((0, 0), (9, 11), (5, 6)):
        expected = sum(abs(r - row) <= 2 and r - row < 2 + (r < row) for r in range(10))
        assert hidden[:, 0, row, column].any(), expected


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_soft_labels_are_the_shares_of_the_images_mixed(name: str, tmp_path: Path) -> None:
    """Images of one value a class: what is left of each is read off the pixels."""
    dataset = digits(tmp_path)
    values = dataset.train.labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).clone()
    dataset = replace(dataset, train=replace(dataset.train, images=values), pad=0)
    source = TrainingImages(dataset, CPU, (name,))
    kinds = set()
    for epoch in range(6):
        for index, drawn in source.epoch(25, 1, epoch):
            x, y, soft = source.examples(index, drawn, torch.float64)
            assert soft is not None
            assert torch.equal(y, dataset.train.labels[index])
            assert torch.allclose(soft.sum(1), torch.ones(25, dtype=torch.float64))
            assert torch.allclose((soft * torch.arange(10.0)).sum(1), 255 * x.mean((1, 2, 3)))
            kinds |= set((soft > 0).sum(1).tolist())
            if name == "cutmix":  # no value between
                assert torch.equal(255 * x, (255 * x).round())
    assert kinds == {1, 2}


def test_a_probability_of_mixing_is_a_share_of_the_batches(tmp_path: Path) -> None:
    source = TrainingImages(digits(tmp_path), CPU, ("cutmix(1,0.3)",))
    mixed = [bool((drawn[-4:] != 0).any()) for epoch in range(60) for _, drawn in source.epoch(10, 0, epoch)]
    assert 0.2 < np.mean(mixed) < 0.36  # some boxes are empty


def test_autoaugment_takes_both_operations_of_a_published_pair() -> None:
    """Of the first pair, Invert with 0.1 and Contrast with 0.2, as of all, as often as the table says."""
    table = policy("autoaugment")
    it = Augmentation([table], (3, 8, 8), pad=0, flip=False)
    drawn = it.draw([torch.arange(50_000)], lambda *names: generator(0, *names))[CROP:]
    pairs = training_pairs()
    for stage in range(2):
        for number, pair in enumerate(pairs):
            name, probability, _ = pair[stage]
            places = [1 + 4 * number + 2 * stage, 2 + 4 * number + 2 * stage]
            assert {it.actions[0][place][0] for place in places} == {name}
            share = sum(int((drawn[stage] == place).sum()) for place in places) / 50_000
            assert share == pytest.approx(probability / len(pairs), abs=0.004)


@pytest.mark.parametrize("variant", ["weak", "strong", "svhn"])
def test_idbh_moves_a_window_and_erases_a_rectangle_as_its_paper_has_it(variant: str) -> None:
    """Distributions, against a plain transcription of the formulas for one image at a time."""
    strength, shape, count = idbh.STRENGTHS[variant], (1, 32, 32), 20_000
    drawn = idbh.draw_shifts(count, generator(0, "shift"), strength, shape)
    chance = np.random.default_rng(0)
    expected = []
    for _ in range(count):
        taken = chance.integers(0, strength.most + 1)
        columns = chance.integers(0, taken + 1)
        rows = taken - columns
        places = [chance.integers(0, largest + 1) for largest in (rows, columns, rows, columns)]
        expected.append([*places, 32 - rows, 32 - columns])
    ours, theirs = drawn.numpy().astype(float), np.array(expected, dtype=float).T
    assert np.allclose(ours.mean(1), theirs.mean(1), atol=0.08)
    assert np.allclose(np.corrcoef(ours), np.corrcoef(theirs), atol=0.04)
    assert ours.max(1).tolist() == theirs.max(1).tolist()
    assert ours.min(1).tolist() == theirs.min(1).tolist()

    boxes = idbh.draw_boxes(count, generator(0, "erase"), strength, shape)
    sizes = ((boxes[1] - boxes[0]) * (boxes[3] - boxes[2])).double() / 1024
    assert (sizes > 0).double().mean() == pytest.approx(strength.probability, abs=0.02)
    erasing = v2.RandomErasing(p=strength.probability, scale=strength.area, value=0)
    torch.manual_seed(0)
    shares = torch.tensor([(erasing(torch.ones(1, 32, 32)) == 0).double().mean() for _ in range(4000)])
    assert sizes.mean() == pytest.approx(float(shares.mean()), abs=0.01)
    assert sizes.std() == pytest.approx(float(shares.std()), abs=0.01)
    assert bool((boxes >= 0).all() and (boxes <= 32).all())


def test_idbhs_window_keeps_its_pixels_and_the_rest_is_black() -> None:
    images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    drawn = torch.tensor([[1], [0], [0], [1], [2], [2]])
    assert idbh.shifted(images, drawn)[0, 0].tolist() == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]
    assert torch.equal(idbh.shifted(images, torch.tensor([[0], [0], [0], [0], [3], [3]])), images)


@pytest.mark.parametrize(("variant", "share", "angle", "turn"), [("weak", 1 / 8, 0.15, 10), ("svhn", 0.3, 0.35, 30)])
def test_idbhs_operations_come_as_often_and_as_strong_as_published(
    variant: str, share: float, angle: float, turn: int
) -> None:
    it = Augmentation([policy(f"idbh({variant})")], (3, 8, 8), pad=2, flip=False)
    drawn = it.draw([torch.arange(50_000)], lambda *names: generator(0, *names))
    codes = drawn[CROP + idbh.SHIFT + idbh.BOX]
    (table,) = it.actions
    taken = [table[code] for code in codes.tolist()]
    names = Counter(name.removesuffix("X").removesuffix("Y") for name, _ in taken)
    assert {*names} == {"Color", "Brightness", "Contrast", "Sharpness", "AutoContrast", "Equalize", "Skew", "Rotate"}
    for name in ("Skew", "Rotate"):
        assert names[name] / 50_000 == pytest.approx(share, abs=0.01)
    assert names["Contrast"] / 50_000 == pytest.approx(1 / 8 if variant == "weak" else 0.04, abs=0.01)
    angles = [by for name, by in taken if name == "SkewX"]
    assert 0.9 * angle < max(angles) < angle
    assert np.mean(angles) == pytest.approx(0, abs=0.01)
    assert {abs(by) for name, by in taken if name == "Rotate"} == {*map(float, range(1, turn + 1))}
    assert max(by for name, by in taken if name == "Brightness") == pytest.approx(0.9, abs=0.05)
    assert min(by for name, by in taken if name == "Brightness") == pytest.approx(-0.5, abs=0.05)


def test_idbh_of_images_that_it_could_take_whole_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    done = run("--methods", "pgd-at", "--results", tmp_path / "r", train__augment='["idbh"]')
    assert done.exit_code == 2
    assert "takes up to 10 lines off an image, and these have 8" in done.output
    assert not list(tmp_path.rglob("record.json"))


def test_operations_come_in_the_documented_order_whatever_the_lists() -> None:
    names = Train(augment=("randaugment", "cutmix", "idbh", "autoaugment")).augment
    assert names == ("idbh", "autoaugment", "randaugment", "cutmix")
    it = Augmentation([policy(name) for name in names], (1, 32, 32), pad=2, flip=True)
    assert [one.name for one in it.automatic] == ["idbh", "autoaugment", "randaugment"]
    with pytest.raises(UserError, match="augment has idbh twice"):
        validated(Train, {"augment": ["idbh", "idbh(strong)"]}, "train")


def test_a_skew_is_torchvisions_about_the_centre() -> None:
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8, generator=generator(0, "x"))
    for name, shear in (("SkewX", [9.0, 0.0]), ("SkewY", [0.0, 9.0])):
        expected = v2.functional.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=shear)
        assert torch.equal(acted(images, name, math.radians(9)), expected)


def training_pairs() -> Any:
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    return AutoAugment(AutoAugmentPolicy.CIFAR10).policies


def test_soft_labels_of_one_class_are_labels() -> None:
    logits, y = torch.randn(6, 5, generator=generator(0, "l")), torch.tensor([0, 1, 2, 3, 4, 0])
    hard = torch.nn.functional.one_hot(y, 5).float()
    for mass in (1.0, 0.8):
        assert torch.allclose(cross_entropy(logits, hard, mass), cross_entropy(logits, y, mass))


def test_a_method_without_soft_labels_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    done = run("--methods", "pgd-at,las-at", "--results", tmp_path, train__augment='["cutmix"]')
    assert done.exit_code == 2
    assert "las-at" in done.output
    assert "train.augment" in done.output
    assert "soft_labels" in done.output
    assert not list(tmp_path.rglob("record.json"))


def test_augmentation_is_in_the_identity_and_what_says_the_same_is_one_cell(tmp_path: Path) -> None:
    def train_id(**more: str) -> str:
        assert run("--methods", "pgd-at", "--results", tmp_path / "r", **more).exit_code == 0
        return str(max((tmp_path / "r").rglob("record.json"), key=lambda p: p.stat().st_mtime_ns).parents[1].name)

    plain, cut = train_id(), train_id(train__augment='["cutout(4)"]')
    assert plain != cut
    assert (
        "0 of 1 cells"
        in run("--methods", "pgd-at", "--results", tmp_path / "r", "--dry-run", train__augment='["cutout( 4 )"]').output
    )


EVERYTHING: dict[str, Any] = {
    "augment": ("randaugment", "cutout(3)", "cutmix"),
    "awp": 0.01,
    "average": "swa",
    "schedule": "cosine",
    "per": "iteration",
}


def small(folder: Path, generated: Path) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        method=configured("trades", {}),
        student=build("cnn-4", classes=10, channels=1),
        teachers={},
        dataset=digits(folder, extra=str(generated), extra_share=0.5),
        attack=Ball(0.1, 0.03, 1),
        validation=Ball(0.1, 0.03, 1),
        config=Train(epochs=3, batch_size=16, val_steps=1, **EVERYTHING),
        seed=0,
        folder=folder,
        device=CPU,
    )


def test_a_training_with_all_of_it_stopped_in_an_epoch_ends_in_the_same_bits(
    generated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averaged and perturbed weights, a smooth schedule, two sources and mixed images, asked to end at ten moments."""
    whole = small(tmp_path / "whole", generated).run(lambda _: None, lambda *_: None)
    for stop in random.Random(1).sample(range(1, 12), 10):
        folder, done = tmp_path / str(stop), []

        def asked(stop: int = stop, done: list[int] = done) -> bool:
            return len(done) == stop

        def end(asked: Callable[[], bool] = asked) -> None:
            if asked():
                raise Stopped

        with monkeypatch.context() as patched:
            patched.setattr(training.signals, "stop_requested", asked)
            patched.setattr(training.signals, "stop_if_requested", end)
            with pytest.raises(Stopped):
                small(folder, generated).run(lambda _: None, lambda *_, done=done: done.append(1))
        assert small(folder, generated).run(lambda _: None, lambda *_: None).weights == whole.weights, stop


@pytest.mark.usefixtures("one_thread")
def test_a_small_twin_of_wangs_teacher_trains_with_every_ingredient_and_is_verified(
    generated: Path, tmp_path: Path
) -> None:
    """The preset's recipe on digits for a few steps, with mixed images and perturbed weights besides."""
    results = tmp_path / "results"
    shorter = {"train__warmup": "0.25", "train__average_warmup": "0.25", "train__epochs": "4", "data__val_images": "16"}
    more = {"train__augment": '["cutmix","randaugment(2,14)"]', "train__awp": "0.005", "data__extra": str(generated)}
    done = run("--preset", "wang2023", "--methods", "trades", "--results", results, **shorter, **more)
    assert done.exit_code == 0, done.output
    path = next(results.rglob("record.json"))
    data = json.loads(path.read_text())
    recipe = data["config"]["training"]["train"]
    for key in ("nesterov", "cycle_momentum", "bn_momentum", "augment", "awp"):
        assert recipe[key]
    assert (recipe["schedule"], recipe["average"], recipe["decay_norm"]) == ("onecycle", "ema", False)
    assert data["config"]["training"]["hyper"]["label_smoothing"] == 0.1
    assert data["data"]["extra"]["share"] == 0.7
    verified = cli("verify", path)
    assert verified.exit_code == 0, verified.output
    assert "CONTRADICTS" not in verified.output
