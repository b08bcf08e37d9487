"""The files of a report: made beside their folder, and moved in when all of them are whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from mmsearch.config import StudyConfig
from mmsearch.errors import MmsearchError, UsageError
from mmsearch.paths import ReportPaths, write_text
from mmsearch.results.figures.images import write_images
from mmsearch.results.figures.style import Figure
from mmsearch.results.report.build import build
from mmsearch.results.report.content import Report
from mmsearch.results.report.gather import Say, Snapshot, Train, gather, timed
from mmsearch.results.report.html import render_figure, render_html
from mmsearch.results.report.latex import render_latex
from mmsearch.results.report.markdown import render_markdown
from mmsearch.results.report.material import without_roots
from mmsearch.results.retrain import retrain_best
from mmsearch.results.tables import default_columns, render_table, trial_rows
from mmsearch.search.study import OpenStudy, open_study

WRITTEN = ".mmsearch-report"  # in a report's folder: the files that it wrote there, one a line


def make_report(
    config: StudyConfig,
    *,
    out: Path | None = None,
    retrain: Train | None = retrain_best,
    ablate: Train | None = None,
    on_note: Say = lambda text: None,
    on_step: Say = lambda text: None,
) -> ReportPaths:
    """Write the report of a study into `out`, or else into the study's folder, and return where its files are.

    `retrain` makes a model where there is none of this study; `ablate` trains the ablation before all else. `on_note`
    is told where pictures cannot be made, `on_step` what took how long. Files of another report there are replaced when
    all new ones are whole, and those that the new one lacks are removed; nothing else is touched. Raises what `gather`
    raises, and `UsageError` where `out` is a file.
    """
    paths = ReportPaths(out or config.paths.report)
    if paths.folder.exists() and not paths.folder.is_dir():
        raise UsageError(f"{paths.folder} is a file; --out takes a folder")
    with open_study(config) as opened:
        material = gather(opened, retrain=retrain, ablate=ablate, on_step=on_step)
        report = build(material)
        paths.folder.parent.mkdir(parents=True, exist_ok=True)
        building = ReportPaths(paths.folder.parent / f".{secrets.token_hex(4)}.{paths.folder.name}")
        try:
            building.figures.mkdir(parents=True)
            _write_tables(building, Snapshot.of(opened, material.searched.trials))
            with timed("the pictures", on_step):
                missing = _write_pictures(building, report.figures())
            if missing is not None:
                on_note(missing)
                missing = without_roots(config, missing)
            with timed("the pages", on_step):
                _write_pages(building, report, missing)
            _move_in(building.folder, paths)
        finally:
            shutil.rmtree(building.folder, ignore_errors=True)
    return paths


def _write_tables(paths: ReportPaths, opened: OpenStudy) -> None:
    """All trials, the best first, as CSV, Markdown and LaTeX."""
    rows, best = trial_rows(opened, "best"), opened.best()
    columns, marked = default_columns(rows), None if best is None else best.number
    for form in ("csv", "md", "tex"):
        text = render_table(rows, form, columns=columns, metric=opened.metrics[0], best=marked)
        paths.trials(form).write_text(text, encoding="utf-8")


def _write_pictures(paths: ReportPaths, figures: Sequence[Figure]) -> str | None:
    """PNG and SVG files, and a page for each figure; why there are no pictures, where there are none."""
    paths.plotly.write_text(get_plotlyjs(), encoding="utf-8")
    for figure in figures:
        page = render_figure(figure, paths.plotly.name)
        paths.figure(figure.name, "html").write_text(page, encoding="utf-8")
    try:
        write_images(figures, paths.figures)
    except MmsearchError as error:
        return f"There are no pictures of the figures, which are in {paths.page.name}: {error}"
    return None


def _write_pages(paths: ReportPaths, report: Report, missing: str | None) -> None:
    pictures = paths.figures.name if missing is None else None
    for path, text in (
        (paths.markdown, render_markdown(report, pictures, missing)),
        (paths.latex, render_latex(report, pictures, missing)),
        (paths.page, render_html(report)),
    ):
        path.write_text(text, encoding="utf-8")


def _move_in(building: Path, paths: ReportPaths) -> None:
    """Every file to its place, the page last; then what an earlier report had and this one has not is removed."""
    files = [path.relative_to(building) for path in building.rglob("*") if path.is_file()]
    earlier, names = _written(paths.folder), {path.as_posix() for path in files}
    paths.folder.mkdir(exist_ok=True)
    _keep(paths.folder, names | earlier)  # also where this is broken off
    for path in sorted(files, key=lambda path: path.name == paths.page.name):
        target = paths.folder / path
        target.parent.mkdir(exist_ok=True)
        os.replace(building / path, target)
    for name in earlier - names:
        (paths.folder / name).unlink(missing_ok=True)
    _keep(paths.folder, names)


def _written(folder: Path) -> set[str]:
    """The files that reports wrote into a folder, by its list of them: none that is elsewhere."""
    path = folder / WRITTEN
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    inside = [line for line in lines if ".." not in Path(line).parts and (folder / line).is_relative_to(folder)]
    return {line for line in inside if (folder / line).is_file()}


def _keep(folder: Path, names: Iterable[str]) -> None:
    write_text(folder / WRITTEN, "".join(f"{name}\n" for name in sorted(names)))
