"""Which parameters matter: found where a test has planted it, and doubted where there is nothing to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from planted import Value, opened_with, plant, study_file, trial

from mmsearch.config import StudyConfig
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.results.figures import anova
from mmsearch.results.figures.anova import Importances, importances
from mmsearch.results.figures.importance import importance_figure
from mmsearch.results.figures.trials import read_study

SPACE = """
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
"batch_size" = [32, 64, 128]
"head.dropout" = { low = 0.0, high = 0.6, step = 0.1 }
"image.encoder" = ["cnn", "mlp"]
"image.mlp.dropout" = { low = 0.0, high = 0.6 }
"image.cnn.kernel" = [3, 5]
"head.units" = { low = 32, high = 256, log = true }
"""


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    return study_file(tmp_path, SPACE)


def noise(h: Hyperparameters, rng: np.random.Generator) -> float:
    return 0.9 + 0.01 * float(rng.normal())


def found(config: StudyConfig, count: int, value: Value, **extra: float) -> Importances:
    made = importances(read_study(plant(config, count, value, **extra)))  # type: ignore[arg-type]
    assert made is not None
    return made


def test_shares_are_those_that_were_planted(config: StudyConfig) -> None:
    def value(h: Hyperparameters, rng: np.random.Generator) -> float:
        learning_rate = 0.02 * (np.log10(float(h["optimizer.lr"])) + 3)  # from -0.02 to 0.02, evenly
        batch = {32: -0.01, 64: 0.0, 128: 0.01}[int(h["batch_size"])]
        return float(0.9 + learning_rate + batch + 0.002 * rng.normal())

    held = found(config, 250, value)
    rows = {row.name: row for row in held.rows}
    assert [row.name for row in held.rows[:2]] == ["optimizer.lr", "batch_size"]
    variances = {"optimizer.lr": 0.04**2 / 12, "batch_size": 2 / 3 * 0.01**2}
    for name, variance in variances.items():
        truth = variance / sum(variances.values())
        assert rows[name].share == pytest.approx(truth, abs=0.08)
        assert rows[name].interval[0] - 0.04 < truth < rows[name].interval[1] + 0.04
        assert rows[name].share > held.chance
    for name in rows.keys() - variances.keys():
        assert rows[name].interval[0] < 0.005
        assert rows[name].share < held.chance
    assert held.doubt is None
    assert sum(row.share for row in held.rows) == pytest.approx(1, abs=0.1)  # there is no interaction


def test_a_conditional_parameter_explains_what_it_does_where_it_applies(config: StudyConfig) -> None:
    def value(h: Hyperparameters, rng: np.random.Generator) -> float:
        worse = 0.02 + 0.06 * float(h["image.mlp.dropout"]) if h["image.encoder"] == "mlp" else 0.0
        return float(0.95 - worse + 0.001 * rng.normal())

    held = found(config, 250, value)
    rows = {row.name: row for row in held.rows}
    between, within = 0.038**2 / 4, 0.036**2 / 12 / 2  # half of the trials are of each encoder
    assert rows["image.encoder"].share == pytest.approx(between / (between + within), abs=0.07)
    assert rows["image.mlp.dropout"].share == pytest.approx(within / (between + within), abs=0.07)
    # it applies exactly where the better encoder does, and does nothing: what not applying explains is the encoder's
    assert rows["image.cnn.kernel"].share < 0.01
    assert rows["image.mlp.dropout"].trials + rows["image.cnn.kernel"].trials == 250


def test_noise_is_called_too_few_trials(config: StudyConfig) -> None:
    assert found(config, 60, noise).doubt == "no parameter stands out from what chance would make of it"
    few = found(config, 12, noise)
    assert few.doubt == "12 trials for 7 parameters, less than two for each"
    figure = importance_figure(read_study(plant(config, 12, noise)), few)
    assert figure.caption.startswith("Too few trials to tell: 12 trials for 7 parameters")
    assert "Too few trials" in figure.plot.layout.annotations[0].text


def test_pruned_trials_count_with_their_last_value(config: StudyConfig) -> None:
    def value(h: Hyperparameters, rng: np.random.Generator) -> float:
        return float(0.9 + 0.05 * float(h["head.dropout"]) + 0.002 * rng.normal())

    held = found(config, 100, value, pruned=0.9)
    assert held.trials == 100
    assert held.rows[0].name == "head.dropout"
    assert held.rows[0].share > 0.7


def test_trials_that_diverged_do_not_explain_everything(config: StudyConfig) -> None:
    def value(h: Hyperparameters, rng: np.random.Generator) -> float:
        if float(h["optimizer.lr"]) > 9e-3:  # 2 % of the trials
            return 0.1
        return float(0.9 + 0.05 * float(h["head.dropout"]) + 0.002 * rng.normal())

    held = found(config, 200, value)
    assert held.rows[0].name == "head.dropout"
    assert held.beyond == sum(float(t.params["optimizer.lr"]) > 9e-3 for t in plant(config, 200, value).trials())
    assert held.edge > 0.8


def test_the_direction_makes_no_difference(tmp_path: Path) -> None:
    def loss(h: Hyperparameters, rng: np.random.Generator) -> float:
        return float(0.1 * float(h["head.dropout"]) + 0.002 * rng.normal())

    smaller = found(study_file(tmp_path, SPACE, 'metrics = ["loss"]'), 60, loss)
    greater = found(study_file(tmp_path, SPACE), 60, lambda h, rng: -loss(h, rng))
    assert smaller.rows == greater.rows


def test_the_same_trials_give_the_same_numbers(config: StudyConfig) -> None:
    searched = read_study(plant(config, 30, noise))
    assert importances(searched) == importances(searched)


def test_nothing_is_said_where_all_values_are_one(config: StudyConfig) -> None:
    assert importances(read_study(plant(config, 10, lambda h, rng: 0.5))) is None
    assert importances(read_study(opened_with(config, []))) is None
    assert importances(read_study(opened_with(config, [trial(config, {}, [0.5]), trial(config, {}, [0.6])]))) is None


def test_bars_are_the_shares(config: StudyConfig) -> None:
    searched = read_study(plant(config, 40, noise))
    held = importances(searched)
    assert held is not None
    bars = [bar for bar in importance_figure(searched, held).plot.data if bar.type == "bar"]
    columns = [(bar.y, bar.x, bar.error_x.arrayminus, bar.error_x.array) for bar in bars]
    drawn = {name: numbers for column in columns for name, *numbers in zip(*column, strict=True)}
    for row in held.rows:
        x, low, high = drawn[row.name]
        assert x == pytest.approx(100 * row.share, rel=1e-5)
        assert [x - low, x + high] == pytest.approx([100 * end for end in row.interval], abs=1e-4)


def test_configurations_are_drawn_evenly_and_only_as_the_space_allows(config: StudyConfig) -> None:
    axes = list(read_study(plant(config, 60, noise)).axes.values())
    drawn = anova._Drawn.of(axes)
    columns = {axis.name: drawn.places[:, place] for place, axis in enumerate(axes)}
    mlp = columns["image.encoder"] == 1
    assert np.array_equal(np.isnan(columns["image.mlp.dropout"]), ~mlp)
    assert np.array_equal(np.isnan(columns["image.cnn.kernel"]), mlp)
    assert mlp.mean() == pytest.approx(0.5, abs=0.001)
    assert np.allclose(np.bincount(columns["batch_size"].astype(int)) / len(mlp), 1 / 3, atol=0.001)
    assert columns["optimizer.lr"].mean() == pytest.approx(-3, abs=0.001)
    assert set(np.round(columns["head.dropout"], 9)) == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6}
    units = 10 ** columns["head.units"]
    assert np.allclose(units, np.round(units))
    assert (units.min(), units.max()) == pytest.approx((32, 256))
