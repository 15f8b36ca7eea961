"""A user's own dataset as files: is it one, what is in it, has it changed?  No torch, no pixels."""

from __future__ import annotations

import os
from pathlib import Path

from adbench.errors import UserError

PARTS = ("train", "test")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})


def is_path(name: str) -> bool:
    """Whether a dataset's name is meant as a path: it has a path separator or ends in '.npz'."""
    return "/" in name or os.sep in name or name.lower().endswith(".npz")


def is_image_folder(path: Path) -> bool:
    """True for a folder, False for a `.npz` file; raises UserError for anything else."""
    if path.is_dir():
        return True
    if not path.exists():
        raise UserError(f"dataset '{path}' does not exist; give the path of a .npz file or an image folder")
    if path.suffix.lower() != ".npz":
        raise UserError(f"dataset '{path}' is neither a .npz file nor an image folder")
    return False


def image_files(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The images of `folder`/train/<class>/ and `folder`/test/<class>/: part, class, sorted files.

    Classes are sorted by name.  Hidden files, other kinds of file and folders without images are passed over.
    Raises UserError where a part is missing or the two parts differ in their classes.
    """
    found: dict[str, dict[str, list[Path]]] = {}
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(
                f"image folder '{folder}' has no folder '{part}'; expected are train/<class>/*.png "
                f"and test/<class>/*.png (or .jpg, .jpeg, .bmp)"
            )
        by_class = {sub.name: _images_in(sub) for sub in sorted((folder / part).iterdir()) if sub.is_dir()}
        found[part] = {name: files for name, files in by_class.items() if files}
    train, test = (found[part].keys() for part in PARTS)
    if train != test:
        odd = min(train ^ test)
        has, lacks = PARTS if odd in train else reversed(PARTS)
        raise UserError(
            f"image folder '{folder}': class '{odd}' has images in '{has}' but none in '{lacks}'; "
            f"both need the same classes"
        )
    return found


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
