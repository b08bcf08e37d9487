"""Max-pooling of sequences, as fast as processors compare numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class MaxPool1d(nn.MaxPool2d):
    """torch's by 2 over time, of rows that lie as images of one line; on processors their neighbours are compared.

    torch's own writes eight bytes for where each greater number was, and reads them back one by one.
    """

    def __init__(self) -> None:
        super().__init__((1, 2))

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, 1, steps) -> (B, channels, 1, steps // 2)."""
        fits = input.device.type == "cpu" and input.is_contiguous(memory_format=torch.channels_last)
        if torch.compiler.is_compiling() or not fits:  # exported models have torch's
            return super().forward(input)  # type: ignore[no-any-return]
        if torch.is_grad_enabled() and input.requires_grad:
            return _Greater.apply(input)  # type: ignore[no-untyped-call, no-any-return]
        return torch.maximum(*_pairs(input))


class _Greater(torch.autograd.Function):
    """The greater of each two neighbours; of equals the first has the gradient."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        first, second = _pairs(input)
        # 1 where the first is not less, else 0, in the input's type: nothing is cast
        ctx.save_for_backward(torch.ge(first, second, out=torch.empty_like(first)))
        ctx.shape = input.shape
        return torch.maximum(first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (first_greater,) = ctx.saved_tensors
        wider = torch.empty(ctx.shape, dtype=gradient.dtype, memory_format=torch.channels_last)
        first, second = _pairs(wider)
        torch.mul(gradient, first_greater, out=first)
        torch.sub(gradient, first, out=second)
        if ctx.shape[3] % 2:
            wider[..., -1].zero_()
        return wider


def _pairs(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the first and of the second of each two neighbours; the last of an odd number is left out."""
    even = steps.shape[3] // 2 * 2
    return steps[..., 0:even:2], steps[..., 1:even:2]
