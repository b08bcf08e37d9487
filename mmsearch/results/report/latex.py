"""A report as LaTeX, for pdflatex with the packages of its basic and its recommended collection alone."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    Tile,
    Tiles,
)
from mmsearch.results.report.parts import beside
from mmsearch.results.report.references import REFERENCES
from mmsearch.results.report.words import NONE

TEXT_WIDTH = 450.0  # points, of 160 mm
GAP = 8.0  # points between two columns
SIZES = (("footnotesize", 4.5), ("scriptsize", 4.0))  # and the points that a sign takes, at most
FOLDED_TEXT, FOLDED_NUMBER = 12, 24  # signs: columns that are wider may be folded
PAGE_PIXELS = 1000  # of a figure as wide as the page
BREAKS = "./_= "  # signs that a line may end after, in typewriter letters
# Those have every sign of ASCII at its place, but two quotes; {} keeps two hyphens from becoming a dash.
TYPED = {
    **{sign: rf"{{\char{ord(sign)}}}" for sign in "\\{}_&%#$~^"},
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": "-{}",
}
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
            shown = " \\\\\n".join(_broken(line) for line in lines)
            yield f"\\begin{{flushleft}}\\small\n{shown}\n\\end{{flushleft}}"
        case Tiles(items):
            yield _tiles(items)
        case Table():
            yield from _tables(block)
        case Picture(figure):
            if pictures is not None:
                yield _figure(figure, pictures)


def _tiles(items: tuple[Tile, ...]) -> str:
    lines = [rf"{_plain(tile.label)} & \textbf{{{_plain(tile.value)}}} & {_plain(tile.detail)} \\" for tile in items]
    top, bottom = r"\begin{tabular}{@{}lrp{0.45\linewidth}@{}}\toprule", r"\bottomrule\end{tabular}"
    return "\n".join([r"\begin{center}", top, *lines, bottom, r"\end{center}"])


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
    """A name or a command in typewriter letters, which may break after a dot, a slash or an underscore."""
    text = re.sub(r"[\x00-\x20\x7f]+", " ", unicodedata.normalize("NFC", text))
    parts, run = [], 0
    for sign in text:
        run = 0 if sign in BREAKS else run + 1
        breaks = (sign != " " and not run) or run == CUT
        parts.append(TYPED.get(sign, sign) + (r"\allowbreak{}" if breaks else ""))
        run %= CUT
    return rf"\texttt{{{''.join(parts)}}}"


def _text(text: Text) -> str:
    return "".join(map(_piece, text))


def _piece(piece: Piece) -> str:
    match piece:
        case Code(text):
            return _broken(text)
        case Link(text, url):
            address = re.sub(r"([%#&_~^{}\\])", r"\\\1", url)
            return rf"\href{{{address}}}{{{_plain(text)}}}"
        case Cite(key):
            return rf"(\protect\hyperlink{{ref-{key}}}{{{_plain(REFERENCES[key].label)}}})"
        case _:
            return _plain(piece)


@dataclass(frozen=True)
class _Layout:
    """The letter size of a table, and the specification of each of its columns."""

    size: str
    columns: tuple[str, ...]


def _layout(table: Table) -> _Layout | None:
    """The largest letters with which it fits the page; long columns fold where none does. None: it does not fit."""
    widths = [
        max([*map(len, _words(column.title)), *(len(row[at].text) for row in table.rows)], default=0)
        for at, column in enumerate(table.columns)
    ]
    sides = ["r" if column.align == "right" else "l" for column in table.columns]
    page = TEXT_WIDTH - GAP * (len(widths) - 1)
    for size, points in SIZES:
        if sum(widths) * points <= page:
            return _Layout(size, tuple(sides))
    folding = {at for at, side in enumerate(sides) if widths[at] > (FOLDED_TEXT if side == "l" else FOLDED_NUMBER)}
    for size, points in SIZES:
        rest = page - points * sum(width for at, width in enumerate(widths) if at not in folding)
        if folding and rest >= FOLDED_TEXT * points * len(folding):
            total = sum(widths[at] for at in folding)
            least = FOLDED_TEXT * points
            shares = {at: least + (rest - least * len(folding)) * widths[at] / total for at in folding}
            ragged = {"l": r"\raggedright", "r": r"\raggedleft"}
            return _Layout(
                size,
                tuple(
                    rf">{{{ragged[side]}\arraybackslash}}p{{{shares[at]:.0f}pt}}" if at in shares else side
                    for at, side in enumerate(sides)
                ),
            )
    return None


def _words(title: str) -> list[str]:
    """The lines of a column's title: one word each, short ones together."""
    lines: list[str] = []
    for word in title.split():
        if lines and len(lines[-1]) + len(word) < 9:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _tables(table: Table) -> Iterator[str]:
    """The table; or as many as it takes for its columns to fit the page, each with the first column."""
    layout = _layout(table)
    if layout is not None:
        yield _table(table, layout)
        return
    first, rest = 1, len(table.columns)
    while first < rest:
        part, layout, last = None, None, rest
        while layout is None and last > first:
            at = [0, *range(first, last)]
            part = replace(
                table,
                name=table.name if first == 1 else f"{table.name}-{first}",
                columns=tuple(table.columns[place] for place in at),
                rows=tuple(tuple(row[place] for place in at) for row in table.rows),
                caption=table.caption if first == 1 else (*table.caption, " Continued."),
            )
            layout, last = _layout(part), last - 1
        assert part is not None
        yield _table(part, layout or _Layout(SIZES[-1][0], tuple("l" * len(part.columns))))
        first = last + 1


def _table(table: Table, layout: _Layout) -> str:
    heads = []
    for column, spec in zip(table.columns, layout.columns, strict=True):
        lines = [_plain(line) for line in _words(column.title)]
        stacked = r"\\".join(lines)
        heads.append(rf"\shortstack[{spec}]{{{stacked}}}" if len(lines) > 1 and spec in "lr" else " ".join(lines))
    top = [r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    lines = [f"{{\\{layout.size}", rf"\begin{{longtable}}{{@{{}}{''.join(layout.columns)}@{{}}}}"]
    lines += [rf"\caption{{{_text(table.caption)}}}\label{{table-{table.name}}}\\"]
    lines += [*top, r"\endfirsthead", *top, r"\endhead", r"\bottomrule", r"\endlastfoot"]
    for row in table.rows:
        cells = [_cell(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\end{longtable}", "}"])


def _cell(cell: Cell, column: Column) -> str:
    if column.code and cell.text not in ("", NONE):
        return _broken(cell.text)
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
