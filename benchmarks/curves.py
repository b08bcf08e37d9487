"""Learning curves of configurations that are trained to their last epoch: what benchmarks/pruners.py replays."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.dataset import Dataset
from mmsearch.data.sources import load_dataset

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 10


@dataclass(frozen=True)
class Curve:
    """One configuration as it was trained: an entry an epoch. `test` is None where no epoch before was worse."""

    params: dict[str, Any]
    values: list[float]  # macro F1 on the validation rows
    losses: list[float]  # on the same
    seconds: list[float]  # of the processor
    test: list[float | None]  # macro F1 on the test rows

    def ended_by(self, patience: int) -> Curve:
        """The curve up to where `patience` epochs in a row brought no lower loss."""
        lowest, waited, last = float("inf"), 0, 0
        for loss in self.losses:
            lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
            last += 1
            if waited >= patience:
                break
        return Curve(self.params, self.values[:last], self.losses[:last], self.seconds[:last], self.test[:last])

    @property
    def value(self) -> float:
        """What the trial is worth when it completes."""
        return max(self.values)

    @property
    def test_value(self) -> float:
        """The test macro F1 of the epoch that the value is of."""
        found = self.test[self.values.index(self.value)]
        assert found is not None
        return found


def study_config(study: str, source: str, data: Path, work: Path, precision: str) -> StudyConfig:
    """A shipped study in which nothing ends a trial before its last epoch."""
    given = {
        "study.folder": str(work / "storage"),
        "study.metrics": ["macro_f1"],
        "data.source": str(data),
        "search.sampler": "tpe" if source == "tpe" else "random",
        "search.pruner": "none",
        "search.max_epochs": EPOCHS,
        "search.patience": EPOCHS,
        "search.precision": precision,
    }
    return load_config(ROOT / "studies" / f"{study}.toml", given)


def basis(config: StudyConfig, dataset: Dataset) -> dict[str, Any]:
    """What curves depend on besides their parameters."""
    import torch

    from mmsearch.search.space import distributions
    from mmsearch.training.provenance import code_digest, device_name, versions

    space = repr((sorted(distributions(config.dimensions).items()), sorted(config.configurations[0].items())))
    return {
        "epochs": config.search.max_epochs,
        "precision": config.search.precision,
        "sampler": config.search.sampler,
        "rows": [len(dataset.train), 0 if dataset.test is None else len(dataset.test)],
        "data": dataset.fingerprint,
        "space": hashlib.blake2b(space.encode(), digest_size=8).hexdigest(),
        "device": device_name(torch.device("cpu")),
        "code": code_digest(),
        "versions": versions(),
    }


TRAINED_ON = ("device", "code", "versions")  # what matters only where curves are added to those that are held


def record(config: StudyConfig, draws: int, file: Path, *, repeat: bool = False) -> tuple[dict[str, Any], list[Curve]]:
    """What the curves of so many configurations depend on, and the curves, those that diverged left out.

    Trains what `file` does not hold yet: its first line says what its curves depend on, then each line is one. Raises
    `SystemExit` where that differs from what is asked for, or for curves that are to be added, from what is there now.
    """
    if draws == 0:
        return {}, []
    dataset = load_dataset(config)
    of = json.loads(json.dumps(basis(config, dataset)))  # as it is read
    if not file.exists():
        file.write_text(json.dumps({"of": of}) + "\n")
    first, *lines = file.read_text().splitlines()
    held = [Curve(**json.loads(line)) for line in lines]
    found: dict[str, Any] = json.loads(first).get("of", {})
    asked = [name for name in of if len(held) < draws or name not in TRAINED_ON]
    other = [name for name in asked if found.get(name) != of[name]]
    if other:
        raise SystemExit(f"{file}: its curves are of other {', '.join(other)}: give another --work folder")
    train(config, dataset, held, draws, file, repeat)
    return found, [curve for curve in held[:draws] if curve.values]


def train(config: StudyConfig, dataset: Dataset, held: list[Curve], draws: int, file: Path, repeat: bool) -> None:
    """Draw and train configurations until there are so many, adding each to `held` and to the file."""
    if len(held) >= draws:
        return
    import torch

    from mmsearch.errors import LossNotFinite
    from mmsearch.search.folds import Preparation, TrialTraining
    from mmsearch.search.samplers import build_sampler
    from mmsearch.search.space import distributions, suggest, varying
    from mmsearch.training.batches import Batches
    from mmsearch.training.fit import evaluate
    from mmsearch.training.metrics import macro_f1

    torch.set_num_threads(1)
    device = torch.device("cpu")
    assert dataset.test is not None
    preparation, test = Preparation(config, dataset), Batches(dataset.test, device)
    study = optuna.create_study(direction="maximize", sampler=build_sampler(config))
    known = distributions(config.dimensions)
    for curve in held:
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if curve.values else TrialState.FAIL,
                params=curve.params,
                distributions={name: known[name] for name in curve.params},
                value=curve.value if curve.values else None,
            )
        )
    for number in range(len(held), draws):
        if number == 0 or repeat:
            study.enqueue_trial(varying(config.dimensions, config.configurations[0]))
        trial = study.ask()
        hyperparameters = suggest(config.dimensions, trial)
        prepared = preparation.prepared(hyperparameters)
        training = TrialTraining(config, prepared, hyperparameters, first_number=number, device=device)
        curve = Curve(dict(trial.params), [], [], [], [])
        try:
            while not training.over:
                started = time.process_time()
                _, result = next(training)
                seconds = round(time.process_time() - started, 4)
                assert result.valid is not None
                better = result.valid.macro_f1 > max(curve.values, default=-1.0)
                curve.test.append(macro_f1(evaluate(training.model, test).matrix()) if better else None)
                curve.values.append(result.valid.macro_f1)
                curve.losses.append(result.valid.loss)
                curve.seconds.append(seconds)
            study.tell(trial, curve.value)
        except LossNotFinite:
            curve = Curve(curve.params, [], [], [], [])
            study.tell(trial, state=TrialState.FAIL)
        held.append(curve)
        with file.open("a") as out:
            out.write(json.dumps(asdict(curve)) + "\n")
        best = f"{curve.value:.4f}" if curve.values else "diverged"
        print(f"{file.stem}: {number + 1} of {draws}, macro F1 {best}", file=sys.stderr, flush=True)
