"""Values that are written as text: in a study file, in the environment or on the command line."""

from __future__ import annotations

import re

from pydantic_core import PydanticCustomError

from mmsearch.errors import StudyFileError, UsageError


def parse_shape(text: str, label: str) -> tuple[int, ...]:
    """`32x32` or `3x32x32` as numbers; raises `StudyFileError`."""
    parts = text.lower().split("x")
    if len(parts) not in (2, 3) or not all(part.isdecimal() and int(part) for part in parts):
        raise StudyFileError(f'{label}: "{text}" must be HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, such as 32x32')
    return tuple(map(int, parts))


def parse_gpus(text: str, label: str) -> tuple[int, ...]:
    """`0,1` as numbers; raises `StudyFileError`."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise StudyFileError(f'{label}: "{text}" must be numbers of GPUs, such as 0,1')
    return tuple(map(int, parts))


def parse_seconds(value: object) -> object:
    """`90`, `"90s"`, `"30m"`, `"8h"` or `"1d12h"` as seconds; what is no text stays as it is."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", value.strip())
    if found is None or not any(found.groups()):
        raise PydanticCustomError("ours", 'must be seconds, or a time such as "90s", "30m" or "8h"')
    return sum(float(part or 0) * unit for part, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True))


def parse_wait(text: str) -> float:
    """As `parse_seconds`, for an option of the command line alone; raises `UsageError`."""
    try:
        return float(str(parse_seconds(text)))
    except PydanticCustomError as error:
        raise UsageError(f"--wait: {error}") from None


def hide_passwords(text: str) -> str:
    """A text as it may be kept or shown: without the passwords of the URLs in it."""
    text = re.sub(r"(://[^\s/:@\"']*):[^\s\"']*@", r"\1:***@", text)
    return re.sub(r"([?&]\w*pass\w*=)[^&\s\"']*", r"\1***", text, flags=re.IGNORECASE)
