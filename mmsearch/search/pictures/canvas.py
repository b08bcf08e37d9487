"""A picture under way: its pixels, its texts and where they are, its file; in Pillow's own font."""

from __future__ import annotations

import io
import math
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

TEXT = 26  # pixels of the size of letters
LINE = 1.25  # of which a line is so many high
INK, SOFT, GRID, PAGE = "#1c2430", "#5b6675", "#dde2e9", "#ffffff"

# What can go wrong with a picture, and is no reason to fail a trial: Pillow without its font, no memory, odd numbers.
CANNOT_DRAW = (ArithmeticError, ImportError, MemoryError, OSError, ValueError)

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
        letters, left, top = _letters(text, size, anchor)
        left, top = left + round(at[0]), top + round(at[1])
        self.image.paste(color, (left, top), letters)
        box = (left, top, left + letters.width, top + letters.height)
        self.texts.append((text, box))
        return box

    def upwards(self, center: float, bottom: float, text: str, size: int, color: Color = INK) -> None:
        """Write a line from `bottom` upwards, `center` pixels from the left."""
        width, height = math.ceil(width_of(text, size)), line_of(size)
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
        few.save(held, "PNG", compress_level=3)  # a quarter larger than by default, in half the time
        return held.getvalue()


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


def drawable(name: str, number: int) -> str:
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


@lru_cache(maxsize=2048)
def _letters(text: str, size: int, anchor: str) -> tuple[Image.Image, int, int]:
    """A line to be put on pictures, and its corner seen from its anchor; most texts are on every picture."""
    left, top, right, bottom = _font(size).getbbox(text, anchor=anchor)
    corner = math.floor(left), math.floor(top)
    letters = Image.new("L", (math.ceil(right) - corner[0], math.ceil(bottom) - corner[1]))
    ImageDraw.Draw(letters).text((-corner[0], -corner[1]), text, fill=255, font=_font(size), anchor=anchor)
    return letters, *corner


@lru_cache(maxsize=4096)
def width_of(text: str, size: int) -> float:
    """How many pixels wide a line is."""
    return _font(size).getlength(text)


def line_of(size: int) -> int:
    """The height of a line of text."""
    return round(size * LINE)


def blank(width: int, height: int) -> Image.Image:
    """An empty page."""
    return Image.new("RGB", (width, height), PAGE)
