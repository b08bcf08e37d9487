"""Training samples a second of one network, in turns: the plain script's loop, and mmsearch's `fit`, also in float32.

python -m comparison.step DATA --network 16-32-64 [--frames] --repeats 5 --out FILE

One thread. Each turn trains one epoch of the same rows, batches of 64, from where the turn before left off; the first
turn of each is not counted. None is validated in between.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset

from comparison.plain_optuna import BATCH_SIZE, Data, Network, train_epoch
from comparison.space import NETWORKS, network, ours, study_text
from mmsearch.config import StudyConfig, load_config
from mmsearch.data.dataset import statistics
from mmsearch.data.sources import load_dataset
from mmsearch.data.splits import some
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.factory import MultimodalClassifier, build_model
from mmsearch.search.folds import Preparation
from mmsearch.training.device import use_threads
from mmsearch.training.fit import Training, fit, seed_everything
from mmsearch.training.precision import Computed, computed_in


def study(data: Path, folder: Path, frames: bool) -> StudyConfig:
    """The study that a search of these data has, with mmsearch's defaults."""
    file = folder / "three_conv.toml"
    file.write_text(study_text(data, trials=1, epochs=10, frames=frames))
    return load_config(file)


def fixed(config: StudyConfig, name: str) -> Hyperparameters:
    """One of the named networks as mmsearch has it."""
    return config.dimensions.configuration(ours(network(name)))


def mmsearch_training(
    config: StudyConfig, name: str, rows: int, epochs: int, precision: Computed
) -> tuple[MultimodalClassifier, Training, int]:
    """The model, its training and the number of its rows."""
    dataset, hyperparameters = load_dataset(config), fixed(config, name)
    prepared = Preparation(config, dataset).prepared(hyperparameters)
    train = some(prepared.folds[0].train, rows, 0)
    seed_everything(0)
    model = build_model(hyperparameters, prepared.shapes, statistics(train))
    training = fit(
        model, train, None, hyperparameters, epochs=epochs, seed=0, device=torch.device("cpu"), precision=precision
    )
    return model, training, len(train)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--network", choices=list(NETWORKS), required=True)
    parser.add_argument("--frames", action="store_true")
    parser.add_argument("--rows", type=int, default=3200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    use_threads(1)
    data = Data(args.data, 0, args.frames)
    with tempfile.TemporaryDirectory() as folder:
        config = study(args.data, Path(folder), args.frames)
        chosen = computed_in(config.search.precision, fixed(config, args.network), torch.device("cpu"))
        epochs = args.repeats + 1
        model, training, rows = mmsearch_training(config, args.network, args.rows, epochs, chosen)
        _, in_float32, _ = mmsearch_training(config, args.network, args.rows, epochs, "float32")
        trainings = {"mmsearch": training, "mmsearch in float32": in_float32}
        plain = Network(network(args.network), args.frames)
        parameters = sum(weights.numel() for weights in plain.parameters())
        assert parameters == model.parameter_count(), "the two networks differ"
        optimizer = torch.optim.Adam(plain.parameters(), lr=network(args.network)["lr"])
        loader = DataLoader(Subset(data.train, range(rows)), batch_size=BATCH_SIZE, shuffle=True)
        seconds: dict[str, list[float]] = {"plain": [], **{name: [] for name in trainings}}
        for turn in range(args.repeats + 1):
            for name in sorted(seconds, reverse=bool(turn % 2)):
                started = time.perf_counter()
                if name == "plain":
                    train_epoch(plain, optimizer, loader)
                else:
                    next(trainings[name])
                if turn:
                    seconds[name].append(time.perf_counter() - started)
    rates = {name: [round(rows / spent, 1) for spent in each] for name, each in seconds.items()}
    found = {"parameters": parameters, "rows": rows, "precision": chosen, "samples_a_second": rates}
    args.out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
