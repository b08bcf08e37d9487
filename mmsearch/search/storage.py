"""Optuna's database storage with exact budgets: everything that reaches into Optuna's private parts is here.

What stock Optuna 5.0 does not do, and this does:

- A trial's state changes by compare-and-swap, so that nobody claims or finishes a trial twice (stock SQLite claims one
  waiting trial twice, since `FOR UPDATE` does nothing there).
- A trial is created or claimed only while the study has places left, counted under the study's lock.
- Whoever claims a trial is written down, with a first heartbeat, in the same transaction: a worker that is killed at
  any moment leaves a trial whose owner is known.
- Failing a dead worker's trial and queueing its retry is one transaction, so that nobody takes the place between.
- Calls wait while the database is away, and what is repeated since an answer was lost is not done twice.
- Trials are read and written as plain rows (`mmsearch.search.reading` and `.writing`): 5,000 are read in 0.4 s of CPU
  time, not in 5, and what a trial sets at a time is one transaction.

Each override has a contract test in tests/test_storage.py, so that an upgrade of Optuna fails loudly.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import GPSampler, TPESampler
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import Study
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.orm import Session

from mmsearch.errors import BudgetExhausted, GridExhausted
from mmsearch.search.database import (
    engine_settings,
    explained,
    must_be_current,
    must_be_local,
    must_be_made,
    use_write_ahead_log,
)
from mmsearch.search.outage import Patient, is_locked, is_outage, persist, survives
from mmsearch.search.reading import SYSTEM_ATTRS, read_outcomes, read_silences, read_trial, read_trials
from mmsearch.search.values import VIOLATED
from mmsearch.search.writing import PlainWrites, Row, add_trial, end_trial, in_order, put_beat, put_rows, utc_now

OWNER = "mmsearch:owner"  # system attribute of a trial: who claimed it last, and by which call
QUEUED = "mmsearch:queued"  # system attribute of a trial: by which call it was queued
SLOT = "mmsearch:slot"  # system attribute of a trial: its point of the grid
BASELINE = "mmsearch:baseline"  # system attribute of the trial that has the defaults
SEED = "mmsearch:seed"  # system attribute of a trial: the number that its seeds derive from, where not its own
FAIL_REASON = "fail_reason"  # user attribute of a failed trial

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
KEPT_BY_A_RETRY = ("fixed_params", SLOT, BASELINE, SEED)
# System attributes of a trial that say what it reported: Optuna's constraints, and the notes of its halving pruners.
REPORTED = (f"{_CONSTRAINTS_KEY}:", "completed_rung_")
# Optuna's methods that do the same when they are repeated.
REPEATABLE = (
    *("create_new_study", "delete_study", "get_study_id_from_name", "get_study_name_from_id", "get_study_directions"),
    *("set_study_user_attr", "set_study_system_attr", "get_study_user_attrs", "get_study_system_attrs"),
    *("get_all_studies", "get_trial_id_from_study_id_trial_number", "_get_best_trial_id"),
    *("get_trial_user_attrs", "get_trial_system_attrs", "get_trial_param"),
)


class Storage(PlainWrites, RDBStorage, Patient):
    """A study's database, opened by one process.

    `budget` is the study's total of complete and pruned trials, None for no limit. `owner` describes the process that
    claims trials. `slots` is the size of a grid, whose points go to one trial each; with 0 only queued trials are run.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        Patient.__init__(self)
        PlainWrites.__init__(self)
        self.budget: int | None = None
        self.owner: dict[str, Any] | None = None
        self.slots: int | None = None
        self._full = False  # when this process last looked
        self._claims: dict[int, dict[str, Any]] = {}  # of this process: OWNER by the trial's id
        if not create:
            must_be_made(url)
        try:
            RDBStorage.__init__(
                self, url, engine_settings(url), skip_compatibility_check=True, skip_table_creation=not create
            )
            if self.engine.name == "sqlite":
                use_write_ahead_log(self.engine, url)
            must_be_current(self, url)
        except BaseException:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        return template  # a password or a folder may hold braces

    @survives
    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        """Create a trial that runs, within the budget; or, where there is a template, a copy of that.

        Raises `BudgetExhausted` and `GridExhausted`.
        """
        everyone = (*FINISHED, TrialState.RUNNING, TrialState.WAITING)
        with _create_scoped_session(self.scoped_session) as session:
            made = self._enter(study_id, session, everyone if template_trial is None else ())
            if made is not None:
                return self._build_frozen_trial_from_trial_model(made)
            if template_trial is not None:
                return self._queue(study_id, template_trial, session)
            slot = self._free_slot(study_id, session)
            made = add_trial(session.connection(), study_id)
            if slot is not None:
                put_rows(session.connection(), [Row(SYSTEM_ATTRS, made._trial_id, (SLOT, json.dumps(slot)))])
            self._sign(made._trial_id, session)
            return made

    @in_order
    @survives
    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Move a trial on: WAITING to RUNNING, or RUNNING to anything else.

        Returns False where somebody else was faster, raises `UpdateFinishedTrialError` where the trial is finished, or
        another has claimed it since this process did, and `BudgetExhausted` where a claim would go beyond the total.
        """
        if state == TrialState.RUNNING:
            return self._claim(trial_id)
        with _create_scoped_session(self.scoped_session) as session:
            if self.engine.name == "sqlite":
                self._lock_sqlite(session)
            asked = sa.select(models.TrialModel.number, models.TrialModel.state).with_for_update()
            held = session.execute(asked.where(models.TrialModel.trial_id == trial_id)).one_or_none()
            if held is None:
                raise KeyError(f"there is no trial with the id {trial_id}")
            mine = self._claims.get(trial_id, {}).items() <= self._owner_of(trial_id, session).items()
            if self._call.again and held.state == state and mine:
                return True
            self.check_trial_is_updatable(trial_id, held.state)  # raises where it is finished
            if not mine:
                raise UpdateFinishedTrialError(f"Trial#{held.number} was taken over by another process.")
            if held.state != TrialState.RUNNING:
                return False
            end_trial(session.connection(), trial_id, state, values or ())
        if state.is_finished():
            self._claims.pop(trial_id, None)
        return True

    def _claim(self, trial_id: int) -> bool:
        with _create_scoped_session(self.scoped_session) as session:
            study_id: Any = models.TrialModel.find_or_raise_by_id(trial_id, session).study_id
            if self._enter(study_id, session, (*FINISHED, TrialState.RUNNING)) is not None:
                return True
            swapped = session.execute(
                sa.update(models.TrialModel)
                .where(models.TrialModel.trial_id == trial_id, models.TrialModel.state == TrialState.WAITING)
                .values(state=TrialState.RUNNING, _datetime_start_utc=utc_now())
                .execution_options(synchronize_session=False)
            )
            if not swapped.rowcount:  # type: ignore[attr-defined]
                session.expire_all()
                held: Any = models.TrialModel.find_or_raise_by_id(trial_id, session).state
                self.check_trial_is_updatable(trial_id, held)
                return False
            self._sign(trial_id, session)
        return True

    @survives
    def hand_back(self, trial_id: int, owner: Mapping[str, Any] | None = None) -> bool:
        """Put a running trial back into the queue: same number and parameters, without its reports.

        `owner`, where given, is who must still have it. Returns False where it is no longer running.
        """
        with _create_scoped_session(self.scoped_session) as session:
            trial, mine, changed = self._lock_owned(trial_id, owner, session)
            if not mine:
                return False
            if changed or trial.state != TrialState.RUNNING:
                return self._call.again and (changed or trial.state == TrialState.WAITING)
            self._forget_reports(trial_id, session)
            trial.state = TrialState.WAITING
        return True

    @survives
    def prune(
        self, trial_id: int, reason: str, constraints: Mapping[str, float], owner: Mapping[str, Any] | None = None
    ) -> bool:
        """End a running trial as PRUNED with the constraints it violates, and why, in words: one transaction.

        As where Optuna prunes, its value is the last that it reported, if any. `owner`, where given, is who must still
        have it. Returns False where it is no longer running.
        """
        with _create_scoped_session(self.scoped_session) as session:
            trial, mine, changed = self._lock_owned(trial_id, owner, session)
            if not mine or changed:
                return False
            frozen = self._build_frozen_trial_from_trial_model(trial)
            if frozen.state != TrialState.RUNNING:
                before = frozen.state == TrialState.PRUNED and frozen.user_attrs.get(VIOLATED) == reason
                return self._call.again and before
            for name, violation in constraints.items():
                self._write(trial_id, f"{_CONSTRAINTS_KEY}:{name}", violation, session)
            self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, VIOLATED, reason)
            last = math.nan if frozen.last_step is None else frozen.intermediate_values[frozen.last_step]
            if math.isfinite(last):
                self._set_trial_value_without_commit(session, trial, 0, last)
            session.flush()
            trial.state = TrialState.PRUNED
            trial.datetime_complete = datetime.now()
        return True

    @survives
    def fail(
        self, trial_id: int, reason: str, max_retries: int, owner: Mapping[str, Any] | None = None
    ) -> tuple[bool, int | None]:
        """Fail a running trial and, if it was not retried `max_retries` times yet, queue a retry: one transaction.

        `owner`, where given, is who must still have it. Returns whether it was still running, and the retry's number,
        if any. The retry has the same parameters and remembers the number of the first attempt, as Optuna's own
        retries do.
        """
        with _create_scoped_session(self.scoped_session) as session:
            trial, mine, changed = self._lock_owned(trial_id, owner, session)
            if not mine or changed:
                return False, None
            frozen = self._build_frozen_trial_from_trial_model(trial)
            history = [*frozen.system_attrs.get("retry_history", []), frozen.number]
            study_id: Any = trial.study_id
            if frozen.state != TrialState.RUNNING:
                before = frozen.state == TrialState.FAIL and frozen.user_attrs.get(FAIL_REASON) == reason
                if not (self._call.again and before):
                    return False, None
                attribute = models.TrialSystemAttributeModel
                tried = (attribute.key == "retry_history") & (attribute.value_json == json.dumps(history))
                made = self._trial_with(study_id, tried, session)
                return True, None if made is None else int(made.number)
            self._set_trial_attr_without_commit(session, models.TrialUserAttributeModel, trial_id, FAIL_REASON, reason)
            session.flush()
            trial.state = TrialState.FAIL
            trial.datetime_complete = datetime.now()
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
            return True, int(self._get_prepared_new_trial(study_id, retry, session).number)

    @survives
    def enqueue(self, study_id: int, system_attrs: dict[str, Any]) -> int | None:
        """Queue a trial that has these attributes; returns its number.

        Returns None where they name a point of the grid that has had a trial.
        """
        with _create_scoped_session(self.scoped_session) as session:
            made = self._enter(study_id, session)
            if made is not None:
                return int(made.number)
            if SLOT in system_attrs and system_attrs[SLOT] in self._taken_slots(study_id, session):
                return None
            waiting = create_trial(state=TrialState.WAITING, system_attrs=system_attrs)
            return self._queue(study_id, waiting, session).number

    @survives
    def silences(self, study_id: int) -> dict[int, float]:
        """The ids of running trials, and the seconds since the last heartbeat of each, or its start if it has none.

        By the database's clock; SQLite's has whole seconds.
        """
        return read_silences(self, study_id)

    @in_order
    @survives
    def outcomes(self, study_id: int) -> list[FrozenTrial]:
        """All trials, by number, as `read_outcomes` reads them."""
        return read_outcomes(self, study_id)

    def record_heartbeat(self, trial_id: int) -> None:
        """Write down that the trial's owner lives; not, and without a word, while the database is away."""
        try:
            super().record_heartbeat(trial_id)
        except (sa.exc.SQLAlchemyError, StorageInternalError) as error:
            if not is_outage(error):
                raise

    def _lock_study(self, study_id: int, session: Session) -> None:
        """Nobody else creates, claims, fails or hands back a trial of this study until the transaction ends."""
        if self.engine.name == "sqlite":
            self._lock_sqlite(session)
        else:
            models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)

    @staticmethod
    def _lock_sqlite(session: Session) -> None:
        """SQLite knows no row locks: any write, also one of nothing, takes the database's one lock."""
        nothing = sa.update(models.StudyModel).where(sa.false()).values(study_name=models.StudyModel.study_name)
        session.execute(nothing.execution_options(synchronize_session=False))

    def _lock_owned(self, trial_id: int, owner: Mapping[str, Any] | None, session: Session) -> tuple[Any, bool, bool]:
        """A trial, under its study's lock; whether it was `owner`'s (None: anybody's); whether it is another's now.

        It was when this call first looked, and may have been handed back by an attempt of which no answer came.
        """
        study_id: Any = models.TrialModel.find_or_raise_by_id(trial_id, session).study_id
        self._lock_study(study_id, session)
        session.expire_all()
        trial = models.TrialModel.find_or_raise_by_id(trial_id, session, for_update=True)
        held = self._owner_of(trial_id, session)
        first = self._call.owners.setdefault(trial_id, held)
        return trial, (owner or {}).items() <= first.items(), held != first

    def _owner_of(self, trial_id: int, session: Session) -> dict[str, Any]:
        attribute = models.TrialSystemAttributeModel
        text = session.execute(
            sa.select(attribute.value_json).where(attribute.trial_id == trial_id, attribute.key == OWNER)
        ).scalar_one_or_none()
        return {} if text is None else dict(json.loads(text))

    def _enter(self, study_id: int, session: Session, counted: tuple[TrialState, ...] = ()) -> Any:
        """Lock a study that has room; returns the trial that an earlier attempt of this call has made or claimed."""
        made = None
        if self._full and not self._call.again:  # whoever polls for a place takes no lock
            self._must_have_room(study_id, session, counted)
        self._lock_study(study_id, session)
        if self._call.again:
            attribute = models.TrialSystemAttributeModel
            written = attribute.key.in_((OWNER, QUEUED)) & attribute.value_json.contains(self._call.token)
            made = self._trial_with(study_id, written, session)
        if made is None:
            self._must_have_room(study_id, session, counted)
        return made

    @staticmethod
    def _trial_with(study_id: int, written: sa.ColumnElement[bool], session: Session) -> models.TrialModel | None:
        """The first trial of a study that has such a system attribute."""
        trial, attribute = models.TrialModel, models.TrialSystemAttributeModel
        found = sa.select(trial).join(attribute, attribute.trial_id == trial.trial_id)
        return session.execute(found.where(trial.study_id == study_id, written).limit(1)).scalar_one_or_none()

    def _queue(self, study_id: int, template: FrozenTrial, session: Session) -> FrozenTrial:
        """Create a trial as the template has it, and write down which call did."""
        made = copy.copy(template)
        made.system_attrs = {**template.system_attrs, QUEUED: self._call.token}
        trial = self._get_prepared_new_trial(study_id, made, session)
        made.number, made._trial_id = int(trial.number), int(trial.trial_id)
        return made

    def _write(self, trial_id: int, key: str, value: Any, session: Session) -> None:
        """Set a system attribute of a trial."""
        self._set_trial_attr_without_commit(session, models.TrialSystemAttributeModel, trial_id, key, value)

    def _must_have_room(self, study_id: int, session: Session, counted: tuple[TrialState, ...]) -> None:
        if self.budget is None or not counted:
            return
        taken = session.execute(
            sa.select(sa.func.count(models.TrialModel.trial_id)).where(
                models.TrialModel.study_id == study_id, models.TrialModel.state.in_(counted)
            )
        ).scalar_one()
        self._full = taken >= self.budget
        if self._full:
            raise BudgetExhausted(taken)

    def _free_slot(self, study_id: int, session: Session) -> int | None:
        """The first point of the grid that has had no trial; one whose worker died keeps it for its retry."""
        if self.slots is None:
            return None
        free = min(set(range(self.slots)) - self._taken_slots(study_id, session), default=None)
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
        self._claims[trial_id] = {**(self.owner or {}), "claim": self._call.token}
        owner = json.dumps(self._claims[trial_id])
        put_rows(session.connection(), [Row(SYSTEM_ATTRS, trial_id, (OWNER, owner))])
        put_beat(session.connection(), trial_id)

    @staticmethod
    def _forget_reports(trial_id: int, session: Session) -> None:
        """Whoever goes on with the trial reports anew, and Optuna ignores a step or a constraint that is there."""
        value, attribute = models.TrialIntermediateValueModel, models.TrialSystemAttributeModel
        noted = sa.or_(*(attribute.key.startswith(prefix, autoescape=True) for prefix in REPORTED))
        for reported in (
            sa.delete(value).where(value.trial_id == trial_id),
            sa.delete(attribute).where(attribute.trial_id == trial_id, noted),
        ):
            session.execute(reported.execution_options(synchronize_session=False))


_plain: dict[str, Callable[..., Any]] = {"get_trial": read_trial, "_get_trials": read_trials}
for _name in (*REPEATABLE, *_plain):
    setattr(Storage, _name, in_order(survives(_plain.get(_name) or getattr(RDBStorage, _name))))
setattr(Storage, "_set_trial_param", Storage.put_param)  # noqa: B010


def open_storage(
    url: str, *, create: bool = False, patience: float = Patient.patience, patient: bool = False
) -> Storage:
    """Connect to a database; `create` makes its tables where they are missing.

    `patience` is the storage's; where `patient`, the opening, too, waits so long for a database that is away. One that
    is locked is always waited for. Raises `StorageError` where it cannot be reached, holds no studies, is of another
    version or lies where it cannot work, and `UsageError` where the URL names no driver that is installed.
    """
    must_be_local(url)
    waits_for = is_outage if patient else is_locked
    with explained(url):
        storage = persist(lambda: Storage(url, create=create), url, patience=patience, waits_for=waits_for)
    storage.patience = patience
    return storage


def use_current_ranges(sampler: TPESampler, distributions: Mapping[str, BaseDistribution]) -> None:
    """Let a grouped TPE sample from the ranges as they are now; by itself it keeps the first that it saw of each."""
    group = sampler._search_space_group
    for space in group.search_spaces if group is not None else ():
        space.update({name: distributions[name] for name in space if name in distributions})


def learn_also(sampler: GPSampler, further: Callable[[Study, list[FrozenTrial]], list[FrozenTrial]]) -> None:
    """Let a Gaussian process learn also from what `further` makes of the study and its complete trials."""
    propose = sampler._sample_relative_impl

    def sample(study: Study, complete: list[FrozenTrial], *rest: Any) -> dict[str, Any]:
        return propose(study, [*complete, *further(study, complete)], *rest)

    sampler._sample_relative_impl = sample  # type: ignore[method-assign, assignment]
