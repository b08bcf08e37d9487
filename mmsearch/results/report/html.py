"""A report as one HTML page that needs nothing else: styles, figures and plotly.js are inside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from string import Template

from plotly.offline import get_plotlyjs

from mmsearch.results.figures.style import PAGES, Figure, template
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
    Section,
    Table,
    Text,
    Tiles,
)
from mmsearch.results.report.parts import beside
from mmsearch.results.report.references import REFERENCES
from mmsearch.results.report.words import NONE

# No network at all: what a page of somebody else's names could ask for is refused. Some of plotly's figures are
# compiled in the browser, which is what unsafe-eval allows.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; img-src data: blob:; "
    "font-src data:; worker-src blob:"
)


class _Counter:
    """Numbers of figures and tables, in their order."""

    def __init__(self) -> None:
        self.figures = self.tables = 0


def render_html(report: Report) -> str:
    """The page."""
    counter = _Counter()
    body = "\n".join(part for section in report.sections for part in _section(section, 2, counter))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(report.title)}</title>",
            f"<style>\n{beside('page.css')}</style>",
            "</head>",
            "<body>",
            '<div class="sheet">',
            "<header>",
            '<button class="switch" type="button" hidden>Dark page</button>',
            f"<h1>{escape(report.title)}</h1>",
            f"<p>{escape(report.subtitle)}</p>",
            "</header>",
            _contents(report),
            "<main>",
            body,
            *_references(report),
            "</main>",
            "<noscript><p>The figures are drawn by scripts, which this browser does not run.</p></noscript>",
            "</div>",
            f'<script type="application/json" id="templates">{_templates()}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>\n{beside('page.js')}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _templates() -> str:
    """How figures look on each page."""
    return _json(json.dumps({scheme: template(scheme).to_plotly_json() for scheme in PAGES}))


def _json(text: str) -> str:
    """JSON as it may stand in a script element, which ends at the first `</script` and has a say on `<!--`."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _contents(report: Report) -> str:
    def entry(section: Section) -> str:
        parts = "".join(f"<li>{link(part)}</li>" for part in section.subsections)
        return f"<li>{link(section)}{f'<ol>{parts}</ol>' if parts else ''}</li>"

    def link(section: Section) -> str:
        return f'<a href="#{section.name}">{escape(section.title)}</a>'

    entries = "".join(map(entry, report.sections))
    if report.cited():
        entries += '<li><a href="#references">References</a></li>'
    return f'<nav class="contents"><details><summary>Contents</summary><ol>{entries}</ol></details></nav>'


def _section(section: Section, level: int, counter: _Counter) -> Iterator[str]:
    yield f'<section id="{section.name}">'
    yield f"<h{level}>{escape(section.title)}</h{level}>"
    for block in section.blocks:
        yield _block(block, counter)
    for part in section.subsections:
        yield from _section(part, level + 1, counter)
    yield "</section>"


def _block(block: Block, counter: _Counter) -> str:
    match block:
        case Paragraph(text, kind):
            return f'<p class="{kind}">{_text(text)}</p>'
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_text(item)}</li>" for item in items) + "</ul>"
        case Commands(lines):
            return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"
        case Tiles(items):
            tiles = "".join(
                f'<div><dt>{escape(tile.label)}</dt><dd class="value">{escape(tile.value)}</dd>'
                f'<dd class="detail">{escape(tile.detail)}</dd></div>'
                for tile in items
            )
            return f'<dl class="tiles">{tiles}</dl>'
        case Table():
            counter.tables += 1
            return _table(block, counter.tables)
        case Picture(figure):
            counter.figures += 1
            return _figure(figure, counter.figures)


def _text(text: Text) -> str:
    return "".join(map(_piece, text))


def _piece(piece: Piece) -> str:
    match piece:
        case Code(text):
            return f"<code>{escape(text)}</code>"
        case Link(text, url):
            return f'<a href="{escape(url)}">{escape(text)}</a>'
        case Cite(key):
            return f'(<a href="#ref-{key}">{escape(REFERENCES[key].label)}</a>)'
        case _:
            return escape(piece)


def _table(table: Table, number: int) -> str:
    def attributes(position: int, best: bool = False) -> str:
        names = [*(["right"] if table.columns[position].align == "right" else []), *(["best"] if best else [])]
        return f' class="{" ".join(names)}"' if names else ""

    head = "".join(
        f'<th scope="col"{attributes(at)}>{escape(column.title)}</th>' for at, column in enumerate(table.columns)
    )
    lines = []
    for row in table.rows:
        cells = []
        for at, cell in enumerate(row):
            code = table.columns[at].code and cell.text not in ("", NONE)
            text = f"<code>{escape(cell.text)}</code>" if code else escape(cell.text)
            cells.append(f"<td{attributes(at, cell.best)}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return (
        f'<div class="table" id="table-{table.name}">'
        f'<p class="caption"><b>Table {number}.</b> {_text(table.caption)}</p>'
        f'<div class="scroll" tabindex="0"><table>{body}</table></div></div>'
    )


def _figure(figure: Figure, number: int) -> str:
    said = figure.alternative or f"{figure.title}. {figure.caption}"
    return (
        f'<figure id="figure-{figure.name}" data-figure data-width="{figure.width}" data-height="{figure.height}">'
        f'<script type="application/json">{_json(plot_json(figure))}</script>'
        f'<div class="plot" role="img" aria-label="{escape(said)}"></div>'
        f"<figcaption><b>Figure {number}. {escape(figure.title)}.</b> {escape(figure.caption)}</figcaption></figure>"
    )


def plot_json(figure: Figure) -> str:
    """What plotly.js draws of a figure, without a template: the page has its own."""
    held = json.loads(figure.plot.to_json())
    held["layout"].pop("template", None)
    return json.dumps({"data": held["data"], "layout": held["layout"]}, separators=(",", ":"))


def _references(report: Report) -> Iterator[str]:
    cited = report.cited()
    if not cited:
        return
    yield '<section id="references"><h2>References</h2><ul>'
    for key in cited:
        held = REFERENCES[key]
        address = escape(held.url)
        yield f'<li id="ref-{key}">{escape(held.entry)} <a href="{address}">{address}</a></li>'
    yield "</ul></section>"


def render_figure(figure: Figure, plotly: str) -> str:
    """A page of one figure, which loads plotly.js from the file `plotly` beside it."""
    page = json.loads(plot_json(figure)) | {"width": figure.width, "height": figure.height}
    return Template(beside("figure.html")).substitute(
        title=escape(figure.title),
        caption=escape(figure.caption),
        alternative=escape(figure.alternative or figure.title),
        plotly=escape(plotly),
        figure=_json(json.dumps(page, separators=(",", ":"))),
        templates=_templates(),
        **{f"{scheme}_{part}": PAGES[scheme][part] for scheme in PAGES for part in ("page", "ink")},
    )
