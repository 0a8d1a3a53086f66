"""Accuracy is exact, and does not depend on how rows were divided."""

from __future__ import annotations

import pytest
import torch

from adapters_pl.metrics import AnswerAccuracy


@pytest.fixture
def accuracy():
    """A metric over batches of judged answers."""

    def accuracy(*batches):
        metric = AnswerAccuracy()
        for batch in batches:
            metric.update(batch)
        return metric

    return accuracy


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[True]], 1.0),
        ([[False, False]], 0.0),
        ([[True, False, False]], 1 / 3),
        ([[True, True], [False], [], [True, False, False, True]], 4 / 7),
    ],
)
def test_right_answers_over_all_answers(accuracy, batches, expected):
    assert accuracy(*batches).compute().item() == expected


def test_no_answers_have_no_accuracy(accuracy):
    assert accuracy([]).compute().isnan()


def test_counting_stays_exact_where_single_precision_would_not(accuracy):
    metric = accuracy()
    metric.correct.fill_(2**24)
    metric.total.fill_(2**25)
    metric.update([True])
    assert (metric.correct.item(), metric.total.item()) == (16_777_217, 33_554_433)
    assert metric.compute().item() == 16_777_217 / 33_554_433


def test_two_processes_together_equal_one(accuracy):
    first, second = accuracy([True, False, True]), accuracy([False], [True, True, True])
    first.merge_state(second)
    together = accuracy([True, False, True], [False], [True, True, True])
    assert first.compute() == together.compute()
    assert first.compute().item() == 5 / 7


def test_processes_sum_their_counts_when_they_meet(accuracy):
    # What every process sees of the others: here its own counts, three times.
    metric = accuracy([True, False])
    metric.sync(dist_sync_fn=lambda state, group: [state] * 3, distributed_available=lambda: True)
    assert (metric.correct.item(), metric.total.item()) == (3, 6)
    assert metric.correct.dtype == metric.total.dtype == torch.long


def test_a_reset_forgets(accuracy):
    metric = accuracy([False, False])
    metric.reset()
    metric.update([True])
    assert metric.compute().item() == 1.0
