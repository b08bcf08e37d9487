"""The training loop, as a generator: whoever iterates decides what to do with an epoch, and whether to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmsearch.data.dataset import Split
from mmsearch.errors import LossNotFinite
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.factory import MultimodalClassifier
from mmsearch.training.augmentation import Augmentation
from mmsearch.training.averaging import AveragedWeights
from mmsearch.training.batches import Batches
from mmsearch.training.losses import build_loss, l1_norm, weight_matrices
from mmsearch.training.metrics import Confusion, accuracy, macro_f1
from mmsearch.training.optimisers import build_optimiser, build_schedule
from mmsearch.training.transfer import held_still, parameter_groups

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Scores:
    """Mean loss of a row, accuracy and macro F1 of some rows."""

    loss: float
    accuracy: float
    macro_f1: float

    @staticmethod
    def of(confusion: Confusion) -> Scores:
        """The scores of what was counted."""
        matrix = confusion.matrix()
        return Scores(confusion.loss(), accuracy(matrix), macro_f1(matrix))


@dataclass(frozen=True)
class EpochResult:
    """One epoch, counted from 1.

    `train` is a running mean over the epoch's batches, as the model was while it learned: with dropout and augmented
    rows (under mixup, scored by the greater part's class), and of the loss that is minimised, class weights and
    smoothing included, penalties of the weights not. `valid` is measured after the epoch, without dropout, by plain
    cross-entropy; None where there are no validation rows. `seconds` is the time of both; `lr` the learning rate of the
    last step.
    """

    epoch: int
    train: Scores
    valid: Scores | None
    lr: float
    seconds: float


def seed_everything(seed: int) -> None:
    """Seed torch on every device: weights and dropout. The order of rows has a generator of its own in `fit`."""
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True


def fit(
    model: MultimodalClassifier,
    train: Split,
    valid: Split | None,
    hyperparameters: Hyperparameters,
    *,
    epochs: int,
    horizon: int | None = None,
    patience: int | None = None,
    seed: int,
    device: torch.device,
    frozen: Collection[str] = (),
    precision: Precision = "float32",
) -> Iterator[EpochResult]:
    """Train `model` in place and yield each epoch's result.

    It ends after `epochs`, or once `patience` epochs in a row brought no lower validation loss. The learning-rate
    schedule spans `horizon` epochs (default: `epochs`), so that a retraining can stop early on the same schedule.
    With `ema.decay`, what is scored, and what the model holds at each yield and at the end, are the averaged weights.
    Parameters named in `frozen` stay as they are in the first `transfer.freeze_epochs` epochs.
    `precision` "bfloat16" computes training steps in bfloat16 where that is safe (torch's autocast); weights, loss and
    all scores stay in float32.
    Same seed, machine and number of threads: same numbers. Raises `LossNotFinite`.
    """
    model.to(device)
    classes = model.shapes.classes
    batch_size = hyperparameters["batch_size"]
    batches = Batches(train, device)
    held_out = Batches(valid, device) if valid is not None else None
    augment = Augmentation(model, hyperparameters, seed, device)
    loss_function = build_loss(hyperparameters, torch.from_numpy(train.labels), classes, device)
    l1, matrices, clip = hyperparameters["loss.l1"], weight_matrices(model), hyperparameters["optimizer.clip"]
    optimiser = build_optimiser(parameter_groups(model, frozen), hyperparameters)
    schedule = build_schedule(optimiser, hyperparameters, batches.steps(batch_size) * (horizon or epochs))
    freeze_epochs = hyperparameters["transfer.freeze_epochs"]
    averaged = AveragedWeights(model, hyperparameters["ema.decay"])
    order = torch.Generator().manual_seed(seed)
    lower = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")

    lowest, waited = math.inf, 0
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        averaged.hide()
        model.train()
        seen = Confusion(classes, device)
        lr = optimiser.param_groups[0]["lr"]
        with held_still(model, frozen if epoch <= freeze_epochs else ()):
            for batch in batches.shuffled(batch_size, order):
                assert batch.label is not None
                image, audio, target = augment(batch)
                with lower:
                    logits = model(image, audio).float()
                loss = loss_function(logits, target)
                optimiser.zero_grad(set_to_none=True)
                if loss.requires_grad:  # else all is frozen
                    (loss + l1 * l1_norm(matrices) if l1 else loss).backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                lr = optimiser.param_groups[0]["lr"]
                optimiser.step()
                schedule.step()
                averaged.update()
                seen.add(logits, batch.label, loss)
        _must_be_finite(seen.loss(), "training", epoch)
        averaged.show()
        scores = None
        if held_out is not None:
            scores = Scores.of(evaluate(model, held_out))
            _must_be_finite(scores.loss, "validation", epoch)
        yield EpochResult(epoch, Scores.of(seen), scores, float(lr), time.perf_counter() - started)
        if scores is not None and patience is not None:
            lowest, waited = (scores.loss, 0) if scores.loss < lowest else (lowest, waited + 1)
            if waited >= patience:
                return


def evaluate(model: MultimodalClassifier, batches: Batches) -> Confusion:
    """Loss and confusion matrix of labelled rows, without dropout and without gradients.

    The loss is plain cross-entropy, so that trials with different class weights or label smoothing compare.
    """
    model.eval()
    seen = Confusion(model.shapes.classes, batches.rows.device)
    with torch.inference_mode():
        for batch in batches.in_order():
            assert batch.label is not None
            logits = model(batch.image, batch.audio)
            seen.add(logits, batch.label, functional.cross_entropy(logits, batch.label))
    return seen


def predict_logits(
    model: nn.Module, split: Split, device: torch.device, *, without: Literal["image", "audio"] | None = None
) -> Tensor:
    """(n, classes) logits of a split's rows, on the processor.

    `without`: the training rows' mean image, or mean audio, as the model holds it, stands in for every row's own.
    """
    model.to(device).eval()
    mean = None if without is None else model.get_buffer(f"mean_{without}")
    found: list[Tensor] = []
    with torch.inference_mode():
        for batch in Batches(split, device).in_order():
            image, audio = batch.image, batch.audio
            if mean is not None and without == "image":
                image = mean.expand_as(image)
            elif mean is not None:
                audio = mean.expand_as(audio)
            found.append(model(image, audio).cpu())
    return torch.cat(found)


def _must_be_finite(loss: float, what: str, epoch: int) -> None:
    if not math.isfinite(loss):
        raise LossNotFinite(f"the {what} loss of epoch {epoch} is {loss}: try a lower optimizer.lr")
