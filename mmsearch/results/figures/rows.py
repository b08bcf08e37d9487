"""The rows that figures of a model are about: what it says of them, which are shown, and what they are called."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmsearch.data.dataset import Index, Split, Trained
from mmsearch.results.bundle import Bundle
from mmsearch.results.statistics import Floats

MOST_NAMED = 60  # along an axis
WHICH = {
    "test": "test rows",
    "held_back": "rows that were held back from the search",
    "training": "training rows, which the model has seen: they flatter it",
}


@dataclass(frozen=True, eq=False)
class Scored:
    """Labelled rows and what a model says of them.

    split: n rows, of which `name` is the name in metrics.json. before, after: (n, classes) probabilities without and
    with the temperature. `abstain_below` as in a bundle.
    """

    name: str
    split: Split
    trained: Trained
    before: Floats
    after: Floats
    temperature: float
    abstain_below: float | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the probabilities."""
        return self.trained.classes

    @cached_property
    def labels(self) -> Index:
        """(n,) true classes."""
        return self.split.labels

    @cached_property
    def predicted(self) -> Index:
        """(n,) the most probable classes."""
        return np.asarray(self.after.argmax(1), dtype=np.int64)

    @cached_property
    def confidence(self) -> Floats:
        """(n,) the greatest probabilities."""
        found: Floats = self.after.max(1).astype(np.float64)
        return found

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """(n,) whether the most probable class is the true one."""
        return np.asarray(self.predicted == self.labels)

    @property
    def where(self) -> str:
        """Which rows these are, as a caption says it."""
        return f"{len(self.split):,} {WHICH[self.name]}"

    def row(self, position: int) -> str:
        """What the user calls a row: its number, and its files where it has any."""
        files = self.split.files
        named = f" ({', '.join(files[position])})" if files else ""
        return f"row {self.split.ids[position]}{named}"


def scored(
    bundle: Bundle, name: str, split: Split, device: torch.device | None = None, cache: Path | None = None
) -> Scored:
    """A bundle's predictions of a split's labelled rows."""
    logits = bundle.logits(split, device, cache=cache)
    before, after = (torch.softmax(logits / heat, dim=1).numpy() for heat in (1.0, bundle.temperature))
    return Scored(name, split, bundle.trained, before, after, bundle.temperature, bundle.abstain_below)


def stratified(labels: Index, limit: int, seed: int = 0) -> Index:
    """At most `limit` positions in rising order, drawn so that each class keeps its share."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    rank = np.empty(len(labels))
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        rank[rng.permutation(of_class)] = (np.arange(len(of_class)) + 0.5) / len(of_class)
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def at(split: Split, positions: Index) -> Split:
    """The rows of a split at these positions, in this order."""
    return replace(split, rows=split.rows[positions])


def plain(text: object, limit: int | None = None) -> str:
    """A text of the user's as it may stand in a plot, where `<` and `&` mean something.

    What is longer than `limit` characters loses its middle: the end of a name tells it from others too.
    """
    said = " ".join(str(text).split())
    if limit is not None and len(said) > limit:
        tail = (limit - 1) // 3
        said = said[: limit - 1 - tail].rstrip() + "…" + said[len(said) - tail :].lstrip()
    return html.escape(said, quote=False)


def places(names: Sequence[str], **options: Any) -> dict[str, Any]:
    """An axis on which names[i], a text for plots, stands at i; of very many names every few are there."""
    named = range(0, len(names), max(1, -(-len(names) // MOST_NAMED)))
    return {
        "tickmode": "array",
        "tickvals": list(named),
        "ticktext": [names[i] for i in named],
        "showgrid": False,
        "zeroline": False,
        **options,
    }
