"""The report as LaTeX: it compiles, whatever the names in it, and no table is wider than its page."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import require
from PIL import Image
from reports import ablation_of, config_of, confirmation_of, figure, material_of, metrics, score, searched_of, trial
from test_report import HOSTILE

from mmsearch.results.report.build import build
from mmsearch.results.report.content import (
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Commands,
    Link,
    Picture,
    Report,
    Section,
    note,
    paragraph,
    table,
)
from mmsearch.results.report.latex import render_latex

# Latin letters with all kinds of marks, of which the oldest fonts lack some; Greek, Cyrillic, Chinese, Arabic, a face.
LETTERS = ("Ørsted Þór ðß ąęłőž «ja» „nein“ …–—", "αβγ Ж 犬 كلب 🐶 e\u0301")
NAMES = (HOSTILE, *LETTERS, "x" * 90, "=1+1", "-0.5", "", "{}^~")
OVERFULL_PT = 20


def compiles(folder: Path, text: str) -> str:
    """Compile a document twice, and return the log; it must compile and fit the page."""
    pdflatex = require("pdflatex")
    (folder / "report.tex").write_text(text, encoding="utf-8")
    for _ in range(2):
        done = subprocess.run(
            [pdflatex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"],
            cwd=folder,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-3000:]
    log = (folder / "report.log").read_text(encoding="utf-8", errors="replace")
    wide = [float(found) for found in re.findall(r"Overfull \\hbox \(([\d.]+)pt too wide\)", log)]
    assert max(wide, default=0) <= OVERFULL_PT, log
    return log


def pictures(folder: Path, *names: str) -> None:
    (folder / "figures").mkdir()
    for name in names:
        Image.new("RGB", (1200, 600), "white").save(folder / "figures" / f"{name}.png")


@pytest.mark.slow
def test_names_of_all_kinds_compile(tmp_path: Path) -> None:
    pictures(tmp_path, "history")
    words = [Column("name"), Column("code", code=True), Column("a long title of numbers", "right")]
    blocks: tuple[Block, ...] = (
        *(paragraph(name, " ", Code(name), " ", Link(name, "trials.csv?a_b=50%#x")) for name in NAMES),
        note(HOSTILE),
        Bullets(tuple((name,) for name in NAMES)),
        Commands((f"mmsearch launch studies/a_b.toml --storage 'postgresql://me@host/db' --data /{'x' * 99}", HOSTILE)),
        table("names", HOSTILE, words, [[name, name, Cell(name, best=True)] for name in NAMES[3:]]),
        table("wide", "Wide.", [Column(f"column {at}", "right") for at in range(14)], [["0.123456"] * 14] * 90),
        table("texts", "Texts.", [Column(name) for name in ("a", "b", "c")], [["word " * 30] * 3] * 3),
        Picture(figure(title=HOSTILE, caption=HOSTILE)),
    )
    log = compiles(tmp_path, render_latex(Report(HOSTILE, HOSTILE, (Section("one", HOSTILE, blocks),)), "figures"))
    assert "Missing character" not in log
    assert "LaTeX Error" not in log


@pytest.mark.slow
def test_a_whole_report_compiles(tmp_path: Path) -> None:
    pictures(tmp_path, "history", "confusion")
    config = config_of(tmp_path)
    searched = searched_of(config, [trial(config, number, [0.9 + number / 200]) for number in range(12)])
    held = metrics(searched, test=score(classes=NAMES))
    report = build(
        material_of(searched, held, confirmation=confirmation_of(searched), ablation=ablation_of(searched), models=3)
    )
    log = compiles(tmp_path, render_latex(report, "figures"))
    assert "undefined" not in log
    without = render_latex(report, None, "There are no pictures, since 100 % of <browsers> are missing.")
    assert "includegraphics" not in without
    compiles(tmp_path, without)


def test_names_are_escaped() -> None:
    text = render_latex(Report("a_b", "50 %", (Section("one", "#1", (paragraph("x & y", Code("a_b.c")),)),)), None)
    assert r"\title{a\_b}" in text
    assert r"\date{50 \%}" in text
    assert r"\section{\#1}" in text
    assert r"x \& y\texttt{a{\char95}\allowbreak{}b.\allowbreak{}c}" in text
