"""Optimisers and learning-rate schedules, by the names that study files use."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import torch
from torch.optim.optimizer import ParamsT

from mmsearch.hyperparameters import Hyperparameters

# Methods that torch wraps so that its compiler leaves them alone: the wrapper imports the compiler to say so.
_WRAPPED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def without_compiler(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """One of torch's optimisers that does the same, and does not load torch's compiler: 0.9 s and 70 MB a process."""
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in _WRAPPED}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": without_compiler(torch.optim.Adam),
    "adamw": without_compiler(torch.optim.AdamW),
    "sgd": without_compiler(torch.optim.SGD),
}


def build_optimiser(parameters: ParamsT, hyperparameters: Hyperparameters) -> torch.optim.Optimizer:
    """The optimiser over a model's parameters, or groups of them."""
    name = hyperparameters["optimizer.name"]
    arguments = hyperparameters.under(f"optimizer.{name}")
    if not arguments.get("momentum", 1):
        arguments["nesterov"] = False  # without momentum it is the same, and torch refuses it
    return OPTIMISERS[name](parameters, lr=hyperparameters["optimizer.lr"], fused=True, **arguments)


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then half a cosine down to 0.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (arXiv 1608.03983), without restarts.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def onecycle(progress: float, warmup: float) -> float:
    """Cosine rise from 1/25 to the peak, then cosine fall to almost nothing.

    Smith and Topin, "Super-convergence" (arXiv 1708.07120), with the start and end of torch's `OneCycleLR`.
    """
    start, end = 1 / 25, 1 / 25e4
    if progress < warmup:
        low, position = start, progress / warmup
        return low + (1 - low) * 0.5 * (1 - math.cos(math.pi * position))
    position = (progress - warmup) / (1 - warmup)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * position))


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant, "cosine": cosine, "onecycle": onecycle}


def build_schedule(
    optimiser: torch.optim.Optimizer, hyperparameters: Hyperparameters, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate over `steps` training steps, as a factor of the peak; stepped once a batch.

    The first step's progress is 1 / steps, so that a warm-up does not begin with a step of no size.
    """
    name = hyperparameters["schedule.name"]
    factor, arguments = SCHEDULES[name], hyperparameters.under(f"schedule.{name}")

    def rate(step: int) -> float:
        return factor(min(1.0, (step + 1) / (steps + 1)), **arguments)

    return torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
