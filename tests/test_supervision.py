"""What a launcher does about workers that die, hang or run out of memory, about signals, and about its budgets."""

from __future__ import annotations

import functools
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from conftest import TINY, Run
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState
from scripted import scripted
from test_search import LONG, alive, epochs_reported, finished, running, states, table, wait_for, workers_of

from mmsearch.config import SearchSection
from mmsearch.errors import Interrupted, UsageError
from mmsearch.search import opening
from mmsearch.search.budgets import Signals, trials_since_gain
from mmsearch.search.children import STARTUP_S, Child
from mmsearch.search.machine import gpus, oom_kills
from mmsearch.search.progress import WorkerView
from mmsearch.search.values import candidates, pareto_front

Start = Callable[..., subprocess.Popen[str]]


def study(workspace: Path, text: str, **search: object) -> Path:
    """Write the workspace's study, with keys added to [search]; returns its database."""
    keys = "\n".join(f"{key} = {value}" for key, value in search.items())
    (workspace / "studies" / "digits.toml").write_text(text.replace("[search]", f"[search]\n{keys}"))
    return workspace / "storage" / "studies.db"


def owners(database: Path, number: int) -> list[dict[str, Any]]:
    """The owners of the running trials, once there are so many."""

    def found() -> list[dict[str, Any]] | None:
        held = running(database)
        return held if len(held) == number else None

    return list(wait_for(found))


def all_gone(pids: Iterable[int]) -> bool:
    return not any(alive(pid) for pid in pids)


def send(signum: int) -> None:
    """A signal to this process, and time for it to arrive."""
    os.kill(os.getpid(), signum)
    time.sleep(10)


def attributes(database: Path, kind: str) -> dict[tuple[int, str], str]:
    """The attributes of trials, straight out of the database: by the trial's number and the key."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            f"SELECT number, key, value_json FROM trial_{kind}_attributes JOIN trials USING (trial_id)"
        ).fetchall()
    return {(number, key): text for number, key, text in rows}


# What the kernel counts


CGROUPS = {
    "version 1": (
        "4:memory:/a/b\n1:cpu:/\n0::/\n",
        {"memory/a/b/memory.oom_control": "oom_kill_disable 0\noom_kill 3"},
        3,
    ),
    "version 2": ("0::/user.slice/mine\n", {"user.slice/mine/memory.events": "low 0\noom 5\noom_kill 4\n"}, 4),
    "both": (
        "4:cpuset,memory:/a\n0::/a\n",
        {"memory/a/memory.oom_control": "oom_kill 3", "a/memory.events": "oom_kill 4"},
        3,
    ),
    "a container of version 1": (
        "4:memory:/docker/0f\n",
        {"memory/memory.oom_control": "under_oom 0\noom_kill 2\n"},
        2,
    ),
    "a container of version 2": ("0::/../0f\n", {"memory.events": "oom_kill 1\n"}, 1),
    "an old kernel": ("4:memory:/a\n", {"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"}, 0),
    "nothing": ("", {}, 0),
}


@pytest.mark.parametrize(("own", "files", "kills"), CGROUPS.values(), ids=CGROUPS)
def test_the_kernels_kills_are_read(tmp_path: Path, own: str, files: dict[str, str], kills: int) -> None:
    for name, text in files.items():
        (tmp_path / "mounted" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mounted" / name).write_text(text)
    (tmp_path / "cgroup").write_text(own)
    assert oom_kills(tmp_path / "cgroup", tmp_path / "mounted") == kills
    assert oom_kills(tmp_path / "missing", tmp_path / "missing") == 0


# GPUs


def configured(**search: Any) -> Any:
    return SimpleNamespace(search=SearchSection(**search), overrides={})


def test_workers_take_turns_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr(opening, "gpus", lambda: 3)
    for section, places, workers in (
        ({}, ("cuda:0", "cuda:1", "cuda:2"), 3),
        ({"workers_per_gpu": 2}, ("cuda:0", "cuda:1", "cuda:2"), 6),
        ({"gpus": (2, 0)}, ("cuda:2", "cuda:0"), 2),
        ({"gpus": (1,), "workers_per_gpu": 4, "device": "cuda"}, ("cuda:1",), 4),
        ({"device": "cuda:2"}, ("cuda:2",), 1),
    ):
        config = configured(**section)
        assert opening.devices(config) == places
        assert opening.default_workers(config, places) == workers
    assert opening.devices(configured(device="cpu", gpus=(0,))) == ("cpu",)
    with pytest.raises(UsageError, match="no GPU 3"):
        opening.devices(configured(gpus=(1, 3)))


def test_a_machine_without_a_gpu_shows_no_trace_of_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mmsearch.search.machine.GPU_TRACES", (str(tmp_path / "driver"),))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert gpus() == 0
    (tmp_path / "driver").mkdir()
    assert gpus() == 3


def test_a_gpu_that_is_not_there_is_refused_before_there_is_a_study(mmsearch: Run, workspace: Path) -> None:
    said = mmsearch("launch", "--gpus", "0,907", code=2).stderr
    assert "GPU" in said
    assert "907" in said
    assert len(said.splitlines()) == 1
    assert not (workspace / "storage").exists()
    said = mmsearch("launch", "--gpus", "0", "--device", "cpu", code=2).stderr
    assert "--gpus chooses among GPUs, but the device is the cpu" in said


# Patience over trials


def finished_trial(number: int, values: tuple[float, ...], complete: bool, violation: float) -> FrozenTrial:
    trial = optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else TrialState.PRUNED,
        values=list(values) if complete else None,
    )
    trial.number = number
    trial.datetime_complete = datetime(2026, 1, 1) + timedelta(seconds=number)
    trial.system_attrs = {"constraints:c": violation}
    return trial


@given(
    st.integers(1, 3).flatmap(
        lambda metrics: st.lists(
            st.tuples(
                st.tuples(*[st.integers(0, 3).map(float)] * metrics),
                st.booleans(),
                st.sampled_from([-1.0, 0.0, 1.0]),
            ),
            max_size=12,
        )
    ),
    st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3),
    st.randoms(use_true_random=False),
)
def test_patience_counts_from_the_last_trial_that_joined_the_front(
    rows: list[tuple[tuple[float, ...], bool, float]], signs: list[int], order: random.Random
) -> None:
    trials = [finished_trial(number, *row) for number, row in enumerate(rows)]
    signs = signs[: len(rows[0][0])] if rows else signs
    joined = None
    for number, trial in enumerate(trials):
        before = [t.values for t in pareto_front(candidates(trials[:number]), signs)]
        now = pareto_front(candidates(trials[: number + 1]), signs)
        if trial in now and trial.values not in before:
            joined = number
    shuffled = [*trials, optuna.trial.create_trial(state=TrialState.RUNNING)]
    order.shuffle(shuffled)
    assert trials_since_gain(shuffled, signs) == (0 if joined is None else len(trials) - 1 - joined)


def test_patience_ends_the_search_by_name(mmsearch: Run) -> None:
    done = mmsearch("launch", "--trials", 300, "--patience-trials", 3, "--workers", 2)
    assert "ended     patience_trials: " in done.stdout
    assert " trials in a row without a better one" in done.stdout
    rows = table(mmsearch)
    assert 4 <= finished(rows) < 300
    assert "RUNNING" not in states(rows)
    assert "a greater --patience-trials would go on" in done.stderr
    again = mmsearch("launch", "--trials", 300, "--patience-trials", 3, "--workers", 2)
    assert "ended     patience_trials: " in again.stdout
    assert "is ready" not in again.stderr  # no worker was started for nothing
    assert table(mmsearch) == rows


# Time


def test_the_timeout_ends_the_search_by_name(mmsearch: Run) -> None:
    early = mmsearch("launch", "--timeout", "1s", code=3).stderr
    assert "the search has ended (timeout: 1 s are over), and no trial is complete" in early
    mmsearch("launch", "--trials", 1, "--workers", 1)
    done = mmsearch("launch", "--trials", 300, "--timeout", 6, "--workers", 2)
    assert "ended     timeout: 6 s are over" in done.stdout
    assert "go on with: mmsearch launch --trials 300 --timeout 6 --workers 2" in done.stderr
    assert "RUNNING" not in states(table(mmsearch))


def test_whatever_comes_first_is_named(mmsearch: Run) -> None:
    done = mmsearch("launch", "--trials", 2, "--timeout", "8h", "--patience-trials", 50, "--workers", 1)
    assert "ended     the study has its 2 trials" in done.stdout
    assert "go on with" not in done.stderr


# Workers that hang


def child(**known: Any) -> Child:
    process: Any = None
    return Child(0, "0-a", process, WorkerView(0, **known), since=100.0, oom_kills=0, trial_since=50.0)


def test_only_what_hangs_is_overdue() -> None:
    search = SearchSection(epoch_timeout=10.0, trial_timeout=100.0)
    starting, idle = child(), child()
    idle.ready = True
    assert starting.overdue(100 + STARTUP_S, search, 0) is None
    assert "not ready" in str(starting.overdue(101 + STARTUP_S, search, 0))
    assert idle.overdue(1e9, search, 0) is None  # it waits for a place in the study
    begun, under_way = child(trial=3), child(trial=3, epoch=2)
    assert begun.overdue(110, search, 0) is None
    assert "epoch_timeout" in str(begun.overdue(110.1, search, 0))
    assert begun.overdue(110.1, search, 600) is None  # its features are computed
    assert "epoch_timeout" in str(under_way.overdue(110.1, search, 600))
    assert "trial_timeout" in str(under_way.overdue(150.1, search, 600))
    assert child(trial=3).overdue(1e9, SearchSection(epoch_timeout=1e10), 0) is None


@pytest.mark.slow
def test_a_hang_is_killed_and_fails_with_the_reason_and_the_search_goes_on(
    mmsearch: Run, workspace: Path, tmp_path: Path
) -> None:
    database = study(workspace, TINY, epoch_timeout=15, trial_timeout=40, checkpoint_every=0.01)
    pids = tmp_path / "pids"
    env = scripted(
        tmp_path,
        worker=f"""
        def before(trial):
            if trial.number == 1:  # deaf to signals too, as in native code
                Path({str(pids)!r}).write_text(str(os.getpid()))
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
                time.sleep(1000)

        def after(number, epoch):
            if number == 2:
                time.sleep(14 if epoch < 3 else 30)
        """,
    )
    done = mmsearch("launch", "--trials", 4, "--workers", 2, env=env)
    assert "trial 1 failed: no epoch ended within 15 s (epoch_timeout); its worker was killed" in done.stderr
    assert "not tried again" in done.stderr
    rows = table(mmsearch)
    assert finished(rows) == 4
    assert states(rows)[1] == "FAIL"
    assert "epoch_timeout" in attributes(database, "user")[1, "fail_reason"]
    if states(rows)[2] == "FAIL":  # unless it was pruned
        assert "_timeout" in attributes(database, "user")[2, "fail_reason"]
    assert not any(alive(int(pid)) for pid in pids.read_text().split())


# Workers that die


@pytest.mark.slow
@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGSEGV)"])
def test_a_trial_that_kills_its_worker_is_retried_then_given_up(
    mmsearch: Run, workspace: Path, tmp_path: Path, how: str
) -> None:
    database = study(workspace, TINY, max_failures=2)
    env = scripted(
        tmp_path,
        worker=f"""
        def before(trial):
            attrs = trial.storage.get_trial_system_attrs(trial._trial_id)
            if 1 in (trial.number, attrs.get("failed_trial")):
                {how}
        """,
    )
    done = mmsearch("launch", "--trials", 5, "--workers", 2, env=env)
    rows = table(mmsearch)
    assert finished(rows) == 5
    assert states(rows).count("FAIL") == 2  # which is not two in a row: the first was tried again
    assert done.stderr.count("; queued again as trial") == done.stderr.count("; not tried again") == 1
    reasons = [text for (_, key), text in attributes(database, "user").items() if key == "fail_reason"]
    assert all(re.search(r"the worker died \(signal SIG(KILL|SEGV)\)", reason) for reason in reasons)


def test_one_worker_that_cannot_work_ends_the_search(mmsearch: Run, workspace: Path, tmp_path: Path) -> None:
    study(workspace, LONG)
    env = scripted(
        tmp_path,
        worker="""
        import mmsearch.search.machine as machine
        known = machine.this_process

        def known_or_dead(worker):
            if worker.startswith("1-"):
                print("this one has no luck", file=sys.stderr, flush=True)
                os._exit(7)
            return known(worker)

        machine.this_process = known_or_dead
        """,
    )
    said = mmsearch("launch", "--trials", 100, "--workers", 2, env=env, code=1).stderr
    assert re.search(r"(worker 1 died 5 times|5 workers in a row died) before an epoch was over", said)
    assert "this one has no luck" in said.splitlines()[-1]
    assert "RUNNING" not in states(table(mmsearch))


def test_trials_that_fail_in_a_row_end_the_search(mmsearch: Run, workspace: Path, tmp_path: Path) -> None:
    env = scripted(tmp_path, worker="def before(trial):\n    raise RuntimeError('of all things')\n")
    said = mmsearch("launch", "--max-failures", 3, "--workers", 1, env=env, code=1).stderr
    why = "3 trials in a row failed, the last one: RuntimeError: of all things (the logs are in"
    assert why in said.splitlines()[-1]
    assert states(table(mmsearch)).count("FAIL") in (3, 4)  # a worker may be quicker than its launcher


def test_a_worker_killed_while_the_kernels_counter_rose_was_out_of_memory(
    mmsearch: Run, workspace: Path, tmp_path: Path
) -> None:
    """The kernel's part is played by a file; see the next test for the real one."""
    counter = tmp_path / "oom_kill"
    counter.write_text("7")
    database = study(workspace, TINY)
    env = scripted(
        tmp_path,
        launcher=f"supervisor.oom_kills = lambda: int(Path({str(counter)!r}).read_text())",
        worker=f"""
        def before(trial):
            if trial.number in (1, 2):
                if trial.number == 1:
                    Path({str(counter)!r}).write_text("8")
                os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    done = mmsearch("launch", "--trials", 5, "--workers", 1, env=env)
    rows = table(mmsearch)
    assert finished(rows) == 5
    assert states(rows)[:4] == ["COMPLETE", "PRUNED", "FAIL", states(rows)[3]]  # the second had another cause
    assert "trial 1 pruned: out of memory: the kernel killed its worker" in done.stderr
    assert "trial 2 failed: the worker died (signal SIGKILL); queued again as trial 3" in done.stderr
    assert attributes(database, "system")[1, "constraints:memory"] == "1.0"
    assert "out of memory" in attributes(database, "user")[1, "violated"]


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of this test's own with 1.5 GiB, where the machine allows to make one."""
    group = Path("/sys/fs/cgroup/memory") / f"mmsearch-{uuid.uuid4().hex[:12]}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1536 * 2**20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text().split())
    group.rmdir()


@pytest.mark.slow
def test_the_kernel_kills_a_worker_for_want_of_memory(
    mmsearch: Run, workspace: Path, tmp_path: Path, small_memory: Path
) -> None:
    env = scripted(
        tmp_path,
        launcher=f"Path({str(small_memory / 'cgroup.procs')!r}).write_text(str(os.getpid()))",
        worker="""
        def before(trial):
            held = []
            while trial.number == 1:
                held.append(bytearray(b"x") * 2**26)
        """,
    )
    database = study(workspace, TINY)
    done = mmsearch("launch", "--trials", 4, "--workers", 1, env=env)
    assert "trial 1 pruned: out of memory: the kernel killed its worker" in done.stderr
    rows = table(mmsearch)
    assert finished(rows) == len(rows) == 4
    assert attributes(database, "system")[1, "constraints:memory"] == "1.0"


# Signals


def test_signals_raise_ask_insist_or_wait() -> None:
    asked: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGTERM)
        assert caught.value.exit_code == 143
        with pytest.raises(Interrupted):  # one that was swallowed is not forgotten
            signals.asking(lambda: asked.append("asked"))
    with Signals() as signals:
        signals.asking(lambda: asked.append("asked"))
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: asked == ["asked"])
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGTERM)
        assert caught.value.exit_code == 130  # the first one's
        signals.finishing()
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: signals.insisted)
    assert signal.getsignal(signal.SIGINT) == before


def test_what_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a hang-up is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
            assert signals.first is None
    finally:
        signal.signal(signal.SIGHUP, before)


def finished_epochs(workspace: Path) -> int:
    """Epochs of all trials, as their logs have them."""
    logs = (workspace / "storage" / "digits" / "trials").glob("*/metrics.jsonl")
    return sum(len(log.read_text().splitlines()) for log in logs)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_nobody_has_to_read_what_a_search_says(
    mmsearch: Run, start: Start, workspace: Path, signum: int, code: int
) -> None:
    """Its terminal is closed, or Ctrl-C has ended the `tee` that it is piped to as well."""
    database = study(workspace, LONG, checkpoint_every=1000)
    launcher = start("launch", "--trials", 4, "--workers", 2)
    wait_for(lambda: len(running(database)) == 2 and finished_epochs(workspace) > 3)
    pids = workers_of(launcher)
    assert launcher.stderr is not None
    assert launcher.stdout is not None
    launcher.stderr.close()
    launcher.stdout.close()
    os.kill(launcher.pid, signum)
    assert launcher.wait(90) == code
    assert all_gone(pids)
    assert states(table(mmsearch)) == ["WAITING", "WAITING"]
    assert len(list((workspace / "storage" / "digits").glob("trials/*/checkpoint.pt"))) == 2


@pytest.mark.slow
def test_a_signal_to_launcher_and_workers_keeps_their_epochs(mmsearch: Run, start: Start, workspace: Path) -> None:
    """As a service manager sends it: the workers get a second one from their launcher."""
    database = study(workspace, LONG, checkpoint_every=1000)
    launcher = start("launch", "--trials", 4, "--workers", 2)
    wait_for(lambda: len(running(database)) == 2 and finished_epochs(workspace) > 3)
    for pid in (*workers_of(launcher), launcher.pid):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.05)
    _, said = launcher.communicate(timeout=90)
    assert launcher.returncode == 143, said
    assert states(table(mmsearch)) == ["WAITING", "WAITING"]
    assert len(list((workspace / "storage" / "digits").glob("trials/*/checkpoint.pt"))) == 2


@pytest.mark.parametrize("step", ["load_dataset", "create_study"])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_search_is_prepared(
    mmsearch: Run, start: Start, tmp_path: Path, step: str, signum: int, code: int
) -> None:
    there = tmp_path / "there"
    env = scripted(tmp_path, launcher=f"launcher.{step} = lambda *a: (Path({str(there)!r}).touch(), time.sleep(100))")
    launcher = start("launch", "--trials", 4, "--workers", 2, "--timeout", "8h", env=env)
    wait_for(there.exists)
    os.kill(launcher.pid, signum)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == code, said
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith("go on with: mmsearch launch --trials 4 --timeout 8h --workers 2")


@pytest.mark.slow
def test_a_worker_that_does_not_stop_is_killed_and_its_trial_handed_back(
    mmsearch: Run, start: Start, workspace: Path, tmp_path: Path
) -> None:
    database = study(workspace, LONG)
    env = scripted(
        tmp_path,
        launcher="supervisor.STOP_GRACE_S = 3.0",
        worker="def before(trial):\n    time.sleep(1000)\n",
    )
    launcher = start("launch", "--trials", 4, "--workers", 2, env=env)
    pids = [owner["pid"] for owner in owners(database, 2)]
    os.kill(launcher.pid, signal.SIGTERM)
    _, said = launcher.communicate(timeout=60)
    assert launcher.returncode == 143, said
    assert "workers that did not stop within 3 s are killed" in said
    assert not any(alive(pid) for pid in pids)
    assert set(states(table(mmsearch))) == {"WAITING"}


# The storage


@pytest.mark.slow
def test_a_storage_that_stays_away_ends_the_search_with_exit_4(mmsearch: Run, start: Start, workspace: Path) -> None:
    database = study(workspace, LONG, checkpoint_every=0.01)
    launcher = start("launch", "--trials", 3, "--workers", 2, "--storage-timeout", "4s")
    wait_for(lambda: len(running(database)) == 2 and epochs_reported(database) > 2)
    pids = workers_of(launcher)
    with sqlite3.connect(database, isolation_level=None) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        _, said = launcher.communicate(timeout=200)
        connection.execute("ROLLBACK")
    connection.close()
    assert launcher.returncode == 4, said
    assert "Traceback" not in said
    assert "away for" in said
    assert said.splitlines()[-1].endswith("mmsearch launch --trials 3 --storage-timeout 4s --workers 2")
    wait_for(lambda: not any(alive(pid) for pid in pids))
    again = mmsearch("launch", "--trials", 3, "--workers", 2).stderr
    assert "from its checkpoint" in again, said + again
    assert finished(table(mmsearch)) == 3


@pytest.mark.slow
def test_a_study_that_is_deleted_meanwhile_is_one_sentence(start: Start, workspace: Path, tmp_path: Path) -> None:
    from mmsearch.search.storage import open_storage

    database = study(workspace, LONG)
    launcher = start("launch", "--trials", 4, "--workers", 1)
    wait_for(lambda: running(database))
    storage = open_storage(f"sqlite:///{database}")
    optuna.delete_study(study_name="digits", storage=storage)
    storage.engine.dispose()
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 4, said
    assert "Traceback" not in said
    assert "was deleted while it was searched" in said.splitlines()[-1]


# Launchers that are killed


@pytest.mark.slow
def test_launchers_killed_at_random_moments_leave_no_process_and_the_total_stays_exact(
    mmsearch: Run, start: Start, workspace: Path
) -> None:
    dice = random.Random(20)
    database = study(workspace, TINY.replace("max_epochs = 3", "max_epochs = 6"), checkpoint_every=0.01)
    for turn in range(20):
        total = 2 * (turn + 1)
        launcher = start("launch", "--trials", total, "--workers", 2)
        moment = time.monotonic() + dice.uniform(0.1, 8)
        pids: set[int] = set()
        while time.monotonic() < moment and launcher.poll() is None:
            pids |= {*workers_of(launcher), *(owner["pid"] for owner in running(database))}
            time.sleep(0.05)
        victims = [*dice.sample(sorted(pids), min(len(pids), dice.randrange(3))), launcher.pid]
        for pid in victims:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        launcher.communicate(timeout=60)
        wait_for(functools.partial(all_gone, pids), 120)
        if database.exists() and turn:
            assert finished(table(mmsearch)) <= total
        mmsearch("launch", "--trials", total, "--workers", 2)
        rows = table(mmsearch)
        assert finished(rows) == total, turn
        assert set(states(rows)) <= {"COMPLETE", "PRUNED", "FAIL"}
    with sqlite3.connect(database) as connection:
        twice = connection.execute(
            "SELECT count(*) FROM (SELECT value_json FROM trial_system_attributes WHERE key = 'retry_history' "
            "GROUP BY value_json HAVING count(*) > 1)"
        ).fetchone()[0]
    connection.close()
    assert twice == 0  # no trial was retried twice


def test_status_lists_who_is_on_what(mmsearch: Run, start: Start, workspace: Path) -> None:
    database = study(workspace, LONG)
    launcher = start("launch", "--trials", 4, "--workers", 2)
    pids = {owner["pid"] for owner in owners(database, 2)}
    wait_for(lambda: epochs_reported(database) > 2)
    lines = mmsearch("status").stdout.splitlines()
    assert "workers   2 on 1 machine" in lines
    found = [
        re.fullmatch(r"worker    \S+, process (\d+) on \S+: trial \d+(, epoch \d+)?, last beat \d+ s ago", line)
        for line in lines
        if line.startswith("worker  ")
    ]
    assert {int(match[1]) for match in found if match} == pids
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-10 minutes')")
    connection.close()
    assert "workers   2 on 1 machine, 2 of them silent for more than 2 min" in mmsearch("status").stdout
    os.kill(launcher.pid, signal.SIGINT)
    launcher.communicate(timeout=60)
    assert "workers   none has a trial" in mmsearch("status").stdout
