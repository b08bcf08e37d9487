"""The figures of a search: that they show what the study holds, of whatever study."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from planted import START, opened_with, plant, study_file, trial

from mmsearch.config import StudyConfig, load_config
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.results.confirm import Confirmation, Confirmed
from mmsearch.results.figures import anova
from mmsearch.results.figures.axes import Axis
from mmsearch.results.figures.contours import GRID, contours, smooth
from mmsearch.results.figures.history import history
from mmsearch.results.figures.learning import learning_curves, read_curves
from mmsearch.results.figures.parallel import BOTTOM, parallel
from mmsearch.results.figures.pareto import pareto
from mmsearch.results.figures.search import figures_of, search_figures
from mmsearch.results.figures.space import slices
from mmsearch.results.figures.style import Figure
from mmsearch.results.figures.timeline import timeline
from mmsearch.results.figures.trials import Searched, read_study, worst_counted, worst_shown
from mmsearch.search.study import OpenStudy, open_study
from mmsearch.search.values import METRICS

SPACE = """
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true, default = 1e-3 }
"batch_size" = [32, 64, 128]
"head.dropout" = { low = 0.0, high = 0.6, step = 0.1 }
"image.encoder" = ["cnn", "mlp"]
"image.mlp.dropout" = { low = 0.0, high = 0.6 }
"""
ALL = ["history", "learning_curves", "importances", "slices", "contours", "parallel", "pareto", "timeline"]


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return study_file(tmp_path, SPACE)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importances of little worth: what is tested is something else."""
    for name, value in (("FORESTS", 3), ("SHUFFLES", 3), ("TREES", 2), ("DRAWN", 64)):
        monkeypatch.setattr(anova, name, value)


def worth(h: Hyperparameters, rng: np.random.Generator) -> float:
    return float(0.95 - 0.02 * (math.log10(float(h["optimizer.lr"])) + 3) ** 2 + 0.005 * rng.normal())


def traces(figure: Figure | None, name: str | None = None) -> list[Any]:
    assert figure is not None
    return [trace for trace in figure.plot.data if name is None or trace.name == name]


def points(figure: Figure | None, name: str) -> dict[float, float]:
    (found,) = traces(figure, name)
    return dict(zip(found.x, found.y, strict=True))


def check(figures: list[Figure]) -> None:
    """What holds of every figure: words, titles with units, a size, and no background of its own."""
    for figure in figures:
        assert figure.title
        assert figure.caption.endswith(".")
        assert figure.alternative.endswith(".")
        assert figure.plot.layout.title.text is None
        assert figure.plot.layout.paper_bgcolor is None
        assert 300 < figure.width <= 1000
        assert 200 < figure.height <= 1000
        assert "NaN" not in figure.plot.to_json()
        axes = [axis for axis in figure.plot.select_xaxes() if axis.visible is not False]
        assert all(axis.title.text for axis in axes), figure.name
        leftmost = [axis for axis in figure.plot.select_yaxes() if axis.visible is not False and not axis.matches]
        named = figure.name in ("importances", "timeline")  # the ticks are names
        assert named or all(axis.title.text or axis.ticktext for axis in leftmost), figure.name


# The study that a real search leaves


@pytest.fixture(scope="module")
def real(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenStudy]:
    folder = tmp_path_factory.mktemp("figures") / "copy"
    shutil.copytree(searched, folder, symlinks=True)
    with open_study(load_config(folder / "studies" / "digits.toml", reading=True)) as opened:
        yield opened


def test_a_real_search_has_its_figures(real: OpenStudy) -> None:
    figures = search_figures(real)
    assert [figure.name for figure in figures] == [name for name in ALL if name != "contours"]  # of one range
    check(figures)
    by_name = {figure.name: figure for figure in figures}
    complete = {t.number: t.values[0] for t in real.trials() if t.state == TrialState.COMPLETE}
    assert points(by_name["history"], "complete") == pytest.approx(complete)
    best = real.best()
    assert best is not None
    table = (real.config.paths.trial(best.number) / "metrics.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    lines = [t for t in traces(by_name["learning_curves"]) if t.legendgroup == str(best.number)]
    columns = ("train_macro_f1", "valid_macro_f1", "train_loss", "valid_loss")
    for column, line in zip(columns, lines, strict=True):
        assert [float(row["epoch"]) for row in rows] == list(line.x)
        assert [float(row[column]) for row in rows] == pytest.approx(list(line.y))
    bars = traces(by_name["timeline"])
    took = sorted(float(x) for bar in bars for x in bar.x)
    assert took == pytest.approx(sorted(t.duration.total_seconds() for t in real.trials() if t.duration), rel=1e-4)


# The history


def test_the_best_so_far_is_a_line_of_steps(config: StudyConfig) -> None:
    values = [0.5, 0.7, 0.6, 0.9, 0.8]
    figure = history(read_study(opened_with(config, [trial(config, {}, [value]) for value in values])))
    assert points(figure, "complete") == dict(enumerate(values))
    (line,) = traces(figure, "best so far")
    assert (line.x, line.y, line.line.shape) == ((0, 1, 3, 4), (0.5, 0.7, 0.9, 0.9), "hv")


def test_of_a_loss_less_is_better(tmp_path: Path) -> None:
    config = study_file(tmp_path, SPACE, 'metrics = ["loss"]')
    searched = read_study(opened_with(config, [trial(config, {}, [value]) for value in (0.5, 0.7, 0.3)]))
    figure = history(searched)
    (line,) = traces(figure, "best so far")
    assert list(line.y) == [0.5, 0.3, 0.3]
    assert figure is not None
    assert figure.plot.layout.yaxis.title.text == "validation loss (lower is better)"
    assert "trial 2 with 0.3000" in figure.alternative


def test_what_violates_a_constraint_is_never_the_best(tmp_path: Path) -> None:
    config = study_file(tmp_path, SPACE, 'constraints = ["parameters <= 1000"]')
    held = [(0.9, 1.0), (0.6, -0.5), (0.7, 0.0)]
    trials = [trial(config, {}, [value], constraints={"parameters <= 1000": by}) for value, by in held]
    figure = history(read_study(opened_with(config, trials)))
    assert points(figure, "violates a constraint") == {0: 0.9}
    assert points(figure, "best so far") == {1: 0.6, 2: 0.7}
    only = history(read_study(opened_with(config, trials[:1])))
    assert only is not None
    assert "No trial is complete within the constraints." in only.caption


def test_failed_trials_are_marks_on_the_axis(config: StudyConfig) -> None:
    trials = [trial(config, {}, [0.5]), trial(config, {}, state=TrialState.FAIL), trial(config, {}, [0.6])]
    assert points(history(read_study(opened_with(config, trials))), "failed") == {1: 0}


def test_outliers_are_drawn_at_the_edge_and_counted(config: StudyConfig) -> None:
    values = [0.1, 0.11, *np.linspace(0.95, 0.99, 18).tolist()]
    figure = history(read_study(opened_with(config, [trial(config, {}, [value]) for value in values])))
    assert figure is not None
    (marks,) = traces(figure, "complete")
    low, high = figure.plot.layout.yaxis.range
    assert 0.85 < low < min(marks.y)
    assert high > 0.99
    assert list(marks.y[2:]) == pytest.approx(values[2:])
    assert list(marks.marker.symbol) == ["triangle-down"] * 2 + ["circle"] * 18
    assert list(marks.customdata[:2]) == ["0.1000", "0.1100"]  # what they are worth is told
    assert "2 trials below" in figure.caption


@pytest.mark.parametrize("sign", [1, -1])
def test_an_axis_reaches_to_the_worst_unless_that_hides_the_rest(sign: int) -> None:
    even = [sign * value for value in np.linspace(0.9, 0.99, 20)]
    assert worst_shown(even, sign) == worst_counted(even, sign) == sign * 0.9
    early = [*even, *[sign * 0.1] * 3]
    assert sign * worst_shown(early, sign) > 0.7
    half = [*even, *[sign * 0.1] * 20]
    assert worst_counted(half, sign) == sign * 0.1
    assert sign * worst_shown([*even, *[sign * -10.0] * 20], sign) > 0.8
    assert worst_shown([sign * 0.5], sign) == sign * 0.5


def test_confirmed_means_stand_at_their_trials(config: StudyConfig) -> None:
    searched = read_study(plant(config, 8, worth))
    row = Confirmed(3, {}, 0.95, (0.93, 0.95), 0.94, (0.92, 0.96), 0.01, 1000, None, False, (4, 5))
    told = Confirmation("macro_f1", 1, 2, (row,), 3, "best", 8, 8)
    figure = history(Searched(**{**vars(searched), "confirmation": told}))
    (marks,) = traces(figure, "confirmed: mean of 2 seeds")
    assert (marks.x, marks.y) == ((3,), (0.94,))
    assert [marks.error_y.array[0], marks.error_y.arrayminus[0]] == pytest.approx([0.02, 0.02])


# Learning curves


def write_epochs(config: StudyConfig, number: int, rows: list[dict[str, Any]]) -> None:
    path = config.paths.epochs(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def epoch(number: int, value: float, attempt: str = "a", **extra: Any) -> dict[str, Any]:
    return {"attempt": attempt, "epoch": number, "valid_macro_f1": value, "train_macro_f1": value / 2, **extra}


def test_only_the_last_attempt_is_drawn(config: StudyConfig) -> None:
    rows = [epoch(1, 0.1), epoch(2, 0.2), epoch(1, 0.3, "b"), epoch(2, 0.4, "b"), epoch(3, 0.5, "b")]
    write_epochs(config, 0, rows)
    with config.paths.epochs(0).open("a") as log:
        log.write('{"attempt": "b", "epo')  # a kill tore it
    searched = read_study(opened_with(config, [trial(config, {}, [0.5])]))
    assert read_curves(searched, searched.trials[0]).line("valid_macro_f1") == ([1, 2, 3], [0.3, 0.4, 0.5])
    valid, training = traces(learning_curves(searched))[1], traces(learning_curves(searched))[0]
    assert (valid.y, valid.line.dash) == ((0.3, 0.4, 0.5), "solid")
    assert (training.y, training.line.dash) == ((0.15, 0.2, 0.25), "dot")


def test_of_folds_the_mean_is_drawn(tmp_path: Path) -> None:
    config = study_file(tmp_path, SPACE, data='validation = "kfold"\nfolds = 2')
    write_epochs(config, 0, [epoch(1, 0.2, fold=1), epoch(2, 0.4, fold=1), epoch(1, 0.4, fold=2)])
    searched = read_study(opened_with(config, [trial(config, {}, [0.5])]))
    assert read_curves(searched, searched.trials[0]).line("valid_macro_f1") == ([1, 2], [0.3, 0.4])
    figure = learning_curves(searched)
    assert figure is not None
    assert "the 2 folds" in figure.caption


def test_pruned_trials_are_marked_where_they_ended(config: StudyConfig) -> None:
    trials = [
        trial(config, {}, [0.9], intermediate_values={1: 0.8, 2: 0.9}),
        trial(config, {}, [0.3], TrialState.PRUNED, intermediate_values={1: 0.2, 2: 0.3}),
    ]
    figure = learning_curves(read_study(opened_with(config, trials)))  # what was reported, since no file is here
    assert points(figure, "pruned here") == {2: 0.3}
    (others,) = traces(figure, "other trials, validation")
    assert (others.x, others.y) == ((1, 2, None), (0.2, 0.3, None))
    assert figure is not None
    assert "only what they reported is known" in figure.caption


# The space


def test_slices_show_each_trial_at_its_value(config: StudyConfig) -> None:
    opened = plant(config, 40, worth, pruned=0.3)
    searched = read_study(opened)
    figure = slices(searched, None)
    assert figure is not None
    panels = {axis.title.text: axis.anchor for axis in figure.plot.select_xaxes()}
    assert list(panels) == list(searched.axes)
    for name, axis in searched.axes.items():
        suffix = panels[name].removeprefix("y")
        drawn = [t for t in figure.plot.data if t.xaxis == f"x{suffix}" and t.customdata is not None]
        shown = {int(told[0]): x for t in drawn for told, x in zip(t.customdata, t.x, strict=True)}
        held = {t.number: t.params[name] for t in opened.trials() if name in t.params}
        assert shown.keys() == held.keys()
        for number, value in held.items():
            if axis.numeric:
                assert shown[number] == pytest.approx(value, rel=1e-6)
            else:
                assert abs(shown[number] - axis.place(value)) < 0.5
        scale = next(a for a in figure.plot.select_xaxes() if a.title.text == name)
        assert (scale.type == "log") == axis.log
    assert {"complete", "pruned", "the best"} <= {t.name for t in figure.plot.data}


def test_a_smooth_surface_follows_the_values_and_ends_where_no_trial_is() -> None:
    rng = np.random.default_rng(0)
    dots = rng.random((200, 2))
    surface = smooth(dots, dots[:, 0])
    assert surface.shape == (GRID, GRID)
    assert np.abs(surface - np.linspace(0, 1, GRID)[None]).mean() < 0.05
    corner = smooth(dots * 0.3, dots[:, 0])
    assert np.isnan(corner[-1, -1])
    assert np.isfinite(corner[0, 0])


def test_contours_need_enough_trials(config: StudyConfig) -> None:
    assert contours(read_study(plant(config, 10, worth)), None) is None
    figure = contours(read_study(plant(config, 40, worth)), None)
    assert figure is not None
    check([figure])
    pairs = [
        (x.title.text, y.title.text)
        for x, y in zip(figure.plot.select_xaxes(), figure.plot.select_yaxes(), strict=True)
    ]
    assert pairs[0] == ("optimizer.lr (log)", "image.mlp.dropout")


def test_a_line_crosses_each_axis_at_the_trials_value(config: StudyConfig) -> None:
    opened = plant(config, 20, worth)
    searched = read_study(opened)
    figure = parallel(searched, None)
    best = opened.best()
    assert best is not None
    (line,) = traces(figure, "the best trial")
    expected = []
    for name, axis in searched.axes.items():
        low, high = axis.span
        expected.append((axis.place(best.params[name]) - low) / (high - low) if name in best.params else BOTTOM)
    assert list(line.y[:-1]) == pytest.approx([*expected, 1.0], abs=1e-6)
    assert figure is not None
    texts = {annotation.text for annotation in figure.plot.layout.annotations}
    assert {"cnn", "mlp", "1e-4", "0.001", "optimizer.<br>lr<br>(log)", "does not<br>apply"} <= texts


def test_ticks_are_round_and_few() -> None:
    assert Axis("a", 1e-4, 1e-1, log=True).ticks()[1] == ["1e-4", "0.001", "0.01", "0.1"]
    assert Axis("a", 3e-4, 1e-2, log=True).ticks(4)[1] == ["3e-4", "0.001", "0.003", "0.01"]
    assert Axis("a", 0, 0.6).ticks(4)[1] == ["0", "0.2", "0.4", "0.6"]
    assert Axis("a", 1, 5, whole=True).ticks()[1] == ["1", "2", "3", "4", "5"]
    assert Axis("a", 1, 2, whole=True).ticks()[1] == ["1", "2"]
    assert Axis("a", choices=(True, "relu", 0.5)).ticks() == ([0, 1, 2], ["true", "relu", "0.5"])


# Value against cost


def test_the_front_of_one_metric_is_over_the_parameters(config: StudyConfig) -> None:
    held = [(0.9, 100), (0.8, 50), (0.7, 70), (0.9, 120), (0.95, 500), (0.8, 50)]
    trials = [trial(config, {}, [value], user_attrs={"parameters": size}) for value, size in held]
    figure = pareto(read_study(opened_with(config, trials)))
    assert points(figure, "on the front") == {50: 0.8, 100: 0.9, 500: 0.95}
    assert len(points(figure, "complete")) == 5  # two are the same
    assert pareto(read_study(opened_with(config, [trial(config, {}, [0.5])]))) is None  # of unknown size


def test_the_front_of_several_metrics_is_the_studys(tmp_path: Path) -> None:
    metrics = ("macro_f1", "loss", "parameters")
    config = study_file(tmp_path, SPACE, f"metrics = {json.dumps(metrics)}\nconstraints = ['parameters <= 900']")
    rng = np.random.default_rng(1)
    values = [[float(a), float(b), float(c)] for a, b, c in rng.random((30, 3)) * [1, 1, 1000]]
    trials = [
        trial(
            config,
            {},
            held,
            constraints={"parameters <= 900": (held[2] - 900) / 900},
            user_attrs={METRICS: dict(zip(metrics, held, strict=True))},
        )
        for held in values
    ]
    opened = opened_with(config, trials)
    figure = pareto(read_study(opened))
    front = sorted(round(t.values[1], 6) for t in opened.front())
    assert 2 < len(front) < 30
    over_loss, over_size = traces(figure, "on the front")
    assert sorted(round(x, 6) for x in over_loss.x) == front
    assert sorted(t.values[2] for t in opened.front()) == pytest.approx(sorted(over_size.x), rel=1e-6)
    assert figure is not None
    titles = [axis.title.text for axis in figure.plot.select_xaxes()]
    assert titles == ["validation loss (lower is better)", "parameters of the model"]
    check([figure])
    assert search_names(figures_of(read_study(opened))) == ["history", "pareto", "timeline"]


def search_names(figures: list[Figure]) -> list[str]:
    return [figure.name for figure in figures]


# Workers and time


def test_bars_are_the_trials_of_each_worker(config: StudyConfig) -> None:
    trials = [
        trial(config, {}, [0.5], start=0, seconds=60, worker="0-aa"),
        trial(config, {}, state=TrialState.FAIL, start=0, seconds=30, worker="1-bb"),
        trial(config, {}, [0.5], start=70, seconds=50, worker="0-cc"),  # the worker of a later launch
        trial(config, {}, state=TrialState.WAITING),
    ]
    figure = timeline(read_study(opened_with(config, trials)))
    (complete,) = traces(figure, "complete")
    assert list(complete.y) == [0, 0]
    assert list(complete.base) == pytest.approx([0, 70 / 60])
    assert list(complete.x) == pytest.approx([1, 50 / 60])
    (failed,) = traces(figure, "failed")
    assert (failed.y, failed.base, failed.x) == ((1,), (0,), (0.5,))
    assert figure is not None
    assert figure.plot.layout.xaxis.title.text == "time since the start (min)"
    assert list(figure.plot.layout.yaxis.ticktext) == ["0", "1"]


def test_a_night_in_which_nobody_worked_is_cut_out(config: StudyConfig) -> None:
    starts = [0, 100, 100 + 9 * 3600, 200 + 9 * 3600]
    trials = [trial(config, {}, [0.5], start=start, seconds=95) for start in starts]
    figure = timeline(read_study(opened_with(config, trials)))
    assert figure is not None
    (bars,) = traces(figure, "complete")
    assert list(bars.x) == pytest.approx([95 / 60] * 4, rel=1e-5)
    assert 60 * bars.base[2] == pytest.approx(195 + 0.03 * 4 * 95, abs=0.01)
    assert figure.plot.layout.annotations[0].text == "8 h 58 min off"
    assert "without pauses" in figure.plot.layout.xaxis.title.text
    assert "1 pause of all workers" in figure.caption


def test_a_trial_that_runs_reaches_to_what_is_known(config: StudyConfig) -> None:
    running = trial(config, {}, state=TrialState.RUNNING, start=50)
    figure = timeline(read_study(opened_with(config, [trial(config, {}, [0.5], start=0, seconds=100), running])))
    (bar,) = traces(figure, "running")
    assert (bar.base, bar.x) == ((50,), (50,))


# Whatever the study


def test_a_hundred_trials_are_light(config: StudyConfig) -> None:
    figures = figures_of(read_study(plant(config, 100, worth, pruned=0.5)))
    assert search_names(figures) == ALL
    check(figures)
    assert sum(len(figure.plot.to_json()) for figure in figures) < 1_500_000


@pytest.mark.usefixtures("quick")
def test_thousands_of_trials_are_thinned_and_said(config: StudyConfig) -> None:
    opened = plant(config, 3000, worth, pruned=0.5)
    searched = read_study(opened)
    figures = {figure.name: figure for figure in figures_of(searched)}
    assert sum(len(figure.plot.to_json()) for figure in figures.values()) < 1_500_000
    for name in ("history", "slices", "parallel", "learning_curves", "pareto"):
        assert " are drawn, evenly by their number." in figures[name].caption, name
    best = opened.best()
    assert best is not None
    assert points(figures["history"], "complete")[best.number] == pytest.approx(best.values[0], rel=1e-6)
    bars = traces(figures["timeline"])
    assert sum(len(bar.x) for bar in bars) < 3000
    assert "those too short to be seen are joined" in figures["timeline"].caption


def test_a_study_without_a_value_raises_nothing(config: StudyConfig) -> None:
    failed = trial(config, {"batch_size": 32}, state=TrialState.FAIL)
    assert search_names(figures_of(read_study(opened_with(config, [failed] * 3)))) == ["timeline"]
    assert figures_of(read_study(opened_with(config, []))) == []
    waiting = trial(config, {}, state=TrialState.WAITING)
    assert figures_of(read_study(opened_with(config, [waiting]))) == []


def test_one_complete_trial_has_figures(config: StudyConfig) -> None:
    figures = figures_of(read_study(plant(config, 1, worth)))
    assert search_names(figures) == ["history", "pareto", "timeline"]
    check(figures)


def test_a_grid_has_figures(tmp_path: Path) -> None:
    space = '"batch_size" = [32, 64]\n"head.dropout" = { low = 0.0, high = 0.6, step = 0.1 }'
    config = study_file(tmp_path, space, search='sampler = "grid"')
    trials = [
        trial(config, {"batch_size": size, "head.dropout": drop / 10}, [0.9 - drop / 100])
        for size in (32, 64)
        for drop in range(7)
    ]
    figures = figures_of(read_study(opened_with(config, trials)))
    assert search_names(figures) == ["history", "importances", "slices", "parallel", "timeline"]
    check(figures)


NUMBERS = st.floats(allow_nan=False) | st.sampled_from([0.0, 0.5, 0.99, 1.0])
OFFSETS = st.integers(0, 10**6)


@st.composite
def any_trial(draw: st.DrawFn, config: StudyConfig, metrics: int) -> optuna.trial.FrozenTrial:
    state = draw(st.sampled_from(list(TrialState)))
    params = {}
    for name, options in (
        ("optimizer.lr", st.floats(1e-4, 1e-2)),
        ("batch_size", st.sampled_from([32, 64, 128])),
        ("image.mlp.dropout", st.floats(0, 0.6)),
        ("image.encoder", st.sampled_from(["cnn", "mlp"])),
    ):
        if draw(st.booleans()):
            params[name] = draw(options)
    values = [draw(NUMBERS) for _ in range(metrics)] if state == TrialState.COMPLETE else None
    steps = draw(st.dictionaries(st.integers(0, 9), st.floats(), max_size=3))
    sizes = draw(st.sampled_from([{}, {"parameters": 0}, {"parameters": 10**7}]))
    worker = draw(st.sampled_from(["", "0-aa", "0-bb", "1-cc"]))
    made = trial(config, params, values, state, intermediate_values=steps, user_attrs=sizes, worker=worker)
    if made.datetime_start is not None and draw(st.booleans()):
        made.datetime_start = START + timedelta(seconds=draw(OFFSETS))
        if made.datetime_complete is not None:
            made.datetime_complete = made.datetime_start + timedelta(seconds=draw(OFFSETS))
    return made


@pytest.mark.usefixtures("quick")
@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_study_makes_it_raise(tmp_path: Path, data: st.DataObject) -> None:
    metrics = data.draw(st.sampled_from([["macro_f1"], ["loss"], ["accuracy", "parameters"]]))
    config = study_file(tmp_path, SPACE, f"metrics = {json.dumps(metrics)}")
    trials = data.draw(st.lists(any_trial(config, len(metrics)), max_size=12))
    figures = figures_of(read_study(opened_with(config, trials)))
    for figure in figures:
        assert "Infinity" not in figure.plot.to_json()
    check(figures)
