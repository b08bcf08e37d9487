"""`mmsearch replay`: the same numbers again, whatever became of the trial, and what it says when they are not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MMSEARCH, TINY, Run, environment
from hypothesis import given
from hypothesis import strategies as st
from test_search import running, wait_for

from mmsearch.config import load_config
from mmsearch.errors import StudyMismatch, UsageError
from mmsearch.results.replay import REPORTED, Replay, _changes_on_the_way, replay
from mmsearch.results.verdict import render
from mmsearch.search.study import open_study

Start = Callable[..., subprocess.Popen[str]]

# Trial 0 has the defaults and is never pruned; all others are, after their second epoch or fold.
PRUNING = TINY.replace("[search]\n", '[search]\nsampler = "random"\npruner = "threshold"\npruner_lower = 0.999\n')
KFOLD = PRUNING.replace("[data]", '[data]\nvalidation = "kfold"\nfolds = 3').replace("max_epochs = 3", "max_epochs = 2")
SEVERAL = TINY.replace("[study]", '[study]\nmetrics = ["accuracy", "loss", "parameters", "latency_ms"]')


def search(folder: Path, study: str, trials: int) -> None:
    (folder / "studies").mkdir()
    (folder / "studies" / "digits.toml").write_text(study)
    done = subprocess.run(
        [MMSEARCH, "launch", "--trials", str(trials), "--workers", "1"],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pruning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search: trial 0 is complete after three epochs, trial 1 pruned after two; to be copied."""
    folder = tmp_path_factory.mktemp("pruning")
    search(folder, PRUNING, 2)
    return folder


@pytest.fixture
def searched(pruning: Path, workspace: Path) -> Path:
    """A copy of it, in the workspace."""
    shutil.copytree(pruning, workspace, dirs_exist_ok=True)
    return workspace


@pytest.fixture
def edit(searched: Path) -> Iterator[Callable[..., None]]:
    """Change the copy's database with a statement of SQL."""
    with sqlite3.connect(searched / "storage" / "studies.db") as connection:

        def run(statement: str, *values: object) -> None:
            assert connection.execute(statement, values).rowcount, statement
            connection.commit()

        yield run
    connection.close()


def again(folder: Path, number: int, **given: Any) -> Replay:
    return replay(load_config(folder / "studies" / "digits.toml"), number, **given)


def names(replayed: Replay) -> list[tuple[int, int | None, str]]:
    return [(compared.fold, compared.epoch, compared.name) for compared in replayed.compared]


def content(folder: Path) -> dict[Path, bytes]:
    held = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("studies.db-"))
    return {path: path.read_bytes() for path in held}


@pytest.mark.parametrize(("number", "state", "epochs"), [(0, "COMPLETE", 3), (1, "PRUNED", 2)])
def test_the_same_numbers_to_the_last_bit(mmsearch: Run, searched: Path, number: int, state: str, epochs: int) -> None:
    before = content(searched)
    done = mmsearch("replay", number)
    assert content(searched) == before
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"trial     {number} ({state}), seed ")
    assert f"{epochs} epochs on cpu with " in lines[0]
    assert [line.split()[0] for line in lines[3 : 3 + epochs]] == [str(epoch) for epoch in range(1, epochs + 1)]
    assert [line.split()[-1] for line in lines[3 : 3 + epochs]] == ["0"] * epochs
    numbers = 8 * epochs + (state == "COMPLETE")  # of each epoch six scores, the rate and the report; and the value
    assert lines[-2] == f"verdict   the same exactly: {numbers} numbers to the last bit"
    assert lines[-1] == "changed   nothing: code, versions, data, hardware, threads and device are as they were"
    assert done.stderr.startswith(f"trial {number} again: {epochs} epochs\nepoch 1/{epochs}: loss ")


@pytest.mark.parametrize(("by", "tolerance", "code"), [(1e-3, 0.0, 1), (1e-3, 1e-4, 1), (1e-3, 2e-3, 0), (0.0, 0, 0)])
def test_a_difference_is_told_and_may_be_tolerated(
    mmsearch: Run, searched: Path, edit: Callable[..., None], by: float, tolerance: float, code: int
) -> None:
    edit("UPDATE trial_intermediate_values SET intermediate_value = intermediate_value + ? WHERE trial_id = 2", by)
    verdict = mmsearch("replay", 1, "--tolerance", tolerance, code=code).stdout.splitlines()[-2]
    if code:
        expected = f"different: reported differs by 0.001 (epoch 1), beyond the tolerance of {tolerance:g}"
        assert verdict == f"verdict   {expected}"
    elif by:
        assert verdict == "verdict   the same within 0.002: at most, reported differs by 0.001 (epoch 1)"
    else:
        assert "the same exactly" in verdict


def test_the_last_bit_counts(searched: Path, edit: Callable[..., None]) -> None:
    first = again(searched, 1)
    stored = next(compared.stored for compared in first.compared if compared.name == REPORTED)
    edit(
        "UPDATE trial_intermediate_values SET intermediate_value = ? WHERE trial_id = 2 AND step = 1",
        float(np.nextafter(stored, 2.0)),
    )
    replayed = again(searched, 1)
    assert not replayed.exact
    assert not replayed.same
    assert again(searched, 1, tolerance=1e-9).same
    assert replayed.largest is not None
    assert (replayed.largest.name, replayed.largest.epoch) == (REPORTED, 1)


def test_of_the_log_the_last_attempt_counts(searched: Path) -> None:
    path = searched / "storage" / "digits" / "trials" / "1" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    earlier = [{**row, "attempt": "2020", "train_loss": 99.0} for row in [*rows, {**rows[-1], "epoch": 3}]]
    torn = '{"attempt": "2020-01-01T'
    path.write_text("\n".join([*map(json.dumps, earlier), torn, *map(json.dumps, rows), torn]))
    assert again(searched, 1).exact
    path.write_text("\n".join([*map(json.dumps, rows), *map(json.dumps, earlier)]))
    replayed = again(searched, 1)
    assert not replayed.exact
    assert [result.epoch for _, result in replayed.epochs] == [1, 2, 3]
    assert replayed.largest is not None
    assert replayed.largest.name == "train_loss"


def test_without_its_log_the_reports_are_compared(searched: Path) -> None:
    shutil.rmtree(searched / "storage" / "digits" / "trials")
    replayed = again(searched, 0)
    assert replayed.exact
    assert names(replayed) == [*((1, epoch, REPORTED) for epoch in (1, 2, 3)), (1, None, "macro_f1")]


def test_another_study_s_log_is_not_taken_for_its_own(searched: Path) -> None:
    path = searched / "storage" / "digits" / "trials" / "0" / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.", "1."))
    assert not again(searched, 0).exact
    (searched / "storage" / "digits" / "study.id").write_text("another")
    assert again(searched, 0).exact


def test_epochs_that_are_missing_or_too_many(searched: Path, edit: Callable[..., None]) -> None:
    log = searched / "storage" / "digits" / "trials" / "0" / "metrics.jsonl"
    rows = log.read_text().splitlines()
    edit("DELETE FROM trial_intermediate_values WHERE trial_id = 1 AND step = 3")
    edit("UPDATE trial_user_attributes SET value_json = '2' WHERE trial_id = 1 AND key = 'epochs'")
    log.write_text("\n".join(rows[:2]))
    shorter = again(searched, 0)
    assert not shorter.same
    assert shorter.short == "the trial ended after 2 epochs, and the replay would go on"
    assert "different: the trial ended after 2 epochs" in render(shorter)
    log.write_text("\n".join([*rows, rows[-1].replace('"epoch": 3', '"epoch": 4')]))
    longer = again(searched, 0)
    assert not longer.same
    assert longer.short == "the replay ended after 3 epochs, and the trial after 4"


@pytest.mark.parametrize("state", ["FAIL", "RUNNING", "WAITING"])
def test_other_states(searched: Path, edit: Callable[..., None], state: str) -> None:
    edit("UPDATE trials SET state = ? WHERE number = 1", state)
    if state == "FAIL":
        replayed = again(searched, 1)
        assert (replayed.exact, replayed.state, len(replayed.epochs)) == (True, "FAIL", 2)
    else:
        with pytest.raises(UsageError, match=f"trial 1 of the study digits has not ended: it is {state}"):
            again(searched, 1)


def test_what_cannot_be_replayed_is_said_in_one_sentence(
    mmsearch: Run, searched: Path, edit: Callable[..., None]
) -> None:
    assert mmsearch("replay", 2, code=2).stderr == "mmsearch: 2 is no trial of the study digits: it has 0 to 1\n"
    shutil.rmtree(searched / "storage" / "digits" / "trials" / "1")
    edit("DELETE FROM trial_intermediate_values WHERE trial_id = 2")
    said = mmsearch("replay", 1, code=2).stderr
    assert said.startswith("mmsearch: trial 1 (PRUNED) of the study digits has no epoch to compare with: ")
    assert len(said.splitlines()) == 1
    assert "there is no study yet" in mmsearch("replay", 0, "--storage", "sqlite:///none.db", code=4).stderr


def test_a_study_file_that_was_edited_is_refused(searched: Path) -> None:
    file = searched / "studies" / "digits.toml"
    file.write_text(PRUNING.replace("max_epochs = 3", "max_epochs = 4"))
    with pytest.raises(StudyMismatch, match=r"search\.max_epochs"):
        again(searched, 0)
    file.write_text(PRUNING.replace("low = 1e-3, high", "low = 1e-4, high"))  # wider: its trials are what they were
    assert again(searched, 0).exact


def test_what_changed_since_is_said(searched: Path, edit: Callable[..., None]) -> None:
    import torch

    held = sqlite3.connect(searched / "storage" / "studies.db")
    (text,) = held.execute("SELECT value_json FROM trial_user_attributes WHERE trial_id = 2 AND key = 'run'").fetchone()
    held.close()
    run = json.loads(text)
    threads = run["threads"] + 1
    changed = {
        **run,
        "code": "0123456789abcdef",
        "versions": {**run["versions"], "torch": "1.0.0"},
        "hardware": "an abacus",
        "data": "other",
        "device": "cuda:7",
        "threads": threads,
    }
    edit("UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = 2 AND key = 'run'", json.dumps(changed))
    before = torch.get_num_threads()
    replayed = again(searched, 1)
    assert torch.get_num_threads() == before
    assert replayed.run["threads"] == threads  # as many as then
    assert {change.what for change in replayed.changes} == {"code", "torch", "data", "hardware", "device"}
    assert ("torch", "1.0.0", torch.__version__) in [(c.what, c.stored, c.now) for c in replayed.changes]
    last = render(replayed).splitlines()[-1]
    assert last.startswith("changed   code (then 0123456789abcdef, now ")
    assert "torch (then 1.0.0, now " in last
    edit("UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = 2 AND key = 'run'", json.dumps({}))
    last = render(again(searched, 1)).splitlines()[-1]  # an older version wrote nothing of it
    assert last.startswith("changed   unknown of code, ")
    assert "data" not in last  # the study knows


def test_data_that_changed_are_told_and_trained_on(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 40)
    images = random.random((160, 784)).astype(np.float32) + labels[:, None] / 4
    data = tmp_path / "data"
    data.mkdir()
    for name, array in (
        ("data_wr_train.npy", images),
        ("data_sp_train.npy", random.random((160, 507)).astype(np.float32)),
        ("labels_train.npy", labels),
    ):
        np.save(data / name, array)
    search(tmp_path, PRUNING.replace("rows = 400", 'source = "../data"'), 1)
    assert again(tmp_path, 0).exact
    images[3] += 0.25
    np.save(data / "data_wr_train.npy", images)
    replayed = again(tmp_path, 0)
    assert [change.what for change in replayed.changes] == ["data"]
    assert not replayed.same


@pytest.mark.slow
def test_with_folds_and_with_several_metrics(tmp_path: Path) -> None:
    """Each fold's best epoch is what was reported; of several metrics nothing was."""
    folds = tmp_path / "folds"
    folds.mkdir()
    search(folds, KFOLD, 2)
    complete, pruned = again(folds, 0), again(folds, 1)
    assert complete.exact
    assert pruned.exact
    assert [fold for fold, epoch, name in names(complete) if name == REPORTED] == [1, 2, 3]
    assert [(fold, epoch) for fold, epoch, name in names(pruned) if name == "valid_loss"] == [
        (1, 1), (1, 2), (2, 1), (2, 2),
    ]  # fmt: skip
    assert [line.split()[:2] for line in render(pruned).splitlines()[3:7]] == [
        ["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"],
    ]  # fmt: skip
    shutil.rmtree(folds / "storage" / "digits" / "trials")
    assert names(again(folds, 1)) == [(1, None, REPORTED), (2, None, REPORTED)]

    several = tmp_path / "several"
    several.mkdir()
    search(several, SEVERAL, 1)
    replayed = again(several, 0)
    assert replayed.exact
    assert names(replayed)[-3:] == [(1, None, "accuracy"), (1, None, "loss"), (1, None, "parameters")]
    assert (1, 3, "valid_accuracy") in names(replayed)
    shutil.rmtree(several / "storage" / "digits" / "trials")
    assert names(again(several, 0)) == names(replayed)[-3:]


@pytest.mark.slow
def test_a_trial_that_went_on_elsewhere_is_as_if_nothing_had_been(mmsearch: Run, start: Start, workspace: Path) -> None:
    """Killed in mid-training, retried from its checkpoint: a replay in one go has the same numbers."""
    longer = TINY.replace("rows = 400", "rows = 2000").replace("max_epochs = 3", "max_epochs = 12\npatience = 12")
    (workspace / "studies" / "digits.toml").write_text(longer.replace("[search]", "[search]\ncheckpoint_every = 0.1"))
    launcher = start("launch", "--trials", 1, "--workers", 1)
    log = workspace / "storage" / "digits" / "trials" / "0" / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3)
    os.kill(running(workspace / "storage" / "studies.db")[0]["pid"], signal.SIGKILL)
    _, said = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    assert "trial 1 goes on after epoch" in said
    config = load_config(workspace / "studies" / "digits.toml")
    for number in (0, 1):
        assert replay(config, number).exact
    assert f"seed {replay(config, 0).seed}," in mmsearch("replay", 1).stdout  # that of its first attempt


@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.dictionaries(st.sampled_from(["epoch", "fold", "attempt", "x"]), st.integers(0, 3)).map(json.dumps),
        ),
        max_size=8,
    )
)
def test_any_log_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    from mmsearch.results.epochs import last_attempt

    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    rows = last_attempt(path)
    assert len({row.get("attempt") for row in rows}) <= 1
    assert all(isinstance(row["epoch"], int) for row in rows)


@pytest.mark.slow
def test_a_trial_that_went_on_with_other_threads_is_replayed_so(mmsearch: Run, start: Start, workspace: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("on one core every worker has one thread")
    text = TINY.replace("max_epochs = 3", "max_epochs = 12\npatience = 12").replace("rows = 400", "rows = 2000")
    (workspace / "studies" / "digits.toml").write_text(text)
    first = start("launch", "--trials", 1, "--workers", 1)
    log = workspace / "storage" / "digits" / "trials" / "0" / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 2)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    cores = len(os.sched_getaffinity(0))
    assert "from its checkpoint" in mmsearch("launch", "--trials", 1, "--workers", cores).stderr
    with open_study(load_config(workspace / "studies" / "digits.toml")) as opened:
        run = opened.trials()[0].user_attrs["run"]
    assert [segment["threads"] for segment in run["before"]] == [cores]
    assert run["threads"] == 1
    assert "the same exactly" in mmsearch("replay", 0).stdout


def test_where_a_trial_began_elsewhere_is_said() -> None:
    run = {"threads": 1, "hardware": "here", "device": "cpu", "versions": {"numpy": "2"}}
    before = [{"epochs": 3, "threads": 2, "hardware": "there", "device": "cpu", "versions": {"numpy": "1"}}]
    told = list(_changes_on_the_way({**run, "before": before}, run))
    assert [(change.what, change.stored, change.now) for change in told] == [
        ("hardware of epochs 1 to 3", "there", "here"),
        ("numpy of epochs 1 to 3", "1", "2"),
    ]
