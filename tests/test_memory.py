"""A trial that ran out of memory teaches the sampler to stay away, whatever else the study holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from mmsearch.config import StudyConfig, load_config
from mmsearch.search.samplers import build_sampler
from mmsearch.search.space import suggest
from mmsearch.search.storage import open_storage
from mmsearch.search.study import create_study, open_study
from mmsearch.search.values import MEMORY, VIOLATED

LIMIT = 512  # the batch size from which on there is too little memory

Make = Callable[..., StudyConfig]


def configure(folder: Path, sampler: str, study: str = "") -> StudyConfig:
    """A study of a batch size, which is the better the greater it is, and of a learning rate, which does nothing."""
    path = folder / "studies" / "a.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        f'[study]\n{study}\n[search]\nsampler = "{sampler}"\nstartup_trials = 8\npopulation = 8\n[space]\n'
        '"batch_size" = { low = 16, high = 1024 }\n"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }\n'
    )
    return load_config(path, {"study.trials": 1000})


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.delenv("MMSEARCH_STORAGE", raising=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return lambda sampler, study="": configure(tmp_path, sampler, study)


def search(config: StudyConfig, total: int, *, limit: int = LIMIT) -> list[bool]:
    """Of each trial that its sampler proposed: whether it ran out of memory."""
    create_study(config, "data")[0].__exit__()
    with open_study(config) as opened:
        while len(opened.trials()) < total:
            trial = opened.optuna.ask()
            size = suggest(config.dimensions, trial)["batch_size"]
            for constraint in config.constraints:
                trial.set_constraint(str(constraint), -0.5)
            if size > limit:
                opened.storage.prune(trial._trial_id, "out of memory", {MEMORY: 1.0})
            else:
                opened.optuna.tell(trial, [size / 1024, *[100.0] * (len(config.study.metrics) - 1)])
        return [trial.constraints.get(MEMORY, 0) > 0 for trial in opened.trials()]


@pytest.mark.parametrize(
    "study",
    ["", 'metrics = ["macro_f1", "parameters"]', 'constraints = ["parameters <= 1000"]'],
    ids=["one-metric", "two-metrics", "with-a-constraint"],
)
@pytest.mark.parametrize(("sampler", "share"), [("tpe", 0.5), ("gp", 0.5), ("nsga2", 0.7)])
def test_samplers_stay_away_from_what_ran_out_of_memory(
    configured: Make, sampler: str, share: float, study: str
) -> None:
    """Three in four of the space are too large, and the best lies next to them: at random 0.76 would be."""
    outcomes = search(configured(sampler, study), 50)
    assert any(outcomes[:10])
    assert sum(outcomes[20:]) / 30 < share


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random", "qmc"])
def test_a_search_goes_on_where_all_run_out_of_memory(configured: Make, sampler: str) -> None:
    config = configured(sampler, 'constraints = ["parameters <= 1000"]')
    assert all(search(config, 14, limit=0))
    with open_study(config) as opened:
        assert opened.best() is None
        assert opened.why_none() == "no trial is complete: 14 of 14 finished trials ran out of memory"


def test_the_reason_is_where_other_violations_are(configured: Make) -> None:
    config = configured("tpe")
    search(config, 3, limit=0)
    with open_study(config) as opened:
        assert {trial.user_attrs[VIOLATED] for trial in opened.trials()} == {"out of memory"}


OUTCOMES = st.lists(
    st.tuples(
        st.sampled_from(["complete", "memory", "memory-after-a-report", "pruned", "infeasible", "fail"]),
        st.floats(-1e6, 1e6),
    ),
    min_size=1,
    max_size=14,
)


@settings(max_examples=15, deadline=None)
@given(outcomes=OUTCOMES, sampler=st.sampled_from(["tpe", "gp", "nsga2"]), several=st.booleans())
def test_no_history_makes_a_sampler_fail(
    outcomes: list[tuple[str, float]], sampler: str, several: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever mixture of outcomes there is, with and without constraints of the study's own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = tmp_path_factory.mktemp("study")
    metrics = 'metrics = ["macro_f1", "parameters"]\n' if several else ""
    config = configure(folder, sampler, metrics + 'constraints = ["parameters <= 1000"]')
    storage = open_storage(f"sqlite:///{folder / 'a.db'}", create=True)
    study = optuna.create_study(storage=storage, directions=config.directions, sampler=build_sampler(config))

    def take() -> optuna.Trial:
        trial = study.ask()
        suggest(config.dimensions, trial)
        return trial

    for outcome, value in outcomes:
        play(study, storage, take(), outcome, value)
    for _ in range(3):
        play(study, storage, take(), "complete", 0.0)
    assert all(trial.params for trial in study.trials)
    storage.engine.dispose()


def play(study: optuna.Study, storage: Any, trial: optuna.Trial, outcome: str, value: float) -> None:
    """End a trial in one of the ways in which a worker may end it."""
    if outcome in ("pruned", "memory-after-a-report") and len(study.directions) == 1:
        trial.report(value, 1)
    if outcome in ("complete", "infeasible"):
        trial.set_constraint("parameters <= 1000", value / 1e6 if outcome == "complete" else 0.5)
    if outcome == "complete":
        study.tell(trial, [value, 100.0][: len(study.directions)])
    elif outcome.startswith("memory"):
        assert storage.prune(trial._trial_id, "out of memory", {MEMORY: 1.0})
    elif outcome == "fail":
        assert storage.fail(trial._trial_id, "broken", 0) == (True, None)
    else:
        study.tell(trial, state=TrialState.PRUNED)
