"""What a data set holds, in words: for a first look, and to see what would leak."""

from __future__ import annotations

import numpy as np

from mmsearch.data.dataset import Dataset, Index, Split


def describe(dataset: Dataset) -> str:
    """Layout, shapes, classes and balance, ranges, and repeats within train and between splits; one fact a line."""
    shapes = dataset.shapes
    lines = [
        f"source    {dataset.source}",
        f"layout    {dataset.layout}",
        f"image     {'x'.join(map(str, shapes.image))} (channels x height x width), {dataset.train.image.dtype}, "
        f"values {dataset.pixels.low:.4g} to {dataset.pixels.high:.4g}",
        f"audio     {'x'.join(map(str, shapes.audio))} (frames x coefficients), {dataset.train.audio.dtype}, "
        f"values {dataset.audio_range[0]:.4g} to {dataset.audio_range[1]:.4g}",
        f"train     {len(dataset.train)} rows: {_balance(dataset.train, dataset.classes)}",
    ]
    if dataset.test is None:
        lines.append("test      none; a study takes one off (test = 0.2 in [data])")
    elif dataset.test.label is None:
        lines.append(f"test      {len(dataset.test)} rows without labels")
    else:
        lines.append(f"test      {len(dataset.test)} rows: {_balance(dataset.test, dataset.classes)}")
    image, audio = dataset.digests["train"]
    lines.append(
        f"repeats   {len(np.unique(image))} different images and {len(np.unique(audio))} different recordings "
        f"in train; {len(np.unique(dataset.groups))} groups that a split keeps whole"
    )
    if dataset.test is not None:
        test_image, test_audio = dataset.digests["test"]
        lines.append(
            f"leaks     {_shared(test_image, image)} test rows have an image of train, "
            f"{_shared(test_audio, audio)} a recording of train"
        )
    return "\n".join(lines) + "\n"


def _balance(split: Split, classes: tuple[str, ...]) -> str:
    counts = np.bincount(split.labels, minlength=len(classes))
    if len(classes) > 12:
        return f"{len(classes)} classes of {counts.min()} to {counts.max()} rows"
    return ", ".join(f"{name}: {count}" for name, count in zip(classes, counts.tolist(), strict=True))


def _shared(rows: Index, known: Index) -> int:
    return int(np.isin(rows, known).sum())
