"""What a model owes to each modality, as numbers: scored with both, with one of them alone, and with one shuffled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mmsearch.data.dataset import Index, Split
from mmsearch.data.features import with_features
from mmsearch.data.splits import some
from mmsearch.results.bundle import Bundle, mean_logits
from mmsearch.results.statistics import CONFIDENCE, RESAMPLES, bootstrap
from mmsearch.training.batches import EVALUATION_ROWS, Batches
from mmsearch.training.metrics import macro_f1

SHUFFLES = 5  # of which the mean is taken
MOST_ROWS = 10_000  # that are scored 13 times
NAMES = ("both", "image_alone", "audio_alone", "image_shuffled", "audio_shuffled")

Predictions = Mapping[str, Sequence[Index]]


def modality_account(
    bundle: Bundle, split: Split, device: torch.device | None = None, cache: Path | None = None
) -> dict[str, Any]:
    """The macro F1 of labelled rows with both modalities, each alone, and each shuffled, as `account_of` has it.

    Alone: the other modality is the training rows' mean. Shuffled: of one modality each row has another row's, the
    mean of `SHUFFLES` permutations with fixed seeds, while the other one is its own (permutation importance; Breiman,
    "Random forests", 2001, section 10). Of more than `MOST_ROWS` rows as many are drawn, with their balance of classes.
    """
    split = some(split, MOST_ROWS, 0)
    device = device or torch.device("cpu")
    predicted: dict[str, list[Index]] = {
        "both": [_classes(bundle.logits(split, device, cache=cache))],
        "image_alone": [_classes(bundle.logits(split, device, without="audio", cache=cache))],
        "audio_alone": [_classes(bundle.logits(split, device, without="image", cache=cache))],
        "image_shuffled": [],
        "audio_shuffled": [],
    }
    rows = np.arange(len(split))
    for seed in range(SHUFFLES):
        others = np.random.default_rng(np.random.SeedSequence([seed, 5])).permutation(len(split))
        for name, image, audio in (("image_shuffled", others, rows), ("audio_shuffled", rows, others)):
            predicted[name].append(_classes(_mixed_logits(bundle, split, image, audio, device, cache)))
    return account_of(split.labels, predicted, len(bundle.classes))


def account_of(labels: Index, predicted: Predictions, classes: int, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Macro F1 and its 95 % bootstrap interval for each of `NAMES`, and what fusing gained.

    labels: (n,). predicted: of each name (n,) classes once, or several times, of whose scores the mean is taken.
    `fusion_gain` is the macro F1 with both minus that of the better one alone. Rows are drawn again together for all
    names, so that what is compared is compared on the same rows. An interval is too narrow where it rests on few rows:
    `mistakes` are a score's wrong rows, of several times the fewest, and `differing` the rows of which the better one
    alone says something else than both (see `mmsearch.results.scores.few_mistakes`).
    """
    cells = {name: [labels * classes + found for found in predicted[name]] for name in NAMES}

    def scores(drawn: Index | slice) -> list[float]:
        found = [float(np.mean([_macro_f1(held[drawn], classes) for held in cells[name]])) for name in NAMES]
        return [*found, found[0] - max(found[1:3])]

    values, intervals = scores(slice(None)), bootstrap(scores, len(labels), resamples=resamples)
    better = max(NAMES[1:3], key=lambda name: values[NAMES.index(name)])
    rests: dict[str, dict[str, int]] = {
        name: {"mistakes": min(int((found != labels).sum()) for found in predicted[name])} for name in NAMES
    }
    rests["fusion_gain"] = {"differing": int((predicted["both"][0] != predicted[better][0]).sum())}
    return {
        "rows": len(labels),
        "resamples": resamples,
        "confidence": CONFIDENCE,
        **{
            name: {"macro_f1": value, "interval": list(interval), **rests[name]}
            for name, value, interval in zip((*NAMES, "fusion_gain"), values, intervals, strict=True)
        },
    }


def _macro_f1(cells: Index, classes: int) -> float:
    """Of (n,) cells of the confusion matrix, a row's each."""
    return macro_f1(np.bincount(cells, minlength=classes * classes).reshape(classes, classes))


def _classes(logits: torch.Tensor) -> Index:
    found: npt.NDArray[np.int64] = logits.argmax(1).numpy()
    return found


def _mixed_logits(
    bundle: Bundle, split: Split, image: Index, audio: Index, device: torch.device, cache: Path | None
) -> torch.Tensor:
    """(n, classes) logits of the images and recordings at these positions of a split, beside each other."""
    members = []
    for member in bundle.members:
        batches = Batches(with_features(split, bundle.trained.rate, member.hyperparameters, cache), device)
        member.model.to(device).eval()
        pairs = (batches.rows[torch.from_numpy(order).to(batches.rows.device)] for order in (image, audio))
        found = []
        with torch.inference_mode():
            for here, there in zip(*(torch.split(order, EVALUATION_ROWS) for order in pairs), strict=True):
                found.append(member.model(batches.gather(here).image, batches.gather(there).audio).cpu())
        members.append(torch.cat(found))
    return mean_logits(torch.stack(members))
