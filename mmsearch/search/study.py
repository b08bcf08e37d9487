"""One study: made once, opened by many, and checked to be the one that the study file describes."""

from __future__ import annotations

import math
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig, hide_password
from mmsearch.errors import NoCompletedTrial, NoStudy, StudyMismatch, UsageError
from mmsearch.paths import remove, write_text
from mmsearch.search.database import creation_lock
from mmsearch.search.fingerprint import compare, fingerprint
from mmsearch.search.samplers import build_pruner, build_sampler
from mmsearch.search.space import grid, varying
from mmsearch.search.storage import BASELINE, OWNER, SLOT, Storage, open_storage
from mmsearch.search.values import MEMORY, best_of, candidates, keeps_to_constraints, margin_of, pareto_front, pick
from mmsearch.spaces import Choices

FINGERPRINT = "mmsearch:fingerprint"  # system attributes of a study
TOTAL = "mmsearch:total"
IDENTITY = "mmsearch:id"
STOP = "mmsearch:stop"
REPEATS = "mmsearch:repeats"  # of a study that holds no search: the one whose configurations are trained again
CONFIRMED = "mmsearch:confirmed"  # what `mmsearch confirm` found, as `mmsearch.results.confirm` reads it
ABLATED = "mmsearch:ablated"  # the same of an ablation
SILENT_AFTER_S = 120.0  # a heartbeat comes every 30 s; a native call can hold it up for a while
PATIENCE = "patience"  # of an owner: how many seconds it waits for its storage
BEAT_AGAIN_S = 60.0  # after which, at the latest, a worker beats again that has waited for its storage


@dataclass(frozen=True)
class Counts:
    """Trials by state."""

    complete: int
    pruned: int
    failed: int
    running: int
    waiting: int

    @property
    def finished(self) -> int:
        """What counts towards the total."""
        return self.complete + self.pruned


@dataclass(frozen=True)
class Running:
    """A trial that runs.

    `owner` is who claimed it, as `mmsearch.search.machine.this_process` describes it; {} for a stranger. `step` is the
    last that it reported, an epoch or with k-fold a fold; None before the first, and with several metrics. `silent` is
    how many seconds ago its last heartbeat was, by the database's clock.
    """

    number: int
    owner: Mapping[str, Any]
    step: int | None
    silent: float


@dataclass(frozen=True)
class OpenStudy:
    """An Optuna study with its storage, opened by this process; as a context manager it closes its connections."""

    config: StudyConfig
    optuna: optuna.Study
    storage: Storage

    def __enter__(self) -> OpenStudy:
        return self

    def __exit__(self, *error: object) -> None:
        self.storage.engine.dispose()

    @cached_property
    def id(self) -> int:
        """The study's number in its storage."""
        return self.storage.get_study_id_from_name(self.config.study.name)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number; to be read, not changed."""
        return self.optuna.get_trials(deepcopy=False)

    def outcomes(self) -> list[FrozenTrial]:
        """All trials, by number, without parameters, reports and provenance: what became of them is read sooner so."""
        return self.storage.outcomes(self.id)

    def stored_fingerprint(self) -> dict[str, Any] | None:
        """What the study was begun with; None for a study that is not whole, or not ours."""
        found: dict[str, Any] | None = self.storage.get_study_system_attrs(self.id).get(FINGERPRINT)
        return found

    def check(self, data_fingerprint: str) -> None:
        """Raise `StudyMismatch` where the study file or the data are not what the study was searched with."""
        stored = self.stored_fingerprint()
        if stored is None:
            raise _not_ours(self.config)
        compare(self.config.study.name, stored, fingerprint(self.config, data_fingerprint))

    def must_be_a_search(self) -> None:
        """Raise `StudyMismatch` for a study that only repeats configurations of another."""
        source = self.storage.get_study_system_attrs(self.id).get(REPEATS)
        if source is not None:
            raise StudyMismatch(
                f"the study {self.config.study.name} is no search: it holds configurations of the study {source} that "
                "were trained again; choose another with --study-name"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that the study was begun with; the first one leads."""
        stored = self.stored_fingerprint()
        return tuple(stored["study.metrics"]) if stored else self.config.study.metrics

    @property
    def constraints(self) -> tuple[str, ...]:
        """The constraints that the study was begun with."""
        return tuple((self.stored_fingerprint() or {}).get("study.constraints", ()))

    @cached_property
    def signs(self) -> list[int]:
        """Of each metric: 1 where greater values are better, -1 where smaller ones are."""
        return [1 if d == optuna.study.StudyDirection.MAXIMIZE else -1 for d in self.optuna.directions]

    def gain(self, trials: list[FrozenTrial] | None = None) -> float | None:
        """How much better the best trial is than the defaults in the leading metric; None where either is missing."""
        best, baseline = self.best(trials), self.baseline(trials)
        if best is None or baseline is None or not best.values or not baseline.values:
            return None
        return self.signs[0] * float(best.values[0] - baseline.values[0]) + 0.0  # no -0.0

    def total(self) -> int:
        """The total of the last launch, or else the study file's."""
        stored = self.storage.get_study_system_attrs(self.id).get(TOTAL)
        return int(stored) if stored is not None else total_of(self.config)

    def best(self, trials: list[FrozenTrial] | None = None) -> FrozenTrial | None:
        """The completed trial that keeps to the constraints with the best leading value; None where there is none."""
        return best_of(candidates(trials or self.trials()), self.signs)

    def front(self, trials: list[FrozenTrial] | None = None) -> list[FrozenTrial]:
        """The completed trials that keep to the constraints and that no other beats, by the leading metric."""
        return pareto_front(candidates(trials or self.trials()), self.signs)

    def why_none(self, trials: list[FrozenTrial] | None = None) -> str:
        """Why there is no best trial, in words."""
        trials = trials or self.trials()
        finished = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        violating = [t for t in finished if not keeps_to_constraints(t)]
        if not violating:
            return "no trial is complete"
        held = " and ".join(self.constraints)
        greedy = sum(trial.constraints.get(MEMORY, 0) > 0 for trial in violating)
        if greedy == len(violating):
            return f"no trial is complete: {greedy} of {len(finished)} finished trials ran out of memory"
        some = f"{len(violating)} of {len(finished)} finished trials violate that"
        return f"no complete trial keeps to {held}: {some}; loosen it or widen the space, or raise --trials"

    def picked(self, rule: str = "best") -> FrozenTrial:
        """The trial that a rule picks, as `mmsearch.search.values.pick` does; raises `NoCompletedTrial`."""
        if rule != "best" and len(self.metrics) == 1:
            margin_of(rule)
            raise UsageError(f'"{rule}" picks among several metrics; the study {self.config.study.name} has one')
        front = self.front()
        if not front:
            hint = "" if self.constraints else "; `mmsearch launch` makes some"
            raise NoCompletedTrial(f"study {self.config.study.name}: {self.why_none()}{hint}")
        return pick(front, rule, self.signs)

    def complete_trial(self, number: int) -> FrozenTrial:
        """A trial by its number; raises `UsageError` unless it is complete."""
        found = next((trial for trial in self.trials() if trial.number == number), None)
        if found is None or found.state != TrialState.COMPLETE:
            what = "there is no such trial" if found is None else f"it is {found.state.name}"
            raise UsageError(f"trial {number} of the study {self.config.study.name} is not complete: {what}")
        return found

    def baseline(self, trials: list[FrozenTrial] | None = None) -> FrozenTrial | None:
        """The completed trial that has the defaults; it may violate the constraints."""
        found = self.defaults(trials)
        return found if found is not None and found.state == TrialState.COMPLETE else None

    def defaults(self, trials: list[FrozenTrial] | None = None) -> FrozenTrial | None:
        """The trial that has the defaults, whatever became of it; the last of its attempts."""
        held = [trial for trial in trials or self.trials() if trial.system_attrs.get(BASELINE)]
        return held[-1] if held else None

    def reap(self, still_runs: Callable[[Mapping[str, Any]], bool | None]) -> list[tuple[int, int | None]]:
        """Fail, and queue again, the running trials whose owner is dead, or silent where nobody can tell.

        Returns each such trial's number with the number of its retry, if it gets one.
        """
        silences = self.storage.silences(self.id)
        found: list[tuple[int, int | None]] = []
        for trial in self._running():
            owner = trial.system_attrs.get(OWNER, {})
            runs = still_runs(owner)
            patience = max(self.config.search.storage_timeout, owner.get(PATIENCE, 0))
            longest = max(SILENT_AFTER_S, patience + BEAT_AGAIN_S)
            if runs or (runs is None and silences.get(trial._trial_id, 0) <= longest):
                continue  # a living owner may be silent, as after a laptop's sleep
            reason = f"the worker died (process {owner.get('pid')} on {owner.get('host')})"
            if runs is None:
                reason = f"the worker was silent for {longest:.0f} s (on {owner.get('host', 'an unknown host')})"
            was_running, retry = self.fail(trial, reason, self.config.search.max_retries)
            if was_running:
                found.append((trial.number, retry))
        return found

    def fail(self, trial: FrozenTrial, reason: str, max_retries: int) -> tuple[bool, int | None]:
        """As `Storage.fail`, for the owner that the trial has; without a retry, its checkpoint goes too."""
        owner = trial.system_attrs.get(OWNER, {})
        was_running, retry = self.storage.fail(trial._trial_id, reason, max_retries, owner)
        if was_running and retry is None:
            self._forget_checkpoint(trial)
        return was_running, retry

    def prune(self, trial: FrozenTrial, reason: str, constraints: Mapping[str, float]) -> bool:
        """As `Storage.prune`, for the owner that the trial has; its checkpoint goes too."""
        owner = trial.system_attrs.get(OWNER, {})
        pruned = self.storage.prune(trial._trial_id, reason, constraints, owner)
        if pruned:
            self._forget_checkpoint(trial)
        return pruned

    def _forget_checkpoint(self, trial: FrozenTrial) -> None:
        first = trial.system_attrs.get("failed_trial", trial.number)
        with suppress(OSError):  # `mmsearch clean` removes it
            remove(self.config.paths.checkpoint(first))

    def running(self) -> list[Running]:
        """The running trials, by number."""
        silences = self.storage.silences(self.id)
        return [
            Running(trial.number, trial.system_attrs.get(OWNER, {}), trial.last_step, silences.get(trial._trial_id, 0))
            for trial in self._running()
        ]

    def running_of(self, worker: str) -> list[FrozenTrial]:
        """The running trials that a worker claimed, by its name."""
        return [trial for trial in self._running() if trial.system_attrs.get(OWNER, {}).get("worker") == worker]

    def _running(self) -> list[FrozenTrial]:
        """Not through the study, which reads all trials first."""
        return self.storage.get_all_trials(self.id, deepcopy=False, states=(TrialState.RUNNING,))

    def ask_to_stop(self) -> None:
        """Ask every launcher of the study, on any machine, to stop."""
        self.storage.set_study_system_attr(self.id, STOP, uuid.uuid4().hex)

    def stop_asked(self) -> str | None:
        """A token that is another one each time somebody asks to stop; None where nobody ever did."""
        token: str | None = self.storage.get_study_system_attrs(self.id).get(STOP)
        return token

    def hand_back(self, worker: str) -> list[int]:
        """Put back into the queue what a worker that is no more was on; returns the numbers."""
        held = self.running_of(worker)
        return [t.number for t in held if self.storage.hand_back(t._trial_id, t.system_attrs[OWNER])]


def count(trials: list[FrozenTrial]) -> Counts:
    """Count trials by state."""
    found = Counter(trial.state for trial in trials)
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING)
    return Counts(*(found[state] for state in states))


def grid_size(config: StudyConfig) -> int | None:
    """How many points a study's grid has; None where its sampler is another."""
    if config.search.sampler != "grid":
        return None
    axes = [d.options if isinstance(d, Choices) else d.grid() or () for d in config.dimensions.varying().values()]
    return math.prod(len(axis) for axis in axes)


def total_of(config: StudyConfig) -> int:
    """How many trials a study is to have: as many as asked for, but no more than its grid has points."""
    size = grid_size(config)
    return config.study.trials if size is None else min(config.study.trials, size)


def open_study(config: StudyConfig, *, patient: bool = False) -> OpenStudy:
    """Open a study that exists; raises `NoStudy` where it does not, and as `open_storage` does.

    Once it is open, calls wait `storage_timeout` seconds through an outage of its storage, and `StorageLost` follows;
    where `patient`, so does the opening.
    """
    return _load(config, open_storage(config.storage_url, patience=config.search.storage_timeout, patient=patient))


def _load(config: StudyConfig, storage: Storage) -> OpenStudy:
    try:
        study = optuna.load_study(
            study_name=config.study.name,
            storage=storage,
            sampler=build_sampler(config),
            pruner=build_pruner(config),
        )
    except KeyError:
        known = ", ".join(sorted(held.study_name for held in storage.get_all_studies())) or "none"
        storage.engine.dispose()
        raise NoStudy(
            f"{hide_password(config.storage_url)}: there is no study {config.study.name}; there is: {known}"
        ) from None
    return OpenStudy(config, study, storage)


def create_study(
    config: StudyConfig, data_fingerprint: str, *, repeats: str | None = None
) -> tuple[OpenStudy, list[str]]:
    """Make the study, or open it and check that it was begun with the same data and settings.

    Any number of processes may call it at once. `repeats` is the study of which it trains configurations again: then
    nothing is queued. Returns the study and notes for the user, such as a range that became wider. Raises
    `StudyMismatch`, which names what differs.
    """
    now = fingerprint(config, data_fingerprint)
    with creation_lock(config.storage_url):
        storage = open_storage(config.storage_url, create=True, patience=config.search.storage_timeout)
        if config.paths.identity.exists() and not _is_there(config.study.name, storage):
            storage.engine.dispose()
            raise _another_folder(config)
        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            optuna.create_study(
                study_name=config.study.name, storage=storage, directions=config.directions, load_if_exists=True
            )
        finally:
            optuna.logging.set_verbosity(level)
        opened = _load(config, storage)
        stored = opened.stored_fingerprint()
        if stored is None and (opened.trials() or directions_of(opened.optuna) != config.directions):
            raise _not_ours(config)
        if repeats is None:
            opened.must_be_a_search()
        elif stored is None:  # before the fingerprint, which makes a study of it
            storage.set_study_system_attr(opened.id, REPEATS, repeats)
        elif storage.get_study_system_attrs(opened.id).get(REPEATS) != repeats:
            raise _not_repeats(config, repeats)
        notes = [] if stored is None else compare(config.study.name, stored, now)
        if stored != now:  # before anything else: whoever dies from here on leaves a study that is known as ours
            storage.set_study_system_attr(opened.id, FINGERPRINT, now)
        own_folder(opened)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            opened.optuna.set_metric_names(list(config.study.metrics))
        if repeats is None:
            _enqueue(opened)
        storage.set_study_system_attr(opened.id, TOTAL, total_of(config))
        storage.engine.dispose()
    return opened, notes


def own_folder(opened: OpenStudy) -> None:
    """Mark the study's folder as its own; raises `StudyMismatch` where it holds the files of another of that name."""
    config = opened.config
    known = opened.storage.get_study_system_attrs(opened.id).get(IDENTITY)
    if known is None:
        known = uuid.uuid4().hex
        opened.storage.set_study_system_attr(opened.id, IDENTITY, known)
    mark = config.paths.identity
    if mark.exists() and mark.read_text(encoding="utf-8").strip() != known:
        raise _another_folder(config)
    if not mark.exists():
        write_text(mark, known + "\n")


def _is_there(name: str, storage: Storage) -> bool:
    try:
        storage.get_study_id_from_name(name)
    except KeyError:
        return False
    return True


def _another_folder(config: StudyConfig) -> StudyMismatch:
    return StudyMismatch(
        f"{config.paths.folder} holds the files of another study of that name, from another storage; "
        "move it away, or choose another name with --study-name"
    )


def directions_of(study: optuna.Study) -> list[str]:
    """`maximize` or `minimize` of each metric."""
    return [direction.name.lower() for direction in study.directions]


def _not_ours(config: StudyConfig) -> StudyMismatch:
    wanted = zip(config.directions, config.study.metrics, strict=True)
    return StudyMismatch(
        f"{hide_password(config.storage_url)}: the study {config.study.name} was not made by mmsearch, or for another "
        f"direction than to {' and '.join(map(' '.join, wanted))}; choose another with --study-name"
    )


def _not_repeats(config: StudyConfig, repeats: str) -> StudyMismatch:
    return StudyMismatch(
        f"{hide_password(config.storage_url)}: what is trained again of the study {repeats} needs the name "
        f"{config.study.name}, which another study has"
    )


def _enqueue(opened: OpenStudy) -> None:
    """Queue the defaults and the study file's own configurations, unless they are there already."""
    config = opened.config
    space = config.dimensions
    points = grid(space, config.study.seed) if config.search.sampler == "grid" else None
    known = [trial.system_attrs.get("fixed_params") for trial in opened.trials()]
    for position, configuration in enumerate(config.configurations):
        params = varying(space, configuration)
        if params in known or (points is not None and params not in points):
            continue
        attrs: dict[str, Any] = {"fixed_params": params}
        if position == 0:
            attrs[BASELINE] = True
        if points is not None:
            attrs[SLOT] = points.index(params)
        opened.storage.enqueue(opened.id, attrs)  # on a grid, unless its point has had a trial
