"""Who trained what and when: a row a worker, a bar a trial, and the time in which nobody worked cut out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from mmsearch.results.figures.style import GREY, Figure
from mmsearch.results.figures.trials import KINDS, Kind, Searched, kind_of, numbers
from mmsearch.search.progress import duration, plural
from mmsearch.search.storage import OWNER

MOST_ROWS = 40
MOST_BARS = 1500
PAUSE = 0.1  # a time in which nobody worked is cut where it is a greater share of the time in which somebody did
CUT = 0.03  # what is left of it, as a share of the latter
NAMED_PAUSES = 5  # of more than these the caption alone tells
UNITS = (("h", 3600.0), ("min", 60.0))


@dataclass(frozen=True)
class Bar:
    """One trial, or several in a row where they would be too thin to see.

    Times are in seconds since the first trial began. `first` and `last` are trials' numbers.
    """

    row: int
    kind: Kind
    start: float
    end: float
    first: int
    last: int


@dataclass(frozen=True)
class Pause:
    """A time in which nobody worked; seconds."""

    start: float
    end: float


def timeline(searched: Searched) -> Figure | None:
    """A bar for each trial that was begun, by worker; None where there is none."""
    bars, labels = bars_of(searched.trials)
    if not bars:
        return None
    found, worked = pauses(bars)
    bars = [replace(bar, start=_cut(bar.start, found, worked), end=_cut(bar.end, found, worked)) for bar in bars]
    total = max(bar.end for bar in bars)
    unit, seconds = next((held for held in UNITS if total >= 2 * held[1]), ("s", 1.0))
    drawn = _joined([bar for bar in bars if bar.row < MOST_ROWS], total / 800 if len(bars) > MOST_BARS else 0.0)
    plot = go.Figure()
    for kind in KINDS:
        _add_bars(plot, kind, [bar for bar in drawn if bar.kind == kind], seconds)
    for number, pause in enumerate(found):
        at = (_cut(pause.start, found, worked) + _cut(pause.end, found, worked)) / 2 / seconds
        text = {"annotation_text": f"{duration(pause.end - pause.start)} off"} if len(found) <= NAMED_PAUSES else {}
        where = {"annotation_position": "top", "annotation_yshift": 12 * (number % 2)} if text else {}
        plot.add_vline(at, line={"color": GREY, "dash": "dot", "width": 1.5}, **text, **where)
    rows = min(len(labels), MOST_ROWS)
    without = ", without pauses" if found else ""
    plot.update_layout(
        barmode="overlay",
        showlegend=True,
        bargap=0.25,
        xaxis={"title": f"time since the start{without} ({unit})", "range": [0, total / seconds * 1.01 or 1]},
        yaxis={"tickvals": [*range(rows)], "ticktext": labels[:rows], "range": [rows - 0.4, -0.6], "showgrid": False},
        legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
        margin={"t": 76 if found else 40},
    )
    plot.update_yaxes(title="worker" if rows > 1 else None)
    height = max(240, 150 + min(34, 720 // rows) * rows)
    caption = _caption(bars, drawn, found, len(labels))
    said = f"{plural(len(bars), 'trial')} on {plural(len(labels), 'worker')} in {duration(worked)}."
    return Figure("timeline", "Timeline of the workers", caption, plot, height=height, alternative=said)


def bars_of(trials: Sequence[FrozenTrial]) -> tuple[list[Bar], list[str]]:
    """A bar for each trial that was begun, and the names of the rows.

    What still runs ends with the latest moment that is known. Workers with one number on one host, such as those of
    one launch and the next, share a row unless they overlap.
    """
    begun = [(trial, kind, began) for trial in trials if (kind := kind_of(trial)) and (began := trial.datetime_start)]
    if not begun:
        return [], []
    zero = min(began for _, _, began in begun)
    now = max(trial.datetime_complete or began for trial, _, began in begun)
    held: dict[tuple[str, str], dict[str, list[tuple[FrozenTrial, Kind, float, float]]]] = defaultdict(dict)
    for trial, kind, began in begun:
        start = (began - zero).total_seconds()
        end = max(start, ((trial.datetime_complete or now) - zero).total_seconds())
        owner = trial.system_attrs.get(OWNER, {})
        name = str(owner.get("worker", ""))
        place = (str(owner.get("host", "")), name.partition("-")[0])
        held[place].setdefault(name, []).append((trial, kind, start, end))
    many = len({host for host, _ in held}) > 1
    bars: list[Bar] = []
    labels: list[str] = []
    for (host, number), workers in sorted(held.items(), key=lambda item: (item[0][0], len(item[0][1]), item[0][1])):
        free: dict[int, float] = {}  # row: when its last worker ended
        for spans in sorted(workers.values(), key=lambda spans: spans[0][2]):
            first, last = min(start for *_, start, _ in spans), max(end for *_, end in spans)
            row = next((row for row, ended in free.items() if ended <= first), None)
            if row is None:
                row = len(labels)
                labels.append((number or "unknown") + (f" on {host}" if many and host else ""))
            free[row] = last
            bars += [Bar(row, kind, start, end, t.number, t.number) for t, kind, start, end in spans]
    return bars, labels


def pauses(bars: Sequence[Bar]) -> tuple[list[Pause], float]:
    """The times in which nobody worked that are long enough to be cut, and for how long somebody did; seconds."""
    found: list[Pause] = []
    reached = worked = 0.0
    for bar in sorted(bars, key=lambda bar: bar.start):
        if bar.start > reached:
            found.append(Pause(reached, bar.start))
        worked += max(0.0, bar.end - max(reached, bar.start))
        reached = max(reached, bar.end)
    return [pause for pause in found if pause.end - pause.start > PAUSE * worked], worked


def _cut(moment: float, found: Sequence[Pause], worked: float) -> float:
    """A moment on an axis from which pauses are cut."""
    return moment - sum(pause.end - pause.start - CUT * worked for pause in found if pause.end <= moment)


def _joined(bars: Sequence[Bar], least: float) -> list[Bar]:
    """The bars, those of one row and kind joined that are shorter than `least` and follow each other as closely."""
    found: list[Bar] = []
    open_: dict[tuple[int, Kind], int] = {}
    for bar in sorted(bars, key=lambda bar: (bar.row, bar.start)):
        place = open_.get((bar.row, bar.kind))
        before = None if place is None else found[place]
        if place is not None and before is not None and bar.end - bar.start < least and bar.start - before.end < least:
            found[place] = replace(before, end=max(before.end, bar.end), last=bar.last)
        else:
            open_[bar.row, bar.kind] = len(found)
            found.append(bar)
    return found


def _add_bars(plot: go.Figure, kind: Kind, bars: Sequence[Bar], seconds: float) -> None:
    if not bars:
        return
    label, colour, _ = KINDS[kind]
    plot.add_bar(
        orientation="h",
        y=[bar.row for bar in bars],
        base=numbers(bar.start / seconds for bar in bars),
        x=numbers((bar.end - bar.start) / seconds for bar in bars),
        customdata=[
            f"trial {bar.first}" if bar.first == bar.last else f"trials {bar.first} to {bar.last}" for bar in bars
        ],
        marker={"color": colour, "line": {"color": "#ffffff", "width": 0.5}},
        name=label,
        hovertemplate=f"%{{customdata}}, {label}<extra></extra>",
    )


def _caption(bars: Sequence[Bar], drawn: Sequence[Bar], found: Sequence[Pause], rows: int) -> str:
    text = "Each bar is a trial, from its start to its end; what lies between bars is time without one."
    if found:
        off = duration(sum(pause.end - pause.start for pause in found))
        text += f" {plural(len(found), 'pause')} of all workers, {off} together, {'is' if len(found) == 1 else 'are'} "
        text += "cut out where dotted lines stand."
    if any(bar.first != bar.last for bar in drawn):
        text += f" Of {len(bars):,} trials those too short to be seen are joined."
    if rows > MOST_ROWS:
        text += f" The first {MOST_ROWS} of {rows} workers are shown."
    return text
