#!/usr/bin/env python3
"""Which pruner finds a good trial soonest, and what does it lose? Learning curves are recorded once, searches replayed.

    benchmarks/pruners.py DATA [--studies three_conv digits] [--draws 60] [--proposed 60] [--seeds 6]
                          [--orders 200] [--budgets 16 30 100] [--precision bfloat16] [--work FOLDER] [--out FILE]

DATA is a folder that mmsearch reads. For each study, configurations are drawn at random, and others by a real TPE
search, and each is trained to its last epoch with nothing that ends it; the defaults also with several seeds. One
process and one thread do this; what was recorded is kept in FOLDER with what it depends on, and not done again, so
that it may be stopped, and run for two studies at once; it is refused for other data, epochs or precision.

Then whole searches are replayed on the recorded curves with Optuna's own pruners in Optuna's own study, by two workers
on a clock that counts the recorded seconds. Each pruner meets the same orders. Trial 0 has the defaults and is never
pruned, as in a search, and `patience` ends trials as there. Three kinds of orders:

random     any order; where a search has more trials than there are configurations, they come again
improving  the same, but each after the first ten is the best of three drawn, as of a sampler that has learned
tpe        as TPE proposed them, but for a shuffle within each ten: it does not react to what a pruner ended

Of the first two, each five orders are of a bootstrap of the configurations, over which the intervals go. How much a
lost winner matters is seen beside the spread of one configuration over seeds.
The results go to FILE, and as Markdown tables to standard output.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import json
import multiprocessing
import os
import platform
import random
import re
import shlex
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import optuna
from curves import EPOCHS, ROOT, Curve, record, study_config
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import TrialState

SOURCES = ("random", "improving", "tpe")
REPEATS = "seeds"  # the defaults, trained again and again: how far chance alone moves a value
PATIENCE = 3
WORKERS = 2
WINDOW = 10  # so many trials are drawn before a sampler learns; and so many of TPE's are shuffled among themselves
BEST_OF = 3
ORDERS = 5  # of one bootstrap of the configurations
CLOSE = 0.002  # of macro F1 below the best: as good, for whoever waits
FORMER = "median, startup 5, from epoch 3"  # the default until this was measured: what the others are compared with


def pruners() -> dict[str, Callable[[], BasePruner]]:
    """What is compared, in words. Epochs count from 1; of `from epoch 3`, the third is the first that may be the last.

    Halving with a first rung after epoch 2 and a factor of 3 has rungs after epochs 2 and 6.
    """
    found: dict[str, Callable[[], BasePruner]] = {"none": NopPruner}
    for startup, first in ((3, 1), (3, 2), (5, 1), (5, 2), (5, 3), (5, 4), (10, 3)):
        words = f"startup {startup}, from epoch {first}"
        keys = {"n_startup_trials": startup, "n_warmup_steps": first}
        found[f"median, {words}"] = partial(MedianPruner, **keys)
        found[f"percentile 25, {words}"] = partial(PercentilePruner, 25.0, **keys)
    for patience in (1, 2):
        found[f"patient {patience}, {FORMER}"] = partial(PatientPruner, MedianPruner(5, 3), patience)
    for first, factor in product((1, 2, 3, 4), (2, 3, 4)):
        name = f"halving by {factor}, first rung {first}"
        found[name] = partial(SuccessiveHalvingPruner, first, factor)
    found["halving by 3, first rung 2, bootstrap 3"] = partial(SuccessiveHalvingPruner, 2, 3, bootstrap_count=3)
    for first, factor in product((1, 2), (2, 3)):
        name = f"hyperband by {factor}, first rung {first}"
        found[name] = partial(HyperbandPruner, first, EPOCHS, factor)
    return found


@dataclass(frozen=True)
class Replay:
    """A search as it would have gone: seconds on its clock, and of training; the ends of complete trials, in order."""

    clock: float
    trained: float
    pruned: frozenset[int]
    complete: tuple[tuple[float, int], ...]  # when, and which place in the order


def replay(curves: Sequence[Curve], pruner: BasePruner) -> Replay:
    """Search these configurations, one after the other, each as soon as one of the workers is free."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0), pruner=pruner)
    waiting = iter(curves)
    under_way: list[tuple[float, int, int]] = []  # when an epoch ends, of which trial, and which epoch
    trials: dict[int, optuna.Trial] = {}

    def begin(now: float) -> None:
        curve = next(waiting, None)
        if curve is not None:
            trial = study.ask()
            trials[trial.number] = trial
            heapq.heappush(under_way, (now + curve.seconds[0], trial.number, 1))

    for _ in range(WORKERS):
        begin(0.0)
    now = trained = 0.0
    pruned, complete = set(), []
    while under_way:
        now, number, epoch = heapq.heappop(under_way)
        curve, trial = curves[number], trials[number]
        trained += curve.seconds[epoch - 1]
        trial.report(curve.values[epoch - 1], epoch)
        if number > 0 and epoch < len(curve.values) and trial.should_prune():  # as search/objective.py asks
            study.tell(trial, state=TrialState.PRUNED)
            pruned.add(number)
            begin(now)
        elif epoch == len(curve.values):
            study.tell(trial, curve.value)
            complete.append((now, number))
            begin(now)
        else:
            heapq.heappush(under_way, (now + curve.seconds[epoch], number, epoch + 1))
    return Replay(now, trained, frozenset(pruned), tuple(complete))


def order(source: str, curves: Sequence[Curve], budget: int, seed: int) -> list[Curve]:
    """`budget` of the curves in one order, the study's default first; see the head of this file for the sources."""
    dice, rest = random.Random(seed), list(curves[1:])
    if source == "tpe":
        places = [0, *range(WINDOW - 1, len(rest), WINDOW), len(rest)]
        found = [curve for start, end in pairwise(places) for curve in dice.sample(rest[start:end], end - start)]
        return [curves[0], *found][:budget]
    pool = random.Random(seed // ORDERS).choices(rest, k=len(rest))  # a bootstrap of the configurations
    if source == "random":
        found = dice.sample(pool, len(pool)) if budget <= len(curves) else dice.choices(pool, k=budget)
    else:
        found = dice.choices(pool, k=WINDOW - 1)
        while len(found) < budget:
            found.append(max(dice.choices(pool, k=BEST_OF), key=lambda curve: curve.value))
    return [curves[0], *found][:budget]


@dataclass(frozen=True)
class Outcome:
    """What one search came to, beside the same without a pruner; regrets in macro F1, above 0 is worse."""

    trained: float  # share of the seconds of training
    close: float  # seconds until a trial within CLOSE of the best; if there was none: its own, and then those without
    plain_close: float  # the same without a pruner
    reached: bool  # whether there was one
    regret: float  # of the winner's value
    test_regret: float  # of its test macro F1
    best_lost: bool  # whether the best trial was pruned
    complete: float  # share of the trials


def first_close(searched: Replay, curves: Sequence[Curve], target: float) -> float | None:
    """When the first trial with the target's value was complete."""
    return next((when for when, number in searched.complete if curves[number].value >= target), None)


def outcome(curves: Sequence[Curve], searched: Replay, plain: Replay) -> Outcome:
    """What a search came to, from the same order with and without a pruner."""

    def winner(found: Replay) -> int:
        return max((number for _, number in found.complete), key=lambda number: (curves[number].value, -number))

    best, mine = winner(plain), winner(searched)
    target = curves[best].value - CLOSE
    when, plain_when = (first_close(found, curves, target) for found in (searched, plain))
    assert plain_when is not None
    return Outcome(
        searched.trained / plain.trained,
        searched.clock + plain_when if when is None else when,
        plain_when,
        when is not None,
        curves[best].value - curves[mine].value,
        curves[best].test_value - curves[mine].test_value,
        best in searched.pruned,
        len(searched.complete) / len(curves),
    )


def summary(outcomes: Sequence[Outcome], others: Sequence[Outcome]) -> dict[str, Any]:
    """Means over the orders, and of the difference from another pruner on the same orders, with intervals of 95 %.

    Intervals are over the bootstraps of the configurations, of which each has ORDERS orders.
    """

    def between(values: Sequence[float]) -> list[float]:
        means = [statistics.fmean(values[start : start + ORDERS]) for start in range(0, len(values), ORDERS)]
        cuts = statistics.quantiles(means, n=40, method="inclusive")
        return [round(found, 5) for found in (statistics.fmean(values), cuts[0], cuts[-1])]

    def told(pick: Callable[[Outcome], float]) -> dict[str, list[float]]:
        mine, theirs = ([pick(one) for one in several] for several in (outcomes, others))
        return {
            "mean": between(mine),
            "less the median": between([one - other for one, other in zip(mine, theirs, strict=True)]),
        }

    return {
        "trained": told(lambda one: one.trained),
        "regret": told(lambda one: one.regret),
        "regret on test rows": told(lambda one: one.test_regret),
        "seconds until close": round(sum(o.close for o in outcomes) / sum(o.plain_close for o in outcomes), 3),
        "came close": round(statistics.fmean(one.reached for one in outcomes), 3),
        "best trial pruned": round(statistics.fmean(one.best_lost for one in outcomes), 3),
        "complete": round(statistics.fmean(one.complete for one in outcomes), 3),
    }


def compare(job: tuple[str, Sequence[Curve], int, int]) -> dict[str, Outcome]:
    """Each pruner on one order, given as its source, the curves, the budget and a seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    curves = order(*job)
    plain = replay(curves, NopPruner())
    return {name: outcome(curves, replay(curves, make()), plain) for name, make in pruners().items()}


def searches(curves: dict[str, list[Curve]], budgets: Sequence[int], count: int, jobs: int) -> list[dict[str, Any]]:
    """A row for each source, budget and pruner; a budget that TPE did not propose enough for is left out."""
    curves = {"random": curves["random"], "improving": curves["random"], "tpe": curves["tpe"]}
    rows = []
    count = -(-count // ORDERS) * ORDERS
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for source, found in curves.items():
            for budget in budgets:
                if source == "tpe" and len(found) < budget:
                    continue
                todo = [(source, found, budget, seed) for seed in range(count)]
                outcomes = list(pool.imap(compare, todo, chunksize=4))
                for name in outcomes[0]:
                    held = summary(*([each[which] for each in outcomes] for which in (name, FORMER)))
                    rows.append({"draws": source, "trials": budget, "pruner": name, **held})
    return rows


def patiences(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """What each patience costs and saves with no pruner, over all configurations, and what it does to the best one."""
    whole = sum(sum(curve.seconds) for curve in curves)
    best = max(curve.value for curve in curves)
    rows = []
    for patience in range(1, EPOCHS):
        ended = [curve.ended_by(patience) for curve in curves]
        lost = [curve.value - short.value for curve, short in zip(curves, ended, strict=True)]
        rows.append(
            {
                "patience": patience,
                "trained": round(sum(sum(curve.seconds) for curve in ended) / whole, 3),
                "ended early": round(statistics.fmean(len(curve.values) < EPOCHS for curve in ended), 3),
                "value lost, mean": round(statistics.fmean(lost), 5),
                "value lost, most": round(max(lost), 5),
                "best value lost": round(best - max(curve.value for curve in ended), 5),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Pruners in the order of the seconds of training."""

    def shown(values: Sequence[float], places: int) -> str:
        mean, low, high = (f"{value:.{places}f}" for value in values)
        return f"{mean} [{low}, {high}]"

    lines = [
        "| pruner | training | less the median | regret | less the median | on test rows | until close | complete |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: float(row["trained"]["mean"][0])):
        trained, regret = row["trained"], row["regret"]
        cells = [
            row["pruner"],
            shown(trained["mean"], 2),
            shown(trained["less the median"], 2),
            shown(regret["mean"], 4),
            shown(regret["less the median"], 4),
            shown(row["regret on test rows"]["mean"], 4),
            f"{row['seconds until close']:.2f}",
            f"{row['complete']:.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--studies", nargs="+", default=["three_conv", "digits"])
    parser.add_argument("--draws", type=int, default=60, help="configurations at random")
    parser.add_argument("--proposed", type=int, default=60, help="configurations by TPE; 0 leaves them out")
    parser.add_argument("--seeds", type=int, default=6, help="of the defaults, for the spread of one configuration")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--budgets", nargs="+", type=int, default=[16, 30, 100])
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="of the replays")
    parser.add_argument("--work", type=Path, default=ROOT / "storage" / "pruners")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "pruners.json")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies: dict[str, Any] = {}
    for study in args.studies:
        curves, recorded = {}, {}
        for source, draws in (("random", args.draws), (REPEATS, args.seeds), ("tpe", args.proposed)):
            config = study_config(study, source, args.data.resolve(), args.work.resolve(), args.precision)
            file = args.work / f"{study}-{source}.jsonl"
            recorded[source], curves[source] = record(config, draws, file, repeat=source == REPEATS)
        again = [curve.ended_by(PATIENCE) for curve in curves.pop(REPEATS)]
        ended = {source: [curve.ended_by(PATIENCE) for curve in found] for source, found in curves.items()}
        rows = searches(ended, args.budgets, args.orders, args.jobs)
        studies[study] = {
            "configurations": {source: len(found) for source, found in curves.items()},
            "recorded with": {source: of for source, of in recorded.items() if of},
            "seconds a configuration, median": round(
                statistics.median(sum(curve.seconds) for found in curves.values() for curve in found), 1
            ),
            "best": {
                source: round(max(curve.value for curve in found), 5) for source, found in curves.items() if found
            },
            "of one configuration over seeds": {
                "seeds": len(again),
                "value, standard deviation": round(statistics.stdev(curve.value for curve in again), 5),
                "test, standard deviation": round(statistics.stdev(curve.test_value for curve in again), 5),
            },
            "patience": patiences([curve for found in curves.values() for curve in found]),
            "searches": rows,
        }
        for source in SOURCES:
            for budget in args.budgets:
                found = [row for row in rows if (row["draws"], row["trials"]) == (source, budget)]
                if found:
                    print(f"\n{study}, {budget} trials, draws: {source}\n\n{table(found)}")
    numbers = ("draws", "proposed", "seeds", "orders")
    options = [word for name in numbers for word in (f"--{name}", str(getattr(args, name)))]
    options += ["--studies", *args.studies, "--budgets", *map(str, args.budgets), "--precision", args.precision]
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["benchmarks/pruners.py", "DATA", *options]),
        "hardware": processor(),
        "versions": {name: version(name) for name in ("mmsearch", "optuna", "torch")},
        "epochs": EPOCHS,
        "patience": PATIENCE,
        "workers": WORKERS,
        "close": CLOSE,
        "the median": FORMER,
        "orders": args.orders,
        "studies": studies,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(result, indent=2))
    args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
