"""What is done to training batches before the model sees them: on whole tensors, on the device where they lie.

Every row of a batch gets draws of its own. A strength of 0 is off: its function returns what it was given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.factory import MultimodalClassifier
from mmsearch.training.batches import Batch

_LONGEST = 3.0  # an erased rectangle's greater side, in units of the smaller one; each in shares of the image's
_WHOLE = 1e-6  # 0.29 * 100 frames are 29, whatever the floating point says


class Augmentation:
    """The augmentation of a configuration: each of its strengths, and the random numbers for them.

    Same seed, device and sequence of batches: same numbers.
    """

    def __init__(
        self, model: MultimodalClassifier, hyperparameters: Hyperparameters, seed: int, device: torch.device
    ) -> None:
        self.classes = model.shapes.classes
        self.mean = model.mean_audio.mean(0)
        self.image = hyperparameters.under("augment.image")
        self.audio = hyperparameters.under("augment.audio")
        self.mixup = hyperparameters["augment.mixup"]
        self.random = random.Random(f"augmentation of {seed}")
        self.generator = torch.Generator(device).manual_seed(self.random.getrandbits(63))

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images and audio of the same shapes, and their targets.

        Targets are class indices (B,), or under mixup probabilities (B, classes), in which a row's own class is never
        the smaller part.
        """
        assert batch.label is not None
        image = augment_images(batch.image, self.generator, **self.image)
        audio = augment_audio(batch.audio, self.generator, mean=self.mean, **self.audio)
        if not self.mixup:
            return image, audio, batch.label
        # a host number: drawing it on a GPU would mean waiting for it
        share = self.random.betavariate(self.mixup, self.mixup)
        target = functional.one_hot(batch.label, self.classes).to(image.dtype)
        return mix(image, share), mix(audio, share), mix(target, share)

    def state_dict(self) -> dict[str, Any]:
        """Where the random numbers stand."""
        return {"random": self.random.getstate(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.random.setstate(state["random"])
        self.generator.set_state(state["generator"])


def mix(rows: Tensor, share: float) -> Tensor:
    """Each row (B, ...) mixed with its neighbour, of which it takes the share or the rest, whichever is less.

    Zhang et al., "mixup: beyond empirical risk minimization" (arXiv 1710.09412), with one share a batch as in their
    code. Shuffled rows have a random neighbour, and the beta distribution is symmetric.
    """
    return torch.lerp(rows, rows.roll(1, 0), min(share, 1 - share))


def augment_images(
    image: Tensor,
    generator: torch.Generator,
    *,
    rotation: float,
    shift: float,
    zoom: float,
    crop: float,
    flip_horizontal: float,
    flip_vertical: float,
    noise: float,
    erasing: float,
) -> Tensor:
    """Images (B, channels, height, width) -> the same shape, moved, noisy and partly erased.

    `rotation` in degrees and `shift` in shares of the sides bound what is drawn evenly around 0; `zoom` bounds the
    distance of the scale from 1; `crop` bounds the share of the area that is cut away before the rest fills the image;
    flips are probabilities; `noise` is the deviation of a pixel, which is not clipped; `erasing` bounds the share of
    the area under one rectangle (Zhong et al., "Random erasing data augmentation", arXiv 1708.04896).

    What comes in from outside, or is erased, has the image's background: the median of its corners, by channel. That
    is black around handwriting on black and white around ink on paper, in whatever range the pixels are.
    """
    moved = any((rotation, shift, zoom, crop, flip_horizontal, flip_vertical))
    if moved or erasing:
        background = _background(image)
    if moved:
        grid = _grid(image, generator, rotation, shift, zoom, crop, flip_horizontal, flip_vertical)
        form = torch.channels_last if image.is_contiguous(memory_format=torch.channels_last) else torch.preserve_format
        image = functional.grid_sample(image - background, grid, align_corners=False).add_(background)
        image = image.to(memory_format=form)
    if noise:
        image = image + noise * torch.empty_like(image).normal_(generator=generator)
    if erasing:
        image = torch.where(_rectangles(image, generator, erasing), background, image)
    return image


def _background(image: Tensor) -> Tensor:
    """(B, channels, 1, 1) the lower median of the four corners, of each image and channel."""
    corners = image[:, :, :: max(image.shape[2] - 1, 1), :: max(image.shape[3] - 1, 1)].flatten(2)
    # not torch.median, which (2.13) reads beyond a row that is expanded from one value
    return corners.sort(2).values[:, :, (corners.shape[2] - 1) // 2, None, None]


def _grid(
    image: Tensor,
    generator: torch.Generator,
    rotation: float,
    shift: float,
    zoom: float,
    crop: float,
    flip_horizontal: float,
    flip_vertical: float,
) -> Tensor:
    """(B, height, width, 2) where each pixel comes from, -1 to 1.

    A window of the image, flipped, becomes the image; that is rotated and zoomed around its centre, then shifted.
    """
    count, _, height, width = image.shape
    even = torch.rand((9, count), generator=generator, device=image.device, dtype=image.dtype)
    around = 2 * even - 1
    angle, right, down = math.radians(rotation) * around[0], 2 * shift * around[1], 2 * shift * around[2]
    side = (1 - crop * even[3]).sqrt()
    middle_x, middle_y = (1 - side) * around[4], (1 - side) * around[5]
    x = torch.where(even[6] < flip_horizontal, -side, side)
    y = torch.where(even[7] < flip_vertical, -side, side)
    scale = 1 + zoom * around[8]
    # coordinates span each side alike, whatever its pixels: a rotation takes the aspect out and puts it back
    cos, sin, aspect = angle.cos() / scale, angle.sin() / scale, height / width
    xx, xy, yx, yy = x * cos, x * sin * aspect, -y * sin / aspect, y * cos
    rows = [xx, xy, middle_x - xx * right - xy * down, yx, yy, middle_y - yx * right - yy * down]
    matrix = torch.stack(rows, dim=1).view(count, 2, 3)
    return functional.affine_grid(matrix, list(image.shape), align_corners=False)


def _rectangles(image: Tensor, generator: torch.Generator, erasing: float) -> Tensor:
    """(B, 1, height, width) true in one rectangle an image; its area is drawn evenly up to `erasing`."""
    count, _, height, width = image.shape
    share, form, top, left = torch.rand((4, count), generator=generator, device=image.device)
    area, ratio = erasing * share, _LONGEST ** (2 * form - 1)
    rows = (height * (area * ratio).sqrt().clamp(max=1)).floor()
    columns = (width * (area / ratio).sqrt().clamp(max=1)).floor()
    return _runs(height, rows, top)[:, None, :, None] & _runs(width, columns, left)[:, None, None, :]


def augment_audio(
    audio: Tensor,
    generator: torch.Generator,
    *,
    time_mask: float,
    frequency_mask: float,
    shift: float,
    noise: float,
    mean: Tensor,
) -> Tensor:
    """Audio (B, frames, coefficients) -> the same shape, shifted in time, noisy and partly masked.

    `shift` bounds the shift by its share of the frames, `time_mask` and `frequency_mask` the length of one run of
    frames and of coefficients; all three are drawn evenly, in whole numbers. What is masked, or comes in from outside,
    is `mean` (coefficients,). `noise` is in deviations of each coefficient within the batch.

    Masks: Park et al., "SpecAugment" (arXiv 1904.08779), one of each kind, without time warping.
    """
    count, frames, coefficients = audio.shape
    # before anything is filled in; the scale that the model divides by need not be a deviation
    deviation = noise * audio.std((0, 1), correction=0) if noise else None
    if shift:
        most = int(shift * frames + _WHOLE)
        by = _up_to(2 * most, count, generator) - most
        source = torch.arange(frames, device=audio.device) - by[:, None]
        moved = audio.gather(1, source.clamp(0, frames - 1).long()[:, :, None].expand_as(audio))
        audio = torch.where(((source >= 0) & (source < frames))[:, :, None], moved, mean)
    if deviation is not None:
        audio = audio + deviation * torch.empty_like(audio).normal_(generator=generator)
    if time_mask:
        audio = torch.where(_masks(frames, time_mask, count, generator)[:, :, None], mean, audio)
    if frequency_mask:
        audio = torch.where(_masks(coefficients, frequency_mask, count, generator)[:, None, :], mean, audio)
    return audio


def _masks(length: int, share: float, count: int, generator: torch.Generator) -> Tensor:
    """(count, length) true in one run a row, of a random length of at most this share, at a random place."""
    sizes = _up_to(int(share * length + _WHOLE), count, generator)
    return _runs(length, sizes, torch.rand(count, generator=generator, device=generator.device))


def _up_to(most: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,) whole numbers from 0 to `most`, each as likely."""
    return ((most + 1) * torch.rand(count, generator=generator, device=generator.device)).floor()


def _runs(length: int, sizes: Tensor, places: Tensor) -> Tensor:
    """(B, length) true in a run of `sizes` (B,), which begins at the share `places` (B,) of where it can begin."""
    first = (places * (length - sizes + 1)).floor()[:, None]
    position = torch.arange(length, device=sizes.device)
    return (position >= first) & (position < first + sizes[:, None])
