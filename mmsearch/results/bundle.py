"""A bundle: a folder with a model's weights and what rebuilds it. Needs no study and no Optuna."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mmsearch.data.dataset import Array, Pixels, Shapes, Split, Trained
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.data.sources import rows_from_arrays
from mmsearch.errors import BundleError
from mmsearch.hyperparameters import TABLE, Hyperparameters
from mmsearch.models.factory import MultimodalClassifier, build_model
from mmsearch.paths import BundlePaths, write_text
from mmsearch.training.fit import predict_logits
from mmsearch.training.transfer import MEMBER

FORMAT = 3


@dataclass(frozen=True)
class Member:
    """One trained model, and the hyperparameters that made it."""

    model: MultimodalClassifier
    hyperparameters: Hyperparameters


@dataclass(frozen=True)
class Bundle:
    """A trained model, or an ensemble whose probabilities are averaged, and what it was trained on.

    Logits are divided by `temperature` before they become probabilities (Guo et al., 2017). `abstain_below`: of a row
    whose greatest probability is smaller, the model says nothing; None: it always does.
    """

    members: tuple[Member, ...]
    trained: Trained
    folder: Path
    temperature: float = 1.0
    abstain_below: float | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.trained.classes

    @property
    def parameters(self) -> int:
        """How many numbers training adjusted, in all members."""
        return sum(member.model.parameter_count() for member in self.members)

    @property
    def metrics(self) -> dict[str, Any]:
        """What `retrain-best` measured: the content of metrics.json."""
        held: dict[str, Any] = json.loads(BundlePaths(self.folder).metrics.read_text(encoding="utf-8"))
        return held

    def predict(
        self, image: Array | None, audio: Array | None, device: torch.device | None = None
    ) -> npt.NDArray[np.float32]:
        """(N, classes) probabilities of raw rows: images and audio in any form and pixel range of a data set.

        Images of another size are resized; waveforms are taken to be at the model's rate, and are cut or padded. None
        for one of the two: the training rows' mean stands in. Raises `DataError` where the rows cannot be brought to
        what the model takes.
        """
        split = rows_from_arrays(
            None if image is None else np.asarray(image), None if audio is None else np.asarray(audio), self.trained
        )
        return self.probabilities(
            split, device, without="image" if image is None else "audio" if audio is None else None
        )

    def probabilities(
        self,
        split: Split,
        device: torch.device | None = None,
        *,
        without: Literal["image", "audio"] | None = None,
        cache: Path | None = None,
    ) -> npt.NDArray[np.float32]:
        """(n, classes) probabilities of a split's raw rows; `cache` is a folder that keeps their features.

        `without`: the training rows' mean stands in for the images, or the audio.
        """
        logits = self.logits(split, device, without=without, cache=cache)
        found: npt.NDArray[np.float32] = torch.softmax(logits / self.temperature, dim=1).numpy()
        return found

    def logits(
        self,
        split: Split,
        device: torch.device | None = None,
        *,
        without: Literal["image", "audio"] | None = None,
        cache: Path | None = None,
    ) -> Tensor:
        """(n, classes) logits of a split's raw rows, before the temperature; arguments as of `probabilities`.

        Of an ensemble the logarithm of the members' mean probability.
        """
        if not len(split):
            return torch.zeros(0, len(self.classes))
        found = [
            self._logits_of(member, split, device or torch.device("cpu"), without, cache) for member in self.members
        ]
        return mean_logits(torch.stack(found))

    def _logits_of(
        self,
        member: Member,
        split: Split,
        device: torch.device,
        without: Literal["image", "audio"] | None,
        cache: Path | None,
    ) -> Tensor:
        if without == "audio":  # then nobody looks at the features
            shape = (len(split.audio), *member.model.shapes.audio)
            split = replace(split, audio=np.broadcast_to(np.float32(0), shape))
        else:
            split = with_features(split, self.trained.rate, member.hyperparameters, cache)
        return predict_logits(member.model, split, device, without=without)

    def save(self, folder: Path) -> None:
        """Write weights and configuration into `folder`."""
        paths = BundlePaths(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights: dict[str, Tensor] = {}
        for position, member in enumerate(self.members):
            prefix = MEMBER.format(position) if len(self.members) > 1 else ""
            for name, tensor in member.model.state_dict().items():
                weights[prefix + name] = tensor.contiguous().cpu()
        paths.weights.write_bytes(save(weights))
        write_text(paths.config, self.describe())

    def describe(self) -> str:
        """The content of config.toml: all that the model is but its weights."""
        calibration = {"temperature": self.temperature}
        if self.abstain_below is not None:
            calibration["abstain_below"] = self.abstain_below
        return (
            "# What rebuilds the model; `mmsearch predict` reads it.\n"
            + _table("[bundle]", {"format": FORMAT})
            + _table("[trained_on]", _describe(self.trained))
            + _table("[calibration]", calibration)
            + "".join(_table("[[member]]", member.hyperparameters) for member in self.members)
        )

    @staticmethod
    def load(folder: str | Path) -> Bundle:
        """Read a bundle; raises `BundleError` with the file that is missing or damaged."""
        folder = Path(folder)
        paths = BundlePaths(folder)
        try:
            said = Description.read(paths.config.read_text(encoding="utf-8"), paths.config)
            held = load_file(paths.weights)
            members = []
            for position, hyperparameters in enumerate(said.members):
                model = build_model(
                    hyperparameters, feature_shapes(said.trained.shapes, said.trained.rate, hyperparameters)
                )
                prefix = MEMBER.format(position) if len(said.members) > 1 else ""
                own = {name.removeprefix(prefix): tensor for name, tensor in held.items() if name.startswith(prefix)}
                model.load_state_dict(own)
                members.append(Member(model, hyperparameters))
        except FileNotFoundError as error:
            missing = error.filename or paths.weights
            raise BundleError(f"{missing}: no such file; a bundle is a folder that retrain-best made") from None
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise BundleError(f"{folder}: not a bundle, or damaged: {str(error).splitlines()[0]}") from None
        return Bundle(tuple(members), said.trained, folder, said.temperature, said.abstain_below)


@dataclass(frozen=True)
class Description:
    """What config.toml says of a model: all but its weights."""

    trained: Trained
    members: tuple[Hyperparameters, ...]
    temperature: float
    abstain_below: float | None

    @staticmethod
    def read(text: str, origin: str | Path) -> Description:
        """The reverse of `Bundle.describe`; raises `BundleError`, which names `origin`.

        Format 2, of one model without a calibration, is read too.
        """
        try:
            held = tomllib.loads(text)
            if held["bundle"]["format"] not in (2, FORMAT):
                raise BundleError(f"{origin}: made by another version: its format is not {FORMAT}")
            members = held["member"] if held["bundle"]["format"] == FORMAT else [held["hyperparameters"]]
            calibration = held.get("calibration", {})
            threshold = calibration.get("abstain_below")
            return Description(
                _trained(held["trained_on"]),
                tuple(
                    Hyperparameters({name: TABLE[name].check(value) for name, value in member.items()})
                    for member in members
                ),
                float(calibration.get("temperature", 1.0)),
                None if threshold is None else float(threshold),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"{origin}: not a bundle's, or damaged: {str(error).splitlines()[0]}") from None


def mean_logits(logits: Tensor) -> Tensor:
    """(members, n, classes) logits -> (n, classes): one member's own, or the logarithm of the mean probability."""
    if len(logits) == 1:
        return logits[0]
    return torch.logsumexp(torch.log_softmax(logits, dim=2), dim=0) - math.log(len(logits))


def _describe(trained: Trained) -> dict[str, Any]:
    shapes, pixels = trained.shapes, trained.pixels
    return {
        "classes": trained.classes,
        "image_shape": shapes.image,
        "audio_shape": shapes.audio,
        "pixels": (pixels.low, pixels.high),
        "pixel_scale": pixels.scale,
        **({} if trained.rate is None else {"sample_rate": trained.rate, "audio_scale": trained.audio_scale}),
    }


def _trained(held: Mapping[str, Any]) -> Trained:
    shapes = Shapes(tuple(held["image_shape"]), tuple(held["audio_shape"]), len(held["classes"]))
    low, high = held["pixels"]
    rate = held.get("sample_rate")
    return Trained(
        shapes,
        tuple(held["classes"]),
        Pixels(low, high, held["pixel_scale"]),
        None if rate is None else int(rate),
        float(held.get("audio_scale", 1.0)),
    )


def _table(header: str, values: Mapping[str, Any]) -> str:
    """A flat TOML table; JSON's texts, numbers and flags are TOML's too, but for one character."""
    lines = [f"{json.dumps(key)} = {_value(value)}" for key, value in values.items()]
    return "\n".join([f"\n{header}", *lines]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
