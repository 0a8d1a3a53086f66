"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's CLI with adapters, recipes and runs."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, instantiate_class
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from adapters_pl.adapters import Adapter
from adapters_pl.adapters.base import refuse_same_names
from adapters_pl.cli import errors as cli_errors
from adapters_pl.cli.configuration import (
    CONFIG,
    adapter_config,
    find_checkpoint,
    find_own_modules,
    inherited_config,
    load_config_file,
    peek,
    recipe_name,
    with_files,
    with_full_names,
    without,
)
from adapters_pl.cli.key_help import OWN
from adapters_pl.cli.main import DONE, INTERRUPTED, PROGRAM_ERROR, values_of
from adapters_pl.cli.received import CODE, refuse_code
from adapters_pl.compat.torch import lost_process
from adapters_pl.data import ReasoningDataModule
from adapters_pl.inputs.errors import UserError, first_line, out_of_memory
from adapters_pl.inputs.masking import masked, masked_values
from adapters_pl.inputs.names import with_public_names
from adapters_pl.models.base import EMBEDDED, grow_embeddings, meta_model
from adapters_pl.runs.run import DEFAULT_ROOT, Run
from adapters_pl.training.callbacks import Progress, RunRecorder, checkpoint_callbacks
from adapters_pl.training.metrics_file import MetricsFile
from adapters_pl.training.module import CausalLMModule
from adapters_pl.training.planning.hardware import refuse_missing
from adapters_pl.training.planning.memory import MemoryModel, Setup
from adapters_pl.training.planning.memory_advice import Forecast
from adapters_pl.training.strategies import strategy_named

#: Takes over all that a checkpoint records; where it is typed it is taken out of the arguments.
TRUST = "--trust_checkpoint"

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

_PATHS = {"model": ("base",), "data": ("root", "path", "test_path")}

_NOISE = (
    ".*does not have many workers",
    ".*LeafSpec",
    ".*callbacks used to create the checkpoint",
    ".*smaller than the logging interval",
    ".*Total length of `list`",
    ".*custom batch sampler",
    ".*exists and is not empty",
    ".*Experiment logs directory",
    # The last epoch ends before the validation that follows it.
    r".*ModelCheckpoint\(monitor='val_(loss|accuracy)'\)` could not find the monitored key",
)

#: How lines begin that say nothing of this run, advertise, or repeat what is printed anyway.
_NO_NEWS = (
    "\N{ELECTRIC LIGHT BULB}",
    "GPU available: False",
    "TPU available",
    "HPU available",
    "Loading `train_dataloader` to estimate",
    # Which checkpoint it is has been said, and that it cannot be restored is an error.
    "Restoring states from the checkpoint",
    "Restored all states from the checkpoint",
    "Loaded model weights from the checkpoint",
    # Of bitsandbytes, which has kernels of its own beside these.
    "Failed to load CPU gemm_4bit_forward from kernels-community",
)


class AdapterParser(LightningArgumentParser):
    """A parser that raises instead of exiting, so that every error is worded in one place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["exit_on_error"] = False
        super().__init__(*args, **kwargs)


class _TrainerHelp(Action):
    """Print the keys of the trainer, as ``--data.help`` and its like print those of a class."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, SUPPRESS, nargs=0, default=SUPPRESS, help=help)

    def __call__(self, parser: ArgumentParser, *_: Any) -> None:
        """Print them and end."""
        whole = re.split(r"\n(?=\S)", parser.format_help())
        print(next(part for part in whole if re.search(r"^  --trainer\.accelerator ", part, re.MULTILINE)))
        parser.exit()


class AdaptersCLI(LightningCLI):
    """Lightning's CLI with a top-level ``adapter:`` and a run directory.

    Args:
        arguments: the command line, the command first.
        recipe: what the run's directory is called.
        checkpoint: the checkpoint a later command starts from, if any.
    """

    trainer: Trainer
    model: CausalLMModule
    run: Run

    def __init__(self, arguments: list[str], recipe: str, checkpoint: Path | None) -> None:
        self.recipe = recipe
        self.checkpoint = checkpoint
        #: What training needs, once it is known.
        self.forecast: Forecast | None = None
        super().__init__(
            CausalLMModule,
            ReasoningDataModule,
            save_config_callback=None,
            trainer_defaults={
                "default_root_dir": DEFAULT_ROOT,
                "max_epochs": 3,
                "gradient_clip_val": 1.0,
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "use_distributed_sampler": False,
                "enable_model_summary": False,
            },
            seed_everything_default=42,
            parser_class=AdapterParser,
            parser_kwargs={"prog": "adapters-pl"},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``adapter:``, and make the plain module the default for ``model:``."""
        parser.add_argument(
            "--adapter",
            type=Adapter | list[Adapter] | None,
            default=None,
            help=f"{OWN['adapter'].line}.",
        )
        parser.add_argument(
            "--adapter_path",
            type=str | None,
            default=None,
            help=f"{OWN['adapter_path'].line}.",
        )
        parser.set_defaults({"model": {"class_path": "adapters_pl.CausalLMModule"}})
        parser.add_argument("--trainer.help", action=_TrainerHelp, help="Show the keys of the trainer and exit.")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.add_argument(
            TRUST,
            action="store_true",
            help=f"{OWN['trust_checkpoint'].line}.",
        )
        if subcommand == "test":
            parser.add_argument(
                "--overwrite",
                action="store_true",
                help=f"{OWN['overwrite'].line}.",
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the given arguments; they are the real command line with names and checkpoints resolved."""
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        refuse_code(self.config[self.config.subcommand], args)
        seed = self.config[self.config.subcommand].seed_everything
        if not isinstance(seed, bool) and seed is not None and seed < 0:
            raise UserError(f"seed_everything is {seed}; it must be at least 0.")
        chosen = self.config[self.config.subcommand].adapter
        if isinstance(chosen, list) and len(chosen) > 1 and any(a.startswith("--adapter.") for a in args):
            _say(f"--adapter.* addresses the last of {len(chosen)} adapters: {_short(chosen[-1])}")

    def _parse_ckpt_path(self) -> None:
        """Leave the command line as it is: what it says wins over what a checkpoint stored."""

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Hand ``optimizer:`` and ``lr_scheduler:`` to the module, whose parameters exist only after ``setup``."""

        def factory(key: str) -> Callable[[Any], Any] | None:
            init = self._get(self.config_init, key)
            return (lambda target: instantiate_class(target, init)) if init else None

        self.model.optimizer_factory = factory("optimizer") or self.model.optimizer_factory
        self.model.scheduler_factory = factory("lr_scheduler") or self.model.scheduler_factory

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with the adapters, the run's records and checkpoints."""
        adapters = self.adapters()
        self._refuse_nothing()
        root = Path(self._get(self.config, "trainer").default_root_dir or DEFAULT_ROOT)
        existing = Run.of_checkpoint(self.checkpoint) if self.checkpoint else None
        strategy = strategy_named((self._get(self.config_init, "trainer", default={}) or {}).get("strategy") or "auto")
        self.run = existing or Run.joined(root, self.recipe)
        config = self._run_config()
        self.model.recorded_config = config
        labels = [f"{type(adapter).__name__} '{adapter.name}'" for adapter in adapters]
        overwrite = self._get(self.config, "overwrite", default=False)
        extra: list[Any] = [*adapters, RunRecorder(self.run, _yaml(config), ", ".join(labels) or None, overwrite)]
        if self.subcommand == "fit":
            extra += checkpoint_callbacks(self.run, self.model.monitor, self.datamodule.val_size > 0)
        trainer_config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        trainer_config["strategy"] = strategy
        if trainer_config.get("enable_progress_bar") is not False:
            extra.append(Progress())
        if trainer_config.get("logger") in (None, True):
            if self.subcommand == "fit":
                trainer_config["logger"] = MetricsFile(self.run.path)
            else:
                trainer_config["logger"] = False
        if self.subcommand != "fit":
            trainer_config["enable_checkpointing"] = False
        try:
            return self._instantiate_trainer(trainer_config, extra)
        except BaseException:
            self.discard_unused_run()
            raise

    def adapters(self) -> list[Adapter]:
        """The configured adapters."""
        chosen = self._get(self.config_init, "adapter")
        return chosen if isinstance(chosen, list) else [chosen] if chosen else []

    def _refuse_nothing(self) -> None:
        """Refuse settings by which nothing would be done, or that mean nothing.

        Raises:
            UserError: with the name of the setting.
        """
        trainer = self._get(self.config, "trainer")
        stage = {"fit": "train", "validate": "val"}.get(str(self.subcommand), str(self.subcommand))
        done = {f"limit_{stage}_batches": f"{self.subcommand} would do nothing"}
        if self.subcommand == "fit":
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
        refuse_same_names(self.adapters())

    def _run_config(self) -> dict[str, Any]:
        """The configuration of this command as plain data, with the paths it names made absolute."""
        subparser = self._parser(self.subcommand)
        config = yaml.safe_load(subparser.dump(self.config[str(self.subcommand)], skip_validation=True, format="yaml"))
        for key in self._subcommand_method_arguments[str(self.subcommand)]:
            config.pop(key, None)
        for key in ("config", "overwrite", TRUST.removeprefix("--")):
            config.pop(key, None)
        # What lets a base's own code run is typed for every command, and travels in no file.
        ((config.get("model") or {}).get("init_args") or {}).pop(CODE, None)
        for section, keys in _PATHS.items():
            arguments = (config.get(section) or {}).get("init_args") or {}
            for key in keys:
                value = arguments.get(key)
                if isinstance(value, list):
                    arguments[key] = [_absolute(part) for part in value]
                elif value is not None:
                    arguments[key] = _absolute(value)
        return masked_values(with_public_names(config))

    def before_fit(self) -> None:
        """Find what is wrong with base and adapters while nothing heavy is loaded; the data comes next."""
        if not self.adapters():
            raise UserError("Nothing to train: the base is frozen and there is no adapter. Pass --adapter LoRA.")
        self._check_hardware()
        skeleton = self._check_structure()
        trainer, data = self._get(self.config, "trainer"), self._get(self.config, "data")
        setup = Setup.of(self.model, trainer, data.get("init_args") or {})
        self.forecast = Forecast(MemoryModel(self.model, skeleton, self.adapters()), setup)
        _foretell(self.forecast)

    def before_test(self) -> None:
        """As before training, where a saved adapter is given: it may be another base's."""
        self._check_hardware()
        if self.model.initial is not None:
            self._check_structure()

    before_validate = before_predict = before_test

    def _check_hardware(self) -> None:
        precision = self._get(self.config, "trainer").precision
        refuse_missing(self.trainer, precision, self.model.attn_implementation)

    def _check_structure(self) -> PreTrainedModel:
        """The base on the meta device with the adapters in it, which shows whether they fit each other."""
        skeleton = meta_model(self.model.config, self.model.trust_remote_code, self.model.attn_implementation)
        if self.model.add_tokens:
            grow_embeddings(skeleton, len(self.model.tokenizer))
        if self.model.initial is not None:
            self.model.initial.check(skeleton)
            self.model.initial.make_room(skeleton)
        try:
            for adapter in self.adapters():
                adapter.attach_to(skeleton, seed=None)
        except UserError as error:
            if self.model.initial is None:
                raise
            raise UserError(f"{self.model.initial.where}: does not fit '{self.model.base}': {error}") from error
        if self.model.initial is not None:
            self.model.initial.fill(skeleton)
        return skeleton

    def _run_subcommand(self, subcommand: str) -> None:
        """Wait for :meth:`execute`: an error while running is handled where the run is known."""

    def execute(self) -> None:
        """Run the command."""
        super()._run_subcommand(str(self.subcommand))

    def ran_out(self, error: BaseException) -> str:
        """What to do about an ``error`` that says there was too little memory."""
        if self.forecast is not None:
            advice = self.forecast.relief()
        else:
            rows = self.datamodule.eval_batch_size
            advice = f"Lower --data.eval_batch_size (now {rows}), or hold the base in less: --model.quantization 4bit."
        last = self.run.checkpoints / "last.ckpt"
        kept = f" Go on from {last} with --ckpt_path {self.run.ckpt_path}." if self.forecast and last.exists() else ""
        return f"out of memory: {first_line(error)}\n{advice}{kept}"

    def discard_unused_run(self) -> None:
        """Remove the run's directory if this command made it and nothing worth keeping is in it."""
        kept = ("checkpoints/*", "predictions/*", "predicted/*", "results.json", "crash.log")
        if self.run.made_here and not any(True for pattern in kept for _ in self.run.path.glob(pattern)):
            shutil.rmtree(self.run.path, ignore_errors=True)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = str(self.checkpoint) if self.checkpoint else None
        # Checkpoints hold plain data and tensors; nothing in one is ever unpickled.
        kwargs["weights_only"] = True
        if subcommand == "test":
            kwargs["verbose"] = False
        if subcommand == "predict":
            kwargs["return_predictions"] = False
        return kwargs


def _short(adapter: Any) -> str:
    name = (adapter.init_args or {}).get("name")
    return f"{adapter.class_path.rsplit('.', 1)[-1]} '{name}'"


def _absolute(value: Any) -> Any:
    """An existing path made absolute; the name of an embedded base is none, even where a folder of that name lies."""
    if isinstance(value, str) and value not in EMBEDDED and Path(value).expanduser().exists():
        return str(Path(value).expanduser().resolve())
    return value


def _yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, sort_keys=False)


# ---- running a command


def main(command: str, arguments: list[str], debug: bool = False) -> int:
    """Run ``command`` and return its exit code; what the user has to mend is raised as ``UserError``."""
    transformers_logging.disable_progress_bar()
    _quiet()
    for file in values_of(arguments, *CONFIG):
        load_config_file(Path(file))
    trusted, arguments = TRUST in arguments, [word for word in arguments if word != TRUST]
    find_own_modules(arguments, trusted)
    adapter_path = peek(arguments, "adapter_path")
    only_print = any(re.match(r"(-h|--help|--print_config|--[\w.]+\.help)(=|$)", word) for word in arguments)
    recipe = recipe_name(command, arguments)
    checkpoint = None if only_print else find_checkpoint(command, arguments)
    # Configurations come before everything else, so that what is typed wins wherever it stands.
    files = [word for file in values_of(arguments, *CONFIG) for word in ("--config", file)]
    arguments = [*files, *with_full_names(without(arguments, *CONFIG, "--ckpt_path", "--adapter_path"))]
    try:
        with tempfile.TemporaryDirectory() as folder:
            inherited, saved = [], None
            if checkpoint is not None or adapter_path is not None:
                overlay = Path(folder) / "inherited.yaml"
                if checkpoint is not None:
                    config, left_out = inherited_config(checkpoint, command, arguments, trusted)
                    if command in ("test", "predict"):
                        config = with_files(config, arguments)
                    _say(f"{'resuming from' if command == 'fit' else f'{command}:'} {checkpoint}")
                    if left_out:
                        _say(left_out)
                else:
                    config, saved = adapter_config(str(adapter_path), arguments, trusted)
                    _say(f"{'starting from' if command == 'fit' else f'{command}:'} {saved.where}")
                overlay.write_text(_yaml(config), encoding="utf-8")
                inherited = ["--config", str(overlay)]
            words = [command, *inherited, *arguments]
            cli = AdaptersCLI(words, recipe, checkpoint)
            cli.model.initial = saved
    except ArgumentError as error:
        raise cli_errors.explain(error, command) from error
    except MisconfigurationException as error:
        raise cli_errors.of_trainer(error) or UserError(first_line(error)) from error
    except UserError:
        raise
    except Exception as error:
        # jsonargparse wraps what a constructor raises.
        if known := user_error_behind(error) or cli_errors.of_trainer(error) or cli_errors.of_parser(error, command):
            raise known from error
        if isinstance(error, RecursionError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        return _crashed(error, Run(Path(peek(arguments, "trainer.default_root_dir") or DEFAULT_ROOT)), debug)
    except SystemExit as done:  # --help and --print_config end here
        return int(done.code or 0)
    return _execute(cli, debug)


def user_error_behind(error: BaseException) -> UserError | None:
    """The ``UserError`` that led to ``error``, if one did."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _quiet() -> None:
    """Leave out what libraries say of every run, and of settings that are meant."""
    for logger in ("lightning.pytorch.utilities.rank_zero", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(logger).addFilter(_is_news)
    for noise in _NOISE:
        warnings.filterwarnings("ignore", message=noise)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a library's line says something about this run that is not said otherwise; secrets are masked."""
    record.msg, record.args = masked(record.getMessage()), ()
    return not record.msg.startswith(_NO_NEWS)


@rank_zero_only
def _say(line: str) -> None:
    print(line)


@rank_zero_only
def _foretell(forecast: Forecast) -> None:
    print(forecast.line())
    forecast.refuse()


def _execute(cli: AdaptersCLI, debug: bool) -> int:
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
        if known := cli_errors.of_restoring(error, cli.checkpoint) or cli_errors.of_optimizer(error):
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
