"""Batches by index out of a split's arrays: no loader, no copy of the data, on the processor or on a GPU."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from mmsearch.data.dataset import Split

EVALUATION_ROWS = 256  # activations of this many rows stay near the caches: 1,024 took 2.5 times as long


# What lies on a GPU, by the array's identity, and what tells when the array is gone.
_RESIDENT: dict[tuple[int, torch.device], tuple[Tensor, weakref.ref[npt.NDArray[Any]]]] = {}


def resident(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """An array as a tensor on a device: itself on a processor, elsewhere a copy that all who ask for it share."""
    with warnings.catch_warnings():  # arrays that a caller may not write to are not written to
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    key = id(array), device
    if key not in _RESIDENT:
        _RESIDENT[key] = tensor.to(device), weakref.ref(array, lambda gone: _RESIDENT.pop(key, None))
    return _RESIDENT[key][0]


class Batch(NamedTuple):
    """image (B, channels, height, width), pixels 0 to 1; audio (B, frames, coefficients); label (B,) or None."""

    image: Tensor
    audio: Tensor
    label: Tensor | None


class Batches:
    """A split's rows as batches on a device.

    On a processor the arrays stay where they are, memory-mapped and shared by all processes; each batch is gathered
    from them. On a GPU each array lies whole, once a process, as long as somebody has the array.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.image, self.audio = resident(split.image, device), resident(split.audio, device)
        self.label = None if split.label is None else resident(split.label, device)
        self.rows = torch.from_numpy(split.rows).to(device)
        self.scale = split.image_scale

    def __len__(self) -> int:
        return len(self.rows)

    def gather(self, rows: Tensor) -> Batch:
        """The rows at these positions of the arrays."""
        image = self.image.index_select(0, rows).float()
        if self.scale != 1:
            image.mul_(self.scale)
        label = None if self.label is None else self.label.index_select(0, rows)
        return Batch(image, self.audio.index_select(0, rows).float(), label)

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """All rows once, in random order. A last batch of one row is left out: batch normalisation needs two."""
        order = self.rows[torch.randperm(len(self.rows), generator=generator).to(self.rows.device)]
        for rows in torch.split(order, size):
            if len(rows) > 1 or len(order) == 1:
                yield self.gather(rows)

    def in_order(self, size: int = EVALUATION_ROWS) -> Iterator[Batch]:
        """All rows once, in the split's order."""
        for rows in torch.split(self.rows, size):
            yield self.gather(rows)

    def steps(self, size: int) -> int:
        """How many batches `shuffled` yields."""
        full, rest = divmod(len(self.rows), size)
        return max(1, full + (rest > 1))
