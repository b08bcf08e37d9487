"""A disk that is full, and one that is read-only: a small real one, mounted for the test."""

from __future__ import annotations

import csv
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import TINY, Run
from test_search import epochs_reported, finished, states, wait_for, workers_of

Start = Callable[..., subprocess.Popen[str]]

TRIALS = 4
STUDY = (
    TINY.replace("rows = 400", "rows = 1500")
    .replace("max_epochs = 3", "max_epochs = 8\npatience = 8\ncheckpoint_every = 0.1")
    .replace("trials = 6", f"trials = {TRIALS}")
)


@dataclass
class Disk:
    """A file system of its own, of some megabytes."""

    folder: Path

    @property
    def ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self) -> None:
        """Take all the space that is left."""
        with self.ballast.open("ab") as handle:
            for size in (1 << 20, 1 << 16, 4096):
                while True:
                    at = handle.seek(0, os.SEEK_END)
                    try:
                        os.posix_fallocate(handle.fileno(), at, size)
                    except OSError:
                        break

    def make_space(self) -> None:
        self.ballast.unlink()

    def remount(self, mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", self.folder], check=True)


@pytest.fixture
def disk(workspace: Path) -> Iterator[Disk]:
    """The storage folder of the workspace, on a disk of its own; `start` must come after it, to end before it does."""
    folder = workspace / "storage"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "mmsearch-test", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = f"no disk can be mounted here: {done.stderr.strip()}"
        if os.environ.get("MMSEARCH_REQUIRE_ALL"):
            pytest.fail(f"{reason}, and MMSEARCH_REQUIRE_ALL is set")
        pytest.skip(reason)
    try:
        (workspace / "studies" / "digits.toml").write_text(STUDY)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def table(mmsearch: Run, env: dict[str, str]) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(mmsearch("export", env=env).stdout)))


def one_sentence(said: str) -> str:
    """What the command ended with: one sentence of its own, and nothing of Python's."""
    lines = [line for line in said.splitlines() if line.startswith("mmsearch: ")]
    assert len(lines) == 1, said
    assert lines[0] == said.splitlines()[-1]
    assert "Traceback" not in said
    return lines[0]


def fill_until_it_ends(disk: Disk, launcher: subprocess.Popen[str]) -> str:
    """Leave no space, whatever is deleted meanwhile, until the search has ended; returns what it said."""
    workers = workers_of(launcher)
    disk.fill()

    def ended() -> bool:
        disk.fill()
        return launcher.poll() is not None

    wait_for(ended, 120)
    _, said = launcher.communicate()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    return said


@pytest.mark.slow
def test_a_full_disk_ends_the_search_and_with_space_it_goes_on(
    disk: Disk, mmsearch: Run, start: Start, tmp_path: Path
) -> None:
    """The database lies elsewhere: every trial is handed back, and none has failed."""
    database = tmp_path / "elsewhere" / "studies.db"
    database.parent.mkdir()
    env = {"MMSEARCH_STORAGE": f"sqlite:///{database}"}
    launcher = start("launch", "--workers", 2, env=env)
    wait_for(lambda: database.exists() and _epochs(database) > 3, 120)
    said = fill_until_it_ends(disk, launcher)
    assert launcher.returncode == 1, said
    assert "No space left on device" in one_sentence(said)
    assert str(disk.folder) in one_sentence(said)
    rows = table(mmsearch, env)
    assert not {"RUNNING", "FAIL"} & set(states(rows))
    again = one_sentence(mmsearch("launch", "--workers", 2, env=env, code=1).stderr)  # as long as it is full
    assert "No space left on device" in again
    disk.make_space()
    assert f"{TRIALS} of {TRIALS}" in mmsearch("launch", "--workers", 2, env=env).stdout
    rows = table(mmsearch, env)
    assert finished(rows) == len(rows) == TRIALS


@pytest.mark.slow
def test_a_full_disk_under_the_database_too(disk: Disk, mmsearch: Run, start: Start) -> None:
    """Nothing can be written down any more; the next launch finds the study whole, and its dead workers' trials."""
    launcher = start("launch", "--workers", 2)
    database = disk.folder / "studies.db"
    wait_for(lambda: database.exists() and _epochs(database) > 3, 120)
    said = fill_until_it_ends(disk, launcher)
    assert launcher.returncode in (1, 4), said
    sentence = one_sentence(said)
    assert "disk is full" in sentence or "No space left on device" in sentence
    disk.make_space()
    assert f"{TRIALS} of {TRIALS}" in mmsearch("launch", "--workers", 2).stdout
    rows = table(mmsearch, {})
    assert finished(rows) == TRIALS
    assert "RUNNING" not in states(rows)
    assert set(states(rows)) <= {"COMPLETE", "PRUNED", "FAIL"}


def test_a_full_disk_before_there_is_a_study(disk: Disk, mmsearch: Run, start: Start) -> None:
    disk.fill()
    sentence = _ends(start, "launch")
    assert "disk is full" in sentence or "No space left on device" in sentence
    disk.make_space()
    assert "1 of 1" in mmsearch("launch", "--trials", 1, "--workers", 1).stdout


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_folder_that_is_read_only(disk: Disk, mmsearch: Run, start: Start, tmp_path: Path, elsewhere: bool) -> None:
    """At the beginning, and for a study that is there; it stays whole, and goes on when it can be written."""
    env = {"MMSEARCH_STORAGE": f"sqlite:///{tmp_path / 'studies.db'}"} if elsewhere else {}
    disk.remount("ro")
    first = _ends(start, "launch", env=env)
    assert "ead-only file system" in first or "readonly" in first or "unable to open" in first
    disk.remount("rw")
    mmsearch("launch", "--trials", 1, "--workers", 1, env=env)
    kept = {path: path.read_bytes() for path in disk.folder.rglob("*") if path.is_file()}
    disk.remount("ro")
    sentence = _ends(start, "launch", "--trials", 2, "--workers", 1, env=env)
    assert "ead-only file system" in sentence or "readonly" in sentence or "unable to open" in sentence
    for command in ("status", "export", "clean"):
        _reads(start, command, env)
    assert {path: path.read_bytes() for path in disk.folder.rglob("*") if path.is_file()} == kept
    disk.remount("rw")
    assert "2 of 2" in mmsearch("launch", "--trials", 2, "--workers", 1, env=env).stdout
    rows = table(mmsearch, env)
    assert finished(rows) == len(rows) == 2


def _epochs(database: Path) -> int:
    import sqlite3

    try:
        return epochs_reported(database)
    except sqlite3.OperationalError:  # its tables are being made
        return 0


def _ends(start: Start, *arguments: object, env: dict[str, str] | None = None) -> str:
    """What a command ends with for want of a disk, or of the database on it: one sentence."""
    process = start(*arguments, env=env)
    _, said = process.communicate(timeout=120)
    assert process.returncode in (1, 4), said
    return one_sentence(said)


def _reads(start: Start, command: str, env: dict[str, str]) -> None:
    """A command that only reads does so, or says in one sentence why it cannot."""
    process = start(command, env=env)
    _, said = process.communicate(timeout=120)
    assert process.returncode in (0, 4), said
    if process.returncode:
        one_sentence(said)
