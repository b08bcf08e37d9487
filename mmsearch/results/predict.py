"""Predictions as files: one row a data row, with probabilities; and a competition's submission."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mmsearch.data.dataset import Index, Split
from mmsearch.data.describe import tell_skipped
from mmsearch.data.sources import load_rows
from mmsearch.results.formats import to_csv
from mmsearch.results.runtime import Predictor


def predictions_csv(
    classes: Sequence[str],
    probabilities: npt.NDArray[np.float32],
    rows: Index,
    labels: Index | None,
    files: Sequence[tuple[str, str]] | None = None,
    *,
    abstain_below: float | None = None,
) -> str:
    """`row_id,label,predicted,confidence` and a probability a class; `label` only where labels are known.

    rows: (n,) row ids. files: the image file and the audio file of each row, where it has any: two columns more. With
    `abstain_below` the column `abstained` says whether the confidence, the greatest probability, is smaller: true, and
    `predicted` is not to be relied on, or false. A name that a spreadsheet would run as a formula gets an apostrophe in
    front, as `mmsearch.results.formats.to_csv` does it.
    """
    table: list[list[Any]] = []
    named = ["image", "audio"] if files is not None else []
    known = ["label"] if labels is not None else []
    silent = ["abstained"] if abstain_below is not None else []
    columns = ["row_id", *named, *known, "predicted", "confidence", *silent, *(f"p_{name}" for name in classes)]
    predicted = probabilities.argmax(1)
    for i, row in enumerate(rows.tolist()):
        paths = files[i] if files is not None else ()
        truth = [classes[labels[i]]] if labels is not None else []
        chosen = predicted[i]
        confidence = probabilities[i, chosen]
        said = [] if abstain_below is None else ["true" if confidence < abstain_below else "false"]
        table.append([row, *paths, *truth, classes[chosen], confidence, *said, *probabilities[i]])
    return to_csv(columns, table)


def submission_csv(classes: Sequence[str], probabilities: npt.NDArray[np.float32], rows: Index) -> str:
    """`row_id,label` in the competition's form: names are exact, since a program compares them."""
    chosen = zip(rows.tolist(), probabilities.argmax(1), strict=True)
    return to_csv(("row_id", "label"), ((row, classes[best]) for row, best in chosen), exact=True)


def known_labels(split: Split) -> Index | None:
    """(n,) a split's labels, or None."""
    return None if split.label is None else split.labels


def predict(
    predictor: Predictor,
    source: str,
    split: str | None = None,
    *,
    skip_broken: bool = False,
    on_event: Callable[[str], None] = lambda sentence: None,
) -> str:
    """The predictions of a data set's test rows (or of its training rows, where there is no test split), as CSV.

    `skip_broken` leaves out what cannot be used of a manifest, and `on_event` is told what.
    """
    rows = load_rows(source, split, predictor.trained, skip_broken=skip_broken)
    if rows.origin is not None and rows.origin.skipped:
        on_event(tell_skipped(rows.origin.skipped))
    return predictions_csv(
        predictor.classes,
        predictor.probabilities(rows),
        rows.ids,
        known_labels(rows),
        rows.files,
        abstain_below=predictor.abstain_below,
    )
