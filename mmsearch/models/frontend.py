"""Raw rows -> what a model takes, in torch: pixels from 0 to 1, and features as `mmsearch.data.features` computes them.

Each class of features takes waveforms (B, samples) of full scale 1 and returns (B, frames, coefficients). It is
constructed with the number of samples, their rate and, as keywords, the parameters of the function that it repeats.
Spectra are computed in double precision: what rounding leaves of a frequency that is silent depends on how the
transform is computed, and logarithms of it would show that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.data.dataset import Trained
from mmsearch.data.spectra import FLOOR, Frames, mel_bank, pitch_bank
from mmsearch.hyperparameters import Hyperparameters


class Cut(nn.Module):
    """Waveforms (B, samples) -> frames (B, frames, window), as `Frames` says."""

    def __init__(self, samples: int, frames: Frames) -> None:
        super().__init__()
        self.frames, self.missing = frames, max(0, frames.window - samples)

    def forward(self, waves: Tensor) -> Tensor:
        """Waveforms shorter than one window are followed by silence."""
        return functional.pad(waves, (0, self.missing)).unfold(1, self.frames.window, self.frames.hop)


class Power(nn.Module):
    """Waveforms (B, samples) -> (B, frames, bins), as `Frames.power`."""

    hann: Tensor

    def __init__(self, samples: int, frames: Frames) -> None:
        super().__init__()
        self.cut, self.fft = Cut(samples, frames), frames.fft
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frames.window) / frames.window)
        self.register_buffer("hann", torch.from_numpy(hann.astype(np.float32)))

    def forward(self, waves: Tensor) -> Tensor:
        """The squared magnitude of the windowed frames' Fourier transform."""
        spectrum = torch.fft.rfft((self.cut(waves) * self.hann).double(), self.fft)
        found: Tensor = spectrum.real.square() + spectrum.imag.square()
        return found.float()


class STFT(nn.Module):
    """`mmsearch.data.features.stft`."""

    def __init__(self, samples: int, rate: int, *, window_ms: int, hop_ms: int, log: bool) -> None:
        super().__init__()
        self.power = Power(samples, Frames.of(samples, rate, window_ms, hop_ms))
        self.log = log

    def forward(self, waves: Tensor) -> Tensor:
        """(B, samples) -> (B, frames, bins)."""
        power = self.power(waves)
        return _floored_log(power) / 2 if self.log else power.sqrt()


class LogMel(nn.Module):
    """`mmsearch.data.features.log_mel`."""

    bank: Tensor

    def __init__(self, samples: int, rate: int, *, window_ms: int, hop_ms: int, bands: int) -> None:
        super().__init__()
        frames = Frames.of(samples, rate, window_ms, hop_ms)
        self.power = Power(samples, frames)
        self.register_buffer("bank", torch.from_numpy(mel_bank(rate, frames.fft, bands)))

    def forward(self, waves: Tensor) -> Tensor:
        """(B, samples) -> (B, frames, bands)."""
        return _floored_log(self.power(waves) @ self.bank)


class MFCC(nn.Module):
    """`mmsearch.data.features.mfcc`."""

    transform: Tensor

    def __init__(
        self,
        samples: int,
        rate: int,
        *,
        window_ms: int,
        hop_ms: int,
        bands: int,
        coefficients: int,
        deltas: int,
        energy: bool,
    ) -> None:
        super().__init__()
        self.log_mel = LogMel(samples, rate, window_ms=window_ms, hop_ms=hop_ms, bands=bands)
        self.cut = Cut(samples, Frames.of(samples, rate, window_ms, hop_ms))
        self.deltas, self.energy = deltas, energy
        cosines = dct(np.eye(bands), norm="ortho")[:, : min(coefficients, bands)].astype(np.float32)
        self.register_buffer("transform", torch.from_numpy(cosines))

    def forward(self, waves: Tensor) -> Tensor:
        """(B, samples) -> (B, frames, (1 + deltas) * coefficients)."""
        found = self.log_mel(waves) @ self.transform
        if self.energy:
            energy = _floored_log(self.cut(waves).square().sum(-1, keepdim=True))
            found = torch.cat([energy, found[..., 1:]], dim=2)
        orders = [found]
        for _ in range(self.deltas):
            orders.append(_differences(orders[-1]))
        return torch.cat(orders, dim=2)


class Chroma(nn.Module):
    """`mmsearch.data.features.chroma`."""

    bank: Tensor

    def __init__(self, samples: int, rate: int, *, window_ms: int, hop_ms: int) -> None:
        super().__init__()
        frames = Frames.of(samples, rate, window_ms, hop_ms)
        self.power = Power(samples, frames)
        self.register_buffer("bank", torch.from_numpy(pitch_bank(rate, frames.fft)))

    def forward(self, waves: Tensor) -> Tensor:
        """(B, samples) -> (B, frames, 12)."""
        classes: Tensor = self.power(waves) @ self.bank
        return classes / classes.amax(2, keepdim=True).clamp(min=FLOOR)


FEATURES: dict[str, type[nn.Module]] = {"stft": STFT, "log_mel": LogMel, "mfcc": MFCC, "chroma": Chroma}


def settings_of(trained: Trained, hyperparameters: Hyperparameters) -> dict[str, Any]:
    """What tells the frontend of one configuration from that of another: the features that it computes, by name."""
    return {} if trained.rate is None else hyperparameters.under("features")


def frame_values(trained: Trained, hyperparameters: Hyperparameters) -> int:
    """How many numbers the frames of one row's waveform hold, each as long as its transform; 0 without waveforms."""
    if trained.rate is None:
        return 0
    settings = hyperparameters.under(f"features.{hyperparameters['features.name']}")
    frames = Frames.of(trained.shapes.audio[0], trained.rate, settings["window_ms"], settings["hop_ms"])
    return frames.count * frames.fft


class Frontend(nn.Module):
    """Raw rows, as a model's training rows were, -> the images and audio that the model takes.

    Pixels are those of the training data, in their range there; samples are those of its waveforms, of unsigned types
    less the middle, which is silence.
    """

    def __init__(self, trained: Trained, hyperparameters: Hyperparameters) -> None:
        super().__init__()
        self.pixel_scale, self.audio_scale = trained.pixels.scale, trained.audio_scale
        self.features: nn.Module | None = None
        if trained.rate is not None:
            name = hyperparameters["features.name"]
            settings = hyperparameters.under(f"features.{name}")
            self.features = FEATURES[name](trained.shapes.audio[0], trained.rate, **settings)

    def forward(self, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, channels, height, width) and audio (B, frames, coefficients) or waveforms (B, samples, 1)."""
        if self.features is not None:
            audio = self.features(audio[..., 0] * self.audio_scale)
        return image * self.pixel_scale, audio


def _floored_log(power: Tensor) -> Tensor:
    return power.clamp(min=FLOOR).log()


def _differences(features: Tensor) -> Tensor:
    """`mmsearch.data.spectra.differences`."""
    count = features.shape[1]
    first, last = features[:, :1].expand(-1, 2, -1), features[:, -1:].expand(-1, 2, -1)
    padded = torch.cat([first, features, last], dim=1)
    before2, before, after, after2 = (padded[:, at : at + count] for at in (0, 1, 3, 4))
    return (after - before + 2 * (after2 - before2)) / 10
