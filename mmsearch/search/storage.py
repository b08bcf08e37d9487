"""Optuna's database storage with exact budgets: everything that reaches into Optuna's private parts is here.

What stock Optuna 5.0 does not do, and this does:

- A trial's state changes by compare-and-swap, so that nobody claims or finishes a trial twice (stock SQLite claims one
  waiting trial twice, since `FOR UPDATE` does nothing there).
- A trial is created or claimed only while the study has places left, counted under the study's lock.
- Whoever claims a trial is written down, with a first heartbeat, in the same transaction: a worker that is killed at
  any moment leaves a trial whose owner is known.
- Failing a dead worker's trial and queueing its retry is one transaction, so that nobody takes the place between.

Each override has a contract test in tests/test_storage.py, so that an upgrade of Optuna fails loudly.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.orm import Session

from mmsearch.config import hide_password
from mmsearch.errors import BudgetExhausted, GridExhausted, StorageError, UsageError

OWNER = "mmsearch:owner"  # system attribute of a trial: who claimed it last
SLOT = "mmsearch:slot"  # system attribute of a trial: its point of the grid
BASELINE = "mmsearch:baseline"  # system attribute of the trial that has the defaults
FAIL_REASON = "fail_reason"  # user attribute of a failed trial

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
KEPT_BY_A_RETRY = ("fixed_params", SLOT, BASELINE)
SQLITE_TIMEOUT_S = 60
CREATION_LOCK = 0x6D6D7365  # any number that others do not use for an advisory lock


class Storage(RDBStorage):
    """A study's database, opened by one process.

    `budget` is the study's total of complete and pruned trials; None stands for no limit. `owner` describes the
    process that claims trials. `slots` is the size of a grid, of which each trial gets a point that no other has.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        self.budget: int | None = None
        self.owner: dict[str, Any] | None = None
        self.slots: int | None = None
        sqlite = url.startswith("sqlite")
        engine = {"connect_args": {"timeout": SQLITE_TIMEOUT_S}} if sqlite else _postgresql_settings(url)
        if not create:
            _must_be_made(url, engine)
        try:
            super().__init__(url, engine_kwargs=engine, skip_table_creation=not create)
        except BaseException:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise
        if sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            self.engine.dispose()  # connections that were made before the listener was

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # a password or a folder may hold braces

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        if template_trial is not None:  # enqueued: it waits until it is claimed
            return super()._get_prepared_new_trial(study_id, template_trial, session)
        self._lock_study(study_id, session)
        self._must_have_room(study_id, session, (*FINISHED, TrialState.RUNNING, TrialState.WAITING))
        slot = self._free_slot(study_id, session)
        trial = super()._get_prepared_new_trial(study_id, None, session)
        trial_id: Any = trial.trial_id
        if slot is not None:
            self._set_trial_attr_without_commit(session, models.TrialSystemAttributeModel, trial_id, SLOT, slot)
        self._sign(trial_id, session)
        return trial

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Move a trial on: WAITING to RUNNING, or RUNNING to anything else.

        Returns False where somebody else was faster, raises `UpdateFinishedTrialError` where the trial is finished,
        and `BudgetExhausted` where a claim would go beyond the total.
        """
        expected = TrialState.WAITING if state == TrialState.RUNNING else TrialState.RUNNING
        now = datetime.now(UTC).replace(tzinfo=None)
        changes: dict[str, Any] = {"state": state}
        if state == TrialState.RUNNING:
            changes["_datetime_start_utc"] = now
        elif state.is_finished():
            changes["_datetime_complete_utc"] = now
        with _create_scoped_session(self.scoped_session) as session:
            if state == TrialState.RUNNING:
                study_id: Any = models.TrialModel.find_or_raise_by_id(trial_id, session).study_id
                self._lock_study(study_id, session)
                self._must_have_room(study_id, session, (*FINISHED, TrialState.RUNNING))
            swapped = session.execute(
                sa.update(models.TrialModel)
                .where(models.TrialModel.trial_id == trial_id, models.TrialModel.state == expected)
                .values({getattr(models.TrialModel, name): value for name, value in changes.items()})
                .execution_options(synchronize_session=False)
            )
            if not swapped.rowcount:  # type: ignore[attr-defined]
                held: Any = models.TrialModel.find_or_raise_by_id(trial_id, session).state
                self.check_trial_is_updatable(trial_id, held)
                return False
            for objective, value in enumerate(values or ()):
                stored, kind = models.TrialValueModel.value_to_stored_repr(value)
                session.add(
                    models.TrialValueModel(trial_id=trial_id, objective=objective, value=stored, value_type=kind)
                )
            if state == TrialState.RUNNING:
                self._sign(trial_id, session)
        return True

    def hand_back(self, trial_id: int) -> bool:
        """Put a running trial back into the queue: same number and parameters, to be trained from its beginning.

        Returns False where it is no longer running.
        """
        with _create_scoped_session(self.scoped_session) as session:
            trial = self._lock_running(trial_id, session)
            if trial is None:
                return False
            self._forget_epochs(trial_id, session)
            trial.state = TrialState.WAITING
        return True

    def fail(
        self, trial_id: int, reason: str, max_retries: int, owner: Mapping[str, Any] | None = None
    ) -> tuple[bool, int | None]:
        """Fail a running trial and, if it was not retried `max_retries` times yet, queue a retry: one transaction.

        `owner`, where given, is who must still have it. Returns whether it was still running, and the retry's number,
        if any. The retry has the same parameters and remembers the number of the first attempt, as Optuna's own
        retries do.
        """
        with _create_scoped_session(self.scoped_session) as session:
            trial = self._lock_running(trial_id, session)
            if trial is None:
                return False, None
            frozen = self._build_frozen_trial_from_trial_model(trial)
            if owner is not None and frozen.system_attrs.get(OWNER, {}) != owner:
                return False, None  # handed back and claimed by another meanwhile
            self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, FAIL_REASON, reason)
            session.flush()
            trial.state = TrialState.FAIL
            trial.datetime_complete = datetime.now()
            history = [*frozen.system_attrs.get("retry_history", []), frozen.number]
            if len(history) > max_retries:
                return True, None
            kept = {key: value for key, value in frozen.system_attrs.items() if key in KEPT_BY_A_RETRY}
            retry = create_trial(
                state=TrialState.WAITING,
                params=frozen.params,
                distributions=frozen.distributions,
                system_attrs={**kept, "failed_trial": history[0], "retry_history": history},
            )
            session.flush()
            study_id: Any = trial.study_id
            made = super()._get_prepared_new_trial(study_id, retry, session)
            return True, int(made.number)

    def enqueue(self, study_id: int, system_attrs: dict[str, Any]) -> int | None:
        """Queue a trial that has these attributes; returns its number.

        Returns None where they name a point of the grid that has had a trial.
        """
        with _create_scoped_session(self.scoped_session) as session:
            self._lock_study(study_id, session)
            if SLOT in system_attrs and system_attrs[SLOT] in self._taken_slots(study_id, session):
                return None
            waiting = create_trial(state=TrialState.WAITING, system_attrs=system_attrs)
            return int(super()._get_prepared_new_trial(study_id, waiting, session).number)

    def silent(self, study_id: int, seconds: int) -> list[int]:
        """The ids of running trials whose last heartbeat, or start where there is none, is older than `seconds`."""
        with _create_scoped_session(self.scoped_session) as session:
            now = session.execute(sa.select(sa.func.now())).scalar_one().replace(tzinfo=None)
            last = sa.func.coalesce(models.TrialHeartbeatModel.heartbeat, models.TrialModel._datetime_start_utc)
            found = session.execute(
                sa.select(models.TrialModel.trial_id)
                .outerjoin(
                    models.TrialHeartbeatModel, models.TrialHeartbeatModel.trial_id == models.TrialModel.trial_id
                )
                .where(
                    models.TrialModel.study_id == study_id,
                    models.TrialModel.state == TrialState.RUNNING,
                    last < now - timedelta(seconds=seconds),
                )
            )
            return [int(trial_id) for (trial_id,) in found]

    def _lock_study(self, study_id: int, session: Session) -> None:
        """Nobody else creates, claims, fails or hands back a trial of this study until the transaction ends."""
        if self.engine.name == "sqlite":  # which knows no row locks: any write takes the database's one lock
            session.execute(
                sa.update(models.StudyModel)
                .where(models.StudyModel.study_id == study_id)
                .values(study_name=models.StudyModel.study_name)
                .execution_options(synchronize_session=False)
            )
        else:
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)

    def _lock_running(self, trial_id: int, session: Session) -> models.TrialModel | None:
        study_id: Any = models.TrialModel.find_or_raise_by_id(trial_id, session).study_id
        self._lock_study(study_id, session)
        session.expire_all()
        trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        return trial if trial.state == TrialState.RUNNING else None

    def _must_have_room(self, study_id: int, session: Session, counted: tuple[TrialState, ...]) -> None:
        if self.budget is None:
            return
        taken = session.execute(
            sa.select(sa.func.count(models.TrialModel.trial_id)).where(
                models.TrialModel.study_id == study_id, models.TrialModel.state.in_(counted)
            )
        ).scalar_one()
        if taken >= self.budget:
            raise BudgetExhausted(taken)

    def _free_slot(self, study_id: int, session: Session) -> int | None:
        """The first point of the grid that has had no trial; one whose worker died keeps it for its retry."""
        if self.slots is None:
            return None
        taken = self._taken_slots(study_id, session)
        free = next((slot for slot in range(self.slots) if slot not in taken), None)
        if free is None:
            raise GridExhausted(self.slots)
        return free

    @staticmethod
    def _taken_slots(study_id: int, session: Session) -> set[int]:
        held = session.execute(
            sa.select(models.TrialSystemAttributeModel.value_json)
            .join(models.TrialModel, models.TrialModel.trial_id == models.TrialSystemAttributeModel.trial_id)
            .where(models.TrialModel.study_id == study_id, models.TrialSystemAttributeModel.key == SLOT)
        )
        return {int(text) for (text,) in held}

    def _sign(self, trial_id: int, session: Session) -> None:
        """Write down who has the trial, with a first heartbeat."""
        if self.owner is not None:
            self._set_trial_attr_without_commit(session, models.TrialSystemAttributeModel, trial_id, OWNER, self.owner)
        beat = models.TrialHeartbeatModel.where_trial_id(trial_id, session)
        if beat is None:
            session.add(models.TrialHeartbeatModel(trial_id=trial_id))
        else:
            beat.heartbeat = session.execute(sa.select(sa.func.now())).scalar_one()

    @staticmethod
    def _forget_epochs(trial_id: int, session: Session) -> None:
        """Training starts anew, and Optuna ignores a step or a constraint that was reported before."""
        attribute = models.TrialSystemAttributeModel
        for reported in (
            sa.delete(models.TrialIntermediateValueModel).where(
                models.TrialIntermediateValueModel.trial_id == trial_id
            ),
            sa.delete(attribute).where(
                attribute.trial_id == trial_id, attribute.key.startswith(f"{_CONSTRAINTS_KEY}:")
            ),
        ):
            session.execute(reported.execution_options(synchronize_session=False))


def open_storage(url: str, *, create: bool = False) -> Storage:
    """Connect to a database; `create` makes its tables where they are missing.

    Raises `StorageError` where it cannot be reached, holds no studies, or is of another version; and `UsageError`
    where the URL names no driver that is installed.
    """
    try:
        return Storage(url, create=create)
    except (ImportError, ValueError, sa.exc.ArgumentError) as error:
        raise _url_error(url, error) from None
    except (sa.exc.SQLAlchemyError, StorageInternalError, RuntimeError) as error:
        raise storage_error(url, error) from None


def _must_be_made(url: str, settings: dict[str, Any]) -> None:
    """Raise `StorageError` where somebody has yet to make the tables, or is about to.

    Optuna writes its version into a database that has none, also where it is only to read, and whoever makes the
    tables at that moment fails.
    """
    path = _sqlite_path(url)
    made = path is None or path.exists()
    if made:
        engine = sa.create_engine(url, poolclass=sa.NullPool, **settings)
        with engine.connect() as connection:
            made = sa.inspect(connection).has_table("alembic_version") and bool(
                connection.execute(sa.text("SELECT version_num FROM alembic_version")).first()
            )
    if not made:
        raise StorageError(f"{path or hide_password(url)}: there is no study yet; `mmsearch launch` makes one")


def storage_error(url: str, error: BaseException) -> StorageError:
    """What a database error means to the user, in one sentence and without a password."""
    return StorageError(f"{hide_password(url)}: {database_message(error)}")


def database_message(error: BaseException) -> str:
    """The database's own words, in one line."""
    cause = _cause(error)
    text = str(getattr(cause, "orig", None) or cause)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _postgresql_settings(url: str) -> dict[str, Any]:
    """What the budget and the heartbeats rely on, whatever the server's or the user's defaults are."""
    given = sa.make_url(url).query.get("options", "")
    options = " ".join([given] if isinstance(given, str) else given)
    return {
        "pool_pre_ping": True,
        "isolation_level": "READ COMMITTED",
        "connect_args": {"options": f"{options} -c timezone=UTC".strip()},
    }


def use_current_ranges(sampler: TPESampler, distributions: Mapping[str, BaseDistribution]) -> None:
    """Let a grouped TPE sample from the ranges as they are now; by itself it keeps the first that it saw of each."""
    group = sampler._search_space_group
    for space in group.search_spaces if group is not None else ():
        space.update({name: distributions[name] for name in space if name in distributions})


def _cause(error: BaseException) -> BaseException:
    """The database's own error inside one of Optuna's."""
    while not isinstance(error, sa.exc.DBAPIError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _url_error(url: str, error: Exception) -> UsageError:
    if isinstance(error, ImportError):
        return UsageError(
            f"{hide_password(url)}: the database's driver is not installed; pip install 'mmsearch[postgres]' brings it"
        )
    return UsageError("the storage URL cannot be read: it must look like postgresql://user@host:port/name")


@contextmanager
def creation_lock(url: str) -> Iterator[None]:
    """One process at a time makes tables and studies: without it most of those that start together would crash."""
    path = _sqlite_path(url)
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path.parent, os.O_RDONLY)
        except OSError as error:
            raise StorageError(f"{path.parent}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)
        return
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        connection = engine.connect()
    except (ImportError, ValueError, sa.exc.ArgumentError) as error:
        raise _url_error(url, error) from None
    except sa.exc.SQLAlchemyError as error:
        raise storage_error(url, error) from None
    with connection:
        connection.execute(sa.select(sa.func.pg_advisory_lock(CREATION_LOCK)))  # ends with the connection
        yield


def _sqlite_path(url: str) -> Path | None:
    return Path(url.split(":///", 1)[1]) if url.startswith("sqlite") else None


def _prepare_sqlite(connection: Any, record: object) -> None:
    """Readers do not wait for the writer, and a commit costs no flush of the disk's cache."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.close()
