"""Max-pooling of sequences: the numbers and the gradients of torch's own, and torch's own in what is exported."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mmsearch.models.pooling import MaxPool1d


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Numbers that all differ, but in bfloat16, with channels last."""
    order = torch.randperm(int(torch.Size(shape).numel()), generator=torch.Generator().manual_seed(seed))
    return (order.float() - 100).reshape(shape).to(dtype).contiguous(memory_format=torch.channels_last)


@given(
    rows=st.integers(1, 3),
    channels=st.integers(1, 40),
    steps=st.integers(2, 19),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    seed=st.integers(0, 1000),
)
@settings(deadline=None)
def test_numbers_and_gradients_are_torchs(rows: int, channels: int, steps: int, dtype: torch.dtype, seed: int) -> None:
    ours, theirs = (drawn((rows, channels, 1, steps), seed, dtype).requires_grad_() for _ in range(2))
    found, wanted = MaxPool1d()(ours), nn.MaxPool2d((1, 2))(theirs)
    assert torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(MaxPool1d()(ours), wanted)
    weights = drawn(tuple(wanted.shape), seed + 1, dtype)
    found.backward(weights)
    wanted.backward(weights)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert ours.grad.is_contiguous(memory_format=torch.channels_last)


def test_of_equal_numbers_the_first_has_the_gradient_and_what_is_left_over_none() -> None:
    rows = torch.zeros(2, 8, 1, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    MaxPool1d()(rows).sum().backward()
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.tensor([1.0, 0, 1, 0, 0]).expand(2, 8, 1, 5))


def test_what_is_not_a_number_is_not_lost() -> None:
    rows = torch.tensor([0, torch.nan, torch.nan, 0, 1, 2]).reshape(1, 1, 1, 6)
    assert MaxPool1d()(rows.requires_grad_()).isnan().flatten().tolist() == [True, True, False]


def test_an_activation_may_write_on_what_was_pooled() -> None:
    rows = torch.randn(4, 1, 1, 9)
    layers = [
        nn.Sequential(nn.Conv2d(1, 8, (1, 3)), pool, nn.ReLU(inplace=True))
        for pool in (MaxPool1d(), nn.MaxPool2d((1, 2)))
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
    rows = torch.randn(2, 8, 1, 6)
    assert torch.equal(MaxPool1d()(rows), nn.MaxPool2d((1, 2))(rows))
    last = rows.contiguous(memory_format=torch.channels_last)
    exported = torch.export.export(MaxPool1d().eval(), (last,))
    assert [str(node.target) for node in exported.graph.nodes if node.op == "call_function"] == [
        "aten.max_pool2d.default"
    ]
