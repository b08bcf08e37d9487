"""Where a worker's time goes: each of its seconds belongs to one purpose, so that none can be forgotten."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from mmsearch.search.machine import this_process
from mmsearch.search.progress import duration

START_UP = "start-up"  # from the process's start to its first training step: imports, data, the first model
EPOCHS = "epochs"  # training steps, and the validation that ends each epoch; the models of folds after the first
MODELS = "models"  # a trial's first model and optimiser built, audio features and statistics made ready
SAMPLING = "sampling"  # a trial claimed, its parameters proposed and stored
STORAGE = "storage"  # reports, the pruner's answers, attributes, ends of trials
FILES = "files"  # checkpoints and pictures
WAITING = "waiting"  # for a place in the study, while others train its last trials
REST = "rest"  # whatever has no other name
APART = (START_UP, WAITING)  # no part of what a worker does trial by trial
WORDS = {
    SAMPLING: "sampling",
    STORAGE: "storage",
    FILES: "pictures and checkpoints",
    MODELS: "building models",
    REST: "rest",
}

T = TypeVar("T")


class Clock:
    """Shares this process's seconds out among purposes, from its very start; one thread reads and sets it.

    Until the first epoch all is start-up but for waiting; after that, what is not in a `spent` block is the rest.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float, {START_UP: _age_s()})
        self._purpose, self._since = START_UP, time.perf_counter()
        self._starting = True

    @contextmanager
    def spent(self, purpose: str) -> Iterator[None]:
        """The block's time is for this purpose, but for blocks in it that have another."""
        if self._starting and purpose == EPOCHS:
            self._starting = False
            self._switch(REST)
        if self._starting and purpose != WAITING:
            yield
            return
        before = self._switch(purpose)
        try:
            yield
        finally:
            self._switch(before)

    def within(self, purpose: str, items: Iterator[T]) -> Iterator[T]:
        """The items; the time that each takes to come is for this purpose."""
        while True:
            with self.spent(purpose):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def read(self) -> dict[str, float]:
        """The seconds by purpose until now."""
        self._switch(self._purpose)
        return {purpose: round(seconds, 4) for purpose, seconds in self._seconds.items()}

    def _switch(self, purpose: str) -> str:
        now = time.perf_counter()
        self._seconds[self._purpose] += now - self._since
        before, self._purpose, self._since = self._purpose, purpose, now
        return before


def _age_s() -> float:
    """How long ago this process began; 0 where the system does not say."""
    born = this_process("")["born"]
    ticks = os.sysconf("SC_CLK_TCK")
    return 0.0 if born is None else max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(born) / ticks)


@dataclass(frozen=True)
class Spent:
    """Where the time of a launch's workers went: seconds by purpose, as far as they told it.

    `workers` have told something. `lost` are the seconds of workers that died, from what they told last to their end.
    """

    workers: int
    seconds: Mapping[str, float]
    lost: float

    @property
    def working(self) -> float:
        """The seconds of what they did trial by trial: without start-up and waiting."""
        return sum(seconds for purpose, seconds in self.seconds.items() if purpose not in APART)

    def share(self, purpose: str) -> float:
        """Of `working`, from 0 to 1."""
        return self.seconds.get(purpose, 0.0) / self.working

    def in_words(self) -> str | None:
        """One line; None where no worker has trained."""
        if not self.seconds.get(EPOCHS):
            return None
        others = [(WORDS[name], self.share(name)) for name in WORDS if self.share(name) >= 0.0005]
        shares = ", ".join(f"{word} {share:.1%}".replace("%", " %") for word, share in others)
        text = f"{self.share(EPOCHS):.1%} of {duration(self.working)} in epochs".replace("%", " %")
        text += f"; {shares}" if shares else ""
        text += f"; start-up {self.seconds.get(START_UP, 0) / self.workers:.1f} s" + " each" * (self.workers > 1)
        if (waited := self.seconds.get(WAITING, 0)) >= 1:
            text += f"; {duration(waited)} waiting for others' last trials"
        if self.lost >= 1:
            text += f"; {duration(self.lost)} lost with workers that died"
        return text


class Ledger:
    """Adds up what the workers of a launch tell of their time; workers are called by their names."""

    def __init__(self) -> None:
        self._born: dict[str, float] = {}
        self._told: dict[str, Mapping[str, float]] = {}
        self._well: set[str] = set()  # that have told all
        self._lost = 0.0

    def begin(self, worker: str) -> None:
        """Its process is started."""
        self._born[worker] = time.perf_counter()

    def take(self, worker: str, seconds: Mapping[str, float], *, last: bool = False) -> None:
        """What its clock reads; `last` when it ends itself, well or with an error."""
        self._told[worker] = seconds
        if last:
            self._well.add(worker)

    def end(self, worker: str) -> None:
        """Its process is no more."""
        if worker not in self._well:
            lived = time.perf_counter() - self._born[worker]
            self._lost += max(0.0, lived - sum(self._told.get(worker, {}).values()))

    def spent(self) -> Spent:
        """All of them."""
        names = {purpose for seconds in self._told.values() for purpose in seconds}
        total = {name: sum(seconds.get(name, 0.0) for seconds in self._told.values()) for name in names}
        return Spent(len(self._told), total, self._lost)
