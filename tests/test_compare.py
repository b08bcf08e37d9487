"""Studies side by side: what each found, when it was as good as another, in what they differ, what that is worth."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Run, require
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy import stats

from mmsearch.config import load_config
from mmsearch.errors import NoCompletedTrial, UsageError
from mmsearch.results.compare import Comparison, compare, side_by_side
from mmsearch.results.compare_forms import as_json, as_text
from mmsearch.results.confirm import Confirmation, Confirmed
from mmsearch.results.figures.compare import compare_figure, page_of, spread
from mmsearch.results.standing import Standing, configuration, progress, standing
from mmsearch.results.statistics import holm, mean_interval, welch_p
from mmsearch.search.fingerprint import fingerprint
from mmsearch.search.space import distributions
from mmsearch.search.storage import open_storage
from mmsearch.search.study import create_study, open_study

QUICK = settings(max_examples=60, deadline=None)
BEGAN = datetime(2026, 3, 1, 12)
MINUTE_S = 60.0
Add = Callable[..., Path]


def ended(
    value: float | None,
    minute: int = 0,
    state: TrialState = TrialState.COMPLETE,
    seconds: float = MINUTE_S,
    **rest: Any,
) -> FrozenTrial:
    """A trial that began in a minute of the search and took so long."""
    trial = create_trial(state=state, value=value, **rest)
    trial.number = minute
    trial.datetime_start = BEGAN + timedelta(minutes=minute)
    trial.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    return trial


@pytest.fixture
def add(workspace: Path) -> Add:
    """Make a study file, and a study with a complete trial a value, one a minute; returns the file."""

    def make(
        name: str,
        values: Sequence[float],
        *,
        text: str = TINY,
        params: dict[str, Any] | None = None,
        data: str = "0123456789abcdef",
        failed: int = 0,
    ) -> Path:
        file = workspace / "studies" / f"{name}.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text.replace("[data]", '[data]\nsource = "../nowhere"'))
        config = load_config(file)
        ranges = distributions(config.dimensions)
        held = {"optimizer.lr": 0.003, "image.encoder": "mlp", "image.mlp.units_1": 16, **(params or {})}
        opened, _ = create_study(config, data)
        with opened:
            for minute, value in enumerate(values):
                own = {key: ranges[key] for key in held}
                opened.optuna.add_trial(
                    ended(value, minute, params=held, distributions=own, user_attrs={"parameters": 1000})
                )
            for minute in range(failed):
                opened.optuna.add_trial(ended(None, len(values) + minute, TrialState.FAIL))
        return file

    return make


def compared(*files: Path) -> dict[str, Any]:
    """What the command prints as JSON, without a process of its own."""
    found: dict[str, Any] = json.loads(as_json(compare([load_config(file, reading=True) for file in files])))
    return found


def test_two_studies_by_file_and_by_name(mmsearch: Run, add: Add) -> None:
    quick = add("quick", [0.5, 0.9, 0.8, 0.95], failed=1)
    slow = add("slow", [0.4, 0.5, 0.6, 0.7, 0.9], params={"optimizer.lr": 0.005, "image.mlp.units_1": 32})
    by_name = json.loads(mmsearch("compare", quick, "slow", "--study", slow, "--format", "json").stdout)
    assert by_name == compared(quick, slow)
    one, other = by_name["studies"]
    assert (one["complete"], one["failed"], one["best_trial"], one["best_value"]) == (4, 1, 4, 0.95)
    assert (one["hours"], other["hours"]) == (pytest.approx(5 / 60), pytest.approx(5 / 60))
    assert one["reached"]["slow"] == {"trials": 2, "hours": pytest.approx(2 / 60)}
    assert one["reached"]["quick"]["trials"] == 4
    assert other["reached"]["quick"] is None
    assert by_name["parameters"] == {
        "optimizer.lr": {"quick": 0.003, "slow": 0.005},
        "image.mlp.units_1": {"quick": 16, "slow": 32},
    }
    assert by_name["setups"] == {}
    assert by_name["untested"] == "not confirmed on fresh seeds: quick, slow; `mmsearch confirm` does that"
    rows = list(csv.DictReader(io.StringIO(mmsearch("compare", quick, slow, "--format", "csv").stdout)))
    for row, known in zip(rows, by_name["studies"], strict=True):
        shared = {name: value for name, value in known.items() if name in row}
        assert {name: row[name] for name in shared} == {n: "" if v is None else str(v) for n, v in shared.items()}
    assert float(rows[0]["hours_until_slow"]) == one["reached"]["slow"]["hours"]
    assert rows[1]["trials_until_quick"] == ""


def test_what_people_read(mmsearch: Run, add: Add) -> None:
    quick = add("quick", [0.5, 0.9, 0.95])
    slow = add("slow", [0.4, 0.9], params={"image.encoder": "mlp", "image.mlp.units_1": 32})
    lines = mmsearch("compare", quick, slow).stdout.splitlines()
    assert re.split("  +", lines[0]) == [
        "study", "trials", "complete", "pruned", "failed", "open", "training", "best macro_f1", "trial",
        "confirmed (95 %)", "trial", "parameters", "test macro F1 (95 %)",
    ]  # fmt: skip
    assert re.split("  +", lines[1]) == [
        "quick", "3", "3", "0", "0", "1", "3 min", "0.9500", "3", "-", "-", "1000", "-",
    ]  # fmt: skip
    assert [re.split("  +", line) for line in lines[5:8]] == [
        ["as good as the end of", "quick", "slow"],
        ["quick", "3 trials, 3 min", "2 trials, 2 min"],
        ["slow", "never", "2 trials, 2 min"],
    ]
    assert [re.split("  +", line) for line in lines[9:11]] == [
        ["best configuration", "quick, trial 3", "slow, trial 2"],
        ["image.mlp.units_1", "16", "32"],
    ]
    assert "begun with: the same" in lines
    assert "careful     quick is not finished: 3 of 6 trials are there" in lines


def test_what_the_searched_study_has(searched: Path, add: Add) -> None:
    """A real search beside a made one; its test score is that of the retrained model."""
    own = add("made", [0.2])
    metrics = json.loads((searched / "storage" / "digits" / "retrained" / "best" / "metrics.json").read_text())
    found = compared(searched / "studies" / "digits.toml", own)
    one, other = found["studies"]
    assert (one["complete"] + one["pruned"], one["scored_on"], one["scored_rows"]) == (6, "test", 1000)
    assert one["scored_macro_f1"] == metrics["test"]["macro_f1"]
    assert one["best_trial"] == metrics["trial"]
    assert other["scored_macro_f1"] is None
    assert other["reached"]["digits"] is None
    assert found["doubts"][0] == "values do not compare, since the studies have different data"


def test_studies_of_two_storages(mmsearch: Run, add: Add, workspace: Path, postgres: str) -> None:
    here = add("one", [0.5])
    (workspace / "elsewhere").mkdir()
    there = add("elsewhere/one", [0.7], text=TINY.replace("[study]", f'[study]\nstorage = "{postgres}"'))
    text = mmsearch("compare", here, there).stdout
    assert f"{there}  " in text  # of one name in two storages, by what was typed
    storages = [one["storage"].partition(":")[0] for one in compared(here, there)["studies"]]
    assert storages == ["sqlite", "postgresql+psycopg"]


def test_what_cannot_be_compared_is_one_sentence(mmsearch: Run, add: Add, workspace: Path) -> None:
    file = add("one", [0.5])
    add("two", [])
    config = load_config(file)
    with pytest.raises(UsageError, match="a comparison needs two studies or more"):
        compare([config])
    with pytest.raises(UsageError, match=r"the study one of sqlite:.* is named twice"):
        compare([config, config])
    for arguments, code, words in (
        ((file, "three", "--study", file), 4, "there is no study three; there is: one, two"),
        ((file, "three.toml"), 2, "three.toml: no such study file"),
        ((file, "two", "--study", file, "--figure", "best.pdf"), 2, "best.pdf must end in .html, .png or .svg"),
    ):
        said = mmsearch("compare", *arguments, code=code).stderr
        assert words in said
        assert len(said.splitlines()) == 1


def test_a_study_without_a_complete_trial_has_a_dash(mmsearch: Run, add: Add, workspace: Path) -> None:
    good, empty = add("good", [0.5, 0.6]), add("empty", [], failed=2)
    lines = mmsearch("compare", good, empty, "--figure", "best.html").stdout.splitlines()
    assert re.split("  +", lines[2])[4:] == ["2", "1", "2 min", *["-"] * 6]
    assert "careful     empty has no complete trial" in lines
    page = (workspace / "best.html").read_text()
    assert "Without a complete trial: empty." in page
    assert not re.search(r"<(?:script|link|img)[^>]*(?:src|href)=", page)
    other = add("other", [])
    said = mmsearch("compare", empty, other, "--figure", "none.html", code=3)
    assert said.stderr == "mmsearch: none of the studies has a complete trial to draw\n"
    assert not (workspace / "none.html").exists()


def test_nothing_is_written(mmsearch: Run, add: Add, workspace: Path) -> None:
    files = add("one", [0.5]), add("two", [0.6])

    def held() -> tuple[list[str], list[str]]:
        with sqlite3.connect(workspace / "storage" / "studies.db") as connection:
            lines = list(connection.iterdump())
        return lines, sorted(str(path) for path in workspace.rglob("*") if not path.name.startswith("studies.db-"))

    before = held()
    mmsearch("compare", *files)
    assert held() == before


def test_what_differs_in_how_they_were_begun(add: Add) -> None:
    one = add("one", [0.5])
    text = TINY.replace("[study]", "[study]\nseed = 1").replace("max_epochs = 3", 'max_epochs = 4\nsampler = "random"')
    other = add("other", [0.5], text=text.replace("high = 1e-2", "high = 2e-2"), data="f" * 16)
    found = compared(one, other)
    assert found["setups"] == {
        "data": {"one": "01234567", "other": "ffffffff"},
        "study.seed": {"one": "0", "other": "1"},
        "search.sampler": {"one": '"tpe"', "other": '"random"'},
        "search.max_epochs": {"one": "3", "other": "4"},
        "optimizer.lr": {"one": "0.001 to 0.01 (log)", "other": "0.001 to 0.02 (log)"},
    }
    assert found["parameters"] == {}
    assert found["doubts"][:2] == [
        "values do not compare, since the studies have different data",
        "values are of different validation rows, since study.seed differs",
    ]
    smaller = add("smaller", [0.1], text=TINY.replace("[study]", '[study]\nmetrics = ["loss"]'))
    mixed = compared(one, smaller)
    assert mixed["doubts"][0] == ("values do not compare, since the metrics differ: macro_f1 in one, loss in smaller")
    assert [study["reached"] for study in mixed["studies"]] == [
        {"one": {"trials": 1, "hours": pytest.approx(1 / 60)}, "smaller": None},
        {"one": None, "smaller": {"trials": 1, "hours": pytest.approx(1 / 60)}},
    ]


def test_of_a_loss_the_smaller_is_better(add: Add) -> None:
    text = TINY.replace("[study]", '[study]\nmetrics = ["loss"]')
    one, other = add("one", [0.9, 0.5, 0.2], text=text), add("other", [0.6, 0.5], text=text)
    found = compared(one, other)
    assert [study["best_value"] for study in found["studies"]] == [0.2, 0.5]
    assert found["studies"][0]["reached"]["other"]["trials"] == 2
    assert found["studies"][1]["reached"]["one"] is None


def test_a_study_that_is_not_ours_is_shown(mmsearch: Run, add: Add, workspace: Path) -> None:
    file = add("ours", [0.5])
    storage = open_storage(f"sqlite:///{workspace / 'storage' / 'studies.db'}")
    import optuna

    theirs = optuna.create_study(study_name="theirs", storage=storage, direction="maximize")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    storage.engine.dispose()
    found = json.loads(mmsearch("compare", "ours", "theirs", "--study", file, "--format", "json").stdout)
    assert found["studies"][1]["complete"] == 2
    assert found["parameters"]["x"]["ours"] is None
    assert "theirs was not made by mmsearch: what it was begun with is not known" in found["doubts"]


@QUICK
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(["COMPLETE", "PRUNED", "FAIL", "RUNNING"]), st.floats(0, 9)),
        max_size=20,
    ),
    st.sampled_from([1, -1]),
)
def test_progress(made: list[tuple[float, str, float]], sign: int) -> None:
    trials = []
    for minute, (value, name, seconds) in enumerate(made):
        state = TrialState[name]
        if state == TrialState.RUNNING:
            trials.append(create_trial(state=state))
        else:
            trials.append(ended(None if state == TrialState.FAIL else value, minute, state, seconds))
    points = list(progress(trials, sign))
    kept = [(value, name, seconds) for value, name, seconds in made if name != "RUNNING"]
    assert len(points) == len(kept)
    assert [point.trials for point in points] == np.cumsum([name != "FAIL" for _, name, _ in kept]).tolist()
    assert [point.hours for point in points] == pytest.approx(np.cumsum([s / 3600 for *_, s in kept]), abs=1e-8)
    for position, point in enumerate(points):
        values = [sign * value for value, name, _ in kept[: position + 1] if name == "COMPLETE"]
        assert point.best == (sign * max(values) if values else None)
    assert list(progress(trials[::-1], sign)) == points  # by the times they ended, not by place


def test_what_violates_a_constraint_is_not_the_best() -> None:
    greedy = ended(0.9, 1, constraints={"parameters <= 5": 0.1})
    assert [point.best for point in progress([ended(0.5), greedy], 1)] == [0.5, 0.5]


def test_a_configuration_has_what_is_fixed_and_only_what_applies(workspace: Path) -> None:
    stored = fingerprint(load_config(workspace / "studies" / "digits.toml"), "data")
    found = configuration(stored, {"optimizer.lr": 0.002, "image.encoder": "mlp", "image.mlp.units_1": 32})
    assert found["image.mlp.units_1"] == 32
    assert found["batch_size"] == 32
    assert found["head.units"] == 32
    assert not [name for name in found if name.startswith(("image.cnn", "features.", "data."))]
    other = configuration(stored, {"optimizer.lr": 0.002, "image.encoder": "cnn"})
    assert other["image.cnn.filters_1"] == 8
    assert not [name for name in other if name.startswith("image.mlp")]
    assert configuration(None, {"x": 1}) == {"x": 1}


@pytest.fixture
def made(add: Add) -> Standing:
    with open_study(load_config(add("one", [0.3, 0.9, 0.95]))) as opened:
        return standing(opened, "one")


def confirmed(one: Standing, name: str, values: Sequence[float], now: int = 3, resolution: float = 0.0) -> Standing:
    """The same study, as if it had these values on fresh seeds."""
    assert one.taken is not None
    mean = float(np.mean(values))
    row = Confirmed(
        one.taken,
        {},
        one.value,
        tuple(values),
        mean,
        mean_interval(values),
        None,
        1000,
        None,
        False,
        (1,) * len(values),
    )
    held = Confirmation(one.metric, one.sign, len(values), (row,), one.taken, "best", 3, now, resolution=resolution)
    return replace(one, name=name, confirmed=held)


NOISE = (0.001, -0.002, 0.0015, 0.0, -0.0005)


def test_a_difference_that_is_more_than_noise(made: Standing) -> None:
    good, bad, other = ([mean + noise for noise in NOISE] for mean in (0.95, 0.94, 0.9498))
    found = side_by_side([confirmed(made, "bad", bad), confirmed(made, "good", good), confirmed(made, "other", other)])
    assert [(contest.better, contest.other) for contest in found.contests] == [("good", "bad"), ("good", "other")]
    pairs = (good, bad), (good, other), (bad, other)  # which is the best is known from the same values
    raw = [float(stats.ttest_ind(*pair, equal_var=False).pvalue) for pair in pairs]
    assert [contest.p for contest in found.contests] == pytest.approx(holm(raw)[:2])
    assert found.contests[1].p == pytest.approx(raw[1])
    assert [contest.differs for contest in found.contests] == [True, False]
    assert found.contests[0].difference == pytest.approx(0.01)
    text = as_text(found)
    assert "good is ahead of bad by 0.0100 over 5 fresh seeds each; Welch's t-test, Holm-corrected for all" in text
    assert "all pairs, has p < 0.001: more than" in text
    assert "no more than the luck of seeds may be" in text
    low, high = mean_interval(good) or (0, 0)
    assert f"0.9500 ({low:.4f} to {high:.4f})" in text


def test_of_a_loss_the_smaller_mean_wins(made: Standing) -> None:
    loss = replace(made, metric="loss", sign=-1)
    found = side_by_side([confirmed(loss, "a", [0.2, 0.21]), confirmed(loss, "b", [0.1, 0.11])])
    assert found.contests[0].better == "b"
    assert found.contests[0].difference == pytest.approx(0.1)


def test_why_a_difference_is_not_tested(made: Standing) -> None:
    good, five = confirmed(made, "good", [0.9, 0.91]), confirmed(made, "five", [0.9] * 5)
    for standings, words in (
        ([good, made], "not confirmed on fresh seeds: one; `mmsearch confirm` does that"),
        ([good, five], "confirmed on different numbers of seeds: 2, 5"),
        ([confirmed(made, "a", [0.9]), confirmed(made, "b", [0.8])], "confirmed on a single seed"),
        ([good, replace(good, name="b", metric="loss", sign=-1)], "the studies have different metrics"),
        ([good, replace(good, name="b", setup={**(made.setup or {}), "data": "x"})], "the studies have different data"),
    ):
        found = side_by_side(standings)
        assert (found.contests, found.untested) == ((), words)
        assert f"difference  not tested: {words}" in as_text(found)


@pytest.mark.parametrize(
    ("name", "value"),
    [("study.seed", 1), ("data.validation", "kfold"), ("data.fraction", 0.3), ("data.folds", 7), ("data.rows", 99)],
)
def test_values_on_other_validation_rows_are_not_tested(made: Standing, name: str, value: Any) -> None:
    good = confirmed(made, "good", [0.9, 0.91])
    found = side_by_side([good, replace(good, name="b", setup={**(made.setup or {}), name: value})])
    words = f"the studies have different validation rows, since {name} differs"
    assert (found.contests, found.untested) == ((), words)


def test_two_values_a_row_apart_are_no_difference(made: Standing) -> None:
    one, other = [0.97] * 2, [0.98] * 2
    (sure,) = side_by_side([confirmed(made, "a", one), confirmed(made, "b", other)]).contests
    assert sure.p == 0
    rough = [confirmed(made, "a", one, resolution=0.01), confirmed(made, "b", other, resolution=0.01)]
    (contest,) = side_by_side(rough).contests
    assert not contest.differs
    assert contest.p == pytest.approx(welch_p(one, other, (0.01, 0.01)))
    finer = [rough[0], confirmed(made, "b", other, resolution=0.0001)]  # each study has its own
    assert side_by_side(finer).contests[0].p == pytest.approx(welch_p(one, other, (0.01, 0.0001)))


def test_a_confirmation_that_is_old_is_said(made: Standing) -> None:
    found = side_by_side([confirmed(made, "old", [0.9, 0.91], now=5), confirmed(made, "new", [0.9, 0.91])])
    assert "old has finished 2 more trials since it was confirmed" in found.doubts


@QUICK
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_welchs_test(one: list[float], other: list[float]) -> None:
    p = welch_p(one, other)
    assert 0 <= p <= 1
    assert p == pytest.approx(welch_p(other, one))
    if min(np.std(one), np.std(other)) > 1e-6:
        assert p == pytest.approx(float(stats.ttest_ind(one, other, equal_var=False).pvalue), abs=1e-9)


def test_welchs_test_without_any_spread() -> None:
    assert welch_p([0.5, 0.5], [0.5, 0.5, 0.5]) == 1
    assert welch_p([0.5, 0.5], [0.6, 0.6]) == 0
    assert 0 < welch_p([0.97] * 5, [0.98] * 5, (0.01, 0.01)) < 0.01
    assert welch_p([0.97] * 5, [0.98] * 5, (0.05, 0.05)) > 0.1
    assert welch_p([0.5, 0.5], [0.5, 0.5, 0.5], (0.01, 0.01)) == pytest.approx(1)


@QUICK
@given(st.lists(st.floats(0, 300), min_size=1, max_size=15))
def test_labels_are_apart_and_in_order(heights: list[float]) -> None:
    found = spread(heights, 20, 300)
    assert all(-1e-9 <= place <= 300 for place in found)
    placed = sorted(found)
    assert all(above - below >= 20 - 1e-9 for below, above in itertools.pairwise(placed))
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    assert order == sorted(range(len(found)), key=lambda i: found[i])
    assert spread([10.0, 100.0], 20, 300) == [10.0, 100.0]


def figures(standings: Sequence[Standing]) -> tuple[Comparison, Any]:
    found = side_by_side(standings)
    return found, compare_figure(found)


def test_the_figure_shows_the_best_so_far(made: Standing) -> None:
    _, figure = figures([made, replace(made, name="b<i>")])
    lines = [trace for trace in figure.plot.data if trace.xaxis in ("x", "x2")]
    assert len(lines) == len(figure.plot.data) == 4
    trials, minutes = lines[:2]
    assert list(trials.x) == [1, 2, 3]
    assert list(minutes.x) == pytest.approx([1, 2, 3])
    assert list(trials.y) == list(minutes.y) == [0.3, 0.9, 0.95]
    assert trials.line.shape == "hv"
    assert trials.line.color != lines[2].line.color
    assert figure.plot.layout.xaxis2.title.text == "training, all workers added up (min)"
    assert [note.text for note in figure.plot.layout.annotations] == ["one 0.9500", "b&lt;i&gt; 0.9500"]
    assert "b<i>" not in page_of(figure).partition("<body>")[2].partition("<figcaption>")[0].partition("<script")[0]


def test_the_figure_shows_confirmed_means(made: Standing) -> None:
    values = [0.9, 0.92, 0.91]
    _, figure = figures([confirmed(made, "a", values), made])
    (point,) = [trace for trace in figure.plot.data if trace.xaxis == "x3"]
    low, high = mean_interval(values) or (0, 0)
    assert point.y[0] + point.error_y.array[0] == pytest.approx(high)
    assert point.y[0] - point.error_y.arrayminus[0] == pytest.approx(low)
    bottom, top = figure.plot.layout.yaxis.range
    assert bottom < low < high < top


def test_the_figure_needs_something_to_draw(add: Add) -> None:
    with open_study(load_config(add("empty", []))) as opened:
        nothing = standing(opened, "empty")
    with pytest.raises(NoCompletedTrial):
        figures([nothing, replace(nothing, name="b")])


@pytest.mark.slow
def test_the_figure_as_an_image(mmsearch: Run, add: Add, workspace: Path) -> None:
    require("chromium")
    files = add("one", [0.5, 0.6]), add("two", [0.6])
    assert "wrote best.svg" in mmsearch("compare", *files, "--figure", "best.svg").stderr
    drawn = (workspace / "best.svg").read_text()
    assert all(text in drawn for text in ("one 0.6000", "two 0.6000", "finished trials"))
