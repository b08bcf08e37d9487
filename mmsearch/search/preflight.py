"""Before a long search: a few configurations run some steps each, and memory, disk and hours are foretold.

Configurations are the defaults, the extremes of the space, and draws of it, spread evenly. They run in processes of
their own, as many at once as there will be workers, with a worker's threads, device and precision; each extreme has a
fresh process, so that its memory is its own. No study is made, and nothing is written in its storage; a manifest's and
wav files' data are cached, as by whichever command reads them first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig
from mmsearch.data.cache import KEPT_BYTES
from mmsearch.data.dataset import Dataset
from mmsearch.data.features import feature_shapes
from mmsearch.data.splits import validation_splits
from mmsearch.errors import MmsearchError
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.search.crew import Crew
from mmsearch.search.forecast import Forecast, Measured, Room, Work, foretell
from mmsearch.search.forecast_forms import as_dict, as_text
from mmsearch.search.machine import cores
from mmsearch.search.progress import Progress, duration, plural
from mmsearch.search.proposals import QuasiRandomPoints
from mmsearch.search.room import available_memory, free_disk
from mmsearch.search.samplers import first_step, steps
from mmsearch.search.space import at, restore
from mmsearch.search.study import count, total_of

SECONDS = 40.0  # for all that is measured; a step that takes long comes on top
LEAST_SECONDS = 5.0  # before a launch, of a short search
DRAWS = 96  # of which costs are guessed, and some are measured
IMAGINED = 2000  # trials, at most, of which the audio features are looked up


@dataclass(frozen=True)
class Preflight:
    """A forecast, and what it is made of: `named` are the defaults and the extremes, with what they took, and `draws`
    how many others were measured.
    """

    forecast: Forecast
    work: Work
    room: Room
    named: Mapping[str, Measured]
    draws: int

    def as_text(self) -> str:
        """For people."""
        return as_text(self.forecast, self.work, self.room, self.named)

    def as_json(self) -> str:
        """Exact: bytes and seconds."""
        return json.dumps(as_dict(self.forecast, self.work, self.room, self.named) | {"draws": self.draws}) + "\n"

    def must_fit(self) -> None:
        """Raise `MmsearchError`, which says why, where it will not fit."""
        if not self.forecast.fits:
            raise MmsearchError(f"the search will not fit: {self.forecast.problems[0]}")


def look_ahead(
    config: StudyConfig,
    dataset: Dataset,
    team: tuple[int, int],
    places: tuple[str, ...],
    trials: Sequence[FrozenTrial],
    progress: Progress,
    seconds: float | None = None,
) -> Preflight:
    """Foretell a search by `team`, so many workers of so many threads, which take turns on `places`.

    `trials` are those that the study has already: the finished ones are done, and say how many epochs a trial has.
    Takes about `seconds`; None is one for each trial that is left, 5 to 40. Raises `DataError` where the rows cannot be
    split, and `MmsearchError` where the processes that measure do not come to it.
    """
    rows = validation_splits(dataset, config)
    memory, disk = available_memory(), free_disk(config.storage_paths.folder)
    total, search = total_of(config), config.search
    left = max(0, total - count(list(trials)).finished)
    seconds = min(SECONDS, max(LEAST_SECONDS, left)) if seconds is None else seconds
    share, learned = share_of_epochs(config, trials)
    workers, threads = team
    work = Work(
        workers=workers,
        threads=threads,
        devices=len(places),
        left=left,
        total=total,
        folds=config.folds,
        epochs=search.max_epochs,
        rows=(_mean([len(train) for train, _ in rows]), _mean([len(valid) for _, valid in rows])),
        least=least_share(config),
        share=share,
        learned=learned,
        features=features_of(config, dataset, left),
        dimensions=len(config.dimensions.varying()),
        embedded=config.storage_url.startswith("sqlite"),
        timeout=search.timeout,
        trial_timeout=search.trial_timeout,
        epoch_timeout=search.epoch_timeout,
    )
    room = Room(cores(), memory, disk)
    if not left:
        return Preflight(foretell(work, room, {}, []), work, room, {}, 0)
    progress.note(
        f"preflight: some configurations run a few steps each, for about {duration(seconds)}, on "
        f"{plural(workers, 'worker')} of {plural(threads, 'thread')}"
    )
    with Crew(config, team, places, draw(config, DRAWS), config.folds * search.max_epochs, seconds) as crew:
        crew.wait(progress)
    measured = sorted(crew.drawn)
    work = replace(
        work,
        guesses=[None if held["refused"] else held["seconds"] for held in crew.guesses],
        guessed=[crew.guesses[i]["seconds"] for i in measured],
        log=crew.left["log"],
        shown=crew.left["shown"],
        picture_s=crew.left["seconds"],
        ready_s=max(crew.ready_s),
    )
    if places[0].startswith("cuda"):
        room = replace(room, gpu=min(crew.gpu_free.values()))
    drawn = [crew.drawn[i] for i in measured]
    return Preflight(foretell(work, room, crew.named, drawn), work, room, crew.named, len(drawn))


def draw(config: StudyConfig, number: int) -> list[Hyperparameters]:
    """So many configurations, spread evenly over the space as a sampler draws it before it has learned anything."""
    space = config.dimensions
    if not space.varying():
        return [config.configurations[0]]
    points = QuasiRandomPoints(space, config.study.seed)
    return [restore(space, points.point(i)) for i in range(number)]


def share_of_epochs(config: StudyConfig, trials: Sequence[FrozenTrial]) -> tuple[float | None, int]:
    """Which part of the epochs that it could have had a finished trial trained, on average, and of how many trials.

    None where none was trained.
    """
    finished = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    epochs = [trial.user_attrs["epochs"] for trial in finished if "epochs" in trial.user_attrs]
    return (fmean(epochs) / (config.folds * config.search.max_epochs) if epochs else None), len(epochs)


def least_share(config: StudyConfig) -> float:
    """The part of its epochs that a trial trains in any case, before it can be pruned or its patience ends."""
    search = config.search
    prunes = search.pruner != "none" and len(config.study.metrics) == 1
    first = first_step(config) if prunes else steps(config)
    patient = min(search.patience + 1, search.max_epochs)
    epochs = first * patient if config.folds > 1 else min(first, patient)
    return epochs / (config.folds * search.max_epochs)


def features_of(config: StudyConfig, dataset: Dataset, trials: int) -> tuple[int, int]:
    """The bytes that the audio features of so many trials take on disk, and the waveforms they are computed of.

    Each setting is computed once; what was used longest ago makes room. (0, 0) where the audio rows are features.
    Settings are counted among random draws, which take a thirtieth of the time of spread ones.
    """
    if dataset.rate is None:
        return 0, 0
    settings: dict[tuple[tuple[str, object], ...], int] = {}
    rows = len(dataset.train.audio)
    random, space = np.random.default_rng(config.study.seed), config.dimensions
    varies = any(name.startswith("features.") for name in space.varying())
    for _ in range(min(trials, IMAGINED if varies else 1)):
        made = space.walk(lambda _, dimension: at(dimension, random.random()))
        key = tuple((name, value) for name, value in made.items() if name.startswith("features."))
        if key not in settings:
            frames, coefficients = feature_shapes(dataset.shapes, dataset.rate, made).audio
            settings[key] = 4 * rows * frames * coefficients
    return min(sum(settings.values()), KEPT_BYTES), rows * len(settings)


def _mean(numbers: Sequence[int]) -> int:
    return round(fmean(numbers))
