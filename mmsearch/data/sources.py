"""Where data comes from: a folder in a known layout, or the demo data of the package. Recognised, never asked for.

Layouts: *zenodo* (Khacef et al., "Written and spoken digits database for multimodal learning", record 4452953) and
*kaggle* (a competition made from it, which keeps the test labels back).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmsearch.config import StudyConfig
from mmsearch.data.arrays import inspect, load_array, numeric, pixel_scale, scale_as_trained, shape_audio, shape_images
from mmsearch.data.dataset import Array, Dataset, Index, Pixels, Split, Trained
from mmsearch.data.labels import read_labels
from mmsearch.data.splits import some, split_off_test
from mmsearch.errors import DataError

DEMO = Path(__file__).parent / "demo" / "digits.npz"


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


def load_rows(source: str, split: str | None, trained: Trained) -> Split:
    """The rows of one split of any data set, to be predicted: its test split, or else its training split.

    Raises `DataError` where they have other shapes than the rows that the model was trained on.
    """
    layout, parts = _read(source)
    name = split or ("test" if "test" in parts else "train")
    if name not in parts:
        raise DataError(f"{source}: there is no {name} split; there is: {', '.join(parts)}")
    return _to_predict(source, layout, parts[name], trained)


def rows_from_arrays(image: Array, audio: Array, trained: Trained) -> Split:
    """Rows without labels out of two arrays in any form that a file may have. Raises `DataError`."""
    arrays = [numeric(np.ascontiguousarray(array), name) for array, name in ((image, "image"), (audio, "audio"))]
    if len(arrays[0]) != len(arrays[1]):
        raise DataError(f"audio: {len(arrays[1])} rows, but image has {len(arrays[0])}")
    return _to_predict("arrays", "arrays", Part(arrays[0], arrays[1], None, ("image", "audio", "no labels")), trained)


def _to_predict(source: str, layout: str, part: Part, trained: Trained) -> Split:
    shapes = trained.shapes
    try:
        part = _shaped(part, shapes.image, shapes.audio)
    except DataError as error:
        by = ["x".join(map(str, shape)) for shape in (shapes.image, shapes.audio)]
        raise DataError(f"{error}; the model was trained on images of {by[0]} and audio of {by[1]}") from None
    dataset = _assemble(source, layout, {"train": part}, trained.classes, None, unknown_labels=True)
    scale = scale_as_trained(trained.pixels, part.image, dataset.pixels.low, dataset.pixels.high)
    return replace(dataset.train, image_scale=scale)


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
    images, sounds = load_array(folder / image), load_array(folder / audio)
    labels = read_labels(folder / label) if label and (folder / label).exists() else None
    names = (str(folder / image), str(folder / audio), str(folder / (label or "no labels")))
    for other, name in ((sounds, names[1]), (labels, names[2])):
        if other is not None and len(other) != len(images):
            raise DataError(f"{name}: {len(other)} rows, but {image} has {len(images)}")
    if not len(images):
        raise DataError(f"{names[0]}: there are no rows")
    return Part(images, sounds, labels, names)


def _shaped(part: Part, image_shape: Sequence[int] | None, audio_shape: Sequence[int] | None) -> Part:
    return replace(
        part,
        image=shape_images(part.image, image_shape, part.names[0]),
        audio=shape_audio(part.audio, audio_shape, part.names[1]),
    )


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
        name: (inspect(p.image, p.names[0], cache), inspect(p.audio, p.names[1], cache)) for name, p in parts.items()
    }
    for kind in (0, 1):
        rows = {name: (part.image, part.audio)[kind].shape[1:] for name, part in parts.items()}
        if len(set(rows.values())) > 1:
            where = parts["test"].names[kind]
            raise DataError(f"{where}: its rows have the shape {rows['test']}, those of train {rows['train']}")
    low, high = min(image.low for image, _ in seen.values()), max(image.high for image, _ in seen.values())
    pixels = Pixels(low, high, pixel_scale(low, high))
    splits = {
        name: Split(
            part.image,
            part.audio,
            None if part.labels is None else _class_index(part, classes, unknown_labels),
            np.arange(len(part.image)),
            pixels.scale,
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
        pixels=pixels,
        audio_range=(min(audio.low for _, audio in seen.values()), max(audio.high for _, audio in seen.values())),
        competition=layout == "kaggle" and "test" in parts,
    )


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
