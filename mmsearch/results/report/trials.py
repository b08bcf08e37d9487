"""What a search found: its best trials, and their configurations."""

from __future__ import annotations

from optuna.trial import FrozenTrial

from mmsearch.hyperparameters import TABLE
from mmsearch.results.report.content import (
    Block,
    Cell,
    Cite,
    Column,
    Link,
    Picture,
    Section,
    Text,
    paragraph,
    table,
)
from mmsearch.results.report.material import Material, Searched
from mmsearch.results.report.words import (
    NONE,
    beside,
    count,
    metric,
    setting,
    value,
)
from mmsearch.search.progress import duration
from mmsearch.search.values import METRICS, VIOLATED, keeps_to_constraints

TOP = 10  # trials that are listed
SHOWN = 5  # of them, whose configurations are


def found(material: Material) -> Section:
    """What the search found."""
    searched = material.searched
    blocks: list[Block] = [paragraph(*_best(searched)), _top(searched), _configurations(searched)]
    blocks.append(paragraph("All trials are in ", Link("trials.csv", "trials.csv"), ", beside this report."))
    if len(searched.metrics) > 1:
        blocks.insert(1, paragraph(_front(searched)))
    blocks += [Picture(figure) for figure in material.search_figures]
    return Section("trials", "Results of the search", tuple(blocks))


def _best(searched: Searched) -> Text:
    best, baseline, name = searched.best, searched.baseline, metric(searched.leading)
    words = (
        f"The best trial is number {best.number}, with a validation {name} of "
        f"{value(searched.leading, best.values[0])}."
    )
    if baseline is not None and searched.gain is not None:
        if baseline.number == best.number:
            words += " It has the defaults: nothing that was tried is better."
        else:
            words += (
                f" That is {beside(searched.gain, searched.smaller_is_better)} the defaults' "
                f"{value(searched.leading, baseline.values[0])} (trial {baseline.number})."
            )
            violated = baseline.user_attrs.get(VIOLATED)
            words += f" The defaults violate a constraint: {violated}." if violated else ""
    words += (
        f" It is the best of {count(searched.counts.finished, 'trial')} by the same validation rows, and therefore "
        "likely to be better there than on new rows "
    )
    return words, Cite("cawley2010"), "."


def _front(searched: Searched) -> str:
    numbers = [str(trial.number) for trial in searched.front]
    more = f" and {len(numbers) - TOP} more" if len(numbers) > TOP else ""
    return (
        f"With {len(searched.metrics)} metrics, {count(len(numbers), 'trial')} "
        f"{'is' if len(numbers) == 1 else 'are'} beaten by no other in all of them (the Pareto front): "
        f"{', '.join(numbers[:TOP])}{more}."
    )


def ranked(searched: Searched) -> list[FrozenTrial]:
    """The complete trials, the best first; those that violate a constraint stand behind all others."""
    complete = [trial for trial in searched.trials if trial.state.name == "COMPLETE" and trial.values]
    return sorted(
        complete,
        key=lambda trial: (
            not keeps_to_constraints(trial),
            *(-sign * number for sign, number in zip(searched.signs, trial.values, strict=True)),
            trial.number,
        ),
    )


def _top(searched: Searched) -> Block:
    names = list(dict.fromkeys((*searched.metrics, *(held.split()[0] for held in searched.constraints))))
    with_size = "parameters" not in names
    columns = [
        Column("trial", "right"),
        *(Column(metric(name), "right") for name in names),
        Column("best epoch", "right"),
        Column("epochs", "right"),
        *([Column("parameters", "right")] if with_size else []),
        Column("time", "right"),
        *([Column("keeps to constraints")] if searched.constraints else []),
    ]
    trials = ranked(searched)
    rows = []
    for trial in trials[:TOP]:
        held = {**dict(zip(searched.metrics, trial.values, strict=True)), **trial.user_attrs.get(METRICS, {})}
        size = trial.user_attrs.get("parameters")
        texts = [
            str(trial.number),
            *(value(name, held.get(name, size if name == "parameters" else None)) for name in names),
            *(setting(trial.user_attrs.get(key)) for key in ("best_epoch", "epochs")),
            *([NONE if size is None else count(size)] if with_size else []),
            NONE if trial.duration is None else duration(trial.duration.total_seconds()),
            *([("yes" if keeps_to_constraints(trial) else "no")] if searched.constraints else []),
        ]
        rows.append([Cell(text, trial.number == searched.best.number) for text in texts])
    which = f"The best {len(rows)} of {len(trials)}" if len(trials) > len(rows) else f"The {len(rows)}"
    return table("top", f"{which} complete trials, by validation {metric(searched.leading)}.", columns, rows)


def _configurations(searched: Searched) -> Block:
    """A row a hyperparameter, a column a trial: there may be more of the first than a page is wide."""
    trials = ranked(searched)[:SHOWN]
    varying = searched.config.dimensions.varying()
    used = {name for trial in trials for name in trial.params}
    names = [name for name in TABLE if name in used] + sorted(used - set(TABLE))
    columns = [
        Column("hyperparameter", code=True),
        Column("default", "right"),
        *(Column(f"trial {trial.number}", "right") for trial in trials),
    ]
    rows = [
        [
            Cell(name),
            Cell(setting(varying[name].default) if name in varying else NONE),
            *(Cell(setting(trial.params.get(name)), trial.number == searched.best.number) for trial in trials),
        ]
        for name in names
    ]
    return table(
        "configurations",
        f"The configurations of the best {len(trials)}; {NONE} where a hyperparameter does not apply.",
        columns,
        rows,
    )
