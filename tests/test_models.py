"""Every choice of the factory goes forward and backward, and every parameter of it learns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import ROOT

from mmsearch.config import load_config
from mmsearch.data.dataset import Shapes, Split, statistics
from mmsearch.hyperparameters import TABLE, Hyperparameters, Value
from mmsearch.models.factory import build_model
from mmsearch.models.fusion import WeightedLogits
from mmsearch.models.layers import ACTIVATIONS, MONOTONE, Conv1d, Dropout, DropPath
from mmsearch.models.registry import AUDIO_ENCODERS, FUSIONS, IMAGE_ENCODERS, Encoder, Fusion, register
from mmsearch.spaces import Choices, Fixed, Range, Space

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
def test_deep_networks_on_other_shapes(shapes: Shapes, audio_input: str) -> None:
    deep = configuration(image__cnn__depth=5, audio__conv1d__depth=5, audio__conv1d__input=audio_input)
    gradients = step(deep, shapes)  # which checks the logits
    assert max(value for name, value in gradients.items() if name.startswith("head.")) > 0


@pytest.mark.parametrize("shapes", OTHER_SHAPES)
@pytest.mark.parametrize(("image", "audio"), [*zip(sorted(IMAGE_ENCODERS), sorted(AUDIO_ENCODERS), strict=True)])
@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_every_choice_on_other_shapes(shapes: Shapes, image: str, audio: str, fusion: str) -> None:
    gradients = step(configuration(image__encoder=image, audio__encoder=audio, fusion__name=fusion), shapes)
    assert max(value for name, value in gradients.items() if name.startswith("head.")) > 0


def test_a_patch_larger_than_the_image_and_one_that_does_not_divide_it() -> None:
    for patch in (5, 64):
        made = configuration(image__encoder="vit", image__vit__patch=patch)
        assert dead(step(made, Shapes((3, 12, 17), (39, 13), 3), rows=16)) == []


@pytest.mark.parametrize("name", sorted(IMAGE_ENCODERS))
def test_an_embedding_is_made_of_the_tokens(name: str) -> None:
    model = build_model(configuration(image__encoder=name), SHAPES).eval()
    images = torch.rand(3, 1, 28, 28)
    tokens, embedding = model.image_encoder.tokens(images), model.image_encoder(images)
    assert tokens.shape[::2] == (3, model.image_encoder.token_width)
    assert embedding.shape == (3, model.image_encoder.width)
    assert torch.allclose(embedding, model.image_encoder.summarise(tokens))


def test_a_recurrent_network_reads_every_frame_in_both_directions() -> None:
    both = configuration(audio__encoder="rnn", audio__rnn__bidirectional=True)
    encoder = build_model(both, Shapes((1, 28, 28), (6, 13), 10)).eval().audio_encoder
    audio = torch.randn(1, 6, 13)
    before = encoder(audio)
    for frame in (0, 5):
        changed = audio.clone()
        changed[0, frame] += 5
        moved = (encoder(changed) - before).abs() > 1e-7
        assert moved[0, :128].any()  # forwards
        assert moved[0, 128:].any()  # backwards


def test_late_fusion_mixes_the_logits_of_two_heads() -> None:
    model = build_model(configuration(fusion__name="late", head__dropout=0.0), SHAPES).eval()
    image, audio = torch.rand(5, 1, 28, 28), torch.randn(5, 39, 13)
    assert isinstance(model.head, WeightedLogits)
    own = [head(encoder(x)) for head, encoder, x in zip(
        model.head.heads, (model.image_encoder, model.audio_encoder), (image, audio), strict=True
    )]  # fmt: skip
    assert torch.allclose(model(image, audio), (own[0] + own[1]) / 2, atol=1e-6)
    with torch.no_grad():
        model.head.weights.copy_(torch.tensor([20.0, -20.0]))
    assert torch.allclose(model(image, audio), own[0], atol=1e-5)


def test_attention_sees_the_other_modality() -> None:
    model = build_model(configuration(fusion__name="attention"), SHAPES).eval()
    image, audio = torch.rand(1, 1, 28, 28), torch.randn(1, 39, 13)
    fused = [model.embed(image, sound) for sound in (audio, audio + torch.randn(1, 39, 13))]
    half = fused[0].shape[1] // 2
    assert not torch.allclose(fused[0][:, :half], fused[1][:, :half])  # the image's part


def test_modality_dropout_loses_one_modality_of_some_rows_in_training_only() -> None:
    rng = np.random.default_rng(0)
    rows = 4000
    split = Split(rng.random((rows, 1, 4, 4)), rng.normal(2, 3, (rows, 5, 2)), None, np.arange(rows), 1.0)
    found = statistics(split)
    model = build_model(
        configuration(fusion__modality_dropout=0.3, image__encoder="mlp"), Shapes((1, 4, 4), (5, 2), 2), found
    )
    image, audio = torch.from_numpy(split.image).float(), torch.from_numpy(split.audio).float()
    lost_image, lost_audio = (
        (after == torch.from_numpy(mean)).flatten(1).all(1)
        for after, mean in zip(model._lose_some(image, audio), (found.mean_image, found.mean_audio), strict=True)
    )
    assert not (lost_image & lost_audio).any()
    for share in (lost_image, lost_audio):
        assert float(share.float().mean()) == pytest.approx(0.15, abs=0.03)
    assert torch.equal(model.eval()(image, audio), model(image, audio))
    assert not torch.equal(model.train()(image[:200], audio[:200]), model(image[:200], audio[:200]))


def test_a_dropped_path_keeps_the_mean() -> None:
    torch.manual_seed(0)
    path = DropPath(0.25)
    out = path(torch.ones(20_000, 2, 1))
    assert sorted(set(out.flatten().tolist())) == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(out[:, 0], out[:, 1])
    assert float(out.mean()) == pytest.approx(1, abs=0.02)
    assert torch.equal(path.eval()(torch.ones(3, 2)), torch.ones(3, 2))


def random_configuration(space: Space, rng: np.random.Generator) -> Hyperparameters:
    def pick(name: str, dimension: Range | Choices) -> Value:
        if isinstance(dimension, Choices):
            return dimension.options[int(rng.integers(len(dimension.options)))]
        points = dimension.grid()
        if points is not None:
            return points[int(rng.integers(len(points)))]
        return float(np.exp(rng.uniform(*np.log([dimension.low, dimension.high])))) if dimension.log else float(
            rng.uniform(dimension.low, dimension.high)
        )  # fmt: skip

    return space.walk(pick)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop, rows = Dropout(0.3), torch.full((400, 500), 2.0, requires_grad=True)
    out = drop(rows)
    out.sum().backward()
    kept = out != 0
    assert 0.29 < 1 - kept.float().mean() < 0.31
    assert torch.allclose(out[kept], torch.tensor(2 / 0.7))
    assert rows.grad is not None
    assert torch.equal(rows.grad != 0, kept)
    assert 1.97 < out.mean() < 2.03
    assert not Dropout(1.0)(rows).any()
    assert torch.equal(drop.eval()(rows), rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.001, 0.25, 0.5, 0.9])
def test_dropout_draws_each_number_by_itself_in_any_precision(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = torch.ones(401, 7, 9, 11, dtype=dtype).contiguous(memory_format=torch.channels_last)
    out = Dropout(rate)(rows)
    assert out.dtype == dtype
    assert out.stride() == rows.stride()
    kept = (out != 0).double()
    assert torch.equal(out[out != 0].unique(), torch.tensor([1 / (1 - rate)], dtype=dtype))
    spread = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(1 - kept.mean() - rate) < 4 * spread
    along = kept.permute(0, 2, 3, 1).flatten() - (1 - rate)  # as they lie in memory: several are of one drawn number
    for apart in (1, 2, 3, 4):
        together = (along[apart:] * along[:-apart]).mean() / (rate * (1 - rate))
        assert abs(together) < 4 / kept.numel() ** 0.5


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_convolution_over_time_is_torchs(kernel: int) -> None:
    torch.manual_seed(0)
    ours, torchs = Conv1d(3, 4, kernel, padding=kernel // 2), torch.nn.Conv1d(3, 4, kernel, padding=kernel // 2)
    halved, torchs_halved = Conv1d(4, 4, 3, 2, groups=2, dilation=2), torch.nn.Conv1d(4, 4, 3, 2, groups=2, dilation=2)
    torchs_halved.load_state_dict(halved.state_dict())
    torchs.load_state_dict(ours.state_dict())
    rows = torch.randn(5, 9, 3).transpose(1, 2)
    found = ours(rows.unsqueeze(2))
    assert found.shape == (5, 4, 1, 9)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.squeeze(2), torchs(rows), atol=1e-6)
    assert torch.allclose(halved(found).squeeze(2), torchs_halved(found.squeeze(2)), atol=1e-6)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_pooling_may_precede_what_only_rises(name: str) -> None:
    """And what it precedes in the factory's models is nothing else."""
    activation, rows = ACTIVATIONS[name](), torch.linspace(-9, 9, 10_001)
    rises = bool((activation(rows.clone()).diff() >= 0).all())
    assert isinstance(activation, MONOTONE) == rises
    image = build_model(configuration(image__encoder="cnn", image__cnn__activation=name), SHAPES).image_encoder
    kinds = [type(module) for module in image.modules()]
    first = [kinds.index(kind) for kind in (torch.nn.MaxPool2d, type(activation))]
    assert (first[0] < first[1]) == rises


@pytest.mark.slow
def test_the_wide_study_builds_wherever_it_goes_and_stays_small() -> None:
    space = load_config(ROOT / "studies" / "wide.toml").dimensions
    rng, chosen, largest = np.random.default_rng(0), set(), 0
    for draw in range(2000):
        made = random_configuration(space, rng)
        chosen |= {(name, made[name]) for name in ("image.encoder", "audio.encoder", "fusion.name")}
        with torch.device("meta"):  # all of the building, without the memory
            largest = max(largest, build_model(made, SHAPES).parameter_count())
        if draw % 40 == 0:
            step(made, SHAPES)  # which checks the logits
    assert largest <= 20_000_000
    choices = ("image.encoder", "audio.encoder", "fusion.name")
    assert chosen == {(name, option) for name in choices for option in TABLE[name].options}


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
        def tokens(self, values: torch.Tensor) -> torch.Tensor:
            return values.flatten(2).mean(2, keepdim=True)

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
    assert [m.out_features for m in model.head.children() if isinstance(m, torch.nn.Linear)] == [10]


@pytest.mark.parametrize(("image", "audio"), [*zip(sorted(IMAGE_ENCODERS), sorted(AUDIO_ENCODERS), strict=True)])
@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_every_choice_runs_in_lower_precision(image: str, audio: str, fusion: str) -> None:
    made = configuration(image__encoder=image, audio__encoder=audio, fusion__name=fusion, head__dropout=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert dead(step(made, SHAPES, rows=16)) == []
