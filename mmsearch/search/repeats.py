"""Configurations of a study trained again on given seeds, by the same workers, in a study of their own beside it.

The other study is called as the first one, with a word behind it, and lies in the same storage. It has the same data,
split and training, no pruner and no constraints; nothing is proposed in it, and nothing of it counts in the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig, StudySection
from mmsearch.data.dataset import Dataset
from mmsearch.errors import UsageError
from mmsearch.hyperparameters import Value
from mmsearch.search.budgets import Signals
from mmsearch.search.database import creation_lock
from mmsearch.search.launcher import prepared, team_of, work, working_here
from mmsearch.search.machine import still_runs, this_process
from mmsearch.search.opening import check_init, devices, opening
from mmsearch.search.progress import Progress, plural
from mmsearch.search.storage import FAIL_REASON, SEED
from mmsearch.search.study import TOTAL, OpenStudy, count, create_study
from mmsearch.search.values import VIOLATED
from mmsearch.search.worker import Orders

LONGEST_NAME = 100  # of a study, as `StudySection` has it
UNDER_WAY = (TrialState.WAITING, TrialState.RUNNING)
WANTED = "mmsearch:wanted"  # system attribute of a study of repeats: who wants which configurations on which seeds
WITHDRAWN = "withdrawn: a later run does not ask for it"

Key = tuple[tuple[tuple[str, str], ...], int]


@dataclass(frozen=True)
class Outcome:
    """What became of a configuration on one seed: its leading value on the validation rows, the epoch that had it (with
    k-fold the median of the folds'), and the size of its model. `value` is None where it failed, for `reason`, or was
    not trained yet.
    """

    value: float | None
    best_epoch: int = 0
    parameters: int = 0
    reason: str = "it was not trained"


@dataclass(frozen=True)
class Repeats:
    """Outcomes by configuration and seed; `ended` says why the work ended before all were there, where it did."""

    outcomes: tuple[tuple[Outcome, ...], ...]
    ended: str | None


def repeats_of(config: StudyConfig, word: str) -> StudyConfig:
    """The study in which configurations of this one are trained again; raises `UsageError` where its name is too long.

    A time limit of the study file is for the search; one of the command line holds.
    """
    name = f"{config.study.name}-{word}"
    if len(name) > LONGEST_NAME:
        raise UsageError(
            f"{name} is too long for the name of a study, which has {LONGEST_NAME} characters at most: what is trained "
            f"again of {config.study.name} is kept under that name"
        )
    study = {"name": name, "metrics": config.study.metrics[:1], "constraints": ()}
    timeout = config.search.timeout if "search.timeout" in config.overrides else None
    search = {"sampler": "random", "pruner": "none", "patience_trials": None, "timeout": timeout}
    return StudyConfig(
        file=config.file,
        overrides=config.overrides,
        study=StudySection(**{**config.study.model_dump(), **study}),
        data=config.data,
        search=config.search.model_copy(update=search),
        space=config.space,
    )


def repeat(
    source: OpenStudy,
    dataset: Dataset,
    word: str,
    configurations: Sequence[Mapping[str, Value]],
    seeds: Sequence[int],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Repeats:
    """Train each configuration, the values of what varies, on each seed, unless that was done.

    A seed is a number from which a trial's own seeds derive, above the numbers of trials, so that none was seen in the
    search. Stopped at any moment and run again, it trains what is missing, and anew what failed. Several may run at
    once, also with other seeds or configurations: they share the work, and each waits until what is queued is done.
    Where one withdraws what another on a machine that it cannot see into has queued, the other ends without it.
    Workers, signals and errors are as `mmsearch.search.launcher.launch` has them.
    """
    progress = progress or Progress()
    config = repeats_of(source.config, word)
    ended = None
    with prepared(progress) as signals:
        places = devices(config)
        opened, notes = create_study(config, dataset.fingerprint, repeats=source.config.study.name)
        for line in notes:
            progress.note(line)
        with opened:
            token = opened.stop_asked()
            if _queue(opened, configurations, seeds):
                ended = _train(source, opened, dataset, places, workers, token, signals, progress)
            found = _outcomes(opened.trials())
    nothing = Outcome(None)
    outcomes = tuple(tuple(found.get(key_of(params, seed), nothing) for seed in seeds) for params in configurations)
    if ended is None and any(outcome.reason == WITHDRAWN for theirs in outcomes for outcome in theirs):
        ended = "another run, on a machine that cannot see this one, withdrew what this one had queued"
    return Repeats(outcomes, ended)


def key_of(params: Mapping[str, Value], seed: int = 0) -> Key:
    """What tells configurations and seeds apart; a step may be stored as 0.30000000000000004."""
    words = {name: f"{value:.12g}" if isinstance(value, float) else repr(value) for name, value in params.items()}
    return tuple(sorted(words.items())), seed


def missing(outcomes: Sequence[Outcome]) -> int:
    """On how many seeds a configuration has no value."""
    return sum(outcome.value is None for outcome in outcomes)


def why_missing(what: str, outcomes: Sequence[Outcome]) -> str:
    """The last reason why a configuration has no value on a seed, in a sentence on it; there must be one."""
    reason = next(outcome.reason for outcome in reversed(outcomes) if outcome.value is None)
    return f"{what}: {missing(outcomes)} of {plural(len(outcomes), 'seed')} without a value: {reason}"


def shared(one: Sequence[float | None], other: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """The values of two configurations on the seeds where both have one, in their order."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _train(
    source: OpenStudy,
    opened: OpenStudy,
    dataset: Dataset,
    places: tuple[str, ...],
    workers: int | None,
    token: str | None,
    signals: Signals,
    progress: Progress,
) -> str | None:
    """Let workers train what is queued; returns why they ended before it was done, where they did."""
    config, beside = opened.config, working_here(opened)
    check_init(config, dataset)
    team, threads = team_of(config, workers, places, beside + working_here(source))
    for line in opening(config, dataset, team, threads, places, beside):
        progress.note(line)
    orders = Orders(config, "", 0, opened.total(), threads, only_queued=True, places=places)
    ending = work(opened, orders, team, token, signals, progress).ending
    return None if ending is None else ending.reason


def _queue(opened: OpenStudy, configurations: Sequence[Mapping[str, Value]], seeds: Sequence[int]) -> bool:
    """Queue what is wanted and neither there nor under way; returns whether any of it is not there yet.

    What is queued and no run wants that may be at work is withdrawn.
    """
    opened.reap(still_runs)
    with creation_lock(opened.config.storage_url):
        trials = opened.trials()
        wanted = {key_of(params, seed): (params, seed) for seed in seeds for params in configurations}
        needed = wanted.keys() | _sign(opened, trials, configurations, seeds)
        for trial in trials:
            if trial.state == TrialState.WAITING and _key(trial) not in needed:
                _withdraw(opened, trial)
        held = {_key(trial) for trial in trials if trial.state in (*UNDER_WAY, TrialState.COMPLETE)}
        for key, (params, seed) in wanted.items():
            if key not in held:
                opened.storage.enqueue(opened.id, {"fixed_params": dict(params), SEED: seed})
        counts = count(opened.trials())
        opened.storage.set_study_system_attr(opened.id, TOTAL, counts.finished + counts.running + counts.waiting)
    return not wanted.keys() <= {_key(trial) for trial in trials if trial.state == TrialState.COMPLETE}


def _sign(
    opened: OpenStudy,
    trials: Sequence[FrozenTrial],
    configurations: Sequence[Mapping[str, Value]],
    seeds: Sequence[int],
) -> set[Key]:
    """Write down what this process wants; returns what others want that may be at work.

    It is not enough that a trial runs: between two trials, and until the first worker is there, all of a run wait. Only
    of a run on another machine nobody can tell: it counts as at work while any trial runs.
    """
    me, busy = this_process(""), any(trial.state == TrialState.RUNNING for trial in trials)
    others = []
    for run in opened.storage.get_study_system_attrs(opened.id).get(WANTED, ()):
        runs = run["by"] != me and still_runs(run["by"])  # what this process wanted before, it wants no more
        if runs or (runs is None and busy):
            others.append(run)
    mine: dict[str, Any] = {
        "by": me,
        "configurations": [dict(params) for params in configurations],
        "seeds": list(seeds),
    }
    opened.storage.set_study_system_attr(opened.id, WANTED, [*others, mine])
    return {key_of(params, seed) for run in others for params in run["configurations"] for seed in run["seeds"]}


def _withdraw(opened: OpenStudy, trial: FrozenTrial) -> None:
    """Take a waiting trial out of the queue: it fails, without a retry."""
    if opened.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
        opened.fail(opened.storage.get_trial(trial._trial_id), WITHDRAWN, 0)


def _key(trial: FrozenTrial) -> Key | None:
    """Which configuration and seed a trial repeats; None for one that was queued by hand."""
    attrs = trial.system_attrs
    return key_of(attrs["fixed_params"], attrs[SEED]) if SEED in attrs and "fixed_params" in attrs else None


def _outcomes(trials: Sequence[FrozenTrial]) -> dict[Key | None, Outcome]:
    """By configuration and seed: the first that is complete, or else why the last one is not."""
    found: dict[Key | None, Outcome] = {}
    for trial in trials:
        key, before = _key(trial), found.get(_key(trial))
        if before is not None and before.value is not None:
            continue
        attrs: dict[str, Any] = trial.user_attrs
        if trial.state == TrialState.COMPLETE:
            found[key] = Outcome(trial.values[0], attrs.get("best_epoch", 0), attrs.get("parameters", 0), "")
        elif trial.state.is_finished():
            found[key] = Outcome(None, reason=attrs.get(FAIL_REASON) or attrs.get(VIOLATED) or "it failed")
    return found
