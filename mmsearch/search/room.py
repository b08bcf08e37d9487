"""What this machine has room for: memory and disk space that are free, and what a process holds."""

from __future__ import annotations

import contextlib
import resource
import shutil
from pathlib import Path

from mmsearch.search.machine import CGROUPS, OWN_CGROUPS

MEMORY = Path("/proc/meminfo")
OWN_STATUS = Path("/proc/self/status")


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


def peak_memory(status: Path = OWN_STATUS) -> int:
    """The most anonymous memory, in bytes, that this process ever held: what cannot be read again from a file."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        held = _fields(status)
        return 1024 * max(held["RssAnon"], held["VmHWM"] - held["RssFile"] - held["RssShmem"])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of names and numbers, without their units."""
    found = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        name, *rest = line.replace(":", " ").split()
        if rest and rest[0].isdecimal():
            found[name] = int(rest[0])
    return found
