"""Text and tables in Markdown and in LaTeX: escaped, aligned, and with the rows that stand out in bold."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

TEX = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "{}_&%#$"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: f"{{{sign}}}" for sign in "[]*"},  # after \\, \item or \midrule they would be taken for an option
}


def escape_tex(text: str) -> str:
    """A text as LaTeX prints it, on one line, with any encoding of fonts; beyond ASCII it stays as it is."""
    text = re.sub(r"[\x00-\x20\x7f]+", " ", text)
    parts = re.split(r"(?<=[-?!])(?=[-`])", text)  # two hyphens would become a dash, ?` another mark
    return "{}".join("".join(TEX.get(sign, sign) for sign in part) for part in parts)


def escape_markdown(text: str) -> str:
    """A text as Markdown shows it, on one line and within one, also in a cell of a table.

    An underscore between letters or digits, as in `max_epochs`, means nothing there and stays as it is. Between two
    dollar signs GitHub typesets a formula.
    """
    text = re.sub(r"[\x00-\x20\x7f]+", " ", text)
    text = re.sub(r"[\\`*\[\]<>|~$]|&(?=#?\w+;)", r"\\\g<0>", text)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\_", text)


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "", marked: Collection[int] = ()
) -> str:
    """A table of plain texts for Markdown (GitHub's), which lines up as text too.

    `align` has `l` or `r` for each column, and is all `l` where it is left out. `marked` are the positions of the rows
    in bold.
    """
    align = align or "l" * len(header)
    cells = [[escape_markdown(text).strip() for text in row] for row in (header, *rows)]
    for position in marked:
        cells[position + 1] = [f"**{text}**" if text else "" for text in cells[position + 1]]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [
            text.rjust(width) if side == "r" else text.ljust(width)
            for text, width, side in zip(row, widths, align, strict=True)
        ]
        for row in cells
    ]
    rule = ["-" * (width - 1) + (":" if side == "r" else "-") for width, side in zip(widths, align, strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def tex_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "", marked: Collection[int] = ()
) -> str:
    """The same as a `tabular` of LaTeX, to stand in a `table` with a caption; it needs the package booktabs only."""
    lines = [" & ".join(map(escape_tex, header)) + r" \\", r"\midrule"]
    for position, row in enumerate(rows):
        texts = [_minus(escape_tex(text)) for text in row]
        if position in marked:
            texts = [rf"\textbf{{{text}}}" if text else "" for text in texts]
        lines.append(" & ".join(texts) + r" \\")
    body = "\n".join([r"\toprule", *lines, r"\bottomrule"])
    return f"\\begin{{tabular}}{{{align or 'l' * len(header)}}}\n{body}\n\\end{{tabular}}\n"


def _minus(text: str) -> str:
    """With the sign of a negative number as one, not as a hyphen."""
    return re.sub(r"^-(?=[\d.])", "$-$", text)
