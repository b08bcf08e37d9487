"""This machine and its processes: how many cores may be used, who owns a trial, and whether the owner still runs."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cores() -> int:
    """The processor cores that this process may use: its affinity, or its control group's share if that is less."""
    found = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        found = min(found, max(1, int(quota) // int(period)))
    with contextlib.suppress(OSError, ValueError):  # the same in version 1, where -1 stands for no limit
        old = Path("/sys/fs/cgroup/cpu")
        limit = [int((old / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period")]
        if limit[0] > 0:
            found = min(found, max(1, limit[0] // limit[1]))
    return found


def this_process(worker: str) -> dict[str, Any]:
    """Who claims trials: a worker's name that no other has, and where its process runs."""
    return {
        "worker": worker,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
    }


def new_worker_name(index: int) -> str:
    """A name that is unique over all machines and launches, and readable: the worker's index first."""
    return f"{index}-{uuid.uuid4().hex[:8]}"


def still_runs(owner: Mapping[str, Any]) -> bool | None:
    """Whether a trial's owner runs; None where that cannot be told, since it is on another machine."""
    if owner.get("machine") != _machine():
        return None
    return bool(_born(owner["pid"]) == owner["born"])


def _machine() -> str:
    """This boot of this machine, and its process namespace: where a process number means something."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _born(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot; None where it is gone or a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else fields[18]
