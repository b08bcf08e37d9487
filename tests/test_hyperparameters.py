"""The table of hyperparameters and the spaces made of it: each walk gives what applies, and nothing else."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.config import DataSection, StudyConfig, StudySection
from mmsearch.hyperparameters import TABLE, Hyperparameters, Parameter, Value, nearest
from mmsearch.spaces import Choices, Fixed, Range, Space

QUICK = settings(max_examples=60, deadline=None)


def space_of(nodes: dict[str, Any], rate: int | None = None) -> Space:
    """A `[space]` as a study file gives it, for rows of features or, with a rate, of waveforms."""
    data = DataSection(sample_rate=rate)
    return StudyConfig(file="s.toml", study=StudySection(name="s"), data=data, space=nodes).dimensions


@st.composite
def ranges(draw: st.DrawFn, parameter: Parameter) -> dict[str, Any]:
    """A range within a parameter's limits: plain, logarithmic, or in steps; with its own default or without."""
    form = draw(st.sampled_from(["plain", "log", "step"]))
    low = max(parameter.low, 1e-7) if form == "log" else parameter.low
    if parameter.kind is int:
        step: Any = draw(st.integers(1, 64))
        start: Any = draw(st.integers(math.ceil(low), int(parameter.high)))
        end: Any = draw(st.integers(start, int(parameter.high)))
        end = start + (end - start) // step * step if form == "step" else end
    else:
        # as a user writes them: a few digits; in steps, both ends are multiples of the step
        step = draw(st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]))
        if form == "step":
            first = draw(st.integers(math.ceil(low / step), int(parameter.high / step)))
            start = round(first * step, 6)
            end = round(draw(st.integers(first, int(parameter.high / step))) * step, 6)
        else:
            start = draw(st.floats(low, parameter.high))
            end = draw(st.floats(start, parameter.high))
    node: dict[str, Any] = {"low": start, "high": end} | draw(
        st.sampled_from([{}, {"default": start}, {"default": end}])
    )
    return {**node, **({"log": True} if form == "log" else {"step": step} if form == "step" else {})}


def nodes(parameter: Parameter) -> st.SearchStrategy[Any]:
    """What may stand behind one name: a value, a list of choices, or a range."""
    values: st.SearchStrategy[Any] = (
        st.sampled_from(parameter.options)
        if parameter.options
        else st.integers(int(parameter.low), int(parameter.high))
        if parameter.kind is int
        else st.floats(parameter.low, parameter.high)
    )
    lists = st.lists(values, min_size=1, max_size=4, unique=True)
    return values | lists if parameter.options else values | lists | ranges(parameter)


NUMBERS = [parameter for parameter in TABLE.values() if not parameter.options]
CHOICES = [name for name in TABLE if name.endswith((".name", ".encoder", ".depth"))]
SPACES = st.builds(
    space_of,
    st.lists(st.sampled_from(CHOICES) | st.sampled_from(list(TABLE)), max_size=20, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: nodes(TABLE[name]) for name in names})
    ),
    st.sampled_from([None, 8000]),
)


def pick(rng: random.Random, name: str, dimension: Range | Choices) -> Value:
    """A value of a dimension, as a sampler would choose it."""
    if isinstance(dimension, Choices):
        return rng.choice(dimension.options)
    grid = dimension.grid()
    if grid is not None:
        return TABLE[name].check(min(rng.choice(grid), dimension.high))
    drawn = rng.uniform(dimension.low, dimension.high)
    return round(drawn) if TABLE[name].kind is int else min(max(drawn, dimension.low), dimension.high)


def test_parents_stand_before_their_children() -> None:
    seen = {"data.audio"}  # which is the data set's
    for name, parameter in TABLE.items():
        assert name == parameter.name
        for parent, allowed in parameter.requires:
            assert parent in seen, f"{name} depends on {parent}, which stands below it"
            assert allowed
            for value in allowed:
                assert parent not in TABLE or TABLE[parent].check(value) == value
        seen.add(name)


@pytest.mark.parametrize("parameter", TABLE.values(), ids=TABLE)
def test_each_parameter_takes_its_default_and_its_limits_and_nothing_beyond(parameter: Parameter) -> None:
    assert parameter.check(parameter.default) == parameter.default
    assert parameter.help
    wrong: list[object] = [None, [], {}, "nothing of the kind", math.nan, math.inf]
    if parameter.options:
        assert [parameter.check(option) for option in parameter.options] == list(parameter.options)
        assert len(set(parameter.options)) == len(parameter.options) > 1
        wrong += [-1, 0.5]
    else:
        assert parameter.kind in (int, float)
        assert math.isfinite(parameter.low)
        assert math.isfinite(parameter.high)
        for edge in (parameter.low, parameter.high):
            assert type(parameter.check(parameter.kind(edge))) is parameter.kind
        wrong += [parameter.kind(parameter.low - 1), parameter.kind(parameter.high + 1), True]
        wrong += [parameter.default + 0.5] if isinstance(parameter.default, int) else []
    for value in wrong:
        with pytest.raises(ValueError, match=r"is not one of|is not a number|is not a whole number"):
            parameter.check(value)


@QUICK
@given(SPACES, st.integers())
def test_a_walk_yields_exactly_what_applies(space: Space, seed: int) -> None:
    rng, asked = random.Random(seed), []

    def choose(name: str, dimension: Range | Choices) -> Value:
        asked.append(name)
        return pick(rng, name, dimension)

    made = space.walk(choose)
    known = {**space.given, **made}
    applies = {
        name
        for name, parameter in TABLE.items()
        if all(known.get(parent) in allowed for parent, allowed in parameter.requires)
    }
    assert set(made) == applies
    assert list(made) == [name for name in TABLE if name in applies]
    assert asked == [name for name in made if not isinstance(space[name], Fixed)]
    assert set(asked) <= set(space.varying())
    for name, value in made.items():
        dimension = space[name]
        assert TABLE[name].check(value) == value
        assert isinstance(dimension, Fixed) or value in (
            dimension if isinstance(dimension, Range) else dimension.options
        )
        assert not isinstance(dimension, Fixed) or value == dimension.value


@QUICK
@given(SPACES, st.integers())
def test_a_configuration_is_made_again_from_its_values(space: Space, seed: int) -> None:
    rng = random.Random(seed)
    made = space.walk(lambda name, dimension: pick(rng, name, dimension))
    assert space.configuration(made) == made
    assert space.configuration({name: made[name] for name in space.varying() if name in made}) == made


@QUICK
@given(SPACES)
def test_the_defaults_are_a_configuration_of_the_space(space: Space) -> None:
    for name, dimension in space.varying().items():
        options = dimension.options if isinstance(dimension, Choices) else dimension
        assert dimension.default in options, (name, dimension)
    assert space.configuration(space.configuration({})) == space.configuration({})


@QUICK
@given(SPACES)
def test_what_varies_and_what_is_fixed_exclude_each_other(space: Space) -> None:
    assert not set(space.varying()) & set(space.fixed())
    assert all(isinstance(space[name], Range | Choices) for name in space.varying())


@QUICK
@given(st.sampled_from(NUMBERS).flatmap(lambda parameter: st.tuples(st.just(parameter), ranges(parameter))))
def test_a_grid_holds_the_values_of_its_range(drawn: tuple[Parameter, dict[str, Any]]) -> None:
    parameter, node = drawn
    dimension = space_of({parameter.name: node})[parameter.name]
    if isinstance(dimension, Fixed):
        assert dimension.value == node["low"] == node["high"]
        return
    assert isinstance(dimension, Range)
    grid = dimension.grid()
    assert node["low"] in dimension
    assert node["high"] in dimension
    assert node["low"] - 0.001 not in dimension
    assert node["high"] + 0.001 not in dimension
    assert (grid is None) == ("log" in node or ("step" not in node and parameter.kind is float))
    if grid is not None:
        assert grid[0] == node["low"]
        assert grid[-1] == pytest.approx(node["high"])
        assert len(grid) == round((node["high"] - node["low"]) / node.get("step", 1)) + 1
        for point in grid:
            assert point in dimension, f"{point!r} of the grid is not in the range that ends at {dimension.high!r}"
        if "step" in node and node["step"] != 1:
            assert node["low"] + node["step"] / 2 not in dimension


@pytest.mark.parametrize(
    ("space", "values", "fragments"),
    [
        ({}, {"optimizer.rl": 1e-3}, ['"optimizer.rl" is not a hyperparameter', 'did you mean "optimizer.lr"?']),
        ({}, {"fusion.name": "sum"}, ['"fusion.name"', '"sum" is not one of "concat", "gated"']),
        ({}, {"features.name": "mfcc"}, ['"features.name" does not apply', 'data.audio = "waveforms"']),
        ({}, {"batch_size": 32}, ['"batch_size" is fixed at 64', "not 32"]),
        ({"batch_size": [16, 32]}, {"batch_size": 64}, ['"batch_size" = 64', "choices of [space]: 16, 32"]),
        ({"head.depth": {"low": 1, "high": 2}}, {"head.depth": 3}, ['"head.depth" = 3', "1 to 2"]),
        (
            {"batch_size": {"low": 8, "high": 64, "step": 8}},
            {"batch_size": 12},
            ['"batch_size" = 12', "8 to 64 in steps of 8"],
        ),
        (
            {"image.cnn.depth": 2},
            {"image.cnn.filters_3": 64},
            ['"image.cnn.filters_3" does not apply', "image.cnn.depth = 3 or 4 or 5"],
        ),
    ],
)
def test_a_value_outside_the_space_is_refused(
    space: dict[str, Any], values: dict[str, Value], fragments: list[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        space_of(space).configuration(values)
    assert [part for part in fragments if part not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ("choice", "value", "prefix", "widths"),
    [
        ("image.encoder", "cnn", "image.cnn", "filters"),
        ("image.encoder", "mlp", "image.mlp", "units"),
        ("audio.encoder", "conv1d", "audio.conv1d", "filters"),
        ("audio.encoder", "mlp", "audio.mlp", "units"),
    ],
)
def test_numbered_widths_arrive_as_one_tuple(choice: str, value: str, prefix: str, widths: str) -> None:
    for depth in range(1, int(TABLE[f"{prefix}.depth"].high) + 1):
        sizes = [8 * i for i in range(1, depth + 1)]
        given = {f"{prefix}.{widths}_{i}": size for i, size in enumerate(sizes, 1)}
        made = space_of({choice: value, f"{prefix}.depth": depth, **given}).configuration({})
        arguments = made.under(prefix)
        assert arguments[widths] == tuple(sizes)
        assert not {name for name in arguments if name == "depth" or name[-1].isdigit()}
        others = {name for name in made if name.startswith(f"{prefix}.") and f"{prefix}.{widths}_" not in name}
        assert {f"{prefix}.{name}" for name in arguments} == others - {f"{prefix}.depth"} | {f"{prefix}.{widths}"}


def test_what_has_no_numbered_widths_keeps_its_depth() -> None:
    made = space_of({}).configuration({})
    assert made.under("head") == {"depth": 1, "units": 128, "norm": "none", "activation": "relu", "dropout": 0.3}
    assert made.under("fusion.concat") == {}
    assert Hyperparameters({"a.b": 1, "ab.c": 2}).under("a") == {"b": 1}


def test_the_nearest_name_is_only_given_where_one_is_near() -> None:
    assert nearest("optimizer.learning", ["optimizer.lr", "batch_size"]) == '; did you mean "optimizer.lr"?'
    assert nearest("xyz", ["optimizer.lr", "batch_size"]) == ""
