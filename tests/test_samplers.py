"""Samplers as a search uses them: a real database, conditional spaces, workers side by side."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import TINY, Run, environment
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from mmsearch.config import StudyConfig, load_config
from mmsearch.hyperparameters import Hyperparameters
from mmsearch.search.proposals import QuasiRandomPoints
from mmsearch.search.samplers import build_sampler, notes
from mmsearch.search.space import at, restore, suggest, unconditional, varying
from mmsearch.search.study import create_study, grid_size, open_study
from mmsearch.spaces import Choices, Range, Space, parse_dimension

SPACE = """
[space]
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
"loss.label_smoothing" = { low = 0.0, high = 0.3, step = 0.1 }
"head.dropout" = { low = 0.0, high = 0.6 }
"image.encoder" = ["cnn", "mlp"]
"image.mlp.depth" = { low = 1, high = 3 }
"image.mlp.units_1" = { low = 16, high = 256, log = true }
"image.mlp.units_2" = [16, 32, 64]
"image.cnn.filters_1" = { low = 8, high = 64, step = 8 }
"image.cnn.dropout" = { low = 0.0, high = 0.5 }
"""
GRID = """
[space]
"optimizer.lr" = [1e-3, 3e-3, 1e-2]
"loss.label_smoothing" = { low = 0.0, high = 0.3, step = 0.1 }
"batch_size" = [32, 64]
"""
LEARNING = ("tpe", "gp", "nsga2")
SAMPLERS = (*LEARNING, "random", "qmc", "grid")

Make = Callable[..., StudyConfig]
Score = Callable[[Hyperparameters], Sequence[float]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Configure a study with a sampler, few random trials and small populations."""
    monkeypatch.delenv("MMSEARCH_STORAGE", raising=False)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def made(sampler: str = "random", name: str = "a", text: str = "", space: str | None = None, **keys: Any) -> Any:
        search = f'[search]\nsampler = "{sampler}"\nstartup_trials = 5\npopulation = 4\n'
        space = space or (GRID if sampler == "grid" else SPACE)
        path = tmp_path / "studies" / f"{name}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{search}{text}\n{space}")
        return load_config(path, {"study.trials": 1000, **{key.replace("__", "."): v for key, v in keys.items()}})

    return made


def score(h: Hyperparameters) -> list[float]:
    """Best at a learning rate of 3e-3 without dropout."""
    return [-abs(math.log10(h["optimizer.lr"] / 3e-3)) - h.get("head.dropout", 0)]


def search(
    config: StudyConfig,
    total: int,
    *,
    workers: int = 1,
    score: Score = score,
    constraint: Callable[[Hyperparameters], float] | None = None,
) -> list[FrozenTrial]:
    """Trials until there are `total`; `workers` of them propose before any of them tells."""
    create_study(config, "data")[0].__exit__()
    opened = [open_study(config) for _ in range(workers)]
    for worker in opened:
        worker.storage.slots = grid_size(config)
    while len(opened[0].trials()) < total or any(not t.state.is_finished() for t in opened[0].trials()):
        trials = [worker.optuna.ask() for worker in opened]
        found = [suggest(config.dimensions, trial) for trial in trials]
        for worker, trial, hyperparameters in zip(opened, trials, found, strict=True):
            if constraint is not None:
                trial.set_constraint("limit", constraint(hyperparameters))
            worker.optuna.tell(trial, list(score(hyperparameters)))
    done = opened[0].trials()
    for worker in opened:
        worker.__exit__()
    return done


def params(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials]


def inside(space: Space, params: dict[str, Any]) -> bool:
    held = {name: space[name] for name in params}
    return all(
        params[name] in (d.options if isinstance(d, Choices) else d)
        for name, d in held.items()
        if isinstance(d, Choices | Range)
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_two_workers_share_no_point_and_all_lie_in_the_space(
    make: Make, sampler: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make(sampler)
    trials = search(config, 12, workers=2)
    assert len({tuple(sorted(t.params.items())) for t in trials}) == len(trials) == 12
    for trial in trials:
        assert varying(config.dimensions, restore(config.dimensions, trial.params)) == trial.params
        assert inside(config.dimensions, trial.params)
    assert {t.params.get("image.encoder") for t in trials} == ({None} if sampler == "grid" else {"cnn", "mlp"})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_worker_repeats_itself_and_goes_on_where_it_was(make: Make, sampler: str) -> None:
    whole = params(search(make(sampler, "whole"), 13))
    search(make(sampler, "parts"), 8)
    assert params(search(make(sampler, "parts"), 13)) == whole
    other = params(search(make(sampler, "other", study__seed=1), 13))
    assert other[0] == whole[0]  # the defaults
    assert all(a != b for a, b in zip(other[2:], whole[2:], strict=True) if sampler != "grid")
    assert other != whole


@pytest.mark.parametrize("sampler", [*LEARNING, "qmc"])
def test_a_range_that_grew_is_used(make: Make, sampler: str) -> None:
    def greater(h: Hyperparameters) -> list[float]:
        return [math.log10(h["optimizer.lr"])]

    search(make(sampler), 14, score=greater)
    wider = make(sampler, space=SPACE.replace("high = 1e-2", "high = 1e-1"))
    trials = search(wider, 26, score=greater)
    assert max(t.params["optimizer.lr"] for t in trials[:14]) <= 1e-2
    assert max(t.params["optimizer.lr"] for t in trials[14:]) > 2e-2
    if sampler == "gp":  # its own word, not that of the sampler that helps it out
        assert all('"optimizer.lr"' in t.system_attrs["gp:relative_params:0"] for t in trials[14:])


SLOW_GP = [pytest.param(name, marks=pytest.mark.slow if name == "gp" else ()) for name in LEARNING]


@pytest.mark.parametrize("sampler", SLOW_GP)
@pytest.mark.parametrize("metrics", [("accuracy",), pytest.param(("accuracy", "macro_f1"), marks=pytest.mark.slow)])
def test_constraints_are_learned_from(make: Make, sampler: str, metrics: tuple[str, ...]) -> None:
    def score(h: Hyperparameters) -> list[float]:  # the best are those that break the constraint
        return [h["head.dropout"], -h["loss.label_smoothing"]][: len(metrics)]

    means = []
    for name, constraint in (("free", None), ("bound", lambda h: h["head.dropout"] - 0.2)):
        config = make(sampler, name, study__metrics=metrics)
        trials = search(config, 24, workers=2, score=score, constraint=constraint)
        means.append(np.mean([t.params["head.dropout"] for t in trials[-10:]]))
    assert means[1] < 0.25 < 0.35 < means[0]


@pytest.mark.parametrize("sampler", SLOW_GP)
def test_later_trials_are_better_than_random_ones(make: Make, sampler: str) -> None:
    means = []
    for chosen in (sampler, "random"):
        trials = search(make(chosen, chosen), 26, workers=2)
        means.append(np.mean([t.values[0] for t in trials[-12:]]))
    assert means[0] > means[1] + 0.1


def test_children_inherit_what_only_some_configurations_have(make: Make) -> None:
    config = make("nsga2")
    search(config, 6)
    with open_study(config) as opened:
        best = config.dimensions.configuration({"optimizer.lr": 3e-3, "head.dropout": 0.0, "image.cnn.dropout": 0.123})
        opened.storage.enqueue(opened.id, {"fixed_params": varying(config.dimensions, best)})
    children = search(config, 36)[7:]
    assert sum(t.params.get("image.cnn.dropout") == 0.123 for t in children) >= 3
    assert sum(t.params.get("image.mlp.units_1") not in (None, 128) for t in children) >= 1
    generations = [t.system_attrs["Evolution:generation"] for t in children]
    assert generations == sorted(generations)
    assert generations[-1] == 8  # of four trials each, the enqueued one among them


def test_a_small_space_may_be_used_up(make: Make) -> None:
    space = '[space]\n"batch_size" = [32, 64]\n"head.depth" = [0, 1]\n'
    trials = search(make("nsga2", space=space), 16, score=lambda h: [h["batch_size"]])
    assert len({tuple(t.params.items()) for t in trials}) == 4


def test_a_gaussian_process_starts_from_nothing_and_lives_with_torn_proposals(make: Make) -> None:
    config = make("gp", search__startup_trials=0)
    search(config, 3)
    with open_study(config) as opened:
        running = opened.optuna.ask()
        suggest(config.dimensions, running)
        opened.storage.set_trial_system_attr(running._trial_id, "gp:relative_params:0", '{"optimizer.lr": 0.00')
        other = opened.optuna.ask()
        suggest(config.dimensions, other)
        assert inside(config.dimensions, other.params)


def test_a_gaussian_process_that_starts_at_once_waits_for_its_first_trial(make: Make) -> None:
    config = make("gp", search__startup_trials=0)
    search(config, 0)
    with open_study(config) as opened:
        for _ in range(3):  # workers at once, before any of them is done
            trial = opened.optuna.ask()
            suggest(config.dimensions, trial)
            assert inside(config.dimensions, trial.params)


def test_a_gaussian_process_does_not_stay_at_the_end_of_a_range(make: Make) -> None:
    config = make("gp", space='[space]\n"head.dropout" = { low = 0.0, high = 0.5 }')
    found = [t.params["head.dropout"] for t in search(config, 14, score=lambda h: [h["head.dropout"]])]
    assert len(set(found)) == 14
    assert max(found) == 0.5


def test_a_gaussian_process_needs_nothing_that_always_applies(make: Make) -> None:
    config = make("gp", space='[space]\n"image.encoder" = "mlp"\n"image.mlp.units_1" = [16, 32, 64, 128]')
    assert len(search(config, 8)) == 8
    assert unconditional(config.dimensions) == ["image.mlp.units_1"]


def test_looking_at_a_study_does_not_load_torch(make: Make) -> None:
    config = make("gp")
    program = (
        "import sys\nfrom mmsearch.config import load_config\nfrom mmsearch.search.samplers import build_sampler\n"
        f"build_sampler(load_config({config.file!r}))\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "False\n", done.stderr


DEPTHS = """
[space]
"image.encoder" = ["cnn", "mlp"]
"image.cnn.filters_1" = [8, 16]
"image.mlp.units_1" = [8, 16]
"audio.encoder" = "conv1d"
"audio.conv1d.depth" = { low = 2, high = 4 }
"audio.conv1d.filters_2" = [8, 16]
"audio.conv1d.filters_3" = [8, 16]
"head.depth" = { low = 1, high = 3, log = true }
"head.units" = [8, 16]
"optimizer.name" = "adamw"
"optimizer.sgd.momentum" = { low = 0.1, high = 0.9 }
"""


def test_what_applies_to_every_configuration(make: Make) -> None:
    space = make(space=DEPTHS).dimensions
    random = np.random.default_rng(0)
    seen = [varying(space, space.walk(lambda name, d: at(d, random.random()))) for _ in range(200)]
    everywhere = [name for name in space.varying() if all(name in found for found in seen)]
    assert unconditional(space) == everywhere
    assert {"audio.conv1d.filters_2", "head.units"} <= set(everywhere)
    assert not {"audio.conv1d.filters_3", "image.cnn.filters_1"} & set(everywhere)


@st.composite
def dimensions(draw: st.DrawFn) -> Range | Choices:
    name = draw(st.sampled_from(["optimizer.lr", "batch_size", "image.encoder"]))
    if name == "image.encoder":
        found = parse_dimension(name, draw(st.permutations(["cnn", "resnet", "vit", "mlp"])))
    else:
        whole = name == "batch_size"
        numbers: Any = st.integers(2, 4000) if whole else st.floats(1e-6, 4.9).map(lambda x: round(x, 6))
        low, wide = draw(numbers), draw(numbers)
        kind = draw(st.sampled_from(["log", "step", "plain"]))
        if kind == "step":
            step = draw(st.integers(1, 50) if whole else st.sampled_from([0.001, 0.1, 1 / 3]))
            found = parse_dimension(name, {"low": low, "high": low + step * draw(st.integers(1, 13)), "step": step})
        else:
            found = parse_dimension(name, {"low": low, "high": low + wide, "log": kind == "log"})
    assert isinstance(found, Range | Choices)
    return found


@given(dimensions(), st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=2))
def test_each_share_of_a_dimension_is_a_value_of_it(dimension: Range | Choices, shares: list[float]) -> None:
    one, other = (at(dimension, share) for share in sorted(shares))
    if isinstance(dimension, Choices):
        assert {one, other} <= set(dimension.options)
        return
    assert one in dimension
    assert other in dimension
    assert one <= other  # type: ignore[operator]
    values = dimension.grid()
    if values and len(values) < 200:  # each value has an equal part
        assert [at(dimension, (i + 0.5) / len(values)) for i in range(len(values))] == values


def test_a_logarithmic_range_of_whole_numbers_reaches_its_ends(make: Make) -> None:
    dimension = parse_dimension("batch_size", {"low": 2, "high": 9, "log": True})
    assert isinstance(dimension, Range)
    found = [at(dimension, share) for share in np.linspace(0, 1, 2000, endpoint=False)]
    assert set(found) == set(range(2, 10))
    assert found.count(2) > found.count(9)


def test_quasi_random_points_cover_a_space_evenly(make: Make) -> None:
    space = """
        [space]
        "head.dropout" = { low = 0.0, high = 0.5 }
        "optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
        "batch_size" = { low = 16, high = 4096 }
        "loss.label_smoothing" = { low = 0.0, high = 0.2 }
        "augment.image.noise" = { low = 0.1, high = 0.9 }
    """
    found = make("qmc", space=space).dimensions
    points = [QuasiRandomPoints(found, 0).point(number) for number in range(64)]
    shares = np.array([[share_of(d, point[n]) for n, d in found.varying().items()] for point in points])
    random = np.random.default_rng(0)
    assert shares.shape == (64, 5)
    assert qmc.discrepancy(shares) < min(qmc.discrepancy(random.random((64, 5))) for _ in range(20)) / 2
    assert np.all(np.bincount((shares[:, 0] * 16).astype(int), minlength=16) == 4)  # each sixteenth has its share


def share_of(dimension: Range | Choices, value: Any) -> float:
    assert isinstance(dimension, Range)
    low, high, value = (math.log(x) if dimension.log else x for x in (dimension.low, dimension.high, value))
    return float((value - low) / (high - low))


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(0, 3000))
def test_a_quasi_random_point_lies_in_the_space_and_depends_on_seed_and_number(seed: int, number: int) -> None:
    space = Space(
        {
            "optimizer.lr": parse_dimension("optimizer.lr", {"low": 1e-4, "high": 1e-2, "log": True}),
            "batch_size": parse_dimension("batch_size", {"low": 16, "high": 256, "step": 16}),
            "image.encoder": parse_dimension("image.encoder", ["cnn", "mlp"]),
            "image.mlp.dropout": parse_dimension("image.mlp.dropout", {"low": 0.0, "high": 0.3, "step": 0.1}),
        }
    )
    point = QuasiRandomPoints(space, seed).point(number)
    assert list(point) == list(space.varying())
    assert inside(space, point)
    assert point == QuasiRandomPoints(space, seed).point(number)
    for other in (QuasiRandomPoints(space, seed).point(number + 1), QuasiRandomPoints(space, seed ^ 1).point(number)):
        assert point["optimizer.lr"] != other["optimizer.lr"]


def test_quasi_random_points_do_not_depend_on_the_number_of_workers(make: Make) -> None:
    searches = [params(search(make("qmc", f"of-{workers}"), 9, workers=workers)) for workers in (1, 3)]
    assert searches[0] == searches[1]


def test_a_space_without_anything_to_vary(make: Make) -> None:
    for sampler in ("qmc", "gp", "nsga2"):
        trials = search(make(sampler, sampler, space='[space]\n"batch_size" = 32'), 6, score=lambda h: [1.0])
        assert params(trials) == [{}] * 6


@pytest.mark.parametrize(
    ("text", "trials", "said"),
    [
        ('sampler = "gp"', 20, [("models the 4 of 9 parameters",)]),
        ('sampler = "gp"', 501, [("models the 4 of 9 parameters",), ("beyond 500 trials; tpe",)]),
        ("startup_trials = 20", 20, [("tpe proposes at random until 20 trials", "startup_trials", "has 20")]),
        (
            'sampler = "nsga2"\npopulation = 30',
            9,
            [("nsga2 proposes at random until 30", "population", "has 9"), ("learns from complete", 'pruner = "none"')],
        ),
        ("startup_trials = 20", 1, []),  # the defaults: nothing is proposed
        ('sampler = "random"\nstartup_trials = 50', 20, []),
    ],
)
def test_what_may_surprise_is_said(tmp_path: Path, text: str, trials: int, said: list[tuple[str, ...]]) -> None:
    path = tmp_path / "said.toml"
    path.write_text(f"[search]\n{text}\n{SPACE}")
    found = notes(load_config(path, {"study.trials": trials}))
    assert len(found) == len(said)
    for note, parts in zip(found, said, strict=True):
        assert [part for part in parts if part not in note] == [], note


def test_each_sampler_of_a_study_file_is_one_of_its_own(make: Make) -> None:
    samplers = {name: type(build_sampler(make(name))).__name__ for name in SAMPLERS}
    assert samplers.pop("grid") == "GridPoints"
    assert samplers.pop("qmc") == "QuasiRandomPoints"
    assert set(samplers.values()) == {"SeededSampler"}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "gp", "qmc", "nsga2"])
def test_a_search_with_each_sampler(mmsearch: Run, workspace: Path, sampler: str) -> None:
    study = TINY.replace("startup_trials = 3", f'startup_trials = 2\npopulation = 2\nsampler = "{sampler}"')
    (workspace / "studies" / "digits.toml").write_text(
        study.replace("pruner_startup", 'pruner = "none"\npruner_startup')
    )
    mmsearch("launch", "--trials", 8, "--workers", 2)
    rows = list(csv.DictReader(io.StringIO(mmsearch("export").stdout)))
    assert [row["state"] for row in rows] == ["COMPLETE"] * 8
    configurations = {(row["optimizer.lr"], row["image.encoder"], row["image.mlp.units_1"]) for row in rows}
    assert len(configurations) >= (6 if sampler == "gp" else 8)  # which may end at an end of the one range
    logs = [path.read_text() for path in (workspace / "storage" / "digits" / "logs").iterdir()]
    assert logs
    assert not any("arning" in text for text in logs)
