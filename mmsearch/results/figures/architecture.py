"""A diagram of a model: its layers as boxes, from its inputs to its output, with the shapes that flow between them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from torch import nn

from mmsearch.models.fusion import WeightedLogits
from mmsearch.results.bundle import Bundle
from mmsearch.results.figures.layers import Call, Shape, Trace, all_parameters, counts, kind, own_parameters, trace
from mmsearch.results.figures.rows import plain
from mmsearch.results.figures.style import BLUE, GREEN, GREY, OCHRE, PURPLE, Figure, through

WIDTH, LANE = 900, 404  # pixels of the figure and of a box
LINE, PADDING, GAP = 16, 8, 32  # pixels of a line of text, around a box's text, and between two boxes
LETTERS = 58  # of a box's line
COLOURS = {"input": GREY, "image": BLUE, "audio": GREEN, "fusion": PURPLE, "head": OCHRE, "output": GREY}
CONTAINERS = (nn.Sequential, nn.ModuleList)


@dataclass(frozen=True)
class Box:
    """A layer with what follows it, or a step between layers.

    `leaves` is the shape of one row of what leaves it, in words. `times`: so many of them, one after the other.
    """

    part: str
    title: str
    details: tuple[str, ...] = ()
    leaves: str = ""
    parameters: int = 0
    times: int = 1

    @property
    def lines(self) -> list[str]:
        """The details, as lines."""
        unbroken = (said.replace(" ", "\xa0") for said in self.details)
        return textwrap.wrap(", ".join(unbroken), LETTERS)

    @property
    def height(self) -> int:
        """Pixels."""
        return 2 * PADDING + LINE * (1 + len(self.lines))


@dataclass(frozen=True)
class Diagram:
    """The boxes of a model: those of the image and of the audio, side by side, and those of both, below."""

    image: tuple[Box, ...]
    audio: tuple[Box, ...]
    both: tuple[Box, ...]


def diagram(bundle: Bundle) -> Diagram:
    """The boxes of a bundle's model, of an ensemble its first member's, as one forward pass finds them."""
    member, trained = bundle.members[0], bundle.trained
    model, found = member.model, trace(member.model)
    image, audio = (
        [_input(bundle, part), *_boxes(part, getattr(model, f"{part}_encoder"), f"{part}_encoder", found)]
        for part in ("image", "audio")
    )
    for lane, given in ((image, found.fused[0]), (audio, found.fused[1])):
        if lane[-1].leaves != words(given):
            lane[-1] = replace(lane[-1], leaves=f"{lane[-1].leaves} → {words(given)}")
    title = f"{model.kinds['fusion']} fusion"
    if isinstance(model.head, WeightedLogits):  # each modality has its own head, and the logits are fused
        for lane, own in ((image, 0), (audio, 1)):
            lane += _boxes("head", model.head.heads[own], f"head.heads.{own}", found)
        mixing = own_parameters(model.head)
        both = [Box("fusion", title, ("learned weights mix the logits",), words(found.output("head")), mixing)]
    else:
        inside = _counted(kind(call.module) for call in _drawn(model.fusion, "fusion", found))
        joined = Box("fusion", title, inside, words(found.output("fusion")), all_parameters(model.fusion))
        both = [joined, *_boxes("head", model.head, "head", found)]
    heat = f" at temperature {bundle.temperature:.3g}" if bundle.temperature != 1 else ""
    both.append(Box("output", f"softmax{heat}", (f"probabilities of {len(trained.classes)} classes",)))
    return Diagram(tuple(image), tuple(audio), tuple(both))


def words(shape: Shape) -> str:
    """A shape as a figure says it."""
    return " × ".join(map(str, shape))


def architecture_figure(bundle: Bundle) -> Figure:
    """The model, of an ensemble its first member, as boxes with the shapes and the parameters that are really there."""
    model, drawn = bundle.members[0].model, diagram(bundle)
    plot = go.Figure(go.Scatter(x=[None], y=[None], hoverinfo="skip"))
    ends = [
        _column(plot, lane, centre, 5) for lane, centre in ((drawn.image, WIDTH // 4), (drawn.audio, 3 * WIDTH // 4))
    ]
    joined = max(ends) + GAP + 8
    for end, lane, centre, aim in zip(
        ends,
        (drawn.image, drawn.audio),
        (WIDTH // 4, 3 * WIDTH // 4),
        (WIDTH // 2 - LANE // 4, WIDTH // 2 + LANE // 4),
        strict=True,
    ):
        bend = joined - 14
        _label(plot, lane[-1].leaves, centre, end + GAP // 2 - 3)
        plot.add_shape(
            type="path",
            path=f"M {centre} {end} L {centre} {bend} L {aim} {bend}",
            line={"color": GREY, "width": 1.5},
            layer="below",
        )
        _arrow(plot, aim, bend, joined)
    height = _column(plot, drawn.both, WIDTH // 2, joined) + 5
    for axis, limits in (("xaxis", (0, WIDTH)), ("yaxis", (height, 0))):
        plot.update_layout({axis: {"visible": False, "range": limits, "fixedrange": True}})
    plot.update_layout(margin={"l": 0, "r": 0, "t": 0, "b": 0}, showlegend=False)
    more = f" This is the first of {len(bundle.members)} members, whose probabilities are averaged."
    return Figure(
        "architecture",
        "The model",
        f"Image encoder {model.kinds['image_encoder']} (left), audio encoder {model.kinds['audio_encoder']} (right), "
        f"fusion {model.kinds['fusion']} and head: {all_parameters(model):,} parameters. At the arrows the shape of "
        f"one row; behind → the shape in which it goes on.{more if bundle.members[1:] else ''}",
        plot,
        width=WIDTH,
        height=height,
        alternative="; ".join(
            f"{name}: {' → '.join(box.title for box in boxes)}"
            for name, boxes in (("image", drawn.image), ("audio", drawn.audio), ("both", drawn.both))
        )
        + ".",
    )


def _input(bundle: Bundle, part: str) -> Box:
    shapes, trained = bundle.members[0].model.shapes, bundle.trained
    if part == "image":
        return Box("input", "image", ("pixels from 0 to 1, normalised",), words(shapes.image))
    frames, coefficients = shapes.audio
    if trained.rate is None:
        said = f"{frames} frames of {coefficients} coefficients, normalised"
    else:
        name = str(bundle.members[0].hyperparameters["features.name"])
        said = f"{trained.shapes.audio[0]:,} samples at {trained.rate:,} Hz → {name}, normalised"
    return Box("input", "audio", (said,), words(shapes.audio))


def _boxes(part: str, root: nn.Module, name: str, found: Trace) -> list[Box]:
    """Layers with weights, each with the normalisation, activation, pooling and dropout after it; equal ones once."""
    boxes: list[Box] = []
    first: list[str] = []  # what comes before any layer with weights
    whole = False  # the last box is a block, to which nothing is added
    for call in _drawn(root, name, found):
        said, own = kind(call.module), all_parameters(call.module)
        block = next(call.module.children(), None) is not None
        if block or whole or any(parameter.dim() > 1 for parameter in call.module.parameters()):
            parts = _counted(kind(module) for module in call.module.modules() if block and counts(module))
            boxes.append(Box(part, ", ".join([*first, said]), parts, words(call.output), own))
            first, whole = [], block
        elif boxes:
            last = boxes[-1]
            details, total = (*last.details, said), last.parameters + own
            boxes[-1] = replace(last, details=details, leaves=words(call.output), parameters=total)
        else:
            first.append(said)
    once: list[Box] = []
    for box in boxes:
        if once and replace(once[-1], times=1) == box:
            once[-1] = replace(box, times=once[-1].times + 1)
        else:
            once.append(box)
    return once


def _drawn(root: nn.Module, name: str, found: Trace) -> list[Call]:
    """The calls of the parts of a module that are drawn: those of containers, but blocks as a whole."""
    names = set(_parts(root, name))
    return [call for call in found.calls if call.name in names]


def _parts(module: nn.Module, name: str) -> Iterator[str]:
    for own, child in module.named_children():
        if isinstance(child, CONTAINERS):
            yield from _parts(child, f"{name}.{own}")
        elif counts(child) or next(child.children(), None) is not None:
            yield f"{name}.{own}"


def _counted(kinds: Iterable[str]) -> tuple[str, ...]:
    return tuple(said if times == 1 else f"{times} × {said}" for said, times in Counter(kinds).items())


def _column(plot: go.Figure, boxes: Sequence[Box], centre: int, top: int) -> int:
    """Draw boxes one below the other, with arrows between them; where the last one ends."""
    for position, box in enumerate(boxes):
        _draw(plot, box, centre, top)
        top += box.height
        if position + 1 < len(boxes):
            _arrow(plot, centre, top, top + GAP)
            _label(plot, box.leaves, centre, top + GAP // 2 - 1)
            top += GAP
    return top


def _draw(plot: go.Figure, box: Box, centre: int, top: int) -> None:
    left, right, colour = centre - LANE // 2, centre + LANE // 2, COLOURS[box.part]
    line = {"color": colour, "width": 1.5}
    plot.add_shape(
        type="rect", x0=left, x1=right, y0=top, y1=top + box.height, fillcolor=through(colour, 0.16), line=line
    )
    times = f"{box.times} × " if box.times > 1 else ""
    text = f"<b>{times}{plain(box.title)}</b>"
    text += "".join(f"<br><span style='font-size:11px'>{plain(said)}</span>" for said in box.lines)
    first = {"showarrow": False, "borderpad": 0, "y": top + PADDING - 1, "yanchor": "top"}
    plot.add_annotation(**first, x=left + PADDING, xanchor="left", align="left", text=text)
    if box.parameters:
        each = f"{times}{box.parameters:,} parameters"
        plot.add_annotation(**first, x=right - PADDING, xanchor="right", text=each, font={"size": 11})


def _arrow(plot: go.Figure, x: int, start: int, end: int) -> None:
    plot.add_annotation(
        x=x,
        y=end,
        ax=x,
        ay=start,
        xref="x",
        yref="y",
        axref="x",
        ayref="y",
        arrowcolor=GREY,
        arrowwidth=1.5,
        arrowhead=2,
        showarrow=True,
        text="",
    )


def _label(plot: go.Figure, text: str, x: int, y: int) -> None:
    plot.add_annotation(x=x + 8, y=y, xanchor="left", showarrow=False, text=text, font={"size": 11}, borderpad=0)
