"""The encoders and fusions by name, and what each of them is: what a study file says is looked up here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, TypeVar

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Base of the encoders of one modality: an input becomes tokens, and the tokens one embedding.

    Constructed with the shape of a row and, as keywords, the parameters that `hyperparameters.TABLE` lists under the
    encoder's name. `width` is the size of the embedding, `token_width` that of a token.
    """

    width: int
    token_width: int

    @abstractmethod
    def tokens(self, values: Tensor) -> Tensor:
        """(B, *shape) -> (B, tokens, token_width): what was found where, or when."""

    def summarise(self, tokens: Tensor) -> Tensor:
        """(B, tokens, token_width) -> (B, width), without parameters of its own: all tokens, one beside the other."""
        return tokens.flatten(1)

    def forward(self, values: Tensor) -> Tensor:
        """(B, *shape) -> embedding (B, width)."""
        return self.summarise(self.tokens(values))


class Fusion(nn.Module):
    """Base of the fusions: what two encoders found becomes one embedding (B, width), and that the logits.

    Constructed with the widths of what it `reads`: both embeddings (B, width), or the tokens (B, tokens, width).
    """

    reads: ClassVar[Literal["embeddings", "tokens"]] = "embeddings"
    width: int

    def head(self, make: Callable[[int], nn.Module]) -> nn.Module:
        """What makes logits (B, classes) of this fusion's embedding; `make` makes a head for a width."""
        return make(self.width)


Module = TypeVar("Module", bound=nn.Module)

IMAGE_ENCODERS: dict[str, type[Encoder]] = {}
AUDIO_ENCODERS: dict[str, type[Encoder]] = {}
FUSIONS: dict[str, type[Fusion]] = {}


def register(name: str, *registries: dict[str, type[Module]]) -> Callable[[type[Module]], type[Module]]:
    """Class decorator: enter the class under `name`; raises `ValueError` where the name is taken."""

    def enter(module: type[Module]) -> type[Module]:
        for registry in registries:
            if name in registry:
                raise ValueError(f"{name} is registered already, as {registry[name].__name__}")
            registry[name] = module
        return module

    return enter
