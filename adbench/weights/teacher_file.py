"""The file of a teacher's downloaded weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from adbench.errors import UserError
from adbench.experiment.teacher import Download, TeacherSpec, file_of, wanted
from adbench.system import download, files
from adbench.system.download import Progress


def teacher_file(spec: TeacherSpec, dataset: str, data_dir: Path, progress: Progress | None = None) -> Path:
    """The file of a teacher's downloaded weights, fetched if it is not there.

    Where nobody publishes a hash, that of the first download is noted beside it (`sha256sum -c` reads the note), and
    every later use of the file is held to it. Raises UserError where the file cannot be had or has changed.
    """
    path = file_of(spec, dataset, data_dir)
    download.fetch(wanted(spec), path, progress=progress)
    assert isinstance(spec.source, Download)
    if spec.source.sha256 is None:
        _hold_to_the_first(path)
    return path


def _hold_to_the_first(path: Path) -> None:
    note = path.with_name(f"{path.name}.sha256")
    found = files.sha256(path)
    try:
        first = note.read_text(encoding="ascii").split()[0]
    except (OSError, UnicodeDecodeError, IndexError):
        with suppress(UserError):  # in a folder that cannot be written, every use is the first
            files.write_text(note, f"{found}  {path.name}\n")
        return
    if first != found:
        raise UserError(
            f"'{path}' has SHA-256 {found[:12]}..., when it was first used it had {first[:12]}...; it was damaged or "
            f"replaced: remove it to have it fetched again, and '{note.name}' too if the new file is right"
        )
