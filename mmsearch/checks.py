"""What one section of a study file forbids in another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mmsearch.errors import StudyFileError
from mmsearch.hyperparameters import TABLE, show
from mmsearch.spaces import Fixed, Range

if TYPE_CHECKING:
    from mmsearch.config import StudyConfig


def check_either_way(config: StudyConfig) -> None:
    """Raise `StudyFileError` for an `[[enqueue]]` that is possible neither with waveforms nor with features."""
    wrong: StudyFileError | None = None
    for kind in ("waveforms", "features"):
        try:
            config.configurations_in(replace(config.dimensions, given={"data.audio": kind}))
        except StudyFileError as error:
            wrong = error
        else:
            return
    assert wrong is not None
    raise wrong


def check_search(config: StudyConfig) -> None:
    """What one section's value forbids in another."""
    if config.data.validation == "three_way" and config.data.fraction >= 0.5:
        raise StudyFileError(
            f"{config.file}: [data] fraction = {show(config.data.fraction)} must be below 0.5: "
            "three_way keeps as many rows back as validate"
        )
    freezing = "transfer.freeze_epochs"
    if freezing in config.dimensions.dimensions and not config.search.init and config.dimensions[freezing] != Fixed(0):
        raise StudyFileError(f'{config.file}: [space] "{freezing}" needs weights to freeze: init in [search]')
    _check_pruner(config)
    if config.search.sampler != "grid":
        return
    for name, dimension in config.dimensions.varying().items():
        where = f'{config.file}: [space] "{name}"'
        if TABLE[name].requires and name not in config.dimensions.configuration({}):
            raise StudyFileError(f"{where} applies only to some configurations, which a grid cannot hold")
        parents = [parent for parent, _ in TABLE[name].requires if parent in TABLE]
        if any(not isinstance(config.dimensions[parent], Fixed) for parent in parents):
            raise StudyFileError(f"{where} applies only to some configurations, which a grid cannot hold")
        if isinstance(dimension, Range) and dimension.grid() is None:
            raise StudyFileError(f"{where} needs a step, or a list of choices, to be searched by a grid")


def _check_pruner(config: StudyConfig) -> None:
    search, where = config.search, f"{config.file}: [search]"
    chosen, lower, upper = f'{where} pruner = "{search.pruner}"', search.pruner_lower, search.pruner_upper
    if len(config.study.metrics) > 1 and search.pruner not in ("halving", "median", "none"):
        raise StudyFileError(f'{chosen} needs one metric: trials with several are not pruned, as with "none"')
    if search.pruner == "threshold" and lower is None and upper is None:
        raise StudyFileError(f"{chosen} needs pruner_lower or pruner_upper")
    if lower is not None and upper is not None and lower > upper:
        raise StudyFileError(f"{where} pruner_lower = {show(lower)} is above pruner_upper = {show(upper)}")
    if search.pruner == "wilcoxon" and config.data.validation != "kfold":
        raise StudyFileError(
            f'{chosen} compares folds: it needs validation = "kfold" in [data], not "{config.data.validation}"'
        )
