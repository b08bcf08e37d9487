"""Which rows a retrained model is scored on, and the scores themselves: labels and logits in, numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import Tensor
from torch.nn import functional

from mmsearch.data.dataset import Dataset, Index, Split
from mmsearch.results.bundle import Bundle
from mmsearch.results.statistics import bootstrap, confusion, expected_calibration_error, wilson
from mmsearch.search.progress import plural
from mmsearch.training.metrics import accuracy, macro_f1

FEW_MISTAKES = 5  # fewer than that, and a bootstrap interval covers the truth too seldom


def scored_split(dataset: Dataset) -> tuple[str, Split]:
    """The rows that a retrained model is judged by, and their name in metrics.json.

    `test`, else `held_back`, else `training`: the first of them that has labels.
    """
    return next((name, split) for name, split in labelled_splits(dataset).items() if split is not None)


def labelled_splits(dataset: Dataset) -> dict[str, Split | None]:
    """All rows that can be scored, by their name in metrics.json; None where there are none with labels."""
    known = dataset.test is not None and dataset.test.label is not None
    return {
        "test": dataset.test if known else None,
        "held_back": dataset.held_back,
        "training": dataset.train,
    }


def softened(logits: Tensor, temperature: float) -> npt.NDArray[np.float32]:
    """(n, classes) probabilities of logits, as a bundle of that temperature gives them."""
    found: npt.NDArray[np.float32] = torch.softmax(logits / temperature, dim=1).numpy()
    return found


def log_loss(logits: Tensor, labels: Index, temperature: float = 1.0) -> float:
    """The mean cross-entropy of a row, in nats."""
    return float(functional.cross_entropy(logits.double() / temperature, torch.from_numpy(labels)))


def certainty(
    probabilities: npt.NDArray[np.float32], labels: Index
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """(n,) each row's confidence, which is its greatest probability, and whether that class is right."""
    return probabilities.max(1), probabilities.argmax(1) == labels


def calibration_error(logits: Tensor, labels: Index, temperature: float = 1.0) -> float:
    """The expected calibration error of the most probable class."""
    return expected_calibration_error(*certainty(softened(logits, temperature), labels))


def score(bundle: Bundle, logits: Tensor, labels: Index) -> dict[str, Any]:
    """What metrics.json holds of labelled rows. logits: (n, classes), before the temperature; labels: (n,).

    Intervals are of 95 %: Wilson's of the accuracy, and by bootstrap over rows of the macro F1, which is too narrow
    where there are few `mistakes` (see `few_mistakes`). `kept`, where the bundle may abstain, is the share of rows
    of which it says something, and the accuracy there.
    """
    count = len(bundle.classes)
    probabilities = softened(logits, bundle.temperature)
    predicted = probabilities.argmax(1)
    matrix = confusion(labels, predicted, count)
    cells = labels * count + predicted

    def again(drawn: Index) -> float:
        return macro_f1(np.bincount(cells[drawn], minlength=count * count).reshape(count, count))

    (f1_interval,) = bootstrap(again, len(labels))
    correct = int(np.trace(matrix))
    per_class = precision_recall_fscore_support(labels, predicted, labels=range(count), zero_division=0)
    names = ("precision", "recall", "f1-score", "support")
    return {
        "rows": len(labels),
        "mistakes": len(labels) - correct,
        "accuracy": accuracy(matrix),
        "accuracy_interval": list(wilson(correct, len(labels))),
        "macro_f1": macro_f1(matrix),
        "macro_f1_interval": list(f1_interval),
        "log_loss": log_loss(logits, labels, bundle.temperature),
        "ece": calibration_error(logits, labels, bundle.temperature),
        "ece_uncalibrated": calibration_error(logits, labels),
        "kept": None if bundle.abstain_below is None else _kept(bundle.abstain_below, probabilities, labels),
        "per_class": {
            held: dict(zip(names, (part[i].item() for part in per_class), strict=True))
            for i, held in enumerate(bundle.classes)
        },
        "confusion_matrix": matrix.tolist(),
    }


def _kept(threshold: float, probabilities: npt.NDArray[np.float32], labels: Index) -> dict[str, float | None]:
    coverage, right = kept(*certainty(probabilities, labels), threshold)
    return {"coverage": coverage, "accuracy": right}


def kept(
    confidence: npt.NDArray[np.float32], correct: npt.NDArray[np.bool_], threshold: float
) -> tuple[float, float | None]:
    """The share of rows whose confidence is not below a threshold, and their accuracy; None where there are none."""
    held = confidence >= np.float32(threshold)
    return float(held.mean()), float(correct[held].mean()) if held.any() else None


def few_mistakes(mistakes: int, rows: int) -> str | None:
    """Why the bootstrap interval of a score says too little, without an end; None where the mistakes are enough.

    Rows drawn again from few mistakes have hardly others, and from none the same score each time. Then the share of new
    rows that are wrong may still be 3/rows: the rule of three, Hanley and Lippman-Hand, "If nothing goes wrong, is
    everything all right?" (1983).
    """
    if mistakes >= FEW_MISTAKES:
        return None
    if mistakes:
        return f"the bootstrap interval of the macro F1 is too narrow, since it rests on {plural(mistakes, 'mistake')}"
    return (
        "the bootstrap interval of the macro F1 is too narrow, since no row was wrong: of new rows up to "
        f"{min(1.0, 3 / rows):.2%} may be"
    )


def little_gain(differing: int, rows: int) -> str | None:
    """The same of a fusion gain, with both and with the better one alone so many rows get different classes."""
    if differing >= FEW_MISTAKES:
        return None
    if differing:
        return f"the interval of the fusion gain is too narrow, since it rests on {plural(differing, 'row')}"
    return (
        "the interval of the fusion gain is too narrow, since the better one alone says the same of every row: of new "
        f"rows up to {min(1.0, 3 / rows):.2%} may differ"
    )
