"""What a dataset's source hands over: plain numpy arrays, and the checks that they fit together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adbench.data.threat import Threat
from adbench.errors import UserError, warn

DARK = 64
"""Images none of whose values comes up to this were hardly meant to be 0 to 255."""


class FourArrays(NamedTuple):
    """The four arrays of a dataset: images uint8 (N, H, W, C), C 1 or 3; labels int64 (N,)."""

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Arrays:
    """What a dataset factory `f(data_dir: Path) -> Arrays` returns.

    x_train, x_test: uint8, (N, H, W), (N, H, W, 1) or (N, H, W, 3).  y_train, y_test: integers, (N,).
    class_names: one for each label 0..C-1.  threat: the threat model of the field for this data.
    pad, flip: training's augmentation, zero padding in pixels before a random crop, and mirroring.
    val_images: how many training images are held out unless the user says otherwise.
    """

    x_train: NDArray[Any]
    y_train: NDArray[Any]
    x_test: NDArray[Any]
    y_test: NDArray[Any]
    class_names: tuple[str, ...]
    threat: Threat
    pad: int
    flip: bool
    val_images: int


def checked(
    where: str, x_train: NDArray[Any], y_train: NDArray[Any], x_test: NDArray[Any], y_test: NDArray[Any]
) -> FourArrays:
    """The four arrays in their one form (see `FourArrays`); `where` begins every error.

    The labels of training and test images together must be 0..C-1 without a gap.  A class may be missing from
    one of the two: leaving it out of the other as well would change the task.
    Raises UserError for a wrong type, shape, count or label.
    """
    parts = FourArrays(
        _images(where, "x_train", x_train),
        _labels(where, "y_train", y_train, len_of=x_train),
        _images(where, "x_test", x_test),
        _labels(where, "y_test", y_test, len_of=x_test),
    )
    if parts.x_train.shape[1:] != parts.x_test.shape[1:]:
        raise UserError(
            f"{where}: training images are {_size(parts.x_train)} but test images {_size(parts.x_test)}; "
            f"both need one size"
        )
    both = np.concatenate([parts.y_train, parts.y_test])
    present = np.unique(both)
    if present[0] < 0:
        raise UserError(
            f"{where}: labels are {present[0]}..{present[-1]}: label {present[0]} ({_count(both, present[0])}) is "
            f"below 0; number the classes 0..C-1 without gaps, and leave unlabelled images out"
        )
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if len(gaps) or len(present) < 2:
        raise UserError(
            f"{where}: labels are {present[0]}..{present[-1]} and no image has label "
            f"{gaps[0] if len(gaps) else 1}; number the classes 0..C-1 without gaps, two at least"
        )
    return parts


def _images(where: str, key: str, array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise UserError(f"{where}: {key} is {array.dtype}; {_cure(array)}store them as uint8, 0 to 255")
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape:
        raise UserError(
            f"{where}: {key} has shape {array.shape}; images are (N, H, W), (N, H, W, 1) or (N, H, W, 3), "
            f"channels last, and not none"
        )
    brightest = int(array.max())
    if brightest <= 1:
        raise UserError(f"{where}: {key} has no value above {brightest}; images are 0 to 255: multiply them by 255")
    if brightest < DARK:
        warn(f"{where}: {key} has no value above {brightest} of 255; were its images divided before they were stored?")
    return array


def _cure(array: NDArray[Any]) -> str:
    """What to do with images that are not uint8."""
    if array.dtype.kind not in "fiu" or not array.size:
        return ""
    if not np.isfinite(array).all():
        return "it holds NaN or infinity: replace these and "
    low, high = array.min(), array.max()
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return "multiply images in [0, 1] by 255 and "
    return f"its values are {low:g} to {high:g}: bring them to 0 to 255 and " if low < 0 or high > 255 else "round and "


def _labels(where: str, key: str, array: NDArray[Any], *, len_of: NDArray[Any]) -> NDArray[np.int64]:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{where}: {key} is {array.dtype} of shape {array.shape}; labels are integers of shape (N,)")
    if len(array) != len(len_of):
        raise UserError(f"{where}: {len(len_of)} images but {len(array)} labels ({key}); each image needs one label")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise UserError(f"{where}: {key}: label {array.max()} ({_count(array, array.max())}) is no class number")
    return array.astype(np.int64)


def _count(labels: NDArray[Any], label: Any) -> str:
    count = int((labels == label).sum())
    return f"{count} image{'s' if count != 1 else ''}"


def repeated(parts: FourArrays) -> int:
    """The number of test images that are training images too, pixel by pixel."""
    train = {hash(image.tobytes()) for image in parts.x_train}
    return sum(hash(image.tobytes()) in train for image in parts.x_test)


def _size(images: NDArray[np.uint8]) -> str:
    return "x".join(map(str, images.shape[1:]))


def fingerprint(parts: FourArrays) -> str:
    """SHA-256 (hex) over the four arrays with their names and shapes: equal data, equal fingerprint."""
    digest = hashlib.sha256()
    for name, array in parts._asdict().items():
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def stratified_order(labels: NDArray[np.integer[Any]], key: int) -> NDArray[np.intp]:
    """A fixed shuffled order of all examples whose every beginning has the classes in their proportions.

    labels: (N,).  Returns a permutation (N,), a function of `labels` and `key` alone: its randomness is the
    raw output of Philox, which NumPy promises never to change (it does not promise that of `permutation`).
    With classes of equal size, each class's count among the first n differs from n / C by less than 1.
    """
    noise = np.random.Philox(key=key).random_raw(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shuffled = members[np.argsort(noise[members], kind="stable")]
        # The r-th of n members belongs at the fraction (r + 1/2) / n of the order.
        place[shuffled] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((noise, place))
