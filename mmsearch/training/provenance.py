"""What a training's numbers depend on besides its configuration: the code, the versions, the hardware."""

from __future__ import annotations

import functools
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

SOURCES = ("data/**/*.py", "models/**/*.py", "training/**/*.py", "hyperparameters.py", "search/folds.py")
LIBRARIES = ("mmsearch", "torch", "optuna", "numpy", "scikit-learn")


@functools.cache
def code_digest() -> str:
    """A digest of the sources that a training's numbers come from, whatever they are called in version control."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for pattern in SOURCES for path in package.glob(pattern)):
        for part in (path.relative_to(package).as_posix().encode(), path.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


@functools.cache
def versions() -> dict[str, str]:
    """Python's version and those of the libraries that train."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def hardware(device: torch.device) -> dict[str, Any]:
    """The device's name, and how many threads of the processor train."""
    return {"device": device_name(device), "threads": torch.get_num_threads()}


@functools.cache
def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
