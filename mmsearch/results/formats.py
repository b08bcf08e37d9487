"""Tables for programs, in which every number is exact: CSV, JSON and Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from mmsearch.errors import UsageError

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a text begins with that a spreadsheet takes for one


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, exact: bool = False) -> str:
    """A header and a line a row; times as ISO 8601.

    A text that a spreadsheet would run as a formula gets an apostrophe in front, which there says that it is text
    ("CSV injection", OWASP); with `exact`, for a program, it is as it is, and so it is in JSON and Parquet.
    """
    told = _plain if exact else _harmless
    return "".join(_line(map(told, row)) for row in (columns, *rows))


def _line(cells: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # quotes the line's ends within a text
    return text.getvalue().removesuffix("\r\n") + "\n"


def to_json(value: Any) -> str:
    """Tables and lists as they are; what JSON has no number for, as infinity, is null, and times are ISO 8601."""

    def known(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {name: known(part) for name, part in node.items()}
        if isinstance(node, list | tuple):
            return [known(part) for part in node]
        return None if isinstance(node, float) and not math.isfinite(node) else _plain(node)

    return json.dumps(known(value), indent=2, allow_nan=False) + "\n"


def to_parquet(columns: Mapping[str, type], rows: Sequence[Sequence[Any]]) -> bytes:
    """A file of typed columns, with a null where a row has None.

    A column's type is that of its values, text where they have several, and the one that is given where it has none:
    `bool`, `int`, `float`, `str` or `datetime`, in UTC. Raises `UsageError` where pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            "a Parquet file needs pyarrow, which is not installed; pip install 'mmsearch[parquet]' brings it"
        ) from None
    types = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    types[datetime] = pyarrow.timestamp("us", tz="UTC")
    arrays = []
    for position, otherwise in enumerate(columns.values()):
        values = [row[position] for row in rows]
        kind = _kind(values) or otherwise
        kind = kind if kind in types else str
        arrays.append(pyarrow.array([v if v is None or kind is datetime else kind(v) for v in values], types[kind]))
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays, names=list(columns)), file)
    return file.getvalue()


def _kind(values: Iterable[Any]) -> type | None:
    """The one type that values have."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return kinds.pop() if kinds else None
    return float if kinds == {int, float} else str


def _harmless(value: Any) -> Any:
    value = _plain(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def _plain(value: Any) -> Any:
    """A time as its text, in UTC; anything else as it is."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return value
