"""Configurations queued by hand: before a launch, while a search runs, like a trial that is there."""

from __future__ import annotations

import csv
import io
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import TINY, Run
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

import mmsearch as package
from mmsearch.config import StudyConfig, load_config
from mmsearch.errors import NoCompletedTrial, StorageError, StudyMismatch, UsageError
from mmsearch.hyperparameters import TABLE, Value, show
from mmsearch.search.enqueue import enqueue, parse_assignments
from mmsearch.search.space import at, suggest, varying
from mmsearch.search.storage import SLOT, open_storage
from mmsearch.search.study import create_study, open_study

Start = Callable[..., subprocess.Popen[str]]

GRID = TINY.partition("[space]")[0].replace("[search]", '[search]\nsampler = "grid"') + (
    '[space]\n"optimizer.lr" = [1e-3, 3e-3]\n"head.dropout" = { low = 0.0, high = 0.3, step = 0.1 }\n'
)


@pytest.fixture
def config(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """The tiny study, made but not searched: trial 0 waits with the defaults."""
    for variable in ("MMSEARCH_STORAGE", "OPTUNA_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    return begin(workspace, TINY)


def begin(workspace: Path, text: str, **keys: Any) -> StudyConfig:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = workspace / "studies" / "digits.toml"
    path.write_text(text)
    made = load_config(path, {key.replace("__", "."): value for key, value in keys.items()})
    create_study(made, "data")[0].__exit__()
    return made


def trials(config: StudyConfig) -> list[FrozenTrial]:
    with open_study(config) as opened:
        return opened.trials()


def run(config: StudyConfig, state: TrialState, value: float = 0.5) -> dict[str, Any]:
    """What a worker does to the next trial, without the training; returns its parameters."""
    with open_study(config) as opened:
        trial = opened.optuna.ask()
        suggest(config.dimensions, trial)
        if state != TrialState.RUNNING:
            opened.optuna.tell(trial, value if state == TrialState.COMPLETE else None, state=state)
        return trial.params


def test_what_is_given_is_queued_and_the_rest_has_its_defaults(mmsearch: Run, config: StudyConfig) -> None:
    done = mmsearch("enqueue", "optimizer.lr=5e-3", "image.encoder=mlp")
    assert done.stdout == "1\n"
    assert done.stderr == (
        'trial 1 waits with optimizer.lr = 0.005, image.encoder = "mlp", image.mlp.units_1 = 32; '
        "the rest is as by default\n"
    )
    found = trials(config)[1]
    assert found.state == TrialState.WAITING
    run(config, TrialState.COMPLETE)
    assert run(config, TrialState.COMPLETE) == {
        "optimizer.lr": 5e-3,
        "image.encoder": "mlp",
        "image.mlp.units_1": 32,
    }
    assert "0 running, 0 waiting" in mmsearch("status").stdout


WRONG: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "unknown name": (["optimizer.rl=1"], ('"optimizer.rl" is not a hyperparameter', 'did you mean "optimizer.lr"?')),
    "outside of the range": (["optimizer.lr=1"], ('"optimizer.lr" = 1', "0.001 to 0.01")),
    "not a choice": (["image.encoder=resnet"], ('"image.encoder" = "resnet"', '"mlp", "cnn"')),
    "no option at all": (["image.encoder=resnext"], ('"resnext" is not one of', '"paired_cnn"')),
    "fixed": (["batch_size=64"], ('"batch_size" is fixed at 32', "not 64")),
    "does not apply": (["image.mlp.units_1=16"], ("does not apply here", 'image.encoder = "mlp"')),
    "no value": (["optimizer.lr"], ('"optimizer.lr" must be a name and a value', "optimizer.lr=5e-4")),
    "no name": (["=5"], ('"=5" must be a name and a value',)),
    "nothing": (["optimizer.lr="], ('"optimizer.lr": ""', "a number")),
    "a word": (["optimizer.lr=fast"], ('"optimizer.lr": "fast"', "a number from 1e-07 to 10")),
    "a list": (["optimizer.lr=[1e-3, 1e-2]"], ('"optimizer.lr": [0.001, 0.01]', "a number")),
    "not a number": (["optimizer.lr=nan"], ('"optimizer.lr": nan', "a number")),
    "a flag": (["image.encoder=mlp", "image.mlp.units_1=true"], ('"image.mlp.units_1": true', "a whole number")),
    "a fraction": (["image.encoder=mlp", "image.mlp.units_1=16.5"], ("16.5 is not a whole number",)),
    "two lines": (["optimizer.lr=1e-3\nbatch_size=32"], ('"optimizer.lr": "1e-3', "a number")),
    "twice": (["optimizer.lr=2e-3", "optimizer.lr=3e-3"], ('"optimizer.lr" is given twice',)),
    "like a trial that is not there": (["--like=7"], ("--like 7 is no trial of the study digits", "0 to 0", "best")),
    "like a word": (["--like=worst"], ("--like worst is no trial",)),
    "the defaults": ([], ("trial 0 (WAITING) has this configuration already", "--again")),
    "the defaults in words": (["optimizer.lr=0.003", "image.encoder='cnn'"], ("trial 0 (WAITING)",)),
}


@pytest.mark.parametrize(("arguments", "fragments"), WRONG.values(), ids=WRONG)
def test_a_wrong_configuration_is_one_sentence_and_queues_nothing(
    config: StudyConfig, arguments: list[str], fragments: tuple[str, ...]
) -> None:
    like = next((text.removeprefix("--like=") for text in arguments if text.startswith("--like=")), None)
    with pytest.raises(UsageError) as caught:
        enqueue(config, parse_assignments(text for text in arguments if not text.startswith("--")), like=like)
    assert [part for part in fragments if part not in str(caught.value)] == [], caught.value
    assert len(trials(config)) == 1


@pytest.mark.parametrize("name", ["unknown name", "does not apply", "like a trial that is not there", "the defaults"])
def test_a_wrong_command_line_is_exit_2(mmsearch: Run, config: StudyConfig, name: str) -> None:
    arguments, fragments = WRONG[name]
    done = mmsearch("enqueue", *arguments, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("mmsearch: ")
    assert done.stderr.count("\n") == 1
    assert all(part in done.stderr for part in fragments)
    assert len(trials(config)) == 1


def test_before_there_is_a_study(mmsearch: Run) -> None:
    said = mmsearch("enqueue", "optimizer.lr=2e-3", code=4).stderr
    assert "mmsearch launch" in said
    assert len(said.splitlines()) == 1


def test_like_the_best_or_another_trial(mmsearch: Run, config: StudyConfig) -> None:
    with pytest.raises(NoCompletedTrial, match="no trial is complete"):
        enqueue(config, {}, like="best")
    enqueue(config, {"optimizer.lr": 4e-3, "image.encoder": "mlp", "image.mlp.units_1": 16})
    run(config, TrialState.COMPLETE, 0.5)
    run(config, TrialState.COMPLETE, 0.9)
    done = mmsearch("enqueue", "--like", "best", "optimizer.lr=5e-3")
    assert done.stdout == "2\n"
    assert '"mlp", image.mlp.units_1 = 16;' in done.stderr
    wanted: list[tuple[int, dict[str, Value], dict[str, Value]]] = [
        (1, {"image.mlp.units_1": 32}, {"optimizer.lr": 4e-3, "image.mlp.units_1": 32}),
        (1, {"image.encoder": "cnn"}, {"optimizer.lr": 4e-3, "image.encoder": "cnn"}),
        (0, {"image.encoder": "mlp"}, {"optimizer.lr": 3e-3, "image.mlp.units_1": 32}),
        (2, {"optimizer.lr": 6e-3}, {"image.mlp.units_1": 16}),  # which waits itself
    ]
    for like, values, expected in wanted:
        number = enqueue(config, values, like=like).number
        params = trials(config)[number].system_attrs["fixed_params"]
        assert expected.items() <= params.items()
        assert ("image.mlp.units_1" in params) == (params["image.encoder"] == "mlp")
    with pytest.raises(UsageError, match="does not apply here"):
        enqueue(config, {"image.mlp.units_1": 16}, like=0)


def test_like_a_trial_that_was_only_claimed(config: StudyConfig) -> None:
    run(config, TrialState.COMPLETE)
    with open_study(config) as opened:
        opened.optuna.ask()
    with pytest.raises(UsageError, match="--like 1: the trial has no parameters yet"):
        enqueue(config, {"optimizer.lr": 5e-3}, like=1)


@pytest.mark.parametrize("state", ["WAITING", "RUNNING", "COMPLETE", "PRUNED", "FAIL"])
def test_a_configuration_is_tried_once_unless_it_failed_or_again(config: StudyConfig, state: str) -> None:
    enqueue(config, {"optimizer.lr": 2e-3})
    run(config, TrialState.COMPLETE)
    if state != "WAITING":
        run(config, TrialState[state])
    if state == "FAIL":
        assert enqueue(config, {"optimizer.lr": 2e-3}).number == 2
        return
    with pytest.raises(UsageError, match=rf"^trial 1 \({state}\) has this configuration already; --again"):
        enqueue(config, {"optimizer.lr": 2e-3})
    assert enqueue(config, {"optimizer.lr": 2e-3}, again=True).number == 2


def test_a_sampled_configuration_is_known_too(config: StudyConfig) -> None:
    run(config, TrialState.COMPLETE)
    params = run(config, TrialState.COMPLETE)
    with pytest.raises(UsageError, match=r"^trial 1 \(COMPLETE\)"):
        enqueue(config, params)
    with pytest.raises(UsageError, match=r"^trial 1 \(COMPLETE\)"):
        enqueue(config, {}, like="1")


def test_a_full_study_says_when_it_gets_its_turn(mmsearch: Run, config: StudyConfig) -> None:
    for _ in range(4):
        run(config, TrialState.COMPLETE)
    run(config, TrialState.FAIL)
    assert enqueue(config, {"optimizer.lr": 2e-3}).needs is None  # the fifth of six
    run(config, TrialState.RUNNING)
    assert enqueue(config, {"optimizer.lr": 4e-3}).needs is None
    assert enqueue(config, {"optimizer.lr": 5e-3}).needs == 7
    done = mmsearch("enqueue", "optimizer.lr=6e-3")
    assert done.stderr.endswith("this one runs when there are more: mmsearch launch --trials 8\n")


def test_a_study_file_that_was_edited_is_not_what_the_workers_have(config: StudyConfig, workspace: Path) -> None:
    file = workspace / "studies" / "digits.toml"
    for old, new, values, what in (
        ("high = 1e-2", "high = 1e-1", {"optimizer.lr": 0.05}, '"optimizer.lr" from 0.001 to 0.01, not 0.05'),
        ('"batch_size" = 32', '"batch_size" = [32, 64]', {"batch_size": 64}, '"batch_size" = 32, not 64'),
        ('"mlp", "cnn"]', '"mlp", "cnn", "vit"]', {"image.encoder": "vit"}, '= "mlp" or "cnn", not "vit"'),
    ):
        file.write_text(TINY.replace(old, new))
        with pytest.raises(StudyMismatch, match="its file has changed since the last launch") as caught:
            enqueue(load_config(file), values)
        assert what in str(caught.value)
    file.write_text(TINY.replace("high = 1e-2", "high = 1e-1"))
    enqueue(load_config(file), {"optimizer.lr": 5e-3})  # as they have it
    file.write_text(TINY.replace('"image.encoder" = ["mlp", "cnn"]', '"image.encoder" = "mlp"'))
    enqueue(load_config(file), {"optimizer.lr": 5e-3})
    assert trials(config)[2].system_attrs["fixed_params"]["image.encoder"] == "mlp"
    assert len(trials(config)) == 3


def test_a_point_of_a_grid_is_tried_once(mmsearch: Run, workspace: Path, config: StudyConfig) -> None:
    grid = begin(workspace, GRID.replace("trials = 6", "trials = 8"), study__name="grid")
    text = (workspace / "studies" / "digits.toml").read_text()
    (workspace / "studies" / "digits.toml").write_text(text.replace("[study]", '[study]\nname = "grid"'))
    said = mmsearch("enqueue", "optimizer.lr=1e-3", "--again", code=2).stderr
    assert said == "mmsearch: trial 0 (WAITING) has this point of the grid, which is tried once\n"
    with pytest.raises(UsageError, match=r"0 to 0\.3 in steps of 0\.1"):
        enqueue(grid, {"head.dropout": 0.15})
    assert enqueue(grid, {"head.dropout": 0.1}).number == 1
    points = set()
    with open_study(grid) as opened:
        opened.storage.slots = 8
        for _ in range(4):
            trial = opened.optuna.ask()
            suggest(grid.dimensions, trial)
            opened.optuna.tell(trial, state=TrialState.FAIL)
            points.add(tuple(trial.params.values()))
        taken = trial.params
        with pytest.raises(UsageError, match=r"trial 3 \(FAIL\) has this point"):
            enqueue(grid, taken)
        opened.optuna.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, system_attrs={SLOT: 7}))
        for _ in range(4):
            trial = opened.optuna.ask()
            suggest(grid.dimensions, trial)
            points.add(tuple(trial.params.values()))
    assert len(points) == 8
    (workspace / "studies" / "digits.toml").write_text(GRID.replace("[1e-3, 3e-3]", "[1e-3, 3e-3, 5e-3]"))
    with pytest.raises(StudyMismatch, match="on another grid"):
        enqueue(load_config(workspace / "studies" / "digits.toml", {"study.name": "grid"}), {"head.dropout": 0.2})


def test_one_of_many_gets_a_point_of_a_grid(storage_url: str) -> None:
    storage = open_storage(storage_url.replace("postgresql://", "postgresql+psycopg://"), create=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="s", storage=storage)
    study_id = storage.get_study_id_from_name("s")
    storage.slots = 3
    numbers: list[int | None] = []
    barrier = threading.Barrier(6)

    def queue() -> None:
        barrier.wait()
        numbers.append(storage.enqueue(study_id, {"fixed_params": {}, SLOT: 1}))

    threads = [threading.Thread(target=queue) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [number for number in numbers if number is not None] == [0]
    assert len(numbers) == 6
    slots = [storage.get_trial(study.ask()._trial_id).system_attrs[SLOT] for _ in range(3)]
    assert slots == [1, 0, 2]
    storage.engine.dispose()


SPACE = """
[space]
"optimizer.lr" = { low = 1e-3, high = 1e-2, log = true }
"head.dropout" = { low = 0.0, high = 0.6, step = 0.1 }
"optimizer.name" = ["sgd", "adamw"]
"optimizer.sgd.nesterov" = [true, false]
"image.encoder" = ["mlp", "cnn"]
"image.mlp.depth" = { low = 1, high = 3 }
"image.mlp.units_2" = [16, 32]
"image.cnn.filters_1" = { low = 8, high = 64, step = 8 }
"""


def test_any_configuration_of_the_space_can_be_queued_and_is_what_is_trained(
    workspace: Path, config: StudyConfig
) -> None:
    wide = begin(workspace, SPACE, study__name="wide")
    run(wide, TrialState.COMPLETE)
    random = np.random.default_rng(0)
    for number in range(1, 13):
        wanted = wide.dimensions.walk(lambda name, dimension: at(dimension, random.random()))
        texts = [
            f"{name}={value!r}".replace("True", "true") for name, value in varying(wide.dimensions, wanted).items()
        ]
        queued = package.enqueue(wide, parse_assignments(text.replace("False", "false") for text in texts))
        assert (queued.number, queued.configuration) == (number, wanted)
        assert run(wide, TrialState.COMPLETE) == varying(wide.dimensions, wanted)


@given(st.data())
def test_a_value_is_read_as_a_study_file_writes_it(data: st.DataObject) -> None:
    parameter = TABLE[data.draw(st.sampled_from(list(TABLE)))]
    if parameter.options:
        value = data.draw(st.sampled_from(parameter.options))
    elif parameter.kind is int:
        value = data.draw(st.integers(int(parameter.low), int(parameter.high)))
    else:
        value = float(f"{data.draw(st.floats(parameter.low, parameter.high)):g}")
    for written in (show(value), show(value).strip('"'), f" {show(value)} "):
        read = parse_assignments([f"{parameter.name}={written}"])
        assert {name: parameter.check(held) for name, held in read.items()} == {parameter.name: value}


LONG = TINY.replace("rows = 400", "rows = 2000").replace(
    "max_epochs = 3", "max_epochs = 12\npatience = 12\npruner = 'none'"
)


@pytest.mark.slow
def test_a_search_that_runs_takes_it_next(mmsearch: Run, start: Start, workspace: Path, storage_url: str) -> None:
    (workspace / "studies" / "digits.toml").write_text(LONG)
    env = {"MMSEARCH_STORAGE": storage_url}
    launcher = start("launch", "--trials", 14, "--workers", 2, env=env)  # enough of them to be there in time
    config = load_config(workspace / "studies" / "digits.toml", {"study.storage": storage_url})
    deadline = time.monotonic() + 120
    while not has_running(config):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    done = mmsearch("enqueue", "optimizer.lr=0.00765", env=env)
    number = int(done.stdout)
    assert "--trials" not in done.stderr
    _, said = launcher.communicate(timeout=240)
    assert launcher.returncode == 0, said
    rows = list(csv.DictReader(io.StringIO(mmsearch("export", env=env).stdout)))
    assert [row["state"] in ("COMPLETE", "PRUNED") for row in rows] == [True] * 14
    assert rows[number]["optimizer.lr"] == "0.00765"


def has_running(config: StudyConfig) -> bool:
    try:
        return any(trial.state == TrialState.RUNNING for trial in trials(config))
    except StorageError:  # not made yet
        return False
