"""What this machine has room for: memory and disk space that are free, and what a process holds."""

from __future__ import annotations

import contextlib
import resource
import shutil
import threading
from pathlib import Path

from mmsearch.search.machine import CGROUPS, OWN_CGROUPS

MEMORY = Path("/proc/meminfo")
OWN_STATUS = Path("/proc/self/status")
LOOK_S = 0.01  # a look takes 0.05 ms


def available_memory(memory: Path = MEMORY, own: Path = OWN_CGROUPS, mounted: Path = CGROUPS) -> int | None:
    """Bytes that new processes can have without swapping; None where the system does not tell.

    The machine's, or what is left of a control group's limit if that is less. What files hold in memory counts as
    free. `own`, `mounted`: as in `mmsearch.search.machine.oom_kills`.
    """
    found = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        found.append(1024 * _fields(memory)["MemAvailable"])
    with contextlib.suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if number == "0":
                found += _left(mounted, path, "memory.max", "memory.current", ("inactive_file", "active_file"))
            elif "memory" in controllers.split(","):
                files = ("total_inactive_file", "total_active_file")
                found += _left(mounted / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", files)
    return min(found, default=None)


def _left(root: Path, path: str, limit: str, usage: str, files: tuple[str, ...]) -> list[int]:
    """What is left of the limit of a control group and of each above it; those without a limit are left out."""
    inside = root / path.lstrip("/")
    found = []
    for folder in (inside, *inside.parents):
        if not folder.is_relative_to(root):
            break
        with contextlib.suppress(OSError, KeyError, ValueError):  # "max" stands for no limit
            allowed, used = (int((folder / name).read_text(encoding="ascii")) for name in (limit, usage))
            held = _fields(folder / "memory.stat")
            found.append(max(0, allowed - used + sum(held[name] for name in files)))
    return found


def free_disk(folder: Path) -> int:
    """Bytes that this user can still write at a folder, or where it would be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


class PeakMemory:
    """The most anonymous memory, what cannot be read again from a file, that this process holds from now on.

    As a context manager it looks every `LOOK_S`, for the system itself keeps a peak of all memory only, files and all:
    what is held for a shorter time may be missed.
    """

    def __init__(self, status: Path = OWN_STATUS) -> None:
        self._status, self._most = status, 0
        self._over, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def bytes(self) -> int:
        """The peak until now, this moment included."""
        with self._lock:
            self._most = max(self._most, _anonymous_memory(self._status))
            return self._most

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self.bytes()


def _anonymous_memory(status: Path) -> int:
    """Bytes that this process holds; where the system does not tell, the most that it ever held, files included."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        return 1024 * _fields(status)["RssAnon"]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of names and numbers, without their units."""
    found = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, *rest = line.replace(":", " ").split()
        if rest and rest[0].isdecimal():
            found[name] = int(rest[0])
    return found
