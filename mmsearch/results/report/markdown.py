"""A report as Markdown (GitHub's), with the pictures of its figures beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmsearch.results.figures.style import Figure
from mmsearch.results.markup import escape_markdown
from mmsearch.results.report.content import (
    Block,
    Bullets,
    Cite,
    Code,
    Commands,
    Link,
    Paragraph,
    Picture,
    Piece,
    Report,
    Table,
    Text,
    Tiles,
)
from mmsearch.results.report.references import REFERENCES
from mmsearch.results.report.words import NONE


def render_markdown(report: Report, pictures: str | None, missing: str | None = None) -> str:
    """The text; `pictures` is the folder of PNG files beside it, or None where there are none, as `missing` says."""
    lines = [f"# {_plain(report.title)}", "", _plain(report.subtitle), ""]
    if missing is not None:
        lines += [f"> {_plain(missing)}", ""]
    figures = tables = 0

    def block(held: Block) -> Iterator[str]:
        nonlocal figures, tables
        match held:
            case Paragraph(text, kind):
                yield ("> " if kind == "note" else "") + _begun(_text(text))
            case Bullets(items):
                yield "\n".join(f"- {_begun(_text(item))}" for item in items)
            case Commands(commands):
                fence = "`" * max(3, 1 + max(map(len, re.findall("`+", "\n".join(commands))), default=0))
                yield "\n".join([f"{fence}sh", *commands, fence])
            case Tiles(items):
                rows = [(tile.label, f"**{_plain(tile.value)}**", tile.detail) for tile in items]
                body = [f"| {_plain(label)} | {shown} | {_plain(detail)} |" for label, shown, detail in rows]
                yield "\n".join(["| | | |", "|---|--:|---|", *body])
            case Table():
                tables += 1
                yield f"**Table {tables}.** {_text(held.caption)}"
                yield _table(held)
            case Picture(figure):
                figures += 1
                if pictures is not None:
                    yield _figure(figure, figures, pictures)

    for section in report.sections:
        lines += [f"## {_plain(section.title)}", ""]
        for held in section.blocks:
            lines += [part + "\n" for part in block(held)]
        for inner in section.subsections:
            lines += [f"### {_plain(inner.title)}", ""]
            for held in inner.blocks:
                lines += [part + "\n" for part in block(held)]
    cited = report.cited()
    if cited:
        lines += ["## References", ""]
        lines += [f"- {_plain(REFERENCES[key].entry)} <{REFERENCES[key].url}>" for key in cited]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    return escape_markdown(text)


def _begun(text: str) -> str:
    """A text at the beginning of a line, where some signs would make it a heading or a list."""
    return (
        re.sub(r"^(\s*)([#+-]|\d+(?=[.)]))", r"\1\\\2", text)
        if re.match(r"\s*[#+-]", text)
        else re.sub(r"^(\s*\d+)([.)])", r"\1\\\2", text)
    )


def _text(text: Text) -> str:
    return "".join(map(_piece, text))


def _piece(piece: Piece) -> str:
    match piece:
        case Code(text):
            return _code(text)
        case Link(text, url):
            return f"[{_plain(text)}](<{url}>)"
        case Cite(key):
            return f"({_plain(REFERENCES[key].label)})"
        case _:
            return _plain(piece)


def _code(text: str) -> str:
    """A code span; the fence is longer than any run of backticks in it."""
    text = re.sub(r"\s+", " ", text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _table(table: Table) -> str:
    """Its rows; what is best stands in bold."""
    header = [_plain(column.title) for column in table.columns]
    rule = ["--:" if column.align == "right" else "---" for column in table.columns]
    body = []
    for row in table.rows:
        cells = []
        for column, cell in zip(table.columns, row, strict=True):
            code = column.code and cell.text not in ("", NONE)
            text = _code(cell.text).replace("|", r"\|") if code else _plain(cell.text)
            cells.append(f"**{text}**" if cell.best and text else text)
        body.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *body))


def _figure(figure: Figure, number: int, pictures: str) -> str:
    said = _plain(figure.alternative or figure.title)
    return (
        f"![{said}]({pictures}/{figure.name}.png)\n\n**Figure {number}. {_plain(figure.title)}.** "
        f"{_plain(figure.caption)} [Interactive]({pictures}/{figure.name}.html)"
    )
