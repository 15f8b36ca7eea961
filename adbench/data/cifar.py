"""CIFAR as Krizhevsky published it: pickles, in a folder or in the archive around them, read without running them."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from adbench.data.arrays import FourArrays, checked
from adbench.errors import UserError
from adbench.system import files
from adbench.system.download import Progress, RemoteFile, fetch

# All that the pickles need: a dictionary of lists and one array of bytes.
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Arrays(pickle.Unpickler):
    """Makes arrays, lists, dictionaries and strings, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def archive(published: Any) -> RemoteFile:
    """The archive to download. published: torchvision's class, which knows addresses and MD5 sums."""
    return RemoteFile(published.filename, (published.url,), md5=published.tgz_md5)


def read(name: str, data_dir: Path, published: Any, progress: Progress | None = None) -> FourArrays:
    """The images and (fine) labels from torchvision's folder in `data_dir`, else from the archive there, which is
    downloaded if need be.

    Each pickle has to have its MD5 sum, and is read by an unpickler that knows arrays alone; the archive is read, not
    unpacked. What came from it is kept beside it as a `.npz`, which opens faster. Raises UserError where there is no
    whole copy and none can be had.
    """
    sums = dict(map(tuple, published.train_list + published.test_list))
    folder = data_dir / published.base_folder
    contents = {file: (folder / file).read_bytes() for file in sums if (folder / file).is_file()}
    from_archive = not _whole(contents, sums)
    if from_archive:
        tar = data_dir / published.filename
        try:
            fetch(archive(published), tar, progress=progress)
            contents = dict(_members(tar, published.base_folder, sums))
        except (UserError, OSError, EOFError, tarfile.TarError) as error:
            raise UserError(
                f"{name}: no whole copy in '{data_dir}', and the download failed ({error}); put there {name}.npz "
                f"or {published.filename}, from {published.url} (MD5 {published.tgz_md5})"
            ) from error
        if not _whole(contents, sums):
            raise UserError(f"{name}: '{tar}' does not hold the published files; remove it to have it fetched again")
    parts = _joined(name, contents, published)
    if from_archive:
        with suppress(UserError):  # a folder that cannot be written costs time, not data
            files.write_atomic(data_dir / f"{name}.npz", lambda path: _save(path, parts))
    return parts


def _save(path: Path, parts: FourArrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **parts._asdict())


def _whole(contents: dict[str, bytes], sums: dict[str, str]) -> bool:
    digests = {file: hashlib.md5(content, usedforsecurity=False).hexdigest() for file, content in contents.items()}
    return digests == sums


def _members(tar: Path, base: str, names: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """The archive's files of these names; others are passed over."""
    with tarfile.open(tar) as opened:
        for member in opened:
            file = member.name.removeprefix(f"{base}/")
            if member.isfile() and file in names and (stream := opened.extractfile(member)):
                yield file, stream.read()


def _joined(name: str, contents: dict[str, bytes], published: Any) -> FourArrays:
    arrays: list[Any] = []
    for table in (published.train_list, published.test_list):
        batches = [_unpickled(name, file, contents[file]) for file, _ in table]
        try:
            rows = np.concatenate([batch["data"] for batch in batches])
            labels = [
                label for batch in batches for label in batch["fine_labels" if "fine_labels" in batch else "labels"]
            ]
            arrays += [rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels)]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{name}: its files do not hold images and labels ({error})") from error
    return checked(name, *arrays)


def _unpickled(name: str, file: str, content: bytes) -> dict[str, Any]:
    try:
        batch: dict[str, Any] = _Arrays(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # what a hostile pickle makes of the reader is not bounded
        raise UserError(f"{name}: '{file}' was refused, it is no pickle of arrays alone ({error})") from error
    return batch
