"""The verdict on a replay, in words."""

from __future__ import annotations

from mmsearch.results.replay import REPORTED, Replay
from mmsearch.search.progress import plural


def render(replayed: Replay) -> str:
    """The verdict as a table, for people."""
    many = replayed.folds > 1
    run = replayed.run
    head = f"{plural(len(replayed.epochs), 'epoch')} on {run['device']} with {plural(run['threads'], 'thread')}"
    lines = [f"trial     {replayed.number} ({replayed.state}), seed {replayed.seed}, {head}", ""]
    column = f"valid_{replayed.metric}"
    rows = [[*(["fold"] if many else []), "epoch", f"{replayed.metric} stored", "again", "largest difference"]]
    for fold, result in replayed.epochs:
        held = [c for c in replayed.compared if (c.fold, c.epoch) == (fold, result.epoch)]
        shown = next((c for c in held if c.name in (column, REPORTED)), None)
        worst = max(held, key=lambda c: c.difference, default=None)
        rows.append(
            [
                *([str(fold)] if many else []),
                str(result.epoch),
                "-" if shown is None else f"{shown.stored:.6f}",
                "-" if shown is None else f"{shown.again:.6f}",
                "-" if worst is None else "0" if not worst.difference else f"{worst.difference:.3g} ({worst.name})",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines += ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", f"verdict   {_verdict(replayed)}", f"changed   {_changed(replayed)}"]) + "\n"


def _verdict(replayed: Replay) -> str:
    largest = replayed.largest
    if largest is None:
        return f"different: {replayed.short}"
    if replayed.exact:
        return f"the same exactly: {plural(len(replayed.compared), 'number')} to the last bit"
    where = f"fold {largest.fold}" if replayed.folds > 1 else ""
    where = ", ".join(part for part in (where, f"epoch {largest.epoch}" if largest.epoch else "") if part)
    most = f"{largest.name} differs by {largest.difference:.3g}" + (f" ({where})" if where else "")
    if replayed.same:
        return f"the same within {replayed.tolerance:g}: at most, {most}"
    if replayed.short is not None:
        return f"different: {replayed.short}" + (f"; at most, {most}" if largest.difference else "")
    return f"different: {most}, beyond the tolerance of {replayed.tolerance:g}"


def _changed(replayed: Replay) -> str:
    known = [change for change in replayed.changes if change.stored is not None]
    unknown = [change.what for change in replayed.changes if change.stored is None]
    words = [f"{change.what} (then {change.stored}, now {change.now})" for change in known]
    if unknown:
        words.append(f"unknown of {', '.join(unknown)}, which the trial does not say")
    return "; ".join(words) or "nothing: code, versions, data, hardware, threads and device are as they were"
