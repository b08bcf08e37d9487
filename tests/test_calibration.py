"""How sure a model may be: the temperature, what a threshold keeps, and that both are fitted on unseen rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.dataset import Dataset, Index, Pixels, Shapes, Split, Trained
from mmsearch.data.sources import load_dataset
from mmsearch.errors import UsageError
from mmsearch.models.factory import build_model
from mmsearch.results.bundle import Bundle, Member
from mmsearch.results.calibration import (
    BOUNDS,
    Calibration,
    Threshold,
    Unseen,
    abstention_curve,
    fit_temperature,
    unseen_logits,
)
from mmsearch.results.plans import PlannedMember
from mmsearch.results.scores import (
    calibration_error,
    certainty,
    few_mistakes,
    kept,
    little_gain,
    log_loss,
    score,
    softened,
)
from mmsearch.results.statistics import wilson


def drawn(rows: int, classes: int, seed: int) -> tuple[Tensor, Index]:
    """Logits, and labels that are drawn from the probabilities that these logits stand for."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 2
    noise = rng.gumbel(size=logits.shape)  # the greatest of logits and such noise is a draw from their softmax
    return torch.from_numpy(logits).float(), (logits + noise).argmax(1)


def unseen(logits: Tensor, labels: Index) -> Unseen:
    return Unseen(logits, labels, "out of fold", 1.5)


@settings(max_examples=15, deadline=None)
@given(temperature=st.floats(0.3, 5), classes=st.integers(2, 8), seed=st.integers(0, 1000))
def test_the_temperature_that_made_a_model_too_sure_is_found(temperature: float, classes: int, seed: int) -> None:
    logits, labels = drawn(8000, classes, seed)
    found = fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.12)
    for other in (found * 0.97, found * 1.03):
        assert log_loss(logits * temperature, labels, found) < log_loss(logits * temperature, labels, other)


def test_a_model_that_is_too_sure_is_better_on_rows_that_nobody_fitted_on() -> None:
    logits, labels = drawn(4000, 10, 3)
    logits = logits * 3
    temperature = fit_temperature(logits[:2000], labels[:2000])
    new = logits[2000:], labels[2000:]
    assert log_loss(*new, temperature) < log_loss(*new) - 0.2
    assert calibration_error(*new, temperature) < calibration_error(*new) / 3
    assert (softened(new[0], temperature).argmax(1) == softened(new[0], 1).argmax(1)).all()


def test_the_calibration_error_of_a_case_by_hand() -> None:
    """Of ten rows at 0.8, six are right, and of ten at 0.6, nine: off by 0.2 and by 0.3, half of the rows each."""
    chances = torch.tensor([0.8] * 10 + [0.6] * 10, dtype=torch.float64)
    logits = torch.stack([chances, 1 - chances], 1).log()
    labels = np.array([0] * 6 + [1] * 4 + [0] * 9 + [1])
    assert calibration_error(logits, labels) == pytest.approx(0.25, abs=1e-6)


def test_without_a_wrong_row_a_model_is_not_made_surer() -> None:
    logits, _ = drawn(300, 4, 0)
    right = logits.argmax(1).numpy()
    assert fit_temperature(logits, right) == 1.0
    assert Calibration.fit(unseen(logits, right), None).describe()["remarks"] == [
        "none of the 300 unseen rows is predicted wrong, so that the model is not made surer"
    ]


def test_a_temperature_keeps_to_its_bounds() -> None:
    logits, _ = drawn(300, 4, 0)
    wrong = (logits.argmax(1).numpy() + 1) % 4
    assert fit_temperature(logits * 100, wrong) == pytest.approx(BOUNDS[1])
    words = Calibration.fit(unseen(logits[:50] * 100, wrong[:50]), None).describe()["remarks"]
    assert words == [
        "50 unseen rows are few for a calibration: it may be far off",
        "the temperature ended at its bound, 10",
    ]


@pytest.mark.parametrize(
    ("asked", "kind", "value"),
    [
        ("0.9", "confidence", 0.9),
        (0.25, "confidence", 0.25),
        ("1", "confidence", 1.0),
        ("accuracy=0.999", "accuracy", 0.999),
        ("coverage=.95", "coverage", 0.95),
    ],
)
def test_a_threshold_is_asked_for_in_three_forms(asked: str | float, kind: str, value: float) -> None:
    found = Threshold.parse(asked)
    assert (found.kind, found.value, found.asked) == (kind, value, str(asked))


@pytest.mark.parametrize(
    "asked", ["", "much", "1.5", "-0.1", "nan", "accuracy=2", "accuracy=", "recall=0.9", "=0.9", 7]
)
def test_any_other_threshold_is_one_sentence(asked: str | float) -> None:
    with pytest.raises(UsageError, match=r"accuracy=0\.999 or coverage=0\.95") as caught:
        Threshold.parse(asked)
    assert f'"{asked}"' in str(caught.value)


rows = st.lists(st.tuples(st.sampled_from([0.2, 0.25, 0.5, 0.75, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40)
shares = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0])


@given(rows=rows, share=shares)
def test_the_threshold_for_an_accuracy_is_the_smallest_that_reaches_it(
    rows: list[tuple[float, bool]], share: float
) -> None:
    confidence = np.array([row[0] for row in rows], np.float32)
    correct = np.array([row[1] for row in rows])
    found = Threshold("accuracy", share, "").of(confidence, correct)
    reaching = [
        kept(confidence, correct, level)[0]
        for level in (0.0, *confidence)
        if (kept(confidence, correct, level)[1] or 0.0) >= share
    ]
    assert (found is None) == (not reaching)
    if found is not None:
        assert kept(confidence, correct, found)[0] == max(reaching)
        assert kept(confidence, correct, found - 1e-6)[0] == max(reaching)  # not on the edge of a row's confidence


@given(rows=rows, share=shares)
def test_the_threshold_for_a_coverage_is_the_greatest_that_keeps_it(
    rows: list[tuple[float, bool]], share: float
) -> None:
    confidence = np.array([row[0] for row in rows], np.float32)
    correct = np.array([row[1] for row in rows])
    found = Threshold("coverage", share, "").of(confidence, correct)
    assert found is not None
    coverages = [kept(confidence, correct, level)[0] for level in (0.0, *confidence)]
    assert kept(confidence, correct, found)[0] == min(held for held in coverages if held >= share)


def test_a_threshold_parts_confidences_that_hardly_differ() -> None:
    upper = np.float32(0.9)
    lower = np.nextafter(upper, np.float32(0))
    confidence, correct = np.array([upper, lower]), np.array([True, False])
    found = Threshold("accuracy", 1.0, "").of(confidence, correct)
    assert found is not None
    assert kept(confidence, correct, found) == (0.5, 1.0)


def test_what_no_threshold_brings_is_said() -> None:
    logits, labels = drawn(400, 3, 1)
    surest = softened(logits, 1).max(1).argmax()
    labels[surest] = (int(logits[surest].argmax()) + 1) % 3
    held = Calibration.fit(unseen(logits, labels), Threshold.parse("accuracy=1"))
    assert held.abstain_below is None
    said = held.describe()
    assert (said["abstain_below"], said["asked"], said["coverage"]) == (None, "accuracy=1", 1.0)
    assert any("no threshold brings an accuracy of 1 on the 400 unseen rows" in remark for remark in said["remarks"])


@given(rows=rows)
def test_the_curve_says_what_each_threshold_keeps(rows: list[tuple[float, bool]]) -> None:
    confidence = np.array([row[0] for row in rows], np.float32)
    correct = np.array([row[1] for row in rows])
    curve = abstention_curve(confidence, correct)
    assert (curve[0]["threshold"], curve[0]["coverage"]) == (0.0, 1.0)
    thresholds = [point["threshold"] for point in curve]
    assert thresholds == sorted(set(thresholds))
    for point in curve:
        assert kept(confidence, correct, point["threshold"]) == pytest.approx((point["coverage"], point["accuracy"]))


def test_a_calibration_describes_its_unseen_rows() -> None:
    logits, labels = drawn(2000, 5, 2)
    held = Calibration.fit(unseen(logits * 2, labels), Threshold.parse("coverage=0.8"))
    said = held.describe()
    assert (said["rows"], said["fitted_on"], said["seconds"], said["remarks"]) == (2000, "out of fold", 1.5, [])
    assert said["log_loss_after"] < said["log_loss_before"]
    assert said["ece_after"] < said["ece_before"]
    confidence, correct = certainty(softened(logits * 2, held.temperature), labels)
    above = confidence >= said["abstain_below"]
    assert said["coverage"] == above.mean() == pytest.approx(0.8, abs=1e-3)
    assert said["accuracy_kept"] == correct[above].mean() > correct.mean()


def config_of(folder: Path, validation: str) -> StudyConfig:
    (folder / "digits.toml").write_text(TINY.replace("rows = 400", f"rows = 200\n{validation}"))
    return load_config(folder / "digits.toml")


@pytest.mark.parametrize(
    ("validation", "models", "origin"),
    [
        ("fraction = 0.25", 1, "validation rows, by a model trained without them"),
        ('validation = "three_way"', 1, "validation rows, by a model trained without them"),
        ('validation = "kfold"\nfolds = 4', 4, "out of fold"),
    ],
)
def test_whoever_is_heard_has_not_seen_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validation: str, models: int, origin: str
) -> None:
    config = config_of(tmp_path, validation)
    dataset: Dataset = load_dataset(config)
    hyperparameters = config.configurations[0]
    model = build_model(hyperparameters, dataset.shapes)
    planned = (PlannedMember(None, hyperparameters, 1, 0),) * 2  # type: ignore[arg-type]  # no trial is looked at
    seen: list[set[int]] = []
    asked: list[set[int]] = []

    def train(rows: Split, member: PlannedMember) -> Member:
        seen.append(set(rows.rows.tolist()))
        return Member(model, member.hyperparameters)

    def logits(bundle: Bundle, split: Split, device: torch.device, *, cache: Path) -> Tensor:
        assert len(bundle.members) == 2
        asked.append(set(split.rows.tolist()))
        return torch.from_numpy(split.labels)[:, None] * torch.ones(10)

    monkeypatch.setattr(Bundle, "logits", logits)
    found = unseen_logits(config, dataset, planned, torch.device("cpu"), train)
    assert (len(seen), len(asked), found.origin) == (2 * models, models, origin)
    groups, all_rows = dataset.groups, set(dataset.train.rows.tolist())
    for position, held_out in enumerate(asked):
        for trained in seen[2 * position : 2 * position + 2]:
            assert trained | held_out == all_rows
            assert not set(groups[list(trained)]) & set(groups[list(held_out)])  # nor an image or recording of them
    if models > 1:
        assert set.union(*asked) == all_rows
    assert len(found.labels) == sum(map(len, asked))
    assert (found.logits[:, 0].numpy() == found.labels).all()


@pytest.mark.parametrize(("mistakes", "said"), [(0, "no row was wrong"), (1, "rests on 1 mistake"), (5, None)])
def test_a_score_without_mistakes_is_no_certainty(mistakes: int, said: str | None) -> None:
    labels = np.arange(1000) % 3
    logits = torch.nn.functional.one_hot(torch.from_numpy(labels), 3).float() * 9
    logits[:mistakes] = logits[:mistakes].roll(1, dims=1)
    trained = Trained(Shapes((1, 1, 1), (1, 1), 3), ("a", "b", "c"), Pixels(0, 1, 1.0))
    found = score(Bundle((), trained, Path()), logits, labels)
    assert (found["mistakes"], found["accuracy"]) == (mistakes, 1 - mistakes / 1000)
    low, high = found["accuracy_interval"]
    assert (low, high) == wilson(1000 - mistakes, 1000)
    assert 0.003 < high - low < 0.01
    few = few_mistakes(found["mistakes"], found["rows"])
    assert few is None if said is None else said in str(few)
    assert ("up to 0.30% may be" in str(few)) == (mistakes == 0)


def test_a_gain_that_no_row_shows_is_no_certainty() -> None:
    assert "of new rows up to 1.00% may differ" in str(little_gain(0, 300))
    assert "up to 100.00%" in str(little_gain(0, 2))
    assert "it rests on 1 row" in str(little_gain(1, 300))
    assert little_gain(5, 300) is None
