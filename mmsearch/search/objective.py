"""The Optuna objective: one trial trains one configuration, reports each epoch, and is pruned or scored."""

from __future__ import annotations

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import optuna
import torch
from optuna.artifacts import FileSystemArtifactStore, upload_artifact
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, statistics
from mmsearch.data.splits import holdout
from mmsearch.models.factory import build_model
from mmsearch.paths import write_text
from mmsearch.search.space import suggest
from mmsearch.search.storage import BASELINE
from mmsearch.training.fit import EpochResult, fit, seed_everything


class Stopped(Exception):
    """The search is asked to stop: the trial is handed back."""


class Objective:
    """Callable with an `optuna.Trial`; returns the best epoch's leading metric on the validation rows.

    `on_epoch(trial number, result, value)` is told each epoch; `should_stop()` is asked after each. Raises
    `optuna.TrialPruned`, `Stopped`, or `TrialFailed` with the reason.
    """

    def __init__(
        self,
        config: StudyConfig,
        dataset: Dataset,
        device: torch.device,
        *,
        on_epoch: Callable[[int, EpochResult, float], None] = lambda number, result, value: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.on_epoch, self.should_stop = on_epoch, should_stop
        self.train, self.valid = holdout(dataset, config.data.fraction, config.study.seed)
        self.statistics = statistics(self.train)

    def __call__(self, trial: optuna.Trial) -> float:
        """Train one trial."""
        config = self.config
        hyperparameters = suggest(config.dimensions, trial)
        attrs = trial.storage.get_trial_system_attrs(trial._trial_id)
        seed = trial_seed(config, attrs.get("failed_trial", trial.number))
        seed_everything(seed)
        model = build_model(hyperparameters, self.dataset.shapes, self.statistics)
        trial.set_user_attr("parameters", model.parameter_count())
        trial.set_user_attr("run", {"seed": seed, "threads": torch.get_num_threads(), "device": str(self.device)})
        epochs: list[EpochResult] = []
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        path = config.paths.epochs(trial.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("a", encoding="utf-8") as log:  # a trial that was handed back adds to what is there
                for result in fit(
                    model,
                    self.train,
                    self.valid,
                    hyperparameters,
                    epochs=config.search.max_epochs,
                    patience=config.search.patience,
                    seed=seed,
                    device=self.device,
                ):
                    epochs.append(result)
                    log.write(json.dumps({"attempt": started, **_row(result)}) + "\n")
                    log.flush()
                    value = self.value_of(result)
                    trial.report(value, result.epoch)
                    self.on_epoch(trial.number, result, value)
                    if self.should_stop() and result.epoch < config.search.max_epochs:
                        raise Stopped
                    last = result.epoch == config.search.max_epochs  # then there is nothing left to save
                    if not last and not attrs.get(BASELINE) and trial.should_prune():
                        raise optuna.TrialPruned(f"after epoch {result.epoch}")
        except (Stopped, KeyboardInterrupt, StorageInternalError, UpdateFinishedTrialError):
            raise  # it is trained again from its beginning, here or elsewhere
        except Exception:
            self._record(trial, epochs)
            raise
        self._record(trial, epochs)
        return self.value_of(self._best(epochs))

    def value_of(self, result: EpochResult) -> float:
        """The leading metric of one epoch."""
        assert result.valid is not None
        return float(getattr(result.valid, self.config.metric))

    def _best(self, epochs: list[EpochResult]) -> EpochResult:
        sign = 1 if self.config.direction == "maximize" else -1
        return max(epochs, key=lambda result: sign * self.value_of(result))

    def _record(self, trial: optuna.Trial, epochs: list[EpochResult]) -> None:
        """Keep the epochs as a table beside the trial, and show it in the dashboard."""
        if not epochs:
            return
        trial.set_user_attr("epochs", len(epochs))
        trial.set_user_attr("best_epoch", self._best(epochs).epoch)
        text = io.StringIO()
        writer = csv.DictWriter(text, _row(epochs[0]).keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(result) for result in epochs)
        path = self.config.paths.trial(trial.number) / "metrics.csv"
        write_text(path, text.getvalue())
        folder = self.config.storage_paths.artifacts
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            store = FileSystemArtifactStore(str(folder))
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, mimetype="text/csv")


def trial_seed(config: StudyConfig, first_number: int) -> int:
    """The training seed of a trial, from the study's seed and the number of the trial's first attempt."""
    return int(np.random.SeedSequence([config.study.seed, first_number, 1]).generate_state(1)[0])


def _row(result: EpochResult) -> dict[str, float | int | None]:
    row: dict[str, float | int | None] = {"epoch": result.epoch}
    for name, scores in (("train", result.train), ("valid", result.valid)):
        assert scores is not None
        row |= {f"{name}_{key}": value for key, value in asdict(scores).items()}
    row |= {"lr": result.lr, "seconds": round(result.seconds, 3)}
    assert all(value is None or math.isfinite(value) for value in row.values())
    return row
