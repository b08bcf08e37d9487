"""What a trial trains: one configuration, a model a fold. It knows torch and the study file, and nothing of Optuna."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, Shapes, Split, Statistics, statistics
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.data.splits import validation_splits
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.factory import MultimodalClassifier, build_model
from mmsearch.training.device import memory_told
from mmsearch.training.fit import EpochResult, Training, fit, seed_everything
from mmsearch.training.metrics import Counts
from mmsearch.training.transfer import load_weights

KEPT_FEATURES = 4  # settings of the audio features whose rows and statistics stay at hand


@dataclass(frozen=True)
class Fold:
    """The rows that one model trains on and is validated on, and the statistics of the first."""

    train: Split
    valid: Split
    statistics: Statistics


@dataclass(frozen=True)
class Prepared:
    """The data as a configuration's audio features make it: one fold, or several with k-fold validation."""

    shapes: Shapes
    folds: tuple[Fold, ...]


class Preparation:
    """A study's data, divided into training and validation rows, as each configuration wants them."""

    def __init__(self, config: StudyConfig, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset
        self._rows = validation_splits(dataset, config)
        self._kept: dict[tuple[object, ...], Prepared] = {}

    def prepared(self, hyperparameters: Hyperparameters) -> Prepared:
        """The data as these hyperparameters want it."""
        key = tuple((name, value) for name, value in hyperparameters.items() if name.startswith("features."))
        found = self._kept.pop(key, None) or self._prepare(hyperparameters)
        self._kept[key] = found  # the latest last
        if len(self._kept) > KEPT_FEATURES:
            del self._kept[next(iter(self._kept))]
        return found

    def _prepare(self, hyperparameters: Hyperparameters) -> Prepared:
        dataset, cache = self.dataset, self.config.storage_paths.cache
        rows = with_features(dataset.train, dataset.rate, hyperparameters, cache)
        folds = [(rows.only(train.rows), rows.only(valid.rows)) for train, valid in self._rows]
        return Prepared(
            feature_shapes(dataset.shapes, dataset.rate, hyperparameters),
            tuple(Fold(train, valid, statistics(train)) for train, valid in folds),
        )


class TrialTraining(Iterator[tuple[int, EpochResult]]):
    """The training of one configuration, as a trial does it: an iterator of (fold, its epoch's result), from 1.

    `first_number`, from which its seeds derive, is that of the trial's first attempt, or the one it was queued with.
    `on_note` is told what of the weights to begin with did not fit. Making it builds the first model. Raises
    `LossNotFinite` and `OutOfMemory`.
    """

    def __init__(
        self,
        config: StudyConfig,
        prepared: Prepared,
        hyperparameters: Hyperparameters,
        *,
        first_number: int,
        device: torch.device,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config, self.prepared, self.hyperparameters = config, prepared, hyperparameters
        self.first_number, self.device, self.on_note = first_number, device, on_note
        self.results: list[list[EpochResult]] = [[]]  # a list a fold; the last one may not be whole
        self._ended: Counts | None = None  # confusions of the folds that ended, summed
        self._best: Counts | None = None  # of the best epoch of the fold that is under way
        self.whole = True  # between two epochs; not after one that broke off
        self.model, self._training = self._begin(1)
        self.parameters = self.model.parameter_count()

    @property
    def fold(self) -> int:
        """The fold that is under way, or was the last."""
        return len(self.results)

    @property
    def over(self) -> bool:
        """Whether no epoch is left in any fold."""
        return self.fold == len(self.prepared.folds) and self._training.over

    def ended(self, fold: int) -> bool:
        """Whether no epoch is left in a fold."""
        return fold < self.fold or (fold == self.fold and self._training.over)

    def __next__(self) -> tuple[int, EpochResult]:
        if self.over:
            raise StopIteration
        self.whole = False
        if self._training.over:
            self._ended, self._best = self.confusion, None
            self.results.append([])
            self.model, self._training = self._begin(self.fold)
        with memory_told(self.device):
            result = next(self._training)
        self.results[-1].append(result)
        if self.best(self.fold) is result:
            self._best = self._training.confusion
        self.whole = True
        return self.fold, result

    def value_of(self, result: EpochResult) -> float:
        """The leading metric of one epoch."""
        assert result.valid is not None
        return float(getattr(result.valid, self.config.metric))

    def best(self, fold: int) -> EpochResult:
        """The best epoch of a fold by the leading metric; of equals the one with the lower loss, then the first."""
        sign = 1 if self.config.directions[0] == "maximize" else -1

        def rank(result: EpochResult) -> tuple[float, float]:
            assert result.valid is not None
            return sign * self.value_of(result), -result.valid.loss

        return max(self.results[fold - 1], key=rank)

    @property
    def confusion(self) -> Counts | None:
        """(classes, classes) counts of the validation rows at each fold's best epoch, summed; None before the first."""
        if self._ended is None or self._best is None:
            return self._best if self._ended is None else self._ended
        return self._ended + self._best

    def score(self, metric: str) -> float:
        """`macro_f1`, `accuracy` or `loss` of the best epoch; with several folds the mean over them."""
        best = [self.best(fold).valid for fold in range(1, self.fold + 1)]
        return fmean(getattr(valid, metric) for valid in best)

    def state_dict(self) -> dict[str, Any]:
        """Where it stands after the last epoch, the history included, as `Training.state_dict`; only while `whole`."""
        history = [[result.to_dict() for result in results] for results in self.results]
        counted = [None if counts is None else torch.from_numpy(counts) for counts in (self._ended, self._best)]
        return {"history": history, "confusions": counted, "training": self._training.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a training of the same arguments, as `Training.load_state_dict`."""
        here = self.fold
        self.results = [[EpochResult.from_dict(held) for held in results] for results in state["history"]]
        self._ended, self._best = (None if counts is None else counts.numpy() for counts in state["confusions"])
        if self.fold != here:
            self.model, self._training = self._begin(self.fold)
        self._training.load_state_dict(state["training"])

    def _begin(self, number: int) -> tuple[MultimodalClassifier, Training]:
        """A fresh model, and its training on a fold's rows."""
        search, fold = self.config.search, self.prepared.folds[number - 1]
        seed = trial_seed(self.config, self.first_number, number)
        with memory_told(self.device):
            seed_everything(seed)
            model = build_model(self.hyperparameters, self.prepared.shapes, fold.statistics)
            return model, fit(
                model,
                fold.train,
                fold.valid,
                self.hyperparameters,
                epochs=search.max_epochs,
                patience=search.patience,
                seed=seed,
                device=self.device,
                frozen=self._transfer(model),
                precision=search.precision,
            )

    def _transfer(self, model: MultimodalClassifier) -> tuple[str, ...]:
        """Load the weights to begin with, if any; returns the names of the parameters that have them."""
        if self.config.search.init is None:
            return ()
        found = load_weights(model, Path(self.config.search.init))
        self.on_note(found.describe())
        return found.loaded


def trial_seed(config: StudyConfig, first_number: int, fold: int = 1) -> int:
    """The training seed of a trial, from the study's seed and the number of the trial's first attempt.

    The models of further folds have seeds of their own.
    """
    further = [fold] if fold > 1 else []
    return int(np.random.SeedSequence([config.study.seed, first_number, 1, *further]).generate_state(1)[0])
