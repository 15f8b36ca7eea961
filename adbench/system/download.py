"""Files from the network, or from a folder that somebody carried here: whole and the right ones, or not there at all.

A broken transfer goes on where it broke off, if the server lets it; a server that fails is asked again, then the next
mirror is. A web page in place of the file, a file of another size or hash, and a transfer that ended early are refused.
Nothing but http and https is fetched, and no redirection leads from https to http. Nothing here imports torch.
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
"""How often one mirror is asked before the next is."""
PAUSE = 1.0
"""Seconds before it is asked again; twice as many each time."""
STALLED = 60.0
"""Seconds without a byte after which a transfer counts as broken."""
_CHUNK = 1 << 20
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")

Progress = Callable[[int, int | None], None]
"""Hears of bytes so far and in all, where the server says how many."""


@dataclass(frozen=True)
class Wanted:
    """One file: where it is to be had, and what is known of it.

    urls: mirrors, in the order in which they are asked. sha256, md5: in hex, what the file has to have. size: bytes.
    """

    name: str
    urls: tuple[str, ...]
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None


class _Broken(Exception):
    """It may work next time."""


class _Refused(Exception):
    """It will not work here."""


def google_drive(identity: str) -> str:
    """The address under which Google Drive gives out a public file of any size without asking whether one is sure."""
    asked = urllib.parse.urlencode({"id": identity, "export": "download", "confirm": "t"})
    return f"https://drive.usercontent.google.com/download?{asked}"


def fetch(
    wanted: Wanted, path: Path, *, progress: Progress | None = None, pause: float = PAUSE, stalled: float = STALLED
) -> bool:
    """See to it that `path` holds the wanted file; returns whether it had to be fetched.

    A file that is there already is checked like one that is fetched, and never replaced. A second process that wants
    the same file waits for the first. Raises UserError that says of each mirror why it did not give the file, or what
    is wrong with the file that is there.
    """
    if path.is_file():
        check(wanted, path)
        return False
    with locks.locked(path.parent):
        if path.is_file():
            return False
        said = []
        for url in wanted.urls:
            try:
                _from_mirror(url, wanted, path, progress, pause, stalled)
            except _Refused as error:
                said.append(f"{url}: {error}")
            else:
                return True
    tried = "; ".join(said) or "no address is known for it"
    raise UserError(
        f"'{wanted.name}' could not be downloaded ({tried}); fetch it elsewhere, put it at '{path}', or give its "
        f"folder to `adbench prepare --from`"
    )


def copy_from(folder: Path, wanted: Wanted, path: Path, names: Sequence[str]) -> bool:
    """Take the wanted file from somewhere below `folder`, under one of `names`; whether it was there.

    Checked as `fetch` does. Raises UserError for a file of that name that is another, and for a full disk.
    """
    found = files.search(folder, names)
    if found is None:
        return False
    if path.is_file() and path.samefile(found):
        check(wanted, path)
        return True
    check(wanted, found)
    with locks.locked(path.parent):
        files.write_atomic(path, lambda temporary: _copied(found, temporary))
    return True


def check(wanted: Wanted, path: Path) -> None:
    """Raise UserError where the file at `path` is not the wanted one, as far as anything is known of it."""
    if reason := _wrong(wanted, path):
        raise UserError(f"'{path}' is not '{wanted.name}': {reason}; remove it to have it fetched again")


def _copied(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _wrong(wanted: Wanted, path: Path) -> str | None:
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
        if stated is not None and (found := _hash(path, kind)) != stated.lower():
            return f"its {kind.upper()} is {found[:12]}..., expected {stated[:12].lower()}..."
    return None


def _hash(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        # MD5 is all that some publish; a file that nobody forged is told from a damaged one by it.
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _is_page(head: bytes) -> bool:
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_PAGES)


def _from_mirror(url: str, wanted: Wanted, path: Path, progress: Progress | None, pause: float, stalled: float) -> None:
    """Put the file at `path`. Raises _Refused with the reason where this mirror does not give it."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise _Refused("only http and https are fetched")
    part = _Part(path)
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            _transfer(url, part, wanted, progress, stalled)
            break
        except _Broken as error:
            reason = str(error)
        except _Refused:
            part.remove()
            raise
        except OSError as error:
            # The network's errors are _Broken by now: this is the disk.
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
    """What has come of a file so far, and beside it which version of the file the server said that it is."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path.with_name(f".{path.name}.part")
        self._origin = path.with_name(f".{path.name}.part.json")

    def version(self, url: str) -> str | None:
        """What the server called the version of which this is a part, "" where it said nothing; None for no part."""
        try:
            origin: dict[str, Any] = json.loads(self._origin.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        same = origin.get("url") == url and self.path.is_file()
        return origin.get("version") if same else None

    def begin(self, url: str, version: str) -> None:
        """Forget what there is; a part of `version` is to come."""
        self.path.unlink(missing_ok=True)
        files.write_json(self._origin, {"url": url, "version": version})

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)

    def becomes(self, path: Path) -> None:
        self.path.chmod(0o644)
        self.path.replace(path)
        self._origin.unlink(missing_ok=True)


def _transfer(url: str, part: _Part, wanted: Wanted, progress: Progress | None, stalled: float) -> None:
    """One request. Afterwards the part is all of the file; else _Broken or _Refused."""
    version = part.version(url)
    proven = wanted.sha256 or wanted.md5  # then a file put together of two versions is found out in the end
    have = part.path.stat().st_size if version or (version == "" and proven) else 0
    headers = {"User-Agent": f"adbench/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": version} if version else {})
    try:
        answer = _opener().open(urllib.request.Request(url, headers=headers), timeout=stalled)
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
        said = f"{reason}" or type(error).__name__
        # Nobody there, and nothing begun: no use in asking again. In the middle of a file a server may come back.
        nobody = isinstance(reason, ConnectionRefusedError | socket.gaierror) and not have
        raise (_Refused if nobody else _Broken)(said) from error
    with answer:
        _receive(answer, url, part, have, wanted, progress)


def _receive(
    answer: http.client.HTTPResponse, url: str, part: _Part, have: int, wanted: Wanted, progress: Progress | None
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
    """One that knows http and https and nothing else: no file://, no ftp://."""
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
