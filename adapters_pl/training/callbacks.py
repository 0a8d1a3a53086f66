"""The callbacks that the command line adds: checkpoints, the run's records, and the progress bar."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from adapters_pl.data.general_text import GeneralText
from adapters_pl.evaluation import report
from adapters_pl.evaluation.journal import PartialAnswers
from adapters_pl.evaluation.results import keep_test
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.inputs.tables import print_table
from adapters_pl.models.quantisation import short_name
from adapters_pl.runs.at_once import locked, sweep
from adapters_pl.runs.effort import Effort, State
from adapters_pl.runs.run import GO_ON, Run, environment, repeating
from adapters_pl.training.adapter_files import save_adapter
from adapters_pl.training.guards import Guards
from adapters_pl.training.hardware import device_name, peak_memory
from adapters_pl.training.last_checkpoint import LastCheckpoint
from adapters_pl.training.module import CausalLMModule
from adapters_pl.training.resume import Resume
from adapters_pl.training.strategies import as_forward, gathered, gathered_answers

#: Optimizer steps between two writes of ``last.ckpt`` (and one after every epoch).
CHECKPOINT_EVERY = 200


def checkpoint_callbacks(run: Run, monitor: str, validates: bool) -> list[Callback]:
    """What keeps a training run from being lost: resuming, guards, ``last.ckpt``, and ``best.ckpt`` by ``monitor``."""
    guards = Guards(run)
    callbacks: list[Callback] = [Resume(), guards, LastCheckpoint(run, guards, CHECKPOINT_EVERY)]
    if validates:
        mode = "max" if monitor == "val_accuracy" else "min"
        best = {"dirpath": run.checkpoints, "filename": "best", "enable_version_counter": False}
        callbacks.append(ModelCheckpoint(**best, monitor=monitor, mode=mode))  # type: ignore[arg-type]
    return callbacks


class RunRecorder(Callback):
    """Writes what a run leaves behind: configuration, environment, predictions, results, and the table.

    Args:
        run: the run's directory.
        config: the whole configuration as YAML; written when training begins.
        adapter: what the tables call the trained adapter; ``None`` for the base alone.
        overwrite: put a test in the place of an earlier one of the same set, whatever that was.
    """

    def __init__(self, run: Run, config: str, adapter: str | None, overwrite: bool = False) -> None:
        self.run, self.config, self.adapter, self.overwrite = run, config, adapter, overwrite
        self._partial: dict[str, PartialAnswers] = {}
        self._taken: dict[str, int] = {}
        self._recorded = False
        #: Whether the run's configuration stands in it.
        self._begun = False
        #: What tells the tested model from another.
        self._identity: dict[str, Any] = {}
        #: Keeps other processes out of the run until it is closed.
        self._lock = ExitStack()
        #: What training has taken so far, for ``fit.json``.
        self._effort = Effort(run)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All processes write into rank 0's run."""
        self.run.agree(trainer.strategy.broadcast)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let no other process train this run."""
        self._begun = False
        self._keep_others_out(trainer, "fit")
        assert isinstance(pl_module, CausalLMModule)
        trained = {name: adapter.adapter_parameters(pl_module.model) for name, adapter in pl_module.adapters.items()}
        peak_memory()
        self._effort.begin({name: sum(p.numel() for p in own.values()) for name, own in trained.items()})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Once a batch has worked, this is the run that ``test`` takes; what it replaces stays until then."""
        self._say_what_runs(trainer)

    def _say_what_runs(self, trainer: Trainer) -> None:
        if self._begun or not trainer.is_global_zero:
            return
        self._begun = True
        self.run.write("config.yaml", self.config)
        self.run.write("environment.json", environment())
        self._record_effort(trainer, "running")
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.run.mark_latest()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record which training rows were test rows, as soon as there is something that was trained on them."""
        self._say_what_runs(trainer)
        with self.run.writing("checkpoints", GO_ON):
            self.run.path.stat()  # a run that was removed is not made again
        self._record_effort(trainer, "running")
        found = getattr(trainer.datamodule, "contamination_report", None)  # type: ignore[attr-defined]
        if found is not None and not self._recorded and trainer.is_global_zero:
            self.run.merge_results({}, contamination=found)
            self._recorded = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the adapters as directories that other tools read, with the same weights as ``last.ckpt``."""
        assert isinstance(pl_module, CausalLMModule)
        self._say_what_runs(trainer)
        portable = [adapter for adapter in pl_module.adapters.values() if adapter.peft_type]
        with gathered(pl_module, pl_module.adapter_parameters()):
            for adapter in portable if trainer.is_global_zero else []:
                folder = self.run.path / "adapter" / (adapter.name if len(portable) > 1 else "")
                tokens = pl_module.source.add_tokens
                with self.run.writing("adapter", GO_ON):
                    save_adapter(pl_module.model, adapter, folder, pl_module.base, tokens)
                    if tokens:
                        pl_module.tokenizer.save_pretrained(folder)
                print(f"adapter: {folder}")
        if trainer.is_global_zero:
            named = "" if self.run.ckpt_path == "last" else f" --ckpt_path {self.run.ckpt_path}"
            print(f"run: {self.run.path}  (test it with: adapters-pl test{named})")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what ``validate`` found."""
        if trainer.state.fn == "validate" and trainer.is_global_zero:
            found = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.run.merge_results({}, validation=found)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over what an interrupted test by the same model and settings has answered."""
        assert isinstance(pl_module, CausalLMModule)
        self._keep_others_out(trainer, "test")
        if trainer.is_global_zero:
            with self.run.writing("predictions"):
                for folder in ("predictions", "predictions/others"):
                    sweep(self.run.path / folder)
        data, model = trainer.datamodule, pl_module.identity()  # type: ignore[attr-defined]
        self._identity, self._partial = model, {}
        for name in data.eval_sets:
            file = f"predictions/{name}.partial.jsonl"
            questions = data.questions(name)
            partial = PartialAnswers(self.run.path / file, {**data.asking.settings(questions), **model})
            self._partial[name] = partial
            if trainer.is_global_zero:
                # A test without a checkpoint has a directory of its own each time.
                recipe = self.run.path.name.rpartition("-")[0]
                others = sorted(self.run.path.parent.glob(f"{recipe}-*/{file}"), key=lambda p: p.stat().st_mtime)
                with self.run.writing(file):
                    partial.begin(others)
        trainer.strategy.barrier()
        taken = 0
        for name, partial in self._partial.items():
            pl_module.known_answers[name] = partial.read(data.questions(name).hashes)
            taken += len(pl_module.known_answers[name])
        self._taken = {name: len(rows) for name, rows in pl_module.known_answers.items()}
        if taken:
            rank_zero_info(f"resuming: {taken} rows were answered before this test was interrupted")
        trainer.strategy.barrier()  # nobody adds to a file that another still reads

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the batch's answers."""
        assert isinstance(pl_module, CausalLMModule)
        name = trainer.datamodule.eval_sets[dataloader_idx]  # type: ignore[attr-defined]
        with self.run.writing(f"predictions/{name}.partial.jsonl"):
            assert pl_module.answers is not None
            self._partial[name].append(pl_module.answers.newest)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions and results, and end with the tables."""
        assert isinstance(pl_module, CausalLMModule)
        assert pl_module.answers is not None
        data, efforts = trainer.datamodule, gathered_answers(trainer.strategy, pl_module.answers.effort)  # type: ignore[attr-defined]
        command = repeating(str(trainer.ckpt_path) if trainer.ckpt_path else None)
        model = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        results, predictions = {}, self._gathered(trainer, pl_module)
        for name, records in predictions.items():
            parts = [part[name] for part in efforts if name in part]
            seconds, tokens = max((s for s, _ in parts), default=0.0), sum(t for _, t in parts)
            results[name] = {
                **report.summarize(records, seconds, tokens),
                **({"resumed": self._taken[name]} if self._taken.get(name) else {}),
                "settings": data.asking.settings(data.questions(name)),
                "distribution": data.distribution(name),
                "limit": data.limit_test,
                **_rounding(trainer, pl_module, data.eval_batch_size),
                "model": model,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": command,
            }
        general = self._general_loss(trainer, pl_module)
        if trainer.is_global_zero:
            said = keep_test(
                self.run,
                results,
                predictions,
                self.overwrite,
                protocol=data.asking.protocol.name,
                base={"id": pl_module.base, "stored_as": pl_module.source.stored_as},
                command=command,
                seed=data.seed,
                config=yaml.safe_load(self.config),
                data=data.checksums,
                environment=environment(),
            )
            for partial in self._partial.values():
                partial.remove()
            print_table(report.results_table(results, self.adapter))
            if table := report.published_table(results, yaml.safe_load(self.config), self.run.trained_with()):
                print_table(table)
            if general:
                self.run.merge_results({}, general_text={**general, "model": model, "command": command})
                print(_general_line(general))
            for line in said:
                print(line)
            print(f"results: {self.run.path / 'results.json'}")

    @staticmethod
    def _general_loss(trainer: Trainer, pl_module: CausalLMModule) -> dict[str, Any] | None:
        """The loss a token on general text, with the adapters and without; every process computes all of it."""
        source = trainer.datamodule.general_text  # type: ignore[attr-defined]
        if source is None:
            return None
        text = GeneralText.read(source, pl_module.tokenizer, pl_module.reader.context)

        def losses(batch: dict[str, Any], labels: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return as_forward(
                    pl_module.model, lambda: pl_module.label_losses(pl_module.hidden_states(batch), labels)
                )

        found = text.loss(losses, pl_module.computes_on)
        with pl_module.base_alone():
            base = text.loss(losses, pl_module.computes_on)["loss"]
        return {"text": text.name, "sha256": text.sha256, **found, "base_loss": base}

    def _record_effort(self, trainer: Trainer, state: State, error: BaseException | None = None) -> None:
        """Bring ``fit.json`` up to date. That it cannot be written ends no training."""
        if trainer.is_global_zero and self.run.path.is_dir():
            about = {"steps": trainer.global_step, "epochs": trainer.current_epoch, "processes": trainer.world_size}
            said = None if error is None or state == "interrupted" else first_line(error)
            with suppress(UserError):
                self._effort.write(state, said, peak_memory(again=False), device=device_name(), **about)

    def _keep_others_out(self, trainer: Trainer, command: str) -> None:
        """Be the only ``command`` that writes in this run, until this one has ended, however it does."""
        alone = True
        if trainer.is_global_zero:
            with self.run.writing(f".{command}.lock"):
                alone = self._lock.enter_context(locked(self.run.path / f".{command}.lock"))
        if not trainer.strategy.broadcast(alone):
            raise UserError(
                f"another {command} writes in {self.run.path}. Wait until it has ended, then repeat this one."
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record that training is complete, and let other processes in again."""
        if self._begun:
            self._begun = False
            self._record_effort(trainer, "complete")
        self._lock.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let another process go on where this one stopped, and record how training ended."""
        if self._begun:
            self._begun = False
            stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
            self._record_effort(trainer, "interrupted" if stopped else "crashed", exception)
        self._lock.close()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the predictions, apart from those of a test, to which the results belong."""
        for name, records in self._gathered(trainer, pl_module).items():
            if trainer.is_global_zero:
                print(f"predictions: {self.run.write(f'predicted/{name}.jsonl', records)}")

    @staticmethod
    def _gathered(trainer: Trainer, pl_module: LightningModule) -> dict[str, list[dict[str, Any]]]:
        """The records of all processes by set, each set in its file's order."""
        assert isinstance(pl_module, CausalLMModule)
        parts = gathered_answers(trainer.strategy, pl_module.records)
        names = list(dict.fromkeys(name for part in parts for name in part))
        return {
            name: sorted((r for part in parts for r in part.get(name, [])), key=lambda record: record["row"])
            for name in names
        }


def _general_line(found: dict[str, Any]) -> str:
    return (
        f"general text ({found['text']}, {found['tokens']:,} tokens): loss a token {found['loss']:.3f}, "
        f"of the base alone {found['base_loss']:.3f}"
    )


def _rounding(trainer: Trainer, pl_module: CausalLMModule, batch_size: int) -> dict[str, Any]:
    """Whether the answers depend on the batch size: below float32 a sum is rounded by the shape of its batch."""
    dtype, engine = short_name(pl_module.model.dtype), pl_module.answers_by
    invariant = dtype == "float32" and trainer.precision == "32-true" and engine == "transformers"
    return {"dtype": dtype, "eval_batch_size": batch_size, "batch_invariant": invariant, "engine": engine}


class Progress(RichProgressBar):
    """Lightning's rich progress bar with the training speed in tokens per second."""

    def __init__(self) -> None:
        super().__init__()
        self._tokens = 0
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._tokens, self._since = 0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch's tokens; padding is none."""
        self._tokens += batch["tokens"]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar: losses, and tokens per second of this process so far."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if trainer.training and self._tokens:
            metrics["tokens/s"] = round(self._tokens / max(1e-9, time.monotonic() - self._since))
        return metrics

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Show the share of right answers so far, of this process."""
        super().on_test_batch_end(trainer, pl_module, *args)
        records = [record for answered in getattr(pl_module, "records", {}).values() for record in answered]
        if records and self.progress is not None and self.test_progress_bar_id is not None:
            share = sum(bool(record["correct"]) for record in records) / len(records)
            self.progress.update(self.test_progress_bar_id, description=f"{self.test_description} {share:.1%} right")
