"""Augmentation: what each strength does to rows where one can tell, off at 0, drawn anew for each row, by seed."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsearch.data.dataset import Shapes, Split, statistics
from mmsearch.data.sources import read_dataset
from mmsearch.data.splits import holdout
from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.models.factory import build_model
from mmsearch.spaces import Fixed, Space
from mmsearch.training.augmentation import Augmentation, augment_audio, augment_images
from mmsearch.training.batches import Batch
from mmsearch.training.fit import EpochResult, fit, predict_logits, seed_everything
from mmsearch.training.metrics import Confusion

CPU = torch.device("cpu")
OFF = {name: row.default for name, row in TABLE.items() if name.startswith("augment.")}
IMAGE, AUDIO = (Hyperparameters(OFF).under(f"augment.{modality}") for modality in ("image", "audio"))
GEOMETRY = ("rotation", "shift", "zoom", "crop", "flip_horizontal", "flip_vertical")


def images(image: Tensor, seed: int = 0, /, **strengths: float) -> Tensor:
    return augment_images(image, torch.Generator().manual_seed(seed), **{**IMAGE, **strengths})


def audios(audio: Tensor, mean: Tensor, seed: int = 0, /, **strengths: float) -> Tensor:
    return augment_audio(audio, torch.Generator().manual_seed(seed), mean=mean, **{**AUDIO, **strengths})


def noise_images(count: int = 6, channels: int = 3, height: int = 12, width: int = 17) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def blob(count: int, height: int, width: int, right: float = 0, down: float = 0) -> Tensor:
    """A soft dot so many pixels from the centre, the same in each of `count` images."""
    x = torch.arange(width) - (width - 1) / 2 - right
    y = torch.arange(height) - (height - 1) / 2 - down
    return torch.exp(-(x[None, :] ** 2 + y[:, None] ** 2) / 8).expand(count, 1, height, width)


def centres(image: Tensor) -> tuple[Tensor, Tensor]:
    """How many pixels right of, and below, the middle the mass of each image lies."""
    height, width = image.shape[2:]
    mass = image.sum((1, 2, 3))
    x, y = torch.arange(width) - (width - 1) / 2, torch.arange(height) - (height - 1) / 2
    return (image.sum((1, 2)) * x).sum(1) / mass, (image.sum((1, 3)) * y).sum(1) / mass


def run_lengths(marked: Tensor) -> Tensor:
    """(n,) how many are marked in each row of (n, length), which must be one run."""
    edges = marked.int().diff(dim=1, prepend=torch.zeros(len(marked), 1, dtype=torch.int32))
    assert ((edges == 1).sum(1) <= 1).all()
    return marked.sum(1)


@pytest.mark.parametrize(("function", "inputs"), [(augment_images, set()), (augment_audio, {"mean"})])
def test_strengths_are_called_as_in_the_table(function: Any, inputs: set[str]) -> None:
    keywords = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    assert keywords - inputs == set(IMAGE if function is augment_images else AUDIO)


def test_without_strength_nothing_is_done_nor_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    image, audio = noise_images(), torch.randn(6, 9, 4)
    assert augment_images(image, generator, **IMAGE) is image
    assert augment_audio(audio, generator, mean=torch.zeros(4), **AUDIO) is audio
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", IMAGE)
def test_images_keep_their_form_and_each_row_is_drawn_by_seed(name: str, channels_last: bool) -> None:
    image = noise_images(1).expand(40, -1, -1, -1).contiguous()
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    before = image.clone()
    strength = 0.5 if name != "rotation" else 90.0
    found = images(image, 3, **{name: strength})
    assert found.shape == image.shape
    assert found.stride() == image.stride()
    assert found.isfinite().all()
    assert torch.equal(image, before)
    assert torch.equal(found, images(image, 3, **{name: strength}))
    assert not torch.equal(found, images(image, 4, **{name: strength}))
    assert (found != found[:1]).flatten(1).any(1).any()  # not the same for all rows


@pytest.mark.parametrize("name", AUDIO)
def test_audio_keeps_its_form_and_each_row_is_drawn_by_seed(name: str) -> None:
    audio, mean = torch.randn(1, 20, 8).expand(40, -1, -1).contiguous(), torch.full((8,), 9.0)
    before = audio.clone()
    found = audios(audio, mean, 3, **{name: 0.5})
    assert found.shape == audio.shape
    assert torch.equal(audio, before)
    assert torch.equal(found, audios(audio, mean, 3, **{name: 0.5}))
    assert not torch.equal(found, audios(audio, mean, 4, **{name: 0.5}))
    assert (found != found[:1]).flatten(1).any(1).any()


def test_a_shift_moves_by_at_most_its_share_of_each_side() -> None:
    x, y = centres(images(blob(800, 41, 81), shift=0.2))
    for moved, side in ((x, 81), (y, 41)):
        assert moved.abs().max() <= 0.2 * side + 0.01
        assert moved.min() < -0.18 * side
        assert moved.max() > 0.18 * side
        assert abs(float(moved.mean())) < 0.02 * side
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.15  # right and down are drawn apart


@pytest.mark.parametrize(("height", "width"), [(61, 61), (51, 91)])
def test_a_rotation_keeps_distances_and_turns_by_at_most_its_angle(height: int, width: int) -> None:
    x, y = centres(images(blob(800, height, width, right=15), rotation=60.0))
    assert (torch.hypot(x, y) - 15).abs().max() < 0.1
    degrees = torch.rad2deg(torch.atan2(y, x))
    assert degrees.abs().max() <= 60.5
    assert degrees.min() < -55
    assert degrees.max() > 55


def test_a_zoom_keeps_the_centre_and_scales_both_ways() -> None:
    image = blob(800, 61, 61)
    found = images(image, zoom=0.4)
    x, y = centres(found)
    assert torch.hypot(x, y).max() < 0.01
    scale = (found.sum((1, 2, 3)) / image.sum((1, 2, 3))).sqrt()
    assert 0.59 < scale.min() < 0.65
    assert 1.35 < scale.max() < 1.41


def test_a_crop_shows_a_window_of_the_image_with_the_same_aspect() -> None:
    x, y = torch.arange(60.0).expand(40, 60), torch.arange(40.0)[:, None].expand(40, 60)
    found = images(torch.stack([x, y]).expand(800, 2, 40, 60), crop=0.75)
    inner = found[:, :, 3:-3, 3:-3]  # the outermost pixels mix with the background
    side_x, side_y = inner[:, 0].diff(dim=2).mean((1, 2)), inner[:, 1].diff(dim=1).mean((1, 2))
    assert torch.allclose(side_x, side_y, atol=1e-3)
    assert 0.499 < side_x.min() < 0.53  # a quarter of the area is half of each side
    assert 0.98 < side_x.max() < 1.001
    for values, last in ((inner[:, 0], 59), (inner[:, 1], 39)):
        assert values.min() >= 0
        assert values.max() <= last
        middles = values.mean((1, 2))
        assert middles.min() < 0.35 * last  # windows lie left and right, high and low
        assert middles.max() > 0.65 * last


@pytest.mark.parametrize(("name", "axis"), [("flip_horizontal", 3), ("flip_vertical", 2)])
def test_flips_happen_as_often_as_their_probability_says(name: str, axis: int) -> None:
    image = noise_images(400)
    assert torch.allclose(images(image, **{name: 1.0}), image.flip(axis), atol=1e-4)
    found = images(image, **{name: 0.3})
    same, flipped = ((found - other).abs().amax((1, 2, 3)) < 1e-4 for other in (image, image.flip(axis)))
    assert (same ^ flipped).all()
    assert 0.2 < flipped.float().mean() < 0.4


def test_noise_has_its_deviation() -> None:
    added = images(torch.full((50, 3, 20, 20), 0.5), noise=0.1) - 0.5
    assert added.std() == pytest.approx(0.1, rel=0.02)
    assert added.mean() == pytest.approx(0, abs=0.002)


@given(
    erasing=st.floats(0.01, 0.9), height=st.integers(1, 30), width=st.integers(1, 30), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=50, deadline=None)
def test_one_rectangle_is_erased_no_greater_than_its_share(erasing: float, height: int, width: int, seed: int) -> None:
    image = torch.ones(30, 2, height, width)
    image[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = 0.25  # corners: the background
    found = images(image, seed, erasing=erasing)
    assert ((found == image) | (found == 0.25)).all()
    inside = images(torch.ones(30, 2, height, width) * torch.arange(1, 3).view(2, 1, 1), seed, erasing=erasing)
    assert (inside == torch.arange(1, 3).view(2, 1, 1)).all()  # where all is background, erasing shows nothing
    erased = (found != image).any(1)
    assert erased.float().mean((1, 2)).max() <= erasing + 1e-6


def test_erased_areas_are_rectangles_of_all_sizes_and_places() -> None:
    image = torch.ones(2000, 1, 20, 30)
    image[:, :, [0, 0, -1, -1], [0, -1, 0, -1]] = 0.0
    erased = images(image, erasing=0.4)[:, 0] == 0
    erased[:, [0, 0, -1, -1], [0, -1, 0, -1]] = False
    share = erased.float().mean((1, 2))
    assert share.max() > 0.35
    assert share.min() < 0.02
    assert 0.15 < share.mean() < 0.2  # even up to 0.4; whole pixels round it down
    often = erased.float().mean(0)
    assert often[1:-1].min() > 0.005  # also along the sides
    inner = erased[:, 1:-1, 1:-1]
    assert (inner == (inner.any(2)[:, :, None] & inner.any(1)[:, None, :])).all()


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 12, 17), (4, 30, 8), (1, 1, 5), (1, 1, 1)])
def test_an_image_of_one_colour_stays_as_it_is(channels: int, height: int, width: int) -> None:
    colour = torch.linspace(-2, 1, channels).view(channels, 1, 1)
    image = colour.expand(50, channels, height, width)
    strengths = dict.fromkeys(GEOMETRY, 0.5) | {"rotation": 180.0, "erasing": 0.5}
    assert torch.allclose(images(image, **strengths), image, atol=1e-5)


def test_what_comes_in_from_outside_is_the_background() -> None:
    ink = 1 - blob(200, 31, 31)  # on white paper
    moved = images(ink, rotation=45.0, shift=0.3, zoom=0.5)
    edges = torch.cat([moved[:, :, [0, -1]].flatten(1), moved[:, :, :, [0, -1]].flatten(1)], dim=1)
    assert edges.median() > 0.999
    assert images(blob(200, 31, 31), rotation=45.0, shift=0.3, zoom=0.5).min() >= 0


@pytest.mark.parametrize(("name", "axis", "length"), [("time_mask", 1, 40), ("frequency_mask", 2, 20)])
def test_a_mask_hides_one_run_behind_the_mean(name: str, axis: int, length: int) -> None:
    mean = torch.arange(100.0, 120.0)
    audio = torch.randn(500, 40, 20)
    found = audios(audio, mean, **{name: 0.3})
    hidden = (found != audio).any(3 - axis)
    assert torch.equal(hidden, (found != audio).all(3 - axis))
    assert torch.equal(torch.where(found != audio, mean, audio), found)
    lengths = run_lengths(hidden)
    assert set(lengths.tolist()) == set(range(int(0.3 * length) + 1))
    assert hidden.float().mean(0).min() > 0  # each place is hidden in some row


@given(share=st.floats(0.01, 0.9), frames=st.integers(1, 30), coefficients=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_masks_are_no_longer_than_their_share(share: float, frames: int, coefficients: int) -> None:
    audio = torch.zeros(20, frames, coefficients)
    found = audios(audio, torch.ones(coefficients), time_mask=share)
    assert run_lengths(found[:, :, 0] == 1).max() <= share * frames + 1e-4
    found = audios(audio, torch.ones(coefficients), frequency_mask=share)
    assert run_lengths(found[:, 0] == 1).max() <= share * coefficients + 1e-4


def test_audio_is_shifted_by_whole_frames_and_filled_with_the_mean() -> None:
    frames = torch.arange(1.0, 31.0)[None, :, None]
    found = audios(frames.expand(400, 30, 2), torch.tensor([-1.0, -2.0]), shift=0.2)
    by = set()
    for row in found:
        moved = int(row[15, 0].item()) - 16  # what stands at place 15 was at place 15 + moved
        expected = torch.arange(30) + moved
        inside = (expected >= 0) & (expected < 30)
        assert torch.equal(row[:, 0], torch.where(inside, expected + 1.0, -1.0))
        assert torch.equal(row[:, 1], torch.where(inside, expected + 1.0, -2.0))
        by.add(moved)
    assert by == set(range(-6, 7))


def test_audio_noise_is_in_deviations_of_each_coefficient() -> None:
    scale = torch.tensor([0.01, 1.0, 50.0, 0.0])
    audio = torch.randn(200, 30, 4) * scale + 7
    added = audios(audio, torch.zeros(4), noise=0.3) - audio
    assert torch.allclose(added.std((0, 1)) / 0.3, scale, rtol=0.05)


def configuration(**given: Value) -> Hyperparameters:
    small: dict[str, Value] = {"image.encoder": "mlp", "audio.encoder": "mlp", "batch_size": 32}
    return Space({name: Fixed(value) for name, value in {**small, **given}.items()}).configuration({})


def augmentation(**given: Value) -> Augmentation:
    hyperparameters = configuration(**given)
    return Augmentation(build_model(hyperparameters, Shapes((1, 4, 4), (5, 3), 4)), hyperparameters, 0, CPU)


def test_mixup_mixes_image_audio_and_target_alike() -> None:
    label = torch.arange(32) % 4
    image, audio = label.view(-1, 1, 1, 1).expand(-1, 1, 4, 4) / 4, label.view(-1, 1, 1).expand(-1, 5, 3) * 3.0
    augment = augmentation(**{"augment.mixup": 1.0})
    shares = []
    for _ in range(200):
        mixed_image, mixed_audio, target = augment(Batch(image, audio, label))
        assert target.shape == (32, 4)
        assert torch.allclose(target.sum(1), torch.ones(32))
        expected = target @ torch.arange(4.0)
        assert torch.allclose(mixed_image, expected.view(-1, 1, 1, 1).expand_as(mixed_image) / 4, atol=1e-5)
        assert torch.allclose(mixed_audio, expected.view(-1, 1, 1).expand_as(mixed_audio) * 3, atol=1e-5)
        assert torch.equal(target.argmax(1), label)  # a row's own class is the greater part
        shares.append(float(target.max()))
    # with alpha 1 the greater part is even between a half and all
    assert np.quantile(shares, [0.02, 0.25, 0.5, 0.75, 0.98]) == pytest.approx(
        [0.51, 0.625, 0.75, 0.875, 0.99], abs=0.06
    )


def test_a_smaller_alpha_mixes_less() -> None:
    batch = Batch(torch.rand(8, 1, 4, 4), torch.rand(8, 5, 3), torch.arange(8) % 4)

    def mean_share(alpha: float) -> float:
        augment = augmentation(**{"augment.mixup": alpha})
        return float(np.mean([float(augment(batch)[2].max()) for _ in range(200)]))

    assert mean_share(0.1) > mean_share(1.0) + 0.05 > mean_share(10.0) + 0.1
    assert math.isfinite(mean_share(1e-9))


def test_without_mixup_targets_are_the_labels() -> None:
    batch = Batch(torch.rand(8, 1, 4, 4), torch.rand(8, 5, 3), torch.arange(8) % 4)
    image, audio, target = augmentation()(batch)
    assert image is batch.image
    assert audio is batch.audio
    assert target is batch.label


@pytest.fixture(scope="module")
def splits() -> tuple[Shapes, Split, Split]:
    dataset = read_dataset("demo", rows=300)
    return dataset.shapes, *holdout(dataset, 0.2, 0)


def train(splits: tuple[Shapes, Split, Split], hyperparameters: Hyperparameters, epochs: int = 1) -> list[EpochResult]:
    shapes, fitted, valid = splits
    seed_everything(0)
    model = build_model(hyperparameters, shapes, statistics(fitted))
    results = list(fit(model, fitted, valid, hyperparameters, epochs=epochs, seed=0, device=CPU))
    logits = predict_logits(model, valid, CPU)
    seen = Confusion(shapes.classes, CPU)
    labels = torch.from_numpy(valid.labels)
    seen.add(logits, labels, torch.nn.functional.cross_entropy(logits, labels))
    last = results[-1].valid
    assert last is not None
    assert last.loss == pytest.approx(seen.loss(), rel=1e-5)  # validation rows are not augmented
    return results


@pytest.mark.parametrize("name", OFF)
def test_each_strength_changes_training_by_seed_and_no_validation(
    splits: tuple[Shapes, Split, Split], name: str
) -> None:
    strength = min(0.5, TABLE[name].high) if name != "augment.image.rotation" else 45.0
    given = {**configuration(**{name: strength})}
    found, again, without = (
        train(splits, hyperparameters)[0].train
        for hyperparameters in (Hyperparameters(given), Hyperparameters(given), configuration())
    )
    assert found == again
    assert found != without


def test_training_learns_from_augmented_rows(splits: tuple[Shapes, Split, Split]) -> None:
    strengths: dict[str, Value] = {**dict.fromkeys(OFF, 0.1), "augment.image.rotation": 10.0, "augment.mixup": 0.4}
    results = train(splits, configuration(**strengths, **{"optimizer.lr": 3e-3}), epochs=8)
    assert results[-1].valid is not None
    assert results[-1].valid.macro_f1 > 0.5  # chance is 0.1
    assert results[-1].train.accuracy > 0.4
