"""How long a model takes to answer."""

from __future__ import annotations

import statistics
import time

import torch

from mmsearch.data.dataset import Shapes
from mmsearch.models.factory import MultimodalClassifier

WARM_UP = 5  # passes that are not counted: the first ones choose kernels and allocate
PASSES = 50
ENOUGH_S = 1.0  # a slow model is measured for no longer than this, but at least LEAST times
LEAST = 5


def latency_ms(model: MultimodalClassifier, shapes: Shapes, device: torch.device, rows: int = 1) -> float:
    """Median milliseconds of a forward pass over `rows` random rows that lie on the device already.

    Without dropout and gradients, until the logits are there; reading data, moving it to the device and softmax are not
    in it. It is the latency on this machine with this process's number of threads, and other work on the machine
    lengthens it: compare figures that were measured side by side. The model is left on the device, in the mode it had,
    and torch's random state as it was.
    """
    mode = model.training
    model.to(device).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((rows, *shapes.image), generator=generator).to(device)
    audio = torch.randn((rows, *shapes.audio), generator=generator).to(device)
    taken: list[float] = []
    with torch.inference_mode():
        for done in range(-WARM_UP, PASSES):
            _wait(device)
            started = time.perf_counter()
            model(image, audio)
            _wait(device)
            if done >= 0:
                taken.append(time.perf_counter() - started)
            if len(taken) >= LEAST and sum(taken) > ENOUGH_S:
                break
    model.train(mode)
    return 1000 * statistics.median(taken)


def _wait(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
