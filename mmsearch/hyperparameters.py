"""Every hyperparameter: its dotted name, type, limits and default, and where it applies.

A name is used three times, unchanged: in a study file's `[space]`, as the Optuna parameter's name, and (its last part)
as the keyword argument of the class or function that it configures: `image.cnn.kernel` is `kernel` of the class
that `image.encoder = "cnn"` names. `filters_1`, `filters_2`, ... arrive there together, as the tuple `filters`.
The one parent that is no parameter is `data.audio`: "waveforms" or "features", as the data set has it.
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
            Parameter(f"{name}_{i}", width, f"{name} of {what} layer {i}", 4, 1024, requires=_from(i, len(defaults)))
            for i, width in enumerate(defaults, 1)
        ),
    ]


def _from(layer: int, layers: int) -> tuple[tuple[str, tuple[Value, ...]], ...]:
    """What a row requires that applies where there are so many layers or more."""
    return (("depth", tuple(range(layer, layers + 1))),)


_ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "elu")
_KERNELS = (3, 5, 7, 9)
_RATE = 0.9  # a greater dropout leaves nothing to learn from
_TOKEN_UNITS = (16, 32, 64, 96, 128, 192, 256, 384, 512)  # each a multiple of each number of heads


def _activation(default: str = "relu") -> Parameter:
    return _choice("activation", _ACTIVATIONS, default, "what follows each layer")


def _convolution(*kinds: str) -> list[Parameter]:
    kinds = ("plain", "spatial", *kinds)
    return [
        _choice("norm", ("batch", "group", "layer", "none"), "batch", "normalisation after each convolution"),
        _activation(),
        Parameter("dropout", 0.0, "dropout after each block", 0.0, _RATE),
        _choice("dropout_kind", kinds, "plain", _dropout_help(kinds)),
    ]


def _dropout_help(kinds: Sequence[str]) -> str:
    what = {"plain": "single values", "spatial": "whole channels", "drop_path": "whole residual branches of a row"}
    return "what is dropped: " + ", ".join(f"{what[kind]} ({kind})" for kind in kinds)


def _kernel() -> Parameter:
    return _choice("kernel", _KERNELS, 3, "kernel size of each convolution")


def _mlp() -> list[Parameter]:
    return [
        *_layers("units", (256, 128, 128), 2, "dense"),
        _choice("norm", ("none", "batch", "layer"), "none", "normalisation after each dense layer"),
        _activation(),
        Parameter("dropout", 0.2, "dropout after each layer", 0.0, _RATE),
    ]


def _attention(units: int, depth: int) -> list[Parameter]:
    return [
        _choice("units", _TOKEN_UNITS, units, "width of each token"),
        Parameter("depth", depth, "number of self-attention blocks", 1, 12),
        _choice("heads", (1, 2, 4, 8), 4, "attention heads, which share the width"),
        Parameter("ratio", 2, "width of the feed-forward layers, in widths of a token", 1, 8),
        _activation("gelu"),
        Parameter("dropout", 0.0, "dropout of each residual branch", 0.0, _RATE),
        _choice("dropout_kind", ("plain", "drop_path"), "plain", _dropout_help(("plain", "drop_path"))),
    ]


def _frames(window_ms: int = 25, hop_ms: int = 10) -> list[Parameter]:
    return [
        Parameter("window_ms", window_ms, "length of each frame's window, in milliseconds", 2, 1000),
        Parameter("hop_ms", hop_ms, "time from frame to frame, in milliseconds", 1, 1000),
    ]


def _bands() -> Parameter:
    return Parameter("bands", 40, "mel bands", 4, 256)


_TRAINING = [
    Parameter("batch_size", 64, "rows in a training step", 2, 8192),
    _choice("optimizer.name", ("adam", "adamw", "sgd"), "adamw", "the optimiser"),
    Parameter("optimizer.lr", 1e-3, "learning rate (the peak, where a schedule warms up)", 1e-7, 10.0),
    Parameter("optimizer.clip", 0.0, "greatest norm of a step's gradient; 0 clips nothing", 0.0, 1e4),
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
    _choice("loss.name", ("cross_entropy", "focal"), "cross_entropy", "focal: rows that are easy count less"),
    *_under(
        "loss.name",
        "focal",
        "loss.focal",
        Parameter("gamma", 2.0, "how much less easy rows count; 0: as much", 0.0, 10.0),
    ),
    _choice("loss.class_weights", ("none", "balanced"), "none", "balanced: rows count by inverse class size"),
    Parameter("loss.label_smoothing", 0.0, "share of the target spread over all classes", 0.0, 0.5),
    Parameter("loss.l1", 0.0, "L1 penalty: so much times the sum of the weights' sizes", 0.0, 1.0),
    Parameter("ema.decay", 0.0, "moving average of the weights: share kept in each step; 0 keeps none", 0.0, 0.99999),
    Parameter("transfer.freeze_epochs", 0, "first epochs in which the weights of `init` stay as they are", 0, 1000),
]

_AUGMENTATION = [
    Parameter("augment.image.rotation", 0.0, "rotate by at most so many degrees", 0.0, 180.0),
    Parameter("augment.image.shift", 0.0, "shift by at most this share of height and width", 0.0, 0.5),
    Parameter("augment.image.zoom", 0.0, "zoom in or out by at most this share", 0.0, 0.9),
    Parameter("augment.image.crop", 0.0, "cut away at most this share of the area, and resize", 0.0, 0.9),
    Parameter("augment.image.flip_horizontal", 0.0, "probability to swap left and right", 0.0, 1.0),
    Parameter("augment.image.flip_vertical", 0.0, "probability to swap top and bottom", 0.0, 1.0),
    Parameter("augment.image.noise", 0.0, "deviation of noise on pixels from 0 to 1", 0.0, 1.0),
    Parameter("augment.image.erasing", 0.0, "erase a rectangle of at most this share of the area", 0.0, 0.9),
    Parameter("augment.audio.time_mask", 0.0, "mask a run of at most this share of the frames", 0.0, 0.9),
    Parameter("augment.audio.frequency_mask", 0.0, "mask a run of at most this share of the coefficients", 0.0, 0.9),
    Parameter("augment.audio.shift", 0.0, "shift in time by at most this share of the frames", 0.0, 0.5),
    Parameter("augment.audio.noise", 0.0, "deviation of noise, in deviations of each coefficient", 0.0, 5.0),
    Parameter("augment.mixup", 0.0, "mix pairs of rows: alpha of the beta distribution; 0 mixes none", 0.0, 10.0),
]

_IMAGE = [
    _choice("image.encoder", ("cnn", "paired_cnn", "resnet", "vit", "mlp"), "cnn", "how images are encoded"),
    *_under(
        "image.encoder",
        "cnn",
        "image.cnn",
        *_layers("filters", (16, 32, 64, 128, 128), 3, "convolution"),
        _kernel(),
        *_convolution(),
    ),
    *_under(
        "image.encoder",
        "paired_cnn",
        "image.paired_cnn",
        *_layers("filters", (16, 32, 64), 2, "paired"),
        *(
            _choice(
                f"kernel_{i}", _KERNELS, size, f"kernel of both convolutions of paired layer {i}", requires=_from(i, 3)
            )
            for i, size in enumerate((5, 3, 3), 1)
        ),
        *_convolution(),
    ),
    *_under(
        "image.encoder",
        "resnet",
        "image.resnet",
        *_layers("filters", (16, 32, 64, 128), 3, "stage"),
        Parameter("blocks", 1, "residual blocks in each stage", 1, 6),
        *_convolution("drop_path"),
    ),
    *_under(
        "image.encoder",
        "vit",
        "image.vit",
        Parameter("patch", 4, "height and width of a patch, in pixels", 1, 64),
        *_attention(64, 3),
    ),
    *_under("image.encoder", "mlp", "image.mlp", *_mlp()),
]

_AUDIO = [
    _choice(
        "features.name",
        ("stft", "log_mel", "mfcc", "chroma"),
        "log_mel",
        "what is computed from waveforms",
        requires=(("data.audio", ("waveforms",)),),
    ),
    *_under(
        "features.name",
        "stft",
        "features.stft",
        *_frames(),
        _choice("log", (True, False), False, "the magnitude's logarithm instead of the magnitude"),
    ),
    *_under("features.name", "log_mel", "features.log_mel", *_frames(), _bands()),
    *_under(
        "features.name",
        "mfcc",
        "features.mfcc",
        *_frames(),
        _bands(),
        Parameter("coefficients", 13, "cepstral coefficients, at most as many as bands", 2, 64),
        Parameter("deltas", 2, "orders of differences in time that are added", 0, 2),
        _choice("energy", (True, False), True, "the frame's log energy in place of the first coefficient"),
    ),
    *_under("features.name", "chroma", "features.chroma", *_frames(100, 25)),
    _choice(
        "audio.scale",
        ("standard", "maximum"),
        "standard",
        "by the training rows' mean and deviation of each coefficient, or by their greatest value",
    ),
    _choice("audio.encoder", ("conv1d", "conv2d", "mlp", "rnn", "transformer"), "conv1d", "how audio is encoded"),
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
        _kernel(),
        *_convolution(),
    ),
    *_under(
        "audio.encoder",
        "conv2d",
        "audio.conv2d",
        *_layers("filters", (16, 32, 64, 128), 2, "convolution"),
        _kernel(),
        *_convolution(),
    ),
    *_under("audio.encoder", "mlp", "audio.mlp", *_mlp()),
    *_under(
        "audio.encoder",
        "rnn",
        "audio.rnn",
        _choice("cell", ("lstm", "gru"), "lstm", "the recurrent cell"),
        Parameter("units", 128, "width of each direction's state", 4, 1024),
        Parameter("depth", 1, "number of recurrent layers", 1, 4),
        _choice("bidirectional", (True, False), True, "read the frames backwards too"),
        Parameter("dropout", 0.0, "dropout after each layer", 0.0, _RATE),
    ),
    *_under("audio.encoder", "transformer", "audio.transformer", *_attention(64, 2)),
]

_FUSION = [
    _choice(
        "fusion.name", ("concat", "gated", "lstm", "attention", "late"), "concat", "how the two modalities become one"
    ),
    Parameter(
        "fusion.modality_dropout", 0.0, "share of training rows that lose one modality, image or audio", 0.0, _RATE
    ),
    *_under("fusion.name", "gated", "fusion.gated", Parameter("units", 128, "width of the gated embedding", 4, 1024)),
    *_under(
        "fusion.name",
        "lstm",
        "fusion.lstm",
        Parameter("embed", 128, "width of each step: image, then audio", 4, 1024),
        Parameter("hidden", 256, "width of the state", 4, 1024),
    ),
    *_under("fusion.name", "attention", "fusion.attention", *_attention(64, 1)),
    Parameter("head.depth", 1, "number of dense layers before the logits", 0, 3),
    Parameter("head.units", 128, "width of each dense layer", 4, 4096, requires=(("head.depth", (1, 2, 3)),)),
    _choice(
        "head.norm",
        ("none", "batch", "layer"),
        "none",
        "normalisation after each dense layer",
        requires=(("head.depth", (1, 2, 3)),),
    ),
    _choice(
        "head.activation", _ACTIVATIONS, "relu", "what follows each dense layer", requires=(("head.depth", (1, 2, 3)),)
    ),
    Parameter("head.dropout", 0.3, "dropout before each layer of the head", 0.0, _RATE),
]

# Parents stand before the parameters that depend on them: one walk down the table decides what applies.
TABLE: Mapping[str, Parameter] = {row.name: row for row in (*_TRAINING, *_AUGMENTATION, *_IMAGE, *_AUDIO, *_FUSION)}


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

    same_end = [name for name in known if name.endswith(f".{word}")]  # "lr" for "optimizer.lr"
    close = same_end if len(same_end) == 1 else difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
