"""What is written as plain rows is what Optuna writes; and a block of it is one transaction."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from planted import Direction, fill, in_words

from mmsearch.search.storage import OWNER, QUEUED, Storage, open_storage


def normal(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture
def storage(storage_url: str) -> Iterator[Storage]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = open_storage(normal(storage_url), create=True)
    yield made
    made.engine.dispose()


@pytest.fixture
def stock(storage: Storage) -> Iterator[RDBStorage]:
    """Optuna's own storage on the same database."""
    made = RDBStorage(storage.engine.url.render_as_string(hide_password=False))
    yield made
    made.engine.dispose()


def rows(storage: RDBStorage, table: str, *columns: str) -> list[Any]:
    with storage.engine.connect() as connection:
        return list(connection.execute(sa.select(*map(sa.column, columns)).select_from(sa.table(table))))


def content(trial: FrozenTrial) -> dict[str, str]:
    """All that a trial holds but for who has it, when, and its place in the database."""
    held = {**vars(trial), "_system_attrs": {k: v for k, v in trial._system_attrs.items() if k not in (OWNER, QUEUED)}}
    told = type("Told", (), {})()
    vars(told).update(held)
    apart = ("_trial_id", "datetime_start", "_datetime_start", "datetime_complete")
    return {name: text for name, text in in_words(told).items() if name not in apart}


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]], ids=["one-metric", "two-metrics"])
def test_it_is_what_optuna_writes(storage: Storage, stock: RDBStorage, directions: list[Direction]) -> None:
    ours, theirs = fill(storage, directions), fill(stock, directions)
    for held in (storage, stock):
        mine, yours = (
            [content(trial) for trial in RDBStorage._get_trials(held, study, None, set(), -1)]
            for study in (ours, theirs)
        )
        assert mine == yours
        assert len(mine) == 10
    assert len(rows(storage, "trial_heartbeats", "trial_id")) == 9  # of ours: each claim has its first beat


def test_a_trial_by_its_id_is_what_optuna_reads(storage: Storage) -> None:
    fill(storage, ["maximize"])
    for (trial_id,) in rows(storage, "trials", "trial_id"):
        assert in_words(storage.get_trial(trial_id)) == in_words(RDBStorage.get_trial(storage, trial_id))
    with pytest.raises(KeyError):
        storage.get_trial(12345)


def test_a_block_is_one_transaction_at_its_end(storage: Storage, stock: RDBStorage) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    commits: list[object] = []
    sa.event.listen(storage.engine, "commit", commits.append)
    with storage.together():
        trial.suggest_float("lr", 0.1, 1.0)
        trial.suggest_int("depth", 1, 4)
        trial.set_user_attr("parameters", 12)
        with storage.together():  # in a block: the same
            trial.set_user_attr("parameters", 13)
            storage.set_trial_system_attr(trial._trial_id, "note", [1])
        trial.report(0.5, 1)
        seen = stock.get_trial(trial._trial_id)
        assert [seen.params, seen.user_attrs, seen.intermediate_values, commits] == [{}, {}, {}, []]
    assert len(commits) == 1
    seen = stock.get_trial(trial._trial_id)
    assert set(seen.params) == {"lr", "depth"}
    assert seen.user_attrs == {"parameters": 13}
    assert seen.intermediate_values == {1: 0.5}
    assert seen.system_attrs["note"] == [1]


def test_whoever_reads_or_ends_a_trial_in_a_block_finds_what_was_set(storage: Storage) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    with storage.together():
        trial.set_user_attr("a", 1)
        assert storage.get_trial(trial._trial_id).user_attrs == {"a": 1}
        trial.set_user_attr("b", 2)
        assert study.get_trials()[0].user_attrs == {"a": 1, "b": 2}
        trial.set_user_attr("c", 3)
        study.tell(trial, 1.0)
    assert study.trials[0].user_attrs == {"a": 1, "b": 2, "c": 3}
    assert study.trials[0].state == TrialState.COMPLETE


def test_of_a_block_that_raises_nothing_is_written(storage: Storage) -> None:
    trial = optuna.create_study(storage=storage).ask()

    def breaks() -> None:
        with storage.together():
            trial.set_user_attr("a", 1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks()
    trial.set_user_attr("b", 2)
    assert storage.get_trial(trial._trial_id).user_attrs == {"b": 2}


def test_another_thread_s_writes_do_not_wait_for_the_block(storage: Storage) -> None:
    trial = optuna.create_study(storage=storage).ask()
    with storage.together():
        trial.set_user_attr("mine", 1)
        thread = threading.Thread(target=storage.set_trial_user_attr, args=(trial._trial_id, "other", 2))
        thread.start()
        thread.join(30)
        assert rows(storage, "trial_user_attributes", "key") == [("other",)]


@pytest.mark.parametrize("block", [False, True], ids=["alone", "in a block"])
def test_a_trial_that_is_finished_or_not_there_is_not_written_to(storage: Storage, block: bool) -> None:
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    study.tell(trial, 1.0)
    for number, error in ((trial._trial_id, UpdateFinishedTrialError), (12345, KeyError)):
        writes: list[Callable[[int], None]] = [
            lambda number: storage.set_trial_user_attr(number, "a", 1),
            lambda number: storage.set_trial_system_attr(number, "a", 1),
            lambda number: storage.set_trial_intermediate_value(number, 1, 0.5),
            lambda number: storage.set_trial_param(number, "lr", 0.5, FloatDistribution(0, 1)),
        ]
        for write in writes:
            with pytest.raises(error), storage.together() if block else nullcontext():
                write(number)
    with pytest.raises(KeyError):
        storage.set_trial_state_values(12345, TrialState.COMPLETE, [1.0])
    assert storage.get_trial(trial._trial_id).user_attrs == {}


def test_a_parameter_keeps_its_kind_of_range(storage: Storage, stock: RDBStorage) -> None:
    study = optuna.create_study(storage=stock)
    study.ask().suggest_categorical("encoder", ["cnn", "mlp"])
    study.ask().suggest_float("lr", 0.1, 1.0)
    opened = optuna.load_study(study_name=study.study_name, storage=storage)
    trial = opened.ask()
    with pytest.raises(ValueError, match="dynamic value space"):
        trial.suggest_categorical("encoder", ["cnn", "rnn"])
    with pytest.raises(ValueError, match="different distribution kind"):
        trial.suggest_int("lr", 1, 2)
    assert 0.01 <= trial.suggest_float("lr", 0.01, 2.0) <= 2.0  # may be wider
    assert set(trial.params) == {"lr"}


def test_what_is_set_again_replaces_what_was_but_for_parameters(storage: Storage) -> None:
    trial = optuna.create_study(storage=storage).ask()
    number, held = trial._trial_id, CategoricalDistribution(["a", "b"])
    for place, value in enumerate([0.5, math.inf]):
        storage.set_trial_user_attr(number, "seen", value)
        storage.set_trial_intermediate_value(number, 3, value)
        storage._set_trial_param(number, "kind", place, held, held)
    seen = storage.get_trial(number)
    assert (seen.user_attrs, seen.intermediate_values, seen.params) == (
        {"seen": math.inf},
        {3: math.inf},
        {"kind": "a"},
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[optuna.Study]:
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('held') / 'a.db'}", create=True)
    yield optuna.create_study(storage=storage)
    storage.engine.dispose()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
    lambda held: st.lists(held, max_size=4) | st.dictionaries(st.text(), held, max_size=4),
    max_leaves=12,
)
# The names of parameters say what they range over, since a study's parameter keeps its kind.
RANGES = st.one_of(
    st.tuples(st.just(FloatDistribution(1e-6, 1.0, log=True)), st.floats(1e-6, 1.0)),
    st.tuples(st.just(IntDistribution(0, 1000)), st.integers(0, 1000).map(float)),
    st.tuples(st.just(CategoricalDistribution(["a", None, True, 2, 0.5])), st.integers(0, 4).map(float)),
)


@settings(max_examples=40, deadline=None)
@given(
    attrs=st.dictionaries(st.text(min_size=1, max_size=20), JSON, max_size=5),
    reports=st.dictionaries(st.integers(0, 10**6), st.floats(), max_size=6),
    params=st.lists(st.tuples(st.text(max_size=9), RANGES), max_size=4),
)
def test_whatever_a_trial_may_hold_is_read_as_it_was_written(
    study: optuna.Study,
    attrs: dict[str, Any],
    reports: dict[int, float],
    params: list[tuple[str, tuple[Any, float]]],
) -> None:
    storage, number = study._storage._backend, study.ask()._trial_id  # type: ignore[attr-defined]
    with storage.together():
        for key, value in attrs.items():
            storage.set_trial_user_attr(number, key, value)
        for step, value in reports.items():
            storage.set_trial_intermediate_value(number, step, value)
        named = {f"{type(kind).__name__}{name}": (kind, internal) for name, (kind, internal) in params}
        for name, (kind, internal) in named.items():
            storage.set_trial_param(number, name, internal, kind)
    for seen in (storage.get_trial(number), RDBStorage.get_trial(storage, number)):
        assert seen.user_attrs == attrs
        assert repr(sorted(seen.intermediate_values.items())) == repr(sorted(reports.items()))
        assert seen.params == {name: kind.to_external_repr(internal) for name, (kind, internal) in named.items()}
