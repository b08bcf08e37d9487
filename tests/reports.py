"""Made-up material of reports, of any kind of study: no trial of it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
from conftest import TINY
from optuna.trial import FrozenTrial, TrialState

from mmsearch.config import StudyConfig, load_config
from mmsearch.data.sources import load_dataset
from mmsearch.results.ablation import Ablation, AblationRow
from mmsearch.results.confirm import Confirmation, Confirmed
from mmsearch.results.figures.style import Figure
from mmsearch.results.report.material import Material, Model, Rows, Searched
from mmsearch.search.space import distributions, varying
from mmsearch.search.study import count
from mmsearch.search.values import best_of, candidates, pareto_front

BEGAN = datetime(2026, 3, 1, 20, 0)


def config_of(folder: Path, text: str = TINY, **overrides: object) -> StudyConfig:
    """A study file in the folder, with keys such as `search__sampler` laid over it."""
    path = folder / "studies" / "digits.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})


def trial(
    config: StudyConfig,
    number: int,
    values: Sequence[float] | None,
    state: TrialState = TrialState.COMPLETE,
    **more: Any,
) -> FrozenTrial:
    """One with the defaults, of 90 s, each a minute after the one before."""
    space = config.dimensions
    params = varying(space, space.configuration({}))
    found = optuna.trial.create_trial(
        state=state,
        values=values,
        params=params,
        distributions={name: held for name, held in distributions(space).items() if name in params},
        user_attrs={
            "best_epoch": 2,
            "epochs": 3,
            "parameters": 1000 + number,
            "run": {
                "hardware": more.get("hardware", "A processor"),
                "device": "cpu",
                "threads": 1,
                "versions": {"python": "3.12.1", "torch": "2.13.0", "optuna": "5.0.0", "mmsearch": "0.1.0"},
            },
            **more.get("user_attrs", {}),
        },
        constraints=more.get("constraints"),
        system_attrs={"mmsearch:owner": {"worker": f"{number % 2}-ab", "host": more.get("host", "one")}},
    )
    found.number = number
    found.datetime_start = BEGAN + timedelta(minutes=number)
    found.datetime_complete = None if state == TrialState.RUNNING else found.datetime_start + timedelta(seconds=90)
    return found


def searched_of(config: StudyConfig, trials: Sequence[FrozenTrial], total: int | None = None) -> Searched:
    """As `read_search` reads it from a storage; trial 0 has the defaults."""
    signs = tuple(1 if direction == "maximize" else -1 for direction in config.directions)
    fitting = candidates(trials)
    best = best_of(fitting, signs)
    assert best is not None
    baseline = trials[0] if trials[0].state == TrialState.COMPLETE else None
    return Searched(
        config=config,
        trials=tuple(trials),
        counts=count(list(trials)),
        total=len(trials) if total is None else total,
        metrics=config.study.metrics,
        signs=signs,
        constraints=tuple(map(str, config.constraints)),
        best=best,
        baseline=baseline,
        front=tuple(pareto_front(fitting, signs)),
        gain=None if baseline is None else signs[0] * (best.values[0] - baseline.values[0]),
    )


def score(**changes: Any) -> dict[str, Any]:
    """The scores of some rows."""
    classes = changes.pop("classes", ("zero", "one"))
    return {
        "rows": 1000,
        "mistakes": 30,
        "accuracy": 0.97,
        "accuracy_interval": [0.96, 0.98],
        "macro_f1": 0.9651,
        "macro_f1_interval": [0.9512, 0.9777],
        "log_loss": 0.1,
        "ece": 0.01,
        "ece_uncalibrated": 0.03,
        "kept": None,
        "per_class": {
            name: {"precision": 0.9, "recall": 0.8 + 0.001 * at, "f1-score": 0.85, "support": 500}
            for at, name in enumerate(classes)
        },
        **changes,
    }


def metrics(searched: Searched, scored_on: str = "test", **changes: Any) -> dict[str, Any]:
    """The metrics.json of a retrained model."""
    best = searched.best

    def part(value: float, low: float, high: float) -> dict[str, Any]:
        return {"macro_f1": value, "interval": [low, high]}

    scores = dict.fromkeys(("test", "held_back", "training"))
    return {
        "trial": best.number,
        "params": best.params,
        "chosen": {"by": "best", "sentence": f"trial {best.number}, the best of the search"},
        "confirmed": None,
        "members": [{"trial": best.number, "epochs": 2, "seed": 7, "parameters": 1234, "params": best.params}],
        **scores,
        scored_on: score(),
        "calibration": {
            "temperature": 1.25,
            "rows": 80,
            "fitted_on": "validation rows, by a model trained without them",
            "ece_before": 0.04,
            "ece_after": 0.02,
            "log_loss_before": 0.2,
            "log_loss_after": 0.18,
            "abstain_below": None,
            "asked": None,
            "coverage": None,
            "accuracy_kept": None,
            "remarks": [],
        },
        "abstention": [
            {"threshold": at / 100, "coverage": 1 - at / 200, "accuracy": 0.97 + at / 10_000} for at in range(0, 100, 2)
        ],
        "modalities": {
            "scored_on": scored_on,
            "account": {
                "rows": 1000,
                "resamples": 1000,
                "confidence": 0.95,
                "both": part(0.9651, 0.9512, 0.9777),
                "image_alone": part(0.9, 0.88, 0.92),
                "audio_alone": part(0.7, 0.68, 0.72),
                "image_shuffled": part(0.4, 0.38, 0.42),
                "audio_shuffled": part(0.5, 0.48, 0.52),
                "fusion_gain": part(0.0651, 0.0502, 0.0801),
            },
        },
        "parameters": 1234,
        "data": {"fingerprint": "abc", "training_rows": 400},
        **changes,
    }


def figure(name: str = "history", title: str = "History", caption: str = "What was found, and when.") -> Figure:
    """A line of three points."""
    plot = go.Figure(go.Scatter(x=[0, 1, 2], y=[0.5, 0.7, 0.9]))
    plot.update_layout(xaxis_title="trial", yaxis_title="macro F1")
    return Figure(name, title, caption, plot, 600, 300, "A line that rises.")


def confirmation_of(searched: Searched, **changes: Any) -> Confirmation:
    """The best trial and the defaults, which differ."""
    best = searched.best

    def row(number: int, mean: float, p: float | None, **more: Any) -> Confirmed:
        return Confirmed(
            trial=number,
            params=best.params,
            searched=0.97,
            values=(mean, mean),
            mean=mean,
            interval=(mean - 0.01, mean + 0.01),
            drop=0.97 - mean,
            parameters=1000 + number,
            p=p,
            differs=p is not None and p < 0.05,
            best_epochs=(2, 3),
            **more,
        )

    rows = (row(best.number, 0.9612, None, rank=1), row(0, 0.9412, 0.0004, defaults=True))
    held = Confirmation("macro_f1", 1, 5, rows, best.number, "best", len(searched.finished), len(searched.finished))
    return replace(held, **changes)


def ablation_of(searched: Searched) -> Ablation:
    """One parameter that matters, and one that does not."""
    rows = (
        AblationRow("optimizer.lr", 0.01, 0.003, (0.9, 0.9), 0.9, (0.89, 0.91), 0.0612, (0.05, 0.07), 0.002, True),
        AblationRow("image.mlp.units_1", 16, 32, (0.96, 0.96), 0.96, None, 0.0012, None, None, False),
    )
    return Ablation("macro_f1", 1, 3, searched.best.number, (0.96, 0.9624), 0.9612, (0.95, 0.97), rows)


def material_of(searched: Searched, held: Mapping[str, Any] | None = None, **changes: Any) -> Material:
    """All of a report, with the metrics of a model, or without one."""
    config = searched.config
    dataset = load_dataset(config)
    model = None if held is None else Model(dict(held), "storage/digits/retrained/1", (figure("confusion"),))
    made = Material(
        searched=searched,
        made=datetime(2026, 3, 2, tzinfo=UTC),
        dataset=dataset,
        rows=Rows.of(dataset, config),
        search_figures=(figure(),),
        confirmation=None,
        ablation=None,
        model=model,
        models=1,
        doubts=(),
    )
    return replace(made, **changes)
