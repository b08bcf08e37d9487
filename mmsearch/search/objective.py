"""The Optuna objective: one trial trains one configuration, reports as it goes, and is pruned or scored."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median_high
from typing import Any, TextIO

import optuna
import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy.exc import SQLAlchemyError

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset
from mmsearch.errors import StorageError
from mmsearch.paths import remove
from mmsearch.search.artifacts import leave_artifacts
from mmsearch.search.audit import AUDITED, SECONDS, is_drawn, mark
from mmsearch.search.clock import EPOCHS, FILES, MODELS, SAMPLING, STORAGE, Clock
from mmsearch.search.folds import Preparation, TrialTraining, trial_seed
from mmsearch.search.samplers import first_step
from mmsearch.search.space import suggest
from mmsearch.search.storage import BASELINE, SEED
from mmsearch.search.values import METRICS, RUN, VIOLATED, in_words
from mmsearch.training.checkpoints import DamagedCheckpoint, load_checkpoint, save_checkpoint
from mmsearch.training.device import memory_told
from mmsearch.training.fit import EpochResult
from mmsearch.training.latency import latency_ms
from mmsearch.training.precision import computed_in
from mmsearch.training.provenance import code_digest, hardware, versions

# A Gaussian process and NSGA-II learn from complete trials only: after trials that were not trained, what they propose
# is as large again, while TPE keeps to the constraint in 13 to 16 of 20.
TRAINS_ALL = ("gp", "nsga2")


class Stopped(Exception):
    """The search is asked to stop: the trial is handed back."""


class Infeasible(optuna.TrialPruned):
    """The model violates a constraint whatever it learns, and is not trained."""


@dataclass
class _Audit:
    """Whether a trial is drawn for the audit, and its mark once the pruner would have ended it."""

    drawn: bool
    mark: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a trial: the trial, the number of its first attempt, what it depends on, and when it began.

    `audit` says whether the trial trains on where the pruner would end it, and what it bears since then.
    """

    trial: optuna.Trial
    first: int
    run: dict[str, Any]
    prunable: bool
    audit: _Audit
    began: str
    training: TrialTraining

    def asks(self, step: int) -> bool:
        """Whether the pruner is asked after a step: not of the defaults, nor once it would have ended the trial."""
        return self.prunable and (self.audit.mark is None or step <= self.audit.mark["step"])

    @property
    def belongs(self) -> dict[str, Any]:
        """Whose checkpoint this attempt may go on from: one that says the same."""
        return {
            "parameters": dict(self.training.hyperparameters.items()),
            **{key: self.run[key] for key in ("seed", "data", "code", "precision")},
            "torch": self.run["versions"]["torch"],
            "kind of device": self.training.device.type,
        }


class Objective:
    """Callable with an `optuna.Trial`; returns the value of each metric of the study.

    The leading metric chooses the best epoch on the validation rows; the others have their values there. With k-fold
    validation a trial trains a model a fold, and its values are the means. `on_epoch(trial number, fold, result,
    leading value)` is told each epoch, `on_note(text)` what of the weights to begin with did not fit, once, and what
    becomes of checkpoints; `should_stop()` is asked after each epoch; `clock` is told what the time is spent on,
    `together` is the storage's, and `place` is what others call the device. Raises `optuna.TrialPruned`, `Stopped`,
    `StorageLost`, or `TrialFailed` with the reason.

    A trial whose checkpoint is there, its own or that of an attempt before it, goes on from it. One is written every
    `checkpoint_every` seconds, and before `Stopped` is raised; `save` and `forget` are for whoever settles the trial.
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
        clock: Clock | None = None,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
        place: str | None = None,
    ) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        self.place = place or str(device)
        self.on_epoch, self.on_note, self.should_stop = on_epoch, on_note, should_stop
        self.clock, self.together = clock or Clock(), together
        self.preparation = Preparation(config, dataset)
        self._first_step = first_step(config)
        self._attempt: _Attempt | None = None
        self._checkpoint: Path | None = None  # of the trial that was trained last
        self._noted = False

    def __call__(self, trial: optuna.Trial) -> list[float]:
        """Train one trial."""
        self._attempt = self._checkpoint = None
        path = self.config.paths.epochs(trial.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with memory_told(self.device), _open_log(path) as log:
                attempt = self._attempt = self._begin(trial)
                self._check_size(trial, attempt.training.parameters)
                self._go_on(attempt, log)
                self._train(attempt, log)
                values = self._values(attempt.training)
        except (Stopped, StorageError, StorageInternalError, SQLAlchemyError, UpdateFinishedTrialError, OSError):
            raise  # it is trained on, here or elsewhere
        except Exception:
            if self._attempt is not None:
                with self._stored():
                    self._record(self._attempt)
            raise
        with self._stored():
            self._record(attempt)
            self._settle(trial, values)
        return [values[metric] for metric in self.config.study.metrics]

    def save(self) -> None:
        """Write the checkpoint of the trial that was trained last, where an epoch of it is over; raises `OSError`.

        Nothing is written of an epoch that broke off: the checkpoint before it stays.
        """
        attempt = self._attempt
        if attempt is not None and attempt.training.results[0] and attempt.training.whole:
            run = {key: value for key, value in attempt.run.items() if key not in attempt.belongs}
            state = {
                "belongs": attempt.belongs,
                "run": run,
                AUDITED: attempt.audit.mark,
                "training": attempt.training.state_dict(),
            }
            with self.clock.spent(FILES):
                save_checkpoint(self.config.paths.checkpoint(attempt.first), state)

    def forget(self) -> None:
        """Delete the checkpoint of the trial that was trained last, which has ended; raises `OSError`."""
        if self._checkpoint is not None:
            remove(self._checkpoint)
        self._attempt = self._checkpoint = None

    def _begin(self, trial: optuna.Trial) -> _Attempt:
        """What a trial trains, and from what; kept with the trial, so that it can be told why a replay differs."""
        config = self.config
        with self.clock.spent(SAMPLING):
            attrs = trial.storage.get_trial_system_attrs(trial._trial_id)
        first = attrs.get("failed_trial", trial.number)
        self._checkpoint = config.paths.checkpoint(first)
        seeded_by = attrs.get(SEED, first)
        with self.clock.spent(SAMPLING), self.together():
            hyperparameters = suggest(config.dimensions, trial)
            run = {
                "seed": trial_seed(config, seeded_by),
                "threads": torch.get_num_threads(),
                "device": self.place,
                "precision": computed_in(config.search.precision, hyperparameters, self.device),
                "hardware": hardware(self.device)["device"],
                "data": self.dataset.fingerprint,
                "code": code_digest(),
                "versions": versions(),
            }
            trial.set_user_attr(RUN, run)
            if trial.user_attrs.get(AUDITED):  # of an attempt that was handed back
                trial.set_user_attr(AUDITED, None)
        with self.clock.spent(MODELS):
            training = TrialTraining(
                config,
                self.preparation.prepared(hyperparameters),
                hyperparameters,
                first_number=seeded_by,
                device=self.device,
                on_note=self._note_once,
            )
        began = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        return _Attempt(trial, first, run, not attrs.get(BASELINE), _Audit(is_drawn(config, first)), began, training)

    def _go_on(self, attempt: _Attempt, log: TextIO) -> None:
        """Take over the checkpoint of an attempt before this one, if there is one, and tell its epochs again.

        Raises `TrialPruned` only for the last of them, of which it is not known whether the pruner was asked.
        """
        path, training = self.config.paths.checkpoint(attempt.first), attempt.training
        number = attempt.trial.number
        try:
            held = load_checkpoint(path)
        except FileNotFoundError:
            return
        except DamagedCheckpoint as damage:
            self.on_note(f"trial {number} begins anew: {damage}")
            return
        other = [name for name, value in attempt.belongs.items() if held["belongs"].get(name) != value]
        if other:
            self.on_note(f"trial {number} begins anew: {path}: the checkpoint is of other {' and '.join(other)}")
            return
        training.load_state_dict(held["training"])
        self._remember(attempt, held["run"])
        attempt.audit.mark = held.get(AUDITED)
        if attempt.audit.mark is not None:
            attempt.trial.set_user_attr(AUDITED, attempt.audit.mark)
        last = training.results[-1][-1]
        within = f" of fold {training.fold}" if self.config.folds > 1 else ""
        self.on_note(f"trial {number} goes on after epoch {last.epoch}{within}, from its checkpoint")
        for fold, results in enumerate(training.results, 1):
            for result in results:
                self._tell(attempt, log, fold, result, heed=result is last)

    def _remember(self, attempt: _Attempt, before: dict[str, Any]) -> None:
        """Keep with the trial on what its epochs so far were trained, where that is not what the next ones will be."""
        segments = before.pop("before", [])
        if segments or any(attempt.run[key] != value for key, value in before.items()):
            epochs = sum(map(len, attempt.training.results))
            attempt.run["before"] = [*segments, {"epochs": epochs, **before}]
            attempt.trial.set_user_attr(RUN, attempt.run)

    def _train(self, attempt: _Attempt, log: TextIO) -> None:
        """Train what is left."""
        training = attempt.training
        saved = time.monotonic()
        for fold, result in self.clock.within(EPOCHS, training):
            self.on_epoch(attempt.trial.number, fold, result, training.value_of(result))
            self._tell(attempt, log, fold, result)
            stop = self.should_stop() and not training.over
            if stop or time.monotonic() - saved >= self.config.search.checkpoint_every:
                self.save()
                saved = time.monotonic()
            if stop:
                raise Stopped

    def _tell(self, attempt: _Attempt, log: TextIO, fold: int, result: EpochResult, *, heed: bool = True) -> None:
        """Write an epoch down, and tell Optuna what is a step of it: an epoch, or with k-fold validation a fold.

        Raises `TrialPruned`, where the pruner's answer is to be heeded.
        """
        training, config = attempt.training, self.config
        log.write(json.dumps({"attempt": attempt.began, **self._row(fold, result)}) + "\n")
        log.flush()
        if config.folds == 1:
            step, steps, value = result.epoch, config.search.max_epochs, training.value_of(result)
        elif training.ended(fold) and result is training.results[fold - 1][-1]:
            step, steps, value = fold, config.folds, training.value_of(training.best(fold))
        else:
            return
        if len(config.study.metrics) > 1:  # of which Optuna takes no reports
            return
        with self.clock.spent(STORAGE):
            attempt.trial.report(value, step)
            may_end = self._first_step <= step < steps and not training.over  # at other steps no pruner ends a trial
            if may_end and attempt.asks(step) and attempt.trial.should_prune() and heed:
                self._end(attempt, step, value)

    def _end(self, attempt: _Attempt, step: int, value: float) -> None:
        """What the pruner asks for: `TrialPruned`, or for a trial that is drawn for the audit a mark."""
        trial, audit = attempt.trial, attempt.audit
        if not audit.drawn and audit.mark is None:
            raise optuna.TrialPruned(f"after step {step}")
        if audit.mark is None:
            epochs, sign = sum(map(len, attempt.training.results)), 1 if self.config.directions[0] == "maximize" else -1
            audit.mark = mark(step, value, epochs, trial.study.get_trials(deepcopy=False), sign)
            trial.set_user_attr(AUDITED, audit.mark)

    @contextmanager
    def _stored(self) -> Iterator[None]:
        """What is set of a trial in the block is one transaction, and its time is the storage's."""
        with self.clock.spent(STORAGE), self.together():
            yield

    def _note_once(self, text: str) -> None:
        """What is as true of the next trial."""
        if not self._noted:
            self._noted = True
            self.on_note(text)

    def _check_size(self, trial: optuna.Trial, parameters: int) -> None:
        """Raise `Infeasible` where the model has more parameters, or fewer, than it may have."""
        reason = size_violation(self.config, parameters)
        with self._stored():
            trial.set_user_attr("parameters", parameters)
            if reason is not None:
                for constraint in self.config.constraints:
                    if constraint.metric == "parameters":
                        trial.set_constraint(str(constraint), constraint.violation(parameters))
                trial.set_user_attr(VIOLATED, reason)
        if reason is not None:
            raise Infeasible(f"not trained: {reason}")

    def _values(self, training: TrialTraining) -> dict[str, float]:
        """The value of each metric that the study or one of its constraints names."""
        names = (*self.config.study.metrics, *(constraint.metric for constraint in self.config.constraints))
        values: dict[str, float] = {}
        for name in dict.fromkeys(names):
            if name == "parameters":
                values[name] = float(training.parameters)
            elif name == "latency_ms":
                values[name] = latency_ms(training.model, training.prepared.shapes, self.device)
            else:
                values[name] = training.score(name)
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

    def _record(self, attempt: _Attempt) -> None:
        """Keep the epochs as a table and as pictures beside the trial, and show them in the dashboard."""
        trial, training = attempt.trial, attempt.training
        rows = [self._row(number, result) for number, results in enumerate(training.results, 1) for result in results]
        if not rows:
            return
        trial.set_user_attr("epochs", len(rows))
        trial.set_user_attr(SECONDS, round(sum(row["seconds"] or 0 for row in rows), 3))
        best = [training.best(fold).epoch for fold, results in enumerate(training.results, 1) if results]
        trial.set_user_attr("best_epoch", median_high(best))
        with self.clock.spent(FILES):
            leave_artifacts(trial, self.config, rows, best, training.confusion, self.dataset.classes)

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


def size_violation(config: StudyConfig, parameters: int) -> str | None:
    """Why a model of so many parameters is not trained, in words; None where it is."""
    if config.search.sampler in TRAINS_ALL:
        return None
    sizes = (constraint for constraint in config.constraints if constraint.metric == "parameters")
    violated = next((constraint for constraint in sizes if constraint.violation(parameters) > 0), None)
    return None if violated is None else f"parameters = {parameters} violates {violated}"


def _open_log(path: Path) -> TextIO:
    """Open a file of lines to add to it; a last line that was cut short is ended first."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    log = path.open("a", encoding="utf-8")
    if torn:
        log.write("\n")
    return log
