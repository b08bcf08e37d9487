"""Retrain the chosen trial on training and validation rows, score it once on test, and leave a bundle."""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, Split
from mmsearch.data.sources import load_dataset
from mmsearch.data.splits import some
from mmsearch.errors import MmsearchError, UsageError
from mmsearch.paths import BundlePaths, write_text
from mmsearch.results.account import MOST_ROWS, modality_account
from mmsearch.results.bundle import Bundle, Member
from mmsearch.results.calibration import Calibration, Threshold, abstention_curve, unseen_logits
from mmsearch.results.card import model_card
from mmsearch.results.exports import write_exports
from mmsearch.results.members import train_member
from mmsearch.results.plans import Plan, PlannedMember, make_plan
from mmsearch.results.predict import known_labels, predictions_csv, submission_csv
from mmsearch.results.scores import certainty, labelled_splits, score, scored_split, softened
from mmsearch.search.note import RETRAINED, save_note
from mmsearch.search.study import OpenStudy, open_study
from mmsearch.search.values import METRICS, VIOLATED
from mmsearch.training.device import choose_device
from mmsearch.training.fit import EpochResult
from mmsearch.training.precision import computed_in
from mmsearch.training.provenance import hardware, versions


@dataclass(frozen=True)
class Listener:
    """Who is told how a retraining goes.

    `plan`: once, what is trained. `note`: what of the weights to begin with did not fit, and which form of the model
    was not written. `step`: what begins now, a few words. `epoch`: each epoch, of every model.
    """

    plan: Callable[[Plan], None] = lambda plan: None
    note: Callable[[str], None] = lambda text: None
    step: Callable[[str], None] = lambda text: None
    epoch: Callable[[EpochResult], None] = lambda result: None


def retrain_best(
    config: StudyConfig,
    *,
    trial: int | None = None,
    rule: str | None = None,
    ensemble: int = 1,
    calibrate: bool = True,
    abstain_below: str | float | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_note: Callable[[str], None] = lambda text: None,
    on_step: Callable[[str], None] = lambda text: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> Bundle:
    """Train one completed trial's configuration on all training rows and leave it as a bundle.

    The trial is number `trial`, whatever its constraints; or the one that `rule` picks: `best`, and among several
    metrics also `knee` or `within=NUMBER` (see `mmsearch.search.values.pick`); or else the winner of `mmsearch
    confirm`, or the best where nothing is confirmed. It keeps the searched schedule and stops after the number of
    epochs that was best; with k-fold validation after the median of the folds', and where it was confirmed after the
    median of the seeds'. `ensemble` models are trained, as `mmsearch.results.plans.make_plan` says, and their
    probabilities averaged.

    With `calibrate` they train once more before, without the validation rows, and the temperature is fitted on these;
    and so is the threshold that `abstain_below` asks for: a confidence, `accuracy=0.999` or `coverage=0.95`.

    The test split, where it has labels, and the rows that were held back, are looked at once. Every form of the model
    is loaded again and must predict the same. The bundle is then moved to its place, `storage/<study>/retrained/
    <trial>`; an earlier one there stays, and the new one gets a number. A form that fails is left out, and
    `MmsearchError` raised when all else is in its place. Whatever else ends it after the training, also a
    signal, leaves the weights as `<trial>-unfinished`, which `Bundle.load` reads.

    Raises `NoCompletedTrial`, `UsageError` for a trial that is not complete, a rule that is none, more members than
    there are configurations, and a threshold without a calibration, and `StudyMismatch` where the data are not those of
    the search.
    """
    asked = None if abstain_below is None else Threshold.parse(abstain_below)
    if asked is not None and not calibrate:
        raise UsageError("--abstain-below needs the calibration that --no-calibrate leaves out")
    listener = Listener(on_plan, _once(on_note), on_step, on_epoch)
    with open_study(config) as opened:
        opened.must_be_a_search()
        plan = make_plan(opened, trial=trial, rule=rule, ensemble=ensemble, calibrate=calibrate)
        dataset = load_dataset(config)
        opened.check(dataset.fingerprint)
        listener.plan(plan)
        return _retrain(opened, plan, dataset, asked, listener)


def _once(tell: Callable[[str], None]) -> Callable[[str], None]:
    """The same, but what was told is not told again: each model that begins with given weights says so."""
    told: set[str] = set()

    def first(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    return first


def _retrain(opened: OpenStudy, plan: Plan, dataset: Dataset, asked: Threshold | None, listener: Listener) -> Bundle:
    config = opened.config
    device = choose_device(config.search.device)

    def train(rows: Split, planned: PlannedMember) -> Member:
        return train_member(config, dataset, rows, planned, device, on_note=listener.note, on_epoch=listener.epoch)

    calibration = None
    if plan.unseen_epochs:
        listener.step("training without the validation rows, to calibrate on them")
        unseen = unseen_logits(config, dataset, plan.members, device, train)
        calibration = Calibration.fit(unseen, asked)
        listener.step("training on training and validation rows")
    started = time.perf_counter()
    members = tuple(train(dataset.train, planned) for planned in plan.members)
    seconds = time.perf_counter() - started
    building = config.paths.retrained / f".{secrets.token_hex(4)}"
    bundle = Bundle(members, dataset.trained, building)
    if calibration is not None:
        bundle = replace(bundle, temperature=calibration.temperature, abstain_below=calibration.abstain_below)
    with _kept_once_saved(building, str(plan.trial.number), listener):
        bundle.save(building)
        metrics = _describe(opened, plan, dataset, bundle, calibration, device, seconds, listener)
        failure = _complete(opened, dataset, bundle, metrics, device, listener)
        folder = _move_in(building, str(plan.trial.number))
        _point_at(folder)
    judged = metrics[metrics["modalities"]["scored_on"]]["macro_f1"]
    place = folder.relative_to(config.storage_paths.folder).as_posix()  # others see it too, on other machines
    known = {"trial": plan.trial.number, "macro_f1": judged, "folder": place}
    opened.optuna.set_user_attr(RETRAINED, known)
    save_note(opened)
    if failure is not None:
        raise MmsearchError(f"{folder} holds the model, its metrics and predictions, but not all exports: {failure}")
    return replace(bundle, folder=folder)


def _describe(
    opened: OpenStudy,
    plan: Plan,
    dataset: Dataset,
    bundle: Bundle,
    calibration: Calibration | None,
    device: torch.device,
    seconds: float,
    listener: Listener,
) -> dict[str, Any]:
    """The content of metrics.json, but for the exports."""
    config, trial, cache = opened.config, plan.trial, opened.config.storage_paths.cache
    splits = labelled_splits(dataset)
    name, scored = scored_split(dataset)
    listener.step(f"scoring on {len(scored)} {name.replace('_', ' ')} rows")
    logits = {held: bundle.logits(split, device, cache=cache) for held, split in splits.items() if split is not None}
    scores = {
        held: None if split is None else score(bundle, logits[held], split.labels) for held, split in splits.items()
    }
    curve = abstention_curve(*certainty(softened(logits[name], bundle.temperature), scored.labels))
    listener.step("scoring with each modality alone, and shuffled")
    account = modality_account(bundle, scored, device, cache)
    values = dict(zip(opened.metrics, trial.values, strict=True))
    baseline, confirmed = opened.baseline(), plan.confirmed
    return {
        "study": config.study.name,
        "trial": trial.number,
        "chosen": {"by": plan.by, "sentence": plan.why},
        "searched": {
            "metric": opened.metrics[0],
            "value": trial.values[0],
            "baseline": None if baseline is None else baseline.values[0],
            "rule": plan.rule,
            "values": {**values, **trial.user_attrs.get(METRICS, {})},
            "violated": trial.user_attrs.get(VIOLATED) or None,
        },
        "confirmed": None
        if confirmed is None
        else {
            "mean": confirmed.mean,
            "interval": None if confirmed.interval is None else list(confirmed.interval),
            "seeds": len(confirmed.values),
            "drop": confirmed.drop,
        },
        "params": trial.params,
        "members": [
            {
                "trial": planned.trial.number,
                "epochs": planned.epochs,
                "seed": planned.seed,
                "parameters": member.model.parameter_count(),
                "precision": computed_in(config.search.precision, planned.hyperparameters, device),
                "params": planned.trial.params,
            }
            for planned, member in zip(plan.members, bundle.members, strict=True)
        ],
        **scores,
        "calibration": None if calibration is None else calibration.describe(),
        "abstention": curve,
        "modalities": {
            "scored_on": name,
            **{part: account[part]["macro_f1"] for part in ("both", "image_alone", "audio_alone")},
            "account": account,
        },
        "epochs": plan.members[0].epochs,
        "seed": plan.members[0].seed,
        "parameters": bundle.parameters,
        "seconds": round(seconds, 2),
        "data": {
            "source": _told(dataset.source, Path(config.file)),
            "layout": dataset.layout,
            "fingerprint": dataset.fingerprint,
            "training_rows": len(dataset.train),
            "test_rows": len(dataset.test) if dataset.test is not None else 0,
            "held_back_rows": len(dataset.held_back) if dataset.held_back is not None else 0,
        },
        "hardware": hardware(device),
        "versions": versions(),
    }


def _complete(
    opened: OpenStudy,
    dataset: Dataset,
    bundle: Bundle,
    metrics: dict[str, Any],
    device: torch.device,
    listener: Listener,
) -> Exception | None:
    """Write all that a bundle holds beside its weights; returns what went wrong with its exports."""
    paths, cache = BundlePaths(bundle.folder), opened.config.storage_paths.cache

    def write() -> None:
        write_text(paths.metrics, json.dumps(metrics, indent=2) + "\n")
        write_text(paths.card, model_card(opened, dataset, bundle, metrics))

    metrics["exports"] = {}
    write()
    test, classes = dataset.test, bundle.classes
    if test is not None:
        found = bundle.probabilities(test, device, cache=cache)
        table = predictions_csv(
            classes, found, test.ids, known_labels(test), test.files, abstain_below=bundle.abstain_below
        )
        write_text(paths.predictions, table)
        if dataset.competition:
            write_text(paths.submission, submission_csv(classes, found, test.ids))
    listener.step("exporting, and checking each form")
    failure: Exception | None = None
    try:
        metrics["exports"] = write_exports(bundle, test or some(dataset.train, MOST_ROWS, 0), on_note=listener.note)
    except Exception as error:  # whatever it is, what was trained is not to be lost
        if not paths.weights.exists():  # which were wrong
            raise
        logging.getLogger("mmsearch").debug("the export failed", exc_info=True)
        failure = error
    write()
    return failure


def _told(source: str, study_file: Path) -> str:
    """Where data are, without the user's own folders: from the study file's folder or the one above, or a name only."""
    if source == "demo":
        return source
    found = Path(os.path.relpath(source, study_file.resolve().parent))
    return found.name if found.parts[:2] == ("..", "..") else found.as_posix()


@contextmanager
def _kept_once_saved(building: Path, name: str, listener: Listener) -> Iterator[None]:
    """Whatever ends the block, also a signal: a model that was saved by then stays, as `<name>-unfinished`.

    `best` does not point at it. A `MmsearchError` says where it is; of anything else `listener.note` is told. A model
    that was not saved as a whole, or whose weights were wrong, is removed.
    """
    paths = BundlePaths(building)
    try:
        yield
    except BaseException as error:
        if not (paths.weights.exists() and paths.config.exists()):  # the last one that `Bundle.save` writes
            shutil.rmtree(building, ignore_errors=True)
            raise
        folder = _move_in(building, f"{name}-unfinished")
        said = f"the trained model is kept, and `mmsearch predict` takes it: {folder}"
        if isinstance(error, MmsearchError):
            error.args = (f"{error}; {said}",)
        else:
            listener.note(said)
        raise


def _move_in(building: Path, name: str) -> Path:
    """Give a folder its name beside its old one, or the first free `name-2`, `name-3`, ..."""
    parent = building.parent
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
        return folder
    raise MmsearchError(f"{parent}: there are 10,000 retrained models of trial {name} already")


def _point_at(folder: Path) -> None:
    """Make the link `best` one to this folder."""
    link = folder.with_name(f".{secrets.token_hex(4)}")
    link.symlink_to(folder.name)
    os.replace(link, folder.with_name("best"))
