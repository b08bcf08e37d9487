"""Which rows validate and which test: stratified by class, and grouped, so that no repeat lies on both sides."""

from __future__ import annotations

import numpy as np

from mmsearch.data.dataset import Dataset, Index, Split
from mmsearch.errors import DataError


def assign(labels: Index, groups: Index, shares: tuple[float, ...], rng: np.random.Generator) -> Index:
    """Give each row a part, 0 to len(shares) - 1, so that each part gets its share of each class.

    labels, groups: (N,). A group goes as a whole to the part that lacks most of the group's most frequent class, the
    large groups first, in an order that `rng` shuffles among groups of a size.
    """
    names, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group, minlength=len(names))
    majority = _majority(labels, group, len(names))
    order = rng.permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    totals = np.bincount(majority, weights=counts)
    lacking = [[share * float(total) for share in shares] for total in totals]
    part = np.empty(len(names), dtype=np.int64)
    for name in order.tolist():
        row = lacking[majority[name]]
        best = max(range(len(row)), key=row.__getitem__)
        row[best] -= int(counts[name])
        part[name] = best
    return part[group]


def _majority(labels: Index, group: Index, groups: int) -> Index:
    """(groups,) the most frequent label of each group."""
    pairs, counts = np.unique(np.stack([group, labels]), axis=1, return_counts=True)
    order = np.argsort(counts, kind="stable")
    found = np.empty(groups, dtype=np.int64)
    found[pairs[0][order]] = pairs[1][order]  # of a group's labels, the one written last counts
    return found


def holdout(dataset: Dataset, fraction: float, seed: int) -> tuple[Split, Split]:
    """Training and validation rows; `fraction` of the training split validates."""
    return _divide(dataset, fraction, _generator(seed, 0), "validation")


def split_off_test(dataset: Dataset, fraction: float, seed: int) -> tuple[Split, Split]:
    """Training and test rows of a data set that came without a test split."""
    return _divide(dataset, fraction, _generator(seed, 1), "test")


def _divide(dataset: Dataset, fraction: float, rng: np.random.Generator, what: str) -> tuple[Split, Split]:
    """What stays, and what is held out; raises `DataError` where either would be empty."""
    train = dataset.train
    part = assign(train.labels, dataset.groups[train.rows], (1 - fraction, fraction), rng)
    kept, held_out = train.only(train.rows[part == 0]), train.only(train.rows[part == 1])
    if not len(kept) or not len(held_out):
        largest, rows = int(np.bincount(dataset.groups[train.rows]).max()), len(train)
        reason = f"{rows} training rows are too few"
        if largest > 1:
            reason = (
                f"identical images or recordings link {largest} of the {rows} training rows into one group, "
                "which must not be torn apart"
            )
        raise DataError(f"{dataset.source}: no {what} split of {fraction:g} is possible: {reason}")
    return kept, held_out


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
