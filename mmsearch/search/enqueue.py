"""Queue one configuration by hand: for a search that runs, or for the next launch."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig
from mmsearch.errors import StudyMismatch, UsageError
from mmsearch.hyperparameters import Hyperparameters, Value, show
from mmsearch.search.space import grid
from mmsearch.search.storage import SLOT
from mmsearch.search.study import OpenStudy, count, open_study
from mmsearch.spaces import Choices, Space


@dataclass(frozen=True)
class Queued:
    """A configuration that waits for a worker.

    `changed` is what differs from the defaults. `needs` is the total of trials with which it gets its turn, where the
    study's own total is used up; else None.
    """

    number: int
    configuration: Hyperparameters
    changed: dict[str, Value]
    needs: int | None


def enqueue(
    config: StudyConfig, given: Mapping[str, Value], *, like: int | str | None = None, again: bool = False
) -> Queued:
    """Queue the configuration with the given values; the others are as in the trial `like`, or else the defaults.

    `like` is a trial's number or the word best. `again` allows a configuration that has its trial already. Raises
    `UsageError` for what is not in the space, or there already, `StudyMismatch` where the study is searched with
    another space, `NoCompletedTrial` where there is no best, and `StorageError` where there is no study.
    """
    space = config.dimensions
    with open_study(config) as opened:
        trials = opened.trials()
        inherited = {} if like is None else _held(_find(opened, trials, like))
        try:
            wanted = _configuration(space, given, inherited)
        except ValueError as error:
            raise UsageError(str(error)) from None
        params, stored = _searched(opened, wanted)
        attrs: dict[str, Any] = {"fixed_params": params}
        if stored["search.sampler"] == "grid":
            attrs[SLOT], attrs["fixed_params"] = _point(opened, params, stored)
        elif not again:
            _must_be_new(trials, params)
        number = opened.storage.enqueue(opened.id, attrs)
        if number is None:
            had = next(trial for trial in reversed(opened.trials()) if trial.system_attrs.get(SLOT) == attrs[SLOT])
            raise UsageError(f"trial {had.number} ({had.state.name}) has this point of the grid, which is tried once")
        counts = count(trials)
        places = counts.finished + counts.running + counts.waiting + 1
        defaults = space.configuration({})
        return Queued(
            number,
            wanted,
            {name: value for name, value in params.items() if defaults.get(name) != value},
            places if places > opened.total() else None,
        )


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """What `optimizer.lr=5e-4` and the like say: values as in TOML, where words may go without quotes.

    Raises `UsageError`.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, written = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UsageError(f'"{text}" must be a name and a value, such as optimizer.lr=5e-4')
        if name in found:
            raise UsageError(f'"{name}" is given twice')
        try:
            held = tomllib.loads(f"value = {written}")
        except tomllib.TOMLDecodeError:
            held = {}
        found[name] = held["value"] if held.keys() == {"value"} else written.strip()
    return found


def _configuration(space: Space, given: Mapping[str, Value], inherited: Mapping[str, Value]) -> Hyperparameters:
    """The configuration with the given values, then those of `inherited` that apply, then defaults; or `ValueError`."""
    values = {**inherited, **given}
    applies = space.walk(lambda name, dimension: values.get(name, dimension.default))
    return space.configuration({name: value for name, value in values.items() if name in given or name in applies})


def _held(trial: FrozenTrial) -> dict[str, Any]:
    """A trial's parameters: those that it has, or will have."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _find(opened: OpenStudy, trials: list[FrozenTrial], like: int | str) -> FrozenTrial:
    if like == "best":
        return opened.picked("best")
    number = int(like) if str(like).isdecimal() else -1
    if not 0 <= number < len(trials):
        there = f"0 to {len(trials) - 1}" if trials else "none yet"
        raise UsageError(f"--like {like} is no trial of the study {opened.config.study.name}: it has {there}; or best")
    if not _held(trials[number]):
        raise UsageError(f"--like {like}: the trial has no parameters yet")
    return trials[number]


def _must_be_new(trials: list[FrozenTrial], params: Mapping[str, Value]) -> None:
    for trial in trials:
        if trial.state != TrialState.FAIL and _same(_held(trial), params):
            raise UsageError(
                f"trial {trial.number} ({trial.state.name}) has this configuration already; --again queues it once more"
            )


def _searched(opened: OpenStudy, wanted: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Any]]:
    """What of a configuration varies in the study as its workers know it, and how it was begun.

    Raises `StudyMismatch` where its file was edited since the last launch, so that the workers cannot have it.
    """
    study, stored = opened.config.study.name, opened.stored_fingerprint()
    if stored is None:
        raise StudyMismatch(f"the study {study} was not made by mmsearch")
    for name, value in wanted.items():
        low, high = stored["ranges"].get(name, (value, value))[:2]
        options = stored["choices"].get(name) or [stored["fixed"].get(name, value)]
        if name in stored["ranges"]:
            inside, allowed = low <= value <= high, f"from {show(low)} to {show(high)}"
        else:
            inside, allowed = value in options, f"= {' or '.join(map(show, options))}"
        if not inside:
            raise StudyMismatch(
                f'the study {study} is searched with "{name}" {allowed}, not {show(value)}: its file has changed since '
                "the last launch"
            )
    vary = stored["ranges"].keys() | stored["choices"].keys()
    return {name: value for name, value in wanted.items() if name in vary}, stored


def _point(opened: OpenStudy, params: Mapping[str, Value], stored: Mapping[str, Any]) -> tuple[int, dict[str, Value]]:
    """A point of the study's grid: its number there, and its values as they are written there."""
    space = opened.config.dimensions
    axes = {
        name: list(d.options) if isinstance(d, Choices) else [d.low, d.high, d.log, d.step]
        for name, d in space.varying().items()
    }
    if axes != {**stored["choices"], **stored["ranges"]}:
        raise StudyMismatch(
            f"the study {opened.config.study.name} is searched on another grid: its file has changed since the last "
            "launch"
        )
    points = grid(space, stored["study.seed"])
    return next((number, point) for number, point in enumerate(points) if _same(point, params))


def _same(one: Mapping[str, Value], other: Mapping[str, Value]) -> bool:
    """Whether two configurations are one: a step may be stored as 0.30000000000000004."""
    return one.keys() == other.keys() and all(
        math.isclose(value, theirs, rel_tol=1e-9, abs_tol=1e-12)
        if isinstance(value, float) and isinstance(theirs := other[name], float)
        else value == other[name]
        for name, value in one.items()
    )
