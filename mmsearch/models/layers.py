"""What encoders, fusions and heads are made of: normalisations, activations, dropouts and blocks, by their names."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}


# What rises or stays as its input rises: it may follow a max-pooling instead of preceding it, with the same result on a
# fraction of the numbers.
MONOTONE = (nn.ReLU, nn.LeakyReLU, nn.ELU)


class Dropout(nn.Dropout):
    """torch's dropout; on processors numbers of 16 bits draw its mask, four at a time, in an eighth of torch's time.

    The rate is exact to 1 in 65,536, and the mask the same in any precision.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training or self.p in (0, 1) or input.device.type != "cpu":
            return super().forward(input)
        drawn = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        drawn = drawn[: input.numel()].as_strided(input.shape, torch.empty_like(input).stride())
        kept = drawn.ge_(min(round((self.p - 0.5) * 2**16), 2**15 - 1))  # 1 or 0
        return input * kept.to(input.dtype).mul_(1 / (1 - self.p))


class Conv1d(nn.Conv1d):
    """torch's convolution over time, of rows that lie as images of one line: (B, channels, 1, steps).

    With channels last, which torch has for images alone, convolutions and poolings of sequences are as fast as those of
    images.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, 1, steps) -> (B, out_channels, 1, as many steps as torch's)."""
        assert isinstance(self.padding, tuple)
        steps = (1, *self.stride), (0, *self.padding), (1, *self.dilation)
        return functional.conv2d(input, self.weight.unsqueeze(2), self.bias, *steps, self.groups)


def normalisation(kind: str, channels: int, convolved: bool) -> list[nn.Module]:
    """After a convolution, or after a dense layer: a list that is empty for `none`.

    `group` has groups of at least four channels (Wu and He, "Group normalization", arXiv 1803.08494); `layer` is one
    group of all of them.
    """
    if kind == "none":
        return []
    if kind == "batch":
        return [nn.BatchNorm2d(channels) if convolved else nn.BatchNorm1d(channels)]
    if not convolved:
        return [nn.LayerNorm(channels)]
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0 and channels // g >= min(4, channels))
    return [GroupNorm(groups, channels) if kind == "group" else nn.GroupNorm(1, channels)]


def widened(tensor: Tensor) -> Tensor:
    """As float32 where it is bfloat16 on a processor, for what torch computes there more slowly in bfloat16."""
    return tensor.float() if tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" else tensor


class GroupNorm(nn.GroupNorm):
    """torch's, never in bfloat16 on processors, where several groups take four times as long; one group does not."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, channels, ...) -> the same."""
        return super().forward(widened(input)).to(input.dtype)


class DropPath(nn.Module):
    """Leave out a residual branch for some rows of a batch, and scale it up for the others.

    Stochastic depth: Huang et al., "Deep networks with stochastic depth" (arXiv 1603.09382).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if not self.training:
            return branch
        kept = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - self.rate)
        return branch * kept / (1 - self.rate)


def dropout(kind: str, rate: float) -> list[nn.Module]:
    """One module, which keeps its place where nothing is dropped: weights have the same names with any rate.

    `spatial`, for after a convolution, leaves out whole channels (Tompson et al., arXiv 1411.4280).
    """
    if not rate:
        return [nn.Identity()]
    if kind == "drop_path":
        return [DropPath(rate)]
    if kind == "spatial":
        return [nn.Dropout2d(rate)]
    return [Dropout(rate)]


def dense(width: int, units: tuple[int, ...], *, norm: str, activation: str, rate: float) -> list[nn.Module]:
    """Linear layers from `width` through `units`, each followed by normalisation, activation and dropout."""
    layers: list[nn.Module] = []
    for size in units:
        layers += [nn.Linear(width, size), *normalisation(norm, size, False), ACTIVATIONS[activation]()]
        layers += dropout("plain", rate)
        width = size
    return layers


def convolution(
    channels: int, width: int, kernel: int, *, norm: str, activation: str, dimensions: int
) -> list[nn.Module]:
    """A convolution that keeps the size, its normalisation and its activation."""
    layer = nn.Conv2d if dimensions == 2 else Conv1d
    return [
        layer(channels, width, kernel, padding=kernel // 2, bias=norm == "none"),
        *normalisation(norm, width, True),
        ACTIVATIONS[activation](),
    ]


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut (He et al., "Deep residual learning", arXiv 1512.03385).

    `drop_path` leaves out the convolutions' branch; other dropouts stand between the two, as in wide residual networks
    (Zagoruyko and Komodakis, arXiv 1605.07146).
    """

    def __init__(
        self, channels: int, width: int, stride: int, *, norm: str, activation: str, rate: float, kind: str
    ) -> None:
        super().__init__()
        bias = norm == "none"
        inside = dropout(kind, 0 if kind == "drop_path" else rate)
        outside = dropout(kind, rate if kind == "drop_path" else 0)
        self.branch = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=bias),
            *normalisation(norm, width, True),
            ACTIVATIONS[activation](),
            *inside,
            nn.Conv2d(width, width, 3, 1, 1, bias=bias),
            *normalisation(norm, width, True),
            *outside,
        )
        same = stride == 1 and channels == width
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=bias), *normalisation(norm, width, True))
        )
        self.activation = ACTIVATIONS[activation]()

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, height, width) -> (B, width, height / stride, width / stride)."""
        out: Tensor = self.activation(self.branch(image) + self.shortcut(image))
        return out


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """torch's scaled dot-product attention of (B, heads, tokens, width), never in bfloat16 on processors: its backward
    pass takes 16 times as long there.
    """
    wide = widened(queries)
    if wide is queries:
        return functional.scaled_dot_product_attention(queries, keys, values)
    with torch.autocast(queries.device.type, enabled=False):
        found = functional.scaled_dot_product_attention(wide, widened(keys), widened(values))
    return found.to(queries.dtype)


class AttentionBlock(nn.Module):
    """Self-attention and a feed-forward layer, each in a residual branch behind a layer normalisation.

    Vaswani et al., "Attention is all you need" (arXiv 1706.03762), normalised first as in Xiong et al. (2002.04745).
    """

    def __init__(
        self, units: int, *, heads: int, ratio: int, activation: str, dropout: list[nn.Module], kept: list[nn.Module]
    ) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(units)
        self.queries_keys_values = nn.Linear(units, 3 * units)
        self.out = nn.Sequential(nn.Linear(units, units), *dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(units),
            nn.Linear(units, ratio * units),
            ACTIVATIONS[activation](),
            nn.Linear(ratio * units, units),
            *kept,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, tokens, units) -> (B, tokens, units)."""
        split = self.queries_keys_values(self.before(tokens)).unflatten(2, (3, self.heads, -1))
        queries, keys, values = split.permute(2, 0, 3, 1, 4)
        found = attend(queries, keys, values)
        tokens = tokens + self.out(found.transpose(1, 2).flatten(2))
        done: Tensor = tokens + self.feed_forward(tokens)
        return done


def attention(
    *, units: int, depth: int, heads: int, ratio: int, activation: str, dropout: float, dropout_kind: str
) -> nn.Sequential:
    """Blocks of self-attention over (B, tokens, units), and a last layer normalisation."""
    blocks = [
        AttentionBlock(
            units,
            heads=heads,
            ratio=ratio,
            activation=activation,
            dropout=_dropout(dropout_kind, dropout),
            kept=_dropout(dropout_kind, dropout),
        )
        for _ in range(depth)
    ]
    return nn.Sequential(*blocks, nn.LayerNorm(units))


_dropout = dropout  # by another name where a parameter is called so


class Positions(nn.Module):
    """A learned class token before a sequence, and a learned position added to each token."""

    def __init__(self, tokens: int, units: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, 1, units))
        self.position = nn.Parameter(torch.empty(1, tokens + 1, units))
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, tokens, units) -> (B, 1 + tokens, units)."""
        return torch.cat([self.first.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.position
