"""From what a few configurations took to what a whole search will take: memory, disk and hours, and whether they fit.

Plain arithmetic on plain values: nothing here measures or reads anything.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

from mmsearch.hyperparameters import Value, show
from mmsearch.search.clean import size_in_words
from mmsearch.search.progress import duration, plural

BLOCK = 4096  # bytes that a file takes at least
DATABASE_TRIAL, DATABASE_PARAMETER, DATABASE_EPOCH = 2000, 180, 45  # bytes in SQLite, indexes included (measured)
BETWEEN_S = 0.15  # trials: proposing, claiming and settling one
NEARLY = 0.8  # of what there is: worth a word
REPETITIONS = 20, 300  # of a simulated search, at least and at most
SIMULATED = 10**6  # trials, in all of them
QUANTILES = (0.1, 0.5, 0.9)
DEFAULTS = "defaults"  # the name of that configuration


@dataclass(frozen=True)
class Measured:
    """What one configuration takes. Seconds are by the clock, with whatever else runs on the machine.

    `train_s` and `valid_s` are of one row, `begin_s` of building a model and its optimiser, `end_s` of what follows the
    last epoch, `feature_s` of one waveform's features. `memory` is the most anonymous memory that its process ever
    held, `gpu_memory` the same of its GPU. `refused` says why there are no seconds, and `kind` what kind of reason that
    is: a "constraint", "memory" or a "failure". `params` are the configuration's values where they vary and differ from
    the defaults.
    """

    parameters: int = 0
    train_s: float = 0.0
    valid_s: float = 0.0
    begin_s: float = 0.0
    end_s: float = 0.0
    feature_s: float = 0.0
    checkpoint: int = 0
    steps: int = 0
    memory: int = 0
    gpu_memory: int = 0
    refused: str | None = None
    kind: str | None = None
    params: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What is to be done, and by whom.

    `left` trials of `total`, each of `folds` models of at most `epochs` epochs of `rows` training and validation rows.
    `share` is the part of those epochs that the study's `learned` finished trials had on average; None where there is
    none yet, and then no trial has less than `least`, before it can be pruned or lose its patience. `guesses` are what
    other configurations cost as a multiple of each other, None for one that is not trained; `guessed` the same of those
    that were measured. `log` and `shown` are sizes of files that a trial leaves, `features` the bytes and waveforms of
    the audio features that all trials need, `dimensions` what the database keeps of a trial. `ready_s` is how long a
    worker takes to begin. Limits are in seconds; None is none.
    """

    workers: int
    threads: int
    devices: int
    left: int
    total: int
    folds: int
    epochs: int
    rows: tuple[int, int]
    least: float
    share: float | None = None
    learned: int = 0
    guesses: Sequence[float | None] = ()
    guessed: Sequence[float] = ()
    log: int = 0
    shown: Sequence[int] = ()
    picture_s: float = 0.0
    features: tuple[int, int] = (0, 0)
    dimensions: int = 0
    embedded: bool = True
    ready_s: float = 0.0
    timeout: float | None = None
    trial_timeout: float | None = None
    epoch_timeout: float | None = None


@dataclass(frozen=True)
class Room:
    """What the machine has, in bytes: memory that is free beside the launcher, disk space, and free memory of the GPU
    that has the least; None where that is not known.
    """

    cores: int
    memory: int | None
    disk: int
    gpu: int | None = None


@dataclass(frozen=True)
class Span:
    """Seconds: the middle of what is expected, and the ends between which four of five such searches would lie."""

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        low, middle, high = (duration(seconds) for seconds in (self.low, self.middle, self.high))
        return f"{middle} ({low} to {high})" if low != high else middle


@dataclass(frozen=True)
class Forecast:
    """What a search will take, in bytes and seconds. `most` is with all epochs of all trials, `expected` with as many
    as finished trials had. `problems` are why it will not fit, `warnings` what may surprise; a sentence each.
    """

    memory_worker: int
    memory: int
    gpu_memory: int
    trial_bytes: int
    checkpoints: int
    database: int
    features: int
    most: Span
    least: Span
    expected: Span | None
    problems: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    @property
    def disk(self) -> int:
        """All that the search leaves, and holds while it runs."""
        return self.trial_bytes + self.checkpoints + self.database + self.features

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems


def foretell(work: Work, room: Room, named: Mapping[str, Measured], drawn: Sequence[Measured]) -> Forecast:
    """What a search takes, from the extremes of its space and from configurations as its sampler draws them."""
    everything = [*named.values(), *drawn]
    memory_worker = max((held.memory for held in everything), default=0)
    gpu_memory = max((held.gpu_memory for held in everything), default=0) * -(-work.workers // work.devices)
    trial = BLOCK + _on_disk(work.log) + 2 * sum(map(_on_disk, work.shown))
    database = DATABASE_TRIAL + work.dimensions * DATABASE_PARAMETER + work.folds * work.epochs * DATABASE_EPOCH
    checkpoint = max((held.checkpoint for held in everything), default=0)
    whole = Forecast(
        memory_worker=memory_worker,
        memory=memory_worker * work.workers,
        gpu_memory=gpu_memory,
        trial_bytes=trial * work.left,
        checkpoints=2 * _on_disk(checkpoint) * work.workers if work.left else 0,  # one is written beside the last
        database=database * work.left if work.embedded else 0,
        features=work.features[0] if work.left else 0,
        most=_span(work, drawn, 1.0),
        least=_span(work, drawn, work.least),
        expected=None if work.share is None else _span(work, drawn, work.share),
    )
    problems = tuple(_problems(work, room, whole, named, drawn)) if work.left else ()
    warnings = tuple(_warnings(work, room, whole, named, drawn))
    return Forecast(**{**vars(whole), "problems": problems, "warnings": warnings})


def trial_seconds(work: Work, measured: Measured, share: float) -> float:
    """How long a trial trains that has this share of its epochs."""
    if measured.refused is not None:
        return BETWEEN_S
    epoch = epoch_seconds(work, measured)
    each = work.folds * (measured.begin_s + work.epochs * share * epoch)
    return each + measured.end_s + work.picture_s + BETWEEN_S


def epoch_seconds(work: Work, measured: Measured) -> float:
    """How long an epoch takes."""
    return work.rows[0] * measured.train_s + work.rows[1] * measured.valid_s


def _span(work: Work, drawn: Sequence[Measured], share: float) -> Span:
    """How long all trials take that are left.

    The search is simulated many times. A trial's cost is a guess that is drawn from all guesses, times how wrong those
    were for a configuration that was measured; which of them were measured is left to chance too (bootstrap; the ratio
    estimator of Cochran, "Sampling Techniques", 1977, part 6). The trials are then given to workers as they become
    free.
    """
    if not work.left:
        return Span(0.0, 0.0, 0.0)
    trained = [i for i, held in enumerate(drawn) if held.refused is None]
    random = np.random.default_rng(0)
    guesses = [*(work.guesses or [1.0] * len(drawn))]
    known = np.array([math.nan if guess is None else guess for guess in guesses], dtype=float)
    base = np.array([work.guessed[i] if work.guessed else 1.0 for i in trained], dtype=float)
    taken = np.array([trial_seconds(work, drawn[i], share) for i in trained], dtype=float)
    if not len(known):
        known = np.array([math.nan])
    found = []
    fewest, most = REPETITIONS
    for _ in range(max(fewest, min(most, SIMULATED // work.left))):
        picked = random.choice(known, work.left)
        if len(base):
            held = random.integers(len(base), size=len(base))
            weights = base[held] / base[held].sum()
            off = random.choice(taken[held] / base[held], work.left, p=weights)
            picked = picked * off
        else:
            picked = np.full(work.left, math.nan)
        found.append(_until_all_are_done(np.nan_to_num(picked, nan=BETWEEN_S), work.workers))
    features_s = fmean(held.feature_s for held in drawn) * work.features[1] / work.workers if drawn else 0.0
    low, middle, high = np.quantile(found, QUANTILES) + work.ready_s + features_s
    return Span(float(low), float(middle), float(high))


def _until_all_are_done(seconds: Sequence[float], workers: int) -> float:
    """When the last trial ends, if each goes to the worker that is free first."""
    busy = [0.0] * workers
    for took in seconds:
        heapq.heapreplace(busy, busy[0] + float(took))
    return max(busy)


def _problems(
    work: Work, room: Room, whole: Forecast, named: Mapping[str, Measured], drawn: Sequence[Measured]
) -> Iterator[str]:
    """Why it will not fit."""
    tried = [*named.values(), *drawn]
    reasons = {held.kind: held.refused for held in reversed(tried)}  # the first of each kind
    if tried and all(held.refused is not None for held in tried):
        if "failure" in reasons:
            yield f"no configuration could be trained: {reasons['failure']}"
        elif "memory" in reasons:
            yield f"memory: no configuration can be trained by a worker alone: {reasons['memory']}"
        else:
            yield f"constraints: no model of the space would be trained: {reasons['constraint']}"
    elif DEFAULTS in named and named[DEFAULTS].kind == "memory":
        yield f"memory: the defaults cannot be trained by a worker alone: {named[DEFAULTS].refused}"
    if room.memory is not None and whole.memory > room.memory:
        fitting = int(room.memory // max(1, whole.memory_worker))
        hint = f"--workers {fitting} would fit" if fitting else "not even one worker fits: make the space smaller"
        yield (
            f"memory: {plural(work.workers, 'worker')} may need {size_in_words(whole.memory)}, and "
            f"{size_in_words(room.memory)} are available; {hint}"
        )
    if room.gpu is not None and whole.gpu_memory > room.gpu:
        each = -(-work.workers // work.devices)
        yield (
            f"GPU memory: {plural(each, 'worker')} on a GPU may need {size_in_words(whole.gpu_memory)}, and "
            f"{size_in_words(room.gpu)} are free; use fewer --workers-per-gpu, or make the space smaller"
        )
    if whole.disk > room.disk:
        yield f"disk: the search may need {size_in_words(whole.disk)}, and {size_in_words(room.disk)} are free"
    span = whole.expected or whole.least
    if work.timeout is not None and span.low > work.timeout:
        so = "as the finished ones had" if whole.expected else "as they need before they can end early"
        yield (
            f"timeout: {plural(work.left, 'trial')} of as few epochs {so} take {span}, and timeout is "
            f"{duration(work.timeout)}; a launch again would go on where this one ended"
        )


def _warnings(
    work: Work, room: Room, whole: Forecast, named: Mapping[str, Measured], drawn: Sequence[Measured]
) -> Iterator[str]:
    """What may surprise."""
    if work.workers > room.cores:
        w, c = plural(work.workers, "worker"), plural(room.cores, "core")
        yield f"{w} on {c} will wait for each other; --workers {room.cores} is faster"
    if room.memory is None:
        yield "how much memory is available is not known here"
    elif NEARLY * room.memory < whole.memory <= room.memory:
        yield f"memory: the workers may need {whole.memory / room.memory:.0%} of what is available"
    if NEARLY * room.disk < whole.disk <= room.disk:
        yield f"disk: the search may need {whole.disk / room.disk:.0%} of what is free"
    yield from _not_trained(named, drawn)
    refused = [guess for guess in work.guesses if guess is None]
    if refused:
        yield f"{len(refused) / len(work.guesses):.0%} of the space violates the constraints, and would not be trained"
    epoch = max((epoch_seconds(work, held) for held in named.values()), default=0.0)
    if work.epoch_timeout is not None and epoch > work.epoch_timeout:
        yield f"an epoch may take {duration(epoch)}, and fails after {duration(work.epoch_timeout)} (epoch_timeout)"
    longest = max((trial_seconds(work, held, 1.0) for held in named.values()), default=0.0)
    if work.trial_timeout is not None and longest > work.trial_timeout:
        yield f"a trial may take {duration(longest)}, and fails after {duration(work.trial_timeout)} (trial_timeout)"
    span = whole.expected or whole.most
    if work.timeout is not None and span.high > work.timeout and (whole.expected or whole.least).low <= work.timeout:
        yield f"timeout: the trials that are left may take {span}, and timeout is {duration(work.timeout)}"


def _not_trained(named: Mapping[str, Measured], drawn: Sequence[Measured]) -> Iterator[str]:
    """Which configurations fail, or need more memory than there is, where others are trained."""
    if all(held.refused is not None for held in (*named.values(), *drawn)):
        return
    told = (
        ("failure", "", ("fails", "fail"), ""),
        ("memory", "memory: ", ("cannot be trained by a worker alone",) * 2, "; the search prunes such trials"),
    )
    for kind, before, verbs, then in told:
        why = {held.refused: name for name, held in named.items() if held.kind == kind}
        for reason, name in why.items():
            if (kind, name) != ("memory", DEFAULTS):  # which is a problem
                differs = f" ({_in_words(named[name])})" if named[name].params else ""
                yield f"{before}the configuration {name}{differs} {verbs[0]}: {reason}{then}"
        if bad := [held for held in drawn if held.kind == kind]:
            some = f"{len(bad)} of {plural(len(drawn), 'draw')} {verbs[len(bad) > 1]}"
            yield f"{before}{some}, such as {_in_words(bad[0])}: {bad[0].refused}{then}"


def _in_words(measured: Measured) -> str:
    """A configuration, as a study file writes its values."""
    return ", ".join(f"{name} = {show(value)}" for name, value in measured.params.items()) or "the defaults"


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
