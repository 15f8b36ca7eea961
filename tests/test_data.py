from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from adbench.data import Dataset, Split, Threat, as_text, load, parse_fraction, published
from adbench.data.arrays import stratified_order
from adbench.data.batches import batches, cropped, draw_crops, epoch_order, to_float
from adbench.errors import Caution, UserError
from adbench.execution import prepare as preparing
from adbench.execution.place import Place
from adbench.experiment.config import experiment
from adbench.registry import DATASETS
from adbench.system.download import RemoteFile

Make = Callable[..., Path]


def pictures(split: Split) -> list[bytes]:
    return [image.numpy().tobytes() for image in split.images]


def made_arrays(n: int = 60, shape: tuple[int, ...] = (8, 8, 3)) -> dict[str, Any]:
    """n training and 20 test images of 4 classes: noise, all different, whose first pixel is their label."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, count in (("train", n), ("test", 20)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 4
        arrays[f"x_{part}"].reshape(count, -1)[:, 0] = arrays[f"y_{part}"]
    return arrays


@pytest.fixture
def npz(tmp_path: Path) -> Make:
    """Writes `made_arrays` to a .npz, with the given arrays changed (None: left out)."""

    def make(**changes: Any) -> Path:
        arrays = {k: v for k, v in {**made_arrays(), **changes}.items() if v is not None}
        np.savez(tmp_path / "own.npz", **arrays)
        return tmp_path / "own.npz"

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Makes an image folder: 6 training and 3 test images of each class, 12 wide and 10 high."""

    def make(mode: str = "RGB", suffix: str = ".png", classes: tuple[str, ...] = ("dog", "cat")) -> Path:
        for part, count in (("train", 6), ("test", 3)):
            for c in classes:
                (tmp_path / "own" / part / c).mkdir(parents=True)
                for i in range(count):
                    value = 40 * sorted(classes).index(c) + i
                    Image.new("RGB", (12, 10), (value, 100, 200)).convert(mode).save(
                        tmp_path / "own" / part / c / f"{i}{suffix}"
                    )
        return tmp_path / "own"

    return make


def own(path: Path, **counts: int) -> Dataset:
    return load(str(path), Path("unused"), **counts)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- sizes ---


@pytest.mark.parametrize(
    ("value", "fraction", "text"),
    [
        ("8/255", Fraction(8, 255), "8/255"),
        ("85/255", Fraction(1, 3), "85/255"),
        ("0.031", Fraction(31, 1000), "0.031"),
        (0.031, Fraction(31, 1000), "0.031"),
        (0.2, Fraction(51, 255), "51/255"),
        ("1/7", Fraction(1, 7), "1/7"),
        (0, Fraction(0), "0/255"),
        (1, Fraction(1), "255/255"),
        (1e-5, Fraction(1, 100_000), "0.00001"),
    ],
)
def test_sizes_are_read_exactly_and_written_as_the_field_writes_them(
    value: str | float, fraction: Fraction, text: str
) -> None:
    assert parse_fraction(value) == fraction
    assert as_text(fraction) == text
    assert parse_fraction(text) == fraction


@pytest.mark.parametrize("value", ["8", "9/8", -0.1, "-1/255", "8/0", "nan", float("inf"), "eight", "", True])
def test_a_size_outside_0_to_1_is_refused_by_name(value: str | float) -> None:
    assert f"'{value}'" in error_of(lambda: parse_fraction(value))


def test_a_threat_is_written_by_its_radius() -> None:
    assert str(Threat(eps=Fraction(8, 255), step=Fraction(2, 255))) == "8/255"


def test_planning_with_datasets_does_not_import_torch() -> None:
    code = "import sys, adbench.data, adbench.data.sources; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- digits, and what holds for every dataset ---


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits", Path("unused"))


def test_digits_have_the_promised_sizes_and_threat(digits: Dataset) -> None:
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1437 - 144, 144, 360)
    assert digits.image_shape == (1, 8, 8)
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert digits.train.images.is_contiguous()
    assert (digits.classes, digits.class_names) == (10, tuple("0123456789"))
    assert (digits.threat.eps, digits.threat.step) == (Fraction(28, 255), Fraction(7, 255))
    assert (digits.pad, digits.flip) == (1, False)


def test_digits_are_scikit_learns_digits_each_in_exactly_one_split(digits: Dataset) -> None:
    source = load_digits()
    expected = sorted(
        (label, [int(v * 255 / 16 + 0.5) for v in image.flat])
        for image, label in zip(source.images, source.target, strict=True)
    )
    splits = (digits.train, digits.val, digits.test)
    found = sorted(
        (int(label), image.flatten().tolist())
        for split in splits
        for image, label in zip(split.images, split.labels, strict=True)
    )
    assert found == expected


def test_digits_splits_are_stratified(digits: Dataset) -> None:
    whole = np.bincount(load_digits().target) / 1797
    for split in (digits.train, digits.val, digits.test):
        counts = torch.bincount(split.labels).numpy()
        assert np.abs(counts - whole * len(split)).max() < 2


def test_no_image_of_one_split_is_in_another(npz: Make) -> None:
    dataset = own(npz())
    train, val, test = (set(pictures(s)) for s in (dataset.train, dataset.val, dataset.test))
    assert (len(train), len(val), len(test)) == (54, 6, 20)
    assert not train & val
    assert not train & test
    assert not val & test


def test_images_keep_their_labels(npz: Make) -> None:
    dataset = own(npz())
    for split in (dataset.train, dataset.val, dataset.test):
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)


def test_loading_twice_gives_the_same_tensors(digits: Dataset) -> None:
    again = load("digits", Path("elsewhere"))
    assert torch.equal(again.train.images, digits.train.images)
    assert torch.equal(again.val.images, digits.val.images)
    assert again.fingerprint == digits.fingerprint


def test_a_training_subset_is_balanced_and_leaves_the_other_splits_alone(npz: Make) -> None:
    arrays = made_arrays(n=400)
    by_class = np.argsort(arrays["y_train"], kind="stable")
    path = npz(**{**arrays, "x_train": arrays["x_train"][by_class], "y_train": arrays["y_train"][by_class]})
    dataset, subset = own(path), own(path, train_images=42)
    assert torch.bincount(subset.train.labels).max() <= 42 // 4 + 2
    assert torch.bincount(subset.train.labels).min() >= 42 // 4 - 1
    assert pictures(subset.val) == pictures(dataset.val)
    assert pictures(subset.train) == pictures(dataset.train.first(42))
    assert subset.fingerprint == dataset.fingerprint


def test_a_test_subset_is_the_beginning_of_the_file(npz: Make) -> None:
    x_test = torch.from_numpy(made_arrays()["x_test"]).permute(0, 3, 1, 2)
    assert torch.equal(own(npz(), test_images=7).test.images, x_test[:7])


def test_every_beginning_of_a_stratified_order_has_the_classes_in_proportion() -> None:
    labels = np.repeat(np.arange(10), 30)
    ordered = labels[stratified_order(labels, key=1)]
    for n in range(1, len(labels)):
        assert np.abs(np.bincount(ordered[:n], minlength=10) - n / 10).max() < 1
    assert sorted(stratified_order(labels, key=1)) == list(range(300))


def test_a_stratified_order_is_shuffled_and_depends_on_its_key() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    order = stratified_order(labels, key=1)
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1
    assert not np.array_equal(order, stratified_order(labels, key=2))


@pytest.mark.parametrize("changed", ["x_train", "y_train", "x_test", "y_test"])
def test_the_fingerprint_sees_every_pixel_and_label(npz: Make, changed: str) -> None:
    before = own(npz()).fingerprint
    array = made_arrays()[changed]
    array.flat[-1] = (array.flat[-1] + 1) % 4
    assert own(npz(**{changed: array})).fingerprint != before


def test_the_fingerprint_sees_shapes(npz: Make) -> None:
    tall = made_arrays(shape=(16, 4))
    wide = {k: v.reshape(len(v), 4, 16) if k.startswith("x") else v for k, v in tall.items()}
    assert own(npz(**tall)).fingerprint != own(npz(**wide)).fingerprint


def test_a_split_moves_whole(digits: Dataset) -> None:
    moved = digits.val.to("meta")
    assert (moved.images.device.type, moved.labels.device.type) == ("meta", "meta")


# --- a user's .npz ---


@pytest.mark.parametrize(("shape", "channels"), [((8, 8), 1), ((8, 8, 1), 1), ((8, 8, 3), 3)])
def test_a_npz_comes_back_as_it_was_saved(npz: Make, shape: tuple[int, ...], channels: int) -> None:
    arrays = made_arrays(shape=shape)
    dataset = own(npz(**arrays))
    assert dataset.image_shape == (channels, 8, 8)
    assert torch.equal(
        dataset.test.images.permute(0, 2, 3, 1), torch.from_numpy(arrays["x_test"].reshape(20, 8, 8, channels))
    )
    assert dataset.test.labels.tolist() == arrays["y_test"].tolist()


def test_own_data_get_cifars_threat_and_a_tenth_held_out(npz: Make) -> None:
    dataset = own(npz(**made_arrays(n=100, shape=(24, 24, 3))))
    assert (dataset.threat.eps, dataset.threat.step) == (Fraction(8, 255), Fraction(2, 255))
    assert (len(dataset.val), dataset.pad, dataset.flip) == (10, 3, False)
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.summary()["class_names"] == ["0", "1", "2", "3"]


def test_at_most_a_thousand_own_images_are_held_out(npz: Make) -> None:
    assert len(own(npz(**made_arrays(n=12_000, shape=(2, 2)))).val) == 1000


def test_a_class_that_only_the_test_set_shows_is_kept_with_a_warning(npz: Make) -> None:
    arrays = made_arrays()
    arrays["y_train"] = np.where(arrays["y_train"] == 2, 0, arrays["y_train"])
    with pytest.warns(UserWarning, match="no training image shows class 2"):
        assert own(npz(**arrays)).classes == 4


def test_a_healthy_dataset_warns_of_nothing(npz: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own(npz())


ARRAYS = made_arrays()
BAD_ARRAYS = {
    "floats": ({"x_train": ARRAYS["x_train"] / 255}, ["x_train", "float64", "255", "uint8"]),
    "wide integers": ({"x_test": ARRAYS["x_test"].astype(np.int64)}, ["x_test", "int64", "uint8"]),
    "fewer labels": ({"y_train": ARRAYS["y_train"][:-1]}, ["60 images but 59 labels", "y_train"]),
    "labels from one": (
        {"y_train": ARRAYS["y_train"] + 1, "y_test": ARRAYS["y_test"] + 1},
        ["1..4", "no image has label 0"],
    ),
    "negative labels": ({"y_test": ARRAYS["y_test"] - 1}, ["-1..3", "0..C-1"]),
    "a gap": ({"y_train": ARRAYS["y_train"] * 2, "y_test": ARRAYS["y_test"] * 2}, ["0..6", "no image has label 1"]),
    "one class": ({"y_train": ARRAYS["y_train"] * 0, "y_test": ARRAYS["y_test"] * 0}, ["0..0", "two at least"]),
    "float labels": ({"y_train": ARRAYS["y_train"] / 1.0}, ["y_train", "float64", "integers"]),
    "one-hot labels": ({"y_train": np.eye(4, dtype=int)[ARRAYS["y_train"]]}, ["(60, 4)", "(N,)"]),
    "channels first": ({"x_train": ARRAYS["x_train"].transpose(0, 3, 1, 2)}, ["(60, 3, 8, 8)", "channels last"]),
    "flat images": ({"x_train": ARRAYS["x_train"].reshape(60, -1)}, ["(60, 192)", "(N, H, W)"]),
    "no images": ({"x_test": ARRAYS["x_test"][:0], "y_test": ARRAYS["y_test"][:0]}, ["x_test", "(0, 8, 8, 3)"]),
    "another size": ({"x_test": ARRAYS["x_test"][:, :6]}, ["8x8x3", "6x8x3"]),
    "a missing array": ({"y_test": None, "extra": np.zeros(1)}, ["lacks y_test", "extra", "x_train"]),
    "labels in a column": ({"y_train": ARRAYS["y_train"][:, None]}, ["y_train", "(60, 1)", "(N,)"]),
    "labels in words": ({"y_train": ARRAYS["y_train"].astype(str)}, ["y_train", "integers"]),
    "unlabelled images": (
        {"y_test": np.where(np.arange(20) < 3, -1, ARRAYS["y_test"])},
        ["label -1 (3 images) is below 0"],
    ),
    "a label too large": (
        {"y_train": np.where(np.arange(60) == 5, 2**63, ARRAYS["y_train"].astype(np.uint64))},
        ["y_train", "label 9223372036854775808 (1 image)"],
    ),
    "images of 0 and 1": ({"x_train": ARRAYS["x_train"] // 128}, ["x_train", "no value above 1", "by 255"]),
    "floats up to 255": ({"x_train": ARRAYS["x_train"] * 1.0}, ["x_train", "float64", "round and store"]),
    "floats around 0": ({"x_train": ARRAYS["x_train"] / 127.5 - 1}, ["x_train", "-1 to 1: bring them to 0 to 255"]),
    "not a number": ({"x_test": ARRAYS["x_test"] * np.nan}, ["x_test", "NaN"]),
    "objects": ({"y_train": np.array([{}] * 60)}, ["objects", "numpy.savez"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_cannot_be_used_are_refused(npz: Make, case: str) -> None:
    changes, words = BAD_ARRAYS[case]
    message = error_of(lambda: own(npz(**changes)))
    for word in ["own.npz", *words]:
        assert word in message


def test_a_pickle_in_a_npz_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("ran").touch, ())

    np.savez(tmp_path / "bomb.npz", **{**made_arrays(), "y_test": np.array([Bomb()], dtype=object)})
    assert "bomb.npz" in error_of(lambda: own(tmp_path / "bomb.npz"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:300] + bytes(50) + whole[350:],
        lambda _: b"not a zip",
        lambda _: b"",
    ],
    ids=["truncated", "overwritten", "foreign", "empty"],
)
def test_a_damaged_npz_is_refused(npz: Make, damage: Callable[[bytes], bytes]) -> None:
    path = npz()
    path.write_bytes(damage(path.read_bytes()))
    message = error_of(lambda: own(path))
    assert "own.npz" in message
    assert "numpy.savez" in message


def test_dark_images_are_told(npz: Make) -> None:
    with pytest.warns(Caution, match=r"x_test has no value above 15 of 255"):
        own(npz(x_test=ARRAYS["x_test"] // 16))


def test_test_images_that_are_trained_on_are_counted(npz: Make) -> None:
    x_test = ARRAYS["x_test"].copy()
    x_test[4:7] = ARRAYS["x_train"][:3]
    with pytest.warns(Caution, match=r"own\.npz': 3 of 20 test images are training images too"):
        own(npz(x_test=x_test))


def flagged(whole: bytes, offset: int, value: int) -> bytes:
    """A zip archive with a field of every entry changed: at 6 its flags, at 8 its compression."""
    changed = bytearray(whole)
    for mark, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = whole.find(mark)
        while at >= 0:
            changed[at + offset + shift] = value
            at = whole.find(mark, at + 1)
    return bytes(changed)


def member(path: Path, name: str, content: bytes) -> None:
    """Put a member into a .npz that holds all arrays but that one."""
    np.savez(path, **{key: array for key, array in ARRAYS.items() if key != name})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name if content[:1] != b"\x93" else f"{name}.npy", content)


HUGE = (
    b"\x93NUMPY\x01\x00"
    + (118).to_bytes(2, "little")
    + (str({"descr": "|u1", "fortran_order": False, "shape": (64 * 2**40,)}).ljust(117).encode() + b"\n")
)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(flagged(path.read_bytes(), 6, 1)),
        lambda path: path.write_bytes(flagged(path.read_bytes(), 8, 97)),
        lambda path: member(path, "x_train", pickle.dumps([1, 2])),
        lambda path: member(path, "x_train", b"raw bytes"),
        lambda path: member(path, "x_train", HUGE),
        lambda path: member(path, "y_test", b"\x93NUMPY\x09\x00"),
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:7\n"),
        lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    ],
    ids=["encrypted", "unknown compression", "pickled member", "raw member", "64 TiB", "version 9", "LFS", "gzip"],
)
def test_whatever_a_npz_holds_there_is_one_sentence(npz: Make, spoil: Callable[[Path], object]) -> None:
    path = npz()
    spoil(path)
    assert "own.npz" in error_of(lambda: own(path))


def test_an_array_that_is_there_twice_is_named(npz: Make) -> None:
    path = npz()
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("y_test.npy", archive.read("y_test.npy"))
    assert "y_test twice" in error_of(lambda: own(path))


def test_a_pipe_is_no_dataset(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "own.npz")
    assert "is a pipe or a device" in error_of(lambda: own(tmp_path / "own.npz"))


@pytest.mark.parametrize("which", ["train_images", "val_images", "test_images"])
@pytest.mark.parametrize("count", [61, 0, -1])
def test_more_images_than_there_are_or_none_are_refused(npz: Make, which: str, count: int) -> None:
    message = error_of(lambda: own(npz(), **{which: count}))
    assert f"{count} " in message
    assert "ask for 1 to " in message


def test_holding_out_must_leave_something_to_train_on(npz: Make) -> None:
    assert len(own(npz(), val_images=58).train) == 2, "the smallest batch"
    assert "59 held-out images asked for; ask for 1 to 58" in error_of(lambda: own(npz(), val_images=59))


def test_training_images_cannot_be_taken_from_the_held_out_ones(npz: Make) -> None:
    assert len(own(npz(), train_images=54).train) == 54
    assert "ask for 1 to 54" in error_of(lambda: own(npz(), train_images=55))


# --- names and paths ---


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert "did you mean 'cifar10'?" in error_of(lambda: load("cifar-10", Path("unused")))


@pytest.mark.parametrize("name", ["absent.npz", "some/absent/folder"])
def test_a_path_that_does_not_exist_is_named(name: str) -> None:
    message = error_of(lambda: load(name, Path("unused")))
    assert f"'{name}' does not exist" in message


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()
    assert "neither a .npz file nor an image folder" in error_of(lambda: own(tmp_path / "data.csv"))


# --- image folders ---


def test_an_image_folder_is_read_with_its_class_names(folder: Make) -> None:
    dataset = own(folder())
    assert dataset.class_names == ("cat", "dog")
    assert dataset.image_shape == (3, 10, 12)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (11, 1, 6)
    assert dataset.test.images[:, 0, 0, 0].tolist() == [0, 1, 2, 40, 41, 42]
    assert dataset.test.images[0, :, 9, 11].tolist() == [0, 100, 200]
    assert dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".PNG"])
def test_grey_images_stay_grey_in_every_format(folder: Make, suffix: str) -> None:
    assert own(folder("L", suffix)).image_shape == (1, 10, 12)


def test_one_colour_image_makes_the_whole_folder_colour(folder: Make) -> None:
    path = folder("L")
    Image.new("RGB", (12, 10), (1, 2, 3)).save(path / "test" / "dog" / "0.png")
    dataset = own(path)
    assert dataset.test.images[3, :, 0, 0].tolist() == [1, 2, 3]
    assert len(set(dataset.test.images[4, :, 0, 0].tolist())) == 1


def numbered(root: Path, names: list[str], suffix: str = ".png") -> Path:
    """A folder with three training images and one test image of each class, whose grey says its place."""
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(names):
            for i in range(count):
                file = root / part / name / f"{i}{suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (4, 4), 100 + 10 * label + i + 5 * (part == "test")).save(file)
    return root


def shades(dataset: Dataset) -> list[int]:
    """The label that each test image's grey says."""
    return [(int(image[0, 0, 0]) - 105) // 10 for image in dataset.test.images]


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".gif", ".pgm", ".jfif"])
def test_images_of_other_formats_are_read(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == ".webp" else {}
    for file in sorted(numbered(tmp_path, ["a", "b"]).rglob("*.png")):
        with Image.open(file) as image:
            image.save(file.with_suffix(suffix), **options)
        file.unlink()
    dataset = own(tmp_path)
    assert (dataset.classes, len(dataset.train) + len(dataset.val), len(dataset.test)) == (2, 6, 2)


def test_images_a_level_deeper_are_read_and_belong_to_the_class_above(tmp_path: Path) -> None:
    flat, deep = numbered(tmp_path / "flat", ["a", "b"]), numbered(tmp_path / "deep", ["a", "b"])
    for part in ("train", "test"):
        (deep / part / "a").rename(deep / part / "images")
        (deep / part / "a").mkdir()
        (deep / part / "images").rename(deep / part / "a" / "images")
    assert own(deep).fingerprint == own(flat).fingerprint


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    before = own(numbered(tmp_path, ["a", "b"])).fingerprint
    for part in ("train", "test"):
        shutil.copytree(tmp_path / part / "a", tmp_path / part / ".ipynb_checkpoints")
        shutil.copytree(tmp_path / part / "a", tmp_path / part / "b" / ".ipynb_checkpoints")
        (tmp_path / part / "a" / "Thumbs.db").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = own(tmp_path)
    assert (dataset.class_names, dataset.fingerprint) == (("a", "b"), before)


def test_whole_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    dataset = own(numbered(tmp_path, [str(i) for i in range(12)]))
    assert dataset.class_names == tuple(str(i) for i in range(12))
    assert dataset.test.labels.tolist() == shades(dataset) == list(range(12))


def test_names_that_are_not_all_numbers_are_in_the_order_of_text(tmp_path: Path) -> None:
    assert own(numbered(tmp_path, ["10", "9", "other"])).class_names == ("10", "9", "other")


def test_files_that_are_not_read_are_counted_and_one_is_named(tmp_path: Path) -> None:
    numbered(tmp_path, ["a", "b"])
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "a" / "0.heic")
    (tmp_path / "train" / "labels.csv").touch()
    (tmp_path / "train" / "c").mkdir()
    with pytest.warns(Caution, match=r"3 entries are not read, as 'train/a/0\.heic'"):
        assert own(tmp_path).classes == 2


def test_a_folder_of_held_out_images_is_told_to_be_unused(tmp_path: Path) -> None:
    numbered(tmp_path, ["a", "b"])
    shutil.copytree(tmp_path / "test", tmp_path / "val")
    with pytest.warns(Caution, match=r"'val' is not used.*held out of 'train'"):
        own(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda a: (a / "0.png").symlink_to("nowhere.png"), "'.*a/0.png' is a link that leads nowhere"),
        (lambda a: os.mkfifo(a / "0.png"), "a/0.png' is a pipe or a device"),
        (lambda a: (a / "0.png").write_text("version https://git-lfs"), "a/0.png' cannot be read .*Git LFS pointer"),
        (lambda a: (a / "deeper").symlink_to(a), "deeper' is a link that leads to a folder around it"),
        (
            lambda a: Image.new("L", (4, 4)).save(
                a / "0.gif", save_all=True, append_images=[Image.new("L", (4, 4), 9)]
            ),
            "0.gif' has 2 frames",
        ),
    ],
    ids=["broken link", "pipe", "LFS", "loop", "film"],
)
def test_an_image_that_is_none_is_named(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    numbered(tmp_path, ["a", "b"])
    (tmp_path / "train" / "a" / "0.png").unlink()
    spoil(tmp_path / "train" / "a")
    assert re.search(says, error_of(lambda: own(tmp_path)))


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA"])
def test_palettes_and_transparency_become_rgb(folder: Make, mode: str) -> None:
    assert own(folder(mode)).image_shape == (3, 10, 12)


def test_transparency_that_is_dropped_is_told(folder: Make) -> None:
    path = folder("RGBA")  # without a transparent pixel, as many programs write
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        own(path)
        assert not [w for w in told if "transparent" in str(w.message)]
        Image.new("RGBA", (12, 10), (9, 8, 7, 0)).save(path / "train" / "dog" / "2.png")
        (split,) = [own(path).train]
    (said,) = [str(w.message) for w in told if "transparent" in str(w.message)]
    assert str(Path("train/dog/2.png")) in said
    # The colour beneath stays.
    assert any(image[:, 0, 0].tolist() == [9, 8, 7] for image in split.images) or len(split) < 12


def test_images_of_any_size_are_brought_to_one_by_their_middle_square(tmp_path: Path) -> None:
    """Stripes as fine as a pixel become grey, so it is antialiased; what is cut off is what lies beside the middle."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
    stripes = np.zeros((40, 100, 3), np.uint8)
    stripes[:, 30:70:2] = 200  # in the middle square
    stripes[:, :30], stripes[:, 70:] = (255, 0, 0), (255, 0, 0)
    for i, (part, name) in enumerate((p, n) for p in ("train", "test") for n in ("a", "b") for _ in range(3)):
        image = Image.fromarray(stripes).rotate(90 * (i % 2), expand=True)
        image.save(tmp_path / part / name / f"{i}.png")
    Image.new("L", (5, 9), 77).save(tmp_path / "train" / "a" / "grey.png")
    Image.new("P", (8, 8), 3).save(tmp_path / "train" / "b" / "palette.png")
    dataset = load(str(tmp_path), tmp_path, resize=10)
    assert dataset.image_shape == (3, 10, 10)
    images = torch.cat([dataset.train.images, dataset.val.images, dataset.test.images]).int()
    striped = images[(images[:, 0] - 100).abs().flatten(1).max(1).values <= 20]
    assert len(striped) == 12
    assert (striped - 100).abs().max() <= 20
    assert any((image == 77).all() for image in images)
    assert "data.resize" in error_of(lambda: load(str(tmp_path), tmp_path))


def test_any_dataset_can_be_brought_to_another_size(npz: Make, tmp_path: Path) -> None:
    path = npz(x_train=np.full((60, 8, 8), 99, np.uint8), x_test=np.full((20, 8, 8), 99, np.uint8))
    for name, channels in ((str(path), 1), ("digits", 1)):
        assert load(name, tmp_path, resize=12).image_shape == (channels, 12, 12)
    assert (load(str(path), tmp_path, resize=12).train.images == 99).all()


def test_the_first_image_of_another_size_is_named(folder: Make) -> None:
    path = folder()
    for name in ("3.png", "4.png"):
        Image.new("RGB", (10, 12)).save(path / "train" / "dog" / name)
    message = error_of(lambda: own(path))
    assert str(Path("train/dog/3.png")) in message
    assert "10x12" in message
    assert "12x10" in message
    assert "data.resize" in message
    assert "transparency" in message


def test_images_that_cannot_be_read_are_named(folder: Make) -> None:
    path = folder()
    odd = path / "test" / "cat" / "1.png"
    cut = odd.read_bytes()[:-30]
    for content in (b"no image", cut):
        odd.write_bytes(content)
        assert "1.png" in error_of(lambda: own(path))


def test_images_of_sixteen_bits_are_refused(folder: Make) -> None:
    path = folder()
    Image.fromarray(np.zeros((10, 12), dtype=np.uint16)).save(path / "test" / "cat" / "1.png")
    assert "more than 8 bits" in error_of(lambda: own(path))


def test_a_folder_needs_both_parts_and_the_same_classes_in_both(folder: Make) -> None:
    path = folder()
    (path / "train" / "dog").rename(path / "train" / "wolf")
    assert "class 'dog' has images in 'test' but none in 'train'" in error_of(lambda: own(path))
    (path / "test").rename(path / "val")
    assert "no folder 'test'" in error_of(lambda: own(path))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    assert "no images" in error_of(lambda: own(tmp_path))


# --- CIFAR in torchvision's layout ---


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def cifar_files(cls: Any, per_file: int, classes: int) -> dict[str, bytes]:
    """Small files as Krizhevsky's: every image is filled with its number, whose remainder is its label."""
    key = "labels" if cls is CIFAR10 else "fine_labels"
    files = {cls.meta["filename"]: pickle.dumps({cls.meta["key"]: [str(i) for i in range(classes)]})}
    start = 0
    for name, _ in cls.train_list + cls.test_list:
        numbers = np.arange(start, start + per_file)
        rows = np.repeat((numbers % 256).astype(np.uint8)[:, None], 3072, axis=1)
        rows[:, 2048:] = 255  # the blue plane
        files[name] = pickle.dumps({"data": rows, key: (numbers % classes).tolist()})
        start += per_file
    return files


def expect(monkeypatch: pytest.MonkeyPatch, cls: Any, files: dict[str, bytes]) -> None:
    """Make `files` the ones whose MD5 sums torchvision checks."""
    for table in ("train_list", "test_list"):
        sums = [[name, md5(files[name])] for name, _ in getattr(cls, table)]
        monkeypatch.setattr(cls, table, sums)
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(files[cls.meta["filename"]])})


def archive_of(cls: Any, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{cls.base_folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def made_cifar10(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Made CIFAR-10 files whose MD5 sums torchvision expects; nothing can be downloaded."""
    files = cifar_files(CIFAR10, per_file=20, classes=10)
    expect(monkeypatch, CIFAR10, files)
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    return files


def write_layout(data_dir: Path, files: dict[str, bytes], cls: Any = CIFAR10) -> Path:
    layout: Path = data_dir / cls.base_folder
    layout.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (layout / name).write_bytes(content)
    return layout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A local web server: its address and the folder it serves."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args: object) -> None:
            pass

    served = tmp_path / "served"
    served.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served)) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", served
        httpd.shutdown()


def test_cifar10_is_read_from_the_official_layout(made_cifar10: dict[str, bytes], tmp_path: Path) -> None:
    write_layout(tmp_path, made_cifar10)
    dataset = load("cifar10", tmp_path, val_images=10)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (90, 10, 20)
    assert dataset.test.images[:, 0, 31, 31].tolist() == list(range(100, 120))
    assert dataset.test.images[5, :, 0, 0].tolist() == [105, 105, 255]
    assert dataset.test.labels.tolist() == [i % 10 for i in range(100, 120)]
    assert torch.bincount(dataset.val.labels).tolist() == [1] * 10
    assert dataset.class_names[0] == "airplane"
    assert (dataset.threat.eps, dataset.threat.step) == (Fraction(8, 255), Fraction(2, 255))
    assert (dataset.pad, dataset.flip) == (4, True)


def test_cifar10_is_one_dataset_in_either_form(made_cifar10: dict[str, bytes], tmp_path: Path) -> None:
    write_layout(tmp_path / "official", made_cifar10)
    official = DATASETS.load("cifar10")(tmp_path / "official")
    keys = ("x_train", "y_train", "x_test", "y_test")
    np.savez(tmp_path / "cifar10.npz", **{key: getattr(official, key) for key in keys})
    one, other = (load("cifar10", place, val_images=10) for place in (tmp_path / "official", tmp_path))
    assert one.fingerprint == other.fingerprint
    assert pictures(one.train) == pictures(other.train)
    assert (one.class_names, one.threat) == (other.class_names, other.threat)


def test_cifar100_reads_fine_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = cifar_files(CIFAR100, per_file=200, classes=100)
    expect(monkeypatch, CIFAR100, files)
    write_layout(tmp_path, files, CIFAR100)
    dataset = load("cifar100", tmp_path, val_images=100)
    assert dataset.classes == 100
    assert (dataset.class_names[0], dataset.class_names[99]) == ("apple", "worm")
    assert dataset.test.labels.tolist() == list(range(100)) * 2


def test_absent_cifar10_is_downloaded_checked_and_then_kept(
    made_cifar10: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], tmp_path: Path
) -> None:
    url, served = server
    archive = archive_of(CIFAR10, made_cifar10)
    (served / CIFAR10.filename).write_bytes(archive)
    monkeypatch.setattr(CIFAR10, "url", f"{url}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    downloaded = load("cifar10", tmp_path / "data", val_images=10)
    assert len(downloaded.test) == 20
    (served / CIFAR10.filename).unlink()
    assert load("cifar10", tmp_path / "data", val_images=10).fingerprint == downloaded.fingerprint


def test_an_archive_of_another_md5_is_refused_unopened(
    made_cifar10: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], tmp_path: Path
) -> None:
    url, served = server
    (served / CIFAR10.filename).write_bytes(archive_of(CIFAR10, made_cifar10))
    monkeypatch.setattr(CIFAR10, "url", f"{url}/{CIFAR10.filename}")
    message = error_of(lambda: load("cifar10", tmp_path / "data"))
    assert CIFAR10.tgz_md5 in message
    assert not (tmp_path / "data" / CIFAR10.base_folder).exists()


@pytest.mark.usefixtures("made_cifar10")
def test_offline_the_error_says_which_file_belongs_where(tmp_path: Path) -> None:
    message = error_of(lambda: load("cifar10", tmp_path / "data"))
    for word in ("cifar10.npz", "cifar-10-python.tar.gz", CIFAR10.url, f"'{tmp_path / 'data'}'"):
        assert word in message


def test_a_truncated_batch_is_refused_offline_and_mended_from_the_archive(
    made_cifar10: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layout = write_layout(tmp_path, made_cifar10)
    (layout / "data_batch_3").write_bytes(made_cifar10["data_batch_3"][:100])
    assert "no whole copy" in error_of(lambda: load("cifar10", tmp_path))
    archive = archive_of(CIFAR10, made_cifar10)
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    assert len(load("cifar10", tmp_path, val_images=10).train) == 90


def test_a_npz_of_fewer_classes_is_not_cifar10(tmp_path: Path) -> None:
    np.savez(tmp_path / "cifar10.npz", **made_arrays(shape=(32, 32, 3)))
    assert "labels are 0..3 but 10 classes have names" in error_of(lambda: load("cifar10", tmp_path))


# --- the real ones ---


@pytest.mark.cifar10
def test_the_real_cifar10_has_its_known_counts_and_channel_means(cifar10_npz: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar10.npz").symlink_to(cifar10_npz.resolve())
    dataset = load("cifar10", tmp_path)
    assert torch.bincount(dataset.train.labels).tolist() == [4900] * 10
    assert torch.bincount(dataset.val.labels).tolist() == [100] * 10
    assert torch.bincount(dataset.test.labels).tolist() == [1000] * 10
    assert torch.bincount(dataset.train.first(500).labels).tolist() == [50] * 10
    train, val = (split.images.sum((0, 2, 3), dtype=torch.int64) for split in (dataset.train, dataset.val))
    means = (train + val).double() / (50_000 * 1024 * 255)
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)


def test_the_cifar100_sample_loads_with_a_hundred_classes(shared: Path) -> None:
    # Class 16 has no image among the sample's first 486.
    with pytest.warns(UserWarning, match="class 16"):
        dataset = own(shared / "data" / "cifar100_sample" / "cifar100_sample.npz")
    assert (dataset.classes, dataset.image_shape, len(dataset.test)) == (100, (3, 32, 32), 916)
    assert len(dataset.train) + len(dataset.val) == 486


# --- batches ---


def augment(images: torch.Tensor, generator: torch.Generator, pad: int, flip: bool) -> torch.Tensor:
    return cropped(images, draw_crops(len(images), generator, pad, flip).to(images.device), pad)


def naive_augment(images: np.ndarray, seed: int, pad: int, flip: bool) -> np.ndarray:
    """Each image padded, cropped and mirrored by itself, from the same draws."""
    g = torch.Generator().manual_seed(seed)
    n, _, height, width = images.shape
    tops, lefts = torch.randint(2 * pad + 1, (2, n), generator=g).tolist()
    mirrors = torch.randint(2, (n,), generator=g).tolist() if flip else [0] * n
    out = []
    for image, top, left, mirror in zip(images, tops, lefts, mirrors, strict=True):
        crop = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))[:, top : top + height, left : left + width]
        out.append(crop[:, :, ::-1] if mirror else crop)
    return np.stack(out)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(1, 256, (64, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_crops_each_image_as_if_alone(images: torch.Tensor, pad: int, flip: bool) -> None:
    augmented = augment(images, torch.Generator().manual_seed(5), pad, flip)
    assert augmented.dtype == torch.uint8
    np.testing.assert_array_equal(augmented.numpy(), naive_augment(images.numpy(), 5, pad, flip))


def test_without_padding_and_mirroring_images_stay_as_they_are(images: torch.Tensor) -> None:
    assert torch.equal(augment(images, torch.Generator(), pad=0, flip=False), images)


def test_half_of_the_images_are_mirrored_and_none_else_changed() -> None:
    ramp = torch.arange(4, dtype=torch.uint8).expand(4000, 1, 4, 4)
    mirrored = augment(ramp, torch.Generator().manual_seed(0), pad=0, flip=True)
    is_mirrored = (mirrored == ramp.flip(3)).flatten(1).all(1)
    assert (is_mirrored | (mirrored == ramp).flatten(1).all(1)).all()
    assert is_mirrored.float().mean().item() == pytest.approx(0.5, abs=0.03)  # 3.8 standard errors


def test_every_crop_offset_is_equally_likely() -> None:
    dot = torch.zeros(9000, 1, 3, 3, dtype=torch.uint8)
    dot[:, :, 1, 1] = 1
    shares = augment(dot, torch.Generator().manual_seed(0), pad=1, flip=False).double().mean(0)[0]
    assert shares.flatten().tolist() == pytest.approx([1 / 9] * 9, abs=0.0133)  # 4 standard errors


def test_augmentation_follows_its_generator_alone(images: torch.Tensor) -> None:
    one, again, other = (augment(images, torch.Generator().manual_seed(s), 2, True) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_augmentation_is_the_same_on_the_gpu(images: torch.Tensor) -> None:
    here = augment(images, torch.Generator().manual_seed(1), 2, True)
    there = augment(images.cuda(), torch.Generator().manual_seed(1), 2, True)
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_are_255ths_and_contiguous(dtype: torch.dtype) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 8, 8, 4).permute(0, 3, 1, 2)
    floats = to_float(images, dtype)
    assert floats.dtype == dtype
    assert floats.is_contiguous()
    expected = torch.tensor([i / 255 for i in range(256)], dtype=dtype)
    assert torch.equal(floats.permute(0, 2, 3, 1).flatten(), expected)


def test_the_default_float_is_single_precision() -> None:
    assert to_float(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).dtype == torch.float32


def test_an_epoch_visits_every_image_once_in_an_order_of_its_generator() -> None:
    one, again, other = (epoch_order(100, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert sorted(one.tolist()) == list(range(100))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("n", "sizes"), [(12, [4, 4, 4]), (14, [4, 4, 4, 2]), (13, [4, 4, 4]), (3, [3]), (1, []), (0, [])]
)
def test_batches_cover_the_order_but_for_a_last_single_image(n: int, sizes: list[int]) -> None:
    order = torch.arange(n)
    cut = batches(order, 4)
    assert [len(batch) for batch in cut] == sizes
    assert [i for batch in cut for i in batch.tolist()] == list(range(sum(sizes)))


# --- SVHN and Tiny-ImageNet-200, from made files under the published names ---


def made_svhn(folder: Path) -> dict[str, bytes]:
    """Its two files: image i is filled with i, its label is 1..10."""
    from scipy.io import savemat

    files = {}
    for part, count in (("train", 40), ("test", 20)):
        numbers = np.arange(count)
        x = np.broadcast_to(numbers.astype(np.uint8) * 5, (32, 32, 3, count))
        savemat(folder / "made.mat", {"X": x, "y": (numbers % 10 + 1).astype(np.uint8)[:, None]}, do_compression=True)
        files[f"{part}_32x32.mat"] = (folder / "made.mat").read_bytes()
    return files


def made_tiny(classes: int = 3, per_class: int = 4) -> dict[str, bytes]:
    """Files of the published layout: of class i the colour is i; one image is grey, as some are."""
    numbers = [f"n0{9 - i}" for i in range(classes)]
    files = {
        "wnids.txt": "\n".join(numbers).encode(),
        "words.txt": b"n09\tgoldfish, Carassius auratus\nn08\tcrane\nn07\tcrane, bird\nn01\tunused",
    }
    annotations = []
    for number in numbers:
        label = sorted(numbers).index(number)
        names = [f"{number}_{i}.JPEG" for i in range(per_class)]
        files[f"train/{number}/{number}_boxes.txt"] = "".join(f"{name}\t0\t0\t63\t63\n" for name in names).encode()
        for i, name in enumerate(names):
            files[f"train/{number}/images/{name}"] = jpeg(80 * label + 20, grey=i == 0)
        files[f"val/images/val_{label}.JPEG"] = jpeg(80 * label + 30)
        annotations.append(f"val_{label}.JPEG\t{number}\t0\t0\t10\t10\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    return files


def jpeg(value: int, *, grey: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.new("L" if grey else "RGB", (64, 64), value if grey else (value,) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return buffer.getvalue()


def serve(
    monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], which: str, files: dict[str, bytes]
) -> published.Published:
    """The dataset, whose published files are now these, on a local server."""
    url, served = server
    for name, content in files.items():
        (served / name).write_bytes(content)
    known = tuple(RemoteFile(name, (f"{url}/{name}",), md5=md5(content)) for name, content in files.items())
    changed = replace(getattr(published, which), files=known)
    monkeypatch.setattr(published, which, changed)
    return changed


def test_svhn_is_downloaded_checked_and_kept(
    monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], tmp_path: Path
) -> None:
    files = made_svhn(tmp_path)
    serve(monkeypatch, server, "SVHN", files)
    dataset = load("svhn", tmp_path / "data", val_images=10)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (30, 10, 20)
    assert dataset.image_shape == (3, 32, 32)
    # The published label 10 is the digit 0.
    assert dataset.test.labels.tolist() == [(i + 1) % 10 for i in range(20)]
    assert dataset.test.images[:, 0, 5, 7].tolist() == [5 * i for i in range(20)]
    assert dataset.class_names == tuple("0123456789")
    assert (dataset.pad, dataset.flip) == (0, False)
    for name in files:
        (tmp_path / "data" / name).unlink()
        (server[1] / name).unlink()
    assert load("svhn", tmp_path / "data", val_images=10).fingerprint == dataset.fingerprint


@pytest.mark.parametrize("unpacked", [False, True])
def test_tiny_imagenet_is_read_from_its_archive_or_its_folder(
    unpacked: bool, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], tmp_path: Path
) -> None:
    files = made_tiny()
    if unpacked:
        for name, content in files.items():
            path = tmp_path / "data" / "tiny-imagenet-200" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    else:
        serve(monkeypatch, server, "TINY_IMAGENET", {"tiny-imagenet-200.zip": zipped(files)})
    for _ in range(2):  # of the published files, then of what is kept
        dataset = load("tiny-imagenet", tmp_path / "data", val_images=3)
        assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (9, 3, 3)
        assert dataset.image_shape == (3, 64, 64)
        assert dataset.class_names == ("crane (n07)", "crane (n08)", "goldfish")
        for split, base in ((dataset.train, 20), (dataset.test, 30)):
            for image, label in zip(split.images, split.labels.tolist(), strict=True):
                assert (image.int() - (80 * label + base)).abs().max() <= 2
        assert (dataset.pad, dataset.flip) == (4, True)


@pytest.mark.parametrize("damage", ["hash", "absent"])
@pytest.mark.parametrize("which", ["SVHN", "TINY_IMAGENET"])
def test_published_files_that_cannot_be_had_whole_are_told(
    which: str, damage: str, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], tmp_path: Path
) -> None:
    files = made_svhn(tmp_path) if which == "SVHN" else {"tiny-imagenet-200.zip": zipped(made_tiny())}
    one = serve(monkeypatch, server, which, files)
    for name in files:
        (server[1] / name).unlink()
        if damage == "hash":
            (server[1] / name).write_bytes(b"another file")
    monkeypatch.setattr("adbench.system.download.PAUSE", 0.0)
    message = error_of(lambda: load(one.name, tmp_path / "data"))
    for word in (f"{one.name}.npz", one.files[0].name, str(one.files[0].md5), str(tmp_path / "data")):
        assert word in message


@pytest.mark.parametrize("missing", ["val/val_annotations.txt", "wnids.txt", "train/n09/images/n09_1.JPEG"])
def test_a_folder_that_is_not_tiny_imagenets_layout_is_refused(missing: str, tmp_path: Path) -> None:
    for name, content in made_tiny().items():
        path = tmp_path / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "tiny-imagenet-200" / missing).unlink()
    message = error_of(lambda: load("tiny-imagenet", tmp_path))
    assert "val_annotations.txt" in message
    assert "tiny-imagenet-200" in message


@pytest.mark.parametrize("name", ["svhn", "tiny-imagenet"])
def test_published_files_are_prepared_from_a_folder(
    name: str, monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path], tmp_path: Path
) -> None:
    files = made_svhn(tmp_path) if name == "svhn" else {"tiny-imagenet-200.zip": zipped(made_tiny())}
    one = serve(monkeypatch, server, name.upper().replace("-", "_"), files)
    monkeypatch.setitem(preparing.DOWNLOADED, name, one)
    for path in server[1].iterdir():
        path.rename(tmp_path / path.name)
    items = {}
    for place in ("first", "again"):
        options = {"datasets": [name], "methods": ["pgd-at"], "data": {"val_images": 3}, "eval": {"proxies": []}}
        item, *_ = preparing.prepare(
            experiment(options), Place(tmp_path, tmp_path / "data", "cpu"), tmp_path, lambda _: lambda *_: None
        )
        assert not item.error, item.says
        items[place] = item.says
    assert "copied from" in items["first"]
    assert "there" in items["again"]
