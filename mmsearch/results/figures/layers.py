"""A model's layers as they are called: names, kinds, output shapes and parameters, found by one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmsearch.models.factory import MultimodalClassifier
from mmsearch.models.layers import DropPath
from mmsearch.results.bundle import Bundle
from mmsearch.training.transfer import MEMBER

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """A module that a forward pass called. `output` is the shape of one row of what it returned."""

    name: str
    module: nn.Module
    output: Shape


@dataclass(frozen=True, eq=False)
class Trace:
    """What a forward pass called, in the order in which it ended. `fused` are the shapes that the fusion was given."""

    calls: tuple[Call, ...]
    fused: tuple[Shape, ...]

    def output(self, name: str) -> Shape:
        """The shape of one row of what the module of this name returned."""
        return next(call.output for call in self.calls if call.name == name)


def trace(model: MultimodalClassifier) -> Trace:
    """One forward pass of one row, mean rows for an input. Leaves the model in evaluation mode."""
    calls: list[Call] = []
    fused: list[Shape] = []

    def seen(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], found: Any) -> None:
            output = found if isinstance(found, Tensor) else found[0]
            calls.append(Call(name, module, tuple(output.shape[1:])))
            if module is model.fusion:
                fused.extend(tuple(part.shape[1:]) for part in given)

        return module.register_forward_hook(hook)

    handles = [seen(name, module) for name, module in model.named_modules() if name]
    try:
        with torch.inference_mode():
            model.eval()(model.mean_image[None], model.mean_audio[None])
    finally:
        for handle in handles:
            handle.remove()
    return Trace(tuple(calls), tuple(fused))


def layer_table(bundle: Bundle) -> list[dict[str, Any]]:
    """A row for each layer: `name`, `kind`, `output_shape` of one row (such as 32x14x14), and `parameters` of its own.

    In the order of a forward pass; the parameters sum to the bundle's. Of an ensemble all members' layers.
    """
    table: list[dict[str, Any]] = []
    for position, member in enumerate(bundle.members):
        prefix = MEMBER.format(position) if len(bundle.members) > 1 else ""
        table += [
            {
                "name": prefix + call.name,
                "kind": kind(call.module),
                "output_shape": "x".join(map(str, call.output)),
                "parameters": own_parameters(call.module),
            }
            for call in trace(member.model).calls
            if counts(call.module)
        ]
    return table


def counts(module: nn.Module) -> bool:
    """Whether a module is a layer: it has no parts, or parameters of its own; what does nothing is none."""
    idle = isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and not module.p)
    return own_parameters(module) > 0 or (next(module.children(), None) is None and not idle)


def own_parameters(module: nn.Module) -> int:
    """How many numbers training adjusts in a module itself, its parts' left out."""
    return sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.requires_grad)


def all_parameters(module: nn.Module) -> int:
    """How many numbers training adjusts in a module and its parts."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def kind(module: nn.Module) -> str:
    """A module's class, and what of its settings the shapes and the parameters do not tell."""
    name = type(module).__name__
    match module:
        case nn.Conv1d() | nn.Conv2d():
            stride = f", stride {module.stride[0]}" if module.stride[0] != 1 else ""
            sides = "x".join(map(str, module.kernel_size))
            return f"{name}{', kernel' if len(module.kernel_size) == 1 else ''} {sides}{stride}"
        case nn.MaxPool2d():
            size = module.kernel_size
            return f"{name} {size if isinstance(size, int) else 'x'.join(map(str, size))}"
        case nn.Dropout() | nn.Dropout2d():
            return f"{name} {module.p:g}"
        case DropPath():
            return f"{name} {module.rate:g}"
        case nn.GroupNorm():
            return f"{name}, {module.num_groups} groups" if module.num_groups > 1 else f"{name}, 1 group"
        case nn.LSTM() | nn.GRU():
            deep = f", {module.num_layers} layers" if module.num_layers > 1 else ""
            return f"{name}{deep}{', both directions' if module.bidirectional else ''}"
    return name
