"""Random numbers go on where they were, and cost a checkpoint little."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch

from adapters_pl.training.resume import all_random_states, random_state, random_state_of, set_random_state

CPU = torch.device("cpu")


def draw():
    numbers = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal()]
    return [*numbers, *torch.rand(3).tolist(), *torch.randn(1).tolist()]


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.fixture
def stored(monkeypatch):
    """The states of eight processes, of which each draws other dropout, and what each would draw next."""
    states, drawn = [], []
    for rank in range(8):
        seed(5)
        draw()  # the second of a pair of normal numbers is kept for later
        torch.manual_seed(rank)
        states.append(random_state(CPU))
        drawn.append(draw())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)

    def all_gather(parts, own):
        parts[:] = states

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    file = io.BytesIO()
    torch.save(all_random_states(states[0]), file)
    size = file.tell()
    file.seek(0)
    return torch.load(file, weights_only=True), drawn, size


def test_every_process_goes_on_with_its_own(stored):
    state, drawn, _ = stored
    assert len(state["lengths"]) == 8
    for rank in (3, 0, 7):
        seed(99)
        set_random_state(random_state_of(state, rank), CPU)
        assert draw() == drawn[rank]


def test_eight_processes_fit_into_what_a_checkpoint_may_have_for_itself(stored):
    """Of 64 KiB, half is for what stands beside the tensors anyway."""
    assert stored[2] < 34 * 1024


def test_one_process_needs_no_others():
    seed(1)
    state = all_random_states(random_state(CPU))
    expected = draw()
    set_random_state(random_state_of(state, 0), CPU)
    assert draw() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_goes_on_as_well():
    gpu = torch.device("cuda", 0)
    state = all_random_states(random_state(gpu))
    expected = torch.rand(3, device=gpu)
    set_random_state(random_state_of(state, 0), gpu)
    assert torch.equal(torch.rand(3, device=gpu), expected)
