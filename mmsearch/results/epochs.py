"""The epochs of a trial as its folder has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def last_attempt(path: Path) -> list[dict[str, Any]]:
    """The rows of a trial's log that its last attempt wrote; a line that a kill tore is left out.

    Nothing where the log cannot be read, as of a trial of another machine whose folder is not shared.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("epoch"), int):
            rows.append(row)
    return [row for row in rows if row.get("attempt") == rows[-1].get("attempt")]
