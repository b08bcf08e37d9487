"""Where a training stands, as a file: written whole or not at all, read without pickle, told apart when damaged."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from mmsearch.paths import replacing

_MARK = b"mmsearch checkpoint 1 "  # then the digest of what follows, in hex, and a line feed


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be read as it was written."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values; raises `OSError`.

    Whoever is killed meanwhile leaves the file that was there before.
    """
    held = io.BytesIO()  # torch hides why it cannot write to a file
    torch.save(state, held)
    content = held.getbuffer()
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(_MARK + _digest(content) + b"\n")
        file.write(content)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the processor.

    Raises `FileNotFoundError` and, where it cannot be read or is not what was written, `DamagedCheckpoint`.
    """
    try:
        head, _, content = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedCheckpoint(f"{path}: the checkpoint cannot be read: {error.strerror}") from None
    if head != _MARK + _digest(content):
        raise DamagedCheckpoint(f"{path}: the checkpoint is damaged, or not one of mmsearch's")
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds: another torch wrote it, or somebody who wants code to run
        raise DamagedCheckpoint(f"{path}: this torch does not read the checkpoint: {type(error).__name__}") from None
    return found


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode("ascii")
