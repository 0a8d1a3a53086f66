"""What every adapter method must do, on every architecture."""

from __future__ import annotations

import pytest

from adapters_pl import ParallelAdapter, SeriesAdapter
from tests.conftest import tiny_model
from tests.helpers.matrix import CHECKS, check_method
from tests.helpers.methods import METHODS, logits

#: One of each structure: the rest of the rows are variants of these, and test_architectures has them all.
ARCHITECTURES = [
    "llama",
    "llama_gqa",
    "bloom",
    "opt",
    "gptj",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gemma2",
    "phi3",
    "falcon",
]
#: The methods that meet an architecture each in a way of their own; the rest are variants, held against two that have
#: nothing in common: apart and fused projections, a gate or none, rotations or learned positions, Linear and Conv1D.
EVERYWHERE = ["lora", "lora-bias-all-dora", "lora-parts-all", "series", "parallel-both", "ia3", "prefix", "prompt"]
TWO = ["llama_gqa", "gpt2"]
CELLS = [(method, arch) for method in METHODS for arch in (ARCHITECTURES if method in EVERYWHERE else TWO)]


@pytest.mark.parametrize(("method", "arch"), CELLS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_matrix(check, method, arch):
    check_method(check, METHODS[method], arch)


def test_the_matrix_has_every_method_and_every_architecture():
    assert set(EVERYWHERE) <= set(METHODS)
    assert {method for method, _ in CELLS} == set(METHODS)
    assert {arch for _, arch in CELLS} == set(ARCHITECTURES)


@pytest.mark.parametrize("method", [SeriesAdapter, ParallelAdapter])
@pytest.mark.parametrize("family", ["block", "linear"])
def test_not_the_identity_at_step_0_under_berts_initial_values(method, family):
    model = tiny_model("llama")
    method(16, init="bert", family=family).attach_to(model)
    difference = (logits(model) - logits(tiny_model("llama"))).abs().max()
    assert 1e-5 < difference < 0.5
