"""How sure a model may be: a temperature for its logits, and a confidence below which it says nothing.

Both are fitted on training rows by models that were not trained on them; the retrained model takes them over.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, Index, Split
from mmsearch.data.splits import validation_splits
from mmsearch.errors import UsageError
from mmsearch.results.bundle import Bundle, Member
from mmsearch.results.plans import PlannedMember
from mmsearch.results.scores import calibration_error, certainty, kept, log_loss, softened

BOUNDS = (0.1, 10.0)  # of a temperature
FEW_ROWS = 100  # below which a temperature is little more than a guess
CURVE_POINTS = 100

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Threshold:
    """A confidence below which a model abstains: given as a number, or by the accuracy or coverage that it brings."""

    kind: Literal["confidence", "accuracy", "coverage"]
    value: float
    asked: str

    @staticmethod
    def parse(asked: str | float) -> Threshold:
        """`0.9`, `accuracy=0.999` or `coverage=0.95`; raises `UsageError`."""
        name, sign, text = str(asked).rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if name not in (("accuracy", "coverage") if sign else ("",)) or not 0 <= value <= 1:
            raise UsageError(
                f'--abstain-below "{asked}" is not possible: give a confidence from 0 to 1, or the share that is to be '
                "reached, as accuracy=0.999 or coverage=0.95"
            )
        if name == "accuracy":
            return Threshold("accuracy", value, str(asked))
        return Threshold("coverage" if name else "confidence", value, str(asked))

    def of(self, confidence: Floats, correct: Flags) -> float | None:
        """The confidence below which to abstain, by rows (n,) of known confidence and correctness.

        By accuracy: the smallest threshold whose kept rows reach it; None where none does. By coverage: the greatest
        one that keeps at least that share. It lies between the confidences of two rows.
        """
        if self.kind == "confidence":
            return self.value
        levels, coverage, accuracy = kept_by_level(confidence, correct)
        if self.kind == "accuracy":
            reached = np.flatnonzero(accuracy >= self.value - 1e-12)
            if not len(reached):
                return None
            place = int(reached[-1])
        else:
            place = int(np.flatnonzero(coverage >= self.value - 1e-12)[0])
        if place == len(levels) - 1:  # all rows are kept
            return 0.0
        between = np.float32((float(levels[place]) + float(levels[place + 1])) / 2)
        return float(between if between > levels[place + 1] else levels[place])


def kept_by_level(
    confidence: Floats, correct: Flags
) -> tuple[Floats, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The confidences that occur, the greatest first; the share of rows that have at least so much; its accuracy."""
    order = np.argsort(-confidence, kind="stable")
    ranked, right = confidence[order], np.cumsum(correct[order])
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # rows of a confidence stay or go together
    return ranked[last], (last + 1) / len(ranked), right[last] / (last + 1)


def abstention_curve(confidence: Floats, correct: Flags) -> list[dict[str, float]]:
    """Coverage and accuracy by threshold, which rises: about one point for each hundredth of coverage."""
    levels, coverage, accuracy = kept_by_level(confidence, correct)
    shares = np.linspace(1, 1 / CURVE_POINTS, CURVE_POINTS)
    places = np.unique(np.searchsorted(coverage, shares - 1e-12))[::-1]
    return [
        {
            "threshold": 0.0 if place == len(levels) - 1 else float(levels[place]),
            "coverage": float(coverage[place]),
            "accuracy": float(accuracy[place]),
        }
        for place in places.tolist()
    ]


def fit_temperature(logits: Tensor, labels: Index) -> float:
    """The temperature by which to divide logits (n, classes) so that the log loss on labels (n,) is smallest.

    Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599), section 4.2. It lies within `BOUNDS`.
    Where each row's most probable class is right, the loss only falls with the temperature, down to certainty, which
    no finite number of rows can show: then it is at least 1.
    """
    low, high = BOUNDS
    if bool((logits.argmax(1).numpy() == labels).all()):
        low = 1.0

    def loss(exponent: float) -> float:
        return log_loss(logits, labels, math.exp(exponent))

    found = minimize_scalar(loss, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-5})
    ends = (math.log(low), math.log(high), float(found.x))  # the method never tries the ends themselves
    return math.exp(min(ends, key=loss))


@dataclass(frozen=True)
class Unseen:
    """Logits (n, classes) of training rows, by models that were not trained on them, and the rows' labels (n,).

    `origin` says whose they are; `seconds` is what the trainings took.
    """

    logits: Tensor
    labels: Index
    origin: str
    seconds: float


def unseen_logits(
    config: StudyConfig,
    dataset: Dataset,
    members: tuple[PlannedMember, ...],
    device: torch.device,
    train: Callable[[Split, PlannedMember], Member],
) -> Unseen:
    """Train the planned members without the validation rows, of each fold with k-fold, and hear them on those.

    `train` makes a member of raw rows. The epochs are those that were best on the same validation rows.
    """
    started = time.perf_counter()
    logits, labels = [], []
    folds = validation_splits(dataset, config)
    for rows, held_out in folds:
        bundle = Bundle(tuple(train(rows, planned) for planned in members), dataset.trained, Path())
        logits.append(bundle.logits(held_out, device, cache=config.storage_paths.cache))
        labels.append(held_out.labels)
    origin = "out of fold" if len(folds) > 1 else "validation rows, by a model trained without them"
    return Unseen(torch.cat(logits), np.concatenate(labels), origin, time.perf_counter() - started)


@dataclass(frozen=True)
class Calibration:
    """A temperature and, where one was asked for, a threshold, with what they bring on the rows they are fitted on."""

    temperature: float
    abstain_below: float | None
    unseen: Unseen
    asked: Threshold | None

    @staticmethod
    def fit(unseen: Unseen, asked: Threshold | None) -> Calibration:
        """Fit both on rows that the fitting models have not seen."""
        temperature = fit_temperature(unseen.logits, unseen.labels)
        held = certainty(softened(unseen.logits, temperature), unseen.labels)
        return Calibration(temperature, None if asked is None else asked.of(*held), unseen, asked)

    def describe(self) -> dict[str, Any]:
        """What metrics.json holds of it; all measured on the unseen rows."""
        unseen, temperature = self.unseen, self.temperature
        held = certainty(softened(unseen.logits, temperature), unseen.labels)
        coverage, right = kept(*held, self.abstain_below or 0.0)
        return {
            "temperature": temperature,
            "rows": len(unseen.labels),
            "fitted_on": unseen.origin,
            "ece_before": calibration_error(unseen.logits, unseen.labels),
            "ece_after": calibration_error(unseen.logits, unseen.labels, temperature),
            "log_loss_before": log_loss(unseen.logits, unseen.labels),
            "log_loss_after": log_loss(unseen.logits, unseen.labels, temperature),
            "abstain_below": self.abstain_below,
            "asked": None if self.asked is None else self.asked.asked,
            "coverage": coverage,
            "accuracy_kept": right,
            "seconds": round(unseen.seconds, 2),
            "remarks": self._remarks(),
        }

    def _remarks(self) -> list[str]:
        """What to know before one relies on it, a sentence each."""
        rows = len(self.unseen.labels)
        found = []
        if rows < FEW_ROWS:
            found.append(f"{rows} unseen rows are few for a calibration: it may be far off")
        confidence, correct = certainty(softened(self.unseen.logits, self.temperature), self.unseen.labels)
        if correct.all():
            found.append(f"none of the {rows} unseen rows is predicted wrong, so that the model is not made surer")
        elif not BOUNDS[0] * 1.001 < self.temperature < BOUNDS[1] / 1.001:
            found.append(f"the temperature ended at its bound, {self.temperature:g}")
        if self.asked is not None and self.abstain_below is None:
            best = kept_by_level(confidence, correct)[2].max()
            found.append(
                f"no threshold brings an accuracy of {self.asked.value:g} on the {rows} unseen rows, at most "
                f"{best:.4f}: the model never abstains"
            )
        elif self.asked is not None and self.asked.kind != "confidence" and self.abstain_below == 0:
            found.append(f"{self.asked.asked} holds with all {rows} unseen rows: the model never abstains")
        return found
