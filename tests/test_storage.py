"""The contract of each override of Optuna's private methods, on each database; an upgrade must fail here first."""

from __future__ import annotations

import inspect
import multiprocessing
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import TrialState, create_trial

from mmsearch.config import hide_password
from mmsearch.errors import BudgetExhausted, GridExhausted, StorageError, UsageError
from mmsearch.search.database import creation_lock, sqlite_path
from mmsearch.search.storage import OWNER, SLOT, Storage, open_storage


@pytest.fixture
def storage(storage_url: str) -> Iterator[Storage]:
    made = open_storage(normal(storage_url), create=True)
    made.owner = {"worker": "w", "pid": 1}
    yield made
    made.engine.dispose()


@pytest.fixture
def study(storage: Storage) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(0))


def normal(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def queue(study: optuna.Study, count: int) -> None:
    for _ in range(count):
        study.add_trial(create_trial(state=TrialState.WAITING))


def test_what_is_overridden_is_still_there() -> None:
    signature = inspect.signature
    assert list(signature(RDBStorage._get_prepared_new_trial).parameters) == [
        "self", "study_id", "template_trial", "session",
    ]  # fmt: skip
    assert list(signature(RDBStorage.set_trial_state_values).parameters) == ["self", "trial_id", "state", "values"]
    assert "_get_prepared_new_trial(" in inspect.getsource(RDBStorage._create_new_trial)
    assert "find_or_raise_by_id(study_id, session, for_update=True)" in inspect.getsource(RDBStorage._create_new_trial)


def test_create_stops_at_the_budget(study: optuna.Study, storage: Storage) -> None:
    storage.budget = 3
    trials = [study.ask() for _ in range(3)]
    with pytest.raises(BudgetExhausted):
        study.ask()
    study.tell(trials[0], 1.0)
    with pytest.raises(BudgetExhausted):
        study.ask()
    storage.fail(trials[1]._trial_id, "broken", max_retries=0)
    assert study.ask().number == 3


def test_waiting_trials_take_places_within_the_budget(study: optuna.Study, storage: Storage) -> None:
    queue(study, 4)
    storage.budget = 2
    assert [study.ask().number, study.ask().number] == [0, 1]
    with pytest.raises(BudgetExhausted):
        study.ask()


def test_a_claim_is_signed_with_a_first_beat(study: optuna.Study, storage: Storage) -> None:
    queue(study, 1)
    for trial in (study.ask(), study.ask()):  # one was waiting, one is new
        assert storage.owner is not None
        assert storage.owner.items() < storage.get_trial(trial._trial_id).system_attrs[OWNER].items()
    with storage.engine.connect() as connection:
        beats = connection.execute(sa.select(models.TrialHeartbeatModel.trial_id)).all()
    assert len(beats) == 2


def test_only_one_of_many_claims_a_waiting_trial(study: optuna.Study, storage: Storage) -> None:
    queue(study, 1)
    trial_id = study.trials[0]._trial_id
    claimed: list[bool] = []
    barrier = threading.Barrier(8)

    def claim() -> None:
        barrier.wait()
        claimed.append(storage.set_trial_state_values(trial_id, TrialState.RUNNING))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == [False] * 7 + [True]


def test_a_finished_trial_cannot_be_finished_again(study: optuna.Study, storage: Storage) -> None:
    trial = study.ask()
    study.tell(trial, 1.0)
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING):
        with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
            storage.set_trial_state_values(trial._trial_id, state)
    assert study.trials[0].value == 1.0


def test_states_and_times_are_those_of_stock_optuna(study: optuna.Study, storage: Storage) -> None:
    done, pruned = study.ask(), study.ask()
    pruned.report(0.5, 1)
    study.tell(done, 2.0)
    study.tell(pruned, state=TrialState.PRUNED)
    first, second = study.trials
    assert (first.state, first.value, second.state, second.value) == (TrialState.COMPLETE, 2.0, TrialState.PRUNED, 0.5)
    for trial in (first, second):
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
        assert trial.duration is not None
        assert 0 <= trial.duration.total_seconds() < 60


def test_hand_back_keeps_number_and_parameters_and_forgets_epochs(study: optuna.Study, storage: Storage) -> None:
    trial = study.ask()
    value = trial.suggest_float("x", 0, 1)
    trial.report(0.1, 1)
    assert storage.hand_back(trial._trial_id)
    assert not storage.hand_back(trial._trial_id)
    assert study.trials[0].state == TrialState.WAITING
    again = study.ask()
    assert (again.number, again.suggest_float("x", 0, 1)) == (0, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns of a step that was reported before
        again.report(0.2, 1)
    study.tell(again, 3.0)
    assert study.trials[0].intermediate_values == {1: 0.2}


def test_failing_and_retrying_is_one_transaction(study: optuna.Study, storage: Storage) -> None:
    storage.budget = 1
    trial = study.ask()
    value = trial.suggest_float("x", 0, 1)
    assert storage.fail(trial._trial_id, "died", max_retries=1) == (True, 1)
    assert storage.fail(trial._trial_id, "died", max_retries=1) == (False, None)
    states = [t.state for t in study.trials]
    assert states == [TrialState.FAIL, TrialState.WAITING]
    assert study.trials[0].user_attrs["fail_reason"] == "died"
    retry = study.ask()
    assert retry.suggest_float("x", 0, 1) == value
    attrs = storage.get_trial(retry._trial_id).system_attrs
    assert (attrs["failed_trial"], attrs["retry_history"]) == (0, [0])
    assert storage.fail(retry._trial_id, "died again", max_retries=1) == (True, None)
    assert study.ask().number == 2


def test_each_trial_of_a_grid_has_a_point_of_its_own(study: optuna.Study, storage: Storage) -> None:
    storage.slots = 3
    study.add_trial(create_trial(state=TrialState.WAITING, system_attrs={SLOT: 1}))

    def slot(trial: optuna.Trial) -> int:
        return int(storage.get_trial(trial._trial_id).system_attrs[SLOT])

    trials = [study.ask() for _ in range(3)]
    assert [slot(trial) for trial in trials] == [1, 0, 2]
    with pytest.raises(GridExhausted):
        study.ask()
    storage.fail(trials[1]._trial_id, "broken", max_retries=0)
    with pytest.raises(GridExhausted):  # a point that failed is not tried again
        study.ask()
    storage.fail(trials[2]._trial_id, "its worker died", max_retries=1)
    assert slot(study.ask()) == 2


def test_silent_owners_are_found(study: optuna.Study, storage: Storage) -> None:
    trial = study.ask()
    study_id = storage.get_study_id_from_name("s")
    assert storage.silences(study_id)[trial._trial_id] < 60
    time.sleep(2.1)  # SQLite's clock has whole seconds
    before = storage.silences(study_id)[trial._trial_id]
    assert before >= 1
    storage.record_heartbeat(trial._trial_id)
    assert storage.silences(study_id)[trial._trial_id] < before
    study.tell(trial, 1.0)
    assert storage.silences(study_id) == {}


def test_a_trial_without_any_beat_is_found_by_its_start(study: optuna.Study, storage: Storage) -> None:
    plain = RDBStorage(str(storage.url))
    theirs = optuna.load_study(study_name="s", storage=plain).ask()
    time.sleep(2.1)
    assert storage.silences(storage.get_study_id_from_name("s"))[theirs._trial_id] >= 1
    plain.engine.dispose()


def test_only_the_expected_owner_s_trial_is_failed(study: optuna.Study, storage: Storage) -> None:
    trial = study.ask()
    assert storage.fail(trial._trial_id, "died", 1, {"worker": "another"}) == (False, None)
    assert storage.fail(trial._trial_id, "died", 1, storage.owner) == (True, 1)


def test_a_grouped_tpe_uses_a_range_that_grew(study: optuna.Study) -> None:
    from optuna.distributions import FloatDistribution

    from mmsearch.search.samplers import SeededSampler

    def tpe(seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=True, group=True)

    for high in (1.0, 10.0):
        study.sampler = SeededSampler(tpe, 0, {"x": FloatDistribution(0, high)})
        for _ in range(25):
            trial = study.ask()
            study.tell(trial, -trial.suggest_float("x", 0, high))
    assert max(t.params["x"] for t in study.trials) > 1.5


def work(url: str, total: int, seed: int) -> None:
    """A process that works until the budget is spent; every fifth trial of its fails."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(url)
    storage.budget = total
    study = optuna.load_study(study_name="s", storage=storage, sampler=optuna.samplers.RandomSampler(seed))
    for i in range(10_000):
        try:
            trial = study.ask()
        except BudgetExhausted:
            states = [t.state for t in study.get_trials(deepcopy=False)]
            if states.count(TrialState.COMPLETE) >= total:
                return
            time.sleep(0.02)
            continue
        trial.suggest_float("x", 0, 1)
        if i % 5 == seed:
            storage.fail(trial._trial_id, "every fifth", max_retries=1)
        else:
            study.tell(trial, 1.0)


@pytest.mark.slow
def test_four_processes_end_at_exactly_the_total(study: optuna.Study, storage: Storage, storage_url: str) -> None:
    queue(study, 10)
    storage.engine.dispose()
    context = multiprocessing.get_context("spawn")
    for total in (40, 55, 55):
        processes = [context.Process(target=work, args=(normal(storage_url), total, seed)) for seed in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        states = [t.state for t in study.get_trials(deepcopy=False)]
        assert states.count(TrialState.COMPLETE) == total
        assert states.count(TrialState.RUNNING) == 0
        numbers = [t.number for t in study.get_trials(deepcopy=False)]
        assert numbers == list(range(len(numbers)))


def make_at_once(url: str, barrier: Any) -> None:
    barrier.wait()
    with creation_lock(url):
        storage = open_storage(url, create=True)
        optuna.create_study(study_name="s", storage=storage, load_if_exists=True)


@pytest.mark.slow
def test_eight_processes_may_make_the_tables_at_once(storage_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(8)
    processes = [context.Process(target=make_at_once, args=(normal(storage_url), barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8


def test_sqlite_is_set_up_for_many_processes(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    with storage.engine.connect() as connection:
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 1]
    storage.engine.dispose()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql+psycopg://user:secret@127.0.0.1:1/none", StorageError),
        ("sqlite:////no/such/folder/a.db", StorageError),
        ("postgresql+pg8000://user:secret@127.0.0.1:1/none", UsageError),
        ("postgresql+psycopg://user:{secret}@127.0.0.1:x1/none", UsageError),
        ("postgresql+psycopg://user:{secret}@127.0.0.1:1/none", StorageError),
    ],
)
def test_a_storage_out_of_reach_is_one_sentence_without_the_password(url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        open_storage(url)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_sqlite_url_may_have_options(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}?timeout=30"
    with creation_lock(url):
        open_storage(url, create=True).engine.dispose()
    assert sqlite_path(url) == tmp_path / "a.db"
    open_storage(url).engine.dispose()


def test_who_only_reads_does_not_write_into_tables_that_another_is_making(storage_url: str) -> None:
    engine = sa.create_engine(normal(storage_url))
    models.BaseModel.metadata.create_all(engine)  # as far as a launcher came
    with pytest.raises(StorageError, match="there is no study yet"):
        open_storage(normal(storage_url))
    tables = sa.inspect(engine)
    assert not tables.has_table("alembic_version")
    with engine.connect() as connection:
        assert connection.execute(sa.select(models.VersionInfoModel)).first() is None
    engine.dispose()
    open_storage(normal(storage_url), create=True).engine.dispose()  # it goes on as if nobody had looked
    open_storage(normal(storage_url)).engine.dispose()


def test_hide_password() -> None:
    assert hide_password("postgresql+psycopg://u:secret@h/d") == "postgresql+psycopg://u:***@h/d"
    assert hide_password("sqlite:////a/b.db") == "sqlite:////a/b.db"
    for url in (
        "postgresql://me:pa/secret@h/d",
        "postgresql://me@srv:secret@h/d",
        "postgresql://h/d?user=me&password=secret",
        "postgresql://me:pa{secret}ss@h:x1/d",
        "postgresql://me:secret",
    ):
        assert "secret" not in hide_password(url), url
