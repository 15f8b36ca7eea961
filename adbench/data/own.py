"""A user's own data: a `.npz` of four arrays, or a folder of images."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adbench.data.arrays import Arrays, FourArrays, checked, repeated
from adbench.data.identity import image_files, is_image_folder
from adbench.data.threat import Threat
from adbench.errors import UserError, printable, warn
from adbench.system.file_kinds import HEAD, other_kind
from adbench.system.files import opened

if TYPE_CHECKING:
    from PIL import Image

THREAT = Threat(eps=Fraction(8, 255), step=Fraction(2, 255))


def read_own(path: Path, resize: int | None = None) -> Arrays:
    """The dataset at `path`: CIFAR's threat model, crops padded by an eighth of the side, no mirroring.

    resize: the side that images are brought to (see `fitted`).  The held-out part is a tenth of the training images,
    1,000 at most.  Classes are named by their folders, those of a `.npz` by their numbers.
    Raises UserError where the data cannot be used.
    """
    if is_image_folder(path):
        parts, class_names = read_folder(path, resize)
    else:
        parts = read_npz(path)
        if resize is not None:
            parts = parts._replace(x_train=resized(parts.x_train, resize), x_test=resized(parts.x_test, resize))
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


def read_npz(path: Path) -> FourArrays:
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
            missing = [key for key in FourArrays._fields if key not in archive.files]
            if missing:
                names = ", ".join(printable(key) for key in archive.files[:8])
                raise UserError(
                    f"'{path}' lacks {', '.join(missing)}; it holds {names or 'nothing'}, "
                    f"needed are {', '.join(FourArrays._fields)}"
                )
            if twice := [key for key in FourArrays._fields if archive.files.count(key) > 1]:
                raise UserError(f"'{path}' holds {', '.join(twice)} twice; write it anew with numpy.savez")
            arrays: list[Any] = [archive[key] for key in FourArrays._fields]
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes of the reader is not bounded
        raise UserError(
            f"'{path}' cannot be read ({type(error).__name__}: {printable(str(error)[:120])}); write plain arrays (no "
            f"objects, no pickles) with numpy.savez"
        ) from error
    if odd := [key for key, array in zip(FourArrays._fields, arrays, strict=True) if not isinstance(array, np.ndarray)]:
        raise UserError(f"'{path}': {', '.join(odd)} is no NumPy array; write plain arrays with numpy.savez")
    return checked(f"'{path}'", *arrays)


def read_folder(path: Path, resize: int | None = None) -> tuple[FourArrays, tuple[str, ...]]:
    """The images of train/<class>/ and test/<class>/ and the class names in their order (see `image_files`).

    Grey if every image is (8 bits, one channel), else all are RGB: grey ones have their value three times, a palette is
    looked up.  Transparency is dropped, with a warning where there is any: the colours beneath stay.
    resize: the side that images are brought to (see `fitted`).
    Raises UserError where an image cannot be read or, without `resize`, is not of the first one's size.
    """
    folder = image_files(path)
    files = {part: [f for group in classes.values() for f in group] for part, classes in folder.items()}
    if not files["train"]:
        raise UserError(f"image folder '{path}' has no images in train/<class>/ (.png, .jpg, .webp, ...)")
    images = _read_images(path, files["train"] + files["test"], resize)
    labels = {
        part: np.repeat(np.arange(len(classes)), [len(group) for group in classes.values()])
        for part, classes in folder.items()
    }
    split = len(files["train"])
    parts = checked(f"'{path}'", images[:split], labels["train"], images[split:], labels["test"])
    return parts, tuple(folder["train"])


def _read_images(path: Path, files: Sequence[Path], resize: int | None) -> NDArray[np.uint8]:
    """All files as (N, H, W) if all are grey, else (N, H, W, 3)."""
    images: list[NDArray[np.uint8]] = []
    transparent: list[Path] = []
    for file in files:
        image, opaque = _read_image(file, resize)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise UserError(
                f"image '{file}' is {image.shape[1]}x{image.shape[0]} pixels but those before it are "
                f"{images[0].shape[1]}x{images[0].shape[0]}; all need one size: data.resize = N brings each to NxN "
                f"(middle square, antialiased; grey and palette become RGB, transparency is dropped)"
            )
        images.append(image)
        transparent += [] if opaque else [file]
    if transparent:
        number = "1 image has" if len(transparent) == 1 else f"{len(transparent)} images have"
        warn(
            f"image folder '{path}': {number} transparent pixels, as '{transparent[0].relative_to(path)}'; "
            f"transparency is dropped, and the colours beneath it are what is seen"
        )
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.stack([image] * 3, axis=-1) for image in images]
    return np.stack(images)


def _read_image(file: Path, resize: int | None) -> tuple[NDArray[np.uint8], bool]:
    """One file as (H, W) if it is grey, else (H, W, 3), and whether it is opaque."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"image '{file}' has more than 8 bits a channel; convert it to 8 bits")
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise UserError(f"image '{file}' has {frames} frames; give each a file of its own")
            veiled = "A" in image.getbands() or "transparency" in image.info
            opaque = not veiled or image.convert("RGBA").getchannel("A").getextrema() == (255, 255)
            plain = image if image.mode == "L" else image.convert("RGB")
            return np.asarray(plain if resize is None else fitted(plain, resize)), opaque
    except UserError:
        raise
    except Exception as error:  # what a damaged file makes of Pillow's readers is not bounded
        with file.open("rb") as damaged:
            other = other_kind(damaged.read(HEAD))
        raise UserError(f"image '{file}' cannot be read ({other or error}); replace or remove it") from error


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The largest square in the middle of an image, scaled to `side` x `side` pixels: bilinear, antialiased."""
    from PIL import Image

    shorter = min(image.size)
    left, top = ((length - shorter) // 2 for length in image.size)
    square = image.crop((left, top, left + shorter, top + shorter))
    return square.resize((side, side), Image.Resampling.BILINEAR)


def resized(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Images uint8 (N, H, W) or (N, H, W, C), each `fitted`: (N, side, side, C)."""
    from PIL import Image

    images = images.reshape(*images.shape[:3], -1)
    channels = images.shape[-1]
    found = np.empty((len(images), side, side, channels), np.uint8)
    for number, image in enumerate(images):
        plain = Image.fromarray(image[..., 0] if channels == 1 else image)
        found[number] = np.asarray(fitted(plain, side)).reshape(side, side, channels)
    return found
