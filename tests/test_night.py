"""A search as it runs overnight, while its storage goes away, and a machine of it vanishes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import TINY, Run, Start
from scripted import scripted
from servers import later, serving
from test_outage import hold
from test_search import alive, finished, running, states, table, wait_for, workers_of

from mmsearch.config import load_config
from mmsearch.search.study import OpenStudy, open_study

# Trials of ten seconds and more, each epoch with a report.
EPOCHS = 20
STEADY = TINY.replace("max_epochs = 3", f"max_epochs = {EPOCHS}\npatience = {EPOCHS}")
STEADY = STEADY.replace("[search]", '[search]\npruner = "none"')
SLOWLY = """
def after(number, epoch):
    time.sleep(0.5)
"""


def study_at(workspace: Path, url: str) -> OpenStudy:
    return open_study(load_config(workspace / "studies" / "digits.toml", {"study.storage": url}))


def through_an_outage(start: Start, workspace: Path, tmp_path: Path, url: str, *disturb: Callable[[], object]) -> str:
    """Search, disturbed in mid-trial: no trial fails, no report is lost, nobody is replaced. Returns what was said."""
    (workspace / "studies" / "digits.toml").write_text(STEADY)
    launcher = start(
        "launch", "--trials", 4, "--workers", 2, env={"MMSEARCH_STORAGE": url, **scripted(tmp_path, worker=SLOWLY)}
    )

    def in_mid_trial() -> bool:
        metrics = list((workspace / "storage" / "digits" / "trials").glob("*/metrics.jsonl"))
        return len(metrics) == 2 and all(len(path.read_text().splitlines()) > 2 for path in metrics)

    wait_for(in_mid_trial)
    pids = workers_of(launcher)
    assert len(pids) == 2
    outage = later(0, *disturb)
    while outage.is_alive():
        assert launcher.poll() is None
        assert set(pids) == set(workers_of(launcher))
        time.sleep(0.1)
    outage.join()
    said: str = launcher.communicate(timeout=240)[1]
    assert launcher.returncode == 0, said
    assert "Traceback" not in said
    assert "died" not in said
    with study_at(workspace, url) as opened:
        trials = opened.trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, EPOCHS + 1))
    return said


@pytest.mark.slow
def test_a_search_goes_on_when_postgresql_was_down_for_20_s(start: Start, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server") as server:
        down: tuple[Callable[[], object], ...] = (server.stop, partial(time.sleep, 20), server.start)
        said = through_an_outage(start, workspace, tmp_path, server.url(), *down)
    assert "the storage is away" in said
    assert "the storage is back" in said


@pytest.mark.slow
def test_a_search_goes_on_when_postgresql_was_restarted(start: Start, workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server") as server:
        restarts = (partial(server.restart, "fast"), partial(time.sleep, 2), partial(server.restart, "immediate"))
        through_an_outage(start, workspace, tmp_path, server.url(), *restarts)


@pytest.mark.slow
def test_a_search_goes_on_when_sqlite_was_locked_for_20_s(start: Start, workspace: Path, tmp_path: Path) -> None:
    path = tmp_path / "night.db"
    through_an_outage(start, workspace, tmp_path, f"sqlite:///{path}", partial(hold, path, 20))


ELSEWHERE = """
import mmsearch.search.machine as machine
machine._machine = lambda: "elsewhere"
"""


@pytest.mark.slow
def test_a_machine_that_vanishes_has_its_trial_gone_on_with(
    mmsearch: Run, start: Start, workspace: Path, tmp_path: Path
) -> None:
    """Its processes are killed, none of them is seen from here, and its last heartbeat is made an old one."""
    text = STEADY.replace("[search]", "[search]\ncheckpoint_every = 0.01")
    (workspace / "studies" / "digits.toml").write_text(text)
    database = workspace / "storage" / "studies.db"
    (tmp_path / "there").mkdir()
    here = start("launch", "--trials", 4, "--workers", 1, env=scripted(tmp_path, worker=SLOWLY))
    wait_for(lambda: running(database))
    there = start(
        "worker", "--workers", 1, env=scripted(tmp_path / "there", worker=ELSEWHERE + SLOWLY, launcher=ELSEWHERE)
    )

    def elsewhere() -> list[int]:
        return [owner["pid"] for owner in running(database) if owner["machine"] == "elsewhere"]

    wait_for(lambda: elsewhere() and list((workspace / "storage" / "digits").glob("trials/*/checkpoint.pt")))
    (number,) = held_by(database, elsewhere()[0])
    checkpoint = workspace / "storage" / "digits" / "trials" / str(number) / "checkpoint.pt"
    wait_for(checkpoint.exists)
    pids = [there.pid, *workers_of(there)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    there.communicate()
    wait_for(lambda: not any(alive(pid) for pid in pids))
    assert here.poll() is None, here.communicate()
    assert states(table(mmsearch))[number] == "RUNNING"  # nobody here can tell, and it has not been silent for long
    assert "elsewhere" not in mmsearch("status").stderr
    age(database, number)
    said = here.communicate(timeout=400)[1]
    assert here.returncode == 0, said
    assert f"trial {number} lost its worker; queued again as trial " in said
    rows = table(mmsearch)
    assert finished(rows) == 4
    assert states(rows).count("FAIL") == 1
    with study_at(workspace, f"sqlite:///{database}") as opened:
        reason = opened.trials()[number].user_attrs["fail_reason"]
    assert reason.startswith("the worker was silent for 180 s")
    assert "from its checkpoint" in said


def held_by(database: Path, pid: int) -> list[int]:
    """The numbers of the trials that a process claimed."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT number, value_json FROM trials JOIN trial_system_attributes USING (trial_id) "
            "WHERE key = 'mmsearch:owner' AND state = 'RUNNING'"
        ).fetchall()
    return [number for number, owner in rows if json.loads(owner)["pid"] == pid]


def age(database: Path, number: int) -> None:
    """Make a trial's last heartbeat ten minutes older."""
    with sqlite3.connect(database, timeout=60) as connection:
        changed = connection.execute(
            "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-600 seconds') "
            "WHERE trial_id = (SELECT trial_id FROM trials WHERE number = ?)",
            (number,),
        )
        assert changed.rowcount == 1


# --- where SQLite cannot work ---------------------------------------------------------------------------------------

MOUNTED = """
import mmsearch.search.mounts as mounts
mounts.MOUNTS = Path({text!r})
"""


@pytest.mark.parametrize(
    ("command", "kind"),
    [(["launch"], "nfs4"), (["worker"], "cifs"), (["status"], "fuse.sshfs"), (["retrain-best"], "9p")],
)
def test_sqlite_on_a_network_file_system_is_refused(
    start: Start, workspace: Path, tmp_path: Path, command: list[str], kind: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        f"97 22 0:53 / {workspace} rw,relatime shared:5 - {kind} server:/export rw\n"
    )
    process = start(*command, env=scripted(tmp_path, launcher=MOUNTED.format(text=str(mounts))))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert len(said.splitlines()) == 1
    assert f"SQLite does not work on a network file system ({kind})" in said
    assert "use PostgreSQL" in said
    assert not list((workspace / "storage").rglob("*.db")) if (workspace / "storage").exists() else True


@pytest.mark.parametrize(
    ("point", "inside"),
    [("/mnt/my\\040share", "/mnt/my share/x"), ("/a", "/a"), ("/a/b", "/a/b/c/d.db"), ("/", "/x")],
)
def test_the_mount_that_holds_a_path_is_found(point: str, inside: str) -> None:
    from mmsearch.search.mounts import NETWORK, kind_of_mount

    text = f"1 0 8:1 / / rw - ext4 /dev/x rw\n2 1 0:5 / {point} rw,noatime master:1 shared:2 - nfs4 host:/x rw\ntorn"
    kind = kind_of_mount(Path(inside), text)
    assert kind == "nfs4"
    assert NETWORK.fullmatch(kind)
    assert kind_of_mount(Path("/elsewhere"), text) == ("nfs4" if point == "/" else "ext4")
    hidden = text.replace("torn", f"3 2 0:6 / {point} rw - tmpfs none rw\n")
    assert kind_of_mount(Path(inside), hidden) == "tmpfs"
    assert not NETWORK.fullmatch("tmpfs")


def test_this_machine_s_own_mounts_are_read(tmp_path: Path) -> None:
    from mmsearch.search.mounts import MOUNTS, kind_of_mount

    known = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    found = kind_of_mount(tmp_path.resolve(), MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    assert found is not None
    assert found[:3] == known[:3] or found in ("overlay", "fuse", "9p")  # which has other names for some
