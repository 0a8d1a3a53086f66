"""Accuracy is exact, and does not depend on how rows were divided."""

from __future__ import annotations

import math

import pytest
import torch

from adapters_pl.evaluation.metrics import AnswerAccuracy, majority, mcnemar_exact, paired_bootstrap, wilson_interval


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
    single_process = accuracy([True, False, True], [False], [True, True, True])
    assert first.compute() == single_process.compute()
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


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [(["1", "2", "2"], "2"), (["2", "1", "1", "2"], "2"), ([None, None, "3"], "3"), ([None], None), ([], None)],
)
def test_the_majority_is_of_those_with_an_answer_and_the_earliest_of_equals(predictions, expected):
    assert majority(predictions) == expected


def test_the_interval_of_an_accuracy_is_wilsons():
    """The closed form, (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    z = 1.959963984540054
    for correct, n in ((30, 100), (600, 1000), (5, 8), (0, 7), (7, 7)):
        p = correct / n
        middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
        expected = [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]
        assert wilson_interval(correct, n) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("correct", "n", "expected"),
    [
        (0, 7, (0.0, 0.35433043506668743)),
        (7, 7, (0.6456695649333126, 1.0)),
        (52, 200, (0.20413830063574684, 0.32490745602534116)),
        (1234, 1319, (0.9210003659484043, 0.9475844461910092)),
        (9999, 10042, (0.9942375599216983, 0.9968192908967258)),
    ],
)
def test_the_interval_is_bit_for_bit_the_one_of_scipy(correct, n, expected):
    """Recorded of ``scipy.stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")``."""
    assert wilson_interval(correct, n) == expected


def test_a_perfect_score_is_not_certain():
    assert wilson_interval(200, 200)[0] == pytest.approx(0.981, abs=1e-3)
    assert wilson_interval(0, 7)[1] > 0.3


def test_a_difference_that_never_changes_has_no_width():
    assert paired_bootstrap([True, False], [True, False]) == (0.0, 0.0)


def test_a_paired_interval_only_knows_the_rows_that_changed():
    before = [True] * 50 + [False] * 50
    after = [False] * 5 + [True] * 60 + [False] * 35
    low, high = paired_bootstrap(before, after)
    spread = 1.96 * math.sqrt((20 / 100 - 0.1**2) / 100)
    assert low == pytest.approx(0.1 - spread, abs=0.015)
    assert high == pytest.approx(0.1 + spread, abs=0.015)


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (5, 0, 2 / 2**5), (0, 5, 2 / 2**5), (6, 2, 2 * (1 + 8 + 28) / 2**8), (3, 2, 1.0)],
)
def test_mcnemars_exact_test(better, worse, p):
    assert mcnemar_exact(better, worse) == pytest.approx(p)


def test_mcnemars_test_of_many_rows_does_not_overflow():
    assert 0 < mcnemar_exact(3000, 2800) < 0.01
