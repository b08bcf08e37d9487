"""What a search leaves and nobody needs any more: found first, shown, and removed when that is wanted.

What is in doubt stays. A running or waiting trial keeps its folder, another study its files, and a retrained model is
never looked at. Artifacts and what is derived from data are shared by all studies of a storage folder: they go only
where no study can want them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from mmsearch.errors import MmsearchError, StudyMismatch
from mmsearch.search.machine import still_runs
from mmsearch.search.storage import OWNER
from mmsearch.search.study import IDENTITY, OpenStudy

HOUR_S, DAY_S = 3600, 86_400
TORN_AFTER_S = HOUR_S  # a file that is being written is changed more often
UNUSED_AFTER_S = DAY_S  # without which what is derived from data goes
SILENT_AFTER_S = DAY_S  # since the log of a worker elsewhere was written: it is gone
SHOWN = 5  # files of each kind that are listed

CHECKPOINTS = "checkpoints of trials that have ended"
TORN = "torn files of processes that were killed"
LOGS = "logs of workers that are gone, whose trials all ended well"
DERIVED = "features and decoded files that were not used for a day"
ARTIFACTS = "artifacts that belong to no trial and no study"
KINDS = (CHECKPOINTS, TORN, LOGS, DERIVED, ARTIFACTS)

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\..+", re.DOTALL)  # of `paths.replacing`
_BUILDING = re.compile(r"\.[0-9a-f]{8}")  # of a retrained model that is not there yet
_LOCK = re.compile(r"\..+\.lock")  # of `data.cache.made_once`
_LOG = re.compile(r"worker-(.+)\.log")
_DERIVED = re.compile(r"(features-[0-9a-f]{24}|manifest-[0-9a-f]{24})(\.npy|\.json|\.image\.npy|\.audio\.npy)")
_ARTIFACT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Leftover:
    """Files that go together, or one folder: what they are, their size, and how they looked when they were found."""

    kind: str
    paths: tuple[Path, ...]
    bytes: int
    stamps: tuple[object, ...]


@dataclass(frozen=True)
class Found:
    """What nobody needs, by kind and name, and what was left aside because of a doubt."""

    leftovers: list[Leftover]
    doubts: list[str]

    @property
    def bytes(self) -> int:
        """The size of all of it."""
        return sum(leftover.bytes for leftover in self.leftovers)


def find_leftovers(opened: OpenStudy) -> Found:
    """What of a study and of its storage folder may go; nothing is changed.

    Raises `StudyMismatch` where the study's folder holds the files of another study of that name.
    """
    paths, storage = opened.config.paths, opened.config.storage_paths
    if paths.folder.exists() and not owns_folder(opened):
        raise StudyMismatch(
            f"{paths.folder} holds the files of another study of that name, from another storage: nothing there is "
            "touched"
        )
    now, doubts = time.time(), []
    checkpoints = _children(paths.folder / "trials", "*/" + paths.checkpoint(0).name)
    trials = opened.trials()  # after its files: what has ended by now stays so
    active = {_first(trial) for trial in trials if not trial.state.is_finished()}
    active |= {trial.number for trial in trials if not trial.state.is_finished()}
    ended = {trial.number for trial in trials} - active
    found = [_leftover(CHECKPOINTS, path) for path in checkpoints if _number(path.parent) in ended]
    torn = _children(paths.folder, ".*")
    torn += [path for path in _children(paths.folder / "trials", "*/.*") if _number(path.parent) in ended]
    torn += _children(paths.retrained, ".*")
    found += [_leftover(TORN, path) for path in torn if _is_torn(path, now)]
    found += _torn_in_cache(storage.cache, now)
    found += _logs(opened, trials, now)
    found += _derived(storage.cache, now)
    stranger = _stranger(opened)
    if stranger is None:
        found += _artifacts(opened, now)
    elif storage.artifacts.is_dir():
        doubts.append(f"{storage.artifacts} stays as it is: {stranger} belongs to a study of another storage")
    held = [leftover for leftover in found if leftover is not None]
    return Found(sorted(held, key=lambda leftover: (KINDS.index(leftover.kind), leftover.paths)), doubts)


def remove(leftovers: Iterable[Leftover]) -> tuple[int, int]:
    """Remove what was found, but for what has changed since; returns how many there were, and their bytes.

    Raises `MmsearchError` where one cannot be removed.
    """
    count = freed = 0
    for leftover in leftovers:
        again = _leftover(leftover.kind, *leftover.paths)
        if again is None or again.stamps != leftover.stamps:
            continue
        try:
            gone = _remove_lock(leftover.paths[0]) if _is_lock(leftover) else _remove(leftover.paths)
        except OSError as error:
            raise MmsearchError(
                f"{error.filename or leftover.paths[0]}: cannot be removed: {error.strerror or error}"
            ) from None
        count += gone
        freed += leftover.bytes * gone
    return count, freed


def describe(found: Found) -> str:
    """What was found, for people: of each kind how much, and the names of some."""
    lines = []
    for kind in KINDS:
        held = [leftover for leftover in found.leftovers if leftover.kind == kind]
        if held:
            lines.append(f"{size_in_words(sum(leftover.bytes for leftover in held)):>9}  {kind}: {len(held)}")
            largest = sorted(held, key=lambda leftover: -leftover.bytes)[:SHOWN]
            lines += [f"{size_in_words(leftover.bytes):>19}  {leftover.paths[0]}" for leftover in largest]
            lines += [f"{'':>19}  and {len(held) - SHOWN} more"] * (len(held) > SHOWN)
    lines.append(f"{size_in_words(found.bytes):>9}  in all")
    return "\n".join(lines) + "\n"


def size_in_words(size: int) -> str:
    """`12.3 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def owns_folder(opened: OpenStudy) -> bool:
    """Whether the study's folder is there and holds its own files, not those of another study of that name."""
    known = opened.storage.get_study_system_attrs(opened.id).get(IDENTITY)
    return known is not None and _identity(opened.config.paths.identity) == known


def _identity(mark: Path) -> str | None:
    try:
        return mark.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _first(trial: FrozenTrial) -> int:
    """The number of a trial's first attempt, whose checkpoint is its own."""
    return int(trial.system_attrs.get("failed_trial", trial.number))


def _number(folder: Path) -> int | None:
    return int(folder.name) if folder.name.isdecimal() and folder.name.isascii() else None


def _is_torn(path: Path, now: float) -> bool:
    """Whether somebody began to write it, and is not doing so any more."""
    pattern = _BUILDING if path.parent.name == "retrained" else _TEMPORARY
    return bool(pattern.fullmatch(path.name)) and _changed(path) < now - TORN_AFTER_S


def _torn_in_cache(cache: Path, now: float) -> Iterator[Leftover | None]:
    """What was being derived when its process was killed, and the locks of such: nobody holds them."""
    for path in _children(cache, ".*"):
        temporary = _TEMPORARY.fullmatch(path.name) and not path.name.endswith(".lock")
        if (temporary or _LOCK.fullmatch(path.name)) and _changed(path) < now - TORN_AFTER_S:
            yield _leftover(TORN, path)


def _logs(opened: OpenStudy, trials: list[FrozenTrial], now: float) -> Iterator[Leftover | None]:
    held: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        held.setdefault(trial.system_attrs.get(OWNER, {}).get("worker", ""), []).append(trial)
    running = any(trial.state == TrialState.RUNNING for trial in trials)
    for path in _children(opened.config.paths.log("*").parent, "worker-*.log"):
        match = _LOG.fullmatch(path.name)
        theirs = held.get(match[1], []) if match else []
        if any(trial.state not in (TrialState.COMPLETE, TrialState.PRUNED) for trial in theirs):
            continue  # it says why
        if not theirs and path.lstat().st_size:
            continue  # it may say why there is none
        runs = still_runs(theirs[-1].system_attrs[OWNER]) if theirs else None
        quiet = not running and _changed(path) < now - SILENT_AFTER_S
        if runs is False or (runs is None and quiet):
            yield _leftover(LOGS, path)


def _derived(cache: Path, now: float) -> Iterator[Leftover | None]:
    """Each setting's features, and each manifest's decoded files, that were not used lately."""
    groups: dict[str, list[Path]] = {}
    for path in _children(cache, "*"):
        match = _DERIVED.fullmatch(path.name)
        if match:
            groups.setdefault(match[1], []).append(path)
    for paths in groups.values():
        if max(map(_used, paths)) < now - UNUSED_AFTER_S:
            yield _leftover(DERIVED, *sorted(paths, key=lambda path: (path.suffix != ".json", path)))


def _stranger(opened: OpenStudy) -> Path | None:
    """A study's folder beside ours that this storage does not know: its trials may own any of the artifacts."""
    known = {held.system_attrs.get(IDENTITY) for held in opened.storage.get_all_studies()}
    for mark in sorted(opened.config.storage_paths.folder.glob(f"*/{opened.config.paths.identity.name}")):
        if _identity(mark) not in known:
            return mark.parent
    return None


def _artifacts(opened: OpenStudy, now: float) -> Iterator[Leftover | None]:
    files = _children(opened.config.storage_paths.artifacts, "*")
    files = [path for path in files if _ARTIFACT.fullmatch(path.name) and _changed(path) < now - TORN_AFTER_S]
    named: set[str] = set()
    for study in opened.storage.get_all_studies() if files else ():
        named |= _names(study.system_attrs) | _names(study.user_attrs)
        for trial in opened.storage.get_all_trials(study._study_id, deepcopy=False):
            named |= _names(trial.system_attrs) | _names(trial.user_attrs)
    for path in files:
        if path.name not in named:
            yield _leftover(ARTIFACTS, path)


def _names(attrs: dict[str, Any]) -> set[str]:
    """Whatever looks like an artifact's name in a study's or a trial's attributes, notes included."""
    text = json.dumps(attrs, default=str)
    return {match[0] for match in _ARTIFACT.finditer(text)}


def _children(folder: Path, pattern: str) -> list[Path]:
    """Those files and folders of one pattern that lie there themselves: what a link leads to is not ours."""
    if folder.is_symlink():
        return []
    return sorted(path for path in folder.glob(pattern) if not path.parent.is_symlink())


def _leftover(kind: str, *paths: Path) -> Leftover | None:
    """What lies there now; None where it has gone, or is neither a file, a folder nor a link of ours."""
    size, stamps = 0, []
    try:
        for path in paths:
            for part in (path, *path.rglob("*")) if _is_folder(path) else (path,):
                held = part.lstat()
                if stat.S_ISREG(held.st_mode):
                    size += held.st_size
                elif not (kind == TORN and (stat.S_ISDIR(held.st_mode) or stat.S_ISLNK(held.st_mode))):
                    return None
                used = held.st_atime_ns if kind == DERIVED else 0
                stamps.append((part, held.st_ino, held.st_size, held.st_mtime_ns, used))
    except FileNotFoundError:
        return None
    return Leftover(kind, paths, size, tuple(sorted(stamps)))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _changed(path: Path) -> float:
    """When a file, or anything in a folder, was changed last; of what has gone, now."""
    try:
        return max(part.lstat().st_mtime for part in ((path, *path.rglob("*")) if _is_folder(path) else (path,)))
    except FileNotFoundError:
        return time.time()


def _used(path: Path) -> float:
    try:
        held = path.lstat()
    except FileNotFoundError:
        return time.time()
    return max(held.st_atime, held.st_mtime)


def _is_lock(leftover: Leftover) -> bool:
    return leftover.kind == TORN and leftover.paths[0].name.endswith(".lock")


def _remove(paths: tuple[Path, ...]) -> bool:
    for path in paths:
        if _is_folder(path):
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return True


def _remove_lock(path: Path) -> bool:
    """Remove a lock that nobody holds; whoever waits for it sees that it has gone."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if os.path.samestat(os.fstat(handle.fileno()), path.stat()):
            path.unlink()
            return True
    return False
