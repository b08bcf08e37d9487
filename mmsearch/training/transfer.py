"""Weights of a model that was trained before: taken over where they fit, and kept still at first where wanted."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor, nn

from mmsearch.errors import BundleError
from mmsearch.models.factory import PARTS, MultimodalClassifier
from mmsearch.paths import BundlePaths

# what a model knows of its training rows, which are others now
OF_THE_DATA = ("image_mean", "image_std", "audio_mean", "audio_std", "mean_image", "mean_audio")

MEMBER = "member.{}."  # before the names of tensors in the bundle of an ensemble

_SHOWN = 3  # tensors that `describe` names


@dataclass(frozen=True)
class Transfer:
    """Which of a model's tensors came from a bundle, and why the others did not, each by its name.

    `unlike` are the model's parts that are of another kind there: nothing of them is taken over.
    """

    folder: Path
    loaded: tuple[str, ...]
    left: dict[str, str]
    unlike: dict[str, str]

    def describe(self) -> str:
        """How many tensors were taken over, and what stayed as it was, in one sentence."""
        whole = len(self.loaded) + len(self.left)
        text = f"{len(self.loaded)} of the model's {whole} tensors start as in {self.folder}"
        if not self.left:
            return text
        single = {name: reason for name, reason in self.left.items() if _part(name) not in self.unlike}
        fresh = [f"all of {part} ({reason})" for part, reason in self.unlike.items()]
        fresh += [f"{name} ({reason})" for name, reason in list(single.items())[:_SHOWN]]
        more = len(single) - _SHOWN
        return f"{text}; fresh: {', '.join(fresh)}{f' and {more} more' if more > 0 else ''}"


def load_weights(model: MultimodalClassifier, folder: Path) -> Transfer:
    """Copy into `model` each tensor of a bundle whose name and shape fit, batch-norm statistics included.

    Of an ensemble the first member counts. Nothing is taken over between encoders, or fusions, of different kinds. The
    normalisation and mean rows stay those of the model's own data. Raises `BundleError` where the bundle is missing or
    damaged, or where no weight fits.
    """
    path, first = BundlePaths(folder).weights, MEMBER.format(0)
    try:
        held = {name.removeprefix(first): tensor for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file; a bundle is a folder that retrain-best made") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path}: not weights, or damaged: {str(error).splitlines()[0]}") from None
    wanted = {name: place for name, place in model.state_dict().items() if name not in OF_THE_DATA}
    there = _kinds(folder)
    unlike = {
        part: f"{there[part]} there, {here} here" for part, here in model.kinds.items() if there.get(part, here) != here
    }
    left = {
        name: reason
        for name, place in wanted.items()
        if (reason := unlike.get(_part(name)) or _misfit(place, held.get(name)))
    }
    loaded = tuple(name for name in wanted if name not in left)
    if not any(name in loaded for name, _ in model.named_parameters()):
        reasons = {part.replace("_", " "): reason for part, reason in unlike.items()} or left
        named = ", ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:_SHOWN])
        raise BundleError(f"{path}: none of its weights fits this model; {named}")
    for name in loaded:
        wanted[name].copy_(held[name])
    return Transfer(folder, loaded, left, unlike)


def _part(name: str) -> str:
    """The part of the model that a tensor belongs to."""
    return name.partition(".")[0]


def _kinds(folder: Path) -> dict[str, str]:
    """What each part of a bundle's model is; nothing where the bundle does not say."""
    path = BundlePaths(folder).config
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not a bundle's, or damaged: {error}") from None
    held = next(iter(found.get("member", ())), found.get("hyperparameters", {}))  # the latter in bundles of format 2
    return {part: held[name] for part, name in PARTS.items() if name in held}


def _misfit(place: Tensor, found: Tensor | None) -> str:
    """Why a tensor cannot be taken over; an empty text where it can."""
    if found is None:
        return "not in the bundle"
    return "" if found.shape == place.shape else f"{_shape(found)} there, {_shape(place)} here"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def parameter_groups(model: nn.Module, names: Collection[str]) -> list[dict[str, list[nn.Parameter]]]:
    """A model's parameters for an optimiser, those of these names in a group of their own.

    torch's fused SGD takes it that all parameters of a group have momentum once one of them has. Buffers may be named
    too. Raises `ValueError` for a name that the model does not have.
    """
    if unknown := sorted(set(names) - set(model.state_dict())):
        raise ValueError(f"the model has no parameter {', '.join(unknown)}")
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        groups[name in names].append(parameter)
    return [{"params": group} for group in groups if group]


@contextmanager
def held_still(model: nn.Module, names: Collection[str]) -> Iterator[None]:
    """While it lasts, the parameters of these names get no gradient, and so no update of any kind.

    A batch normalisation whose parameters are all among them keeps, and uses, the statistics that it has. To be
    entered with the model in training mode.
    """
    parameters = [parameter for name, parameter in model.named_parameters() if name in names]
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    norms = [module for name, module in model.named_modules() if _is_held(name, module, names)]
    for module in norms:
        module.eval()
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module in norms:
            module.train()


def _is_held(name: str, module: nn.Module, names: Collection[str]) -> bool:
    own = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
    keeps_statistics = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    return keeps_statistics and bool(own) and all(parameter in names for parameter in own)
