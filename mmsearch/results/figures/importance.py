"""The importance of the parameters, as bars."""

from __future__ import annotations

import plotly.graph_objects as go

from mmsearch.results.figures.anova import Importances
from mmsearch.results.figures.style import BLUE, GREY, VERMILLION, Figure, through
from mmsearch.results.figures.trials import Searched, number, numbers
from mmsearch.search.progress import plural
from mmsearch.search.values import in_words

MOST_SHOWN = 20


def importance_figure(searched: Searched, found: Importances) -> Figure:
    """A bar for each parameter, with its interval, and a line for what chance makes of the most important."""
    shown = found.rows[:MOST_SHOWN]
    names = [row.name for row in shown]
    plot = go.Figure()
    for clear, colour, name in ((True, BLUE, "stands out from chance"), (False, GREY, "may be chance")):
        rows = [row for row in shown if (row.share > found.chance) == clear]
        if rows:
            plot.add_bar(
                orientation="h",
                y=[row.name for row in rows],
                x=numbers(100 * row.share for row in rows),
                error_x={
                    "array": numbers(100 * max(0.0, row.interval[1] - row.share) for row in rows),
                    "arrayminus": numbers(100 * max(0.0, row.share - row.interval[0]) for row in rows),
                    "color": colour,
                    "thickness": 2,
                    "width": 4,
                },
                marker={"color": through(colour, 0.45)},
                customdata=[[row.trials, 100 * row.interval[0], 100 * row.interval[1]] for row in rows],
                name=name,
                hovertemplate="%{y}: %{x:.1f} % (%{customdata[1]:.1f} to %{customdata[2]:.1f}), "
                "applied to %{customdata[0]} trials<extra></extra>",
            )
    plot.add_scatter(
        x=[number(100 * found.chance)] * 2,
        y=[names[0], names[-1]],
        mode="lines",
        line={"color": VERMILLION, "dash": "dash", "width": 1.5},
        name=f"the most that chance gives to any: {100 * found.chance:.0f} %",
        hovertemplate="by chance at most %{x:.1f} %<extra></extra>",
    )
    longest = max(row.interval[1] for row in shown)
    most = 100 * (found.chance if found.chance < 1.2 * longest else longest)
    most = max(most, 100 * longest)
    plot.update_layout(
        barmode="overlay",
        bargap=0.3,
        xaxis={"title": f"share of the variance of the {searched.words.split(' (')[0]} (%)", "range": [0, most * 1.04]},
        yaxis={"categoryorder": "array", "categoryarray": names[::-1], "showgrid": False},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "xref": "container"},
        margin={"t": 64 if found.doubt else 44},
    )
    if found.doubt:
        plot.add_annotation(
            text=f"<b>Too few trials</b>: {found.doubt}",
            xref="paper",
            yref="paper",
            x=1,
            y=1,
            xanchor="right",
            yanchor="bottom",
            showarrow=False,
        )
    height = max(240, 130 + 26 * len(shown) + (20 if found.doubt else 0))
    first = f"{shown[0].name} explains most, {100 * shown[0].share:.0f} %."
    return Figure(
        "importances", "Importance of the parameters", _caption(searched, found), plot, height=height, alternative=first
    )


def _caption(searched: Searched, found: Importances) -> str:
    text = ""
    if found.doubt:
        text = f"Too few trials to tell: {found.doubt}. "
    text += (
        f"How much of the variance over the space each parameter explains by itself (functional ANOVA on a forest, "
        f"{plural(found.trials, 'trial')}; pruned ones count with their last value). Bars of error are 95 % bootstrap "
        "intervals; the dashed line is the most that any parameter is given, in 19 of 20 cases, when the same values "
        "are dealt out at random. What parameters do together is not shown."
    )
    if len(searched.metrics) > 1:
        text += " Only the leading metric is shown."
    if found.beyond:
        worse = f"{plural(found.beyond, 'trial')} worse than {in_words(searched.metrics[0], found.edge)}"
        text += f" {worse} {'counts' if found.beyond == 1 else 'count'} as that."
    if len(found.rows) > MOST_SHOWN:
        text += f" The first {MOST_SHOWN} of {len(found.rows)} are shown."
    return text
