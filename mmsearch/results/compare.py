"""Searches side by side: what each found, what it cost, and in what they differ. Reads studies, and needs no data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmsearch.config import StudyConfig, hide_password
from mmsearch.errors import UsageError
from mmsearch.hyperparameters import TABLE
from mmsearch.results.confirm import Confirmed
from mmsearch.results.standing import Point, Standing, standing
from mmsearch.results.statistics import CONFIDENCE, holm, welch_p
from mmsearch.search.fingerprint import DEFAULTS, INIT, find, words
from mmsearch.search.study import open_study

# Of a fingerprint: which rows validate. Values on other rows do not compare.
SPLIT = ("study.seed", *(name for name in DEFAULTS if name.startswith("data.")))
SIGNIFICANT = 1 - CONFIDENCE


@dataclass(frozen=True)
class Contest:
    """Whether the confirmed configurations of two studies differ by more than the luck of their seeds.

    `p` is of Welch's t-test between the values on fresh seeds, corrected after Holm for all pairs of studies: which is
    the best is known from the same values. `difference` is how much better the mean of `better` is.
    """

    better: str
    other: str
    difference: float
    seeds: int
    p: float

    @property
    def differs(self) -> bool:
        """Whether the difference is significant."""
        return self.p < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """Studies side by side; each tuple has one entry a study, in their order.

    `reached[i][j]` is when study i was as good as study j at its end: None where never, or where they do not compare.
    `parameters` has the hyperparameters in which the configurations taken differ, None where one does not apply;
    `setups` what else the studies were begun with, in words, where it differs, "-" where that is not known. `doubts`
    say in sentences why values do not compare, and `untested` why there is no contest, where there is none.
    """

    standings: tuple[Standing, ...]
    reached: tuple[tuple[Point | None, ...], ...]
    parameters: Mapping[str, tuple[Any, ...]]
    setups: Mapping[str, tuple[str, ...]]
    contests: tuple[Contest, ...]
    untested: str | None
    doubts: tuple[str, ...]


def compare(configs: Sequence[StudyConfig], names: Sequence[str] | None = None) -> Comparison:
    """Read studies, of one storage or of several, and set them side by side.

    `names` are what to call studies that have one name, in several storages. Raises `UsageError` for fewer than two
    studies or one that is there twice, and `StorageError` for one that does not exist.
    """
    if len(configs) < 2:
        raise UsageError("a comparison needs two studies or more")
    places = [(config.storage_url, config.study.name) for config in configs]
    for place, config in zip(places, configs, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"the study {config.study.name} of {hide_password(config.storage_url)} is named twice")
    own = [config.study.name for config in configs]
    standings = []
    for position, config in enumerate(configs):
        with open_study(config) as opened:
            twice = names is not None and own.count(own[position]) > 1
            standings.append(standing(opened, names[position] if twice and names else own[position]))
    return side_by_side(standings)


def side_by_side(standings: Sequence[Standing]) -> Comparison:
    """In what studies differ, and by how much."""
    contests, untested = _contests(standings)
    return Comparison(
        tuple(standings),
        tuple(tuple(_reached(one, other) for other in standings) for one in standings),
        _differing_parameters(standings),
        _differing_setups(standings),
        contests,
        untested,
        tuple(_doubts(standings)),
    )


def _reached(one: Standing, other: Standing) -> Point | None:
    """When one study was as good as another at its end."""
    if other.value is None or one.metric != other.metric:
        return None
    goal = one.sign * other.value
    return next((point for point in one.progress if point.best is not None and one.sign * point.best >= goal), None)


def _differing_parameters(standings: Sequence[Standing]) -> dict[str, tuple[Any, ...]]:
    """Hyperparameters in which the configurations taken differ, of studies that have one."""
    held = [one.configuration for one in standings if one.configuration]
    names = {name for configuration in held for name in configuration}
    ordered = [name for name in TABLE if name in names] + sorted(names - set(TABLE))
    return {
        name: tuple(one.configuration.get(name) for one in standings)
        for name in ordered
        if not all(_same(a.get(name), b.get(name)) for a, b in itertools.pairwise(held))
    }


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same, but for what a float's last digits are."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return type(one) is type(other) and bool(one == other)


def _differing_setups(standings: Sequence[Standing]) -> dict[str, tuple[str, ...]]:
    """What studies were begun with, where it differs: data, settings, and what of the space varies in one of them."""
    setups = [one.setup for one in standings if one.setup is not None]
    varying = {name for setup in setups for kind in ("choices", "ranges") for name in setup[kind]}
    found = {}
    for name in ("data", *DEFAULTS, INIT, *(name for name in TABLE if name in varying)):
        values = ["-" if one.setup is None else _said(one.setup, name) for one in standings]
        if len(set(values)) > 1:
            found[name] = tuple(values)
    return found


def _said(setup: Mapping[str, Any], name: str) -> str:
    if name == "data":  # a fingerprint, of which the start is enough to tell two apart
        return str(setup["data"])[:8]
    if name in TABLE:
        known = any(name in setup[kind] for kind in ("fixed", "choices", "ranges"))
        return words(find(setup, name)) if known else "-"
    return words(setup.get(name, DEFAULTS.get(name)))


def _contests(standings: Sequence[Standing]) -> tuple[tuple[Contest, ...], str | None]:
    """The study with the best confirmed mean against each other one; or why that cannot be tested."""
    confirmed = [(one, chosen) for one in standings if (chosen := one.chosen) is not None]
    if len(confirmed) < len(standings):
        missing = ", ".join(one.name for one in standings if one.chosen is None)
        return (), f"not confirmed on fresh seeds: {missing}; `mmsearch confirm` does that"
    for what, values in (
        ("metrics", {one.metric for one in standings}),
        ("data", {one.setup["data"] for one in standings if one.setup is not None}),
    ):
        if len(values) > 1:
            return (), f"the studies have different {what}"
    if split := _split(standings):
        return (), f"the studies have different validation rows, since {split}"
    seeds = {len(chosen.values) for _, chosen in confirmed}
    if len(seeds) > 1:
        return (), f"confirmed on different numbers of seeds: {', '.join(str(len(c.values)) for _, c in confirmed)}"
    (number,) = seeds
    if number < 2:
        return (), "confirmed on a single seed"
    position = max(range(len(confirmed)), key=lambda place: confirmed[place][0].sign * confirmed[place][1].mean)
    best, held = confirmed[position]
    p = _corrected(confirmed)
    return tuple(
        Contest(best.name, one.name, best.sign * (held.mean - chosen.mean), number, p[frozenset((position, place))])
        for place, (one, chosen) in enumerate(confirmed)
        if place != position
    ), None


def _corrected(confirmed: Sequence[tuple[Standing, Confirmed]]) -> dict[frozenset[int], float]:
    """The corrected p-value of each pair of studies, by their places."""
    found = {}
    for pair in itertools.combinations(range(len(confirmed)), 2):
        (one, held), (other, chosen) = (confirmed[place] for place in pair)
        found[frozenset(pair)] = welch_p(held.values, chosen.values, (_resolution(one), _resolution(other)))
    return dict(zip(found, holm([*found.values()]), strict=True))


def _resolution(one: Standing) -> float:
    return 0.0 if one.confirmed is None else one.confirmed.resolution


def _split(standings: Sequence[Standing]) -> str | None:
    """Why the studies have different validation rows, in words; None where they have the same."""
    setups = [one.setup for one in standings if one.setup is not None]
    names = [name for name in SPLIT if len({_said(setup, name) for setup in setups}) > 1]
    return f"{' and '.join(names)} differ{'s' * (len(names) == 1)}" if names else None


def _doubts(standings: Sequence[Standing]) -> Iterator[str]:
    """Why values do not compare, or are not the last word."""
    metrics = [f"{one.metric} in {one.name}" for one in standings]
    if len({one.metric for one in standings}) > 1:
        yield f"values do not compare, since the metrics differ: {', '.join(metrics)}"
    setups = [one.setup for one in standings if one.setup is not None]
    if len({setup["data"] for setup in setups}) > 1:
        yield "values do not compare, since the studies have different data"
    if split := _split(standings):
        yield f"values are of different validation rows, since {split}"
    for one in standings:
        if one.setup is None:
            yield f"{one.name} was not made by mmsearch: what it was begun with is not known"
        if one.best is None:
            yield f"{one.name} has no complete trial"
        elif one.counts.finished < one.total:
            yield f"{one.name} is not finished: {one.counts.finished} of {one.total} trials are there"
        if one.confirmed is not None and one.confirmed.stale:
            more = one.confirmed.now - one.confirmed.finished
            yield f"{one.name} has finished {more} more trial{'s' * (more != 1)} since it was confirmed"
