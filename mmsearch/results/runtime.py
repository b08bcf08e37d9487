"""A retrained model in each of its forms, loaded as one thing that predicts. Needs no study and no Optuna."""

from __future__ import annotations

import logging
import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from mmsearch.data.dataset import Split, Trained
from mmsearch.data.features import feature_shapes
from mmsearch.errors import BundleError
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.frontend import frame_values
from mmsearch.paths import BundlePaths
from mmsearch.results.bundle import Bundle, Description
from mmsearch.training.batches import EVALUATION_ROWS

DESCRIPTION = "mmsearch.toml"  # within an exported file: the content of config.toml
INSTALL_ONNX = "pip install 'mmsearch[onnx]'"
CHUNK_VALUES = 1 << 25  # of audio, as the model takes it, at a time: 128 MB
FRAME_VALUES = 1 << 22  # of the frames that an exported program cuts waveforms into, at a time: 32 MB, several times

Floats = npt.NDArray[np.float32]


class Predictor(Protocol):
    """What predicts rows of any data set, brought to what `trained` says by `mmsearch.data.sources.load_rows`."""

    @property
    def trained(self) -> Trained:
        """What it was trained on."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""

    @property
    def abstain_below(self) -> float | None:
        """Of a row whose greatest probability is smaller, the model says nothing; None: it always does."""

    def probabilities(self, split: Split) -> Floats:
        """(n, classes) probabilities of a split's raw rows; some rows at a time, so that memory is bounded."""


def load_predictor(path: str | Path) -> Predictor:
    """Read what `retrain-best` made: its folder, or model.safetensors in it, or a copy of its model.pt2 or model.onnx.

    A .pt2 file is as much of a program as a script: loading it may run whatever its author wrote into it, in pickles
    and in expressions, and torch has no way of loading one that does not. Load only those that you trust. Weights
    (.safetensors) and ONNX files hold none. Raises `BundleError` where there is no model, or a damaged one.
    """
    path = Path(path)
    if path.is_dir():
        return InMemory(Bundle.load(path))
    if not path.exists():
        raise BundleError(f"{path}: no such file or folder")
    if path.suffix == ".pt2":
        return _load_program(path)
    if path.suffix == ".onnx":
        return _load_onnx(path)
    if path.name == BundlePaths(path.parent).weights.name:
        return InMemory(Bundle.load(path.parent))
    raise BundleError(f"{path}: not a model; allowed are a folder that retrain-best made, and model.* in it")


@dataclass(frozen=True)
class InMemory:
    """A bundle, whose features are computed for some rows at a time."""

    bundle: Bundle

    @property
    def trained(self) -> Trained:
        """As `Predictor`."""
        return self.bundle.trained

    @property
    def classes(self) -> tuple[str, ...]:
        """As `Predictor`."""
        return self.bundle.classes

    @property
    def abstain_below(self) -> float | None:
        """As `Predictor`."""
        return self.bundle.abstain_below

    def probabilities(self, split: Split) -> Floats:
        """As `Predictor`."""
        shapes = (member.model.shapes.audio for member in self.bundle.members)
        values = max(map(math.prod, (self.trained.shapes.audio, *shapes)))
        chunks = _chunks(split, max(1, CHUNK_VALUES // values))
        return np.concatenate([self.bundle.probabilities(chunk) for chunk in chunks])


@dataclass(frozen=True)
class Exported:
    """An exported program: `run` takes raw images and audio, as in training, and returns probabilities."""

    said: Description
    run: Callable[[Floats, Floats], Floats]

    @property
    def trained(self) -> Trained:
        """As `Predictor`."""
        return self.said.trained

    @property
    def classes(self) -> tuple[str, ...]:
        """As `Predictor`."""
        return self.trained.classes

    @property
    def abstain_below(self) -> float | None:
        """As `Predictor`."""
        return self.said.abstain_below

    def probabilities(self, split: Split) -> Floats:
        """As `Predictor`."""
        values = max(frame_values(self.trained, hyperparameters) for hyperparameters in self.said.members)
        rows = max(1, min(EVALUATION_ROWS, FRAME_VALUES // max(1, values)))
        return np.concatenate([self.run(*raw_rows(chunk, self.trained)) for chunk in _chunks(split, rows)])


def raw_rows(split: Split, trained: Trained) -> tuple[Floats, Floats]:
    """The images and audio of a split's rows, in the range that the training rows had: what exported programs take.

    Of unsigned samples the middle, which is silence, is taken off.
    """
    image, raw = split.image[split.rows].astype(np.float32), split.audio[split.rows]
    image *= np.float32(split.image_scale / trained.pixels.scale)
    audio = raw.astype(np.float32)
    if trained.rate is not None:
        if raw.dtype.kind == "u":
            audio -= np.float32(1 << (8 * raw.itemsize - 1))
        audio *= np.float32(split.audio_scale / trained.audio_scale)
    return image, audio


def _chunks(split: Split, size: int) -> Iterator[Split]:
    """The rows of a split, `size` at a time, each time in arrays of their own."""
    for start in range(0, len(split), size):
        rows = split.rows[start : start + size]
        yield replace(
            split,
            image=split.image[rows],
            audio=split.audio[rows],
            label=None,
            rows=np.arange(len(rows)),
            audio_key=None,
            origin=None,
        )
