"""What is used of Lightning is as it was when it was written for; a new version that changes it shows here."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from adapters_pl.compat import lightning as compat


class Line(LightningModule):
    """Fits a line, and logs what it does."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        loss = (self.weight - batch).pow(2).mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self.weight - batch).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


ROWS = 6


def loader():
    return DataLoader(torch.arange(float(ROWS)).unsqueeze(1))


class Seen(Callback):
    """What is seen at every batch: the epoch, the batch, and how many batches were done before it."""

    def __init__(self):
        self.batches = []
        self.validations = []
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append(compat.batches_done(trainer))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, *compat.batches_done(trainer)))

    def on_validation_start(self, trainer, pl_module):
        self.validations.append(trainer.global_step)


def trained(folder, **settings):
    seen = Seen()
    best = ModelCheckpoint(folder, "best", monitor="val_loss", enable_version_counter=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    trainer = Trainer(accelerator="cpu", callbacks=[seen, best], default_root_dir=folder, **quiet, **settings)
    return trainer, seen


def test_a_module_knows_its_trainer_or_none(tmp_path):
    module = Line()
    assert compat.trainer_of(module) is None
    trainer, _ = trained(tmp_path, max_steps=1)
    trainer.fit(module, loader(), loader())
    assert compat.trainer_of(module) is trainer


def test_what_the_accelerator_connector_says(tmp_path):
    trainer, _ = trained(tmp_path, use_distributed_sampler=False)
    assert not compat.replaces_samplers(trainer)
    assert compat.replaces_samplers(trained(tmp_path)[0])
    assert isinstance(compat.cluster_environment(trained(tmp_path, strategy="ddp")[0]), LightningEnvironment)
    assert compat.process_group_backend(trainer) is None
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    for strategy in (DDPStrategy, ModelParallelStrategy):
        chosen = strategy(process_group_backend="gloo")
        assert compat.process_group_backend(trained(tmp_path, strategy=chosen)[0]) == "gloo"


def test_batches_are_counted_in_the_epoch_and_in_all(tmp_path):
    trainer, seen = trained(tmp_path, max_epochs=2)
    trainer.fit(Line(), loader(), loader())
    assert seen.batches == [(n // ROWS, n % ROWS, n % ROWS, n) for n in range(2 * ROWS)]
    assert seen.epochs == [(0, 0), (0, ROWS)]
    assert compat.batches_done(trainer) == (ROWS, 2 * ROWS)


class GoOnAt(Callback):
    """Puts a position into the checkpoint that is read."""

    def __init__(self, position):
        self.position = position

    def setup(self, trainer, pl_module, stage):
        compat.restore_by_epochs(trainer)

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["loops"]["fit_loop"].update(compat.fit_loop_state(**self.position))


BETWEEN = {"epoch": 1, "in_epoch": False, "validating": False, "batches": 0, "batches_of_all": 6, "steps": 6}
WITHIN = {"epoch": 1, "in_epoch": True, "validating": False, "batches": 2, "batches_of_all": 8, "steps": 8}
BEFORE = {"epoch": 1, "in_epoch": True, "validating": True, "batches": 6, "batches_of_all": 12, "steps": 12}


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 18}], ids=["epochs", "steps"])
@pytest.mark.parametrize(
    ("position", "batches", "validations"),
    [
        (BETWEEN, [(1, n) for n in range(ROWS)] + [(2, n) for n in range(ROWS)], [12, 18]),
        (WITHIN, [(1, n) for n in range(2, ROWS)] + [(2, n) for n in range(ROWS)], [12, 18]),
        (BEFORE, [(2, n) for n in range(ROWS)], [12, 18]),
    ],
    ids=["between epochs", "within an epoch", "before a validation"],
)
def test_the_loop_goes_on_where_its_state_says(tmp_path, limit, position, batches, validations):
    first, _ = trained(tmp_path / "first", max_epochs=-1, max_steps=position["steps"])
    first.fit(Line(), loader(), loader())
    first.save_checkpoint(tmp_path / "any.ckpt")
    trainer, seen = trained(tmp_path / "second", **limit)
    trainer.callbacks.append(GoOnAt(position))
    rows = _Later(position["batches"]) if position is WITHIN else loader()
    trainer.fit(Line(), rows, loader(), ckpt_path=tmp_path / "any.ckpt", weights_only=False)
    assert [(epoch, batch) for epoch, batch, *_ in seen.batches] == batches
    assert seen.validations == validations
    assert trainer.global_step == 18


class _Later(DataLoader):
    """Begins its first epoch where it was left, as the loader of the data module does."""

    def __init__(self, done):
        super().__init__(torch.arange(float(ROWS)).unsqueeze(1))
        self.done = done

    def __iter__(self):
        done, self.done = self.done, 0
        return iter([batch for place, batch in enumerate(super().__iter__()) if place >= done])


def test_metrics_come_back(tmp_path):
    trainer, _ = trained(tmp_path, max_epochs=1)
    trainer.fit(Line(), loader(), loader())
    found = compat.metrics_of(trainer)
    assert found["callback"].keys() == {"train_loss", "val_loss"}
    assert found["progress_bar"].keys() == {"train_loss"}
    other, _ = trained(tmp_path, max_epochs=1)
    compat.restore_metrics(other, found)
    assert compat.metrics_of(other) == found
    assert float(other.callback_metrics["val_loss"]) == found["callback"]["val_loss"]


def test_a_validation_at_the_end_is_seen_by_model_checkpoint(tmp_path):
    trainer, seen = trained(tmp_path, max_steps=2, max_epochs=-1)

    class AtTheEnd(Callback):
        def on_train_end(self, trainer, pl_module):
            compat.validate_now(trainer)

    trainer.callbacks.append(AtTheEnd())
    trainer.fit(Line(), loader(), loader())
    assert seen.validations == [2]
    assert (tmp_path / "best.ckpt").is_file()


def test_the_best_checkpoints_move_with_their_folder(tmp_path):
    trainer, _ = trained(tmp_path / "old", max_epochs=2)
    trainer.fit(Line(), loader(), loader())
    state = trainer.checkpoint_callback.state_dict()
    other = ModelCheckpoint(tmp_path / "new", "best", monitor="val_loss")
    assert compat.move_best_checkpoints(other, state)
    moved = str(tmp_path / "new" / "best.ckpt")
    assert (state["dirpath"], state["best_model_path"], list(state["best_k_models"])) == (
        str(tmp_path / "new"),
        moved,
        [moved],
    )
    other.load_state_dict(state)
    assert other.best_model_path == moved
    assert not compat.move_best_checkpoints(other, {**state, "best_k_models": {"/etc/passwd": torch.tensor(1.0)}})
    assert not compat.move_best_checkpoints(other, {**state, "kth_value": "none"})


def test_a_writer_of_metrics_deletes_nothing(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a\n0,1.0\n")
    writer = compat.KeepingWriter(str(tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == "step,a\n0,1.0\n"
    writer.log_metrics({"a": torch.tensor(2.0)}, 1)
    assert (writer.metrics, writer.metrics_keys) == ([{"a": 2.0, "step": 1}], [])
    writer.log_hparams({"lr": 0.1})
    assert "lr: 0.1" in (tmp_path / "hparams.yaml").read_text()
