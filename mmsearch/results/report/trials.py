"""What a search found: its best trials, how they did on fresh seeds, and what each hyperparameter is worth."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial

from mmsearch.hyperparameters import TABLE
from mmsearch.results.report.content import (
    Block,
    Cell,
    Cite,
    Code,
    Column,
    Commands,
    Link,
    Picture,
    Section,
    Text,
    note,
    paragraph,
    table,
)
from mmsearch.results.report.material import Material, Searched
from mmsearch.results.report.words import (
    NONE,
    count,
    interval,
    listed,
    metric,
    p_value,
    score,
    setting,
    value,
)
from mmsearch.search.progress import duration
from mmsearch.search.values import METRICS, VIOLATED, keeps_to_constraints

if TYPE_CHECKING:
    from mmsearch.results.ablation import Ablation
    from mmsearch.results.confirm import Confirmation, Confirmed

TOP = 10  # trials that are listed
SHOWN = 5  # of them, whose configurations are
ALPHA = 0.05  # of a test, corrected


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
            side = "lower" if searched.smaller_is_better else "higher"
            words += (
                f" That is {searched.gain:.4f} {side} than the defaults' {value(searched.leading, baseline.values[0])} "
                f"(trial {baseline.number})."
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


def confirmation(material: Material) -> Section:
    """How the best trials did on fresh seeds, or how to find out."""
    held, searched = material.confirmation, material.searched
    if held is None:
        blocks: tuple[Block, ...] = (
            paragraph(
                "The best trials have not been trained again. How much of their lead is luck is not known; this "
                "command trains the best few again on fresh seeds and tells which of them differ:"
            ),
            Commands((searched.command("confirm"),)),
        )
        return Section("confirmation", "Confirmation on fresh seeds", blocks)
    return Section("confirmation", "Confirmation on fresh seeds", tuple(_confirmed(held, searched)))


def _confirmed(held: Confirmation, searched: Searched) -> Iterator[Block]:
    name, chosen = metric(held.metric), held.chosen
    best = held.rows[0]
    words = (
        f"The best trials, and the defaults, were trained again on {count(held.seeds, 'fresh seed')} each and scored "
        f"on the same validation rows. "
    )
    tied = [row for row in held.rows if row.eligible and not row.differs and row.trial != best.trial]
    if tied:
        trials = f"trial{'s' * (len(tied) != 1)} {listed([str(row.trial) for row in tied])}"
        words += f"Trial {best.trial} has the best mean; {trials} cannot be told apart from it. "
    elif best.p is None and len(held.rows) > 1:
        words += f"Trial {best.trial} has the best mean, and differs from all others. "
    how = (
        "the smallest model of those that do not differ from the best mean"
        if held.prefer == "small"
        else "the best mean"
    )
    words += f"The choice is trial {chosen.trial}, {how}: {name} {score(chosen.mean)}"
    words += f" ({interval(chosen.interval)})" if chosen.interval is not None else ""
    if chosen.drop is not None and chosen.searched is not None:
        what = "worse" if chosen.drop >= 0 else "better"
        words += f", {abs(chosen.drop):.4f} {what} than the {score(chosen.searched)} of the search"
    yield paragraph(f"{words}.")
    if held.stale:
        yield note(
            f"The search has finished {count(held.now - held.finished, 'trial')} since; ",
            Code(searched.command("confirm")),
            " takes them in.",
        )
    yield from _lacking(held)
    columns = (
        Column("trial", "right"),
        Column(f"mean {name}", "right"),
        Column("95 % interval", "right"),
        Column("searched", "right"),
        Column("drop", "right"),
        Column("p", "right"),
        Column("differs"),
        Column("parameters", "right"),
    )
    rows = [[Cell(text, row.trial == held.choice) for text in _row(row, row is best)] for row in held.rows]
    caption = (
        f"The best trials on {count(held.seeds, 'fresh seed')}; the choice is marked. Drop: how much worse the mean is "
        f"than the value in the search. p: of the paired t-test against the best mean, corrected after Holm; differs: "
        f"p below {ALPHA:g}. Intervals are over seeds on the same validation rows "
    )
    yield table("confirmed", (caption, Cite("holm1979"), "."), columns, rows)


def _row(row: Confirmed, first: bool) -> list[str]:
    number = f"{row.trial} (defaults)" if row.defaults else str(row.trial)
    return [
        number,
        score(row.mean),
        interval(row.interval),
        score(row.searched),
        NONE if row.drop is None else f"{row.drop:+.4f}",
        p_value(row.p),
        NONE if first or row.p is None else "yes" if row.differs else "no",
        count(row.parameters),
    ]


def _lacking(held: Confirmation | Ablation) -> Iterator[Block]:
    """What is not there of the trainings that were planned."""
    if held.missing:
        why = f": {'; '.join(held.failures)}" if held.failures else ""
        yield note(f"{count(held.missing, 'training')} of these {'is' if held.missing == 1 else 'are'} missing{why}.")


def ablation(material: Material) -> Section:
    """What each hyperparameter of the best configuration is worth, or how to find out."""
    held, searched = material.ablation, material.searched
    title = "Ablation"
    if held is None:
        blocks: tuple[Block, ...] = (
            paragraph(
                "What each hyperparameter of the best configuration is worth has not been tried. This command trains "
                "it with one of them at a time back at its default, and adds the result here:"
            ),
            Commands((f"{searched.command('report')} --ablate",)),
        )
        return Section("ablation", title, blocks)
    return Section("ablation", title, tuple(_ablated(held, searched)))


def _ablated(held: Ablation, searched: Searched) -> Iterator[Block]:
    name = metric(held.metric)
    mattering = [row.parameter for row in held.rows if row.differs and row.difference > 0]
    words: list[str | Code] = [
        f"The configuration of trial {held.trial} was trained on {count(held.seeds, 'fresh seed')}, and so was the "
        "same with one hyperparameter at a time back at its default, on the same seeds and validation rows. As it is, "
        f"its mean {name} is {score(held.mean)}",
        f" ({interval(held.interval)}). " if held.interval is not None else ". ",
    ]
    if mattering:
        words.append("Worse beyond chance without the searched value: ")
        for position, parameter in enumerate(mattering):
            words += ["" if not position else ", ", Code(parameter)]
        words.append(".")
    else:
        words.append("No single one of its values makes a difference beyond chance.")
    yield paragraph(*words)
    yield from _lacking(held)
    columns = (
        Column("back at its default", code=True),
        Column("best", "right"),
        Column("default", "right"),
        Column(f"mean {name}", "right"),
        Column("worse by", "right"),
        Column("95 % interval", "right"),
        Column("p", "right"),
    )
    rows = [
        [
            Cell(text, row.differs)
            for text in (
                row.parameter,
                setting(row.best),
                setting(row.default),
                score(row.mean),
                f"{row.difference:+.4f}",
                interval(row.difference_interval),
                p_value(row.p),
            )
        ]
        for row in held.rows
    ]
    caption = (
        f"The configuration of trial {held.trial} with one hyperparameter back at its default. The interval is of the "
        "difference over seeds; p is of the paired t-test against the whole configuration, corrected after Holm; what "
        "differs is marked "
    )
    yield table("ablation", (caption, Cite("holm1979"), "."), columns, rows)
