"""What was trained again: the best trials on fresh seeds, and the best one without one of its values at a time."""

from __future__ import annotations

from collections.abc import Iterator

from mmsearch.results.ablation import Ablation
from mmsearch.results.confirm import SIGNIFICANT, Confirmation, Confirmed
from mmsearch.results.report.content import (
    Block,
    Cell,
    Cite,
    Code,
    Column,
    Commands,
    Section,
    Text,
    note,
    paragraph,
    table,
)
from mmsearch.results.report.material import Material, Searched, without_roots
from mmsearch.results.report.words import NONE, count, interval, listed, metric, p_value, score, setting


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
    others = held.rows[1:]
    tied = [_name(row) for row in others if not row.differs]
    if tied:
        trials = f"trial{'s' * (len(tied) != 1)} {listed(tied)}"
        words += f"Trial {best.trial} has the best mean; {trials} cannot be told apart from it. "
    elif others:
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
    yield from _lacking(held, searched)
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
    worth = f", of which one is worth at most about {held.resolution:.4f}" if held.resolution else ""
    caption: Text = (
        f"The best trials on {count(held.seeds, 'fresh seed')}; the choice is marked. Drop: how much worse the mean is "
        "than the value in the search. p: of the paired t-test against the best mean, corrected for the number of "
        "tests ",
        Cite("holm1979"),
        f"; differs: p below {SIGNIFICANT:g}. Intervals are over seeds on the same validation rows{worth}.",
    )
    yield table("confirmed", caption, columns, rows)


def _name(row: Confirmed) -> str:
    """A trial's number, and what is special about it."""
    special = ["defaults"] * row.defaults + ["cannot be the choice"] * (not row.eligible)
    return f"{row.trial} ({', '.join(special)})" if special else str(row.trial)


def _row(row: Confirmed, first: bool) -> list[str]:
    return [
        _name(row),
        score(row.mean),
        interval(row.interval),
        score(row.searched),
        NONE if row.drop is None else f"{round(row.drop, 4) + 0.0:+.4f}",
        p_value(row.p),
        NONE if first or row.p is None else "yes" if row.differs else "no",
        count(row.parameters),
    ]


def _lacking(held: Confirmation | Ablation, searched: Searched) -> Iterator[Block]:
    """What is not there of the trainings that were planned."""
    if held.missing:
        why = f": {without_roots(searched.config, '; '.join(held.failures))}" if held.failures else ""
        yield note(f"{count(held.missing, 'value')} of these {'is' if held.missing == 1 else 'are'} missing{why}.")


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
    winner = searched.best.number if material.confirmation is None else material.confirmation.choice
    blocks = tuple(_ablated(held, searched))
    if held.trial != winner:
        again = Code(f"{searched.command('report')} --ablate")
        blocks = (note(f"The winner is now trial {winner}; ", again, " trains its ablation."), *blocks)
    return Section("ablation", title, blocks)


def _ablated(held: Ablation, searched: Searched) -> Iterator[Block]:
    name = metric(held.metric)
    worse = [row.parameter for row in held.rows if row.differs and row.difference > 0]
    better = [row.parameter for row in held.rows if row.differs and row.difference < 0]
    words: list[str | Code] = [
        f"The configuration of trial {held.trial} was trained on {count(held.seeds, 'fresh seed')}, and so was the "
        "same with one hyperparameter at a time back at its default, on the same seeds and validation rows. As it is, "
        f"its mean {name} is {score(held.mean)}",
        f" ({interval(held.interval)}). " if held.interval is not None else ". ",
    ]
    for said, parameters in (
        ("Worse beyond chance without the searched value: ", worse),
        ("Better beyond chance with the default: ", better),
    ):
        for position, parameter in enumerate(parameters):
            words += [", " if position else said, Code(parameter)]
        words += [". "] * bool(parameters)
    if not worse and not better:
        words.append("No single one of its values is shown to make a difference beyond chance.")
    yield paragraph(*words)
    yield from _lacking(held, searched)
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
    caption: Text = (
        f"The configuration of trial {held.trial} with one hyperparameter back at its default. The interval is of the "
        "difference over seeds; p is of the paired t-test against the whole configuration, corrected for the number of "
        "tests ",
        Cite("holm1979"),
        f"; what differs, with p below {SIGNIFICANT:g}, is marked.",
    )
    yield table("ablation", caption, columns, rows)
