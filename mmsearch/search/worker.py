"""One worker process: claim a trial, train it, tell its value, until the study has its total.

A launcher starts it as `python -m mmsearch.search.worker`, with one JSON object on the first line of its standard input
(see `Orders`): nothing secret is on a command line. The input stays open; when it ends, the launcher is gone, and the
worker stops. What happens goes to standard output, a JSON object a line; warnings and tracebacks go to standard error,
which is the worker's log file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmsearch.config import StudyConfig
from mmsearch.errors import BudgetExhausted, GridExhausted, MmsearchError

if TYPE_CHECKING:
    import optuna
    from optuna.trial import TrialState

    from mmsearch.search.objective import Objective
    from mmsearch.search.study import OpenStudy
    from mmsearch.training.fit import EpochResult

HEARTBEAT_S = 30
WAIT_S = 0.3  # between two looks whether a place in the study has become free

Emit = Callable[..., None]


@dataclass(frozen=True)
class Orders:
    """What a launcher tells its worker: `index` picks the GPU where there are several."""

    config: StudyConfig
    name: str
    index: int
    total: int
    threads: int

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**vars(self), "config": self.config.model_dump_json()})

    @staticmethod
    def from_json(line: str) -> Orders:
        """The reverse of `to_json`."""
        held = json.loads(line)
        return Orders(**{**held, "config": StudyConfig.model_validate_json(held["config"])})


class Stop:
    """Asked once, a worker ends its epoch and hands its trial back; asked twice, it does so at once."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._training = False

    def handle(self, signum: int, frame: object) -> None:
        """As a signal handler."""
        if self.asked.is_set() and self._training:
            raise KeyboardInterrupt
        self.asked.set()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """While a trial trains, and only then, a second signal raises `KeyboardInterrupt`."""
        self._training = True
        try:
            yield
        finally:
            self._training = False


def main() -> None:
    """Entry point of the process."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints, prints to the log

    def emit(event: str, **fields: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the launcher is gone; the end of our input says so too
            events.write(json.dumps({"event": event, **fields}) + "\n")

    stop = Stop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop.handle)
    orders = Orders.from_json(sys.stdin.readline())
    threading.Thread(target=_follow_launcher, args=(stop,), daemon=True).start()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    with events:
        try:
            run_worker(orders, emit, stop)
        except MmsearchError as error:
            emit("error", message=str(error), code=error.exit_code)
            raise SystemExit(error.exit_code) from None


def _follow_launcher(stop: Stop) -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock a thread must not hold when the process ends
        pass
    stop.asked.set()


def run_worker(orders: Orders, emit: Emit, stop: Stop) -> None:
    """Work on the study until it has its total, or until asked to stop."""
    import optuna

    from mmsearch.data.sources import load_dataset
    from mmsearch.search.machine import this_process
    from mmsearch.search.objective import Objective
    from mmsearch.search.study import count, grid_size, open_study
    from mmsearch.training.device import choose_device, use_threads

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    use_threads(orders.threads)
    config = orders.config
    device = choose_device(config.search.device, orders.index)
    dataset = load_dataset(config)
    with open_study(config) as opened:
        opened.storage.budget = orders.total
        opened.storage.owner = this_process(orders.name)
        opened.storage.slots = grid_size(config)
        opened.check(dataset.fingerprint)

        def on_epoch(number: int, fold: int, result: EpochResult, value: float) -> None:
            emit("epoch", trial=number, fold=fold, epoch=result.epoch, value=value)

        def on_note(text: str) -> None:
            logging.getLogger("mmsearch").info("%s", text)
            emit("note", text=text)

        objective = Objective(
            config, dataset, device, on_epoch=on_epoch, on_note=on_note, should_stop=stop.asked.is_set
        )
        emit("ready", device=str(device), threads=orders.threads)
        while not stop.asked.is_set():
            try:
                trial = opened.optuna.ask()
            except BudgetExhausted as reason:
                counts = count(opened.trials())
                nothing_left = isinstance(reason, GridExhausted) and not counts.running + counts.waiting
                if counts.finished >= orders.total or nothing_left:
                    return
                stop.asked.wait(WAIT_S)  # others are at work; a trial of theirs that fails frees its place
                continue
            run_trial(opened, objective, trial, emit, stop)


def run_trial(opened: OpenStudy, objective: Objective, trial: optuna.Trial, emit: Emit, stop: Stop) -> None:
    """Train one claimed trial and settle its state, whatever happens."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    from mmsearch.search.values import VIOLATED

    log = logging.getLogger("mmsearch")
    started = time.perf_counter()
    emit("started", trial=trial.number)
    try:
        with _heartbeat(opened, trial._trial_id):
            state, values, reason = _train(objective, trial, stop)
        if state == TrialState.WAITING:
            opened.storage.hand_back(trial._trial_id)
            emit("handed_back", trial=trial.number)
            return
        if state == TrialState.FAIL:
            log.error("trial %d failed: %s", trial.number, reason)
            opened.storage.fail(trial._trial_id, reason or "", max_retries=0)
        else:
            opened.optuna.tell(trial, values, state=state)
    except (UpdateFinishedTrialError, ValueError) as error:
        # a launcher elsewhere that took us for dead has settled it: its word counts, and its retry is trained
        log.warning("trial %d was taken over meanwhile: %s", trial.number, error)
        emit("handed_back", trial=trial.number)
        return
    told = opened.storage.get_trial(trial._trial_id)
    reason = reason or told.user_attrs.get(VIOLATED)
    if reason and state != TrialState.FAIL:
        log.info("trial %d: %s", trial.number, reason)
    emit(
        "finished",
        trial=trial.number,
        state=state.name,
        values=dict(zip(opened.config.study.metrics, told.values, strict=True)) if told.values else None,
        epochs=told.user_attrs.get("epochs", 0),
        seconds=round(time.perf_counter() - started, 2),
        reason=reason,
    )


def _train(objective: Objective, trial: optuna.Trial, stop: Stop) -> tuple[TrialState, list[float] | None, str | None]:
    """The state that a trial ends in (WAITING: to be handed back), its values, and why it failed or was not trained.

    What is not the trial's fault is raised: a lost database ends this process, and the launcher has the trial retried.
    """
    from optuna import TrialPruned
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
    from optuna.trial import TrialState
    from sqlalchemy.exc import SQLAlchemyError

    from mmsearch.search.objective import Infeasible, Stopped

    try:
        with stop.interruptible():
            return TrialState.COMPLETE, objective(trial), None
    except Infeasible as why:
        return TrialState.PRUNED, None, str(why)
    except TrialPruned:
        return TrialState.PRUNED, None, None
    except (Stopped, KeyboardInterrupt):
        return TrialState.WAITING, None, None
    except (StorageInternalError, SQLAlchemyError, UpdateFinishedTrialError):
        raise
    except Exception as error:
        logging.getLogger("mmsearch").error("%s", traceback.format_exc())
        known = isinstance(error, MmsearchError)
        return TrialState.FAIL, None, str(error) if known else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _heartbeat(opened: OpenStudy, trial_id: int) -> Iterator[None]:
    """Beat while the trial trains; the first beat came with the claim."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            try:
                opened.storage.record_heartbeat(trial_id)
            except Exception as error:  # a database that is away for a while must not end the beats
                logging.getLogger("mmsearch").warning("no heartbeat: %s", type(error).__name__)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
