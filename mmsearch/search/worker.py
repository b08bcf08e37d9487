"""One worker process: claim a trial, train it, tell its value, until the study has its total.

A launcher starts it as `python -m mmsearch.search.worker`, with one JSON object on the first line of its standard input
(see `Orders`): nothing secret is on a command line. The input stays open; when it ends, the launcher is gone, and the
worker stops as if it were asked to. What happens goes to standard output, a JSON object a line; warnings and tracebacks
go to standard error, which is the worker's log file.

A trial ends in one transaction of the storage. What is not its fault, a lost storage or a full disk, ends this process
instead; its checkpoint stays for whoever trains on.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmsearch.config import StudyConfig
from mmsearch.errors import (
    BudgetExhausted,
    DiskFull,
    GridExhausted,
    MmsearchError,
    OutOfMemory,
    StorageError,
)

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, TrialState

    from mmsearch.search.clock import Clock
    from mmsearch.search.objective import Objective
    from mmsearch.search.study import OpenStudy
    from mmsearch.training.fit import EpochResult

HEARTBEAT_S = 30
WAIT_S = 0.3  # between two looks whether a place in the study has become free
STOP_GRACE_S = 60.0  # for the epoch that is running when the launcher is gone
HAND_BACK_S = 10.0  # to hand the trial back without its end
# What is wrong with a disk, or with a network file system, and not with what is written.
CANNOT_WRITE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO),
    *(errno.ENXIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO),
)

Emit = Callable[..., None]


@dataclass(frozen=True)
class Orders:
    """What a launcher tells its worker. Workers take turns on `places`, each by its `index`.

    With `only_queued` it proposes nothing, and trains whatever is queued, also beyond `total`.
    """

    config: StudyConfig
    name: str
    index: int
    total: int
    threads: int
    only_queued: bool = False
    places: tuple[str, ...] = ("cpu",)

    @property
    def place(self) -> str:
        """What the worker trains on: `cpu` or `cuda:N`."""
        return self.places[self.index % len(self.places)]

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**vars(self), "config": self.config.model_dump_json()})

    @staticmethod
    def from_json(line: str) -> Orders:
        """The reverse of `to_json`."""
        held = json.loads(line)
        config = StudyConfig.model_validate_json(held["config"])
        return Orders(**{**held, "config": config, "places": tuple(held["places"])})


class Stop:
    """Asked to, a worker ends its epoch and hands its trial back.

    Asked again it does nothing else: a service manager signals launcher and workers at once, and the launcher its
    workers too. Who wants it to end at once kills it. `hand_back` is what is left to do where the epoch takes too long.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.hand_back: Callable[[], object] = lambda: None

    def handle(self, signum: int, frame: object) -> None:
        """As a signal handler."""
        self.asked.set()


def main() -> None:
    """Entry point of the process."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints, prints to the log

    def emit(event: str, **fields: Any) -> None:
        try:
            events.write(json.dumps({"event": event, **fields}) + "\n")
        except BrokenPipeError:  # the launcher is gone; the end of our input says so too
            os.dup2(2, events.fileno())  # what is left in the stream must go somewhere

    stop = Stop()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop.handle)
    orders = Orders.from_json(sys.stdin.readline())
    threading.Thread(target=_follow_launcher, args=(stop,), daemon=True).start()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    with events:
        try:
            run_worker(orders, emit, stop)
        except (MmsearchError, OSError) as error:
            told = disk_full(error) or error
            if not isinstance(told, MmsearchError):
                raise
            emit("error", message=str(told), code=told.exit_code)
            raise SystemExit(told.exit_code) from None


def _follow_launcher(stop: Stop) -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock a thread must not hold when the process ends
        pass
    stop.asked.set()
    # ends the process, whatever it does then, also where that holds this thread up
    faulthandler.dump_traceback_later(STOP_GRACE_S + HAND_BACK_S, exit=True)
    time.sleep(STOP_GRACE_S)
    faulthandler.dump_traceback()  # what it does, into the log
    stop.hand_back()
    os._exit(1)


def disk_full(error: Exception) -> DiskFull | None:
    """What an error means that says that a file cannot be written; None for any other."""
    if isinstance(error, DiskFull):
        return error
    if not isinstance(error, OSError) or error.errno not in CANNOT_WRITE:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return DiskFull(f"{where}cannot be written: {error.strerror}; what is written stays whole, and can be gone on with")


def run_worker(orders: Orders, emit: Emit, stop: Stop) -> None:
    """Work on the study until it has its total, or until asked to stop; in the end, tell what the time went into."""
    from mmsearch.search.clock import Clock

    clock = Clock()
    try:
        _work(orders, emit, stop, clock)
    finally:
        emit("ended", spent=clock.read())


def _work(orders: Orders, emit: Emit, stop: Stop, clock: Clock) -> None:
    import optuna

    from mmsearch.data.sources import load_dataset
    from mmsearch.search.clock import SAMPLING, WAITING
    from mmsearch.search.machine import this_process
    from mmsearch.search.objective import Objective
    from mmsearch.search.study import PATIENCE, count, grid_size, open_study
    from mmsearch.training.device import own_device, still_works, use_threads

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    use_threads(orders.threads)
    config = orders.config
    device = own_device(orders.place)
    dataset = load_dataset(config)
    with open_study(config, patient=True) as opened:
        opened.storage.budget = None if orders.only_queued else orders.total
        opened.storage.owner = {**this_process(orders.name), PATIENCE: config.search.storage_timeout}
        opened.storage.slots = 0 if orders.only_queued else grid_size(config)
        opened.check(dataset.fingerprint)

        def on_epoch(number: int, fold: int, result: EpochResult, value: float) -> None:
            emit("epoch", trial=number, fold=fold, epoch=result.epoch, value=value)

        def on_note(text: str) -> None:
            logging.getLogger("mmsearch").info("%s", text)
            emit("note", text=text)

        def on_outage(text: str) -> None:
            logging.getLogger("mmsearch").warning("%s", text)
            emit("storage", text=text, away="is back" not in text)

        opened.storage.on_outage = on_outage
        stop.hand_back = lambda: opened.hand_back(orders.name)
        objective = Objective(
            config,
            dataset,
            device,
            place=orders.place,
            on_epoch=on_epoch,
            on_note=on_note,
            should_stop=stop.asked.is_set,
            clock=clock,
            together=opened.storage.together,
        )
        emit("ready", device=orders.place, threads=orders.threads)
        gc.freeze()  # what is there stays: looking through all of it took 0.2 s after each trial
        first = True
        while not stop.asked.is_set():
            try:
                with clock.spent(SAMPLING):
                    trial = opened.optuna.ask()
            except BudgetExhausted as reason:
                counts = count(opened.trials())
                nothing_left = isinstance(reason, GridExhausted) and not counts.running + counts.waiting
                if nothing_left or (counts.finished >= orders.total and not orders.only_queued):
                    return
                with clock.spent(WAITING):
                    stop.asked.wait(WAIT_S)  # others are at work; a trial of theirs that fails frees its place
                continue
            over = run_trial(opened, objective, trial, emit, stop)
            if over and first:  # what was loaded for it stays, too
                gc.freeze()
                first = False
            if not still_works(device):
                emit("note", text=f"{orders.place} does not work any more in this process, which is replaced")
                raise SystemExit(f"{orders.place} does not work any more in this process")


@dataclass(frozen=True)
class _Outcome:
    """What became of a trial's training. `state` WAITING: it is to be handed back."""

    state: TrialState
    values: list[float] | None = None
    reason: str | None = None
    violated: Mapping[str, float] = field(default_factory=dict)  # constraints that only this outcome has


def run_trial(opened: OpenStudy, objective: Objective, trial: optuna.Trial, emit: Emit, stop: Stop) -> bool:
    """Train one claimed trial and settle its state, whatever happens; returns whether it is over.

    Raises `StorageError` where the storage is away for too long, and `DiskFull`; the trial is gone on with elsewhere.
    """
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    from mmsearch.search.clock import FILES, STORAGE
    from mmsearch.search.values import VIOLATED
    from mmsearch.training.device import free_memory

    log, clock = logging.getLogger("mmsearch"), objective.clock
    started = time.perf_counter()
    emit("started", trial=trial.number)
    log.info("trial %d started", trial.number)
    try:
        with _heartbeat(opened, trial._trial_id):
            outcome = _train(objective, trial)
        if outcome.state == TrialState.FAIL:
            log.error("trial %d failed: %s", trial.number, outcome.reason)
        with clock.spent(STORAGE):
            told = _settle(opened, trial, outcome)
    except (UpdateFinishedTrialError, ValueError) as error:
        # a launcher elsewhere that took us for dead has settled it: its word counts, and its retry is trained
        log.warning("trial %d was taken over meanwhile: %s", trial.number, error)
        told = None
    except StorageError:
        _save(objective)
        raise
    except DiskFull:
        with contextlib.suppress(StorageError):  # its database may lie on the same disk
            opened.storage.hand_back(trial._trial_id, opened.storage.owner)
            emit("handed_back", trial=trial.number)
        raise
    if told is None:
        log.info("trial %d handed back", trial.number)
        emit("handed_back", trial=trial.number, spent=clock.read())
        return False
    with clock.spent(FILES):
        objective.forget()
    free_memory(objective.device)
    reason = outcome.reason or told.user_attrs.get(VIOLATED)
    if outcome.state != TrialState.FAIL:
        values = f" {told.values}" if told.values else ""
        log.info("trial %d %s%s%s", trial.number, outcome.state.name, values, f": {reason}" if reason else "")
    emit(
        "finished",
        trial=trial.number,
        state=outcome.state.name,
        values=dict(zip(opened.config.study.metrics, told.values, strict=True)) if told.values else None,
        epochs=told.user_attrs.get("epochs", 0),
        seconds=round(time.perf_counter() - started, 2),
        reason=reason,
        spent=clock.read(),
    )
    return True


def _settle(opened: OpenStudy, trial: optuna.Trial, outcome: _Outcome) -> FrozenTrial | None:
    """Tell the storage; returns the trial as it ended, None where it is handed back, or another's by now."""
    from optuna.trial import TrialState

    storage, trial_id, reason = opened.storage, trial._trial_id, outcome.reason or ""
    if outcome.state == TrialState.WAITING:
        storage.hand_back(trial_id, storage.owner)
        return None
    if outcome.state == TrialState.FAIL:
        settled = storage.fail(trial_id, reason, 0, storage.owner)[0]
    elif outcome.violated:
        settled = storage.prune(trial_id, reason, outcome.violated, storage.owner)
    else:
        return opened.optuna.tell(trial, outcome.values, state=outcome.state)
    return storage.get_trial(trial_id) if settled else None


def _train(objective: Objective, trial: optuna.Trial) -> _Outcome:
    """The outcome of a trial's training.

    What is not the trial's fault is raised: a lost database ends this process, and the launcher has the trial retried.
    """
    from optuna import TrialPruned
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
    from optuna.trial import TrialState
    from sqlalchemy.exc import SQLAlchemyError

    from mmsearch.search.objective import Infeasible, Stopped
    from mmsearch.search.values import MEMORY

    try:
        return _Outcome(TrialState.COMPLETE, objective(trial))
    except Infeasible as why:
        return _Outcome(TrialState.PRUNED, reason=str(why))
    except TrialPruned:
        return _Outcome(TrialState.PRUNED)
    except Stopped:
        return _Outcome(TrialState.WAITING)
    except (StorageError, StorageInternalError, SQLAlchemyError, UpdateFinishedTrialError):
        raise
    except OutOfMemory as why:
        return _Outcome(TrialState.PRUNED, reason=str(why), violated={MEMORY: 1.0})
    except Exception as error:
        if (full := disk_full(error)) is not None:
            raise full from None
        logging.getLogger("mmsearch").error("%s", traceback.format_exc())
        known = isinstance(error, MmsearchError)
        return _Outcome(TrialState.FAIL, reason=str(error) if known else f"{type(error).__name__}: {error}")


def _save(objective: Objective) -> None:
    """Write the checkpoint, if that is possible: whoever is left without one trains anew."""
    try:
        objective.save()
    except OSError as error:
        logging.getLogger("mmsearch").warning("no checkpoint: %s", error)


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
