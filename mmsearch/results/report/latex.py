"""A report as LaTeX, for pdflatex with the packages of its basic and its recommended collection alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from mmsearch.results.figures.style import Figure
from mmsearch.results.markup import escape_tex
from mmsearch.results.report.content import (
    Block,
    Bullets,
    Cell,
    Cite,
    Code,
    Column,
    Commands,
    Link,
    Paragraph,
    Picture,
    Piece,
    Report,
    Section,
    Table,
    Text,
    Tiles,
)
from mmsearch.results.report.parts import beside
from mmsearch.results.report.references import REFERENCES
from mmsearch.results.report.words import NONE

TEXT_WIDTH = 450.0  # points, of 160 mm
GAP = 8.0  # points between two columns
SIZES = (("footnotesize", 4.5), ("scriptsize", 4.0), ("tiny", 3.3))  # and the points that a sign takes, at most
LEAST_SIGNS = 12  # of a column of text that is folded
PAGE_PIXELS = 1000  # of a figure as wide as the page
LONG_WORD, CUT = 30, 15  # signs: a longer word may break after each so many


def render_latex(report: Report, pictures: str | None, missing: str | None = None) -> str:
    """The document; `pictures` is the folder of PNG files beside it, None where there are none, as `missing` says."""
    body = [r"\begin{document}", rf"\title{{{_plain(report.title)}}}", r"\author{}"]
    body += [rf"\date{{{_plain(report.subtitle)}}}", r"\maketitle"]
    if missing is not None:
        body.append(_caution(_plain(missing)))
    body += [part for section in report.sections for part in _section(section, "section", pictures)]
    cited = report.cited()
    if cited:
        body += [r"\section*{References}", r"\begin{itemize}\raggedright"]
        for key in cited:
            held = REFERENCES[key]
            body.append(rf"\item \hypertarget{{ref-{key}}}{{}}{_plain(held.entry)} \url{{{held.url}}}")
        body.append(r"\end{itemize}")
    text = "\n".join([*body, r"\end{document}", ""])
    return beside("preamble.tex") + _declarations(text) + text


def _declarations(text: str) -> str:
    """What becomes of the letters beyond ASCII that the fonts have not got."""
    letters = sorted({sign for sign in text if ord(sign) > 0x7F})
    return "".join(rf"\oritsnumber{{{letter}}}{{{ord(letter):04X}}}" + "\n" for letter in letters)


def _section(section: Section, level: str, pictures: str | None) -> Iterator[str]:
    yield ""
    yield rf"\{level}{{{_plain(section.title)}}}\label{{{section.name}}}"
    for block in section.blocks:
        yield from _block(block, pictures)
    for part in section.subsections:
        yield from _section(part, f"sub{level}", pictures)


def _block(block: Block, pictures: str | None) -> Iterator[str]:
    yield ""
    match block:
        case Paragraph(text, "note"):
            yield _caution(_text(text))
        case Paragraph(text):
            yield _text(text)
        case Bullets(items):
            yield "\n".join([r"\begin{itemize}", *(rf"\item {_text(item)}" for item in items), r"\end{itemize}"])
        case Commands(lines):
            shown = " \\\\\n".join(rf"\texttt{{{_broken(line)}}}" for line in lines)
            yield f"\\begin{{flushleft}}\\small\n{shown}\n\\end{{flushleft}}"
        case Tiles(items):
            rows = tuple((Cell(tile.label), Cell(tile.value, True), Cell(tile.detail)) for tile in items)
            yield _table(Table("", (), (Column(""), Column("", "right"), Column("")), rows))
        case Table():
            yield _table(block)
        case Picture(figure):
            if pictures is not None:
                yield _figure(figure, pictures)


def _caution(text: str) -> str:
    return f"\\begin{{caution}}\n{text}\n\\end{{caution}}"


def _plain(text: str) -> str:
    """A text with places to break where a word is long."""
    text = unicodedata.normalize("NFC", text)
    words = re.split(r"(\s+)", text)
    return "".join(map(_cut, words))


def _cut(word: str) -> str:
    if len(word) <= LONG_WORD:
        return escape_tex(word)
    parts = [word[at : at + CUT] for at in range(0, len(word), CUT)]
    return r"\allowbreak{}".join(map(escape_tex, parts))


def _broken(text: str) -> str:
    """A name or a command, which may break after a dot, a slash or an underscore."""
    escaped = escape_tex(unicodedata.normalize("NFC", text)).replace(r"\_", r"{\char95}")  # the font's own, not a rule
    return re.sub(r"(\.|/|\{\\char95\}|=)(?=.)", r"\1\\allowbreak{}", escaped)


def _text(text: Text) -> str:
    return "".join(map(_piece, text))


def _piece(piece: Piece) -> str:
    match piece:
        case Code(text):
            return rf"\texttt{{{_broken(text)}}}"
        case Link(text, url):
            address = re.sub(r"([%#&_~^{}\\])", r"\\\1", url)
            return rf"\href{{{address}}}{{{_plain(text)}}}"
        case Cite(key):
            return rf"(\hyperlink{{ref-{key}}}{{{_plain(REFERENCES[key].label)}}})"
        case _:
            return _plain(piece)


@dataclass(frozen=True)
class _Layout:
    """The letter size of a table, and the specification of each of its columns."""

    size: str
    columns: tuple[str, ...]


def _layout(table: Table) -> _Layout:
    """The largest letters with which it fits the page; columns of text fold where none does."""
    widths = [
        max([*map(len, _words(column.title)), *(len(row[at].text) for row in table.rows)], default=0)
        for at, column in enumerate(table.columns)
    ]
    gaps = GAP * (len(widths) - 1)
    sides = ["r" if column.align == "right" else "l" for column in table.columns]
    for size, points in SIZES[:2]:
        if sum(widths) * points + gaps <= TEXT_WIDTH:
            return _Layout(size, tuple(sides))
    folding = [at for at, side in enumerate(sides) if side == "l" and widths[at] > LEAST_SIGNS]
    for size, points in SIZES:
        rest = TEXT_WIDTH - gaps - points * sum(width for at, width in enumerate(widths) if at not in folding)
        if folding and rest >= LEAST_SIGNS * points * len(folding):
            total = sum(widths[at] for at in folding)
            shares = {at: max(LEAST_SIGNS * points, rest * widths[at] / total) for at in folding}
            shrink = min(1.0, rest / sum(shares.values()))
            return _Layout(
                size,
                tuple(
                    rf">{{\raggedright\arraybackslash}}p{{{shares[at] * shrink:.0f}pt}}" if at in shares else side
                    for at, side in enumerate(sides)
                ),
            )
    return _Layout(SIZES[-1][0], tuple(sides))


def _words(title: str) -> list[str]:
    """The lines of a column's title: one word each, short ones together."""
    lines: list[str] = []
    for word in title.split():
        if lines and len(lines[-1]) + len(word) < 9:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _table(table: Table) -> str:
    layout = _layout(table)
    heads = []
    for column, spec in zip(table.columns, layout.columns, strict=True):
        lines = [_plain(line) for line in _words(column.title)]
        folded = len(lines) > 1 and spec in "lr"
        stacked = r"\\".join(lines)
        heads.append(rf"\shortstack[{spec}]{{{stacked}}}" if folded else " ".join(lines))
    top = [r"\toprule", *([" & ".join(heads) + r" \\", r"\midrule"] if any(heads) else [])]
    lines = [f"{{\\{layout.size}", rf"\begin{{longtable}}{{@{{}}{''.join(layout.columns)}@{{}}}}"]
    if table.caption:
        lines += [rf"\caption{{{_text(table.caption)}}}\label{{table-{table.name}}}\\"]
    lines += [*top, r"\endfirsthead", *top, r"\endhead", r"\bottomrule", r"\endlastfoot"]
    for row in table.rows:
        cells = [_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        lines.append(" & ".join(cells) + r" \\")
    end = "}" if table.caption else r"\addtocounter{table}{-1}}"  # each longtable takes a number
    return "\n".join([*lines, r"\end{longtable}", end])


def _cell(cell: Cell, column: Column) -> str:
    if column.code and cell.text not in ("", NONE):
        return rf"\texttt{{{_broken(cell.text)}}}"
    text = re.sub(r"(?<![\w.])-(?:\{\})?(?=\d)", "$-$", _plain(cell.text))  # a minus, not a hyphen
    return rf"\textbf{{{text}}}" if cell.best and text else text


def _figure(figure: Figure, pictures: str) -> str:
    width = min(1.0, figure.width / PAGE_PIXELS)
    options = rf"width={width:.2f}\linewidth,height=0.8\textheight,keepaspectratio"
    return "\n".join(
        [
            r"\begin{figure}[H]",
            r"\centering",
            rf"\includegraphics[{options}]{{{pictures}/{figure.name}.png}}",
            rf"\caption{{{_plain(figure.title)}. {_plain(figure.caption)}}}\label{{figure-{figure.name}}}",
            r"\end{figure}",
        ]
    )
