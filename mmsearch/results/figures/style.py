"""What all figures share: colours, fonts, and how a figure looks on a light and on a dark page.

Colours are told apart with any colour vision (after Okabe and Ito, "Color universal design", 2008), and each stands out
from a light page and from a dark one, so that a figure changes its page without being drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import plotly.graph_objects as go

Scheme = Literal["light", "dark"]

BLUE, VERMILLION, GREEN = "#2f7fc1", "#d55e00", "#009e73"
PURPLE, OCHRE, GREY = "#b4609c", "#b07c00", "#808080"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, OCHRE, GREY)
SEQUENTIAL = "Cividis"  # readable with any colour vision, and in grey

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
PAGES: dict[Scheme, dict[str, str]] = {
    "light": {"page": "#ffffff", "ink": "#1c2430", "grid": "#e3e7ed", "line": "#b4bcc8"},
    "dark": {"page": "#14181f", "ink": "#e6e9ef", "grid": "#2b323d", "line": "#566071"},
}


@dataclass(frozen=True)
class Figure:
    """One figure of a report.

    `name` is its file's stem; `title` a few words; `caption` one to three sentences on what is shown and how it was
    measured, a caution included where one is due. `plot` has axis titles with units, and no title and no background of
    its own. `width` and `height` are the pixels at which it is to be read. `alternative` says what it shows to whoever
    does not see it.
    """

    name: str
    title: str
    caption: str
    plot: go.Figure = field(repr=False)
    width: int = 900
    height: int = 460
    alternative: str = ""


def template(scheme: Scheme) -> go.layout.Template:
    """How every figure looks on a page of this scheme."""
    page = PAGES[scheme]
    axis: dict[str, Any] = {
        "gridcolor": page["grid"],
        "linecolor": page["line"],
        "zerolinecolor": page["grid"],
        "showline": True,
        "ticks": "outside",
        "tickcolor": page["line"],
        "automargin": True,
        "title": {"standoff": 10},
    }
    return go.layout.Template(
        layout={
            "colorway": PALETTE,
            "colorscale": {"sequential": SEQUENTIAL},
            "font": {"family": FONT, "size": 13, "color": page["ink"]},
            "paper_bgcolor": page["page"],
            "plot_bgcolor": page["page"],
            "margin": {"l": 60, "r": 24, "t": 24, "b": 56},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"bgcolor": "rgba(0,0,0,0)"},
            "hoverlabel": {"font": {"family": FONT}},
            # for text over points: an annotation with this as its templateitemname stands on the page's colour
            "annotations": [
                {
                    "name": "label",
                    "visible": False,
                    "bgcolor": page["page"],
                    "opacity": 0.85,
                    "borderpad": 1,
                    "showarrow": False,
                }
            ],
        }
    )


def themed(figure: Figure, scheme: Scheme) -> go.Figure:
    """A figure's plot on a page of this scheme, at its size; the figure itself stays as it is."""
    plot = go.Figure(figure.plot)
    plot.update_layout(template=template(scheme), width=figure.width, height=figure.height)
    return plot


def through(colour: str, alpha: float) -> str:
    """A colour of the palette through which the page shows, so that text on it stays readable on any page."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
