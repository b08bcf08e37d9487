"""Arrays as files hold them, brought to one form without a copy: numbers, shapes, pixel range, digests of rows."""

from __future__ import annotations

import hashlib
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmsearch.data.cache import digest_of, made_once, read_map, write_map
from mmsearch.data.dataset import CHUNK_ROWS, Array, Index, Pixels
from mmsearch.data.media import margins
from mmsearch.errors import DataError
from mmsearch.paths import replacing

COEFFICIENTS = 13  # of features in flat rows whose shape nobody gives, where they divide the row
LUMA = (0.299, 0.587, 0.114)  # of red, green and blue in gray: ITU-R BT.601, as Pillow has it


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
    # torch has not all types: the one case in which rows are copied
    if array.dtype.name in ("uint16", "uint32", "uint64", "longdouble", "float128"):
        return array.astype(np.float32)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


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


def shape_waves(array: Array, name: str) -> Array:
    """(N, samples, 1), a view. Raises `DataError` where a row is no waveform of one channel."""
    if array.ndim == 2 or (array.ndim == 3 and 1 in array.shape[1:]):
        return array.reshape(len(array), -1, 1)
    raise DataError(f"{name}: its shape is {array.shape}; waveforms are (N, samples), of one channel")


def fit_waves(array: Array, samples: int, name: str, cache: Path | None) -> Array:
    """(N, samples, 1): the middle of longer waveforms, a view; shorter ones with silence around them, a copy.

    The copy lies in the folder `cache`, memory-mapped, where there is one and the waveforms come from a file.
    """
    source, place = margins(array.shape[1], samples)
    if array.shape[1] >= samples:
        return array[:, source]
    shape = (len(array), samples, 1)

    def fill(padded: Array) -> None:
        padded[...] = 1 << (8 * array.itemsize - 1) if array.dtype.kind == "u" else 0
        for start in range(0, len(array), CHUNK_ROWS):
            padded[start : start + CHUNK_ROWS, place] = array[start : start + CHUNK_ROWS]

    if cache is None or not Path(name).is_file():
        found: Array = np.empty(shape, array.dtype)
        fill(found)
        return found
    path = cache / f"padded-{digest_of(_stamp(Path(name)), array.shape, samples)}.npy"
    return made_once(
        path, lambda: read_map(path, shape, array.dtype), lambda: write_map(path, shape, array.dtype, fill)
    )


def wave_scale(array: Array, low: float, high: float, trained: float = 1.0) -> float:
    """What brings samples from `low` to `high` to full scale 1: 1 for floats; of integers it is given by their type.

    Types wider than 16 bits mostly hold narrower samples: theirs is the least of 16, 24 and 32 bits that holds them;
    or, however soft they are, that of the rows that a model was `trained` on, where those were integers too.
    """
    if array.dtype.kind not in "iu":
        return 1.0
    bits = 8 * array.itemsize
    if bits > 16:
        if trained < 1 and max(-low, high) * trained <= 1:
            return trained
        bits = next((bits for bits in (16, 24) if max(-low, high + 1) <= 1 << (bits - 1)), 32)
    return 1 / (1 << (bits - 1))


def fit_images(array: Array, shape: tuple[int, int, int], name: str) -> Array:
    """(N, *shape): rows that can be read so are a view, others are resized, antialiased, and made gray or coloured.

    Raises `DataError` where the rows are no images.
    """
    try:
        return shape_images(array, shape, name)
    except DataError:
        images = shape_images(array, None, name)
    channels, height, width = shape
    if images.shape[1] != channels and (images.shape[1], channels) not in ((1, 3), (3, 1), (4, 1), (4, 3)):
        raise DataError(f"{name}: an image has {images.shape[1]} channels, and {channels} are needed")
    found = np.empty((len(images), *shape), images.dtype)
    for row, image in enumerate(images):
        coloured = _colour(np.asarray(image, dtype=np.float32), channels)
        resized = np.stack([_resize(channel, height, width) for channel in coloured])
        found[row] = resized if images.dtype.kind == "f" else np.rint(resized)
    return found


def _colour(image: npt.NDArray[np.float32], channels: int) -> npt.NDArray[np.float32]:
    if len(image) == channels:
        return image
    if channels == 3:
        return image[:3] if len(image) == 4 else np.repeat(image, 3, axis=0)
    gray: npt.NDArray[np.float32] = np.einsum("chw,c->hw", image[:3], np.array(LUMA, np.float32))
    return gray[None]


def _resize(channel: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(channel))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


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


def inspect(array: Array, name: str, cache: Path | None, part: str = "") -> Inspection:
    """One pass over an array, or a `part` of what a file holds; `cache` is a folder that remembers it.

    Raises `DataError` for a value not finite.
    """
    entry = _cache_entry(array, name, cache, part)
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


def _cache_entry(array: Array, name: str, cache: Path | None, part: str) -> Path | None:
    """Where the pass over a file is kept, by its path, size, time of change and form; None for what is not a file."""
    path = Path(name)
    if cache is None or not path.is_file():
        return None
    return cache / f"{digest_of(_stamp(path), array.shape, array.strides, part)}.npz"


def _stamp(path: Path) -> tuple[str, int, int]:
    held = path.stat()
    return str(path.resolve()), held.st_size, held.st_mtime_ns


def _read_entry(entry: Path) -> Inspection | None:
    """What the cache holds; None where there is nothing, or something damaged, which is made anew."""
    try:
        with entry.open("rb") as handle, np.load(handle) as held:
            return Inspection(float(held["low"]), float(held["high"]), held["digest"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
