"""The one parser of the commands that take a configuration, and our words for what it refuses."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, instantiate_class
from lightning.pytorch.utilities import rank_zero_only

from adapters_pl import __all__ as PUBLIC
from adapters_pl.adapters import Adapter
from adapters_pl.cli.command_line import TRUST, CommandLine
from adapters_pl.cli.configuration import full_names
from adapters_pl.cli.key_help import OWN
from adapters_pl.cli.main import PROGRAM_ERROR
from adapters_pl.cli.received import SECTIONS, refuse_code
from adapters_pl.compat.jsonargparse import (
    HelpInWords,
    Refusal,
    SectionHelp,
    refusal,
    refusal_while_building,
    under_headings,
)
from adapters_pl.compat.lightning_messages import said_of_trainer
from adapters_pl.data import ReasoningDataModule
from adapters_pl.inputs.errors import UserError, did_you_mean, first_line
from adapters_pl.inputs.names import arguments_of, subclasses
from adapters_pl.inputs.ranges import WORDS
from adapters_pl.runs.run import DEFAULT_ROOT
from adapters_pl.training.module import CausalLMModule

#: Arguments of the Trainer's methods that are objects, and not keys of a configuration.
_OBJECTS = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}


class Parser(LightningArgumentParser):
    """A parser that raises instead of exiting, so that every error is worded in one place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["exit_on_error"] = False
        kwargs.setdefault("formatter_class", HelpInWords)
        super().__init__(*args, **kwargs)

    def format_help(self, *formatter: Any) -> str:
        """The help; of a class with ``headings`` (``--data.help GSM8K``) under these, without the line of all flags."""
        under_headings(self)
        return super().format_help(*formatter)


class ConfiguredCLI(LightningCLI):
    """A command's configuration, parsed, with a top-level ``adapter:``; :meth:`instantiate_classes` builds from it.

    Args:
        line: the command.
        below: files of what a checkpoint or an adapter asks for, over which the command line's values are laid.
    """

    trainer: Trainer
    model: CausalLMModule
    #: Whether a dataset has to be named.
    needs_data: ClassVar[bool] = True

    def __init__(self, line: CommandLine, below: Sequence[Path] = ()) -> None:
        self.line = line
        own = line.words(without=("ckpt_path", "adapter_path", TRUST), names=full_names())
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
            parser_class=Parser,
            parser_kwargs={"prog": f"adapters-pl {line.command}", "description": "Every key of every section."},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[*(word for file in below for word in ("--config", str(file))), *own],
            run=False,
        )

    @property
    def method(self) -> str:
        """The Trainer's method whose keys the command has."""
        return self.line.command

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """As Lightning does, where data is needed."""
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(CausalLMModule, "model", subclass_mode=True)
        parser.add_lightning_class_args(ReasoningDataModule, "data", subclass_mode=True, required=self.needs_data)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``adapter:`` and the command's own keys, and make the plain module the default for ``model:``."""
        parser.add_argument(
            "--adapter", type=Adapter | list[Adapter] | None, default=None, help=f"{OWN['adapter'].line}."
        )
        parser.add_argument("--adapter_path", type=str | None, default=None, help=f"{OWN['adapter_path'].line}.")
        parser.set_defaults({"model": {"class_path": "adapters_pl.CausalLMModule"}})
        parser.add_argument("--trainer.help", action=SectionHelp, help="Show the keys of the trainer and exit.")
        #: Keys of the command that the configuration of a run does not record.
        self.unrecorded = ["config", TRUST, "overwrite", "run_dir"]
        self.unrecorded += parser.add_method_arguments(Trainer, self.method, skip=set(_OBJECTS))
        parser.add_argument(f"--{TRUST}", action="store_true", help=f"{OWN[TRUST].line}.")
        if self.method == "fit":
            parser.add_argument("--run_dir", type=str | None, default=None, help=f"{OWN['run_dir'].line}.")
        if self.method == "test":
            parser.add_argument("--overwrite", action="store_true", help=f"{OWN['overwrite'].line}.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the words that were put together; ``sys.argv`` is not read again.

        Raises:
            UserError: a key or a value is wrong.
        """
        try:
            self.config = parser.parse_args(args)
        except ArgumentError as error:
            raise worded(refusal(str(error)), self.line.command) from error
        refuse_code(self.config.as_dict(), self.line)
        if not isinstance(self.config.trainer, Namespace):
            raise UserError(f"trainer is '{self.config.trainer!s:.80}'; it holds keys: give --trainer.KEY VALUE.")
        seed = self.config.seed_everything
        if not isinstance(seed, bool) and seed is not None and seed < 0:
            raise UserError(f"seed_everything is {seed}; it must be at least 0.")
        chosen = self.config.adapter
        if (
            isinstance(chosen, list)
            and len(chosen) > 1
            and any(o.key.startswith("adapter.") for o in self.line.options)
        ):
            last = chosen[-1]
            name = f"{last.class_path.rsplit('.', 1)[-1]} '{(last.init_args or {}).get('name')}'"
            say(f"--adapter.* addresses the last of {len(chosen)} adapters: {name}")

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Hand ``optimizer:`` and ``lr_scheduler:`` to the module, whose parameters exist only after ``setup``."""

        def factory(key: str) -> Callable[[Any], Any] | None:
            init = self.config_init.get(key)
            return (lambda target: instantiate_class(target, init)) if init else None

        self.model.optimizer_factory = factory("optimizer") or self.model.optimizer_factory
        self.model.scheduler_factory = factory("lr_scheduler") or self.model.scheduler_factory

    @property
    def adapters(self) -> list[Adapter]:
        """The configured adapters."""
        chosen = self.config_init.get("adapter")
        return chosen if isinstance(chosen, list) else [chosen] if chosen else []


def refuse_saved_adapter(line: CommandLine, instead: str, but: Sequence[str] = ()) -> None:
    """Raise ``UserError`` where a command that begins anew is given a saved adapter.

    Args:
        line: the command.
        instead: what it does.
        but: keys that it takes all the same.
    """
    for key in ("ckpt_path", "adapter_path", TRUST):
        if line.has(key) and key not in but:
            raise UserError(f"{line.command} takes no --{key}: {instead}; name its adapter with --adapter.")


def attempt(name: str, command: Callable[[], int], debug: bool) -> int:
    """Run the command called ``name``, which builds classes; returns its exit code.

    Raises:
        UserError: what it raised, or what a library has wrapped.
    """
    try:
        return command()
    except (UserError, OSError, RecursionError):
        raise
    except SystemExit as done:  # --help and --print_config end here
        return int(done.code or 0)
    except Exception as error:
        if known := explained(error, name):
            raise known from error
        if debug:
            raise
        print(f"internal error: {type(error).__name__}: {first_line(error)} (--debug prints more)", file=sys.stderr)
        return PROGRAM_ERROR


def explained(error: Exception, command: str) -> UserError | None:
    """What a user has to mend, if that is why the classes of a configuration cannot be built."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):  # jsonargparse wraps what a constructor raises
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return cause
    if words := said_of_trainer(error):
        return UserError(words)
    refused = refusal_while_building(error)
    return worded(refused, command) if refused else None


@rank_zero_only
def say(line: str) -> None:
    """Print ``line``, once for all processes."""
    print(line)


# ---- what jsonargparse refuses, in our words

#: Keys of the highest level.
_TOP = ("config", "seed_everything", "trainer", *SECTIONS, "ckpt_path")
#: Keys whose classes have short names: what they are subclasses of, and what such a class is called.
_KINDS: dict[str, tuple[type, str]] = {**SECTIONS, "trainer.callbacks": (Callback, "callback")}
#: Those of them whose classes are ours.
_OURS = ("model", "data", "adapter")


def worded(refusal: Refusal, command: str) -> UserError:
    """What jsonargparse refused, in words for a person."""
    if refusal.message in _WORDS:
        return UserError(_WORDS[refusal.message](refusal))
    where = f"{refusal.where}: " if refusal.where else ""
    return UserError(f"{where}{refusal.text[:300]}. See adapters-pl {command} --help.")


def _unknown_key(refusal: Refusal) -> str:
    """An argument that no class of its section takes, or another one than the named class."""
    key, section = refusal.found["key"], refusal.where
    if not section:
        section, _, rest = key.partition(".")
        if rest and section == "trainer":
            return f"unknown key '{key}': {did_you_mean(rest, arguments_of(Trainer))}"
        if rest and section in _OURS:
            return f"unknown key '{key}': {did_you_mean(rest, arguments_of(_KINDS[section][0]))}"
        return f"unknown key '{key}': {did_you_mean(key, _TOP)}"
    kind, called = _KINDS.get(section, (None, ""))
    name = refusal.class_path.rpartition(".")[2]
    takers = sorted(cls.__name__ for cls in _classes_of(kind) if key in arguments_of(cls)) if kind else []
    if kind and takers and name in ("", kind.__name__):
        return f"{section}.{key}: name its {called} before it, with --{section} {_either(takers)}."
    if takers:
        return f"unknown key '{section}.{key}' of {name}: it belongs to {_either(takers)}."
    if refusal.class_path:
        module = import_module(refusal.class_path.rpartition(".")[0])
        kind = getattr(module, name)
    return f"unknown key '{section}.{key}': {did_you_mean(key, arguments_of(kind) if kind else ())}"


def _missing_key(refusal: Refusal) -> str:
    needed = refusal.found["key"]
    if not refusal.where:
        known = ", ".join(sorted(_names_of(ReasoningDataModule)))
        return f"no dataset: pass --data with one of {known}, or a class of your own."
    name, first = refusal.class_path.rpartition(".")[2], needed.split(", ")[0]
    return f"{refusal.where}: {name} needs {needed}: pass --{refusal.where}.{first}."


def _out_of_range(refusal: Refusal) -> str:
    kind = refusal.found["kind"]
    given = refusal.value if refusal.value is not None else refusal.found["said"] or refusal.found["text"]
    if re.fullmatch(r"[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf)", given, re.IGNORECASE) and kind in WORDS:
        return f"{refusal.where} is {given[:80]}; it must be {WORDS[kind]}."
    return f"{refusal.where}: expected a number {WORDS.get(kind, kind)}, not '{given[:80]}'."


def _no_subclass(refusal: Refusal) -> str:
    name = refusal.found.get("name") or _given_class(refusal)
    return f"{refusal.where}: {name[:80]} is no subclass of {refusal.found['kind']}."


def _no_module(refusal: Refusal) -> str:
    why = f": {reason}" if (reason := refusal.found.get("reason")) else ""
    return f"{refusal.where}: cannot import {refusal.found['name']}{why}; modules are looked for in this folder, too."


def _no_class(refusal: Refusal) -> str:
    where, name = refusal.where, refusal.found["name"] or _given_class(refusal)
    if not name:
        return f"{where} is empty: name a class, or leave it out."
    if where not in _KINDS:
        return f"{where}: '{name}' is no class; give its whole path, as in package.module.Class."
    kind, called = _KINDS[where]
    return f"there is no {called} '{name}': {did_you_mean(name, _names_of(kind))}"


def _given_class(refusal: Refusal) -> str:
    return (refusal.value or "").removeprefix("{'class_path': '").partition("'")[0]


#: Our words, by the message of jsonargparse.
_WORDS: dict[str, Callable[[Refusal], str]] = {
    "unknown key": _unknown_key,
    "key before class": _unknown_key,
    "missing key": _missing_key,
    "out of range": _out_of_range,
    "another type": lambda r: f"{r.where}: expected {' or '.join(r.types)}, not '{(r.value or '')[:80]}'.",
    "no subclass": _no_subclass,
    "ambiguous class": lambda r: f"{r.where}: there are several '{r.found['name']}': give one of {r.found['paths']}.",
    "no module": _no_module,
    "class fails": lambda r: f"{r.where}: {r.found['name']}: {r.found['reason'][:200]}.",
    "no class": _no_class,
    "no mapping": lambda r: f"{r.where} is '{r.found['name'][:80]}'; it holds keys: give --{r.where}.KEY VALUE.",
}


def _either(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])


def _names_of(kind: type) -> list[str]:
    """The names of the classes below ``kind`` that are imported; of torch's and Lightning's, only their own."""
    return [cls.__name__ for cls in _classes_of(kind)]


def _classes_of(kind: type) -> list[type]:
    home = kind.__module__.partition(".")[0]
    ours = kind in [_KINDS[section][0] for section in _OURS]
    found = [cls for cls in subclasses(kind) if ours or cls.__module__.partition(".")[0] == home]
    own = [CausalLMModule] if kind is CausalLMModule else []
    public = [cls for cls in found if not inspect.isabstract(cls) and (not _is_ours(cls) or cls.__name__ in PUBLIC)]
    return [*own, *(cls for cls in public if cls.__name__[0] != "_")]


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "adapters_pl"
