"""Confirmation: the best trials again on fresh seeds, exactly as often as asked for, and what their values say."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import MMSEARCH, TINY, Run, Start, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from scripted import scripted

from mmsearch.config import load_config
from mmsearch.errors import GridExhausted, NoCompletedTrial, StorageError, StudyMismatch, UsageError
from mmsearch.results.ablation import ablate
from mmsearch.results.confirm import (
    FIRST_SEED,
    WORD,
    Confirmation,
    Finalist,
    confirm,
    confirmation_of,
    pick_finalists,
    summarise,
    winner,
    worth_of_a_row,
)
from mmsearch.results.confirm_words import render
from mmsearch.results.replay import replay
from mmsearch.results.statistics import confusion, paired_p, wilson
from mmsearch.search import repeats
from mmsearch.search.launcher import join, launch
from mmsearch.search.machine import this_process
from mmsearch.search.repeats import Outcome, key_of, repeats_of
from mmsearch.search.storage import BASELINE, SEED
from mmsearch.search.study import OpenStudy, count, create_study, open_study
from mmsearch.training.metrics import macro_f1

ROW = 1 / 800  # what one validation row is worth


def outcomes(values: Sequence[float | None], parameters: int = 1000) -> list[Outcome]:
    return [Outcome(None, reason="boom") if v is None else Outcome(v, 3, parameters, "") for v in values]


def said(
    values: Sequence[Sequence[float | None]],
    *,
    sign: int = 1,
    prefer: Any = "best",
    searched: Sequence[float] | None = None,
    parameters: Sequence[int] | None = None,
    eligible: Sequence[bool] | None = None,
    resolution: float = 0.0,
    order: Sequence[int] | None = None,
) -> Confirmation:
    """What values by configuration and seed say; configuration i is trial i."""
    finalists = [
        Finalist(
            i, {"x": i}, None if searched is None else searched[i], i + 1, eligible=eligible is None or eligible[i]
        )
        for i in range(len(values))
    ]
    sizes = parameters or [1000] * len(values)
    found = [outcomes(v, size) for v, size in zip(values, sizes, strict=True)]
    order = range(len(values)) if order is None else order
    metric = "macro_f1" if sign > 0 else "loss"
    picked = [finalists[i] for i in order], [found[i] for i in order]
    return summarise(metric, sign, *picked, prefer, 20, resolution)


def noise(rng: np.random.Generator, configurations: int, seeds: int) -> Any:
    """Accuracies of equal models: how many of 800 rows each gets wrong is luck."""
    return 1 - rng.poisson(4, (configurations, seeds)) * ROW


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_pure_noise_is_a_tie_and_a_drop(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    differing, drops = 0, []
    for _ in range(200):
        searched = np.sort(noise(rng, 20, 1)[:, 0])[::-1][:6]  # the luckiest of 20 trials
        held = said(noise(rng, 6, seeds).tolist(), searched=searched.tolist(), resolution=ROW)
        differing += any(row.differs for row in held.rows)
        assert held.mean_drop is not None
        drops.append(held.mean_drop)
    assert differing <= 0.05 * 200
    assert np.mean(drops) > 2 * ROW
    assert np.mean(np.greater(drops, 0)) > 0.95


def test_a_winner_that_was_planted_is_named() -> None:
    rng = np.random.default_rng(0)
    values = noise(rng, 6, 5) - 0.05
    values[4] += 0.03
    held = said(values.tolist(), searched=[0.999, 0.998, 0.997, 0.996, 0.995, 0.9], resolution=ROW)
    assert held.choice == held.rows[0].trial == 4
    assert {row.trial for row in held.rows if row.differs} == {0, 1, 2, 3, 5}
    text = render(held)
    assert "from trial 4, the best: trials" in text
    assert "choice    trial 4, the best mean\n" in text
    assert re.search(
        r"^drop      the best of the search, trial 0, has 0\.05\d\d less than there; the 6 best of it", text, re.M
    )


def test_two_values_a_row_apart_prove_nothing() -> None:
    one, other = [0.9, 0.9], [0.9 - ROW, 0.9 - ROW - 1e-6]
    assert (paired_p(one, other) or 1) < 0.001  # as if they were exact
    assert (paired_p(one, other, ROW) or 0) > 0.05
    assert paired_p(one, one, ROW) == pytest.approx(1)
    far = [0.5, 0.51, 0.49, 0.5, 0.5]
    assert (paired_p([0.9, 0.91, 0.9, 0.89, 0.9], far, ROW) or 1) < 1e-5


def test_the_smallest_of_a_tie_is_the_choice_where_it_is_preferred() -> None:
    values = [[0.96, 0.97, 0.94], [0.94, 0.95, 0.96], [0.80, 0.81, 0.80]]
    sizes = [3000, 2000, 1000]
    assert said(values, parameters=sizes).choice == 0
    assert said(values, parameters=sizes, prefer="small").choice == 1  # the smallest of all differs
    assert "the smallest model (2000 parameters)" in render(said(values, parameters=sizes, prefer="small"))
    losses = [[-v for v in row] for row in values]
    assert said(losses, sign=-1, parameters=sizes, prefer="small").choice == 1


def test_what_breaks_a_constraint_is_compared_and_never_chosen() -> None:
    values = [[0.90, 0.91, 0.90], [0.99, 0.99, 0.98]]
    held = said(values, eligible=[True, False], parameters=[2000, 1000], prefer="small")
    assert held.choice == held.rows[0].trial == 0
    assert held.rows[1].differs
    assert "cannot be the choice" in render(held)
    with pytest.raises(NoCompletedTrial, match="trial 0: 3 of 3 seeds without a value: boom"):
        said([[None] * 3, values[1]], eligible=[True, False])


def test_what_is_missing_is_said_and_not_chosen_for_one_lucky_seed() -> None:
    held = said([[0.9, 0.91, 0.9], [None, None, 0.99], [None, None, None]])
    assert [row.trial for row in held.rows] == [0, 1]
    assert (held.choice, held.missing, held.rows[1].interval, held.rows[1].p) == (0, 5, None, None)
    assert held.failures[0] == "trial 1: 2 of 3 seeds without a value: boom"
    text = render(held)
    assert "1 of 3 seeds" in text
    assert "missing   5 values: trial 1: 2 of 3 seeds" in text


TABLES = st.integers(2, 5).flatmap(
    lambda seeds: st.lists(
        st.lists(st.floats(0, 1, allow_nan=False).map(lambda v: round(v, 3)), min_size=seeds, max_size=seeds),
        min_size=1,
        max_size=5,
    )
)


@settings(deadline=None, max_examples=60)
@given(TABLES, st.randoms(use_true_random=False), st.sampled_from(["best", "small"]), st.sampled_from([1, -1]))
def test_the_order_of_the_trials_changes_nothing(
    values: list[list[float]], random: Any, prefer: str, sign: int
) -> None:
    order = list(range(len(values)))
    random.shuffle(order)
    sizes = [1000 + 7 * i % 3 for i in order]
    one = said(values, sign=sign, prefer=prefer, parameters=sizes)
    assert one == said(values, sign=sign, prefer=prefer, parameters=sizes, order=order)
    means = [sign * row.mean for row in one.rows]
    assert means == sorted(means, reverse=True)
    assert not one.chosen.differs
    assert one.chosen.parameters == min(row.parameters for row in one.rows if not row.differs) or prefer == "best"
    for row in one.rows[1:]:
        assert row.p is not None
        assert 0 <= row.p <= 1
        assert row.p >= (paired_p(values[one.rows[0].trial], values[row.trial]) or 0) - 1e-12


@settings(deadline=None, max_examples=30)
@given(TABLES, st.floats(0.001, 1), st.sampled_from([1, -1]))
def test_the_better_the_searched_value_was_the_more_it_drops(values: list[list[float]], more: float, sign: int) -> None:
    searched = [0.5] * len(values)
    before = said(values, sign=sign, searched=searched)
    after = said(values, sign=sign, searched=[0.5 + sign * more, *searched[1:]])
    for one, other in zip(before.rows, after.rows, strict=True):
        assert one.drop is not None
        assert other.drop == pytest.approx(one.drop + (more if one.trial == 0 else 0))
        assert (one.p, one.interval) == (other.p, other.interval)


def trial(number: int, value: float | None, x: float, *, attrs: Any = None, violated: float = 0.0) -> FrozenTrial:
    distribution = optuna.distributions.FloatDistribution(0.0, 1.0)
    state = TrialState.COMPLETE if value is not None else TrialState.FAIL
    made = create_trial(state=state, value=value, params={"x": x}, distributions={"x": distribution})
    made.number = number
    made.system_attrs.update(attrs or {})
    if violated:
        made.set_constraint("parameters <= 1", violated)
    return made


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_finalists_are_the_best_that_keep_to_the_constraints_each_once_and_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "digits.toml"
    path.write_text(TINY)
    opened = OpenStudy(load_config(path), optuna.create_study(direction="maximize"), None)  # type: ignore[arg-type]
    trials = [
        trial(0, 0.5, 0.0, attrs={BASELINE: True}),
        trial(1, 0.9, 0.1 + 0.2),
        trial(2, 0.9, 0.3),  # the same
        trial(3, 0.99, 0.4, violated=1.0),
        trial(4, 0.8, 0.5),
        trial(5, None, 0.6),
        trial(6, 0.7, 0.7),
    ]
    found = pick_finalists(opened, trials, 2)
    assert [(held.trial, held.rank, held.defaults) for held in found] == [(1, 1, False), (4, 2, False), (0, None, True)]
    assert [held.trial for held in pick_finalists(opened, trials, 9)] == [1, 4, 6, 0]
    assert pick_finalists(opened, trials, 9)[-1] == Finalist(0, {"x": 0.0}, 0.5, 4, True, True)
    failed = trial(0, None, 0.0, attrs={BASELINE: True})
    last = pick_finalists(opened, [failed, *trials[1:]], 1)[-1]
    assert (last.trial, last.searched, last.eligible, last.defaults) == (0, None, False, True)


def test_the_study_of_repeats_is_as_the_search_but_for_what_would_end_a_trial_early(tmp_path: Path) -> None:
    path = tmp_path / "digits.toml"
    path.write_text(
        TINY.replace("[study]", '[study]\nmetrics = ["loss", "parameters"]\nconstraints = ["parameters <= 9"]').replace(
            "[search]", '[search]\ntimeout = "8h"\npatience_trials = 3'
        )
        + '[[enqueue]]\n"optimizer.lr" = 2e-3\n'
    )
    config = load_config(path)
    assert config.constraints
    assert len(config.configurations) == 2
    made = repeats_of(config, WORD)
    assert made.study.name == "digits-confirm"
    assert (made.study.metrics, made.constraints, made.search.pruner, made.search.timeout) == (
        ("loss",),
        (),
        "none",
        None,
    )
    assert len(made.configurations) == 1
    assert made.search.patience_trials is None
    assert (made.data, made.space, made.search.max_epochs) == (config.data, config.space, config.search.max_epochs)
    limited = load_config(path, {"search.timeout": "9m"})
    assert repeats_of(limited, WORD).search.timeout == 540
    long = load_config(path, {"study.name": "x" * 95})
    with pytest.raises(UsageError, match="too long for the name of a study, which has 100 characters at most"):
        repeats_of(long, WORD)


def test_configurations_are_told_apart_by_what_they_are() -> None:
    assert key_of({"a": 0.1 + 0.2, "b": 3}) == key_of({"b": 3, "a": 0.3})
    assert key_of({"a": 1}) != key_of({"a": True})
    assert key_of({"a": 1}, 5) != key_of({"a": 1}, 6)


@pytest.fixture
def queue(storage_url: str, tmp_path: Path) -> OpenStudy:
    """A study of repeats that nothing is queued in."""
    path = tmp_path / "digits.toml"
    path.write_text(TINY)
    config = repeats_of(load_config(path, {"study.storage": storage_url, "study.folder": str(tmp_path / "s")}), WORD)
    return create_study(config, "data", repeats="digits")[0]


def rates(*values: float) -> list[dict[str, Any]]:
    return [{"optimizer.lr": value} for value in values]


def states(opened: OpenStudy) -> tuple[int, int, int]:
    """How many wait, run and failed."""
    found = count(opened.trials())
    return found.waiting, found.running, found.failed


def claim(opened: OpenStudy) -> FrozenTrial:
    """Take the first trial that waits, as a worker of this process does."""
    first = next(trial for trial in opened.trials() if trial.state == TrialState.WAITING)
    opened.storage.owner = this_process("0-test")
    assert opened.storage.set_trial_state_values(first._trial_id, TrialState.RUNNING)
    return first


Another = Callable[..., None]


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch) -> Iterator[Another]:
    """Queue as another process of this machine does, or of another one; it lives unless told otherwise."""
    process = subprocess.Popen(["sleep", "600"])
    born = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]

    def by(opened: OpenStudy, configurations: Any, seeds: Sequence[int], **told: Any) -> None:
        owner = {**this_process(""), "pid": process.pid, "born": born, **told}
        with monkeypatch.context() as patch:
            patch.setattr(repeats, "this_process", lambda worker: owner)
            repeats._queue(opened, configurations, seeds)

    yield by
    process.kill()
    process.wait()


def test_what_is_wanted_is_queued_once_and_what_nobody_wants_any_more_is_withdrawn(queue: OpenStudy) -> None:
    with queue as opened:
        assert repeats._queue(opened, rates(1e-3, 2e-3, 3e-3), [7, 8])
        assert repeats._queue(opened, rates(1e-3, 2e-3, 3e-3), [7, 8])  # again: nothing more
        assert states(opened) == (opened.total(), 0, 0) == (6, 0, 0)
        assert repeats._queue(opened, rates(1e-3), [7, 8])
        assert states(opened) == (2, 0, 4)
        assert [t.system_attrs[SEED] for t in opened.trials() if t.state == TrialState.WAITING] == [7, 8]


def test_what_a_living_run_wants_stays_queued_also_while_none_of_its_trials_runs(
    queue: OpenStudy, another: Another
) -> None:
    with queue as opened:
        another(opened, rates(1e-3, 2e-3), [7])
        repeats._queue(opened, rates(1e-3), [8, 9])
        assert states(opened) == (4, 0, 0)
        another(opened, rates(1e-3), [7])  # it asks for less now, and this process for as much as before
        assert states(opened) == (3, 0, 1)
        repeats._queue(opened, rates(1e-3), [7])  # what both want stays when one of them is gone
        assert states(opened) == (1, 0, 3)
        another(opened, rates(3e-3), [7], born="gone")
        assert states(opened) == (2, 0, 3)
        repeats._queue(opened, rates(1e-3), [7])
        assert states(opened) == (1, 0, 4)


def test_a_retry_of_what_a_living_run_wants_stays_too(queue: OpenStudy, another: Another) -> None:
    with queue as opened:
        another(opened, rates(1e-3), [7])
        assert opened.storage.fail(claim(opened)._trial_id, "killed", 1) == (True, 1)
        repeats._queue(opened, rates(2e-3), [7])
        assert states(opened) == (2, 0, 1)


def test_what_a_run_on_another_machine_wants_stays_while_a_trial_runs(queue: OpenStudy, another: Another) -> None:
    with queue as opened:
        another(opened, rates(1e-3, 2e-3), [7], machine="elsewhere")
        running = claim(opened)
        repeats._queue(opened, rates(3e-3), [7])
        assert states(opened) == (2, 1, 0)
        assert opened.storage.hand_back(running._trial_id)
        repeats._queue(opened, rates(3e-3), [7])
        assert states(opened) == (1, 0, 2)


@pytest.mark.parametrize("reason", [repeats.WITHDRAWN, "RuntimeError: boom"])
def test_a_confirmation_of_which_another_withdrew_a_part_is_not_kept(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """A whole one stays; one with a training that failed by itself takes its place."""

    def train(source: OpenStudy, opened: OpenStudy, *rest: Any) -> None:
        for trial in opened.trials():
            if trial.state == TrialState.WAITING:
                opened.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
                opened.fail(opened.storage.get_trial(trial._trial_id), reason, 0)

    monkeypatch.setattr(repeats, "_train", train)
    config = load_config(workspace / "studies" / "digits.toml")
    with open_study(config) as opened:
        whole = confirmation_of(opened)
        assert whole is not None
        found = confirm(config, top=2, seeds=3)
        assert found.missing == len(found.rows)
        if reason == repeats.WITHDRAWN:
            assert "withdrew what this one had queued; this is not kept" in render(found)
            assert confirmation_of(opened) == whole
        else:
            assert confirmation_of(opened) == found


def folds_of(monkeypatch: pytest.MonkeyPatch, *folds: Sequence[int]) -> None:
    """Let these be the numbers of rows by class in each fold that validates."""
    made = [(None, SimpleNamespace(labels=np.repeat(np.arange(len(counts)), counts))) for counts in folds]
    monkeypatch.setattr("mmsearch.results.confirm.validation_splits", lambda dataset, config: made)


@pytest.mark.parametrize(
    ("metric", "folds", "worth"),
    [
        ("accuracy", [[80] * 10], 1 / 800),
        ("macro_f1", [[80] * 10], 1 / 800),  # as one of the accuracy where classes have as many rows
        ("accuracy", [[395, 0, 5]], 1 / 400),
        ("macro_f1", [[395, 0, 5]], 1 / 10),  # a class without a row has no part in macro F1
        ("macro_f1", [[50, 50], [50, 50]], 1 / 200),
        ("macro_f1", [[90, 10], [95, 5]], (1 / 20 + 1 / 10) / 2 / 2),
        ("loss", [[80, 20]], 0.0),
    ],
)
def test_what_a_row_is_worth(
    monkeypatch: pytest.MonkeyPatch, metric: str, folds: list[list[int]], worth: float
) -> None:
    folds_of(monkeypatch, *folds)
    config: Any = SimpleNamespace(metric=metric)
    assert worth_of_a_row(config, None) == pytest.approx(worth)  # type: ignore[arg-type]


def test_a_row_of_a_rare_class_is_worth_what_it_moves_macro_f1_by(monkeypatch: pytest.MonkeyPatch) -> None:
    folds_of(monkeypatch, [395, 5])
    config: Any = SimpleNamespace(metric="macro_f1")
    truth = np.repeat([0, 1], [395, 5])
    missed = np.append(truth[:-1], 0)
    moved = 1 - macro_f1(confusion(truth, missed, 2))
    assert 1 / 400 < moved <= worth_of_a_row(config, None) < 2 * moved  # type: ignore[arg-type]


@pytest.mark.parametrize(("correct", "rows"), [(0, 10), (8, 10), (10, 10), (990, 1000)])
def test_wilsons_interval_has_what_its_test_does_not_refuse(correct: int, rows: int) -> None:
    share, z = correct / rows, 1.959964
    for end in wilson(correct, rows):
        assert abs(end - share) == pytest.approx(z * np.sqrt(end * (1 - end) / rows), abs=1e-6)
    low, high = wilson(correct, rows)
    assert 0 <= low <= share <= high <= 1


def test_a_retry_has_the_seed_and_a_study_of_repeats_proposes_nothing(queue: OpenStudy) -> None:
    with queue as opened:
        repeats._queue(opened, rates(1e-3), [7])
        opened.storage.slots = 0
        first = opened.optuna.ask()
        was_running, retry = opened.storage.fail(first._trial_id, "killed", 1)
        assert (was_running, retry) == (True, 1)
        assert not opened.trials()[1].system_attrs.keys().isdisjoint({SEED})
        again = opened.optuna.ask()
        assert (again.number, again.suggest_float("optimizer.lr", 1e-3, 1e-2, log=True)) == (1, 1e-3)
        with pytest.raises(GridExhausted):
            opened.optuna.ask()
        assert len(opened.trials()) == 2


def test_a_search_and_its_repeats_are_not_mixed_up(tmp_path: Path) -> None:
    path = tmp_path / "digits.toml"
    path.write_text(TINY)
    source = load_config(path, {"study.folder": str(tmp_path / "s")})
    config = repeats_of(source, WORD)
    create_study(config, "data", repeats="digits")[0].storage.engine.dispose()
    create_study(config, "data", repeats="digits")[0].storage.engine.dispose()
    refused = "digits-confirm is no search: it holds configurations of the study digits"
    named_so = load_config(path, {"study.folder": str(tmp_path / "s"), "study.name": "digits-confirm"})
    for call in (launch, join, confirm, ablate):
        with pytest.raises(StudyMismatch, match=refused):
            call(named_so)
    with pytest.raises(StudyMismatch, match="of the study other needs the name digits-confirm, which another"):
        create_study(config, "data", repeats="other")


@pytest.fixture(scope="module")
def confirmed(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny search whose two best trials, and the defaults, were trained again on two seeds."""
    folder = tmp_path_factory.mktemp("confirmed")
    shutil.copytree(searched, folder, symlinks=True, dirs_exist_ok=True)
    command = [str(MMSEARCH), "confirm", "--top", "2", "--seeds", "2", "--workers", "2"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (folder / "confirm.out").write_text(done.stdout)
    return folder


@pytest.fixture
def workspace(confirmed: Path, tmp_path: Path) -> Path:
    shutil.copytree(confirmed, tmp_path, symlinks=True, dirs_exist_ok=True)
    return tmp_path


def repeated(folder: Path, **overrides: Any) -> list[FrozenTrial]:
    config = load_config(folder / "studies" / "digits.toml", overrides)
    with open_study(repeats_of(config, WORD)) as opened:
        return opened.trials()


def exactly(trials: list[FrozenTrial], seeds: int) -> int:
    """Each configuration is complete once on each seed; returns how many configurations there are."""
    done = [t for t in trials if t.state == TrialState.COMPLETE]
    held = Counter(key_of(t.system_attrs["fixed_params"], t.system_attrs[SEED]) for t in done)
    assert set(held.values()) == {1}
    by_seed = Counter(t.system_attrs[SEED] for t in done)
    assert sorted(by_seed) == [FIRST_SEED + number for number in range(seeds)]
    assert len(set(by_seed.values())) == 1
    assert not any(t.state in (TrialState.RUNNING, TrialState.WAITING) for t in trials)
    return by_seed[FIRST_SEED]


def test_the_best_and_the_defaults_are_trained_again(mmsearch: Run, workspace: Path) -> None:
    config = load_config(workspace / "studies" / "digits.toml")
    trials = repeated(workspace)
    with open_study(config) as opened:
        held = confirmation_of(opened)
        assert held is not None
        best, second = pick_finalists(opened, opened.trials(), 2)[:2]
        assert {best.trial, second.trial} <= {row.trial for row in held.rows}
        assert sum(row.defaults for row in held.rows) == 1
        assert exactly(trials, 2) == len(held.rows) >= 2
        assert winner(opened).number == held.choice
        assert count(opened.trials()).finished == opened.total() == held.finished == held.now == 6
    for row in held.rows:
        theirs = [t for t in trials if key_of(t.params) == key_of(row.params)]
        assert row.values == tuple(t.values[0] for t in sorted(theirs, key=lambda t: t.system_attrs[SEED]))
        assert row.best_epochs == tuple(
            t.user_attrs["best_epoch"] for t in sorted(theirs, key=lambda t: t.system_attrs[SEED])
        )
        assert {t.user_attrs["parameters"] for t in theirs} == {row.parameters}
    assert 1 / 85 < held.resolution < 1 / 60  # 80 of the 400 rows validate, in whole groups, about 8 of each class
    seeds = {t.system_attrs[SEED]: t.user_attrs["run"]["seed"] for t in trials}
    assert len(set(seeds.values())) == 2  # shared by all configurations, and not those of the search
    with open_study(config) as opened:
        assert not set(seeds.values()) & {t.user_attrs["run"]["seed"] for t in opened.trials()}
    assert f"confirmed trial {held.choice}: macro_f1" in mmsearch("status").stdout


def test_run_again_it_trains_nothing_and_says_the_same(mmsearch: Run, workspace: Path) -> None:
    before = [(t.number, t.datetime_complete) for t in repeated(workspace)]
    done = mmsearch("confirm", "--top", 2, "--seeds", 2)
    assert done.stdout == (workspace / "confirm.out").read_text()
    assert "started" not in done.stderr
    assert "next: mmsearch retrain-best" in done.stderr
    assert [(t.number, t.datetime_complete) for t in repeated(workspace)] == before
    small = mmsearch("confirm", "--top", 2, "--seeds", 2, "--prefer", "small").stdout
    assert "the smallest model" in small
    table, _, sentences = small.partition("scored")
    assert table == (workspace / "confirm.out").read_text().partition("scored")[0]
    config = load_config(workspace / "studies" / "digits.toml")
    with open_study(config) as opened:
        held = confirmation_of(opened)
        assert held is not None
        assert held.prefer == "small"
        assert f"choice    trial {held.choice}, the smallest model" in sentences


def test_the_same_seed_gives_the_same_values(workspace: Path) -> None:
    config = repeats_of(load_config(workspace / "studies" / "digits.toml"), WORD)
    again = replay(config, 1)
    assert again.exact
    assert again.compared


@pytest.mark.slow
def test_more_seeds_train_what_is_missing_and_a_search_that_goes_on_is_exact(mmsearch: Run, workspace: Path) -> None:
    before = {t.number: t.values for t in repeated(workspace)}
    done = mmsearch("confirm", "--top", 2, "--seeds", 3, "--workers", 2)
    trials = repeated(workspace)
    configurations = exactly(trials, 3)
    assert {t.number: t.values for t in trials if t.number in before} == before
    assert len(re.findall(r"trial \d+ started", done.stderr)) == configurations
    mmsearch("launch", "--trials", 7, "--workers", 1)
    config = load_config(workspace / "studies" / "digits.toml")
    with open_study(config) as opened:
        assert count(opened.trials()).finished == len(opened.trials()) == 7
        held = confirmation_of(opened)
        assert held is not None
        assert (held.finished, held.now, held.stale) == (6, 7, True)
    assert "the search has finished 1 trial that had no part in this" in mmsearch("status").stdout


def test_what_cannot_be_confirmed_is_one_sentence(mmsearch: Run, workspace: Path) -> None:
    path = workspace / "studies" / "digits.toml"
    cases: tuple[tuple[dict[str, Any], dict[str, Any], type[Exception], str], ...] = (
        ({}, {"seeds": 1}, UsageError, "--seeds must be 2 at least, not 1"),
        ({}, {"top": 0}, UsageError, "--top must be 1 at least, not 0"),
        ({"study.name": "nope"}, {}, StorageError, "there is no study nope"),
        ({"study.seed": 5}, {}, StudyMismatch, "was begun with study.seed = 0"),
    )
    for overrides, options, error, text in cases:
        with pytest.raises(error, match=text):
            confirm(load_config(path, overrides), **options)
    config = load_config(path, {"study.name": "empty"})
    create_study(config, "data")[0].storage.engine.dispose()
    said = mmsearch("confirm", "--study-name", "empty", code=3).stderr
    assert said == "mmsearch: study empty: no trial is complete; `mmsearch launch` makes some\n"


@pytest.mark.slow
def test_what_failed_is_said_and_tried_at_the_next_run(mmsearch: Run, workspace: Path) -> None:
    body = """
    def before(trial):
        attrs = trial.storage.get_trial_system_attrs(trial._trial_id)
        if attrs.get("mmsearch:seed") == 1_000_002 and not Path("failed").exists():
            Path("failed").touch()
            raise RuntimeError("boom")
    """
    env = scripted(workspace, worker=body)
    done = mmsearch("confirm", "--top", 1, "--seeds", 3, "--workers", 1, env=env)
    assert re.search(r"missing   1 value: trial \d+: 1 of 3 seeds without a value: RuntimeError: boom", done.stdout)
    assert "go on with: mmsearch confirm --top 1 --seeds 3 --prefer best --workers 1" in done.stderr
    again = mmsearch("confirm", "--top", 1, "--seeds", 3, "--workers", 1, env=env)
    assert "missing" not in again.stdout
    assert len(re.findall(r"trial \d+ started", again.stderr)) == 1


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow
def test_stopped_and_killed_it_goes_on_and_trains_nothing_twice(
    mmsearch: Run, start: Start, tmp_path: Path, storage_url: str
) -> None:
    (tmp_path / "studies").mkdir(exist_ok=True)
    (tmp_path / "studies" / "digits.toml").write_text(TINY.replace("[search]", '[search]\npruner = "none"'))
    env = {"MMSEARCH_STORAGE": storage_url}
    mmsearch("launch", "--study-name", "other", "--trials", 4, "--workers", 2, env=env)
    command = ["confirm", "--study-name", "other", "--top", 3, "--seeds", 3, "--workers", 2]
    overrides = {"study.storage": storage_url, "study.name": "other"}

    def done() -> int:
        try:
            return count(repeated(tmp_path, **overrides)).finished
        except Exception:  # it is being made
            return 0

    running = start(*command, env=env)
    wait_for(lambda: done() >= 2)
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=120)
    assert running.returncode == 130, stderr
    assert "go on with: mmsearch confirm --study-name other --top 3 --seeds 3 --prefer best --workers 2" in stderr
    stopped = done()
    killed = start(*command, env=env)
    wait_for(lambda: done() >= stopped + 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=120)
    mmsearch(*command, env=env)
    configurations = exactly(repeated(tmp_path, **overrides), 3)
    assert configurations in (3, 4)
    assert mmsearch("status", "--study-name", "other", env=env).stdout.splitlines()[1].split()[1:4] == ["4", "of", "4"]


@pytest.mark.slow
def test_two_at_once_share_the_work(start: Start, workspace: Path) -> None:
    both = [start("confirm", "--top", 2, "--seeds", 6, "--workers", 1) for _ in range(2)]
    ends = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    configurations = exactly(repeated(workspace), 6)
    assert ends[0][0] == ends[1][0]
    started = [len(re.findall(r"trial \d+ started", stderr)) for _, stderr in ends]
    assert sum(started) == 4 * configurations  # two of the six seeds were there
    assert min(started) >= 1


FOLDS = """
[study]
trials = 3
metrics = ["macro_f1", "parameters"]
constraints = ["parameters <= 40000"]
[data]
rows = 200
validation = "kfold"
folds = 2
[search]
max_epochs = 2
startup_trials = 3
[space]
"batch_size" = 32
"optimizer.lr" = 3e-3
"image.encoder" = "mlp"
"image.mlp.depth" = 1
"image.mlp.units_1" = { low = 8, high = 64, default = 64 }
"audio.encoder" = "mlp"
"audio.mlp.depth" = 1
"audio.mlp.units_1" = 16
"head.units" = 16
[[enqueue]]
"image.mlp.units_1" = 16
"""


@pytest.mark.slow
def test_folds_constraints_and_several_metrics(mmsearch: Run, tmp_path: Path, workspace: Path) -> None:
    (workspace / "studies" / "folds.toml").write_text(FOLDS)
    mmsearch("launch", "studies/folds.toml", "--workers", 2)
    said = mmsearch("confirm", "studies/folds.toml", "--top", 1, "--seeds", 2, "--prefer", "small").stdout
    config = load_config(workspace / "studies" / "folds.toml")
    with open_study(config) as opened:
        held = confirmation_of(opened)
        assert held is not None
        defaults = next(row for row in held.rows if row.defaults)
        assert (defaults.eligible, defaults.searched, len(defaults.values)) == (False, None, 2)  # trained all the same
        assert held.choice == opened.picked().number != defaults.trial
        assert held.resolution == pytest.approx(1 / 200, rel=0.3)  # 200 rows, in classes of about 10 a fold
    assert "cannot be the choice" in said
    assert "macro_f1 on the validation rows" in said


def test_a_confirmation_is_stored_whole(workspace: Path) -> None:
    config = load_config(workspace / "studies" / "digits.toml")
    with open_study(config) as opened:
        held = confirmation_of(opened)
    assert held is not None
    assert render(held) == (workspace / "confirm.out").read_text()
    assert dataclasses.replace(held) == held
    assert isinstance(held.rows[0].values, tuple)
    assert isinstance(held.rows[0].interval, tuple)


def test_importing_the_words_of_a_confirmation_loads_no_torch() -> None:
    program = "import sys, mmsearch.results.confirm_words; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
