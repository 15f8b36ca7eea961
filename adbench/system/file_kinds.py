"""What a file is instead of the one that was expected, after its first bytes. No torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from adbench.errors import printable

HEAD = 512
"""So many bytes are enough."""

_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for; fetch that with git lfs pull"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF", "an HDF5 file, which is not read here"),
    (b"\x93NUMPY", "a single NumPy array (.npy)"),
    (b"GGUF", "a GGUF file, which is not read here"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)


def other_kind(head: bytes) -> str | None:
    """What a file with these first bytes is and what to do; None for what has no name here, as weights have none."""
    if not head:
        return "an empty file, truncated or damaged; download or save it again"
    for beginning, kind in _KINDS:
        if head.startswith(beginning):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    text = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    if text.lower().startswith(("<!doctype", "<html", "<?xml")):
        return "a web page, not weights or data; the link led to a log-in or a warning, so download the file itself"
    # A safetensors file has the length of its header first, and then the header.
    if head[8:9] != b"{" and len(text) > 3 and all(char.isprintable() or char.isspace() for char in text):
        return f"text that begins with '{printable(text.strip()[:40])}'"
    return None


def zip_of_others(path: Path, member: str) -> str | None:
    """What a zip archive without a `member` of that name holds instead; None where it has one, or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # what a damaged file makes of the reader is not bounded
        return None
    if any(name.rpartition("/")[2] == member for name in names):
        return None
    listed = ", ".join(printable(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"a zip archive of other things ({listed or 'nothing'}); unpack it, and give the file that is meant"
