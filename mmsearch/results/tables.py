"""The trial table, for a report and for programs: as CSV, JSON, Markdown, LaTeX or Parquet."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, get_args

from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import Metric
from mmsearch.errors import UsageError
from mmsearch.hyperparameters import TABLE, nearest
from mmsearch.results.formats import to_csv, to_json, to_parquet
from mmsearch.results.markup import markdown_table, tex_table
from mmsearch.search.storage import FAIL_REASON, OWNER
from mmsearch.search.study import OpenStudy
from mmsearch.search.values import METRICS, RUN, VIOLATED, in_words, keeps_to_constraints

FORMATS = ("csv", "json", "md", "tex")  # those of text; `parquet_table` makes the other
COLUMNS = ("number", "state", "value", "duration_s", "epochs", "best_epoch")
# What is shown only where it is asked for: when, where and from which seed a trial was trained.
ON_DEMAND = ("started", "finished", "seed", "threads", "device", "hardware", "worker", "host", "retry_of")
STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING", "waiting": "WAITING"}
PAGE_COLUMNS, PAGE_ROWS = 9, 45  # what about fits on a page of LaTeX's article
# Of columns that may hold nothing at all; a parameter's kind is known.
KINDS: Mapping[str, type] = {
    **dict.fromkeys(("number", "epochs", "best_epoch", "seed", "threads", "retry_of", "parameters"), int),
    **dict.fromkeys(("value", "duration_s", *get_args(Metric)), float),
    "feasible": bool,
    **dict.fromkeys(("started", "finished"), datetime),
}

Row = Mapping[str, Any]


def trial_rows(opened: OpenStudy, sort: str = "number") -> list[dict[str, Any]]:
    """A row a trial: number, state, values, duration in seconds, epochs, and every parameter that varies in the study.

    One metric's column is `value`; several have their own names. With constraints there are their metrics too, and
    `feasible`: whether the trial keeps to them. A parameter that does not apply to a trial is None. Then come
    `parameters`, the size of the model; `reason`, where some trial has one: why it failed, or what it violates; and
    those of `ON_DEMAND`, of which times are in UTC. `sort` is `number`, or `best`: complete trials first, those that
    keep to the constraints before the others, by the leading value.
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
    reasons = any(_reason(trial) for trial in trials)
    return [
        {
            "number": trial.number,
            "state": trial.state.name,
            **_values(trial, metrics, constrained),
            "duration_s": None if trial.duration is None else trial.duration.total_seconds(),
            "epochs": trial.user_attrs.get("epochs"),
            "best_epoch": trial.user_attrs.get("best_epoch"),
            **{name: trial.params.get(name) for name in names},
            **({} if "parameters" in (*metrics, *constrained) else {"parameters": trial.user_attrs.get("parameters")}),
            **({"reason": _reason(trial)} if reasons else {}),
            **_origin(trial),
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


def _reason(trial: FrozenTrial) -> str | None:
    """Why a trial failed, or what it violates; what a pruner ends has no other reason than its values."""
    return trial.user_attrs.get(FAIL_REASON if trial.state == TrialState.FAIL else VIOLATED) or None


def _origin(trial: FrozenTrial) -> dict[str, Any]:
    """The columns of `ON_DEMAND`."""
    run, owner = trial.user_attrs.get(RUN, {}), trial.system_attrs.get(OWNER, {})
    times = {"started": trial.datetime_start, "finished": trial.datetime_complete}
    known = {
        **{name: None if time is None else time.astimezone(UTC) for name, time in times.items()},  # they are local
        **{name: run.get(name) for name in ("seed", "threads", "device", "hardware")},
        **{name: owner.get(name) for name in ("worker", "host")},
        "retry_of": trial.system_attrs.get("failed_trial"),
    }
    return {name: known[name] for name in ON_DEMAND}


def default_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of rows that are shown where none are chosen."""
    return [name for name in rows[0] if name not in ON_DEMAND] if rows else list(COLUMNS)


def choose_columns(rows: Sequence[Row], wanted: str) -> list[str]:
    """The columns that `number,value,image.*` names, in its order, each once; raises `UsageError`."""
    known = [*rows[0]] if rows else [*COLUMNS, *ON_DEMAND]
    found: list[str] = []
    for name in (part.strip() for part in wanted.split(",")):
        matching = [column for column in known if column == name] or [c for c in known if fnmatchcase(c, name)]
        if not matching:
            what = "matches no column" if set(name) & set("*?[") else f"is no column{nearest(name, known)}"
            raise UsageError(f'--columns: "{name}" {what}; there are {", ".join(known)}')
        found += matching
    return list(dict.fromkeys(found))


def choose_states(wanted: str) -> list[str]:
    """The states that `complete,pruned` names, as Optuna calls them; raises `UsageError`."""
    names = [part.strip().lower() for part in wanted.split(",")]
    for name in names:
        if name not in (*STATES, "fail"):
            raise UsageError(f'--state: "{name}" is no state{nearest(name, STATES)}; there are {", ".join(STATES)}')
    return [STATES.get(name, "FAIL") for name in names]


def select_rows(
    rows: Sequence[Row], states: Collection[str] = (), top: int | None = None, sort: str = "best"
) -> list[Row]:
    """Of rows that stand with the best first those in these states, the first `top`.

    Where no states are given these are all, or with `top` the complete ones: a pruned trial is not among the best.
    `sort` is the order of what is left, as of `trial_rows`.
    """
    if top is not None and not states:
        states = ("COMPLETE",)
    found = [row for row in rows if not states or row["state"] in states][:top]
    return sorted(found, key=lambda row: int(row["number"])) if sort == "number" else found


def too_large(rows: Sequence[Row], columns: Sequence[str]) -> str | None:
    """That a table is more than a page of LaTeX holds, and what shows less of it; None where it is not."""
    wide, long = len(columns) > PAGE_COLUMNS, len(rows) > PAGE_ROWS
    sizes = [f"{len(columns)} columns"] * wide + [f"{len(rows)} rows"] * long
    ways = ["--columns number,value,image.* shows some columns"] * wide + ["--top 10 shows some rows"] * long
    return f"{' and '.join(sizes)} are more than a page holds; {', '.join(ways)}" if sizes else None


def render_table(
    rows: Sequence[Row],
    form: str,
    *,
    columns: Sequence[str] | None = None,
    metric: str | None = None,
    best: int | None = None,
) -> str:
    """The rows in one of `FORMATS`, by default with the `default_columns`.

    Where people read them (md, tex) numbers are rounded, the row of trial `best` is bold, and the column `value` is
    headed by `metric`; elsewhere they are exact.
    """
    columns = default_columns(rows) if columns is None else columns
    if form == "csv":
        return to_csv(columns, ([row[name] for name in columns] for row in rows))
    if form == "json":
        return to_json([{name: row[name] for name in columns} for row in rows])
    header = [metric if name == "value" and metric else name for name in columns]
    words = [[_rounded(title, row[name]) for title, name in zip(header, columns, strict=True)] for row in rows]
    align = "".join("r" if _is_number(row[name] for row in rows) else "l" for name in columns)
    marked = [position for position, row in enumerate(rows) if best is not None and row["number"] == best]
    return (markdown_table if form == "md" else tex_table)(header, words, align, marked)


def parquet_table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> bytes:
    """The rows as a Parquet file of typed columns; raises `UsageError` where pyarrow is not installed."""
    columns = default_columns(rows) if columns is None else columns
    kinds = {name: TABLE[name].kind if name in TABLE else KINDS.get(name, str) for name in columns}
    return to_parquet(kinds, [[row[name] for name in columns] for row in rows])


def _is_number(values: Iterable[Any]) -> bool:
    return all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values)


def _rounded(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if name in get_args(Metric) and isinstance(value, int | float):
        return in_words(name, value)
    if name == "duration_s" and isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
