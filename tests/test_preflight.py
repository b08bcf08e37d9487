"""`mmsearch preflight` foretells a search, leaves nothing behind, and says when it will not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import TINY, Run, Start
from optuna.trial import TrialState, create_trial
from test_data import zenodo

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.dataset import Shapes
from mmsearch.data.features import feature_shapes
from mmsearch.data.sources import load_dataset, read_dataset
from mmsearch.errors import MmsearchError, NoStudy, StorageError
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.factory import build_model
from mmsearch.search import crew, forecast, launcher, opening, preflight
from mmsearch.search.costs import Cost, cost_of, extremes
from mmsearch.search.crew import Crew, Place
from mmsearch.search.forecast import Measured, Room, Work, epoch_seconds, foretell, trial_seconds
from mmsearch.search.forecast_forms import as_text
from mmsearch.search.launcher import foresee, launch
from mmsearch.search.preflight import draw, features_of, least_share, look_ahead, share_of_epochs
from mmsearch.search.progress import Progress
from mmsearch.search.room import PeakMemory, available_memory, free_disk

SHAPES = Shapes((1, 28, 28), (39, 13), 10)
GB = 10**9
ONE = TINY.replace('["mlp", "cnn"]', '"mlp"').replace(
    "[16, 32]", "16"
)  # but for the learning rate, which costs nothing
ROOM = Room(cores=4, memory=8 * GB, disk=50 * GB)
TRIAL = Measured(parameters=1000, train_s=0.01, valid_s=0.005, checkpoint=10**6, steps=9, memory=10**9)
# 1,000 and 200 rows: an epoch of TRIAL takes 11 s, a trial 110 s.
WORK = Work(
    workers=2, threads=1, devices=1, left=10, total=12, folds=1, epochs=10, rows=(1000, 200), least=0.3,
    log=100, shown=(100, 5000),
)  # fmt: skip


def configure(folder: Path, text: str = TINY, **overrides: object) -> StudyConfig:
    path = folder / "studies" / "digits.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})


def change(work: Work, **changed: Any) -> Work:
    return dataclasses.replace(work, **changed)


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# The command.


class Heard(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.lines.append(text)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else runs on this machine, 8 GB of its memory are free."""
    monkeypatch.setattr(preflight, "available_memory", lambda: 8 * GB)


def test_it_foretells_and_leaves_nothing_behind(workspace: Path, roomy: None) -> None:
    before = everything(workspace)
    looked = foresee(load_config(workspace / "studies" / "digits.toml"), workers=1, seconds=0)
    assert everything(workspace) == before
    found = json.loads(looked.as_json())
    assert found["fits"] is True
    assert found["trials"] == {"left": 6, "total": 6, "finished_share_of_epochs": None}
    assert found["draws"] >= 6
    named = found["configurations"]
    assert next(iter(named)) == "defaults"
    assert {part for name in named for part in name.split(", ")} == {
        "defaults", "most parameters", "slowest", "most memory", "quickest",
    }  # fmt: skip
    parameters = {part: held["parameters"] for name, held in named.items() for part in name.split(", ")}
    assert parameters["most parameters"] == max(parameters.values())
    params = {part: held["params"] for name, held in named.items() for part in name.split(", ")}
    assert params["defaults"] == {}
    assert params["quickest"] == {"image.encoder": "mlp", "image.mlp.units_1": 16}
    assert all(held["steps"] >= 2 and held["train_s"] > 0 and held["valid_s"] > 0 for held in named.values())
    # torch alone takes 100 MB, and nothing of this study takes a GB
    assert 100e6 < found["memory"]["worker"] < 1e9
    assert found["memory"]["all"] == found["memory"]["worker"]
    assert found["memory"]["available"] == 8 * GB
    seconds = found["seconds"]
    assert 0 < seconds["most"]["low"] <= seconds["most"]["middle"] <= seconds["most"]["high"]
    assert seconds["least"]["middle"] <= seconds["most"]["middle"]
    assert seconds["expected"] is None
    assert 20_000 < found["disk"]["all"] < 10e6


@pytest.mark.slow
def test_a_launch_ends_before_there_is_a_study_where_it_will_not_fit(mmsearch: Run, workspace: Path) -> None:
    (workspace / "studies" / "digits.toml").write_text(ONE)
    before = everything(workspace)
    done = mmsearch("launch", "--preflight", "--workers", 1, "--timeout", "0.01", code=1)
    assert everything(workspace) == before
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("mmsearch: the search will not fit: ")
    assert "fits      no" in done.stderr
    assert "timeout: 6 trials of as few epochs as they need" in done.stderr
    assert "a few steps each, for about 6 s" in done.stderr  # one for each trial


@pytest.mark.slow
def test_a_launch_goes_on_where_it_fits_and_what_is_finished_counts(
    mmsearch: Run, workspace: Path, roomy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "studies" / "digits.toml").write_text(ONE)
    monkeypatch.setattr(preflight, "cores", lambda: 1)
    monkeypatch.setattr(opening, "cores", lambda: 1)
    heard = Heard()
    config = load_config(workspace / "studies" / "digits.toml", {"study.trials": 2})
    done = launch(config, workers=2, progress=heard, preflight=True)
    assert "fits      yes" in heard.lines
    assert sum("2 workers on 1 core will wait for each other" in line for line in heard.lines) == 1
    assert (done.counts.finished, done.total) == (2, 2)
    again = mmsearch("preflight", "--trials", 2)
    assert "trials    0 left of 2" in again.stdout
    assert "time      nothing is left to do" in again.stdout
    assert again.stdout.splitlines()[-1] == "fits      yes"


def test_a_launch_that_was_to_look_first_is_to_do_so_when_it_goes_on(start: Start, workspace: Path) -> None:
    launching = start("launch", "--preflight", "--workers", 1)
    assert launching.stderr is not None
    while "preflight: some configurations run" not in launching.stderr.readline():
        assert launching.poll() is None
    launching.send_signal(signal.SIGINT)
    said = launching.communicate(timeout=60)[1]
    assert launching.returncode == 130
    assert said.rstrip().endswith("go on with: mmsearch launch --workers 1 --preflight")
    assert not (workspace / "storage").exists()


@pytest.mark.slow
def test_what_memory_ends_is_told_with_its_configuration(workspace: Path, roomy: None) -> None:
    """One of the choices asks for 13 GB at once, of which the process may have 6; the search would go on without."""
    text = TINY.replace('"image.cnn.filters_1" = 8', '"image.cnn.filters_1" = [8, 1024]')
    text = text.replace('"batch_size" = 32', '"batch_size" = [32, 4096]').replace("rows = 400", "")
    config = configure(workspace, text)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (6 * 2**30, hard))  # which the processes inherit
    try:
        found = foresee(config, workers=1, seconds=0)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    (held,) = [held for name, held in found.named.items() if "most memory" in name]
    assert held.kind == "memory"
    assert held.params["batch_size"] == 4096
    assert held.params["image.cnn.filters_1"] == 1024
    assert found.forecast.fits
    said = [line for line in found.as_text().splitlines() if "warning   memory: the configuration" in line]
    assert any("image.cnn.filters_1 = 1024" in line and "batch_size = 4096" in line for line in said)
    assert all("cannot be trained by a worker alone: the processor's memory is too small" in line for line in said)
    assert found.named["defaults"].refused is None


def test_another_study_of_that_name_is_refused_before_anything_runs(
    mmsearch: Run, searched: Path, workspace: Path
) -> None:
    shutil.copytree(searched / "storage", workspace / "storage", symlinks=True)
    done = mmsearch("preflight", "--seed", 5, code=2)
    assert "seed" in done.stderr
    assert "preflight:" not in done.stderr


@pytest.mark.parametrize("command", ["preflight", "launch"])
def test_a_storage_out_of_reach_ends_it_before_anything_is_read(
    command: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is no database, and a server that is not there, are no study that has yet to be made."""
    monkeypatch.setattr(launcher, "load_dataset", lambda config: pytest.fail("the data were read"))
    (workspace / "other.db").write_text("no database" * 100)
    look: Callable[[StudyConfig], object] = foresee if command == "preflight" else partial(launch, preflight=True)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for url in (f"sqlite:///{workspace / 'other.db'}", f"postgresql://nobody@127.0.0.1:{port}/none"):
            with pytest.raises(StorageError) as refused:
                look(configure(workspace, study__storage=url))
            assert not isinstance(refused.value, NoStudy)
            assert refused.value.exit_code == 4


def test_a_storage_out_of_reach_exits_4(mmsearch: Run) -> None:
    done = mmsearch("preflight", "--storage", "postgresql://nobody@127.0.0.1:1/none", code=4)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


# The forecast.


def test_trials_are_given_to_workers_as_they_become_free() -> None:
    """Ten trials of 110 s on two workers are five rounds, on three workers four."""
    took = trial_seconds(WORK, TRIAL, 1.0)
    assert took == pytest.approx(110, abs=1)
    for workers, rounds in ((1, 10), (2, 5), (3, 4), (20, 1)):
        span = foretell(change(WORK, workers=workers), ROOM, {}, [TRIAL] * 4).most
        assert (span.low, span.middle, span.high) == pytest.approx([rounds * took] * 3)


def test_hours_are_those_of_the_mean_and_not_of_the_slowest() -> None:
    slow = dataclasses.replace(TRIAL, train_s=0.1)
    span = foretell(change(WORK, left=1000, workers=1), ROOM, {"slowest": slow}, [TRIAL] * 9 + [slow]).most
    mean = (9 * trial_seconds(WORK, TRIAL, 1.0) + trial_seconds(WORK, slow, 1.0)) / 10
    assert span.low < 1000 * mean < span.high
    assert span.high < 1000 * trial_seconds(WORK, slow, 1.0) / 2


def test_guesses_make_up_for_draws_that_happened_to_be_quick() -> None:
    """Half of the space costs ten times as much as the other half; none of that was measured."""
    guesses = [1.0, 10.0] * 50
    span = foretell(change(WORK, left=400, workers=1, guesses=guesses, guessed=[1.0] * 5), ROOM, {}, [TRIAL] * 5).most
    assert span.low < 400 * 5.5 * trial_seconds(WORK, TRIAL, 1.0) < span.high


def test_what_constraints_leave_out_costs_next_to_nothing() -> None:
    refused = Measured(parameters=5, refused="parameters = 5 violates parameters <= 3", kind="constraint")
    work = change(WORK, left=400, workers=1, guesses=[1.0, None], guessed=[1.0, 1.0])
    found = foretell(work, ROOM, {}, [TRIAL, refused])
    assert found.most.low < 200 * trial_seconds(WORK, TRIAL, 1.0) < found.most.high
    assert found.fits
    assert "50% of the space violates the constraints, and would not be trained" in found.warnings


def test_a_space_in_which_nothing_would_be_trained_does_not_fit() -> None:
    refused = Measured(parameters=5, refused="parameters = 5 violates parameters <= 3", kind="constraint")
    found = foretell(change(WORK, guesses=[None], guessed=[1.0]), ROOM, {"defaults": refused}, [refused])
    assert found.problems == (
        "constraints: no model of the space would be trained: parameters = 5 violates parameters <= 3",
    )


def test_finished_trials_say_how_many_epochs_a_trial_has() -> None:
    found = foretell(change(WORK, share=0.5, learned=7, workers=1), ROOM, {}, [TRIAL] * 4)
    assert found.expected is not None
    assert found.expected.middle == pytest.approx(found.most.middle / 2, rel=0.02)
    text = as_text(found, change(WORK, share=0.5, learned=7), ROOM, {"defaults": TRIAL})
    assert "if they train 50% of them, as the 7 finished ones did" in text


def test_folds_multiply() -> None:
    assert trial_seconds(change(WORK, folds=3), TRIAL, 1.0) == pytest.approx(3 * 110, abs=1)
    assert epoch_seconds(WORK, TRIAL) == pytest.approx(11)


@pytest.mark.parametrize(
    ("memory", "word"),
    [(int(1.5 * GB), "--workers 1 would fit"), (GB // 2, "not even one worker fits: make the space smaller")],
)
def test_too_little_memory_does_not_fit(memory: int, word: str) -> None:
    found = foretell(WORK, dataclasses.replace(ROOM, memory=memory), {"slowest": TRIAL}, [TRIAL])
    (problem,) = found.problems
    assert problem.startswith("memory: 2 workers may need 2.0 GB, and ")
    assert problem.endswith(word)
    assert not found.fits


def test_the_launcher_has_its_memory_already() -> None:
    """What is available was read beside it: all of that is for its workers."""
    assert foretell(WORK, dataclasses.replace(ROOM, memory=2 * GB), {}, [TRIAL]).fits
    assert not foretell(WORK, dataclasses.replace(ROOM, memory=2 * GB - 1), {}, [TRIAL]).fits


def test_memory_of_a_gpu_is_shared_by_its_workers() -> None:
    held = dataclasses.replace(TRIAL, gpu_memory=3 * GB)
    room = dataclasses.replace(ROOM, gpu=5 * GB, memory=None)
    assert foretell(change(WORK, workers=4, devices=4), room, {}, [held]).fits
    (problem,) = foretell(change(WORK, workers=4, devices=2), room, {}, [held]).problems
    assert problem.startswith("GPU memory: 2 workers on a GPU may need 6.0 GB, and 5.0 GB are free")


def test_too_little_disk_does_not_fit() -> None:
    """A trial leaves a folder, a log, and each shown file twice, in whole blocks; of checkpoints there may be two."""
    found = foretell(WORK, dataclasses.replace(ROOM, disk=10**6), {}, [TRIAL])
    assert found.trial_bytes == 10 * (4096 + 4096 + 2 * (4096 + 8192))
    assert found.checkpoints == 2 * 2 * 245 * 4096
    assert found.problems[0].startswith("disk: the search may need 4.")
    assert foretell(change(WORK, embedded=False), ROOM, {}, [TRIAL]).database == 0


def test_a_timeout_that_may_suffice_is_a_warning_and_one_that_cannot_does_not_fit() -> None:
    """All epochs take 550 s; as few as trials need before they can end take 165 s."""
    assert foretell(change(WORK, timeout=600.0), ROOM, {}, [TRIAL]).warnings == ()
    may = foretell(change(WORK, timeout=300.0), ROOM, {}, [TRIAL])
    assert may.fits
    assert may.warnings == ("timeout: the trials that are left may take 9 min, and timeout is 5 min",)
    cannot = foretell(change(WORK, timeout=100.0), ROOM, {}, [TRIAL])
    assert cannot.problems[0].startswith("timeout: 10 trials of as few epochs as they need before they can end early")
    assert cannot.warnings == ()
    learned = foretell(change(WORK, timeout=300.0, share=0.9), ROOM, {}, [TRIAL])
    assert learned.problems[0].startswith("timeout: 10 trials of as few epochs as the finished ones had take")


def broken(kind: str, **params: Any) -> Measured:
    return Measured(refused=f"{kind} of this", kind=kind, memory=GB, params=params)


def test_trials_that_would_fail_are_told() -> None:
    named = {"slowest": TRIAL, "a": broken("failure", batch_size=64)}
    found = foretell(change(WORK, epoch_timeout=10.0, trial_timeout=60.0, workers=9), ROOM, named, [TRIAL])
    assert found.warnings == (
        "9 workers on 4 cores will wait for each other; --workers 4 is faster",
        "the configuration a (batch_size = 64) fails: failure of this",
        "an epoch may take 11 s, and fails after 10 s (epoch_timeout)",
        "a trial may take 2 min, and fails after 60 s (trial_timeout)",
    )


def test_draws_that_would_not_be_trained_are_counted() -> None:
    failing = broken("failure", batch_size=64, **{"image.encoder": "cnn"})
    found = foretell(WORK, ROOM, {"defaults": TRIAL}, [TRIAL] * 3 + [failing, broken("memory"), broken("failure")])
    assert found.fits
    assert found.warnings == (
        '2 of 6 draws fail, such as batch_size = 64, image.encoder = "cnn": failure of this',
        "memory: 1 of 6 draws cannot be trained by a worker alone, such as the defaults: memory of this; the search "
        "prunes such trials",
    )


def test_an_extreme_that_memory_ends_is_a_warning_and_the_defaults_are_a_problem() -> None:
    greedy = broken("memory", batch_size=4096)
    found = foretell(WORK, ROOM, {"defaults": TRIAL, "most memory": greedy}, [TRIAL])
    assert found.fits
    assert found.warnings == (
        "memory: the configuration most memory (batch_size = 4096) cannot be trained by a worker alone: memory of "
        "this; the search prunes such trials",
    )
    found = foretell(WORK, ROOM, {"defaults": broken("memory"), "most memory": TRIAL}, [TRIAL])
    assert found.problems == ("memory: the defaults cannot be trained by a worker alone: memory of this",)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("kinds", "problem"),
    [
        (("failure", "memory", "constraint"), "no configuration could be trained: failure of this"),
        (("constraint", "memory"), "memory: no configuration can be trained by a worker alone: memory of this"),
        (("constraint",), "constraints: no model of the space would be trained: constraint of this"),
    ],
)
def test_a_space_of_which_nothing_that_was_tried_is_trained_does_not_fit(kinds: tuple[str, ...], problem: str) -> None:
    tried = [broken(kind) for kind in kinds]
    found = foretell(WORK, ROOM, {"defaults": tried[-1]}, tried)
    assert found.problems == (problem,)
    assert found.warnings == ()


@pytest.mark.parametrize(("left", "times"), [(10, 300), (20_000, 50), (100_000, 20)])
def test_the_longer_a_search_the_fewer_times_it_is_simulated(
    left: int, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated: list[int] = []

    def at_once(seconds: Any, workers: int) -> float:
        simulated.append(len(seconds))
        return float(len(seconds))

    monkeypatch.setattr(forecast, "_until_all_are_done", at_once)
    foretell(change(WORK, left=left), ROOM, {}, [TRIAL])
    assert simulated == [left] * times * 2  # with as many epochs as there can be, and as few


def test_nothing_left_takes_nothing() -> None:
    found = foretell(change(WORK, left=0, timeout=1.0), dataclasses.replace(ROOM, memory=1), {}, [TRIAL])
    assert (found.most.high, found.disk, found.problems) == (0.0, 0, ())


# What is tried.


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"audio.encoder": "rnn", "audio.rnn.depth": 2},
        {"image.encoder": "vit", "audio.encoder": "transformer", "fusion.name": "attention"},
        {"image.encoder": "resnet", "audio.encoder": "conv2d", "fusion.name": "lstm"},
        {"image.encoder": "mlp", "audio.encoder": "mlp", "fusion.name": "late", "batch_size": 8192},
    ],
)
def test_a_cost_is_told_without_computing(given: Mapping[str, Any], tmp_path: Path) -> None:
    values = {
        f'"{name}"': [value, *([] if isinstance(value, int) else ["concat" if "fusion" in name else "mlp"])]
        for name, value in given.items()
    }
    space = configure(
        tmp_path,
        "[space]\n" + "\n".join(f"{name} = {json.dumps(list(dict.fromkeys(v)))}" for name, v in values.items()),
    ).dimensions
    made = space.configuration({name: value for name, value in given.items() if value != space[name]})
    made = Hyperparameters({**space.configuration({}), **made})
    cost = cost_of(made, SHAPES, (4000, 1000))
    assert cost.parameters == build_model(made, SHAPES).parameter_count()
    assert cost.seconds > 0
    assert cost.memory > 8 * cost.parameters
    assert cost_of(made, SHAPES, (8000, 2000)).seconds == pytest.approx(2 * cost.seconds, rel=0.05) or given.get(
        "batch_size"
    )


def test_extremes_lie_in_the_branches_that_have_them(tmp_path: Path) -> None:
    """The costliest image encoder has few parameters, and one whose patches are small is the slower."""
    space = configure(
        tmp_path,
        '[space]\n"image.encoder" = ["mlp", "vit"]\n"image.vit.patch" = [2, 7, 14]\n"image.vit.units" = [16, 64]\n'
        '"image.mlp.units_1" = { low = 16, high = 1024 }\n"head.units" = { low = 8, high = 64, log = true }\n'
        '"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true, default = 2e-3 }\n"batch_size" = [32, 128]\n',
    ).dimensions
    found = extremes(space, lambda made: cost_of(made, SHAPES, (4000, 1000)))
    assert found["most parameters"]["image.mlp.units_1"] == 1024
    assert found["most parameters"]["head.units"] == 64
    assert found["slowest"]["image.vit.patch"] == 2
    assert found["slowest"]["image.vit.units"] == 64
    assert found["slowest"]["batch_size"] == 32
    assert found["most memory"]["batch_size"] == 128
    assert found["quickest"]["image.encoder"] == "mlp"
    assert found["quickest"]["image.mlp.units_1"] == 16
    assert {made["optimizer.lr"] for made in found.values()} == {2e-3}


def test_extremes_keep_to_what_would_be_trained(tmp_path: Path) -> None:
    space = configure(tmp_path, '[space]\n"image.cnn.filters_1" = { low = 4, high = 64, step = 20 }\n').dimensions

    def cost(made: Hyperparameters) -> Cost:
        return Cost(made["image.cnn.filters_1"], made["image.cnn.filters_1"], made["image.cnn.filters_1"])

    assert extremes(space, cost)["slowest"]["image.cnn.filters_1"] == 64
    held = extremes(space, cost, lambda parameters: parameters <= 10)
    assert {made["image.cnn.filters_1"] for made in held.values()} == {4}
    assert extremes(space, cost, lambda parameters: parameters <= 3) == {}


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_draws_are_spread_over_the_space(sampler: str, tmp_path: Path) -> None:
    text = '[space]\n"image.encoder" = ["mlp", "cnn"]\n"head.dropout" = { low = 0.0, high = 0.4, step = 0.2 }\n'
    config = configure(tmp_path, text, search__sampler=sampler)
    drawn = draw(config, 32)
    assert len(drawn) == 32
    assert sum(made["image.encoder"] == "mlp" for made in drawn) == 16
    assert {made["head.dropout"] for made in drawn} == {0.0, 0.2, 0.4}


def test_a_space_in_which_nothing_varies_is_drawn_of_once(tmp_path: Path) -> None:
    config = configure(tmp_path, "")
    assert draw(config, 32) == [config.configurations[0]]


def test_audio_features_are_counted_by_their_settings(tmp_path: Path) -> None:
    """Four settings are found among a thousand trials, and each is computed once; that of a single one has its size."""
    sounds = np.zeros((24, 1200), np.int16)
    dataset = read_dataset(str(zenodo(tmp_path / "d", train_audio=sounds, test_audio=sounds[:8])), sample_rate=8000)
    rows = len(dataset.train.audio)
    text = '[space]\n"head.dropout" = { low = 0.0, high = 0.4 }\n"features.name" = "log_mel"\n'
    one = configure(tmp_path, text, data__sample_rate=8000)
    frames, bands = feature_shapes(dataset.shapes, 8000, one.configurations[0]).audio
    assert features_of(one, dataset, 1000) == (4 * rows * frames * bands, rows)
    text += '"features.log_mel.window_ms" = [25, 50]\n"features.log_mel.bands" = [26, 40]\n'
    size, computed = features_of(configure(tmp_path, text, data__sample_rate=8000), dataset, 1000)
    assert computed == 4 * rows
    assert size > 4 * 4 * rows * 26
    assert features_of(one, dataclasses.replace(dataset, rate=None), 1000) == (0, 0)


def test_a_trial_has_a_least_number_of_epochs(tmp_path: Path) -> None:
    text = "[search]\nmax_epochs = 10\npatience = 4\npruner_warmup = 1\n"
    assert least_share(configure(tmp_path, text)) == 0.2
    assert least_share(configure(tmp_path, text + 'pruner = "none"\n')) == 0.5
    assert least_share(configure(tmp_path, '[study]\nmetrics = ["macro_f1", "loss"]\n' + text)) == 0.5
    folds = '[data]\nvalidation = "kfold"\nfolds = 5\n'
    assert least_share(configure(tmp_path, text + folds)) == pytest.approx(0.2)  # two folds of five, half each


def test_the_share_of_epochs_is_that_of_finished_trials(tmp_path: Path) -> None:
    config = configure(tmp_path, "[search]\nmax_epochs = 10\n")
    trials = [
        create_trial(state=TrialState.COMPLETE, value=0.9, user_attrs={"epochs": 8}),
        create_trial(state=TrialState.PRUNED, user_attrs={"epochs": 2}),
        create_trial(state=TrialState.PRUNED),  # not trained
        create_trial(state=TrialState.FAIL, user_attrs={"epochs": 10}),
    ]
    assert share_of_epochs(config, trials) == (0.5, 2)
    assert share_of_epochs(config, trials[2:]) == (None, 0)


# The processes.


def test_a_process_that_the_system_ends_is_told(workspace: Path) -> None:
    process = crew._Process(Place(load_config(workspace / "studies" / "digits.toml"), "cpu", 1, 0.1))
    try:
        assert process.begin() == {"gpu_free": 0}
        os.kill(process.process.pid, signal.SIGKILL)
        with pytest.raises(crew._Ended, match="the system ended its process, most likely for want of memory"):
            process.do(crew._Job("leave", 3))
    finally:
        process.close()


class Scripted:
    """In the place of a process: answers at once; configurations with a batch of 64 end it.

    `did` has what each process did. There is one on each place of `awaited` before any goes on, and those that begin
    later see less of their GPU.
    """

    did: ClassVar[list[list[Any]]] = []
    begun: ClassVar[list[str]] = []
    awaited: ClassVar[set[str]] = set()

    def __init__(self, place: Place) -> None:
        self.used = self.slow = False
        self.since = float("inf")
        self.place = place.place
        self.jobs: list[Any] = []
        Scripted.did.append(self.jobs)

    def begin(self) -> dict[str, Any]:
        Scripted.begun.append(self.place)
        free = {"cpu": 0, "cuda:0": 9 * GB, "cuda:1": 5 * GB}[self.place] // Scripted.begun.count(self.place)
        while not Scripted.awaited <= set(Scripted.begun):
            time.sleep(0.001)
        return {"gpu_free": free}

    def do(self, job: Any) -> dict[str, Any]:
        self.used = True
        self.jobs.append(job)
        if job.kind == "scout":
            values = job.given[0]
            extreme = {"slowest": {**values, "batch_size": 64}, "most memory": {**values, "batch_size": 64}}
            return {"extremes": extreme, "draws": [{"seconds": 1.0, "refused": None} for _ in job.given]}
        if job.kind == "leave":
            return {"log": 1, "shown": [1], "seconds": 0.1}
        if job.given["batch_size"] == 64:
            raise crew._Ended("the system ended its process, most likely for want of memory")
        return dataclasses.asdict(TRIAL)

    def kill(self) -> None:
        """Nothing is there."""

    close = kill


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """No processes, and what each of them would have done."""
    monkeypatch.setattr(crew, "_Process", Scripted)
    for name, empty in (("did", []), ("begun", []), ("awaited", set())):
        monkeypatch.setattr(Scripted, name, empty)
    return Scripted.did


def test_what_ends_a_process_is_found_out_and_the_rest_goes_on(tmp_path: Path, scripted: list[list[Any]]) -> None:
    config = configure(tmp_path)
    draws = draw(config, 12)
    with Crew(config, (2, 1), ("cpu",), draws, 3, 0.0) as found:
        found.wait(Progress())
    assert list(found.named) == ["defaults", "slowest, most memory"]
    assert found.named["slowest, most memory"].kind == "memory"
    assert found.named["slowest, most memory"].params == {
        "optimizer.lr": draws[0]["optimizer.lr"], "image.encoder": "mlp", "image.mlp.units_1": 16,
    }  # fmt: skip
    assert found.named["defaults"] == TRIAL
    assert len(found.drawn) >= crew.FEWEST
    assert len(found.guesses) == 12
    alone = [job.name for jobs in scripted for job in jobs[:1] if job.alone]
    assert sorted(alone) == ["defaults", "slowest, most memory"]  # each the first that its process did
    assert not any(job.alone for jobs in scripted for job in jobs[1:])


def test_a_gpu_has_what_its_first_process_saw(tmp_path: Path, scripted: list[list[Any]]) -> None:
    """And of two, what the one has that is the fuller."""
    config = configure(tmp_path)
    Scripted.awaited = {"cuda:0", "cuda:1"}
    looked = look_ahead(config, load_dataset(config), (2, 1), ("cuda:0", "cuda:1"), [], Progress(), 0.0)
    assert len(scripted) > 2
    assert looked.room.gpu == 5 * GB


@pytest.mark.parametrize(("trials", "words"), [(2, "5 s"), (6, "6 s"), (500, "40 s")])
def test_before_a_launch_it_takes_no_longer_than_is_worth_it(
    trials: int, words: str, tmp_path: Path, scripted: list[list[Any]]
) -> None:
    heard, config = Heard(), configure(tmp_path, study__trials=trials)
    looked = look_ahead(config, load_dataset(config), (1, 1), ("cpu",), [], heard)
    assert f"a few steps each, for about {words}, on 1 worker" in heard.lines[0]
    assert looked.room.gpu is None
    assert looked.draws == len(looked.work.guesses) == 96


def test_data_that_a_process_cannot_read_ends_the_preflight(tmp_path: Path) -> None:
    config = configure(tmp_path, data__source=str(tmp_path / "missing"))
    with (
        Crew(config, (1, 1), ("cpu",), draw(config, 4), 3, 0.0) as found,
        pytest.raises(MmsearchError, match="missing") as refused,
    ):
        found.wait(Progress())
    assert refused.value.exit_code == 2


def test_a_place_is_read_as_it_was_written(workspace: Path) -> None:
    place = Place(load_config(workspace / "studies" / "digits.toml"), "cuda:3", 2, 0.5)
    assert Place.from_json(place.to_json()) == place


# The machine.


def test_memory_that_is_available_is_the_least_of_all_limits(tmp_path: Path) -> None:
    info, own, groups = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "groups"
    info.write_text("MemTotal:       64000000 kB\nMemAvailable:    8000000 kB\n")
    inner = groups / "a" / "b"
    inner.mkdir(parents=True)
    own.write_text("0::/a/b\n")
    assert available_memory(info, own, groups) == 8_000_000 * 1024
    for folder, limit in ((inner, "max"), (groups / "a", "4000000000")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("1000000000")
        (folder / "memory.stat").write_text("anon 600000000\ninactive_file 100000000\nactive_file 200000000\n")
    assert available_memory(info, own, groups) == 3_300_000_000
    assert available_memory(tmp_path / "none", tmp_path / "none", groups) is None


def test_memory_of_an_older_kind_of_control_group(tmp_path: Path) -> None:
    info, own = tmp_path / "meminfo", tmp_path / "cgroup"
    info.write_text("MemAvailable:    8000000 kB\n")
    own.write_text("4:memory:/x\n1:cpu:/\n")
    folder = tmp_path / "memory" / "x"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("2000000000")
    (folder / "memory.usage_in_bytes").write_text("500000000")
    (folder / "memory.stat").write_text("total_inactive_file 100000000\ntotal_active_file 0\n")
    assert available_memory(info, own, tmp_path) == 1_600_000_000


def test_memory_that_was_given_back_counts_and_files_do_not(tmp_path: Path) -> None:
    status, new = tmp_path / "status", tmp_path / "new"

    def hold(kilobytes: int) -> None:
        new.write_text(f"Name:\tx\nVmHWM:\t  9000 kB\nRssAnon:\t  {kilobytes} kB\nRssFile:\t  200 kB\n")
        new.replace(status)

    hold(300)
    with PeakMemory(status) as held:
        assert held.bytes() == 300 * 1024
        hold(700)
        while held._most < 700 * 1024:  # it looks by itself
            time.sleep(0.01)
        hold(100)
        assert held.bytes() == 700 * 1024
    hold(800)
    assert held.bytes() == 800 * 1024


def test_free_disk_is_that_of_where_a_folder_would_be(tmp_path: Path) -> None:
    assert np.isfinite(free_disk(tmp_path / "not" / "there"))
    assert free_disk(tmp_path / "not" / "there") > 0
