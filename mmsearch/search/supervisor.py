"""The workers of one launch: started, listened to, watched, replaced when they die, and stopped."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections import Counter, deque
from dataclasses import replace
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mmsearch.errors import MmsearchError, SearchFailed, StorageError
from mmsearch.search.budgets import Budgets, Ending, Signals
from mmsearch.search.children import OUTPUT_GRACE_S, STARTUP_S, Child, Events, start
from mmsearch.search.clock import Ledger
from mmsearch.search.machine import oom_kills, still_runs
from mmsearch.search.progress import Event, Progress, Snapshot, duration, plural
from mmsearch.search.storage import OWNER
from mmsearch.search.study import OpenStudy, count
from mmsearch.search.values import MEMORY
from mmsearch.search.worker import Orders

TICK_S = 0.2  # for the next event of a worker, then for what has to be looked at
LONGEST_TICK_S = 10.0  # that counts for the hang watch: longer, this process itself was held up, and its workers may be
REFRESH_S = 1.0  # between two looks at the study, which other launchers may work on too
REAP_S = 15.0  # between two looks for owners that vanished
STOP_GRACE_S = 60.0  # for the epoch that is running when the search is stopped
HURRY_S = 3.0  # for the storage, when the search is stopped at once or has waited for it already
EXIT_GRACE_S = 30.0  # for a process to end whose output has
MAX_DEATHS = 5  # in a row, of one worker or of all, without an epoch in between
DATABASE_ERRORS = (StorageError, StorageInternalError, SQLAlchemyError)


class Supervisor:
    """Runs the workers of one launch until they have nothing left to do, or the search has to end.

    `finished` counts the trials that these workers finished; `ledger` adds up what their time went into; `ending` is
    why the search ended before its total.
    """

    def __init__(
        self, opened: OpenStudy, orders: Orders, budgets: Budgets, signals: Signals, progress: Progress
    ) -> None:
        self.opened, self.orders, self.budgets = opened, orders, budgets
        self.signals, self.progress = signals, progress
        self.search = opened.config.search
        self.children: list[Child] = []
        self.ending: Ending | None = None
        self.finished = 0
        self.ledger = Ledger()
        self._failures_in_a_row = 0
        self._deaths_in_a_row = 0
        self._deaths: Counter[int] = Counter()  # by the worker's index, since its last epoch
        self._explained = 0  # of the kernel's kills for want of memory
        self._vacant: deque[int] = deque()  # indices of workers to be replaced
        self._events: Events = queue.Queue()
        self._clock = 0.0  # seconds in which this process was awake
        self._ticked = self._refreshed = self._reaped = time.monotonic()
        self._deadline: float | None = None
        self._storage_lost = False

    def run(self, workers: int) -> None:
        """Start so many workers, and return when all have gone; raises `Interrupted` at a second signal."""
        self.signals.asking(self._asked_by_signal)
        try:
            for index in range(workers):
                self._spawn(index)
            while self.children or (self._vacant and self.ending is None):
                self._listen()
                self._tick()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self.progress.note(f"workers that did not stop within {duration(STOP_GRACE_S)} are killed")
                    break
        finally:
            self.signals.finishing()
            self._clear()

    def reap(self) -> None:
        """Fail and queue again the trials of workers that died, here or elsewhere."""
        for number, retry in self.opened.reap(still_runs):
            self._note_lost(number, "lost its worker", retry)

    def show(self) -> None:
        """How the search stands, to whoever looks on."""
        self.progress.show(self._snapshot(self.opened.trials()))

    def end(self, reason: str, error: Exception | None = None) -> None:
        """Let workers end their epochs, checkpoint and hand their trials back; the first reason counts."""
        if self.ending is None:
            self.ending = Ending(reason, error)
            self._deadline = time.monotonic() + STOP_GRACE_S
        self._ask_children()

    def _asked_by_signal(self) -> None:
        """Runs inside a signal handler, where the main thread may hold any lock: so another one says it."""
        self._ask_children()
        text = "stopping after the epochs that are running; press Ctrl-C again to stop at once"
        threading.Thread(target=self.progress.note, args=(text,), daemon=True).start()

    def _ask_children(self) -> None:
        for child in tuple(self.children):
            child.ask()

    def _tick(self) -> None:
        """All that has to be looked at between two events."""
        now = time.monotonic()
        self._clock += min(now - self._ticked, LONGEST_TICK_S)
        self._ticked = now
        if self.signals.first is not None:
            self.end("a signal")
        try:
            for child in tuple(self.children):
                self._look_at(child)
            while (
                self._vacant and self.ending is None
            ):  # when all the dead are settled, and the kernel's kills with them
                self._spawn(self._vacant.popleft())
            if self._storage_lost:
                return
            if now - self._refreshed > REFRESH_S:
                self._refreshed = now
                self._look_at_study()
            if now - self._reaped > REAP_S:
                self._reaped = now
                self.reap()
        except (*DATABASE_ERRORS, KeyError) as error:
            self._storage_lost = True
            self.opened.storage.patience = HURRY_S  # it has been waited for
            if isinstance(error, KeyError):  # Optuna's word for it
                error = StorageError(f"the study {self.opened.config.study.name} was deleted while it was searched")
            self.end("the storage is out of reach", error)
        except OSError as error:
            self.end("a worker cannot be started", error)

    def _look_at_study(self) -> None:
        trials = self.opened.trials()
        running = {
            trial.system_attrs.get(OWNER, {}).get("worker"): trial
            for trial in trials
            if trial.state == TrialState.RUNNING
        }
        for child in self.children:
            if child.view.trial is None and child.name in running:  # it may hang before it says so
                self._begin(child, running[child.name].number)
        self.progress.show(self._snapshot(trials))
        if self.ending is None and (spent := self.budgets.spent(trials)) is not None:
            self.progress.note(f"{spent}; stopping after the epochs that are running")
            self.end(spent)

    def _look_at(self, child: Child) -> None:
        """Settle a worker whose process has ended, and end one that hangs."""
        if child.has_ended:
            child.died = self._clock if child.died is None else child.died
            if child.ended is not None or self._clock - child.died > OUTPUT_GRACE_S:
                self._settle(child)
        elif child.ended is not None and self._clock - child.ended > EXIT_GRACE_S:
            self._settle(child)  # all is said and told, and still it does not end
        elif self.ending is None:
            preparation = STARTUP_S if self.opened.config.waveforms else 0.0
            reason = child.overdue(self._clock, self.search, preparation)
            if reason is not None:
                self._end_hanging(child, reason)

    def _spawn(self, index: int) -> None:
        kills = oom_kills() - self._explained
        self.children.append(start(replace(self.orders, index=index), kills, self._clock, self._events))
        self.ledger.begin(self.children[-1].name)

    def _listen(self) -> None:
        """Take all that workers have said; wait a little for the first of it."""
        wait = TICK_S
        with contextlib.suppress(queue.Empty):
            while True:
                child, event = self._events.get(timeout=wait) if wait else self._events.get_nowait()
                wait = 0.0
                if event is None:
                    child.ended = self._clock
                else:
                    self._take(child, event)

    def _take(self, child: Child, event: dict[str, Any]) -> None:
        """Keep the books on one event of a worker."""
        if "spent" in event:
            self.ledger.take(child.name, event["spent"], last=event["event"] == "ended")
        match event["event"]:
            case "ready":
                child.ready = True
            case "started":
                self._begin(child, event["trial"])
            case "epoch":
                child.view.fold, child.view.epoch, child.view.value = event["fold"], event["epoch"], event["value"]
                child.since = self._clock
                self._deaths_in_a_row = self._deaths[child.index] = 0
            case "finished" | "handed_back":
                child.view.trial = None
                if event["event"] == "finished":
                    self._count(event["reason"] if event["state"] == "FAIL" else None)
            case "storage" if event["away"]:
                child.away_since = self._clock if child.away_since is None else child.away_since
                child.since = self._clock + self.search.storage_timeout
            case "storage" if child.away_since is not None:
                child.trial_since += self._clock - child.away_since
                child.since, child.away_since = self._clock, None
            case "error":
                child.error = MmsearchError(event["message"])
                child.error.exit_code = event["code"]
        self.progress.event(Event(child.index, event))

    def _begin(self, child: Child, trial: int) -> None:
        view = child.view
        view.trial, view.fold, view.epoch, view.value = trial, 1, 0, None
        child.since = child.trial_since = self._clock

    def _count(self, failure: str | None = None) -> None:
        """One more trial is over, or has failed for a reason; one that will be tried again is not over."""
        self.finished += failure is None
        self._failures_in_a_row = 0 if failure is None else self._failures_in_a_row + 1
        if self._failures_in_a_row >= self.search.max_failures:
            logs = self.opened.config.paths.log("*").parent
            many = plural(self._failures_in_a_row, "trial")
            text = f"{many} in a row failed, the last one: {failure} (the logs are in {logs})"
            self.end(text, SearchFailed(text))

    def _settle(self, child: Child) -> None:
        """A worker's process has ended: well, with an error of the user's, or dead; then it is replaced."""
        code = self._remove(child)
        lost = child.error is not None and child.error.exit_code == StorageError.exit_code
        if code == 0 or child.asked:
            if child.error is not None:
                self.progress.note(f"worker {child.index} ended: {child.error}")
            self._hand_back(child)  # it has done so, unless it was asked before it could listen, or killed meanwhile
            return
        if child.error is not None and not lost:
            self._hand_back(child)
            self.end(str(child.error), child.error)
            return
        if lost:
            reason = "it lost the storage"
            self.progress.note(f"worker {child.index} ended: {child.error}")
            self._hand_back(child)
        else:
            reason = _died_of(code)
            log = self.opened.config.paths.log(child.name)
            self.progress.note(f"worker {child.index} died ({reason}); its log is {log}")
            if code == -signal.SIGKILL and oom_kills() - self._explained > child.oom_kills:
                self._explained += 1
                reason = "out of memory"
                if self._prune(child):
                    self._vacant.append(child.index)  # no loop: the trial counts in the total
                    return
            self._fail(child, f"the worker died ({reason})", self.search.max_retries)
        if self.ending is None:
            self._replace(child, reason)

    def _prune(self, child: Child) -> bool:
        """End a worker's trial as one that needs too much memory, so that the sampler learns from it."""
        reason = "out of memory: the kernel killed its worker"
        pruned = False
        for trial in self.opened.running_of(child.name):
            if self.opened.prune(trial, reason, {MEMORY: 1.0}):
                self.progress.note(f"trial {trial.number} pruned: {reason}")
                self._count()
                pruned = True
        return pruned

    def _fail(self, child: Child, reason: str, max_retries: int, only: int | None = None) -> None:
        """Fail a dead worker's trial, and queue it again where it has retries left."""
        for trial in self.opened.running_of(child.name):
            retries = max_retries if only in (None, trial.number) else self.search.max_retries
            was_running, retry = self.opened.fail(trial, reason, retries)
            if was_running:
                self._note_lost(trial.number, f"failed: {reason}", retry)
                if retry is None:
                    self._count(reason)

    def _end_hanging(self, child: Child, reason: str) -> None:
        """Kill a worker that hangs, fail its trial for good, and replace it."""
        self._remove(child)
        if child.view.trial is None:
            self.progress.note(f"worker {child.index} was killed: {reason}")
            self._replace(child, reason)
            return
        self._fail(child, f"{reason}; its worker was killed", 0, child.view.trial)
        self._vacant.append(child.index)

    def _replace(self, child: Child, reason: str) -> None:
        """Start another in its place, unless too many have died without getting anywhere."""
        self._deaths_in_a_row += 1
        self._deaths[child.index] += 1
        if max(self._deaths_in_a_row, self._deaths[child.index]) < MAX_DEATHS:
            self._vacant.append(child.index)
            return
        log = self.opened.config.paths.log(child.name)
        with log.open(encoding="utf-8", errors="replace") as handle:
            last = (deque((line.strip() for line in handle if line.strip()), maxlen=1) or ["nothing"])[0]
        who = f"{MAX_DEATHS} workers in a row" if self._deaths_in_a_row >= MAX_DEATHS else f"worker {child.index}"
        times = "" if self._deaths_in_a_row >= MAX_DEATHS else f" {MAX_DEATHS} times"
        text = f"{who} died{times} before an epoch was over; the last one ({reason}) logged: {last} ({log})"
        self.end(text, child.error or SearchFailed(text))

    def _note_lost(self, number: int, what: str, retry: int | None) -> None:
        then = f"queued again as trial {retry}" if retry is not None else "not tried again"
        self.progress.note(f"trial {number} {what}; {then}")

    def _hand_back(self, child: Child) -> None:
        for number in self.opened.hand_back(child.name):
            self.progress.note(f"trial {number} handed back")

    def _remove(self, child: Child) -> int:
        """End a worker, and all that it started itself; returns its exit code."""
        self.children.remove(child)
        code = child.kill()
        self.ledger.end(child.name)
        if code is None:
            self.progress.note(f"worker {child.index}, process {child.process.pid}, was killed and does not end")
        return -signal.SIGKILL if code is None else code

    def _clear(self) -> None:
        """Kill the workers that are left, and hand their trials back."""
        if self.signals.insisted:
            self.opened.storage.patience = HURRY_S
        left = tuple(self.children)
        for child in left:
            self._remove(child)
        try:
            for child in left:
                self._hand_back(child)
            self.show()
        except (*DATABASE_ERRORS, KeyError):
            self.progress.note("the storage is out of reach: the next launch takes up what these workers were on")

    def _snapshot(self, trials: list[FrozenTrial]) -> Snapshot:
        opened, best = self.opened, self.opened.best(trials)
        return Snapshot(
            counts=count(trials),
            total=self.orders.total,
            metric=opened.metrics[0],
            best=None if best is None else (best.number, best.values[0]),
            front=len(opened.front(trials)) if len(opened.metrics) > 1 else None,
            workers=[replace(child.view) for child in sorted(self.children, key=lambda child: child.index)],
            folds=opened.config.folds,
            max_epochs=self.search.max_epochs,
            finished_here=self.finished,
            seconds=time.monotonic() - self.budgets.started,
        )


def _died_of(code: int) -> str:
    """A process's exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # one of the real-time signals, which have no names
        return f"signal {-code}"
