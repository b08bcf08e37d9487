"""The processes that try configurations before a search: as many at once as there will be workers (see `probes`)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from mmsearch.config import StudyConfig
from mmsearch.errors import MmsearchError
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.search.children import KILL_GRACE_S
from mmsearch.search.forecast import DEFAULTS, Measured
from mmsearch.search.machine import training_environment
from mmsearch.search.progress import Progress, duration, plural
from mmsearch.search.space import varying

FEWEST = 6  # draws that are measured, however long it takes
LONGEST_S = 600.0  # that one job may take
EACH = 0.02  # of all the time, for the training steps of one configuration
SHORTEST_EACH_S, LONGEST_EACH_S = 0.1, 3.0
LOOK_S = 0.2
TELL_S = 10.0  # between two lines that say how far it is


@dataclass(frozen=True)
class Place:
    """Where probes run: as a worker on `place` would, with so many threads; `seconds` is how long the training steps of
    a configuration are measured, once they are warm, and a third of it their evaluation.
    """

    config: StudyConfig
    place: str
    threads: int
    seconds: float

    def to_json(self) -> str:
        """One line."""
        return json.dumps({**vars(self), "config": self.config.model_dump_json()})

    @staticmethod
    def from_json(line: str) -> Place:
        """The reverse of `to_json`."""
        held = json.loads(line)
        return Place(**{**held, "config": StudyConfig.model_validate_json(held["config"])})


@dataclass(frozen=True)
class _Job:
    """`kind` and `given` as `mmsearch.search.probes` reads them; `draw` is the number of the draw that it is about.

    One that is `alone` gets a fresh process.
    """

    kind: str
    given: Any
    name: str = ""
    draw: int | None = None
    alone: bool = False


class _Ended(Exception):
    """A process is no more; in words."""


class _Process:
    """One process that does jobs."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self.used = self.slow = False
        self.since = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mmsearch.search.probes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            encoding="utf-8",
            env=training_environment(place.threads, place.place),
            start_new_session=True,
        )

    def begin(self) -> dict[str, Any]:
        """Hand it its place; returns what it knows before the first job.

        Raises `MmsearchError` with its own words and exit code.
        """
        told = self._ask(self.place.to_json())
        if "error" in told:
            error = MmsearchError(told["error"])
            error.exit_code = told["code"]
            raise error
        return told

    def do(self, job: _Job) -> dict[str, Any]:
        """Do one job; raises `_Ended`."""
        self.used = True
        return self._ask(json.dumps({job.kind: job.given}))

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.since = time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer.endswith("\n"):
            raise _Ended(self._why())
        found: dict[str, Any] = json.loads(answer)
        return found

    def _why(self) -> str:
        if self.slow:
            return f"it took longer than {duration(LONGEST_S)}"
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return "the system ended its process, most likely for want of memory"
        self.log.seek(0)
        last = self.log.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"its process ended with {code}" + (f": {last}" if last else "")

    def kill(self) -> None:
        """End it, and whatever it started; whoever waits for its answer hears that it has ended."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(KILL_GRACE_S)

    def close(self) -> None:
        """End it, when nobody waits for its answer."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Crew:
    """Workers that try configurations: the defaults and the extremes, then draws of the space as time allows.

    As a context manager it leaves no process behind. After `wait` there are, beside `named`: `drawn`, what draws took,
    by their number; `guesses` of what each draw costs; `left`, what a trial leaves; `ready_s`, how long each process
    took to begin; `gpu_free`, by place, the bytes that the first one there found on its GPU; 0 without one.
    """

    def __init__(
        self,
        config: StudyConfig,
        team: tuple[int, int],
        places: tuple[str, ...],
        draws: Sequence[Hyperparameters],
        epochs: int,
        seconds: float,
    ) -> None:
        self.config, self.places, self.draws = config, places, draws
        self.workers, self.threads = team
        self._order = [DEFAULTS]
        self._named: dict[str, Measured] = {}
        self.drawn: dict[int, Measured] = {}
        self.guesses: list[dict[str, Any]] = []
        self.left: dict[str, Any] = {}
        self.ready_s: list[float] = []
        self.gpu_free: dict[str, int] = {}
        self._each_s = min(LONGEST_EACH_S, max(SHORTEST_EACH_S, seconds * EACH))
        self._deadline = time.monotonic() + seconds
        self._jobs = deque(
            [
                _Job("probe", dict(config.configurations[0].items()), DEFAULTS, alone=True),
                _Job("scout", [dict(made.items()) for made in draws]),
                _Job("leave", epochs),
            ]
        )
        self._next_draw = 0
        self._scouting = True
        self._error: Exception | None = None
        self._processes: dict[int, _Process] = {}
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._lane, args=(i,), daemon=True) for i in range(self.workers)]

    def __enter__(self) -> Crew:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._error = self._error or MmsearchError("the preflight was stopped")
            self._changed.notify_all()
            for process in self._processes.values():
                process.kill()
        for thread in self._threads:
            thread.join(KILL_GRACE_S)

    def wait(self, progress: Progress) -> None:
        """Until all is measured; raises what kept a process from its work."""
        told = time.monotonic()
        while any(thread.is_alive() for thread in self._threads):
            time.sleep(LOOK_S)
            now = time.monotonic()
            with self._changed:
                for process in self._processes.values():
                    if now - process.since > LONGEST_S:
                        process.slow = True
                        process.kill()
            if now - told > TELL_S:
                told = now
                progress.note(
                    f"preflight: {plural(len(self._named), 'extreme')} and {plural(len(self.drawn), 'draw')} are done"
                )
        if self._error is not None:
            raise self._error

    @property
    def named(self) -> dict[str, Measured]:
        """What the defaults and the extremes took; one that is extreme in several ways has all its names."""
        return {name: self._named[name] for name in self._order}

    def _lane(self, index: int) -> None:
        """What one worker does."""
        process: _Process | None = None
        try:
            while (job := self._take()) is not None:
                if process is not None and job.alone and process.used:
                    self._end(index, process)
                    process = None
                try:
                    if process is None:
                        process = self._start(index)
                    self._answered(job, process.do(job))
                except _Ended as why:
                    if process is None or not process.used or job.kind != "probe":
                        raise MmsearchError(f"the preflight cannot look at the study: {why}") from None
                    self._end(index, process)
                    process = None
                    kind = "failure" if "memory" not in str(why) else "memory"
                    self._measured(job, Measured(refused=str(why), kind=kind))
        except Exception as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()
        finally:
            if process is not None:
                self._end(index, process)

    def _start(self, index: int) -> _Process:
        with self._changed:
            if self._error is not None:
                raise self._error
            place = self.places[index % len(self.places)]
            process = self._processes[index] = _Process(Place(self.config, place, self.threads, self._each_s))
        began = time.monotonic()
        try:
            told = process.begin()
        except BaseException:
            self._end(index, process)
            raise
        with self._changed:
            self.ready_s.append(time.monotonic() - began)
            # those that begin later see less, since others measure there by then
            self.gpu_free[place] = max(self.gpu_free.get(place, 0), told["gpu_free"])
        return process

    def _end(self, index: int, process: _Process) -> None:
        with self._changed:
            self._processes.pop(index, None)
        process.close()

    def _take(self) -> _Job | None:
        """The next job; None where none is left, or it is time."""
        with self._changed:
            while self._error is None:
                if self._jobs:
                    return self._jobs.popleft()
                in_time = time.monotonic() < self._deadline or self._next_draw < FEWEST
                if in_time and self._next_draw < len(self.draws):
                    number, self._next_draw = self._next_draw, self._next_draw + 1
                    return _Job("probe", dict(self.draws[number].items()), draw=number)
                if not self._scouting:
                    return None
                self._changed.wait(LOOK_S)
            return None

    def _answered(self, job: _Job, told: Mapping[str, Any]) -> None:
        if job.kind == "probe":
            self._measured(job, Measured(**told))
        elif job.kind == "leave":
            self.left = dict(told)
        else:
            with self._changed:
                self.guesses = told["draws"]
                together: dict[str, tuple[list[str], dict[str, Any]]] = {}
                for name, values in told["extremes"].items():
                    together.setdefault(json.dumps(values), ([], values))[0].append(name)
                for names, values in together.values():
                    self._order.append(", ".join(names))
                    self._jobs.append(_Job("probe", values, self._order[-1], alone=True))
                self._scouting = False
                self._changed.notify_all()

    def _measured(self, job: _Job, found: Measured) -> None:
        defaults = self.config.configurations[0]
        made = varying(self.config.dimensions, Hyperparameters(job.given))
        found = replace(found, params={name: value for name, value in made.items() if defaults.get(name) != value})
        with self._changed:
            if job.draw is None:
                self._named[job.name] = found
            else:
                self.drawn[job.draw] = found
