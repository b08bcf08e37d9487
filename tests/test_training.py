"""The training loop: reproducible, stopped by patience, scored as scikit-learn scores."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.data.dataset import Dataset, Split, statistics
from mmsearch.data.sources import read_dataset
from mmsearch.data.splits import holdout
from mmsearch.errors import LossNotFinite
from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.models.factory import MultimodalClassifier, build_model
from mmsearch.spaces import Fixed, Space
from mmsearch.training.batches import _RESIDENT, Batches, resident
from mmsearch.training.fit import EpochResult, Scores, evaluate, fit, predict_logits, seed_everything
from mmsearch.training.latency import latency_ms
from mmsearch.training.losses import LOSSES, class_weights, cross_entropy, focal, weight_matrices
from mmsearch.training.metrics import Confusion, accuracy, macro_f1
from mmsearch.training.optimisers import OPTIMISERS, SCHEDULES, build_optimiser, build_schedule
from mmsearch.training.precision import Computed, autocast_for

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return read_dataset("demo", rows=500)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configuration(**given: Value) -> Hyperparameters:
    small: dict[str, Value] = {"image__encoder": "mlp", "audio__encoder": "mlp", "batch_size": 32}
    named = {name.replace("__", "."): Fixed(value) for name, value in {**small, **given}.items()}
    return Space(named).configuration({})


def train(
    dataset: Dataset, hyperparameters: Hyperparameters, seed: int = 0, **options: int | None
) -> tuple[MultimodalClassifier, list[EpochResult]]:
    fitted, valid = holdout(dataset, 0.2, 0)
    seed_everything(seed)
    model = build_model(hyperparameters, dataset.shapes, statistics(fitted))
    settings = {"epochs": 3, "patience": None, **options}
    return model, list(fit(model, fitted, valid, hyperparameters, seed=seed, device=CPU, **settings))  # type: ignore[arg-type]


def test_same_seed_same_numbers(dataset: Dataset) -> None:
    hyperparameters = configuration(image__encoder="cnn", audio__encoder="conv1d", image__cnn__dropout=0.2)

    def numbers(seed: int) -> list[tuple[object, object]]:
        return [(result.train, result.valid) for result in train(dataset, hyperparameters, seed)[1]]

    assert numbers(3) == numbers(3)
    assert numbers(3) != numbers(4)


@pytest.mark.parametrize("optimiser", TABLE["optimizer.name"].options)
@pytest.mark.parametrize("schedule", TABLE["schedule.name"].options)
def test_every_optimiser_and_schedule_learns(dataset: Dataset, optimiser: Value, schedule: Value) -> None:
    lr = 0.05 if optimiser == "sgd" else 3e-3
    _, results = train(
        dataset, configuration(optimizer__name=optimiser, schedule__name=schedule, optimizer__lr=lr), epochs=4
    )
    assert results[-1].train.loss < results[0].train.loss
    assert results[-1].valid is not None
    assert results[-1].valid.macro_f1 > 0.5  # chance is 0.1


def test_validation_is_measured_as_predictions_are(dataset: Dataset) -> None:
    model, results = train(dataset, configuration())
    _, valid = holdout(dataset, 0.2, 0)
    logits = predict_logits(model, valid, CPU)
    predicted = logits.argmax(1).numpy()
    last = results[-1].valid
    assert last is not None
    assert last.accuracy == pytest.approx(accuracy_score(valid.labels, predicted))
    assert last.macro_f1 == pytest.approx(f1_score(valid.labels, predicted, average="macro"))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(valid.labels))
    assert last.loss == pytest.approx(float(loss), rel=1e-5)


def test_patience_counts_epochs_without_a_lower_validation_loss(dataset: Dataset) -> None:
    _, results = train(dataset, configuration(optimizer__lr=0.02, schedule__name="constant"), epochs=60, patience=2)
    losses = [result.valid.loss for result in results if result.valid]
    assert len(losses) < 60
    best = losses.index(min(losses))
    assert len(losses) - 1 - best == 2


def test_the_horizon_is_kept_by_a_shorter_run(dataset: Dataset) -> None:
    long = train(dataset, configuration(), epochs=6)[1]
    short = train(dataset, configuration(), epochs=2, horizon=6)[1]
    assert [result.train for result in short] == [result.train for result in long[:2]]
    assert short[-1].lr == long[1].lr


def test_without_validation_rows_there_are_no_validation_scores(dataset: Dataset) -> None:
    hyperparameters = configuration()
    model = build_model(hyperparameters, dataset.shapes, statistics(dataset.train))
    results = list(fit(model, dataset.train, None, hyperparameters, epochs=1, seed=0, device=CPU))
    assert [result.valid for result in results] == [None]


def test_a_loss_that_is_not_finite_is_an_error_with_the_reason(dataset: Dataset) -> None:
    with pytest.raises(LossNotFinite, match=r"epoch \d is (nan|inf)"):
        train(dataset, configuration(optimizer__name="sgd", optimizer__lr=10.0, schedule__name="constant"), epochs=5)


def loss_inputs(classes: int = 5, rows: int = 12) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, class indices, probabilities and class weights."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    label = torch.randint(classes, (rows,), generator=generator)
    soft = torch.rand(rows, classes, generator=generator, dtype=torch.float64)
    return logits, label, soft / soft.sum(1, keepdim=True), torch.rand(classes, generator=generator).double() + 0.1


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_without_gamma_is_cross_entropy(weighted: bool, smoothing: float) -> None:
    logits, label, soft, weight = loss_inputs()
    given = (weight if weighted else None, smoothing)
    one_hot = functional.one_hot(label, 5).double()
    expected = functional.cross_entropy(logits, label, given[0], label_smoothing=smoothing)
    for function in (cross_entropy, lambda *arguments: focal(*arguments, gamma=0.0)):
        assert torch.isclose(function(logits, label, *given), expected, rtol=1e-12)
        assert torch.isclose(function(logits, one_hot, *given), expected, rtol=1e-12)
    assert torch.isclose(focal(logits, soft, *given, gamma=0.0), cross_entropy(logits, soft, *given), rtol=1e-12)


def test_mixed_targets_lie_between_their_parts() -> None:
    logits, label, _, _ = loss_inputs()
    other = label.roll(1)
    mixed = 0.7 * functional.one_hot(label, 5).double() + 0.3 * functional.one_hot(other, 5)
    expected = 0.7 * functional.cross_entropy(logits, label) + 0.3 * functional.cross_entropy(logits, other)
    assert torch.isclose(cross_entropy(logits, mixed), expected)


@given(gamma=st.floats(0.0, 10.0), row=st.integers(0, 11))
def test_focal_loss_is_the_papers(gamma: float, row: int) -> None:
    logits, label, _, _ = loss_inputs()
    p = float(logits[row].softmax(0)[label[row]])
    expected = -((1 - p) ** gamma) * math.log(p)
    assert float(focal(logits[[row]], label[[row]], gamma=gamma)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
def test_focal_loss_has_a_slope_where_a_class_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [1e4, 0.0]], requires_grad=True)
    loss = focal(logits, torch.tensor([0, 0, 0]), None, 0.1, gamma=gamma)
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert slope.isfinite().all()
    assert slope[1, 0] < 0  # the row that is wrong


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_every_loss_learns(dataset: Dataset, name: str, mixup: float) -> None:
    given: dict[str, Value] = {"loss__class_weights": "balanced", "loss__label_smoothing": 0.1}
    hyperparameters = configuration(loss__name=name, augment__mixup=mixup, optimizer__lr=3e-3, **given)
    _, results = train(dataset, hyperparameters, epochs=4)
    assert results[-1].train.loss < results[0].train.loss
    assert results[-1].valid is not None
    assert results[-1].valid.macro_f1 > 0.5


def test_weight_matrices_are_neither_biases_nor_norms_nor_positions(dataset: Dataset) -> None:
    hyperparameters = configuration(
        image__encoder="vit", audio__encoder="rnn", fusion__name="attention", head__norm="batch"
    )
    model = build_model(hyperparameters, dataset.shapes)
    kept = {id(parameter) for parameter in weight_matrices(model)}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in kept}
    assert {"image_encoder.patches.weight", "audio_encoder.cells.weight_hh_l0", "head.1.weight"} <= names
    assert not [name for name in names if "bias" in name or "position" in name]
    assert min(parameter.dim() for parameter in weight_matrices(model)) == 2


def test_an_l1_penalty_makes_weights_small_and_stays_out_of_the_scores(dataset: Dataset) -> None:
    def size(model: MultimodalClassifier) -> float:
        return sum(float(weight.detach().abs().sum()) for weight in weight_matrices(model))

    without, _ = train(dataset, configuration())
    model, results = train(dataset, configuration(loss__l1=3e-3))
    assert size(model) < 0.5 * size(without)
    assert results[0].train.loss < 5  # the penalty alone is over 50


def test_clipping_bounds_a_step(dataset: Dataset) -> None:
    def step(clip: float) -> float:
        hyperparameters = configuration(
            optimizer__name="sgd",
            optimizer__sgd__momentum=0.0,
            optimizer__lr=0.5,
            optimizer__clip=clip,
            schedule__name="constant",
            batch_size=500,
        )
        seed_everything(0)
        before = build_model(hyperparameters, dataset.shapes, statistics(holdout(dataset, 0.2, 0)[0])).parameters()
        after = train(dataset, hyperparameters, epochs=1)[0].parameters()
        return math.sqrt(sum(float((b - a).detach().square().sum()) for a, b in zip(before, after, strict=True)))

    free = step(0.0)
    assert step(0.01) == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert step(1e4) == pytest.approx(free)
    assert free > 0.5 * 0.01


def trajectory(dataset: Dataset, decay: float, epochs: int, stop: int | None = None) -> list[dict[str, Tensor]]:
    """The model before training, and as it is seen after each epoch of one step, and once no more is asked for."""
    hyperparameters = configuration(image__encoder="cnn", ema__decay=decay, batch_size=500, optimizer__lr=0.01)
    fitted, valid = holdout(dataset, 0.2, 0)
    seed_everything(0)
    model = build_model(hyperparameters, dataset.shapes, statistics(fitted))

    def seen() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.state_dict().items()}

    found = [seen()]
    for result in fit(model, fitted, valid, hyperparameters, epochs=epochs, seed=0, device=CPU):
        found.append(seen())
        logits, labels = predict_logits(model, valid, CPU), torch.from_numpy(valid.labels)
        assert result.valid is not None
        assert result.valid.loss == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)
        if result.epoch == stop:
            break
    return [*found, seen()]


def test_averaged_weights_are_seen_and_the_trained_ones_go_on(dataset: Dataset) -> None:
    trained, averaged = trajectory(dataset, 0.0, 5), trajectory(dataset, 0.25, 5)
    assert "image_encoder.blocks.1.running_mean" in trained[0]
    expected = {name: value.double() for name, value in trained[0].items()}
    for step in range(5):
        share = min(0.25, (1 + step) / (10 + step))
        for name, value in trained[step + 1].items():
            expected[name] = share * expected[name] + (1 - share) * value
            if value.is_floating_point():
                assert torch.allclose(averaged[step + 1][name].double(), expected[name], rtol=1e-4, atol=1e-6), name
    assert all(torch.equal(value, averaged[-2][name]) for name, value in averaged[-1].items())
    assert any(not torch.equal(value, trained[-1][name]) for name, value in averaged[-1].items())
    stopped = trajectory(dataset, 0.25, 5, stop=2)[-1]
    assert all(torch.equal(value, averaged[2][name]) for name, value in stopped.items())


def test_a_missing_modality_is_the_mean_row_of_training(dataset: Dataset) -> None:
    model, _ = train(dataset, configuration())
    fitted, valid = holdout(dataset, 0.2, 0)
    found = statistics(fitted)
    stand_ins = {
        "image": np.broadcast_to(found.mean_image / valid.image_scale, valid.image.shape),
        "audio": np.broadcast_to(found.mean_audio, valid.audio.shape),
    }
    both = predict_logits(model, valid, CPU)
    for name, rows in stand_ins.items():
        without = predict_logits(model, valid, CPU, without=name)  # type: ignore[arg-type]
        assert torch.allclose(without, predict_logits(model, replace(valid, **{name: rows}), CPU), atol=1e-4)  # type: ignore[arg-type]
        assert not torch.allclose(without, both, atol=1e-2)


def test_latency_is_measured_and_leaves_the_model_and_chance_as_they_are(dataset: Dataset) -> None:
    model = build_model(configuration(image__encoder="cnn"), dataset.shapes).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    milliseconds = latency_ms(model, dataset.shapes, CPU)
    assert math.isfinite(milliseconds)
    assert milliseconds > 0
    assert len(modes) >= 10
    assert not any(modes)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weighted_loss_evens_out_the_classes() -> None:
    weights = class_weights(torch.tensor([0, 0, 0, 1, 3, 3]), 4)
    assert weights.tolist() == pytest.approx([6 / 9, 2.0, 0.0, 1.0])


def test_a_rare_class_counts_more_in_the_weighted_loss(dataset: Dataset) -> None:
    labels = dataset.train.labels
    rows = np.concatenate([np.flatnonzero(labels == 3)[:5], np.flatnonzero(labels != 3)])
    split, test = dataset.train.only(dataset.train.rows[rows]), dataset.test
    assert test is not None
    three = test.only(test.rows[test.labels == 3])
    chance = {}
    for name in ("none", "balanced"):
        hyperparameters = configuration(loss__class_weights=name)
        seed_everything(0)
        model = build_model(hyperparameters, dataset.shapes, statistics(split))
        list(fit(model, split, None, hyperparameters, epochs=3, seed=0, device=CPU))
        chance[name] = float(predict_logits(model, three, CPU).softmax(1)[:, 3].mean())
    assert chance["balanced"] > 1.5 * chance["none"], chance


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_rise_to_one_and_fall(name: str) -> None:
    arguments = {"constant": {}, "cosine": {"warmup": 0.2}, "onecycle": {"warmup": 0.2}}[name]
    rates = [SCHEDULES[name](progress / 1000, **arguments) for progress in range(1001)]
    assert max(rates) == pytest.approx(1)
    if name != "constant":
        assert rates[0] < 0.05
        assert rates.index(max(rates)) == 200
        assert rates[-1] == pytest.approx(0, abs=1e-4)


def test_onecycle_is_torchs() -> None:
    hyperparameters = configuration(schedule__name="onecycle", optimizer__lr=0.1)
    ours = build_optimiser([nn.Parameter(torch.zeros(1))], hyperparameters)
    schedule = build_schedule(ours, hyperparameters, 1000)
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    reference = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.1, total_steps=1000, pct_start=0.3)
    for _ in range(998):
        ours.step()
        schedule.step()
        theirs.step()
        reference.step()
        assert schedule.get_last_lr()[0] == pytest.approx(reference.get_last_lr()[0], abs=1e-3)


@given(
    st.integers(2, 6).flatmap(
        lambda k: st.tuples(
            st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k - 1)), min_size=1, max_size=40)
        )
    )
)
def test_scores_are_scikit_learns(drawn: tuple[int, list[tuple[int, int]]]) -> None:
    classes, pairs = drawn
    truth, predicted = np.array(pairs).T
    seen = Confusion(classes, CPU)
    logits = nn.functional.one_hot(torch.from_numpy(predicted), classes).float()
    seen.add(logits, torch.from_numpy(truth), torch.tensor(0.5))
    matrix = seen.matrix()
    assert (matrix == confusion_matrix(truth, predicted, labels=range(classes))).all()
    assert math.isclose(macro_f1(matrix), f1_score(truth, predicted, average="macro", zero_division=0))
    assert math.isclose(accuracy(matrix), accuracy_score(truth, predicted))
    assert seen.loss() == 0.5


@given(rows=st.integers(1, 70), size=st.integers(2, 40))
def test_a_shuffled_epoch_holds_each_row_once(rows: int, size: int) -> None:
    label = np.arange(100)
    split = Split(np.zeros((100, 1, 2, 2)), np.zeros((100, 1, 1)), label, np.arange(100)[:rows], 1.0)
    batches = Batches(split, CPU)
    found = [batch.label for batch in batches.shuffled(size, torch.Generator().manual_seed(0))]
    seen = torch.cat([part for part in found if part is not None]).tolist()
    assert len(found) == batches.steps(size)
    assert len(set(seen)) == len(seen) >= rows - 1  # a last batch of one row is left out
    assert len(seen) == rows or rows % size == 1


def test_pixels_are_scaled_whatever_their_type() -> None:
    for dtype, scale in ((np.uint8, 1 / 255), (np.float64, 1.0), (np.bool_, 1.0), (np.float16, 1 / 255)):
        image = np.ones((3, 1, 2, 2)).astype(dtype)
        split = Split(image, np.ones((3, 2, 2), dtype=np.int32), None, np.arange(3), scale)
        batch = next(Batches(split, CPU).in_order())
        assert batch.image.dtype == batch.audio.dtype == torch.float32
        assert torch.allclose(batch.image, torch.tensor(scale))


def test_an_array_lies_once_on_a_device_as_long_as_it_is_there() -> None:
    meta, array = torch.device("meta"), np.zeros((4, 2))
    held = resident(array, meta)
    assert resident(array, meta) is held
    assert resident(np.zeros((4, 2)), meta) is not held
    assert resident(array, CPU).data_ptr() == array.ctypes.data
    before = len(_RESIDENT)
    del array
    assert len(_RESIDENT) == before - 1


def test_evaluation_leaves_the_model_as_it_is(dataset: Dataset) -> None:
    hyperparameters = configuration(image__encoder="cnn")
    model = build_model(hyperparameters, dataset.shapes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, Batches(dataset.train, CPU))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_lower_precision_trains_as_well_validates_itself_and_keeps_weights_in_float32(dataset: Dataset) -> None:
    hyperparameters = configuration(image__encoder="cnn", audio__encoder="conv1d", optimizer__lr=3e-3)
    fitted, valid = holdout(dataset, 0.2, 0)
    scores = {}
    for precision in get_args(Computed):
        seed_everything(0)
        model = build_model(hyperparameters, dataset.shapes, statistics(fitted))
        results = list(fit(model, fitted, valid, hyperparameters, epochs=4, seed=0, device=CPU, precision=precision))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert results[-1].valid is not None
        scores[precision] = results[-1].valid
        within = autocast_for(precision, hyperparameters, CPU)
        assert Scores.of(evaluate(model, Batches(valid, CPU), within)) == results[-1].valid
        exact = Scores.of(evaluate(model, Batches(valid, CPU)))
        assert (exact == results[-1].valid) == (precision == "float32")
        assert exact.loss == pytest.approx(results[-1].valid.loss, rel=0.01)
    assert scores["float32"] != scores["bfloat16"]
    assert scores["bfloat16"].macro_f1 == pytest.approx(scores["float32"].macro_f1, abs=0.06)
    assert scores["bfloat16"].macro_f1 > 0.8


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_an_optimiser_is_torchs(name: str) -> None:
    """The same weights, with weight decay and momentum, through a change of the rate and a state that is reloaded."""
    found = []
    for kind in (
        OPTIMISERS[name],
        {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name],
    ):
        torch.manual_seed(0)
        layer = torch.nn.Linear(5, 3)
        options: dict[str, float] = {"weight_decay": 0.1} | ({"momentum": 0.9} if name == "sgd" else {})
        optimiser = kind(layer.parameters(), lr=0.1, fused=True, **options)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 / (1 + step))
        for step in range(6):
            optimiser.zero_grad()
            layer(torch.randn(7, 5)).square().sum().backward()
            optimiser.step()
            schedule.step()
            if step == 3:
                state = optimiser.state_dict()
                optimiser = kind(layer.parameters(), lr=9.0, fused=True, **options)
                optimiser.load_state_dict(state)
        found.append(torch.cat([parameter.detach().flatten() for parameter in layer.parameters()]))
    assert torch.equal(*found)


def test_training_does_not_load_torchs_compiler() -> None:
    """It costs a worker nearly a second and 70 MB."""
    script = """
import sys, torch
from mmsearch.training.optimisers import OPTIMISERS
layer = torch.nn.Linear(2, 2)
for kind in OPTIMISERS.values():
    optimiser = kind(layer.parameters(), lr=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    optimiser.zero_grad()
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    schedule.step()
    optimiser.load_state_dict(optimiser.state_dict())
print("torch._dynamo" in sys.modules)
"""
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "False\n"
    )
