#!/usr/bin/env python3
"""Search the digits' two-branch network with plain Optuna and PyTorch, as Optuna's own PyTorch example does.

    plain_optuna.py DATA --storage sqlite:///study.db --study digits --trials 16

Start it twice to search with two processes that share the study; make the study first, with `optuna create-study`.
It stands on its own: nothing of mmsearch is imported. Each epoch is a line of `--log`.
"""

import argparse
import functools
import json
from pathlib import Path

import numpy as np
import optuna
import torch
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[torch.Tensor, ...]]

BATCH_SIZE = 64
CLASSES = 10

# What the first trial tries, in every search that this one is compared with.
START = {
    "image_filters_1": 16,
    "image_filters_2": 32,
    "image_filters_3": 64,
    "audio_filters_1": 32,
    "audio_filters_2": 64,
    "audio_filters_3": 64,
    "units": 128,
    "dropout": 0.3,
    "lr": 1e-3,
}


def suggest(trial: optuna.Trial) -> dict[str, float]:
    return {
        "image_filters_1": trial.suggest_categorical("image_filters_1", [16, 32, 48, 64]),
        "image_filters_2": trial.suggest_categorical("image_filters_2", [32, 64, 96, 128]),
        "image_filters_3": trial.suggest_categorical("image_filters_3", [64, 128, 256]),
        "audio_filters_1": trial.suggest_categorical("audio_filters_1", [16, 32, 48, 64]),
        "audio_filters_2": trial.suggest_categorical("audio_filters_2", [32, 64, 96, 128]),
        "audio_filters_3": trial.suggest_categorical("audio_filters_3", [64, 128, 192, 256]),
        "units": trial.suggest_categorical("units", [64, 128, 256]),
        "dropout": trial.suggest_float("dropout", 0.2, 0.6),
        "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
    }


class Network(nn.Module):
    """Three convolutions for the image, three for the audio, then one dense layer over both.

    The audio is (batch, 1, 507), or with `frames` (batch, 13, 39): its coefficients are the channels.
    """

    def __init__(self, params: dict[str, float], frames: bool = False):
        super().__init__()
        one, two, three = (int(params[f"image_filters_{i}"]) for i in (1, 2, 3))
        self.image = nn.Sequential(
            nn.Conv2d(1, one, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(one, two, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(two, three, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        image_width = three * 3 * 3
        one, two, three = (int(params[f"audio_filters_{i}"]) for i in (1, 2, 3))
        self.audio = nn.Sequential(
            nn.Conv1d(13 if frames else 1, one, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(one, two, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(two, three, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Flatten(),
        )
        audio_width = three * ((39 if frames else 507) // 8)
        units, dropout = int(params["units"]), params["dropout"]
        self.head = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(image_width + audio_width, units),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(units, CLASSES),
        )

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.cat([self.image(image), self.audio(audio)], dim=1))
        return logits


class Data:
    """The training, validation and test rows, standardised, the audio as it is fed to the network.

    Which training rows validate is read from a file, so that every search is validated on the same ones.
    """

    def __init__(self, folder: Path, seed: int, frames: bool = False):
        self.folder, self.frames = folder, frames
        image, audio, label = self.read("train")
        validates = np.load(folder / f"validation_rows_{seed}.npy")
        trains = np.setdiff1d(np.arange(len(label)), validates)
        self.scales = [(float(rows[trains].mean()), float(rows[trains].std())) for rows in (image, audio)]
        self.train = self.dataset(image[trains], audio[trains], label[trains])
        self.valid = self.dataset(image[validates], audio[validates], label[validates])

    @functools.cached_property
    def train_and_valid(self) -> TensorDataset:
        return self.dataset(*self.read("train"))

    @functools.cached_property
    def test(self) -> TensorDataset:
        return self.dataset(*self.read("test"))

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image = np.load(self.folder / f"data_wr_{split}.npy").reshape(-1, 1, 28, 28)
        audio = np.load(self.folder / f"data_sp_{split}.npy")
        audio = audio.reshape(-1, 39, 13).transpose(0, 2, 1) if self.frames else audio.reshape(-1, 1, 507)
        return image, audio, np.load(self.folder / f"labels_{split}.npy")

    def dataset(self, image: np.ndarray, audio: np.ndarray, label: np.ndarray) -> TensorDataset:
        (image_mean, image_std), (audio_mean, audio_std) = self.scales
        image, audio = (image - image_mean) / image_std, (audio - audio_mean) / audio_std
        arrays = (np.ascontiguousarray(image, np.float32), np.ascontiguousarray(audio, np.float32), label)
        return TensorDataset(*map(torch.from_numpy, arrays))


def train_epoch(model: Network, optimizer: torch.optim.Optimizer, loader: Loader) -> None:
    model.train()
    criterion = nn.CrossEntropyLoss()
    for image, audio, label in loader:
        optimizer.zero_grad()
        loss = criterion(model(image, audio), label)
        loss.backward()
        optimizer.step()


def evaluate(model: Network, loader: Loader) -> tuple[float, float]:
    """Mean loss and macro F1."""
    model.eval()
    total, predicted, labels = 0.0, [], []
    with torch.no_grad():
        for image, audio, label in loader:
            logits = model(image, audio)
            total += nn.functional.cross_entropy(logits, label, reduction="sum").item()
            predicted.append(logits.argmax(dim=1))
            labels.append(label)
    truth = torch.cat(labels)
    return total / len(truth), float(f1_score(truth, torch.cat(predicted), average="macro"))


class Objective:
    def __init__(self, data: Data, epochs: int, patience: int, frames: bool, log: Path):
        self.data, self.epochs, self.patience, self.frames, self.log = data, epochs, patience, frames, log

    def __call__(self, trial: optuna.Trial) -> float:
        params = suggest(trial)
        model = Network(params, self.frames)
        optimizer = torch.optim.Adam(model.parameters(), lr=params["lr"])
        train_loader = DataLoader(self.data.train, batch_size=BATCH_SIZE, shuffle=True)
        valid_loader = DataLoader(self.data.valid, batch_size=BATCH_SIZE)

        best, lowest, waited = -1.0, float("inf"), 0
        for epoch in range(1, self.epochs + 1):
            train_epoch(model, optimizer, train_loader)
            loss, macro_f1 = evaluate(model, valid_loader)
            with self.log.open("a") as log:
                log.write(json.dumps({"trial": trial.number, "epoch": epoch, "valid_macro_f1": macro_f1}) + "\n")
            if macro_f1 > best:
                best = macro_f1
                trial.set_user_attr("best_epoch", epoch)

            trial.report(macro_f1, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned()

            lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)  # early stopping
            if waited >= self.patience:
                break
        return best


def retrain(data: Data, params: dict[str, float], epochs: int, frames: bool) -> float:
    """Train on training and validation rows together; the macro F1 on the test rows."""
    model = Network(params, frames)
    optimizer = torch.optim.Adam(model.parameters(), lr=params["lr"])
    loader = DataLoader(data.train_and_valid, batch_size=BATCH_SIZE, shuffle=True)
    for _ in range(epochs):
        train_epoch(model, optimizer, loader)
    return evaluate(model, DataLoader(data.test, batch_size=BATCH_SIZE))[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--storage")
    parser.add_argument("--study", default="digits")
    parser.add_argument("--log", type=Path, default=Path("epochs.jsonl"))
    parser.add_argument("--trials", type=int, default=16, help="of all processes together")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--patience", type=int, default=3, help="epochs without a lower validation loss")
    parser.add_argument("--no-pruning", action="store_true")
    parser.add_argument("--frames", action="store_true", help="feed the audio as 39 frames of 13 coefficients")
    parser.add_argument("--split", type=int, default=0, help="which validation rows")
    parser.add_argument("--seed", type=int, default=0, help="of this process")
    parser.add_argument("--retrain", type=Path, help="JSON list of {params, epochs}: train only these")
    parser.add_argument("--out", type=Path, default=Path("scores.json"), help="their macro F1 on the test rows")
    args = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    data = Data(args.data, args.split, args.frames)
    if args.retrain:
        wanted = json.loads(args.retrain.read_text())
        scores = [retrain(data, one["params"], one["epochs"], args.frames) for one in wanted]
        args.out.write_text(json.dumps(scores) + "\n")
        return

    study = optuna.load_study(
        study_name=args.study,
        storage=args.storage,
        sampler=optuna.samplers.TPESampler(seed=args.seed),
        pruner=optuna.pruners.NopPruner() if args.no_pruning else optuna.pruners.MedianPruner(),
    )
    running_or_done = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    study.optimize(
        Objective(data, args.epochs, args.patience, args.frames, args.log),
        callbacks=[MaxTrialsCallback(args.trials, states=running_or_done)],
    )


if __name__ == "__main__":
    main()
