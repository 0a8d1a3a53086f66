"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's CLI with adapters, recipes and runs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from adapters_pl.adapters.base import refuse_same_names
from adapters_pl.answers import SPECS, published_name
from adapters_pl.cli.command_line import TRUST, CommandLine
from adapters_pl.cli.configuration import (
    adapter_config,
    find_checkpoint,
    find_own_modules,
    inherited_config,
    recipe_name,
    refuse_empty,
    with_files,
)
from adapters_pl.cli.main import DONE, INTERRUPTED, PROGRAM_ERROR
from adapters_pl.cli.parser import ConfiguredCLI, explained, say
from adapters_pl.cli.received import CODE
from adapters_pl.compat.lightning_messages import quiet, while_restoring
from adapters_pl.compat.torch import lost_process
from adapters_pl.data.general_text import PYTHON
from adapters_pl.inputs.errors import UserError, first_line, out_of_memory
from adapters_pl.inputs.masking import masked, masked_values
from adapters_pl.inputs.names import with_public_names
from adapters_pl.inputs.untrusted import reason_of
from adapters_pl.models.base import grow_embeddings
from adapters_pl.models.named import is_name
from adapters_pl.runs.run import DEFAULT_ROOT, Run
from adapters_pl.training.adapter_files import SavedAdapters
from adapters_pl.training.callbacks import Progress, RunRecorder, checkpoint_callbacks
from adapters_pl.training.hardware import refuse_missing
from adapters_pl.training.metrics_file import MetricsFile
from adapters_pl.training.planning.memory import MemoryModel, Setup
from adapters_pl.training.planning.memory_advice import Forecast
from adapters_pl.training.strategies import strategy_named

#: The least values of the Trainer's numbers, which it does not look at itself.
_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "limit_predict_batches": 0,
    "limit_test_batches": 0,
    "limit_train_batches": 0,
    "limit_val_batches": 0,
    "log_every_n_steps": 0,
    "max_epochs": -1,
    "max_steps": -1,
    "min_epochs": 0,
    "min_steps": 0,
    "num_nodes": 1,
    "num_sanity_val_steps": -1,
    "overfit_batches": 0,
    "reload_dataloaders_every_n_epochs": 0,
    "val_check_interval": 0,
}

#: The keys that name files and folders, and which of their values are names of ours instead.
_PATHS: dict[str, dict[str, Callable[[str], bool]]] = {
    "model": {"base": is_name},
    "data": {
        "root": lambda value: False,
        "path": lambda value: published_name(value) in SPECS,
        "test_path": lambda value: False,
        "general_text": lambda value: value == PYTHON,
    },
}


class TrainingCLI(ConfiguredCLI):
    """A command that runs: its model, its data, its Trainer and its run directory.

    Args:
        line: the command.
        checkpoint: the checkpoint a later command starts from, if any.
        below: as in :class:`ConfiguredCLI`.
    """

    run: Run

    def __init__(self, line: CommandLine, checkpoint: Path | None = None, below: Sequence[Path] = ()) -> None:
        self.checkpoint = checkpoint
        #: What training needs, once it is known.
        self.forecast: Forecast | None = None
        super().__init__(line, below)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with the adapters, the run's records and checkpoints."""
        adapters = self.adapters
        self._refuse_nothing()
        root = Path(self.config.trainer.default_root_dir or DEFAULT_ROOT)
        existing = Run.of_checkpoint(self.checkpoint) if self.checkpoint else None
        strategy = strategy_named(self.config_init.trainer.strategy or "auto")
        named = self.config.get("run_dir")
        if existing and named:
            raise UserError("--run_dir names a new run, and --ckpt_path one to go on in: give one of them.")
        self.run = existing or (Run.named(Path(named)) if named else Run.joined(root, recipe_name(self.line)))
        config = self._run_config()
        self.model.recorded_config = config
        labels = [f"{type(adapter).__name__} '{adapter.name}'" for adapter in adapters]
        overwrite = self.config.get("overwrite", False)
        extra: list[Any] = [*adapters, RunRecorder(self.run, _yaml(config), ", ".join(labels) or None, overwrite)]
        if self.line.command == "fit":
            extra += checkpoint_callbacks(self.run, self.model.monitor, self.datamodule.val_size > 0)
        trainer_config = {**self.config_init.trainer, **kwargs}
        trainer_config["strategy"] = strategy
        if trainer_config.get("enable_progress_bar") is not False:
            extra.append(Progress())
        if trainer_config.get("logger") in (None, True):
            if self.line.command == "fit":
                trainer_config["logger"] = MetricsFile(self.run.path)
            else:
                trainer_config["logger"] = False
        if self.line.command != "fit":
            trainer_config["enable_checkpointing"] = False
        try:
            return self._instantiate_trainer(trainer_config, extra)
        except BaseException:
            self.discard_unused_run()
            raise

    def _refuse_nothing(self) -> None:
        """Refuse settings by which nothing would be done, or that mean nothing.

        Raises:
            UserError: with the name of the setting.
        """
        trainer, command = self.config.trainer, self.line.command
        stage = {"fit": "train", "validate": "val"}.get(command, command)
        done = {f"limit_{stage}_batches": f"{command} would do nothing"}
        if self.line.command == "fit":
            done |= dict.fromkeys(("max_steps", "max_epochs"), "nothing would be trained")
        for key, what in done.items():
            if (value := trainer.get(key)) is not None and value == 0:
                raise UserError(f"trainer.{key} is {value}: {what}; leave it out, or set it above 0.")
        for key, least in _LEAST.items():
            value = trainer.get(key)
            if isinstance(value, int | float) and not value >= least:
                raise UserError(f"trainer.{key} is {value:g}; it must be at least {least}.")
        if (interval := trainer.get("val_check_interval")) is not None and interval == 0:
            raise UserError("trainer.val_check_interval is 0; give a share of an epoch, or a number of batches.")
        refuse_same_names(self.adapters)

    def _run_config(self) -> dict[str, Any]:
        """The configuration of this command as plain data, with the paths it names made absolute."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_validation=True, format="yaml"))
        for key in self.unrecorded:
            config.pop(key, None)
        # What lets a base's own code run is typed for every command, and travels in no file.
        ((config.get("model") or {}).get("init_args") or {}).pop(CODE, None)
        for section, keys in _PATHS.items():
            arguments = (config.get(section) or {}).get("init_args") or {}
            for key, is_ours in keys.items():
                value = arguments.get(key)
                if isinstance(value, list):
                    arguments[key] = [_absolute(part, is_ours) for part in value]
                elif value is not None:
                    arguments[key] = _absolute(value, is_ours)
        return masked_values(with_public_names(config))

    def before_fit(self) -> None:
        """Find what is wrong with base and adapters while nothing heavy is loaded; the data comes next."""
        if not self.adapters:
            raise UserError("Nothing to train: the base is frozen and there is no adapter. Pass --adapter LoRA.")
        self._check_hardware()
        skeleton = self._check_structure()
        setup = Setup.of(self.model, self.config.trainer, self.config.data.get("init_args") or {})
        self.forecast = Forecast(MemoryModel(self.model, skeleton, self.adapters), setup)
        _foretell(self.forecast)

    def before_test(self) -> None:
        """As before training, where a saved adapter is given: it may be another base's."""
        self._check_hardware()
        if self.model.initial is not None:
            self._check_structure()

    before_validate = before_predict = before_test

    def _check_hardware(self) -> None:
        refuse_missing(self.trainer, self.config.trainer.precision, self.model.source.attn_implementation)

    def _check_structure(self) -> PreTrainedModel:
        """The base on the meta device with the adapters in it, which shows whether they fit each other."""
        skeleton = self.model.source.skeleton()
        if self.model.source.add_tokens:
            grow_embeddings(skeleton, len(self.model.tokenizer))
        if self.model.initial is not None:
            self.model.initial.check(skeleton)
            self.model.initial.make_room(skeleton)
        try:
            for adapter in self.adapters:
                adapter.attach_to(skeleton, seed=None)
        except UserError as error:
            if self.model.initial is None:
                raise
            raise UserError(f"{self.model.initial.where}: does not fit '{self.model.base}': {error}") from error
        if self.model.initial is not None:
            self.model.initial.fill(skeleton)
        return skeleton

    def execute(self) -> None:
        """Run the command."""
        # Checkpoints hold plain data and tensors; nothing in one is ever unpickled.
        more: dict[str, Any] = {"weights_only": True}
        if self.line.command == "test":
            more["verbose"] = False
        elif self.line.command == "validate":
            more["verbose"] = self.config.verbose
        elif self.line.command == "predict":
            more["return_predictions"] = False
        getattr(self, f"before_{self.line.command}")()
        run = getattr(self.trainer, self.line.command)
        run(self.model, datamodule=self.datamodule, ckpt_path=self.checkpoint and str(self.checkpoint), **more)

    def ran_out(self, error: BaseException) -> str:
        """What to do about an ``error`` that says there was too little memory."""
        if self.forecast is not None:
            advice = self.forecast.relief()
        else:
            rows = self.datamodule.eval_batch_size
            less = "--model.dtype bfloat16" if self.model.source.stored_as else "--model.quantization 4bit"
            advice = f"Lower --data.eval_batch_size (now {rows}), or hold the base in less: {less}."
        last = self.run.checkpoints / "last.ckpt"
        kept = f" Go on from {last} with --ckpt_path {self.run.ckpt_path}." if self.forecast and last.exists() else ""
        return f"out of memory: {first_line(error)}\n{advice}{kept}"

    def discard_unused_run(self) -> None:
        """Remove the run's directory if this command made it and nothing worth keeping is in it."""
        kept = ("checkpoints/*", "predictions/*", "predicted/*", "results.json", "crash.log")
        if self.run.made_here and not any(True for pattern in kept for _ in self.run.path.glob(pattern)):
            shutil.rmtree(self.run.path, ignore_errors=True)


def _absolute(value: Any, is_ours: Callable[[str], bool]) -> Any:
    """An existing path made absolute; a name of ours is none, even where a folder of that name lies."""
    if isinstance(value, str) and not is_ours(value) and Path(os.path.expanduser(value)).exists():
        return str(Path(os.path.expanduser(value)).resolve())
    return value


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False)


# ---- running a command


def main(line: CommandLine, debug: bool = False) -> int:
    """Run a command and return its exit code; what the user has to mend is raised as ``UserError``."""
    transformers_logging.disable_progress_bar()
    quiet()
    trusted, command = line.has(TRUST), line.command
    find_own_modules(line, trusted)
    for key in ("adapter_path", "ckpt_path"):
        refuse_empty(key, line.typed(key) or "" if line.has(key) else line.get(key))
    adapter_path = line.get("adapter_path")
    checkpoint = None if line.only_prints else find_checkpoint(line)
    saved: SavedAdapters | None = None
    try:
        with tempfile.TemporaryDirectory() as folder:
            config: dict[str, Any] | None = None
            if checkpoint is not None:
                config, left_out = inherited_config(checkpoint, line, trusted)
                if command in ("test", "predict"):
                    config = with_files(config, line)
                say(f"{'resuming from' if command == 'fit' else f'{command}:'} {checkpoint}")
                if left_out:
                    say(left_out)
            elif adapter_path is not None:
                config, saved = adapter_config(str(adapter_path), line, trusted)
                say(f"{'starting from' if command == 'fit' else f'{command}:'} {saved.where}")
            below = []
            if config is not None:
                below.append(Path(folder, "inherited.yaml"))
                below[0].write_text(_yaml(config), encoding="utf-8")
            cli = TrainingCLI(line, checkpoint, below)
            cli.model.initial = saved
    except UserError:
        raise
    except Exception as error:
        if known := explained(error, command):
            raise known from error
        if isinstance(error, RecursionError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        return _crashed(error, Run(Path(line.get("trainer.default_root_dir") or DEFAULT_ROOT)), debug)
    except SystemExit as done:  # --help and --print_config end here
        return int(done.code or 0)
    return _execute(cli, debug)


@rank_zero_only
def _foretell(forecast: Forecast) -> None:
    print(forecast.line())
    forecast.refuse()


def _execute(cli: TrainingCLI, debug: bool) -> int:
    """Run what ``cli`` has set up, and leave nothing behind of a run that never began."""
    try:
        cli.execute()
    except (UserError, MisconfigurationException) as error:
        cli.discard_unused_run()
        raise error if isinstance(error, UserError) else UserError(first_line(error)) from error
    except (KeyboardInterrupt, SystemExit):
        # Lightning turns an interrupt into an exit of its own.
        last = cli.run.checkpoints / "last.ckpt"
        kept = f"last checkpoint: {last}" if last.is_file() else "no checkpoint had been written yet"
        cli.discard_unused_run()
        print(f"interrupted; {kept}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if lost_process(error):
            raise UserError(
                f"another process of this job has ended or no longer answers ({first_line(error)}). "
                f"Look at what it wrote; then go on with: adapters-pl fit --ckpt_path {cli.run.ckpt_path}"
            ) from error
        if out_of_memory(error):
            cli.discard_unused_run()
            raise UserError(cli.ran_out(error)) from error
        if known := _of_restoring(error, cli.checkpoint) or _of_optimizer(error):
            cli.discard_unused_run()
            raise known from error
        if isinstance(error, OSError) and error.errno is not None and not debug:
            cli.discard_unused_run()
            raise  # the system refused; there is nothing of ours to look for
        return _crashed(error, cli.run, debug)
    return DONE


def _crashed(error: Exception, run: Run, debug: bool) -> int:
    """Keep the traceback of a fault of the program in ``crash.log``, and say where."""
    text = masked(traceback.format_exc())
    if debug:
        raise error
    print(f"internal error: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
    try:
        print(f"The traceback is in {run.write('crash.log', text)} (--debug prints it).", file=sys.stderr)
    except UserError:
        print(text, file=sys.stderr)
    return PROGRAM_ERROR


def _of_restoring(error: Exception, checkpoint: Path | None) -> UserError | None:
    """That a checkpoint is not as this version writes it, if ``error`` came while Lightning took it over."""
    frames = [(Path(frame.filename).name, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    ours = any(file == "resume.py" and function in _RESTORING for file, function in frames)
    if checkpoint is None or not (ours or while_restoring(error)):
        return None
    return UserError(
        f"{checkpoint}: what it says of its training is not as adapters-pl writes it ({reason_of(error)}); take "
        f"another checkpoint, or begin a new training with its adapter: --adapter_path {checkpoint}"
    )


#: What of ``resume.py`` reads a checkpoint; the rest of it writes one.
_RESTORING = ("on_load_checkpoint", "on_train_start", "_have_gone_on")


def _of_optimizer(error: Exception) -> UserError | None:
    """What is wrong with ``--optimizer.*`` or ``--lr_scheduler.*``, or with the state that a checkpoint has of them."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    files = [file for file in files[-3:] if {"optim", "torch"} <= set(file.parts)]
    if not files:
        return None
    section = "lr_scheduler" if files[-1].name == "lr_scheduler.py" else "optimizer"
    return UserError(
        f"{section}: torch refuses its settings ({reason_of(error)}); see to --{section}.*, or to the checkpoint that "
        "they come from."
    )
