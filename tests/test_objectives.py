"""Several metrics, constraints, the Pareto front and what is picked of it; weights to begin with."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import optuna
import pytest
import torch
from conftest import TINY, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from mmsearch.config import Metric, StudyConfig, load_config
from mmsearch.console import print_retrained, print_status
from mmsearch.constraints import Constraint, parse_constraint
from mmsearch.data.dataset import Dataset
from mmsearch.data.sources import load_dataset
from mmsearch.errors import BundleError, StorageError, StudyFileError, StudyMismatch, UsageError
from mmsearch.models.factory import build_model
from mmsearch.results.bundle import Bundle, Member
from mmsearch.results.retrain import retrain_best
from mmsearch.search.launcher import launch
from mmsearch.search.objective import Infeasible, Objective
from mmsearch.search.opening import opening
from mmsearch.search.storage import open_storage
from mmsearch.search.study import open_study
from mmsearch.search.values import METRICS, VIOLATED, best_of, candidates, in_words, pareto_front, pick

QUICK = settings(max_examples=80, deadline=None)
METRIC_NAMES: tuple[str, ...] = get_args(Metric)
SMALL = TINY.replace("rows = 400", "rows = 200").replace('"image.encoder" = ["mlp", "cnn"]', '"image.encoder" = "mlp"')


def with_study(*lines: str, text: str = SMALL) -> str:
    """The small study with these lines in its [study]."""
    return text.replace("[study]", "\n".join(["[study]", *lines]))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., StudyConfig]:
    """A study's configuration out of the text of its file."""

    def make(text: str) -> StudyConfig:
        path = tmp_path / "studies" / "made.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return load_config(path)

    return make


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[study]\nmetrics = ["parameters"]', "must begin with the metric that leads: macro_f1, accuracy, loss"),
        ('[study]\nmetrics = ["loss", "loss"]', "must not name a metric twice"),
        (
            '[study]\nconstraints = ["parameters < 3"]',
            'a metric, <= or >=, and a number, such as "parameters <= 200000"',
        ),
        ('[study]\nconstraints = ["paramters <= 3"]', 'did you mean "parameters"?'),
        ('[study]\nconstraints = ["loss <= many"]', '"many" is not a number'),
        ('[study]\nconstraints = ["loss <= nan"]', '"nan" is not a number'),
        ('[study]\nconstraints = ["loss <= 1", "loss<=1.0"]', "must not name a constraint twice"),
        ('[data]\nvalidation = "three_way"\nfraction = 0.5', "[data] fraction = 0.5 must be below 0.5"),
        ('[space]\n"transfer.freeze_epochs" = 2', '"transfer.freeze_epochs" needs weights to freeze: init in [search]'),
        ('[space]\n"transfer.freeze_epochs" = [0, 2]', "init in [search]"),
    ],
)
def test_what_is_wrong_is_one_sentence(configured: Callable[..., StudyConfig], text: str, words: str) -> None:
    with pytest.raises(StudyFileError, match=re.escape(words)) as caught:
        configured(text)
    assert "\n" not in str(caught.value)
    assert "made.toml: [" in str(caught.value)


def test_a_constraint_is_kept_as_it_is_meant(configured: Callable[..., StudyConfig]) -> None:
    config = configured('[study]\nmetrics = ["loss", "latency_ms", "accuracy"]\nconstraints = ["parameters<=2e5"]')
    assert config.study.constraints == ("parameters <= 200000",)
    assert config.constraints == (Constraint("parameters", True, 200_000),)
    assert config.directions == ["minimize", "minimize", "maximize"]
    again = StudyConfig.model_validate_json(config.model_dump_json())
    assert again.constraints == config.constraints


@QUICK
@given(
    st.builds(
        Constraint, st.sampled_from(METRIC_NAMES), st.booleans(), st.floats(allow_nan=False, allow_infinity=False)
    ),
    st.floats(-1e12, 1e12),
)
def test_constraints_round_trip_and_violations_tell_the_side(constraint: Constraint, value: float) -> None:
    assert parse_constraint(str(constraint), METRIC_NAMES) == constraint
    kept = value <= constraint.limit if constraint.at_most else value >= constraint.limit
    assert (constraint.violation(value) <= 0) == kept


@st.composite
def finished(draw: st.DrawFn) -> tuple[list[FrozenTrial], list[int]]:
    """Complete trials, numbered, with two or three values each of few different ones; and the signs of the metrics."""
    signs = draw(st.lists(st.sampled_from([1, -1]), min_size=2, max_size=3))
    values = draw(st.lists(st.tuples(*[st.integers(0, 4)] * len(signs)), min_size=1, max_size=14))
    trials = [create_trial(values=list(map(float, point))) for point in values]
    for number, trial in enumerate(trials):
        trial.number = number
    return trials, signs


@QUICK
@given(finished(), st.floats(0, 5))
def test_the_front_is_optunas_and_rules_pick_of_it(made: tuple[list[FrozenTrial], list[int]], margin: float) -> None:
    trials, signs = made
    study = optuna.create_study(directions=["maximize" if sign > 0 else "minimize" for sign in signs])
    study.add_trials(trials)
    front = pareto_front(trials, signs)
    assert sorted(trial.number for trial in front) == [trial.number for trial in study.best_trials]
    leading = [signs[0] * trial.values[0] for trial in front]
    assert leading == sorted(leading, reverse=True)
    best = pick(front, "best", signs)
    assert best is front[0] is best_of(trials, signs)
    assert best.number == min(trial.number for trial in trials if trial.values == best.values)

    knee = pick(front, "knee", signs)
    points = np.array([[sign * value for sign, value in zip(signs, t.values, strict=True)] for t in front])
    scale = np.where(np.ptp(points, 0) > 0, np.ptp(points, 0), 1)
    away = (((points.max(0) - points) / scale) ** 2).sum(1)
    assert away[front.index(knee)] == pytest.approx(away.min())

    near = [trial for trial in front if leading[0] - signs[0] * trial.values[0] <= margin]
    chosen = pick(front, f"within={margin}", signs)
    assert chosen in near
    assert signs[1] * chosen.values[1] == max(signs[1] * trial.values[1] for trial in near)


@pytest.mark.parametrize(
    "rule", ["", "nearest", "within", "within=", "within=few", "within=-1", "within=nan", "knee=1"]
)
def test_what_is_no_rule_is_one_sentence(rule: str) -> None:
    with pytest.raises(UsageError, match=r"allowed are best, knee, or within=0\.005"):
        pick([create_trial(values=[1.0, 2.0])], rule, [1, 1])


def test_only_what_keeps_to_the_constraints_can_be_the_best() -> None:
    trials = [
        create_trial(value=0.9, constraints={"parameters <= 5": 0.1}),
        create_trial(value=0.8, constraints={"parameters <= 5": 0.0, "loss <= 1": -0.2}),
        create_trial(value=0.7),
        create_trial(state=TrialState.PRUNED, value=0.95),
    ]
    assert candidates(trials) == trials[1:3]


def test_values_are_written_as_people_read_them() -> None:
    assert in_words("parameters", 123456.0) == "123456"
    assert in_words("latency_ms", 1.23456) == "1.235"
    assert in_words("macro_f1", 0.98765) == "0.9877"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("data") / "made.toml"
    path.write_text(SMALL)
    return load_dataset(load_config(path))


def study_of(config: StudyConfig) -> optuna.Study:
    return optuna.create_study(directions=config.directions, pruner=optuna.pruners.NopPruner())


def test_several_metrics_are_those_of_the_leading_ones_best_epoch(
    configured: Callable[..., StudyConfig], dataset: Dataset
) -> None:
    metrics = ["accuracy", "loss", "macro_f1", "latency_ms", "parameters"]
    config = configured(with_study(f"metrics = {json.dumps(metrics)}"))
    study = study_of(config)
    values = Objective(config, dataset, torch.device("cpu"))(study.ask())
    rows = [json.loads(line) for line in config.paths.epochs(0).read_text().splitlines()]
    best = max(rows, key=lambda row: (row["valid_accuracy"], -row["valid_loss"]))
    assert values[:3] == [best["valid_accuracy"], best["valid_loss"], best["valid_macro_f1"]]
    assert values[3] > 0
    (trial,) = study.trials
    assert values[4] == trial.user_attrs["parameters"]
    assert trial.user_attrs["best_epoch"] == best["epoch"]
    assert trial.user_attrs[METRICS] == dict(zip(metrics, values, strict=True))
    assert trial.intermediate_values == {}


def test_constraints_are_stored_with_how_far_they_are_violated(
    configured: Callable[..., StudyConfig], dataset: Dataset
) -> None:
    lines = 'constraints = ["macro_f1 >= 2", "parameters <= 1000000", "latency_ms <= 1000000"]'
    config = configured(with_study(lines))
    study = study_of(config)
    (value,) = Objective(config, dataset, torch.device("cpu"))(study.ask())
    (trial,) = study.trials
    held = trial.user_attrs[METRICS]
    assert trial.constraints == {
        "macro_f1 >= 2": (2 - value) / 2,
        "parameters <= 1000000": (held["parameters"] - 1e6) / 1e6,
        "latency_ms <= 1000000": (held["latency_ms"] - 1e6) / 1e6,
    }
    assert trial.user_attrs[VIOLATED] == f"macro_f1 = {value:.4f} violates macro_f1 >= 2"


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_model_that_is_too_large_is_not_trained(
    configured: Callable[..., StudyConfig], dataset: Dataset, sampler: str
) -> None:
    text = SMALL.replace("[search]", f'[search]\nsampler = "{sampler}"')
    config = configured(with_study('constraints = ["parameters <= 10", "macro_f1 >= 0"]', text=text))
    study, made = study_of(config), Objective(config, dataset, torch.device("cpu"))
    if sampler == "gp":  # learns from complete trials only
        made(study.ask())
        assert config.paths.epochs(0).read_text()
        assert study.trials[0].constraints["parameters <= 10"] > 1
        return
    with pytest.raises(Infeasible, match=r"not trained: parameters = \d+ violates parameters <= 10"):
        made(study.ask())
    (trial,) = study.trials
    assert trial.constraints == {"parameters <= 10": (trial.user_attrs["parameters"] - 10) / 10}
    assert "violates parameters <= 10" in trial.user_attrs[VIOLATED]
    assert config.paths.epochs(0).read_text() == ""


def test_a_trial_that_is_handed_back_forgets_its_constraints(storage_url: str) -> None:
    storage = open_storage(storage_url, create=True)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    trial.set_user_attr("parameters", 3)
    trial.set_constraint("parameters <= 5", -0.4)
    assert storage.hand_back(trial._trial_id)
    again = study.ask()
    assert again.number == trial.number
    again.set_constraint("parameters <= 5", 0.2)  # would be ignored, with a warning
    assert study.trials[0].constraints == {"parameters <= 5": 0.2}
    storage.engine.dispose()


def test_a_search_says_first_what_may_surprise(configured: Callable[..., StudyConfig], dataset: Dataset) -> None:
    text = with_study('constraints = ["parameters <= 10"]', text=SMALL.replace("[search]", '[search]\nsampler = "gp"'))
    skipped = replace(dataset, skipped=("line 3: 1.wav is missing",))
    said = list(opening(configured(text), skipped, 1, 1))
    assert "1 row left out: line 3: 1.wav is missing" in said
    assert "constraints parameters <= 10: only trials that keep to them can be the best" in said
    assert "sampler gp learns from complete trials only: models of too many parameters are trained too" in said
    said = list(opening(configured(SMALL), dataset, 1, 1))
    assert not any("left out" in line or "metrics" in line or "constraints" in line for line in said)


TWO = with_study('metrics = ["macro_f1", "parameters"]', 'constraints = ["parameters <= 28000"]', text=TINY)
TWO = TWO.replace('"audio.mlp.units_1" = 32', '"audio.mlp.units_1" = [8, 16, 32]')


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a finished search for two metrics under a constraint; copied by `two`."""
    import subprocess

    from conftest import MMSEARCH, environment

    folder = tmp_path_factory.mktemp("two")
    (folder / "studies").mkdir()
    entry = '[[enqueue]]\n"image.encoder" = "mlp"\n"image.mlp.units_1" = 16\n"audio.mlp.units_1" = {}\n'
    entries = "".join(entry.format(units) for units in (8, 16))
    (folder / "studies" / "digits.toml").write_text(TWO + entries)
    command = [str(MMSEARCH), "launch", "--workers", "2", "--trials", "8"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder / "launch.out").write_text(done.stdout)
    (folder / "launch.err").write_text(done.stderr)
    return folder


@pytest.fixture
def two(searched: Path, workspace: Path) -> Path:
    shutil.copytree(searched, workspace, symlinks=True, dirs_exist_ok=True)
    return workspace


def table(mmsearch: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(mmsearch("export").stdout)))


def test_a_search_for_two_metrics_under_a_constraint(mmsearch: Run, two: Path) -> None:
    said, out = (two / "launch.err").read_text(), (two / "launch.out").read_text()
    assert "metrics macro_f1 (leads), parameters; with several metrics no trial is pruned as it trains" in said
    assert "constraints parameters <= 28000: only trials that keep to them can be the best" in said
    assert re.search(r"trial 0 pruned: not trained: parameters = \d+ violates parameters <= 28000", said)
    rows = table(mmsearch)
    assert list(rows[0])[:8] == [
        "number", "state", "macro_f1", "parameters", "feasible", "duration_s", "epochs", "best_epoch",
    ]  # fmt: skip
    assert [row["state"] for row in rows] == ["COMPLETE" if row["feasible"] == "True" else "PRUNED" for row in rows]
    assert all((float(row["parameters"]) <= 28000) == (row["state"] == "COMPLETE") for row in rows)
    assert len(rows) == 8
    done = [row for row in rows if row["state"] == "COMPLETE"]
    best = max(done, key=lambda row: float(row["macro_f1"]))
    assert f"best      macro_f1 {float(best['macro_f1']):.4f} (trial {best['number']}," in out
    assert "gain      unknown: the defaults (trial 0) were not trained, since parameters = " in out
    shown = mmsearch("status").stdout
    assert out[out.index("best  ") :] in shown
    points = {(float(row["macro_f1"]), -float(row["parameters"])): row["number"] for row in done}
    front = [
        point for point in points if not any(a >= point[0] and b >= point[1] for a, b in points if (a, b) != point)
    ]
    listed = re.findall(r"^ +(\d+) +0\.\d{4} +\d+$", shown, re.M)
    assert listed == [points[point] for point in sorted(front, reverse=True)]
    ranked = list(csv.DictReader(io.StringIO(mmsearch("export", "--sort", "best").stdout)))
    assert ranked[0] == best
    assert ranked[-1]["feasible"] == "False"
    assert f"**{float(best['parameters']):.0f}**" in mmsearch("export", "--format", "md").stdout  # not 2.78e+04


def here(workspace: Path, name: str = "digits") -> StudyConfig:
    """The workspace's study, for what need not go through the command line."""
    return load_config(workspace / "studies" / "digits.toml", {"study.name": name})


def test_a_rule_picks_what_is_retrained(mmsearch: Run, two: Path) -> None:
    rows = [row for row in table(mmsearch) if row["state"] == "COMPLETE"]
    out = mmsearch("retrain-best", "--pick", "knee").stdout
    held = json.loads((two / "storage/digits/retrained/best/metrics.json").read_text())
    assert held["searched"]["rule"] == "knee"
    row = next(row for row in rows if row["number"] == str(held["trial"]))
    assert held["searched"]["values"] == {name: float(row[name]) for name in ("macro_f1", "parameters")}
    assert f"parameters {held['parameters']} on validation rows; picked by knee" in out
    assert held["searched"]["baseline"] is None
    smallest = retrain_best(here(two), rule="within=1").metrics
    assert smallest["searched"]["rule"] == "within=1"
    assert smallest["parameters"] == min(float(row["parameters"]) for row in rows)


def test_what_cannot_be_retrained_is_one_sentence(mmsearch: Run, two: Path) -> None:
    pruned = next(int(row["number"]) for row in table(mmsearch) if row["state"] == "PRUNED")
    assert "exclude each other" in mmsearch("retrain-best", "--pick", "knee", "--trial", 1, code=2).stderr
    said = mmsearch("retrain-best", "--trial", pruned, code=2).stderr
    assert said == f"mmsearch: trial {pruned} of the study digits is not complete: it is PRUNED\n"
    with pytest.raises(UsageError, match="there is no such trial"):
        retrain_best(here(two), trial=99)
    with pytest.raises(UsageError, match="allowed are best, knee"):
        retrain_best(here(two), rule="nearest")


def test_other_metrics_or_constraints_are_refused_by_name(two: Path) -> None:
    file, text = two / "studies" / "digits.toml", (two / "studies" / "digits.toml").read_text()
    file.write_text(text.replace('"macro_f1", "parameters"', '"macro_f1"'))
    with pytest.raises(StudyMismatch, match=r'study.metrics = \["macro_f1", "parameters"\], and now .* \["macro_f1"\]'):
        launch(here(two))
    file.write_text(text.replace("28000", "29000"))
    with pytest.raises(StudyMismatch, match=r'study.constraints = \["parameters <= 28000"\]'):
        launch(here(two))


def test_without_a_trial_that_keeps_to_the_constraints_there_is_no_best(
    mmsearch: Run, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = with_study('constraints = ["macro_f1 >= 0.999"]')
    (workspace / "studies" / "digits.toml").write_text(text)
    words = "no complete trial keeps to macro_f1 >= 0.999: 2 of 2 finished trials violate that"
    assert words in mmsearch("launch", "--trials", 2, "--workers", 1, code=3).stderr
    assert words in mmsearch("retrain-best", code=3).stderr
    with open_study(here(workspace)) as opened:
        print_status(opened)
    assert f"best      {words};" in capsys.readouterr().out
    with pytest.raises(UsageError, match="picks among several metrics; the study digits has one"):
        retrain_best(here(workspace), rule="knee")
    bundle = retrain_best(here(workspace), trial=1)  # whoever asks for it by its number gets it
    print_retrained(bundle)
    assert "constraints macro_f1 = 0." in capsys.readouterr().out
    searched = bundle.metrics["searched"]
    assert searched["rule"] == "trial 1"
    assert "violates macro_f1 >= 0.999" in searched["violated"]


def test_a_device_that_is_not_there_is_refused_before_there_is_a_study(mmsearch: Run, workspace: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    said = mmsearch("launch", "--device", "cuda", code=2, env=hidden).stderr
    assert 'device "cuda": this machine has no CUDA devices' in said
    assert not (workspace / "storage").exists()


def test_a_search_begins_with_the_weights_of_a_bundle(mmsearch: Run, workspace: Path) -> None:
    file = workspace / "studies" / "digits.toml"
    file.write_text(SMALL)
    config = here(workspace)
    dataset = load_dataset(config)
    old = config.configurations[0]
    Bundle((Member(build_model(old, dataset.shapes), old),), dataset.trained, workspace / "old").save(workspace / "old")
    text = SMALL.replace("[search]", '[search]\ninit = "../old"') + '"transfer.freeze_epochs" = 1\n'
    file.write_text(text.replace('"head.units" = 32', '"head.units" = 16'))
    said = mmsearch("launch", "--trials", 2, "--workers", 1).stderr
    notes = [line for line in said.splitlines() if "tensors start as in" in line]
    assert len(notes) == 1
    assert "worker 0: " in notes[0]
    assert "fresh: head." in notes[0]
    log = next((workspace / "storage/digits/logs").glob("*.log")).read_text()
    assert log.count("tensors start as in") == 1
    told: list[str] = []
    retrain_best(here(workspace), on_note=told.append)
    assert len(told) == 1
    assert notes[0].endswith(told[0])

    weights = workspace / "old" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StudyMismatch, match=r"was begun with search.init = "):
        launch(here(workspace))
    for change in (lambda: weights.write_bytes(content[:99]), weights.unlink):
        change()
        with pytest.raises(BundleError, match=re.escape(str(weights))):
            launch(here(workspace, "other"))
        with pytest.raises(StorageError, match="there is no study other"):
            open_study(here(workspace, "other"))


def test_weights_are_loaded_for_every_fold_and_told_once(
    configured: Callable[..., StudyConfig], dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mmsearch.training.transfer import Transfer

    loaded: list[Any] = []

    def load(model: torch.nn.Module, folder: Path) -> Transfer:
        loaded.append(model)
        return Transfer(folder, (), {}, {})

    monkeypatch.setattr("mmsearch.search.folds.load_weights", load)
    text = SMALL.replace("[data]", '[data]\nvalidation = "kfold"\nfolds = 2').replace(
        "[search]", '[search]\ninit = "x"'
    )
    config = configured(text)
    notes: list[str] = []
    made = Objective(config, dataset, torch.device("cpu"), on_note=notes.append)
    study = study_of(config)
    made(study.ask())
    made(study.ask())
    assert len(loaded) == 4
    assert len(notes) == 1
