"""The encoders and fusions by name: what a study file says is looked up here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=type[nn.Module])

IMAGE_ENCODERS: dict[str, type[nn.Module]] = {}
AUDIO_ENCODERS: dict[str, type[nn.Module]] = {}
FUSIONS: dict[str, type[nn.Module]] = {}


def register(name: str, *registries: dict[str, type[nn.Module]]) -> Callable[[Module], Module]:
    """Class decorator: enter the class under `name`; raises `ValueError` where the name is taken."""

    def enter(module: Module) -> Module:
        for registry in registries:
            if name in registry:
                raise ValueError(f"{name} is registered already, as {registry[name].__name__}")
            registry[name] = module
        return module

    return enter
