"""What ends a search before it has its total: time, patience, `mmsearch stop`, and signals."""

from __future__ import annotations

import operator
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mmsearch.errors import Interrupted
from mmsearch.search.progress import duration, plural
from mmsearch.search.study import OpenStudy
from mmsearch.search.values import candidates

STOP_COMMAND = "`mmsearch stop` asked for it"


@dataclass(frozen=True)
class Ending:
    """Why a search ends: in words, and as the error to be raised once its workers have gone, where it is one."""

    reason: str
    error: Exception | None = None


@dataclass(frozen=True)
class Budgets:
    """What a launch may spend. `started` is its begin on the monotonic clock, which does not count a laptop's sleep;
    `token` is what `OpenStudy.stop_asked` said then.
    """

    opened: OpenStudy
    started: float
    token: str | None

    def spent(self, trials: Sequence[FrozenTrial]) -> str | None:
        """Why the search must end now, in words; None while it may go on."""
        search = self.opened.config.search
        if search.timeout is not None and time.monotonic() - self.started >= search.timeout:
            return f"timeout: {duration(search.timeout)} are over"
        if search.patience_trials is not None:
            waited = trials_since_gain(trials, self.opened.signs)
            if waited >= search.patience_trials:
                return f"patience_trials: {plural(waited, 'trial')} in a row without a better one"
        return STOP_COMMAND if self.opened.stop_asked() != self.token else None


def trials_since_gain(trials: Sequence[FrozenTrial], signs: Sequence[int]) -> int:
    """How many trials have finished since the one that last became the best, or joined the Pareto front of several
    metrics; 0 before there is one.

    `signs` is 1 for each metric of which greater values are better, else -1. A trial that equals an earlier one is no
    better.
    """
    good = {trial.number for trial in candidates(trials)}
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    front: list[tuple[float, ...]] = []
    waited = 0
    for trial in sorted(finished, key=lambda trial: (trial.datetime_complete or datetime.min, trial.number)):
        point = tuple(sign * value for sign, value in zip(signs, trial.values or (), strict=False))
        if trial.number not in good or any(all(map(operator.ge, other, point)) for other in front):
            waited += bool(front)
            continue
        front = [other for other in front if not all(map(operator.ge, point, other))] + [point]
        waited = 0
    return waited


class Signals:
    """SIGINT, SIGTERM and, where it is not ignored as under nohup, SIGHUP while the block runs.

    While a search is prepared, the first one raises `Interrupted`. From `asking` on, the first one calls what it was
    given, and the second raises; from `finishing` on none does: what is left is quick and must not be cut short. Only a
    main thread can listen; in another one, nothing happens.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.insisted = False
        self._ask: Callable[[], None] | None = None
        self._finishing = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # a terminal that was closed
                numbers.append(signal.SIGHUP)
            self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def asking(self, ask: Callable[[], None]) -> None:
        """From here on, the first signal asks."""
        self._ask = ask
        if self.first is not None:  # it came where an exception is swallowed
            raise Interrupted(self.first)

    def finishing(self) -> None:
        """From here on, signals are only kept in mind."""
        self._finishing = True

    def _handle(self, signum: int, frame: object) -> None:
        again, self.first = self.first is not None, self.first or signum
        self.insisted = self.insisted or again
        if self._finishing:
            return
        if again or self._ask is None:
            raise Interrupted(self.first)
        self._ask()
