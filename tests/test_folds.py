"""Validation by folds and by a three-way split: which rows, what a trial does with them, and what is shown of it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median_high
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from conftest import TINY, Run
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_data import labels, put, values, zenodo

from mmsearch.config import StudyConfig, load_config
from mmsearch.console import print_status
from mmsearch.data.dataset import Dataset, Pixels, Split
from mmsearch.data.sources import load_dataset, read_dataset
from mmsearch.data.splits import holdout, k_folds, keep_back, validation_splits
from mmsearch.errors import DataError, StorageError
from mmsearch.search.folds import KEPT_FEATURES, Preparation, Prepared, trial_seed
from mmsearch.search.launcher import launch
from mmsearch.search.objective import Objective, Stopped
from mmsearch.search.progress import Snapshot, WorkerView, render
from mmsearch.search.study import Counts, create_study, open_study
from mmsearch.training.fit import EpochResult

QUICK = settings(max_examples=60, deadline=None)
# what runs in this process is as small as it can be
SMALL = TINY.replace("rows = 400", "rows = 200").replace('"image.encoder" = ["mlp", "cnn"]', '"image.encoder" = "mlp"')
FOLDS = SMALL.replace("[data]", '[data]\nvalidation = "kfold"\nfolds = 3')
THREE_WAY = TINY.replace("[data]", '[data]\nvalidation = "three_way"\nfraction = 0.1')


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made_of(classes: list[int], recordings: list[int], test: Split | None = None) -> Dataset:
    """A data set of rows with these classes, of which those with the same recording are one group."""
    rows = np.arange(len(classes))
    split = Split(np.zeros((len(rows), 1, 2, 2)), np.zeros((len(rows), 3, 2)), np.array(classes), rows, 1.0)
    names = tuple(map(str, range(max(classes) + 1)))
    digests = {"train": (rows, np.array(recordings))}
    return Dataset("made", "made", split, test, names, digests, Pixels(0, 1, 1), (0, 0), False)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    """20 to 60 recordings of one class each, which occur up to 4 times."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=20, max_size=60))
    classes = draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(sum(sizes))
    repeated = [np.repeat(what, sizes)[order].tolist() for what in (classes, range(len(sizes)))]
    return made_of(*repeated)


def groups_in(dataset: Dataset, split: Split) -> set[int]:
    return set(dataset.groups[split.rows].tolist())


@QUICK
@given(datasets(), st.integers(2, 8), st.integers(0, 2**32 - 1))
def test_every_row_validates_once_and_no_group_is_torn(dataset: Dataset, folds: int, seed: int) -> None:
    found = k_folds(dataset, folds, seed)
    assert len(found) == folds
    validating = np.concatenate([valid.rows for _, valid in found])
    np.testing.assert_array_equal(np.sort(validating), dataset.train.rows)
    for train, valid in found:
        assert not groups_in(dataset, train) & groups_in(dataset, valid)
        np.testing.assert_array_equal(np.sort(np.concatenate([train.rows, valid.rows])), dataset.train.rows)
        for label in np.unique(dataset.train.labels):  # each class is shared out to within a group of a row to four
            share = (dataset.train.labels == label).sum() / folds
            assert abs((valid.labels == label).sum() - share) <= 4 * (folds - 1)
    again = k_folds(dataset, folds, seed)
    assert all(np.array_equal(one[1].rows, other[1].rows) for one, other in zip(found, again, strict=True))


@QUICK
@given(datasets(), st.sampled_from([0.1, 0.15, 0.25]), st.integers(0, 99), st.booleans())
def test_a_three_way_split_shares_nothing(dataset: Dataset, fraction: float, seed: int, has_test: bool) -> None:
    if has_test:
        dataset = replace(dataset, test=dataset.train.only(np.arange(3)))
    kept = keep_back(dataset, fraction, seed)
    held_back = kept.held_back if has_test else kept.test
    assert held_back is not None
    assert kept.test is (dataset.test if has_test else held_back)
    train, valid = holdout(kept, fraction / (1 - fraction), seed)
    parts = [groups_in(dataset, split) for split in (train, valid, held_back)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(np.unique(dataset.groups))
    for split in (valid, held_back):
        assert len(split) == pytest.approx(fraction * len(dataset.train), abs=13)  # a group more or less in each class


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., StudyConfig]:
    """A study's configuration out of the text of its file."""

    def make(text: str, **overrides: Any) -> StudyConfig:
        path = tmp_path / "studies" / "made.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return load_config(path, overrides)

    return make


def test_a_study_gets_the_split_that_its_file_names(configured: Callable[..., StudyConfig], tmp_path: Path) -> None:
    demo = load_dataset(configured(THREE_WAY))
    assert demo.held_back is not None
    assert demo.test is not None
    (pair,) = validation_splits(demo, configured(THREE_WAY))
    assert [len(split) for split in (*pair, demo.held_back, demo.test)] == [320, 40, 40, 1000]
    assert len(validation_splits(demo, configured(FOLDS))) == 3

    folder = zenodo(tmp_path / "d", train_image=values(120, 784), train_audio=values(120, 507),
                    train_labels=labels(120), test_image=None, test_audio=None, test_labels=None)  # fmt: skip
    config = configured(THREE_WAY.replace("rows = 400", f'source = "{folder}"'))
    dataset = load_dataset(config)
    assert dataset.held_back is None
    assert dataset.test is not None
    (pair,) = validation_splits(dataset, config)
    assert [len(split) for split in (*pair, dataset.test)] == [96, 12, 12]


def test_folds_that_cannot_be_are_one_sentence() -> None:
    linked = made_of([0, 1] * 10, [1] * 20)
    with pytest.raises(DataError, match=r"made: no 3 folds are possible: .* link 20 of the 20 training rows"):
        k_folds(linked, 3, 0)
    with pytest.raises(DataError, match="no 5 folds are possible: 4 training rows are too few"):
        k_folds(made_of([0, 1, 0, 1], [0, 1, 2, 3]), 5, 0)


def test_folds_are_found_before_there_is_a_study(configured: Callable[..., StudyConfig]) -> None:
    config = configured(FOLDS.replace("rows = 200", "rows = 20").replace("folds = 3", "folds = 50"))
    with pytest.raises(DataError, match="no 50 folds are possible"):
        launch(config)
    with pytest.raises(StorageError, match="there is no study yet"):
        open_study(config)


def objective(config: StudyConfig, **how: Any) -> Objective:
    return Objective(config, load_dataset(config), torch.device("cpu"), **how)


def test_a_trial_trains_a_model_a_fold(configured: Callable[..., StudyConfig]) -> None:
    config = configured(FOLDS)
    seen: list[tuple[int, int]] = []
    told: dict[int, list[float]] = {}

    def on_epoch(number: int, fold: int, result: EpochResult, value: float) -> None:
        seen.append((fold, result.epoch))
        told.setdefault(fold, []).append(value)

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    trial = study.ask()
    (value,) = objective(config, on_epoch=on_epoch)(trial)
    assert seen == [(fold, epoch) for fold in (1, 2, 3) for epoch in (1, 2, 3)]
    (frozen,) = study.trials
    assert frozen.intermediate_values == {fold: max(values) for fold, values in told.items()}
    assert value == fmean(frozen.intermediate_values.values())
    assert frozen.user_attrs["epochs"] == 9
    lines = [json.loads(line) for line in config.paths.epochs(0).read_text().splitlines()]
    best = [
        max(lines[start : start + 3], key=lambda line: (line["valid_macro_f1"], -line["valid_loss"]))["epoch"]
        for start in (0, 3, 6)
    ]
    assert frozen.user_attrs["best_epoch"] == median_high(best)
    rows = list(csv.DictReader(io.StringIO((config.paths.trial(0) / "metrics.csv").read_text())))
    assert [(line["fold"], line["epoch"]) for line in lines] == seen
    assert [(int(row["fold"]), int(row["epoch"])) for row in rows] == seen
    assert len({trial_seed(config, 0, fold) for fold in (1, 2, 3)}) == 3


def test_folds_have_statistics_of_their_own(configured: Callable[..., StudyConfig]) -> None:
    config = configured(FOLDS)
    made = Preparation(config, load_dataset(config))
    prepared = made.prepared(config.configurations[0])
    means = [fold.statistics.mean_image for fold in prepared.folds]
    for fold, mean in zip(prepared.folds, means, strict=True):
        images = np.concatenate([image for image, _ in fold.train.chunks()])
        np.testing.assert_allclose(mean, images.mean(0), atol=1e-5)
    assert not np.array_equal(means[0], means[1])
    assert made.prepared(config.configurations[0]) is prepared


def test_the_last_few_settings_of_the_features_stay_at_hand(
    configured: Callable[..., StudyConfig], tmp_path: Path
) -> None:
    waves = values(24, 1600) - 0.5
    folder = zenodo(tmp_path / "d", train_audio=waves, test_audio=waves[:8])
    config = configured(
        f'[data]\nsource = "{folder}"\nsample_rate = 8000\nvalidation = "kfold"\nfolds = 2\n[space]\n'
        '"features.log_mel.bands" = { low = 8, high = 16 }\n"optimizer.lr" = [1e-3, 1e-2]\n'
    )
    made = Preparation(config, load_dataset(config))

    def prepared(bands: int, lr: float = 1e-3) -> Prepared:
        wanted = {"features.log_mel.bands": bands, "optimizer.lr": lr}
        return made.prepared(config.dimensions.configuration(wanted))

    first, *others = [prepared(bands) for bands in range(8, 8 + KEPT_FEATURES)]
    assert [held.shapes.audio[1] for held in (first, *others)] == list(range(8, 8 + KEPT_FEATURES))
    for fold in first.folds:
        assert fold.train.audio.shape[2] == len(fold.statistics.audio_mean) == 8
    assert prepared(8, 1e-2) is first  # nothing of the audio has changed; and it is the latest again
    prepared(16)
    assert prepared(8) is first
    assert prepared(9) is not others[0]


class PrunesAll(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


def test_a_trial_is_pruned_between_folds_and_the_defaults_never(configured: Callable[..., StudyConfig]) -> None:
    study = optuna.create_study(direction="maximize", pruner=PrunesAll())
    made = objective(configured(FOLDS.replace("pruner_warmup = 1", "pruner_warmup = 0")))
    with pytest.raises(optuna.TrialPruned):
        made(study.ask())
    assert list(study.trials[0].intermediate_values) == [1]
    assert study.trials[0].user_attrs["epochs"] == 3
    study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.WAITING,
                                              system_attrs={"mmsearch:baseline": True}))  # fmt: skip
    made(study.ask())
    assert list(study.trials[1].intermediate_values) == [1, 2, 3]


@pytest.mark.parametrize(("after", "stops"), [((1, 2), True), ((2, 3), True), ((3, 3), False)])
def test_a_stop_ends_after_the_running_epoch(
    configured: Callable[..., StudyConfig], after: tuple[int, int], stops: bool
) -> None:
    seen: list[tuple[int, int]] = []
    made = objective(
        configured(FOLDS),
        on_epoch=lambda number, fold, result, value: seen.append((fold, result.epoch)),
        should_stop=lambda: seen[-1] == after,
    )
    trial = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner()).ask()
    if stops:
        with pytest.raises(Stopped):
            made(trial)
    else:
        made(trial)  # there is nothing left to save
    assert seen[-1] == after


@pytest.mark.parametrize(
    ("text", "reached"),
    [
        (FOLDS, "trial 0, 1 of 3 folds done"),
        (SMALL, "trial 0, epoch 1"),
        (SMALL.replace("[study]", '[study]\nmetrics = ["loss", "parameters"]'), "trial 0"),
    ],
    ids=["folds", "holdout", "two metrics"],
)
def test_status_tells_how_far_a_trial_is(
    configured: Callable[..., StudyConfig], capsys: pytest.CaptureFixture[str], text: str, reached: str
) -> None:
    config = configured(text)
    with create_study(config, "any data")[0] as opened:
        opened.storage.owner = {"worker": "0-x", "pid": 7, "host": "here"}
        trial = opened.optuna.ask()
        if len(config.study.metrics) == 1:
            trial.report(0.5, 1)
        print_status(opened)
    assert f"worker    0-x, process 7 on here: {reached}, last beat " in capsys.readouterr().out


def shown(snapshot: Snapshot) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(render(snapshot, "digits"))
    return console.export_text()


def test_the_live_view_tells_the_fold() -> None:
    worker = WorkerView(0, trial=7, fold=2, epoch=3, value=0.5)
    counts = Counts(1, 0, 0, 1, 0)
    snapshot = Snapshot(counts, 9, "macro_f1", (0, 0.9), None, [worker], 5, 10, 1, 60.0)
    assert "fold 2/5 epoch 3/10" in shown(snapshot)
    assert "epoch 3/10" in (text := shown(replace(snapshot, folds=1, front=4)))
    assert "fold" not in text
    assert "4 on the Pareto front" in text


def test_a_search_by_folds(mmsearch: Run, workspace: Path) -> None:
    pruning = 'pruner = "wilcoxon"\npruner_p = 0.3'
    study = FOLDS.replace("[search]", f"[search]\n{pruning}").replace("pruner_startup = 2\n", "")
    (workspace / "studies" / "digits.toml").write_text(study)
    said = mmsearch("launch", "--workers", 2).stderr
    assert "3 folds, of each 13" in said
    rows = list(csv.DictReader(io.StringIO(mmsearch("export", "--sort", "best").stdout)))
    complete = [row for row in rows if row["state"] == "COMPLETE"]
    assert complete[0]["epochs"] == "9"
    out = mmsearch("retrain-best")
    assert f"for {complete[0]['best_epoch']} epochs" in out.stderr
    held = json.loads((workspace / "storage/digits/retrained/best/metrics.json").read_text())
    assert held["searched"]["value"] == float(complete[0]["value"])
    assert held["training"]["rows"] == 200
    (workspace / "studies" / "digits.toml").write_text(study.replace("folds = 3", "folds = 4"))
    assert "data.folds = 3" in mmsearch("launch", code=2).stderr


def test_what_a_competition_keeps_back_is_scored_on_rows_of_ones_own(
    mmsearch: Run, workspace: Path, tmp_path: Path
) -> None:
    demo = read_dataset("demo")
    train, test = demo.train, demo.test
    assert test is not None
    flat = [array[:300].reshape(300, -1) for array in (train.image, train.audio)]
    rows = "".join(f"{i},{y}\n" for i, y in enumerate(train.labels[:300].tolist()))
    put(workspace / "course", {
        "x_train_wr.npy": flat[0], "x_train_sp.npy": flat[1], "y_train.csv": f"row_id,label\n{rows}".encode(),
        "x_test_wr.npy": test.image[:50].reshape(50, -1), "x_test_sp.npy": test.audio[:50].reshape(50, -1),
    })  # fmt: skip
    (workspace / "studies" / "digits.toml").write_text(THREE_WAY.replace("rows = 400", 'source = "../course"'))
    said = mmsearch("launch", "--trials", 2, "--workers", 1).stderr
    words = (
        r"(\d+) rows train, (\d+) validate, 50 test \(not used here\), (\d+) are held back for retrain-best to score"
    )
    found = re.search(words, said)
    assert found
    fitted, valid, held_back = map(int, found.groups())
    assert fitted + valid + held_back == 300
    assert [valid, held_back] == pytest.approx([30, 30], abs=8)
    out = mmsearch("retrain-best").stdout
    assert f"on {held_back} rows that were held back from training" in out
    bundle = workspace / "storage/digits/retrained/best"
    held = json.loads((bundle / "metrics.json").read_text())
    assert held["test"] is None
    assert (held["held_back"]["rows"], held["training"]["rows"]) == (held_back, 300 - held_back)
    assert held["modalities"]["both"] == held["held_back"]["macro_f1"]
    assert f"macro F1    {held['held_back']['macro_f1']:.4f}" in out
    assert len((bundle / "submission.csv").read_text().splitlines()) == 51
