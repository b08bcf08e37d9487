"""Labels as files hold them: whole numbers or words, one-hot rows in .npy, or a CSV of `row_id,label`."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mmsearch.data.dataset import Index
from mmsearch.errors import DataError

GREATEST = 2**31 - 1


@dataclass(frozen=True)
class Labels:
    """The labels of some rows. names: each label once, in the order of classes. index: (N,) positions in `names`."""

    names: tuple[str, ...]
    index: Index

    def __len__(self) -> int:
        return len(self.index)

    def name(self, row: int) -> str:
        """One row's label."""
        return self.names[int(self.index[row])]

    def only(self, rows: Sequence[int]) -> Labels:
        """The labels of these rows, and no other names."""
        used, index = np.unique(self.index[rows], return_inverse=True)
        return Labels(tuple(self.names[name] for name in used.tolist()), index.astype(np.int64))

    def among(self, classes: Sequence[str]) -> Index:
        """(N,) positions in `classes` instead; -1 where a row's label is not there."""
        places = {name: place for place, name in enumerate(classes)}
        return np.array([places.get(name, -1) for name in self.names], dtype=np.int64)[self.index]


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names of classes as they are listed: by size where all are whole numbers, else by letters."""
    found = set(names)
    numbers = all(name.isascii() and name.isdigit() for name in found)
    return tuple(sorted(found, key=int if numbers else None))


def read_labels(path: Path) -> Labels:
    """The labels of a file. Raises `DataError` with the file and the row."""
    return _from_csv(path) if path.suffix == ".csv" else _from_array(path)


def label_numbers(array: npt.NDArray[Any]) -> Labels:
    """Labels out of whole numbers (N,)."""
    names, index = np.unique(array.astype(np.int64), return_inverse=True)
    return Labels(tuple(map(str, names.tolist())), index.astype(np.int64))


def label_words(words: Sequence[str], path: Path, place: Callable[[int], str]) -> Labels:
    """Labels out of text, in which numbers must be whole and not below 0 where all are numbers: `5.0` is `5`.

    Raises `DataError`, which names the row by `place`.
    """
    stripped = [word.strip() for word in words]
    for row, word in enumerate(stripped):
        if not word:
            raise DataError(f"{path}: {place(row)} has no label")
    different = set(stripped)
    numbers = {word: number for word in different if (number := _number(word)) is not None}
    if len(numbers) == len(different):
        wrong = {word for word, number in numbers.items() if not (number.is_integer() and 0 <= number <= GREATEST)}
        for row, word in enumerate(stripped):
            if word in wrong:
                raise DataError(
                    f"{path}: {place(row)} has the label {word}, which is neither a word nor a whole number "
                    f"from 0 to {GREATEST}"
                )
        stripped = [str(int(numbers[word])) for word in stripped]
    names = in_order(stripped)
    places = {name: position for position, name in enumerate(names)}
    return Labels(names, np.array([places[word] for word in stripped], dtype=np.int64))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _from_array(path: Path) -> Labels:
    def wrong(row: int, what: str) -> DataError:
        return DataError(f"{path}: row {row} {what}")

    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a NumPy array of numbers or text: {error}") from None
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: not a NumPy array of numbers or text, but an archive of several")
    if array.dtype.kind not in "biufUS":
        raise DataError(f"{path}: holds {array.dtype}, but whole numbers or text are needed")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind in "US" and array.ndim == 1:
        return label_words(_texts(array, path), path, lambda row: f"row {row}")
    if array.dtype.kind not in "US" and array.ndim == 2:
        hot = (array == 1).sum(1) == 1
        cold = np.flatnonzero(~(hot & ((array == 0).sum(1) == array.shape[1] - 1)))
        if len(cold):
            raise wrong(int(cold[0]), "is not one-hot: it must hold a single 1, and 0 elsewhere")
        array = array.argmax(1)
    if array.ndim != 1:
        raise DataError(f"{path}: its shape is {array.shape}; allowed are (N,) and one-hot (N, classes)")
    values = array.astype(np.float64)
    whole = np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) <= GREATEST)
    if not whole.all():
        row = int(np.argmin(whole))
        raise wrong(row, f"has the label {values[row]:g}, which is not a whole number up to {GREATEST}")
    if len(values) and values.min() < 0:
        row = int(np.argmax(values < 0))
        raise wrong(row, f"has the label {values[row]:g}; labels are words, or whole numbers from 0")
    return label_numbers(array)


def _texts(array: npt.NDArray[Any], path: Path) -> list[str]:
    """The words of an array of text or bytes."""
    try:
        return [word.decode() if isinstance(word, bytes) else str(word) for word in array.tolist()]
    except UnicodeDecodeError:
        raise DataError(f"{path}: holds bytes that are not text in UTF-8") from None


def _from_csv(path: Path) -> Labels:
    found: dict[int, tuple[str, int]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            rows = csv.reader(handle, strict=True)
            header = [name.strip() for name in next(rows, [])]
            if sorted(header) != ["label", "row_id"]:
                raise DataError(f"{path}: its first line must be row_id,label, not {','.join(header)}")
            at_id, at_label = header.index("row_id"), header.index("label")
            for row in rows:
                line = rows.line_num
                if not row:
                    continue
                row_id = _number(row[at_id]) if len(row) == 2 else None
                if row_id is None or not row_id.is_integer() or abs(row_id) > GREATEST:
                    held = ",".join(row)
                    raise DataError(f"{path}: line {line} is {held}, not a whole number as row_id and a label")
                if int(row_id) in found:
                    raise DataError(f"{path}: line {line} repeats the row_id {int(row_id)}")
                found[int(row_id)] = (row[at_label], line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8: {getattr(error, 'strerror', None) or error}") from None
    missing = next((row for row in range(len(found)) if row not in found), None)
    if missing is not None:
        raise DataError(f"{path}: there is no line for the row_id {missing}")
    ordered = [found[row] for row in range(len(found))]
    return label_words([word for word, _ in ordered], path, lambda row: f"line {ordered[row][1]}")
