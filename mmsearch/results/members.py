"""The training of a bundle's members, on all rows, or on some for what is measured on the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, Split, statistics
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.models.factory import build_model
from mmsearch.results.bundle import Member
from mmsearch.results.plans import PlannedMember
from mmsearch.training.device import memory_told
from mmsearch.training.fit import EpochResult, fit, seed_everything
from mmsearch.training.transfer import load_weights


def train_member(
    config: StudyConfig,
    dataset: Dataset,
    rows: Split,
    planned: PlannedMember,
    device: torch.device,
    *,
    on_note: Callable[[str], None] = lambda text: None,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> Member:
    """One model, trained on raw rows of the data set from its seed, for its epochs of the searched schedule.

    Its normalisation comes from these rows alone. `on_note` is told what of the weights to begin with did not fit.
    Raises `LossNotFinite` and `OutOfMemory`.
    """
    hyperparameters = planned.hyperparameters
    train = with_features(rows, dataset.rate, hyperparameters, config.storage_paths.cache)
    shapes = feature_shapes(dataset.shapes, dataset.rate, hyperparameters)
    with memory_told(device):
        seed_everything(planned.seed)
        model = build_model(hyperparameters, shapes, statistics(train))
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
            epochs=planned.epochs,
            horizon=config.search.max_epochs,
            seed=planned.seed,
            device=device,
            frozen=frozen,
            precision=config.search.precision,
        ):
            on_epoch(result)
    return Member(model, hyperparameters)
