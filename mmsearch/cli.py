"""The command line: parse, call, print, exit code. Each command imports what it needs when it runs."""

from __future__ import annotations

import shlex
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.errors import Interrupted, MmsearchError, UsageError
from mmsearch.paths import DEFAULT_STUDY, shipped_studies, write_text

if TYPE_CHECKING:
    from mmsearch.config import StudyConfig
    from mmsearch.search.launcher import Summary
    from mmsearch.search.progress import Progress

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
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Write here instead of to standard output.")]


# The options of commands that only read a study, and of those that need its data too.
READING = ("--storage", "--study-name")
RETRAINING = (*READING, "--data", "--seed", "--device")


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


def _config(study: Path, **options: Any) -> StudyConfig:
    """The study that a command is about: its file, and what the command line lays over it."""
    from mmsearch.config import OPTIONS, load_config

    keys = {OPTIONS[f"--{name.replace('_', '-')}"]: value for name, value in options.items()}
    return load_config(study, keys)


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="Where to write.")] = Path(),
) -> None:
    """Write commented study files and make the storage folder; changes no file that is there."""
    for source in sorted(shipped_studies().glob("*.toml")):
        target = directory / "studies" / source.name
        if target.exists():
            _say(f"{target} is there already, and stays as it is")
        else:
            write_text(target, source.read_text(encoding="utf-8"))
            _say(f"wrote {target}")
    (directory / "storage").mkdir(parents=True, exist_ok=True)
    go = "mmsearch launch" if directory == Path() else f"cd {shlex.quote(str(directory))} && mmsearch launch"
    _say(f"next: {go}")


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
) -> None:
    """Search until the study has its total of trials; stopped and run again, it goes on where it was."""
    config = _config(study, data=data, storage=storage, study_name=study_name, seed=seed, device=device, trials=trials)
    from mmsearch.search.launcher import launch as run

    progress = _progress(config)
    try:
        summary = run(config, workers=workers, progress=progress)
    except Interrupted as error:
        again = config.command("launch") + (f" --workers {workers}" if workers else "")
        raise Interrupted(error.signum, again) from None
    finally:
        progress.close()
    _print_summary(config, summary)
    _say("next:")
    _say(f"  {config.command('dashboard', READING)}")
    _say(f"  {config.command('retrain-best', RETRAINING)}")
    _say(f"  {config.command('export', READING)}")


@app.command()
def status(study: Study = DEFAULT_STUDY, storage: StorageUrl = None, study_name: StudyName = None) -> None:
    """Print how a search stands, from any terminal, while it runs or after."""
    config = _config(study, storage=storage, study_name=study_name)
    from mmsearch.config import hide_password
    from mmsearch.search.storage import OWNER
    from mmsearch.search.study import count, open_study

    with open_study(config) as opened:
        trials = opened.trials()
        counts = count(trials)
        print(f"study     {config.study.name} in {hide_password(config.storage_url)}")
        done = f"{counts.complete} complete, {counts.pruned} pruned"
        print(f"trials    {counts.finished} of {opened.total()} ({done})")
        print(f"          {counts.failed} failed, {counts.running} running, {counts.waiting} waiting")
        _print_best(opened.metric, opened.best(trials), opened.baseline(trials), opened.gain(trials))
        for trial in trials:
            if trial.state.name == "RUNNING":
                owner = trial.system_attrs.get(OWNER, {})
                reached = max(trial.intermediate_values, default=0)
                where = f"process {owner.get('pid')} on {owner.get('host')}"
                print(f"running   trial {trial.number}, epoch {reached}, {where}")


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

    config = _config(study, storage=storage, study_name=study_name)
    from mmsearch.search.dashboard import PASSWORD_VARIABLE, serve

    serve(
        config, host, port, os.environ.get(PASSWORD_VARIABLE), lambda url: _say(f"dashboard at {url} (Ctrl-C ends it)")
    )


@app.command(name="retrain-best")
def retrain_best(
    study: Study = DEFAULT_STUDY,
    data: Data = None,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    seed: Seed = None,
    device: Device = None,
) -> None:
    """Train the best trial again, on training and validation rows; leave model, predictions and metrics."""
    config = _config(study, data=data, storage=storage, study_name=study_name, seed=seed, device=device)
    from mmsearch.results.retrain import retrain_best as run
    from mmsearch.search.machine import cores
    from mmsearch.training.device import use_threads

    use_threads(cores())
    with _Epochs(config) as show:
        bundle = run(config, on_plan=show.plan, on_epoch=show.epoch)
    metrics = bundle.metrics
    scored = metrics["test"] or metrics["training"]
    where = f"{scored['rows']} {'test rows' if metrics['test'] else 'training rows, which it has seen'}"
    searched = metrics["searched"]
    print(f"trial       {metrics['trial']} ({searched['metric']} {searched['value']:.4f} on validation rows)")
    print(f"accuracy    {scored['accuracy']:.4f} on {where}")
    print(f"macro F1    {scored['macro_f1']:.4f} on {where}")
    found = metrics["modalities"]
    print(f"both        {found['both']:.4f} macro F1 on {found['scored_on']} rows")
    print(f"image alone {found['image_alone']:.4f} (audio set to its training mean)")
    print(f"audio alone {found['audio_alone']:.4f} (image set to its training mean)")
    print(f"bundle      {bundle.folder}")


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="A folder that `mmsearch retrain-best` made.")],
    data: Annotated[str, typer.Argument(help="A data folder in any layout, or the word demo.")],
    out: Out = None,
    split: Annotated[
        str | None, typer.Option(help="train or test; by default test, or train where there is no test split.")
    ] = None,
) -> None:
    """Predict new data with a retrained model: a CSV of labels, confidences and probabilities."""
    if split not in (None, "train", "test"):
        raise UsageError(f'--split must be train or test, not "{split}"')
    _must_be_writable(out)
    from mmsearch.results.bundle import Bundle
    from mmsearch.results.predict import predict as run

    _put(run(Bundle.load(bundle), data, split), out)


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
    config = _config(study, storage=storage, study_name=study_name)
    from mmsearch.results.tables import render_table, trial_rows
    from mmsearch.search.study import open_study

    with open_study(config) as opened:
        text = render_table(trial_rows(opened, sort), form)
    _put(text, out)


@app.command()
def data(
    path: Annotated[str, typer.Argument(help="A data folder, or the word demo.")] = "demo",
) -> None:
    """Print what a data folder holds: layout, shapes, classes and balance, ranges, and what repeats."""
    from mmsearch.data.describe import describe
    from mmsearch.data.sources import read_dataset

    print(describe(read_dataset(path, test=0)), end="")


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


class _Epochs:
    """Epochs of a retraining: a bar in a terminal, lines elsewhere."""

    def __init__(self, config: StudyConfig) -> None:
        self._metric = config.metric
        self._bar: Any = None
        self._task: Any = None
        self._epochs = 0

    def __enter__(self) -> _Epochs:
        return self

    def plan(self, plan: Any) -> None:
        self._epochs = plan.epochs
        _say(f"retraining trial {plan.trial.number} on training and validation rows for {plan.epochs} epochs")
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("training", total=plan.epochs)
            self._bar.start()

    def epoch(self, result: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=result.epoch)
        else:
            scores = f"loss {result.train.loss:.4f}, macro F1 {result.train.macro_f1:.4f} in training"
            _say(f"epoch {result.epoch}/{self._epochs}: {scores}, {result.seconds:.1f} s")

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def _progress(config: StudyConfig) -> Progress:
    from mmsearch.search.progress import LineProgress, LiveProgress

    return LiveProgress(config.metric, config.study.name) if sys.stderr.isatty() else LineProgress(config.metric)


def _print_summary(config: StudyConfig, summary: Summary) -> None:
    from mmsearch.search.progress import duration

    counts = summary.counts
    print(
        f"trials    {counts.finished} of {summary.total} ({counts.complete} complete, {counts.pruned} pruned), "
        f"{counts.failed} failed"
    )
    if summary.finished_here:
        rate = summary.finished_here / summary.seconds * 3600
        print(f"time      {duration(summary.seconds)}, {rate:.0f} trials an hour in this run")
    else:
        print("time      nothing was left to do")
    _print_best(config.metric, summary.best, summary.baseline, summary.gain)


def _print_best(metric: str, best: Any, baseline: Any, gain: float | None) -> None:
    if best is None:
        print("best      no trial is complete yet")
        return
    print(f"best      {metric} {best.value:.4f} (trial {best.number}, epoch {best.user_attrs.get('best_epoch')})")
    if gain is not None:
        print(f"gain      {gain:+.4f} over the defaults ({baseline.value:.4f}, trial {baseline.number})")


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
    _say(f"wrote {out}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
