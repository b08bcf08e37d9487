"""Start workers on one study, look after them, show what they do, and sum up."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from mmsearch.config import StudyConfig, hide_password
from mmsearch.data.sources import load_dataset
from mmsearch.errors import Interrupted, MmsearchError, NoCompletedTrial, SearchFailed
from mmsearch.paths import write_text
from mmsearch.search.machine import cores, new_worker_name, still_runs
from mmsearch.search.opening import check_device, check_init, opening
from mmsearch.search.progress import Event, Progress, Snapshot, WorkerView
from mmsearch.search.study import Counts, OpenStudy, count, create_study, total_of
from mmsearch.search.worker import Orders

REFRESH_S = 1.0  # between two looks at the study, which other launchers may work on too
REAP_S = 15.0  # between two looks for owners that vanished
STOP_GRACE_S = 60.0  # for the epoch that is running when the search is stopped
MAX_DEATHS = 5  # of workers in a row, none of which finished an epoch

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True)
class Summary:
    """How a search stands when `launch` ends.

    `best` has the best leading value of the trials that keep to the constraints, `front` are those that no other beats
    in all metrics. `gain` is how much better the best trial's leading value is than that of `defaults`, the trial that
    has them; None where either is missing. `seconds` and `finished_here`, its trials, are of this launch alone.
    """

    counts: Counts
    total: int
    best: FrozenTrial | None
    front: list[FrozenTrial]
    defaults: FrozenTrial | None
    gain: float | None
    seconds: float
    finished_here: int


@dataclass
class _Child:
    """One worker process, and what is known of it."""

    index: int
    name: str
    process: subprocess.Popen[str]
    view: WorkerView
    error: MmsearchError | None = None
    epochs: int = 0
    reader: threading.Thread | None = None


@dataclass
class _State:
    """What the launcher counts while it runs."""

    finished: int = 0
    failures_in_a_row: int = 0
    deaths_in_a_row: int = 0
    signal: int | None = None
    children: list[_Child] = field(default_factory=list)


def launch(config: StudyConfig, *, workers: int | None = None, progress: Progress | None = None) -> Summary:
    """Search until the study has its total of complete and pruned trials.

    `workers` processes share the machine's cores evenly; by default there is one a core, at most 8. `progress` shows
    events; None shows nothing. The first SIGINT or SIGTERM lets workers end their epochs and hand their trials back,
    the second stops at once; both raise `Interrupted`. Raises `SearchFailed` where workers or trials fail again and
    again, and `NoCompletedTrial` where the search ends without one.
    """
    progress = progress or Progress()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    state = _State()
    with _signals(state, progress):
        check_device(config)
        dataset = load_dataset(config)
        check_init(config, dataset)
        workers = workers or min(cores(), 8)
        threads = max(1, cores() // workers)
        total = total_of(config)
        lines = list(opening(config, dataset, workers, threads))  # before there is a study: the rows may be too few
        opened, notes = create_study(config, dataset.fingerprint)
        for line in (*lines, *notes):
            progress.note(line)
        _keep_study_file(config)
        started = time.monotonic()
        with opened:
            _reap(opened, progress)
            if count(opened.trials()).finished < total:
                _search(opened, state, progress, Orders(config, "", 0, total, threads), workers, started)
            summary = _summary(opened, state, total, started)
            why_none = "" if summary.best is not None else opened.why_none()
    progress.close()
    if state.signal is not None:
        raise Interrupted(state.signal)
    if summary.best is None:
        raise NoCompletedTrial(f"study {config.study.name}: the search has ended, and {why_none}")
    return summary


def _search(opened: OpenStudy, state: _State, progress: Progress, orders: Orders, workers: int, started: float) -> None:
    """The launcher's loop: events of workers, deaths, other machines' progress, signals."""
    events: queue.Queue[tuple[_Child, dict[str, Any] | None]] = queue.Queue()
    refreshed = reaped = time.monotonic()
    stopping_since: float | None = None
    note_saved = threading.Thread(target=_save_note, args=(opened,), daemon=True)
    note_saved.start()
    try:
        for index in range(workers):
            state.children.append(_spawn(index, orders, events))
        while state.children:
            with contextlib.suppress(queue.Empty):
                child, event = events.get(timeout=0.2)
                if event is None:
                    _settle(child, opened, state, progress, orders, events)
                else:
                    _take(child, event, state, progress)
            now = time.monotonic()
            if state.signal is not None and stopping_since is None:
                stopping_since = now
                for child in state.children:
                    child.process.terminate()
            if stopping_since is not None and now - stopping_since > STOP_GRACE_S:
                break
            if now - refreshed > REFRESH_S:
                refreshed = now
                progress.show(_snapshot(opened, state, orders.total, started))
            if now - reaped > REAP_S:
                reaped = now
                _reap(opened, progress)
            if state.failures_in_a_row >= opened.config.search.max_failures:
                raise SearchFailed(
                    f"{state.failures_in_a_row} trials in a row failed; the logs in "
                    f"{opened.config.paths.log('*').parent} say why"
                )
    finally:
        for child in state.children:
            _kill(child)
        for child in state.children:
            opened.hand_back(child.name)
        note_saved.join()
    progress.show(_snapshot(opened, state, orders.total, started))


def _spawn(index: int, orders: Orders, events: queue.Queue[tuple[_Child, dict[str, Any] | None]]) -> _Child:
    """Start a worker in a process group of its own, so that Ctrl-C reaches the launcher alone."""
    name = new_worker_name(index)
    log = orders.config.paths.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **{variable: str(orders.threads) for variable in THREAD_VARIABLES}}
    with log.open("a", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mmsearch.search.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
    child = _Child(index, name, process, WorkerView(index))

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # torn by a kill, or printed by somebody else
                events.put((child, json.loads(line)))
        events.put((child, None))

    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: its end of output says so
        process.stdin.write(Orders(orders.config, name, index, orders.total, orders.threads).to_json() + "\n")
        process.stdin.flush()
    child.reader = threading.Thread(target=read, daemon=True)
    child.reader.start()
    return child


def _take(child: _Child, event: dict[str, Any], state: _State, progress: Progress) -> None:
    """Keep the books on one event of a worker."""
    view = child.view
    match event["event"]:
        case "started":
            view.trial, view.fold, view.epoch, view.value = event["trial"], 1, 0, None
        case "epoch":
            view.fold, view.epoch, view.value = event["fold"], event["epoch"], event["value"]
            child.epochs += 1
            state.deaths_in_a_row = 0
        case "finished" | "handed_back":
            view.trial = None
            if event["event"] == "finished":
                failed = event["state"] == "FAIL"
                state.failures_in_a_row = state.failures_in_a_row + 1 if failed else 0
                state.finished += not failed
        case "error":
            child.error = MmsearchError(event["message"])
            child.error.exit_code = event["code"]
    progress.event(Event(child.index, event))


def _settle(
    child: _Child,
    opened: OpenStudy,
    state: _State,
    progress: Progress,
    orders: Orders,
    events: queue.Queue[tuple[_Child, dict[str, Any] | None]],
) -> None:
    """A worker's process has ended: well, with an error of the user's, or dead; then it is replaced."""
    code = child.process.wait()
    state.children.remove(child)
    _close(child)
    if child.error is not None:
        raise child.error
    if code == 0 or (state.signal is not None and code == -signal.SIGTERM):  # asked to stop before it could listen
        return
    reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    progress.note(f"worker {child.index} died ({reason}); its log is {opened.config.paths.log(child.name)}")
    for number, retry in opened.reap(lambda owner: owner.get("worker") != child.name):
        state.failures_in_a_row += 1
        _note_reaped(progress, number, retry)
    if state.signal is not None:
        return
    state.deaths_in_a_row = 1 if child.epochs else state.deaths_in_a_row + 1
    if state.deaths_in_a_row >= MAX_DEATHS:
        log = opened.config.paths.log(child.name)
        with log.open(encoding="utf-8", errors="replace") as handle:
            last = (deque((line.strip() for line in handle if line.strip()), maxlen=1) or ["nothing"])[0]
        raise SearchFailed(
            f"{MAX_DEATHS} workers in a row died before an epoch was over; "
            f"the last one ({reason}) logged: {last} ({log})"
        )
    state.children.append(_spawn(child.index, orders, events))


def _reap(opened: OpenStudy, progress: Progress) -> None:
    for number, retry in opened.reap(still_runs):
        _note_reaped(progress, number, retry)


def _note_reaped(progress: Progress, number: int, retry: int | None) -> None:
    then = f"queued again as trial {retry}" if retry is not None else "not tried again"
    progress.note(f"trial {number} lost its worker and failed; {then}")


def _kill(child: _Child) -> None:
    """End a worker's whole process group, now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)
    child.process.wait()
    _close(child)


def _close(child: _Child) -> None:
    if child.reader is not None:
        child.reader.join()
    for pipe in (child.process.stdin, child.process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@contextlib.contextmanager
def _signals(state: _State, progress: Progress) -> Iterator[None]:
    """The first signal asks, the second insists. Only a main thread can listen; elsewhere the caller does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(signum: int, frame: object) -> None:
        if state.signal is not None:
            for number in before:
                signal.signal(number, signal.SIG_IGN)  # what follows is quick, and must not be cut short
            raise Interrupted(state.signal)
        state.signal = signum
        progress.note("stopping after the epochs that are running; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _snapshot(opened: OpenStudy, state: _State, total: int, started: float) -> Snapshot:
    trials = opened.trials()
    best = opened.best(trials)
    return Snapshot(
        counts=count(trials),
        total=total,
        metric=opened.metrics[0],
        best=None if best is None else (best.number, best.values[0]),
        front=len(opened.front(trials)) if len(opened.metrics) > 1 else None,
        workers=[replace(child.view) for child in sorted(state.children, key=lambda child: child.index)],
        folds=opened.config.folds,
        max_epochs=opened.config.search.max_epochs,
        finished_here=state.finished,
        seconds=time.monotonic() - started,
    )


def _summary(opened: OpenStudy, state: _State, total: int, started: float) -> Summary:
    trials = opened.trials()
    return Summary(
        count(trials),
        total,
        opened.best(trials),
        opened.front(trials),
        opened.defaults(trials),
        opened.gain(trials),
        time.monotonic() - started,
        state.finished,
    )


def _keep_study_file(config: StudyConfig) -> None:
    """A copy of the study file beside what it led to, headed by the command that ran it; without a password."""
    text = Path(config.file).read_text("utf-8")
    url = tomllib.loads(text).get("study", {}).get("storage")
    if url:
        text = text.replace(url, hide_password(url))
    write_text(config.paths.study_file, f"# {config.command('launch')}\n{text}")


def _save_note(opened: OpenStudy) -> None:
    """The dashboard's note on the study. In a thread: the dashboard's package takes seconds to import."""
    from mmsearch.search.dashboard import save_note

    try:
        save_note(opened)
    except Exception as error:  # a note is no reason to end a search
        logging.getLogger("mmsearch").warning("the dashboard's note was not written: %s", error)
