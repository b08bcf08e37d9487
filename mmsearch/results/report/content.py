"""What a report is made of: sections of paragraphs, tables and figures, without a word on how they look.

Texts are plain: whoever renders them escapes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from mmsearch.results.figures.style import Figure


@dataclass(frozen=True)
class Code:
    """A name or a value as it is typed."""

    text: str


@dataclass(frozen=True)
class Link:
    """A text that leads to an address."""

    text: str
    url: str


@dataclass(frozen=True)
class Cite:
    """A reference, by its key in `mmsearch.results.report.references`."""

    key: str


Piece = str | Code | Link | Cite
Text = tuple[Piece, ...]


@dataclass(frozen=True)
class Paragraph:
    """Sentences; a `note` is what the reader must not miss."""

    text: Text
    kind: Literal["plain", "note"] = "plain"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[Text, ...]


@dataclass(frozen=True)
class Commands:
    """Lines to type in a shell."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Tile:
    """One number that matters: what it is, its value, and what it was measured on."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Tiles:
    """The few numbers to remember."""

    items: tuple[Tile, ...]


@dataclass(frozen=True)
class Column:
    """A column's title; numbers stand on the `right`; `code`: names and values as they are typed."""

    title: str
    align: Literal["left", "right"] = "left"
    code: bool = False


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table; `best` marks it."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table; each row has a cell for each column. `name` tells it from the report's others."""

    name: str
    caption: Text
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name


@dataclass(frozen=True)
class Picture:
    """A figure with its title and caption."""

    figure: Figure


Block = Paragraph | Bullets | Commands | Tiles | Table | Picture


@dataclass(frozen=True)
class Section:
    """A section; `name` is its anchor. Its subsections have none of their own."""

    name: str
    title: str
    blocks: tuple[Block, ...] = ()
    subsections: tuple[Section, ...] = ()


@dataclass(frozen=True)
class Report:
    """All of a report but its references, which are what it cites."""

    title: str
    subtitle: str
    sections: tuple[Section, ...]

    def blocks(self) -> Iterator[Block]:
        """All blocks, in their order."""
        for section in self.sections:
            yield from section.blocks
            for part in section.subsections:
                yield from part.blocks

    def figures(self) -> list[Figure]:
        """All figures, in their order."""
        return [block.figure for block in self.blocks() if isinstance(block, Picture)]

    def cited(self) -> list[str]:
        """The keys of all that is cited, each once, sorted."""
        return sorted({piece.key for text in self._texts() for piece in text if isinstance(piece, Cite)})

    def _texts(self) -> Iterator[Text]:
        for block in self.blocks():
            if isinstance(block, Paragraph):
                yield block.text
            elif isinstance(block, Bullets):
                yield from block.items
            elif isinstance(block, Table):
                yield block.caption


def paragraph(*pieces: Piece) -> Paragraph:
    """A paragraph of these pieces."""
    return Paragraph(pieces)


def note(*pieces: Piece) -> Paragraph:
    """A paragraph that the reader must not miss."""
    return Paragraph(pieces, "note")


def table(name: str, caption: str | Text, columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> Table:
    """A table of cells, or of texts that are made into cells."""
    made = tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)
    return Table(name, caption if isinstance(caption, tuple) else (caption,), tuple(columns), made)
