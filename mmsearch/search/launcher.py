"""A search as its user runs it: made or joined, worked on until it has its total, summed up; and stopped."""

from __future__ import annotations

import contextlib
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

from mmsearch.config import StudyConfig, hide_password
from mmsearch.data.dataset import Dataset
from mmsearch.data.sources import load_dataset
from mmsearch.errors import Interrupted, MmsearchError, NoCompletedTrial, NoStudy, StorageError
from mmsearch.paths import write_text
from mmsearch.search.audit import Audit, audit_notes, audit_of
from mmsearch.search.budgets import STOP_COMMAND, Budgets, Signals
from mmsearch.search.clock import Spent
from mmsearch.search.machine import cores, still_runs
from mmsearch.search.note import NoteKeeper
from mmsearch.search.opening import check_init, default_workers, devices, opening
from mmsearch.search.preflight import SECONDS, Preflight, look_ahead
from mmsearch.search.progress import Progress, duration, plural
from mmsearch.search.study import (
    TOTAL,
    Counts,
    OpenStudy,
    count,
    create_study,
    grid_size,
    open_study,
    own_folder,
    total_of,
)
from mmsearch.search.supervisor import STOP_GRACE_S, Supervisor
from mmsearch.search.worker import Orders
from mmsearch.texts import hide_passwords

LOOK_S = 0.5  # between two looks for a study, or whether it has stopped
STOPPED_S = STOP_GRACE_S + 30  # for all launchers to stop: they look once a second, and may have to kill


@dataclass(frozen=True)
class Summary:
    """How a search stands when `launch` ends.

    `ended` says why, in words. `best` has the best leading value of the trials that keep to the constraints, `front`
    are those that no other beats in all metrics. `gain` is how much better the best trial's leading value is than that
    of `defaults`, the trial that has them; None where either is missing. `seconds` and `finished_here`, its trials, are
    of this launch alone, and so is `spent`, what its workers' time went into; `audit` is of the whole study.
    """

    counts: Counts
    total: int
    ended: str
    best: FrozenTrial | None
    front: list[FrozenTrial]
    defaults: FrozenTrial | None
    gain: float | None
    seconds: float
    finished_here: int
    spent: Spent
    audit: Audit


def launch(
    config: StudyConfig, *, workers: int | None = None, progress: Progress | None = None, preflight: bool = False
) -> Summary:
    """Search until the study has its total of complete and pruned trials, or a budget of `[search]` is spent.

    `workers` processes share the machine's cores evenly; by default there is one a core, at most 8, or
    `workers_per_gpu` a GPU. `progress` shows events; None shows nothing. The first SIGINT, SIGTERM or SIGHUP lets
    workers end their epochs and hand their trials back, the second stops at once; both raise `Interrupted`. `mmsearch
    stop`, from any machine, does what the first one does, and then there may be no best trial. Raises `SearchFailed`
    where workers or trials fail again and again, `StorageLost` where the storage stays away, and `NoCompletedTrial`
    where the search ends without one. With `preflight` it foretells what the search takes first, and raises
    `MmsearchError` where that will not fit, before there is a study.
    """
    progress = progress or Progress()
    with prepared(progress) as signals:
        places = devices(config)
        token, others = _seen(config)
        dataset = load_dataset(config)
        check_init(config, dataset)
        team = team_of(config, workers, places, others)
        lines = list(
            opening(config, dataset, *team, places, others)
        )  # before there is a study: the rows may be too few
        if preflight:
            found = look_ahead(config, dataset, team, places, _trials(config, dataset), progress)
            for line in found.as_text().splitlines():
                progress.note(line)
            found.must_fit()
            lines = [line for line in lines if line not in found.forecast.warnings]  # which were just shown
        opened, notes = create_study(config, dataset.fingerprint)
        for line in (*lines, *audit_notes(config), *notes):
            progress.note(line)
        _keep_study_file(config)
        with opened:
            return _search(opened, total_of(config), token, team, places, signals, progress)


def foresee(
    config: StudyConfig, *, workers: int | None = None, progress: Progress | None = None, seconds: float = SECONDS
) -> Preflight:
    """What a launch with so many workers would take, in about so many seconds; no study is made or changed.

    Raises `StudyMismatch` where there is such a study of other data or settings.
    """
    progress = progress or Progress()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        places = devices(config)
        _, others = _seen(config)
        dataset = load_dataset(config)
        check_init(config, dataset)
        team = team_of(config, workers, places, others)
        return look_ahead(config, dataset, team, places, _trials(config, dataset), progress, seconds)
    finally:
        progress.close()


def join(
    config: StudyConfig, *, workers: int | None = None, wait: float = 0.0, progress: Progress | None = None
) -> Summary:
    """Work on a study that a `launch` has made, from any machine that reaches its storage, towards its total.

    As `launch`, but it never makes a study: it waits `wait` seconds for it to appear, and raises `StorageError` then.
    Raises `StudyMismatch`, which names what differs, for another study file or other data.
    """
    progress = progress or Progress()
    with prepared(progress) as signals:
        places = devices(config)
        with _wait_for(config, wait, progress) as opened:
            opened.must_be_a_search()
            token, others = opened.stop_asked(), working_here(opened)
            dataset = load_dataset(config)
            check_init(config, dataset)
            opened.check(dataset.fingerprint)
            if not config.paths.identity.exists():
                progress.note(
                    f"{config.paths.folder} is not shared with the machine that launched the study: checkpoints "
                    "and trial folders of this one stay here"
                )
            own_folder(opened)
            team = team_of(config, workers, places, others)
            for line in (*opening(config, dataset, *team, places, others), *audit_notes(config)):
                progress.note(line)
            return _search(opened, opened.total(), token, team, places, signals, progress)


def stop(config: StudyConfig, *, progress: Progress | None = None) -> tuple[Counts, int]:
    """Ask all launchers of a study, on any machine, to stop, and wait until none of its trials runs.

    Returns the trials by state, and the total that they worked towards. Raises `MmsearchError` where some still run
    after a while.
    """
    progress = progress or Progress()
    deadline = time.monotonic() + STOPPED_S
    told: set[int] = set()
    with open_study(config) as opened:
        opened.ask_to_stop()
        while running := _running(opened):
            where = ", ".join(f"trial {number} ({owner})" for number, owner in running.items())
            if time.monotonic() > deadline:
                after = duration(STOPPED_S)
                raise MmsearchError(f"the study {config.study.name} did not stop within {after}: {where} still run")
            if set(running) - told:
                progress.note(f"waiting for {where} to end an epoch and be handed back")
                told |= set(running)
            time.sleep(LOOK_S)
        return count(opened.trials()), opened.total()


def _running(opened: OpenStudy) -> dict[int, str]:
    """The trials that run, and where; those of the dead do not."""
    opened.reap(still_runs)
    return {held.number: f"process {held.owner.get('pid')} on {held.owner.get('host')}" for held in opened.running()}


@contextlib.contextmanager
def prepared(progress: Progress) -> Iterator[Signals]:
    """What is as it is in each search, made, joined or repeated: signals are heard, and progress is closed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with Signals() as signals:
        try:
            yield signals
        finally:
            progress.close()


def team_of(config: StudyConfig, workers: int | None, places: tuple[str, ...], others: int) -> tuple[int, int]:
    """How many workers, and threads of each, beside so many others of the study on this machine."""
    workers = workers or default_workers(config, places)
    return workers, max(1, cores() // (workers + others))


def _seen(config: StudyConfig) -> tuple[str | None, int]:
    """What was asked of the study's launchers before this one began, and how many workers of it train here already.

    None and 0 where there is no study yet.
    """
    try:
        with open_study(config) as opened:
            return opened.stop_asked(), working_here(opened)
    except NoStudy:
        return None, 0


def _trials(config: StudyConfig, dataset: Dataset) -> list[FrozenTrial]:
    """The trials that a study has already; none where it is not there. Raises `StudyMismatch` where it is another."""
    try:
        with open_study(config) as opened:
            opened.check(dataset.fingerprint)
            return opened.trials()
    except NoStudy:
        return []


def working_here(opened: OpenStudy) -> int:
    """How many trials of the study other commands train on this machine."""
    return sum(still_runs(held.owner) is True for held in opened.running())


def _wait_for(config: StudyConfig, seconds: float, progress: Progress) -> OpenStudy:
    """The study, once it is whole."""
    deadline = time.monotonic() + seconds
    told = False
    while True:
        try:
            opened = open_study(config)
            if TOTAL in opened.storage.get_study_system_attrs(opened.id):  # the last that a launch writes
                return opened
            opened.storage.engine.dispose()
            raise StorageError(f"the study {config.study.name} is being made, or was not made by `mmsearch launch`")
        except StorageError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                progress.note(f"waiting {duration(seconds)} at most: {error}")
                told = True
        time.sleep(LOOK_S)


def work(
    opened: OpenStudy, orders: Orders, workers: int, token: str | None, signals: Signals, progress: Progress
) -> Supervisor:
    """Let so many workers train until the study has its total, or has to end.

    `token` is what had been asked of the study's launchers when this one began. Raises `Interrupted`, and what ended
    the work where that is an error; returns who watched over it.
    """
    opened.storage.on_outage = progress.note
    supervisor = Supervisor(opened, orders, Budgets(opened, time.monotonic(), token), signals, progress)
    supervisor.reap()
    trials = opened.trials()
    if count(trials).finished < orders.total:
        if (spent := supervisor.budgets.spent(trials)) is not None:
            supervisor.end(spent)
        else:
            supervisor.run(workers)
    if signals.first is not None:
        raise Interrupted(signals.first)
    if supervisor.ending is not None and supervisor.ending.error is not None:
        raise supervisor.ending.error
    return supervisor


def _search(
    opened: OpenStudy,
    total: int,
    token: str | None,
    team: tuple[int, int],
    places: tuple[str, ...],
    signals: Signals,
    progress: Progress,
) -> Summary:
    """Work on a study until it has its total or has to end, and sum up."""
    config = opened.config
    workers, threads = team
    nothing_left = count(opened.trials()).finished >= total
    with contextlib.nullcontext(progress) if nothing_left else NoteKeeper(opened, progress) as kept:
        orders = Orders(config, "", 0, total, threads, places=places)
        supervisor = work(opened, orders, workers, token, signals, kept)
    ending = supervisor.ending
    trials = opened.trials()
    counts = count(trials)
    if ending is not None and counts.finished < total:
        ended = ending.reason
    elif counts.finished < total and grid_size(config) is not None:
        ended = "each point of the grid has had its trial"
    else:
        ended = f"the study has its {plural(total, 'trial')}"
        if counts.finished > total:
            ended = f"the study has {counts.finished} trials, more than {total}"
    best = opened.best(trials)
    if best is None and not (ending is not None and ending.reason == STOP_COMMAND):
        why = f" ({ending.reason})" if ending is not None else ""
        raise NoCompletedTrial(f"study {config.study.name}: the search has ended{why}, and {opened.why_none(trials)}")
    return Summary(
        counts,
        total,
        ended,
        best,
        opened.front(trials),
        opened.defaults(trials),
        opened.gain(trials),
        time.monotonic() - supervisor.budgets.started,
        supervisor.finished,
        supervisor.ledger.spent(),
        audit_of(trials, opened.signs[0]),
    )


def _keep_study_file(config: StudyConfig) -> None:
    """A copy of the study file beside what it led to, headed by the command that ran it; without a password."""
    text = Path(config.file).read_text("utf-8")
    url = tomllib.loads(text).get("study", {}).get("storage")
    if url:
        text = text.replace(url, hide_password(url))
    write_text(config.paths.study_file, f"# {config.command('launch')}\n{hide_passwords(text)}")
