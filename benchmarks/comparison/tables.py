"""The figures as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comparison.summary import INPUT

WHO = {"plain": "plain Optuna script", "ray": "Ray Tune, ASHA + Optuna", "mmsearch": "mmsearch"}


def tables(found: Mapping[str, Any]) -> str:
    """One table a comparison, and the bars."""
    parts = [_step(found.get("step")), _same_work(found.get("same_work")), _workers(found.get("workers"))]
    parts += [_search(found.get("search")), _bars(found.get("bars", ()))]
    return "\n".join(part for part in parts if part)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"**{title}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _who(name: str) -> str:
    kind, form = name.split("/")
    return f"{WHO[kind]}, {INPUT[form]}"


def _spread(held: Mapping[str, Any] | None) -> str:
    return "" if held is None else f"{held['median']:g} ({held['min']:g} to {held['max']:g})"


def _times(held: Mapping[str, Any] | None) -> str:
    return "" if held is None else f"{held['median']:.1f} times ({held['min']:.1f} to {held['max']:.1f})"


def _difference(held: Mapping[str, Any] | None) -> str:
    if held is None:
        return ""
    ends = held["interval"]
    return f"{held['mean']:+.4f}" + ("" if ends is None else f" ({ends[0]:+.4f} to {ends[1]:+.4f})")


def _step(held: Mapping[str, Any] | None) -> str:
    if not held:
        return ""
    rows = [
        [
            network,
            INPUT[form],
            _spread(one["plain"]),
            f"{_spread(one['mmsearch'])}, {one['precision']}",
            _times(one["ratio"]),
            _spread(one["mmsearch_in_float32"]),
            _times(one["ratio_in_float32"]),
        ]
        for network, forms in held.items()
        for form, one in forms.items()
    ]
    head = ["filters", "audio", "plain, samples/s", "mmsearch, samples/s", "ratio"]
    head += ["mmsearch in float32, samples/s", "ratio in float32"]
    return _table("Step: training samples a second, one thread", head, rows)


def _same_work(held: Mapping[str, Any] | None) -> str:
    if not held:
        return ""
    rows = [
        [
            _who(name),
            _spread(one["seconds"]),
            _times(one.get("faster")),
            f"{one['test_macro_f1']:.4f}" if "test_macro_f1" in one else "",
            _difference(one.get("test_macro_f1_less_plain")),
            _spread(one["peak_anonymous_mb"]),
            f"{one['made_again']}",
        ]
        for name, one in held.items()
    ]
    head = ["", "seconds", "faster than plain", "mean test macro F1", "less plain's (95 %)", "peak memory, MB"]
    head.append("made again")
    return _table("Same work: the same configurations, none pruned, two processes", head, rows)


def _workers(held: Mapping[str, Any] | None) -> str:
    if not held:
        return ""
    rows = [
        [workers, _spread(held[workers]["trials_an_hour"]), _spread(held[workers]["start_up_seconds"]), times]
        for workers, times in (("1", ""), ("2", _times(held["faster"])))
    ]
    head = ["workers", "trials an hour, once started", "seconds to start", "times one worker's"]
    return _table("Workers of one thread on two cores, the same trials", head, rows)


def _search(held: Mapping[str, Any] | None) -> str:
    if not held:
        return ""
    rows = [
        [
            _who(name),
            _spread(one["seconds_to_target"]),
            _times(one.get("sooner_than_plain")),
            _times(one.get("sooner_than_ray")),
            _spread(one["seconds"]),
            f"{one['test_macro_f1']['mean']:.4f}",
            _difference(one.get("test_macro_f1_less_plain")),
            _spread(one["peak_anonymous_mb"]),
            f"{one['made_again']}",
        ]
        for name, one in held["contestants"].items()
    ]
    head = [
        "",
        "seconds to the target",
        "sooner than plain on 1 x 507",
        "sooner than Ray",
        "seconds in all",
        "winners' test macro F1",
    ]
    head += ["less plain's on 1 x 507 (95 %)", "peak memory, MB", "made again"]
    return _table(f"Search: until validation macro F1 is {held['target_valid_macro_f1']:.4f}", head, rows)


def _bars(held: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            one["bar"],
            f"{one['at_least']:g}",
            f"{one['measured']:g}",
            _ends(one["interval"]),
            "yes" if one["met"] else "NO",
        ]
        for one in held
    ]
    return _table("Bars", ["", "at least", "measured", "95 %", "met"], rows) if rows else ""


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:g} to {interval[1]:g}"
