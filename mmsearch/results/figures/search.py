"""All figures of a search."""

from __future__ import annotations

from mmsearch.results.figures.anova import importances
from mmsearch.results.figures.contours import contours
from mmsearch.results.figures.history import history
from mmsearch.results.figures.importance import importance_figure
from mmsearch.results.figures.learning import learning_curves
from mmsearch.results.figures.parallel import parallel
from mmsearch.results.figures.pareto import pareto
from mmsearch.results.figures.space import slices
from mmsearch.results.figures.style import Figure
from mmsearch.results.figures.timeline import timeline
from mmsearch.results.figures.trials import Searched, read_study
from mmsearch.search.study import OpenStudy


def search_figures(opened: OpenStudy) -> list[Figure]:
    """The figures of a study as it stands, in the order of a report: those of which it has anything to show.

    `history`, `learning_curves`, `importances`, `slices`, `contours`, `parallel`, `pareto` and `timeline`. Neither the
    study nor its files are changed.
    """
    from mmsearch.results.confirm import confirmation_of

    return figures_of(read_study(opened, confirmation_of(opened)))


def figures_of(searched: Searched) -> list[Figure]:
    """The same, of a study that was read."""
    found = importances(searched)
    drawn = [
        history(searched),
        learning_curves(searched),
        importance_figure(searched, found) if found is not None else None,
        slices(searched, found),
        contours(searched, found),
        parallel(searched, found),
        pareto(searched),
        timeline(searched),
    ]
    return [figure for figure in drawn if figure is not None]
