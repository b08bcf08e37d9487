"""Fusions: the embeddings of image and audio become one. (B, image_width), (B, audio_width) -> (B, width)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmsearch.models.registry import FUSIONS, Embedding, register


@register("concat", FUSIONS)
class Concat(Embedding):
    """One embedding beside the other."""

    def __init__(self, image_width: int, audio_width: int) -> None:
        super().__init__()
        self.width = image_width + audio_width

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """Concatenate along the last axis."""
        return torch.cat([image, audio], dim=1)


@register("gated", FUSIONS)
class Gated(Embedding):
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
