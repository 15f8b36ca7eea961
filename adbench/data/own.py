"""A user's own data: a `.npz` of four arrays, or a folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adbench.data.arrays import Arrays, Parts, checked, repeated
from adbench.data.identity import image_files, is_image_folder
from adbench.data.threat import Threat
from adbench.errors import UserError, printable, warn
from adbench.system.file_kinds import HEAD, other_kind
from adbench.system.files import opened

THREAT = Threat(eps=Fraction(8, 255), step=Fraction(2, 255))


def read_own(path: Path) -> Arrays:
    """The dataset at `path`: CIFAR's threat model, crops padded by an eighth of the side, no mirroring.

    The held-out part is a tenth of the training images, 1,000 at most.  Classes are named by their folders,
    those of a `.npz` by their numbers.  Raises UserError where the data cannot be used.
    """
    if is_image_folder(path):
        parts, class_names = read_folder(path)
    else:
        parts = read_npz(path)
        class_names = tuple(str(i) for i in range(1 + max(parts.y_train.max(), parts.y_test.max())))
    if count := repeated(parts):
        warn(
            f"'{path}': {count:,} of {len(parts.x_test):,} test images are training images too; figures on these say "
            f"nothing of images that a network has not seen"
        )
    return Arrays(
        *parts,
        class_names,
        THREAT,
        pad=max(1, min(parts.x_train.shape[1:3]) // 8),
        flip=False,
        val_images=min(max(1, len(parts.x_train) // 10), 1000),
    )


def read_npz(path: Path) -> Parts:
    """The arrays x_train, y_train, x_test, y_test of a `.npz`; pickled objects are never loaded.

    Raises UserError where the file is damaged, an array is missing, or its content is not what it should be.
    """
    try:
        with opened(path) as file:
            head, whole = file.read(HEAD), zipfile.is_zipfile(file)
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror or error})") from error
    if not whole:
        other = other_kind(head)
        kind = f"it is {other}" if other else "is it cut short?"
        raise UserError(f"'{path}' is not a whole .npz archive: {kind} (write one with numpy.savez)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in Parts._fields if key not in archive.files]
            if missing:
                names = ", ".join(printable(key) for key in archive.files[:8])
                raise UserError(
                    f"'{path}' lacks {', '.join(missing)}; it holds {names or 'nothing'}, "
                    f"needed are {', '.join(Parts._fields)}"
                )
            if twice := [key for key in Parts._fields if archive.files.count(key) > 1]:
                raise UserError(f"'{path}' holds {', '.join(twice)} twice; write it anew with numpy.savez")
            arrays: list[Any] = [archive[key] for key in Parts._fields]
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes of the reader is not bounded
        raise UserError(
            f"'{path}' cannot be read ({type(error).__name__}: {printable(str(error)[:120])}); write plain arrays (no "
            f"objects, no pickles) with numpy.savez"
        ) from error
    if odd := [key for key, array in zip(Parts._fields, arrays, strict=True) if not isinstance(array, np.ndarray)]:
        raise UserError(f"'{path}': {', '.join(odd)} is no NumPy array; write plain arrays with numpy.savez")
    return checked(f"'{path}'", *arrays)


def read_folder(path: Path) -> tuple[Parts, tuple[str, ...]]:
    """The images of train/<class>/ and test/<class>/ and the class names in their order (see `image_files`).

    Grey if every image is (8 bits, one channel), else RGB; transparency is dropped.
    Raises UserError where an image cannot be read or is not of the first one's size.
    """
    folder = image_files(path)
    files = {part: [f for group in classes.values() for f in group] for part, classes in folder.items()}
    if not files["train"]:
        raise UserError(f"image folder '{path}' has no images in train/<class>/ (.png, .jpg, .webp, ...)")
    images = _read_images(files["train"] + files["test"])
    labels = {
        part: np.repeat(np.arange(len(classes)), [len(group) for group in classes.values()])
        for part, classes in folder.items()
    }
    split = len(files["train"])
    parts = checked(f"'{path}'", images[:split], labels["train"], images[split:], labels["test"])
    return parts, tuple(folder["train"])


def _read_images(files: Iterable[Path]) -> NDArray[np.uint8]:
    """All files as (N, H, W) if all are grey, else (N, H, W, 3)."""
    images: list[NDArray[np.uint8]] = []
    for file in files:
        image = _read_image(file)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise UserError(
                f"image '{file}' is {image.shape[1]}x{image.shape[0]} pixels but those before it are "
                f"{images[0].shape[1]}x{images[0].shape[0]}; all need one size"
            )
        images.append(image)
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images]
    return np.stack(images)


def _read_image(file: Path) -> NDArray[np.uint8]:
    """One file as (H, W) if it is grey, else (H, W, 3)."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"image '{file}' has more than 8 bits a channel; convert it to 8 bits")
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise UserError(f"image '{file}' has {frames} frames; give each a file of its own")
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes of Pillow's readers is not bounded
        with file.open("rb") as damaged:
            other = other_kind(damaged.read(HEAD))
        raise UserError(f"image '{file}' cannot be read ({other or error}); replace or remove it") from error
