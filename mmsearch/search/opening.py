"""What a search looks at before its study is made, and what it says first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mmsearch.config import StudyConfig, hide_password
from mmsearch.data.dataset import Dataset
from mmsearch.data.describe import tell_skipped
from mmsearch.data.splits import validation_splits
from mmsearch.errors import MmsearchError, UsageError
from mmsearch.paths import BundlePaths
from mmsearch.search.machine import cores, gpus
from mmsearch.search.progress import plural
from mmsearch.search.samplers import notes
from mmsearch.search.study import total_of


def devices(config: StudyConfig) -> tuple[str, ...]:
    """What workers train on, each in its turn, as `choose_devices` has it; torch is not loaded where there is no GPU.

    Raises `UsageError` where a GPU is asked for that this machine does not have.
    """
    wanted, chosen = config.search.device, config.search.gpus
    if wanted == "cpu" and "search.gpus" in config.overrides:  # a study file's are as another machine has them
        raise UsageError("--gpus chooses among GPUs, but the device is the cpu")
    if wanted == "cpu" or (wanted == "auto" and chosen is None and not gpus()):
        return ("cpu",)
    from mmsearch.training.device import choose_devices  # here, since torch takes a second to import

    try:
        return tuple(map(str, choose_devices(wanted, chosen)))
    except MmsearchError as error:
        raise UsageError(str(error)) from None


def default_workers(config: StudyConfig, places: tuple[str, ...]) -> int:
    """As many as the GPUs take, or else one a core, at most 8."""
    if places[0].startswith("cuda"):
        return len(places) * config.search.workers_per_gpu
    return min(cores(), 8)


def check_init(config: StudyConfig, dataset: Dataset) -> None:
    """Raise `BundleError` where the weights to begin with are missing or damaged, or none fits the defaults' model."""
    if config.search.init is not None:
        from mmsearch.data.features import feature_shapes
        from mmsearch.models.factory import build_model
        from mmsearch.training.transfer import load_weights

        defaults = config.configurations[0]
        model = build_model(defaults, feature_shapes(dataset.shapes, dataset.rate, defaults))
        load_weights(model, Path(config.search.init))


def _init_notes(config: StudyConfig, dataset: Dataset) -> Iterator[str]:
    """That the weights to begin with have seen the rows that validate, where they have."""
    if config.search.init is None:
        return
    try:
        held = json.loads(BundlePaths(Path(config.search.init)).metrics.read_text(encoding="utf-8"))
        known = held["data"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # made by hand, of weights alone
    if known == dataset.fingerprint:
        yield (
            f"the weights of {config.search.init} were trained on these very rows, validation rows included: values "
            "will be better than on new rows; begin with weights of other data"
        )


def opening(
    config: StudyConfig, dataset: Dataset, workers: int, threads: int, places: tuple[str, ...] = (), beside: int = 0
) -> Iterator[str]:
    """The first lines of a search: where, on what data, for what, with which workers, and what may surprise.

    `places` are the devices that workers take turns on; `beside` workers are at work here already. Raises `DataError`
    where the rows cannot be split.
    """
    yield f"study {config.study.name} in {config.paths.folder}, storage {hide_password(config.storage_url)}"
    yield f"data {dataset.source} ({dataset.layout}): {_rows(config, dataset)}; {len(dataset.classes)} classes"
    if dataset.skipped:
        yield tell_skipped(dataset.skipped)
    if len(config.study.metrics) > 1:
        leading, *others = config.study.metrics
        yield f"metrics {leading} (leads), {', '.join(others)}; with several metrics no trial is pruned as it trains"
    if config.constraints:
        yield f"constraints {', '.join(map(str, config.constraints))}: only trials that keep to them can be the best"
        sampler = config.search.sampler
        if sampler in ("gp", "nsga2") and any(held.metric == "parameters" for held in config.constraints):
            yield f"sampler {sampler} learns from complete trials only: models of too many parameters are trained too"
    available = cores()
    w, t, c = (plural(*pair) for pair in ((workers, "worker"), (threads, "thread"), (available, "core")))
    cards = ", ".join(place for place in places if place.startswith("cuda"))
    yield f"{w} of {t} on {c}" + (f" and {cards}" if cards else "")
    if beside:
        yield (
            f"{plural(beside, 'worker')} of the study train{'s' * (beside == 1)} on this machine already, in another "
            "command: one command with more --workers shares the cores out better"
        )
    if workers > available:
        yield f"{w} on {c} will wait for each other; --workers {available} is faster"
    for name in config.dimensions.unused():
        yield f'"{name}" in [space] applies to no configuration of it, and is not used'
    if total_of(config) < config.study.trials:
        yield f"the grid has {total_of(config)} points: the total is {total_of(config)} trials"
    yield from notes(config)
    yield from _init_notes(config, dataset)


def _rows(config: StudyConfig, dataset: Dataset) -> str:
    """Which rows train, validate and test, in words."""
    splits = validation_splits(dataset, config)
    train, valid = (_between([len(pair[side]) for pair in splits]) for side in (0, 1))
    each = f"{len(splits)} folds, of each " if len(splits) > 1 else ""
    words = [f"{each}{train} rows train", f"{valid} validate", f"{len(dataset.test or ())} test (not used here)"]
    if dataset.held_back is not None:
        words.append(f"{len(dataset.held_back)} are held back for retrain-best to score")
    return ", ".join(words)


def _between(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"
