"""The trials of a study, read as plain rows: with 5,000 of them Optuna's own way takes twelve times as long.

Optuna makes an object of SQLAlchemy's for each row of six tables, 150,000 of them, and a distribution for each
parameter of each trial. Here a table is one query, and what is written in the same words is one distribution.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from mmsearch.search.values import RUN

# Optuna's tables, as far as they are read; tests compare what is made of them with what Optuna makes.
STUDIES = sa.table("studies", sa.column("study_id"))
TRIALS = sa.table(
    "trials",
    *(sa.column("trial_id"), sa.column("number"), sa.column("study_id"), sa.column("state", sa.Enum(TrialState))),
    *(sa.column("datetime_start", sa.DateTime()), sa.column("datetime_complete", sa.DateTime())),
)
ONE_TRIAL = sa.select(TRIALS).where(TRIALS.c.trial_id == sa.bindparam("trial"))
HEARTBEATS = sa.table("trial_heartbeats", sa.column("trial_id"), sa.column("heartbeat", sa.DateTime()))
# Of each table with several rows a trial: its key, which has their order, and what is read.
VALUES = ("trial_values", "trial_value_id", "objective", "value", "value_type")
PARAMS = ("trial_params", "param_id", "param_name", "param_value", "distribution_json")
REPORTS = (
    *("trial_intermediate_values", "trial_intermediate_value_id"),
    *("step", "intermediate_value", "intermediate_value_type"),
)
USER_ATTRS = ("trial_user_attributes", "trial_user_attribute_id", "key", "value_json")
SYSTEM_ATTRS = ("trial_system_attributes", "trial_system_attribute_id", "key", "value_json")

# What outcomes go without, beside parameters and reports: on what a trial was trained, and where its pictures are.
ASIDE = RUN, "artifacts:%"

NOT_FINITE = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
FEW = 500  # trials that a query names one by one; databases limit how many


def read_trials(
    storage: RDBStorage,
    study_id: int,
    states: Container[TrialState] | None,
    included_trial_ids: Collection[int],
    trial_id_greater_than: int,
) -> list[FrozenTrial]:
    """The trials of a study by their ids, as `RDBStorage._get_trials` has them, with the same arguments.

    Where `trial_id_greater_than` is not -1, these are the trials with greater ids, and the included ones. Raises
    `KeyError` where there is no such study.
    """
    included = {held for held in included_trial_ids if held <= trial_id_greater_than}
    named = len(included) <= FEW and trial_id_greater_than > -1
    given = (
        {"study": study_id, "after": trial_id_greater_than, "included": [*included]} if named else {"study": study_id}
    )
    wanted = _wanted(named=named)
    if isinstance(states, Iterable):
        wanted = wanted.where(TRIALS.c.state.in_(states))
    with storage.engine.connect() as connection:
        found = connection.execute(wanted, given)
        rows = [row for row in found if row.trial_id > trial_id_greater_than or row.trial_id in included]
        if not rows and connection.execute(sa.select(STUDIES).where(STUDIES.c.study_id == study_id)).first() is None:
            raise KeyError(f"there is no study {study_id}")
        return _frozen(connection, rows)


def read_outcomes(storage: RDBStorage, study_id: int) -> list[FrozenTrial]:
    """All trials of a study by their ids, without what is most of what there is to read: see `ASIDE`."""
    with storage.engine.connect() as connection:
        return _frozen(connection, connection.execute(_wanted(named=False), {"study": study_id}).all(), whole=False)


def read_trial(storage: RDBStorage, trial_id: int) -> FrozenTrial:
    """A trial by its id, as `RDBStorage.get_trial` has it; raises `KeyError` where there is none."""
    with storage.engine.connect() as connection:
        row = connection.execute(ONE_TRIAL, {"trial": trial_id}).first()
        if row is None:
            raise KeyError(f"there is no trial with the id {trial_id}")
        return _frozen(connection, [row])[0]


def read_silences(storage: RDBStorage, study_id: int) -> dict[int, float]:
    """The ids of running trials, and the seconds since the last heartbeat of each, or its start if it has none."""
    found = (
        sa.select(TRIALS.c.trial_id, sa.func.coalesce(HEARTBEATS.c.heartbeat, TRIALS.c.datetime_start))
        .outerjoin(HEARTBEATS, HEARTBEATS.c.trial_id == TRIALS.c.trial_id)
        .where(TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING)
    )
    with storage.engine.connect() as connection:
        now = connection.execute(sa.select(sa.func.now())).scalar_one().replace(tzinfo=None)
        return {trial: (now - seen).total_seconds() for trial, seen in connection.execute(found)}


def _frozen(connection: sa.Connection, found: Sequence[sa.Row[Any]], *, whole: bool = True) -> list[FrozenTrial]:
    """Trials of one study, whose rows are in the order of their ids; with all that belongs to them, if `whole`."""
    ids = [row.trial_id for row in found]  # what belongs to them is written before they are in their states
    study_id = found[0].study_id if found else -1
    values: dict[int, dict[int, float]] = defaultdict(dict)
    for trial, objective, value, kind in _rows(connection, VALUES, study_id, ids):
        values[trial][objective] = _number(value, kind)
    reports: dict[int, dict[int, float]] = defaultdict(dict)
    for trial, step, value, kind in _rows(connection, REPORTS, study_id, ids) if whole else ():
        reports[trial][step] = _number(value, kind)
    known: dict[str, BaseDistribution] = {}
    distributions: dict[int, dict[str, BaseDistribution]] = defaultdict(dict)
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial, name, value, text in _rows(connection, PARAMS, study_id, ids) if whole else ():
        distribution = distributions[trial][name] = _distribution(text, known)
        params[trial][name] = distribution.to_external_repr(value)
    attributes: list[dict[int, dict[str, Any]]] = []
    for table in (USER_ATTRS, SYSTEM_ATTRS):
        held: dict[int, dict[str, Any]] = defaultdict(dict)
        for trial, key, text in _rows(connection, table, study_id, ids, brief=not whole):
            held[trial][key] = json.loads(text)
        attributes.append(held)
    user_attrs, system_attrs = attributes
    return [
        FrozenTrial(
            number=row.number,
            state=row.state,
            value=None,
            values=[value for _, value in sorted(values[row.trial_id].items())] or None,
            datetime_start=local_time(row.datetime_start),
            datetime_complete=local_time(row.datetime_complete),
            params=params[row.trial_id],
            distributions=distributions[row.trial_id],
            user_attrs=user_attrs[row.trial_id],
            system_attrs=system_attrs[row.trial_id],
            intermediate_values=reports[row.trial_id],
            trial_id=row.trial_id,
        )
        for row in found
    ]


def _rows(
    connection: sa.Connection, named: tuple[str, ...], study_id: int, ids: list[int], *, brief: bool = False
) -> Iterable[Any]:
    """The rows of one table in the order in which they were written; the first value of each is its trial's id."""
    if not ids:
        return ()
    if len(ids) > FEW:
        return connection.execute(_asked(named, many=True, brief=brief), {"study": study_id, "first": ids[0]})
    return connection.execute(_asked(named, many=False, brief=brief), {"ids": ids})


@cache
def _wanted(*, named: bool) -> sa.Select[Any]:
    """The statement that reads the trials of a `study`; where `named`, those with ids `after` one, or `included`."""
    wanted = sa.select(TRIALS).where(TRIALS.c.study_id == sa.bindparam("study")).order_by(TRIALS.c.trial_id)
    if not named:
        return wanted
    included = TRIALS.c.trial_id.in_(sa.bindparam("included", expanding=True))
    return wanted.where((TRIALS.c.trial_id > sa.bindparam("after")) | included)


@cache
def _asked(named: tuple[str, ...], *, many: bool, brief: bool) -> sa.Select[Any]:
    """The statement that reads the rows of one table: of trials by their `ids`, or of a `study` from its `first` on.

    Of attributes, where `brief`, not those that outcomes go without.
    """
    name, key, *columns = named
    table = sa.table(name, *(sa.column(column) for column in ("trial_id", key, *columns)))
    within = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == sa.bindparam("study"), TRIALS.c.trial_id >= sa.bindparam("first")
    )
    theirs: sa.ColumnElement[bool] = table.c.trial_id.in_(within if many else sa.bindparam("ids", expanding=True))
    if brief:
        theirs &= sa.not_(sa.or_(*(table.c.key.like(pattern) for pattern in ASIDE)))
    return sa.select(table.c.trial_id, *(table.c[column] for column in columns)).where(theirs).order_by(table.c[key])


def _distribution(text: str, known: dict[str, BaseDistribution]) -> BaseDistribution:
    if text not in known:
        known[text] = json_to_distribution(text)
    return known[text]


def _number(value: float | None, kind: str) -> float:
    """A stored value: databases keep what is not finite in words."""
    return NOT_FINITE[kind] if value is None else value


def local_time(stored: datetime | None) -> datetime | None:
    """A stored time, which is UTC, as Optuna shows it: of this machine's time zone, without saying so."""
    return None if stored is None else stored.replace(tzinfo=UTC).astimezone().replace(tzinfo=None)
