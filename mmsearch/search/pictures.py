"""What a trial's training looked like, as two small pictures: its curves, and its confusions on the validation rows.

Drawn with Pillow, in its own font, so that a worker needs nothing else and two trainings of the same numbers leave the
same bytes. The dashboard shows pictures 200 by 150 pixels large: they have that shape, few words, and large ones.
Colours are told apart with any colour vision (after Okabe and Ito, "Color universal design", 2008).
"""

from __future__ import annotations

import io
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from statistics import fmean

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

# What can go wrong with a picture, and is no reason to fail a trial: Pillow without its font, no memory, odd numbers.
CANNOT_DRAW = (ArithmeticError, ImportError, MemoryError, OSError, ValueError)

WIDTH, HEIGHT = 640, 480
SMOOTH = 2  # lines are drawn so many times larger, and scaled down
TEXT = 26  # pixels a letter of the curves
LONGEST = 180  # pixels of a class's name
COUNTED = 20  # classes up to which cells hold their counts
WHOLE = 100  # classes up to which the whole matrix is shown
FAINTEST = 0.2  # of the colour of a cell that is not empty

TRAINING, VALIDATION = "#2f7fc1", "#d55e00"
RIGHT, WRONG = (31, 99, 163), (200, 80, 0)  # the darkest of either
INK, SOFT, GRID, PAGE = "#1c2430", "#5b6675", "#dde2e9", "#ffffff"
NAMES = {"macro_f1": "macro F1"}

Counts = npt.NDArray[np.int64]
Row = Mapping[str, float | int | None]
Box = tuple[float, float, float, float]
Color = str | tuple[int, int, int]


@dataclass
class Picture:
    """A picture that is drawn, in pixels from its upper left corner, and each text on it with its box."""

    image: Image.Image
    texts: list[tuple[str, Box]] = field(default_factory=list)

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        """What draws on it."""
        return ImageDraw.Draw(self.image)

    def text(self, at: tuple[float, float], text: str, size: int, anchor: str = "lm", color: Color = INK) -> Box:
        """Write a line; `anchor` is Pillow's. Returns its box."""
        draw = self.draw
        draw.text(at, text, fill=color, font=_font(size), anchor=anchor)
        box = draw.textbbox(at, text, font=_font(size), anchor=anchor)
        self.texts.append((text, box))
        return box

    def upwards(self, center: float, bottom: float, text: str, size: int, color: Color = INK) -> None:
        """Write a line from `bottom` upwards, `center` pixels from the left."""
        width, height = math.ceil(width_of(text, size)), _line(size)
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).text((0, height / 2), text, fill=255, font=_font(size), anchor="lm")
        turned = mask.transpose(Image.Transpose.ROTATE_90)
        left, top = round(center - height / 2), round(bottom - width)
        self.image.paste(Image.new("RGB", turned.size, color), (left, top), turned)
        self.texts.append((text, (left, top, left + height, top + width)))

    def png(self) -> bytes:
        """The picture as a file, with the 256 colours that it needs most: a third of the size, and faster."""
        held = io.BytesIO()
        few = self.image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(held, "PNG")
        return held.getvalue()


def draw_curves(rows: Sequence[Row], metric: str, best: Sequence[int]) -> Picture:
    """Loss, and the metric that leads, of training and validation rows against epochs.

    `rows` are the epochs as metrics.csv has them, with a column `fold` where there are several, `best` the best epoch
    of each fold. Where the loss leads, macro F1 stands beside it.
    """
    folds = [list(part) for _, part in groupby(rows, key=lambda row: row.get("fold"))]
    picture = Picture(_blank(WIDTH, HEIGHT))
    line, margin, gap = _line(TEXT), TEXT // 2, TEXT // 2
    metrics = ("loss", metric if metric != "loss" else "macro_f1")
    scales = [_Scale.of(_values(rows, name), name) for name in metrics]
    left = margin + max(width_of(tick, TEXT) for scale in scales for tick, _ in scale.ticks()) + 12
    right = WIDTH - margin - TEXT // 2
    height = (HEIGHT - 2 * margin - 4 * line - 3 * gap - 4) / 2
    tops = margin + line + gap, margin + 2 * line + 3 * gap + height
    plots = [(left, top, right, top + height) for top in tops]
    last = max(_number(row["epoch"]) for row in rows)
    epochs = _Scale(1, last, whole=True) if last > 1 else _Scale(0.5, 1.5, whole=True)
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


def draw_confusion(matrix: Counts, classes: Sequence[str], when: str) -> Picture:
    """How often a true class was predicted to be which, at the epoch that `when` names.

    matrix: (classes, classes) counts, rows are true classes. Cells are coloured by their share of the true class, what
    is right in another colour than what is wrong. Of more than `WHOLE` classes those with the most errors are shown.
    """
    rows, right = int(matrix.sum()), int(np.trace(matrix))
    caption = f"{right:,} of {rows:,} right, {when}"
    names = [_drawable(name, number) for number, name in enumerate(classes)]
    if len(names) <= WHOLE:
        return _matrix(matrix, names, names, caption, "predicted class")
    worst = np.sort(np.argsort(np.diag(matrix) - matrix.sum(1), kind="stable")[:COUNTED])
    kept = matrix[np.ix_(worst, worst)]
    others = matrix[worst].sum(1) - kept.sum(1)
    shown = [names[number] for number in worst.tolist()]
    title = f"predicted class; the {COUNTED} of {len(names):,} with the most errors"
    return _matrix(np.column_stack([kept, others]), shown, [*shown, "others"], caption, title)


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
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            step = max(1, math.ceil((last - first) / 2))
            powers = range(first, last + 1, step)
            return [(f"{10.0**power:g}", self.at(10.0**power)) for power in powers]
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


def _matrix(matrix: Counts, down: Sequence[str], across: Sequence[str], caption: str, title: str) -> Picture:
    """The cells, with names of true classes at their left and of predicted ones below."""
    cell = max(6, (380 if len(down) <= 10 else 600) // len(down))
    size = TEXT if len(down) <= 10 else 32
    label = min(size, max(13, cell - 4))
    line, margin = _line(size), size // 2
    every = math.ceil(_line(label) / cell)  # so many classes share one name
    down, across = ([shorten(name, label, LONGEST) for name in names] for names in (down, across))
    beside = max(width_of(name, label) for name in down[::every])
    flat = every == 1 and max(width_of(name, label) for name in across) <= cell - 6
    below = _line(label) if flat else max(width_of(name, label) for name in across[::every])
    left, top = math.ceil(margin + line + 8 + beside + 8), margin + line + 6
    across_px, down_px = cell * len(across), cell * len(down)
    texts = (_key_width(size), margin + width_of(caption, size), margin + width_of(title, size))
    width = math.ceil(max(left + across_px, *texts)) + margin
    height = math.ceil(top + down_px + 8 + below + 6 + 2 * line + 8) + margin
    width, height = max(width, math.ceil(height * 4 / 3)), max(height, math.ceil(width * 3 / 4))
    left += (width - margin - left - across_px) // 2
    picture = Picture(_blank(width, height))
    picture.text((margin, margin + line / 2), caption, size)
    picture.image.paste(Image.fromarray(_cells(matrix, cell)), (left, top))
    picture.draw.rectangle((left - 1, top - 1, left + across_px, top + down_px), outline=SOFT)
    for number in range(0, len(down), every):
        middle = top + (number + 0.5) * cell
        picture.text((left - 8, middle), down[number], label, "rm")
    for number in range(0, len(across), every):
        middle = left + (number + 0.5) * cell
        if flat:
            picture.text((middle, top + down_px + 8 + below / 2), across[number], label, "mm")
        else:
            bottom = top + down_px + 8 + width_of(across[number], label)
            picture.upwards(middle, bottom, across[number], label)
    center = left - 8 - beside - 8 - line / 2
    picture.upwards(center, top + (down_px + width_of("true class", size)) / 2, "true class", size)
    y = top + down_px + 8 + below + 6 + line / 2
    picture.text((min(left + across_px / 2, width - margin - width_of(title, size) / 2), y), title, size, "mm")
    if len(down) <= COUNTED:
        _counts(picture, matrix, (left, top), cell)
    _key(picture, margin, y + line + 4, size)
    return picture


def _cells(matrix: Counts, cell: int) -> npt.NDArray[np.uint8]:
    """(rows * cell, columns * cell, 3) colours."""
    shares = _shares(matrix)
    strength = np.where(shares > 0, FAINTEST + (1 - FAINTEST) * np.sqrt(shares), 0)[..., None]
    right = (np.arange(len(matrix))[:, None] == np.arange(matrix.shape[1]))[..., None]
    colors = 255 + strength * (np.where(right, RIGHT, WRONG) - 255.0)
    small: npt.NDArray[np.uint8] = colors.round().astype(np.uint8)
    large = small.repeat(cell, axis=0).repeat(cell, axis=1)
    if cell >= 16:  # lines between cells; smaller ones have no room for them
        large[cell - 1 :: cell] = large[:, cell - 1 :: cell] = (236, 239, 243)
    return large


def _shares(matrix: Counts) -> npt.NDArray[np.float64]:
    """Each row's counts as shares of its sum; nothing of an empty one."""
    shares: npt.NDArray[np.float64] = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return shares


def _counts(picture: Picture, matrix: Counts, corner: tuple[int, int], cell: int) -> None:
    """The number in each cell that has one."""
    words = {place: _short(int(matrix[place])) for place in zip(*np.nonzero(matrix), strict=True)}
    widest = "8" * max(map(len, words.values()), default=1)
    size = min(32, round(cell * 0.6), math.floor(TEXT * (cell - 4) / width_of(widest, TEXT)))
    dark = _shares(matrix) > 0.25
    for (row, column), text in words.items():
        at = corner[0] + (column + 0.5) * cell - 0.5, corner[1] + (row + 0.5) * cell - 0.5
        picture.text(at, text, size, "mm", PAGE if dark[row, column] else INK)


def _short(count: int) -> str:
    """A count in at most four letters."""
    for unit, name in ((1_000_000, "M"), (1000, "k")):
        if count >= 10 * unit:
            return f"{count // unit}{name}"
    return str(count)


KEY = (("right", RIGHT), ("wrong", WRONG))
RAMP, TAIL = 60, "0 to 100 % of the true class"


def _key(picture: Picture, left: float, y: float, size: int) -> None:
    """What the colours mean."""
    for text, darkest in KEY:
        left = picture.text((left, y), text, size)[2] + 8
        share = np.sqrt(np.linspace(0, 1, RAMP))[None, :, None]
        colors = 255 + (FAINTEST + (1 - FAINTEST) * share) * (np.array(darkest) - 255.0)
        bar = np.repeat(colors.round().astype(np.uint8), size * 2 // 3, axis=0)
        picture.image.paste(Image.fromarray(bar), (round(left), round(y - size / 3)))
        left += RAMP + size * 0.6
    picture.text((left, y), TAIL, size, color=SOFT)


def _key_width(size: int) -> float:
    """How wide `_key` is, its margin included."""
    return size // 2 + sum(width_of(text, size) + 8 + RAMP + size * 0.6 for text, _ in KEY) + width_of(TAIL, size)


def shorten(name: str, size: int, width: float) -> str:
    """A name that is at most so many pixels wide: three dots stand for its middle, since names often end in numbers."""
    if width_of(name, size) <= width:
        return name
    kept = len(name) - 1
    while kept > 2 and width_of(_ends(name, kept), size) > width:
        kept -= 1
    return _ends(name, kept)


def _ends(name: str, kept: int) -> str:
    """So many letters of a name, from both of its ends."""
    tail = kept // 3
    return f"{name[: kept - tail].rstrip()}…{name[len(name) - tail :].lstrip()}"


def _drawable(name: str, number: int) -> str:
    """A class's name as far as the font has its letters, without accents; or else its number, from 0."""
    parts = unicodedata.normalize("NFKD", " ".join(name.split()))
    plain = "".join(letter for letter in parts if not unicodedata.combining(letter))
    return plain if plain and all(_has(letter) for letter in plain) else f"class {number}"


@lru_cache(maxsize=512)
def _has(letter: str) -> bool:
    """Whether the font has a letter, and would not draw its box for those that it has not."""
    font = _font(TEXT)
    return letter == " " or bytes(font.getmask(letter)) != bytes(font.getmask("\uffff"))


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font; raises `ImportError` where it was built without one."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache(maxsize=4096)
def width_of(text: str, size: int) -> float:
    """How many pixels wide a line is."""
    return _font(size).getlength(text)


def _line(size: int) -> int:
    """The height of a line of text."""
    return round(size * 1.25)


def _blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), PAGE)


def _values(rows: Sequence[Row], metric: str) -> list[float]:
    return [_number(row[f"{part}_{metric}"]) for row in rows for part in ("train", "valid")]


def _number(value: float | int | None) -> float:
    if value is None:
        raise ValueError("an epoch has no validation rows")
    return float(value)
