"""The table of a manifest: `manifest.csv` with the columns image, audio, label, split and group, in any order.

`image` and `audio` are paths relative to the folder, `label` a word or a whole number, `split` is train or test (empty:
train), and rows of one `group`, where it is not empty, are never torn apart. `split` and `group` may be missing.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmsearch.errors import DataError
from mmsearch.hyperparameters import nearest

COLUMNS = ("image", "audio", "label", "split", "group")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Row:
    """One data row: its number, counted from 0, its line in the file, counted from 1, and its cells."""

    number: int
    line: int
    image: str
    audio: str
    label: str
    split: str
    group: str


def read_manifest(path: Path, *, labels: bool = True) -> list[Row]:
    """The rows of a manifest. Without `labels` the column may be missing or empty.

    Raises `DataError`, which names the file and the line; whether the files are there is not looked at.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            lines = csv.reader(handle, strict=True)
            header = next((cells for cells in lines if cells), [])
            columns = _columns(header, path, labels)
            rows: list[Row] = []
            for cells in lines:
                if any(cell.strip() for cell in cells):
                    rows.append(_row(cells, columns, len(rows), lines.line_num, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {getattr(error, 'strerror', None) or error}") from None
    if not rows:
        raise DataError(f"{path}: there are no rows")
    return rows


def _columns(header: Sequence[str], path: Path, labels: bool) -> list[str]:
    columns = [name.strip() for name in header]
    needed = COLUMNS[: 3 if labels else 2]
    missing = [name for name in needed if name not in columns]
    what = f"its first line must name the columns {', '.join(needed)}, with commas between them"
    if not set(columns) & set(COLUMNS):
        raise DataError(f"{path}: {what}, not {','.join(header)[:80] or 'nothing'}")
    for name in columns:
        if name not in COLUMNS:
            raise DataError(
                f'{path}: "{name}" is not a column of a manifest{nearest(name, COLUMNS)}; '
                f"allowed are {', '.join(COLUMNS)}"
            )
        if columns.count(name) > 1:
            raise DataError(f"{path}: it has the column {name} twice")
    if missing:
        raise DataError(f"{path}: the column {missing[0]} is missing; {what}")
    return columns


def _row(cells: Sequence[str], columns: Sequence[str], number: int, line: int, path: Path) -> Row:
    if len(cells) != len(columns):
        raise DataError(f"{path}: line {line} has {len(cells)} cells, but there are {len(columns)} columns")
    held = dict.fromkeys(COLUMNS, "") | {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
    split = held["split"] or "train"
    if split not in SPLITS:
        raise DataError(
            f'{path}: line {line} has the split "{split}"{nearest(split, SPLITS)}; allowed are train and test'
        )
    return Row(number, line, held["image"], held["audio"], held["label"], split, held["group"])
