"""Weights of a bundle in a new model: what fits is taken over and can be kept still at first, and all else is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmsearch.data.dataset import Pixels, Shapes, Split, Trained, statistics
from mmsearch.data.sources import read_dataset
from mmsearch.data.splits import holdout
from mmsearch.errors import BundleError
from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.models.factory import MultimodalClassifier, build_model
from mmsearch.paths import BundlePaths
from mmsearch.results.bundle import Bundle, Member
from mmsearch.spaces import Fixed, Space
from mmsearch.training.fit import fit, seed_everything
from mmsearch.training.transfer import OF_THE_DATA, held_still, load_weights

CPU = torch.device("cpu")
SHAPES = Shapes((1, 12, 12), (9, 4), 5)
SMALL: dict[str, Value] = {
    "batch_size": 32,
    "image.cnn.depth": 2,
    "image.cnn.filters_1": 4,
    "image.cnn.filters_2": 8,
    "audio.conv1d.depth": 1,
    "audio.conv1d.filters_1": 8,
    "head.units": 16,
}


def configuration(**given: Value) -> Hyperparameters:
    return Space({name: Fixed(value) for name, value in {**SMALL, **given}.items()}).configuration({})


def built(shapes: Shapes = SHAPES, seed: int = 0, given: dict[str, Value] | None = None) -> MultimodalClassifier:
    """A model each of whose tensors, buffers included, differs from those of another seed."""
    torch.manual_seed(seed)
    model = build_model(configuration(**(given or {})), shapes)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + seed + 1)
    return model


def saved(model: MultimodalClassifier, folder: Path) -> Path:
    """The model's weights as a bundle holds them."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, BundlePaths(folder).weights)
    return folder


def snapshot(model: MultimodalClassifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_all_is_taken_over_but_what_belongs_to_the_data(tmp_path: Path) -> None:
    old, new = built(seed=1), built(seed=2)
    before = snapshot(new)
    found = load_weights(new, saved(old, tmp_path))
    assert found.left == {}
    assert {name for name in before if name not in found.loaded} == set(OF_THE_DATA)
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, before[name] if name in OF_THE_DATA else old.state_dict()[name]), name
    assert new.image_encoder.get_buffer("blocks.1.running_mean").min() > 1
    assert found.describe() == f"{len(found.loaded)} of the model's {len(found.loaded)} tensors start as in {tmp_path}"


def test_what_does_not_fit_stays_and_says_why(tmp_path: Path) -> None:
    old = built(seed=1)
    new = built(Shapes((3, 12, 12), (9, 4), 7), seed=2, given={"image.cnn.filters_2": 16, "head.norm": "layer"})
    before = snapshot(new)
    found = load_weights(new, saved(old, tmp_path))
    assert found.left["image_encoder.blocks.0.weight"] == "4x1x3x3 there, 4x3x3x3 here"
    assert found.left["head.1.weight"] == "16x104 there, 16x176 here"
    assert found.left["head.2.weight"] == "not in the bundle"
    assert "audio_encoder.blocks.0.weight" in found.loaded
    assert "image_encoder.blocks.1.running_var" in found.loaded
    assert not set(found.left) & set(found.loaded)
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[name] if name in found.loaded else before[name]), name
    text = found.describe()
    assert "image_encoder.blocks.0.weight (4x1x3x3 there, 4x3x3x3 here)" in text
    assert text.endswith(f"and {len(found.left) - 3} more")
    assert "\n" not in text


def test_what_the_bundle_holds_besides_is_left_alone(tmp_path: Path) -> None:
    new = built(seed=2, given={"audio.encoder": "mlp"})
    found = load_weights(new, saved(built(seed=1), tmp_path))
    assert all(reason == "not in the bundle" for name, reason in found.left.items() if name.startswith("audio_encoder"))
    assert not any(name.startswith("audio_encoder") for name in found.loaded)


def test_a_missing_or_damaged_bundle_is_one_sentence(tmp_path: Path) -> None:
    model, weights = built(), BundlePaths(tmp_path).weights
    before = snapshot(model)
    with pytest.raises(BundleError, match=r"model\.safetensors: no such file"):
        load_weights(model, tmp_path)
    weights.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{damaged")
    with pytest.raises(BundleError, match=r"model\.safetensors: not weights, or damaged: .+") as raised:
        load_weights(model, tmp_path)
    assert "\n" not in str(raised.value)
    saved(built(seed=1), tmp_path)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match="damaged"):
        load_weights(model, tmp_path)
    weights.unlink()
    weights.mkdir()
    with pytest.raises(BundleError, match="damaged"):
        load_weights(model, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_bundle_of_which_no_weight_fits_is_an_error(tmp_path: Path) -> None:
    wider: dict[str, Value] = {"image.cnn.filters_1": 8, "image.cnn.filters_2": 32, "audio.conv1d.filters_1": 16}
    old = built(seed=1, given=wider)
    state = {name: tensor.contiguous() for name, tensor in old.state_dict().items() if not name.startswith("head")}
    assert "image_encoder.blocks.1.num_batches_tracked" in state  # fits, but is no weight
    save_file(state, BundlePaths(tmp_path).weights)
    with pytest.raises(BundleError, match=r"none of its weights fits this model; .*: 8x1x3x3 there, 4x1x3x3 here"):
        load_weights(built(), tmp_path)


@pytest.fixture(scope="module")
def splits() -> tuple[Shapes, Split, Split]:
    dataset = read_dataset("demo", rows=200)
    return dataset.shapes, *holdout(dataset, 0.2, 0)


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("optimiser", TABLE["optimizer.name"].options)
def test_frozen_weights_keep_still_for_their_epochs_then_train(
    splits: tuple[Shapes, Split, Split], optimiser: str, ema: float
) -> None:
    shapes, fitted, valid = splits
    given: dict[str, Value] = {
        "optimizer.name": optimiser,
        f"optimizer.{optimiser}.weight_decay": 0.1,
        "loss.l1": 1e-3,
        "optimizer.clip": 1.0,
        "ema.decay": ema,
        "transfer.freeze_epochs": 2,
    }
    hyperparameters = configuration(**given)
    seed_everything(0)
    model = build_model(hyperparameters, shapes, statistics(fitted))
    frozen = [name for name in model.state_dict() if name.startswith("image_encoder")]
    before, parameters = snapshot(model), model.parameter_count()
    for result in fit(model, fitted, valid, hyperparameters, epochs=4, seed=0, device=CPU, frozen=frozen):
        state = model.state_dict()
        moved = {name for name, tensor in state.items() if not torch.equal(tensor, before[name])}
        assert moved.isdisjoint(OF_THE_DATA)
        assert {name for name in state if name.startswith(("audio_encoder", "head"))} <= moved
        assert moved.issuperset(frozen) if result.epoch > 2 else moved.isdisjoint(frozen)
        assert model.parameter_count() == parameters  # what is frozen counts


def test_without_frozen_names_freeze_epochs_do_nothing(splits: tuple[Shapes, Split, Split]) -> None:
    shapes, fitted, _ = splits

    def losses(**given: Value) -> list[float]:
        hyperparameters = configuration(**given)
        seed_everything(0)
        model = build_model(hyperparameters, shapes, statistics(fitted))
        return [r.train.loss for r in fit(model, fitted, None, hyperparameters, epochs=2, seed=0, device=CPU)]

    assert losses() == losses(**{"transfer.freeze_epochs": 1})


def test_all_may_be_frozen(splits: tuple[Shapes, Split, Split]) -> None:
    shapes, fitted, valid = splits
    hyperparameters = configuration(**{"transfer.freeze_epochs": 1, "optimizer.clip": 1.0, "loss.l1": 1e-4})
    model = build_model(hyperparameters, shapes, statistics(fitted))
    before = snapshot(model)
    running = fit(model, fitted, valid, hyperparameters, epochs=2, seed=0, device=CPU, frozen=tuple(before))
    next(running)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    next(running)
    assert not all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_norm_with_one_free_parameter_goes_on_counting() -> None:
    model = built().train()
    norm = model.image_encoder.get_submodule("blocks.1")
    for names, training in ((["weight", "bias"], False), (["weight"], True), ([], True)):
        with held_still(model, [f"image_encoder.blocks.1.{name}" for name in names]):
            assert norm.training == training
        assert norm.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_frozen_name_that_the_model_does_not_have_is_an_error(splits: tuple[Shapes, Split, Split]) -> None:
    shapes, fitted, _ = splits
    hyperparameters = configuration()
    model = build_model(hyperparameters, shapes)
    with pytest.raises(ValueError, match="the model has no parameter tail"):
        next(fit(model, fitted, None, hyperparameters, epochs=1, seed=0, device=CPU, frozen=("tail", "head.1.weight")))


def test_nothing_goes_between_parts_of_different_kinds(tmp_path: Path) -> None:
    """Also where names and shapes agree: an encoder's weights mean something to that encoder alone."""
    shapes = Shapes((1, 8, 8), (6, 4), 3)
    space = {"audio.encoder": Fixed("mlp"), "image.encoder": Fixed("mlp"), "image.mlp.units_2": Fixed(64)}
    there = Space(space).configuration({})
    bundle = Bundle(
        (Member(build_model(there, shapes), there),), Trained(shapes, ("a", "b", "c"), Pixels(0, 1, 1.0)), tmp_path
    )
    bundle.save(tmp_path)
    here = build_model(Space({**space, "image.encoder": Fixed("cnn")}).configuration({}), shapes)
    before = {name: value.clone() for name, value in here.state_dict().items()}
    found = load_weights(here, tmp_path)
    assert found.unlike == {"image_encoder": "mlp there, cnn here"}
    assert {name.partition(".")[0] for name in found.loaded} == {"audio_encoder", "head"}  # both embeddings have 64
    assert "fresh: all of image_encoder (mlp there, cnn here)" in found.describe()
    for name, value in here.state_dict().items():
        assert name in found.loaded or torch.equal(value, before[name])


def test_a_dropout_that_is_off_moves_no_weight(tmp_path: Path) -> None:
    rates = ("image.cnn.dropout", "audio.conv1d.dropout", "head.dropout")
    saved(built(given=dict.fromkeys(rates, 0.0)), tmp_path)
    found = load_weights(built(seed=1, given=dict.fromkeys(rates, 0.3)), tmp_path)
    assert found.left == {}
