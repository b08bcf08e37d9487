"""Constraints of a study, as its file writes them: `parameters <= 200000`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from mmsearch.hyperparameters import nearest


@dataclass(frozen=True)
class Constraint:
    """A limit on a metric: `at_most`, or else at least, `limit`."""

    metric: str
    at_most: bool
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {_number(self.limit)}"

    def violation(self, value: float) -> float:
        """How far `value` is beyond the limit, as a share of the limit; 0 or less where it is within.

        Samplers add the violations of a trial up: as shares, those of parameters and of seconds weigh the same.
        """
        beyond = value - self.limit if self.at_most else self.limit - value
        return beyond / (abs(self.limit) or 1.0)


def parse_constraint(text: str, metrics: Sequence[str]) -> Constraint:
    """What a study file says of one constraint; raises `ValueError` with what is allowed."""
    found = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*", text)
    if not found:
        raise ValueError(f'"{text}" must be a metric, <= or >=, and a number, such as "parameters <= 200000"')
    metric, sign, number = found.groups()
    if metric not in metrics:
        raise ValueError(
            f'"{text}": "{metric}" is no metric{nearest(metric, metrics)}; allowed are {", ".join(metrics)}'
        )
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise ValueError(f'"{text}": "{number}" is not a number')
    return Constraint(metric, sign == "<=", limit)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
