"""The options that several commands share, and the study that they make of a study file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmsearch.paths import DEFAULT_STUDY

if TYPE_CHECKING:
    from mmsearch.config import StudyConfig

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

# Of the commands that train trials.
Trials = Annotated[
    int | None,
    typer.Option("--trials", "--n-trials", help="The study's total of complete and pruned trials, over all runs."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "--n-jobs",
        min=1,
        help="Worker processes, which share the cores; one a core, at most 8, or --workers-per-gpu a GPU, by default.",
    ),
]
Gpus = Annotated[
    str | None, typer.Option(metavar="N,N", help="Train on these GPUs only, such as 0,1; on all by default.")
]
WorkersPerGpu = Annotated[int | None, typer.Option(min=1, help="Workers on each GPU.")]
Timeout = Annotated[
    str | None, typer.Option(metavar="TIME", help="End this run after so long: seconds, or such as 90m or 8h.")
]
PatienceTrials = Annotated[
    int | None,
    typer.Option(min=1, help="End this run after so many finished trials of the study without a better one."),
]
MaxFailures = Annotated[int | None, typer.Option(min=1, help="Stop when so many trials in a row have failed.")]
Audit = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Of the trials that would be pruned this share, such as 0.05, trains on: how often is pruning wrong?",
    ),
]
StorageTimeout = Annotated[
    str | None, typer.Option(metavar="TIME", help="Wait so long for a storage that is away, then checkpoint and end.")
]

# The options of commands that only read a study, and of those that need its data too.
READING = ("--storage", "--study-name")
RETRAINING = (*READING, "--data", "--seed", "--device", "--image-shape", "--skip-broken")


def config_of(study: Path, *, reading: bool = False, **options: Any) -> StudyConfig:
    """The study that a command is about: its file, and what the command line lays over it."""
    from mmsearch.config import OPTIONS, load_config

    keys = {OPTIONS[f"--{name.replace('_', '-')}"]: value for name, value in options.items()}
    return load_config(study, keys, reading=reading)
