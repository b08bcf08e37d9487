"""Where data comes from: a folder in a known layout, or the demo data of the package. Recognised, never asked for.

Layouts: *zenodo* (Khacef et al., "Written and spoken digits database for multimodal learning", record 4452953) and
*kaggle* (a competition made from it, which keeps the test labels back).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import CHUNK_ROWS, Array, Dataset, Index, Split
from mmsearch.data.labels import read_labels
from mmsearch.data.splits import some, split_off_test
from mmsearch.errors import DataError
from mmsearch.paths import replacing

DEMO = Path(__file__).parent / "demo" / "digits.npz"
COEFFICIENTS = 13  # of the mel cepstrum, in the 507 = 39 x 13 values of the published audio rows


@dataclass(frozen=True)
class Layout:
    """The file names of one layout: images, audio and labels of each split."""

    name: str
    train: tuple[str, str, str]
    test: tuple[str, str, str | None]

    def files(self, split: str) -> tuple[str, str, str | None]:
        """The names of one split's images, audio and labels."""
        return self.train if split == "train" else self.test


LAYOUTS = (
    Layout(
        "zenodo",
        ("data_wr_train.npy", "data_sp_train.npy", "labels_train.npy"),
        ("data_wr_test.npy", "data_sp_test.npy", "labels_test.npy"),
    ),
    Layout("kaggle", ("x_train_wr.npy", "x_train_sp.npy", "y_train.csv"), ("x_test_wr.npy", "x_test_sp.npy", None)),
)


@dataclass(frozen=True)
class Part:
    """One split as its files hold it; `names` are the files, for messages."""

    image: Array
    audio: Array
    labels: tuple[int, ...] | Index | None
    names: tuple[str, str, str]


@dataclass(frozen=True)
class _Inspection:
    """What one pass over an array found."""

    low: float
    high: float
    digest: Index


def load_dataset(config: StudyConfig) -> Dataset:
    """The data set of a study, as its `[data]` says; what one pass over the arrays finds is kept in its cache."""
    data = config.data
    return read_dataset(
        data.source,
        test=data.test,
        rows=data.rows,
        seed=config.study.seed,
        image_shape=data.image_shape,
        audio_shape=data.audio_shape,
        cache=config.storage_paths.cache,
    )


def read_dataset(
    source: str,
    *,
    test: float = 0.2,
    rows: int | None = None,
    seed: int = 0,
    image_shape: Sequence[int] | None = None,
    audio_shape: Sequence[int] | None = None,
    cache: Path | None = None,
) -> Dataset:
    """Read the data set at `source`: a folder, or the word `demo`.

    Where it has no test split, `test` of its groups become one. `rows` takes only so many training rows. `cache` is a
    folder in which the pass over each array is remembered. Raises `DataError`, which names the file and the row.
    """
    layout, parts = _read(source)
    if "train" not in parts:
        raise DataError(f"{source}: there are no training rows; {_expected()}")
    parts = {name: _shaped(part, image_shape, audio_shape) for name, part in parts.items()}
    first = parts["train"]
    assert first.labels is not None
    values = sorted({int(label) for label in np.unique(np.asarray(first.labels))})
    if len(values) < 2:
        raise DataError(f"{first.names[2]}: all rows have the label {values[0]}; a classifier needs two classes")
    dataset = _assemble(source, layout, parts, [str(v) for v in values], cache)
    if rows is not None:
        dataset = replace(dataset, train=some(dataset.train, rows, seed))
    if dataset.test is None and test > 0:
        kept, held_out = split_off_test(dataset, test, seed)
        dataset = replace(dataset, train=kept, test=held_out)
    return dataset


def load_rows(
    source: str, split: str | None, image: Sequence[int], audio: Sequence[int], classes: Sequence[str]
) -> Split:
    """The rows of one split of any data set, to be predicted: its test split, or else its training split.

    `image`, `audio` and `classes` are what a model was trained on. Raises `DataError` where the data has other shapes.
    """
    layout, parts = _read(source)
    name = split or ("test" if "test" in parts else "train")
    if name not in parts:
        raise DataError(f"{source}: there is no {name} split; there is: {', '.join(parts)}")
    try:
        part = _shaped(parts[name], image, audio)
    except DataError as error:
        shapes = f"images of {'x'.join(map(str, image))} and audio of {'x'.join(map(str, audio))}"
        raise DataError(f"{error}; the model was trained on {shapes}") from None
    dataset = _assemble(source, layout, {"train": part}, classes, None, unknown_labels=True)
    return dataset.train


def rows_from_arrays(image: Array, audio: Array, image_shape: Sequence[int], audio_shape: Sequence[int]) -> Split:
    """Rows without labels out of two arrays in any form that a file may have. Raises `DataError`."""
    if len(image) != len(audio):
        raise DataError(f"audio: {len(audio)} rows, but image has {len(image)}")
    arrays = [_numeric(np.ascontiguousarray(array), name) for array, name in ((image, "image"), (audio, "audio"))]
    part = _shaped(Part(arrays[0], arrays[1], None, ("image", "audio", "no labels")), image_shape, audio_shape)
    return _assemble("arrays", "arrays", {"train": part}, (), None).train


def _read(source: str) -> tuple[str, dict[str, Part]]:
    if source == "demo":
        return "demo", _demo()
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{source}: no such folder; data is a folder, or the word demo")
    for layout in LAYOUTS:
        if any((folder / name).exists() for split in ("train", "test") for name in layout.files(split)[:2] if name):
            found = {split: _part(folder, layout, split) for split in ("train", "test")}
            return layout.name, {split: part for split, part in found.items() if part is not None}
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    raise DataError(f"{source}: no known layout; {_expected()}; it holds {held}")


def _expected() -> str:
    return " or ".join(f"{', '.join(layout.train)} ({layout.name})" for layout in LAYOUTS) + " are expected"


def _demo() -> dict[str, Part]:
    with np.load(DEMO) as held:
        audio = held["audio"]
        return {
            split: Part(
                held[f"image_{split}"],
                audio[held[f"audio_row_{split}"]],
                held[f"label_{split}"].astype(np.int64),
                ("demo images", "demo audio", "demo labels"),
            )
            for split in ("train", "test")
        }


def _part(folder: Path, layout: Layout, split: str) -> Part | None:
    image, audio, label = layout.files(split)
    if not any((folder / name).exists() for name in (image, audio)):
        return None
    for name in (image, audio, *([label] if split == "train" and label else [])):
        if not (folder / name).exists():
            raise DataError(f"{folder / name}: this file is missing; the {layout.name} layout needs it")
    images, sounds = _load(folder / image), _load(folder / audio)
    labels = read_labels(folder / label) if label and (folder / label).exists() else None
    names = (str(folder / image), str(folder / audio), str(folder / (label or "no labels")))
    for other, name in ((sounds, names[1]), (labels, names[2])):
        if other is not None and len(other) != len(images):
            raise DataError(f"{name}: {len(other)} rows, but {image} has {len(images)}")
    if not len(images):
        raise DataError(f"{names[0]}: there are no rows")
    return Part(images, sounds, labels, names)


def _load(path: Path) -> Array:
    """A memory-mapped array: pages are read on demand and shared by all processes."""
    try:
        # "c": torch refuses to wrap read-only memory; nothing is ever written, so nothing is ever copied
        array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a NumPy array of numbers: {error}") from None
    return _numeric(array, str(path))


def _numeric(array: Array, name: str) -> Array:
    """The array in a type that torch has."""
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: holds {array.dtype}, but numbers are needed")
    if array.ndim == 0:
        raise DataError(f"{name}: holds a single number, but rows are needed")
    native = array.dtype.newbyteorder("=")
    if native != array.dtype or array.dtype.name in ("uint16", "uint32", "uint64", "longdouble", "float128"):
        # torch has no such type: the one case in which rows are copied
        return array.astype(np.float32)
    return array


def _shaped(part: Part, image_shape: Sequence[int] | None, audio_shape: Sequence[int] | None) -> Part:
    image, audio = part.image, part.audio
    if image_shape is not None:
        image = _reshaped(image, (1, *image_shape) if len(image_shape) == 2 else tuple(image_shape), part.names[0])
    elif image.ndim == 2:
        side = math.isqrt(image.shape[1])
        if side * side != image.shape[1] or side == 0:
            raise DataError(
                f"{part.names[0]}: a row has {image.shape[1]} values, which is not a square image; "
                "set image_shape = [height, width] in [data]"
            )
        image = image.reshape(-1, 1, side, side)
    elif image.ndim == 3:
        image = image[:, None]
    elif image.ndim == 4 and image.shape[3] in (1, 3, 4) and image.shape[1] not in (1, 3, 4):
        image = image.transpose(0, 3, 1, 2)
    elif image.ndim != 4:
        raise DataError(
            f"{part.names[0]}: its shape is {image.shape}; allowed are (N, pixels), (N, height, width), "
            "(N, height, width, channels) and (N, channels, height, width)"
        )
    if audio_shape is not None:
        audio = _reshaped(audio, tuple(audio_shape), part.names[1])
    elif audio.ndim == 2:
        width = audio.shape[1]
        audio = audio.reshape(len(audio), -1, COEFFICIENTS if width and width % COEFFICIENTS == 0 else 1)
    elif audio.ndim != 3:
        raise DataError(
            f"{part.names[1]}: its shape is {audio.shape}; allowed are (N, values) and (N, frames, coefficients)"
        )
    for array, name in ((image, part.names[0]), (audio, part.names[1])):
        if 0 in array.shape[1:]:
            raise DataError(f"{name}: its rows are empty: its shape is {array.shape}")
    return replace(part, image=image, audio=audio)


def _reshaped(array: Array, shape: tuple[int, ...], name: str) -> Array:
    if math.prod(array.shape[1:]) != math.prod(shape):
        raise DataError(
            f"{name}: a row has the shape {array.shape[1:]}, which cannot be read as {'x'.join(map(str, shape))}"
        )
    return array.reshape(-1, *shape)


def _assemble(
    source: str,
    layout: str,
    parts: dict[str, Part],
    classes: Sequence[str],
    cache: Path | None,
    *,
    unknown_labels: bool = False,
) -> Dataset:
    """Check every value once, find the pixel range, and map labels to class indices."""
    seen = {
        name: (_inspect(p.image, p.names[0], cache), _inspect(p.audio, p.names[1], cache)) for name, p in parts.items()
    }
    shapes = {name: (part.image.shape[1:], part.audio.shape[1:]) for name, part in parts.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(
            f"{parts['test'].names[0]}: test rows have shapes {shapes['test']}, training rows {shapes['train']}"
        )
    low = min(image.low for image, _ in seen.values())
    high = max(image.high for image, _ in seen.values())
    scale = _pixel_scale(parts["train"].image.dtype, low, high)
    splits = {
        name: Split(
            part.image,
            part.audio,
            None if part.labels is None else _class_index(part, classes, unknown_labels),
            np.arange(len(part.image)),
            scale,
        )
        for name, part in parts.items()
    }
    return Dataset(
        source=source,
        layout=layout,
        train=splits["train"],
        test=splits.get("test"),
        classes=tuple(classes),
        digests={name: (image.digest, audio.digest) for name, (image, audio) in seen.items()},
        ranges={
            "image": (low, high),
            "audio": (min(audio.low for _, audio in seen.values()), max(audio.high for _, audio in seen.values())),
        },
        competition=layout == "kaggle" and "test" in parts,
    )


def _pixel_scale(dtype: np.dtype[np.generic], low: float, high: float) -> float:
    """What brings pixels to 0-1; 1 where they are there already, or have no such range."""
    if low < 0 or high <= 1:
        return 1.0
    if high <= 255:
        return 1 / 255
    return 1 / 65535 if high <= 65535 and dtype.kind in "iu" else 1 / high


def _class_index(part: Part, classes: Sequence[str], unknown_labels: bool) -> Index | None:
    labels: npt.NDArray[np.int64] = np.asarray(part.labels, dtype=np.int64)
    known: npt.NDArray[np.int64] = np.array([int(name) for name in classes], dtype=np.int64)
    index = np.searchsorted(known, labels).clip(0, len(known) - 1)
    wrong = np.flatnonzero(known[index] != labels)
    if len(wrong):
        if unknown_labels:
            return None
        listed = f"{classes[0]} to {classes[-1]}" if len(classes) > 8 else ", ".join(classes)
        raise DataError(
            f"{part.names[2]}: row {wrong[0]} has the label {labels[wrong[0]]}, which no training row has ({listed})"
        )
    return index.astype(np.int64)


def _inspect(array: Array, name: str, cache: Path | None) -> _Inspection:
    """One pass over an array: range, digest of each row, and an error that names the first row that is not finite."""
    entry = _cache_entry(name, cache)
    if entry is not None and entry.exists():
        with np.load(entry) as held:
            if len(held["digest"]) == len(array):
                return _Inspection(float(held["low"]), float(held["high"]), held["digest"])
    low, high = math.inf, -math.inf
    digests = bytearray()
    for start in range(0, len(array), CHUNK_ROWS):
        chunk = np.ascontiguousarray(array[start : start + CHUNK_ROWS]).reshape(min(CHUNK_ROWS, len(array) - start), -1)
        if chunk.dtype.kind == "f":
            finite = np.isfinite(chunk).all(1)
            if not finite.all():
                raise DataError(
                    f"{name}: row {start + int(np.argmin(finite))} holds a value that is not a finite number"
                )
        low, high = min(low, float(chunk.min())), max(high, float(chunk.max()))
        width = chunk.shape[1] * chunk.itemsize
        view = memoryview(chunk.tobytes())
        for offset in range(0, len(view), width):
            digests += hashlib.blake2b(view[offset : offset + width], digest_size=8).digest()
    found = _Inspection(low, high, np.frombuffer(bytes(digests), dtype="<i8").astype(np.int64))
    if entry is not None:
        with replacing(entry) as temporary:
            np.savez(temporary, low=found.low, high=found.high, digest=found.digest)
    return found


def _cache_entry(name: str, cache: Path | None) -> Path | None:
    """The cached pass over a file, by its path, size and time of change; None for what is not a file."""
    path = Path(name)
    if cache is None or not path.is_file():
        return None
    held = path.stat()
    key = f"{path.resolve()}|{held.st_size}|{held.st_mtime_ns}"
    return cache / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.npz"
