"""Fetching a data set: whole, in pieces, and from servers that fail; against a real server on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import Request

import numpy as np
import pytest
from conftest import MMSEARCH, Run, environment

import mmsearch.data.fetch as fetching
from mmsearch.errors import FetchError, UsageError

START = Callable[..., subprocess.Popen[str]]
FIRST = "data_wr_train.npy"


def npy(array: np.ndarray) -> bytes:
    held = io.BytesIO()
    np.save(held, array)
    return held.getvalue()


def real_files() -> dict[str, bytes]:
    """The files of the record, with fewer rows."""
    drawn = np.random.default_rng(0)
    files = {}
    for split, rows in (("train", 40), ("test", 20)):
        files[f"data_wr_{split}.npy"] = npy(drawn.random((rows, 784)))
        files[f"data_sp_{split}.npy"] = npy(drawn.random((rows, 507)))
        files[f"labels_{split}.npy"] = npy(np.arange(rows) % 10)
    return files


FILES = real_files()
HALF = len(FILES[FIRST]) // 2


class Zenodo(ThreadingHTTPServer):
    """A server of one record; its attributes say how it misbehaves, `requests` holds the name and range of each GET."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.requests: list[tuple[str, str | None]] = []
        self.agents: set[str | None] = set()
        self.cuts: list[int] = []  # after how many bytes each next answer with a file ends
        self.ranges = True
        self.shift = 0  # how far from the asked byte a part begins
        self.resumed_status = 206  # 416: the server refuses to go on
        self.file_statuses: list[int] = []  # of the next answers with a file
        self.status = 200  # of the record
        self.redirect: str | None = None  # where a file has moved to
        self.hold: threading.Event | None = None  # a cut answer stays open until it is set
        self.sent = threading.Event()  # a cut answer has been sent
        self.record: Any = None  # bytes or JSON instead of the true record
        self.changes: dict[str, Any] = {}  # of the first entry of the record

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def api(self) -> str:
        return f"{self.base}/api"

    @property
    def url(self) -> str:
        return f"{self.api}/records/4452953"

    def asked(self, name: str) -> list[str | None]:
        """The ranges of the requests for one file, None for all of it."""
        return [wanted for other, wanted in self.requests if other == name]

    def answer(self) -> bytes:
        if isinstance(self.record, bytes):
            return self.record
        entries = [
            {
                "key": name,
                "size": len(content),
                "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                "links": {"self": f"{self.url}/files/{name}/content"},
            }
            for name, content in self.files.items()
        ]
        entries[0] |= self.changes
        return json.dumps({"id": 4452953, "files": entries} if self.record is None else self.record).encode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Zenodo

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.agents.add(self.headers["User-Agent"])
        if self.path == "/api/records/4452953":
            return self.send(self.server.status, self.server.answer(), {})
        name, wanted = self.path.removesuffix("/content").rpartition("/")[2], self.headers["Range"]
        self.server.requests.append((name, wanted))
        if self.server.redirect is not None and not self.path.startswith("/moved"):
            return self.send(302, b"", {"Location": f"{self.server.redirect}/moved/{name}"})
        content = self.server.files[name]
        if self.server.file_statuses:
            return self.send(self.server.file_statuses.pop(0), b"", {})
        if wanted is None or not self.server.ranges:
            return self.send_file(200, content, {})
        if self.server.resumed_status != 206:
            return self.send(self.server.resumed_status, b"", {})
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) + self.server.shift
        given = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.send_file(206, content[start:], {"Content-Range": given})

    def send_file(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if not self.server.cuts:
            return self.send(status, content, headers)
        self.send(status, content, headers, self.server.cuts.pop(0))
        self.server.sent.set()
        if self.server.hold is not None:
            self.server.hold.wait(60)
        return None

    def send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:cut])


@pytest.fixture
def zenodo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Zenodo]:
    """The record on a server that ends with the test; a proxy of this machine is not asked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Zenodo() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        if server.hold is not None:
            server.hold.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that call the library: tries without pauses."""
    monkeypatch.setattr(fetching, "PAUSES", (0.0,) * 4)


@pytest.fixture
def folder(workspace: Path) -> Path:
    return workspace / "digits"


def held(folder: Path) -> dict[str, bytes]:
    """All that a folder holds, hidden files too."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The only line that a command which failed at once has printed."""
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("mmsearch: ")
    return line


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_whole_fetch_and_what_data_says_of_it(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    done = mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api)
    assert held(folder) == FILES
    assert done.stdout.splitlines() == [f"digits/{name}" for name in FILES]
    *lines, last = done.stderr.splitlines()
    assert [line.split()[:2] for line in lines] == [["fetched", f"digits/{name}"] for name in FILES]
    assert last == "next: mmsearch data digits"
    assert zenodo.agents == {mmsearch("--version").stdout.strip().replace(" ", "/")}
    described = mmsearch("data", "digits").stdout
    assert "layout    zenodo" in described
    assert "train     40 rows" in described
    assert "test      20 rows" in described


def test_again_downloads_nothing(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    folder.mkdir()
    (folder / FIRST).write_bytes(FILES[FIRST])
    before = (folder / FIRST).stat()
    done = mmsearch("fetch", "zenodo", "digits", "--api", f"{zenodo.api}/")
    assert done.stderr.splitlines()[0] == f"digits/{FIRST} is there already, and stays as it is"
    assert [name for name, _ in zenodo.requests] == list(FILES)[1:]
    again = mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api)
    assert len(zenodo.requests) == len(FILES) - 1
    assert again.stdout == done.stdout
    assert again.stderr.count("is there already") == len(FILES)
    assert ((folder / FIRST).stat().st_ino, (folder / FIRST).stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_connection_that_is_cut_goes_on_where_it_was(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    zenodo.cuts = [HALF, 1000]
    done = mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api)
    assert zenodo.asked(FIRST) == [None, f"bytes={HALF}-", f"bytes={HALF + 1000}-"]
    assert held(folder) == FILES
    assert "going on" in done.stderr


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_fetch_asks_only_for_the_rest(
    signum: signal.Signals, zenodo: Zenodo, mmsearch: Run, start: START, folder: Path
) -> None:
    zenodo.cuts, zenodo.hold = [HALF], threading.Event()
    command = ["fetch", "zenodo", "digits", "--api", zenodo.api]
    process = start(*command)
    part = folder / f".{FIRST}.part"
    wait_for(lambda: part.exists() and part.stat().st_size == HALF)
    assert not (folder / FIRST).exists()
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum)
    assert "Traceback" not in said
    assert signum == signal.SIGKILL or f"go on with: mmsearch {' '.join(command)}" in said
    assert part.stat().st_size == HALF
    mmsearch(*command)
    assert zenodo.asked(FIRST) == [None, f"bytes={HALF}-"]
    assert held(folder) == FILES


def test_a_server_that_ignores_range_begins_again(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    zenodo.cuts, zenodo.ranges = [HALF], False
    mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api)
    assert zenodo.asked(FIRST) == [None, f"bytes={HALF}-"]
    assert held(folder) == FILES


@pytest.mark.parametrize("trouble", [{"resumed_status": 416}, {"shift": 1}, {"file_statuses": [503, 429]}])
@pytest.mark.usefixtures("quick")
def test_a_server_that_will_not_go_on_is_asked_again(trouble: dict[str, Any], zenodo: Zenodo, folder: Path) -> None:
    folder.mkdir()
    (folder / f".{FIRST}.part").write_bytes(FILES[FIRST][:HALF])
    vars(zenodo).update(trouble)
    fetching.fetch_record(zenodo.url, folder)
    assert zenodo.asked(FIRST)[0] == f"bytes={HALF}-"
    assert held(folder) == FILES


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.usefixtures("quick")
def test_tries_end(ranges: bool, zenodo: Zenodo, folder: Path) -> None:
    """Five without progress, those that only bring what had come before included."""
    zenodo.ranges = ranges
    zenodo.cuts = [HALF] + ([0] if ranges else [HALF]) * 100
    with pytest.raises(FetchError, match="again and again"):
        fetching.fetch_record(zenodo.url, folder)
    assert len(zenodo.asked(FIRST)) == 5
    assert held(folder) == {f".{FIRST}.part": FILES[FIRST][:HALF]}


def test_a_wrong_checksum_leaves_nothing(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    zenodo.changes = {"checksum": f"md5:{'0' * 32}"}
    assert "md5" in sentence(mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api, code=1))
    assert held(folder) == {}


def test_a_wrong_size_is_seen_before_the_download(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    size = len(FILES[FIRST])
    folder.mkdir()
    (folder / f".{FIRST}.part").write_bytes(FILES[FIRST][:HALF])
    zenodo.changes = {"size": size + 1}
    said = sentence(mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api, code=1))
    assert f"the server has {size} bytes, the record says {size + 1}" in said
    assert held(folder) == {f".{FIRST}.part": FILES[FIRST][:HALF]}


def test_a_part_of_something_else_is_not_kept(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    folder.mkdir()
    (folder / f".{FIRST}.part").write_bytes(b"?" * HALF)
    (folder / ".labels_train.npy.part").write_bytes(b"?" * len(FILES[FIRST]))
    assert "md5" in sentence(mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api, code=1))
    mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api)
    assert held(folder) == FILES


@pytest.mark.parametrize("kind", ["as long", "longer", "folder", "link"])
def test_another_file_in_the_way_is_refused_first(kind: str, zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    folder.mkdir()
    last = folder / "labels_test.npy"
    if kind == "folder":
        last.mkdir()
    elif kind == "link":
        last.symlink_to("nowhere")
    else:
        last.write_bytes(b"?" * (len(FILES[last.name]) + (kind == "longer")))
    said = sentence(mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api, code=2))
    assert "digits/labels_test.npy" in said
    assert [path.name for path in folder.iterdir()] == [last.name]
    assert last.is_symlink() if kind == "link" else kind == "folder" or last.read_bytes().startswith(b"?")
    assert zenodo.requests == []


def test_a_file_that_appears_meanwhile_is_refused(zenodo: Zenodo, start: START, folder: Path) -> None:
    zenodo.cuts, zenodo.hold = [HALF], threading.Event()
    process = start("fetch", "zenodo", "digits", "--api", zenodo.api)
    assert zenodo.sent.wait(60)
    (folder / FIRST).write_bytes(b"mine")
    zenodo.hold.set()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert (folder / FIRST).read_bytes() == b"mine"


def test_two_at_once(zenodo: Zenodo, start: START, folder: Path) -> None:
    zenodo.cuts, zenodo.hold = [HALF], threading.Event()
    first = start("fetch", "zenodo", "digits", "--api", zenodo.api)
    assert zenodo.sent.wait(60)
    second = start("fetch", "zenodo", "digits", "--api", zenodo.api)
    assert second.stderr is not None
    assert second.stderr.readline() == "another process fetches into digits; this one waits for it\n"
    zenodo.hold.set()
    for process in (first, second):
        out, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert out.splitlines() == [f"digits/{name}" for name in FILES]
    assert Counter(zenodo.requests) == Counter([(FIRST, f"bytes={HALF}-"), *((name, None) for name in FILES)])
    assert held(folder) == FILES


@pytest.mark.parametrize(
    "name", ["../escaped.npy", "/tmp/x.npy", "a\\b", "..", ".", "", ".hidden", "a\nb", "\x1b[2J", 7]
)
def test_a_name_that_is_none_is_refused(name: object, zenodo: Zenodo, folder: Path) -> None:
    zenodo.changes = {"key": name}
    with pytest.raises(FetchError) as error:
        fetching.fetch_record(zenodo.url, folder)
    assert "no plain file name" in str(error.value)
    assert str(error.value).isprintable()
    assert zenodo.requests == []
    assert not folder.exists()


def test_the_lock_of_a_process_that_has_ended_is_worth_nothing(tmp_path: Path) -> None:
    """While this one waits for the first process, that ends and removes its lock, and a second makes a new one."""
    path = tmp_path / ".fetch.lock"
    first = path.open("wb")
    fcntl.flock(first, fcntl.LOCK_EX)
    second: list[BinaryIO] = []

    def meanwhile(sentence: str) -> None:
        if second:
            second[0].close()
            return
        path.unlink()
        second.append(path.open("wb"))
        fcntl.flock(second[0], fcntl.LOCK_EX)
        first.close()

    with fetching._alone(tmp_path, meanwhile):
        assert second[0].closed
    assert held(tmp_path) == {}


def test_a_name_that_leaves_the_folder_ends_the_command(zenodo: Zenodo, mmsearch: Run, workspace: Path) -> None:
    zenodo.changes = {"key": "../escaped.npy"}
    said = sentence(mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api, code=1))
    assert "'../escaped.npy'" in said
    assert [path.name for path in workspace.iterdir()] == ["studies"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": None}, f"no size for {FIRST}"),
        ({"size": -1}, f"no size for {FIRST}"),
        ({"size": True}, f"no size for {FIRST}"),
        ({"checksum": None}, f"no md5 checksum for {FIRST}"),
        ({"checksum": "sha256:00"}, f"no md5 checksum for {FIRST}"),
        ({"links": None}, f"no address on the web for {FIRST}"),
        ({"links": {"self": "file:///etc/passwd"}}, f"no address on the web for {FIRST}"),
        ({"links": {"self": "http://127.0.0.1/\n"}}, f"no address on the web for {FIRST}"),
        ({"links": {"self": "http://127.0.0.1:port/"}}, "cannot be used"),
        ({"links": {"self": "http://[/"}}, "cannot be used"),
        ({"key": "labels_test.npy"}, "two files of one name"),
    ],
)
def test_a_wrong_entry_is_one_sentence(changes: dict[str, Any], said: str, zenodo: Zenodo, folder: Path) -> None:
    zenodo.changes = changes
    with pytest.raises(FetchError, match=said):
        fetching.fetch_record(zenodo.url, folder)
    assert zenodo.requests == []


@pytest.mark.parametrize("record", [[], {}, {"files": []}, {"files": {"entries": 1}}, {"files": 1}])
def test_a_record_without_files_is_one_sentence(record: object, zenodo: Zenodo, folder: Path) -> None:
    zenodo.record = record
    with pytest.raises(FetchError, match="the record lists no files"):
        fetching.fetch_record(zenodo.url, folder)


def test_an_answer_that_is_not_json_is_one_sentence(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    zenodo.record = b"<html>"
    said = sentence(mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api, code=1))
    assert said == f"mmsearch: {zenodo.url}: the answer is not a record in JSON"
    for body in (b"", b"\xff\xfe", b"[" * 100_000):
        zenodo.record = body
        with pytest.raises(FetchError, match="not a record in JSON"):
            fetching.fetch_record(zenodo.url, folder)


@pytest.mark.parametrize(("status", "name"), [(404, "Not Found"), (500, "Internal Server Error")])
def test_an_error_of_the_server_is_one_sentence(
    status: int, name: str, zenodo: Zenodo, mmsearch: Run, folder: Path
) -> None:
    zenodo.status = status
    said = sentence(mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api, code=1))
    assert said == f"mmsearch: {zenodo.url}: the server answers {status} {name}"
    assert not folder.exists()


def test_a_file_that_is_gone_is_one_sentence(zenodo: Zenodo, mmsearch: Run) -> None:
    zenodo.file_statuses = [404]
    said = sentence(mmsearch("fetch", "zenodo", "digits", "--api", zenodo.api, code=1))
    assert said == f"mmsearch: {zenodo.url}/files/{FIRST}/content: the server answers 404 Not Found"


def test_a_server_out_of_reach_is_one_sentence(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:  # a port that nobody else has
        port = closed.server_address[1]
    said = sentence(mmsearch("fetch", "zenodo", "digits", "--api", f"http://127.0.0.1:{port}", code=1))
    assert said == f"mmsearch: http://127.0.0.1:{port}/records/4452953: cannot be reached (Connection refused)"
    assert not folder.exists()


@pytest.mark.parametrize("links", [["content", "self"], ["download", "self"], ["self"]])
def test_links_of_each_age(links: list[str], zenodo: Zenodo, folder: Path) -> None:
    there, *others = links
    zenodo.changes = {
        "links": {there: f"{zenodo.url}/files/{FIRST}/content", **dict.fromkeys(others, zenodo.url)},
        "checksum": hashlib.md5(FILES[FIRST]).hexdigest().upper(),
    }
    entries = json.loads(zenodo.answer())["files"]
    zenodo.record = {"files": {"enabled": True, "entries": {entry["key"]: entry for entry in entries}}}
    assert fetching.fetch_record(zenodo.url, folder) == [folder / name for name in FILES]
    assert held(folder) == FILES


def test_redirects_stay_on_the_web(zenodo: Zenodo, folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    zenodo.redirect = "ftp://127.0.0.1"
    with pytest.raises(FetchError, match="leads away from http"):
        fetching.fetch_record(zenodo.url, folder)
    zenodo.redirect = zenodo.base
    fetching.fetch_record(zenodo.url, folder)
    assert (folder / FIRST).read_bytes() == FILES[FIRST]


@pytest.mark.parametrize(("to", "allowed"), [("https://b.example", True), ("http://a.example", False)])
def test_a_redirect_does_not_leave_https(to: str, allowed: bool) -> None:
    """Only the rule: a server with a certificate that is believed would need more than it is worth."""
    asked: tuple[Any, ...] = (Request("https://a.example"), io.BytesIO(), 302, "Found", Message(), to)
    if allowed:
        follows = fetching._Redirects().redirect_request(*asked)
        assert follows is not None
        assert follows.full_url == to
    else:
        with pytest.raises(FetchError, match="leads away from https"):
            fetching._Redirects().redirect_request(*asked)


def test_an_empty_file_needs_no_download(zenodo: Zenodo, folder: Path) -> None:
    zenodo.files["empty.txt"] = b""
    fetching.fetch_record(zenodo.url, folder)
    assert (folder / "empty.txt").read_bytes() == b""
    assert zenodo.asked("empty.txt") == []


def test_progress_is_told(zenodo: Zenodo, folder: Path) -> None:
    seen: list[tuple[Path, int, int]] = []
    folder.mkdir()
    (folder / f".{FIRST}.part").write_bytes(FILES[FIRST][:HALF])
    fetching.fetch_record(zenodo.url, folder, on_progress=lambda path, done, size: seen.append((path, done, size)))
    first = [done for path, done, _ in seen if path == folder / FIRST]
    assert first[0] == HALF
    assert first == sorted(first)
    assert {(path.name, max(d for p, d, _ in seen if p == path), size) for path, _, size in seen} == {
        (name, len(content), len(content)) for name, content in FILES.items()
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mnist", "digits"], '"mnist" cannot be fetched; allowed is: zenodo'),
        (["zenodo", "digits", "--api", "ftp://127.0.0.1"], "--api must be an address that begins with https://"),
        (["zenodo", "digits", "--api", "/etc"], "--api must be an address that begins with https://"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments: list[str], said: str, mmsearch: Run) -> None:
    assert said in sentence(mmsearch("fetch", *arguments, code=2))


def test_a_folder_that_cannot_be_is_one_sentence(zenodo: Zenodo, mmsearch: Run, workspace: Path) -> None:
    (workspace / "file").write_text("")
    for folder in ("file", "file/sub"):
        said = sentence(mmsearch("fetch", "zenodo", folder, "--api", zenodo.api, code=2))
        assert said.startswith(f"mmsearch: {folder}: this folder cannot be made: ")
    assert zenodo.requests == []


def test_a_folder_that_cannot_be_written_is_one_sentence(
    zenodo: Zenodo, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as it is for all users but root
    with pytest.raises(UsageError, match="digits: this folder cannot be written"):
        fetching.fetch_record(zenodo.url, folder)


def test_a_full_disk_is_one_sentence_and_the_rest_comes_later(zenodo: Zenodo, mmsearch: Run, folder: Path) -> None:
    """A limit on the size of files, which fails as a full disk does."""
    command = ["fetch", "zenodo", "digits", "--api", zenodo.api]
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", str(MMSEARCH), *command]
    done = subprocess.run(limited, cwd=folder.parent, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert sentence(done) == "mmsearch: digits: File too large; what came is kept, and a later run goes on"
    assert {path.name: path.stat().st_size for path in folder.iterdir()} == {f".{FIRST}.part": 102_400}
    mmsearch(*command)
    assert zenodo.asked(FIRST) == [None, "bytes=102400-"]
    assert held(folder) == FILES


def test_a_terminal_gets_bars(zenodo: Zenodo, folder: Path) -> None:
    ours, theirs = pty.openpty()
    zenodo.cuts, zenodo.hold = [HALF], threading.Event()
    process = subprocess.Popen(
        [MMSEARCH, "fetch", "zenodo", "digits", "--api", zenodo.api],
        cwd=folder.parent, env=environment(TERM="xterm", COLUMNS="120"), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    shown = ""
    with process, os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(4096):
                shown += piece.decode(errors="replace")
                if f"{HALF / 1000:.1f}/{len(FILES[FIRST]) / 1000:.1f} kB" in shown:
                    zenodo.hold.set()
        except OSError:  # the terminal's other end is closed
            pass
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert zenodo.hold.is_set()
    assert "next: mmsearch data digits" in shown
    assert "Traceback" not in shown
    assert out.splitlines() == [f"digits/{name}" for name in FILES]


def test_fetch_needs_nothing_heavy(zenodo: Zenodo, folder: Path) -> None:
    program = (
        "import sys\nfrom mmsearch.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'optuna', 'numpy', 'scipy', 'sklearn', 'sqlalchemy'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program, "fetch", "zenodo", "digits", "--api", zenodo.api]
    done = subprocess.run(command, cwd=folder.parent, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
