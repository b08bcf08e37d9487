"""What a trial leaves for people, in its folder and in the dashboard: its epochs as a table, and two pictures."""

from __future__ import annotations

import csv
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from mmsearch.config import StudyConfig
from mmsearch.paths import write_bytes, write_text
from mmsearch.search.pictures.canvas import CANNOT_DRAW, Picture
from mmsearch.search.pictures.confusion import Counts, draw_confusion
from mmsearch.search.pictures.curves import Row, draw_curves


def leave_artifacts(
    trial: optuna.Trial,
    config: StudyConfig,
    rows: Sequence[Row],
    best: Sequence[int],
    confusion: Counts | None,
    classes: Sequence[str],
) -> None:
    """Write metrics.csv, curves.png and confusion.png, and show them in the dashboard.

    `rows` are the trial's epochs, fold after fold, `best` the best epoch of each fold, `confusion` the (classes,
    classes) counts of its validation rows there, summed. A picture that cannot be drawn is a warning in the log, and no
    more. Raises `OSError`, which names a file that cannot be written.
    """
    paths, number = config.paths, trial.number
    write_text(paths.table(number), _table(rows))
    when = f"epoch {best[0]}" if config.folds == 1 else f"best epochs, folds 1 to {len(best)}"
    drawn = {paths.curves(number): lambda: draw_curves(rows, config.metric, best)}
    if confusion is not None:
        drawn[paths.confusion(number)] = lambda: draw_confusion(confusion, classes, when)
    left = {paths.table(number): "text/csv"}
    for path, draw in drawn.items():
        content = _png(path, draw)
        if content is not None:
            write_bytes(path, content)
            left[path] = "image/png"
    folder = config.storage_paths.artifacts
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        store = FileSystemArtifactStore(str(folder))
        for path, kind in left.items():
            upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=trial, mimetype=kind)


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _png(path: Path, draw: Callable[[], Picture]) -> bytes | None:
    """A picture as the content of its file; None where it cannot be drawn."""
    try:
        return draw().png()
    except CANNOT_DRAW as error:
        logging.getLogger("mmsearch").warning("%s was not drawn: %s: %s", path, type(error).__name__, error)
        return None
