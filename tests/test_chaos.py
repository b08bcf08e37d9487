"""A search whose workers are killed again and again, while its database restarts: exact, and as if nothing had been.

The tests take MMSEARCH_CHAOS_S seconds of faults (default 30); the README's figures are of 120.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from conftest import Start
from optuna.trial import TrialState
from servers import later, serving
from test_search import workers_of

from mmsearch.config import load_config
from mmsearch.results.replay import replay
from mmsearch.search.study import open_study

SECONDS = int(os.environ.get("MMSEARCH_CHAOS_S", "30"))
KILL_EVERY_S = 6
TRIALS = 24

STUDY = f"""
[study]
trials = {TRIALS}
[data]
rows = 1500
[search]
max_epochs = {max(3, SECONDS // 7)}
patience = {SECONDS}
pruner_warmup = 1
startup_trials = 6
max_retries = 50
checkpoint_every = 0.5
[space]
"optimizer.lr" = {{ low = 1e-3, high = 1e-2, log = true, default = 3e-3 }}
"optimizer.name" = ["adamw", "sgd"]
"augment.image.shift" = 0.1
"ema.decay" = [0.0, 0.99]
"image.encoder" = "cnn"
"audio.encoder" = ["conv1d", "mlp"]
"head.dropout" = 0.3
"""


def kill_workers(launcher: subprocess.Popen[str], rng: random.Random) -> int:
    """SIGKILL a random worker every few seconds, as long as faults are to come and the search lasts; how many."""
    killed, until = 0, time.monotonic() + SECONDS
    while time.monotonic() < until and launcher.poll() is None:
        time.sleep(KILL_EVERY_S)
        running = workers_of(launcher)
        if running:
            os.kill(rng.choice(running), signal.SIGKILL)
            killed += 1
    return killed


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """A storage URL; a PostgreSQL is restarted twice while the faults last."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'chaos.db'}"
        return
    (folder / "server").mkdir()
    with serving(folder / "server") as server:
        restarts = [later(SECONDS * share, partial(server.restart, mode)) for share, mode in RESTARTS]
        yield server.url()
        for thread in restarts:
            thread.join()


RESTARTS = ((1 / 3, "fast"), (2 / 3, "immediate"))


def differences(file: str, url: str, number: int) -> list[str]:
    """What a replay of a trial finds to be other than it was stored."""
    again = replay(load_config(file, {"study.storage": url}), number)
    return [str(compared) for compared in again.compared if compared.stored != compared.again] or (
        [] if again.exact else [str(again.short)]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_workers_and_a_restarted_database_change_nothing(
    start: Start, workspace: Path, tmp_path: Path, kind: str
) -> None:
    file = workspace / "studies" / "digits.toml"
    file.write_text(STUDY)
    with database(kind, tmp_path) as url:
        launcher = start("launch", "--workers", 3, env={"MMSEARCH_STORAGE": url})
        killed = kill_workers(launcher, random.Random(0))
        _, said = launcher.communicate(timeout=600)
        assert launcher.returncode == 0, said
        assert killed >= SECONDS // (2 * KILL_EVERY_S), "the search was over before the faults"
        assert "Traceback" not in said

        with open_study(load_config(file, {"study.storage": url})) as opened:
            trials = opened.trials()
        finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        assert len(finished) == TRIALS
        assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
        first_attempts = [trial.system_attrs.get("failed_trial", trial.number) for trial in finished]
        assert len(set(first_attempts)) == TRIALS
        assert any(trial.state == TrialState.FAIL for trial in trials)  # somebody was killed at work

        complete = [trial.number for trial in finished if trial.state == TrialState.COMPLETE]
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            compared = {number: pool.submit(differences, str(file), url, number) for number in complete}
            assert {number: what for number, done in compared.items() if (what := done.result())} == {}
        print(
            f"{kind}: {killed} workers killed, {len(trials) - len(finished)} attempts failed, {len(complete)} complete"
        )
