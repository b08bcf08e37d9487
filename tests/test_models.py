"""Every choice of the factory goes forward and backward, and every parameter of it learns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mmsearch.data.dataset import Shapes, Split, statistics
from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.models.factory import build_model
from mmsearch.models.registry import AUDIO_ENCODERS, FUSIONS, IMAGE_ENCODERS, Encoder, Fusion, register
from mmsearch.spaces import Fixed, Space

SHAPES = Shapes((1, 28, 28), (39, 13), 10)
OTHER_SHAPES = (Shapes((3, 40, 60), (20, 5), 3), Shapes((1, 5, 7), (100, 1), 2), Shapes((1, 1, 1), (1, 1), 2))


def configuration(**given: Value) -> Hyperparameters:
    return Space({name.replace("__", "."): Fixed(value) for name, value in given.items()}).configuration({})


def step(hyperparameters: Hyperparameters, shapes: Shapes, rows: int = 4) -> dict[str, float]:
    """The greatest gradient of each parameter after one backward pass."""
    torch.manual_seed(0)
    model = build_model(hyperparameters, shapes).train()
    image, audio = torch.rand(rows, *shapes.image), torch.randn(rows, *shapes.audio)
    logits = model(image, audio)
    assert logits.shape == (rows, shapes.classes)
    assert torch.isfinite(logits).all()
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(rows) % shapes.classes)
    loss.backward()  # type: ignore[no-untyped-call]
    return {
        name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        for name, parameter in model.named_parameters()
    }


def dead(gradients: dict[str, float]) -> list[str]:
    return [name for name, greatest in gradients.items() if not greatest > 0]


@pytest.mark.parametrize(
    ("image", "audio", "fusion"), [*itertools.product(sorted(IMAGE_ENCODERS), sorted(AUDIO_ENCODERS), sorted(FUSIONS))]
)
def test_every_combination_learns_in_every_parameter(image: str, audio: str, fusion: str) -> None:
    given: dict[str, Value] = {"image__encoder": image, "audio__encoder": audio, "fusion__name": fusion}
    assert dead(step(configuration(head__dropout=0.0, **given), SHAPES, rows=16)) == []


SWITCHES = [
    (name, option)
    for name, parameter in TABLE.items()
    if name.startswith(("image.", "audio.", "fusion.", "head."))
    for option in (parameter.options or (parameter.low, parameter.high))
    if not name.endswith(("encoder", "fusion.name"))
]


@pytest.mark.parametrize(("name", "option"), SWITCHES)
def test_every_option_and_limit_builds_and_learns(name: str, option: Value) -> None:
    parents = dict(TABLE[name].requires)
    for parent in list(parents):
        parents |= dict(TABLE[parent].requires)
    given = {parent: Fixed(allowed[0]) for parent, allowed in parents.items() if parent in TABLE}
    if name.endswith("dropout_kind"):
        given[name.removesuffix("_kind")] = Fixed(0.3)
    value = TABLE[name].kind(option)
    made = Space({**given, name: Fixed(value)}).configuration({})
    assert made[name] == value
    rows = 64 if "dropout" in name else 8  # a dropout of 0.9 leaves little of one row
    assert dead(step(made, SHAPES, rows)) == []


@pytest.mark.parametrize("shapes", OTHER_SHAPES)
@pytest.mark.parametrize("audio_input", ["frames", "flat"])
def test_other_shapes(shapes: Shapes, audio_input: str) -> None:
    deep = configuration(image__cnn__depth=5, audio__conv1d__depth=5, audio__conv1d__input=audio_input)
    gradients = step(deep, shapes)  # which checks the logits
    assert max(value for name, value in gradients.items() if name.startswith("head.")) > 0


def test_a_parameter_without_gradient_is_named() -> None:
    class Lazy(Fusion):
        def __init__(self, image_width: int, audio_width: int) -> None:
            super().__init__()
            self.width = image_width
            self.unused = torch.nn.Linear(2, 2)

        def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
            return image

    FUSIONS["lazy"] = Lazy
    try:
        hyperparameters = Hyperparameters({**configuration(), "fusion.name": "lazy"})
        found = dead(step(hyperparameters, SHAPES))
    finally:
        del FUSIONS["lazy"]
    assert {"fusion.unused.weight", "fusion.unused.bias"} <= set(found)
    assert any(name.startswith("audio_encoder.") for name in found)


def test_another_encoder_is_one_class() -> None:
    registry: dict[str, type[Encoder]] = {}

    @register("mean", registry)
    class Mean(Encoder):
        pass

    assert registry == {"mean": Mean}
    with pytest.raises(ValueError, match="registered already"):
        register("mean", registry)(Mean)


def test_the_model_normalises_by_the_training_rows() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (50, 2, 6, 6)).astype(np.uint8)
    audio = rng.normal(5, 3, (50, 7, 4))
    split = Split(image, audio, None, np.arange(40), 1 / 255)
    model = build_model(configuration(), Shapes((2, 6, 6), (7, 4), 2), statistics(split))
    seen = torch.from_numpy(image[:40]).float() / 255
    normal = (seen - model.image_mean) / model.image_std
    assert torch.allclose(normal.mean((0, 2, 3)), torch.zeros(2), atol=1e-4)
    assert torch.allclose(normal.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-4)
    sound = (torch.from_numpy(audio[:40]).float() - model.audio_mean) / model.audio_std
    assert torch.allclose(sound.mean((0, 1)), torch.zeros(4), atol=1e-4)


def test_widths_follow_the_parameters() -> None:
    small = build_model(configuration(image__cnn__filters_1=8, head__units=16), SHAPES).parameter_count()
    large = build_model(configuration(image__cnn__filters_1=64, head__units=256), SHAPES).parameter_count()
    assert small < large
    model = build_model(configuration(image__cnn__depth=2, image__cnn__kernel=5, head__depth=0), SHAPES)
    pairs = build_model(configuration(image__encoder="paired_cnn"), SHAPES).image_encoder.modules()
    assert [(m.out_channels, m.kernel_size[0]) for m in pairs if isinstance(m, torch.nn.Conv2d)] == [
        (16, 5),
        (16, 5),
        (32, 3),
        (32, 3),
    ]
    convolutions = [m for m in model.image_encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size) for m in convolutions] == [(16, (5, 5)), (32, (5, 5))]
    assert [m.out_features for m in model.head if isinstance(m, torch.nn.Linear)] == [10]
