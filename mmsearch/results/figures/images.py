"""Figures as image files, drawn by a Chrome or Chromium without a window."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from mmsearch.errors import MmsearchError
from mmsearch.paths import replacing
from mmsearch.results.figures.style import Figure, Scheme, themed

Format = Literal["png", "svg"]
SCALE = 2  # pixels of a PNG to one of the figure
PATIENCE_S = 60.0  # for the browser's start with the first image, and for each further one
NEEDED = "pip install 'mmsearch[figures]', and install a Chrome or Chromium"


def write_images(
    figures: Sequence[Figure],
    folder: Path,
    formats: Sequence[Format] = ("png", "svg"),
    scheme: Scheme = "light",
    *,
    patience: float = PATIENCE_S,
) -> list[Path]:
    """Write each figure into the folder, as `<name>.<format>`, on a page of the scheme; returns the paths.

    The browser is started once: the one that BROWSER_PATH names, or else the first that kaleido finds. It is ended
    where it takes more than `patience` seconds for an image.

    Raises `MmsearchError` where the extra `figures` or a browser is missing, or the browser fails; `OSError`.
    """
    wanted = [(figure, form, folder / f"{figure.name}.{form}") for figure in figures for form in formats]
    if not wanted:
        return []
    with _Drawing([(themed(figure, scheme), form) for figure, form, _ in wanted], patience) as drawing:
        for _, _, path in wanted:
            image = drawing.next()
            with replacing(path) as temporary:
                temporary.write_bytes(image)
    return [path for *_, path in wanted]


class _Drawing:
    """A browser that draws one image after the other, in a thread of its own: the caller may run an event loop."""

    def __init__(self, plots: Sequence[tuple[Any, Format]], patience: float) -> None:
        try:
            import kaleido
            from kaleido.errors import ChromeNotFoundError
        except ImportError:
            raise MmsearchError(f"images of figures need the extra `figures`: {NEEDED}") from None
        for name in ("choreographer", "kaleido", "browser_proc"):  # what is wrong is raised; the rest is noise
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._browser = kaleido.Kaleido(mathjax=False, timeout=None)
        except ChromeNotFoundError:
            named = os.environ.get("BROWSER_PATH")
            where = f"BROWSER_PATH={named} is no program" if named else "none was found"
            raise MmsearchError(f"images of figures need a Chrome or Chromium, and {where}: {NEEDED}") from None
        self._plots, self._patience = plots, patience
        self._made: queue.Queue[bytes | BaseException] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Drawing:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:
            self._thread.join(self._patience)  # it ends by itself
        self._kill()

    def next(self) -> bytes:
        """The next image; raises `MmsearchError` where there is none within `patience` seconds."""
        browser = self._browser._browser_impl.path
        try:
            made = self._made.get(timeout=self._patience)
        except queue.Empty:
            raise MmsearchError(
                f"the browser {browser} has not drawn a figure within {self._patience:g} s, and was ended; "
                "BROWSER_PATH names another"
            ) from None
        if isinstance(made, BaseException):
            text = " ".join(str(made.args[0] if made.args else type(made).__name__).split()).rstrip(".")
            raise MmsearchError(f"the browser {browser} draws no figures: {text}; BROWSER_PATH names another") from made
        return made

    def _run(self) -> None:
        try:
            asyncio.run(self._draw())
        except BaseException as error:
            self._made.put(error)

    async def _draw(self) -> None:
        async with self._browser as browser:
            for plot, form in self._plots:
                options = {"format": form, "scale": SCALE if form == "png" else 1}
                self._made.put(await browser.calc_fig(plot, options))

    def _kill(self) -> None:
        """End what is left of the browser, which leads a process group of its own."""
        process = getattr(self._browser, "subprocess", None)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        self._thread.join(10)
