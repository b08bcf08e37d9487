"""The trial table, for a report: as CSV, JSON, Markdown or LaTeX."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mmsearch.hyperparameters import TABLE
from mmsearch.search.study import OpenStudy

FORMATS = ("csv", "json", "md", "tex")
COLUMNS = ("number", "state", "value", "duration_s", "epochs", "best_epoch")


def trial_rows(opened: OpenStudy, sort: str = "number") -> list[dict[str, Any]]:
    """A row a trial: number, state, value, duration in seconds, epochs, and every parameter that varies in the study.

    A parameter that does not apply to a trial is None. `sort` is `number`, or `best`: complete trials first, by value.
    """
    trials = opened.trials()
    if sort == "best":
        order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1}

        def rank(trial: FrozenTrial) -> tuple[int, float, int]:
            return order.get(trial.state, 2), -opened.sign * (trial.value or 0.0), trial.number

        trials = sorted(trials, key=rank)
    seen = {name for trial in trials for name in trial.params} | set(opened.config.dimensions.varying())
    names = [name for name in TABLE if name in seen] + sorted(seen - set(TABLE))
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            "value": trial.value,
            "duration_s": None if trial.duration is None else round(trial.duration.total_seconds(), 3),
            "epochs": trial.user_attrs.get("epochs"),
            "best_epoch": trial.user_attrs.get("best_epoch"),
            **{name: trial.params.get(name) for name in names},
        }
        for trial in trials
    ]


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

    body = [[_rounded(row[name]) for name in columns] for row in rows]
    style = "github" if form == "md" else "latex_booktabs"
    return tabulate(body, columns, tablefmt=style, disable_numparse=True) + "\n"


def _rounded(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
