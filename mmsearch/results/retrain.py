"""Retrain the best trial on training and validation rows, score it once on test, and leave a bundle."""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import classification_report, confusion_matrix

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, Split, Statistics, statistics
from mmsearch.data.sources import load_dataset
from mmsearch.errors import BundleError, MmsearchError
from mmsearch.models.factory import build_model
from mmsearch.paths import BundlePaths, write_text
from mmsearch.results.bundle import Bundle
from mmsearch.results.predict import known_labels, predictions_csv, submission_csv
from mmsearch.search.objective import trial_seed
from mmsearch.search.space import restore
from mmsearch.search.study import OpenStudy, open_study
from mmsearch.training.device import choose_device
from mmsearch.training.fit import EpochResult, fit, predict_logits, seed_everything
from mmsearch.training.metrics import accuracy, macro_f1

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SAME_WITHIN = 1e-5  # between a probability before saving and after loading


@dataclass(frozen=True)
class Plan:
    """What is retrained: a trial, for how many epochs, from which seed."""

    trial: FrozenTrial
    epochs: int
    seed: int


def retrain_best(
    config: StudyConfig,
    *,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> Bundle:
    """Train the best completed trial's configuration on all training rows and leave it as a bundle.

    It keeps the searched schedule and stops after the number of epochs that was best. The test split, where it has
    labels, is looked at once. The bundle is loaded again and must predict the same before it is moved to its place,
    `storage/<study>/retrained/<trial>`; an earlier one there stays, and the new one gets a number.

    Raises `NoCompletedTrial`, `StudyMismatch` where the data are not those of the search, and `BundleError`.
    """
    with open_study(config) as opened:
        return _retrain(opened, on_plan, on_epoch)


def _retrain(opened: OpenStudy, on_plan: Callable[[Plan], None], on_epoch: Callable[[EpochResult], None]) -> Bundle:
    config = opened.config
    trial = opened.must_have_best()
    dataset = load_dataset(config)
    opened.check(dataset.fingerprint)
    first = trial.system_attrs.get("failed_trial", trial.number)
    plan = Plan(trial, _best_epoch(opened, trial), trial_seed(config, first))
    on_plan(plan)
    device = choose_device(config.search.device)
    hyperparameters = restore(config.dimensions, trial.params)
    started = time.perf_counter()
    seed_everything(plan.seed)
    found = statistics(dataset.train)
    model = build_model(hyperparameters, dataset.shapes, found)
    for result in fit(
        model,
        dataset.train,
        None,
        hyperparameters,
        epochs=plan.epochs,
        horizon=config.search.max_epochs,
        seed=plan.seed,
        device=device,
    ):
        on_epoch(result)
    seconds = time.perf_counter() - started
    building = config.paths.retrained / f".{secrets.token_hex(4)}"
    try:
        bundle = Bundle(model, hyperparameters, dataset.trained, building)
        bundle.save(building)
        metrics = _describe(opened, plan, dataset, bundle, found, device, seconds)
        write_text(BundlePaths(building).metrics, json.dumps(metrics, indent=2) + "\n")
        if dataset.test is not None:
            _write_predictions(bundle, dataset, dataset.test, device)
        _check_reload(bundle, dataset.test or dataset.train, device)
        folder = _move_in(building, config.paths.retrained, str(trial.number))
    finally:
        shutil.rmtree(building, ignore_errors=True)
    score = (metrics["test"] or metrics["training"])["macro_f1"]
    opened.optuna.set_user_attr("retrained", {"trial": trial.number, "macro_f1": score, "folder": str(folder)})
    return Bundle(model, hyperparameters, dataset.trained, folder)


def _best_epoch(opened: OpenStudy, trial: FrozenTrial) -> int:
    """The epoch whose value is the trial's."""
    if "best_epoch" in trial.user_attrs:
        return int(trial.user_attrs["best_epoch"])
    if not trial.intermediate_values:
        raise MmsearchError(f"trial {trial.number} was added by hand: it has no epochs to retrain for")
    return max(trial.intermediate_values, key=lambda epoch: opened.sign * trial.intermediate_values[epoch])


def _write_predictions(bundle: Bundle, dataset: Dataset, test: Split, device: torch.device) -> None:
    paths = BundlePaths(bundle.folder)
    probabilities = bundle.probabilities(test, device)
    write_text(paths.predictions, predictions_csv(bundle.classes, probabilities, test.rows, known_labels(test)))
    if dataset.competition:
        write_text(paths.submission, submission_csv(bundle.classes, probabilities, test.rows))


def _check_reload(bundle: Bundle, split: Split, device: torch.device) -> None:
    """Raise `BundleError` unless the bundle, read back from disk, predicts what the model in memory predicts."""
    before, after = bundle.probabilities(split, device), Bundle.load(bundle.folder).probabilities(split, device)
    worst = float(np.abs(before - after).max())
    if worst > SAME_WITHIN or (before.argmax(1) != after.argmax(1)).any():
        raise BundleError(
            f"the saved model does not predict what the trained one does: probabilities differ by {worst:g}"
        )


def _describe(
    opened: OpenStudy,
    plan: Plan,
    dataset: Dataset,
    bundle: Bundle,
    found: Statistics,
    device: torch.device,
    seconds: float,
) -> dict[str, Any]:
    """The content of metrics.json."""
    config, test = opened.config, dataset.test
    scored = test if test is not None and test.label is not None else None
    training = _score(bundle, dataset.train, device)
    tested = None if scored is None else _score(bundle, scored, device)
    return {
        "study": config.study.name,
        "trial": plan.trial.number,
        "searched": {"metric": opened.metric, "value": plan.trial.value, "baseline": _value(opened.baseline())},
        "params": plan.trial.params,
        "test": tested,
        "training": training,
        "modalities": {
            "scored_on": "training" if scored is None else "test",
            "both": (tested or training)["macro_f1"],
            **_alone(bundle, scored or dataset.train, found, device),
        },
        "epochs": plan.epochs,
        "seed": plan.seed,
        "parameters": bundle.model.parameter_count(),
        "seconds": round(seconds, 2),
        "data": {
            "source": dataset.source,
            "layout": dataset.layout,
            "fingerprint": dataset.fingerprint,
            "training_rows": len(dataset.train),
            "test_rows": len(test) if test is not None else 0,
        },
        "hardware": {"device": _device_name(device), "threads": torch.get_num_threads()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("mmsearch", "torch", "optuna", "numpy", "scikit-learn")},
        },
    }


def _score(bundle: Bundle, split: Split, device: torch.device) -> dict[str, Any]:
    predicted = bundle.probabilities(split, device).argmax(1)
    matrix = confusion_matrix(split.labels, predicted, labels=range(len(bundle.classes)))
    report = classification_report(
        split.labels,
        predicted,
        labels=range(len(bundle.classes)),
        target_names=bundle.classes,
        output_dict=True,
        zero_division=0,
    )
    return {
        "rows": len(split),
        "accuracy": accuracy(matrix),
        "macro_f1": macro_f1(matrix),
        "per_class": {name: report[name] for name in bundle.classes},
        "confusion_matrix": matrix.tolist(),
    }


def _alone(bundle: Bundle, split: Split, found: Statistics, device: torch.device) -> dict[str, float]:
    """Macro F1 with each modality alone, while the other is set to its training mean."""
    scores = {}
    for name, stand_in in (("image_alone", {"audio": found.mean_audio}), ("audio_alone", {"image": found.mean_image})):
        predicted = predict_logits(bundle.model, split, device, **stand_in).argmax(1).numpy()
        scores[name] = macro_f1(confusion_matrix(split.labels, predicted, labels=range(len(bundle.classes))))
    return scores


def _value(trial: FrozenTrial | None) -> float | None:
    return None if trial is None else trial.value


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


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
