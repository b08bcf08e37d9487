"""Retrain the best trial on training and validation rows, score it once on test, and leave a bundle."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, Split, statistics
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.data.sources import load_dataset
from mmsearch.errors import MmsearchError
from mmsearch.models.factory import build_model
from mmsearch.paths import BundlePaths, write_text
from mmsearch.results.bundle import Bundle, Member
from mmsearch.results.predict import known_labels, predictions_csv, submission_csv
from mmsearch.search.folds import trial_seed
from mmsearch.search.space import restore
from mmsearch.search.study import OpenStudy, open_study
from mmsearch.search.values import METRICS, VIOLATED
from mmsearch.training.device import choose_device
from mmsearch.training.fit import EpochResult, fit, seed_everything
from mmsearch.training.metrics import accuracy, macro_f1
from mmsearch.training.provenance import hardware, versions
from mmsearch.training.transfer import load_weights

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

MODALITIES: tuple[tuple[str, Literal["image", "audio"]], ...] = (("image_alone", "audio"), ("audio_alone", "image"))
SAME_WITHIN = 1e-5  # between a probability before saving and after loading


@dataclass(frozen=True)
class _Scorer:
    """A retrained model where it predicts, and the folder that keeps its features."""

    bundle: Bundle
    device: torch.device
    cache: Path

    def probabilities(self, split: Split, without: Literal["image", "audio"] | None = None) -> npt.NDArray[np.float32]:
        """(n, classes) probabilities of a split's raw rows; `without` sets one modality to its training mean."""
        return self.bundle.probabilities(split, self.device, without=without, cache=self.cache)

    def macro_f1(self, split: Split, without: Literal["image", "audio"] | None = None) -> float:
        """The macro F1 of a split's predictions."""
        predicted = self.probabilities(split, without).argmax(1)
        return macro_f1(confusion_matrix(split.labels, predicted, labels=range(len(self.bundle.classes))))


@dataclass(frozen=True)
class Plan:
    """What is retrained: the trial that `rule` picked, for how many epochs, from which seed."""

    trial: FrozenTrial
    rule: str
    epochs: int
    seed: int


def retrain_best(
    config: StudyConfig,
    *,
    trial: int | None = None,
    rule: str = "best",
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> Bundle:
    """Train one completed trial's configuration on all training rows and leave it as a bundle.

    The trial is number `trial`, whatever its constraints; or else the one that `rule` picks: `best`, and among several
    metrics also `knee` or `within=NUMBER` (see `mmsearch.search.values.pick`). It keeps the searched schedule and stops
    after the number of epochs that was best; with k-fold validation after the median of the folds'. The test split,
    where it has labels, and the rows that were held back, are looked at once. The bundle is loaded again and must
    predict the same before it is moved to its place, `storage/<study>/retrained/<trial>`; an earlier one there stays,
    and the new one gets a number. `on_note` is told what of the weights to begin with did not fit.

    Raises `NoCompletedTrial`, `UsageError` for a trial that is not complete and a rule that is none, `StudyMismatch`
    where the data are not those of the search, and `BundleError`.
    """
    with open_study(config) as opened:
        picked = opened.picked(rule) if trial is None else opened.complete_trial(trial)
        dataset = load_dataset(config)
        opened.check(dataset.fingerprint)
        first = picked.system_attrs.get("failed_trial", picked.number)
        said = rule if trial is None else f"trial {trial}"
        plan = Plan(picked, said, _best_epoch(opened, picked), trial_seed(config, first))
        on_plan(plan)
        return _retrain(opened, plan, dataset, on_note, on_epoch)


def _retrain(
    opened: OpenStudy,
    plan: Plan,
    dataset: Dataset,
    on_note: Callable[[str], None],
    on_epoch: Callable[[EpochResult], None],
) -> Bundle:
    config, trial = opened.config, plan.trial
    device = choose_device(config.search.device)
    hyperparameters = restore(config.dimensions, trial.params)
    started = time.perf_counter()
    train = with_features(dataset.train, dataset.rate, hyperparameters, config.storage_paths.cache)
    seed_everything(plan.seed)
    model = build_model(
        hyperparameters, feature_shapes(dataset.shapes, dataset.rate, hyperparameters), statistics(train)
    )
    frozen: tuple[str, ...] = ()
    if config.search.init is not None:
        transfer = load_weights(model, Path(config.search.init))
        frozen = transfer.loaded
        on_note(transfer.describe())
    for result in fit(
        model,
        train,
        None,
        hyperparameters,
        epochs=plan.epochs,
        horizon=config.search.max_epochs,
        seed=plan.seed,
        device=device,
        frozen=frozen,
        precision=config.search.precision,
    ):
        on_epoch(result)
    seconds = time.perf_counter() - started
    building = config.paths.retrained / f".{secrets.token_hex(4)}"
    try:
        bundle = Bundle((Member(model, hyperparameters),), dataset.trained, building)
        bundle.save(building)
        scorer = _Scorer(bundle, device, config.storage_paths.cache)
        metrics = _describe(opened, plan, dataset, scorer, seconds)
        write_text(BundlePaths(building).metrics, json.dumps(metrics, indent=2) + "\n")
        if dataset.test is not None:
            _write_predictions(scorer, dataset, dataset.test)
        _check_reload(scorer, dataset.test or dataset.train)
        folder = _move_in(building, config.paths.retrained, str(trial.number))
    finally:
        shutil.rmtree(building, ignore_errors=True)
    score = metrics[metrics["modalities"]["scored_on"]]["macro_f1"]
    opened.optuna.set_user_attr("retrained", {"trial": trial.number, "macro_f1": score, "folder": str(folder)})
    return replace(bundle, folder=folder)


def _best_epoch(opened: OpenStudy, trial: FrozenTrial) -> int:
    """The epoch whose value is the trial's; with k-fold validation the median of the folds' best."""
    if "best_epoch" in trial.user_attrs:
        return int(trial.user_attrs["best_epoch"])
    if not trial.intermediate_values or opened.config.folds > 1:
        raise MmsearchError(f"trial {trial.number} was added by hand: it has no epochs to retrain for")
    return max(trial.intermediate_values, key=lambda epoch: opened.signs[0] * trial.intermediate_values[epoch])


def _write_predictions(scorer: _Scorer, dataset: Dataset, test: Split) -> None:
    paths, classes = BundlePaths(scorer.bundle.folder), scorer.bundle.classes
    probabilities = scorer.probabilities(test)
    write_text(paths.predictions, predictions_csv(classes, probabilities, test.ids, known_labels(test), test.files))
    if dataset.competition:
        write_text(paths.submission, submission_csv(classes, probabilities, test.ids))


def _check_reload(scorer: _Scorer, split: Split) -> None:
    """Raise `MmsearchError` unless the bundle, read back from disk, predicts what the model in memory predicts."""
    again = replace(scorer, bundle=Bundle.load(scorer.bundle.folder))
    before, after = scorer.probabilities(split), again.probabilities(split)
    worst = float(np.abs(before - after).max())
    if worst > SAME_WITHIN or (before.argmax(1) != after.argmax(1)).any():
        raise MmsearchError(
            f"the saved model does not predict what the trained one does: probabilities differ by {worst:g}"
        )


def _describe(opened: OpenStudy, plan: Plan, dataset: Dataset, scorer: _Scorer, seconds: float) -> dict[str, Any]:
    """The content of metrics.json."""
    config, test, trial, device = opened.config, dataset.test, plan.trial, scorer.device
    labelled = {
        "test": test if test is not None and test.label is not None else None,
        "held_back": dataset.held_back,
        "training": dataset.train,
    }
    scores = {name: None if split is None else _score(scorer, split) for name, split in labelled.items()}
    name, scored = next((name, split) for name, split in labelled.items() if split is not None)
    values = dict(zip(opened.metrics, trial.values, strict=True))
    baseline = opened.baseline()
    return {
        "study": config.study.name,
        "trial": trial.number,
        "searched": {
            "metric": opened.metrics[0],
            "value": trial.values[0],
            "baseline": None if baseline is None else baseline.values[0],
            "rule": plan.rule,
            "values": {**values, **trial.user_attrs.get(METRICS, {})},
            "violated": trial.user_attrs.get(VIOLATED) or None,
        },
        "params": trial.params,
        **scores,
        "modalities": {
            "scored_on": name,
            "both": (scores[name] or {})["macro_f1"],
            **{alone: scorer.macro_f1(scored, without) for alone, without in MODALITIES},
        },
        "epochs": plan.epochs,
        "seed": plan.seed,
        "parameters": scorer.bundle.parameters,
        "seconds": round(seconds, 2),
        "data": {
            "source": dataset.source,
            "layout": dataset.layout,
            "fingerprint": dataset.fingerprint,
            "training_rows": len(dataset.train),
            "test_rows": len(test) if test is not None else 0,
            "held_back_rows": len(dataset.held_back) if dataset.held_back is not None else 0,
        },
        "hardware": hardware(device),
        "versions": versions(),
    }


def _score(scorer: _Scorer, split: Split) -> dict[str, Any]:
    classes, predicted = scorer.bundle.classes, scorer.probabilities(split).argmax(1)
    matrix = confusion_matrix(split.labels, predicted, labels=range(len(classes)))
    per_class = precision_recall_fscore_support(split.labels, predicted, labels=range(len(classes)), zero_division=0)
    names = ("precision", "recall", "f1-score", "support")
    return {
        "rows": len(split),
        "accuracy": accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "per_class": {
            held: dict(zip(names, (part[i].item() for part in per_class), strict=True))
            for i, held in enumerate(classes)
        },
        "confusion_matrix": matrix.tolist(),
    }


def _move_in(building: Path, parent: Path, name: str) -> Path:
    """Give a finished folder its name, or the first free `name-2`, `name-3`, ...; then point `best` at it."""
    for attempt in range(1, 10_000):
        folder = parent / (name if attempt == 1 else f"{name}-{attempt}")
        if folder.exists():
            continue
        try:
            building.rename(folder)
        except OSError:
            if not folder.exists():  # else somebody took the name meanwhile
                raise
            continue
        link = parent / f".{secrets.token_hex(4)}"
        link.symlink_to(folder.name)
        os.replace(link, parent / "best")
        return folder
    raise MmsearchError(f"{parent}: there are 10,000 retrained models of trial {name} already")
