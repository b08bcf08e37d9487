"""Rows as pictures: small PNGs of images and of the plane of time and frequency, which a plot holds as text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import plotly.colors
from PIL import Image

from mmsearch.data.dataset import Index, Pixels, Split, Trained
from mmsearch.data.features import with_features
from mmsearch.hyperparameters import Hyperparameters, Value
from mmsearch.results.figures.style import SEQUENTIAL
from mmsearch.results.statistics import Floats

Bytes = npt.NDArray[np.uint8]

CLEAR = 255  # the one of 256 colours through which the page shows
TYPICAL_ROWS = 1000  # from which the scale of features is taken
PERCENTILES = (1, 99)  # of a coefficient, between which colours span
DECIBELS = 60  # below a recording's loudest point that colours span
SPECTROGRAM: dict[str, Value] = {
    "features.name": "stft",
    "features.stft.window_ms": 25,
    "features.stft.hop_ms": 10,
    "features.stft.log": True,
}


@dataclass(frozen=True, eq=False)
class Planes:
    """What the audio of some rows looks like.

    values: (n, rows, columns) between 0 and 1, time to the right and the first row at the bottom. across, up: what the
    axes are, with their units, and from where to where they go; `span` says the same in words, and `note` what the
    colours mean.
    """

    values: Floats
    across: tuple[str, float, float]
    up: tuple[str, float, float]
    span: str
    note: str


def pictures(split: Split, positions: Index, pixels: Pixels) -> Bytes:
    """(n, height, width, channels) the images of rows of a split; channels are 3, or 1 where they are not colours."""
    low, span = (pixels.low, pixels.high - pixels.low) if pixels.low < 0 else (0.0, 1 / split.image_scale)
    raw = (split.image[split.rows[positions]].astype(np.float64) - low) / (span or 1.0)
    if raw.shape[1] != 3:
        raw = raw.mean(1, keepdims=True)
    found: Bytes = np.rint(raw.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return found


def planes(split: Split, positions: Index, trained: Trained) -> Planes:
    """The spectrogram of waveforms, or features as they are, each coefficient brought to one scale."""
    if trained.rate is not None:
        return _spectrograms(split, positions, trained.rate)
    typical = split.audio[split.rows[:TYPICAL_ROWS]].astype(np.float64)
    low, high = np.percentile(typical, PERCENTILES, axis=(0, 1))
    raw = split.audio[split.rows[positions]].astype(np.float64)
    scaled = (raw - low) / np.where(high > low, high - low, 1.0)
    frames, coefficients = raw.shape[1:]
    return Planes(
        scaled.clip(0, 1).transpose(0, 2, 1),
        ("frame", 0.5, frames + 0.5),
        ("coefficient", 0.5, coefficients + 0.5),
        f"frames 1 to {frames} rightwards, coefficients 1 to {coefficients} upwards",
        f"Colours: each coefficient, from its percentile {PERCENTILES[0]} (dark) to {PERCENTILES[1]} (bright).",
    )


def _spectrograms(split: Split, positions: Index, rate: int) -> Planes:
    rows = split.rows[positions]
    some = replace(
        split, image=split.image[rows], audio=split.audio[rows], label=None, origin=None, rows=np.arange(len(rows))
    )
    found = with_features(some, rate, Hyperparameters(SPECTROGRAM), None).audio.astype(np.float64)
    level = 20 / np.log(10) * (found - found.max((1, 2), keepdims=True))
    return Planes(
        (level / DECIBELS + 1).clip(0, 1).transpose(0, 2, 1),
        ("time (s)", 0.0, split.audio.shape[1] / rate),
        ("frequency (kHz)", 0.0, rate / 2000),
        f"0 to {split.audio.shape[1] / rate:.3g} s rightwards, 0 to {rate / 2000:.3g} kHz upwards",
        f"Colours: level, from {DECIBELS} dB below the recording's loudest point (dark) up to it (bright); windows of "
        "25 ms every 10 ms.",
    )


def coloured(values: Floats, size: tuple[int, int]) -> Image.Image:
    """(rows, columns) between 0 and 1, first row at the bottom, of `size` (width, height), in colours for all eyes."""
    stops = [plotly.colors.hex_to_rgb(stop) for stop in getattr(plotly.colors.sequential, SEQUENTIAL)]
    return _indexed(np.asarray(np.rint(values[::-1] * (CLEAR - 1)), dtype=np.uint8), size, stops)


def shown(pixels: Bytes, longest: int) -> Image.Image:
    """(height, width, 1 or 3) with so many pixels along its longest side."""
    height, width, channels = pixels.shape
    factor = longest / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if channels == 3:
        return Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
    return _indexed(np.minimum(pixels[:, :, 0], CLEAR - 1), size, [(0, 0, 0), (255, 255, 255)])


def sheet(tiles: Sequence[Image.Image | None], across: int, gap: int) -> Image.Image:
    """Pictures of one size and mode in rows of `across`; between them, and in the place of None, the page shows."""
    first = next(tile for tile in tiles if tile is not None)
    width, height = first.size
    page = (across * (width + gap) - gap, -(-len(tiles) // across) * (height + gap) - gap)
    made = Image.new("P", page, CLEAR) if first.mode == "P" else Image.new("RGBA", page, (0, 0, 0, 0))
    if first.mode == "P":
        made.putpalette(first.getpalette() or [])
    for i, tile in enumerate(tiles):
        if tile is not None:
            made.paste(tile, ((i % across) * (width + gap), (i // across) * (height + gap)))
    return made


def uri(image: Image.Image) -> str:
    """A picture as a PNG that a plot can hold."""
    held = io.BytesIO()
    clear = {"transparency": CLEAR} if image.mode == "P" else {}
    image.save(held, "PNG", compress_level=9, **clear)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")


def _indexed(values: Bytes, size: tuple[int, int], stops: Sequence[tuple[int, ...]]) -> Image.Image:
    """Values below CLEAR as colours along the stops; pixels are repeated, or averaged where there is no room."""
    image = Image.fromarray(values).resize(size, Image.Resampling.BOX)
    ends, places = np.linspace(0, 1, len(stops)), np.linspace(0, 1, CLEAR)
    table = np.stack([np.interp(places, ends, [stop[part] for stop in stops]) for part in range(3)], axis=1)
    image.putpalette([*np.rint(table).astype(int).ravel().tolist(), 0, 0, 0])  # the last is CLEAR
    return image
