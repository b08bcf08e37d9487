"""The name of every file that mmsearch leaves on disk, and how files are written: whole, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "manifest.csv"  # of a data folder that holds image and audio files
DEFAULT_STUDY = Path("studies/digits.toml")
# Of a storage folder, beside a folder a study: the embedded database, what SQLite keeps beside it, what studies share.
RESERVED_NAMES = (*(f"studies.db{part}" for part in ("", "-wal", "-shm", "-journal")), "artifacts", "cache")


@dataclass(frozen=True)
class StoragePaths:
    """What all studies of one storage folder share."""

    folder: Path

    @property
    def database(self) -> Path:
        """The embedded database, used where no storage URL is given."""
        return self.folder / "studies.db"

    @property
    def artifacts(self) -> Path:
        """What the dashboard shows beside trials: one flat folder of files with random names."""
        return self.folder / "artifacts"

    @property
    def cache(self) -> Path:
        """What is derived from data sets and may be deleted at any time."""
        return self.folder / "cache"


@dataclass(frozen=True)
class StudyPaths:
    """What one study leaves under its storage folder."""

    folder: Path

    @property
    def study_file(self) -> Path:
        """The study as it was run."""
        return self.folder / "study.toml"

    @property
    def identity(self) -> Path:
        """Which study of which storage the folder belongs to."""
        return self.folder / "study.id"

    def log(self, worker: str) -> Path:
        """What a worker wrote: its warnings, and the traceback of a trial that failed."""
        return self.folder / "logs" / f"worker-{worker}.log"

    def trial(self, number: int) -> Path:
        """One trial's folder."""
        return self.folder / "trials" / str(number)

    def epochs(self, number: int) -> Path:
        """One trial's epochs, a JSON object a line, appended as they end."""
        return self.trial(number) / "metrics.jsonl"

    def table(self, number: int) -> Path:
        """The same as a table, written when the trial ends."""
        return self.trial(number) / "metrics.csv"

    def curves(self, number: int) -> Path:
        """A picture of its loss and leading metric against epochs, written with the table."""
        return self.trial(number) / "curves.png"

    def confusion(self, number: int) -> Path:
        """A picture of the confusions on the validation rows at its best epoch, written with the table."""
        return self.trial(number) / "confusion.png"

    def checkpoint(self, number: int) -> Path:
        """Where a trial's training stands, while it runs or waits; by the number of its first attempt."""
        return self.trial(number) / "checkpoint.pt"

    @property
    def retrained(self) -> Path:
        """One folder a retrained model, and the link `best` to the latest."""
        return self.folder / "retrained"

    @property
    def report(self) -> Path:
        """The report: one page, its figures and tables."""
        return self.folder / "report"


@dataclass(frozen=True)
class BundlePaths:
    """What a retrained model's folder holds."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The model's weights and normalisation (safetensors)."""
        return self.folder / "model.safetensors"

    @property
    def program(self) -> Path:
        """The same model, from raw rows to probabilities, as a program of `torch.export`."""
        return self.folder / "model.pt2"

    @property
    def onnx(self) -> Path:
        """The same for ONNX runtimes."""
        return self.folder / "model.onnx"

    @property
    def config(self) -> Path:
        """What rebuilds the model: hyperparameters, shapes and classes (TOML)."""
        return self.folder / "config.toml"

    @property
    def card(self) -> Path:
        """What the model is, for people (Markdown)."""
        return self.folder / "model_card.md"

    @property
    def predictions(self) -> Path:
        """The test rows' predictions with probabilities."""
        return self.folder / "predictions.csv"

    @property
    def submission(self) -> Path:
        """The same in a competition's form: `row_id,label`."""
        return self.folder / "submission.csv"

    @property
    def metrics(self) -> Path:
        """Scores, their provenance and the figures behind them."""
        return self.folder / "metrics.json"


@dataclass(frozen=True)
class ReportPaths:
    """What a report's folder holds."""

    folder: Path

    @property
    def page(self) -> Path:
        """The report as one page that needs nothing else."""
        return self.folder / "index.html"

    @property
    def markdown(self) -> Path:
        """The same as Markdown, with the pictures of `figures`."""
        return self.folder / "report.md"

    @property
    def latex(self) -> Path:
        """The same as LaTeX."""
        return self.folder / "report.tex"

    @property
    def figures(self) -> Path:
        """One file a figure and form."""
        return self.folder / "figures"

    @property
    def plotly(self) -> Path:
        """What the interactive figures share."""
        return self.figures / "plotly.min.js"

    def figure(self, name: str, form: str) -> Path:
        """A figure as `html`, `png` or `svg`."""
        return self.figures / f"{name}.{form}"

    def trials(self, form: str) -> Path:
        """All trials as `csv`, `md` or `tex`."""
        return self.folder / f"trials.{form}"


def remove(path: Path) -> None:
    """Remove a file that `replacing` wrote, if it is there, and what a kill in mid-write left; raises `OSError`."""
    path.unlink(missing_ok=True)
    for torn in path.parent.glob(f".*.{path.name}"):
        torn.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends well and removed when it does not.

    Raises `OSError`, which names a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say which file it has no space for
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def shipped_studies() -> Path:
    """The folder of study files that come with the program: inside the wheel, or at the root of a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "studies"
    return inside if inside.is_dir() else package.parent / "studies"
