"""Encoders of one modality. Image rows are (channels, height, width), audio rows (frames, coefficients)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.models.layers import MONOTONE, Dropout, Positions, ResidualBlock, attention, convolution, dense, dropout
from mmsearch.models.pooling import MaxPool1d
from mmsearch.models.registry import AUDIO_ENCODERS, IMAGE_ENCODERS, Encoder, register

_dropout = dropout  # by another name where a parameter is called so


class ConvolutionBlocks(Encoder):
    """Blocks of convolutions, each followed by max-pooling by 2 and dropout; the embedding is the whole last map.

    A map of one pixel, or one step, is no longer pooled. Sequences lie as images of one line.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        filters: tuple[int, ...],
        block: Callable[[int, int, int], list[nn.Module]],
        *,
        rate: float,
        kind: str,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for position, width in enumerate(filters):
            blocks += block(position, channels, width)
            if min(size) >= 2:
                pooling = nn.MaxPool2d(2) if len(size) == 2 else MaxPool1d()
                blocks.insert(len(blocks) - isinstance(blocks[-1], MONOTONE), pooling)
                size = tuple(side // 2 for side in size)
            blocks += _dropout(kind, rate)
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.token_width = channels
        self.width = channels * math.prod(size)

    def tokens(self, values: Tensor) -> Tensor:
        """(B, channels, height or 1, width) -> (B, places, filters of the last block)."""
        found: Tensor = self.blocks(values).movedim(1, -1)
        return found.flatten(1, -2)


@register("cnn", IMAGE_ENCODERS)
class CNN(ConvolutionBlocks):
    """A convolution a block. filters: one width a block."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        filters: tuple[int, ...],
        kernel: int,
        norm: str,
        activation: str,
        dropout: float,
        dropout_kind: str,
    ) -> None:
        def block(position: int, channels: int, width: int) -> list[nn.Module]:
            return convolution(channels, width, kernel, norm=norm, activation=activation, dimensions=2)

        super().__init__(shape[0], shape[1:], filters, block, rate=dropout, kind=dropout_kind)


@register("paired_cnn", IMAGE_ENCODERS)
class PairedCNN(ConvolutionBlocks):
    """Two convolutions of one width and kernel a block: a large kernel for broad shapes first, then a small one."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        filters: tuple[int, ...],
        kernel: tuple[int, ...],
        norm: str,
        activation: str,
        dropout: float,
        dropout_kind: str,
    ) -> None:
        def block(position: int, channels: int, width: int) -> list[nn.Module]:
            size = kernel[position]
            return [
                *convolution(channels, width, size, norm=norm, activation=activation, dimensions=2),
                *convolution(width, width, size, norm=norm, activation=activation, dimensions=2),
            ]

        super().__init__(shape[0], shape[1:], filters, block, rate=dropout, kind=dropout_kind)


@register("resnet", IMAGE_ENCODERS)
class ResNet(Encoder):
    """Stages of residual blocks; each stage after the first halves the map. The embedding is the mean over the map.

    filters: one width a stage. He et al., "Deep residual learning for image recognition" (arXiv 1512.03385).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        filters: tuple[int, ...],
        blocks: int,
        norm: str,
        activation: str,
        dropout: float,
        dropout_kind: str,
    ) -> None:
        super().__init__()
        channels = shape[0]
        layers: list[nn.Module] = convolution(channels, filters[0], 3, norm=norm, activation=activation, dimensions=2)
        channels = filters[0]
        for stage, width in enumerate(filters):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                layers.append(
                    ResidualBlock(
                        channels, width, stride, norm=norm, activation=activation, rate=dropout, kind=dropout_kind
                    )
                )
                channels = width
        self.layers = nn.Sequential(*layers)
        self.width = self.token_width = channels

    def tokens(self, values: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, places, filters of the last stage)."""
        found: Tensor = self.layers(values).movedim(1, -1)
        return found.flatten(1, 2)

    def summarise(self, tokens: Tensor) -> Tensor:
        """The mean over the places."""
        return tokens.mean(1)


class Sequence(Encoder):
    """Self-attention over a sequence with a class token, which becomes the embedding."""

    def __init__(self, length: int, units: int, **options: Any) -> None:
        super().__init__()
        self.positions = Positions(length, units)
        self.attention = attention(units=units, **options)
        self.width = self.token_width = units

    def attend(self, tokens: Tensor) -> Tensor:
        """(B, length, units) -> (B, 1 + length, units)."""
        found: Tensor = self.attention(self.positions(tokens))
        return found

    def summarise(self, tokens: Tensor) -> Tensor:
        """The class token."""
        return tokens[:, 0]


@register("vit", IMAGE_ENCODERS)
class ViT(Sequence):
    """Self-attention over patches of the image, which is padded to whole patches with its mean.

    Dosovitskiy et al., "An image is worth 16x16 words" (arXiv 2010.11929).
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        patch: int,
        units: int,
        depth: int,
        heads: int,
        ratio: int,
        activation: str,
        dropout: float,
        dropout_kind: str,
    ) -> None:
        channels, height, width = shape
        super().__init__(
            math.ceil(height / patch) * math.ceil(width / patch),
            units,
            depth=depth,
            heads=heads,
            ratio=ratio,
            activation=activation,
            dropout=dropout,
            dropout_kind=dropout_kind,
        )
        self.padding = (0, -width % patch, 0, -height % patch)
        self.patches = nn.Conv2d(channels, units, patch, patch)

    def tokens(self, values: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, 1 + patches, units)."""
        return self.attend(self.patches(functional.pad(values, self.padding)).movedim(1, -1).flatten(1, 2))


@register("conv1d", AUDIO_ENCODERS)
class Conv1d(ConvolutionBlocks):
    """Convolutions over time, with the coefficients as channels; or over the flat vector, with one channel."""

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        input: Literal["frames", "flat"],
        filters: tuple[int, ...],
        kernel: int,
        norm: str,
        activation: str,
        dropout: float,
        dropout_kind: str,
    ) -> None:
        def block(position: int, channels: int, width: int) -> list[nn.Module]:
            return convolution(channels, width, kernel, norm=norm, activation=activation, dimensions=1)

        frames, coefficients = shape
        channels, steps = (1, frames * coefficients) if input == "flat" else (coefficients, frames)
        super().__init__(channels, (steps,), filters, block, rate=dropout, kind=dropout_kind)
        self.flat = input == "flat"

    def tokens(self, values: Tensor) -> Tensor:
        """(B, frames, coefficients) -> (B, steps, filters of the last block)."""
        steps = values.flatten(1).unsqueeze(2) if self.flat else values
        return super().tokens(steps.transpose(1, 2).unsqueeze(2))  # channels last, without a copy


@register("conv2d", AUDIO_ENCODERS)
class Conv2d(ConvolutionBlocks):
    """Convolutions on the plane of time and frequency, as on an image of one channel."""

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        filters: tuple[int, ...],
        kernel: int,
        norm: str,
        activation: str,
        dropout: float,
        dropout_kind: str,
    ) -> None:
        def block(position: int, channels: int, width: int) -> list[nn.Module]:
            return convolution(channels, width, kernel, norm=norm, activation=activation, dimensions=2)

        super().__init__(1, shape, filters, block, rate=dropout, kind=dropout_kind)

    def tokens(self, values: Tensor) -> Tensor:
        """(B, frames, coefficients) -> (B, places, filters of the last block)."""
        return super().tokens(values.unsqueeze(1))


@register("rnn", AUDIO_ENCODERS)
class RNN(Encoder):
    """LSTM or GRU over the frames; the embedding is the state at the end, of each direction.

    Hochreiter and Schmidhuber (1997); Cho et al. (arXiv 1406.1078).
    """

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        cell: Literal["lstm", "gru"],
        units: int,
        depth: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        between = dropout if depth > 1 else 0.0  # torch's own stands between layers only
        made = nn.LSTM if cell == "lstm" else nn.GRU
        self.cells = made(shape[1], units, depth, batch_first=True, dropout=between, bidirectional=bidirectional)
        self.dropout = Dropout(dropout)
        self.units = units
        self.width = self.token_width = units * (1 + bidirectional)

    def tokens(self, values: Tensor) -> Tensor:
        """(B, frames, coefficients) -> (B, frames, width): the states of both directions at each frame."""
        states: Tensor = self.dropout(self.cells(values)[0])
        return states

    def summarise(self, tokens: Tensor) -> Tensor:
        """The last frame's state forwards beside the first frame's backwards."""
        return torch.cat([tokens[:, -1, : self.units], tokens[:, 0, self.units :]], dim=1)


@register("transformer", AUDIO_ENCODERS)
class Transformer(Sequence):
    """Self-attention over the frames."""

    def __init__(
        self,
        shape: tuple[int, int],
        *,
        units: int,
        depth: int,
        heads: int,
        ratio: int,
        activation: str,
        dropout: float,
        dropout_kind: str,
    ) -> None:
        super().__init__(
            shape[0],
            units,
            depth=depth,
            heads=heads,
            ratio=ratio,
            activation=activation,
            dropout=dropout,
            dropout_kind=dropout_kind,
        )
        self.embed = nn.Linear(shape[1], units)

    def tokens(self, values: Tensor) -> Tensor:
        """(B, frames, coefficients) -> (B, 1 + frames, units)."""
        return self.attend(self.embed(values))


@register("mlp", IMAGE_ENCODERS, AUDIO_ENCODERS)
class MLP(Encoder):
    """Dense layers over the flattened input; a single token. units: one width a layer."""

    def __init__(
        self, shape: tuple[int, ...], *, units: tuple[int, ...], norm: str, activation: str, dropout: float
    ) -> None:
        super().__init__()
        layers = dense(math.prod(shape), units, norm=norm, activation=activation, rate=dropout)
        self.layers = nn.Sequential(nn.Flatten(), *layers)
        self.width = self.token_width = units[-1]

    def tokens(self, values: Tensor) -> Tensor:
        """(B, *shape) -> (B, 1, width)."""
        found: Tensor = self.layers(values)
        return found.unsqueeze(1)
