"""Studies whose values a test makes up: as many trials of any space as wanted, in memory, in no time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from mmsearch.config import StudyConfig, load_config
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.search.space import at, distribution, varying
from mmsearch.search.storage import BASELINE, OWNER, Storage
from mmsearch.search.study import OpenStudy
from mmsearch.spaces import Choices, Fixed, Range

START = datetime(2026, 1, 1, 12)

Direction = Literal["minimize", "maximize"]
# What a configuration is worth: a value, or several, or (state, values, what else is of the trial).
Value = Callable[[Hyperparameters, np.random.Generator], Any]


def study_file(folder: Path, space: str, study: str = "", data: str = "", search: str = "") -> StudyConfig:
    """A study file of this space and nothing else."""
    path = folder / "studies" / "planted.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[study]\n{study}\n[data]\n{data}\n[search]\n{search}\n[space]\n{space}\n")
    return load_config(path, reading=True)


def trial(
    config: StudyConfig,
    params: Mapping[str, Any],
    values: list[float] | None = None,
    state: TrialState = TrialState.COMPLETE,
    *,
    start: float = 0.0,
    seconds: float = 10.0,
    worker: str = "0-aaaa",
    **extra: Any,
) -> FrozenTrial:
    """One trial; times in seconds since the study began."""
    distributions = {}
    for name in params:
        dimension = config.dimensions[name]
        assert not isinstance(dimension, Fixed)
        distributions[name] = distribution(name, dimension)
    extra["system_attrs"] = {OWNER: {"worker": worker, "host": "here"}, **extra.get("system_attrs", {})}
    made = create_trial(state=state, values=values, params=dict(params), distributions=distributions, **extra)
    made.datetime_start = None if state == TrialState.WAITING else START + timedelta(seconds=start)
    made.datetime_complete = START + timedelta(seconds=start + seconds) if state.is_finished() else None
    return made


def plant(
    config: StudyConfig, count: int, value: Value, *, seed: int = 0, pruned: float = 0.0, workers: int = 2
) -> OpenStudy:
    """A study of so many trials, the defaults first and then at random, of which a share is pruned."""
    rng = np.random.default_rng(seed)

    def pick(name: str, dimension: Range | Choices) -> Any:
        return at(dimension, float(rng.random()))

    trials = []
    for number in range(count):
        configuration = config.dimensions.walk(pick) if number else config.dimensions.configuration({})
        params = varying(config.dimensions, configuration)
        found = np.atleast_1d(value(configuration, rng)).tolist()
        extra: dict[str, Any] = {"system_attrs": {BASELINE: True} if number == 0 else {}}
        extra["user_attrs"] = {"parameters": int(10 ** rng.uniform(4, 6.5)), "epochs": 5, "best_epoch": 4}
        state = TrialState.PRUNED if number and rng.random() < pruned else TrialState.COMPLETE
        if state == TrialState.PRUNED:
            extra["intermediate_values"] = {1: found[0] - 0.01, 2: found[0]}
        worker = number % workers
        start = number // workers * 12.0
        trials.append(
            trial(config, params, found, state, start=start, seconds=10.0, worker=f"{worker}-{worker:04d}", **extra)
        )
    return opened_with(config, trials)


def opened_with(config: StudyConfig, trials: list[FrozenTrial]) -> OpenStudy:
    """A study of these trials, opened, in memory."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=config.study.name, directions=config.directions)
    optuna.logging.set_verbosity(level)
    study.add_trials(trials)
    return OpenStudy(config, study, cast(Storage, study._storage))


def fill(storage: RDBStorage, directions: list[Direction], trials: int = 9) -> int:
    """A study of trials in every state, with whatever a trial may hold, by Optuna's own calls; returns its number."""
    study = optuna.create_study(storage=storage, directions=directions, sampler=optuna.samplers.RandomSampler(0))
    study.enqueue_trial({"lr": 0.5, "encoder": None}, user_attrs={"note": "the defaults"})
    for number in range(trials):
        trial = study.ask()
        trial.suggest_float("lr", 1e-5, 1.0, log=True)
        trial.suggest_int("filters", 8, 64, step=8)
        if trial.suggest_categorical("encoder", ["cnn", "mlp", None, True, 3]) == "cnn":
            trial.suggest_float("dropout", 0.0, 0.6, step=0.1)
        trial.set_user_attr("run", {"seed": number, "versions": ["1", None, 2.5]})
        trial.set_constraint("size", -0.5)
        if len(directions) == 1:
            for step, value in enumerate([0.1, math.inf, -math.inf, math.nan, 1e-300], 1):
                trial.report(value, 6 - step)
        values = [(math.inf, -math.inf, 0.25, 1.0)[number % 4] for _ in directions]
        if number % 3 == 2:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 3 == 1 and len(directions) == 1:
            study.tell(trial, state=TrialState.PRUNED)
        elif number < trials - 1:
            study.tell(trial, values)
    study.enqueue_trial({"lr": 0.1})
    return study._study_id


def in_words(trial: FrozenTrial) -> dict[str, str]:
    """All that a trial holds, in words, since a NaN is not equal to itself; dictionaries in the order of their keys."""
    return {
        name: repr(sorted(held.items()) if isinstance(held, dict) else held)
        for name, held in sorted(vars(trial).items())
    }
