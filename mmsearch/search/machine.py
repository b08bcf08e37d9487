"""This machine and its processes: its cores and GPUs, who owns a trial, whether the owner runs, what killed it."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
# What the driver of a GPU leaves on a machine: NVIDIA's on Linux, under Windows' Linux, and AMD's.
GPU_TRACES = ("/proc/driver/nvidia/gpus", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# The C library gives what a training step frees back to the system, which hands it out again page by page at the next
# step; so much of it stays.
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


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


def gpus() -> int:
    """How many GPUs torch can use; it is not imported, which takes seconds, where the machine shows no trace of one."""
    if not any(Path(trace).exists() for trace in GPU_TRACES):
        return 0
    import torch

    return torch.cuda.device_count()


def training_environment(threads: int, place: str) -> dict[str, str]:
    """The environment of a process that trains with so many threads on `cpu`, or on `cuda:N`, the one GPU it sees.

    GPUs are numbered as this process sees them.
    """
    found = {**KEPT_MEMORY, **os.environ, **{variable: str(threads) for variable in THREAD_VARIABLES}}
    kind, _, number = place.partition(":")
    if kind == "cuda":
        seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        found["CUDA_VISIBLE_DEVICES"] = seen[int(number)] if seen else number
    return found


def oom_kills(own: Path = OWN_CGROUPS, mounted: Path = CGROUPS) -> int:
    """How many processes the kernel has killed in this process's control group for want of memory; 0 where unknown.

    `own` names the control groups of versions 1 and 2 that this process is in. In a container they may be named as
    the host sees them, while the container's own are mounted at the root.
    """
    found = []
    with contextlib.suppress(OSError):
        for line in own.read_text(encoding="utf-8").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if "memory" in controllers.split(","):
                found.append(mounted / "memory" / path.lstrip("/") / "memory.oom_control")
            elif number == "0":
                found.append(mounted / path.lstrip("/") / "memory.events")
    for counters in (*found, mounted / "memory" / "memory.oom_control", mounted / "memory.events"):
        with contextlib.suppress(OSError, ValueError):
            fields = dict(line.split(maxsplit=1) for line in counters.read_text(encoding="ascii").splitlines())
            if "oom_kill" in fields:
                return int(fields["oom_kill"])
    return 0


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
