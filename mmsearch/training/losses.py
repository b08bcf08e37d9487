"""Losses by the names that study files use, and the L1 penalty."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.hyperparameters import Hyperparameters

Loss = Callable[[Tensor, Tensor], Tensor]

_SMALLEST = 1e-8  # stands in for 1 - p = 0, where a power below 1 has no finite slope


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (B, classes), where rows count by the weight (classes,) of their class.

    target: class indices (B,), or probabilities (B, classes). `smoothing` is the share of each target that is spread
    evenly over all classes (Szegedy et al., arXiv 1512.00567). Indices and their one-hot probabilities give the same.
    """
    if not target.is_floating_point():
        return functional.cross_entropy(logits, target, weight, label_smoothing=smoothing)
    total = functional.cross_entropy(logits, target, weight, label_smoothing=smoothing, reduction="sum")
    return total / (len(target) if weight is None else (target @ weight).sum())


def focal(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, smoothing: float = 0.0, *, gamma: float
) -> Tensor:
    """Cross-entropy in which a class predicted with probability p counts (1 - p) ** gamma; the same where gamma is 0.

    Lin et al., "Focal loss for dense object detection" (arXiv 1708.02002). Arguments as in `cross_entropy`.
    """
    classes = logits.shape[1]
    if not target.is_floating_point():
        target = functional.one_hot(target, classes).to(logits.dtype)
    log_p = functional.log_softmax(logits, dim=1)
    easy = (1 - log_p.exp()).clamp_min(_SMALLEST) ** gamma
    terms = easy * log_p * torch.lerp(target, torch.full_like(target, 1 / classes), smoothing)
    if weight is None:
        return -terms.sum() / len(target)
    return -(terms @ weight).sum() / (target @ weight).sum()


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "focal": focal}


def build_loss(hyperparameters: Hyperparameters, labels: Tensor, classes: int, device: torch.device) -> Loss:
    """The loss of logits (B, classes) and targets on a device; `labels` (n,) are those of the training rows."""
    name = hyperparameters["loss.name"]
    balanced = hyperparameters["loss.class_weights"] == "balanced"
    return partial(
        LOSSES[name],
        weight=class_weights(labels, classes).to(device) if balanced else None,
        smoothing=hyperparameters["loss.label_smoothing"],
        **hyperparameters.under(f"loss.{name}"),
    )


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """(classes,) weights by inverse class size, with a mean of 1 over the rows; 0 for a class without rows."""
    counts = torch.bincount(labels, minlength=classes).float()
    present = counts > 0
    weights = torch.zeros(classes)
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


def weight_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of dense, convolutional and recurrent layers; no biases, normalisations or learned positions."""
    return [p for name, p in model.named_parameters() if "weight" in name.rpartition(".")[2] and p.dim() >= 2]


def l1_norm(weights: Iterable[Tensor]) -> Tensor:
    """The sum of the sizes of all the numbers in `weights`."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()
