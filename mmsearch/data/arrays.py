"""Arrays as files hold them, brought to one form without a copy: numbers, shapes, pixel range, digests of rows."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsearch.data.dataset import CHUNK_ROWS, Array, Index, Pixels
from mmsearch.errors import DataError
from mmsearch.paths import replacing

COEFFICIENTS = 13  # of the mel cepstrum, in the 507 = 39 x 13 values of the published audio rows


def load_array(path: Path) -> Array:
    """A memory-mapped array: pages are read on demand and shared by all processes. Raises `DataError`."""
    try:
        # "c": torch refuses to wrap read-only memory; nothing is ever written, so nothing is ever copied
        array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a NumPy array of numbers: {error}") from None
    return numeric(array, str(path))


def numeric(array: Array, name: str) -> Array:
    """The array in a type that torch has; raises `DataError` where it is no array of numbers with rows."""
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{name}: not a NumPy array of numbers, but an archive of several")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: holds {array.dtype}, but numbers are needed")
    if array.ndim == 0:
        raise DataError(f"{name}: holds a single number, but rows are needed")
    native = array.dtype.newbyteorder("=")
    if native != array.dtype or array.dtype.name in ("uint16", "uint32", "uint64", "longdouble", "float128"):
        # torch has no such type: the one case in which rows are copied
        return array.astype(np.float32)
    return array


def shape_images(array: Array, shape: Sequence[int] | None, name: str) -> Array:
    """(N, channels, height, width), a view; `shape` is (height, width), (channels, height, width), or None to guess."""
    if shape is not None:
        channels, height, width = shape if len(shape) == 3 else (1, *shape)
        return _as(array, (channels, height, width), {(height, width, channels): (0, 3, 1, 2)}, name)
    if array.ndim == 2:
        side = math.isqrt(array.shape[1])
        if side * side != array.shape[1] or side == 0:
            raise DataError(
                f"{name}: a row has {array.shape[1]} values, which is not a square image; "
                "set image_shape = [height, width] in [data]"
            )
        return array.reshape(-1, 1, side, side)
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        raise DataError(
            f"{name}: its shape is {array.shape}; allowed are (N, pixels), (N, height, width), "
            "(N, height, width, channels) and (N, channels, height, width)"
        )
    last = array.shape[3] in (1, 3, 4) and array.shape[1] not in (1, 3, 4)
    return array.transpose(0, 3, 1, 2) if last else array


def shape_audio(array: Array, shape: Sequence[int] | None, name: str) -> Array:
    """(N, frames, coefficients), a view; `shape` is (frames, coefficients), or None to guess."""
    if shape is not None:
        return _as(array, tuple(shape), {}, name)
    if array.ndim == 2:
        width = array.shape[1]
        return array.reshape(len(array), -1, COEFFICIENTS if width and width % COEFFICIENTS == 0 else 1)
    if array.ndim != 3:
        raise DataError(f"{name}: its shape is {array.shape}; allowed are (N, values) and (N, frames, coefficients)")
    return array


def _as(array: Array, shape: tuple[int, ...], turned: dict[tuple[int, ...], tuple[int, ...]], name: str) -> Array:
    """Rows of `shape`: as they are, turned from another order of axes, or out of flat rows; never rearranged else."""
    row = array.shape[1:]
    if row == shape:
        return array
    if row in turned:
        return array.transpose(turned[row])
    if math.prod(row) == math.prod(shape) and (len(row) == 1 or (1, *row) == shape):
        return array.reshape(-1, *shape)
    raise DataError(f"{name}: a row has the shape {_by(row)}, which cannot be read as {_by(shape)}")


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def pixel_scale(low: float, high: float) -> float:
    """What brings pixels to 0-1; 1 where they are there already, or have no such range."""
    if low < 0 or high <= 1:
        return 1.0
    return 1 / max(255.0, high)


def scale_as_trained(trained: Pixels, array: Array, low: float, high: float) -> float:
    """The scale of new rows for a model that was trained on pixels of another or the same range.

    Rows in the range of training are scaled as in training, however dark they are. Fractions up to 1 are taken as
    scaled already, and numbers far above 1 for a model that was trained on 0-1 as not scaled yet.
    """
    if trained.low < 0 or low < 0:
        return trained.scale
    if trained.scale != 1 and array.dtype.kind == "f" and high <= 1:
        return 1.0
    return pixel_scale(low, high) if trained.scale == 1 else trained.scale


@dataclass(frozen=True)
class Inspection:
    """What one pass over an array found: smallest and greatest value, and 8 bytes a row that tell rows apart."""

    low: float
    high: float
    digest: Index


def inspect(array: Array, name: str, cache: Path | None) -> Inspection:
    """One pass over an array; `cache` is a folder that remembers it. Raises `DataError` for a value not finite."""
    entry = _cache_entry(array, name, cache)
    if entry is not None and (held := _read_entry(entry)) is not None and len(held.digest) == len(array):
        return held
    if not array.size:
        raise DataError(f"{name}: its rows are empty: its shape is {array.shape}")
    low, high = math.inf, -math.inf
    digests = bytearray()
    for start in range(0, len(array), CHUNK_ROWS):
        chunk = np.ascontiguousarray(array[start : start + CHUNK_ROWS])
        chunk = chunk.reshape(len(chunk), -1)
        if chunk.dtype.kind == "f":
            finite = np.isfinite(chunk).all(1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise DataError(f"{name}: row {row} holds a value that is not a finite number")
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
        width = chunk.shape[1] * chunk.itemsize
        view = memoryview(chunk.tobytes())
        for offset in range(0, len(view), width):
            digests += hashlib.blake2b(view[offset : offset + width], digest_size=8).digest()
    found = Inspection(low, high, np.frombuffer(bytes(digests), dtype="<i8").astype(np.int64))
    if entry is not None:
        with replacing(entry) as temporary:
            np.savez(temporary, low=found.low, high=found.high, digest=found.digest)
    return found


def _cache_entry(array: Array, name: str, cache: Path | None) -> Path | None:
    """Where the pass over a file is kept, by its path, size, time of change and form; None for what is not a file."""
    path = Path(name)
    if cache is None or not path.is_file():
        return None
    held = path.stat()
    key = f"{path.resolve()}|{held.st_size}|{held.st_mtime_ns}|{array.shape}|{array.strides}"
    return cache / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.npz"


def _read_entry(entry: Path) -> Inspection | None:
    """What the cache holds; None where there is nothing, or something damaged, which is made anew."""
    try:
        with entry.open("rb") as handle, np.load(handle) as held:
            return Inspection(float(held["low"]), float(held["high"]), held["digest"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
