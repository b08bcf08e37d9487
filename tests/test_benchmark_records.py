"""What the benchmarks keep of runs, only while all that it depends on is the same; and runs that are made again."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import precision
import pruners
from comparison import kept
from comparison.contestants import HERE, Contestant, Mmsearch, Plain, RayTune, Task
from comparison.pairs import write_pairs
from comparison.passes import QUICK, Pass, _once_each
from comparison.plain_optuna import START
from comparison.processes import CommandFailed, Watched
from curves import Curve, basis, record, study_config

from mmsearch.data.sources import read_dataset


def test_what_is_kept_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = Pass(QUICK, "demo", tmp_path, None)
    counted: list[int] = []

    def measure() -> dict[str, Any]:
        counted.append(1)
        return {"seconds": 1.5}

    for settings in ({"epochs": 2}, {"epochs": 2}, {"epochs": 3}):
        assert made._kept("search/plain/flat/0", settings, measure) == {"seconds": 1.5}
    assert len(counted) == 2
    assert "search/plain/flat/0: kept from before" in capsys.readouterr().err
    (tmp_path / "pairs").mkdir()
    for labels in ([0, 1], [1, 0]):  # other data under the same name
        np.save(tmp_path / "pairs" / "labels_train.npy", np.array(labels))
        assert made._kept("search/plain/flat/0", {"epochs": 3}, measure)
        assert made._kept("search/plain/flat/0", {"epochs": 3}, measure)
    assert len(counted) == 4
    np.save(tmp_path / "pairs" / "validation_rows_7.npy", np.array([1]))  # of another seed
    assert made._kept("search/plain/flat/0", {"epochs": 3}, measure)
    assert len(counted) == 4


def test_winners_are_scored_again_where_the_search_was_made_again(tmp_path: Path) -> None:
    made, scored = Pass(QUICK, "demo", tmp_path, None), []

    class Once(Scripted):
        def scores(self) -> list[float]:
            scored.append(1)
            return [0.5]

    task = Task(made.data, Path(), 1, 1, 0)
    contestants = iter([Once([("0", 1)]), Once(), Once([("0", 1)])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pass, "_contestant", lambda *given: next(contestants))
        for again in (False, False, True):
            if again:
                made._raw("search/plain/flat/0").unlink()
            names = [name for name, _ in made._contest("search/plain/flat/0", "plain", task)]
            assert names == ["search/plain/flat/0", "search/plain/flat/0/scores"]
    assert len(scored) == 2


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("comparison/plain_optuna.py", ["plain", "ray", "step", "mmsearch"]),
        ("comparison/processes.py", ["plain", "ray", "step", "mmsearch"]),
        ("comparison/ray_tune.py", ["ray"]),
        ("comparison/step.py", ["step"]),
        ("comparison/retrain_all.py", ["mmsearch"]),
        ("mmsearch/search/objective.py", ["step", "mmsearch"]),
        ("mmsearch/data/splits.py", ["pairs", "step", "mmsearch"]),
    ],
)
def test_a_change_of_a_source_makes_anew_what_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str, again: list[str]
) -> None:
    for folder in (HERE, ROOT / "mmsearch"):
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kept, "HERE", tmp_path / "comparison")
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    names = {"pairs": "pairs", "plain": "search/plain/flat/0", "ray": "search/ray/flat/0", "step": "step/16-32-64/flat"}
    names["mmsearch"] = "workers/1/0"
    before = {key: kept.code(name) for key, name in names.items()}
    with (tmp_path / changed).open("a") as source:
        source.write("# changed\n")
    assert [key for key, name in names.items() if kept.code(name) != before[key]] == again


def test_pairs_are_written_again_where_a_file_is_not_as_it_was(tmp_path: Path) -> None:
    made = Pass(replace(QUICK, train=60, test=60), "demo", tmp_path, None, ())
    made.run()
    file = made.data / "labels_test.npy"
    held, written_at = file.read_bytes(), file.stat().st_mtime_ns
    made.run()
    assert file.stat().st_mtime_ns == written_at
    file.unlink()
    made.run()
    assert file.read_bytes() == held
    file.write_bytes(b"other")
    made.run()
    assert file.read_bytes() == held


class Scripted:
    """A contestant whose runs are given; one of None fails."""

    def __init__(self, *runs: list[tuple[str, int]] | None, may_fail: bool = True) -> None:
        self.runs, self.may_fail = list(runs), may_fail

    def search(self) -> Watched:
        found = self.runs.pop(0)
        if found is None:
            raise CommandFailed("plain_optuna.py ended with exit code 1")
        return Watched(1.0, 1.0, 1.0, [(1.0, trial, epoch, 0.5) for trial, epoch in found], began=time.time())

    def scores(self) -> list[float]:
        return []


def test_a_run_that_is_not_the_work_given_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stock SQLite gives one trial to two processes, now and then; and two that end at once train one too many."""
    task = Task(tmp_path, tmp_path, 2, 1, 0, fixed=(START, START))
    twice, more, right = [("0", 1), ("0", 1)], [("0", 1), ("1", 1), ("2", 1)], [("0", 1), ("1", 1)]
    found = _once_each(Scripted(twice, None, more, right), task)
    assert (len(found["epochs"]), found["made_again"]) == (2, 3)
    assert capsys.readouterr().err.splitlines() == [
        "2 epochs of 1 trials is not the work given: once more",
        "plain_optuna.py ended with exit code 1: once more",
        "3 epochs of 3 trials is not the work given: once more",
    ]
    assert _once_each(Scripted(*[None] * 5, right), task)["made_again"] == 5
    with pytest.raises(CommandFailed, match="ended with exit code 1"):
        _once_each(Scripted(*[None] * 6, right), task)
    with pytest.raises(CommandFailed, match="not the work given, 6 times"):
        _once_each(Scripted(*[twice] * 6), task)
    with pytest.raises(CommandFailed, match="ended with exit code 1"):
        _once_each(Scripted(None, right, may_fail=False), task)
    contestants: list[Contestant] = [Plain(task), Mmsearch(task), RayTune(task, tmp_path)]
    assert [one.may_fail for one in contestants] == [True, False, False]


def _curve(values: list[float], losses: list[float] | None = None) -> Curve:
    return Curve({}, values, losses or [1 / epoch for epoch, _ in enumerate(values, 1)], [1.0] * len(values), [*values])


def test_a_replayed_pruner_is_not_asked_of_a_trial_that_is_over_anyway() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    good, bad = _curve([0.9] * 10), _curve([0.1] * 10)
    halving = optuna.pruners.SuccessiveHalvingPruner(4, 2)
    assert pruners.replay([good, good, bad, bad], halving).pruned == {2, 3}
    short = _curve([0.1] * 10, losses=[1.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]).ended_by(3)
    assert len(short.values) == 4
    found = pruners.replay([good, good, short, bad], halving)
    assert found.pruned == {3}
    assert sorted(number for _, number in found.complete) == [0, 1, 2]


def test_curves_are_of_what_is_asked_for_or_refused(tmp_path: Path) -> None:
    data, file = tmp_path / "pairs", tmp_path / "three_conv-random.jsonl"
    write_pairs(data, train=60, test=60, splits=[0])

    def recorded(draws: int, precision: str = "float32") -> tuple[dict[str, Any], list[Curve]]:
        return record(study_config("three_conv", "random", data, tmp_path, precision), draws, file)

    of = basis(study_config("three_conv", "random", data, tmp_path, "float32"), read_dataset(str(data)))
    held = _curve([0.5, 0.6])
    of["code"] = "of another time"
    file.write_text("".join(json.dumps(line) + "\n" for line in ({"of": of}, asdict(held))))
    assert recorded(1) == (of, [held])
    with pytest.raises(SystemExit, match=r"its curves are of other precision: give another --work folder$"):
        recorded(1, "bfloat16")
    with pytest.raises(SystemExit, match="of other code: "):  # which is to train the second
        recorded(2)
    np.save(data / "data_wr_train.npy", np.load(data / "data_wr_train.npy") + 1)
    with pytest.raises(SystemExit, match="of other data: "):
        recorded(1)


def test_a_record_of_a_family_is_made_anew_where_it_is_of_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, cpu = np.random.default_rng(0), torch.device("cpu")
    image, audio, labels = rng.random((20, 784)), rng.random((20, 507)), np.arange(20) % 10
    data = [precision.noisy(image, audio, labels, seed) for seed in (0, 1, 2)]
    trained: list[int] = []

    def train(hyperparameters: Any, rows: Any, valid: Any, epochs: int, seed: int, device: Any) -> dict[str, Any]:
        trained.append(epochs)
        return {name: {"macro_f1": 0.5, "loss": 1.0} for name in precision.PRECISIONS}

    monkeypatch.setattr(precision, "train", train)
    monkeypatch.setattr(precision, "cost", lambda *given: {name: [1.0, 1.0] for name in precision.PRECISIONS})
    for valid, epochs in ((data[1], 4), (data[1], 4), (data[1], 5), (data[2], 5)):
        of = precision.basis((data[0], valid), epochs, cpu)
        precision.measure("mlp", (data[0], valid), [0], epochs, cpu, tmp_path, of)
    assert trained == [4, 5, 5]
