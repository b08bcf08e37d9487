"""A trial's confusions: how often a true class was predicted to be which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from mmsearch.search.pictures.canvas import (
    INK,
    LINE,
    PAGE,
    SOFT,
    TEXT,
    Picture,
    blank,
    drawable,
    line_of,
    shorten,
    width_of,
)

LONGEST = 200  # pixels of a class's name
COUNTED = 20  # classes up to which cells hold their counts
WHOLE = 100  # classes up to which the whole matrix is shown
FAINTEST = 0.2  # of the colour of a cell that is not empty
RIGHT, WRONG = (31, 99, 163), (200, 80, 0)  # the darkest of either

Counts = npt.NDArray[np.int64]


def draw_confusion(matrix: Counts, classes: Sequence[str], when: str) -> Picture:
    """How often a true class was predicted to be which, at the epoch that `when` names.

    matrix: (classes, classes) counts, rows are true classes. Cells are coloured by their share of the true class, what
    is right in another colour than what is wrong. Of more than `WHOLE` classes those with the most errors are shown.
    """
    rows, right = int(matrix.sum()), int(np.trace(matrix))
    caption = f"{right:,} of {rows:,} right, {when}"
    names = [drawable(name, number) for number, name in enumerate(classes)]
    if len(names) <= WHOLE:
        return _matrix(matrix, names, names, caption, "predicted class")
    worst = np.sort(np.argsort(np.diag(matrix) - matrix.sum(1), kind="stable")[:COUNTED])
    kept = matrix[np.ix_(worst, worst)]
    others = matrix[worst].sum(1) - kept.sum(1)
    shown = [names[number] for number in worst.tolist()]
    title = f"predicted class; the {COUNTED} of {len(names):,} with the most errors"
    return _matrix(np.column_stack([kept, others]), shown, [*shown, "others"], caption, title)


def _matrix(matrix: Counts, down: Sequence[str], across: Sequence[str], caption: str, title: str) -> Picture:
    """The cells, with names of true classes at their left and of predicted ones below."""
    cell = max(6, (380 if len(down) <= 10 else 600) // len(down))
    size = TEXT if len(down) <= 10 else 32
    label = min(size, max(13, math.floor(cell / LINE)))
    line, margin = line_of(size), size // 2
    every = math.ceil(line_of(label) / cell)  # so many classes share one name
    down, across = ([shorten(name, label, LONGEST) for name in names] for names in (down, across))
    beside = max(width_of(name, label) for name in down[::every])
    flat = every == 1 and max(width_of(name, label) for name in across) <= cell - 6
    below = line_of(label) if flat else max(width_of(name, label) for name in across[::every])
    left, top = math.ceil(margin + line + 8 + beside + 8), margin + line + 6
    across_px, down_px = cell * len(across), cell * len(down)
    texts = (_key_width(size), margin + width_of(caption, size), margin + width_of(title, size))
    width = math.ceil(max(left + across_px, *texts)) + margin
    height = math.ceil(top + down_px + 8 + below + 6 + 2 * line + 8) + margin
    width, height = max(width, math.ceil(height * 4 / 3)), max(height, math.ceil(width * 3 / 4))
    left += (width - margin - left - across_px) // 2
    picture = Picture(blank(width, height))
    picture.text((margin, margin + line / 2), caption, size)
    picture.image.paste(Image.fromarray(_cells(matrix, cell)), (left, top))
    picture.draw.rectangle((left - 1, top - 1, left + across_px, top + down_px), outline=SOFT)
    for number in range(0, len(down), every):
        picture.text((left - 8, top + (number + 0.5) * cell), down[number], label, "rm")
    for number in range(0, len(across), every):
        _name_below(picture, across[number], (left + (number + 0.5) * cell, top + down_px + 8), label, flat)
    center = left - 8 - beside - 8 - line / 2
    picture.upwards(center, top + (down_px + width_of("true class", size)) / 2, "true class", size)
    y = top + down_px + 8 + below + 6 + line / 2
    picture.text((min(left + across_px / 2, width - margin - width_of(title, size) / 2), y), title, size, "mm")
    if len(down) <= COUNTED:
        _counts(picture, matrix, (left, top), cell)
    _key(picture, margin, y + line + 4, size)
    return picture


def _name_below(picture: Picture, name: str, at: tuple[float, float], size: int, flat: bool) -> None:
    """A column's name, centred below `at`: along the line, or where it is too long for its cell, upwards."""
    if flat:
        picture.text((at[0], at[1] + line_of(size) / 2), name, size, "mm")
    else:
        picture.upwards(at[0], at[1] + width_of(name, size), name, size)


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
