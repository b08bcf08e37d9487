"""The space of a search: which parameters vary and how, as a study file's `[space]` says it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mmsearch.hyperparameters import TABLE, Hyperparameters, Parameter, Value, nearest, show


@dataclass(frozen=True)
class Fixed:
    """A parameter that does not vary."""

    value: Value


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; on a logarithmic scale or in steps, not both."""

    low: float
    high: float
    log: bool
    step: float | None
    default: Value

    @property
    def whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return isinstance(self.default, int)

    def grid(self) -> list[Value] | None:
        """Its values, lowest first; None where they are not finitely many."""
        if self.log:
            return None
        if self.whole:
            return list(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            return None
        return [self.point(i) for i in range(round((self.high - self.low) / self.step) + 1)]

    def point(self, i: int) -> float:
        """The number `i` steps above `low`, as it is written: 0.3, not 0.30000000000000004."""
        assert self.step is not None
        return min(self.high, round(self.low + i * self.step, 12))

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        if self.whole and not isinstance(value, int):
            return False
        grid = self.grid()
        return grid is None or any(math.isclose(value, float(point), rel_tol=1e-9, abs_tol=1e-12) for point in grid)

    def nearest(self, value: float) -> Value:
        """The value of the range that is closest."""
        inside = min(max(value, self.low), self.high)
        grid = self.grid()
        return inside if grid is None else min(grid, key=lambda point: abs(float(point) - inside))


@dataclass(frozen=True)
class Choices:
    """A list of values without order."""

    options: tuple[Value, ...]
    default: Value


Dimension = Fixed | Range | Choices


def extent(dimension: Range | Choices) -> str:
    """What a dimension that varies reaches over, in words: `0.0001 to 0.01, logarithmic`."""
    if isinstance(dimension, Choices):
        return ", ".join(show(option) for option in dimension.options)
    extra = ", logarithmic" if dimension.log else f", in steps of {show(dimension.step)}" if dimension.step else ""
    return f"{show(dimension.low)} to {show(dimension.high)}{extra}"


@dataclass(frozen=True)
class Space:
    """The dimensions that a study file names; what it leaves out is fixed at the program's default.

    `given` is what is known from elsewhere and decides what applies: of `data.audio`, what the data set has.
    """

    dimensions: Mapping[str, Dimension]
    given: Mapping[str, Value] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Dimension:
        return self.dimensions.get(name) or Fixed(TABLE[name].default)

    def walk(self, pick: Callable[[str, Range | Choices], Value]) -> Hyperparameters:
        """One configuration: down the table, fixed values as they are and `pick` for what varies and applies."""
        values: dict[str, Value] = dict(self.given)
        for name, parameter in TABLE.items():
            if parameter.applies(values):
                dimension = self[name]
                values[name] = dimension.value if isinstance(dimension, Fixed) else pick(name, dimension)
        return Hyperparameters({name: value for name, value in values.items() if name in TABLE})

    def _reachable(self) -> dict[str, set[Value] | None]:
        """What applies to some configuration, with the values it can have there; None stands for any number."""
        found: dict[str, set[Value] | None] = {name: {value} for name, value in self.given.items()}
        for name, parameter in TABLE.items():
            if any(
                parent not in found or ((seen := found[parent]) is not None and not seen & set(allowed))
                for parent, allowed in parameter.requires
            ):
                continue
            dimension = self[name]
            if isinstance(dimension, Range):
                found[name] = set(range(int(dimension.low), int(dimension.high) + 1)) if dimension.whole else None
            else:
                found[name] = {dimension.value} if isinstance(dimension, Fixed) else set(dimension.options)
        return {name: values for name, values in found.items() if name in TABLE}

    def varying(self) -> dict[str, Range | Choices]:
        """What varies in some configuration, in the table's order."""
        return {name: d for name in self._reachable() if not isinstance(d := self[name], Fixed)}

    def unused(self) -> list[str]:
        """What is named but applies to no configuration."""
        reachable = self._reachable()
        return [name for name in self.dimensions if name not in reachable]

    def fixed(self) -> dict[str, Value]:
        """The value of every parameter that applies to some configuration and does not vary."""
        return {name: d.value for name in self._reachable() if isinstance(d := self[name], Fixed)}

    def configuration(self, given: Mapping[str, Value]) -> Hyperparameters:
        """The configuration with the given values, and defaults elsewhere.

        Raises `ValueError` for a name that is unknown or does not apply, or a value outside the space.
        """
        for name, value in given.items():
            if name not in TABLE:
                raise ValueError(f'"{name}" is not a hyperparameter{nearest(name, TABLE)}')
            try:
                TABLE[name].check(value)
            except ValueError as error:
                raise ValueError(f'"{name}": {error}') from None
        made = self.walk(lambda name, dimension: TABLE[name].check(given.get(name, dimension.default)))
        for name in given:
            if name not in made:
                parents = " and ".join(
                    f"{parent} = {' or '.join(map(show, allowed))}" for parent, allowed in TABLE[name].requires
                )
                raise ValueError(f'"{name}" does not apply here: it needs {parents}')
        for name, value in given.items():
            dimension = self[name]
            checked = TABLE[name].check(value)
            if isinstance(dimension, Fixed) and checked != dimension.value:
                raise ValueError(f'"{name}" is fixed at {show(dimension.value)} in [space], not {show(value)}')
            if isinstance(dimension, Choices) and checked not in dimension.options:
                listed = ", ".join(map(show, dimension.options))
                raise ValueError(f'"{name}" = {show(value)} is not among the choices of [space]: {listed}')
            if isinstance(dimension, Range) and checked not in dimension:
                steps = f" in steps of {show(dimension.step)}" if dimension.step else ""
                raise ValueError(
                    f'"{name}" = {show(value)} is not in the range of [space]: '
                    f"{show(dimension.low)} to {show(dimension.high)}{steps}"
                )
        return made


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`optimizer.lr = 1` and `"optimizer.lr" = 1` are the same; tables below a known name are ranges."""
    flat: dict[str, Any] = {}
    for key, node in tree.items():
        name = f"{prefix}{key}"
        nested = isinstance(node, dict) and node and name not in TABLE and not set(node) & {"low", "high", "choices"}
        for inner, value in (flatten(node, f"{name}.") if nested else {name: node}).items():
            if inner in flat:
                raise ValueError(f'"{inner}" is there twice, once as a quoted name and once in a table')
            flat[inner] = value
    return flat


def parse_dimension(name: str, node: object) -> Dimension:
    """What a study file says of one parameter: a value, a list, or a table. Raises `ValueError`: what is allowed."""
    if name not in TABLE:
        raise ValueError(f"is not a hyperparameter{nearest(name, TABLE)}")
    parameter = TABLE[name]
    if isinstance(node, dict):
        return _choices(parameter, node["choices"], node) if "choices" in node else _range(parameter, node)
    if isinstance(node, list):
        return _choices(parameter, node, {"choices": node})
    return Fixed(parameter.check(node))


def _choices(parameter: Parameter, options: object, node: dict[str, Any]) -> Dimension:
    _only_keys(node, ("choices", "default"))
    if not isinstance(options, list) or not options:
        raise ValueError("choices must be a list that is not empty")
    values = tuple(_check_option(parameter, option) for option in options)
    if len(set(values)) < len(values):
        raise ValueError("a choice is listed twice")
    if "default" in node and parameter.check(node["default"]) not in values:
        raise ValueError(f"the default {show(node['default'])} is not among the choices")
    default = parameter.check(node.get("default", parameter.default))
    if default not in values:
        numbers = not isinstance(default, str | bool)
        default = min(values, key=lambda v: abs(float(v) - float(default))) if numbers else values[0]
    return Fixed(values[0]) if len(values) == 1 else Choices(values, default)


def _check_option(parameter: Parameter, option: object) -> Value:
    try:
        return parameter.check(option)
    except ValueError as error:
        known = [str(o) for o in parameter.options]
        raise ValueError(f"{error}{nearest(str(option), known) if parameter.kind is str else ''}") from None


def _range(parameter: Parameter, node: dict[str, Any]) -> Dimension:
    _only_keys(node, ("low", "high", "log", "step", "default"))
    if parameter.options:
        raise ValueError(f"takes a list of choices, not a range: it is {parameter.allowed()}")
    for key in ("low", "high"):
        if key not in node:
            raise ValueError(f"a range needs low and high; {key} is missing")
    low, high = parameter.check(node["low"]), parameter.check(node["high"])
    log, step = node.get("log", False), node.get("step")
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    if low > high:
        raise ValueError(f"low = {show(low)} is above high = {show(high)}")
    if not isinstance(log, bool):
        raise ValueError(f"log must be true or false, not {show(log)}")
    if log and step is not None:
        raise ValueError("log and step exclude each other")
    if log and low <= 0:
        raise ValueError(f"a logarithmic range must have low above 0, not {show(low)}")
    kinds = (int,) if parameter.kind is int else (int, float)
    if step is not None and (type(step) not in kinds or not 0 < step < math.inf):
        raise ValueError(f"step must be a {'whole ' if parameter.kind is int else ''}number above 0, not {show(step)}")
    if step is not None and not math.isclose((high - low) / step, round((high - low) / step), abs_tol=1e-6):
        raise ValueError(f"the range from {show(low)} to {show(high)} is no multiple of step = {show(step)}")
    whole = parameter.kind is int
    given = parameter.check(node.get("default", parameter.default))
    made = Range(low, high, log, step if step is None or whole else float(step), given)
    if "default" in node and given not in made:
        raise ValueError(f"the default {show(given)} is not in the range")
    assert isinstance(given, int | float)
    return Fixed(low) if low == high else replace(made, default=parameter.kind(made.nearest(given)))


def _only_keys(node: dict[str, Any], allowed: tuple[str, ...]) -> None:
    for key in node:
        if key not in allowed:
            raise ValueError(f'"{key}" is not a key of it{nearest(key, allowed)}; allowed are {", ".join(allowed)}')
