"""Which device trains: the processor or a GPU."""

from __future__ import annotations

import torch

from mmsearch.errors import MmsearchError


def use_threads(threads: int) -> None:
    """Train with so many threads of this process; the results depend on their number."""
    torch.set_num_threads(threads)


def choose_device(wanted: str, index: int = 0) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`; worker number `index` takes its turn among the GPUs.

    Raises `MmsearchError` where a GPU is asked for and there is none.
    """
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return torch.device("cpu")
    number = int(wanted.partition(":")[2]) if ":" in wanted else index % max(gpus, 1)
    if number >= gpus:
        raise MmsearchError(f'device "{wanted}": this machine has {gpus or "no"} CUDA device{"s" if gpus != 1 else ""}')
    return torch.device("cuda", number)
