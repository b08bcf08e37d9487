"""The audit of the pruner: who is drawn, what an audited trial is, and what is said of pruning in the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from conftest import TINY, Run
from optuna.trial import FrozenTrial, TrialState, create_trial

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.sources import load_dataset
from mmsearch.errors import StudyFileError
from mmsearch.results.audit_words import saved_in_words, wrong_in_words
from mmsearch.search.audit import AUDITED, SECONDS, Audit, audit_notes, audit_of, is_drawn, mark
from mmsearch.search.objective import Objective
from mmsearch.search.study import OpenStudy, create_study, open_study
from mmsearch.search.values import VIOLATED
from mmsearch.search.worker import Stop, run_trial

CPU = torch.device("cpu")
# The threshold ends whatever is not perfect, as soon as it may.
HARSH = TINY.replace("max_epochs = 3", 'max_epochs = 4\npruner = "threshold"\npruner_lower = 2.0')
FOLDS = HARSH.replace("[data]", '[data]\nvalidation = "kfold"\nfolds = 3').replace("max_epochs = 4", "max_epochs = 1")
Made = Callable[..., StudyConfig]


@pytest.fixture
def made(workspace: Path) -> Made:
    """The study file with another text, and keys such as `search__audit` laid over it."""

    def make(text: str = HARSH, **overrides: object) -> StudyConfig:
        path = workspace / "studies" / "digits.toml"
        path.write_text(text)
        return load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})

    return make


def train(config: StudyConfig, trials: int, **how: Any) -> OpenStudy:
    """A study in which so many trials were trained, in this process."""
    dataset = load_dataset(config)
    opened, _ = create_study(config, dataset.fingerprint)
    objective = Objective(config, dataset, CPU, **how)
    for _ in range(trials):
        run_trial(opened, objective, opened.optuna.ask(), lambda event, **fields: None, Stop())
    return opened


def test_each_attempt_draws_the_same_and_a_greater_share_draws_more(made: Made) -> None:
    def of(share: float, **given: Any) -> set[int]:
        config = made(search__audit=share, **given)
        return {n for n in range(2000) if is_drawn(config, n)}

    drawn = {share: of(share) for share in (0.05, 0.5)}
    assert drawn[0.05] == of(0.05)
    assert drawn[0.05] < drawn[0.5]
    assert 60 < len(drawn[0.05]) < 140  # 100 expected, with a standard deviation of 10
    assert 900 < len(drawn[0.5]) < 1100
    assert drawn[0.5] != of(0.5, study__seed=1)
    assert of(0.0) == set()
    assert len(of(1.0)) == 2000


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_from_0_to_1(made: Made, share: float) -> None:
    with pytest.raises(StudyFileError, match=r"\[search\] audit = "):
        made(search__audit=share)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HARSH, None),
        (HARSH.replace("threshold", "none"), 'audit = 0.05 audits nothing: pruner = "none" prunes nothing'),
        (
            TINY.replace("trials = 6", 'trials = 6\nmetrics = ["macro_f1", "parameters"]'),
            "audit = 0.05 audits nothing: trials with several metrics are not pruned",
        ),
    ],
)
def test_an_audit_of_nothing_is_named(made: Made, text: str, said: str | None) -> None:
    assert list(audit_notes(made(text, search__audit=0.05))) == ([] if said is None else [said])
    assert list(audit_notes(made(text))) == []


def test_with_1_nothing_is_pruned_and_the_pruner_is_not_asked_again(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int | None]] = []
    prune = optuna.pruners.ThresholdPruner.prune

    def counted(self: Any, study: optuna.Study, trial: FrozenTrial) -> bool:
        asked.append((trial.number, trial.last_step))
        return prune(self, study, trial)

    monkeypatch.setattr(optuna.pruners.ThresholdPruner, "prune", counted)
    with train(made(search__audit=1.0), 3) as opened:
        trials = opened.trials()
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
        assert [trial.user_attrs["epochs"] for trial in trials] == [4, 4, 4]
        assert asked == [(1, 2), (2, 2)]  # of the defaults never; first pruned after 2 epochs
        assert AUDITED not in trials[0].user_attrs
        for trial, best in zip(
            trials[1:], (trials[0].value, max(trials[0].values[0], trials[1].values[0])), strict=True
        ):
            value = trial.intermediate_values[2]
            assert trial.user_attrs[AUDITED] == {"step": 2, "value": value, "epochs": 2, "best": best}


def test_with_0_all_is_as_before(made: Made) -> None:
    with train(made(), 3) as opened:
        trials = opened.trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert not any(trial.user_attrs.get(AUDITED) for trial in trials)
    assert all(trial.user_attrs[SECONDS] > 0 for trial in trials)
    found = audit_of(trials, 1)
    assert (found.pruned, found.audited, found.better, found.among_best, found.cost) == (2, 0, 0, 0, 0.0)
    paces = [trial.user_attrs[SECONDS] / 2 for trial in trials[1:]]
    assert found.saved == pytest.approx(2 * sum(paces))  # the one that tells had 4 epochs, these 2


def test_folds_are_steps(made: Made) -> None:
    with train(made(FOLDS, search__audit=1.0), 2) as opened:
        trial = opened.trials()[1]
    assert trial.state == TrialState.COMPLETE
    assert trial.user_attrs["epochs"] == 3
    assert trial.user_attrs[AUDITED]["step"] == trial.user_attrs[AUDITED]["epochs"] == 2
    assert list(trial.intermediate_values) == [1, 2, 3]


@pytest.mark.parametrize(("kept", "last"), [(True, 2), (True, 3), (False, 3)])
def test_an_audited_trial_that_is_resumed_goes_on_as_audited(made: Made, kept: bool, last: int) -> None:
    """Also where nobody is drawn any more; without its checkpoint it begins anew, and is pruned."""
    config = made(search__audit=1.0)
    epochs: list[int] = []

    def on_epoch(number: int, fold: int, result: Any, value: float) -> None:
        epochs.append(result.epoch)

    with train(config, 1) as opened:
        dataset = load_dataset(config)
        stopped = Objective(config, dataset, CPU, on_epoch=on_epoch, should_stop=lambda: epochs[-1:] == [last])
        run_trial(opened, stopped, opened.optuna.ask(), lambda event, **fields: None, Stop())
        first = opened.trials()[1]
        assert (first.state, epochs, first.intermediate_values) == (TrialState.WAITING, [1, 2, 3][:last], {})
        assert first.user_attrs[AUDITED]["step"] == 2
        if not kept:
            config.paths.checkpoint(1).unlink()
        going_on = Objective(made(search__audit=0.0), dataset, CPU)
        run_trial(opened, going_on, opened.optuna.ask(), lambda event, **fields: None, Stop())
        second = opened.trials()[1]
    assert second.number == 1
    if kept:
        assert second.state == TrialState.COMPLETE
        assert second.user_attrs[AUDITED] == first.user_attrs[AUDITED]
        assert list(second.intermediate_values) == [1, 2, 3, 4]
    else:
        assert second.state == TrialState.PRUNED
        assert second.user_attrs[AUDITED] is None


def ended(state: TrialState, value: float, epochs: int, seconds: float, **attrs: Any) -> FrozenTrial:
    user_attrs = {"epochs": epochs, SECONDS: seconds, **attrs}
    return create_trial(state=state, value=value, user_attrs=user_attrs)


def audited(value: float, epochs: int, best: float | None, at: int = 2) -> FrozenTrial:
    return ended(
        TrialState.COMPLETE, value, epochs, 10.0 * epochs, **{AUDITED: {"step": at, "epochs": at, "best": best}}
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_what_trials_tell_of_pruning(sign: int) -> None:
    others = [ended(TrialState.COMPLETE, sign * (0.8 + 0.01 * n), 10, 100.0) for n in range(9)]
    trials = [
        *others,
        ended(TrialState.PRUNED, sign * 0.5, 4, 8.0),  # 2 s an epoch
        ended(TrialState.PRUNED, sign * 0.5, 0, 0.0, **{VIOLATED: "out of memory"}),  # not by the pruner
        create_trial(state=TrialState.FAIL, user_attrs={AUDITED: {"step": 2, "epochs": 2, "best": None}}),
    ]
    assert audit_of(trials, sign) == Audit(1, 0, 0, 0, 0, 6 * 2.0, 0.0)
    some = [audited(sign * 0.79, 6, sign * 0.8), audited(sign * 0.9, 6, sign * 0.88)]
    # 6 missing epochs of nine trials and 2 of two; with 11 complete trials the best tenth are two
    found = audit_of([*trials, *some], sign)
    assert found.saved == pytest.approx((9 * 6 + 2 * 2) / 11 * 2.0)
    assert replace(found, saved=None) == Audit(1, 2, 2, 1, 1, None, 80.0)
    many = [*some, *[audited(sign * 0.7, 7, None)] * 3]  # before any was complete
    found = audit_of([*trials, *many], sign)
    assert found.saved == pytest.approx((2 * 2 + 3 * 3) / 5 * 2.0)
    assert replace(found, saved=None) == Audit(1, 5, 2, 1, 1, None, 80.0 + 150.0)


def test_a_trial_that_violates_a_constraint_was_no_loss() -> None:
    good = ended(TrialState.COMPLETE, 0.8, 10, 100.0)
    best = create_trial(
        value=0.9,
        user_attrs={"epochs": 10, SECONDS: 100.0, AUDITED: {"step": 2, "epochs": 2, "best": 0.8}},
        system_attrs={"constraints:accuracy >= 1": 0.1},
    )
    best.constraints["accuracy >= 1"] = 0.1
    found = audit_of([good, best], 1)
    assert (found.audited, found.better, found.among_best) == (1, 0, 0)
    assert mark(2, 0.5, 2, [good, best], 1)["best"] == 0.8


def test_pruning_in_words() -> None:
    assert saved_in_words(Audit(0, 0, 0, 0, 0, None, 0.0)) == "ended no trial"
    assert saved_in_words(Audit(1, 0, 0, 0, 0, None, 0.0)) == (
        "ended 1 trial early; how much that saved only a complete trial can tell"
    )
    found = Audit(61, 4, 4, 0, 1, 7500.0, 300.0)
    assert saved_in_words(found) == "ended 61 trials early, which saved about 2 h 5 min of training; audits took 5 min"
    assert wrong_in_words(found) == (
        "of 4 trials that would have been pruned but trained to the end, 0 (95 % interval 0 to 49 %) ended better than "
        "the best trial there was at that moment, and 1 (95 % interval 5 to 70 %) ended among the best tenth of all "
        "complete ones"
    )
    assert wrong_in_words(Audit(61, 4, 3, 1, 1, 7500.0, 300.0)).split(", ")[1] == (
        "1 (95 % interval 6 to 79 %) of the 3 with complete trials before ended better than the best trial there was "
        "at that moment"
    )
    assert "none had a complete trial before it" in wrong_in_words(Audit(61, 4, 0, 0, 1, 7500.0, 300.0))
    assert wrong_in_words(Audit(61, 0, 0, 0, 0, 7500.0, 0.0)) == "no trial was audited"


def test_a_search_with_audits(mmsearch: Run, made: Made) -> None:
    """First of all, then of none: the share may change as the study goes on."""
    config = made()
    first = mmsearch("launch", "--trials", 3, "--workers", 1, "--audit", "1").stdout
    assert "(3 complete, 0 pruned)" in first
    assert "pruning   ended no trial; audits took" in first
    assert "audit     of 2 trials that would have been pruned but trained to the end" in first
    done = mmsearch("launch", "--trials", 5, "--workers", 1)
    assert "(3 complete, 2 pruned)" in done.stdout
    assert "pruning   ended 2 trials early, which saved about" in done.stdout
    status = mmsearch("status").stdout
    for line in ("pruning ", "audit "):
        (said,) = [text for text in done.stdout.splitlines() if text.startswith(line)]
        assert said in status
    with open_study(config) as opened:
        assert [bool(trial.user_attrs.get(AUDITED)) for trial in opened.trials()] == [False, True, True, False, False]
    mmsearch("report", "--no-retrain")
    page = (config.paths.report / "report.md").read_text()
    assert "Pruning ended 2 trials early, which saved about" in page
    assert "How often it is wrong: of 2 trials that would have been pruned" in page
