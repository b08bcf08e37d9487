"""A comparison of studies as text for people, and as JSON and CSV for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmsearch.results.compare import Comparison, Contest
from mmsearch.results.formats import to_csv, to_json
from mmsearch.results.standing import Point, Scored, Standing
from mmsearch.results.statistics import Interval
from mmsearch.search.progress import duration, plural
from mmsearch.search.values import in_words

NONE = "-"  # in a table for people


def as_text(comparison: Comparison) -> str:
    """Tables side by side, rounded, then whether the difference is more than luck, and what to be careful about."""
    parts = [_columns([*_summary(comparison)])]
    names = [one.name for one in comparison.standings]
    rows = [["as good as the end of", *names]]
    for one, points in zip(comparison.standings, comparison.reached, strict=True):
        rows.append([one.name, *(_when(point) for point in points)])
    parts.append(f"trials, and time of training, until a study was\n{_columns(rows, '<')}")
    taken = [one.name if one.taken is None else f"{one.name}, trial {one.taken}" for one in comparison.standings]
    words = {name: [*map(_value, held)] for name, held in comparison.parameters.items()}
    for title, header, table in (("best configuration", taken, words), ("begun with", names, comparison.setups)):
        body = [[name, *values] for name, values in table.items()]
        parts.append(_columns([[title, *header], *body], "<") if body else f"{title}: the same\n")
    said = [f"difference  {_outcome(contest)}" for contest in comparison.contests]
    said += [f"difference  not tested: {comparison.untested}"] if comparison.untested else []
    said += [f"careful     {doubt}" for doubt in comparison.doubts]
    return "\n".join(parts) + "\n" + "".join(f"{line}\n" for line in said)


def as_json(comparison: Comparison) -> str:
    """All numbers of a comparison, exact; hours are of training, of all workers added up."""
    names = [one.name for one in comparison.standings]
    return to_json(
        {
            "studies": [
                {
                    **_numbers(one),
                    "seeds": None if one.chosen is None else list(one.chosen.values),
                    "reached": {
                        other: None if point is None else {"trials": point.trials, "hours": point.hours}
                        for other, point in zip(names, points, strict=True)
                    },
                    "progress": [[point.trials, point.hours, point.best] for point in one.progress],
                }
                for one, points in zip(comparison.standings, comparison.reached, strict=True)
            ],
            "parameters": {name: dict(zip(names, held, strict=True)) for name, held in comparison.parameters.items()},
            "setups": {name: dict(zip(names, held, strict=True)) for name, held in comparison.setups.items()},
            "contests": [
                {
                    "better": contest.better,
                    "other": contest.other,
                    "difference": contest.difference,
                    "seeds": contest.seeds,
                    "test": "Welch's t-test, corrected after Holm for all pairs",
                    "p": contest.p,
                }
                for contest in comparison.contests
            ],
            "untested": comparison.untested,
            "doubts": comparison.doubts,
        }
    )


def as_csv(comparison: Comparison) -> str:
    """A row a study, exact; for each study when the others were as good as it at its end."""
    rows = []
    for one, points in zip(comparison.standings, comparison.reached, strict=True):
        row = _numbers(one)
        for other, point in zip(comparison.standings, points, strict=True):
            row[f"trials_until_{other.name}"] = None if point is None else point.trials
            row[f"hours_until_{other.name}"] = None if point is None else point.hours
        rows.append(row)
    return to_csv([*rows[0]], [[*row.values()] for row in rows])


def _numbers(one: Standing) -> dict[str, Any]:
    """What is one number of a study, by name."""
    chosen, scored = one.chosen, one.scored
    low, high = (chosen.interval if chosen is not None else None) or (None, None)
    least, most = (scored.interval if scored is not None else None) or (None, None)
    return {
        "study": one.name,
        "storage": one.storage,
        "metric": one.metric,
        "total": one.total,
        "complete": one.counts.complete,
        "pruned": one.counts.pruned,
        "failed": one.counts.failed,
        "running": one.counts.running,
        "waiting": one.counts.waiting,
        "hours": one.hours,
        "best_trial": one.best,
        "best_value": one.value,
        "taken_trial": one.taken,
        "parameters": one.parameters,
        "confirmed_trial": None if chosen is None else chosen.trial,
        "confirmed_seeds": None if chosen is None else len(chosen.values),
        "confirmed_mean": None if chosen is None else chosen.mean,
        "confirmed_low": low,
        "confirmed_high": high,
        "scored_on": None if scored is None else scored.on,
        "scored_rows": None if scored is None else scored.rows,
        "scored_trial": None if scored is None else scored.trial,
        "scored_members": None if scored is None else scored.members,
        "scored_macro_f1": None if scored is None else scored.macro_f1,
        "scored_low": least,
        "scored_high": most,
    }


def _summary(comparison: Comparison) -> Iterator[list[str]]:
    """A row a study under a header; trials that run or wait only where there are some."""
    metrics = {one.metric for one in comparison.standings}
    shared = f" {metrics.pop()}" if len(metrics) == 1 else ""
    is_open = any(one.counts.running + one.counts.waiting for one in comparison.standings)
    yield [
        *("study", "trials", "complete", "pruned", "failed", *(["open"] if is_open else []), "training"),
        *(f"best{shared}", "trial", "confirmed (95 %)", "trial", "parameters", "test macro F1 (95 %)"),
    ]
    for one in comparison.standings:
        counts, chosen, scored = one.counts, one.chosen, one.scored
        metric = "" if shared else f"{one.metric} "
        yield [
            one.name,
            *map(str, (counts.finished, counts.complete, counts.pruned, counts.failed)),
            *([str(counts.running + counts.waiting)] if is_open else []),
            duration(one.hours * 3600),
            NONE if one.value is None else metric + in_words(one.metric, one.value),
            NONE if one.best is None else str(one.best),
            NONE if chosen is None else _between(one.metric, chosen.mean, chosen.interval),
            NONE if chosen is None else str(chosen.trial),
            NONE if one.parameters is None else str(one.parameters),
            NONE if scored is None else _score(scored),
        ]


def _score(scored: Scored) -> str:
    """Of which model, too: it need not be the one that the rest of the row is about."""
    rows = " held back" if scored.on != "test" else ""
    model = f"trial {scored.trial}" if scored.members == 1 else f"{scored.members} models"
    return f"{_between('macro_f1', scored.macro_f1, scored.interval)}{rows}, {model}"


def _between(metric: str, value: float, interval: Interval | None) -> str:
    if interval is None:
        return in_words(metric, value)
    low, high = (in_words(metric, end) for end in interval)
    return f"{in_words(metric, value)} ({low} to {high})"


def _when(point: Point | None) -> str:
    return "never" if point is None else f"{plural(point.trials, 'trial')}, {duration(point.hours * 3600)}"


def _value(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _outcome(contest: Contest) -> str:
    luck = "more than the luck of seeds" if contest.differs else "no more than the luck of seeds may be"
    p = "p < 0.001" if contest.p < 0.001 else f"p = {contest.p:.3f}"
    return (
        f"{contest.better} is ahead of {contest.other} by {contest.difference:.4f} over {contest.seeds} fresh seeds "
        f"each; Welch's t-test, Holm-corrected for all pairs, has {p}: {luck}"
    )


def _columns(rows: Sequence[Sequence[str]], align: str = ">") -> str:
    """Rows of texts as columns of a terminal, the first one to the left, the others to the left or the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(f"{text:{align}{width}}" for text, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines)
