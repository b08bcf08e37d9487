"""Checkpoints: a training that goes on from one gives the numbers of an undisturbed one, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsearch.data.dataset import Dataset, statistics
from mmsearch.data.sources import read_dataset
from mmsearch.data.splits import holdout
from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.models.factory import build_model
from mmsearch.paths import remove
from mmsearch.spaces import Fixed, Space
from mmsearch.training.checkpoints import DamagedCheckpoint, load_checkpoint, save_checkpoint
from mmsearch.training.fit import EpochResult, Training, fit, seed_everything

CPU = torch.device("cpu")
EPOCHS = 4

SMALL: dict[str, Value] = {
    "batch_size": 32,
    "image.encoder": "cnn",
    "image.cnn.depth": 2,
    "image.cnn.filters_1": 4,
    "image.cnn.filters_2": 8,
    "audio.encoder": "mlp",
    "audio.mlp.depth": 1,
    "audio.mlp.units_1": 16,
    "head.units": 16,
}
RESNET: dict[str, Value] = {"image.encoder": "resnet", "image.resnet.depth": 1, "image.resnet.filters_1": 8}
VIT: dict[str, Value] = {"image.encoder": "vit", "image.vit.units": 16, "image.vit.depth": 1, "image.vit.patch": 7}
RNN: dict[str, Value] = {"audio.encoder": "rnn", "audio.rnn.units": 8, "audio.rnn.depth": 2, "audio.rnn.dropout": 0.3}
AUGMENTED: dict[str, Value] = {
    "augment.image.rotation": 15.0,
    "augment.image.noise": 0.1,
    "augment.image.erasing": 0.2,
    "augment.audio.shift": 0.1,
    "augment.audio.noise": 0.1,
    "augment.audio.time_mask": 0.2,
}

# What each configuration adds to SMALL: all that keeps something from one epoch to the next.
CASES: dict[str, dict[str, Value]] = {
    **{f"optimiser {name}": {"optimizer.name": name} for name in TABLE["optimizer.name"].options if name != "sgd"},
    "sgd with momentum": {"optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.sgd.nesterov": True},
    "sgd without": {"optimizer.name": "sgd", "optimizer.lr": 0.05, "optimizer.sgd.momentum": 0.0},
    **{f"schedule {name}": {"schedule.name": name} for name in TABLE["schedule.name"].options},
    "ema": {"ema.decay": 0.95},
    "mixup": {"augment.mixup": 0.4},
    "augmentation": AUGMENTED,
    "plain dropout": {"image.cnn.dropout": 0.3, "head.dropout": 0.5},
    "spatial dropout": {"image.cnn.dropout": 0.3, "image.cnn.dropout_kind": "spatial"},
    "drop path": {**RESNET, "image.resnet.dropout": 0.3, "image.resnet.dropout_kind": "drop_path"},
    "drop path of attention": {**VIT, "image.vit.dropout": 0.3, "image.vit.dropout_kind": "drop_path"},
    "dropout of a recurrent layer": RNN,
    "lost modalities": {"fusion.modality_dropout": 0.4},
    "freezing": {"transfer.freeze_epochs": 2, "optimizer.name": "sgd", "ema.decay": 0.9},
    "penalties": {"loss.name": "focal", "loss.l1": 1e-4, "optimizer.clip": 0.5, "loss.class_weights": "balanced"},
    "all at once": {**AUGMENTED, **RNN, "augment.mixup": 0.4, "ema.decay": 0.9, "image.cnn.dropout": 0.2},
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return read_dataset("demo", rows=150)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configuration(added: dict[str, Value]) -> Hyperparameters:
    return Space({name: Fixed(value) for name, value in {**SMALL, **added}.items()}).configuration({})


def training_of(dataset: Dataset, hyperparameters: Hyperparameters, seed: int = 5, **options: Any) -> Training:
    fitted, valid = holdout(dataset, 0.2, 0)
    seed_everything(seed)
    model = build_model(hyperparameters, dataset.shapes, statistics(fitted))
    frozen: Collection[str] = ()
    if hyperparameters["transfer.freeze_epochs"]:
        frozen = [name for name in model.state_dict() if name.startswith("image_encoder")]
    arguments = {"epochs": EPOCHS, **options}
    return fit(model, fitted, valid, hyperparameters, seed=seed, device=CPU, frozen=frozen, **arguments)


def numbers(results: list[EpochResult]) -> list[tuple[Any, ...]]:
    """All of an epoch but its time."""
    return [(result.epoch, result.train, result.valid, result.lr) for result in results]


def weights(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def disturb() -> None:
    """What another process would have done with the random numbers of this one."""
    seed_everything(random.SystemRandom().getrandbits(32))
    random.seed()
    torch.rand(7)


def goes_on_the_same(
    dataset: Dataset, hyperparameters: Hyperparameters, interrupts: Collection[int], path: Path, **options: Any
) -> None:
    """Train undisturbed, and again with a new training, from its checkpoint, after each epoch of `interrupts`."""
    undisturbed = training_of(dataset, hyperparameters, **options)
    expected = list(undisturbed)
    found: list[EpochResult] = []
    training = training_of(dataset, hyperparameters, **options)
    while not training.over:
        if training.epoch in interrupts:
            save_checkpoint(path, training.state_dict())
            epoch = training.epoch
            del training
            disturb()
            training = training_of(dataset, hyperparameters, **options)
            disturb()
            training.load_state_dict(load_checkpoint(path))
            assert training.epoch == epoch
            interrupts = set(interrupts) - {epoch}
            continue
        found.append(next(training))
    assert numbers(found) == numbers(expected)
    assert list(training) == []
    last, other = weights(undisturbed), weights(training)
    assert [name for name in last if not torch.equal(last[name], other[name])] == []


@pytest.mark.parametrize("name", CASES)
def test_every_later_epoch_is_the_same(name: str, dataset: Dataset, tmp_path: Path) -> None:
    goes_on_the_same(dataset, configuration(CASES[name]), {1, 3}, tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("name", ["optimiser adamw", "all at once"])
def test_so_it_is_in_bfloat16(name: str, dataset: Dataset, tmp_path: Path) -> None:
    goes_on_the_same(dataset, configuration(CASES[name]), {2}, tmp_path / "checkpoint.pt", precision="bfloat16")


def test_a_training_may_be_interrupted_before_its_first_epoch_and_after_its_last(
    dataset: Dataset, tmp_path: Path
) -> None:
    path, hyperparameters = tmp_path / "checkpoint.pt", configuration({"ema.decay": 0.9})
    goes_on_the_same(dataset, hyperparameters, {0}, path)
    ended = training_of(dataset, hyperparameters)
    expected = list(ended)
    save_checkpoint(path, ended.state_dict())
    again = training_of(dataset, hyperparameters, seed=6)
    again.load_state_dict(load_checkpoint(path))
    assert len(expected) == EPOCHS
    assert again.over
    assert list(again) == []


def test_patience_goes_on_counting(dataset: Dataset, tmp_path: Path) -> None:
    hyperparameters = configuration({"optimizer.lr": 0.05, "schedule.name": "constant"})
    options = {"epochs": 40, "patience": 3}
    expected = list(training_of(dataset, hyperparameters, **options))
    losses = [result.valid.loss for result in expected if result.valid]
    waits = len(losses) - 1 - losses.index(min(losses))
    assert len(expected) < 40
    assert waits == 3
    goes_on_the_same(dataset, hyperparameters, {len(expected) - 1, len(expected) - 3}, tmp_path / "c.pt", **options)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Value]:
    """Any mixture of what keeps something between epochs."""
    drawn: dict[str, Value] = {}
    for part in draw(st.lists(st.sampled_from(sorted(CASES)), min_size=2, max_size=5, unique=True)):
        drawn |= CASES[part]
    return {**drawn, "batch_size": draw(st.sampled_from([17, 32, 120]))}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    added=configurations(),
    interrupts=st.sets(st.integers(0, EPOCHS - 1), min_size=1, max_size=3),
    precision=st.sampled_from(["float32", "bfloat16"]),
)
def test_any_configuration_goes_on_the_same(
    added: dict[str, Value], interrupts: set[int], precision: str, dataset: Dataset, tmp_path: Path
) -> None:
    goes_on_the_same(dataset, configuration(added), interrupts, tmp_path / "checkpoint.pt", precision=precision)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 99), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plain=st.dictionaries(st.text(max_size=5), PLAIN, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_a_checkpoint_holds_what_it_was_given(plain: dict[str, Any], seed: int, tmp_path: Path) -> None:
    path, generator = tmp_path / "folder" / "checkpoint.pt", np.random.default_rng(seed)
    tensors = {
        "float": torch.from_numpy(generator.standard_normal((3, 2)).astype(np.float32)),
        "bytes": torch.from_numpy(generator.integers(0, 256, 9, dtype=np.uint8)),
        "whole": torch.tensor(int(generator.integers(1 << 40))),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    save_checkpoint(path, {"plain": plain, "tensors": tensors})
    found = load_checkpoint(path)
    assert found["plain"] == plain
    assert all(torch.equal(found["tensors"][name], tensor) for name, tensor in tensors.items())
    assert found["tensors"]["channels last"].stride() == tensors["channels last"].stride()
    assert [held.name for held in path.parent.iterdir()] == ["checkpoint.pt"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_checkpoint_is_told_apart(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 3, "weights": torch.ones(20)})
    whole = path.read_bytes()
    damage = data.draw(st.sampled_from(["cut", "flipped", "longer", "empty", "other"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes({
        "cut": whole[:place], "longer": whole + b"x", "empty": b"", "other": b"a text\n" * 9,
        "flipped": whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1:],
    }[damage])  # fmt: skip
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint\.pt: the checkpoint is damaged"):
        load_checkpoint(path)


class Runs:
    """An object whose pickle would run code of whoever made it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "checkpoint.pt", {"epoch": Runs()})
    with pytest.raises(DamagedCheckpoint, match="this torch does not read the checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_that_is_missing_or_cannot_be_read_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "checkpoint.pt")
    with pytest.raises(DamagedCheckpoint, match="cannot be read: Is a directory"):
        load_checkpoint(tmp_path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})

    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mmsearch.paths.os.replace", refuse)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(path, {"epoch": 2})
    assert load_checkpoint(path) == {"epoch": 1}
    assert [held.name for held in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_with_a_checkpoint_goes_what_a_kill_left_of_writing_it(tmp_path: Path) -> None:
    path, others = tmp_path / "checkpoint.pt", tmp_path / "metrics.csv"
    others.write_text("kept")
    for _ in range(2):  # also where there is none
        (tmp_path / ".b5cccbd1.checkpoint.pt").write_bytes(b"torn")
        remove(path)
        assert list(tmp_path.iterdir()) == [others]
        path.write_bytes(b"whole")
