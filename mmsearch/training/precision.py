"""In which precision a training computes: float32, or bfloat16 where the device has it and nothing is lost."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import torch

from mmsearch.hyperparameters import Hyperparameters

Computed = Literal["float32", "bfloat16"]
Precision = Literal["auto", "float32", "bfloat16"]

# With fewer rows in a batch, or fewer units in the first layers of two dense encoders, a step is mostly the calls of
# its layers, and casts are calls too.
FEWEST_ROWS, FEWEST_UNITS = 32, 128
# What processors that multiply bfloat16 call their instructions; others emulate it, which is slow. Arm's were not
# measured.
INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
CPUINFO = Path("/proc/cpuinfo")


def autocast_for(precision: Precision, hyperparameters: Hyperparameters, device: torch.device) -> torch.autocast:
    """The context of the forward passes of training and validation; weights, gradients and losses stay in float32."""
    lower = computed_in(precision, hyperparameters, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=lower)


def computed_in(precision: Precision, hyperparameters: Hyperparameters, device: torch.device) -> Computed:
    """The precision itself, or what `auto` stands for with these hyperparameters on this device.

    It is float32 on a GPU, where it was not measured.
    """
    if precision != "auto":
        return precision
    faster = device.type == "cpu" and supports_bfloat16(device) and gains(hyperparameters)
    return "bfloat16" if faster else "float32"


def gains(hyperparameters: Hyperparameters) -> bool:
    """Whether a training step of this configuration takes less time in bfloat16, on a processor that has it."""
    units = [hyperparameters.get(f"{modality}.mlp.units_1", FEWEST_UNITS) for modality in ("image", "audio")]
    return bool(hyperparameters["batch_size"] >= FEWEST_ROWS and max(units) >= FEWEST_UNITS)


def supports_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, without emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and not processor_flags(CPUINFO).isdisjoint(INSTRUCTIONS)


@functools.cache
def processor_flags(cpuinfo: Path) -> frozenset[str]:
    """What the processor can do, as Linux names it for x86; nothing where it does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split())
