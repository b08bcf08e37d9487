"""The encoders and fusions by name: what a study file says is looked up here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn


class Embedding(nn.Module):
    """Base of encoders and fusions: a module whose output is (B, width)."""

    width: int


Module = TypeVar("Module", bound=type[Embedding])

IMAGE_ENCODERS: dict[str, type[Embedding]] = {}
AUDIO_ENCODERS: dict[str, type[Embedding]] = {}
FUSIONS: dict[str, type[Embedding]] = {}


def register(name: str, *registries: dict[str, type[Embedding]]) -> Callable[[Module], Module]:
    """Class decorator: enter the class under `name`; raises `ValueError` where the name is taken."""

    def enter(module: Module) -> Module:
        for registry in registries:
            if name in registry:
                raise ValueError(f"{name} is registered already, as {registry[name].__name__}")
            registry[name] = module
        return module

    return enter
