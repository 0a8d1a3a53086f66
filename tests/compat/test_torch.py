"""What is used of torch is as it was when it was written for."""

from __future__ import annotations

import pytest
import torch

from adapters_pl.compat.torch import lost_process


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
