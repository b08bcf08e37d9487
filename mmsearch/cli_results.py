"""The commands of what comes after a search: the model and its predictions, and what a report needs."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmsearch.console import Epochs, must_be_writable, print_retrained, put, say
from mmsearch.errors import UsageError
from mmsearch.options import (
    Data,
    Device,
    ImageShape,
    Out,
    Seed,
    SkipBroken,
    StorageUrl,
    Study,
    StudyName,
    config_of,
)
from mmsearch.paths import DEFAULT_STUDY


class Format(StrEnum):
    """The forms of a trial table."""

    CSV = "csv"
    JSON = "json"
    MD = "md"
    TEX = "tex"
    PARQUET = "parquet"


class Order(StrEnum):
    """The orders of a trial table."""

    NUMBER = "number"
    BEST = "best"


def retrain_best(
    study: Study = DEFAULT_STUDY,
    trial: Annotated[int | None, typer.Option(min=0, help="This complete trial instead of the best.")] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            help="Among several metrics: best (of the leading one), knee (closest to the best of all), or within=0.005 "
            "(of those at most so much worse than the best, the best of the second)."
        ),
    ] = None,
    data: Data = None,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    seed: Seed = None,
    device: Device = None,
    image_shape: ImageShape = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Train the best trial again, on training and validation rows; leave model, predictions and metrics."""
    if trial is not None and pick is not None:
        raise UsageError("--trial and --pick exclude each other")
    config = config_of(
        study,
        data=data,
        storage=storage,
        study_name=study_name,
        seed=seed,
        device=device,
        image_shape=image_shape,
        skip_broken=skip_broken or None,
    )
    from mmsearch.results.retrain import retrain_best as run
    from mmsearch.search.machine import cores
    from mmsearch.training.device import use_threads

    use_threads(cores())
    with Epochs() as show:
        rule = pick or "best"
        bundle = run(config, trial=trial, rule=rule, on_plan=show.plan, on_note=say, on_epoch=show.epoch)
    print_retrained(bundle)


def predict(
    bundle: Annotated[Path, typer.Argument(help="A folder that `mmsearch retrain-best` made.")],
    data: Annotated[str, typer.Argument(help="A data folder in any layout, or the word demo.")],
    out: Out = None,
    split: Annotated[
        str | None, typer.Option(help="train or test; by default test, or train where there is no test split.")
    ] = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Predict new data with a retrained model: a CSV of labels, confidences and probabilities."""
    if split not in (None, "train", "test"):
        raise UsageError(f'--split must be train or test, not "{split}"')
    must_be_writable(out)
    from mmsearch.results.bundle import Bundle
    from mmsearch.results.predict import predict as run

    put(run(Bundle.load(bundle), data, split, skip_broken=skip_broken, on_event=say), out)


def export(
    study: Study = DEFAULT_STUDY,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    form: Annotated[
        Format, typer.Option("--format", help="csv, json and parquet are exact; md and tex are rounded for print.")
    ] = Format.CSV,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME",
            help="Only these columns, in this order. A pattern such as image.* names several, and * also those that are "
            "shown only on demand: started, finished, seed, threads, device, hardware, worker, host, retry_of.",
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="STATE,STATE", help="Only trials that are complete, pruned, failed, running or waiting."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many, the best.")] = None,
    sort: Annotated[
        Order | None, typer.Option(help="By trial number, or the best first; by default number, and best with --top.")
    ] = None,
    out: Out = None,
) -> None:
    """Print the trial table: number, state, value, duration, epochs and every parameter."""
    must_be_writable(out)
    if form is Format.PARQUET and out is None and sys.stdout.isatty():
        raise UsageError("a Parquet file is not for a terminal: give it a name, such as -o trials.parquet")
    config = config_of(study, reading=True, storage=storage, study_name=study_name)
    from mmsearch.results import tables
    from mmsearch.search.study import open_study

    states = [] if state is None else tables.choose_states(state)
    with open_study(config) as opened:
        every, best, metrics = tables.trial_rows(opened, "best"), opened.best(), opened.metrics
    names = tables.default_columns(every) if columns is None else tables.choose_columns(every, columns)
    order = sort or (Order.NUMBER if top is None else Order.BEST)
    rows = tables.select_rows(every, states, top, order)
    if form is Format.PARQUET:
        put(tables.parquet_table(rows, names), out)
        return
    large = tables.too_large(rows, names) if form is Format.TEX else None
    if large is not None:
        say(large)
    marked = None if best is None else best.number
    put(tables.render_table(rows, form, columns=names, metric=metrics[0], best=marked), out)
