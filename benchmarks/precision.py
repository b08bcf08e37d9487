#!/usr/bin/env python3
"""Train each family of models in float32 and in bfloat16, and compare how good they are and what a step costs.

    benchmarks/precision.py DATA [--families cnn ...] [--seeds 0 1 2 3] [--epochs 4] [--device cpu]
                            [--work FOLDER] [--out FILE]

DATA is a folder in the zenodo layout; noise is added to it (deviations of 0.5 of a pixel, 1.0 of a coefficient), so
that models differ. A family is the base, two small dense encoders side by side, with one choice of the study file
changed. Both precisions train on the same rows with the same seed, and the best epoch on the validation rows counts,
which are scored in the precision that was trained in. A step's cost is CPU time without validation, of one thread on a
processor and of the whole machine's wait on a GPU, from epochs of the two precisions in turn. What was done is kept in
FOLDER, and not done again while all that it depends on is the same. The results go to FILE, and as a Markdown table to
standard output.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import shlex
import statistics as median_of
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmsearch.data.dataset import Array, Shapes, Split, statistics
from mmsearch.hyperparameters import Hyperparameters, Value
from mmsearch.models.factory import build_model
from mmsearch.results.statistics import holm, mean_interval, paired_p
from mmsearch.spaces import Fixed, Space
from mmsearch.training.device import use_threads
from mmsearch.training.fit import fit, seed_everything
from mmsearch.training.precision import gains, supports_bfloat16
from mmsearch.training.provenance import code_digest, hardware, versions

ROOT = Path(__file__).resolve().parents[1]
NOISE = {"image": 0.5, "audio": 1.0}
TIMED_ROWS, ROUNDS = 640, 7  # ten steps of 64 rows, in turn; the first round warms up
BASE: dict[str, Value] = {"image.encoder": "mlp", "audio.encoder": "mlp", "head.dropout": 0.2}
CNN: dict[str, Value] = {"image.encoder": "cnn", "image.cnn.depth": 2}
BOTH: dict[str, Value] = {"image.encoder": "cnn", "audio.encoder": "conv1d"}
Computed = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Computed, Computed] = ("float32", "bfloat16")

FAMILIES: dict[str, dict[str, Value]] = {
    "mlp": {},
    "cnn": CNN,
    "paired_cnn": {"image.encoder": "paired_cnn"},
    "resnet": {"image.encoder": "resnet"},
    "vit": {"image.encoder": "vit"},
    "conv1d": {"audio.encoder": "conv1d"},
    "conv1d flat": {"audio.encoder": "conv1d", "audio.conv1d.input": "flat"},
    "conv2d": {"audio.encoder": "conv2d"},
    "rnn lstm": {"audio.encoder": "rnn", "audio.rnn.cell": "lstm"},
    "rnn gru": {"audio.encoder": "rnn", "audio.rnn.cell": "gru"},
    "transformer": {"audio.encoder": "transformer"},
    "cnn + conv1d": BOTH,
    "fusion gated": {"fusion.name": "gated"},
    "fusion lstm": {"fusion.name": "lstm"},
    "fusion attention": {**BOTH, "fusion.name": "attention"},
    "fusion late": {"fusion.name": "late"},
    "modality dropout": {"fusion.modality_dropout": 0.2},
    "norm group": {**CNN, "image.cnn.norm": "group"},
    "norm layer": {**CNN, "image.cnn.norm": "layer"},
    "norm none": {**CNN, "image.cnn.norm": "none"},
    "dense norm batch": {"image.mlp.norm": "batch", "audio.mlp.norm": "batch", "head.norm": "batch"},
    "dense norm layer": {"image.mlp.norm": "layer", "audio.mlp.norm": "layer", "head.norm": "layer"},
    "leaky_relu": {**CNN, "image.cnn.activation": "leaky_relu"},
    "gelu": {**CNN, "image.cnn.activation": "gelu"},
    "silu": {**CNN, "image.cnn.activation": "silu"},
    "elu": {**CNN, "image.cnn.activation": "elu"},
    "spatial dropout": {**CNN, "image.cnn.dropout": 0.2, "image.cnn.dropout_kind": "spatial"},
    "drop_path": {"image.encoder": "resnet", "image.resnet.dropout": 0.2, "image.resnet.dropout_kind": "drop_path"},
    "narrow mlp": {"image.mlp.units_1": 32, "image.mlp.depth": 1, "audio.mlp.units_1": 32, "audio.mlp.depth": 1},
    "batch of 8": {**CNN, "batch_size": 8},
    "batch of 16": {**CNN, "batch_size": 16},
    "batch of 256": {**CNN, "batch_size": 256, "optimizer.lr": 3e-3},
    "adam": {**CNN, "optimizer.name": "adam"},
    "sgd": {**CNN, "optimizer.name": "sgd", "optimizer.lr": 3e-2},
    "clip": {**CNN, "optimizer.clip": 1.0},
    "focal": {**CNN, "loss.name": "focal"},
    "label smoothing": {**CNN, "loss.label_smoothing": 0.1, "loss.class_weights": "balanced"},
    "l1": {**CNN, "loss.l1": 1e-5},
    "ema": {**CNN, "ema.decay": 0.98},
    "mixup": {**CNN, "augment.mixup": 0.4},
    "augmented": {**CNN, "augment.image.rotation": 15.0, "augment.image.shift": 0.1, "augment.audio.time_mask": 0.2},
    "low rate": {**CNN, "optimizer.lr": 1e-4, "schedule.name": "constant"},  # small updates are lost first
}


def configuration(name: str) -> Hyperparameters:
    """A family's."""
    given: dict[str, Value] = {**BASE, **FAMILIES[name]}
    return Space({key: Fixed(value) for key, value in given.items()}).configuration({})


def noisy(image: Array, audio: Array, label: Array, seed: int) -> Split:
    """A split of all rows, with noise."""
    rng = np.random.default_rng(seed)
    seen = image.reshape(-1, 1, 28, 28).astype(np.float64) + NOISE["image"] * rng.standard_normal(
        (len(image), 1, 28, 28)
    )
    heard = audio.reshape(-1, 39, 13).astype(np.float64) + NOISE["audio"] * rng.standard_normal((len(audio), 39, 13))
    rows = np.arange(len(label))
    return Split(seen.astype(np.float32), heard.astype(np.float32), label.astype(np.int64), rows, 1.0)


def load(folder: Path, part: str, rows: int) -> Split:
    """The first rows of one part of a data set, with noise."""
    arrays = [np.load(folder / f"{name}_{part}.npy")[:rows] for name in ("data_wr", "data_sp", "labels")]
    return noisy(arrays[0], arrays[1], arrays[2], seed=0 if part == "train" else 1)


def train(
    hyperparameters: Hyperparameters, train: Split, valid: Split, epochs: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """The best macro F1 and the lowest loss on the validation rows, in each precision."""
    found: dict[str, Any] = {"seed": seed}
    for precision in PRECISIONS:
        seed_everything(seed)
        model = build_model(hyperparameters, Shapes((1, 28, 28), (39, 13), 10), statistics(train))
        results = list(
            fit(model, train, valid, hyperparameters, epochs=epochs, seed=seed, device=device, precision=precision)
        )
        scores = [result.valid for result in results if result.valid is not None]
        found[precision] = {
            "macro_f1": max(score.macro_f1 for score in scores),
            "loss": min(score.loss for score in scores),
        }
    return found


def cost(hyperparameters: Hyperparameters, train: Split, device: torch.device) -> dict[str, Any]:
    """Seconds of each epoch of `TIMED_ROWS` rows, the two precisions in turn."""
    rows = train.only(train.rows[:TIMED_ROWS])
    found: dict[str, Any] = {precision: [] for precision in PRECISIONS}
    trainings = {}
    for precision in PRECISIONS:
        seed_everything(0)
        model = build_model(hyperparameters, Shapes((1, 28, 28), (39, 13), 10), statistics(rows))
        trainings[precision] = fit(
            model, rows, None, hyperparameters, epochs=ROUNDS, seed=0, device=device, precision=precision
        )
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for _ in range(ROUNDS):
        for precision, training in trainings.items():
            started = clock()
            next(training)  # its scores are read at the end, so that a GPU has done all
            found[precision].append(round(clock() - started, 5))
    return {precision: seconds[1:] for precision, seconds in found.items()}


def basis(data: tuple[Split, Split], epochs: int, device: torch.device) -> dict[str, Any]:
    """What records depend on besides their family's configuration."""
    digest = hashlib.blake2b(digest_size=8)
    for split in data:
        assert split.label is not None
        for array in (split.image, split.audio, split.label):
            digest.update(np.ascontiguousarray(array).tobytes())
    return {
        "epochs": epochs,
        "rows": [len(split) for split in data],
        "timed": [TIMED_ROWS, ROUNDS],
        "data": digest.hexdigest(),
        "hardware": hardware(device),
        "code": code_digest(),
        "versions": versions(),
    }


def measure(
    name: str,
    data: tuple[Split, Split],
    seeds: Sequence[int],
    epochs: int,
    device: torch.device,
    work: Path,
    of: dict[str, Any],
) -> dict[str, Any]:
    """All that is measured of a family; what its record in the folder holds `of` the same is not done again."""
    record = work / f"{name.replace(' ', '_')}.json"
    hyperparameters = configuration(name)
    of = {**of, "configuration": dict(hyperparameters.items())}
    held: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    if held.get("of") != json.loads(json.dumps(of)):
        held = {"of": of, "trained": {}}

    def keep() -> None:
        record.with_suffix(".new").write_text(json.dumps(held))
        record.with_suffix(".new").replace(record)

    if "seconds" not in held:
        held["seconds"] = cost(hyperparameters, data[0], device)
        keep()
    for seed in seeds:
        if str(seed) not in held["trained"]:
            held["trained"][str(seed)] = train(hyperparameters, *data, epochs, seed, device)
            keep()
    return summary(name, held, [held["trained"][str(seed)] for seed in seeds], len(data[1]))


def summary(name: str, held: dict[str, Any], trained: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """Of one family: means, paired differences with intervals (bfloat16 less float32), and the ratio of costs."""
    seconds, hyperparameters = held["seconds"], configuration(name)
    ratios = [wide / low for wide, low in zip(seconds["float32"], seconds["bfloat16"], strict=True)]
    found: dict[str, Any] = {
        "family": name,
        "given": {**BASE, **FAMILIES[name]},
        "auto": "bfloat16" if gains(hyperparameters) else "float32",
        "speed_up": round(median_of.median(ratios), 3),
        "speed_up_lowest_highest": [round(min(ratios), 3), round(max(ratios), 3)],
        "epoch_seconds": seconds,
        "trained": trained,
    }
    for score, step in (("macro_f1", 1 / rows), ("loss", 0.0)):
        wide, low = ([one[precision][score] for one in trained] for precision in PRECISIONS)
        differences = [b - a for a, b in zip(wide, low, strict=True)]
        found[score] = {
            "float32": median_of.fmean(wide),
            "bfloat16": median_of.fmean(low),
            "difference": median_of.fmean(differences),
            "interval_95": mean_interval(differences, resolution=step * 2**0.5),
            "p": paired_p(low, wide, step),
        }
    return found


def together(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all families: the mean difference, and which families lose, corrected for their number (Holm)."""
    found: dict[str, Any] = {}
    for score, sign in (("macro_f1", 1), ("loss", -1)):
        means = [result[score]["difference"] for result in results]
        known = [result for result in results if result[score]["p"] is not None]
        corrected = holm([result[score]["p"] for result in known])
        found[score] = {
            "difference": median_of.fmean(means),
            "interval_95_over_families": mean_interval(means),
            "worse": [
                result["family"]
                for result, p in zip(known, corrected, strict=True)
                if p < 0.05 and sign * result[score]["difference"] < 0
            ],
        }
    found["slower"] = [result["family"] for result in results if result["speed_up"] < 1]
    return found


def table(results: list[dict[str, Any]], overall: dict[str, Any]) -> str:
    """A row a family, and what holds of all."""
    lines = [
        "| family | step, times as fast (lowest to highest) | `auto` | macro F1 in float32 | bfloat16 less it (95 %) |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        score, (low, high) = result["macro_f1"], result["speed_up_lowest_highest"]
        between = "" if score["interval_95"] is None else " ({:+.4f} to {:+.4f})".format(*score["interval_95"])
        lines.append(
            f"| {result['family']} | {result['speed_up']:.2f} ({low:.2f} to {high:.2f}) | {result['auto']} | "
            f"{score['float32']:.4f} | {score['difference']:+.4f}{between} |"
        )
    for score in ("macro_f1", "loss"):
        held = overall[score]
        between = held["interval_95_over_families"]
        spread = "" if between is None else f" ({between[0]:+.4f} to {between[1]:+.4f})"
        lines += ["", f"{score}, all families: {held['difference']:+.4f}{spread}; worse: {_names(held['worse'])}"]
    return "\n".join([*lines, "", f"slower: {_names(overall['slower'])}"]) + "\n"


def _names(families: list[str]) -> str:
    return ", ".join(families) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", nargs=2, type=int, default=[2000, 1500], metavar=("TRAIN", "VALID"))
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--work", type=Path, default=ROOT / "storage" / "precision")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "precision.json")
    args = parser.parse_args()
    use_threads(1)
    if not supports_bfloat16(args.device):
        print(f"{args.device} has no bfloat16: what is measured is its emulation", file=sys.stderr)
    data = (load(args.data, "train", args.rows[0]), load(args.data, "test", args.rows[1]))
    args.work.mkdir(parents=True, exist_ok=True)
    results, of = [], basis(data, args.epochs, args.device)
    for name in args.families:
        found = measure(name, data, args.seeds, args.epochs, args.device, args.work, of)
        results.append(found)
        print(
            f"{name}: {found['speed_up']:.2f} times as fast, macro F1 {found['macro_f1']['difference']:+.4f}",
            file=sys.stderr,
            flush=True,
        )
    overall = together(results)
    chosen = [] if args.families == list(FAMILIES) else ["--families", *args.families]
    seeds = ["--seeds", *map(str, args.seeds), "--epochs", str(args.epochs)]
    device = [] if args.device.type == "cpu" else ["--device", str(args.device)]
    written = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["benchmarks/precision.py", "DATA", *chosen, *seeds, *device]),
        "hardware": hardware(args.device),
        "versions": versions(),
        "code": code_digest(),
        "rows": {"train": len(data[0]), "valid": len(data[1])},
        "noise": NOISE,
        "all_families": overall,
        "results": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(written, indent=2) + "\n")
    print(table(results, overall), end="")


if __name__ == "__main__":
    main()
