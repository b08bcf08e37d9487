"""The same search with Ray Tune: ASHA prunes, Optuna proposes, two trials at a time; training as in plain_optuna.py.

python -m comparison.ray_tune DATA --folder FOLDER --log FILE --out FILE [--trials 16]

The winner's parameters and best epoch are written as JSON. Ray listens where its environment
variables say (see contestants.py), and ends with it.
"""

from __future__ import annotations

# mypy: disable-error-code="import-not-found,import-untyped"
import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from torch.utils.data import DataLoader

from comparison.plain_optuna import BATCH_SIZE, START, Data, Network, evaluate, suggest, train_epoch


def train(params: dict[str, Any], data: Data, epochs: int, patience: int, seed: int, log: Path) -> None:
    """One trial: ASHA ends it, or its epochs, or early stopping."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Network(params)
    optimizer = torch.optim.Adam(model.parameters(), lr=params["lr"])
    train_loader = DataLoader(data.train, batch_size=BATCH_SIZE, shuffle=True)
    valid_loader = DataLoader(data.valid, batch_size=BATCH_SIZE)
    lowest, waited = float("inf"), 0
    for epoch in range(1, epochs + 1):
        train_epoch(model, optimizer, train_loader)
        loss, macro_f1 = evaluate(model, valid_loader)
        with log.open("a") as lines:
            trial = tune.get_context().get_trial_id()
            lines.write(json.dumps({"trial": trial, "epoch": epoch, "valid_macro_f1": macro_f1}) + "\n")
        tune.report({"macro_f1": macro_f1, "epoch": epoch})
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        if waited >= patience:
            break


def search(args: argparse.Namespace) -> None:
    """Search, and write the winner down."""
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(
                train,
                data=Data(args.data, args.seed),
                epochs=args.epochs,
                patience=args.patience,
                seed=args.seed,
                log=args.log.resolve(),
            ),
            {"cpu": 1},
        ),
        tune_config=tune.TuneConfig(
            metric="macro_f1",
            mode="max",
            scheduler=ASHAScheduler(max_t=args.epochs),
            search_alg=OptunaSearch(suggest, "macro_f1", "max", points_to_evaluate=[START], seed=args.seed),
            num_samples=args.trials,
            max_concurrent_trials=2,
            reuse_actors=True,  # so that only the first two trials wait for the imports
        ),
        run_config=tune.RunConfig(storage_path=str(args.folder.resolve()), verbose=0),
    )
    best = tuner.fit().get_best_result(scope="all")
    frame = best.metrics_dataframe
    assert frame is not None
    epoch = int(frame.loc[frame["macro_f1"].idxmax(), "epoch"])
    args.out.write_text(json.dumps({"params": best.config, "epochs": epoch}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray-") as scratch:  # a short path: Ray puts sockets there
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=scratch)
        try:
            search(args)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
