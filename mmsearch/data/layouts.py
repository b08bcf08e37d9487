"""What a data folder holds, in one of the layouts that are known: recognised by its files, never asked for.

Layouts: *zenodo* (Khacef et al., "Written and spoken digits database for multimodal learning", record 4452953),
*kaggle* (a competition made from it, which keeps the test labels back), and *manifest* (image and audio files, and a
`manifest.csv` that names them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmsearch.data.arrays import load_array
from mmsearch.data.dataset import Array, Index, Origin
from mmsearch.data.decode import Form, decode
from mmsearch.data.labels import Labels, label_numbers, label_words, read_labels
from mmsearch.data.manifest import SPLITS, Row, read_manifest
from mmsearch.errors import DataError
from mmsearch.paths import MANIFEST

DEMO = Path(__file__).parent / "demo" / "digits.npz"


@dataclass(frozen=True)
class Layout:
    """The file names of one layout of arrays: images, audio and labels of each split."""

    name: str
    train: tuple[str, str, str]
    test: tuple[str, str, str | None]

    def files(self, split: str) -> tuple[str, str, str | None]:
        """The names of one split's images, audio and labels."""
        return self.train if split == "train" else self.test

    def held_by(self, folder: Path) -> list[str]:
        """The images and audio of this layout that a folder holds."""
        return [name for split in SPLITS for name in self.files(split)[:2] if name and (folder / name).exists()]


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
    """One split as its files hold it; `names` are those of images, audio and labels, for messages.

    `lines`: of a manifest's rows, for messages too. `group`: (N,) of the rows that the user grouped, -1 elsewhere.
    """

    image: Array
    audio: Array
    labels: Labels | None
    names: tuple[str, str, str]
    origin: Origin | None = None
    lines: tuple[int, ...] | None = None
    group: Index | None = None

    def place(self, row: int) -> str:
        """Where a row is, in words."""
        return f"row {row}" if self.lines is None else f"line {self.lines[row]}"


@dataclass(frozen=True)
class Found:
    """What a source holds. `rate`: of the waveforms of a manifest, in samples a second."""

    layout: str
    parts: dict[str, Part]
    rate: int | None = None
    skipped: tuple[str, ...] = ()


def recognise(source: str) -> str:
    """The layout of a source; `demo` is that of the demo data. Raises `DataError`."""
    if source == "demo":
        return "demo"
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{source}: no such folder; data is a folder, or the word demo")
    held = {layout.name: found[0] for layout in LAYOUTS if (found := layout.held_by(folder))}
    if (folder / MANIFEST).exists():
        held["manifest"] = MANIFEST
    if len(held) > 1:
        listed = " and ".join(f"{name} ({file})" for name, file in held.items())
        raise DataError(f"{source}: holds {len(held)} layouts at once: {listed}; keep one of them in a folder")
    for name in held:
        return name
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    raise DataError(f"{source}: no known layout; {expected()}; it holds {names}")


def expected() -> str:
    """What a folder may hold, in words."""
    arrays = [f"{', '.join(layout.train)} ({layout.name})" for layout in LAYOUTS]
    return " or ".join([*arrays, f"{MANIFEST} (manifest)"]) + " are expected"


def read_arrays(source: str, layout: str) -> Found:
    """The splits of a source whose layout is one of arrays."""
    if layout == "demo":
        return Found(layout, _demo())
    files = next(known for known in LAYOUTS if known.name == layout)
    found = {split: _part(Path(source), files, split) for split in SPLITS}
    return Found(layout, {split: part for split, part in found.items() if part is not None})


def read_files(
    source: str,
    form: Form,
    *,
    predict: str | bool = False,
    skip_broken: bool = False,
    cache: Path | None = None,
) -> Found:
    """The splits of a folder with a manifest, their files decoded into arrays of `form`.

    With `predict`, only the split that it names, or with True the test split and else the training split; there labels
    may be missing. Raises `DataError`.
    """
    path = Path(source) / MANIFEST
    rows = read_manifest(path, labels=not predict)
    if predict:
        splits = {row.split for row in rows}
        wanted = predict if isinstance(predict, str) else "test" if "test" in splits else "train"
        must_have(source, wanted, sorted(splits, reverse=True))
        rows = [row for row in rows if row.split == wanted]
    labels = _manifest_labels(path, rows, needed=not predict)
    groups = {name: at for at, name in enumerate(sorted({row.group for row in rows if row.group}))}
    held = decode(path, rows, form, skip_broken=skip_broken, cache=cache)
    parts: dict[str, Part] = {}
    start = 0
    for split in SPLITS:
        taken = [at for at in held.rows.tolist() if rows[at].split == split]
        some, stop = [rows[at] for at in taken], start + len(taken)
        if some:
            parts[split] = Part(
                held.image[start:stop],
                held.audio[start:stop],
                labels.of(some),
                (*held.names, str(path)),
                Origin(
                    np.array([row.number for row in some], dtype=np.int64),
                    tuple(row.image for row in some),
                    tuple(row.audio for row in some),
                    held.broken,
                ),
                tuple(row.line for row in some),
                np.array([groups.get(row.group, -1) for row in some], dtype=np.int64) if groups else None,
            )
        start = stop
    return Found("manifest", parts, held.rate, held.broken)


def must_have(source: str, split: str, splits: Sequence[str]) -> None:
    """Raise `DataError` where a split that is asked for is not there."""
    if split not in splits:
        raise DataError(f"{source}: there is no {split} split; there is: {', '.join(splits)}")


@dataclass(frozen=True)
class _ManifestLabels:
    """The labels of those rows of a manifest that have one, by the row's number."""

    labels: Labels
    place: dict[int, int]

    def of(self, rows: Sequence[Row]) -> Labels | None:
        """Those of some rows; None where one of them has none."""
        if any(row.number not in self.place for row in rows):
            return None
        return self.labels.only([self.place[row.number] for row in rows])


def _manifest_labels(path: Path, rows: Sequence[Row], needed: bool) -> _ManifestLabels:
    """The labels, read together: a word among them makes words of all. Of the test split, all may be kept back."""
    labelled = [row for row in rows if row.label]
    kept_back = not any(row.split == "test" for row in labelled)
    for row in rows if needed else ():
        if not row.label and not (row.split == "test" and kept_back):
            raise DataError(f"{path}: line {row.line} has no label")
    labels = label_words([row.label for row in labelled], path, lambda at: f"line {labelled[at].line}")
    return _ManifestLabels(labels, {row.number: at for at, row in enumerate(labelled)})


def _demo() -> dict[str, Part]:
    with np.load(DEMO) as held:
        audio = held["audio"]
        return {
            split: Part(
                held[f"image_{split}"],
                audio[held[f"audio_row_{split}"]],
                label_numbers(held[f"label_{split}"]),
                ("demo images", "demo audio", "demo labels"),
            )
            for split in SPLITS
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
