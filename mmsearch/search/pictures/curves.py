"""A trial's curves: loss and leading metric, of training and validation rows, against epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from PIL import Image, ImageDraw

from mmsearch.search.pictures.canvas import GRID, PAGE, SOFT, TEXT, Box, Picture, blank, line_of, width_of

WIDTH, HEIGHT = 640, 480
SMOOTH = 2  # lines are drawn so many times larger, and scaled down
TRAINING, VALIDATION = "#2f7fc1", "#d55e00"
NAMES = {"macro_f1": "macro F1"}

Row = Mapping[str, float | int | None]


def draw_curves(rows: Sequence[Row], metric: str, best: Sequence[int]) -> Picture:
    """Loss, and the metric that leads, of training and validation rows against epochs.

    `rows` are the epochs as metrics.csv has them, with a column `fold` where there are several, `best` the best epoch
    of each fold. Where the loss leads, macro F1 stands beside it.
    """
    folds = [list(part) for _, part in groupby(rows, key=lambda row: row.get("fold"))]
    picture = Picture(blank(WIDTH, HEIGHT))
    line, margin, gap = line_of(TEXT), TEXT // 2, TEXT // 2
    metrics = ("loss", metric if metric != "loss" else "macro_f1")
    scales = [_Scale.of(_values(rows, name), name) for name in metrics]
    left = margin + max(width_of(tick, TEXT) for scale in scales for tick, _ in scale.ticks()) + 12
    last = max(_number(row["epoch"]) for row in rows)
    epochs = _Scale(1, last, whole=True) if last > 1 else _Scale(0.5, 1.5, whole=True)
    right = WIDTH - margin - max(width_of(tick, TEXT) for tick, _ in epochs.ticks()) / 2
    height = (HEIGHT - 2 * margin - 4 * line - 3 * gap - 4) / 2
    tops = margin + line + gap, margin + 2 * line + 3 * gap + height
    plots = [(left, top, right, top + height) for top in tops]
    for place, (name, scale) in enumerate(zip(metrics, scales, strict=True)):
        title = f"{NAMES.get(name, name)}{' (logarithmic)' * scale.log}"
        picture.text((margin, plots[place][1] - gap - line / 2), title, TEXT)
        _axes(picture, plots[place], epochs, scale)
    _lines(picture, plots, folds, metrics, best, (epochs, scales))
    bottom = plots[1][3] + gap + line / 2
    for tick, share in epochs.ticks():
        picture.text((left + share * (right - left), bottom), tick, TEXT, "mm", SOFT)
    picture.text(((left + right) / 2, bottom + line), "epoch", TEXT, "mm")
    marked = [row for part, epoch in zip(folds, best, strict=True) for row in part if row["epoch"] == epoch]
    reached = fmean(_number(row[f"valid_{metrics[1]}"]) for row in marked)
    told = f"best epoch {best[0]}: {reached:.4f}" if len(folds) == 1 else f"best epochs: {reached:.4f} on average"
    _legend(picture, right, [plot[1] - gap - line / 2 for plot in plots], told)
    return picture


@dataclass(frozen=True)
class _Scale:
    """From `low` to `high`, from 0 to 1 along an axis; `whole`: of whole numbers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @staticmethod
    def of(values: Sequence[float], metric: str) -> _Scale:
        """One that shows all of the values, and a little more; of a loss of several magnitudes a logarithmic one."""
        low, high = min(values), max(values)
        if metric == "loss" and low > 0 and high / low > 30:
            return _Scale(low / 1.3, high * 1.3, log=True)
        room = 0.08 * (high - low) or 0.05 * abs(high) or 0.05
        return _Scale(low - room, high + room)

    def at(self, value: float) -> float:
        """How far along the axis a value lies."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[str, float]]:
        """A few round numbers within, in words, and where they lie."""
        if self.log:
            lowest, highest = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            powers = range(lowest, highest + 1, max(1, math.ceil((highest - lowest) / 2)))
            return [(_in_words(10.0**power, 10.0**power, self), self.at(10.0**power)) for power in powers]
        if self.whole:
            every = int(max(1, _round_steps((self.high - self.low) / 6)[1]))
            first = [] if every <= 2 else [1]  # 1, 3, 5, but 1, 5, 10
            counted = [*first, *range(every if first else 1, math.floor(self.high) + 1, every)]
            return [(str(epoch), self.at(epoch)) for epoch in counted]
        step = _round_steps((self.high - self.low) / 2)[0]
        numbers = [step * count for count in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [(_in_words(number, step, self), self.at(number)) for number in numbers]


def _round_steps(width: float) -> tuple[float, float]:
    """Of 1, 2 and 5 times powers of ten the greatest that is at most `width`, and the smallest that is not less."""
    power = 10.0 ** math.floor(math.log10(width))
    steps = [factor * power for factor in (1, 2, 5, 10)]
    return max(s for s in steps if s <= width * (1 + 1e-9)), min(s for s in steps if s >= width * (1 - 1e-9))


def _in_words(number: float, step: float, scale: _Scale) -> str:
    """A tick's number with as many digits as tell it from the next one."""
    greatest = max(abs(scale.low), abs(scale.high))
    if abs(number) < step / 2:
        return "0"
    if 1e-2 <= greatest < 1e5:
        return f"{number:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    mantissa, _, power = (
        f"{number:.{max(0, math.floor(math.log10(abs(number)) - math.log10(step) + 1e-9))}e}".partition("e")
    )
    return f"{mantissa}e{int(power)}"


def _axes(picture: Picture, plot: Box, epochs: _Scale, scale: _Scale) -> None:
    """An empty plot with its numbers at its left."""
    left, top, right, bottom = plot
    draw = picture.draw
    for tick, share in scale.ticks():
        y = bottom - share * (bottom - top)
        draw.line((left, y, right, y), GRID)
        picture.text((left - 10, y), tick, TEXT, "rm", SOFT)
    for _, share in epochs.ticks():
        x = left + share * (right - left)
        draw.line((x, bottom, x, bottom + 6), SOFT)
    draw.line((left, top, left, bottom, right, bottom), SOFT, 2)


def _lines(
    picture: Picture,
    plots: Sequence[Box],
    folds: Sequence[Sequence[Row]],
    metrics: Sequence[str],
    best: Sequence[int],
    scales: tuple[_Scale, Sequence[_Scale]],
) -> None:
    """Each fold's curves in each plot, and where its best epoch is; smooth, since drawn larger and scaled down."""
    large = picture.image.resize((WIDTH * SMOOTH, HEIGHT * SMOOTH), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(large)
    thick = (4.0 if len(folds) == 1 else 2.0) * SMOOTH
    for (left, top, right, bottom), metric, scale in zip(plots, metrics, scales[1], strict=True):

        def place(
            row: Row, column: str, box: Box = (left, top, right, bottom), scale: _Scale = scale
        ) -> tuple[float, float]:
            x = box[0] + scales[0].at(_number(row["epoch"])) * (box[2] - box[0])
            return x * SMOOTH, (box[3] - scale.at(_number(row[column])) * (box[3] - box[1])) * SMOOTH

        for part, color in (("train", TRAINING), ("valid", VALIDATION)):
            for rows in folds:
                points = [place(row, f"{part}_{metric}") for row in rows]
                draw.line(points, color, round(thick), joint="curve")
                for point in points[:1] if len(points) == 1 else ():
                    draw.circle(point, thick, color)
        for rows, epoch in zip(folds, best, strict=True):
            for row in rows:
                if row["epoch"] == epoch:
                    draw.circle(place(row, f"valid_{metric}"), 2 * thick, PAGE, VALIDATION, round(thick * 0.75))
    picture.image = large.reduce(SMOOTH)


def _legend(picture: Picture, right: float, lines: Sequence[float], best: str) -> None:
    """What the colours mean, right above the first plot, and which epochs are marked, above the second."""
    end = right
    for text, color in (("validation", VALIDATION), ("training", TRAINING)):
        start = picture.text((end, lines[0]), text, TEXT, "rm")[0]
        picture.draw.line((start - 34, lines[0], start - 8, lines[0]), color, 5)
        end = start - 34 - TEXT
    start = picture.text((right, lines[1]), best, TEXT, "rm")[0]
    picture.draw.circle((start - 16, lines[1]), 7, PAGE, VALIDATION, 3)


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    return [_number(row[f"{part}_{metric}"]) for row in rows for part in ("train", "valid")]


def _number(value: float | int | None) -> float:
    if value is None:
        raise ValueError("an epoch has no validation rows")
    return float(value)
