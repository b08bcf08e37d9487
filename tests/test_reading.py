"""Trials are read as plain rows, and are what Optuna makes of the same database, whatever they hold."""

from __future__ import annotations

import time
from collections.abc import Iterator

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from planted import Direction, fill, in_words

from mmsearch.search import reading
from mmsearch.search.storage import Storage, open_storage


@pytest.fixture
def storage(storage_url: str) -> Iterator[Storage]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = open_storage(storage_url.replace("postgresql://", "postgresql+psycopg://"), create=True)
    yield made
    made.engine.dispose()


@pytest.mark.parametrize("few", [500, 2], ids=["named-one-by-one", "too-many-to-name"])
@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]], ids=["one-metric", "two-metrics"])
def test_they_are_what_optuna_reads(
    storage: Storage, directions: list[Direction], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FEW", few)
    fill(storage, directions)
    study = fill(storage, directions)  # beside another
    everything = storage._get_trials(study, None, set(), -1)
    ids = [trial._trial_id for trial in everything]
    assert len(ids) == 10
    assert {trial.state for trial in everything} >= {TrialState.FAIL, TrialState.WAITING, TrialState.COMPLETE}
    for states in (None, (TrialState.RUNNING,), [TrialState.COMPLETE, TrialState.PRUNED], {TrialState.WAITING}, ()):
        for included, greater in ((set(), -1), ({ids[0], ids[1], ids[2], ids[9]}, ids[4]), (set(), ids[-1])):
            ours = storage._get_trials(study, states, included, greater)
            theirs = RDBStorage._get_trials(storage, study, states, included, greater)
            assert [in_words(trial) for trial in ours] == [in_words(trial) for trial in theirs]
            assert [trial._trial_id for trial in ours] == [trial._trial_id for trial in theirs]
            assert [list(trial.params) for trial in ours] == [list(trial.params) for trial in theirs]


@pytest.mark.parametrize("few", [500, 2], ids=["named-one-by-one", "too-many-to-name"])
def test_outcomes_are_the_trials_without_parameters_reports_and_provenance(
    storage: Storage, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FEW", few)
    fill(storage, ["maximize"])
    study = fill(storage, ["maximize"])
    held = storage.get_all_trials(study, states=(TrialState.WAITING,))[0]._trial_id
    storage.set_trial_user_attr(held, "artifact", 1)
    storage.set_trial_user_attr(held, "running", 2)
    trials = storage.get_all_trials(study)
    storage.set_trial_system_attr(held, "artifacts:0b5c", "{}")
    for trial in trials:
        trial.params, trial.distributions, trial.intermediate_values = {}, {}, {}
        trial.user_attrs.pop("run", None)
    assert [in_words(trial) for trial in storage.outcomes(study)] == [in_words(trial) for trial in trials]
    assert storage.outcomes(12345) == []


def test_times_are_those_of_this_machine(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        study = fill(storage, ["maximize"], 2)
        ours, theirs = (
            storage._get_trials(study, None, set(), -1),
            RDBStorage._get_trials(storage, study, None, set(), -1),
        )
        assert [trial.datetime_start for trial in ours] == [trial.datetime_start for trial in theirs]
        assert [trial.datetime_complete for trial in ours] == [trial.datetime_complete for trial in theirs]
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_study_that_is_not_there_is_a_key_error(storage: Storage) -> None:
    with pytest.raises(KeyError):
        storage._get_trials(12345, None, set(), -1)
    empty = optuna.create_study(storage=storage)
    assert empty.get_trials() == []
