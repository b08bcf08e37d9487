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

from mmsearch.data.dataset import Index, Split, Trained
from mmsearch.errors import BundleError
from mmsearch.models.frontend import frame_values
from mmsearch.paths import BundlePaths
from mmsearch.results.bundle import Bundle, Description
from mmsearch.training.batches import EVALUATION_ROWS

DESCRIPTION = "mmsearch.toml"  # within an exported file: the content of config.toml
INSTALL_ONNX = "pip install 'mmsearch[onnx]'"
CHUNK_VALUES = 1 << 25  # of audio, as the model takes it, at a time: 128 MB
FRAME_VALUES = 1 << 19  # of the frames that a program cuts waveforms into, at a time: 4 MB, which stays near the caches

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

    A .pt2 file is as much of a program as a script: loading it may run whatever its author wrote into it. Its parts may
    be pickles, which `torch.export.load` reads with `weights_only=False` where the file says so, or where `True` fails;
    nor are its expressions safe. Load only those that you trust. Weights (.safetensors) and ONNX files hold neither.
    Raises `BundleError` where there is no model, or a damaged one.
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
    raise BundleError(
        f"{path}: not a model; allowed are a folder that retrain-best made, its model.safetensors, "
        "and files that end in .pt2 or .onnx"
    )


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
        found = [_no_rows(self.classes)]
        for rows in _blocks(split, max(1, CHUNK_VALUES // values)):
            # arrays of their own: features are computed into an array as long as the split's
            block = replace(split, image=split.image[rows], audio=split.audio[rows], label=None, origin=None)
            found.append(self.bundle.probabilities(replace(block, rows=np.arange(len(rows)), audio_key=None)))
        return np.concatenate(found)


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
        blocks = _blocks(split, rows)
        found = (self.run(*raw_rows(replace(split, rows=block), self.trained)) for block in blocks)
        return np.concatenate([_no_rows(self.classes), *found])


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


def _no_rows(classes: tuple[str, ...]) -> Floats:
    """(0, classes) what the blocks of a split, which may be empty, are put behind."""
    return np.zeros((0, len(classes)), np.float32)


def _blocks(split: Split, size: int) -> Iterator[Index]:
    """The numbers of a split's rows in its arrays, `size` of them at a time."""
    for start in range(0, len(split), size):
        yield split.rows[start : start + size]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what torch's exporters and loaders say of their own insides; errors still are errors.

    What they made is compared with the model, row by row, so that nothing is lost.
    """
    names = ("torch.export", "torch._export", "torch.onnx", "onnxscript")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _load_program(path: Path) -> Exported:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            text = next((archive.read(name) for name in archive.namelist() if Path(name).name == DESCRIPTION), None)
    except (OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: not a program that retrain-best made, or damaged: {error}") from None
    if damaged is not None:
        raise BundleError(f"{path}: damaged: the content of {damaged} is not what was written")
    description = Description.read(_described(path, text), path)
    try:
        with quiet():
            program = torch.export.load(path).module()
    except Exception as error:  # torch's loader raises whatever it stumbles over
        raise BundleError(f"{path}: torch {torch.__version__} cannot load it: {_first_line(error)}") from None

    def run(image: Floats, audio: Floats) -> Floats:
        with torch.inference_mode():
            found: Floats = program(torch.from_numpy(image), torch.from_numpy(audio)).numpy()
        return found

    return Exported(description, run)


def _load_onnx(path: Path) -> Exported:
    try:
        import onnxruntime
    except ImportError:
        raise BundleError(f"{path}: onnxruntime, which runs it, is not installed: {INSTALL_ONNX}") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal: whatever else there is to say is in the exception
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no other base
        said = _first_line(error).rpartition(" failed:")[2]
        raise BundleError(f"{path}: not an ONNX model, or damaged: {said}") from None
    text = session.get_modelmeta().custom_metadata_map.get(DESCRIPTION)
    description = Description.read(_described(path, text), path)

    def run(image: Floats, audio: Floats) -> Floats:
        (found,) = session.run(["probabilities"], {"image": image, "audio": audio})
        return np.asarray(found, dtype=np.float32)

    return Exported(description, run)


def _described(path: Path, text: str | bytes | None) -> str:
    """What a file says of its model; raises `BundleError` where it says nothing."""
    if text is None:
        raise BundleError(f"{path}: not made by retrain-best, or damaged: it does not say what it was trained on")
    return text if isinstance(text, str) else text.decode("utf-8", "replace")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
