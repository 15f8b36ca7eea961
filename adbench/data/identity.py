"""A user's own dataset as files: is it one, and what is in it?  No torch, no pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from adbench.errors import UserError, unknown, warn
from adbench.registry import DATASETS
from adbench.system.files import no_file

PARTS = ("train", "test")
HELD_OUT = ("val", "valid", "validation")
"""Folders in which others keep images to choose a checkpoint by."""
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
)

_LEFT = ("thumbs.db", "desktop.ini")


def is_path(name: str) -> bool:
    """Whether a dataset's name is meant as a path: it has a path separator or ends in '.npz'."""
    return "/" in name or os.sep in name or name.lower().endswith(".npz")


def known(name: str) -> None:
    """Raise UserError for the name of a dataset that nobody registered and that is no path."""
    if not is_path(name) and name not in DATASETS:
        raise unknown("dataset", name, DATASETS.names(), "adbench list datasets; a path has a '/' or ends in .npz")


def is_image_folder(path: Path) -> bool:
    """True for a folder, False for a `.npz` file; raises UserError for anything else."""
    if path.is_dir():
        return True
    if reason := no_file(path):
        raise UserError(f"dataset '{path}' {reason}; give the path of a .npz file or an image folder")
    if path.suffix.lower() != ".npz":
        raise UserError(f"dataset '{path}' is neither a .npz file nor an image folder")
    return False


def check_extra(path: Path) -> None:
    """Raise UserError where the file of extra training images is not there."""
    if reason := no_file(path):
        raise UserError(f"data.extra: '{path}' {reason}; give a .npz with image and label")


def image_files(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The images of `folder`/train/<class>/ and `folder`/test/<class>/, at any depth: part, class, sorted files.

    Classes whose names are whole numbers are in the order of numbers, others in that of text. What is hidden is passed
    over.  Raises UserError where a part is missing, the two parts differ in their classes, or a link leads nowhere.
    Warns of what is not read: files of other kinds, images beside the class folders, a folder of held-out images.
    """
    parts: dict[str, dict[str, list[Path]]] = {}
    unread: list[Path] = []
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(
                f"image folder '{folder}' has no folder '{part}'; expected are train/<class>/*.png "
                f"and test/<class>/*.png (or .jpg, .webp, .bmp, .tif, .gif)"
            )
        classes: dict[str, list[Path]] = {}
        for entry in _visible(folder / part):
            if entry.is_dir():
                files = sorted(_below(entry, frozenset()))
                classes[entry.name] = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
                unread += [file for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
                unread += [] if files else [entry]
            else:
                unread.append(entry)
        parts[part] = {name: classes[name] for name in _in_order(classes) if classes[name]}
    train, test = (parts[part].keys() for part in PARTS)
    if train != test:
        odd = min(train ^ test)
        has, lacks = PARTS if odd in train else reversed(PARTS)
        raise UserError(
            f"image folder '{folder}': class '{odd}' has images in '{has}' but none in '{lacks}'; "
            f"both need the same classes"
        )
    if unread:
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        number = "1 entry is" if len(unread) == 1 else f"{len(unread)} entries are"
        warn(
            f"image folder '{folder}': {number} not read, as '{unread[0].relative_to(folder)}'; images lie in class "
            f"folders, and their names end in {suffixes}"
        )
    for name in HELD_OUT:
        if (folder / name).is_dir():
            warn(
                f"image folder '{folder}': '{name}' is not used; images to choose the checkpoint by are held out of "
                f"'train' (data.val_images says how many)"
            )
    return parts


def _in_order(names: Iterable[str]) -> list[str]:
    whole = all(name.isascii() and name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if whole else 0, name))


def _visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without what systems and editors leave there."""
    return sorted(
        e for e in folder.iterdir() if not e.name.startswith((".", "__MACOSX")) and e.name.lower() not in _LEFT
    )


def _below(folder: Path, around: frozenset[Path]) -> Iterator[Path]:
    """The files below a folder, links to folders followed. Raises UserError for a link that leads nowhere."""
    real = folder.resolve()
    if real in around:
        raise UserError(f"image folder '{folder}' is a link that leads to a folder around it; remove the link")
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _below(entry, around | {real})
        elif reason := no_file(entry):
            problem = "is a link that leads nowhere" if entry.is_symlink() else reason
            raise UserError(f"image '{entry}' {problem}; restore or remove it")
        else:
            yield entry
