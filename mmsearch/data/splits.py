"""Which rows validate and which test: stratified by class, and grouped, so that no repeat lies on both sides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmsearch.config import StudyConfig
from mmsearch.data.dataset import Dataset, Index, Split
from mmsearch.errors import DataError


def assign(labels: Index, groups: Index, shares: tuple[float, ...], rng: np.random.Generator) -> Index:
    """Give each row a part, 0 to len(shares) - 1, so that each part gets its share of each class.

    labels, groups: (N,). A group goes as a whole to the part that lacks most of the group's most frequent class, the
    large groups first, in an order that `rng` shuffles among groups of a size. Among parts that lack as much of the
    class, but for less than a row, it goes to the one that lacks most of all classes: classes of a few rows would
    otherwise all lie in the first part.
    """
    names, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group, minlength=len(names))
    majority = _majority(labels, group, len(names))
    order = rng.permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    totals = np.bincount(majority, weights=counts)
    lacking = [[share * float(total) for share in shares] for total in totals]
    whole = [share * float(counts.sum()) for share in shares]
    part = np.empty(len(names), dtype=np.int64)
    for name in order.tolist():
        row = lacking[majority[name]]
        nearly = max(row) - 1 + 1e-9
        best = max((p for p in range(len(row)) if row[p] > nearly), key=whole.__getitem__)
        row[best] -= int(counts[name])
        whole[best] -= int(counts[name])
        part[name] = best
    return part[group]


def _majority(labels: Index, group: Index, groups: int) -> Index:
    """(groups,) the most frequent label of each group."""
    pairs, counts = np.unique(np.stack([group, labels]), axis=1, return_counts=True)
    order = np.argsort(counts, kind="stable")
    found = np.empty(groups, dtype=np.int64)
    found[pairs[0][order]] = pairs[1][order]  # of a group's labels, the one written last counts
    return found


def validation_splits(dataset: Dataset, config: StudyConfig) -> list[tuple[Split, Split]]:
    """Training and validation rows of each model that a trial trains: one pair, or with `kfold` one a fold.

    Raises `DataError` where a side would be empty.
    """
    data, seed = config.data, config.study.seed
    if data.validation == "kfold":
        return k_folds(dataset, data.folds, seed)
    if data.validation == "three_way":  # of all rows, of which as many are kept back already
        return [holdout(dataset, data.fraction / (1 - data.fraction), seed)]
    return [holdout(dataset, data.fraction, seed)]


def holdout(dataset: Dataset, fraction: float, seed: int) -> tuple[Split, Split]:
    """Training and validation rows; `fraction` of the training split validates."""
    return _divide(dataset, fraction, _generator(seed, 0), "validation")


def k_folds(dataset: Dataset, folds: int, seed: int) -> list[tuple[Split, Split]]:
    """Training and validation rows of each fold; each row of the training split validates in one of them."""
    train = dataset.train
    part = assign(train.labels, dataset.groups[train.rows], (1 / folds,) * folds, _generator(seed, 4))
    found = [(train.only(train.rows[part != fold]), train.only(train.rows[part == fold])) for fold in range(folds)]
    if not all(len(valid) for _, valid in found):
        raise DataError(f"{dataset.source}: no {folds} folds are possible: {_reason(dataset)}")
    return found


def split_off_test(dataset: Dataset, fraction: float, seed: int) -> tuple[Split, Split]:
    """Training and test rows of a data set that came without a test split."""
    return _divide(dataset, fraction, _generator(seed, 1), "test")


def keep_back(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """The data set without `fraction` of its training rows: its test split, or `held_back` beside one of its own."""
    kept, held_back = split_off_test(dataset, fraction, seed)
    if dataset.test is None:
        return replace(dataset, train=kept, test=held_back)
    return replace(dataset, train=kept, held_back=held_back)


def _divide(dataset: Dataset, fraction: float, rng: np.random.Generator, what: str) -> tuple[Split, Split]:
    """What stays, and what is held out; raises `DataError` where either would be empty."""
    train = dataset.train
    part = assign(train.labels, dataset.groups[train.rows], (1 - fraction, fraction), rng)
    kept, held_out = train.only(train.rows[part == 0]), train.only(train.rows[part == 1])
    if not len(kept) or not len(held_out):
        raise DataError(f"{dataset.source}: no {what} split of {fraction:g} is possible: {_reason(dataset)}")
    return kept, held_out


def _reason(dataset: Dataset) -> str:
    """Why there are too few groups to be shared out."""
    train = dataset.train
    largest, rows = int(np.bincount(dataset.groups[train.rows]).max()), len(train)
    if largest > 1:
        return (
            f"identical images or recordings link {largest} of the {rows} training rows into one group, "
            "which must not be torn apart"
        )
    return f"{rows} training rows are too few"


def some(split: Split, count: int, seed: int) -> Split:
    """`count` of a split's rows, with the split's balance of classes."""
    if count >= len(split):
        return split
    rng, labels = _generator(seed, 2), split.labels
    totals = np.bincount(labels)
    exact = totals * count / len(split)
    taken = exact.astype(np.int64)
    taken[np.argsort(taken - exact, kind="stable")[: count - taken.sum()]] += 1  # the largest remainders
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:number] for label, number in enumerate(taken)]
    return split.only(split.rows[np.concatenate(chosen)])


def _generator(seed: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, purpose]))
