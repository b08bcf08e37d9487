"""Which device trains, the processor or a GPU, and what is to be known when it fails."""

from __future__ import annotations

import errno
import gc
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from mmsearch.errors import MmsearchError, OutOfMemory

# How the memory's end sounds where it has no exception class of its own: torch on the processor, C++, CUDA's libraries.
_OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "std::bad_alloc"),
    *("out of memory", "_STATUS_ALLOC_FAILED"),
)


def use_threads(threads: int) -> None:
    """Train with so many threads of this process; the results depend on their number."""
    torch.set_num_threads(threads)


def choose_devices(wanted: str, gpus: Sequence[int] | None = None) -> tuple[torch.device, ...]:
    """The torch devices for `auto`, `cpu`, `cuda` or `cuda:N`: under `auto` and `cuda`, the `gpus`, or all there are.

    Raises `MmsearchError` where a GPU is asked for and there is none of that number.
    """
    found = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cpu" or (wanted == "auto" and not found and gpus is None):
        return (torch.device("cpu"),)
    there = f"this machine has {found or 'no'} CUDA device{'s' if found != 1 else ''}"
    if ":" in wanted:
        number = int(wanted.partition(":")[2])
        if number >= found:
            raise MmsearchError(f'device "{wanted}": {there}')
        return (torch.device("cuda", number),)
    missing = [str(number) for number in gpus or () if number >= found]
    if missing:
        raise MmsearchError(f"gpus: there is no GPU {' or '.join(missing)}; {there}{', from 0' if found else ''}")
    if not found:
        raise MmsearchError(f'device "{wanted}": {there}')
    return tuple(torch.device("cuda", number) for number in gpus or range(found))


def choose_device(wanted: str) -> torch.device:
    """The first of `choose_devices`."""
    return choose_devices(wanted)[0]


def own_device(place: str) -> torch.device:
    """The device of a process that was started to train on `cpu` or `cuda:N`, and sees no other GPU."""
    return torch.device("cpu" if place == "cpu" else "cuda:0")


@contextmanager
def memory_told(device: torch.device) -> Iterator[None]:
    """Raise `OutOfMemory` for whatever says, in there, that memory is at its end."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        text = str(error)
        if not (
            isinstance(error, MemoryError | torch.OutOfMemoryError)
            or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
            or any(sign in text for sign in _OUT_OF_MEMORY)
        ):
            raise
        what = text.partition("\n")[0] or "no more is given"
        if asked := re.search(r"tried to allocate ([\d.]+) ?([KMGT]iB|bytes)", text, re.IGNORECASE):
            amount = f"{int(asked[1]) / 2**20:.0f} MiB" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
            what = f"it asked for {amount} at once"
        where = "the processor's memory" if device.type == "cpu" else f"the memory of {device}"
        raise OutOfMemory(f"{where} is too small for this configuration: {what}") from None


def free_memory(device: torch.device) -> None:
    """Give back what no tensor needs any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def still_works(device: torch.device) -> bool:
    """Whether a device computes; a GPU on which a kernel went wrong does no more in this process."""
    try:
        return float(torch.ones(1, device=device).sum()) == 1.0
    except RuntimeError:
        return False
