"""Scores out of a confusion matrix: rows are true classes, columns predicted ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Counts = npt.NDArray[np.int64]  # (classes, classes)


class Confusion:
    """Counts of true and predicted classes, and the summed loss, gathered on the model's device."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.rows = 0

    def add(self, logits: Tensor, label: Tensor, loss: Tensor) -> None:
        """One batch: logits (B, classes), label (B,), and the batch's mean loss."""
        pairs = label * self.classes + logits.detach().argmax(1)
        self.counts.scatter_add_(0, pairs, torch.ones_like(pairs))  # on a GPU, bincount waits for the numbers
        self.loss_sum += loss.detach().double() * len(label)
        self.rows += len(label)

    def loss(self) -> float:
        """The mean loss of a row."""
        return float(self.loss_sum) / self.rows

    def matrix(self) -> Counts:
        """(classes, classes) counts."""
        found: Counts = self.counts.view(self.classes, self.classes).cpu().numpy()
        return found


def accuracy(matrix: Counts) -> float:
    """The share of rows whose class is predicted."""
    return float(np.trace(matrix) / matrix.sum())


def macro_f1(matrix: Counts) -> float:
    """The plain mean of the classes' F1 scores; classes that are neither present nor predicted are left out.

    As scikit-learn's `f1_score(average="macro", zero_division=0)` computes it.
    """
    hits, both = np.diag(matrix).astype(float), (matrix.sum(0) + matrix.sum(1)).astype(float)
    return float(np.mean(2 * hits[both > 0] / both[both > 0]))
