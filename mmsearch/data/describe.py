"""What a data set holds, in words: for a first look, and to see what would leak or mislead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from mmsearch.data.dataset import Dataset, Index, Split

FEW_ROWS = 5  # of a class: with fewer, a split leaves some side without it
LISTED = 12  # classes, each with its number of rows
NAMED = 3  # of what is too much to be listed
QUIET, LOUD = 1e-3, 2.0  # peaks of waveforms between which full scale is likely to be 1
BRIGHT = 255  # the greatest pixel that is common
FAR = 1e6  # from 0, for a feature


def describe(dataset: Dataset) -> str:
    """Layout, shapes, classes and balance, ranges, repeats within train and between splits, and what looks wrong.

    One fact a line; those that begin with `problem` are for the user to mend, or to know.
    """
    shapes, (low, high) = dataset.shapes, dataset.audio_range
    dtype, samples = dataset.train.audio.dtype, shapes.audio[0]
    if dataset.rate is None:
        audio = f"{'x'.join(map(str, shapes.audio))} (frames x coefficients), {dtype}, values {low:.4g} to {high:.4g}"
    else:
        audio = f"{samples} samples ({samples / dataset.rate:.4g} s at {dataset.rate} Hz), {dtype}, {low:g} to {high:g}"
    lines = [
        f"source    {dataset.source}",
        f"layout    {dataset.layout}",
        f"image     {'x'.join(map(str, shapes.image))} (channels x height x width), {dataset.train.image.dtype}, "
        f"values {dataset.pixels.low:.4g} to {dataset.pixels.high:.4g}",
        f"audio     {audio}",
        *([f"classes   {', '.join(dataset.classes)}"] if len(dataset.classes) > LISTED else []),
        f"train     {len(dataset.train)} rows: {_balance(dataset.train, dataset.classes)}",
    ]
    if dataset.test is None:
        lines.append("test      none; a study takes one off (test = 0.2 in [data])")
    elif dataset.test.label is None:
        lines.append(f"test      {len(dataset.test)} rows without labels")
    else:
        lines.append(f"test      {len(dataset.test)} rows: {_balance(dataset.test, dataset.classes)}")
    image, sound = dataset.digests["train"]
    lines.append(
        f"repeats   {len(np.unique(image))} different images and {len(np.unique(sound))} different recordings "
        f"in train; {len(np.unique(dataset.groups))} groups that a split keeps whole"
    )
    if dataset.group:
        given = np.concatenate(list(dataset.group.values()))
        rows = int((given >= 0).sum())
        lines.append(f"groups    {len(np.unique(given[given >= 0]))} of its own, which hold {rows} rows")
    if "test" in dataset.digests:
        test_image, test_audio = dataset.digests["test"]
        lines.append(
            f"leaks     {_shared(test_image, image).sum()} test rows have an image of train, "
            f"{_shared(test_audio, sound).sum()} a recording of train"
        )
    if dataset.skipped:
        lines.append(f"skipped   {tell_skipped(dataset.skipped)}")
    lines += [f"problem   {problem}" for problem in problems(dataset)]
    return "\n".join(lines) + "\n"


def problems(dataset: Dataset) -> Iterator[str]:
    """What looks wrong: leaks from test to train, classes with few rows, odd ranges; a sentence each."""
    if "test" in dataset.digests:
        leaked = np.zeros(len(dataset.digests["test"][0]), dtype=np.bool_)
        for held, known in zip(dataset.digests["test"], dataset.digests["train"], strict=True):
            leaked |= _shared(held, known)
        if "train" in dataset.group and "test" in dataset.group:
            mine = dataset.group["test"]
            leaked |= (mine >= 0) & _shared(mine, dataset.group["train"])
        if leaked.any():
            yield (
                f"{leaked.sum()} of {len(leaked)} test rows have an image, a recording or a group that train has too: "
                "the test score will be too good"
            )
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    few = [f"{dataset.classes[at]} ({counts[at]})" for at in np.flatnonzero(counts < FEW_ROWS)]
    if few:
        classes = "class has" if len(few) == 1 else "classes have"
        yield f"{len(few)} {classes} fewer than {FEW_ROWS} training rows: {_some(few)}"
    yield from _ranges(dataset)


def _ranges(dataset: Dataset) -> Iterator[str]:
    pixels, (low, high) = dataset.pixels, dataset.audio_range
    if pixels.low == pixels.high:
        yield f"all pixels are {pixels.low:g}"
    elif pixels.low < 0:
        yield f"pixels go down to {pixels.low:.4g}: they are taken as they are, and not brought to 0-1"
    elif pixels.high > BRIGHT:
        yield f"pixels go up to {pixels.high:.4g}: this is taken for white"
    peak = max(-low, high)
    if low == high:
        yield f"all values of the audio are {low:g}"
    elif dataset.rate is None and peak > FAR:
        yield f"the audio's values go up to {peak:.4g}, which is odd for features"
    elif dataset.rate is not None and dataset.train.audio.dtype.kind != "u":
        scaled = peak * dataset.train.audio_scale
        if not QUIET <= scaled <= LOUD:
            yield f"the waveforms' peak is {scaled:.4g} of full scale, which is odd"


def tell_skipped(skipped: Sequence[str]) -> str:
    """How many rows of a manifest were left out, and the first of them."""
    return f"{len(skipped)} {'row' if len(skipped) == 1 else 'rows'} left out: {_some(skipped, glue='; ')}"


def _some(names: Sequence[str], limit: int = NAMED, glue: str = ", ") -> str:
    more = [f"and {len(names) - limit} more"] if len(names) > limit else []
    return glue.join([*names[:limit], *more])


def _balance(split: Split, classes: tuple[str, ...]) -> str:
    counts = np.bincount(split.labels, minlength=len(classes))
    if len(classes) > LISTED:
        return f"{len(classes)} classes of {counts.min()} to {counts.max()} rows"
    return ", ".join(f"{name}: {count}" for name, count in zip(classes, counts.tolist(), strict=True))


def _shared(rows: Index, known: Index) -> npt.NDArray[np.bool_]:
    """(n,) whether each row's digest is among the known ones."""
    return np.isin(rows, known)
