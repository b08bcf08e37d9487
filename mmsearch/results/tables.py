"""The trial table, for a report: as CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any, get_args

from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import Metric
from mmsearch.hyperparameters import TABLE
from mmsearch.search.study import OpenStudy
from mmsearch.search.values import METRICS, in_words, keeps_to_constraints

FORMATS = ("csv", "json", "md", "tex")
COLUMNS = ("number", "state", "value", "duration_s", "epochs", "best_epoch")


def trial_rows(opened: OpenStudy, sort: str = "number") -> list[dict[str, Any]]:
    """A row a trial: number, state, values, duration in seconds, epochs, and every parameter that varies in the study.

    One metric's column is `value`; several have their own names. With constraints there are their metrics too, and
    `feasible`: whether the trial keeps to them. A parameter that does not apply to a trial is None. `sort` is `number`,
    or `best`: complete trials first, those that keep to the constraints before the others, by the leading value.
    """
    trials = opened.trials()
    if sort == "best":

        def rank(trial: FrozenTrial) -> tuple[int, float, int]:
            order = {TrialState.COMPLETE: 0 if keeps_to_constraints(trial) else 1, TrialState.PRUNED: 2}
            leading = trial.values[0] if trial.values else -opened.signs[0] * math.inf
            return order.get(trial.state, 3), -opened.signs[0] * leading, trial.number

        trials = sorted(trials, key=rank)
    seen = {name for trial in trials for name in trial.params} | set(opened.config.dimensions.varying())
    names = [name for name in TABLE if name in seen] + sorted(seen - set(TABLE))
    metrics, constrained = opened.metrics, [constraint.split()[0] for constraint in opened.constraints]
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            **_values(trial, metrics, constrained),
            "duration_s": None if trial.duration is None else round(trial.duration.total_seconds(), 3),
            "epochs": trial.user_attrs.get("epochs"),
            "best_epoch": trial.user_attrs.get("best_epoch"),
            **{name: trial.params.get(name) for name in names},
        }
        for trial in trials
    ]


def _values(trial: FrozenTrial, metrics: Sequence[str], constrained: Sequence[str]) -> dict[str, Any]:
    """What a trial is worth, by column."""
    names = metrics if len(metrics) > 1 else ("value",)
    known = {"parameters": trial.user_attrs.get("parameters"), **trial.user_attrs.get(METRICS, {})}
    found: dict[str, Any] = dict(zip(names, trial.values or map(known.get, names), strict=True))
    if constrained:
        found |= {name: known.get(name) for name in constrained if name not in metrics}
        found["feasible"] = keeps_to_constraints(trial) if trial.constraints else None
    return found


def render_table(rows: list[dict[str, Any]], form: str) -> str:
    """The rows in one of `FORMATS`. Numbers are rounded where people read them (md, tex), and nowhere else."""
    columns = list(rows[0]) if rows else list(COLUMNS)
    if form == "json":
        return json.dumps(rows, indent=2) + "\n"
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    from tabulate import tabulate

    body = [[_rounded(name, row[name]) for name in columns] for row in rows]
    style = "github" if form == "md" else "latex_booktabs"
    return tabulate(body, columns, tablefmt=style, disable_numparse=True) + "\n"


def _rounded(name: str, value: object) -> str:
    if value is None:
        return ""
    if name in get_args(Metric) and isinstance(value, int | float):
        return in_words(name, value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
