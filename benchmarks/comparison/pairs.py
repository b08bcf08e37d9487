#!/usr/bin/env python3
"""Write noisy pairs of handwritten and spoken digits, so that configurations differ in how well they do on them.

    pairs.py OUT [--train 4000] [--test 5000] [--seed 0] [--source demo] [--splits 0 1 2]

The images and recordings are those of a data set that mmsearch reads, by default of the package's demo data. Each
image of a split gets a recording of its class from the same split; images and recordings repeat where more pairs are
asked for than there are, but none is in both splits. Then each pair gets noise of its own: of standard deviation 0.5
on pixels from 0 to 1, and of 1.0 on the coefficients, which are standardised. Files are those of the Zenodo layout.
`validation_rows_N.npy` holds which rows mmsearch validates on with seed N.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmsearch.data.dataset import Array, Split
from mmsearch.data.sources import read_dataset
from mmsearch.data.splits import holdout

IMAGE_NOISE = 0.5  # standard deviation, of pixels from 0 to 1
AUDIO_NOISE = 1.0  # standard deviation, of standardised coefficients
FILES = [f"{kind}_{split}" for split in ("train", "test") for kind in ("data_wr", "data_sp", "labels")]
FRACTION = 0.2  # of the training rows validate

Rows = npt.NDArray[np.int64]


def pair(labels: Rows, count: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """(count,) rows of images and of recordings, each with `labels`, that make pairs of one class.

    Each row is taken once before any is taken twice, and a class as often as it is among the labels.
    """
    rounds = [rng.permutation(len(labels)) for _ in range(-(-count // len(labels)))]
    image = np.concatenate(rounds)[:count]
    audio = np.empty(count, dtype=np.int64)
    for label in np.unique(labels):
        where, rows = np.flatnonzero(labels[image] == label), np.flatnonzero(labels == label)
        repeated = [rng.permutation(rows) for _ in range(-(-len(where) // len(rows)))]
        audio[where] = np.concatenate(repeated)[: len(where)] if repeated else []
    return image, audio


def noisy(split: Split, count: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Images (count, 784) and audio (count, 507) with noise, and labels (count,)."""
    image_rows, audio_rows = (split.rows[rows] for rows in pair(split.labels, count, rng))
    assert split.label is not None
    image: npt.NDArray[np.float32] = split.image[image_rows].reshape(count, -1).astype(np.float32) * np.float32(
        split.image_scale
    )
    audio = split.audio[audio_rows].reshape(count, -1).astype(np.float32)
    image += rng.normal(0, IMAGE_NOISE, image.shape).astype(np.float32)
    audio += rng.normal(0, AUDIO_NOISE, audio.shape).astype(np.float32)
    return image, audio, split.label[image_rows]


def write_pairs(out: Path, *, train: int, test: int, seed: int = 0, source: str = "demo", splits: list[int]) -> None:
    """Write the folder; what is there already is written again."""
    dataset, rng = read_dataset(source), np.random.default_rng(seed)
    if dataset.test is None:
        raise SystemExit(f"{source}: there is no test split")
    out.mkdir(parents=True, exist_ok=True)
    for name, split, count in (("train", dataset.train, train), ("test", dataset.test, test)):
        for kind, rows in zip(("data_wr", "data_sp", "labels"), noisy(split, count, rng), strict=True):
            np.save(out / f"{kind}_{name}.npy", rows)
    written = read_dataset(str(out))
    for number in splits:
        np.save(out / f"validation_rows_{number}.npy", holdout(written, FRACTION, number)[1].rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", default="demo")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    write_pairs(args.out, train=args.train, test=args.test, seed=args.seed, source=args.source, splits=args.splits)


if __name__ == "__main__":
    main()
