"""The files beside these modules that pages and documents are made with."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def beside(name: str) -> str:
    """The content of `page.css`, `page.js`, `figure.html` or `preamble.tex`."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
