"""The built-in datasets, each a function of the folder that holds the user's data."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from adbench.data import cifar, published
from adbench.data.arrays import Arrays, stratified_order
from adbench.data.own import read_npz
from adbench.data.threat import Threat
from adbench.system.files import expanded

CIFAR_THREAT = Threat(eps=Fraction(8, 255), step=Fraction(2, 255))

# fmt: off
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
    "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
    "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
    "lawn_mower", "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain",
    "mouse", "mushroom", "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck",
    "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
    "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)
# fmt: on


def digits(_data_dir: Path) -> Arrays:
    """Handwritten digits, 8x8 grey, 1,437 training and 360 test images; comes with scikit-learn.

    scikit-learn's `load_digits` (the test part of the UCI optical digits), its 17 grey values spread over
    0..255.  It has no official split: a fixed stratified one is made here.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)
    order = stratified_order(bunch.target, key=1797)
    test, train = order[:360], order[360:]
    return Arrays(
        images[train],
        bunch.target[train],
        images[test],
        bunch.target[test],
        class_names=tuple("0123456789"),
        threat=Threat(eps=Fraction(28, 255), step=Fraction(7, 255)),
        pad=1,
        flip=False,
        val_images=144,
    )


def cifar10(data_dir: Path) -> Arrays:
    """CIFAR-10 (Krizhevsky 2009): 32x32 RGB, 50,000 training and 10,000 test images, 10 classes.

    Read from cifar10.npz in `data_dir`, else from torchvision's layout there, downloaded if need be.
    """
    from torchvision.datasets import CIFAR10

    return _cifar(data_dir, "cifar10", CIFAR10, CIFAR10_CLASSES)


def cifar100(data_dir: Path) -> Arrays:
    """CIFAR-100 (Krizhevsky 2009): 32x32 RGB, 50,000 training and 10,000 test images, 100 fine classes.

    Read from cifar100.npz in `data_dir`, else from torchvision's layout there, downloaded if need be.
    """
    from torchvision.datasets import CIFAR100

    return _cifar(data_dir, "cifar100", CIFAR100, CIFAR100_CLASSES)


def svhn(data_dir: Path) -> Arrays:
    """SVHN (Netzer et al. 2011): cropped house numbers, 32x32 RGB, 73,257 training and 26,032 test images, 10 classes.

    Read from svhn.npz in `data_dir`, else from the published train_32x32.mat and test_32x32.mat there, downloaded if
    need be.  The further published "extra" images are not used.  Nothing is cropped or mirrored in training.
    """
    parts, names = published.load(published.SVHN, expanded(data_dir))
    return Arrays(*parts, names, CIFAR_THREAT, pad=0, flip=False, val_images=1000)


def tiny_imagenet(data_dir: Path) -> Arrays:
    """Tiny-ImageNet-200 (Stanford 2015): 64x64 RGB, 100,000 training images, its 10,000 val are the test set

    Read from tiny-imagenet.npz in `data_dir`, else from the published tiny-imagenet-200.zip or its folder there,
    downloaded if need be.
    """
    parts, names = published.load(published.TINY_IMAGENET, expanded(data_dir))
    return Arrays(*parts, names, CIFAR_THREAT, pad=4, flip=True, val_images=1000)


def _cifar(data_dir: Path, name: str, torchvision_class: Any, class_names: tuple[str, ...]) -> Arrays:
    data_dir = expanded(data_dir)
    npz = data_dir / f"{name}.npz"
    parts = read_npz(npz) if npz.is_file() else cifar.read(name, data_dir, torchvision_class)
    # Rice et al. 2020 hold out 1,000 training images to choose the checkpoint; so does adbench.
    return Arrays(*parts, class_names, CIFAR_THREAT, pad=4, flip=True, val_images=1000)
