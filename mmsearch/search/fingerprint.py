"""What a study was begun with, and whether it may go on with what it is asked to go on with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmsearch.config import DataSection, SearchSection, StudyConfig, StudySection
from mmsearch.errors import BundleError, StudyMismatch
from mmsearch.hyperparameters import TABLE, show
from mmsearch.paths import BundlePaths
from mmsearch.spaces import Choices, Range

# What may change while a study goes on, or is seen in the data's own fingerprint; all other keys may not.
FREE = {
    "study": {"name", "trials", "folder", "storage"},
    "data": {"source", "image_shape", "audio_shape"},
    "search": {
        *("timeout", "patience_trials", "epoch_timeout", "trial_timeout", "storage_timeout", "checkpoint_every"),
        *("max_retries", "max_failures", "audit", "device", "gpus", "workers_per_gpu", "precision", "init"),
    },
}
DEFAULTS = {
    f"{name}.{key}": list(field.default) if isinstance(field.default, tuple) else field.default
    for name, section in (("study", StudySection), ("data", DataSection), ("search", SearchSection))
    for key, field in section.model_fields.items()
    if key not in FREE[name]
}
INIT = "search.init"  # a digest of the weights to begin with


def fingerprint(config: StudyConfig, data_fingerprint: str) -> dict[str, Any]:
    """What must stay as it is while a study goes on. `[ranges]` may grow.

    Raises `BundleError` where the weights to begin with cannot be read.
    """
    dimensions = {name: config.dimensions[name] for name in config.dimensions.varying()}
    held = {name: getattr(getattr(config, section), key) for name in DEFAULTS for section, key in [name.split(".")]}
    return {
        "data": data_fingerprint,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in held.items()},
        INIT: None if config.search.init is None else _digest(BundlePaths(Path(config.search.init)).weights),
        "fixed": config.dimensions.fixed(),
        "choices": {name: list(d.options) for name, d in dimensions.items() if isinstance(d, Choices)},
        "ranges": {name: [d.low, d.high, d.log, d.step] for name, d in dimensions.items() if isinstance(d, Range)},
    }


def _digest(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    except OSError as error:
        raise BundleError(f"{path}: the weights to begin with cannot be read: {error.strerror}") from None


def compare(name: str, stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Notes on ranges that became wider; raises `StudyMismatch` for any other difference."""

    def refuse(what: str, before: object, after: object) -> StudyMismatch:
        return StudyMismatch(
            f"the study {name} was begun with {what} = {words(before)}, and now it is {words(after)}; "
            "put it back, or begin another study with --study-name"
        )

    if stored["data"] != now["data"]:
        raise StudyMismatch(
            f"the study {name} was begun with other data; put it back, or begin another study with --study-name"
        )
    notes = []
    for key in (*DEFAULTS, INIT):
        before = stored.get(key, DEFAULTS.get(key))  # not held: an older version did not know of it
        if before != now[key]:
            raise refuse(key, before, now[key])
    for kind in ("fixed", "choices"):
        for what in {**stored[kind], **now[kind]}:
            before, after = (find(held, what) for held in (stored, now))
            if before != after:
                raise refuse(f'"{what}"', before, after)
    for what in {**stored["ranges"], **now["ranges"]}:
        before, after = (find(held, what) for held in (stored, now))
        if before == after:
            continue
        known = what in stored["ranges"] and what in now["ranges"]
        grid = now["search.sampler"] == "grid"  # whose points are numbered
        if grid or not known or before[2:] != after[2:] or after[0] > before[0] or after[1] < before[1]:
            raise refuse(f'"{what}"', before, after)
        notes.append(f'"{what}" is now {words(after)}, wider than {words(before)}')
    return notes


def find(held: Mapping[str, Any], name: str) -> Any:
    """What a fingerprint says of one parameter: its value, its choices, or its range.

    What it does not hold has its default: an older version did not know of it. None where there is none.
    """
    default = TABLE[name].default if name in TABLE else None
    return next((held[kind][name] for kind in ("fixed", "choices", "ranges") if name in held[kind]), default)


def words(value: object) -> str:
    """What a fingerprint holds, for people."""
    match value:
        case None:
            return "nothing"
        case [low, high, bool() as log, step] if not isinstance(low, str | bool):
            extra = " (log)" if log else f" in steps of {show(step)}" if step else ""
            return f"{show(low)} to {show(high)}{extra}"
        case list():
            return "[" + ", ".join(map(show, value)) + "]"
        case _:
            return show(value)
