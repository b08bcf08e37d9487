"""`mmsearch preflight` foretells a search, leaves nothing behind, and says when it will not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MMSEARCH, TINY, Run, environment
from optuna.trial import TrialState, create_trial

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.dataset import Shapes
from mmsearch.errors import MmsearchError
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.factory import build_model
from mmsearch.search import crew
from mmsearch.search.costs import Cost, cost_of, extremes
from mmsearch.search.crew import Crew
from mmsearch.search.forecast import Measured, Room, Work, epoch_seconds, foretell, trial_seconds
from mmsearch.search.forecast_forms import as_text
from mmsearch.search.preflight import draw, least_share, share_of_epochs
from mmsearch.search.probes import Place
from mmsearch.search.progress import Progress
from mmsearch.search.room import available_memory, free_disk, peak_memory

SHAPES = Shapes((1, 28, 28), (39, 13), 10)
GB = 10**9
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


def test_it_foretells_and_leaves_nothing_behind(mmsearch: Run, workspace: Path) -> None:
    before = everything(workspace)
    done = mmsearch("preflight", "--workers", 1, "--seconds", 0, "--format", "json")
    assert everything(workspace) == before
    found = json.loads(done.stdout)
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
    assert all(held["steps"] >= 2 and held["train_s"] > 0 and held["valid_s"] > 0 for held in named.values())
    # torch alone takes 100 MB, and nothing of this study takes a GB
    assert 100e6 < found["memory"]["worker"] < 1e9
    assert found["memory"]["all"] > found["memory"]["worker"]
    seconds = found["seconds"]
    assert 0 < seconds["most"]["low"] <= seconds["most"]["middle"] <= seconds["most"]["high"]
    assert seconds["least"]["middle"] <= seconds["most"]["middle"]
    assert seconds["expected"] is None
    assert 20_000 < found["disk"]["all"] < 10e6


def test_a_launch_ends_before_there_is_a_study_where_it_will_not_fit(mmsearch: Run, workspace: Path) -> None:
    before = everything(workspace)
    done = mmsearch("launch", "--preflight", "--workers", 1, "--timeout", "0.1", code=1)
    assert everything(workspace) == before
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("mmsearch: the search will not fit: timeout: 6 trials of as few epochs as they need")
    assert "fits      no" in done.stderr


def test_a_launch_goes_on_where_it_fits_and_what_is_finished_counts(mmsearch: Run, workspace: Path) -> None:
    done = mmsearch("launch", "--preflight", "--workers", 1, "--trials", 2)
    assert "fits      yes" in done.stderr
    assert done.stdout.startswith("trials    2 of 2")
    again = mmsearch("preflight", "--trials", 2)
    assert "trials    0 left of 2" in again.stdout
    assert "time      nothing is left to do" in again.stdout
    assert again.stdout.splitlines()[-1] == "fits      yes"


@pytest.mark.slow
def test_what_memory_ends_is_told_with_its_configuration(workspace: Path) -> None:
    """One of the choices asks for 13 GB at once, of which the process may have 6."""
    text = TINY.replace('"image.cnn.filters_1" = 8', '"image.cnn.filters_1" = [8, 1024]')
    text = text.replace('"batch_size" = 32', '"batch_size" = [32, 4096]').replace("rows = 400", "")
    (workspace / "studies" / "digits.toml").write_text(text)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (6 * 2**30, 6 * 2**30))

    done = subprocess.run(
        [MMSEARCH, "preflight", "--workers", "1", "--seconds", "0"],
        cwd=workspace, env=environment(), capture_output=True, text=True, timeout=300, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be trained by a worker alone: the processor's memory is too small" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mmsearch: ")]
    assert line.startswith("mmsearch: the search will not fit: memory: the configuration")
    assert "most memory" in line


def test_another_study_of_that_name_is_refused_before_anything_runs(mmsearch: Run, searched: Path) -> None:
    done = mmsearch(
        "preflight", "--seed", 5, "--storage", f"sqlite:///{searched / 'storage' / 'studies.db'}", code=2
    )  # fmt: skip
    assert "seed" in done.stderr
    assert "preflight:" not in done.stderr


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


def test_the_launcher_needs_memory_too() -> None:
    room = dataclasses.replace(ROOM, memory=2 * GB + 10**8, launcher=2 * 10**8)
    assert not foretell(WORK, room, {}, [TRIAL]).fits
    assert foretell(WORK, dataclasses.replace(room, launcher=0), {}, [TRIAL]).fits


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


def test_trials_that_would_fail_are_told() -> None:
    broken = Measured(refused="ValueError: kernel", kind="failure")
    found = foretell(
        change(WORK, epoch_timeout=10.0, trial_timeout=60.0, workers=9), ROOM, {"slowest": TRIAL, "a": broken}, [TRIAL]
    )
    assert found.warnings == (
        "9 workers on 4 cores will wait for each other; --workers 4 is faster",
        "the configuration a fails: ValueError: kernel",
        "an epoch may take 11 s, and fails after 10 s (epoch_timeout)",
        "a trial may take 2 min, and fails after 60 s (trial_timeout)",
    )


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
    assert (
        draw(configure(tmp_path, ""), 32) == [config.configurations[0]] or len(draw(configure(tmp_path, ""), 32)) == 1
    )


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
    process = crew._Process(load_config(workspace / "studies" / "digits.toml"), "cpu", 1, 0.1)
    try:
        assert process.begin()["device"] == "cpu"
        os.kill(process.process.pid, signal.SIGKILL)
        with pytest.raises(crew._Ended, match="the system ended its process, most likely for want of memory"):
            process.do(crew._Job("leave", 3))
    finally:
        process.close()


class Scripted:
    """In the place of a process: answers at once; configurations with a batch of 64 end it."""

    made = 0

    def __init__(self, config: StudyConfig, place: str, threads: int, seconds: float) -> None:
        Scripted.made += 1
        self.used = self.slow = False
        self.since = float("inf")

    def begin(self) -> dict[str, Any]:
        return {"gpu_free": 0}

    def do(self, job: Any) -> dict[str, Any]:
        self.used = True
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


def test_what_ends_a_process_is_found_out_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "_Process", Scripted)
    config = configure(tmp_path)
    draws = draw(config, 12)
    with Crew(config, (2, 1), ("cpu",), draws, 3, 0.0) as found:
        found.wait(Progress())
    assert list(found.named) == ["defaults", "slowest, most memory"]
    assert found.named["slowest, most memory"].kind == "memory"
    assert found.named["defaults"] == TRIAL
    assert len(found.drawn) >= crew.FEWEST
    assert len(found.guesses) == 12


def test_data_that_a_process_cannot_read_ends_the_preflight(tmp_path: Path) -> None:
    config = configure(tmp_path, data__source=str(tmp_path / "missing"))
    with (
        Crew(config, (1, 1), ("cpu",), draw(config, 4), 3, 0.0) as found,
        pytest.raises(MmsearchError, match="missing"),
    ):
        found.wait(Progress())


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
    status = tmp_path / "status"
    status.write_text("Name:\tx\nVmHWM:\t  900 kB\nRssAnon:\t  300 kB\nRssFile:\t  200 kB\nRssShmem:\t  50 kB\n")
    assert peak_memory(status) == 650 * 1024
    before = peak_memory()
    held = torch.zeros(64 * 2**20, dtype=torch.uint8)
    held += 1
    del held
    assert peak_memory() >= before
    assert np.isfinite(free_disk(tmp_path / "not" / "there"))
    assert free_disk(tmp_path / "not" / "there") > 0
