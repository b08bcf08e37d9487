"""Raw results -> figures: medians, spreads, paired differences, the time to a target; what the bars say of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from comparison.space import NETWORKS
from mmsearch.results.statistics import mean_interval

Raw = Mapping[str, Mapping[str, Any]]
FORMS = ("flat", "frames")
MARGIN = 0.005  # of macro F1: so much below another is as good
INPUT = {"flat": "1 x 507", "frames": "39 x 13"}
CONTESTANTS = ("plain/flat", "plain/frames", "ray/flat", "mmsearch/flat", "mmsearch/frames")


def spread(values: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """Median, least and greatest of repeats."""
    return {
        "median": round(median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "repeats": len(values),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, Any]:
    """The ratios of runs that were made in turn; `interval` is the 95 % interval of their geometric mean."""
    found = [one / other for one, other in zip(above, below, strict=True)]
    interval = mean_interval([math.log(value) for value in found])
    ends = None if interval is None else [round(math.exp(end), 2) for end in interval]
    return {**spread(found, 2), "interval": ends}


def difference(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """The mean of paired differences, one - other, and its 95 % interval."""
    found = [a - b for a, b in zip(one, other, strict=True)]
    interval = mean_interval(found)
    ends = None if interval is None else [round(end, 4) for end in interval]
    return {"mean": round(fmean(found), 4), "interval": ends, "pairs": len(found)}


def reached(epochs: Sequence[Sequence[Any]], target: float) -> float:
    """Seconds until an epoch's value was the target or better; raises `ValueError` where none was."""
    for seconds, _, _, value in epochs:
        if value >= target:
            return float(seconds)
    raise ValueError(f"no epoch reached {target}")


def common_target(runs: Sequence[Sequence[Sequence[Any]]]) -> float:
    """The greatest value that an epoch of every run reached."""
    return float(min(max(epoch[3] for epoch in epochs) for epochs in runs))


def summarise(raw: Raw) -> dict[str, Any]:
    """The figures of each comparison that was made, and the bars that are set for them."""
    made = {
        "step": _step(raw),
        "same_work": _same_work(raw),
        "workers": _workers(raw),
        "search": _search(raw),
    }
    found = {name: figures for name, figures in made.items() if figures}
    return {**found, "bars": bars(found)}


def _step(raw: Raw) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for network in NETWORKS:
        for form in FORMS:
            held = raw.get(f"step/{network}/{form}")
            if held is not None:
                rates = held["samples_a_second"]
                found.setdefault(network, {})[form] = {
                    "parameters": held["parameters"],
                    "rows": held["rows"],
                    "precision": held["precision"],
                    "plain": spread(rates["plain"], 0),
                    "mmsearch": spread(rates["mmsearch"], 0),
                    "ratio": ratio(rates["mmsearch"], rates["plain"]),
                    "mmsearch_in_float32": spread(rates["mmsearch in float32"], 0),
                    "ratio_in_float32": ratio(rates["mmsearch in float32"], rates["plain"]),
                }
    return found


def _runs(raw: Raw, comparison: str) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of each contestant, in the order of repeats or seeds."""
    found = {
        name: [raw[key] for key in sorted(raw, key=_turn) if key.rpartition("/")[0] == f"{comparison}/{name}"]
        for name in CONTESTANTS
    }
    return {name: runs for name, runs in found.items() if runs}


def _turn(name: str) -> int:
    """The repeat or seed that the name of a run ends with; 0 of other names."""
    last = name.rpartition("/")[2]
    return int(last) if last.isdigit() else 0


def _same_work(raw: Raw) -> dict[str, Any]:
    runs = _runs(raw, "same-work")
    seconds = {name: [run["seconds"] for run in each] for name, each in runs.items()}
    scores = {name: raw[key]["macro_f1"] for name in runs if (key := f"same-work/{name}/0/scores") in raw}
    found: dict[str, Any] = {}
    for name, each in runs.items():
        plain = f"plain/{name.rpartition('/')[2]}"
        figures = {"seconds": spread(seconds[name]), **_cost(each)}
        if name in scores:
            figures |= {"configurations": len(scores[name]), "test_macro_f1": round(fmean(scores[name]), 4)}
        if name != plain and plain in runs:
            figures["faster"] = ratio(seconds[plain], seconds[name])
            if name in scores and plain in scores:
                figures["test_macro_f1_less_plain"] = difference(scores[name], scores[plain])
        found[name] = figures
    return found


def _workers(raw: Raw) -> dict[str, Any]:
    """Trials an hour from the start of the first trial to the end of the last epoch, and the seconds before."""
    runs = {
        workers: [raw[key] for key in sorted(raw, key=_turn) if key.startswith(f"workers/{workers}/")]
        for workers in (1, 2)
    }
    if not all(runs.values()):
        return {}
    rates = {workers: [_trials_an_hour(run) for run in each] for workers, each in runs.items()}
    return {
        **{
            f"{workers}": {
                "trials_an_hour": spread(rates[workers]),
                "start_up_seconds": spread([run["start_up_s"] for run in each]),
            }
            for workers, each in runs.items()
        },
        "faster": ratio(rates[2], rates[1]),
    }


def _trials_an_hour(run: Mapping[str, Any]) -> float:
    trials = len({trial for _, trial, _, _ in run["epochs"]})
    return 3600 * trials / (max(float(epoch[0]) for epoch in run["epochs"]) - float(run["start_up_s"]))


def _search(raw: Raw) -> dict[str, Any]:
    runs = _runs(raw, "search")
    if not runs:
        return {}
    target = common_target([run["epochs"] for each in runs.values() for run in each])
    until = {name: [reached(run["epochs"], target) for run in each] for name, each in runs.items()}
    keys = {name: sorted(k for k in raw if k.startswith(f"search/{name}/") and k.endswith("/scores")) for name in runs}
    scores = {name: [raw[key]["macro_f1"][0] for key in each] for name, each in keys.items()}
    found: dict[str, Any] = {"target_valid_macro_f1": round(target, 4), "contestants": {}}
    for name, each in runs.items():
        figures = {
            "seconds_to_target": spread(until[name]),
            "seconds": spread([run["seconds"] for run in each]),
            "best_valid_macro_f1": spread([max(epoch[3] for epoch in run["epochs"]) for run in each], 4),
            "test_macro_f1": spread(scores[name], 4) | {"mean": round(fmean(scores[name]), 4)},
            **_cost(each),
        }
        for other in ("plain/flat", "ray/flat"):
            if other in runs and name not in ("plain/flat", "ray/flat"):
                figures[f"sooner_than_{other.partition('/')[0]}"] = ratio(until[other], until[name])
                figures[f"test_macro_f1_less_{other.partition('/')[0]}"] = difference(scores[name], scores[other])
        found["contestants"][name] = figures
    return found


def _cost(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    spent = [run["cpu_s"] for run in runs]
    return {
        "peak_anonymous_mb": spread([run["anonymous_mb"] for run in runs], 0),
        **({} if None in spent else {"cpu_seconds": spread(spent, 0)}),
        "made_again": sum(run["made_again"] for run in runs),
    }


def bars(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is asked of the figures: each bar with what was measured, and whether it is met.

    Of speeds it is the median; of differences in macro F1 the whole interval, at least -`MARGIN`.
    """
    asked: list[dict[str, Any]] = []

    def at_least(what: str, measured: Mapping[str, Any] | None, least: float) -> None:
        if measured is not None:
            met, ends = measured["median"] >= least, measured.get("interval")
            asked.append({"bar": what, "at_least": least, "measured": measured["median"], "interval": ends, "met": met})

    def no_worse(what: str, measured: Mapping[str, Any] | None) -> None:
        if measured is not None:
            ends = measured["interval"]
            met = ends is not None and ends[0] >= -MARGIN
            asked.append({"bar": what, "at_least": -MARGIN, "measured": measured["mean"], "interval": ends, "met": met})

    for network, least in (("16-32-64", 2.2), ("48-128-64", 2.5)):
        for form in FORMS:
            held = found.get("step", {}).get(network, {}).get(form, {})
            at_least(f"step, {network}, {INPUT[form]}: times the samples a second", held.get("ratio"), least)
    for form in FORMS:
        held = found.get("same_work", {}).get(f"mmsearch/{form}", {})
        at_least(f"same work, {INPUT[form]}: times less wall time", held.get("faster"), 3.0)
        no_worse(
            f"same work, {INPUT[form]}: test macro F1 less plain's, whole interval",
            held.get("test_macro_f1_less_plain"),
        )
    at_least("two workers: times one worker's trials an hour", found.get("workers", {}).get("faster"), 1.8)
    for form, least in (("flat", 4.0), ("frames", 8.0)):
        held = found.get("search", {}).get("contestants", {}).get(f"mmsearch/{form}", {})
        for other, who, times in (("plain", "plain", least), ("ray", "Ray Tune", 1.0)):
            what = f"search, {INPUT[form]} against {who} on {INPUT['flat']}"
            at_least(f"{what}: times sooner", held.get(f"sooner_than_{other}"), times)
            if other == "plain":
                no_worse(f"{what}: winners' test macro F1, whole interval", held.get("test_macro_f1_less_plain"))
    return asked
