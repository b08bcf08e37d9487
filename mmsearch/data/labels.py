"""Labels as files hold them: whole numbers in .npy, one-hot rows in .npy, or a CSV of `row_id,label`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mmsearch.data.dataset import Index
from mmsearch.errors import DataError

GREATEST = 2**31 - 1


def read_labels(path: Path) -> Index:
    """(N,) the labels of a file, none of them below 0. Raises `DataError` with the file and the row."""
    labels = _from_csv(path) if path.suffix == ".csv" else _from_array(path)
    below = np.flatnonzero(labels < 0)
    if len(below):
        raise DataError(f"{path}: row {below[0]} has the label {labels[below[0]]}; labels are whole numbers from 0")
    return labels


def _from_array(path: Path) -> Index:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a NumPy array of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: not a NumPy array of numbers, but an archive of several")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: holds {array.dtype}, but whole numbers are needed")
    if array.ndim == 2 and array.shape[1] > 1:
        hot = (array == 1).sum(1) == 1
        wrong = np.flatnonzero(~(hot & ((array == 0).sum(1) == array.shape[1] - 1)))
        if len(wrong):
            raise DataError(f"{path}: row {wrong[0]} is not one-hot: it must hold a single 1, and 0 elsewhere")
        return np.asarray(array.argmax(1), dtype=np.int64)
    if array.ndim == 2:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"{path}: its shape is {array.shape}; allowed are (N,) and one-hot (N, classes)")
    return _whole(array, path)


def _from_csv(path: Path) -> Index:
    found: dict[int, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.reader(handle)
            header = [name.strip() for name in next(rows, [])]
            if sorted(header) != ["label", "row_id"]:
                raise DataError(f"{path}: its first line must be row_id,label, not {','.join(header)}")
            at_id, at_label = header.index("row_id"), header.index("label")
            for line, row in enumerate(rows, 2):
                if not row:
                    continue
                try:
                    row_id, label = _whole_number(row[at_id]), _whole_number(row[at_label])
                except (ValueError, IndexError):
                    held = ",".join(row)
                    raise DataError(f"{path}: line {line} is {held}, not two whole numbers up to {GREATEST}") from None
                if row_id in found:
                    raise DataError(f"{path}: line {line} repeats the row_id {row_id}")
                found[row_id] = label
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {getattr(error, 'strerror', None) or error}") from None
    missing = next((row for row in range(len(found)) if row not in found), None)
    if missing is not None:
        raise DataError(f"{path}: there is no line for the row_id {missing}")
    return np.array([found[row] for row in range(len(found))], dtype=np.int64)


def _whole_number(text: str) -> int:
    """Also of `5.0`, as some programs write it; raises `ValueError` for anything else."""
    number = float(text)
    if not number.is_integer() or abs(number) > GREATEST:
        raise ValueError
    return int(number)


def _whole(array: npt.NDArray[np.generic], path: Path) -> Index:
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    values = array.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) <= GREATEST)))
    if len(wrong):
        raise DataError(
            f"{path}: row {wrong[0]} has the label {values[wrong[0]]:g}, which is not a whole number up to {GREATEST}"
        )
    return array.astype(np.int64)
