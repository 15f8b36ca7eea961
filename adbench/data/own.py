"""A user's own data: a `.npz` of four arrays, or a folder of images."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adbench.data.arrays import Arrays, Parts, checked
from adbench.data.identity import image_files, is_image_folder
from adbench.data.threat import Threat
from adbench.errors import UserError

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
    if not zipfile.is_zipfile(path):
        raise UserError(f"'{path}' is not a whole .npz archive (cut short?); write it anew with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in Parts._fields if key not in archive.files]
            if missing:
                raise UserError(
                    f"'{path}' lacks {', '.join(missing)}; it holds {', '.join(archive.files) or 'nothing'}, "
                    f"needed are {', '.join(Parts._fields)}"
                )
            arrays: list[NDArray[Any]] = [archive[key] for key in Parts._fields]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"'{path}' cannot be read ({error}); write plain arrays (no objects, no pickles) with numpy.savez"
        ) from error
    return checked(f"'{path}'", *arrays)


def read_folder(path: Path) -> tuple[Parts, tuple[str, ...]]:
    """The images of train/<class>/ and test/<class>/ and the sorted class names.

    Grey if every image is (8 bits, one channel), else RGB; transparency is dropped.
    Raises UserError where an image cannot be read or is not of the first one's size.
    """
    found = image_files(path)
    files = {part: [f for group in classes.values() for f in group] for part, classes in found.items()}
    if not files["train"]:
        raise UserError(f"image folder '{path}' has no images in train/<class>/ (.png, .jpg, .jpeg or .bmp)")
    images = _read_images(files["train"] + files["test"])
    labels = {
        part: np.repeat(np.arange(len(classes)), [len(group) for group in classes.values()])
        for part, classes in found.items()
    }
    split = len(files["train"])
    parts = checked(f"'{path}'", images[:split], labels["train"], images[split:], labels["test"])
    return parts, tuple(found["train"])


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
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image '{file}' cannot be read ({error}); replace or remove it") from error
