"""The space of studies/three_conv.toml as both sides name it, its fixed configurations, and the study file of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from comparison.plain_optuna import START, suggest

Params = dict[str, Any]

# The plain script's name of a parameter -> mmsearch's.
NAMES = {
    **{f"image_filters_{i}": f"image.cnn.filters_{i}" for i in (1, 2, 3)},
    **{f"audio_filters_{i}": f"audio.conv1d.filters_{i}" for i in (1, 2, 3)},
    "units": "head.units",
    "dropout": "head.dropout",
    "lr": "optimizer.lr",
}

# The two named networks: what each modality's convolutions have; the dense layer has 128 units.
NETWORKS = {"16-32-64": (16, 32, 64), "48-128-64": (48, 128, 64)}

STUDY = """\
# The space of studies/three_conv.toml, without the winner that its write-up found: trial 0 has the program's defaults.
[study]
metrics = ["macro_f1"]
trials = {trials}
folder = "."

[data]
source = {data}
fraction = 0.2

[search]
max_epochs = {epochs}
patience = {patience}
{pruner}
[space]
"image.cnn.filters_1" = [16, 32, 48, 64]
"image.cnn.filters_2" = [32, 64, 96, 128]
"image.cnn.filters_3" = [64, 128, 256]
"audio.conv1d.filters_1" = [16, 32, 48, 64]
"audio.conv1d.filters_2" = [32, 64, 96, 128]
"audio.conv1d.filters_3" = [64, 128, 192, 256]
"head.units" = [64, 128, 256]
"head.dropout" = {{ low = 0.2, high = 0.6 }}
"optimizer.lr" = {{ low = 1e-4, high = 1e-2, log = true }}
"optimizer.name" = "adam"
"schedule.name" = "constant"
"loss.name" = "cross_entropy"
"batch_size" = 64
"image.encoder" = "cnn"
"image.cnn.depth" = 3
"image.cnn.norm" = "none"
"audio.encoder" = "conv1d"
"audio.conv1d.depth" = 3
"audio.conv1d.norm" = "none"
"audio.conv1d.input" = "{form}"
"fusion.name" = "concat"
"head.depth" = 1
"""


def network(name: str) -> Params:
    """The parameters of one of `NETWORKS`."""
    filters = NETWORKS[name]
    return START | {f"{part}_filters_{i}": width for part in ("image", "audio") for i, width in enumerate(filters, 1)}


def configurations(count: int) -> list[Params]:
    """So many configurations, always the same: the start, and others drawn at random from the plain script's space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=20))
    return [START, *({**suggest(study.ask())} for _ in range(count - 1))]


def longest_first(configured: Sequence[Params]) -> list[Params]:
    """The start, which is always trial 0, then the others by the multiplications of their convolutions, most first."""

    def work(params: Params) -> int:
        one, two, three = (int(params[f"image_filters_{i}"]) for i in (1, 2, 3))
        image = 9 * (28 * 28 * one + 14 * 14 * one * two + 7 * 7 * two * three)
        one, two, three = (int(params[f"audio_filters_{i}"]) for i in (1, 2, 3))
        return image + 3 * (39 * 13 * one + 19 * one * two + 9 * two * three)

    return [configured[0], *sorted(configured[1:], key=work, reverse=True)]


def ours(params: Params) -> Params:
    """The same configuration under mmsearch's names."""
    return {NAMES[name]: value for name, value in params.items()}


def theirs(params: Params) -> Params:
    """The reverse of `ours`."""
    return {name: params[known] for name, known in NAMES.items()}


def study_text(
    data: Path,
    *,
    trials: int,
    epochs: int,
    frames: bool,
    fixed: Sequence[Params] = (),
    patience: int = 3,
) -> str:
    """A study file. With `fixed` configurations, which begin with the start, nothing is pruned and none stops early."""
    text = STUDY.format(
        trials=trials,
        data=json.dumps(str(data)),
        epochs=epochs,
        patience=epochs if fixed else patience,
        pruner='pruner = "none"\n' if fixed else "",
        form="frames" if frames else "flat",
    )
    for params in fixed[1:]:
        rows = [f"{json.dumps(name)} = {value!r}" for name, value in ours(params).items()]
        text += "\n[[enqueue]]\n" + "\n".join(rows) + "\n"
    return text
