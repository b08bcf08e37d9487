"""The commands of a search that runs: begin it, join it, look at it, add to it, stop it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from mmsearch.console import print_status, print_summary, progress_of, put, say
from mmsearch.errors import Interrupted, StorageLost
from mmsearch.options import (
    READING,
    RETRAINING,
    Audit,
    Data,
    Device,
    Gpus,
    ImageShape,
    MaxFailures,
    PatienceTrials,
    Seed,
    SkipBroken,
    StorageTimeout,
    StorageUrl,
    Study,
    StudyName,
    StudyOption,
    Timeout,
    Trials,
    Workers,
    WorkersPerGpu,
    config_of,
)
from mmsearch.paths import DEFAULT_STUDY
from mmsearch.texts import parse_wait

if TYPE_CHECKING:
    from mmsearch.search.launcher import Summary


class Figures(StrEnum):
    """The forms of a forecast."""

    TEXT = "text"
    JSON = "json"


class Terminated(BaseException):
    """SIGTERM came where nothing has to be put in order first; as `KeyboardInterrupt` is for SIGINT."""


def launch(
    study: Study = DEFAULT_STUDY,
    trials: Trials = None,
    workers: Workers = None,
    timeout: Timeout = None,
    patience_trials: PatienceTrials = None,
    max_failures: MaxFailures = None,
    audit: Audit = None,
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
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="First foretell what it takes, and begin only where that fits (exit 1)."),
    ] = False,
) -> None:
    """Search until the study has its total of trials; stopped and run again, it goes on where it was."""
    config = config_of(
        study,
        trials=trials,
        timeout=timeout,
        patience_trials=patience_trials,
        max_failures=max_failures,
        audit=audit,
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
    again = config.command("launch") + (f" --workers {workers}" if workers else "") + " --preflight" * preflight
    with goes_on_with(again):
        from mmsearch.search.launcher import launch as run

        summary = run(config, workers=workers, progress=progress_of(config), preflight=preflight)
    print_summary(config, summary)
    _say_how_to_go_on(summary, again)
    say("next:")
    say(f"  {whole(config.command('dashboard', READING))}")
    say(f"  {whole(config.command('confirm', RETRAINING))}")
    say(f"  {whole(config.command('retrain-best', RETRAINING))}")
    say(f"  {whole(config.command('report', RETRAINING))}")


def preflight(
    study: Study = DEFAULT_STUDY,
    trials: Trials = None,
    workers: Workers = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Measure for about so long; the longer, the narrower the forecast.")
    ] = 40.0,
    form: Annotated[
        Figures, typer.Option("--format", help="text is for people; json is exact: bytes and seconds.")
    ] = Figures.TEXT,
    timeout: Timeout = None,
    data: Data = None,
    storage: StorageUrl = None,
    study_name: StudyName = None,
    seed: Seed = None,
    device: Device = None,
    gpus: Gpus = None,
    workers_per_gpu: WorkersPerGpu = None,
    image_shape: ImageShape = None,
    skip_broken: SkipBroken = False,
) -> None:
    """Foretell memory, disk and hours of a launch from some steps of a few configurations; exit 1: it will not fit."""
    config = config_of(
        study,
        trials=trials,
        timeout=timeout,
        data=data,
        storage=storage,
        study_name=study_name,
        seed=seed,
        device=device,
        gpus=gpus,
        workers_per_gpu=workers_per_gpu,
        image_shape=image_shape,
        skip_broken=skip_broken or None,
    )
    with goes_on_with(config.command("preflight"), "nothing was begun; look again"):
        from mmsearch.search.launcher import foresee
        from mmsearch.search.progress import LineProgress

        found = foresee(config, workers=workers, progress=LineProgress(), seconds=seconds)
    put(found.as_json() if form is Figures.JSON else found.as_text(), None)
    found.must_fit()


def worker(
    study: Study = DEFAULT_STUDY,
    workers: Workers = None,
    wait: Annotated[
        str, typer.Option(metavar="TIME", help="Wait so long for a launch to make the study: seconds, or such as 10m.")
    ] = "0",
    timeout: Timeout = None,
    patience_trials: PatienceTrials = None,
    max_failures: MaxFailures = None,
    audit: Audit = None,
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
    """Join a search that was launched elsewhere, from any machine that reaches its storage, until it has its total."""
    config = config_of(
        study,
        timeout=timeout,
        patience_trials=patience_trials,
        max_failures=max_failures,
        audit=audit,
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
    again = config.command("worker") + (f" --workers {workers}" if workers else "")
    again += f" --wait {wait}" if wait != "0" else ""
    patience = parse_wait(wait)
    with goes_on_with(again):
        from mmsearch.search.launcher import join as run

        summary = run(config, workers=workers, wait=patience, progress=progress_of(config))
    print_summary(config, summary)
    _say_how_to_go_on(summary, again)


def status(study: Study = DEFAULT_STUDY, storage: StorageUrl = None, study_name: StudyName = None) -> None:
    """Print how a search stands and who works on it, from any terminal, while it runs or after."""
    config = config_of(study, reading=True, storage=storage, study_name=study_name)
    from mmsearch.search.study import open_study

    with open_study(config) as opened:
        print_status(opened)


def stop(study: Study = DEFAULT_STUDY, storage: StorageUrl = None, study_name: StudyName = None) -> None:
    """End a search on all machines: epochs that run end, trials are handed back; a launch goes on where it was."""
    config = config_of(study, reading=True, storage=storage, study_name=study_name)
    from mmsearch.search.launcher import stop as run
    from mmsearch.search.progress import LineProgress

    counts, total = run(config, progress=LineProgress())
    say("no trial runs")
    if counts.finished >= total:
        say(f"the study has its {total} trials")
        return
    trials = f" --trials {total}" if total != config.study.trials else ""
    say(f"go on with: {whole(config.command('launch', READING) + trials)}")


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
    config = config_of(study, data=data, storage=storage, study_name=study_name)
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
    config = config_of(study, reading=True, storage=storage, study_name=study_name)
    from mmsearch.search.dashboard import PASSWORD_VARIABLE, serve

    serve(
        config, host, port, os.environ.get(PASSWORD_VARIABLE), lambda url: say(f"dashboard at {url} (Ctrl-C ends it)")
    )


def _say_how_to_go_on(summary: Summary, command: str) -> None:
    """Where the study has not got its total yet, and a run would add to it."""
    if summary.ended.startswith("patience_trials"):
        say("a greater --patience-trials would go on")
    elif summary.counts.finished < summary.total:
        say(f"go on with: {whole(command)}")


def whole(command: str) -> str:
    """A command with a word on what is not shown of it."""
    return f"{command} (with the password for ***)" if ":***@" in command else command


@contextmanager
def goes_on_with(command: str, kept: str | None = None) -> Iterator[None]:
    """Whoever is stopped, by a signal at any moment or for want of the storage, is told how to go on.

    `kept` is what is left of what ran, where that is not a search.
    """

    def stopped(signum: int) -> Interrupted:
        return Interrupted(signum, whole(command)) if kept is None else Interrupted(signum, whole(command), kept)

    try:
        yield
    except Interrupted as error:
        raise Interrupted(error.signum, whole(command)) from None
    except KeyboardInterrupt:
        raise stopped(signal.SIGINT) from None
    except Terminated:
        raise stopped(signal.SIGTERM) from None
    except StorageLost as error:
        raise StorageLost(f"{error}: {whole(command)}") from None
