"""Run commands beside one another and watch them: epochs as their logs grow, memory, time; none outlives this one."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_S = 0.1  # how late an epoch may be seen
MEMORY_S = 1.0
GRACE_S = 20.0  # for a command that is asked to end
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

Epoch = tuple[float, str, int, float]  # seconds since the start, trial, epoch, macro F1 on the validation rows


class CommandFailed(Exception):
    """A command ended with another exit code than 0; the sentence says where its output is."""


@dataclass
class Watched:
    """What was seen of a run: its seconds, its epochs in the order in which they ended, its greatest memory.

    `anonymous_mb`: RssAnon of /proc/PID/status, summed over all processes of the run, at its greatest, in MB (10^6
    bytes), sampled every second. `cpu_s`: of the processes that were waited for; None where others worked too.
    `began`: the clock's seconds at the start. `start_up_s`: until the first trial began, where that is known.
    """

    seconds: float = 0.0
    cpu_s: float | None = 0.0
    anonymous_mb: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    began: float = 0.0
    start_up_s: float | None = None


class EpochLogs:
    """Files of a JSON object a line, which grow while they are read."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder, self.pattern = folder, pattern
        self._read: dict[Path, int] = {}

    def new(self, now: float) -> Iterator[Epoch]:
        """The epochs that were written since the last call; a line that is not whole yet comes later."""
        for path in sorted(self.folder.glob(self.pattern)):
            with path.open("rb") as lines:
                lines.seek(self._read.get(path, 0))
                written = lines.read()
            whole = written[: written.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                row: dict[str, Any] = json.loads(line)
                yield round(now, 2), str(row.get("trial", path.parent.name)), row["epoch"], row["valid_macro_f1"]


def run(
    commands: Sequence[Sequence[str | Path]],
    *,
    log: Path,
    environment: dict[str, str] | None = None,
    epochs: EpochLogs | None = None,
    cwd: Path | None = None,
    cores: int | None = None,
    deadline: float = 4 * 3600,
) -> Watched:
    """Run commands side by side until all have ended; what they print is added to `log`, by default in its folder.

    They see so many of this process's `cores`, by default all, and may use all from the first epoch on. Raises
    `CommandFailed`, and ends the others, where one fails or the deadline (seconds) is over. Whatever ends this
    function, also a signal, ends all that it started; they are asked to end where this process is killed.
    """
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    seen, asked = Watched(), {key: value for key, value in os.environ.items() if not _ours(key)}
    before = _cpu()
    processes: list[subprocess.Popen[bytes]] = []
    with log.open("ab") as output, _ended(processes):
        started, seen.began = time.monotonic(), time.time()
        for command in commands:
            processes.append(
                subprocess.Popen(
                    [str(part) for part in command],
                    cwd=cwd or log.parent,
                    env={**asked, **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=lambda: _prepare(allowed),
                )
            )
        sampled = -MEMORY_S
        while True:
            running = [process for process in processes if process.poll() is None]
            now = time.monotonic() - started
            if epochs is not None:
                ended = list(epochs.new(now))
                if cores and ended and not seen.epochs:
                    _widen([pid for process in running for pid in (process.pid, *descendants(process.pid))])
                seen.epochs += ended
            for process, command in zip(processes, commands, strict=True):
                if process.poll():
                    raise CommandFailed(f"{command[0]} ended with exit code {process.returncode}; {log} has its output")
            if not running:
                break
            if now > deadline:
                raise CommandFailed(f"{commands[0][0]} still runs after {deadline:.0f} s; {log} has its output")
            if now - sampled >= MEMORY_S:
                sampled = now
                pids = [pid for process in running for pid in (process.pid, *descendants(process.pid))]
                seen.anonymous_mb = max(seen.anonymous_mb, round(sum(map(_anonymous_mb, pids)), 1))
            time.sleep(POLL_S)
        seen.seconds = round(now, 2)
    seen.cpu_s = round(_cpu() - before, 2)
    return seen


def descendants(pid: int) -> list[int]:
    """All processes below one, children before theirs."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found, at = [pid], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found[1:]


def adopt_orphans() -> None:
    """Let processes whose parent ends become children of this one, so that they are found and ended."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _ended(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Whatever ends the block, these processes and all that it began are no more: asked first, then killed."""
    before = set(descendants(os.getpid()))
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for pid in descendants(os.getpid()):
            if pid not in before:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in processes:
            process.wait()


def _prepare(cores: list[int]) -> None:
    """Runs in a child before its program: its cores, and SIGTERM for it once its parent is gone."""
    os.sched_setaffinity(0, cores)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _widen(pids: Sequence[int]) -> None:
    """Let these processes use all cores of this one."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("[0-9]*"):
            with suppress(OSError):  # it has ended
                os.sched_setaffinity(int(thread.name), os.sched_getaffinity(0))


def _ours(variable: str) -> bool:
    """Whether a variable of the environment would change what is measured."""
    return variable.startswith(("MMSEARCH_", "OPTUNA_", "RAY_", "OMP_", "MKL_"))


def _anonymous_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def _cpu() -> float:
    """Seconds of processor time of all children that were waited for."""
    spent = os.times()
    return spent.children_user + spent.children_system
