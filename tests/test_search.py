"""A search as its users run it: the real command line, real files and databases, real signals and kills."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MMSEARCH, TINY, Run, environment

Start = Callable[..., subprocess.Popen[str]]

# Trials that take several seconds, so that there is something to interrupt.
LONG = TINY.replace("rows = 400", "rows = 4000").replace("max_epochs = 3", "max_epochs = 40\npatience = 40")


def table(mmsearch: Run, *options: object) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(mmsearch("export", *options).stdout)))


def states(rows: list[dict[str, str]]) -> list[str]:
    return [row["state"] for row in rows]


def finished(rows: list[dict[str, str]]) -> int:
    return sum(state in ("COMPLETE", "PRUNED") for state in states(rows))


def running(path: Path) -> list[dict[str, Any]]:
    """The owners of the running trials, straight out of the database."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            rows = connection.execute(
                "SELECT value_json FROM trial_system_attributes JOIN trials USING (trial_id) "
                "WHERE state = 'RUNNING' AND key = 'mmsearch:owner'"
            ).fetchall()
    except sqlite3.OperationalError:
        return []
    return [json.loads(text) for (text,) in rows]


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")


def epochs_reported(path: Path) -> int:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        return int(connection.execute("SELECT count(*) FROM trial_intermediate_values").fetchone()[0])


def workers_of(launcher: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_total_is_exact_and_resumes(mmsearch: Run, workspace: Path) -> None:
    done = mmsearch("launch", "--trials", 5, "--workers", 3)
    assert finished(table(mmsearch)) == 5
    assert "5 of 5" in done.stdout
    assert "mmsearch retrain-best" in done.stderr
    mmsearch("launch", "--n-trials", 8, "--n-jobs", 2)
    rows = table(mmsearch)
    assert finished(rows) == len(rows) == 8
    again = mmsearch("launch", "--trials", 8)
    assert "nothing was left to do" in again.stdout
    assert len(table(mmsearch)) == 8
    status = mmsearch("status").stdout
    assert "8 of 8" in status
    assert "0 running" in status
    kept = (workspace / "storage" / "digits" / "study.toml").read_text()
    assert kept.endswith(TINY)
    assert "mmsearch launch --trials 8" in kept.splitlines()[0]


@pytest.mark.slow
def test_twenty_trials_with_four_workers_then_thirty(mmsearch: Run, storage_url: str) -> None:
    env = {"MMSEARCH_STORAGE": storage_url}
    for total in (20, 30, 30):
        mmsearch("launch", "--trials", total, "--workers", 4, env=env)
        rows = list(csv.DictReader(io.StringIO(mmsearch("export", env=env).stdout)))
        assert finished(rows) == total
        assert set(states(rows)) <= {"COMPLETE", "PRUNED"}


def test_first_come_the_defaults_then_what_is_enqueued(mmsearch: Run, workspace: Path) -> None:
    entry = '[[enqueue]]\n"optimizer.lr" = 5e-3\n"image.encoder" = "cnn"\n'
    (workspace / "studies" / "digits.toml").write_text(TINY + entry)
    done = mmsearch("launch", "--trials", 3, "--workers", 1)
    first, second, _ = table(mmsearch)
    assert (first["optimizer.lr"], first["image.encoder"], first["image.mlp.units_1"]) == ("0.003", "cnn", "")
    assert (second["optimizer.lr"], second["image.encoder"]) == ("0.005", "cnn")
    assert "gain" in done.stdout


def test_conditional_parameters_are_sampled_only_where_they_apply(mmsearch: Run) -> None:
    mmsearch("launch", "--trials", 6, "--workers", 2)
    for row in table(mmsearch):
        assert (row["image.mlp.units_1"] != "") == (row["image.encoder"] == "mlp")


@pytest.mark.parametrize("sampler", ["random", "grid"])
def test_other_samplers(mmsearch: Run, workspace: Path, sampler: str) -> None:
    study = TINY.replace("[search]", f'[search]\nsampler = "{sampler}"\npruner = "hyperband"')
    if sampler == "grid":
        study = study.partition("[space]")[0] + (
            '[space]\n"optimizer.lr" = [1e-3, 3e-3, 1e-2]\n"batch_size" = [32, 64]\n"image.encoder" = "mlp"\n'
        )
    (workspace / "studies" / "digits.toml").write_text(study)
    mmsearch("launch", "--trials", 8, "--workers", 2)
    rows = table(mmsearch)
    if sampler == "grid":  # every point once, the defaults among them first
        assert finished(rows) == len({(row["optimizer.lr"], row["batch_size"]) for row in rows}) == 6
        assert (rows[0]["optimizer.lr"], rows[0]["batch_size"]) == ("0.001", "64")
    else:
        assert finished(rows) == len({row["optimizer.lr"] for row in rows}) == 8


def test_a_grid_with_a_point_that_fails_ends(mmsearch: Run, workspace: Path) -> None:
    space = '[space]\n"optimizer.lr" = [1e-3, 10.0]\n"batch_size" = [32, 64]\n"optimizer.name" = "sgd"\n'
    space += '"schedule.name" = "constant"\n"head.dropout" = 0.0\n"image.encoder" = "mlp"\n"audio.encoder" = "mlp"\n'
    study = TINY.partition("[space]")[0].replace("[search]", '[search]\nsampler = "grid"\npruner = "none"') + space
    (workspace / "studies" / "digits.toml").write_text(study)
    done = mmsearch("launch", "--workers", 2)
    rows = table(mmsearch)
    assert len({(row["optimizer.lr"], row["batch_size"]) for row in rows}) == len(rows) == 4
    assert states(rows).count("FAIL") >= 1
    assert f"{finished(rows)} of 4" in done.stdout


def test_a_search_with_one_worker_repeats_itself(mmsearch: Run) -> None:
    tables = []
    for name in ("a", "b"):
        mmsearch("launch", "--trials", 5, "--workers", 1, "--study-name", name)
        rows = table(mmsearch, "--study-name", name)
        tables.append([{k: v for k, v in row.items() if k != "duration_s"} for row in rows])
    assert tables[0] == tables[1]
    mmsearch("launch", "--trials", 5, "--workers", 1, "--study-name", "c", "--seed", 1)
    assert [row["value"] for row in table(mmsearch, "--study-name", "c")] != [row["value"] for row in tables[0]]


def test_an_unstable_trial_fails_with_the_reason_and_the_search_goes_on(mmsearch: Run, workspace: Path) -> None:
    broken = TINY.partition('"optimizer.lr"')[0] + '"optimizer.lr" = [1e-3, 10.0]\n"head.dropout" = 0.0\n'
    broken += '"image.encoder" = "mlp"\n"audio.encoder" = "mlp"\n'  # no batch normalisation to save them
    broken += '"optimizer.name" = "sgd"\n"schedule.name" = "constant"\n[[enqueue]]\n"optimizer.lr" = 10.0\n'
    (workspace / "studies" / "digits.toml").write_text(broken)
    done = mmsearch("launch", "--trials", 3, "--workers", 1)
    rows = table(mmsearch)
    assert finished(rows) == 3
    assert states(rows)[1] == "FAIL"
    assert re.search(r"trial 1 failed: the (training|validation) loss of epoch \d is (nan|inf)", done.stderr)
    assert "lower optimizer.lr" in done.stderr


def test_a_study_is_not_continued_with_something_else(mmsearch: Run, workspace: Path) -> None:
    file = workspace / "studies" / "digits.toml"
    mmsearch("launch", "--trials", 2, "--workers", 1)
    for old, new, what in (
        ("max_epochs = 3", "max_epochs = 4", "search.max_epochs = 3"),
        ('"batch_size" = 32', '"batch_size" = 64', '"batch_size" = 32'),
        ("[16, 32]", "[16, 32, 64]", '"image.mlp.units_1" = [16, 32]'),
        ("low = 1e-3, high = 1e-2", "low = 2e-3, high = 1e-2", '"optimizer.lr" = 0.001 to 0.01'),
        ("rows = 400", "rows = 300", "data.rows = 400"),
    ):
        file.write_text(TINY.replace(old, new))
        said = mmsearch("launch", "--trials", 4, code=2).stderr
        assert what in said
        assert "--study-name" in said
    file.write_text(TINY.replace("low = 1e-3, high = 1e-2", "low = 1e-4, high = 2e-2"))
    assert "wider" in mmsearch("launch", "--trials", 3, "--workers", 1).stderr
    assert len(table(mmsearch)) == 3


def test_going_on_with_something_else_is_seen_in_the_data_too(mmsearch: Run, workspace: Path) -> None:
    mmsearch("launch", "--trials", 1, "--workers", 1)
    file = workspace / "studies" / "digits.toml"
    file.write_text(TINY.replace("[data]", "[data]\naudio_shape = [13, 39]"))
    assert "demo" in mmsearch("launch", "--trials", 2, code=2).stderr  # its rows are frames already
    file.write_text(TINY)
    (workspace / "storage" / "studies.db").unlink()
    assert "files of another study" in mmsearch("launch", "--trials", 1, code=2).stderr


def test_a_smaller_loss_is_better(mmsearch: Run, workspace: Path) -> None:
    study = TINY.replace("[study]", '[study]\nmetrics = ["loss"]')
    (workspace / "studies" / "digits.toml").write_text(study)
    done = mmsearch("launch", "--trials", 5, "--workers", 2)
    rows = [row for row in table(mmsearch, "--sort", "best") if row["state"] == "COMPLETE"]
    values = [float(row["value"]) for row in rows]
    assert values == sorted(values)
    assert f"best      loss {values[0]:.4f}" in done.stdout
    assert "gain      +" in done.stdout
    (workspace / "studies" / "digits.toml").write_text(TINY)  # whoever looks with another file sees the same
    assert f"best      loss {values[0]:.4f}" in mmsearch("status").stdout


def test_a_study_that_somebody_else_made_is_left_alone(mmsearch: Run, workspace: Path) -> None:
    import optuna

    from mmsearch.search.storage import open_storage

    (workspace / "storage").mkdir()
    storage = open_storage(f"sqlite:///{workspace}/storage/studies.db", create=True)
    optuna.create_study(study_name="digits", storage=storage, direction="minimize")
    storage.engine.dispose()
    assert "not made by mmsearch" in mmsearch("launch", code=2).stderr


def test_a_launcher_killed_while_it_makes_the_study_leaves_it_usable(
    mmsearch: Run, workspace: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, optuna.study\noptuna.study.Study.set_metric_names = lambda *a: os._exit(9)\n"
    )
    mmsearch("launch", code=9, env={"PYTHONPATH": str(site)})
    mmsearch("launch", "--trials", 2, "--workers", 1)
    assert finished(table(mmsearch)) == 2


def test_a_password_in_the_study_file_is_not_copied(mmsearch: Run, workspace: Path, postgres: str) -> None:
    url = postgres.replace("postgres:@", "postgres:s3cret@")
    (workspace / "studies" / "digits.toml").write_text(TINY.replace("[study]", f'[study]\nstorage = "{url}"'))
    done = mmsearch("launch", "--trials", 1, "--workers", 1)
    kept = (workspace / "storage" / "digits" / "study.toml").read_text()
    assert "s3cret" not in kept + done.stdout + done.stderr
    assert "***" in kept


def test_commands_before_there_is_a_study(mmsearch: Run) -> None:
    for command in ("status", "export", "retrain-best", "dashboard"):
        said = mmsearch(command, code=4).stderr
        assert "mmsearch launch" in said
        assert len(said.splitlines()) == 1


def test_a_storage_out_of_reach_is_exit_4_without_the_password(mmsearch: Run) -> None:
    said = mmsearch("launch", code=4, env={"MMSEARCH_STORAGE": "postgresql://me:secret@127.0.0.1:1/x"}).stderr
    assert "secret" not in said
    assert len(said.splitlines()) == 1


def test_all_trials_pruned_or_failed_is_exit_3(mmsearch: Run, workspace: Path) -> None:
    (workspace / "studies" / "digits.toml").write_text(TINY)
    mmsearch("launch", "--trials", 1, "--workers", 1)
    with sqlite3.connect(workspace / "storage" / "studies.db") as connection:
        connection.execute("UPDATE trials SET state = 'PRUNED'")
    assert "has ended, and no trial is complete" in mmsearch("launch", "--trials", 1, code=3).stderr
    assert "no trial is complete" in mmsearch("retrain-best", code=3).stderr


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_retried_once(mmsearch: Run, start: Start, workspace: Path) -> None:
    (workspace / "studies" / "digits.toml").write_text(LONG)
    database = workspace / "storage" / "studies.db"
    launcher = start("launch", "--trials", 3, "--workers", 2)
    victim = wait_for(lambda: running(database))[0]
    wait_for(lambda: epochs_reported(database) > 1)
    os.kill(victim["pid"], signal.SIGKILL)
    _, said = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, said
    assert "died (signal SIGKILL)" in said
    rows = table(mmsearch)
    assert finished(rows) == 3
    assert states(rows).count("FAIL") == 1
    failed = states(rows).index("FAIL")
    retry = next(row for row in rows[failed + 1 :] if row["optimizer.lr"] == rows[failed]["optimizer.lr"])
    assert retry["state"] in ("COMPLETE", "PRUNED")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_hands_trials_back_and_the_printed_command_goes_on(
    mmsearch: Run, start: Start, workspace: Path, signum: int, code: int
) -> None:
    (workspace / "studies" / "digits.toml").write_text(LONG)
    database = workspace / "storage" / "studies.db"
    launcher = start("launch", "--trials", 4, "--workers", 2)
    wait_for(lambda: len(running(database)) == 2 and epochs_reported(database) > 2)
    pids = workers_of(launcher)
    os.kill(launcher.pid, signum)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == code, said
    assert "Traceback" not in said
    assert "mmsearch launch --trials 4 --workers 2" in said.splitlines()[-1]
    assert not any(alive(pid) for pid in pids)
    before = table(mmsearch)
    assert states(before).count("RUNNING") == 0
    assert states(before).count("WAITING") >= 1
    mmsearch(*said.splitlines()[-1].rpartition("mmsearch ")[2].split())
    rows = table(mmsearch)
    assert finished(rows) == len(rows) == 4
    for row, earlier in zip(rows, before, strict=False):  # same number, same parameters
        assert row["optimizer.lr"] == earlier["optimizer.lr"] or not earlier["optimizer.lr"]


@pytest.mark.slow
def test_a_second_signal_stops_at_once(mmsearch: Run, start: Start, workspace: Path) -> None:
    (workspace / "studies" / "digits.toml").write_text(LONG)
    launcher = start("launch", "--trials", 4, "--workers", 2)
    wait_for(lambda: len(running(workspace / "storage" / "studies.db")) == 2)
    for _ in range(2):
        os.kill(launcher.pid, signal.SIGINT)
        time.sleep(0.05)
    _, said = launcher.communicate(timeout=20)
    assert launcher.returncode == 130, said
    assert "Traceback" not in said
    assert states(table(mmsearch)).count("RUNNING") == 0


@pytest.mark.slow
def test_a_killed_launcher_leaves_nothing_running_and_the_next_repairs(
    mmsearch: Run, start: Start, workspace: Path
) -> None:
    (workspace / "studies" / "digits.toml").write_text(LONG)
    database = workspace / "storage" / "studies.db"
    launcher = start("launch", "--trials", 3, "--workers", 2)
    owners = wait_for(lambda: (found := running(database)) and len(found) == 2 and found)
    os.kill(owners[0]["pid"], signal.SIGKILL)  # one with its launcher, one is left to notice
    os.kill(launcher.pid, signal.SIGKILL)
    wait_for(lambda: not any(alive(owner["pid"]) for owner in owners), 30)
    mmsearch("launch", "--trials", 3, "--workers", 2)
    rows = table(mmsearch)
    assert finished(rows) == 3
    assert states(rows).count("RUNNING") == 0


def test_workers_that_die_again_and_again_end_the_search(mmsearch: Run, workspace: Path, tmp_path: Path) -> None:
    site = tmp_path / "broken"
    site.mkdir()
    (site / "torch.py").write_text("raise SystemExit('torch is broken here')\n")
    said = mmsearch("launch", code=1, env={"PYTHONPATH": str(site)}).stderr
    assert "5 workers in a row died" in said
    assert "torch is broken here" in said.splitlines()[-1]


def test_nothing_secret_is_on_a_command_line_or_in_a_file(
    mmsearch: Run, start: Start, workspace: Path, postgres: str
) -> None:
    url = postgres.replace("postgres:@", "postgres:s3cret@")
    launcher = start("launch", "--trials", 2, "--workers", 1, env={"MMSEARCH_STORAGE": url})
    lines = []
    while launcher.poll() is None:
        for pid in workers_of(launcher):
            try:
                lines.append(Path(f"/proc/{pid}/cmdline").read_text())
            except OSError:
                continue
        time.sleep(0.2)
    out, said = launcher.communicate()
    assert launcher.returncode == 0, said
    assert lines
    held = [path.read_bytes() for path in workspace.rglob("*") if path.is_file()]
    assert not any("s3cret" in text for text in (*lines, out, said))
    assert not any(b"s3cret" in content for content in held)


@pytest.mark.slow
def test_in_a_terminal_there_is_one_live_view(workspace: Path) -> None:
    import pty

    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [MMSEARCH, "launch", "--trials", "4"],
        cwd=workspace,
        env=environment(TERM="xterm-256color", COLUMNS="100", LINES="30"),
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    os.close(leader)
    text = shown.decode(errors="replace")
    for expected in ("mmsearch: digits", "of 4 trials", "best macro_f1", "worker 0", "trials an hour", "epoch"):
        assert expected in text
    assert "Traceback" not in text
    assert "Warning" not in text
