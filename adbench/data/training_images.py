"""Where training's batches come from: which images, in what order, augmented how."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adbench.data import Dataset
from adbench.data.augment import CROP, Augmentation
from adbench.data.batches import batches, draw_crops, epoch_order, mixed_batches, per_epoch, to_float
from adbench.data.policies import policy
from adbench.seeding import generator


class Examples(NamedTuple):
    """Images (B, C, H, W) in [0, 1], their labels (B,), and soft labels (B, classes) where images are mixed."""

    x: Tensor
    y: Tensor
    soft: Tensor | None


class TrainingImages:
    """The images that a network is trained on, on a device; extra ones stay in their file.

    An image is a number: those of the dataset from 0 on, the extra ones after them.  augment: the policies beyond crops
    and mirroring (`train.augment`).
    """

    def __init__(self, dataset: Dataset, device: torch.device, augment: Iterable[str] = ()) -> None:
        self.images = dataset.train.images.to(device)
        self.labels = dataset.train.labels.to(device)
        self.device = device
        self.classes = dataset.classes
        self.extra = dataset.extra
        self.epoch_images = dataset.epoch_images
        """How many images an epoch goes through, the last batch being filled up where there are extra ones."""
        self.augmentation = Augmentation(
            [policy(text) for text in augment], dataset.image_shape, dataset.pad, dataset.flip
        )

    def epoch_batches(self, size: int) -> int:
        """The number of batches in an epoch."""
        return per_epoch(self.epoch_images, size, filled=self.extra is not None)

    def epoch(self, size: int, seed: int, *names: str | int) -> list[tuple[Tensor, Tensor]]:
        """An epoch's batches of `size` images: which (B,), and what was drawn for each (rows, B).

        names: of the random streams, of which there is one for each purpose: training's are the epoch.  All batches go
        to the device at once, not one by one; the numbers of images stay on the CPU where some are read from a file.
        """
        order = generator(seed, "order", *names)
        if self.extra is None:
            indices = batches(epoch_order(len(self.labels), order), size)
        else:
            drawn = generator(seed, "extra", *names)
            own, others, count = len(self.labels), len(self.extra.labels), self.epoch_batches(size)
            indices = mixed_batches(own, others, size, self.extra.share, count, order, drawn)
        draws = self.augmentation.draw(indices, lambda *which: generator(seed, "augment", *which, *names))
        sizes = [len(index) for index in indices]
        index = torch.cat(indices)
        if self.extra is None:
            index = index.to(self.device)
        return list(zip(torch.split(index, sizes), torch.split(draws.to(self.device), sizes, dim=1), strict=True))

    def crops(self, count: int, generator: torch.Generator) -> Tensor:
        """Crops (3, count), for images that are augmented by these alone."""
        return draw_crops(count, generator, self.augmentation.pad, self.augmentation.flip).to(self.device)

    def examples(self, index: Tensor, drawn: Tensor, dtype: torch.dtype) -> Examples:
        """The images `index` (B,) as `drawn` (rows, B) has them augmented; of crops alone, (3, B), that is all."""
        alone = self.augmentation.alone
        x = to_float(self.augmentation.apply(self._pixels(index), drawn[:alone]), dtype)
        y = self._labels(index)
        if len(drawn) <= max(alone, CROP):
            return Examples(x, y, None)
        partner, own, weights = drawn[alone], drawn[alone + 1 : 2 * alone + 1], drawn[2 * alone + 1 :]
        other = to_float(self.augmentation.apply(self._pixels(partner), own), dtype)
        x, share = self.augmentation.mixed(x, other, weights)
        hard, others = (F.one_hot(labels, self.classes).to(dtype) for labels in (y, self._labels(partner)))
        return Examples(x, y, share[:, None] * hard + (1 - share)[:, None] * others)

    def _pixels(self, index: Tensor) -> Tensor:
        """uint8 (B, C, H, W), on the device."""
        if self.extra is None:
            return self.images[index]
        index = index.cpu()
        images = self.images.new_empty((len(index), *self.images.shape[1:]))
        own = index < len(self.labels)
        images[own] = self.images[index[own].to(self.device)]
        images[~own] = self.extra.images_at(index[~own] - len(self.labels)).to(self.device)
        return images

    def _labels(self, index: Tensor) -> Tensor:
        """int64 (B,), on the device."""
        if self.extra is None:
            return self.labels[index]
        index = index.cpu()
        labels = self.labels.new_empty(len(index))
        own = index < len(self.labels)
        labels[own] = self.labels[index[own].to(self.device)]
        labels[~own] = self.extra.labels_at(index[~own] - len(self.labels)).to(self.device)
        return labels
