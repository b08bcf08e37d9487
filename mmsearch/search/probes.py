"""A process that tries configurations for some steps each, as a worker would train them, and tells what they take.

`mmsearch.search.preflight` starts it as `python -m mmsearch.search.probes`: a JSON object on the first line of standard
input (see `crew.Place`), then one a line for each job. Each job has one JSON object on standard output. It opens no
study, and writes nothing but a checkpoint in a temporary folder, and the cache of a manifest's and wav files' data.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsearch.data.dataset import Index, Shapes, Split, statistics
from mmsearch.data.features import feature_shapes, with_features
from mmsearch.data.sources import load_dataset
from mmsearch.data.splits import validation_splits
from mmsearch.errors import MmsearchError, OutOfMemory
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.models.factory import MultimodalClassifier, build_model
from mmsearch.search.costs import Cost, cost_of, extremes
from mmsearch.search.crew import Place
from mmsearch.search.forecast import Measured
from mmsearch.search.objective import size_violation  # and with it all that a worker loads
from mmsearch.search.pictures.confusion import draw_confusion
from mmsearch.search.pictures.curves import draw_curves
from mmsearch.search.room import PeakMemory
from mmsearch.training.batches import EVALUATION_ROWS, Batches
from mmsearch.training.checkpoints import save_checkpoint
from mmsearch.training.device import free_memory, memory_told, own_device, use_threads
from mmsearch.training.fit import Training, evaluate, fit, seed_everything
from mmsearch.training.latency import latency_ms

WARM_STEPS = 2
MOST_STEPS = 100
SAMPLE_ROWS = 1024  # of the training rows, taken again and again; of waveforms, features are computed for them alone
STATISTICS_ROWS = 4096  # that a worker holds at once as it computes them
STILL = 1e-7  # a learning rate at which no loss runs away; how fast a step is does not depend on it
CONTEXT_BYTES = 500 << 20  # of a GPU that a process's kernels and libraries take, before any tensor


class Prober:
    """A worker's place, with its data, that tries configurations; `held` is its memory, watched since it began."""

    def __init__(self, place: Place, held: PeakMemory) -> None:
        config = place.config
        self.config, self.held = config, held
        self.seconds = place.seconds
        use_threads(place.threads)
        self.device = own_device(place.place)
        self.dataset = load_dataset(config)
        self.folds = validation_splits(self.dataset, config)
        self.rows = tuple(round(float(np.mean([len(pair[side]) for pair in self.folds]))) for side in (0, 1))
        train = self.folds[0][0]
        order = np.random.default_rng(config.study.seed).permutation(train.rows)
        self.sample = self.dataset.train.only(order[:SAMPLE_ROWS])
        self.row_bytes = 0  # of an image and its features, at most
        # That this process has begun on the GPU itself makes it look a little smaller than it is: on the safe side.
        self.gpu_free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 0

    def ready(self) -> dict[str, Any]:
        """What there is to know before the first job."""
        return {"gpu_free": self.gpu_free}

    def scout(self, draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The extremes of the space, with their costs, and the cost of each of the draws."""
        found = extremes(
            self.config.dimensions, self._cost, lambda parameters: size_violation(self.config, parameters) is None
        )
        return {
            "extremes": {name: dict(made.items()) for name, made in found.items()},
            "draws": [
                {"seconds": cost.seconds, "refused": size_violation(self.config, cost.parameters)}
                for cost in (self._cost(Hyperparameters(values)) for values in draws)
            ],
        }

    def probe(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """One configuration, trained and evaluated for some steps."""
        hyperparameters = Hyperparameters({**values, "optimizer.lr": STILL})
        try:
            with memory_told(self.device):
                found = self._measure(hyperparameters)
        except OutOfMemory as why:
            found = Measured(refused=str(why), kind="memory")
        except Exception as error:  # as in a worker: one configuration's failure is told, and others are tried
            known = isinstance(error, MmsearchError)
            found = Measured(refused=str(error) if known else f"{type(error).__name__}: {error}", kind="failure")
        free_memory(self.device)
        return asdict(replace(found, memory=self.held.bytes(), gpu_memory=self._gpu_memory()))

    def leave(self, epochs: int) -> dict[str, Any]:
        """The sizes of the table's and pictures' files that a trial of so many epochs leaves, and the seconds."""
        started = time.perf_counter()
        scores = {f"{side}_{name}": 0.123456789012345 for side in ("train", "valid") for name in ("loss", "accuracy")}
        scores |= {"train_macro_f1": 0.987654321098765, "valid_macro_f1": 0.987654321098765}
        each = -(-epochs // len(self.folds))
        rows = [
            {"fold": fold, "epoch": epoch, **scores, "lr": 0.000123456789, "seconds": 12.345}
            for fold in range(1, len(self.folds) + 1)
            for epoch in range(1, each + 1)
        ]
        classes = self.dataset.classes
        matrix = np.random.default_rng(0).integers(0, 50, (len(classes), len(classes)))
        pictures = draw_curves(rows, self.config.metric, [1] * len(self.folds)), draw_confusion(matrix, classes, "")
        sizes = [len(picture.png()) for picture in pictures]
        table = sum(len(",".join(map(str, row.values()))) + 1 for row in rows)
        log = sum(len(json.dumps({"attempt": "2026-01-01T00:00:00.000000Z", **row})) + 1 for row in rows)
        return {"log": log, "shown": [table, *sizes], "seconds": time.perf_counter() - started}

    def _cost(self, hyperparameters: Hyperparameters) -> Cost:
        rows = self.rows[0] * len(self.folds), self.rows[1] * len(self.folds)
        return cost_of(hyperparameters, self._shapes(hyperparameters), rows)

    def _shapes(self, hyperparameters: Hyperparameters) -> Shapes:
        return feature_shapes(self.dataset.shapes, self.dataset.rate, hyperparameters)

    def _measure(self, hyperparameters: Hyperparameters) -> Measured:
        started = time.perf_counter()
        rows = with_features(self.sample, self.dataset.rate, hyperparameters, None)
        feature_s = (time.perf_counter() - started) / len(rows) if self.dataset.rate else 0.0
        self.row_bytes = max(self.row_bytes, rows.image[0].nbytes + rows.audio[0].nbytes)
        known = statistics(_again(rows, min(STATISTICS_ROWS, self.rows[0])))
        size = min(hyperparameters["batch_size"], self.rows[0])
        started = time.perf_counter()
        seed_everything(0)
        model = build_model(hyperparameters, self._shapes(hyperparameters), known)
        parameters = model.parameter_count()
        if (why := size_violation(self.config, parameters)) is not None:
            return Measured(parameters, refused=why, kind="constraint")
        training = self._fit(model, _again(rows, WARM_STEPS * size), hyperparameters)
        begin_s = time.perf_counter() - started
        next(training)
        warm = next(training).seconds / WARM_STEPS
        steps = min(MOST_STEPS, int(self.seconds / warm))
        if steps > WARM_STEPS:
            training = self._fit(model, _again(rows, steps * size), hyperparameters)
            warm = next(training).seconds / steps
        valid_s = self._evaluate(model, rows, training.lower)
        started = time.perf_counter()
        checkpoint = self._checkpoint(training)
        names = (*self.config.study.metrics, *(constraint.metric for constraint in self.config.constraints))
        if "latency_ms" in names:
            latency_ms(model, self._shapes(hyperparameters), self.device)
        end_s = time.perf_counter() - started
        return Measured(
            parameters,
            warm / size,
            valid_s,
            begin_s,
            end_s,
            feature_s,
            checkpoint,
            max(steps, WARM_STEPS),
        )

    def _fit(self, model: MultimodalClassifier, rows: Split, hyperparameters: Hyperparameters) -> Training:
        search = self.config.search
        return fit(
            model,
            rows,
            None,
            hyperparameters,
            epochs=search.max_epochs + WARM_STEPS,
            seed=0,
            device=self.device,
            precision=search.precision,
        )

    def _evaluate(self, model: MultimodalClassifier, rows: Split, precision: torch.autocast) -> float:
        """Seconds a row."""
        some = min(EVALUATION_ROWS, self.rows[1])
        batches = Batches(_again(rows, some), self.device)
        evaluate(model, batches, precision).loss()  # which waits for a GPU
        started, done = time.perf_counter(), 0
        while done == 0 or time.perf_counter() - started < self.seconds / 3:
            evaluate(model, batches, precision).loss()
            done += some
        return (time.perf_counter() - started) / done

    def _checkpoint(self, training: Training) -> int:
        """The size of a checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pt"
            save_checkpoint(path, {"training": training.state_dict()})
            return path.stat().st_size

    def _gpu_memory(self) -> int:
        """What this process ever held of its GPU, with all rows there, as a worker has them."""
        if self.device.type != "cuda":
            return 0
        return torch.cuda.max_memory_reserved(self.device) + CONTEXT_BYTES + self.row_bytes * sum(self.rows)


def _again(split: Split, count: int) -> Split:
    """So many rows of a split, the same ones again where it has fewer."""
    rows: Index = np.resize(split.rows, max(count, 1))
    return replace(split, rows=rows)


def main() -> None:
    """Entry point of the process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints, prints to the log
    with contextlib.suppress(OSError):  # where memory ends, the kernel takes this process, and no other
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    place = Place.from_json(sys.stdin.readline())
    with answers, PeakMemory() as held:
        try:
            prober = Prober(place, held)
        except MmsearchError as error:
            answers.write(json.dumps({"error": str(error), "code": error.exit_code}) + "\n")
            raise SystemExit(error.exit_code) from None
        answers.write(json.dumps(prober.ready()) + "\n")
        jobs: dict[str, Callable[[Any], dict[str, Any]]] = {
            "probe": prober.probe,
            "scout": prober.scout,
            "leave": prober.leave,
        }
        for line in sys.stdin:
            ((name, given),) = json.loads(line).items()
            answers.write(json.dumps(jobs[name](given)) + "\n")


if __name__ == "__main__":
    main()
