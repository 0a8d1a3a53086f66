"""A run that was stopped goes on bit for bit as if it had not been."""

from __future__ import annotations

import io
import random
import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from adapters_pl.data.sampler import StepIndices
from adapters_pl.data.tokens import TrainingRows
from adapters_pl.inputs.errors import UserError
from adapters_pl.training.resume import all_random_states, random_state, random_state_of, set_random_state
from tests.helpers.kill_resume import differences, load, outcome, prepare, train


class Power(Exception):
    """Is cut."""


class CutAt(Callback):
    """Ends training at a batch as a power cut does: nothing more is saved."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batch -= 1
        if self.batch == 0:
            raise Power


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    prepare(folder)
    return folder


SHORT = {"max_epochs": 1}


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """An uninterrupted run with some settings."""
    known = {}

    def go(**settings):
        key = repr(settings)
        if key not in known:
            known[key] = folder / f"whole-{len(known)}"
            train(folder, known[key], **short(settings))
        return known[key]

    return go


def short(settings):
    return {**settings, "trainer": {**SHORT, **settings.get("trainer", {})}}


@pytest.fixture
def cut(folder, tmp_path):
    """A run that was cut after some of its batches, and resumed each time."""

    def go(*batches, **settings):
        for batch in batches:
            with pytest.raises(Power):
                train(folder, tmp_path / "cut", CutAt(batch), **short(settings))
        train(folder, tmp_path / "cut", **short(settings))
        return tmp_path / "cut"

    return go


def assert_same(one, other, *keys):
    one, other = outcome(one), outcome(other)
    keys = keys or one.keys()
    assert differences({key: one[key] for key in keys}, {key: other[key] for key in keys}) == []


STATE = ("state_dict", "optimizer_states", "lr_schedulers", "resume", "global_step")
STEPS = {"max_epochs": -1, "max_steps": 11}


# Fifteen batches make an epoch of eight steps; every third step is saved, and the end of an epoch.
@pytest.mark.parametrize(
    ("batches", "settings"),
    [
        # From the beginning, the middle of an epoch, its end, and the middle again.
        ((4, 9, 7, 11), {"trainer": {"max_epochs": 2}}),
        ((13,), {"data": {"num_workers": 2}}),
        ((14,), {"trainer": STEPS}),
        ((17,), {"trainer": STEPS, "every": 100}),  # from the end of an epoch
        ((17,), {"trainer": {**STEPS, "limit_val_batches": 0}, "every": 100}),
        ((13,), {"trainer": {"val_check_interval": 6}}),  # from a step after which it had validated
        ((17,), {"trainer": {"max_epochs": 2, "val_check_interval": 1.0}}),
        ((8,), {"trainer": {"accumulate_grad_batches": 1, "limit_train_batches": 13}}),
        ((9,), {"data": {"max_tokens_per_batch": 160}, "every": 1}),
    ],
    ids=["again", "workers", "steps", "steps-end", "unvalidated", "validated", "validated-at-end", "limited", "tokens"],
)
def test_a_run_that_was_cut_goes_on_as_if_it_had_not(uninterrupted, cut, batches, settings):
    assert_same(uninterrupted(**settings), cut(*batches, **settings))


def test_the_best_checkpoint_is_one_to_go_on_from(uninterrupted, folder, tmp_path):
    settings = {"module": unlearning}
    shutil.copytree(uninterrupted(**settings), tmp_path / "run")
    best = load(tmp_path / "run/checkpoints/best.ckpt")
    assert best["global_step"] == 2  # found by a validation within the third step
    train(folder, tmp_path / "run", begin="best", **short(settings))
    assert_same(uninterrupted(**settings), tmp_path / "run")


class Stop(Callback):
    """Asks for an end after a batch, as a time limit does."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = batch_idx + 1 == self.batch


def test_a_step_that_was_left_half_done_is_done_again(uninterrupted, folder, tmp_path):
    train(folder, tmp_path, Stop(9), **short({}))
    stopped = load(tmp_path / "checkpoints/last.ckpt")
    assert (stopped["global_step"], stopped["resume"]["rows"]) == (4, 16)
    train(folder, tmp_path, **short({}))
    assert_same(uninterrupted(), tmp_path, *STATE, "metrics")


def test_more_steps_than_planned_go_on_in_the_middle_of_the_epoch(uninterrupted, folder, tmp_path):
    constant = {"module": constant_rate, "every": 100}
    train(folder, tmp_path, **constant, trainer={"max_epochs": -1, "max_steps": 5})
    train(folder, tmp_path, **constant, trainer=STEPS)
    assert_same(uninterrupted(**constant, trainer=STEPS), tmp_path, "state_dict", "optimizer_states", "global_step")


def unlearning(module):
    module.optimizer_factory = lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, maximize=True)


def constant_rate(module):
    module.optimizer_factory = lambda groups: torch.optim.AdamW(groups, lr=0.01)


def test_a_run_that_is_made_longer_has_a_longer_schedule(folder, tmp_path):
    train(folder, tmp_path, trainer={"max_epochs": 1})
    assert load(tmp_path / "checkpoints/last.ckpt")["lr_schedulers"][0]["_last_lr"] == [0]
    rates = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    train(folder, tmp_path, Rates(), trainer={"max_epochs": 2})
    # Sixteen steps, of which one is warm-up and eight were done.
    assert rates[1] == pytest.approx(0.01 * (16 - 9) / 15)
    assert rates[-1] == 0


@pytest.mark.parametrize("scheduled", [True, False], ids=["schedule", "constant"])
def test_another_learning_rate_holds_from_there_on(folder, tmp_path, scheduled):
    rates = []

    def slower(module, factor=0.1):
        module.lr = 0.01 * factor
        if not scheduled:
            module.optimizer_factory = lambda groups: torch.optim.AdamW(groups, lr=0.01 * factor)

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    train(folder, tmp_path / "whole", Rates(), trainer={"max_epochs": 1}, module=lambda m: slower(m, 1))
    original_rates, rates = rates, []
    with pytest.raises(Power):
        train(folder, tmp_path / "cut", CutAt(9), trainer={"max_epochs": 1}, module=lambda m: slower(m, 1))
    train(folder, tmp_path / "cut", Rates(), trainer={"max_epochs": 1}, module=slower)
    assert rates == pytest.approx([rate / 10 for rate in original_rates[3:]])


def test_a_schedule_that_waits_for_a_metric_finds_it_again(uninterrupted, cut):
    """It is stepped at the end of an epoch, by what was found in its middle, before the cut."""
    settings = {"module": plateau, "trainer": {"max_epochs": 2, "val_check_interval": 10}}
    assert_same(uninterrupted(**settings), cut(30, **settings))
    assert load(uninterrupted(**settings) / "checkpoints/last.ckpt")["lr_schedulers"][0]["_last_lr"] < [0.01]


def plateau(module):
    constant_rate(module)
    module.scheduler_factory = Plateau


class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    monitor = "val_loss"

    def __init__(self, optimizer):
        super().__init__(optimizer, patience=0, threshold=10.0)


def test_what_was_best_stays_so_where_the_folder_was_moved(uninterrupted, folder, tmp_path):
    shutil.copytree(uninterrupted(module=unlearning), tmp_path / "moved")
    before = load(tmp_path / "moved/checkpoints/last.ckpt")["callbacks"]
    train(folder, tmp_path / "moved", module=unlearning, trainer={"max_epochs": 2})
    after = load(tmp_path / "moved/checkpoints/last.ckpt")["callbacks"]
    [key] = [key for key in before if "ModelCheckpoint" in key]
    assert after[key]["best_model_score"] == before[key]["best_model_score"]
    assert after[key]["best_model_path"] == str((tmp_path / "moved/checkpoints/best.ckpt").resolve())
    assert load(tmp_path / "moved/checkpoints/best.ckpt")["global_step"] == 2


# ---- random numbers


@pytest.fixture
def noisy(monkeypatch):
    """Rows of which random labels are left out as they are loaded."""
    load_rows = TrainingRows.__getitems__

    def with_noise(self, indices):
        items = load_rows(self, indices)
        for item in items if isinstance(indices, StepIndices) else []:
            chances = (random.random(), np.random.rand(), float(torch.rand(())))
            item["labels"] = [-100 if hash((label, chances)) % 3 == 0 else label for label in item["labels"]]
        return items

    monkeypatch.setattr(TrainingRows, "__getitems__", with_noise)


def test_what_loading_draws_depends_neither_on_loaders_nor_on_a_cut(folder, tmp_path, noisy):
    plain, cut_at = tmp_path / "plain", tmp_path / "cut"
    train(folder, plain, **short({}))
    for workers, batch in ((1, 9), (2, 8)):
        with pytest.raises(Power):
            train(folder, cut_at, CutAt(batch), data={"num_workers": workers}, **short({}))
    train(folder, cut_at, **short({}))
    assert_same(plain, cut_at)


def test_every_generator_goes_on_where_it_was(uninterrupted, folder, tmp_path):
    class Draw(Callback):
        drawn: list = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            here = (random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal())
            self.drawn.append((trainer.global_step, batch_idx, *here, float(torch.rand(()))))

    train(folder, tmp_path / "whole", Draw(), **short({}))
    drawn_uncut, Draw.drawn = Draw.drawn, []
    with pytest.raises(Power):
        train(folder, tmp_path / "cut", Draw(), CutAt(9), **short({}))
    Draw.drawn = []
    train(folder, tmp_path / "cut", Draw(), **short({}))
    assert Draw.drawn == drawn_uncut[6:]


CPU = torch.device("cpu")


def draw():
    numbers = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal()]
    return [*numbers, *torch.rand(3).tolist(), *torch.randn(1).tolist()]


def seed(number):
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@pytest.fixture
def stored_states(monkeypatch):
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


def test_every_process_goes_on_with_its_own(stored_states):
    state, drawn, _ = stored_states
    assert len(state["lengths"]) == 8
    for rank in (3, 0, 7):
        seed(99)
        set_random_state(random_state_of(state, rank), CPU)
        assert draw() == drawn[rank]


def test_eight_processes_fit_into_what_a_checkpoint_may_have_for_itself(stored_states):
    """Of 64 KiB, half is for what stands beside the tensors anyway."""
    assert stored_states[2] < 34 * 1024


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


# ---- what does not fit


def test_other_data_is_refused_in_the_middle_of_an_epoch(folder, tmp_path):
    with pytest.raises(Power):
        train(folder, tmp_path, CutAt(9), **short({}))
    with pytest.raises(UserError, match="stands in the middle of 30 training rows, and here are 20: go on with the"):
        train(folder, tmp_path, data={"limit_train": 20}, **short({}))


def test_another_division_of_the_rows_sees_those_that_are_left_once(folder, tmp_path):
    class Seen(Callback):
        rows: list = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.rows += batch["row_ids"].tolist()

    first, second = Seen(), Seen()
    with pytest.raises(Power):
        train(folder, tmp_path, first, CutAt(7), trainer={"max_epochs": 1})
    first.rows, Seen.rows = Seen.rows[:12], []  # the checkpoint is from after six batches of two
    train(folder, tmp_path, second, data={"batch_size": 5}, trainer={"max_epochs": 1})
    assert sorted(first.rows + Seen.rows) == sorted({*first.rows, *Seen.rows})
    assert len(first.rows + Seen.rows) == 30


@pytest.mark.parametrize(
    ("optimizer", "key", "value"),
    [
        ("SGD", "momentum_buffer", torch.zeros(3, 3)),
        ("Adadelta", "acc_delta", torch.zeros(())),
        ("AdamW", "exp_avg", torch.zeros(7)),
        ("AdamW", "step", torch.zeros(2)),
        ("AdamW", "exp_avg_sq", None),
    ],
)
def test_a_state_of_an_optimizer_that_has_another_shape_is_refused(folder, tmp_path, optimizer, key, value):
    def own_optimizer(module):
        more = {"momentum": 0.9} if optimizer == "SGD" else {}
        module.optimizer_factory = lambda groups: getattr(torch.optim, optimizer)(groups, lr=0.01, **more)

    settings = {"module": own_optimizer, "every": 100, "trainer": {"max_epochs": -1, "max_steps": 1}}
    train(folder, tmp_path, **settings)
    last = tmp_path / "checkpoints/last.ckpt"
    stored = load(last)
    assert key in stored["optimizer_states"][0]["state"][0]
    stored["optimizer_states"][0]["state"][0][key] = value
    torch.save(stored, last)
    with pytest.raises(UserError, match=rf"last.ckpt: its optimizer's {key} is not of the shape that .*; take another"):
        train(folder, tmp_path, **{**settings, "trainer": {"max_epochs": -1, "max_steps": 2}})


# ---- size


def test_a_checkpoint_is_as_large_as_adapter_and_optimizer(uninterrupted):
    stored = load(uninterrupted() / "checkpoints/last.ckpt")

    def size(tree):
        if isinstance(tree, torch.Tensor):
            return tree.numel() * tree.element_size()
        return sum(size(value) for value in tree.values()) if isinstance(tree, dict) else 0

    payload = size(stored["state_dict"]) + size(stored["optimizer_states"][0]["state"])
    assert payload < (uninterrupted() / "checkpoints/last.ckpt").stat().st_size <= 1.05 * payload + 64 * 1024
