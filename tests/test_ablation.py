"""The ablation: what is put back, what it says, and that it is trained once."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from mmsearch.config import load_config
from mmsearch.errors import NoCompletedTrial, UsageError
from mmsearch.hyperparameters import Value
from mmsearch.results.ablation import FIRST_SEED, WORD, Ablation, ablate, ablation_of, compare, put_back
from mmsearch.results.confirm import winner
from mmsearch.search import repeats
from mmsearch.search.progress import Event, Progress
from mmsearch.search.repeats import Outcome, key_of, repeats_of
from mmsearch.search.storage import SEED
from mmsearch.search.study import OpenStudy, count, open_study
from mmsearch.spaces import Space, parse_dimension

SPACE = Space(
    {
        name: parse_dimension(name, node)
        for name, node in {
            "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True, "default": 1e-3},
            "head.dropout": {"low": 0.0, "high": 0.6, "step": 0.1, "default": 0.3},
            "image.encoder": ["cnn", "mlp"],
            "image.cnn.depth": 1,
            "image.cnn.filters_1": [16, 32],
            "image.mlp.depth": 1,
            "image.mlp.units_1": [16, 32],
        }.items()
    }
)


def said(values: Sequence[Sequence[float | None]], sign: int = 1, resolution: float = 0.0) -> Ablation:
    """What values by configuration and seed say, of which the first is the best and others put a, b, ... back."""
    found = [[Outcome(None, reason="boom") if v is None else Outcome(v, 3, 1000, "") for v in row] for row in values]
    pairs = dict.fromkeys("abcdefgh"[: len(values) - 1], (1, 2))
    return compare("macro_f1" if sign > 0 else "loss", sign, 7, pairs, found, resolution)


def test_one_parameter_at_a_time_is_put_back_and_what_then_applies_has_its_default() -> None:
    best: dict[str, Value] = {
        "optimizer.lr": 3e-3,
        "head.dropout": 0.1 + 0.2,
        "image.encoder": "mlp",
        "image.mlp.units_1": 16,
    }
    default = SPACE["image.mlp.units_1"].default  # type: ignore[union-attr]
    filters = SPACE["image.cnn.filters_1"].default  # type: ignore[union-attr]
    assert default == 32
    assert put_back(SPACE, best) == {
        "optimizer.lr": {**best, "optimizer.lr": 1e-3},
        "image.encoder": {
            "optimizer.lr": 3e-3,
            "head.dropout": 0.1 + 0.2,  # as it was: 0.3 is its default
            "image.encoder": "cnn",
            "image.cnn.filters_1": filters,
        },
        "image.mlp.units_1": {**best, "image.mlp.units_1": 32},
    }
    defaults = {name: value for name, value in SPACE.configuration({}).items() if name in SPACE.varying()}
    assert put_back(SPACE, defaults) == {}


def test_what_matters_is_told_from_what_does_not() -> None:
    held = said([[0.95, 0.96, 0.95], [0.90, 0.91, 0.90], [0.95, 0.95, 0.96], [0.97, 0.96, 0.95]])
    assert [row.parameter for row in held.rows] == ["a", "b", "c"]
    assert [row.differs for row in held.rows] == [True, False, False]
    first, second, third = held.rows
    assert first.difference == pytest.approx(0.05)
    assert second.difference == pytest.approx(0)
    assert third.difference < 0  # the default is better
    assert first.difference_interval is not None
    assert first.difference_interval[0] <= first.difference <= first.difference_interval[1]
    losses = said([[0.1, 0.11, 0.1], [0.2, 0.21, 0.2]], sign=-1)
    assert losses.rows[0].difference == pytest.approx(0.1)
    assert (held.trial, held.seeds, held.missing) == (7, 3, 0)
    assert held.mean == pytest.approx(0.9533, abs=1e-4)


def test_a_row_of_the_data_on_two_seeds_is_no_difference() -> None:
    values = [[0.95, 0.95], [0.95 - 1 / 800, 0.95 - 1 / 800 - 1e-6]]
    assert said(values).rows[0].differs
    assert not said(values, resolution=1 / 800).rows[0].differs


def test_what_failed_is_said() -> None:
    held = said([[0.95, None, 0.95], [0.9, 0.9, None], [None, None, None]])
    assert [row.parameter for row in held.rows] == ["a"]
    assert (held.rows[0].p, held.rows[0].difference_interval, held.missing) == (None, None, 5)
    assert held.rows[0].difference == pytest.approx(0.05)
    assert held.failures == (
        "trial 7: 1 of 3 seeds without a value: boom",
        "a = 2: 1 of 3 seeds without a value: boom",
        "b = 2: 3 of 3 seeds without a value: boom",
    )
    with pytest.raises(NoCompletedTrial, match="trial 7: 2 of 2 seeds without a value: boom"):
        said([[None, None], [0.9, 0.9]])


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 4).flatmap(
        lambda seeds: st.lists(st.lists(st.floats(0, 1), min_size=seeds, max_size=seeds), min_size=1, max_size=5)
    ),
    st.sampled_from([1, -1]),
)
def test_differences_are_of_means_and_stand_in_order(values: list[list[float]], sign: int) -> None:
    held = said(values, sign)
    assert len(held.rows) == len(values) - 1
    for row in held.rows:
        assert row.difference == pytest.approx(sign * (held.mean - row.mean))
        assert row.p is not None
        assert row.differs == (row.p < 0.05)
    found = [row.difference for row in held.rows]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("reason", [repeats.WITHDRAWN, "RuntimeError: boom"])
def test_an_ablation_of_which_another_withdrew_a_part_is_not_kept(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    shutil.copytree(searched, tmp_path, symlinks=True, dirs_exist_ok=True)
    config = load_config(tmp_path / "studies" / "digits.toml")

    def train(source: OpenStudy, opened: OpenStudy, *rest: Any) -> None:
        first, *others = [trial._trial_id for trial in opened.trials()]
        for trial in (first, *others):
            opened.storage.set_trial_state_values(trial, TrialState.RUNNING)
        opened.storage.set_trial_state_values(first, TrialState.COMPLETE, [0.9])
        for trial in others:
            opened.fail(opened.storage.get_trial(trial), reason, 0)

    monkeypatch.setattr(repeats, "_train", train)
    held = ablate(config, seeds=2)
    assert held.missing
    with open_study(config) as opened:
        assert ablation_of(opened) == (None if reason == repeats.WITHDRAWN else held)


class Noted(Progress):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    @property
    def started(self) -> int:
        """How many trainings began."""
        return sum(event.fields["event"] == "started" for event in self.events)


@pytest.mark.slow
def test_the_best_is_ablated_once_in_a_study_of_its_own(searched: Path, tmp_path: Path) -> None:
    shutil.copytree(searched, tmp_path, symlinks=True, dirs_exist_ok=True)
    path = tmp_path / "studies" / "digits.toml"
    path.write_text(TINY)
    config = load_config(path)
    with open_study(config) as opened:
        assert ablation_of(opened) is None
        best = winner(opened)
        changed = put_back(config.dimensions, best.params)
    show = Noted()
    held = ablate(config, seeds=2, workers=2, progress=show)
    assert {row.parameter for row in held.rows} == set(changed)
    assert (held.trial, held.missing, len(held.values)) == (best.number, 0, 2)
    assert show.started == 2 * (1 + len(changed))
    again = Noted()
    assert ablate(config, seeds=2, progress=again) == held
    assert again.started == 0
    with open_study(config) as opened:
        assert ablation_of(opened) == held
        assert count(opened.trials()).finished == opened.total() == 6
    with open_study(repeats_of(config, WORD)) as opened:
        keys: Any = [key_of(t.system_attrs["fixed_params"], t.system_attrs[SEED]) for t in opened.trials()]
        assert set(Counter(keys).values()) == {1}
        assert {t.system_attrs[SEED] for t in opened.trials()} == {FIRST_SEED, FIRST_SEED + 1}
    with pytest.raises(UsageError, match="needs 2 seeds at least"):
        ablate(config, seeds=1)
