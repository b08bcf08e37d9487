"""The image and audio files of a manifest, decoded once into two arrays."""

from __future__ import annotations

import json
import math
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmsearch.data.cache import KEPT_BYTES, digest_of, keep_latest, made_once, read_map, reserve, write_map
from mmsearch.data.dataset import CHUNK_ROWS, Array, Index
from mmsearch.data.manifest import Row
from mmsearch.data.media import Broken, length_at, margins, quantised, read_image, read_wav, resampled
from mmsearch.errors import DataError
from mmsearch.paths import write_text

VERSION = 1  # of what is done to the files; another one decodes them again
WHOLE = 0.95  # share of the training recordings of which nothing is cut off, where no length is given
THREADS = 8  # that decode, at most

Fill = Callable[[Array], None]
Keep = Callable[[str, tuple[int, ...], type, Fill], None]


@dataclass(frozen=True)
class Form:
    """What the files are brought to; None where they decide.

    image: (height, width) or (channels, height, width), with 1 channel or 3. rate: samples a second. seconds: the
    length of a recording; `samples` is the same at `rate`.
    """

    image: tuple[int, ...] | None = None
    rate: int | None = None
    seconds: float | None = None
    samples: int | None = None


@dataclass(frozen=True)
class Decoded:
    """The rows of a manifest as arrays, those of train first.

    image: (N, channels, height, width) uint8. audio: (N, samples, 1) int16, with `rate` samples a second. rows: (N,)
    positions in what was to be decoded. broken: a sentence on each row that could not be. `names` of the two arrays:
    their files, or the manifest.
    """

    image: Array
    audio: Array
    rows: Index
    rate: int
    broken: tuple[str, ...]
    names: tuple[str, str]


@dataclass(frozen=True)
class _Plan:
    """What is known of a manifest's arrays beside their content; kept in the cache as JSON."""

    rows: list[int]
    rate: int
    broken: list[str]
    image: tuple[int, ...]
    audio: tuple[int, ...]


def decode(path: Path, rows: Sequence[Row], form: Form, *, skip_broken: bool, cache: Path | None) -> Decoded:
    """Decode the files of these rows of the manifest at `path`; of a file in several rows once.

    `cache` is a folder that keeps the arrays, memory-mapped; they are made anew where a file has changed. Raises
    `DataError` where a file is missing, broken or silent, unless `skip_broken` and there are others, and where images
    differ in size and `form` gives none.
    """
    if form.image is not None and len(form.image) == 3 and form.image[0] not in (1, 3):
        raise DataError(f"{path}: images have 1 channel (gray) or 3 (colour), not {form.image[0]} as in image_shape")
    if cache is None:
        held: dict[str, Array] = {}

        def keep(name: str, shape: tuple[int, ...], dtype: type, fill: Fill) -> None:
            held[name] = np.empty(shape, dtype)
            fill(held[name])

        plan = _decode(path, rows, form, skip_broken, keep, None)
        return _decoded(plan, held["image"], held["audio"], (str(path), str(path)))
    entry = cache / f"manifest-{_key(path, rows, form)}.json"

    def make() -> None:
        plan = _decode(path, rows, form, skip_broken, lambda name, *given: write_map(_part(entry, name), *given), cache)
        write_text(entry, json.dumps(asdict(plan)))
        keep_latest(cache, "manifest-*.npy", KEPT_BYTES, (_part(entry, "image"), _part(entry, "audio")))

    found = made_once(entry, lambda: _read(entry), make)
    if found.broken and not skip_broken:
        raise _refusal(path, found.broken)
    return found


def _key(path: Path, rows: Sequence[Row], form: Form) -> str:
    """A digest of all that decides what comes out, as far as the files' sizes and times tell."""
    folder = path.parent.resolve()
    stamps = [(name, *_stamp(folder / name)) for name in _files(rows, "image") + _files(rows, "audio")]
    cells = [(row.line, row.image, row.audio, row.split) for row in rows]
    return digest_of(VERSION, str(folder), asdict(form), stamps, cells)


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; of what is missing, none."""
    try:
        held = path.stat()
    except (OSError, ValueError):
        return (-1, -1)
    return held.st_size, held.st_mtime_ns


def _files(rows: Sequence[Row], kind: str) -> list[str]:
    """The files of one column, each once."""
    return list(dict.fromkeys(getattr(row, kind) for row in rows))


def _part(entry: Path, name: str) -> Path:
    return entry.with_suffix(f".{name}.npy")


def _read(entry: Path) -> Decoded | None:
    """What the cache holds; None where there is nothing, or something damaged."""
    try:
        plan = _Plan(**json.loads(entry.read_bytes()))
        image = read_map(_part(entry, "image"), tuple(plan.image), np.uint8)
        audio = read_map(_part(entry, "audio"), tuple(plan.audio), np.int16)
        if image is None or audio is None or not len(image) == len(audio) == len(plan.rows):
            return None
    except (OSError, ValueError, TypeError):
        return None
    return _decoded(plan, image, audio, (str(_part(entry, "image")), str(_part(entry, "audio"))))


def _decoded(plan: _Plan, image: Array, audio: Array, names: tuple[str, str]) -> Decoded:
    return Decoded(image, audio, np.array(plan.rows, dtype=np.int64), plan.rate, tuple(plan.broken), names)


def _decode(path: Path, rows: Sequence[Row], form: Form, skip_broken: bool, keep: Keep, scratch: Path | None) -> _Plan:
    """Decode each file once, and hand the arrays to `keep`; what lies between is in the folder `scratch`."""
    images, sounds = _files(rows, "image"), _files(rows, "audio")
    with _workers(path.parent) as run:
        lengths = run(_measure, sounds)
        pixels, shown = _see(images, form, run, scratch)
        broken = _broken(rows, shown, lengths)
        if broken and not skip_broken:
            raise _refusal(path, list(broken.values()))
        if len(broken) == len(rows):
            raise DataError(f"{path}: none of its {len(rows)} rows can be used; the first: {broken[0]}")
        kept = sorted((at for at in range(len(rows)) if at not in broken), key=lambda at: rows[at].split != "train")
        _must_be_of_one_size(path, [rows[at] for at in kept], shown, pixels.shape[2:])
        gray = all(shown[rows[at].image].gray for at in kept)
        place = {name: at for at, name in enumerate(images)}
        order = np.array([place[rows[at].image] for at in kept])
        channels = 1 if gray and _channels(form) is None else pixels.shape[1]
        shape = (len(kept), channels, *pixels.shape[2:])
        keep("image", shape, np.uint8, lambda array: _gather(array, pixels[:, :channels], order))

        rate, samples = _length([rows[at] for at in kept], lengths, form)
        waves = _scratch((len(sounds), samples), np.int16, scratch)
        place = {name: at for at, name in enumerate(sounds)}

        def hear(file: Path, name: str) -> None:
            wave = quantised(resampled(read_wav(file), rate))
            source, target = margins(len(wave), samples)
            waves[place[name], target] = wave[source]

        used = list(dict.fromkeys(rows[at].audio for at in kept))
        changed = [name for name, found in run(hear, used).items() if isinstance(found, Broken)]
        if changed:
            raise DataError(f"{path}: {changed[0]} was changed while it was read")
        order = np.array([place[rows[at].audio] for at in kept])
        keep("audio", (len(kept), samples, 1), np.int16, lambda array: _gather(array, waves[:, :, None], order))
    return _Plan(kept, rate, list(broken.values()), shape, (len(kept), samples, 1))


@contextmanager
def _workers(folder: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """A function that calls another with each file and its name, in threads: its result by name, or `Broken`."""
    pool = ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0))))

    def run(do: Callable[[Path, str], Any], names: Sequence[str]) -> dict[str, Any]:
        def attempt(name: str) -> Any:
            try:
                return do(_inside(folder, name), name)
            except Broken as error:
                return error

        return dict(zip(names, pool.map(attempt, names), strict=True))

    try:
        with warnings.catch_warnings():  # of Pillow, on oddities of files that can be read
            warnings.simplefilter("ignore")
            yield run
    finally:
        pool.shutdown(cancel_futures=True)


def _inside(folder: Path, name: str) -> Path:
    """A file of the folder, which may be a link; raises `Broken` for a name that leads out of it.

    A manifest from elsewhere must not read whatever else its user has.
    """
    path = Path(os.path.normpath(folder.absolute() / name))
    if not any(path.is_relative_to(base) for base in (os.path.normpath(folder.absolute()), folder.resolve())):
        raise Broken("lies outside the manifest's folder: copy it into that, or a link to it")
    return path


def _measure(file: Path, name: str) -> tuple[int, int]:
    """How many samples a recording has, and at what rate."""
    recording = read_wav(file)
    return len(recording.samples), recording.rate


@dataclass(frozen=True)
class _Shown:
    """An image: whether it is gray, and its height and width."""

    gray: bool
    size: tuple[int, int]


def _channels(form: Form) -> int | None:
    return form.image[0] if form.image is not None and len(form.image) == 3 else None


def _see(
    names: Sequence[str], form: Form, run: Callable[..., dict[str, Any]], scratch: Path | None
) -> tuple[Array, dict[str, Any]]:
    """(images, channels or 3, height, width) pixels, and a `_Shown` or `Broken` for each image.

    Where no size is given, it is that of the first whole image, and those of another size are left empty.
    """
    channels, size = _channels(form), None if form.image is None else (form.image[-2], form.image[-1])
    first = (run(lambda file, name: read_image(file).pixels.shape[1:], [name])[name] for name in names)
    shape = size or next((found for found in first if not isinstance(found, Broken)), (1, 1))
    pixels = _scratch((len(names), channels or 3, *shape), np.uint8, scratch)
    place = {name: at for at, name in enumerate(names)}

    def see(file: Path, name: str) -> _Shown:
        picture = read_image(file, size, channels)
        height, width = picture.pixels.shape[1:]
        if (height, width) == tuple(shape):
            pixels[place[name]] = picture.pixels
        return _Shown(picture.gray, (height, width))

    return pixels, run(see, names)


def _must_be_of_one_size(path: Path, rows: Sequence[Row], shown: Mapping[str, Any], size: tuple[int, ...]) -> None:
    for row in rows:
        found = shown[row.image].size
        if found != size:
            other = next(name for name, seen in shown.items() if isinstance(seen, _Shown) and seen.size == size)
            raise DataError(
                f"{path}: line {row.line}: {row.image} is {found[0]}x{found[1]} (height x width), but {other} is "
                f"{size[0]}x{size[1]}; with --image-shape 32x32, or image_shape = [32, 32] in [data], all are resized"
            )


def _broken(rows: Sequence[Row], images: Mapping[str, Any], sounds: Mapping[str, Any]) -> dict[int, str]:
    """A sentence on each row that has a file that cannot be used, by its position."""
    found = {}
    for at, row in enumerate(rows):
        for kind, name, outcomes in (("image", row.image, images), ("audio", row.audio, sounds)):
            if not name:
                found[at] = f"line {row.line}: no {kind} is named"
            elif isinstance(outcomes[name], Broken):
                found[at] = f"line {row.line}: {name} {outcomes[name]}"
            if at in found:
                break
    return found


def _refusal(path: Path, broken: Sequence[str]) -> DataError:
    others = len(broken) - 1
    more = f" (and {others} more {'row is' if others == 1 else 'rows are'} broken)" if others else ""
    return DataError(f"{path}: {broken[0]}{more}; --skip-broken, or skip_broken = true in [data], leaves such rows out")


def _length(rows: Sequence[Row], lengths: Mapping[str, Any], form: Form) -> tuple[int, int]:
    """Rate and number of samples that each recording is brought to."""
    train = [row for row in rows if row.split == "train"] or rows
    measured = [lengths[name] for name in _files(train, "audio")]
    counts = Counter(rate for _, rate in measured)
    rate = form.rate or max(counts, key=lambda rate: (counts[rate], rate))
    if form.samples is not None:
        return rate, form.samples
    if form.seconds is not None:
        return rate, max(1, round(form.seconds * rate))
    found = sorted(length_at(samples, own, rate) for samples, own in measured)
    return rate, found[-(-len(found) * int(WHOLE * 100) // 100) - 1]


def _scratch(shape: tuple[int, ...], dtype: type, folder: Path | None) -> Array:
    """An array of zeros: in memory, or in a file of the folder that nobody else sees."""
    if folder is None:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as handle:
        reserve(handle.fileno(), math.prod(shape) * np.dtype(dtype).itemsize)
        return np.memmap(handle, dtype, "w+", shape=shape)


def _gather(array: Array, rows: Array, order: Index) -> None:
    for start in range(0, len(order), CHUNK_ROWS):
        array[start : start + CHUNK_ROWS] = rows[order[start : start + CHUNK_ROWS]]
