"""What a command starts from: configuration files, the checkpoint it takes, and what that one was trained with."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from adapters_pl.adapters.base import describe_adapter
from adapters_pl.answers import published_name
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.cli.received import SECTIONS, received
from adapters_pl.compat.dcp import is_sharded
from adapters_pl.data import SETS, ReasoningDataModule
from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.inputs.masking import masked_parts
from adapters_pl.inputs.names import public_name, with_public_names
from adapters_pl.models.base import load_config
from adapters_pl.runs import recipes
from adapters_pl.runs.run import DEFAULT_ROOT, Run
from adapters_pl.training.adapter_files import SavedAdapters, base_of, import_adapters, read_adapter
from adapters_pl.training.checkpoint import read_checkpoint

#: Keys whose value may name a class.
_CLASS_KEYS = (*SECTIONS, "class_path", "peft_config", "callbacks", "logger", "plugins", "profiler")

#: Sections of a training run's configuration that a later command takes over. Where and how it is executed
#: (``trainer``) is the later command's own affair, unless training itself goes on.
_INHERITED = ("seed_everything", "model", "adapter", "data")
_RESUMED = (*_INHERITED, "trainer", "optimizer", "lr_scheduler")


#: Where the base's name, its revision, and the classes of adapter and dataset can stand, by short form and in full.
_BASE = ("model.base", "model.init_args.base")
_REVISION = ("model.revision", "model.init_args.revision")
_ADAPTER = ("adapter", "adapter.class_path")
_DATA = ("data", "data.class_path")


def find_checkpoint(line: CommandLine) -> Path | None:
    """The checkpoint that a command starts from.

    ``--ckpt_path`` names a file, a run's directory, or ``last`` or ``best`` of the newest run. Without it, training
    starts afresh, unless SLURM has put this job back into its queue, which then goes on in its run; and the other
    commands take ``last.ckpt`` of the newest run, unless a base is named and no adapter: then it is the base alone
    that they are about.

    Raises:
        UserError: what is named does not exist, or there is no run to take.
    """
    named, root = (_path_at(line, key) for key in ("ckpt_path", "trainer.default_root_dir"))
    folder = Path(root or DEFAULT_ROOT)
    if line.get("adapter_path"):
        if named not in (None, "null", "None"):
            raise UserError("--ckpt_path and --adapter_path both name an adapter: give one of them.")
        return None
    if named in ("null", "None"):
        return None
    if named is None and line.command == "fit":
        requeued = Run.of_requeued_job(folder)
        return requeued.checkpoint("last") if requeued else None
    if named is None and line.get(*_BASE) and line.get(*_ADAPTER) in (None, "null"):
        return None
    return find_named(named or "last", folder)


def find_named(named: str, root: Path) -> Path:
    """The checkpoint that ``--ckpt_path named`` means, with the runs below ``root``.

    Raises:
        UserError: there is none.
    """
    if named in ("last", "best"):
        return Run.latest(root).checkpoint(named)
    path = Path(os.path.expanduser(named))
    if path.is_dir() and not is_sharded(path):
        return Run(path).checkpoint("last")
    if not path.exists():
        raise UserError(f"--ckpt_path {named}: no such checkpoint.")
    return path


def _path_at(line: CommandLine, key: str) -> str | None:
    value = line.get(key)
    if not isinstance(value, str | None):
        raise UserError(f"{key} is {value!r:.80}, which is no path; mend the configuration.")
    return value


def refuse_empty(key: str, value: Any) -> None:
    """Raise ``UserError`` where what a command begins with is named by nothing, as an unset variable does."""
    if value is not None and not str(value).strip():
        raise UserError(f"--{key} is empty: name a directory or a checkpoint, or leave it out.")


def inherited_config(checkpoint: Path, line: CommandLine, trusted: bool = False) -> tuple[dict[str, Any], str | None]:
    """The configuration that ``checkpoint`` was trained with, as far as a command takes it over.

    Args:
        checkpoint: of a run, or of a Trainer in a notebook, which recorded no configuration.
        line: the command, which may name classes of a user's own.
        trusted: whether ``--trust_checkpoint`` was typed.

    Returns:
        The configuration, and a line about what of it was left out, if anything was.

    Raises:
        UserError: the file is no checkpoint of ours, or it names a class that is not known.
    """
    ours, _ = read_checkpoint(checkpoint)
    model = {"base": ours["base"]["id"], "revision": ours["base"]["revision"]}
    recorded = ours.get("config") or {
        "model": {"class_path": "adapters_pl.CausalLMModule", "init_args": model},
        "adapter": ours["adapters"],
    }
    given = [key for key in SECTIONS if line.get(key, f"{key}.class_path")]
    sections = _RESUMED if line.command == "fit" else _INHERITED
    found = received(recorded, sections, checkpoint, named_classes(line), given, trusted)
    _refuse_masked(found.config, checkpoint, line, given)
    return with_public_names(found.config), found.note(checkpoint)


def _refuse_masked(config: dict[str, Any], checkpoint: Path, line: CommandLine, given: Sequence[str]) -> None:
    """Take out of a recorded configuration what was masked in it and is given anew.

    Raises:
        UserError: it is not given; what is left of it would be taken for the value.
    """
    for path, left in list(masked_parts(config)):
        section, *rest = path
        keys = [key for key in rest if key != "init_args"]
        named = ".".join([section, *keys])
        # Whatever holds it may be given, too: all of ``data.settings`` for ``data.settings.password``.
        ways = [".".join(way[:end]) for way in ([section, *keys], path) for end in range(2, len(way) + 1)]
        again = line.get(*(key for key in ways if not key.endswith(".init_args"))) is not None
        if not again and section not in given:
            raise UserError(
                f"{checkpoint}: {named} held a secret, which was not recorded ('{left}'). Pass it again: --{named}"
            )
        node: Any = config
        for key in path[:-1]:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(path[-1], None)


def named_classes(line: CommandLine) -> list[str]:
    """The dotted names that the command line and its configurations give where a class is expected."""
    keys = ((option.key.rstrip("+").rpartition(".")[2], option.value) for option in line.options)
    texts = [value for key, value in keys if value and key in _CLASS_KEYS]
    texts += [text for content in line.contents for text in _class_texts(content, within=False)]
    return [name for text in texts for name in re.findall(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", text)]


def _class_texts(node: Any, within: bool) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _class_texts(value, key in _CLASS_KEYS)
    elif isinstance(node, list):
        for value in node:
            yield from _class_texts(value, within)
    elif within and isinstance(node, str):
        yield node


def find_own_modules(line: CommandLine, trusted: bool = False) -> None:
    """Let the modules of this folder be found that the command names classes of, and import those.

    Without such a name the folder stays out of Python's path: a library that looks for an optional module must not
    find one that happens to lie here.
    """
    names = named_classes(line)
    here = {name.partition(".")[0] for name in names}
    if trusted or any(Path(f"{name}.py").is_file() or Path(name).is_dir() for name in here):
        sys.path.append(os.getcwd())
    for name in names:
        try:
            import_module(name.rpartition(".")[0])
        except ImportError:
            continue  # the parser says which class it was that could not be imported
        except Exception as error:
            raise UserError(f"{name}: its module fails when it is imported ({first_line(error)}); mend it.") from error


def adapter_config(path: str, line: CommandLine, trusted: bool = False) -> tuple[dict[str, Any], SavedAdapters]:
    """The configuration that the saved adapter at ``path`` asks for, and the adapter as it was read.

    Raises:
        UserError: it cannot be read, it names no base and neither does the command line, or the command line
            names another adapter.
    """
    if line.get(*_ADAPTER):
        raise UserError("--adapter_path says which adapter it holds; leave out --adapter.")
    if trusted:
        import_adapters(path)
    base, revision = base_of(path)
    if given := line.get(*_BASE):
        base, revision = given, line.get(*_REVISION)
    if not base:
        raise UserError(f"{path} does not say which base it belongs to: pass --model.base.")
    saved = read_adapter(path, load_config(base, revision))
    settings = {"base": base, "revision": revision, "add_tokens": saved.add_tokens}
    model = {key: value for key, value in settings.items() if value}
    return {"model": model, "adapter": [describe_adapter(adapter) for adapter in saved.adapters]}, saved


def full_names() -> dict[str, dict[str, str]]:
    """By key, the classes that short names mean: ``SGD`` is ``torch.optim.SGD``, and ``gsm8k`` ``adapters_pl.GSM8K``.

    Other libraries, once loaded, have an ``SGD`` too, and sets are known by their published names as well.
    """
    return {
        "optimizer": {name: f"torch.optim.{name}" for name in torch.optim.__all__},
        "data": {name: public_name(f"{kind.__module__}.{kind.__name__}") for name, kind in SETS.items()},
    }


def with_files(config: dict[str, Any], line: CommandLine) -> dict[str, Any]:
    """A recorded configuration whose dataset reads a user's file, if ``line`` names one and no dataset.

    A dataset that has files of its own is replaced by :class:`InstructionJSON`, with the arguments that all have.
    """
    data = config.get("data") or {}
    if not line.get("data.test_path") or line.get(*_DATA):
        return config
    kind = SETS.get(published_name(str(data.get("class_path", "")).rpartition(".")[2]))
    if kind is None:  # it reads files already, or is a user's own
        return config
    shared = inspect.signature(ReasoningDataModule.__init__).parameters.keys() - {"files", "test_sets"}
    kept = {key: value for key, value in (data.get("init_args") or {}).items() if key in shared}
    return {**config, "data": {"class_path": "adapters_pl.InstructionJSON", "init_args": kept}}


def recipe_name(line: CommandLine) -> str:
    """A run is called after its first recipe, else after its adapter, else after the command."""
    if line.files:
        return recipes.name_of(line.files)
    adapter = line.typed("adapter")
    if line.command == "fit" and adapter and re.fullmatch(r"[\w.]+", adapter):
        return adapter.rsplit(".", 1)[-1].lower()
    return line.command
