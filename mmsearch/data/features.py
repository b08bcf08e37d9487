"""Features of waveforms by name, and a split with them in its audio's place. None of them is scaled: the model does.

Each function takes waveforms (n, samples) of full scale 1 and their rate, and returns (n, frames, coefficients).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.fft import dct

from mmsearch.data.cache import KEPT_BYTES, digest_of, keep_latest, made_once, read_map, write_map
from mmsearch.data.dataset import Array, Index, Shapes, Split
from mmsearch.data.spectra import (
    CLASSES,
    FLOOR,
    Floats,
    Frames,
    differences,
    floored_log,
    mel_bank,
    pitch_bank,
)
from mmsearch.hyperparameters import Hyperparameters

VERSION = 2  # of what is computed; another one computes what the cache holds again
CHUNK_VALUES = 1 << 22  # samples that are read at a time


def stft(waves: Floats, rate: int, *, window_ms: int, hop_ms: int, log: bool) -> Floats:
    """The short-time Fourier transform's magnitude at each frequency; with `log` its natural logarithm.

    Allen, "Short term spectral analysis, synthesis, and modification by discrete Fourier transform" (1977).
    """
    frames = Frames.of(waves.shape[1], rate, window_ms, hop_ms)

    def magnitude(block: Floats) -> Floats:
        power = frames.power(block)
        return floored_log(power) / np.float32(2) if log else np.sqrt(power)

    return frames.each(waves, frames.bins, magnitude)


def log_mel(waves: Floats, rate: int, *, window_ms: int, hop_ms: int, bands: int) -> Floats:
    """The natural logarithm of the power in each mel band (`mel_bank`)."""
    frames = Frames.of(waves.shape[1], rate, window_ms, hop_ms)
    bank = mel_bank(rate, frames.fft, bands)
    return frames.each(waves, bands, lambda block: floored_log(frames.power(block) @ bank))


def mfcc(
    waves: Floats, rate: int, *, window_ms: int, hop_ms: int, bands: int, coefficients: int, deltas: int, energy: bool
) -> Floats:
    """Mel-frequency cepstral coefficients, followed by `deltas` orders of their differences in time.

    Davis and Mermelstein, "Comparison of parametric representations for monosyllabic word recognition in continuously
    spoken sentences" (1980): the orthonormal cosine transform (DCT-II) of the log mel powers, of which the first
    `coefficients` are kept, at most as many as bands. With `energy`, the first of them is the natural logarithm of the
    frame's energy instead, the sum of its squared samples.
    """
    frames = Frames.of(waves.shape[1], rate, window_ms, hop_ms)
    cepstra = dct(log_mel(waves, rate, window_ms=window_ms, hop_ms=hop_ms, bands=bands), norm="ortho")
    found: Floats = cepstra[..., : min(coefficients, bands)]
    if energy:
        found[..., :1] = frames.each(
            waves, 1, lambda block: floored_log(np.einsum("bft,bft->bf", block, block)[..., None])
        )
    orders = [found]
    for _ in range(deltas):
        orders.append(differences(orders[-1]))
    return np.concatenate(orders, axis=2)


def chroma(waves: Floats, rate: int, *, window_ms: int, hop_ms: int) -> Floats:
    """The power in each of the 12 pitch classes (`pitch_bank`), as a share of the frame's greatest; silence is 0."""
    frames = Frames.of(waves.shape[1], rate, window_ms, hop_ms)
    bank = pitch_bank(rate, frames.fft)

    def shares(block: Floats) -> Floats:
        classes = frames.power(block) @ bank
        found: Floats = classes / np.maximum(classes.max(2, keepdims=True), np.float32(FLOOR))
        return found

    return frames.each(waves, CLASSES, shares)


FEATURES: dict[str, Callable[..., Floats]] = {"stft": stft, "log_mel": log_mel, "mfcc": mfcc, "chroma": chroma}


def feature_shapes(shapes: Shapes, rate: int | None, hyperparameters: Hyperparameters) -> Shapes:
    """The shapes with that of the features for the waveforms'; as they are where `rate` is None."""
    if rate is None:
        return shapes
    _, frames, coefficients = _compute(np.zeros((0, shapes.audio[0]), np.float32), rate, hyperparameters).shape
    return replace(shapes, audio=(frames, coefficients))


def with_features(split: Split, rate: int | None, hyperparameters: Hyperparameters, cache: Path | None) -> Split:
    """The same split with features for its waveforms; as it is where `rate` is None.

    audio: (N, frames, coefficients) float32. With a `cache` folder they are computed once for each content and each
    setting, for all rows of the arrays, and memory-mapped by all processes that want them; without one they are
    computed for the split's rows alone. Those used longest ago make room in the folder. Raises `ValueError` where the
    rows are features already.
    """
    if rate is None:
        return split
    if split.audio.shape[2] != 1:
        raise ValueError(f"rows of {split.audio.shape[1:]} are no waveforms")
    samples = split.audio.shape[1]
    shape = (len(split.audio), *_compute(np.zeros((0, samples), np.float32), rate, hyperparameters).shape[1:])

    def fill(array: Array, rows: Index) -> None:
        step = max(1, CHUNK_VALUES // samples)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            array[some] = _compute(_waves(split, some), rate, hyperparameters)

    if cache is None or split.audio_key is None:
        found: Array = np.zeros(shape, np.float32)
        fill(found, split.rows)
    else:
        name = hyperparameters["features.name"]
        settings = sorted(hyperparameters.under(f"features.{name}").items())
        path = cache / f"features-{digest_of(VERSION, split.audio_key, rate, name, settings)}.npy"

        def make() -> None:
            write_map(path, shape, np.float32, lambda array: fill(array, np.arange(len(array))))
            keep_latest(path.parent, "features-*.npy", KEPT_BYTES, (path,))

        found = made_once(path, lambda: read_map(path, shape, np.float32), make)
    return replace(split, audio=found, audio_scale=1.0, audio_key=None)


def _compute(waves: Floats, rate: int, hyperparameters: Hyperparameters) -> Floats:
    name = hyperparameters["features.name"]
    return FEATURES[name](waves, rate, **hyperparameters.under(f"features.{name}"))


def _waves(split: Split, rows: Index) -> Floats:
    """(n, samples) of full scale 1; the middle of unsigned samples is silence."""
    raw = split.audio[rows, :, 0]
    middle = 1 << (8 * raw.itemsize - 1) if raw.dtype.kind == "u" else 0
    return (raw.astype(np.float32) - np.float32(middle)) * np.float32(split.audio_scale)
