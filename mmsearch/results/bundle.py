"""A bundle: a folder with a model's weights and what rebuilds it. Needs no study and no Optuna."""

from __future__ import annotations

import json
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

from mmsearch.data.dataset import Array, Pixels, Shapes, Split, Trained
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.data.sources import rows_from_arrays
from mmsearch.errors import BundleError
from mmsearch.hyperparameters import TABLE, Hyperparameters
from mmsearch.models.factory import MultimodalClassifier, build_model
from mmsearch.paths import BundlePaths, write_text
from mmsearch.training.fit import predict_logits

FORMAT = 2


@dataclass(frozen=True)
class Bundle:
    """A trained model with its hyperparameters and what it was trained on."""

    model: MultimodalClassifier
    hyperparameters: Hyperparameters
    trained: Trained
    folder: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.trained.classes

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
        if without == "audio":  # then nobody looks at the features
            shape = (len(split.audio), *self.model.shapes.audio)
            split = replace(split, audio=np.broadcast_to(np.float32(0), shape))
        else:
            split = with_features(split, self.trained.rate, self.hyperparameters, cache)
        logits = predict_logits(self.model, split, device or torch.device("cpu"), without=without)
        found: npt.NDArray[np.float32] = torch.softmax(logits, dim=1).numpy()
        return found

    def save(self, folder: Path) -> None:
        """Write weights and configuration into `folder`."""
        paths = BundlePaths(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous().cpu() for name, tensor in self.model.state_dict().items()}
        paths.weights.write_bytes(save(weights))
        write_text(
            paths.config,
            "# What rebuilds the model; `mmsearch predict` reads it.\n"
            + _table("bundle", {"format": FORMAT})
            + _table("trained_on", _describe(self.trained))
            + _table("hyperparameters", self.hyperparameters),
        )

    @staticmethod
    def load(folder: str | Path) -> Bundle:
        """Read a bundle; raises `BundleError` with the file that is missing or damaged."""
        folder = Path(folder)
        paths = BundlePaths(folder)
        try:
            held = tomllib.loads(paths.config.read_text(encoding="utf-8"))
            if held["bundle"]["format"] != FORMAT:
                raise BundleError(f"{paths.config}: made by another version: its format is not {FORMAT}")
            trained = _trained(held["trained_on"])
            hyperparameters = Hyperparameters(
                {name: TABLE[name].check(value) for name, value in held["hyperparameters"].items()}
            )
            model = build_model(hyperparameters, feature_shapes(trained.shapes, trained.rate, hyperparameters))
            model.load_state_dict(load_file(paths.weights))
        except FileNotFoundError as error:
            missing = error.filename or paths.weights
            raise BundleError(f"{missing}: no such file; a bundle is a folder that retrain-best made") from None
        except (OSError, KeyError, ValueError, TypeError, RuntimeError, safetensors.SafetensorError) as error:
            raise BundleError(f"{folder}: not a bundle, or damaged: {str(error).splitlines()[0]}") from None
        return Bundle(model, hyperparameters, trained, folder)


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


def _table(name: str, values: Mapping[str, Any]) -> str:
    """A flat TOML table; JSON's texts, numbers and flags are TOML's too, but for one character."""
    lines = [f"{json.dumps(key)} = {_value(value)}" for key, value in values.items()]
    return "\n".join([f"\n[{name}]", *lines]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(_value(part) for part in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
