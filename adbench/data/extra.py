"""A second source of training images: a `.npz` of generated ones, in which images are looked up and not read whole."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from adbench.data.identity import check_extra
from adbench.errors import UserError, printable
from adbench.system import files

if TYPE_CHECKING:
    from torch import Tensor

KEYS = ("image", "label")
_LOCAL_HEADER = 30
"""Bytes of a zip member's own header before its name."""
_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class Extra:
    """Images beside a dataset's own, mapped from their file.

    images: uint8 (N, H, W, C).  labels: whole numbers (N,), classes of the dataset.  sha256: of the file, hex.
    share: of every batch, in (0, 1).
    file: its path, as it was given.
    """

    images: NDArray[np.uint8]
    labels: NDArray[Any]
    sha256: str
    share: float
    file: str

    @classmethod
    def recorded(cls, sha256: str, share: float) -> Extra:
        """Those that a record tells of, without an image."""
        return cls(np.zeros((0, 1, 1, 1), np.uint8), np.zeros(0, np.uint8), sha256, share, "")

    def images_at(self, index: Tensor) -> Tensor:
        """uint8 (B, C, H, W) of the images `index` (B,), on the CPU."""
        import torch

        return torch.from_numpy(self.images[index.numpy()]).permute(0, 3, 1, 2).contiguous()

    def labels_at(self, index: Tensor) -> Tensor:
        """int64 (B,), on the CPU."""
        import torch

        return torch.from_numpy(self.labels[index.numpy()].astype(np.int64))

    def summary(self) -> dict[str, Any]:
        """What a record says of them."""
        return {"images": len(self.labels), "share": self.share, "sha256": self.sha256, "file": self.file}


def read_extra(path: Path, share: float, *, shape: tuple[int, int, int], class_names: tuple[str, ...]) -> Extra:
    """The images of a `.npz` with EDM's arrays: `image`, uint8 (N, H, W, 3), and `label`, whole numbers (N,).

    Nothing is unpacked: the arrays have to lie uncompressed in the archive, as numpy.savez writes them, and are mapped
    from there.  A compressed one is refused rather than unpacked, which would need its size again on the disk or in
    memory.  Pickles are never run.  shape: of the dataset's images, (C, H, W); where C is 1, (N, H, W) will do.
    Raises UserError where the file is not that, or not for this dataset.
    """
    images, labels, sha256 = _read(path)
    channels, height, width = shape
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.shape[1:] != (height, width, channels):
        has = "x".join(map(str, images.shape[1:]))
        raise UserError(
            f"data.extra: images in '{path}' are {has} but the dataset's {height}x{width}x{channels} (height, width, "
            f"channels); give images of that size"
        )
    low, high = _range(labels)
    if low < 0 or high >= len(class_names):
        raise UserError(
            f"data.extra: labels in '{path}' are {low}..{high} but the dataset has {len(class_names)} classes, "
            f"0..{len(class_names) - 1}; give each image its class, and leave others out"
        )
    return Extra(images, labels, sha256, share, str(path))


@lru_cache(maxsize=4)
def _mapped(path: Path, _stamp: tuple[int, int]) -> tuple[NDArray[Any], NDArray[Any], str]:
    with path.open("rb") as file, _archive(path, file) as archive:
        arrays = [_member(path, file, archive, key) for key in KEYS]
    return arrays[0], arrays[1], files.sha256(path)


def _read(path: Path) -> tuple[NDArray[Any], NDArray[Any], str]:
    """Images, labels and the file's SHA-256, which takes a second for each gigabyte, once a process."""
    check_extra(path)
    try:
        stat = path.stat()
        images, labels, sha256 = _mapped(path, (stat.st_mtime_ns, stat.st_size))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"data.extra: '{path}' cannot be read ({error.strerror or error})") from error
    except Exception as error:  # what a damaged file makes of the readers is not bounded
        raise UserError(
            f"data.extra: '{path}' cannot be read ({type(error).__name__}: {printable(str(error)[:120])}); write it "
            f"with numpy.savez(FILE, image=..., label=...)"
        ) from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not len(images):
        raise UserError(
            f"data.extra: image in '{path}' is {images.dtype} of shape {images.shape}; it has to be uint8, 0 to 255, "
            f"of shape (N, H, W, 3)"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(
            f"data.extra: label in '{path}' is {labels.dtype} of shape {labels.shape}; it has to be whole numbers, one "
            f"for each of the {len(images):,} images"
        )
    return images, labels, sha256


def _archive(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise UserError(
            f"data.extra: '{path}' is no whole .npz archive; write it with numpy.savez(FILE, image=..., label=...)"
        ) from error


def _member(path: Path, file: BinaryIO, archive: zipfile.ZipFile, key: str) -> NDArray[Any]:
    """One array of an archive, mapped at its place in the file."""
    found = [info for info in archive.infolist() if info.filename == f"{key}.npy"]
    if len(found) != 1:
        names = ", ".join(printable(name) for name in archive.namelist()[:8]) or "nothing"
        raise UserError(
            f"data.extra: '{path}' has {len(found)} arrays '{key}', it holds {names}; needed are image, label"
        )
    (info,) = found
    if info.compress_type != zipfile.ZIP_STORED:
        raise UserError(
            f"data.extra: {key} in '{path}' is compressed, so that no image can be looked up in it; write it anew with "
            f"numpy.savez, not savez_compressed"
        )
    file.seek(info.header_offset)
    head = file.read(_LOCAL_HEADER)
    file.seek(int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little"), 1)
    begun = file.tell()
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise UserError(f"data.extra: {key} in '{path}' holds pickled objects, never run; store plain numbers")
    if fortran and len(shape) > 1:
        raise UserError(
            f"data.extra: {key} in '{path}' has its images across one another (Fortran's order); store "
            f"numpy.ascontiguousarray of it"
        )
    offset = file.tell()
    if offset + int(np.prod(shape, dtype=object)) * dtype.itemsize > begun + info.file_size:
        raise UserError(f"data.extra: {key} in '{path}' is cut short; fetch the file again")
    return np.memmap(path, dtype, "r", offset, shape) if 0 not in shape else np.zeros(shape, dtype)


def _range(labels: NDArray[Any]) -> tuple[int, int]:
    """The lowest and the highest label, a piece at a time."""
    pieces = [labels[start : start + _AT_ONCE] for start in range(0, len(labels), _AT_ONCE)]
    return min(int(piece.min()) for piece in pieces), max(int(piece.max()) for piece in pieces)
