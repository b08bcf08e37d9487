"""One worker process as its launcher sees it: how it is started, heard, watched and ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from typing import Any

from mmsearch.config import SearchSection
from mmsearch.errors import MmsearchError
from mmsearch.search.machine import new_worker_name, training_environment
from mmsearch.search.progress import WorkerView, duration
from mmsearch.search.worker import Orders

STARTUP_S = 600.0  # for imports and data, and again for a first epoch that waits for audio features
OUTPUT_GRACE_S = 1.0  # for the last words of a process that has ended
KILL_GRACE_S = 5.0  # for the kernel to end what was killed; a driver that hangs can keep it for ever


@dataclass
class Child:
    """One worker process, and what is known of it. Times are of the supervisor's clock."""

    index: int
    name: str
    process: subprocess.Popen[str]
    view: WorkerView
    since: float  # its start, its trial's start or its last epoch: whichever came last
    oom_kills: int  # when it was started, less those that explained a death by then
    trial_since: float = 0.0
    away_since: float | None = None  # the storage, for it
    ended: float | None = None  # its output
    died: float | None = None  # its process; not waited for yet, so that its number stays its own
    ready: bool = False
    asked: bool = False  # to stop
    error: MmsearchError | None = None
    reader: threading.Thread | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its process is no more; it is not waited for, so that nothing else gets its number."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ask(self) -> None:
        """Let it end its epoch, checkpoint and hand its trial back; asked twice, it would drop the epoch."""
        if not self.asked:
            self.asked = True
            self.process.terminate()

    def kill(self) -> int | None:
        """End its process group, now; returns its exit code, None where the kernel does not let go of it."""
        process = self.process
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_GRACE_S)
        if self.reader is not None:
            self.reader.join(OUTPUT_GRACE_S)
        if self.reader is None or not self.reader.is_alive():  # else a process that left the group holds its output
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        return process.returncode

    def overdue(self, now: float, search: SearchSection, preparation: float) -> str | None:
        """Why it counts as hanging, in words; None where it does not. `preparation` is for a trial's first epoch."""
        if self.view.trial is None:
            limit = max(STARTUP_S, search.epoch_timeout)  # between trials it may wait for others as long as it takes
            return None if self.ready or now - self.since <= limit else f"it was not ready after {duration(limit)}"
        longest = search.trial_timeout
        if longest is not None and now - self.trial_since > longest:
            return f"it took longer than {duration(longest)} (trial_timeout)"
        if now - self.since > search.epoch_timeout + (0 if self.view.epoch else preparation):
            return f"no epoch ended within {duration(search.epoch_timeout)} (epoch_timeout)"
        return None


Events = queue.Queue[tuple[Child, dict[str, Any] | None]]


def start(orders: Orders, kills: int, clock: float, events: Events) -> Child:
    """Start a worker: under a new name, in a process group of its own, so that Ctrl-C reaches the launcher alone.

    What it says is queued, and None when its output has ended. `kills` and `clock` are as in `Child`.
    """
    name = new_worker_name(orders.index)
    log = orders.config.paths.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mmsearch.search.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=training_environment(orders.threads, orders.place),
            start_new_session=True,
        )
    child = Child(orders.index, name, process, WorkerView(orders.index), clock, kills)
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: its end of output says so
        process.stdin.write(replace(orders, name=name).to_json() + "\n")
        process.stdin.flush()
    child.reader = threading.Thread(target=_read, args=(child, events), daemon=True)
    child.reader.start()
    return child


def _read(child: Child, events: Events) -> None:
    assert child.process.stdout is not None
    for line in child.process.stdout:
        with contextlib.suppress(json.JSONDecodeError):  # torn by a kill, or printed by somebody else
            said = json.loads(line)
            if isinstance(said, dict) and "event" in said:
                events.put((child, said))
    events.put((child, None))
