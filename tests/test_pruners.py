"""Pruners as a search uses them: real reports on a real database, of epochs and of folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import TINY, Run
from optuna.trial import TrialState

from mmsearch.config import StudyConfig, load_config
from mmsearch.search.samplers import build_pruner, first_step, notes
from mmsearch.search.study import OpenStudy, create_study

Make = Callable[..., StudyConfig]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Configure a study with what `text` says of `[search]`."""
    monkeypatch.delenv("MMSEARCH_STORAGE", raising=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def made(text: str, name: str = "a", **keys: Any) -> StudyConfig:
        path = tmp_path / "studies" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'[search]\nsampler = "random"\n{text}\n[space]\n"head.dropout" = {{ low = 0.0, high = 0.5 }}')
        return load_config(path, {"study.trials": 1000, **{key.replace("__", "."): v for key, v in keys.items()}})

    return made


GOOD = [[0.5 + 0.01 * i + 0.03 * step for step in range(9)] for i in range(10)]
BAD = [0.1] * 9
KFOLD = '[data]\nvalidation = "kfold"\nfolds = 9\n'


def train(opened: OpenStudy, curve: Sequence[float]) -> int | None:
    """Report a curve as the objective does; returns the step at which the trial was pruned."""
    trial = opened.optuna.ask()
    for step, value in enumerate(curve, 1):
        trial.report(value, step)
        if step < len(curve) and trial.should_prune():
            opened.optuna.tell(trial, state=TrialState.PRUNED)
            return step
    best = max if opened.signs[0] > 0 else min
    opened.optuna.tell(trial, float(np.mean(curve)) if opened.config.folds > 1 else best(curve))
    return None


def pruned(config: StudyConfig, good: Sequence[Sequence[float]], *others: Sequence[float]) -> list[int | None]:
    """When the others are pruned after good trials, of which none may be."""
    with create_study(config, "data")[0] as opened:
        assert [train(opened, curve) for curve in good] == [None] * len(good)
        return [train(opened, curve) for curve in others]


PRUNERS: dict[str, tuple[str, int]] = {  # what the study file says, and the step at which a bad trial ends
    "median": ("pruner_startup = 4\npruner_warmup = 3", 4),
    "percentile": ("pruner_startup = 4\npruner_warmup = 0\npruner_percentile = 50", 1),
    "halving": ("pruner_warmup = 1\nreduction_factor = 2", 2),
    "patient": ("pruner_startup = 4\npruner_warmup = 0\npruner_patience = 2", 5),
    "threshold": ("pruner_warmup = 2\npruner_lower = 0.3", 3),
}


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_bad_trial_is_pruned_and_a_good_one_is_not(make: Make, pruner: str, folds: bool) -> None:
    keys, step = PRUNERS[pruner]
    steps = KFOLD if folds else "max_epochs = 9"
    config = make(f'pruner = "{pruner}"\n{keys}\n{steps}')
    bad = [0.1, 0.2, 0.15, 0.14, 0.13, 0.12, 0.11, 0.1, 0.1] if pruner == "patient" else BAD
    assert pruned(config, GOOD, bad, [value + 0.3 for value in GOOD[0]]) == [step, None]


@pytest.mark.parametrize("pruner", ["median", "halving", "threshold"])
def test_a_smaller_loss_is_not_pruned(make: Make, pruner: str) -> None:
    keys, step = PRUNERS[pruner]
    keys = keys.replace("pruner_lower = 0.3", "pruner_upper = 0.7")
    config = make(f'pruner = "{pruner}"\nmax_epochs = 9\n{keys}', study__metrics=("loss",))
    good = [[1 - value for value in curve] for curve in GOOD]
    assert pruned(config, [[v - 0.2 for v in curve] for curve in good], [0.9] * 9, [0.01] * 9) == [step, None]


def test_a_percentile_keeps_only_so_many_of_the_best(make: Make) -> None:
    middling = [value + 0.06 for value in GOOD[0]]  # better than the median, worse than the best tenth
    text = "max_epochs = 9\npruner_startup = 10\npruner_warmup = 0\n"
    ordered = [[0.9, *curve[1:]] if i == 0 else curve for i, curve in enumerate(GOOD)]
    assert pruned(make(name="half", text=f'pruner = "median"\n{text}'), ordered, middling) == [None]
    tenth = make(name="tenth", text=f'pruner = "percentile"\npruner_percentile = 10\n{text}')
    assert pruned(tenth, ordered, middling) == [1]


def test_hyperband_prunes_in_some_of_its_brackets(make: Make) -> None:
    config = make('pruner = "hyperband"\nmax_epochs = 9\npruner_warmup = 0\nreduction_factor = 3')
    found = pruned(config, GOOD, *[BAD] * 12)
    assert {1, 3} <= set(found) <= {1, 3, None}


def test_rungs_fit_the_epochs(make: Make) -> None:
    text = 'max_epochs = 4\npruner_warmup = 9\npruner_startup = 1\npruner = "'
    for pruner in ("hyperband", "halving", "median", "threshold"):
        config = make(name=pruner, text=f'{text}{pruner}"\npruner_lower = 0.0')
        assert pruned(config, [curve[:4] for curve in GOOD], BAD[:4]) == [None]
        assert notes(config) == [
            f"pruner {pruner} prunes nothing: with pruner_warmup = 9 it needs more than 10 epochs, and there are 4"
        ]


def test_the_default_goes_by_the_first_epoch_and_then_halves(make: Make) -> None:
    """Rungs after 1, 2, 4 and 8 of 10 epochs: the better half goes on; the first has nobody to be compared with."""
    flat = [[value] * 10 for value in (0.5, 0.9, 0.4, 0.6, 0.95)]
    late = [0.95, 0.95, 0.95, 0.3, *[0.99] * 6]
    with create_study(make(""), "data")[0] as opened:
        assert [train(opened, curve) for curve in [*flat, late]] == [None, None, 1, 2, None, 4]


@pytest.mark.parametrize(("epochs", "first"), [(4, 1), (19, 1), (20, 2), (50, 5)])
def test_the_first_rung_grows_with_the_epochs(make: Make, epochs: int, first: int) -> None:
    for pruner in ("halving", "hyperband"):
        config = make(f'pruner = "{pruner}"\nmax_epochs = {epochs}', name=f"{pruner}{epochs}")
        assert first_step(config) == first
        assert first_step(make(f'pruner = "{pruner}"\nmax_epochs = {epochs}\npruner_warmup = 7')) == min(8, epochs)
    assert first_step(make(f'pruner = "median"\nmax_epochs = {epochs}', name="m")) == 3
    config = make(f"max_epochs = {epochs}", name="pruned")
    with create_study(config, "data")[0] as opened:
        assert train(opened, [0.9] * epochs) is None
        assert train(opened, [0.1] * epochs) == first


def test_patience_waits_while_a_trial_improves(make: Make) -> None:
    config = make('pruner = "patient"\nmax_epochs = 9\npruner_startup = 1\npruner_patience = 1')
    slow = [0.01 * step for step in range(9)]
    assert pruned(config, GOOD, slow, [*slow[:4], 0.02, 0.02, 0.02, 0.02, 0.02]) == [None, 6]


def test_wilcoxon_compares_folds_with_the_best_trial(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    config = make(f'pruner = "wilcoxon"\npruner_p = 0.1\n{KFOLD}')
    hard = [0.9, 0.5, 0.8, 0.6, 0.9, 0.7, 0.8, 0.9, 0.6]  # folds differ more than trials do
    with create_study(config, "data")[0] as opened:
        assert train(opened, hard) is None
        assert train(opened, [value + 0.01 for value in hard]) is None
        assert train(opened, [value - 0.02 for value in hard]) == 4  # four of four: p = 1 in 16
        assert train(opened, hard[:4] + [1.0] * 5) == 4
        mixed = [value + (0.03 if fold % 2 else -0.01) for fold, value in enumerate(hard)]
        assert train(opened, mixed) is None
        assert train(opened, hard) == 4
        assert train(opened, [value + 0.01 for value in hard]) is None  # as good as the best
    assert capfd.readouterr().err == ""
    strict = make(name="strict", text=f'pruner = "wilcoxon"\npruner_p = 0.02\n{KFOLD}')
    assert pruned(strict, [hard], [value - 0.02 for value in hard]) == [6]


def test_no_trial_of_several_metrics_is_pruned(make: Make) -> None:
    config = make(study__metrics=("macro_f1", "parameters"), text="pruner_startup = 0")
    assert isinstance(build_pruner(config), optuna.pruners.NopPruner)
    assert isinstance(build_pruner(make('pruner = "none"')), optuna.pruners.NopPruner)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "pruner_warmup = 2\nmax_epochs = 3",
            "pruner halving prunes nothing: with pruner_warmup = 2 it needs more than 3 epochs, and there are 3",
        ),
        ("pruner_warmup = 2\nmax_epochs = 4", None),
        ("max_epochs = 1", "with pruner_warmup = 0 it needs more than 1 epoch, and there is 1"),
        ("max_epochs = 2", None),
        ('pruner = "none"\nmax_epochs = 1', None),
        (
            'pruner = "patient"\npruner_patience = 8',
            "with pruner_patience = 8 it needs more than 10 epochs, and there are 10",
        ),
        (
            f'pruner = "wilcoxon"\n{KFOLD}'.replace("9", "4"),
            "with pruner_p = 0.1 it needs more than 4 folds, and there are 4",
        ),
        (f'pruner = "wilcoxon"\n{KFOLD}'.replace("9", "5"), None),
        ('pruner = "halving"\nreduction_factor = 2', None),
    ],
)
def test_a_pruner_that_can_prune_nothing_is_named(make: Make, text: str, said: str | None) -> None:
    found = notes(make(text))
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_each_pruner_of_a_study_file_is_one_of_its_own(make: Make) -> None:
    texts = {**{name: keys for name, (keys, _) in PRUNERS.items()}, "hyperband": "", "none": "", "wilcoxon": KFOLD}
    kinds = {type(build_pruner(make(f'pruner = "{name}"\n{keys}'))) for name, keys in texts.items()}
    assert len(kinds) == len(texts) == 8


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["wilcoxon", "patient", "hyperband"])
def test_a_search_with_each_pruner(mmsearch: Run, workspace: Path, pruner: str) -> None:
    study = TINY.replace("pruner_startup = 2", f'pruner = "{pruner}"\npruner_p = 0.3\npruner_patience = 0')
    if pruner == "wilcoxon":
        study = study.replace("[data]", '[data]\nvalidation = "kfold"\nfolds = 4')
    (workspace / "studies" / "digits.toml").write_text(study)
    done = mmsearch("launch", "--trials", 6, "--workers", 2)
    assert "6 of 6" in done.stdout
    logs = [path.read_text() for path in (workspace / "storage" / "digits" / "logs").iterdir()]
    assert not any("arning" in text for text in logs)
