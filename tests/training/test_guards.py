"""Training ends before anything broken is saved, and says where it came from."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins import MixedPrecision

from adapters_pl.inputs.errors import UserError
from adapters_pl.training.guards import Guards
from tests.helpers.kill_resume import load, prepare, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guards")
    prepare(folder)
    return folder


class Rows(Callback):
    """Keeps each batch's rows, and does something to the losses of one of them."""

    def __init__(self, batch, spoil=lambda loss: loss):
        self.rows = []
        self.batch = batch
        self.spoil = spoil

    def setup(self, trainer, pl_module, stage):
        own = pl_module.loss

        def loss(hidden, batch):
            value = own(hidden, batch)
            return self.spoil(value) if len(self.rows) == self.batch else value

        pl_module.loss = loss

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append(batch["row_ids"].tolist())


class SpoilGradient(Rows):
    """Makes one element of the gradient infinite in the backward pass of a batch."""

    def on_train_start(self, trainer, pl_module):
        parameter = next(iter(pl_module.adapter_parameters().values()))
        parameter.register_hook(self.spoiled)

    def spoiled(self, gradient):
        if len(self.rows) == self.batch:
            gradient = gradient.clone()
            gradient.view(-1)[0] = math.inf
        return gradient


def named(rows):
    return ", ".join(map(str, sorted(rows)))


@pytest.mark.parametrize("spoil", [lambda loss: loss * math.nan, lambda loss: loss + math.inf], ids=["nan", "inf"])
def test_a_loss_that_is_not_finite_names_its_batch_and_the_last_checkpoint(folder, tmp_path, spoil):
    """An infinite loss may have finite gradients, as here. The ninth batch is the first of the fifth step."""
    spy = Rows(9, spoil)
    with pytest.raises(UserError) as error:
        train(folder, tmp_path, spy)
    last = tmp_path / "checkpoints/last.ckpt"
    first, second = str(error.value).splitlines()
    assert first == (
        f"Step 5: the loss is not finite; it comes of the training rows {named(spy.rows[8])} (counted from 0). "
        f"The last good checkpoint is {last}."
    )
    assert f"adapters-pl fit --ckpt_path {tmp_path} --model.lr" in second
    assert len(spy.rows) == 10
    assert load(last)["global_step"] == 3


def test_a_gradient_that_is_not_finite_names_the_rows_of_all_accumulated_batches(folder, tmp_path):
    spy = SpoilGradient(9)
    with pytest.raises(UserError, match="No checkpoint had been written yet") as error:
        train(folder, tmp_path, spy, every=100)
    rows = named(spy.rows[8] + spy.rows[9])
    assert str(error.value).startswith(f"Step 5: the gradient is not finite; it comes of the training rows {rows} ")
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


def test_the_steps_that_a_gradient_scaler_skips_are_no_reason_to_stop(folder, tmp_path):
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    trainer = train(folder, tmp_path, SpoilGradient(9), trainer={"max_epochs": 1, "plugins": [precision]})
    assert trainer.global_step == 8
    assert precision.scaler.get_scale() == 4.0  # it did skip one
    with pytest.raises(UserError, match=r"Step 5: the loss is not finite"):
        train(folder, tmp_path / "loss", Rows(9, lambda loss: loss * math.nan), trainer={"plugins": [precision]})


def test_parameters_that_finite_gradients_broke_are_not_saved(folder, tmp_path):
    class Break(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 3:
                with torch.no_grad():
                    next(iter(pl_module.adapter_parameters().values())).view(-1)[0] = math.nan

    with pytest.raises(UserError, match=r"Step 3: the adapters' parameters are no longer finite.*last\.ckpt"):
        train(folder, tmp_path, Break(), every=1)
    stored = load(tmp_path / "checkpoints/last.ckpt")
    assert stored["global_step"] == 2
    assert all(value.isfinite().all() for value in stored["state_dict"].values())


def test_many_rows_are_counted_and_not_all_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"rows [\d, ]+ and 98 more \(counted"):
        train(
            folder,
            tmp_path,
            SpoilGradient(13),
            data={"batch_size": 10, "path": str(long_file(folder))},
            trainer={"accumulate_grad_batches": 13, "val_check_interval": 1.0},
        )


def long_file(folder):
    """A hundred and sixty rows."""
    path = folder / "long.json"
    path.write_text(str([{"instruction": f"{n}", "output": "yes"} for n in range(160)]).replace("'", '"'))
    return path


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_nothing_waits_and_a_broken_step_is_found_after_the_next(folder, tmp_path, monkeypatch):
    for hook in ("on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_train_batch_end"):
        monkeypatch.setattr(Guards, hook, without_waiting(getattr(Guards, hook)))
    spy = Rows(9, lambda loss: loss * math.nan)
    with pytest.raises(UserError) as error:
        train(folder, tmp_path, spy, trainer={"accelerator": "gpu", "devices": 1})
    assert str(error.value).startswith(
        f"Step 5: the loss is not finite; it comes of the training rows {named(spy.rows[8])}"
    )
    assert len(spy.rows) == 12
    assert load(tmp_path / "checkpoints/last.ckpt")["global_step"] == 3


def without_waiting(hook):
    """``hook``, in which whatever waits for the GPU is an error."""

    def strict(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return hook(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return strict
