"""The layers of a model as a table and as a diagram: nothing of any family is left out or counted twice."""

from __future__ import annotations

import itertools

import pytest
from test_figures_model import bundle_of, data

from mmsearch.models.registry import AUDIO_ENCODERS, FUSIONS, IMAGE_ENCODERS
from mmsearch.results.figures.architecture import architecture_figure, diagram
from mmsearch.results.figures.model import layer_table

FAMILIES = [
    *zip(sorted(IMAGE_ENCODERS), sorted(AUDIO_ENCODERS), sorted(FUSIONS), strict=True),
    *((image, "mlp", "attention") for image in sorted(IMAGE_ENCODERS)),
    *(("mlp", audio, fusion) for audio, fusion in itertools.product(sorted(AUDIO_ENCODERS), ("attention", "late"))),
]


@pytest.mark.parametrize(("image", "audio", "fusion"), FAMILIES)
def test_layers_and_boxes_hold_all_parameters_of_any_family(image: str, audio: str, fusion: str) -> None:
    dataset = data(image=(3, 17, 12))
    bundle = bundle_of(
        dataset, image__encoder=image, audio__encoder=audio, fusion__name=fusion, head__depth=2, head__norm="batch"
    )
    table = layer_table(bundle)
    assert sum(row["parameters"] for row in table) == bundle.parameters
    assert table[-1]["output_shape"] == "3"
    assert all(row["kind"] != "Identity" and row["output_shape"] for row in table)
    assert len({row["name"] for row in table}) == len(table)
    found = diagram(bundle)
    boxes = [*found.image, *found.audio, *found.both]
    assert sum(box.times * box.parameters for box in boxes) == bundle.parameters
    assert found.image[0].leaves == "3 × 17 × 12"
    assert found.both[-2].leaves == "3"
    assert sum(box.part == "head" for box in boxes) == (6 if fusion == "late" else 3)
    figure = architecture_figure(bundle)
    assert f"{bundle.parameters:,} parameters" in figure.caption
    tops = [(shape.x0, shape.y0, shape.y1) for shape in figure.plot.layout.shapes if shape.type == "rect"]
    assert len(tops) == len(boxes)
    for _, column in itertools.groupby(sorted(tops), key=lambda top: top[0]):
        ends = list(column)
        assert all(one[2] < other[1] for one, other in itertools.pairwise(ends))
        assert ends[-1][2] <= figure.height


def test_equal_blocks_are_drawn_once() -> None:
    bundle = bundle_of(data(), audio__encoder="transformer", audio__transformer__depth=4)
    (block,) = [box for box in diagram(bundle).audio if box.title == "AttentionBlock"]
    assert block.times == 4
    assert sum("queries_keys_values" in row["name"] for row in layer_table(bundle)) == 4


def test_an_ensembles_layers_are_those_of_all_members_and_the_first_is_drawn() -> None:
    bundle = bundle_of(data(), 2)
    table = layer_table(bundle)
    assert sum(row["parameters"] for row in table) == bundle.parameters
    assert {row["name"].split(".")[1] for row in table} == {"0", "1"}
    assert "first of 2 members" in architecture_figure(bundle).caption
