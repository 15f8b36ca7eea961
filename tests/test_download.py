"""Downloads from a server that misbehaves in every way, teachers that are fetched, and machines without network."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import cli

from adbench.errors import Caution, UserError
from adbench.experiment import teacher
from adbench.experiment.teacher import TeacherSpec
from adbench.models import build
from adbench.system import download, files
from adbench.system.download import RemoteFile, fetch, google_drive
from adbench.system.files import content_id
from adbench.weights.teacher_file import teacher_file

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HASH = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><body>Quota exceeded</body></html>"

Manner = Callable[[Any, int], None]
"""How the server answers its n-th request (from 0)."""


class Server:
    """A web server on this machine with the given manners; remembers what was asked."""

    def __init__(self) -> None:
        self.manner: Manner = proper
        self.asked: list[dict[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.asked.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
                outer.manner(self, len(outer.asked) - 1)
                self.close_connection = True

            def log_message(self, *_args: object) -> None:
                pass

        self._httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._httpd.daemon_threads = True
        threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._httpd.server_port}/w.pt"

    def stop(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()


def send(handler: Any, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
    handler.send_response(status)
    for key, value in {"Content-Type": "application/octet-stream", **headers}.items():
        handler.send_header(key.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


def proper(handler: Any, _: int, content: bytes = CONTENT, etag: str = '"1"', keep: int | None = None) -> None:
    """Knows ranges. keep: breaks off after so many bytes."""
    asked = handler.headers.get("Range")
    start = 0
    if asked and handler.headers.get("If-Range", etag) == etag:
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(content):
            send(handler, 416, b"")
            return
    rest = content[start:]
    ranged = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
    send(handler, 206 if start else 200, rest[:keep], len(rest), ETag=etag, **ranged)


def drops(handler: Any, n: int) -> None:
    """Breaks off a quarter further each time."""
    proper(handler, n, keep=len(CONTENT) // 4 if n < 3 else None)


def drops_and_ignores_ranges(handler: Any, n: int) -> None:
    send(handler, 200, CONTENT[: len(CONTENT) // 2] if n < 2 else CONTENT, len(CONTENT))


def changes(handler: Any, n: int) -> None:
    """Has another version of the file after the first half of the old one."""
    proper(handler, n, CONTENT if n else CONTENT[::-1], etag=f'"{n > 0}"', keep=None if n else len(CONTENT) // 2)


def stalls(handler: Any, n: int) -> None:
    proper(handler, n, keep=1000 if n == 0 else None)
    if n == 0:
        handler.wfile.flush()
        time.sleep(1.5)


def slow(handler: Any, _: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    for start in range(0, len(CONTENT), len(CONTENT) // 8):
        handler.wfile.write(CONTENT[start : start + len(CONTENT) // 8])
        handler.wfile.flush()
        time.sleep(0.1)


def busy(handler: Any, n: int) -> None:
    if n < 2:
        send(handler, 503 if n else 429, b"")
    else:
        proper(handler, n)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(download, "STALLED", 0.5)
    found = Server()
    yield found
    found.stop()


def get(server: Server, path: Path, manner: Manner, *mirrors: str, **known: Any) -> bool:
    server.manner = manner
    wanted = RemoteFile("w", (*mirrors, server.url), **known)
    return fetch(wanted, path)


def refusal(server: Server, path: Path, manner: Manner, *mirrors: str, **known: Any) -> str:
    """What is said of a download that fails; nothing must be left of it."""
    with pytest.raises(UserError) as caught:
        get(server, path, manner, *mirrors, **known)
    assert not path.exists()
    return str(caught.value)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


@pytest.mark.parametrize("known", [{}, {"sha256": HASH, "size": len(CONTENT)}])
@pytest.mark.parametrize(
    ("manner", "requests"),
    [(proper, 1), (drops, 4), (drops_and_ignores_ranges, 3), (changes, 2), (stalls, 2), (slow, 1), (busy, 3)],
)
def test_the_file_arrives_whole_whatever_the_server_does(
    manner: Manner, requests: int, known: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "w.pt"
    assert get(server, path, manner, **known)
    assert path.read_bytes() == CONTENT
    assert left(tmp_path) == ["w.pt"]
    assert len(server.asked) == requests


def test_a_transfer_goes_on_where_it_broke_off_also_in_another_process(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    half = len(CONTENT) // 2

    def broken(handler: Any, n: int) -> None:
        if n == 0:
            proper(handler, n, keep=half)
        else:
            send(handler, 503, b"")

    assert "answered 503" in refusal(server, path, broken)
    asked = len(server.asked)
    assert get(server, path, proper)
    assert server.asked[asked]["range"] == f"bytes={half}-"
    assert server.asked[asked]["if-range"] == '"1"'
    assert path.read_bytes() == CONTENT


def test_progress_is_told_in_bytes(server: Server, tmp_path: Path) -> None:
    heard: list[tuple[int, int | None]] = []
    fetch(RemoteFile("w", (server.url,)), tmp_path / "w.pt", progress=lambda have, total: heard.append((have, total)))
    assert heard[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize(
    ("manner", "known", "says", "requests"),
    [
        (lambda h, _: send(h, 200, PAGE, Content_Type="text/html; charset=utf-8"), {}, "a web page", 1),
        (lambda h, _: send(h, 200, b"\n " + PAGE), {}, "a web page", 1),
        (lambda h, _: send(h, 404, PAGE), {}, "the server answered 404 Not Found", 1),
        (lambda h, _: send(h, 403, PAGE), {}, "the server answered 403 Forbidden", 1),
        (lambda h, _: send(h, 500, b""), {}, "answered 500 Internal Server Error (5 attempts)", 5),
        (lambda h, _: send(h, 200, CONTENT[:1000], len(CONTENT)), {}, "ended after 1,000 of 1,048,576 bytes (5", 5),
        (lambda h, _: send(h, 200, b""), {}, "it is empty", 1),
        (lambda h, _: send(h, 200, CONTENT[::-1]), {"sha256": HASH}, f"expected {HASH[:12]}", 1),
        (lambda h, _: send(h, 200, CONTENT[::-1]), {"md5": "0" * 32}, "its MD5 is", 1),
        (lambda h, _: send(h, 200, CONTENT), {"size": 1000}, "it offers 1,048,576 bytes, expected 1,000", 1),
        (lambda h, _: send(h, 302, b"", Location="file:///etc/passwd"), {}, "answered 302", 1),
        (lambda h, _: send(h, 302, b"", Location="ftp://127.0.0.1/w.pt"), {}, "", 1),
    ],
)
def test_what_is_not_the_file_is_refused_and_told(
    manner: Manner, known: dict[str, Any], says: str, requests: int, server: Server, tmp_path: Path
) -> None:
    said = refusal(server, tmp_path / "w.pt", manner, **known)
    assert said.startswith("'w' could not be downloaded (")
    assert says in said
    assert f"put it at '{tmp_path / 'w.pt'}'" in said
    assert len(server.asked) == requests


def test_the_next_mirror_is_asked_and_each_is_named_where_none_helps(server: Server, tmp_path: Path) -> None:
    dead = "http://127.0.0.1:9/w.pt"
    assert get(server, tmp_path / "w.pt", proper, dead, "file:///etc/passwd", sha256=HASH)
    assert (tmp_path / "w.pt").read_bytes() == CONTENT
    said = refusal(server, tmp_path / "x.pt", lambda h, _: send(h, 404, b""), dead, "file:///etc/passwd")
    assert f"{dead}: [Errno 111] Connection refused;" in said
    assert "file:///etc/passwd: only http and https are fetched" in said
    assert f"{server.url}: the server answered 404" in said


def test_parts_of_different_mirrors_are_not_put_together(server: Server, tmp_path: Path) -> None:
    other = Server()
    other.manner = lambda handler, n: proper(handler, n, CONTENT[::-1], keep=1000)
    assert get(server, tmp_path / "w.pt", proper, other.url)
    other.stop()
    assert (tmp_path / "w.pt").read_bytes() == CONTENT


def test_encryption_is_never_left() -> None:
    handler = download._Redirects()
    request = urllib.request.Request("https://host/w.pt")
    with pytest.raises(download._Refused, match="it leads from https to http://host"):
        handler.redirect_request(request, None, 302, "Found", {}, "http://host/w.pt")  # type: ignore[arg-type]
    assert handler.redirect_request(request, None, 302, "Found", {}, "https://other/w.pt")  # type: ignore[arg-type]


def test_a_file_that_is_there_is_checked_and_never_replaced(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(CONTENT)
    assert not get(server, path, proper, sha256=HASH)
    path.write_bytes(CONTENT[::-1])
    for known, says in (({"sha256": HASH}, "its SHA256 is"), ({"size": 3}, "1,048,576 bytes, expected 3")):
        with pytest.raises(UserError, match=f"{says}.*remove it to have it fetched again"):
            get(server, path, proper, **known)
    path.write_bytes(PAGE)
    with pytest.raises(UserError, match="it is a web page"):
        get(server, path, proper)
    assert not server.asked


def test_a_full_disk_is_named(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device; free the disk"):
        fetch(RemoteFile("w", (server.url,)), tmp_path / "w.pt")


# Teachers


def published_model(folder: Path) -> bytes:
    """A file as RobustBench has them: a torch file with the state dict of a model in DataParallel."""
    torch.manual_seed(0)
    state = {f"module.{k}": v for k, v in build("dm-wrn-10-1", classes=10, channels=1).state_dict().items()}
    torch.save({"state_dict": state}, folder / "made.pt")
    return (folder / "made.pt").read_bytes()


@pytest.fixture
def own_teacher(server: Server, tmp_path: Path) -> tuple[Path, bytes]:
    """A teacher's TOML file that names the server."""
    content = published_model(tmp_path)
    server.manner = lambda handler, n: proper(handler, n, content)
    file = tmp_path / "strong.toml"
    file.write_text(
        f'architecture = "dm-wrn-10-1"\nnatural = "digits-natural"\n'
        f'[source]\nkind = "download"\nid = "Strong2024"\nurls = ["{server.url}"]\n',
        encoding="utf-8",
    )
    return file, content


def options(teacher_file: Path, data: Path) -> list[str]:
    words = ["--teacher", str(teacher_file), "--methods", "ard", "--student", "cnn-4", "--data-dir", str(data)]
    return [*words, "--set", "eval.proxies=[]"]


def test_prepare_fetches_once_notes_the_hash_and_says_what_is_there(
    own_teacher: tuple[Path, bytes], server: Server, tmp_path: Path
) -> None:
    file, content = own_teacher
    words = options(file, tmp_path / "data")
    for came in ("fetched", "there"):
        result = cli("prepare", *words)
        assert result.exit_code == 0, result.output
        assert "digits: there; 1,797 images, 10 classes" in result.output
        assert f"strong: {came}; " in result.output
        assert hashlib.sha256(content).hexdigest() in result.output
    assert len(server.asked) == 1
    kept = tmp_path / "data" / "robustbench" / "digits" / "Linf" / "Strong2024.pt"
    assert kept.read_bytes() == content
    note = kept.with_name("Strong2024.pt.sha256")
    assert note.read_text() == f"{hashlib.sha256(content).hexdigest()}  Strong2024.pt\n"
    kept.write_bytes(content[:9000] + bytes([content[9000] ^ 1]) + content[9001:])
    result = cli("prepare", *words)
    assert result.exit_code == 1
    assert "it was damaged or replaced: remove it to have it fetched again" in result.output


def test_a_machine_without_network_is_served_from_a_folder(
    own_teacher: tuple[Path, bytes], server: Server, tmp_path: Path
) -> None:
    file, content = own_teacher
    server.manner = lambda handler, _: send(handler, 404, b"")
    words = options(file, tmp_path / "data")
    result = cli("prepare", *words)
    assert result.exit_code == 1
    assert "strong: 'strong' could not be downloaded" in result.output
    carried = tmp_path / "stick" / "anywhere"
    carried.mkdir(parents=True)
    (carried / "Strong2024.pt").write_bytes(PAGE)
    result = cli("prepare", *words, "--from", tmp_path / "stick")
    assert result.exit_code == 1
    assert "it is a web page" in result.output
    (carried / "Strong2024.pt").write_bytes(content)
    result = cli("prepare", *words, "--from", tmp_path / "stick")
    assert result.exit_code == 0, result.output
    assert f"strong: copied from '{tmp_path / 'stick'}'; " in result.output
    assert cli("prepare", *words).exit_code == 0
    assert cli("prepare", *words, "--from", tmp_path / "nowhere").exit_code == 2


def test_a_folder_that_cannot_be_listed_is_named_and_the_others_are_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir, stick = os.scandir, tmp_path / "stick"

    def refuse(folder: Any) -> Any:
        if Path(folder) == stick / "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for name in ("a/x.pt", "b/x.pt", "b/Linf/y.pt", "c/y.pt"):
        (stick / name).parent.mkdir(parents=True, exist_ok=True)
        (stick / name).touch()
    with pytest.warns(Caution, match=rf"'{stick / 'a'}' cannot be listed"):
        assert files.search(stick, ["Linf/y.pt", "y.pt"]) == stick / "b" / "Linf" / "y.pt"
    with pytest.warns(Caution):
        assert files.search(stick, ["x.pt"]) == stick / "b" / "x.pt"
    with pytest.warns(Caution):
        assert files.search(stick, ["z.pt", "inf/y.pt"]) is None


def test_a_teacher_that_does_not_fit_its_architecture_is_not_ready(
    own_teacher: tuple[Path, bytes], tmp_path: Path
) -> None:
    file, _ = own_teacher
    file.write_text(file.read_text().replace("dm-wrn-10-1", "cnn-4"), encoding="utf-8")
    result = cli("prepare", *options(file, tmp_path / "data"))
    assert result.exit_code == 1
    assert "is it another architecture?" in result.output


def test_cifar10_is_copied_from_a_folder_as_npz(tmp_path: Path) -> None:
    x, y = np.zeros((40, 32, 32, 3), np.uint8), np.arange(40) % 10
    x[:, 0, 0, 0] = np.arange(40)
    (tmp_path / "stick").mkdir()
    np.savez(tmp_path / "stick" / "cifar10.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    words = ["--dataset", "cifar10", "--methods", "pgd-at", "--set", "data.val_images=10", "--set", "eval.proxies=[]"]
    result = cli("prepare", *words, "--data-dir", tmp_path / "data", "--from", tmp_path / "stick")
    assert result.exit_code == 0, result.output
    assert "cifar10: copied from" in result.output
    assert (tmp_path / "data" / "cifar10.npz").is_file()


def test_the_published_models_are_teachers_under_their_names() -> None:
    found = teacher.published()
    assert len(found) == 72
    assert {spec.architecture for spec in found} == {
        *(f"{p}wrn-{s}" for p in ("", "dm-") for s in ("28-10", "34-10", "34-20", "70-16")),
        "dm-wrn-94-16",
    }
    assert len({(spec.dataset, spec.name) for spec in found}) == len(found)
    for spec in found:
        source = spec.source
        assert isinstance(source, teacher.Download)
        assert source.id == spec.name
        assert source.gdrive
        assert (
            0.2
            < (spec.expected.aa if spec.name != "Standard" else 1)
            < (spec.expected.clean or 0) + (spec.name == "Standard")
        )
        assert (
            (spec.mean is None)
            or spec.architecture.startswith("dm-")
            or spec.name in ("Hendrycks2019Using", "Rice2020Overfitting", "Chen2020Efficient", "Wu2020Adversarial")
        )
    assert teacher.find("robustbench:Chen2021LTD_WRN34_20") == teacher.find("Chen2021LTD_WRN34_20")
    both = "Wang2023Better_WRN-28-10"
    assert [teacher.find(both, data).expected.aa for data in ("cifar10", "cifar100")] == [0.6731, 0.3877]
    with pytest.raises(UserError, match="is there for cifar10 and cifar100; say which with --dataset"):
        teacher.find(both)
    assert teacher.find("robustbench:Engstrom2019Robustness").source.kind == "robustbench", "by the package"


def test_where_a_teacher_is_fetched_from_does_not_change_what_it_is() -> None:
    spec = teacher.find("Chen2021LTD_WRN34_20")
    assert isinstance(spec.source, teacher.Download)
    moved = spec.model_copy(update={"source": spec.source.model_copy(update={"urls": ("https://mirror/x",)})})
    assert content_id(spec.identity()) == content_id(moved.identity())
    other = spec.model_copy(update={"source": spec.source.model_copy(update={"sha256": "0" * 64})})
    assert content_id(spec.identity()) != content_id(other.identity())
    assert teacher.wanted(spec).urls == (google_drive("1-5JmY9rapuGwCUc2nPvy7Rb_sn_dHhFm"),)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"id": "../../evil", "gdrive": "x"}, "source.id"),
        ({"id": "a/b", "gdrive": "x"}, "source.id"),
        ({"gdrive": "x&id=y"}, "source.gdrive"),
        ({"urls": ["file:///etc/passwd"]}, "not a http or https address"),
        ({}, "needs urls or gdrive"),
    ],
)
def test_a_download_that_leads_astray_is_refused(source: dict[str, Any], says: str, tmp_path: Path) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"kind": "download", **source}.items()]
    file = tmp_path / "t.toml"
    file.write_text('architecture = "cnn-4"\n[source]\n' + "\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        teacher.find(str(file))
    assert says in str(caught.value)


def test_an_own_download_lies_under_a_name_that_is_no_path(server: Server, tmp_path: Path) -> None:
    source = {"kind": "download", "urls": [server.url], "sha256": HASH}
    spec = TeacherSpec.model_validate({"name": "../../a b", "architecture": "cnn-4", "source": source})
    path = teacher_file(spec, "digits", tmp_path)
    assert path.parent == tmp_path / "teachers"
    assert path.read_bytes() == CONTENT
    assert not path.with_name(f"{path.name}.sha256").exists(), "its hash is stated"
