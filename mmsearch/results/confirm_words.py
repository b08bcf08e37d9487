"""A confirmation for people: its table, and what it says in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mmsearch.results.confirm import SIGNIFICANT, Confirmation, Confirmed
from mmsearch.search.progress import plural
from mmsearch.search.values import in_words

HEADER = ("trial", "parameters", "searched", "mean", "95 % interval", "drop", "p", "")


def render(held: Confirmation) -> str:
    """The table, a line a configuration, and then a line for each thing that it says."""
    rows = [HEADER, *(_cells(held, row) for row in held.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"{line.rstrip()}\n" for line in (*lines, *(f"{name:<9} {text}" for name, text in _said(held))))


def in_a_line(held: Confirmation) -> str:
    """The choice, and whether the search has gone on since."""
    row = held.chosen
    spread = "" if row.interval is None else f" ({_span(held, row)})"
    text = f"trial {row.trial}: {held.metric} {in_words(held.metric, row.mean)}{spread}"
    text += f" on {plural(len(row.values), 'fresh seed')}"
    return f"{text}; {_since(held)}" if held.stale else text


def _cells(held: Confirmation, row: Confirmed) -> tuple[str, ...]:
    def words(value: float) -> str:
        return in_words(held.metric, value)

    few = f"{len(row.values)} of {plural(held.seeds, 'seed')}" if len(row.values) < held.seeds else ""
    verdict = "best" if row is held.rows[0] else "differs" if row.differs else ""
    cannot = "" if row.eligible else "cannot be the choice"
    return (
        _name(row),
        str(row.parameters),
        "" if row.searched is None else words(row.searched),
        words(row.mean),
        _span(held, row),
        "" if row.drop is None else f"{round(row.drop, 4) + 0.0:.4f}",  # no -0.0000
        "" if row.p is None else f"{row.p:.3f}" if row.p >= 0.0005 else "<0.001",
        ", ".join(filter(None, (verdict, few, cannot))),
    )


def _said(held: Confirmation) -> Iterator[tuple[str, str]]:
    """What the table says, by a word that names it."""
    best = held.rows[0]
    yield (
        "scored",
        f"{held.metric} on the validation rows of the search, {plural(held.seeds, 'fresh seed')}; intervals are over "
        "seeds, on these same rows",
    )
    test = f"paired t-test over the seeds, Holm-corrected for all pairs, p < {SIGNIFICANT:.2f}"
    differing = [_name(row) for row in held.rows if row.differs]
    if differing:
        yield "differ", f"from trial {best.trial}, the best: {_list(differing)} ({test})"
    elif len(held.rows) > 1:
        yield "tie", f"none is shown to differ from trial {best.trial}, the best ({test}); more --seeds may show it"
    if drop := _drop(held):
        yield "drop", drop
    yield "choice", _choice(held)
    if held.missing:
        yield "missing", f"{plural(held.missing, 'value')}: {'; '.join(held.failures)}"
    if held.ended is not None:
        yield "ended", f"{held.ended}; this is not kept as the study's confirmation"
    if held.stale:
        yield "since", _since(held)


def _drop(held: Confirmation) -> str:
    """How much of what the search promised was luck."""

    def than_there(drop: float) -> str:
        return f"{abs(drop):.4f} {'less' if drop * held.sign >= 0 else 'more'}"

    ranked = [row for row in held.rows if row.rank is not None and row.drop is not None]
    first = next((row for row in ranked if row.rank == 1), None)
    words = []
    if first is not None and first.drop is not None:
        words.append(f"the best of the search, trial {first.trial}, has {than_there(first.drop)} than there")
    if len(ranked) > 1 and held.mean_drop is not None:
        words.append(f"the {len(ranked)} best of it have {than_there(held.mean_drop)} on average")
    curse = first is not None and (first.drop or 0) > 0
    return "; ".join(words) + (" (winner's curse)" if curse else "")


def _choice(held: Confirmation) -> str:
    row, best = held.chosen, held.rows[0]
    if held.prefer == "best":
        return f"trial {row.trial}, the best mean"
    small = f"trial {row.trial}, the smallest model ({row.parameters} parameters) that does not differ from the best"
    return small if row is not best else f"{small}, which it is itself"


def _since(held: Confirmation) -> str:
    return f"the search has finished {plural(held.now - held.finished, 'trial')} that had no part in this"


def _span(held: Confirmation, row: Confirmed) -> str:
    return "" if row.interval is None else " to ".join(in_words(held.metric, bound) for bound in row.interval)


def _name(row: Confirmed) -> str:
    return f"{row.trial} (defaults)" if row.defaults else str(row.trial)


def _list(names: Sequence[str]) -> str:
    return f"trial {names[0]}" if len(names) == 1 else f"trials {', '.join(names[:-1])} and {names[-1]}"
