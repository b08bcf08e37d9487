"""deploy/slurm.sh as Slurm runs it: each task's script by hand, on the real PostgreSQL, with Slurm's variables set."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MMSEARCH, ROOT, TINY, Run, environment, require
from sqlalchemy import make_url
from test_compose import PASSWORDS, role  # noqa: F401 - a fixture
from test_search import finished, states, wait_for, workers_of

from mmsearch.search.supervisor import STOP_GRACE_S

SCRIPT = ROOT / "deploy" / "slurm.sh"
PASSWORD = PASSWORDS["POSTGRES_PASSWORD"]
LONGER = TINY.replace("rows = 400", "rows = 2000").replace("max_epochs = 3", "max_epochs = 12\npatience = 12")

Submit = Callable[..., subprocess.Popen[str]]


def options() -> dict[str, str]:
    """What the script asks of Slurm."""
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


@pytest.fixture
def cluster(tmp_path: Path, role: str) -> dict[str, str]:  # noqa: F811
    """A job's environment: the database's URL without its password, which is in a file; and a `scontrol`."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    (programs / "scontrol").chmod(0o755)
    passwords = tmp_path / "pgpass"
    escaped = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passwords.write_text(f"*:*:{make_url(role).database}:mmsearch:{escaped}\n")
    passwords.chmod(0o600)
    return environment(
        MMSEARCH_STORAGE=role,
        PGPASSFILE=str(passwords),
        PATH=f"{programs}:{MMSEARCH.parent}:{os.environ['PATH']}",
        SLURM_ARRAY_JOB_ID="70",
        SLURM_ARRAY_TASK_MIN="3",
        SLURM_ARRAY_TASK_MAX="5",
    )


@pytest.fixture
def submit(workspace: Path, cluster: dict[str, str]) -> Iterator[Submit]:
    """Start one task of the array, as Slurm starts it: the script in a process group of its own."""
    started: list[subprocess.Popen[str]] = []

    def begin(task: int, *arguments: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [SCRIPT, "studies/digits.toml", *arguments],
            cwd=workspace,
            env={**cluster, "SLURM_JOB_ID": str(70 + task), "SLURM_ARRAY_TASK_ID": str(task), **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def table(mmsearch: Run, cluster: dict[str, str]) -> list[dict[str, str]]:
    held = {name: cluster[name] for name in ("MMSEARCH_STORAGE", "PGPASSFILE")}
    return list(csv.DictReader(io.StringIO(mmsearch("export", env=held).stdout)))


def requeued(tmp_path: Path) -> list[str]:
    log = tmp_path / "scontrol.log"
    return log.read_text().splitlines() if log.exists() else []


def command_lines() -> Iterator[str]:
    """Those of all processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace")
        except OSError:  # it has just ended
            continue


def test_the_script_is_sound() -> None:
    checked = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert os.access(SCRIPT, os.X_OK)
    checked = subprocess.run([require("shellcheck"), SCRIPT], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_slurm_warns_the_script_early_enough() -> None:
    """To the shell alone, which tells the worker; longer before the limit than a worker may take."""
    asked = options()
    match = re.fullmatch(r"B:USR1@(\d+)", asked["signal"])
    assert match is not None
    assert int(match[1]) >= STOP_GRACE_S + 60
    assert asked["requeue"] == ""
    assert asked["open-mode"] == "append"  # what a task said before it was queued again
    assert (asked["ntasks"], asked["cpus-per-task"]) == ("1", "1")


@pytest.mark.slow
def test_the_tasks_of_an_array_share_one_search(
    mmsearch: Run, submit: Submit, cluster: dict[str, str], workspace: Path, tmp_path: Path
) -> None:
    tasks = [submit(task, "8") for task in (4, 5, 3)]  # the first one may come last
    seen = []
    while any(task.poll() is None for task in tasks):
        seen += [line for line in command_lines() if "mmsearch" in line]
        time.sleep(0.1)
    spoken = [task.communicate() for task in tasks]
    for task, (out, said) in zip(tasks, spoken, strict=True):
        assert task.returncode == 0, said
        assert out.startswith("trials    8 of 8 (")
        assert "Traceback" not in said
    rows = table(mmsearch, cluster)
    assert finished(rows) == len(rows) == 8
    stories = " ".join(said for _, said in spoken)
    assert sorted(map(int, re.findall(r"trial (\d+) (?:complete|pruned)", stories))) == list(range(8))
    assert requeued(tmp_path) == []
    assert any("mmsearch.search.worker" in line for line in seen)
    files = [path.read_bytes() for path in (workspace / "storage").rglob("*") if path.is_file()]
    assert not any(PASSWORD in text for text in (*seen, stories, *(out for out, _ in spoken)))
    assert not any(PASSWORD.encode() in held for held in files)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "again"), [(signal.SIGUSR1, ["requeue 70_3"]), (signal.SIGTERM, [])])
def test_a_task_whose_time_is_up_hands_its_trial_back_and_queues_itself_again(
    mmsearch: Run,
    submit: Submit,
    cluster: dict[str, str],
    workspace: Path,
    tmp_path: Path,
    signum: int,
    again: list[str],
) -> None:
    """What Slurm ends for another reason, it queues again by itself, or not at all."""
    (workspace / "studies" / "digits.toml").write_text(LONGER)
    task = submit(3, "1")
    log = workspace / "storage" / "digits" / "trials" / "0" / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 2, 120)
    os.kill(task.pid, signum)
    _, said = task.communicate(timeout=90)
    assert task.returncode == 143, said
    assert "trial 0 handed back" in said
    assert requeued(tmp_path) == again
    assert states(table(mmsearch, cluster)).count("RUNNING") == 0
    if again:
        task = submit(3, "1")
        _, said = task.communicate(timeout=240)
        assert task.returncode == 0, said
        assert finished(table(mmsearch, cluster)) == 1
        assert requeued(tmp_path) == again


def test_a_signal_at_once(submit: Submit, tmp_path: Path) -> None:
    """Before there is anything to hand back."""
    task = submit(3)
    wait_for(lambda: workers_of(task))
    os.kill(task.pid, signal.SIGUSR1)
    _, said = task.communicate(timeout=60)
    assert task.returncode in (143, 0), said
    assert "Traceback" not in said
    assert requeued(tmp_path) == (["requeue 70_3"] if task.returncode else [])


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"MMSEARCH_STORAGE": "postgresql://u:secret@h/d"}, "the password belongs into ~/.pgpass"),
        ({"MMSEARCH_STORAGE": "postgresql://u:sec:re@t@h/d"}, "the password belongs into ~/.pgpass"),
        ({"MMSEARCH_STORAGE": "postgresql://u@h/d?x=y&Password=secret"}, "the password belongs into ~/.pgpass"),
        ({"PGPASSWORD": "secret"}, "the password belongs into ~/.pgpass"),
        ({"MMSEARCH_STORAGE": "sqlite:///studies.db"}, "the URL of a PostgreSQL database"),
        ({"MMSEARCH_STORAGE": ""}, "the URL of a PostgreSQL database"),
        ({"SLURM_ARRAY_TASK_ID": ""}, "submit it with sbatch"),
    ],
)
def test_what_it_refuses(submit: Submit, env: dict[str, Any], expected: str) -> None:
    task = submit(3, **env)
    out, said = task.communicate(timeout=60)
    assert (task.returncode, out) == (2, "")
    assert said.startswith("slurm.sh: ")
    assert expected in said
    assert len(said.splitlines()) == 1
    assert "secret" not in said


def test_a_password_file_that_others_can_read_is_refused(submit: Submit, cluster: dict[str, str]) -> None:
    Path(cluster["PGPASSFILE"]).chmod(0o644)
    task = submit(3)
    _, said = task.communicate(timeout=60)
    assert task.returncode == 2
    name = cluster["PGPASSFILE"]
    assert said == f"slurm.sh: {name} can be read by others, and is ignored: chmod 600 {name}\n"


def test_it_says_how_to_use_it(submit: Submit) -> None:
    task = submit(3, "10", "20")
    assert task.communicate(timeout=60)[1] == "slurm.sh: usage: sbatch deploy/slurm.sh STUDY [TRIALS]\n"
    assert task.returncode == 2


def test_its_own_words_are_true() -> None:
    """The commands that its comment names are there, and what it names lies in the repository."""
    text = SCRIPT.read_text(encoding="utf-8")
    for command in set(re.findall(r"^#   mmsearch (\w+)", text, re.MULTILINE)) | {"launch", "worker"}:
        done = subprocess.run(
            [MMSEARCH, command, "--help"], env=environment(), capture_output=True, text=True, timeout=60, check=True
        )
        assert f"mmsearch {command}" in done.stdout
    assert "studies/digits.toml" in text
