"""A dataset ready for training, by name or path. Torch is imported when images become tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from adbench.data.arrays import Arrays, checked, fingerprint, stratified_order
from adbench.data.extra import Extra, read_extra
from adbench.data.identity import is_path, known
from adbench.data.own import read_own, resized
from adbench.data.threat import Threat
from adbench.errors import UserError, warn
from adbench.registry import DATASETS
from adbench.system.files import expanded

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 (N, C, H, W), and their labels, int64 (N,), on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> Split:
        """The first n images (all, if there are fewer); a view."""
        return Split(self.images[:n], self.labels[:n])

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset ready for training: three disjoint splits on the CPU, and what comes with the data.

    name: as the user gave it.  threat: the field's threat model for this data.  pad, flip: training's
    augmentation (see `batches.draw_crops`).  fingerprint: SHA-256 over all images and labels, before any is held
    out or left away.  whole: training, held-out and test images where no share of them is asked for.
    extra: a second source of training images.
    """

    name: str
    train: Split
    val: Split
    test: Split
    classes: int
    class_names: tuple[str, ...]
    threat: Threat
    pad: int
    flip: bool
    fingerprint: str
    whole: tuple[int, int, int]
    extra: Extra | None = None

    @property
    def epoch_images(self) -> int:
        """How many images an epoch of training goes through.

        With extra ones it is as many as the training set has, those included that are held out of it (Wang et al.):
        their number is 50,000 on CIFAR, whatever the extra images' share.  Of a training set that is not used whole it
        is those that are used.
        """
        used = len(self.train) + len(self.val)
        return used if self.extra and used == sum(self.whole[:2]) else len(self.train)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def summary(self) -> dict[str, Any]:
        """What a record says of the data."""
        return {
            "fingerprint": self.fingerprint,
            "classes": self.classes,
            "class_names": list(self.class_names),
            "image_shape": list(self.image_shape),
            "train_images": len(self.train),
            "val_images": len(self.val),
            "test_images": len(self.test),
            **({"extra": self.extra.summary() | {"epoch_images": self.epoch_images}} if self.extra else {}),
        }


class Withheld:
    """In the place of images that nobody may see: whatever is asked of them raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"these images are withheld, and '{name}' was asked of them")

    def __len__(self) -> int:
        raise RuntimeError("these images are withheld, and their number was asked")


def without_test(dataset: Dataset) -> Dataset:
    """The dataset to be trained and chosen with, its test images withheld."""
    return replace(dataset, test=cast("Split", Withheld()))


def load(
    name: str,
    data_dir: Path,
    *,
    train_images: int | None = None,
    val_images: int | None = None,
    test_images: int | None = None,
    resize: int | None = None,
    extra: str | None = None,
    extra_share: float = 0.7,
) -> Dataset:
    """Load a registered dataset, or the user's own from the path of a `.npz` or an image folder.

    val_images: held out of the training set by a fixed stratified shuffle, the same for every seed and every
    `train_images`; None for the dataset's default.
    train_images: the first so many of what remains, in that order, so that a subset keeps the classes'
    proportions; None for all.
    test_images: the first so many in the file's order, as the field does; None for all.
    resize: the side that all images are brought to (see `own.resized`).
    extra: the file of a second source of training images (see `extra.read_extra`); extra_share: theirs of a batch.
    Raises UserError for an unknown name, data that cannot be used, or more images asked for than there are.
    Warns of a class that only the test set shows.
    """
    arrays = _read(name, data_dir, resize)
    parts = checked(name, arrays.x_train, arrays.y_train, arrays.x_test, arrays.y_test)
    classes = 1 + int(max(parts.y_train.max(), parts.y_test.max()))
    if classes != len(arrays.class_names):
        raise UserError(
            f"{name}: labels are 0..{classes - 1} but {len(arrays.class_names)} classes have names; "
            f"each class needs images and a name"
        )
    untrained = np.setdiff1d(parts.y_test, parts.y_train)
    if len(untrained):
        named = ", ".join(arrays.class_names[label] for label in untrained)
        warn(f"{name}: no training image shows class {named}: no student can learn it, but it is tested")

    # One order serves both ends: the first images are held out, the next are trained on.
    order = stratified_order(parts.y_train, key=2020)
    available = max(len(order) - 2, 0)  # two are the smallest batch
    held_out = _count(name, "held-out", val_images, default=arrays.val_images, available=available)
    rest = order[held_out:]
    count = _count(name, "training", train_images, default=len(rest), available=len(rest))
    tested = _count(name, "test", test_images, default=len(parts.x_test), available=len(parts.x_test))
    more = None
    if extra is not None:
        height, width, channels = parts.x_train.shape[1:]
        shape = channels, height, width
        more = read_extra(expanded(Path(extra)), extra_share, shape=shape, class_names=arrays.class_names)
    return Dataset(
        name=name,
        train=_split(parts.x_train[rest[:count]], parts.y_train[rest[:count]]),
        val=_split(parts.x_train[order[:held_out]], parts.y_train[order[:held_out]]),
        test=_split(parts.x_test[:tested], parts.y_test[:tested]),
        classes=classes,
        class_names=arrays.class_names,
        threat=arrays.threat,
        pad=arrays.pad,
        flip=arrays.flip,
        fingerprint=fingerprint(parts),
        whole=(len(order) - arrays.val_images, arrays.val_images, len(parts.x_test)),
        extra=more,
    )


def _read(name: str, data_dir: Path, resize: int | None) -> Arrays:
    if is_path(name):
        return read_own(expanded(Path(name)), resize)
    known(name)
    arrays: Arrays = DATASETS.load(name)(data_dir)
    if resize is None:
        return arrays
    return replace(arrays, x_train=resized(arrays.x_train, resize), x_test=resized(arrays.x_test, resize))


def _count(name: str, which: str, requested: int | None, *, default: int, available: int) -> int:
    count = default if requested is None else requested
    if not 1 <= count <= available:
        raise UserError(f"{name}: {count} {which} images asked for; ask for 1 to {available}")
    return count


def _split(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Split:
    """(N, H, W, C) arrays as a split that shares no memory with them."""
    import torch

    planes = np.array(images.transpose(0, 3, 1, 2), order="C")
    return Split(torch.from_numpy(planes), torch.from_numpy(labels.copy()))
