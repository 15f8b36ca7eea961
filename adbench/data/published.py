"""Published datasets that come as files of images: SVHN's `.mat` and the archive of Tiny-ImageNet-200.

What was read of them is kept beside them as a `.npz`, which opens faster.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adbench.data.arrays import FourArrays, checked
from adbench.data.own import read_npz
from adbench.errors import UserError, printable
from adbench.system import files
from adbench.system.download import Progress, RemoteFile, fetch

NAMES_KEY = "class_names"
"""The array of the names of classes in a `.npz` that is kept."""
TINY = "tiny-imagenet-200"
SIDE = 64
"""Of Tiny-ImageNet's images."""


@dataclass(frozen=True)
class Published:
    """A dataset by its name.  files: to download.  read: makes arrays and names of classes of the files in a folder."""

    name: str
    files: tuple[RemoteFile, ...]
    read: Callable[[Path], tuple[FourArrays, tuple[str, ...]]]


def load(published: Published, data_dir: Path, progress: Progress | None = None) -> tuple[FourArrays, tuple[str, ...]]:
    """Its images, labels and names of classes, from NAME.npz in `data_dir`, else from its files there.

    Those are downloaded if need be, and have to have their published MD5 sums.  Raises UserError where there is no
    whole copy and none can be had.
    """
    kept = data_dir / f"{published.name}.npz"
    if kept.is_file():
        return read_npz(kept), _names(kept)
    try:
        for file in published.files:
            if not (file.name.endswith(".zip") and (data_dir / Path(file.name).stem).is_dir()):  # unpacked by hand
                fetch(file, data_dir / file.name, progress=progress)
    except (UserError, OSError) as error:
        wanted = ", ".join(f"{file.name} from {file.urls[0]} (MD5 {file.md5})" for file in published.files)
        raise UserError(
            f"{published.name}: no whole copy in '{data_dir}', and the download failed ({error}); put there "
            f"{kept.name} or {wanted}"
        ) from error
    parts, names = published.read(data_dir)
    with suppress(UserError):  # a folder that cannot be written costs time, not data
        files.write_atomic(kept, lambda path: _save(path, parts, names))
    return parts, names


def _save(path: Path, parts: FourArrays, names: tuple[str, ...]) -> None:
    arrays: dict[str, Any] = parts._asdict() | {NAMES_KEY: np.array(names)}
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _names(path: Path) -> tuple[str, ...]:
    """The names of classes in a `.npz`; their numbers where it has none."""
    with np.load(path, allow_pickle=False) as archive:
        if NAMES_KEY in archive.files:
            return tuple(map(str, archive[NAMES_KEY].tolist()))
        return tuple(map(str, range(1 + int(archive["y_train"].max()))))


def _svhn(folder: Path) -> tuple[FourArrays, tuple[str, ...]]:
    """SVHN's cropped digits; their label 10 is the digit 0."""
    from scipy.io import loadmat  # takes its time

    arrays: list[NDArray[np.generic]] = []
    for part in ("train", "test"):
        path = folder / f"{part}_32x32.mat"
        try:
            content = loadmat(path)
            arrays += [content["X"].transpose(3, 0, 1, 2), content["y"].reshape(-1).astype(np.int64) % 10]
        except Exception as error:  # what a damaged file makes of the reader is not bounded
            raise UserError(f"svhn: '{path}' cannot be read ({error}); remove it to have it fetched again") from error
    return checked("svhn", *arrays), tuple("0123456789")


def _tiny(folder: Path) -> tuple[FourArrays, tuple[str, ...]]:
    """Tiny-ImageNet-200, from the folder or the archive of that name; its test set is the published `val`.

    The published test images have no labels.  Classes are in the order of their WordNet numbers, and called by their
    first words.  Grey images become RGB, as all others are.
    """
    read, close = _opened(folder)
    try:
        numbers = sorted(_lines(read("wnids.txt")))
        label = {number: place for place, number in enumerate(numbers)}
        words = dict(line.split("\t", 1) for line in _lines(read("words.txt")) if "\t" in line)
        first = [words.get(number, number).split(",")[0] for number in numbers]
        names = [name if first.count(name) == 1 else f"{name} ({n})" for name, n in zip(first, numbers, strict=True)]
        train = [
            (f"train/{number}/images/{line.split(chr(9))[0]}", label[number])
            for number in numbers
            for line in _lines(read(f"train/{number}/{number}_boxes.txt"))
        ]
        rows = [line.split("\t") for line in _lines(read("val/val_annotations.txt"))]
        test = [(f"val/images/{row[0]}", label[row[1]]) for row in rows]
        arrays = [(_pictures(read, part), np.array([y for _, y in part], np.int64)) for part in (train, test)]
    except UserError:
        raise
    except Exception as error:  # a folder by hand may be anything
        raise UserError(
            f"tiny-imagenet: '{folder / TINY}' is not in the published layout ({type(error).__name__}: "
            f"{printable(str(error)[:120])}); needed are wnids.txt, words.txt, train/ID/images, train/ID/ID_boxes.txt, "
            f"val/images and val/val_annotations.txt, as {TINY}.zip has them"
        ) from error
    finally:
        close()
    (x_train, y_train), (x_test, y_test) = arrays
    return checked("tiny-imagenet", x_train, y_train, x_test, y_test), tuple(names)


def _opened(folder: Path) -> tuple[Callable[[str], bytes], Callable[[], None]]:
    """How to read a file of Tiny-ImageNet, and what to call when all are read."""
    unpacked = folder / TINY
    if unpacked.is_dir():
        return (lambda name: (unpacked / name).read_bytes()), lambda: None
    archive = zipfile.ZipFile(folder / f"{TINY}.zip")
    return (lambda name: archive.read(f"{TINY}/{name}")), archive.close


def _lines(content: bytes) -> list[str]:
    return [line for line in content.decode("utf-8").splitlines() if line.strip()]


def _pictures(read: Callable[[str], bytes], part: list[tuple[str, int]]) -> NDArray[np.uint8]:
    """uint8 (N, 64, 64, 3)."""
    from PIL import Image

    images = np.empty((len(part), SIDE, SIDE, 3), np.uint8)
    for number, (name, _) in enumerate(part):
        with Image.open(io.BytesIO(read(name))) as image:
            images[number] = np.asarray(image.convert("RGB"))
    return images


SVHN = Published(
    "svhn",
    tuple(
        RemoteFile(name, (f"http://ufldl.stanford.edu/housenumbers/{name}",), md5=md5)
        for name, md5 in (
            ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        )
    ),
    _svhn,
)
TINY_IMAGENET = Published(
    "tiny-imagenet",
    (
        RemoteFile(
            f"{TINY}.zip",
            (f"http://cs231n.stanford.edu/{TINY}.zip",),
            md5="90528d7ca1a48142e341f4ef8d21d0de",
            size=248_100_043,
        ),
    ),
    _tiny,
)
