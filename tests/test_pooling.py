"""Max-pooling by 2: the numbers and the gradients of torch's own, and torch's own in what is exported."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmsearch.models.pooling import MaxPool2d


def windows(dimensions: int) -> tuple[int, int]:
    """What is pooled of images, and of sequences that lie as images of one line."""
    return (2, 2) if dimensions == 2 else (1, 2)


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers that all differ, but in bfloat16, with channels last."""
    order = torch.randperm(int(torch.Size(shape).numel()), generator=torch.Generator().manual_seed(seed))
    return (order.float() - 100).reshape(shape).to(dtype).contiguous(memory_format=torch.channels_last)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(2, 9), st.integers(2, 9)),
    dimensions=st.sampled_from((1, 2)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_numbers_and_gradients_are_torchs(
    shape: tuple[int, int, int, int], dimensions: int, dtype: torch.dtype, seed: int
) -> None:
    shape = shape if dimensions == 2 else (*shape[:2], 1, shape[3])
    pool, reference = MaxPool2d(dimensions), nn.MaxPool2d(windows(dimensions))
    ours, theirs = (drawn(shape, seed, dtype).requires_grad_() for _ in range(2))
    found, wanted = pool(ours), reference(theirs)
    assert torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(pool(ours), wanted)
    weights = drawn(tuple(wanted.shape), seed + 1, dtype)
    for one in (found, wanted):
        one.backward(weights)
    assert ours.grad is not None
    assert theirs.grad is not None
    if dtype == torch.float32:
        assert torch.equal(ours.grad, theirs.grad)
    else:  # of equal numbers another may have the gradient, never two
        assert torch.equal((ours.grad != 0).sum(), (theirs.grad != 0).sum())
        assert torch.equal(ours.grad.double().sum(), theirs.grad.double().sum())


@pytest.mark.parametrize("dimensions", [1, 2])
def test_of_equal_numbers_one_has_the_gradient_and_what_is_left_over_none(dimensions: int) -> None:
    rows = torch.zeros(2, 8, 5 if dimensions == 2 else 1, 5).contiguous(memory_format=torch.channels_last)
    rows.requires_grad_()
    MaxPool2d(dimensions)(rows).sum().backward()
    assert rows.grad is not None
    high, wide = windows(dimensions)
    pooled = rows.grad[:, :, : 4 if high == 2 else 1, :4].unfold(2, high, high).unfold(3, wide, wide)
    assert torch.equal(pooled.sum((-1, -2)), torch.ones(pooled.shape[:4]))
    assert not rows.grad[..., 4].any()
    assert dimensions == 1 or not rows.grad[:, :, 4].any()


def test_an_activation_may_write_on_what_was_pooled() -> None:
    rows = torch.randn(4, 1, 9, 9)
    layers = [
        nn.Sequential(nn.Conv2d(1, 8, 3), pool, nn.ReLU(inplace=True)) for pool in (MaxPool2d(2), nn.MaxPool2d(2))
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    for each in layers:
        each.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        each(rows).square().sum().backward()
    for ours, theirs in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_other_layouts_and_exported_models_have_torchs_own() -> None:
    rows = torch.randn(2, 8, 6, 6)
    assert torch.equal(MaxPool2d(2)(rows), nn.MaxPool2d(2)(rows))
    last = rows.contiguous(memory_format=torch.channels_last)
    exported = torch.export.export(MaxPool2d(2).eval(), (last,))
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == [
        "aten.max_pool2d.default"
    ]
