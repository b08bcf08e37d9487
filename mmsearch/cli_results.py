"""The commands of what comes after a search: the model and its predictions, and what a report needs."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmsearch.cli_search import goes_on_with, whole
from mmsearch.console import Epochs, must_be_writable, print_retrained, progress_of, put, say
from mmsearch.errors import UsageError
from mmsearch.options import (
    RETRAINING,
    Data,
    Device,
    Gpus,
    ImageShape,
    MaxFailures,
    Out,
    Seed,
    SkipBroken,
    StorageTimeout,
    StorageUrl,
    Study,
    StudyName,
    StudyOption,
    Timeout,
    Workers,
    WorkersPerGpu,
    config_of,
)
from mmsearch.paths import DEFAULT_STUDY

if TYPE_CHECKING:
    from mmsearch.config import StudyConfig


ABLATION_SEEDS = 3


class Format(StrEnum):
    """The forms of a trial table."""

    CSV = "csv"
    JSON = "json"
    MD = "md"
    TEX = "tex"
    PARQUET = "parquet"


class Numbers(StrEnum):
    """The forms of a comparison."""

    TEXT = "text"
    JSON = "json"
    CSV = "csv"


class Order(StrEnum):
    """The orders of a trial table."""

    NUMBER = "number"
    BEST = "best"


class Prefer(StrEnum):
    """What `confirm` chooses."""

    BEST = "best"
    SMALL = "small"


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
    ensemble: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=20,
            metavar="K",
            help="Train the K best configurations, or the one of --trial or --pick on K seeds, and average their "
            "probabilities.",
        ),
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Train once more without the validation rows, and fit on these how sure the model may be.",
        ),
    ] = True,
    abstain_below: Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="Say nothing of a row below this confidence: a number, or the share that is to be reached on "
            "validation rows, accuracy=0.999 or coverage=0.95.",
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
    """Train the best trial, or the confirmed one, again on training and validation rows; leave model and metrics."""
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
    again = config.command("retrain-best", RETRAINING)
    for given, option in (
        (trial is not None, f"--trial {trial}"),
        (pick, f"--pick {pick}"),
        (ensemble, f"--ensemble {ensemble}"),
        (not calibrate, "--no-calibrate"),
        (abstain_below, f"--abstain-below {abstain_below}"),
    ):
        again += f" {option}" if given else ""
    with goes_on_with(again, "a retraining begins anew"), Epochs() as show:
        bundle = run(
            config,
            trial=trial,
            rule=pick,
            ensemble=ensemble or 1,
            calibrate=calibrate,
            abstain_below=abstain_below,
            on_plan=show.plan,
            on_note=say,
            on_step=say,
            on_epoch=show.epoch,
        )
    print_retrained(bundle)


def confirm(
    study: Study = DEFAULT_STUDY,
    top: Annotated[int, typer.Option(min=1, help="So many of the best trials, beside the defaults.")] = 5,
    seeds: Annotated[int, typer.Option(help="On so many fresh seeds each; 2 at least.")] = 5,
    prefer: Annotated[
        Prefer,
        typer.Option(help="The choice: best (mean), or small (the smallest model that does not differ from the best)."),
    ] = Prefer.BEST,
    workers: Workers = None,
    timeout: Timeout = None,
    max_failures: MaxFailures = None,
    data: Data = None,
    storage: StorageUrl = None,
    storage_timeout: StorageTimeout = None,
    study_name: StudyName = None,
    seed: Seed = None,
    device: Device = None,
    gpus: Gpus = None,
    workers_per_gpu: WorkersPerGpu = None,
    image_shape: ImageShape = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Train the best trials and the defaults again on fresh seeds: which are better, and which were lucky."""
    config = config_of(
        study,
        timeout=timeout,
        max_failures=max_failures,
        data=data,
        storage=storage,
        storage_timeout=storage_timeout,
        study_name=study_name,
        seed=seed,
        device=device,
        gpus=gpus,
        workers_per_gpu=workers_per_gpu,
        image_shape=image_shape,
        skip_broken=skip_broken or None,
    )
    again = f"{config.command('confirm')} --top {top} --seeds {seeds} --prefer {prefer}"
    again += f" --workers {workers}" if workers else ""
    choice: Literal["best", "small"] = "small" if prefer is Prefer.SMALL else "best"
    with goes_on_with(again):
        from mmsearch.results.confirm import WORD
        from mmsearch.results.confirm import confirm as run
        from mmsearch.results.confirm_words import render
        from mmsearch.search.repeats import repeats_of

        show = progress_of(repeats_of(config, WORD))
        found = run(config, top=top, seeds=seeds, prefer=choice, workers=workers, progress=show)
    print(render(found), end="")
    if found.missing:
        say(f"go on with: {whole(again)}")
    if found.ended is None:
        say(f"next: {whole(config.command('retrain-best', RETRAINING))}")


def predict(
    bundle: Annotated[
        Path,
        typer.Argument(
            help="A folder that `mmsearch retrain-best` made, or one of its files: model.safetensors in it, or "
            "model.pt2 or model.onnx, alone and wherever they are. A .pt2 is a program: load only what you trust."
        ),
    ],
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
    from mmsearch.results.predict import predict as run
    from mmsearch.results.runtime import load_predictor

    put(run(load_predictor(bundle), data, split, skip_broken=skip_broken, on_event=say), out)


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
            help="Only these columns, in this order. A pattern such as image.* names several, and * all: also started, "
            "finished, seed, threads, device, hardware, worker, host and retry_of, which are shown only on demand.",
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(metavar="STATE,STATE", help="Only trials that are complete, pruned, failed, running or waiting."),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only so many, the best complete ones.")] = None,
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


def compare(
    studies: Annotated[
        list[str],
        typer.Argument(metavar="STUDY...", help="Study files, or names of studies in the storage of --study."),
    ],
    study: StudyOption = DEFAULT_STUDY,
    storage: StorageUrl = None,
    form: Annotated[
        Numbers, typer.Option("--format", help="text is for people; json and csv are exact.")
    ] = Numbers.TEXT,
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw the best so far against trials and against hours of training: .html, .png or .svg.",
        ),
    ] = None,
    out: Out = None,
) -> None:
    """Print studies side by side: results with intervals, what they cost, when each was as good, how they differ."""
    must_be_writable(out)
    files = [word.endswith(".toml") or "/" in word for word in studies]
    configs = [
        config_of(Path(word), reading=True, storage=storage)
        if file
        else config_of(study, reading=True, storage=storage, study_name=word)
        for word, file in zip(studies, files, strict=True)
    ]
    from mmsearch.results import compare_forms as forms
    from mmsearch.results.compare import compare as run

    if figure is not None:
        from mmsearch.results.figures.compare import check_file, compare_figure, write_figure

        must_be_writable(figure)
        check_file(figure)
    found = run(configs, studies)
    put({"text": forms.as_text, "json": forms.as_json, "csv": forms.as_csv}[form](found), out)
    if figure is not None:
        write_figure(compare_figure(found), figure)
        say(f"wrote {figure}")


def report(
    study: Study = DEFAULT_STUDY,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate", help="Train the best configuration with one parameter at a time back at its default first."
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(help=f"Of the ablation: on so many fresh seeds each; 2 at least. [default: {ABLATION_SEEDS}]"),
    ] = None,
    workers: Workers = None,
    no_retrain: Annotated[
        bool,
        typer.Option("--no-retrain", help="Make no model where there is none: the report then says how to make one."),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write into this folder.")] = None,
    data: Data = None,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    seed: Seed = None,
    device: Device = None,
    image_shape: ImageShape = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Write the report of a study: one page, and the same as Markdown and LaTeX, with its figures and tables."""
    if seeds is not None and not ablate:
        raise UsageError("--seeds is of the ablation, and needs --ablate")
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
    from mmsearch.results.ablation import WORD
    from mmsearch.results.ablation import ablate as run_ablation
    from mmsearch.results.report.write import make_report
    from mmsearch.results.retrain import retrain_best as run_retraining
    from mmsearch.search.machine import cores
    from mmsearch.search.repeats import repeats_of
    from mmsearch.training.device import use_threads

    def ablation(config: StudyConfig) -> None:
        show = progress_of(repeats_of(config, WORD))
        run_ablation(config, seeds=seeds or ABLATION_SEEDS, workers=workers, progress=show)

    def retraining(config: StudyConfig) -> None:
        with Epochs() as show:
            run_retraining(config, on_plan=show.plan, on_note=say, on_step=say, on_epoch=show.epoch)

    use_threads(cores())
    again = config.command("report")
    for given, option in (
        (ablate, f"--ablate --seeds {seeds or ABLATION_SEEDS}"),
        (workers, f"--workers {workers}"),
        (no_retrain, "--no-retrain"),
        (out, f"--out {shlex.quote(str(out))}"),
    ):
        again += f" {option}" if given else ""
    with goes_on_with(again, "an earlier report stays as it was; it is made anew"):
        paths = make_report(
            config,
            out=out,
            retrain=None if no_retrain else retraining,
            ablate=ablation if ablate else None,
            on_note=say,
            on_step=say,
        )
    for path in (paths.page, paths.markdown, paths.latex, paths.figures, *map(paths.trials, ("csv", "md", "tex"))):
        print(path)
