"""What a configuration costs, told from its shapes alone: nothing is computed, no memory is taken.

These guesses rank configurations and tell how far apart they lie; seconds and bytes are measured (`probes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mmsearch.data.dataset import Shapes
from mmsearch.hyperparameters import Hyperparameters, Value
from mmsearch.models.factory import build_model
from mmsearch.spaces import Choices, Range, Space

# Of a usual core, to weigh one against the other; their scale cancels out once something was measured.
FLOPS_S, VALUES_S, CALLS_S = 5e10, 1e9, 1e5
BACKWARD = 2.0  # times the forward pass
STATES = {"adam": 2, "adamw": 2, "sgd": 1}  # numbers that an optimiser keeps for each parameter
# The rest of the parameters change what is learned, and not what it costs; those of `_EXTRA` cost something above 0.
_SIZES = ("image.", "audio.", "fusion.", "head.", "features.", "batch_size", "optimizer.name")
_EXTRA = ("augment.", "ema.", "loss.l1", "optimizer.clip")
_CALLS_A_STEP = 8
_GATES = {"LSTM": 4, "GRU": 3}
SWEEPS = 3  # over all parameters, at most


@dataclass(frozen=True)
class Cost:
    """Of one configuration: the model's parameters, a guess of seconds an epoch, and of bytes in a training step."""

    parameters: int
    seconds: float
    memory: float


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, their floating-point operations and the values they return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = self.flops = self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.calls += 1
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found)
        if isinstance(found, Tensor):
            self.values += found.numel()
        return found


class _Fused(TorchFunctionMode):
    """Counts attention as it is computed, block by block: on the meta device torch would hold all of it at once."""

    def __init__(self, counter: _Counter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        queries, keys, values = args
        self.counter.calls += 1
        self.counter.flops += 4 * queries.numel() * keys.shape[-2]
        self.counter.values += queries.numel()
        return torch.empty(*queries.shape[:-1], values.shape[-1], device="meta")


class _Recurrent(nn.Module):
    """In the place of recurrent layers: counts what they would do, all at once; step by step takes a second."""

    def __init__(self, cells: nn.RNNBase, counter: _Counter) -> None:
        super().__init__()
        self.cells, self.counter = (cells,), counter

    def forward(self, values: Tensor) -> tuple[Tensor]:
        """What they return for (B, steps, features), but for the last states."""
        (cells,) = self.cells
        directions = 1 + cells.bidirectional
        weights = sum(weight.numel() for weight in cells.parameters())
        self.counter.flops += 2 * weights * values.shape[0] * values.shape[1]
        self.counter.calls += _CALLS_A_STEP * values.shape[1] * cells.num_layers * directions
        width = directions * cells.hidden_size
        gates = _GATES[cells.mode] + 2  # and both states, kept for the way back
        self.counter.values += values.shape[0] * values.shape[1] * width * gates * cells.num_layers
        return (values.new_empty(*values.shape[:2], width),)


# What is looked for: the greatest (1) or smallest (-1) of what is measured.
EXTREMES: Mapping[str, tuple[int, Callable[[Cost], float]]] = {
    "most parameters": (1, lambda cost: cost.parameters),
    "slowest": (1, lambda cost: cost.seconds),
    "most memory": (1, lambda cost: cost.memory),
    "quickest": (-1, lambda cost: cost.seconds),
}


def cost_of(hyperparameters: Hyperparameters, shapes: Shapes, rows: tuple[int, int]) -> Cost:
    """The cost of a configuration on so many training and validation rows."""
    batch = min(hyperparameters["batch_size"], rows[0])
    with torch.device("meta"):
        model = build_model(hyperparameters, shapes).train()
        parameters, counter = model.parameter_count(), _Counter()
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.RNNBase):
                    setattr(module, name, _Recurrent(child, counter))
        image, audio = torch.empty(batch, *shapes.image), torch.empty(batch, *shapes.audio)
        with _Fused(counter), counter, torch.no_grad():
            model(image, audio)
    step = counter.flops / FLOPS_S + counter.values / VALUES_S
    passes = rows[0] * (1 + BACKWARD) + rows[1]
    steps = rows[0] / batch * (1 + BACKWARD)
    kept = 2 + STATES[hyperparameters["optimizer.name"]] + (hyperparameters["ema.decay"] > 0)
    seconds = passes * step / batch + steps * counter.calls / CALLS_S
    return Cost(parameters, seconds, 4.0 * (parameters * kept + counter.values))


def extremes(
    space: Space, cost: Callable[[Hyperparameters], Cost], allowed: Callable[[int], bool] = lambda parameters: True
) -> dict[str, Hyperparameters]:
    """The configurations of a space that cost most, each in its way, and the one that is trained the quickest.

    Found from all numbers at one end by changing one parameter at a time, conditional ones included. `allowed` says
    whether a model of so many parameters is trained; where none is found that is, there is none here either.
    """
    known: dict[tuple[tuple[str, Value], ...], Cost] = {}

    def told(made: Hyperparameters) -> Cost:
        key = tuple(made.items())
        if key not in known:
            known[key] = cost(made)
        return known[key]

    found = {}
    for name, (sign, measure) in EXTREMES.items():

        def rank(
            made: Hyperparameters, sign: int = sign, measure: Callable[[Cost], float] = measure
        ) -> tuple[bool, float]:
            """Greater is wanted more: what is not allowed comes after all that is, the smaller the better."""
            fits = allowed(told(made).parameters)
            return fits, sign * measure(told(made)) if fits else -told(made).parameters

        made = _climb(space, sign, rank)
        if allowed(told(made).parameters):
            found[name] = made
    return found


def _climb(space: Space, sign: int, rank: Callable[[Hyperparameters], tuple[bool, float]]) -> Hyperparameters:
    """The configuration of the highest rank that changes of one parameter at a time lead to."""
    chosen: dict[str, Value] = {}

    def make(changed: Mapping[str, Value]) -> Hyperparameters:
        return space.walk(lambda name, dimension: changed.get(name, _end(name, dimension, sign)))

    best = make(chosen)
    height = rank(best)
    for _ in range(SWEEPS):
        before = height
        for name, dimension in space.varying().items():
            if not name.startswith(_SIZES):
                continue
            options = dimension.options if isinstance(dimension, Choices) else _ends(name, dimension)
            for option in options:
                if name not in best or option == best[name]:
                    continue
                other = make({**chosen, name: option})
                if (reached := rank(other)) > height:
                    chosen, best, height = {**chosen, name: option}, other, reached
        if height == before:
            break
    return best


def _end(name: str, dimension: Range | Choices, sign: int) -> Value:
    """Where to begin: numbers at the end that costs most, or least; what does not matter for that at its default."""
    if not name.startswith((*_SIZES, *_EXTRA)):
        return dimension.default
    if isinstance(dimension, Range):
        return _ends(name, dimension)[sign > 0]
    if isinstance(dimension.default, str | bool):
        return dimension.default
    return (max if sign > 0 else min)(dimension.options, key=float)


def _ends(name: str, dimension: Range) -> tuple[Value, Value]:
    """Both ends of a range, in its type."""
    kind = int if dimension.whole else float
    return kind(dimension.low), kind(dimension.high)
