"""A trial that is interrupted goes on from its checkpoint, here or elsewhere, as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

import optuna
import pytest
import torch
from conftest import TINY, Run
from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.sources import load_dataset
from mmsearch.errors import StorageLost
from mmsearch.search.objective import Objective, Stopped
from mmsearch.search.storage import Storage
from mmsearch.search.study import OpenStudy, create_study, open_study
from mmsearch.search.worker import Stop, run_trial
from mmsearch.training.augmentation import Augmentation
from mmsearch.training.batches import Batch
from mmsearch.training.checkpoints import load_checkpoint, save_checkpoint
from mmsearch.training.fit import EpochResult

CPU = torch.device("cpu")

# One trial with all that keeps something between its epochs; it learns slowly, so that patience never ends it.
HOLDOUT = """
[study]
trials = 1
[data]
rows = 200
[search]
max_epochs = 4
patience = 99
pruner = "none"
checkpoint_every = 0.001
max_retries = 3
[space]
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true, default = 5e-4 }
"batch_size" = 32
"ema.decay" = 0.9
"augment.mixup" = 0.3
"augment.image.rotation" = 10.0
"image.encoder" = "cnn"
"image.cnn.depth" = 2
"image.cnn.filters_1" = 4
"image.cnn.filters_2" = 8
"image.cnn.dropout" = 0.2
"image.cnn.dropout_kind" = "spatial"
"audio.encoder" = "mlp"
"audio.mlp.depth" = 1
"audio.mlp.units_1" = 32
"""
FOLDS = HOLDOUT.replace("[data]", '[data]\nvalidation = "kfold"\nfolds = 3').replace("epochs = 4", "epochs = 2")
TWO = HOLDOUT.replace("[study]", '[study]\nmetrics = ["accuracy", "parameters"]\nconstraints = ["loss <= 9"]')
STUDIES = {
    "holdout": HOLDOUT,
    "folds": FOLDS,
    "two metrics": TWO,
    "hyperband": HOLDOUT.replace('"none"', '"hyperband"'),
}
# The same, long enough to be killed in the middle.
LONG = HOLDOUT.replace("rows = 200", "rows = 400").replace("epochs = 4", "epochs = 40")
LONG_FOLDS = FOLDS.replace("rows = 200", "rows = 400").replace("epochs = 2", "epochs = 14")

Numbers = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., StudyConfig]:
    """A study file's config; each in a folder, and so a storage, of its own."""

    def make(text: str, name: str = "one") -> StudyConfig:
        folder = tmp_path / name / "studies"
        folder.mkdir(parents=True)
        (folder / "made.toml").write_text(text)
        return load_config(folder / "made.toml")

    return make


def history(config: StudyConfig, number: int) -> Numbers:
    """The epochs of a trial's last attempt, without what is never the same twice."""
    rows = [json.loads(line) for line in config.paths.epochs(number).read_text().splitlines()]
    last = [row for row in rows if row["attempt"] == rows[-1]["attempt"]]
    return [{key: value for key, value in row.items() if key not in ("attempt", "seconds")} for row in last]


def studied(config: StudyConfig) -> OpenStudy:
    return create_study(config, load_dataset(config).fingerprint)[0]


def undisturbed(config: StudyConfig) -> tuple[FrozenTrial, Numbers]:
    """What becomes of the first trial that nobody interrupts."""
    with studied(config) as opened:
        trial = opened.optuna.ask()
        opened.optuna.tell(trial, Objective(config, load_dataset(config), CPU)(trial))
        return opened.trials()[0], history(config, 0)


def disturb() -> None:
    """What another process would have done with the random numbers of this one."""
    torch.manual_seed(random.SystemRandom().getrandbits(32))
    torch.rand(7)


def same(trial: FrozenTrial, expected: FrozenTrial) -> None:
    assert trial.state == expected.state == TrialState.COMPLETE
    assert trial.values == expected.values
    assert trial.params == expected.params
    assert trial.intermediate_values == expected.intermediate_values
    assert trial.constraints == expected.constraints
    for name in ("epochs", "best_epoch", "parameters", "metrics", "violated"):
        assert trial.user_attrs.get(name) == expected.user_attrs.get(name)


@pytest.mark.parametrize(
    ("kind", "after"), [*((kind, after) for kind in STUDIES for after in (1, 3)), ("folds", 2), ("folds", 5)]
)
def test_a_trial_that_is_handed_back_goes_on(kind: str, after: int, configured: Callable[..., StudyConfig]) -> None:
    expected, epochs = undisturbed(configured(STUDIES[kind], "undisturbed"))
    config = configured(STUDIES[kind])
    dataset, seen, notes = load_dataset(config), [0], [""]

    def count(number: int, fold: int, result: EpochResult, value: float) -> None:
        seen[0] += 1

    with studied(config) as opened:
        made = Objective(config, dataset, CPU, on_epoch=count, should_stop=lambda: seen[0] == after)
        trial = opened.optuna.ask()
        with pytest.raises(Stopped):
            made(trial)
        assert opened.storage.hand_back(trial._trial_id)
        assert config.paths.checkpoint(0).is_file()
        disturb()
        made = Objective(config, dataset, CPU, on_epoch=count, on_note=notes.append)
        again = opened.optuna.ask()
        assert again.number == 0
        opened.optuna.tell(again, made(again))
        made.forget()
        assert seen[0] == len(epochs)  # none of them twice
        assert "trial 0 goes on after epoch " in notes[-1]
        same(opened.trials()[0], expected)
    assert history(config, 0) == epochs
    assert not config.paths.checkpoint(0).exists()


def interrupted(config: StudyConfig, opened: OpenStudy, after: int = 2) -> None:
    """Leave trial 0 waiting, with a checkpoint after an epoch."""
    seen: list[int] = []
    made = Objective(
        config,
        load_dataset(config),
        CPU,
        on_epoch=lambda number, fold, result, value: seen.append(result.epoch),
        should_stop=lambda: seen[-1] == after,
    )
    trial = opened.optuna.ask()
    with pytest.raises(Stopped):
        made(trial)
    assert opened.storage.hand_back(trial._trial_id)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def other(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        held = load_checkpoint(path)
        save_checkpoint(path, {**held, "belongs": {**held["belongs"], **changes}})

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (damage, r"begins anew: .*checkpoint\.pt: the checkpoint is damaged"),
        (other(parameters={"batch_size": 3}), r"checkpoint\.pt: the checkpoint is of other parameters$"),
        (other(seed=1, data="?"), "the checkpoint is of other seed and data$"),
        (other(code="?"), "the checkpoint is of other code$"),
        (other(torch="0.1"), "the checkpoint is of other torch$"),
    ],
    ids=["damaged", "parameters", "seed and data", "code", "torch"],
)
def test_a_checkpoint_of_no_use_is_named_and_the_trial_begins_anew(
    change: Callable[[Path], None], words: str, configured: Callable[..., StudyConfig]
) -> None:
    expected, epochs = undisturbed(configured(STUDIES["holdout"], "undisturbed"))
    config = configured(STUDIES["holdout"])
    notes: list[str] = []
    with studied(config) as opened:
        interrupted(config, opened)
        change(config.paths.checkpoint(0))
        trial = opened.optuna.ask()
        opened.optuna.tell(trial, Objective(config, load_dataset(config), CPU, on_note=notes.append)(trial))
        same(opened.trials()[0], expected)
    assert re.search(words, notes[0])
    assert len(notes) == 1
    assert history(config, 0) == epochs


class Asked(optuna.pruners.BasePruner):
    """Notes the steps that it is asked about, and prunes from a step on."""

    def __init__(self, since: int) -> None:
        self.since, self.steps = since, list[int]()

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        assert trial.last_step is not None
        self.steps.append(trial.last_step)
        return trial.last_step >= self.since


@pytest.mark.parametrize(("since", "asked"), [(99, [1, 2, 3]), (3, [1, 2, 3]), (1, [1, 2])])
def test_a_pruner_is_asked_about_what_is_told_again_and_only_its_last_word_counts(
    since: int, asked: list[int], configured: Callable[..., StudyConfig]
) -> None:
    config = configured(STUDIES["holdout"].replace('"none"', '"none"\npruner_warmup = 0'))
    with studied(config) as opened:
        defaults = opened.optuna.ask()  # is never pruned
        opened.storage.fail(defaults._trial_id, "of no interest", 0)
        interrupted_number = 1
        seen: list[int] = []
        made = Objective(
            config,
            load_dataset(config),
            CPU,
            on_epoch=lambda number, fold, result, value: seen.append(result.epoch),
            should_stop=lambda: seen == [1, 2],
        )
        trial = opened.optuna.ask()
        assert trial.number == interrupted_number
        with pytest.raises(Stopped):
            made(trial)
        assert opened.storage.hand_back(trial._trial_id)
        opened.optuna.pruner = pruner = Asked(since)
        again = opened.optuna.ask()
        assert again.number == interrupted_number
        if since > 4:
            made(again)
            assert seen == [1, 2, 3, 4]
        else:
            with pytest.raises(optuna.TrialPruned, match=f"after step {asked[-1]}"):
                made(again)
        assert pruner.steps == asked
        assert list(opened.trials()[1].intermediate_values) == list(range(1, max(seen) + 1))


def test_a_line_that_was_cut_short_is_ended_before_another_is_added(configured: Callable[..., StudyConfig]) -> None:
    config = configured(STUDIES["holdout"])
    with studied(config) as opened:
        interrupted(config, opened)
        path = config.paths.epochs(0)
        path.write_text(path.read_text()[:-20])
        trial = opened.optuna.ask()
        Objective(config, load_dataset(config), CPU)(trial)
    lines = path.read_text().splitlines()
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[1])
    assert [json.loads(line)["epoch"] for line in lines[2:]] == [1, 2, 3, 4]


def test_a_lost_storage_leaves_a_checkpoint(
    configured: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where none was due; what happens when it stays away, for a whole search, is tested with real databases."""
    expected, epochs = undisturbed(configured(STUDIES["holdout"], "undisturbed"))
    config = configured(STUDIES["holdout"].replace("checkpoint_every = 0.001", "checkpoint_every = 1000"))
    report, told = optuna.Trial.report, []

    def lost(trial: optuna.Trial, value: float, step: int) -> None:
        if step == 3:
            raise StorageLost("away")
        report(trial, value, step)

    with studied(config) as opened:
        trial = opened.optuna.ask()
        made = Objective(config, load_dataset(config), CPU)
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Trial, "report", lost)
            with pytest.raises(StorageLost):
                run_trial(opened, made, trial, lambda event, **fields: told.append(event), Stop())
        assert told == ["started"]
        assert len(load_checkpoint(config.paths.checkpoint(0))["training"]["history"][0]) == 3
        was_running, retry = opened.storage.fail(trial._trial_id, "its worker ended", 1)
        assert was_running
        again = opened.optuna.ask()
        assert again.number == retry == 1
        run_trial(
            opened,
            Objective(config, load_dataset(config), CPU),
            again,
            lambda event, **fields: told.append(event),
            Stop(),
        )
        assert told == ["started", "started", "finished"]
        same(opened.trials()[1], expected)
    assert history(config, 1) == epochs
    assert not config.paths.checkpoint(0).exists()  # a retry's is that of the first attempt
    assert not config.paths.checkpoint(1).exists()


def children(process: Popen[str]) -> list[int]:
    """The processes that it started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for(what: Callable[[], Any], process: Popen[str] | None = None) -> Any:
    for _ in range(1200):
        if found := what():
            return found
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("nothing came of it within a minute")


def epochs_of(config: StudyConfig, number: int) -> list[Any]:
    path = config.paths.epochs(number)
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in lines if line.endswith("}")]


def all_at_rest(config: StudyConfig) -> None:
    """No checkpoint is left, nor part of one."""
    left = [path for path in config.paths.folder.rglob("*") if "checkpoint" in path.name]
    assert left == []


@pytest.fixture
def one_core() -> Iterator[None]:
    """Of what this process starts, workers have one thread, as the tests themselves do."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize("text", [LONG, LONG_FOLDS], ids=["holdout", "folds"])
def test_a_killed_workers_trial_is_retried_from_its_checkpoint(
    text: str, start: Callable[..., Popen[str]], workspace: Path, configured: Callable[..., StudyConfig]
) -> None:
    study = workspace / "studies" / "digits.toml"
    study.write_text(text)
    expected, epochs = undisturbed(configured(text, "undisturbed"))
    config = load_config(study)
    search = start("launch", "--workers", 1)
    for number, reached in ((0, 3), (1, 20)):
        wait_for(lambda: len(epochs_of(config, number)) >= reached, search)  # noqa: B023
        (worker,) = children(search)
        os.kill(worker, signal.SIGKILL)
    said = search.communicate(timeout=120)[1]
    assert search.returncode == 0, said
    for number in (1, 2):
        assert re.search(rf"trial {number} goes on after epoch \d+", said), said
    with open_study(config) as opened:
        states = [trial.state for trial in opened.trials()]
        assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.COMPLETE]
        same(opened.trials()[2], expected)
        assert opened.trials()[2].user_attrs["run"] == expected.user_attrs["run"]
    assert history(config, 2) == epochs
    attempts = [{json.loads(line)["attempt"] for line in epochs_of(config, number)} for number in (0, 1, 2)]
    assert [len(held) for held in attempts] == [1, 1, 1]
    all_at_rest(config)


@pytest.mark.slow
@pytest.mark.usefixtures("one_core")
def test_a_search_that_is_stopped_goes_on_within_its_trial(
    mmsearch: Run, start: Callable[..., Popen[str]], workspace: Path, configured: Callable[..., StudyConfig]
) -> None:
    study = workspace / "studies" / "digits.toml"
    study.write_text(LONG.replace("checkpoint_every = 0.001\n", ""))
    expected, epochs = undisturbed(configured(LONG, "undisturbed"))
    config = load_config(study)
    search = start("launch", "--workers", 1)
    wait_for(lambda: len(epochs_of(config, 0)) >= 4, search)
    os.kill(search.pid, signal.SIGTERM)
    search.communicate(timeout=120)
    assert search.returncode == 143
    assert config.paths.checkpoint(0).is_file()
    before = len(epochs_of(config, 0))
    said = mmsearch("launch", "--workers", 1).stderr
    assert f"trial 0 goes on after epoch {before}, from its checkpoint" in said
    assert history(config, 0) == epochs
    with open_study(config) as opened:
        same(opened.trials()[0], expected)
        assert len(opened.trials()) == 1
    all_at_rest(config)


def test_a_finished_search_leaves_no_checkpoint(mmsearch: Run, workspace: Path) -> None:
    text = TINY.replace("[search]", "[search]\ncheckpoint_every = 0.001")
    (workspace / "studies" / "digits.toml").write_text(text)
    mmsearch("launch", "--trials", 3, "--workers", 2)
    all_at_rest(load_config(workspace / "studies" / "digits.toml"))


def test_an_epoch_that_broke_off_is_no_checkpoint(
    configured: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory ends in mid-epoch, and then the storage is away: what was saved before that epoch stays."""
    expected, epochs = undisturbed(configured(STUDIES["holdout"], "undisturbed"))
    config = configured(STUDIES["holdout"])
    steps = 0

    def fail(*arguments: object, **named: object) -> None:
        raise StorageLost("away")

    with studied(config) as opened:
        trial = opened.optuna.ask()
        made = Objective(config, load_dataset(config), CPU)
        with monkeypatch.context() as patch:
            augment = Augmentation.__call__

            def breaks(self: Augmentation, batch: Batch) -> object:
                nonlocal steps
                if len(made._attempt.training.results[0]) == 2 if made._attempt else False:
                    steps += 1
                    if steps == 3:
                        raise MemoryError
                return augment(self, batch)

            patch.setattr(Augmentation, "__call__", breaks)
            patch.setattr(Storage, "prune", fail)
            with pytest.raises(StorageLost):
                run_trial(opened, made, trial, lambda event, **fields: None, Stop())
        assert steps == 3
        assert opened.storage.hand_back(trial._trial_id)
        again = opened.optuna.ask()
        run_trial(opened, Objective(config, load_dataset(config), CPU), again, lambda event, **fields: None, Stop())
        same(opened.trials()[0], expected)
    assert history(config, 0) == epochs
