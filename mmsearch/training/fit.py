"""The training loop, as an iterator: whoever iterates decides what to do with an epoch, and whether to go on."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

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
from mmsearch.training.losses import Loss, build_loss, l1_norm, weight_matrices
from mmsearch.training.metrics import Confusion, Counts, accuracy, macro_f1
from mmsearch.training.optimisers import build_optimiser, build_schedule
from mmsearch.training.precision import Precision, autocast_for
from mmsearch.training.transfer import held_still, parameter_groups


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
    cross-entropy, in the precision of the training steps; None where there are no validation rows. `seconds` is the
    time of both; `lr` the learning rate of the last step.
    """

    epoch: int
    train: Scores
    valid: Scores | None
    lr: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_dict(held: Mapping[str, Any]) -> EpochResult:
        """The reverse of `to_dict`."""
        valid = held["valid"]
        return EpochResult(
            **{**held, "train": Scores(**held["train"]), "valid": None if valid is None else Scores(**valid)}
        )


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
) -> Training:
    """A training of `model`, in place, that yields each epoch's result.

    It ends after `epochs`, or once `patience` epochs in a row brought no lower validation loss. The learning-rate
    schedule spans `horizon` epochs (default: `epochs`), so that a retraining can stop early on the same schedule.
    With `ema.decay`, what is scored, and what the model holds after each epoch and at the end, are the averaged
    weights. Parameters named in `frozen` stay as they are in the first `transfer.freeze_epochs` epochs.
    `precision` "bfloat16" computes training steps, and the logits of the validation rows, in bfloat16 where that is
    safe (torch's autocast), and "auto" where that is faster; weights, gradients and losses stay in float32.
    Same seed, machine and number of threads: same numbers. Its iteration raises `LossNotFinite`.
    """
    model.to(device)
    batches = Batches(train, device)
    optimiser = build_optimiser(parameter_groups(model, frozen), hyperparameters)
    steps = batches.steps(hyperparameters["batch_size"]) * (horizon or epochs)
    return Training(
        model,
        batches,
        Batches(valid, device) if valid is not None else None,
        hyperparameters,
        Augmentation(model, hyperparameters, seed, device),
        build_loss(hyperparameters, torch.from_numpy(train.labels), model.shapes.classes, device),
        optimiser,
        build_schedule(optimiser, hyperparameters, steps),
        AveragedWeights(model, hyperparameters["ema.decay"]),
        torch.Generator().manual_seed(seed),
        autocast_for(precision, hyperparameters, device),
        device,
        epochs,
        patience,
        tuple(frozen),
    )


@dataclass(eq=False)
class Training(Iterator[EpochResult]):
    """A training under way: each `next` trains an epoch. `fit` makes it; see there.

    Its state after an epoch is all that is needed to go on from there, elsewhere and later, with the same numbers to
    the last bit on a processor. torch's random state is the process's: between two epochs of one training nobody else
    may draw from it. `confusion` counts the validation rows after the last epoch, (classes, classes), rows are true
    classes; it is no part of the state.
    """

    model: MultimodalClassifier
    batches: Batches
    held_out: Batches | None
    hyperparameters: Hyperparameters
    augment: Augmentation
    loss_function: Loss
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    averaged: AveragedWeights
    order: torch.Generator
    lower: torch.autocast
    device: torch.device
    epochs: int
    patience: int | None
    frozen: tuple[str, ...]
    epoch: int = 0  # the last one that is over
    lowest: float = math.inf  # validation loss
    waited: int = 0  # epochs since
    confusion: Counts | None = None

    @property
    def over(self) -> bool:
        """Whether no epoch is left."""
        return self.epoch >= self.epochs or (self.patience is not None and self.waited >= self.patience)

    def __next__(self) -> EpochResult:
        if self.over:
            raise StopIteration
        started = time.perf_counter()
        epoch = self.epoch + 1
        seen, lr = self._train(epoch)
        scores = None
        if self.held_out is not None:
            counted = evaluate(self.model, self.held_out, self.lower)
            scores, self.confusion = Scores.of(counted), counted.matrix()
            _must_be_finite(scores.loss, "validation", epoch)
            lower = scores.loss < self.lowest
            self.lowest, self.waited = (scores.loss, 0) if lower else (self.lowest, self.waited + 1)
        self.epoch = epoch
        return EpochResult(epoch, Scores.of(seen), scores, lr, time.perf_counter() - started)

    def _train(self, epoch: int) -> tuple[Confusion, float]:
        """All batches once; what was seen of them, and the last step's learning rate."""
        model, optimiser, hyperparameters = self.model, self.optimiser, self.hyperparameters
        l1, matrices, clip = hyperparameters["loss.l1"], weight_matrices(model), hyperparameters["optimizer.clip"]
        self.averaged.hide()
        model.train()
        seen = Confusion(model.shapes.classes, self.device)
        lr = optimiser.param_groups[0]["lr"]
        frozen = self.frozen if epoch <= hyperparameters["transfer.freeze_epochs"] else ()
        with held_still(model, frozen):
            for batch in self.batches.shuffled(hyperparameters["batch_size"], self.order):
                assert batch.label is not None
                image, audio, target = self.augment(batch)
                with self.lower:
                    logits = model(image, audio).float()
                loss = self.loss_function(logits, target)
                optimiser.zero_grad(set_to_none=True)
                if loss.requires_grad:  # else all is frozen
                    (loss + l1 * l1_norm(matrices) if l1 else loss).backward()
                if clip:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                lr = optimiser.param_groups[0]["lr"]
                optimiser.step()
                self.schedule.step()
                self.averaged.update()
                seen.add(logits, batch.label, loss)
        _must_be_finite(seen.loss(), "training", epoch)
        self.averaged.show()
        return seen, float(lr)

    def state_dict(self) -> dict[str, Any]:
        """Where the training stands after the last epoch: tensors, which are the live ones, and plain values.

        To be taken between epochs, and to be saved or copied before the next one.
        """
        return {
            "epoch": self.epoch,
            "lowest": self.lowest,
            "waited": self.waited,
            "model": dict(self.model.state_dict()),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "averaged": self.averaged.state_dict(),
            "augment": self.augment.state_dict(),
            "order": self.order.get_state(),
            "random": _random_state(self.device),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a training of the same arguments, on a device of the same type.

        It takes over torch's random state too. The state's own tensors may not be used afterwards.
        """
        self.epoch, self.lowest, self.waited = state["epoch"], state["lowest"], state["waited"]
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.averaged.load_state_dict(state["averaged"])  # after the model, which shows the average
        self.augment.load_state_dict(state["augment"])
        self.order.set_state(state["order"])
        _set_random_state(self.device, state["random"])


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """torch's random state on the processor and on the device."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found["cuda"] = torch.cuda.get_rng_state(device)
    return found


def _set_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def evaluate(model: MultimodalClassifier, batches: Batches, precision: torch.autocast | None = None) -> Confusion:
    """Loss and confusion matrix of labelled rows, without dropout and without gradients.

    The loss is plain cross-entropy, so that trials with different class weights or label smoothing compare. Logits are
    computed within `precision`, by default in float32.
    """
    model.eval()
    seen = Confusion(model.shapes.classes, batches.rows.device)
    with torch.inference_mode(), precision or nullcontext():  # once: weights are cast once
        for batch in batches.in_order():
            assert batch.label is not None
            logits = model(batch.image, batch.audio).float()
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
