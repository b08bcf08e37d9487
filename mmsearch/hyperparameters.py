"""Every hyperparameter: its dotted name, type, limits and default, and where it applies.

A name is used three times, unchanged: in a study file's `[space]`, as the Optuna parameter's name, and (its last part)
as the keyword argument of the class or function that it configures: `image.cnn.kernel` is `kernel` of the class
that `image.encoder = "cnn"` names. `filters_1`, `filters_2`, ... arrive there together, as the tuple `filters`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Value = bool | int | float | str


@dataclass(frozen=True)
class Parameter:
    """One hyperparameter.

    `options` are all the values it can have (for text, flags and some whole numbers); else `low` and `high`, both
    included, are its limits. It applies only where each parent in `requires` has one of the values listed there.
    """

    name: str
    default: Value
    help: str
    low: float = -math.inf
    high: float = math.inf
    options: tuple[Value, ...] = ()
    requires: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    @property
    def kind(self) -> type:
        """`bool`, `int`, `float` or `str`."""
        return type(self.default)

    def applies(self, values: Mapping[str, Value]) -> bool:
        """Whether it is used with these values of the parameters that stand before it."""
        return all(values.get(parent) in allowed for parent, allowed in self.requires)

    def allowed(self) -> str:
        """What values it can have, in words."""
        if self.options:
            return "one of " + ", ".join(show(option) for option in self.options)
        number = "a whole number" if self.kind is int else "a number"
        return f"{number} from {show(self.low)} to {show(self.high)}"

    def check(self, value: object) -> Value:
        """`value` in this parameter's type; raises `ValueError` with what is allowed."""
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind or (self.options and value not in self.options):
            raise ValueError(f"{show(value)} is not {self.allowed()}")
        if not self.options:
            assert isinstance(value, int | float)
            if not self.low <= value <= self.high:
                raise ValueError(f"{show(value)} is not {self.allowed()}")
        assert isinstance(value, bool | int | float | str)
        return value


def show(value: object) -> str:
    """A value as a study file writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(show, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {show(part)}" for key, part in value.items()) + " }"
    return str(value)


def _choice(name: str, options: Sequence[Value], default: Value, help: str, **extra: Any) -> Parameter:
    return Parameter(name, default, help, options=tuple(options), **extra)


def _under(parent: str, value: str, prefix: str, *rows: Parameter) -> list[Parameter]:
    """Rows that apply where `parent` is `value`, their names put under `prefix`."""
    return [
        Parameter(
            f"{prefix}.{row.name}",
            row.default,
            row.help,
            row.low,
            row.high,
            row.options,
            ((parent, (value,)), *((f"{prefix}.{name}", allowed) for name, allowed in row.requires)),
        )
        for row in rows
    ]


def _layers(name: str, defaults: Sequence[int], depth: int, what: str) -> list[Parameter]:
    """A depth and one width a layer: `depth`, `<name>_1`, `<name>_2`, ... of which the first `depth` apply."""
    return [
        Parameter("depth", depth, f"number of {what} layers", 1, len(defaults)),
        *(
            Parameter(
                f"{name}_{i}",
                width,
                f"{name} of {what} layer {i}",
                4,
                1024,
                requires=(("depth", tuple(range(i, len(defaults) + 1))),),
            )
            for i, width in enumerate(defaults, 1)
        ),
    ]


def _convolution() -> list[Parameter]:
    return [
        _choice("kernel", (3, 5, 7, 9), 3, "kernel size of each convolution"),
        _choice("batch_norm", (True, False), True, "batch normalisation after each convolution"),
        Parameter("dropout", 0.0, "dropout after each block", 0.0, 0.9),
    ]


def _mlp() -> list[Parameter]:
    return [
        *_layers("units", (256, 128, 128), 2, "dense"),
        Parameter("dropout", 0.2, "dropout after each layer", 0.0, 0.9),
    ]


_ROWS: list[Parameter] = [
    Parameter("batch_size", 64, "rows in a training step", 2, 8192),
    _choice("optimizer.name", ("adam", "adamw", "sgd"), "adamw", "the optimiser"),
    Parameter("optimizer.lr", 1e-3, "learning rate (the peak, where a schedule warms up)", 1e-7, 10.0),
    *_under(
        "optimizer.name",
        "adam",
        "optimizer.adam",
        Parameter("weight_decay", 0.0, "L2 penalty, as part of the gradient", 0.0, 1.0),
    ),
    *_under(
        "optimizer.name",
        "adamw",
        "optimizer.adamw",
        Parameter("weight_decay", 1e-2, "decoupled weight decay", 0.0, 1.0),
    ),
    *_under(
        "optimizer.name",
        "sgd",
        "optimizer.sgd",
        Parameter("weight_decay", 0.0, "L2 penalty, as part of the gradient", 0.0, 1.0),
        Parameter("momentum", 0.9, "momentum", 0.0, 0.999),
        _choice("nesterov", (True, False), False, "Nesterov's momentum"),
    ),
    _choice(
        "schedule.name", ("constant", "cosine", "onecycle"), "cosine", "how the learning rate moves over the epochs"
    ),
    *_under(
        "schedule.name",
        "cosine",
        "schedule.cosine",
        Parameter("warmup", 0.1, "share of the training steps that warm up linearly", 0.0, 0.9),
    ),
    *_under(
        "schedule.name",
        "onecycle",
        "schedule.onecycle",
        Parameter("warmup", 0.3, "share of the training steps that rise to the peak", 0.01, 0.9),
    ),
    _choice(
        "loss.name", ("cross_entropy", "weighted_cross_entropy"), "cross_entropy", "weighted: by inverse class size"
    ),
    Parameter("loss.label_smoothing", 0.0, "share of the target spread over all classes", 0.0, 0.5),
    _choice("image.encoder", ("cnn", "mlp"), "cnn", "how images are encoded"),
    *_under(
        "image.encoder",
        "cnn",
        "image.cnn",
        *_layers("filters", (16, 32, 64, 128, 128), 3, "convolution"),
        *_convolution(),
    ),
    *_under("image.encoder", "mlp", "image.mlp", *_mlp()),
    _choice("audio.encoder", ("conv1d", "mlp"), "conv1d", "how audio is encoded"),
    *_under(
        "audio.encoder",
        "conv1d",
        "audio.conv1d",
        _choice(
            "input",
            ("frames", "flat"),
            "frames",
            "convolve over time with coefficients as channels, or one flat vector",
        ),
        *_layers("filters", (32, 64, 64, 128, 128), 2, "convolution"),
        *_convolution(),
    ),
    *_under("audio.encoder", "mlp", "audio.mlp", *_mlp()),
    _choice("fusion.name", ("concat", "gated"), "concat", "how the two embeddings become one"),
    *_under("fusion.name", "gated", "fusion.gated", Parameter("units", 128, "width of the gated embedding", 4, 1024)),
    Parameter("head.depth", 1, "number of dense layers before the logits", 0, 3),
    Parameter("head.units", 128, "width of each dense layer", 4, 4096, requires=(("head.depth", (1, 2, 3)),)),
    Parameter("head.dropout", 0.3, "dropout before each layer of the head", 0.0, 0.9),
]

# Parents stand before the parameters that depend on them: one walk down the table decides what applies.
TABLE: Mapping[str, Parameter] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class Hyperparameters(Mapping[str, Any]):
    """The values of one configuration: each parameter of the table that applies, and no other."""

    _values: Mapping[str, Value]

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def under(self, prefix: str) -> dict[str, Any]:
        """Keyword arguments for what `prefix` names: numbered widths as one tuple, in place of their `depth`."""
        found = {
            name[len(prefix) + 1 :]: value for name, value in self._values.items() if name.startswith(f"{prefix}.")
        }
        arguments: dict[str, Any] = {}
        for name, value in found.items():
            numbered = re.fullmatch(r"(.+)_(\d+)", name)
            if numbered:
                arguments[numbered[1]] = (*arguments.get(numbered[1], ()), value)
            elif name != "depth" or not any(re.fullmatch(r".+_1", other) for other in found):
                arguments[name] = value
        return arguments


def nearest(word: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """`; did you mean "..."?` where a known name is close to `word`, else an empty text."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
