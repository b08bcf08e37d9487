"""Train a trial again and compare each epoch's numbers with those that were stored, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset
from mmsearch.data.sources import load_dataset
from mmsearch.errors import MmsearchError, StudyMismatch, TrialFailed, UsageError
from mmsearch.results.epochs import last_attempt
from mmsearch.search.clean import owns_folder
from mmsearch.search.folds import Preparation, TrialTraining, trial_seed
from mmsearch.search.progress import plural
from mmsearch.search.space import restore
from mmsearch.search.storage import SEED
from mmsearch.search.study import OpenStudy, open_study
from mmsearch.search.values import RUN
from mmsearch.training.device import choose_device, use_threads
from mmsearch.training.fit import EpochResult
from mmsearch.training.provenance import code_digest, hardware, versions

MEASURED = ("latency_ms",)  # metrics that are another number each time
REPORTED = "reported"  # to the pruner: the leading metric of an epoch, or of a fold's best


@dataclass(frozen=True)
class Compared:
    """One number of one epoch, as it was stored and as it is now; `epoch` is None for a whole fold or trial.

    `name` is a column of the trial's metrics.jsonl, `REPORTED`, or a metric of the study.
    """

    fold: int
    epoch: int | None
    name: str
    stored: float
    again: float

    @property
    def difference(self) -> float:
        """How far they are apart."""
        return abs(self.stored - self.again)


@dataclass(frozen=True)
class Change:
    """Something that a training's numbers depend on and that is not as it was; `stored` is None where it is unknown."""

    what: str
    stored: str | None
    now: str


@dataclass(frozen=True)
class Replay:
    """What a replay brought.

    `epochs` are (fold, its epoch's result), as they are now; `compared` each number that was stored of them. `short` is
    why the trial has more epochs or fewer than the replay, in words, or None. `changes` are since the trial.
    """

    number: int
    state: str
    metric: str
    folds: int
    seed: int
    run: dict[str, Any]
    epochs: tuple[tuple[int, EpochResult], ...]
    compared: tuple[Compared, ...]
    short: str | None
    changes: tuple[Change, ...]
    tolerance: float

    @property
    def largest(self) -> Compared | None:
        """The number that differs most; of equals the first; None where there is none."""
        return max(self.compared, key=lambda compared: compared.difference, default=None)

    @property
    def exact(self) -> bool:
        """Whether every number is the same to the last bit, and there are as many epochs."""
        return self.short is None and all(compared.stored == compared.again for compared in self.compared)

    @property
    def same(self) -> bool:
        """Whether no number differs by more than the tolerance, and there are as many epochs."""
        return self.short is None and all(compared.difference <= self.tolerance for compared in self.compared)


@dataclass(frozen=True)
class _Stored:
    """What is known of a trial's epochs: its log's rows by fold and epoch, its reports by step, and their number."""

    rows: dict[tuple[int, int], dict[str, Any]]
    reports: dict[int, float]
    epochs: int


def replay(
    config: StudyConfig,
    number: int,
    *,
    tolerance: float = 0.0,
    on_plan: Callable[[FrozenTrial, int], None] = lambda trial, epochs: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_epoch: Callable[[int, EpochResult], None] = lambda fold, result: None,
) -> Replay:
    """Train a trial again, from its stored parameters and seed, with as many threads as then, where it can on the same
    device; for as many epochs as were stored of it.

    A trial that went on with another number of threads does so here, at the same epoch.
    Trains nothing but that: the study, its files and torch's number of threads stay as they are. `on_plan` is told the
    trial and its number of epochs, at most, `on_epoch` each fold and epoch. Raises `UsageError` for a trial that is not
    there, has not ended, or has no epochs, and `StudyMismatch` where the study file is not the one it was searched
    with; data that have changed are a change like others.
    """
    with open_study(config) as opened:
        trial = _ended(opened, number)
        stored = _stored(opened, trial)
        run = dict(trial.user_attrs.get(RUN, {}))
        first = trial.system_attrs.get(SEED, trial.system_attrs.get("failed_trial", trial.number))
        fingerprint = opened.stored_fingerprint()
        if fingerprint is None:
            raise StudyMismatch(f"the study {config.study.name} was not made by mmsearch")
        opened.check(fingerprint["data"])
        run.setdefault("data", fingerprint["data"])
        dataset = load_dataset(config)
        on_plan(trial, stored.epochs)
        device = _device(config, run)
        run.setdefault("precision", fingerprint.get("search.precision", "float32"))  # before trials remembered it
        as_then = config.search.model_copy(update={"precision": run["precision"]})  # where it is emulated, too
        config = config.model_copy(update={"search": as_then})
        before = hardware(device)["threads"]
        try:
            use_threads(_threads(run, 0, before))
            hyperparameters = restore(config.dimensions, trial.params)
            training = TrialTraining(
                config,
                Preparation(config, dataset).prepared(hyperparameters),
                hyperparameters,
                first_number=first,
                device=device,
                on_note=on_note,
            )
            compared: list[Compared] = []
            epochs: list[tuple[int, EpochResult]] = []
            failed: str | None = None
            try:
                for fold, result in _as_far(training, stored, lambda done: use_threads(_threads(run, done, before))):
                    epochs.append((fold, result))
                    on_epoch(fold, result)
                    compared += _compare(training, stored, fold, result)
            except TrialFailed as error:
                failed = str(error)
            if training.over and trial.state == TrialState.COMPLETE:
                compared += _compare_values(opened, training, trial)
            now = _now(dataset, hardware(device), str(device))
        finally:
            use_threads(before)
        return Replay(
            number,
            trial.state.name,
            opened.metrics[0],
            config.folds,
            trial_seed(config, first),
            now,
            tuple(epochs),
            tuple(compared),
            _short(training, stored, trial, len(epochs), failed),
            (*_changes(run, now), *_changes_on_the_way(run, now)),
            tolerance,
        )


def _ended(opened: OpenStudy, number: int) -> FrozenTrial:
    name, trials = opened.config.study.name, opened.trials()
    found = next((trial for trial in trials if trial.number == number), None)
    if found is None:
        there = f"0 to {len(trials) - 1}" if trials else "none yet"
        raise UsageError(f"{number} is no trial of the study {name}: it has {there}")
    if not found.state.is_finished():
        raise UsageError(f"trial {number} of the study {name} has not ended: it is {found.state.name}")
    return found


def _stored(opened: OpenStudy, trial: FrozenTrial) -> _Stored:
    """What was written down of a trial's last attempt; raises `UsageError` where no number of it was."""
    path = opened.config.paths.epochs(trial.number)
    found = last_attempt(path) if owns_folder(opened) else []
    rows = {(row.get("fold", 1), row["epoch"]): row for row in found}
    reports = dict(trial.intermediate_values)
    epochs = [len(rows), trial.user_attrs.get("epochs", 0), *(reports if opened.config.folds == 1 else ())]
    if not rows and not reports and not (trial.state == TrialState.COMPLETE and max(epochs)):
        raise UsageError(
            f"trial {trial.number} ({trial.state.name}) of the study {opened.config.study.name} has no epoch to "
            f"compare with: there is none in the storage, nor in {path}"
        )
    return _Stored(rows, reports, max(epochs))


def _as_far(
    training: TrialTraining, stored: _Stored, on_begin: Callable[[int], None]
) -> Iterator[tuple[int, EpochResult]]:
    """The epochs of a training, up to the last one of which something is stored.

    `on_begin` is told before each how many are over.
    """
    folds = max(stored.reports, default=0) if training.config.folds > 1 else 0
    count = 0
    while not training.over:
        on_begin(count)
        fold, result = next(training)
        count += 1
        yield fold, result
        if count >= stored.epochs and (not folds or training.ended(folds)):
            return


def _threads(run: Mapping[str, Any], done: int, otherwise: int) -> int:
    """With how many threads a trial trained its next epoch when so many were over: a search may go on with others."""
    here = next((segment for segment in run.get("before", ()) if done < segment["epochs"]), run)
    return int(here.get("threads", otherwise))


def _compare(training: TrialTraining, stored: _Stored, fold: int, result: EpochResult) -> Iterator[Compared]:
    """Each number that is stored of an epoch, and of its fold when that has ended."""
    now = {"lr": result.lr, **_columns("train", result.train), **_columns("valid", result.valid)}
    for name, value in stored.rows.get((fold, result.epoch), {}).items():
        if name in now and value is not None:
            yield Compared(fold, result.epoch, name, value, now[name])
    if training.config.folds == 1 and result.epoch in stored.reports:
        yield Compared(fold, result.epoch, REPORTED, stored.reports[result.epoch], training.value_of(result))
    if training.config.folds > 1 and training.ended(fold) and fold in stored.reports:
        yield Compared(fold, None, REPORTED, stored.reports[fold], training.value_of(training.best(fold)))


def _columns(prefix: str, scores: Any) -> dict[str, float]:
    return {} if scores is None else {f"{prefix}_{name}": value for name, value in asdict(scores).items()}


def _compare_values(opened: OpenStudy, training: TrialTraining, trial: FrozenTrial) -> Iterator[Compared]:
    """The trial's own values, but for what is a measurement of this machine."""
    for metric, value in zip(opened.metrics, trial.values or (), strict=False):
        if metric not in MEASURED:
            again = float(training.parameters) if metric == "parameters" else training.score(metric)
            yield Compared(training.fold, None, metric, value, again)


def _short(training: TrialTraining, stored: _Stored, trial: FrozenTrial, epochs: int, failed: str | None) -> str | None:
    """Why there are more epochs than stored, or fewer; None where there are as many."""
    if failed is not None:
        return f"the replay failed in epoch {epochs + 1}: {failed}"
    if epochs < stored.epochs:
        return f"the replay ended after {plural(epochs, 'epoch')}, and the trial after {stored.epochs}"
    if trial.state == TrialState.COMPLETE and not training.over:
        return f"the trial ended after {plural(epochs, 'epoch')}, and the replay would go on"
    return None


def _device(config: StudyConfig, run: Mapping[str, Any]) -> Any:
    """The device of the trial, where there is one and the study file does not ask for another."""
    wanted, known = config.search.device, run.get("device")
    if known is not None and (wanted == "auto" or known.startswith(wanted)):
        try:
            return choose_device(known)
        except MmsearchError:  # it has gone, which is one of the changes
            return choose_device("auto")
    return choose_device(wanted)


def _now(dataset: Dataset, machine: Mapping[str, Any], device: str) -> dict[str, Any]:
    """What the objective writes down of a trial, as it is now; but its precision, in which it is replayed."""
    return {
        "code": code_digest(),
        "versions": versions(),
        "data": dataset.fingerprint,
        "hardware": machine["device"],
        "threads": machine["threads"],
        "device": device,
    }


def _changes_on_the_way(run: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    """What was another for a trial's first epochs, before it went on elsewhere; not its threads, which are replayed."""
    first = 1
    for segment in run.get("before", ()):
        last = segment["epochs"]
        stored = {key: value for key, value in segment.items() if key not in ("epochs", "threads")}
        for change in _changes(stored, {key: now[key] for key in stored}):
            if change.stored != _text(run, change.what):  # else it is told of the whole trial
                yield replace(change, what=f"{change.what} of epochs {first} to {last}")
        first = last + 1


def _text(run: Mapping[str, Any], what: str) -> str:
    return str({**run.get("versions", {}), **run}.get(what))


def _changes(stored: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    for what, value in now.items():
        before = stored.get(what)
        if isinstance(value, Mapping):
            held = before if isinstance(before, Mapping) else {}
            yield from _changes(held, value)
        elif before != value:
            yield Change(what, None if before is None else str(before), str(value))
