"""Downloading a record of Zenodo: resumed where it was stopped, checked against the record, and moved into place whole.

While a file comes it lies beside its place as `.NAME.part`. `.fetch.lock` is there while a process works in the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL, responses
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from mmsearch.errors import FetchError, UsageError

RECORDS = {"zenodo": 4452953}  # Khacef et al., "Written and spoken digits database for multimodal learning"
TIMEOUT = 30.0  # seconds without a byte
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each further try; the first again once a try brought something
PASSING = (429, 500, 502, 503, 504)  # answers that another try may change
CHUNK = 1 << 18  # bytes at most between two calls of `on_progress`
MOST_JSON = 1 << 24  # bytes of a record; the real one has a few thousand

OnProgress = Callable[[Path, int, int], None]
OnEvent = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """One file of a record; its name is safe to put into a folder."""

    name: str
    size: int  # bytes
    md5: str  # 32 hexadecimal digits in lower case
    url: str


class _Dropped(Exception):
    """A try failed in a way that another try may not."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class _Redirects(HTTPRedirectHandler):
    """Follows to https, and from http to http: never to files of this machine, never to where anybody may listen."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if urlsplit(newurl).scheme not in ("https", req.type):
            fp.close()
            raise FetchError(f"{req.full_url}: the server leads away from {req.type}, to {newurl!r}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def record_url(source: str, api: str) -> str:
    """The address of a source's record. Raises `UsageError` for a source that is not known."""
    if source not in RECORDS:
        raise UsageError(f'"{source}" cannot be fetched; allowed is: {", ".join(RECORDS)}')
    if not _is_web(api):
        raise UsageError(f'--api must be an address that begins with https:// or http://, not "{api}"')
    return f"{api.rstrip('/')}/records/{RECORDS[source]}"


def fetch_record(
    record_url: str,
    folder: Path,
    *,
    on_progress: OnProgress = lambda path, done, size: None,
    on_event: OnEvent = lambda sentence: None,
) -> list[Path]:
    """Bring all files of a record into a folder; their paths, in the record's order.

    Any number of processes may call it for one folder: one works, the others wait for it. A file that is there is kept
    when it is the record's, and raises `UsageError` when it is not, before anything is downloaded. Raises `FetchError`
    for all else; a later call goes on where this one ended. `on_progress` is called with path, bytes so far and size.
    """
    files = _files(_read_record(record_url), record_url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: this folder cannot be made: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{folder}: this folder cannot be written")
    try:
        with _alone(folder, on_event):
            missing = [file for file in files if not _is_there(file, folder / file.name)]
            for file in files:
                path = folder / file.name
                if file in missing:
                    _fetch(file, path, on_progress, on_event)
                    on_event(f"fetched {path} ({_megabytes(file.size)})")
                else:
                    on_event(f"{path} is there already, and stays as it is")
    except OSError as error:  # of the disk: those of the network have become ours
        where = error.filename or folder
        raise FetchError(f"{where}: {error.strerror}; what came is kept, and a later run goes on") from None
    return [folder / file.name for file in files]


def _read_record(url: str) -> Any:
    try:
        with _open(url) as response, _network("the connection broke"):
            body = response.read(MOST_JSON)
    except _Dropped as error:
        raise FetchError(f"{url}: {error}") from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise FetchError(f"{url}: the answer is not a record in JSON") from None


def _files(record: Any, url: str) -> list[RemoteFile]:
    entries = record.get("files") if isinstance(record, dict) else None
    if isinstance(entries, dict):  # as InvenioRDM, which Zenodo runs on, lists them itself
        entries = list(entries["entries"].values()) if isinstance(entries.get("entries"), dict) else None
    if not isinstance(entries, list) or not entries:
        raise FetchError(f"{url}: the record lists no files")
    files = [_file(entry if isinstance(entry, dict) else {}, url) for entry in entries]
    if len({file.name for file in files}) < len(files):
        raise FetchError(f"{url}: the record lists two files of one name")
    return files


def _file(entry: dict[str, Any], url: str) -> RemoteFile:
    """One entry of a record, in which nothing is trusted."""
    name, size, links = entry.get("key"), entry.get("size"), entry.get("links")
    if not isinstance(name, str) or not name.isprintable() or name[:1] in ("", ".") or set(name) & set("/\\"):
        raise FetchError(f"{url}: the record lists a file named {name!r:.80}, which is no plain file name")
    if type(size) is not int or size < 0:
        raise FetchError(f"{url}: the record gives no size for {name}")
    md5 = re.fullmatch(r"(?:md5:)?([0-9a-f]{32})", str(entry.get("checksum")).lower())
    if md5 is None:
        raise FetchError(f"{url}: the record gives no md5 checksum for {name}")
    links = links if isinstance(links, dict) else {}
    # Where the first two are there, `self` may be a description of the file.
    link = next((links[key] for key in ("content", "download", "self") if links.get(key)), None)
    if not isinstance(link, str) or not _is_web(link):
        raise FetchError(f"{url}: the record gives no address on the web for {name}")
    return RemoteFile(name, size, md5[1], link)


def _is_web(url: str) -> bool:
    return url.startswith(("https://", "http://")) and url.isprintable() and " " not in url


@contextmanager
def _alone(folder: Path, on_event: OnEvent) -> Iterator[None]:
    """Hold the folder, after the process that holds it now; a killed process holds nothing.

    The lock is a file because a folder that is on NFS cannot be locked itself.
    """
    path = folder / ".fetch.lock"
    while True:
        held = False
        with path.open("wb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_event(f"another process fetches into {folder}; this one waits for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                held = os.path.samestat(os.fstat(handle.fileno()), path.stat())
            if not held:  # who held it before has removed it, and by now another may hold a new one
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_there(file: RemoteFile, path: Path) -> bool:
    """Whether a file is in its place; another one there raises `UsageError`."""
    if not path.exists() and not path.is_symlink():
        return False
    if path.is_file() and path.stat().st_size == file.size and _md5(path) == file.md5:
        return True
    raise UsageError(f"{path}: what is there is not the record's file; move it away, or fetch into another folder")


def _fetch(file: RemoteFile, path: Path, on_progress: OnProgress, on_event: OnEvent) -> None:
    part = path.with_name(f".{path.name}.part")
    if _size(part) > file.size:
        part.unlink()
    furthest, pauses = _size(part), iter(PAUSES)
    while _size(part) < file.size:
        why = "the connection ended"
        try:
            _go_on(file, part, lambda done: on_progress(path, done, file.size))
        except _Dropped as error:
            why = str(error)
            if error.status == 416:
                part.unlink(missing_ok=True)
        done = _size(part)
        if done == file.size:
            break
        if done > furthest:  # not `done`: a server that ignores Range begins each try at 0
            furthest, pauses = done, iter(PAUSES)
        pause = next(pauses, None)
        at = f"{_megabytes(done)} of {_megabytes(file.size)}"
        if pause is None:
            raise FetchError(f"{file.url}: {why}, again and again, at {at}; what came is kept, and a later run goes on")
        on_event(f"{file.name}: {why} at {at}; going on in {pause:g} s")
        time.sleep(pause)
    part.touch()  # an empty file needs no download
    found = _md5(part)
    if found != file.md5:
        part.unlink()
        raise FetchError(f"{file.url}: what came has the md5 {found}, the record says {file.md5}; it is removed")
    if _is_there(file, path):  # put there meanwhile, by no `fetch`
        part.unlink()
    else:
        os.replace(part, path)


def _go_on(file: RemoteFile, part: Path, on_done: Callable[[int], None]) -> None:
    """Append to `part` what one connection brings, at most up to the file's size."""
    done = _size(part)
    with _open(file.url, done) as response:
        start, size = 0, response.headers.get("Content-Length")
        if response.status == 206:
            given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            start, size = (int(given[1]), given[2]) if given else (-1, "*")
        if start not in (0, done):
            part.unlink(missing_ok=True)
            raise _Dropped("the server sent another part than it was asked for")
        if size is not None and size.isdecimal() and int(size) != file.size:  # a login page, say: `part` is still good
            raise FetchError(f"{file.url}: the server has {size} bytes, the record says {file.size}")
        with part.open("ab" if start else "wb") as handle:
            done = start
            on_done(done)
            while done < file.size:
                with _network("the connection broke"):
                    chunk = response.read1(min(CHUNK, file.size - done))  # what there is, so that little is lost
                if not chunk:
                    break
                handle.write(chunk)
                handle.flush()
                done += len(chunk)
                on_done(done)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _md5(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def _open(url: str, start: int = 0) -> Any:
    """The server's answer to a GET of all from byte `start`. Raises `_Dropped` or `FetchError`."""
    headers = {"User-Agent": f"mmsearch/{version('mmsearch')}"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with _network("cannot be reached"):
            return build_opener(_Redirects).open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        answer = f"the server answers {error.code} {responses.get(error.code, '')}".rstrip()
        if error.code in PASSING or (start and error.code == 416):
            raise _Dropped(answer, error.code) from None
        raise FetchError(f"{url}: {answer}") from None
    except (ValueError, InvalidURL) as error:
        raise FetchError(f"{url}: this address cannot be used: {error}") from None


@contextmanager
def _network(what: str) -> Iterator[None]:
    """Around what waits for the server: its failures become `_Dropped`, but not answers and impossible addresses."""
    try:
        yield
    except (HTTPError, InvalidURL):
        raise
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _Dropped(f"{what} ({getattr(reason, 'strerror', None) or reason})") from None
