"""The Optuna objective: one trial trains one configuration, reports as it goes, and is pruned or scored."""

from __future__ import annotations

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median_high
from typing import TextIO

import numpy as np
import optuna
import torch
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, Shapes, Split, Statistics, statistics
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.data.splits import validation_splits
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.factory import MultimodalClassifier, build_model
from mmsearch.paths import write_text
from mmsearch.search.space import suggest
from mmsearch.search.storage import BASELINE
from mmsearch.search.values import METRICS, VIOLATED, in_words
from mmsearch.training.fit import EpochResult, fit, seed_everything
from mmsearch.training.latency import latency_ms
from mmsearch.training.transfer import load_weights

KEPT_FEATURES = 4  # settings of the audio features whose rows and statistics stay at hand
# A Gaussian process and NSGA-II learn from complete trials only: after trials that were not trained, what they propose
# is as large again, while TPE keeps to the constraint in 13 to 16 of 20.
TRAINS_ALL = ("gp", "nsga2")


class Stopped(Exception):
    """The search is asked to stop: the trial is handed back."""


class Infeasible(optuna.TrialPruned):
    """The model violates a constraint whatever it learns, and is not trained."""


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


class Objective:
    """Callable with an `optuna.Trial`; returns the value of each metric of the study.

    The leading metric chooses the best epoch on the validation rows; the others have their values there. With k-fold
    validation a trial trains a model a fold, and its values are the means. `on_epoch(trial number, fold, result,
    leading value)` is told each epoch, `on_note(text)` what of the weights to begin with did not fit, once;
    `should_stop()` is asked after each epoch. Raises `optuna.TrialPruned`, `Stopped`, or `TrialFailed` with the reason.
    """

    def __init__(
        self,
        config: StudyConfig,
        dataset: Dataset,
        device: torch.device,
        *,
        on_epoch: Callable[[int, int, EpochResult, float], None] = lambda number, fold, result, value: None,
        on_note: Callable[[str], None] = lambda text: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.on_epoch, self.on_note, self.should_stop = on_epoch, on_note, should_stop
        self._rows = validation_splits(dataset, config)
        self._prepared: dict[tuple[object, ...], Prepared] = {}
        self._noted = False

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """Train one trial."""
        config = self.config
        hyperparameters = suggest(config.dimensions, trial)
        attrs = trial.storage.get_trial_system_attrs(trial._trial_id)
        first = attrs.get("failed_trial", trial.number)
        run = {"seed": trial_seed(config, first), "threads": torch.get_num_threads(), "device": str(self.device)}
        trial.set_user_attr("run", run)
        prunable = not attrs.get(BASELINE)
        epochs: list[list[EpochResult]] = []
        path = config.paths.epochs(trial.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("a", encoding="utf-8") as log:  # a trial that was handed back adds to what is there
                values = self._train(trial, hyperparameters, first, prunable, epochs, log)
        except (Stopped, KeyboardInterrupt, StorageInternalError, UpdateFinishedTrialError):
            raise  # it is trained again from its beginning, here or elsewhere
        except Exception:
            self._record(trial, epochs)
            raise
        self._record(trial, epochs)
        self._settle(trial, values)
        return [values[metric] for metric in config.study.metrics]

    def _train(
        self,
        trial: optuna.Trial,
        hyperparameters: Hyperparameters,
        first: int,
        prunable: bool,
        epochs: list[list[EpochResult]],
        log: TextIO,
    ) -> dict[str, float]:
        """Train a model a fold, adding to `epochs` a list a fold; returns the metrics' values."""
        config, prepared = self.config, self.prepared(hyperparameters)
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        last_fold, last_epoch = len(prepared.folds), config.search.max_epochs
        parameters = 0
        for number, fold in enumerate(prepared.folds, 1):
            seed = trial_seed(config, first, number)
            seed_everything(seed)
            model = build_model(hyperparameters, prepared.shapes, fold.statistics)
            if number == 1:
                parameters = model.parameter_count()
                self._check_size(trial, parameters)
            frozen = self._transfer(model)
            epochs.append([])
            for result in fit(
                model,
                fold.train,
                fold.valid,
                hyperparameters,
                epochs=last_epoch,
                patience=config.search.patience,
                seed=seed,
                device=self.device,
                frozen=frozen,
                precision=config.search.precision,
            ):
                epochs[-1].append(result)
                log.write(json.dumps({"attempt": started, **self._row(number, result)}) + "\n")
                log.flush()
                value = self.value_of(result)
                self.on_epoch(trial.number, number, result, value)
                if self.should_stop() and (number, result.epoch) != (last_fold, last_epoch):
                    raise Stopped
                if last_fold == 1:
                    self._report(trial, value, result.epoch, prunable and result.epoch < last_epoch)
            if last_fold > 1:
                self._report(trial, self.value_of(self._best(epochs[-1])), number, prunable and number < last_fold)
        return self._values(epochs, model, prepared.shapes, parameters)

    def prepared(self, hyperparameters: Hyperparameters) -> Prepared:
        """The data as these hyperparameters want it."""
        key = tuple((name, value) for name, value in hyperparameters.items() if name.startswith("features."))
        found = self._prepared.pop(key, None) or self._prepare(hyperparameters)
        self._prepared[key] = found  # the latest last
        if len(self._prepared) > KEPT_FEATURES:
            del self._prepared[next(iter(self._prepared))]
        return found

    def _prepare(self, hyperparameters: Hyperparameters) -> Prepared:
        dataset, cache = self.dataset, self.config.storage_paths.cache
        rows = with_features(dataset.train, dataset.rate, hyperparameters, cache)
        folds = [(rows.only(train.rows), rows.only(valid.rows)) for train, valid in self._rows]
        return Prepared(
            feature_shapes(dataset.shapes, dataset.rate, hyperparameters),
            tuple(Fold(train, valid, statistics(train)) for train, valid in folds),
        )

    def _transfer(self, model: MultimodalClassifier) -> tuple[str, ...]:
        """Load the weights to begin with, if any; returns the names of the parameters that have them."""
        if self.config.search.init is None:
            return ()
        found = load_weights(model, Path(self.config.search.init))
        if not self._noted:
            self._noted = True
            self.on_note(found.describe())
        return found.loaded

    def _check_size(self, trial: optuna.Trial, parameters: int) -> None:
        """Raise `Infeasible` where the model has more parameters, or fewer, than it may have."""
        trial.set_user_attr("parameters", parameters)
        if self.config.search.sampler in TRAINS_ALL:
            return
        sizes = [constraint for constraint in self.config.constraints if constraint.metric == "parameters"]
        violated = [constraint for constraint in sizes if constraint.violation(parameters) > 0]
        if violated:
            for constraint in sizes:
                trial.set_constraint(str(constraint), constraint.violation(parameters))
            reason = f"parameters = {parameters} violates {violated[0]}"
            trial.set_user_attr(VIOLATED, reason)
            raise Infeasible(f"not trained: {reason}")

    def _report(self, trial: optuna.Trial, value: float, step: int, prunable: bool) -> None:
        """Tell Optuna one step, an epoch or a fold; raises `TrialPruned`. Of several metrics it takes no reports."""
        if len(self.config.study.metrics) > 1:
            return
        trial.report(value, step)
        if prunable and trial.should_prune():
            raise optuna.TrialPruned(f"after step {step}")

    def _values(
        self, epochs: list[list[EpochResult]], model: MultimodalClassifier, shapes: Shapes, parameters: int
    ) -> dict[str, float]:
        """The value of each metric that the study or one of its constraints names."""
        best = [asdict(valid) for results in epochs if (valid := self._best(results).valid) is not None]
        names = (*self.config.study.metrics, *(constraint.metric for constraint in self.config.constraints))
        values: dict[str, float] = {}
        for name in dict.fromkeys(names):
            if name == "parameters":
                values[name] = float(parameters)
            elif name == "latency_ms":
                values[name] = latency_ms(model, shapes, self.device)
            else:
                values[name] = fmean(scores[name] for scores in best)
        return values

    def _settle(self, trial: optuna.Trial, values: dict[str, float]) -> None:
        """Store what the trial is worth beside its leading metric."""
        if len(values) > 1:
            trial.set_user_attr(METRICS, values)
        violated = []
        for constraint in self.config.constraints:
            value = values[constraint.metric]
            trial.set_constraint(str(constraint), constraint.violation(value))
            if constraint.violation(value) > 0:
                violated.append(f"{constraint.metric} = {in_words(constraint.metric, value)} violates {constraint}")
        if self.config.constraints:
            trial.set_user_attr(VIOLATED, "; ".join(violated))  # also over what an attempt that was handed back left

    def value_of(self, result: EpochResult) -> float:
        """The leading metric of one epoch."""
        assert result.valid is not None
        return float(getattr(result.valid, self.config.metric))

    def _best(self, epochs: list[EpochResult]) -> EpochResult:
        sign = 1 if self.config.directions[0] == "maximize" else -1
        # of equals, as where all rows are right, the one that is surer of it
        return max(epochs, key=lambda r: (sign * self.value_of(r), -r.valid.loss if r.valid else 0.0))

    def _record(self, trial: optuna.Trial, epochs: list[list[EpochResult]]) -> None:
        """Keep the epochs as a table beside the trial, and show it in the dashboard."""
        rows = [self._row(number, result) for number, results in enumerate(epochs, 1) for result in results]
        if not rows:
            return
        trial.set_user_attr("epochs", len(rows))
        best = [self._best(results).epoch for results in epochs if results]
        trial.set_user_attr("best_epoch", median_high(best))
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = self.config.paths.trial(trial.number) / "metrics.csv"
        write_text(path, text.getvalue())
        folder = self.config.storage_paths.artifacts
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            store = FileSystemArtifactStore(str(folder))
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, mimetype="text/csv")

    def _row(self, fold: int, result: EpochResult) -> dict[str, float | int | None]:
        """One epoch as the logs hold it; with k-fold validation it says which fold."""
        row: dict[str, float | int | None] = {"fold": fold} if self.config.folds > 1 else {}
        row["epoch"] = result.epoch
        for name, scores in (("train", result.train), ("valid", result.valid)):
            assert scores is not None
            row |= {f"{name}_{key}": value for key, value in asdict(scores).items()}
        row |= {"lr": result.lr, "seconds": round(result.seconds, 3)}
        assert all(value is None or math.isfinite(value) for value in row.values())
        return row


def trial_seed(config: StudyConfig, first_number: int, fold: int = 1) -> int:
    """The training seed of a trial, from the study's seed and the number of the trial's first attempt.

    The models of further folds have seeds of their own.
    """
    further = [fold] if fold > 1 else []
    return int(np.random.SeedSequence([config.study.seed, first_number, 1, *further]).generate_state(1)[0])
