"""Figures as PNG and SVG: drawn by a real browser, and one sentence where there is none, or none that works."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import plotly.graph_objects as go
import pytest
from conftest import require
from PIL import Image
from planted import plant, study_file

from mmsearch.errors import MmsearchError
from mmsearch.results.figures.images import write_images
from mmsearch.results.figures.search import figures_of
from mmsearch.results.figures.style import BLUE, PAGES, Figure
from mmsearch.results.figures.trials import read_study


def figure(name: str = "line", text: str = "epochs of a trial") -> Figure:
    plot = go.Figure(go.Scatter(y=[1, 3, 2], line={"color": BLUE, "width": 8}))
    plot.update_layout(xaxis={"title": text}, yaxis={"title": "macro F1"})
    return Figure(name, "A line", "A line.", plot, width=500, height=300)


def program(path: Path, lines: str) -> Path:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return path


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def test_each_figure_becomes_an_image_of_each_format(tmp_path: Path) -> None:
    require("chromium")
    folder = tmp_path / "figures"
    written = write_images([figure(), figure("other", "another axis")], folder)
    assert [path.name for path in written] == ["line.png", "line.svg", "other.png", "other.svg"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in written)
    image = Image.open(folder / "line.png").convert("RGB")
    assert image.size == (1000, 600)  # two pixels to one of the figure
    assert image.getpixel((2, 2)) == rgb(PAGES["light"]["page"])
    colours = {colour for _, colour in image.getcolors(1 << 20)}  # type: ignore[union-attr]
    assert rgb(BLUE) in colours
    drawing = (folder / "line.svg").read_text()
    assert drawing.startswith("<svg")
    assert 'width="500" height="300"' in drawing
    assert "epochs of a trial" in drawing
    assert "another axis" in (folder / "other.svg").read_text()


def test_all_figures_of_a_search_are_drawn(tmp_path: Path) -> None:
    """Also a test of plotly.js, which hangs for ever on a contour and marks that share a coloraxis."""
    require("chromium")
    config = study_file(
        tmp_path,
        """
        "optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
        "head.dropout" = { low = 0.0, high = 0.6 }
        "image.encoder" = ["cnn", "mlp"]
        "image.mlp.dropout" = { low = 0.0, high = 0.6 }
        """,
    )
    opened = plant(config, 40, lambda h, rng: 0.9 + 0.1 * float(h["head.dropout"]) + 0.01 * rng.normal(), pruned=0.3)
    figures = figures_of(read_study(opened))
    assert len(figures) == 8
    for path, held in zip(write_images(figures, tmp_path, ("svg",), patience=30), figures, strict=True):
        drawing = path.read_text()
        assert f'width="{held.width}" height="{held.height}"' in drawing
        for axis in held.plot.select_xaxes():
            for line in (axis.title.text or "").split("<br>") if axis.visible is not False else ():
                assert line in drawing


def test_a_dark_page_is_dark_and_an_event_loop_may_run(tmp_path: Path) -> None:
    require("chromium")

    async def within() -> list[Path]:
        return write_images([figure()], tmp_path, ("png",), "dark")

    (path,) = asyncio.run(within())
    image = Image.open(path).convert("RGB")
    assert image.getpixel((2, 2)) == rgb(PAGES["dark"]["page"])


def test_no_figures_need_no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    assert write_images([], tmp_path / "figures") == []


def sentence(folder: Path, patience: float = 60) -> str:
    with pytest.raises(MmsearchError) as error:
        write_images([figure()], folder / "figures", patience=patience)
    assert not (folder / "figures").exists()
    assert error.value.exit_code == 1
    (line,) = str(error.value).splitlines()
    return line


def test_without_a_browser_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nothing"))
    said = sentence(tmp_path)
    assert f"BROWSER_PATH={tmp_path}/nothing is no program" in said
    assert "pip install 'mmsearch[figures]', and install a Chrome or Chromium" in said


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    assert "pip install 'mmsearch[figures]'" in sentence(tmp_path)


def test_a_browser_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = program(tmp_path / "hangs", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    monkeypatch.setenv("BROWSER_PATH", str(hangs))
    said = sentence(tmp_path, patience=4)
    assert f"the browser {hangs} has not drawn a figure within 4 s, and was ended" in said
    number = int((tmp_path / "pid").read_text())
    status = Path(f"/proc/{number}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_browser_that_ends_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(program(tmp_path / "ends", "exit 3")))
    assert f"the browser {tmp_path}/ends draws no figures: " in sentence(tmp_path)


def test_nothing_of_a_browser_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("chromium")
    with tempfile.TemporaryDirectory() as scratch:  # not below tmp_path: the name of a browser's socket has a limit
        monkeypatch.setenv("TMPDIR", scratch)
        monkeypatch.setattr("tempfile.tempdir", None)
        write_images([figure()], tmp_path / "figures", ("svg",))
        assert list(Path(scratch).iterdir()) == []
        running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if scratch.encode() in _read(path)]
        assert running == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""
