"""Downloads: files from mirrors or from a folder, either whole and verified or not there at all.

A broken transfer is resumed, if the server allows it. A server that fails is retried, then the next mirror is tried. A
web page in place of the file, a file of another size or hash, and a transfer that ended early are refused. Only http
and https are fetched, and no redirection leads from https to http.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adbench import __version__
from adbench.errors import UserError
from adbench.system import files, locks

ATTEMPTS = 5
"""Attempts at one mirror."""
PAUSE = 1.0
"""Seconds before the first retry; each further one waits twice as long."""
STALLED = 60.0
"""Timeout in seconds: a transfer without a byte for so long is broken."""
_CHUNK = 1 << 20
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")

Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and in all (None where the server does not say)."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to download. urls: mirrors, in the order of trial. sha256, md5: in hex. size: in bytes."""

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None


class _Broken(Exception):
    """The transfer failed; a retry may succeed."""


class _Refused(Exception):
    """The mirror does not have the file; a retry is of no use."""


def google_drive(identity: str) -> str:
    """The address of a public file of any size on Google Drive, without its page of confirmation."""
    query = urllib.parse.urlencode({"id": identity, "export": "download", "confirm": "t"})
    return f"https://drive.usercontent.google.com/download?{query}"


def fetch(wanted: RemoteFile, path: Path, progress: Progress | None = None) -> bool:
    """Download `wanted` to `path`, unless it is there; returns whether it was downloaded.

    A file that is there is verified, and never replaced. Of two processes, the second waits for the first. Raises
    UserError with each mirror's reason, or with what is wrong with the file that is there.
    """
    if path.is_file():
        check(wanted, path)
        return False
    with locks.locked(path.parent):
        if path.is_file():
            return False
        refusals = []
        for url in wanted.urls:
            try:
                _from_mirror(url, wanted, path, progress)
            except _Refused as error:
                refusals.append(f"{url}: {error}")
            else:
                return True
    tried = "; ".join(refusals) or "no address is known for it"
    raise UserError(
        f"'{wanted.name}' could not be downloaded ({tried}); fetch it elsewhere, put it at '{path}', or give its "
        f"folder to `adbench prepare --from`"
    )


def copy_from(folder: Path, wanted: RemoteFile, path: Path, names: Sequence[str]) -> bool:
    """Copy `wanted` to `path` from a file below `folder` with one of `names`; returns whether there is one.

    Raises UserError for a file of that name with other content, and for a full disk.
    """
    source = files.search(folder, names)
    if source is None:
        return False
    if path.is_file() and path.samefile(source):
        check(wanted, path)
        return True
    check(wanted, source)
    with locks.locked(path.parent):
        files.write_atomic(path, lambda temporary: _copy(source, temporary))
    return True


def check(wanted: RemoteFile, path: Path) -> None:
    """Verify the file at `path` by its size and hashes, as far as they are known. Raises UserError."""
    if reason := _wrong(wanted, path):
        raise UserError(f"'{path}' is not '{wanted.name}': {reason}; remove it to have it fetched again")


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _wrong(wanted: RemoteFile, path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(512)
    if _is_page(head):
        return "it is a web page (a log-in, a warning or a quota), not the file"
    size = path.stat().st_size
    if not size:
        return "it is empty"
    if wanted.size not in (None, size):
        return f"it has {size:,} bytes, expected {wanted.size:,}"
    for kind, stated in (("sha256", wanted.sha256), ("md5", wanted.md5)):
        if stated is not None and (actual := _hash(path, kind)) != stated.lower():
            return f"its {kind.upper()} is {actual[:12]}..., expected {stated[:12].lower()}..."
    return None


def _hash(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        # Some publish MD5 alone: it tells a damaged file, not a forged one.
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _is_page(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES)


def _from_mirror(url: str, wanted: RemoteFile, path: Path, progress: Progress | None) -> None:
    """Download `wanted` from one mirror to `path`. Raises _Refused with the reason."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _Refused("only http and https are fetched")
    part = _Part(path)
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _transfer(url, part, wanted, progress)
            break
        except _Broken as error:
            reason = str(error)
        except _Refused:
            part.remove()
            raise
        except OSError as error:
            # The network's errors are _Broken: this is the disk.
            raise UserError(
                f"cannot write '{part.path}': {error.strerror or error}; free the disk or choose another folder"
            ) from error
    else:
        raise _Refused(f"{reason} ({ATTEMPTS} attempts)")
    if wrong := _wrong(wanted, part.path):
        part.remove()
        raise _Refused(wrong)
    part.becomes(path)


class _Part:
    """A partial download, and beside it the version of the file that the server sent."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path.with_name(f".{path.name}.part")
        self._origin = path.with_name(f".{path.name}.part.json")

    def version(self, url: str) -> str | None:
        """The version (ETag or date) that this is a part of; "" where the server sent none, None without a part."""
        try:
            origin: dict[str, Any] = json.loads(self._origin.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = origin.get("url") == url and self.path.is_file()
        return origin.get("version") if same else None

    def begin(self, url: str, version: str) -> None:
        """Start anew, with a part of `version`."""
        self.path.unlink(missing_ok=True)
        files.write_json(self._origin, {"url": url, "version": version})

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)

    def becomes(self, path: Path) -> None:
        self.path.chmod(0o644)
        self.path.replace(path)
        self._origin.unlink(missing_ok=True)


def _transfer(url: str, part: _Part, wanted: RemoteFile, progress: Progress | None) -> None:
    """One request, which completes the part. Raises _Broken or _Refused."""
    version = part.version(url)
    proven = wanted.sha256 or wanted.md5  # then a mixture of two versions is noticed in the end
    have = part.path.stat().st_size if version or (version == "" and proven) else 0
    headers = {"User-Agent": f"adbench/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {})
    try:
        answer = _opener().open(urllib.request.Request(url, headers=headers), timeout=STALLED)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # there is nothing after what we have, so that is not part of this file
            part.remove()
            raise _Broken("the server has a shorter file than it had") from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Broken(f"the server answered {error.code} {error.reason}") from error
        raise _Refused(f"the server answered {error.code} {error.reason}") from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        message = f"{reason}" or type(error).__name__
        # No server, and no part: a retry is of no use. In the middle of a file a server may come back.
        no_server = isinstance(reason, ConnectionRefusedError | socket.gaierror) and not have
        raise (_Refused if no_server else _Broken)(message) from error
    with answer:
        _receive(answer, url, part, have, wanted, progress)


def _receive(
    answer: http.client.HTTPResponse, url: str, part: _Part, have: int, wanted: RemoteFile, progress: Progress | None
) -> None:
    if answer.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise _Refused("it answered with a web page (a log-in, a warning or a quota), not the file")
    goes_on = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-")
    if not goes_on:
        have = 0
        etag = answer.headers.get("ETag", "")
        # A weak ETag promises no equal bytes.
        strong = "" if etag.startswith("W/") else etag
        part.begin(url, strong or answer.headers.get("Last-Modified", ""))
    length = answer.headers.get("Content-Length")
    total = have + int(length) if length and length.isdecimal() else None
    if wanted.size is not None and total not in (None, wanted.size):
        raise _Refused(f"it offers {total:,} bytes, expected {wanted.size:,}")
    with part.path.open("ab" if goes_on else "wb") as file:
        while chunk := _next(answer):
            if not have and _is_page(chunk):
                raise _Refused("it answered with a web page (a log-in, a warning or a quota), not the file")
            file.write(chunk)
            have += len(chunk)
            if progress:
                progress(have, total)
            if wanted.size is not None and have > wanted.size:
                raise _Refused(f"it sends more than the expected {wanted.size:,} bytes")
        file.flush()
        os.fsync(file.fileno())
    if total is not None and have < total:
        raise _Broken(f"the transfer ended after {have:,} of {total:,} bytes")


def _next(answer: IO[bytes]) -> bytes:
    try:
        return answer.read(_CHUNK)
    except TimeoutError as error:
        raise _Broken("the server stopped sending") from error
    except (http.client.HTTPException, OSError) as error:
        raise _Broken(f"the connection broke ({error or type(error).__name__})") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never out of encryption."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme != "https" and req.type == "https":
            raise _Refused(f"it leads from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https alone: no file://, no ftp://."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener
