"""Encoders of one modality: (B, *shape) -> embedding (B, width)."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from mmsearch.models.registry import AUDIO_ENCODERS, IMAGE_ENCODERS, Embedding, register


@register("cnn", IMAGE_ENCODERS)
class CNN(Embedding):
    """Convolution blocks over an image: convolution, batch normalisation, ReLU, max-pooling by 2, dropout.

    shape: (channels, height, width). filters: one width a block. A map of one pixel is no longer pooled.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, filters: tuple[int, ...], kernel: int, batch_norm: bool, dropout: float
    ) -> None:
        super().__init__()
        channels, *size = shape
        blocks: list[nn.Module] = []
        for width in filters:
            blocks.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=not batch_norm))
            blocks += [nn.BatchNorm2d(width)] if batch_norm else []
            blocks.append(nn.ReLU(inplace=True))
            if min(size) >= 2:
                blocks.append(nn.MaxPool2d(2))
                size = [side // 2 for side in size]
            blocks += [nn.Dropout(dropout)] if dropout else []
            channels = width
        self.blocks = nn.Sequential(*blocks, nn.Flatten())
        self.width = channels * math.prod(size)

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, width)."""
        embedding: Tensor = self.blocks(image)
        return embedding


@register("conv1d", AUDIO_ENCODERS)
class Conv1d(Embedding):
    """Convolution blocks over time, with the coefficients as channels; or over the flat vector, with one channel.

    shape: (frames, coefficients). filters: one width a block. A sequence of one step is no longer pooled.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        input: Literal["frames", "flat"],
        filters: tuple[int, ...],
        kernel: int,
        batch_norm: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.flat = input == "flat"
        channels, steps = (1, shape[0] * shape[1]) if self.flat else (shape[1], shape[0])
        blocks: list[nn.Module] = []
        for width in filters:
            blocks.append(nn.Conv1d(channels, width, kernel, padding=kernel // 2, bias=not batch_norm))
            blocks += [nn.BatchNorm1d(width)] if batch_norm else []
            blocks.append(nn.ReLU(inplace=True))
            if steps >= 2:
                blocks.append(nn.MaxPool1d(2))
                steps //= 2
            blocks += [nn.Dropout(dropout)] if dropout else []
            channels = width
        self.blocks = nn.Sequential(*blocks, nn.Flatten())
        self.width = channels * steps

    def forward(self, audio: Tensor) -> Tensor:
        """(B, frames, coefficients) -> (B, width)."""
        embedding: Tensor = self.blocks(audio.flatten(1).unsqueeze(1) if self.flat else audio.transpose(1, 2))
        return embedding


@register("mlp", IMAGE_ENCODERS, AUDIO_ENCODERS)
class MLP(Embedding):
    """Dense layers over the flattened input, each with ReLU and dropout. units: one width a layer."""

    def __init__(self, shape: tuple[int, ...], *, units: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), *dense(math.prod(shape), units, dropout))
        self.width = units[-1]

    def forward(self, values: Tensor) -> Tensor:
        """(B, *shape) -> (B, width)."""
        embedding: Tensor = self.layers(values)
        return embedding


def dense(width: int, units: tuple[int, ...], dropout: float) -> list[nn.Module]:
    """Linear layers from `width` through `units`, each followed by ReLU and dropout."""
    layers: list[nn.Module] = []
    for size in units:
        layers += [nn.Linear(width, size), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(dropout)] if dropout else []
        width = size
    return layers
