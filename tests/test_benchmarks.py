"""The comparison with plain Optuna and Ray Tune: that it compares like with like, and what it makes of the runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from conftest import ROOT, environment

sys.path.append(str(ROOT / "benchmarks"))

import bench
from comparison.contestants import Mmsearch, Task
from comparison.pairs import pair, write_pairs
from comparison.passes import QUICK, Pass, Scale
from comparison.plain_optuna import START, Data, Network, suggest
from comparison.processes import CommandFailed, EpochLogs, Watched, run
from comparison.space import NAMES, NETWORKS, configurations, longest_first, network, ours, study_text, theirs
from comparison.summary import bars, common_target, difference, ratio, reached, spread, summarise
from comparison.tables import tables

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.dataset import Shapes
from mmsearch.data.sources import load_dataset
from mmsearch.data.splits import validation_splits
from mmsearch.models.factory import build_model
from mmsearch.search.space import distributions

SHAPES = Shapes((1, 28, 28), (39, 13), 10)


def written(folder: Path, **options: Any) -> StudyConfig:
    """The study that the benchmark searches."""
    file = folder / "three_conv.toml"
    file.write_text(study_text(Path("demo"), **{"trials": 16, "epochs": 10, "frames": False, **options}))
    return load_config(file, {"data.source": "demo"})


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_both_train_the_same_network(tmp_path: Path, name: str, frames: bool) -> None:
    """Layer by layer; and with the same weights, the same logits."""
    config = written(tmp_path, frames=frames)
    model = build_model(config.dimensions.configuration(ours(network(name))), SHAPES).eval()
    plain = Network(network(name), frames).eval()
    theirs_by_name, mine = plain.state_dict(), list(model.parameters())
    assert [value.shape for value in mine] == [value.shape for value in theirs_by_name.values()]
    plain.load_state_dict(dict(zip(theirs_by_name, mine, strict=True)))
    with torch.no_grad():  # mmsearch's embedding goes place by place, the plain one channel by channel
        width = model.image_encoder.width
        first = plain.get_parameter("head.1.weight")
        halves = first[:, :width], first[:, width:]
        channels = model.image_encoder.token_width, model.audio_encoder.token_width
        turned = [half.reshape(len(half), -1, each).mT.flatten(1) for half, each in zip(halves, channels, strict=True)]
        first.copy_(torch.cat(turned, dim=1))
    drops = [[m.p for m in one.modules() if isinstance(m, torch.nn.Dropout)] for one in (model, plain)]
    assert drops[0] == drops[1] == [0.3, 0.3]
    image, audio = torch.rand(4, 1, 28, 28), torch.randn(4, 39, 13)
    fed = audio.transpose(1, 2) if frames else audio.reshape(4, 1, 507)
    with torch.inference_mode():
        torch.testing.assert_close(model(image, audio), plain(image, fed), rtol=1e-4, atol=1e-5)


def test_both_search_the_same_space_and_begin_alike(tmp_path: Path) -> None:
    config = written(tmp_path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trial = study.ask()
    suggest(trial)
    held = distributions(config.dimensions)
    assert {NAMES[name]: value for name, value in trial.distributions.items()} == held
    first = config.configurations[0]
    assert theirs(dict(first)) == START
    assert len(config.configurations) == 1
    assert (first["batch_size"], first["optimizer.name"], first["optimizer.adam.weight_decay"]) == (64, "adam", 0.0)
    assert (first["image.cnn.dropout"], first["audio.conv1d.dropout"], first["loss.label_smoothing"]) == (0, 0, 0)


def test_the_space_is_that_of_the_write_up(tmp_path: Path) -> None:
    write_up = load_config(ROOT / "studies" / "three_conv.toml")
    assert distributions(write_up.dimensions) == distributions(written(tmp_path).dimensions)


def test_the_fixed_configurations_are_those_of_the_study(tmp_path: Path) -> None:
    fixed = configurations(20)
    assert fixed == configurations(20)
    assert fixed[:4] == configurations(4)
    config = written(tmp_path, trials=20, epochs=6, fixed=fixed)
    assert [theirs(dict(one)) for one in config.configurations] == fixed
    assert (config.search.pruner, config.search.patience, config.search.max_epochs) == ("none", 6, 6)
    assert config.study.trials == 20
    ordered = longest_first(fixed)
    assert ordered[0] == START
    assert sorted(map(str, ordered)) == sorted(map(str, fixed))
    image = [params["image_filters_2"] * params["image_filters_1"] for params in (ordered[1], ordered[-1])]
    assert image[0] > image[1]


def test_pairs_are_of_one_class_and_take_each_row_before_any_again() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    image, audio = pair(labels, 12, np.random.default_rng(0))
    assert (labels[image] == labels[audio]).all()
    assert (np.bincount(image) == 2).all()
    assert (np.bincount(audio) == 2).all()


def test_all_are_validated_on_the_same_rows(tmp_path: Path) -> None:
    data = tmp_path / "pairs"
    write_pairs(data, train=200, test=1100, seed=0, splits=[3])
    config = load_config(_study(tmp_path, data), {"study.seed": 3})
    dataset = load_dataset(config)
    train, valid = validation_splits(dataset, config)[0]
    assert np.load(data / "validation_rows_3.npy").tolist() == valid.rows.tolist()
    assert dataset.test is not None
    sizes = [len(train), len(valid), 200, 1100]
    assert len(train) + len(valid) == 200
    assert len(dataset.test) == 1100
    plain = Data(data, 3)
    assert not {"train_and_valid", "test"} & set(vars(plain))  # a search needs no memory for them
    assert [len(rows) for rows in (plain.train, plain.valid, plain.train_and_valid, plain.test)] == sizes
    assert plain.valid.tensors[2].tolist() == valid.labels.tolist()
    image, audio = np.load(data / "data_wr_train.npy"), np.load(data / "data_sp_train.npy")
    assert (image.shape, audio.shape) == ((200, 784), (200, 507))
    assert image.min() < -1  # noise
    frames = Data(data, 3, frames=True).valid.tensors[1]
    torch.testing.assert_close(frames.transpose(1, 2).reshape(-1, 1, 507), plain.valid.tensors[1])


def _study(folder: Path, data: Path) -> Path:
    file = folder / "three_conv.toml"
    file.write_text(study_text(data, trials=1, epochs=1, frames=False))
    return file


def test_the_target_is_what_all_reach() -> None:
    one = [(1.0, "0", 1, 0.5), (2.0, "0", 2, 0.9), (3.0, "1", 1, 0.7)]
    other = [(4.0, "0", 1, 0.6), (9.0, "0", 2, 0.8)]
    assert common_target([one, other]) == 0.8
    assert (reached(one, 0.8), reached(other, 0.8)) == (2.0, 9.0)
    with pytest.raises(ValueError, match=r"no epoch reached 0\.95"):
        reached(one, 0.95)


def test_ratios_and_differences_are_paired() -> None:
    found = ratio([4.0, 9.0], [2.0, 3.0])
    assert found == {"median": 2.5, "min": 2.0, "max": 3.0, "repeats": 2, "interval": [0.19, 32.2]}
    assert ratio([3.0], [1.0])["interval"] is None
    found = difference([0.9, 0.8, 0.7], [0.9, 0.7, 0.5])
    assert found == {"mean": 0.1, "interval": [-0.1484, 0.3484], "pairs": 3}


def _raw() -> dict[str, dict[str, Any]]:
    """Raw results of a pass of two repeats and seeds."""
    raw: dict[str, dict[str, Any]] = {}

    def add(name: str, seconds: float, value: float, scores: list[float]) -> None:
        epochs = [[seconds / 2, "0", 1, value - 0.1], [seconds, "0", 2, value]]
        raw[name] = {"seconds": seconds, "cpu_s": None if "/ray/" in name else seconds, "anonymous_mb": 500.0}
        raw[name] |= {"epochs": epochs, "made_again": int("/plain/" in name), "start_up_s": 3.0}
        if scores:
            raw[f"{name}/scores"] = {"macro_f1": scores}

    rates = {"plain": [100.0, 110.0], "mmsearch": [250.0, 260.0], "mmsearch in float32": [150.0, 150.0]}
    raw["step/16-32-64/flat"] = {"parameters": 5, "rows": 64, "precision": "bfloat16", "samples_a_second": rates}
    for turn in (0, 1):
        for name, seconds in (("plain/flat", 90.0), ("mmsearch/flat", 30.0)):
            add(f"same-work/{name}/{turn}", seconds, 0.9, [0.8, 0.9])
        for name, seconds in (
            ("plain/flat", 100.0),
            ("plain/frames", 50.0),
            ("ray/flat", 60.0),
            ("mmsearch/flat", 20.0),
        ):
            add(f"search/{name}/{turn}", seconds + turn, 0.9, [0.8 + turn / 100])
        for workers in (1, 2):
            add(f"workers/{workers}/{turn}", 3.0 + 36.0 / workers, 0.9, [])
    return raw


def test_the_figures_of_a_pass_and_its_bars() -> None:
    found = summarise(_raw())
    assert found["search"]["target_valid_macro_f1"] == 0.9
    ours_found = found["search"]["contestants"]["mmsearch/flat"]
    assert ours_found["sooner_than_plain"]["median"] == pytest.approx(4.9, abs=0.01)
    assert ours_found["sooner_than_ray"]["max"] == 3.0
    assert ours_found["test_macro_f1"]["mean"] == 0.805
    assert found["search"]["contestants"]["plain/frames"]["sooner_than_plain"]["median"] == pytest.approx(2, abs=0.03)
    assert "cpu_seconds" not in found["search"]["contestants"]["ray/flat"]
    assert found["workers"]["1"] == {"trials_an_hour": spread([100.0, 100.0]), "start_up_seconds": spread([3.0, 3.0])}
    assert found["workers"]["faster"]["median"] == 2.0
    met = {one["bar"]: one["met"] for one in found["bars"]}
    assert met["step, 16-32-64, 1 x 507: times the samples a second"]
    assert met["same work, 1 x 507: times less wall time"]
    assert met["two workers: times one worker's trials an hour"]
    assert met["search, 1 x 507 against plain on 1 x 507: times sooner"]
    assert met["search, 1 x 507 against plain on 1 x 507: winners' test macro F1, whole interval"]
    assert not any("39 x 13" in bar for bar in met)  # was not measured
    shown = tables(found)
    assert "| mmsearch, 1 x 507 | 30 (30 to 30) | 3.0 times (3.0 to 3.0) |" in shown
    assert "| plain Optuna script, 39 x 13 | 50.5 (50 to 51) | 2.0 times (2.0 to 2.0) |" in shown
    assert "255 (250 to 260), bfloat16 | 2.4 times (2.4 to 2.5) | 150 (150 to 150) | 1.4 times (1.4 to 1.5) |" in shown
    assert "| peak memory, MB | made again |" in shown
    assert shown.count("| 500 (500 to 500) | 2 |") == 3  # plain's runs
    assert "| NO |" not in shown


def test_a_bar_that_is_not_met_says_so() -> None:
    slow = {"step": {"16-32-64": {"flat": {"ratio": {"median": 2.1}}}}}
    worse = {"test_macro_f1_less_plain": {"mean": -0.02, "interval": [-0.03, -0.01]}}
    found = bars({**slow, "same_work": {"mmsearch/flat": worse}})
    assert [one["met"] for one in found] == [False, False]
    assert "| -0.005 | -0.02 | -0.03 to -0.01 | NO |" in tables({"bars": found})


@pytest.mark.parametrize(
    ("interval", "met"), [([-0.005, 0.01], True), ([-0.0051, 0.03], False), ([0.001, 0.002], True), (None, False)]
)
def test_as_good_is_an_interval_that_is_hardly_below(interval: list[float] | None, met: bool) -> None:
    scores = {"test_macro_f1_less_plain": {"mean": 0.001, "interval": interval}}
    assert [one["met"] for one in bars({"same_work": {"mmsearch/flat": scores}})] == [met]


def test_only_some_comparisons_make_only_some_figures() -> None:
    raw = {name: held for name, held in _raw().items() if name.startswith("step/")}
    assert set(summarise(raw)) == {"step", "bars"}
    assert set(summarise({})) == {"bars"}


def test_epochs_are_seen_once_and_whole(tmp_path: Path) -> None:
    logs, file = EpochLogs(tmp_path, "trials/*/metrics.jsonl"), tmp_path / "trials" / "7" / "metrics.jsonl"
    assert list(logs.new(0.0)) == []
    file.parent.mkdir(parents=True)
    file.write_text('{"epoch": 1, "valid_macro_f1": 0.5}\n{"epoch": 2, "valid')
    assert list(logs.new(1.0)) == [(1.0, "7", 1, 0.5)]
    assert list(logs.new(2.0)) == []
    with file.open("a") as lines:
        lines.write('_macro_f1": 0.75}\n')
    assert list(logs.new(3.0)) == [(3.0, "7", 2, 0.75)]


def test_a_run_is_watched_and_leaves_nothing(tmp_path: Path) -> None:
    """A command's own child that outlives it is ended too, and the others where one fails."""
    log = tmp_path / "output.log"
    held = "import time; kept = bytearray(80_000_000); time.sleep(1.5)"
    seen = run([[sys.executable, "-c", held]], log=log)
    assert isinstance(seen, Watched)
    assert seen.seconds >= 1.5
    assert 80 < seen.anonymous_mb < 300
    with pytest.raises(CommandFailed, match="exit code 3"):
        run([[sys.executable, "-c", "raise SystemExit(3)"], ["sleep", f"600.{os.getpid()}"]], log=log)
    assert not _running(f"sleep 600.{os.getpid()}")


def test_a_benchmark_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    sleep = f"sleep 611.{os.getpid()}"
    program = f"from pathlib import Path; from comparison.processes import run; run([{sleep.split()}], log=Path('log'))"
    started = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(PYTHONPATH=str(ROOT / "benchmarks"))
    )
    try:
        _until(lambda: _running(sleep))
    finally:
        os.kill(started.pid, signal.SIGKILL)
        started.wait()
    _until(lambda: not _running(sleep))


def _running(command: str) -> bool:
    """Whether a process has this command line."""
    wanted = command.replace(" ", "\0") + "\0"
    return any(_command_line(path) == wanted for path in Path("/proc").glob("[0-9]*/cmdline"))


def _command_line(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "steps"], "invalid choice: 'steps'"),
        (["--repeats", "0"], "--repeats must be 1 or more"),
        (["--seeds", "-1"], "--seeds must be 0 or more"),
    ],
)
def test_wrong_arguments_are_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        bench.parse(arguments)
    assert raised.value.code == 2
    assert said in capsys.readouterr().err


def test_what_is_asked_for_is_planned(tmp_path: Path) -> None:
    plan = bench.planned(bench.parse(["--quick", "--work", str(tmp_path), "--seeds", "4", "--only", "search"]))
    assert (plan.scale.seeds, plan.scale.train, plan.only) == ((4,), QUICK.train, ("search",))
    assert bench.planned(bench.parse([])).scale == Scale()
    whole = Pass(Scale(), "demo", tmp_path, tmp_path / "python")
    assert bench.whole(whole)
    others: list[dict[str, Any]] = [{"scale": plan.scale}, {"source": "data"}, {"ray": None}, {"only": ("step",)}]
    assert not any(bench.whole(replace(whole, **other)) for other in others)
    assert json.loads(json.dumps(bench.provenance(plan)))["data"]["seeds"] == [4]


def test_start_up_is_until_the_first_trial_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(tmp_path, tmp_path / "run", 2, 1, 0, workers=1)

    def ran(commands: Any, **options: Any) -> Watched:
        for trial, second in (("0", 7), ("1", 5)):
            log = task.folder / "three_conv" / "trials" / trial / "metrics.jsonl"
            log.parent.mkdir(parents=True)
            log.write_text(json.dumps({"attempt": f"2026-01-01T00:00:0{second}.250000Z", "epoch": 1}) + "\n")
        return Watched(began=datetime(2026, 1, 1, tzinfo=UTC).timestamp())

    monkeypatch.setattr("comparison.contestants.run", ran)
    assert Mmsearch(task).search().start_up_s == 5.25


def test_one_of_two_cores_is_seen_at_the_start_and_both_are_used(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    program = (
        "import json, os, time; held = os.sched_getaffinity(0)\n"
        "open('a.jsonl', 'w').write(json.dumps({'trial': 0, 'epoch': 1, 'valid_macro_f1': 0.5}) + '\\n')\n"
        f"while not set({cores}) <= os.sched_getaffinity(0): time.sleep(0.05)\n"
        "print(len(held))"
    )
    run(
        [[sys.executable, "-c", program]],
        log=tmp_path / "log",
        epochs=EpochLogs(tmp_path, "a.jsonl"),
        cores=1,
        deadline=60,
    )
    assert (tmp_path / "log").read_text() == "1\n"
