"""What a search shows while it runs: one live view in a terminal, one line an event elsewhere."""

from __future__ import annotations

import os
import sys
import termios
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsearch.search.study import Counts
from mmsearch.search.values import all_in_words, in_words

if TYPE_CHECKING:
    from rich.console import RenderableType

ABOVE_THE_VIEW = ("finished", "handed_back", "note", "storage")  # events that stay on the screen


@dataclass
class WorkerView:
    """What one worker is on; `trial` is None while it looks for one. `fold` counts from 1."""

    index: int
    trial: int | None = None
    fold: int = 1
    epoch: int = 0
    value: float | None = None


@dataclass(frozen=True)
class Event:
    """Something that a worker said; see `mmsearch.search.worker`."""

    worker: int
    fields: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """How the search stands. `best` is a trial's number and its leading value, `metric`; `front` the size of the
    Pareto front, None with one metric. `finished_here` and `seconds` are of this launch.
    """

    counts: Counts
    total: int
    metric: str
    best: tuple[int, float] | None
    front: int | None
    workers: list[WorkerView]
    folds: int
    max_epochs: int
    finished_here: int
    seconds: float

    @property
    def trials_per_hour(self) -> float | None:
        """Finished trials of this launch by the time it has taken; None before the second."""
        return self.finished_here / self.seconds * 3600 if self.finished_here >= 2 else None

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this pace."""
        rate = self.trials_per_hour
        return None if rate is None else max(0, self.total - self.counts.finished) / rate * 3600


class Progress:
    """Shows nothing; the base of what shows something."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def event(self, event: Event) -> None:
        """A worker's event."""

    def show(self, snapshot: Snapshot) -> None:
        """How the search stands, about once a second."""

    def close(self) -> None:
        """The search is over."""


class LineProgress(Progress):
    """One line an event on standard error, for logs."""

    def note(self, text: str) -> None:
        """A line with the time of day."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def event(self, event: Event) -> None:
        """A line for each trial that starts or ends, and for what a worker has to say."""
        text = describe(event)
        if text is not None:
            self.note(text)


def plural(number: int, what: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{number} {what}" + "s" * (number != 1)


def describe(event: Event) -> str | None:
    """A worker's event in words; None for those that only the live view shows."""
    fields = event.fields
    match fields["event"]:
        case "ready":
            return f"worker {event.worker} is ready on {fields['device']}"
        case "started":
            return f"trial {fields['trial']} started by worker {event.worker}"
        case "note" | "storage":
            return f"worker {event.worker}: {fields['text']}"
        case "handed_back":
            return f"trial {fields['trial']} handed back"
        case "finished" if fields["state"] == "FAIL":
            return f"trial {fields['trial']} failed: {fields['reason']}"
        case "finished" if not fields["epochs"]:
            return f"trial {fields['trial']} pruned: {fields['reason']}"
        case "finished":
            what = "complete" if fields["state"] == "COMPLETE" else "pruned"
            values = f"{all_in_words(fields['values'])}, " if fields["values"] else ""
            took = f"{plural(fields['epochs'], 'epoch')}, {fields['seconds']:.1f} s"
            text = f"trial {fields['trial']} {what}: {values}{took}"
            return f"{text}; {fields['reason']}" if fields["reason"] else text
    return None


class LiveProgress(Progress):
    """One live view in a terminal; notes and the ends of trials scroll above it."""

    def __init__(self, name: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._name = name
        self._console = Console(stderr=True, highlight=False)
        self._live = Live("starting workers ...", console=self._console, refresh_per_second=4, transient=False)
        self._echoed = _set_echo(False)
        self._live.start()

    def note(self, text: str) -> None:
        """A line above the view."""
        self._live.console.print(text, style="dim", markup=False)

    def event(self, event: Event) -> None:
        """A line above the view for each trial that ends."""
        text = describe(event) if event.fields["event"] in ABOVE_THE_VIEW else None
        if text is not None:
            failed = event.fields.get("state") == "FAIL"
            self._live.console.print(text, style="red" if failed else None, markup=False)

    def show(self, snapshot: Snapshot) -> None:
        """Draw the view anew."""
        self._live.update(render(snapshot, self._name))

    def close(self) -> None:
        """Leave the last view on the screen."""
        self._live.stop()
        _set_echo(self._echoed)


def _set_echo(on: bool) -> bool:
    """Whether the terminal prints ^C, which would tear the view; returns whether it did. Only for who has it."""
    try:
        if os.tcgetpgrp(0) != os.getpgrp():  # a job in the background would be stopped for it
            return on
        settings = termios.tcgetattr(0)
        before = bool(settings[3] & termios.ECHOCTL)
        settings[3] = settings[3] | termios.ECHOCTL if on else settings[3] & ~termios.ECHOCTL
        termios.tcsetattr(0, termios.TCSANOW, settings)
    except (OSError, termios.error):  # there is none, or it was closed
        return on
    return before


def render(snapshot: Snapshot, name: str) -> RenderableType:
    """The live view: a bar, the counts, the best trial, the pace, and a line a worker."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.rule import Rule
    from rich.table import Table
    from rich.text import Text

    counts = snapshot.counts
    head = Table.grid(padding=(0, 2), expand=True)
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    head.add_row(
        ProgressBar(total=snapshot.total, completed=counts.finished), f"{counts.finished} of {snapshot.total} trials"
    )
    best = Text("no completed trial yet", style="dim")
    if snapshot.best is not None:
        number, leading = snapshot.best
        best = Text(f"best {snapshot.metric} {in_words(snapshot.metric, leading)} (trial {number})", style="bold green")
        if snapshot.front is not None:
            best.append(f", {snapshot.front} on the Pareto front", style="not bold")
    rate, left = snapshot.trials_per_hour, snapshot.seconds_left
    head.add_row(best, "" if rate is None else f"{rate:.0f} trials an hour")
    states = Text.assemble(
        f"{counts.complete} complete, {counts.pruned} pruned, ",
        (f"{counts.failed} failed", "red" if counts.failed else ""),
    )
    head.add_row(states, "" if left is None else f"{duration(left)} left")
    rows = Table.grid(padding=(0, 2))
    for worker in snapshot.workers:
        if worker.trial is None:
            rows.add_row(f"worker {worker.index}", Text("between trials", style="dim"))
            continue
        value = "" if worker.value is None else f"{snapshot.metric} {worker.value:.4f}"
        done = (worker.fold - 1) * snapshot.max_epochs + worker.epoch
        bar = ProgressBar(total=snapshot.folds * snapshot.max_epochs, completed=done, width=20)
        where = f"epoch {worker.epoch}/{snapshot.max_epochs}"
        if snapshot.folds > 1:
            where = f"fold {worker.fold}/{snapshot.folds} {where}"
        rows.add_row(f"worker {worker.index}", f"trial {worker.trial}", bar, where, value)
    return Panel(
        Group(head, Rule(style="dim"), rows), title=f"mmsearch: {name}", title_align="left", border_style="blue"
    )


def duration(seconds: float) -> str:
    """Seconds in words: 48 s, 12 min, 3 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
