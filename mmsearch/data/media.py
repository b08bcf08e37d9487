"""Single image and audio files: what Pillow reads, and PCM wav; whole and with something in them, or `Broken`."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Wave = npt.NDArray[np.float32]

FULL_SCALE = 32768  # of 16-bit samples
GREATEST_SAMPLE = 2.0  # of float samples, whose full scale is 1: a little above it is loud, far above it another unit
RATES = (100, 768_000)  # samples a second
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # formats of the samples in a wav file
UNKNOWN_SIZE = 0xFFFFFFFF  # what programs write who cannot go back to fill it in: all up to the end
GRAY = ("1", "L", "I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # modes of Pillow without colour and alpha


class Broken(Exception):
    """A file that cannot be used; the message ends a sentence that begins with the file's name."""


@dataclass(frozen=True)
class Recording:
    """samples: (n,) one channel, full scale 1; `rate` of them a second."""

    samples: Wave
    rate: int


def read_wav(path: Path) -> Recording:
    """A PCM wav file of 8 to 32 bits or of floats; channels are mixed down to one. Raises `Broken`."""
    data = _content(path)
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise Broken("is not a wav file")
    layout, sound = b"", None
    at = 12
    while at + 8 <= len(data) and sound is None:
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"fmt ":
            layout = data[at : at + size]
        elif name == b"data":
            if size != UNKNOWN_SIZE and size > len(data) - at:
                raise Broken(f"is truncated: {len(data) - at} of {size} bytes of its sound are there")
            sound = memoryview(data)[at : at + size]
        at += size + size % 2
    if sound is None or len(layout) < 16:
        raise Broken("is truncated: it has no sound")
    form, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", layout)
    if form == EXTENSIBLE and len(layout) >= 26:
        form = struct.unpack_from("<H", layout, 24)[0]
    if form not in (PCM, FLOAT):
        raise Broken(f"is not PCM: its samples are of format {form}")
    if not channels or not block or block % channels:
        raise Broken(f"is not a wav file that can be read: it has {channels} channels in blocks of {block} bytes")
    if not RATES[0] <= rate <= RATES[1]:
        raise Broken(f"has {rate} samples a second; allowed are {RATES[0]} to {RATES[1]}")
    samples = _samples(sound[: len(sound) // block * block], form, block // channels, bits)
    mixed = samples.reshape(-1, channels).mean(1, dtype=np.float64).astype(np.float32)
    return Recording(_usable(mixed), rate)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Broken("is missing") from None
    except (OSError, ValueError) as error:  # ValueError: of a name that no file can have
        raise Broken(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _samples(sound: memoryview, form: int, width: int, bits: int) -> npt.NDArray[np.floating]:
    """Samples of `width` bytes, all channels in turn, full scale 1."""
    if form == FLOAT and width in (4, 8):
        return np.frombuffer(sound, dtype=f"<f{width}")
    if form == PCM and width == 1:
        return (np.frombuffer(sound, dtype=np.uint8).astype(np.float32) - 128) / 128
    if form == PCM and width in (2, 4):
        return np.frombuffer(sound, dtype=f"<i{width}") / np.float64(1 << (8 * width - 1))
    if form == PCM and width == 3:
        padded = np.zeros((len(sound) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = np.frombuffer(sound, dtype=np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0] / np.float64(1 << 31)
    raise Broken(f"has samples of {bits} bits in {width} bytes; allowed are 8, 16, 24 and 32 bits, and floats")


def _usable(samples: Wave) -> Wave:
    if not len(samples):
        raise Broken("has no samples")
    if not np.isfinite(samples).all():
        raise Broken("holds a sample that is not a finite number")
    peak = float(np.abs(samples).max())
    if peak > GREATEST_SAMPLE:
        raise Broken(f"has float samples of up to {peak:.4g}, but full scale is 1")
    if not np.ptp(quantised(samples)):
        raise Broken("is silent: all its samples are equal")
    return samples


def quantised(samples: Wave) -> npt.NDArray[np.int16]:
    """16-bit samples; what is beyond full scale is clipped."""
    return np.clip(np.rint(samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def resampled(recording: Recording, rate: int) -> Wave:
    """The samples at another rate, filtered so that nothing above half of it is folded down."""
    if recording.rate == rate:
        return recording.samples
    from scipy.signal import resample_poly

    divisor = math.gcd(recording.rate, rate)
    found = resample_poly(recording.samples.astype(np.float64), rate // divisor, recording.rate // divisor)
    return np.asarray(found, dtype=np.float32)


def length_at(samples: int, rate: int, target: int) -> int:
    """How many samples `resampled` makes of so many."""
    return -(-samples * target // rate)


def margins(length: int, wanted: int) -> tuple[slice, slice]:
    """The middle of `length` values that is kept, and its place in the middle of the `wanted` ones."""
    if length >= wanted:
        start = (length - wanted) // 2
        return slice(start, start + wanted), slice(0, wanted)
    start = (wanted - length) // 2
    return slice(0, length), slice(start, start + length)


@dataclass(frozen=True)
class Picture:
    """pixels: (channels, height, width), 1 channel or 3; `gray` tells whether the file has neither colour nor alpha."""

    pixels: npt.NDArray[np.uint8]
    gray: bool


def read_image(path: Path, size: tuple[int, int] | None = None, channels: int | None = None) -> Picture:
    """An image that Pillow reads (of several frames the first), turned as its EXIF orientation says. Raises `Broken`.

    It is stretched to `size` (height, width) by an antialiasing filter. `channels` 1 makes it gray and 3 coloured;
    otherwise it is as the file has it. Alpha is dropped; 16 bits become 8, and gray floats have full scale 1.
    """
    import io

    from PIL import Image, ImageOps, UnidentifiedImageError

    data = _content(path)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            gray = image.mode in GRAY
            if gray:
                image = Image.fromarray(_in_8_bits(np.asarray(image)))
            elif "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("L" if channels == 1 or (gray and channels is None) else "RGB")
    except UnidentifiedImageError:
        raise Broken("is not an image that Pillow reads" if data else "is empty") from None
    except Exception as error:  # Pillow's readers raise whatever comes up in them
        raise Broken(f"is not a whole image: {str(error).splitlines()[0] if str(error) else 'damaged'}") from None
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels: npt.NDArray[np.uint8] = np.asarray(image)
    return Picture(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), gray)


def _in_8_bits(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Gray pixels of any type that Pillow has, brought to 0-255. Raises `ValueError`."""
    if pixels.dtype == np.bool_:
        pixels = pixels * 255
    elif pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise ValueError("it holds a pixel that is not a finite number")
        pixels = np.rint(pixels.clip(0, 1) * 255)
    elif pixels.dtype != np.uint8:
        pixels = pixels.clip(0, 65535) // 256
    found: npt.NDArray[np.uint8] = pixels.astype(np.uint8)
    return found
