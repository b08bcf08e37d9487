"""Several machines on one study: workers that join it, and `mmsearch stop`, which ends it everywhere."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MMSEARCH, TINY, Run, environment
from scripted import scripted
from test_search import LONG, alive, finished, running, states, table, wait_for

from mmsearch.search.machine import cores
from mmsearch.search.progress import plural

Start = Callable[..., subprocess.Popen[str]]

# Trials after the first are long, so that there is a result as well as something to interrupt.
SLOW_LATER = """
def after(number, epoch):
    if number:
        time.sleep(1)
"""
LASTING = TINY.replace("max_epochs = 3", "max_epochs = 30\npatience = 30").replace(
    "[search]", '[search]\npruner = "none"'
)


def machine(folder: Path, study: str = TINY) -> Path:
    """The folder of another machine: its own study file, storage folder and logs."""
    (folder / "studies").mkdir(parents=True)
    (folder / "studies" / "digits.toml").write_text(study)
    return folder


def run_at(folder: Path, *arguments: object, env: dict[str, str], code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run `mmsearch ...` on a machine."""
    done = subprocess.run(
        [MMSEARCH, *map(str, arguments)],
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, said = process.communicate(timeout=300)
    assert process.returncode == code, f"{out}\n{said}"
    assert "Traceback" not in said
    return out, said


def complete(database: Path) -> bool:
    """Whether a trial is complete, straight out of the database."""
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return bool(connection.execute("SELECT 1 FROM trials WHERE state = 'COMPLETE'").fetchone())
    except sqlite3.OperationalError:
        return False


def test_a_worker_never_makes_a_study(mmsearch: Run, workspace: Path) -> None:
    said = mmsearch("worker", code=4).stderr
    assert "there is no study yet; `mmsearch launch` makes one" in said
    assert len(said.splitlines()) == 1
    assert not (workspace / "storage" / "studies.db").exists()
    mmsearch("launch", "--trials", 1, "--workers", 1)
    assert "there is no study other" in mmsearch("worker", "--study-name", "other", code=4).stderr
    waited = mmsearch("worker", "--study-name", "other", "--wait", 1, code=4).stderr
    assert "waiting 1 s at most: " in waited
    assert len(waited.splitlines()) == 2


def test_a_worker_works_towards_the_studys_own_total(mmsearch: Run, workspace: Path) -> None:
    mmsearch("launch", "--trials", 2, "--workers", 1)  # the study file says 6
    done = mmsearch("worker")
    assert "nothing was left to do" in done.stdout
    assert "2 of 2" in done.stdout
    assert finished(table(mmsearch)) == 2


def test_a_worker_with_another_study_file_or_other_data_is_refused_by_name(
    mmsearch: Run, workspace: Path, tmp_path: Path
) -> None:
    mmsearch("launch", "--trials", 1, "--workers", 1)
    env = {"MMSEARCH_STORAGE": f"sqlite:///{workspace}/storage/studies.db"}
    for name, old, new, what in (
        ("epochs", "max_epochs = 3", "max_epochs = 4", "search.max_epochs = 3, and now it is 4"),
        ("choices", "[16, 32]", "[16, 32, 64]", '"image.mlp.units_1" = [16, 32]'),
        ("rows", "rows = 400", "rows = 300", "data.rows = 400"),
    ):
        said = run_at(machine(tmp_path / name, TINY.replace(old, new)), "worker", env=env, code=2).stderr
        assert what in said
    seeded = run_at(machine(tmp_path / "seed"), "worker", "--seed", 1, env=env, code=2).stderr
    assert "study.seed = 0, and now it is 1" in seeded
    other = machine(tmp_path / "data", TINY.replace("[data]", "[data]\ntest = 0.3"))
    assert "begun with" in run_at(other, "worker", env=env, code=2).stderr
    assert not (tmp_path / "data" / "storage" / "digits").exists()
    elsewhere = machine(tmp_path / "folder")
    run_at(elsewhere, "launch", "--trials", 1, "--workers", 1, env={})
    assert "holds the files of another study" in run_at(elsewhere, "worker", env=env, code=2).stderr


@pytest.mark.slow
def test_machines_share_one_exact_total(
    mmsearch: Run, start: Start, workspace: Path, tmp_path: Path, storage_url: str
) -> None:
    env = {"MMSEARCH_STORAGE": storage_url}
    there = machine(tmp_path / "there")
    joined = subprocess.Popen(
        [MMSEARCH, "worker", "--workers", "2", "--wait", "120"],
        cwd=there,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert joined.stderr is not None
        assert any("waiting 2 min at most" in line for line in joined.stderr)  # the launcher is not faster than that
        launcher = start("launch", "--trials", 14, "--workers", 2, env=env)
        ended(launcher)
        out, _ = ended(joined)
    finally:
        joined.kill()
        joined.communicate()
    assert "14 of 14" in out
    assert list((there / "storage" / "digits" / "logs").iterdir())
    rows = list(csv.DictReader(io.StringIO(mmsearch("export", env=env).stdout)))
    assert finished(rows) == len(rows) == 14


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_stop_ends_launchers_everywhere_and_they_go_on_where_they_were(
    mmsearch: Run, start: Start, workspace: Path, tmp_path: Path, elsewhere: bool
) -> None:
    (workspace / "studies" / "digits.toml").write_text(LASTING)
    database = workspace / "storage" / "studies.db"
    env = scripted(tmp_path, worker=SLOW_LATER)
    launchers = [start("launch", "--trials", 5, "--workers", 1, env=env)]
    wait_for(lambda: complete(database), 120)
    launchers.append(start("worker", "--workers", 1, env=env))
    wait_for(lambda: len(running(database)) == 2)
    url = {"MMSEARCH_STORAGE": f"sqlite:///{database}"}
    stopped = run_at(machine(tmp_path / "there", LASTING), "stop", env=url) if elsewhere else mmsearch("stop")
    assert re.search(r"waiting for trial \d \(process \d+ on \S+\)", stopped.stderr)
    assert stopped.stderr.splitlines()[-2:] == ["no trial runs", "go on with: mmsearch launch --trials 5"]
    assert running(database) == []
    for launcher, command in zip(launchers, ("launch --trials 5 --workers 1", "worker --workers 1"), strict=True):
        out, said = ended(launcher)
        assert "ended     `mmsearch stop` asked for it" in out
        assert f"go on with: mmsearch {command}\n" in said
    rows = table(mmsearch)
    assert set(states(rows)) <= {"COMPLETE", "WAITING"}
    assert "WAITING" in states(rows)
    assert "5 of 5" in mmsearch("launch", "--trials", 5, "--workers", 2).stdout  # an old request stops nobody


@pytest.mark.slow
def test_stop_before_any_trial_is_complete_is_no_failure(mmsearch: Run, start: Start, workspace: Path) -> None:
    (workspace / "studies" / "digits.toml").write_text(LONG)
    launcher = start("launch", "--workers", 1)
    wait_for(lambda: running(workspace / "storage" / "studies.db"))
    mmsearch("stop")
    out, said = ended(launcher)
    assert "ended     `mmsearch stop` asked for it\nbest      no trial is complete" in out
    assert "go on with: mmsearch launch --workers 1" in said


def test_stop_where_nothing_runs(mmsearch: Run) -> None:
    assert "no study yet" in mmsearch("stop", code=4).stderr
    mmsearch("launch", "--trials", 1, "--workers", 1)
    assert mmsearch("stop").stderr.splitlines()[0] == "no trial runs"
    assert "2 of 2" in mmsearch("launch", "--trials", 2, "--workers", 1).stdout


@pytest.mark.slow
def test_a_worker_that_is_stopped_hands_its_trial_back_and_says_how_to_go_on(
    mmsearch: Run, start: Start, workspace: Path
) -> None:
    (workspace / "studies" / "digits.toml").write_text(LONG)
    database = workspace / "storage" / "studies.db"
    launcher = start("launch", "--trials", 3, "--workers", 1)
    wait_for(lambda: running(database))
    joined = start("worker", "--workers", 1, "--storage-timeout", "90s")
    wait_for(lambda: len(running(database)) == 2)
    joined.send_signal(signal.SIGTERM)
    _, said = ended(joined, 143)
    assert said.splitlines()[-1].endswith("go on with: mmsearch worker --storage-timeout 90s --workers 1")
    assert len(running(database)) == 1
    launcher.send_signal(signal.SIGINT)
    ended(launcher, 130)
    assert running(database) == []


def test_a_launch_that_is_refused_leaves_no_study(mmsearch: Run, workspace: Path) -> None:
    mmsearch("launch", "--trials", 1, "--workers", 1)
    elsewhere = ("--storage", "sqlite:///elsewhere.db")
    assert "holds the files of another study" in mmsearch("launch", *elsewhere, code=2).stderr
    assert "there is no study digits; there is: none" in mmsearch("status", *elsewhere, code=4).stderr


@pytest.mark.slow
def test_two_commands_on_one_machine_know_of_each_other(mmsearch: Run, start: Start, workspace: Path) -> None:
    (workspace / "studies" / "digits.toml").write_text(LONG)
    database = workspace / "storage" / "studies.db"
    launcher = start("launch", "--workers", 1)
    owner = wait_for(lambda: running(database))[0]
    joined = start("worker", "--workers", 1, "--wait", "1m", "--timeout", "1s")
    _, said = ended(joined, 3)
    assert "1 worker of the study trains on this machine already, in another command" in said
    assert f"1 worker of {plural(max(1, cores() // 2), 'thread')} on {plural(cores(), 'core')}" in said
    for pid in (launcher.pid, owner["pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not alive(owner["pid"]))
    assert "; it is dead, and the next launch takes the trial up" in mmsearch("status").stdout


def test_a_time_to_wait_that_is_none(mmsearch: Run) -> None:
    said = mmsearch("worker", "--wait", "soon", code=2).stderr
    assert said == 'mmsearch: --wait: must be seconds, or a time such as "90s", "30m" or "8h"\n'
