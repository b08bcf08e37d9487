"""Max-pooling by 2, as fast as processors compare numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MaxPool2d(nn.MaxPool2d):
    """torch's by 2; on processors, rows that lie with channels last are compared in pairs, then places in them.

    torch's own writes eight bytes for where each greatest number was, and reads them back one by one.
    """

    def __init__(self, dimensions: int) -> None:
        """Of images, `dimensions` 2, or of sequences, which lie as images of one line, 1."""
        super().__init__((2, 2) if dimensions == 2 else (1, 2))
        self.halved = (1, 2) if dimensions == 2 else (2,)  # of (B, height, width, channels)

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, channels, height, or half of it, half of the width)."""
        fits = input.device.type == "cpu" and input.is_contiguous(memory_format=torch.channels_last)
        if torch.compiler.is_compiling() or not fits:  # exported models have torch's
            return super().forward(input)  # type: ignore[no-any-return]
        if torch.is_grad_enabled() and input.requires_grad:
            return _Halved.apply(input, self.halved)  # type: ignore[no-untyped-call, no-any-return]
        places = input.movedim(1, -1)
        for dimension in self.halved:
            places = torch.maximum(*_pairs(places, dimension))
        return places.movedim(-1, 1)


class _Halved(torch.autograd.Function):
    """The greater of each two neighbours, one dimension after another; of equals the first has the gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, dimensions: tuple[int, ...]) -> Tensor:
        found, firsts, shapes = input, [], []
        for dimension in dimensions:
            places = found.movedim(1, -1)
            first, second = _pairs(places, dimension)
            # 1 where the first is not less, else 0, in the input's type: nothing is cast
            firsts.append(torch.ge(first, second, out=places.new_empty(first.shape)))
            shapes.append(places.shape)
            found = torch.empty_like(first.movedim(-1, 1), memory_format=torch.channels_last)
            torch.maximum(first, second, out=found.movedim(1, -1))
        ctx.save_for_backward(*firsts)
        ctx.dimensions, ctx.shapes = dimensions, shapes
        return found  # no view, since activations write on it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.movedim(1, -1)
        kept = zip(ctx.dimensions, ctx.shapes, ctx.saved_tensors, strict=True)
        for dimension, shape, first_greater in reversed(list(kept)):
            wider = gradient.new_empty(shape)
            first, second = _pairs(wider, dimension)
            torch.mul(gradient, first_greater, out=first)
            torch.sub(gradient, first, out=second)
            if shape[dimension] % 2:
                wider.select(dimension, shape[dimension] - 1).zero_()
            gradient = wider
        return gradient.movedim(-1, 1), None


def _pairs(places: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """Views of the first and of the second of each two neighbours; the last of an odd number is left out."""
    half = places.shape[dimension] // 2
    paired: Tensor = places.narrow(dimension, 0, 2 * half).unflatten(dimension, (half, 2))  # type: ignore[no-untyped-call]
    return paired.select(dimension + 1, 0), paired.select(dimension + 1, 1)
