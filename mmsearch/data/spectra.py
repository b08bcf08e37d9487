"""Frames of waveforms and their spectra; mel and pitch-class filters; differences in time. Full scale is 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

FLOOR = 1e-10  # power below which all is silence: its logarithm stays finite
BLOCK_VALUES = 1 << 16  # of frames at a time, so that their spectra stay near the caches
LEAST_WEIGHT = 1e-3  # of a mel band's greatest weight; with less, the band would hold nothing but the floor
CLASSES = 12  # of pitch, from C to B


@dataclass(frozen=True)
class Frames:
    """How waveforms are cut: `count` frames of `window` samples, one every `hop`, transformed at length `fft`.

    The first frame begins with the first sample, and a rest that fills no frame is left out; waveforms shorter than
    one window are followed by silence. The window is Hann's, periodic.
    """

    window: int
    hop: int
    fft: int
    count: int

    @staticmethod
    def of(samples: int, rate: int, window_ms: float, hop_ms: float) -> Frames:
        """The frames of waveforms of so many samples; `fft` is the next power of two."""
        window, hop = max(2, round(rate * window_ms / 1000)), max(1, round(rate * hop_ms / 1000))
        return Frames(window, hop, 1 << (window - 1).bit_length(), 1 + max(0, samples - window) // hop)

    @property
    def bins(self) -> int:
        """How many frequencies a spectrum has, from 0 to half the rate."""
        return self.fft // 2 + 1

    def each(self, waves: Floats, width: int, do: Callable[[Floats], Floats]) -> Floats:
        """(n, count, width): what `do` makes of frames (b, f, window), some of them at a time, as (b, f, width)."""
        if waves.shape[1] < self.window:
            waves = np.pad(waves, ((0, 0), (0, self.window - waves.shape[1])))
        framed = np.lib.stride_tricks.sliding_window_view(waves, self.window, axis=1)[:, :: self.hop]
        found = np.empty((len(waves), self.count, width), dtype=np.float32)
        rows, frames = max(1, BLOCK_VALUES // (self.count * self.fft)), max(1, BLOCK_VALUES // self.fft)
        for row in range(0, len(waves), rows):
            for frame in range(0, self.count, frames):
                block = np.s_[row : row + rows, frame : frame + frames]
                found[block] = do(framed[block])
        return found

    def power(self, frames: Floats) -> Floats:
        """(b, f, window) -> (b, f, bins): the squared magnitude of the windowed frames' Fourier transform.

        In double precision: in single, what rounding leaves in a frequency that is silent lies above the floor where
        the rest is loud, depends on how the transform is computed, and shows in logarithms.
        """
        hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)).astype(np.float32)
        spectrum = fft.rfft((frames * hann).astype(np.float64), self.fft)
        found: Floats = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32)
        return found


def floored_log(power: Floats) -> Floats:
    """The natural logarithm, of silence that of the floor."""
    found: Floats = np.log(np.maximum(power, np.float32(FLOOR)))
    return found


def mel_bank(rate: int, length: int, bands: int) -> Floats:
    """(bins, bands) triangles of height 1, evenly spaced from 0 to half the rate on HTK's mel scale.

    Young et al., "The HTK book", section 5.4; m = 2595 log10(1 + f / 700). A band so narrow that it lies between two
    frequencies of the transform is widened to reach both: it is their linear interpolation.
    """
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = np.asarray(700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1), dtype=np.float64)
    step = rate / length
    hertz = np.asarray(np.arange(length // 2 + 1)[:, None] * step, dtype=np.float64)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    bank = _triangles(hertz, low, centre, high)
    narrow = bank.max(0) < LEAST_WEIGHT
    below, above = (
        np.where(low < centre - step, low, centre - step),
        np.where(high > centre + step, high, centre + step),
    )
    found: Floats = np.where(narrow, _triangles(hertz, below, centre, above), bank).astype(np.float32)
    return found


def _triangles(hertz: Doubles, low: Doubles, centre: Doubles, high: Doubles) -> Doubles:
    rising, falling = (hertz - low) / (centre - low), (high - hertz) / (high - centre)
    found: Doubles = np.maximum(0, np.minimum(rising, falling))
    return found


def pitch_bank(rate: int, length: int) -> Floats:
    """(bins, 12) weights of each frequency in the pitch classes C to B, tuned to A = 440 Hz.

    Ellis, "Chroma feature analysis and synthesis" (2007): a Gaussian around each class, as wide as the distance of
    neighbouring frequencies and at least a semitone; the weights of a frequency have norm 1, and count most around
    five octaves above 27.5 Hz, with a deviation of two octaves.
    """
    pitch: Doubles = CLASSES * np.log2(np.arange(1, length) * rate / length / 27.5)
    pitch = np.concatenate([[pitch[0] - 1.5 * CLASSES], pitch])  # frequency 0 has none: well below the first
    width = np.concatenate([np.maximum(np.diff(pitch), 1), [1]])
    distance = (pitch[:, None] - np.arange(CLASSES) + CLASSES / 2) % CLASSES - CLASSES / 2
    weights = np.exp(-2 * (distance / width[:, None]) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    weights *= np.exp(-0.5 * ((pitch / CLASSES - 5) / 2) ** 2)[:, None]
    found: Floats = np.roll(weights, -3, axis=1)[: length // 2 + 1].astype(np.float32)  # from A first to C first
    return found


def differences(features: Floats) -> Floats:
    """The slope of each coefficient over five frames around each, by regression; the outer frames repeat at the ends.

    (n, frames, k) -> the same shape. Furui, "Speaker-independent isolated word recognition using dynamic features of
    speech spectrum" (1986); "The HTK book", equation 5.16, with a window of 2.
    """
    padded = np.pad(features, ((0, 0), (2, 2), (0, 0)), mode="edge")
    count = features.shape[1]
    before2, before, after, after2 = (padded[:, at : at + count] for at in (0, 1, 3, 4))
    found: Floats = ((after - before + 2 * (after2 - before2)) / 10).astype(np.float32, copy=False)
    return found
