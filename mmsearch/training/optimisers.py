"""Optimisers, learning-rate schedules and losses, by the names that study files use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from mmsearch.hyperparameters import Hyperparameters

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def build_optimiser(parameters: Iterable[nn.Parameter], hyperparameters: Hyperparameters) -> torch.optim.Optimizer:
    """The optimiser over a model's parameters."""
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


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """(classes,) weights by inverse class size, with a mean of 1 over the rows; 0 for a class without rows."""
    counts = torch.bincount(labels, minlength=classes).float()
    present = counts > 0
    weights = torch.zeros(classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def build_loss(hyperparameters: Hyperparameters, labels: Tensor, classes: int) -> nn.CrossEntropyLoss:
    """Cross-entropy over logits (B, classes) and class indices (B,); `labels` are those of the training rows."""
    weighted = hyperparameters["loss.name"] == "weighted_cross_entropy"
    return nn.CrossEntropyLoss(
        weight=class_weights(labels, classes) if weighted else None,
        label_smoothing=hyperparameters["loss.label_smoothing"],
    )
