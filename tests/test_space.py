"""The space as Optuna stores it: what a trial was given is what is read back, whatever the space."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_hyperparameters import SPACES

from mmsearch.config import load_config
from mmsearch.search.space import restore, suggest, varying
from mmsearch.search.storage import Storage
from mmsearch.spaces import Space


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = Storage(f"sqlite:///{tmp_path_factory.mktemp('space') / 'studies.db'}", create=True)
    yield made
    made.engine.dispose()


def round_trip(space: Space, storage: Storage, seed: int, trials: int = 1) -> None:
    study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(trials):
        trial = study.ask()
        made = suggest(space, trial)
        stored = storage.get_trial(trial._trial_id).params
        assert stored == varying(space, made)
        assert restore(space, stored) == made
        again = space.configuration(stored)
        assert again == made
    optuna.delete_study(study_name=study.study_name, storage=storage)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(space=SPACES, seed=st.integers(0, 2**31))
def test_what_a_trial_was_given_is_read_back(storage: Storage, space: Space, seed: int) -> None:
    round_trip(space, storage, seed)


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "studies").glob("*.toml")))
def test_every_shipped_study_is_read_back(storage: Storage, name: str) -> None:
    round_trip(load_config(ROOT / "studies" / name).dimensions, storage, 0, trials=10)
