"""What is written of a trial, as plain rows: each in one statement, and of a block of them all in one transaction.

Optuna looks a trial up with SQLAlchemy's objects for each value that it sets, and commits each alone: some 30 times a
trial. What is written here is what Optuna writes; tests compare the two.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, wraps
from typing import Any, NamedTuple, TypeVar, cast

import sqlalchemy as sa
from optuna.distributions import (
    BaseDistribution,
    check_distribution_compatibility,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.dialects import postgresql, sqlite

from mmsearch.search.outage import survives
from mmsearch.search.reading import (
    HEARTBEATS,
    NOT_FINITE,
    PARAMS,
    REPORTS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    local_time,
)

COUNTED = sa.select(sa.func.count(TRIALS.c.trial_id)).where(TRIALS.c.study_id == sa.bindparam("study"))
NEW_TRIAL = sa.insert(TRIALS).returning(TRIALS.c.trial_id)
STATE = sa.select(TRIALS.c.state).where(TRIALS.c.trial_id == sa.bindparam("trial"))
INSERT: dict[str, Callable[[Any], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}

Method = TypeVar("Method", bound=Callable[..., Any])


class Row(NamedTuple):
    """A row of a table of what belongs to a trial; the first of its content tells it from the trial's others."""

    table: tuple[str, ...]  # its name and columns, as `mmsearch.search.reading` has them
    trial_id: int
    content: tuple[Any, ...]


class PlainWrites:
    """The writes of a storage; those in a `together` block wait for its end.

    Each raises `KeyError` where there is no such trial, and `UpdateFinishedTrialError` where it is finished.
    """

    engine: sa.Engine
    check_trial_is_updatable: Callable[[int, TrialState], None]

    def __init__(self) -> None:
        self._waiting = threading.local()

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread sets of trials in the block is one transaction, at its end or before something is read.

        Of a block that raises, what waits is not written. Blocks in blocks are one.
        """
        if self._held is not None:
            yield
            return
        self._waiting.rows = []
        try:
            yield
            self.write_held()
        finally:
            self._waiting.rows = None

    def write_held(self) -> None:
        """Write what waits in this thread's block."""
        held = self._held
        if held:
            self._waiting.rows = []
            self._write_rows(held)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's; `value` is anything that JSON can hold."""
        self._put(Row(USER_ATTRS, trial_id, (key, json.dumps(value))))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's; `value` is anything that JSON can hold."""
        self._put(Row(SYSTEM_ATTRS, trial_id, (key, json.dumps(value))))

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's: the value of a step may be set again, and may be infinite or no number."""
        self._put(Row(REPORTS, trial_id, (step, *_number(intermediate_value))))

    def put_param(
        self,
        trial_id: int,
        name: str,
        internal: float,
        distribution: BaseDistribution,
        previous: BaseDistribution | None,
    ) -> None:
        """A parameter in Optuna's internal representation; raises `ValueError` where `previous` is incompatible."""
        if previous is None:
            previous = self._first_distribution(trial_id, name)
        if previous is not None:
            check_distribution_compatibility(previous, distribution)
        self._put(Row(PARAMS, trial_id, (name, internal, distribution_to_json(distribution))))

    @property
    def _held(self) -> list[Row] | None:
        rows: list[Row] | None = getattr(self._waiting, "rows", None)
        return rows

    def _put(self, row: Row) -> None:
        if self._held is not None:
            self._held.append(row)
        else:
            self._write_rows([row])

    @survives
    def _write_rows(self, rows: list[Row]) -> None:
        with self.engine.begin() as connection:
            for trial_id in sorted({row.trial_id for row in rows}):
                state = connection.execute(STATE, {"trial": trial_id}).scalar_one_or_none()
                if state is None:
                    raise KeyError(f"there is no trial with the id {trial_id}")
                self.check_trial_is_updatable(trial_id, state)
            put_rows(connection, rows)

    @survives
    def _first_distribution(self, trial_id: int, name: str) -> BaseDistribution | None:
        """What the study's trials have for a parameter so far."""
        params = sa.table(PARAMS[0], *(sa.column(column) for column in ("trial_id", *PARAMS[2:])))
        study = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id).scalar_subquery()
        known = (
            sa.select(params.c.distribution_json)
            .join(TRIALS, TRIALS.c.trial_id == params.c.trial_id)
            .where(TRIALS.c.study_id == study, params.c.param_name == name)
            .limit(1)
        )
        with self.engine.connect() as connection:
            text = connection.execute(known).scalar_one_or_none()
        return None if text is None else json_to_distribution(text)


def put_rows(connection: sa.Connection, rows: Iterable[Row]) -> None:
    """Set values of trials, within a transaction; of what is set twice the last one counts."""
    by_table: dict[tuple[str, ...], dict[tuple[int, Any], dict[str, Any]]] = {}
    for row in rows:
        named = dict(zip(row.table[2:], row.content, strict=True), trial_id=row.trial_id)
        by_table.setdefault(row.table, {})[row.trial_id, row.content[0]] = named
    for table, found in by_table.items():
        connection.execute(_upsert(connection.dialect.name, table), list(found.values()))


def put_beat(connection: sa.Connection, trial_id: int) -> None:
    """Write down that a trial's owner lives, within a transaction, by the database's clock."""
    connection.execute(_beat(connection.dialect.name), {"trial_id": trial_id})


def add_trial(connection: sa.Connection, study_id: int) -> FrozenTrial:
    """A new trial that runs, within a transaction that has locked its study."""
    started, state = utc_now(), TrialState.RUNNING
    number = connection.execute(COUNTED, {"study": study_id}).scalar_one()
    new = {"study_id": study_id, "number": number, "state": state, "datetime_start": started}
    made = create_trial(state=state)
    made._trial_id = connection.execute(NEW_TRIAL, new).scalar_one()
    made.number, made.datetime_start = number, local_time(started)
    return made


def end_trial(connection: sa.Connection, trial_id: int, state: TrialState, values: Sequence[float]) -> None:
    """A trial's state, with its values and the time where it is finished, within a transaction that has locked it."""
    put_rows(connection, (Row(VALUES, trial_id, (place, *_number(value))) for place, value in enumerate(values)))
    changed: dict[str, Any] = {"state": state} | ({"datetime_complete": utc_now()} if state.is_finished() else {})
    connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id == trial_id).values(changed))


def utc_now() -> datetime:
    """As the database's tables have it: without a time zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def _number(value: float) -> tuple[float | None, str]:
    """As a database keeps it: what is not finite in words."""
    number = float(value)
    named = {math.inf: "INF_POS", -math.inf: "INF_NEG"}.get(number, "NAN" if math.isnan(number) else "FINITE")
    return (None if named in NOT_FINITE else number), named


@cache
def _upsert(database: str, named: tuple[str, ...]) -> Any:
    """The statement that sets a value of a trial; a parameter that is there stays, as Optuna has it."""
    name, _, key, *columns = named
    table = sa.table(name, *(sa.column(column) for column in ("trial_id", key, *columns)))
    statement = INSERT[database](table)
    index = ("trial_id", key)
    if named is PARAMS:
        return statement.on_conflict_do_nothing(index_elements=index)
    return statement.on_conflict_do_update(
        index_elements=index, set_={column: statement.excluded[column] for column in columns}
    )


@cache
def _beat(database: str) -> Any:
    statement = INSERT[database](HEARTBEATS).values(heartbeat=sa.func.now())
    return statement.on_conflict_do_update(index_elements=("trial_id",), set_={"heartbeat": sa.func.now()})


def in_order(method: Method) -> Method:
    """Let a method of `PlainWrites` first write what waits, so that it finds it."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.write_held()
        return method(self, *args, **kwargs)

    return cast(Method, call)
