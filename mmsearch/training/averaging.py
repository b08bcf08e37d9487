"""A moving average of a model's weights beside the weights that are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AveragedWeights:
    """Exponential moving average of a model's weights, batch-norm statistics included.

    Step t = 0, 1, ... keeps the share min(decay, (1 + t) / (10 + t)) of the average, so that it forgets the weights of
    the start soon (as TensorFlow's `ExponentialMovingAverage` with `num_updates`). With a decay of 0 nothing is done.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        state = model.state_dict().values() if decay else ()
        self.trained = [value for value in state if value.is_floating_point()]  # the model's own memory
        self.average = [value.clone() for value in self.trained]
        self.set_aside: list[Tensor] = []

    def update(self) -> None:
        """Take the weights after one more training step into the average."""
        if self.average:
            share = min(self.decay, (1 + self.steps) / (10 + self.steps))
            get_ema_multi_avg_fn(share)(self.average, self.trained, self.steps)  # type: ignore[no-untyped-call]
            self.steps += 1

    def show(self) -> None:
        """Put the average into the model, until `hide`."""
        self.set_aside = [value.clone() for value in self.trained]
        _copy(self.average, self.trained)

    def hide(self) -> None:
        """Put the trained weights back, where the average is shown."""
        _copy(self.set_aside, self.trained[: len(self.set_aside)])
        self.set_aside = []

    def state_dict(self) -> dict[str, Any]:
        """Where it stands while the average is shown, and so in the model's own state, or before the first step."""
        return {"steps": self.steps, "set_aside": self.set_aside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; the model must show the average already."""
        self.steps = state["steps"]
        _copy(self.trained, self.average)
        places = self.trained[: len(state["set_aside"])]
        self.set_aside = [value.to(place.device) for value, place in zip(state["set_aside"], places, strict=True)]


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    with torch.no_grad():
        for value, place in zip(source, target, strict=True):
            place.copy_(value)
