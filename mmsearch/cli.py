"""The command line: parse, call, print, exit code. Each command imports what it needs when it runs."""

from __future__ import annotations

import shlex
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.console import Downloads, Epochs, print_retrained, print_status, print_summary, progress_of, say
from mmsearch.errors import Interrupted, MmsearchError, UsageError
from mmsearch.paths import DEFAULT_STUDY, shipped_studies, write_text

if TYPE_CHECKING:
    from mmsearch.config import StudyConfig

app = typer.Typer(
    help="Search hyperparameters for classifiers that see and hear. Begin with `mmsearch init`, then launch.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Study = Annotated[Path, typer.Argument(help="The study file.", show_default=str(DEFAULT_STUDY))]
StudyOption = Annotated[Path, typer.Option("--study", help="The study file.")]
Data = Annotated[str | None, typer.Option(help="A data folder, or the word demo; overrides the study file.")]
StorageUrl = Annotated[
    str | None,
    typer.Option(help="Database URL; overrides the study file. With a password, set MMSEARCH_STORAGE instead."),
]
StudyName = Annotated[str | None, typer.Option(help="Name of the study in the storage; overrides the study file.")]
Seed = Annotated[int | None, typer.Option(help="Seed of splits, samplers and training; overrides the study file.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; overrides the study file.")]
SkipBroken = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out rows of a manifest whose files are missing, broken or silent.")
]
ImageShape = Annotated[
    str | None,
    typer.Option(metavar="HxW", help="Resize image files to it, such as 32x32 or 3x32x32; overrides the study file."),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write here instead of to standard output.")]


# The options of commands that only read a study, and of those that need its data too.
READING = ("--storage", "--study-name")
RETRAINING = (*READING, "--data", "--seed", "--device", "--image-shape", "--skip-broken")


class Format(StrEnum):
    """The forms of a trial table."""

    CSV = "csv"
    JSON = "json"
    MD = "md"
    TEX = "tex"


class Order(StrEnum):
    """The orders of a trial table."""

    NUMBER = "number"
    BEST = "best"


def _config(study: Path, *, reading: bool = False, **options: Any) -> StudyConfig:
    """The study that a command is about: its file, and what the command line lays over it."""
    from mmsearch.config import OPTIONS, load_config

    keys = {OPTIONS[f"--{name.replace('_', '-')}"]: value for name, value in options.items()}
    return load_config(study, keys, reading=reading)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to write.")] = Path(),
) -> None:
    """Write commented study files and make the storage folder; changes no file that is there."""
    for source in sorted(shipped_studies().glob("*.toml")):
        target = directory / "studies" / source.name
        if target.exists():
            say(f"{target} is there already, and stays as it is")
        else:
            write_text(target, source.read_text(encoding="utf-8"))
            say(f"wrote {target}")
    (directory / "storage").mkdir(parents=True, exist_ok=True)
    go = "mmsearch launch" if directory == Path() else f"cd {shlex.quote(str(directory))} && mmsearch launch"
    say(f"next: {go}")


@app.command()
def launch(
    study: Study = DEFAULT_STUDY,
    trials: Annotated[
        int | None,
        typer.Option("--trials", "--n-trials", help="The study's total of complete and pruned trials, over all runs."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "--n-jobs",
            min=1,
            help="Worker processes, which share the cores; one a core, at most 8, by default.",
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
    """Search until the study has its total of trials; stopped and run again, it goes on where it was."""
    config = _config(
        study,
        data=data,
        storage=storage,
        study_name=study_name,
        seed=seed,
        device=device,
        trials=trials,
        image_shape=image_shape,
        skip_broken=skip_broken or None,
    )
    from mmsearch.search.launcher import launch as run

    progress = progress_of(config)
    try:
        summary = run(config, workers=workers, progress=progress)
    except Interrupted as error:
        again = config.command("launch") + (f" --workers {workers}" if workers else "")
        raise Interrupted(error.signum, again) from None
    finally:
        progress.close()
    print_summary(config, summary)
    say("next:")
    say(f"  {config.command('dashboard', READING)}")
    say(f"  {config.command('retrain-best', RETRAINING)}")
    say(f"  {config.command('export', READING)}")


@app.command()
def status(study: Study = DEFAULT_STUDY, storage: StorageUrl = None, study_name: StudyName = None) -> None:
    """Print how a search stands, from any terminal, while it runs or after."""
    config = _config(study, reading=True, storage=storage, study_name=study_name)
    from mmsearch.search.study import open_study

    with open_study(config) as opened:
        print_status(opened)


@app.command()
def enqueue(
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Values as in the study file, such as optimizer.lr=5e-4."),
    ] = None,
    study: StudyOption = DEFAULT_STUDY,
    like: Annotated[
        str | None, typer.Option(help="What is not given is as in this trial: a number, or the word best.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Queue it even if a trial has it already.")] = False,
    data: Data = None,
    storage: StorageUrl = None,
    study_name: StudyName = None,
) -> None:
    """Queue one configuration, the defaults but for what is given; a search that runs takes it next."""
    config = _config(study, data=data, storage=storage, study_name=study_name)
    from mmsearch.hyperparameters import show
    from mmsearch.search.enqueue import enqueue as run
    from mmsearch.search.enqueue import parse_assignments

    queued = run(config, parse_assignments(values or ()), like=like, again=again)
    print(queued.number)
    words = ", ".join(f"{name} = {show(value)}" for name, value in queued.changed.items())
    say(f"trial {queued.number} waits with {f'{words}; the rest is as by default' if words else 'the defaults'}")
    if queued.needs is not None:
        raised = f"{config.command('launch')} --trials {queued.needs}"
        say(f"the study has all its trials, and this one runs when there are more: {raised}")


@app.command()
def dashboard(
    study: Study = DEFAULT_STUDY,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; another than this machine's own needs MMSEARCH_DASHBOARD_PASSWORD."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
) -> None:
    """Browse the study in optuna-dashboard until Ctrl-C."""
    import os

    config = _config(study, reading=True, storage=storage, study_name=study_name)
    from mmsearch.search.dashboard import PASSWORD_VARIABLE, serve

    serve(
        config, host, port, os.environ.get(PASSWORD_VARIABLE), lambda url: say(f"dashboard at {url} (Ctrl-C ends it)")
    )


@app.command(name="retrain-best")
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
    config = _config(
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


@app.command()
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
    _must_be_writable(out)
    from mmsearch.results.bundle import Bundle
    from mmsearch.results.predict import predict as run

    _put(run(Bundle.load(bundle), data, split, skip_broken=skip_broken, on_event=say), out)


@app.command()
def export(
    study: Study = DEFAULT_STUDY,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    form: Annotated[
        Format, typer.Option("--format", help="csv and json are exact; md and tex are rounded.")
    ] = Format.CSV,
    sort: Annotated[Order, typer.Option(help="By trial number, or the best first.")] = Order.NUMBER,
    out: Out = None,
) -> None:
    """Print the trial table: number, state, value, duration, epochs and every parameter."""
    _must_be_writable(out)
    config = _config(study, reading=True, storage=storage, study_name=study_name)
    from mmsearch.results.tables import render_table, trial_rows
    from mmsearch.search.study import open_study

    with open_study(config) as opened:
        text = render_table(trial_rows(opened, sort), form)
    _put(text, out)


@app.command()
def data(
    path: Annotated[str, typer.Argument(help="A data folder, or the word demo.")] = "demo",
    image_shape: ImageShape = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Print what a data folder holds: layout, shapes, classes and balance, ranges, what repeats, and problems."""
    from mmsearch.data.describe import describe
    from mmsearch.data.sources import read_dataset
    from mmsearch.texts import parse_shape

    shape = None if image_shape is None else parse_shape(image_shape, "--image-shape")
    print(describe(read_dataset(path, test=0, image_shape=shape, skip_broken=skip_broken)), end="")


@app.command()
def fetch(
    source: Annotated[str, typer.Argument(help="What to download: zenodo, the written and spoken digits database.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made where it is missing.")],
    api: Annotated[str, typer.Option(help="Address of the record's API.")] = "https://zenodo.org/api",
) -> None:
    """Download a public data set and check it; stopped and run again, it goes on where it was."""
    from mmsearch.data.fetch import fetch_record, record_url

    try:
        with Downloads() as show:
            paths = fetch_record(record_url(source, api), folder, on_progress=show.progress, on_event=say)
    except (KeyboardInterrupt, SystemExit):
        say(f"what came is kept; go on with: {shlex.join(['mmsearch', *sys.argv[1:]])}")
        raise
    for path in paths:
        print(path)
    say(f"next: mmsearch data {shlex.quote(str(folder))}")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"mmsearch {installed('mmsearch')}")
        raise typer.Exit


def main() -> None:
    """The `mmsearch` command: errors of the user become one sentence and an exit code."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except MmsearchError as error:
        print(f"mmsearch: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("mmsearch: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if not {cls.__name__ for cls in type(error).__mro__} & {"SQLAlchemyError", "StorageInternalError"}:
            raise
        from mmsearch.search.storage import database_message

        print(f"mmsearch: the storage failed: {database_message(error)}", file=sys.stderr)
        raise SystemExit(4) from None


def _stop(signum: int, frame: object) -> None:
    print("mmsearch: stopped", file=sys.stderr)
    raise SystemExit(128 + signum)


def _must_be_writable(out: Path | None) -> None:
    """Find out before the work that its result has no place to go."""
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist")
    if out is not None and out.is_dir():
        raise UsageError(f"{out} is a folder; --out takes a file")


def _put(text: str, out: Path | None) -> None:
    if out is None:
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    try:
        write_text(out, text)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from None
    say(f"wrote {out}")
