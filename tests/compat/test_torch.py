"""What is used of torch is as it was when it was written for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from adapters_pl.compat.torch import LiveBytes, kernels_of_a_run, lost_process, without_contents


@pytest.mark.parametrize(
    "words", ["[/gloo/transport/tcp/pair.cc:1] Timed out", "Application timeout caused pair closure"]
)
def test_a_connection_that_timed_out_is_a_lost_process(words):
    """Which of the two a process says depends on which of its threads sees the timeout first."""
    assert lost_process(RuntimeError(words))
    assert not lost_process(RuntimeError("pair of shapes"))
    assert not lost_process(ValueError(words))


def test_errors_of_a_process_group_are_a_lost_process():
    assert lost_process(torch.distributed.DistNetworkError("the connection was closed by the peer"))
    assert lost_process(torch.distributed.DistBackendError("NCCL timed out"))


# ---- tensors without contents


def test_bytes_live_as_long_as_their_storage():
    given = torch.zeros(8)
    live = LiveBytes()
    live.ignore([given])
    with live:
        assert (given[2:], live.now)[1] == 0
        first = given + 1
        view = first.view(2, 4)
        first.mul_(2)
        assert (live.now, live.peak) == (32, 32)
        second = torch.cat([first, first])
        assert live.now == 96
        del first, second
        assert live.now == 32
        del view
    assert (live.now, live.peak) == (0, 96)


@pytest.mark.parametrize("autocast", [False, True], ids=["meta", "fake"])
def test_a_backward_pass_over_tensors_without_contents_has_the_sizes_of_a_real_one(autocast):
    """The layer's input and output, both gradients, and the bytes of a softmax that keeps its result."""

    def peak():
        weight, x = torch.empty(64, 32).requires_grad_(), torch.empty(16, 32).requires_grad_()
        live = LiveBytes()
        live.ignore([weight, x])
        with live:
            functional.linear(x, weight).softmax(-1).sum().backward()
        return live.peak

    real = peak()
    with without_contents(autocast):
        assert peak() == real > 0


@pytest.mark.parametrize("autocast", [False, True], ids=["meta", "fake"])
def test_a_mask_without_contents_selects_every_place(autocast):
    with without_contents(autocast), LiveBytes() as live:
        x, mask = torch.empty(4, 6, 8), torch.empty(4, 6, dtype=torch.bool)
        assert x[mask].shape == (24, 8)
        x[mask] = x[mask] + 1
        assert live.peak >= 3 * 4 * 6 * 8 * 4


def test_on_cuda_dropout_keeps_a_byte_an_element_and_attention_no_scores():
    x = torch.empty(1, 2, 128, 16, device="meta", requires_grad=True)

    def kept(work, cuda):
        with kernels_of_a_run(cuda), LiveBytes() as live:
            output = work()
            return live.now - output.untyped_storage().nbytes()

    assert kept(lambda: functional.dropout(x, 0.5), True) == x.numel()
    assert kept(lambda: functional.dropout(x, 0.5), False) >= 4 * x.numel()
    scores = 2 * 128 * 128 * 4
    assert kept(lambda: functional.scaled_dot_product_attention(x, x, x), True) < scores / 8


@pytest.mark.parametrize("keeps_input", [False, True])
def test_a_quantised_weight_is_whole_only_for_the_moment(keeps_input):
    layer = nn.Linear(32, 64, bias=False, device="meta").requires_grad_(False)
    x = torch.empty(16, 32, device="meta", requires_grad=True)
    with kernels_of_a_run(False, [layer.weight], keeps_input, torch.bfloat16), LiveBytes() as live:
        doubled = x * 2
        output = layer(doubled)
        del doubled
        assert live.peak >= 64 * 32 * 2
        assert live.now == output.nbytes + keeps_input * x.nbytes
        output.sum().backward()
    assert functional.linear is torch._C._nn.linear
