"""What a data set is to the rest of the program: memory-mapped arrays, and which of their rows are meant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Index = npt.NDArray[np.int64]

CHUNK_ROWS = 4096
SPLITTING = 2  # the version of how rows are split: a study that was begun with another must not go on with this one


@dataclass(frozen=True)
class Origin:
    """Where the rows of a split's arrays come from, in the words of a manifest.

    row: (N,) their data rows in the file, counted from 0. image, audio: their files, as the manifest writes them.
    skipped: what was left out, a sentence a row.
    """

    row: Index
    image: tuple[str, ...]
    audio: tuple[str, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """Some rows of one pair of arrays.

    image: (N, channels, height, width), any numeric type. audio: (N, frames, coefficients), or raw waveforms
    (N, samples, 1). label: (N,) class indices, or None where nobody knows them. rows: (n,) the rows that belong to this
    split; the arrays hold others too, and are never copied. `image_scale` times a pixel lies between 0 and 1;
    `audio_scale` times a sample of a waveform between -1 and 1. `audio_key` tells the content of `audio` from any
    other; None where nobody asked. `origin`: of a manifest's rows.
    """

    image: Array
    audio: Array
    label: Index | None
    rows: Index
    image_scale: float
    audio_scale: float = 1.0
    audio_key: str | None = None
    origin: Origin | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Index:
        """(n,) class indices of this split's rows; raises `ValueError` where they are not known."""
        if self.label is None:
            raise ValueError("these rows have no labels")
        return self.label[self.rows]

    @property
    def ids(self) -> Index:
        """(n,) what the user calls these rows: their data rows in the manifest, or their rows in the arrays."""
        return self.rows if self.origin is None else self.origin.row[self.rows]

    @property
    def files(self) -> list[tuple[str, str]] | None:
        """(n,) image file and audio file of each row, as the manifest writes them; None where there is none."""
        if self.origin is None:
            return None
        return [(self.origin.image[row], self.origin.audio[row]) for row in self.rows.tolist()]

    def only(self, rows: Index) -> Split:
        """The same arrays with other rows."""
        return replace(self, rows=np.sort(rows))

    def chunks(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        """Scaled images and audio, a few thousand rows at a time."""
        for start in range(0, len(self.rows), CHUNK_ROWS):
            rows = self.rows[start : start + CHUNK_ROWS]
            yield (
                self.image[rows].astype(np.float32) * np.float32(self.image_scale),
                self.audio[rows].astype(np.float32),
            )


@dataclass(frozen=True)
class Statistics:
    """Means and deviations of training rows: of pixels by channel, of audio by coefficient; and the mean row of each.

    image_mean, image_std: (channels,). audio_mean, audio_std: (coefficients,). mean_image: (channels, height, width).
    mean_audio: (frames, coefficients). `audio_peak` is the greatest absolute value of the audio.
    """

    image_mean: npt.NDArray[np.float32]
    image_std: npt.NDArray[np.float32]
    audio_mean: npt.NDArray[np.float32]
    audio_std: npt.NDArray[np.float32]
    mean_image: npt.NDArray[np.float32]
    mean_audio: npt.NDArray[np.float32]
    audio_peak: float


def statistics(split: Split) -> Statistics:
    """The statistics of a split's rows, in one pass and double precision."""
    sums = [np.zeros(split.image.shape[1:]), np.zeros(split.audio.shape[1:])]
    squares = [np.zeros(split.image.shape[1:]), np.zeros(split.audio.shape[1:])]
    peak = 0.0
    for chunk in split.chunks():
        peak = max(peak, float(np.abs(chunk[1]).max()))
        for i, values in enumerate(chunk):
            sums[i] += values.sum(0, dtype=np.float64)
            squares[i] += np.einsum("n...,n...->...", values, values, dtype=np.float64)
    count = len(split)
    image_axes, audio_axes = (1, 2), (0,)

    def moments(i: int, axes: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        mean = sums[i].mean(axes) / count
        variance = np.maximum(squares[i].mean(axes) / count - mean**2, 0)
        std = np.sqrt(variance)
        return mean.astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32)

    return Statistics(
        *moments(0, image_axes),
        *moments(1, audio_axes),
        mean_image=(sums[0] / count).astype(np.float32),
        mean_audio=(sums[1] / count).astype(np.float32),
        audio_peak=peak,
    )


@dataclass(frozen=True)
class Shapes:
    """What a model has to fit: image (channels, height, width), audio (frames, coefficients), number of classes.

    Of a data set with waveforms, `audio` is (samples, 1) until features are computed.
    """

    image: tuple[int, int, int]
    audio: tuple[int, int]
    classes: int


@dataclass(frozen=True)
class Pixels:
    """The range of a data set's raw pixels, and the scale that brings them to 0-1."""

    low: float
    high: float
    scale: float


@dataclass(frozen=True)
class Trained:
    """What a model was trained on, as far as new rows have to match it.

    `shapes` are those of raw rows; `rate` is the waveforms' number of samples a second, None where the audio rows are
    features already. `audio_scale` times a sample lies between -1 and 1.
    """

    shapes: Shapes
    classes: tuple[str, ...]
    pixels: Pixels
    rate: int | None = None
    audio_scale: float = 1.0


@dataclass(frozen=True)
class Dataset:
    """One data set: its training rows, its test rows where it has any, and what is known of both.

    `digests` holds 8 bytes a row of the images and the audio of each split: rows with the same digest are identical.
    `audio_range` is the smallest and greatest raw value of the audio. `competition`: the test labels are kept back.
    `rate`: samples a second of the waveforms that the audio rows are; None: they are features already. `group`: (N,)
    for each split that has any, what group the user put a row of its arrays in, or -1. `skipped`: a sentence on each
    row of a manifest that was left out.
    `held_back` are training rows that no training sees, where validation is `three_way` and there is a test split.
    """

    source: str
    layout: str
    train: Split
    test: Split | None
    classes: tuple[str, ...]
    digests: dict[str, tuple[Index, Index]]
    pixels: Pixels
    audio_range: tuple[float, float]
    competition: bool
    held_back: Split | None = None
    rate: int | None = None
    group: Mapping[str, Index] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def shapes(self) -> Shapes:
        """Shapes of one image, one raw audio row and the logits."""
        channels, height, width = self.train.image.shape[1:]
        frames, coefficients = self.train.audio.shape[1:]
        return Shapes((channels, height, width), (frames, coefficients), len(self.classes))

    @property
    def trained(self) -> Trained:
        """What a model that is trained on this data set needs to know of new rows."""
        return Trained(self.shapes, self.classes, self.pixels, self.rate, self.train.audio_scale)

    @cached_property
    def groups(self) -> Index:
        """(N,) for each row of the training arrays the group that may not be torn apart.

        Rows that share an identical image, an identical audio row or the user's group, directly or over others, are
        one group.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        image, audio = (np.unique(digest, return_inverse=True)[1] for digest in self.digests["train"])
        images = int(image.max()) + 1
        given = self.group.get("train", np.full(len(image), -1))
        grouped = given >= 0
        sounds = images + int(audio.max()) + 1
        one, other = np.concatenate([image, image[grouped]]), np.concatenate([audio + images, given[grouped] + sounds])
        size = sounds + int(given.max()) + 1
        graph = coo_array((np.ones(len(one), dtype=np.int8), (one, other)), shape=(size, size))
        return np.asarray(connected_components(graph, directed=False)[1][image], dtype=np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all that the data set holds, labels included; the same on every machine."""
        digest = hashlib.blake2b(f"{SPLITTING} {self.shapes!r}".encode(), digest_size=16)
        if self.rate is not None:
            digest.update(f"{self.rate} Hz".encode())
        for name in sorted(self.digests):
            for part in self.digests[name]:
                digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
        for name in sorted(self.group):
            digest.update(np.ascontiguousarray(self.group[name], dtype="<i8").tobytes())
        for split in (self.train, self.test):
            if split is not None and split.label is not None:
                digest.update(np.ascontiguousarray(split.label, dtype="<i8").tobytes())
        digest.update("\n".join(self.classes).encode())
        return digest.hexdigest()
