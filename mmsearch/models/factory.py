"""Hyperparameters -> model: image encoder, audio encoder, fusion and head, each chosen and sized by parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmsearch.data.dataset import Shapes, Statistics
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models import encoders, fusion  # noqa: F401 - importing them registers their classes
from mmsearch.models.layers import dense
from mmsearch.models.layers import dropout as _dropout
from mmsearch.models.registry import AUDIO_ENCODERS, FUSIONS, IMAGE_ENCODERS

__all__ = ["MultimodalClassifier", "build_model"]


PARTS = {"image_encoder": "image.encoder", "audio_encoder": "audio.encoder", "fusion": "fusion.name"}


class MultimodalClassifier(nn.Module):
    """An encoder a modality, a fusion of what they found, and a head.

    The normalisation of the inputs is part of the model, as buffers, and so are the mean rows of training, which stand
    in for a modality that is missing: what it is fed are scaled pixels and raw coefficients, in training as in
    prediction. `kinds` has the name of the choice that each of `PARTS` is.
    """

    image_mean: Tensor
    image_std: Tensor
    audio_mean: Tensor
    audio_std: Tensor
    mean_image: Tensor
    mean_audio: Tensor

    def __init__(self, hyperparameters: Hyperparameters, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = shapes
        self.audio_scale: str = hyperparameters["audio.scale"]
        self.modality_dropout: float = hyperparameters["fusion.modality_dropout"]
        image, audio, name = (hyperparameters[key] for key in PARTS.values())
        self.kinds = {part: str(hyperparameters[key]) for part, key in PARTS.items()}
        self.register_buffer("image_mean", torch.zeros(shapes.image[0], 1, 1))
        self.register_buffer("image_std", torch.ones(shapes.image[0], 1, 1))
        self.register_buffer("audio_mean", torch.zeros(shapes.audio[1]))
        self.register_buffer("audio_std", torch.ones(shapes.audio[1]))
        self.register_buffer("mean_image", torch.zeros(shapes.image))
        self.register_buffer("mean_audio", torch.zeros(shapes.audio))
        self.image_encoder = IMAGE_ENCODERS[image](shapes.image, **hyperparameters.under(f"image.{image}"))
        self.audio_encoder = AUDIO_ENCODERS[audio](shapes.audio, **hyperparameters.under(f"audio.{audio}"))
        both = (self.image_encoder, self.audio_encoder)
        made = FUSIONS[name]
        widths = [encoder.token_width if made.reads == "tokens" else encoder.width for encoder in both]
        self.fusion = made(*widths, **hyperparameters.under(f"fusion.{name}"))
        self.head = self.fusion.head(lambda width: _head(width, shapes.classes, **hyperparameters.under("head")))

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, channels, height, width), 0 to 1, and audio (B, frames, coefficients)."""
        logits: Tensor = self.head(self.embed(image, audio))
        return logits

    def embed(self, image: Tensor, audio: Tensor) -> Tensor:
        """The fused embedding (B, width)."""
        if self.training and self.modality_dropout:
            image, audio = self._lose_some(image, audio)
        image, audio = (image - self.image_mean) / self.image_std, (audio - self.audio_mean) / self.audio_std
        if self.fusion.reads == "tokens":
            fused = self.fusion(self.image_encoder.tokens(image), self.audio_encoder.tokens(audio))
        else:
            fused = self.fusion(self.image_encoder(image), self.audio_encoder(audio))
        assert isinstance(fused, Tensor)
        return fused

    def _lose_some(self, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Put the mean image, or the mean audio, in the place of some rows' own.

        After Neverova et al., "ModDrop" (arXiv 1501.00102); no row loses both.
        """
        drawn, half = torch.rand(len(image), device=image.device), self.modality_dropout / 2
        image = torch.where((drawn < half)[:, None, None, None], self.mean_image, image)
        return image, torch.where((drawn >= 1 - half)[:, None, None], self.mean_audio, audio)

    def normalise_by(self, statistics: Statistics) -> None:
        """Take the means and deviations, or the greatest value, of the training rows."""
        self.image_mean.copy_(torch.from_numpy(statistics.image_mean)[:, None, None])
        self.image_std.copy_(torch.from_numpy(statistics.image_std)[:, None, None])
        if self.audio_scale == "maximum":
            self.audio_mean.zero_()
            self.audio_std.fill_(statistics.audio_peak or 1.0)
        else:
            self.audio_mean.copy_(torch.from_numpy(statistics.audio_mean))
            self.audio_std.copy_(torch.from_numpy(statistics.audio_std))
        self.mean_image.copy_(torch.from_numpy(statistics.mean_image))
        self.mean_audio.copy_(torch.from_numpy(statistics.mean_audio))

    def parameter_count(self) -> int:
        """How many numbers training adjusts."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def _head(
    width: int,
    classes: int,
    *,
    depth: int,
    dropout: float,
    units: int = 0,
    norm: str = "none",
    activation: str = "relu",
) -> nn.Sequential:
    """Dense layers and the logits; without dense layers, nothing but the logits has a size."""
    layers = dense(width, (units,) * depth, norm=norm, activation=activation, rate=dropout)
    return nn.Sequential(*_dropout("plain", dropout), *layers, nn.Linear(units if depth else width, classes))


def build_model(
    hyperparameters: Hyperparameters, shapes: Shapes, statistics: Statistics | None = None
) -> MultimodalClassifier:
    """A model with fresh weights from torch's current random state; `statistics` set its normalisation."""
    model = MultimodalClassifier(hyperparameters, shapes)
    if statistics is not None:
        model.normalise_by(statistics)
    # convolutions on processors run 1.4 times faster with channels last; weights and results are the same
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
