"""What each parameter of the best configuration is worth: one at a time back at its default, trained again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from mmsearch.config import StudyConfig
from mmsearch.data.sources import load_dataset
from mmsearch.errors import NoCompletedTrial, UsageError
from mmsearch.hyperparameters import Value, show
from mmsearch.results.confirm import SIGNIFICANT, interval_of, winner, worth_of_a_row
from mmsearch.results.statistics import Interval, holm, mean_interval, paired_p
from mmsearch.search.progress import Progress
from mmsearch.search.repeats import Outcome, key_of, missing, repeat, shared, why_missing
from mmsearch.search.space import varying
from mmsearch.search.study import ABLATED, OpenStudy, open_study
from mmsearch.spaces import Space

WORD = "ablation"  # behind the study's name
FIRST_SEED = 2_000_000  # not those of `confirm`, by which the configuration may have been chosen


@dataclass(frozen=True)
class AblationRow:
    """The best configuration with one parameter back at its default.

    `best` and `default` are the parameter's two values. `values`, `mean` and `interval` (95 %, Student's) are of the
    configuration with the default. `difference` is how much worse it is than the best configuration, with
    `difference_interval` over the seeds that both have; negative where the default is better. `p` is of the paired
    t-test against the best configuration, corrected after Holm; None of fewer than two shared seeds.
    """

    parameter: str
    best: Value
    default: Value
    values: tuple[float, ...]
    mean: float
    interval: Interval | None
    difference: float
    difference_interval: Interval | None
    p: float | None
    differs: bool


@dataclass(frozen=True)
class Ablation:
    """What each parameter of one configuration is worth, on validation rows; what is worth most stands first.

    `trial` is the configuration's number in the search; `values`, `mean` and `interval` are its own on the same seeds.
    `sign` is 1 where greater values of `metric` are better, else -1. `missing` is how many values are not there,
    `failures` why, and `ended` why this run ended before all was trained, where it did. What one parameter is worth
    says nothing of two that are put back together.
    """

    metric: str
    sign: int
    seeds: int
    trial: int
    values: tuple[float, ...]
    mean: float
    interval: Interval | None
    rows: tuple[AblationRow, ...]
    missing: int = 0
    failures: tuple[str, ...] = ()
    ended: str | None = None


def ablate(
    config: StudyConfig, *, seeds: int = 3, workers: int | None = None, progress: Progress | None = None
) -> Ablation:
    """Train the best configuration, and it with one parameter at a time back at its default, on the same fresh seeds.

    The best is the confirmed choice, or else the best trial of the search. Only parameters that vary and differ from
    their default are put back; where others apply then, they have their defaults. All are trained in the study
    `<study>-ablation` and scored on the validation rows; what is there already is not trained again. What is found is
    kept with the study, unless the run ended before all was trained.

    Raises `UsageError`, `StudyMismatch`, `NoCompletedTrial`, and what `mmsearch.search.launcher.launch` raises.
    """
    if seeds < 2:
        raise UsageError("an ablation needs 2 seeds at least: one value says nothing of its spread")
    with open_study(config) as opened:
        opened.must_be_a_search()
        best = winner(opened)
        dataset = load_dataset(config)
        opened.check(dataset.fingerprint)
        changed = put_back(config.dimensions, best.params)
        configurations = [best.params, *changed.values()]
        numbers = [FIRST_SEED + number for number in range(seeds)]
        found = repeat(opened, dataset, WORD, configurations, numbers, workers=workers, progress=progress)
        pairs = {name: (best.params[name], params[name]) for name, params in changed.items()}
        worth = worth_of_a_row(config, dataset)
        made = compare(opened.metrics[0], opened.signs[0], best.number, pairs, found.outcomes, worth)
        made = replace(made, ended=found.ended)
        if found.ended is None:
            opened.storage.set_study_system_attr(opened.id, ABLATED, asdict(made))
        return made


def ablation_of(opened: OpenStudy) -> Ablation | None:
    """What `ablate` found last, as it is stored with the study; None where it was never run. Trains nothing."""
    stored = opened.storage.get_study_system_attrs(opened.id).get(ABLATED)
    if stored is None:
        return None
    rows = tuple(AblationRow(**_with_tuples(row)) for row in stored["rows"])
    return Ablation(**{**_with_tuples(stored), "rows": rows})


def put_back(space: Space, params: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
    """The configuration of these parameters with one at a time back at its default, by the name of that one.

    Those that have their default already are left out.
    """
    found = {}
    for name, dimension in space.varying().items():
        made = _configuration(space, {**params, name: dimension.default}) if name in params else params
        if key_of(made) != key_of(params):
            found[name] = dict(made)
    return found


def compare(
    metric: str,
    sign: int,
    trial: int,
    pairs: Mapping[str, tuple[Value, Value]],
    outcomes: Sequence[Sequence[Outcome]],
    resolution: float = 0.0,
) -> Ablation:
    """What the outcomes say: those of the best configuration first, then those of each parameter in its turn.

    `pairs` has the best and the default value of each parameter, `resolution` is as in `paired_p`. Raises
    `NoCompletedTrial` where the best configuration has no value.
    """
    best, *others = ([outcome.value for outcome in found] for found in outcomes)
    values = [value for value in best if value is not None]
    what = (f"trial {trial}", *(f"{name} = {show(default)}" for name, (_, default) in pairs.items()))
    failures = tuple(why_missing(name, found) for name, found in zip(what, outcomes, strict=True) if missing(found))
    if not values:
        raise NoCompletedTrial(f"the best configuration could not be trained again: {failures[0]}")
    rows = []
    for (name, (mine, default)), theirs in zip(pairs.items(), others, strict=True):
        if any(value is not None for value in theirs):
            rows.append(_row(metric, sign, resolution, name, (mine, default), best, theirs))
    p_values = {row.parameter: row.p for row in rows if row.p is not None}
    corrected = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    rows = [
        replace(row, p=corrected.get(row.parameter), differs=corrected.get(row.parameter, 1) < SIGNIFICANT)
        for row in rows
    ]
    rows.sort(key=lambda row: (-row.difference, row.parameter))
    return Ablation(
        metric,
        sign,
        len(best),
        trial,
        tuple(values),
        fmean(values),
        interval_of(metric, values, resolution),
        tuple(rows),
        sum(map(missing, outcomes)),
        failures,
    )


def _row(
    metric: str,
    sign: int,
    resolution: float,
    name: str,
    pair: tuple[Value, Value],
    best: Sequence[float | None],
    theirs: Sequence[float | None],
) -> AblationRow:
    """One parameter's row, with its p not corrected yet."""
    known, values = ([value for value in found if value is not None] for found in (best, theirs))
    both = shared(best, theirs)
    differences = [sign * (a - b) for a, b in zip(*both, strict=True)]
    return AblationRow(
        name,
        *pair,
        tuple(values),
        fmean(values),
        interval_of(metric, values, resolution),
        fmean(differences) if differences else sign * (fmean(known) - fmean(values)),
        mean_interval(differences, resolution=resolution * math.sqrt(2)),  # of two values each
        paired_p(*both, resolution),
        False,
    )


def _configuration(space: Space, values: Mapping[str, Value]) -> dict[str, Any]:
    """The parameters that vary where these values hold as far as they apply, and defaults elsewhere."""
    return varying(space, space.walk(lambda name, dimension: values.get(name, dimension.default)))


def _with_tuples(held: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in held.items()}
