"""Everything that a report is made from: read, drawn, and trained where it is missing and that is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset
from mmsearch.data.sources import load_dataset
from mmsearch.errors import BundleError, DataError
from mmsearch.paths import BundlePaths
from mmsearch.results.ablation import ablation_of
from mmsearch.results.bundle import Bundle
from mmsearch.results.confirm import Confirmation, confirmation_of
from mmsearch.results.figures.model import layer_table, model_figures
from mmsearch.results.figures.search import figures_of
from mmsearch.results.figures.trials import read_study
from mmsearch.results.report.content import Code, Text
from mmsearch.results.report.material import Material, Model, Rows, Searched, shown, without_roots
from mmsearch.search.study import OpenStudy, count
from mmsearch.training.device import choose_device

Say = Callable[[str], None]
Train = Callable[[StudyConfig], object]


def gather(
    opened: OpenStudy, *, retrain: Train | None, ablate: Train | None, on_step: Say = lambda text: None
) -> Material:
    """All that a report of a study needs.

    `ablate` trains the ablation first; `retrain` makes a model where there is none of this study. None: then the report
    says what is missing, and the data need not be there. The search is read when both have ended, once. `on_step` is
    told what took how long. Raises `NoCompletedTrial`, `StudyMismatch` where study file or data are not those of the
    search, `DataError`, and what the two raise.
    """
    config = opened.config
    opened.must_be_a_search()
    opened.picked()  # raises where nothing is complete
    with timed("the data", on_step):
        dataset, lacking = _dataset(config, needed=retrain is not None or ablate is not None)
        known = (opened.stored_fingerprint() or {}).get("data")
        opened.check(str(known) if dataset is None else dataset.fingerprint)
        rows = None if dataset is None else Rows.of(dataset, config)
    if ablate is not None:
        with timed("the ablation", on_step):
            ablate(config)
    if retrain is not None and _latest(read_search(opened), opened, None)[0] is None:
        with timed("retraining, since there was no model of this study", on_step):
            retrain(config)
    opened = Snapshot.of(opened, opened.trials())  # a search may go on meanwhile
    searched, confirmation = read_search(opened), confirmation_of(opened)
    bundle, doubts = _latest(searched, opened, confirmation)
    with timed("the figures of the search", on_step):
        drawn = tuple(figures_of(read_study(opened, confirmation)))
    model = None
    if bundle is not None:
        with timed("the figures of the model", on_step):
            model = _model(bundle, dataset, config)
    if lacking is not None:
        doubts = ((f"The data could not be read ({lacking}): what needs them is left out.",), *doubts)
    return Material(
        searched=searched,
        made=datetime.now().astimezone(),
        dataset=dataset,
        rows=rows,
        search_figures=drawn,
        confirmation=confirmation,
        ablation=ablation_of(opened),
        model=model,
        models=sum(BundlePaths(folder).metrics.is_file() for folder in _retrained(config)),
        doubts=doubts,
    )


@dataclass(frozen=True)
class Snapshot(OpenStudy):
    """A study whose trials are those of one moment, whatever a search adds."""

    held: tuple[FrozenTrial, ...]

    @staticmethod
    def of(opened: OpenStudy, trials: Sequence[FrozenTrial]) -> Snapshot:
        """The study with these trials."""
        return Snapshot(opened.config, opened.optuna, opened.storage, tuple(trials))

    def trials(self) -> list[FrozenTrial]:
        """Those trials."""
        return list(self.held)


@contextmanager
def timed(what: str, on_step: Say) -> Iterator[None]:
    """Tell how long the block took, when it has ended well."""
    began = time.perf_counter()
    yield
    on_step(f"{what}: {time.perf_counter() - began:.1f} s")


def _dataset(config: StudyConfig, *, needed: bool) -> tuple[Dataset | None, str | None]:
    """The study's data, or why they cannot be read."""
    try:
        return load_dataset(config), None
    except DataError as error:
        if needed:
            raise
        return None, without_roots(config, str(error))


def read_search(opened: OpenStudy) -> Searched:
    """A study's search as it stands; raises `NoCompletedTrial`."""
    trials = opened.trials()
    return Searched(
        config=opened.config,
        trials=tuple(trials),
        counts=count(trials),
        total=opened.total(),
        metrics=opened.metrics,
        signs=tuple(opened.signs),
        constraints=opened.constraints,
        best=opened.picked(),
        baseline=opened.baseline(trials),
        front=tuple(opened.front(trials)),
        gain=opened.gain(trials),
    )


def _retrained(config: StudyConfig) -> list[Path]:
    """The folders of all retrained models."""
    folder = config.paths.retrained
    return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()] if folder.is_dir() else []


def _latest(
    searched: Searched, opened: OpenStudy, confirmation: Confirmation | None
) -> tuple[Bundle | None, tuple[Text, ...]]:
    """The latest retrained model, if it is of this study, and what is to be said of it or of its absence."""
    link = searched.config.paths.retrained / "best"
    if not link.is_dir():
        return None, ()
    try:
        bundle = Bundle.load(link.resolve())
        metrics = bundle.metrics
    except (BundleError, OSError, ValueError) as error:
        why = without_roots(opened.config, str(error))
        return None, ((f"The latest retrained model is left out, since it cannot be read: {why}.",),)
    stranger = foreign(metrics, searched, (opened.stored_fingerprint() or {}).get("data"))
    if stranger is not None:
        return None, ((f"The latest retrained model is left out, since it {stranger}.",),)
    newer = outdated(metrics, searched, confirmation)
    return bundle, () if newer is None else ((newer, Code(searched.command("retrain-best")), " trains that one."),)


def foreign(metrics: dict[str, Any], searched: Searched, data: str | None) -> str | None:
    """Why a model with these metrics is none of the study; None where it is."""
    whole = {"chosen", "members", "calibration", "abstention"} <= set(metrics)
    if not whole or "account" not in metrics["modalities"]:
        return "was made by an earlier version"
    if metrics["data"]["fingerprint"] != data:
        return "was trained on other data than the study has now"
    number = metrics["trial"]
    trial = next((trial for trial in searched.trials if trial.number == number), None)
    if trial is None or trial.params != metrics["params"]:
        return f"is of a trial {number} that the study does not have"
    return None


def outdated(metrics: dict[str, Any], searched: Searched, confirmation: Confirmation | None) -> str | None:
    """What has come up since a model of the study was made; None where it is the winner's, or picked by hand."""
    if metrics["chosen"]["by"] not in ("best", "confirmed"):
        return None
    number = metrics["trial"]
    if confirmation is not None and confirmation.choice != number:
        return f"The model is of trial {number}; the confirmed choice is now trial {confirmation.choice}. "
    if confirmation is None and searched.best.number != number:
        return f"The model is of trial {number}; the best is now trial {searched.best.number}. "
    return None


def _model(bundle: Bundle, dataset: Dataset | None, config: StudyConfig) -> Model:
    folder = shown(config, bundle.folder)
    layers = tuple(layer_table(bundle))
    if dataset is None:
        return Model(bundle.metrics, folder, layers=layers)
    device, cache = choose_device(config.search.device), config.storage_paths.cache
    with threadpool_limits(1):  # threads that wait for a busy core made t-SNE of 1,000 rows eight times as dear
        figures = tuple(model_figures(bundle, dataset, device=device, cache=cache))
    return Model(bundle.metrics, folder, figures, layers)
