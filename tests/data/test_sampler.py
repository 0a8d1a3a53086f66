"""Which rows come when: every row once, whatever the division among processes and accumulated batches."""

from __future__ import annotations

import pickle
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.data import _set_sampler_epoch
from torch.utils.data import Dataset

from adapters_pl.data.sampler import BudgetSampler, LengthSortedSampler, SeededRows, StepLoader, StepSampler
from adapters_pl.inputs.errors import UserError

PROPERTY = settings(max_examples=80, deadline=None, derandomize=True)
COUNTS = st.lists(st.integers(0, 9), max_size=40)
SIZES = st.integers(1, 4)


def of_every_rank(counts, batch_size, world_size, accumulate, **options):
    """Each process's batches of one epoch."""
    return [
        list(StepSampler(counts, batch_size, rank, world_size, accumulate, **options)) for rank in range(world_size)
    ]


def steps(ranks, accumulate):
    """The batches of each optimizer step, over all processes."""
    return [
        [batch for batches in ranks for batch in batches[i : i + accumulate]]
        for i in range(0, len(ranks[0]), accumulate)
    ]


def rows_that_count(batches):
    return [row for batch in batches if not batch.empty for row in batch]


@PROPERTY
@given(counts=COUNTS, batch_size=SIZES, world_size=SIZES, accumulate=SIZES, seed=st.integers(0, 3))
def test_every_row_comes_exactly_once_an_epoch(counts, batch_size, world_size, accumulate, seed):
    ranks = of_every_rank(counts, batch_size, world_size, accumulate, seed=seed)
    seen = sorted(row for batches in ranks for row in rows_that_count(batches))
    assert seen == list(range(len(counts)))


@PROPERTY
@given(
    lengths=COUNTS,
    batch_size=SIZES,
    world_size=SIZES,
    accumulate=SIZES,
    done=st.integers(0, 60),
    seed=st.integers(0, 3),
)
def test_a_step_has_the_same_rows_by_length_and_its_longest_come_first(
    lengths, batch_size, world_size, accumulate, done, seed
):
    def epoch(**options):
        ranks = []
        for rank in range(world_size):
            sampler = StepSampler(lengths, batch_size, rank, world_size, accumulate, seed, **options)
            sampler.before = min(done, len(lengths))
            ranks.append(list(sampler))
        return steps(ranks, accumulate) if ranks[0] else []

    plain, by_length = epoch(), epoch(lengths=lengths)
    assert len(plain) == len(by_length)
    for one, other in zip(plain, by_length, strict=True):
        assert sorted(rows_that_count(one)) == sorted(rows_that_count(other))
        assert {batch.loss_tokens for batch in one} == {batch.loss_tokens for batch in other}
        # Over all processes: no row of an earlier batch is shorter than one of a later batch.
        numbers = range(len(other) // world_size)
        places = [[lengths[row] for row in rows_that_count(other[number :: len(numbers)])] for number in numbers]
        for earlier, later in pairwise(filter(None, places)):
            assert min(earlier) >= max(later)


@PROPERTY
@given(counts=COUNTS, batch_size=SIZES, world_size=SIZES, accumulate=SIZES)
def test_every_process_has_as_many_batches_as_it_says_and_as_the_others(counts, batch_size, world_size, accumulate):
    samplers = [StepSampler(counts, batch_size, rank, world_size, accumulate) for rank in range(world_size)]
    assert {len(list(sampler)) for sampler in samplers} == {len(sampler) for sampler in samplers}
    assert len({len(sampler) for sampler in samplers}) == 1


@PROPERTY
@given(counts=COUNTS, batch_size=SIZES, world_size=SIZES, accumulate=SIZES)
def test_no_batch_is_larger_than_asked_or_without_a_row(counts, batch_size, world_size, accumulate):
    ranks = of_every_rank(counts, batch_size, world_size, accumulate)
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)


@PROPERTY
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    division=st.sampled_from([(12, 1, 1), (1, 12, 1), (1, 1, 12), (6, 2, 1), (3, 2, 2), (2, 3, 2), (4, 1, 3)]),
)
def test_a_step_sees_the_same_rows_whatever_the_division(counts, division):
    batch_size, world_size, accumulate = division
    order = StepSampler(counts, 12, seed=5).order()
    ranks = of_every_rank(counts, batch_size, world_size, accumulate, seed=5)
    assert [sorted(rows_that_count(step)) for step in steps(ranks, accumulate)] == [
        sorted(order[i : i + 12]) for i in range(0, len(order), 12)
    ]


@PROPERTY
@given(counts=COUNTS, batch_size=SIZES, world_size=SIZES, accumulate=SIZES)
def test_every_batch_of_a_step_knows_the_labels_of_the_whole_step(counts, batch_size, world_size, accumulate):
    ranks = of_every_rank(counts, batch_size, world_size, accumulate)
    for step in steps(ranks, accumulate):
        labelled = sum(counts[row] for row in rows_that_count(step))
        assert {batch.loss_tokens for batch in step} == {max(1, labelled)}


def test_one_step_after_the_other_is_dealt_out_over_processes_then_batches():
    first, second = of_every_rank([1] * 10, 1, 2, 2, shuffle=False)
    assert first == [[0], [2], [4], [6], [8]]
    assert second == [[1], [3], [5], [7], [9]]


def test_loss_tokens_are_summed_over_processes_and_accumulated_batches():
    first, second = of_every_rank([1, 20, 300, 4000, 5, 60], 1, 2, 2, shuffle=False)
    assert [batch.loss_tokens for batch in first] == [4321, 4321, 65]
    assert [batch.loss_tokens for batch in second] == [4321, 4321, 65]


def test_a_step_without_labels_never_divides_by_zero():
    [[batch]] = of_every_rank([0, 0], 2, 1, 1)
    assert batch.loss_tokens == 1


def test_a_process_left_without_rows_gets_an_empty_batch_that_says_so():
    first, second = of_every_rank([3, 1, 4, 1, 5], 2, 2, 1, shuffle=False)
    assert [(list(batch), batch.empty, batch.loss_tokens) for batch in first] == [([0, 2], False, 9), ([4], False, 5)]
    assert [(list(batch), batch.empty, batch.loss_tokens) for batch in second] == [([1, 3], False, 9), ([4], True, 5)]


def test_no_rows_are_no_batches():
    sampler = StepSampler([], 2)
    assert len(sampler) == 0
    assert list(sampler) == []


def test_what_a_batch_knows_reaches_the_loader_processes():
    [[_], [empty]] = of_every_rank([7], 1, 2, 1)
    arrived = pickle.loads(pickle.dumps(empty))
    assert (list(arrived), arrived.empty, arrived.loss_tokens) == ([0], True, 7)


@pytest.fixture
def orders():
    """Orders of 50 rows by (seed, epoch)."""

    def order(seed, epoch):
        sampler = StepSampler([1] * 50, 4, seed=seed)
        sampler.set_epoch(epoch)
        return sampler.order()

    return {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}


def test_every_seed_and_epoch_has_an_order_of_its_own(orders):
    assert len({tuple(order) for order in orders.values()}) == 9
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert list(range(50)) not in orders.values()


def test_an_epochs_order_depends_on_nothing_that_went_before(orders):
    sampler = StepSampler([1] * 50, 4, seed=1)
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
        assert [row for batch in sampler for row in batch] == orders[1, epoch]
        assert [row for batch in sampler for row in batch] == orders[1, epoch]


def test_without_shuffling_rows_keep_their_order_in_every_epoch():
    sampler = StepSampler([1] * 5, 2, shuffle=False)
    sampler.set_epoch(3)
    assert list(sampler) == [[0, 1], [2, 3], [4]]


# ---- going on


DIVISIONS = st.tuples(SIZES, SIZES, SIZES)


def resumed(counts, division, state, **options):
    """Each process's batches of what is left of the epoch that ``state`` stands in."""
    batch_size, world_size, accumulate = division
    samplers = [StepSampler(counts, batch_size, rank, world_size, accumulate, **options) for rank in range(world_size)]
    for sampler in samplers:
        sampler.load_state_dict(state)
    return [list(sampler) for sampler in samplers]


@PROPERTY
@given(counts=COUNTS, division=DIVISIONS, data=st.data())
def test_going_on_gives_the_batches_that_were_left(counts, division, data):
    batch_size, world_size, accumulate = division
    ranks = of_every_rank(counts, batch_size, world_size, accumulate, seed=3)
    steps_done = data.draw(st.integers(0, len(steps(ranks, accumulate))))
    done = min(steps_done * accumulate, len(ranks[0]))
    state = StepSampler(counts, batch_size, 0, world_size, accumulate, seed=3).state_dict(done)
    left = resumed(counts, division, state, seed=3)
    for all_batches, batches in zip(ranks, left, strict=True):
        assert [vars(b) | {"rows": list(b)} for b in batches] == [
            vars(b) | {"rows": list(b)} for b in all_batches[done:]
        ]


@PROPERTY
@given(counts=COUNTS, before=DIVISIONS, after=DIVISIONS, data=st.data())
def test_on_another_division_every_row_that_is_left_comes_once(counts, before, after, data):
    batch_size, world_size, accumulate = before
    first = of_every_rank(counts, batch_size, world_size, accumulate, seed=3)
    done = data.draw(st.integers(0, len(steps(first, accumulate)))) * accumulate
    seen = [row for batches in first for row in rows_that_count(batches[:done])]
    state = StepSampler(counts, batch_size, 0, world_size, accumulate, seed=3).state_dict(done)
    assert state["rows"] == len(seen)
    second = resumed(counts, after, state, seed=3)
    assert sorted([*seen, *(row for batches in second for row in rows_that_count(batches))]) == list(range(len(counts)))
    # Processes stay in step, steps keep their batches, and a step knows the labels of the rows that are left of it.
    assert len({len(batches) for batches in second}) == 1
    epoch_batches = len(StepSampler(counts, after[0], 0, *after[1:]))
    assert not second[0] or (epoch_batches - len(second[0])) % after[2] == 0
    for step in steps(second, after[2]):
        labelled = sum(counts[row] for row in rows_that_count(step))
        assert {batch.loss_tokens for batch in step} == {max(1, labelled)}


def test_a_step_that_is_not_complete_is_done_again():
    sampler = StepSampler([1] * 10, 1, 0, 2, 2)
    assert [sampler.state_dict(batches)["rows"] for batches in range(6)] == [0, 0, 4, 4, 8, 10]


def test_after_the_resumed_epoch_the_next_one_is_whole():
    sampler = StepSampler([1] * 6, 2, shuffle=False)
    sampler.load_state_dict({"epoch": 3, "rows": 4, "of": 6})
    sampler.set_epoch(3)
    assert list(sampler) == [[4, 5]]
    assert len(sampler) == 3
    assert sampler.state_dict(0)["rows"] == 4
    sampler.set_epoch(4)
    assert list(sampler) == [[0, 1], [2, 3], [4, 5]]


def test_other_rows_are_refused_in_the_middle_of_an_epoch_only():
    state = {"epoch": 2, "rows": 4, "of": 7}
    with pytest.raises(UserError, match="stands in the middle of 7 training rows, and here are 6"):
        StepSampler([1] * 6, 2).load_state_dict(state)
    StepSampler([1] * 6, 2).load_state_dict({**state, "rows": 0})


# ---- a number of tokens per batch

LENGTHS = st.lists(st.integers(1, 12), max_size=40)


def by_tokens(lengths, budget, division=(1, 1), state=None, **options):
    """Each process's batches of one epoch."""
    world_size, accumulate = division
    ranks = []
    for rank in range(world_size):
        sampler = BudgetSampler(lengths, lengths, budget, rank=rank, world_size=world_size, accumulate=accumulate)
        sampler.seed = options.get("seed", 3)
        if state:
            sampler.load_state_dict(state)
        ranks.append(list(sampler))
        assert state or len(ranks[-1]) == len(sampler)
    return ranks


@PROPERTY
@given(lengths=LENGTHS, budget=st.integers(12, 60), division=st.tuples(SIZES, SIZES))
def test_batches_of_a_number_of_tokens_have_every_row_once_and_no_more_padding_than_they_must(
    lengths, budget, division
):
    batches = [batch for batches in by_tokens(lengths, budget, division) for batch in batches if not batch.empty]
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[row] for row in batch) <= budget for batch in batches)
    # No other row lies between the shortest and the longest of a batch, and each is as full as the next row allows.
    batches.sort(key=lambda batch: [-lengths[row] for row in batch])
    for batch, following in pairwise(batches):
        assert lengths[batch[-1]] >= lengths[following[0]]
        assert (len(batch) + 1) * lengths[batch[0]] > budget


@PROPERTY
@given(lengths=LENGTHS, one=st.tuples(SIZES, SIZES), seeds=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_a_step_has_the_same_batches_however_it_is_divided(lengths, one, seeds):
    world_size, accumulate = one
    divided = steps(by_tokens(lengths, 30, one, seed=seeds[0]), accumulate)
    alone = steps(by_tokens(lengths, 30, (1, world_size * accumulate), seed=seeds[0]), world_size * accumulate)
    assert len(divided) == len(alone)
    for here, there in zip(divided, alone, strict=True):
        assert sorted(rows_that_count(here)) == sorted(rows_that_count(there))
        labelled = max(1, sum(lengths[row] for row in rows_that_count(here)))
        assert {batch.loss_tokens for batch in (*here, *there)} == {labelled}
        assert all(len(batch) == 1 for batch in here if batch.empty)


def test_the_batches_of_an_epoch_come_in_an_order_of_its_own():
    sampler = BudgetSampler([1] * 30, [1 + row % 7 for row in range(30)], 8, seed=3)
    first = [list(batch) for batch in sampler]
    sampler.set_epoch(1)
    second = [list(batch) for batch in sampler]
    assert first != second
    assert sorted(first) == sorted(second)


@PROPERTY
@given(lengths=LENGTHS, before=st.tuples(SIZES, SIZES), after=st.tuples(SIZES, SIZES), data=st.data())
def test_batches_of_a_number_of_tokens_go_on_where_training_stopped(lengths, before, after, data):
    first = by_tokens(lengths, 20, before)
    done = data.draw(st.integers(0, len(steps(first, before[1])))) * before[1]
    seen = [row for batches in first for row in rows_that_count(batches[:done])]
    state = BudgetSampler(lengths, lengths, 20, world_size=before[0], accumulate=before[1]).state_dict(done)
    left = [row for batches in by_tokens(lengths, 20, after, state) for row in rows_that_count(batches)]
    assert sorted([*seen, *left]) == list(range(len(lengths)))


def test_a_row_longer_than_a_batch_may_be_is_refused():
    with pytest.raises(UserError, match="max_tokens_per_batch is 8, and the longest training row has 9 tokens: allow"):
        BudgetSampler([1, 1], [3, 9], 8)


# ---- loading


class Noise(Dataset):
    """Rows of which each draws from every global generator."""

    def __getitems__(self, indices):
        return [(row, random.random(), np.random.rand(), float(torch.rand(()))) for row in indices]

    def __len__(self):
        return 8


def loader(epoch=0, workers=0):
    sampler = StepSampler([1] * 8, 2, seed=1)
    sampler.set_epoch(epoch)
    options = {"collate_fn": list, "num_workers": workers, "generator": torch.Generator()}
    return StepLoader(SeededRows(Noise()), batch_sampler=sampler, **options)


def test_lightning_tells_the_sampler_which_epoch_begins():
    batches = loader()
    before = list(batches)
    _set_sampler_epoch(batches, 2)
    assert batches.batch_sampler.epoch == 2
    assert list(batches) != before


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterator_that_was_made_too_early_has_the_epoch_that_begins(workers):
    batches = loader(workers=workers)
    early = iter(batches)
    batches.batch_sampler.set_epoch(2)
    assert list(early) == list(loader(2))


def test_each_batch_draws_numbers_of_its_own_and_leaves_the_others_alone():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = (random.random(), np.random.rand(), float(torch.rand(())))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    drawn = [row[1:] for batch in (*loader(0), *loader(1)) for row in batch]
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    assert len(set(drawn)) == 16
    going_on = loader(1)
    going_on.load_state_dict({"epoch": 1, "rows": 4, "of": 8})
    assert list(going_on) == list(loader(1))[2:]


# ---- rows to generate for


@PROPERTY
@given(lengths=st.lists(st.integers(1, 99), max_size=40), batch_size=SIZES, world_size=SIZES)
def test_sorted_rows_come_exactly_once_over_all_processes(lengths, batch_size, world_size):
    assume(len(lengths) >= world_size)
    samplers = [LengthSortedSampler(lengths, batch_size, rank, world_size) for rank in range(world_size)]
    assert sorted(row for sampler in samplers for batch in sampler for row in batch) == list(range(len(lengths)))
    assert all(len(list(sampler)) == len(sampler) for sampler in samplers)
    assert all(len(sampler) for sampler in samplers)


@PROPERTY
@given(count=st.integers(1, 40), batch_size=SIZES, world_size=SIZES)
def test_every_process_has_as_many_batches_and_no_more_than_it_takes(count, batch_size, world_size):
    """What processes do together they do batch by batch, and each has to be there."""
    assume(count >= world_size)
    samplers = [LengthSortedSampler([1] * count, batch_size, rank, world_size) for rank in range(world_size)]
    (batches,) = {len(sampler) for sampler in samplers}
    sizes = [len(batch) for sampler in samplers for batch in sampler]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= 1
    needed = -(-count // (batch_size * world_size))
    if needed * world_size <= count:
        assert max(sizes) <= batch_size
        assert batches == needed
    else:  # a batch more in every process would leave one of them empty
        assert max(sizes) == batch_size + 1
        assert batches == needed - 1


@PROPERTY
@given(lengths=st.lists(st.integers(1, 99), max_size=40), batch_size=SIZES, world_size=SIZES)
def test_each_process_meets_its_longest_rows_first(lengths, batch_size, world_size):
    assume(len(lengths) >= world_size)
    for rank in range(world_size):
        met = [lengths[row] for batch in LengthSortedSampler(lengths, batch_size, rank, world_size) for row in batch]
        assert met == sorted(met, reverse=True)


def test_sorted_batches_go_round_the_processes_and_ties_keep_the_files_order():
    lengths = [3, 9, 5, 9, 1]
    assert list(LengthSortedSampler(lengths, 2, 0, 2)) == [[1], [2]]
    assert list(LengthSortedSampler(lengths, 2, 1, 2)) == [[3], [0, 4]]
    assert list(LengthSortedSampler(lengths, 2)) == [[1], [3, 2], [0, 4]]
    assert list(LengthSortedSampler(lengths, 1, 1, 2)) == [[3], [0, 4]]


def test_fewer_rows_than_processes_are_refused():
    assert list(LengthSortedSampler([], 2)) == []
    with pytest.raises(UserError, match="2 rows to answer cannot be divided among 3 processes"):
        LengthSortedSampler([4, 5], 8, 0, 3)
