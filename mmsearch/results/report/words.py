"""Numbers and lists as a report writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmsearch.search.values import in_words

METRICS = {
    "macro_f1": "macro F1",
    "accuracy": "accuracy",
    "loss": "cross-entropy loss",
    "parameters": "parameters",
    "latency_ms": "latency (ms)",
}
NONE = "-"  # of a table, where there is no number


def metric(name: str) -> str:
    """A metric's name in a sentence."""
    return METRICS.get(name, name)


def count(number: int, what: str = "") -> str:
    """`4,000`, `1 row`, `4,000 rows`."""
    shown = f"{number:,}"
    return f"{shown} {what}" + "s" * (number != 1) if what else shown


def share(part: float) -> str:
    """`20 %`, `12.5 %`, `99.9 %`."""
    return f"{100 * part:.4g} %"


def score(value: float | None) -> str:
    """A score between 0 and 1, or a loss, to four digits."""
    return NONE if value is None else f"{value:.4f}"


def value(name: str, number: float | None) -> str:
    """A metric's value."""
    return NONE if number is None else in_words(name, number)


def interval(held: Sequence[float] | None) -> str:
    """`0.9970 to 0.9999`."""
    return NONE if held is None else f"{held[0]:.4f} to {held[1]:.4f}"


def p_value(p: float | None) -> str:
    """`0.031`, `< 0.001`."""
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def beside(gain: float, smaller_is_better: bool) -> str:
    """A value beside another one that it is better than by `gain`: `0.0200 higher than`, `the same as`."""
    if not gain:
        return "the same as"
    return f"{abs(gain):.4f} {'higher' if (gain > 0) != smaller_is_better else 'lower'} than"


def listed(items: Sequence[str], last: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f" {last} ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def fitted_on(calibration: Mapping[str, Any]) -> str:
    """The rows that a calibration was fitted on: `800 validation rows, by a model trained without them`."""
    origin = calibration["fitted_on"]
    return f"{count(calibration['rows'])} {'training rows, out of fold' if origin == 'out of fold' else origin}"


def setting(held: object) -> str:
    """The value of a hyperparameter, rounded to four digits."""
    if held is None:
        return NONE
    if isinstance(held, bool):
        return str(held).lower()
    return f"{held:.4g}" if isinstance(held, float) else str(held)
