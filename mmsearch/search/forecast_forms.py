"""A forecast for people, and as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsearch.search.clean import size_in_words
from mmsearch.search.forecast import Forecast, Measured, Room, Work, epoch_seconds
from mmsearch.search.progress import duration, plural


def as_text(forecast: Forecast, work: Work, room: Room, named: Mapping[str, Measured]) -> str:
    """A forecast as a table of what was measured, and one fact a line."""
    rows = [["", "parameters", "rows/s", "epoch", "memory"]]
    for name, held in named.items():
        if held.refused is not None:
            rows.append([name, *[str(held.parameters or "-"), "-", "-"], size_in_words(held.memory)])
            continue
        epoch = epoch_seconds(work, held)
        rate = f"{1 / held.train_s:,.0f}" if held.train_s else "-"
        rows.append([name, f"{held.parameters:,}", rate, f"{epoch:.1f} s", size_in_words(held.memory)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" " * 10 + "  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)) for row in rows]
    lines.append(f"trials    {work.left} left of {work.total}")
    available = "" if room.memory is None else f", {size_in_words(room.memory)} available"
    each = f"{plural(work.workers, 'worker')} of {size_in_words(forecast.memory_worker)}"
    lines.append(f"memory    {size_in_words(forecast.memory)}: {each}{available}")
    if room.gpu is not None:
        lines.append(f"GPU       {size_in_words(forecast.gpu_memory)} on each GPU, {size_in_words(room.gpu)} free")
    parts = {
        "trials": forecast.trial_bytes,
        "checkpoints": forecast.checkpoints,
        "database": forecast.database,
        "audio features": forecast.features,
    }
    listed = ", ".join(f"{name} {size_in_words(size)}" for name, size in parts.items() if size)
    needed = size_in_words(forecast.disk) + (f": {listed}" if listed else "")
    lines.append(f"disk      {needed}; {size_in_words(room.disk)} free")
    if not work.left:
        lines.append("time      nothing is left to do")
    else:
        lines.append(f"time      {forecast.most} if each trial trains all its epochs")
        if forecast.expected is not None:
            lines.append(
                f"          {forecast.expected} if they train {work.share:.0%} of them, as the {work.learned} finished "
                "ones did"
            )
        else:
            lines.append(f"          no less than {duration(forecast.least.low)}, however early trials end")
    lines += [f"warning   {text}" for text in forecast.warnings]
    lines.append("fits      yes" if forecast.fits else "fits      no")
    lines += [f"          {text}" for text in forecast.problems]
    return "\n".join(lines) + "\n"


def as_dict(forecast: Forecast, work: Work, room: Room, named: Mapping[str, Measured]) -> dict[str, Any]:
    """The same as plain values: bytes and seconds."""
    spans = {"most": forecast.most, "least": forecast.least, "expected": forecast.expected}
    return {
        "fits": forecast.fits,
        "problems": list(forecast.problems),
        "warnings": list(forecast.warnings),
        "trials": {"left": work.left, "total": work.total, "finished_share_of_epochs": work.share},
        "workers": {"processes": work.workers, "threads": work.threads},
        "memory": {"worker": forecast.memory_worker, "all": forecast.memory, "available": room.memory},
        "gpu_memory": None if room.gpu is None else {"all": forecast.gpu_memory, "available": room.gpu},
        "disk": {
            "all": forecast.disk,
            "trials": forecast.trial_bytes,
            "checkpoints": forecast.checkpoints,
            "database": forecast.database,
            "features": forecast.features,
            "available": room.disk,
        },
        "seconds": {name: None if span is None else vars(span) for name, span in spans.items()},
        "configurations": {name: vars(held) for name, held in named.items()},
    }
