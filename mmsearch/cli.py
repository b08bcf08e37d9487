"""The command line: parse, call, print, exit code. Each command imports what it needs when it runs."""

from __future__ import annotations

import gc
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmsearch import cli_results, cli_search
from mmsearch.console import Downloads, Epochs, Forgiving, say
from mmsearch.errors import MmsearchError
from mmsearch.options import (
    READING,
    Data,
    Device,
    ImageShape,
    SkipBroken,
    StorageUrl,
    Study,
    StudyName,
    config_of,
)
from mmsearch.paths import DEFAULT_STUDY, shipped_studies, write_text

app = typer.Typer(
    help="Search hyperparameters for classifiers that see and hear. Begin with `mmsearch init`, then launch.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


for command in (cli_search.preflight, cli_search.launch, cli_search.worker, cli_search.status, cli_search.stop):
    app.command()(command)
app.command()(cli_search.enqueue)
app.command()(cli_search.dashboard)
app.command()(cli_results.confirm)
app.command(name="retrain-best")(cli_results.retrain_best)
app.command()(cli_results.predict)
app.command()(cli_results.export)
app.command()(cli_results.compare)
app.command()(cli_results.report)


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
    except (KeyboardInterrupt, cli_search.Terminated):
        say(f"what came is kept; go on with: {shlex.join(['mmsearch', *sys.argv[1:]])}")
        raise
    for path in paths:
        print(path)
    say(f"next: mmsearch data {shlex.quote(str(folder))}")


@app.command()
def replay(
    number: Annotated[int, typer.Argument(metavar="N", min=0, help="The trial's number.")],
    study: Study = DEFAULT_STUDY,
    tolerance: Annotated[
        float, typer.Option(min=0, help="The greatest difference of a number that counts as none; 0 is exact.")
    ] = 0.0,
    data: Data = None,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    device: Device = None,
) -> None:
    """Train a trial again and say whether its numbers are the same, and what has changed since; exit 1: they differ."""
    config = config_of(study, data=data, storage=storage, study_name=study_name, device=device)
    from mmsearch.results.replay import replay as run
    from mmsearch.results.verdict import render
    from mmsearch.search.progress import plural

    with Epochs() as show:
        replayed = run(
            config,
            number,
            tolerance=tolerance,
            on_plan=lambda trial, epochs: show.begin(f"trial {trial.number} again: {plural(epochs, 'epoch')}", epochs),
            on_note=say,
            on_epoch=lambda fold, result: show.epoch(result),
        )
    print(render(replayed), end="")
    if not replayed.same:
        raise typer.Exit(1)


@app.command()
def clean(
    study: Study = DEFAULT_STUDY,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove it without asking.")] = False,
) -> None:
    """Show what a study left and nobody needs any more, and remove it once that is confirmed."""
    config = config_of(study, reading=True, storage=storage, study_name=study_name)
    from mmsearch.search.clean import describe, find_leftovers, remove, size_in_words
    from mmsearch.search.study import open_study

    with open_study(config) as opened:
        found = find_leftovers(opened)
    for doubt in found.doubts:
        say(doubt)
    if not found.leftovers:
        say("there is nothing to remove")
        return
    print(describe(found), end="", flush=True)
    if not yes and not sys.stdin.isatty():
        say(f"nothing was removed; this does it: {config.command('clean', READING)} --yes")
        return
    if not yes and not typer.confirm("remove it?", err=True):
        say("nothing was removed")
        return
    count, freed = remove(found.leftovers)
    kept = len(found.leftovers) - count
    say(f"freed {size_in_words(freed)}" + (f"; {kept} changed meanwhile and stayed" if kept else ""))


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
    sys.stderr = Forgiving(sys.stderr)
    try:
        app()
    except MmsearchError as error:
        print(f"mmsearch: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, cli_search.Terminated) as stopped:
        print("mmsearch: stopped", file=sys.stderr)
        raise SystemExit(130 if isinstance(stopped, KeyboardInterrupt) else 143) from None
    except OSError as error:
        from mmsearch.search.worker import disk_full

        full = disk_full(error)
        if full is None:
            raise
        print(f"mmsearch: {full}", file=sys.stderr)
        raise SystemExit(full.exit_code) from None
    except Exception as error:
        if not {cls.__name__ for cls in type(error).__mro__} & {"SQLAlchemyError", "StorageInternalError"}:
            raise
        from mmsearch.search.outage import database_message

        print(f"mmsearch: the storage failed: {database_message(error)}", file=sys.stderr)
        raise SystemExit(4) from None
    finally:
        gc.freeze()  # else an ending interpreter looks through all there is for cycles: 0.3 s after 5,000 trials


def _stop(signum: int, frame: object) -> None:
    raise cli_search.Terminated
