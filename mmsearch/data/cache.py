"""What is derived from data and kept in the cache folder: made by one process while others wait, and whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mmsearch.data.dataset import Array
from mmsearch.errors import MmsearchError
from mmsearch.paths import replacing

Made = TypeVar("Made")

KEPT_BYTES = 16 << 30  # of files that are derived from data; those used longest ago make room


def digest_of(*parts: object) -> str:
    """A name for what these values, each of which shows all of itself, lead to."""
    return hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def made_once(path: Path, read: Callable[[], Made | None], make: Callable[[], None]) -> Made:
    """What `read` finds at `path`; where it finds nothing, or something damaged (None), `make` makes it first.

    Any number of processes and threads may ask at once: one makes it, the others wait. Where that one is killed,
    another takes over. Raises `MmsearchError` where the folder cannot be written.
    """
    found = read()
    if found is not None:
        return found
    try:
        with _alone(path):
            found = read()
            if found is None:
                for torn in path.parent.glob(f".????????.{path.stem}.*"):  # of one who was killed
                    torn.unlink(missing_ok=True)
                make()
                found = read()
    except OSError as error:
        raise MmsearchError(f"{error.filename or path.parent}: cannot be written: {error.strerror or error}") from None
    if found is None:
        raise MmsearchError(f"{path}: what was just written there cannot be read")
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold `path` against all others, after those who hold it now; the killed hold nothing."""
    lock = path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with lock.open("wb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_at(handle.fileno(), lock):
                continue  # who held it has removed it; by now another may hold a new one
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def read_map(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array | None:
    """The array at `path`, memory-mapped; None where there is none of this shape and type, or a damaged one."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        return None
    with contextlib.suppress(OSError):  # a folder that cannot be written, or another process that makes room
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # `keep_latest` wants to know
    return array


def write_map(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, fill: Callable[[Array], None]) -> None:
    """Write the array that `fill` puts its values into, page by page, atomically."""
    with replacing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.dtype(dtype), shape=shape)
        with temporary.open("r+b") as handle:
            reserve(handle.fileno(), temporary.stat().st_size)
        fill(array)
        array.flush()


def reserve(descriptor: int, size: int) -> None:
    """Take the disk's space for a file of `size` bytes; raises `OSError` where it is full.

    Else a process that writes into a memory-mapped file is killed when there is no space for a page.
    """
    if size:
        os.posix_fallocate(descriptor, 0, size)


def keep_latest(folder: Path, pattern: str, limit: int, needed: Collection[Path]) -> None:
    """Remove those files of `pattern` that were used longest ago, until the rest have at most `limit` bytes.

    The `needed` stay in any case; who has one of the others mapped keeps what is mapped.
    """
    found = []
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # another process removes too
            held = path.stat()
            found.append((path not in needed, -held.st_atime_ns, held.st_size, path))
    total = 0
    for free, _, size, path in sorted(found):
        total += size
        if free and total > limit:
            path.unlink(missing_ok=True)
