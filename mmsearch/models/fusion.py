"""Fusions: what the encoders of image and audio found becomes one embedding, and that becomes logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmsearch.models.layers import attention
from mmsearch.models.registry import FUSIONS, Fusion, register


@register("concat", FUSIONS)
class Concat(Fusion):
    """One embedding beside the other."""

    def __init__(self, image_width: int, audio_width: int) -> None:
        super().__init__()
        self.width = image_width + audio_width

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """(B, image_width), (B, audio_width) -> (B, width)."""
        return torch.cat([image, audio], dim=1)


@register("gated", FUSIONS)
class Gated(Fusion):
    """A gate, computed from both, decides unit by unit how much of each modality passes.

    Gated multimodal unit: Arevalo et al., "Gated multimodal units for information fusion" (arXiv 1702.01992).
    """

    def __init__(self, image_width: int, audio_width: int, *, units: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, units)
        self.audio = nn.Linear(audio_width, units)
        self.gate = nn.Linear(image_width + audio_width, units)
        self.width = units

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """z * tanh(W image) + (1 - z) * tanh(V audio), with z = sigmoid(U [image, audio])."""
        z = torch.sigmoid(self.gate(torch.cat([image, audio], dim=1)))
        return torch.lerp(torch.tanh(self.audio(audio)), torch.tanh(self.image(image)), z)


@register("lstm", FUSIONS)
class LSTM(Fusion):
    """An LSTM reads the two embeddings, each brought to `embed` numbers, as a sequence: image, then audio.

    Its last state, `hidden` numbers, is the fused embedding.
    """

    def __init__(self, image_width: int, audio_width: int, *, embed: int, hidden: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, embed)
        self.audio = nn.Linear(audio_width, embed)
        self.cells = nn.LSTM(embed, hidden, batch_first=True)
        self.width = hidden

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """(B, image_width), (B, audio_width) -> (B, hidden)."""
        states: Tensor = self.cells(torch.stack([self.image(image), self.audio(audio)], dim=1))[0]
        return states[:, -1]


@register("attention", FUSIONS)
class Attention(Fusion):
    """Cross-modal attention: each place of the image and each moment of the audio attends to those of both.

    One stream over the tokens of both modalities (Chen et al., "UNITER", arXiv 1909.11740); each modality's mean beside
    the other's is the fused embedding.
    """

    reads = "tokens"

    def __init__(
        self,
        image_width: int,
        audio_width: int,
        *,
        units: int,
        depth: int,
        heads: int,
        ratio: int,
        activation: str,
        dropout: float,
        dropout_kind: str,
    ) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, units)
        self.audio = nn.Linear(audio_width, units)
        self.attention = attention(
            units=units,
            depth=depth,
            heads=heads,
            ratio=ratio,
            activation=activation,
            dropout=dropout,
            dropout_kind=dropout_kind,
        )
        self.width = 2 * units

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """(B, places, image_width), (B, moments, audio_width) -> (B, 2 * units)."""
        found = self.attention(torch.cat([self.image(image), self.audio(audio)], dim=1))
        places = image.shape[1]
        return torch.cat([found[:, :places].mean(1), found[:, places:].mean(1)], dim=1)


@register("late", FUSIONS)
class Late(Concat):
    """Each modality has a head and logits of its own; learned weights, which sum to 1, mix the logits."""

    def __init__(self, image_width: int, audio_width: int) -> None:
        super().__init__(image_width, audio_width)
        self.widths = (image_width, audio_width)

    def head(self, make: Callable[[int], nn.Module]) -> nn.Module:
        """A head for each modality, and their weights."""
        return WeightedLogits(*((width, make(width)) for width in self.widths))


class WeightedLogits(nn.Module):
    """Logits of parts of an embedding, mixed by weights that sum to 1; equal before training."""

    def __init__(self, *parts: tuple[int, nn.Module]) -> None:
        super().__init__()
        self.widths = [width for width, _ in parts]
        self.heads = nn.ModuleList(head for _, head in parts)
        self.weights = nn.Parameter(torch.zeros(len(parts)))

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, sum of the widths) -> (B, classes)."""
        parts = torch.split(embedding, self.widths, dim=1)
        logits = torch.stack([head(part) for head, part in zip(self.heads, parts, strict=True)])
        return torch.einsum("m,mbc->bc", torch.softmax(self.weights, dim=0), logits)
