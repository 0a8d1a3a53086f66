"""The short help of the commands that LightningCLI runs: the keys that people use. Imports nothing heavy.

What belongs to our classes is read from their sources, so that a default and its description stand in one place.
"""

from __future__ import annotations

import ast
import inspect
import re
import shutil
import textwrap
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import adapters_pl


@dataclass(frozen=True)
class Key:
    """What the help says of a key.

    Attributes:
        line: what it means.
        kind: what it takes.
        default: the value that it has unless it is given, ``None`` if it then has none.
        of: the class that has it, if not every class of its section has.
    """

    line: str
    kind: str
    default: object = None
    of: str = ""

    def __str__(self) -> str:
        default = str(self.default).lower() if isinstance(self.default, bool) else self.default
        whose = f" ({self.of})" if self.of else ""
        return f"{self.line}{whose} [{self.kind}{'' if default is None else f' = {default}'}]"


#: Keys of no class of ours: the command line's own, and Lightning's.
OWN: dict[str, Key] = {
    "config": Key("a recipe (adapters-pl recipes lists them) or a file; several merge in their order", "name"),
    "adapter": Key("the adapter method, or a list of them; null tests the base alone", "name"),
    "adapter_path": Key("a saved adapter to begin with: a directory in PEFT's format, a checkpoint, a hub id", "text"),
    "data": Key("the dataset, a suite of them, or InstructionJSON for files of one's own", "name"),
    "ckpt_path": Key("the checkpoint to start from: a file, a run's folder, last or best", "text"),
    "trust_checkpoint": Key("take over all that a checkpoint records, what can run code too (see SECURITY.md)", "flag"),
    "run_dir": Key("the run's directory, instead of a new one below trainer.default_root_dir", "text"),
    "overwrite": Key("put this test in the place of an earlier one of the same set, whatever that was", "flag"),
    "eval": Key("measure answers instead, beside transformers' generate or lm-evaluation-harness", "flag"),
    "against": Key("measure peft's training too; of answers the reference way (four beams, no cache)", "name"),
    "rounds": Key("turns of each arm", "int", 5),
    "steps": Key("optimizer steps in a turn", "int", 5),
    "scaling": Key("measure once for each value of a key: data.batch_size=2,4,8", "text"),
    "json": Key("a file for all figures, those of single steps too", "text"),
    "seed_everything": Key("the seed of initial values, dropout and sampling", "int", 42),
    "trainer.max_epochs": Key("how often the training rows are gone through", "int", 3),
    "trainer.max_steps": Key("end after so many optimizer steps; -1: with the epochs", "int", -1),
    "trainer.accelerator": Key("cpu or gpu; auto takes a GPU where there is one", "text", "auto"),
    "trainer.devices": Key("how many devices (processes on a CPU), or which: [0, 2]", "int or list", "auto"),
    "trainer.strategy": Key("how they share the work: ddp, fsdp, fsdp_cpu_offload", "text", "auto"),
}

#: Where the arguments of a section are declared; the first class that has one counts.
_CLASSES = {
    "model": (("training/module.py", "CausalLMModule"),),
    "data": (("data/module.py", "ReasoningDataModule"), ("data/sets/instruction_json.py", "InstructionJSON")),
    "adapter": (("adapters/lora.py", "LoRA"), ("adapters/base.py", "LinearAdapter"), ("adapters/base.py", "Adapter")),
}
#: The classes whose arguments every class of their section has.
_GENERAL = ("CausalLMModule", "ReasoningDataModule")

_MODEL = ("model.base", "model.dtype", "model.quantization")
_RUN = ("trainer.accelerator", "trainer.devices", "trainer.strategy", "ckpt_path", "trust_checkpoint")
_ADAPTER = ("adapter", "adapter.rank")

#: The keys that people use, by command.
KEYS: dict[str, tuple[str, ...]] = {
    "fit": (
        "config",
        *_MODEL,
        "model.lr",
        *_ADAPTER,
        "adapter_path",
        *("data", "data.root", "data.path", "data.limit_train", "data.batch_size", "data.eval_batch_size"),
        *("trainer.max_epochs", *_RUN),
        "seed_everything",
    ),
    "validate": (
        "config",
        *_MODEL,
        "adapter_path",
        *("data", "data.root", "data.path", "data.val_size", "data.eval_batch_size", "data.protocol"),
        *_RUN,
    ),
    "test": (
        "config",
        *_MODEL,
        *("model.test_base", "model.engine"),
        "adapter_path",
        *("data", "data.root", "data.test_path", "data.limit_test", "data.eval_batch_size", "data.protocol"),
        *("data.samples", "data.max_new_tokens", *_RUN, "overwrite"),
    ),
    "predict": (
        "config",
        *_MODEL,
        "model.engine",
        "adapter_path",
        *("data", "data.root", "data.test_path", "data.limit_test", "data.eval_batch_size", "data.protocol"),
        *("data.max_new_tokens", *_RUN),
    ),
    "plan": (
        "config",
        *_MODEL,
        "model.activation_checkpointing",
        *_ADAPTER,
        *("data.batch_size", "data.cutoff"),
        *("trainer.devices", "trainer.strategy"),
    ),
    "bench": (
        "config",
        *_MODEL,
        *_ADAPTER,
        *("data", "data.root", "data.path", "data.batch_size", "data.cutoff"),
        *("eval", "adapter_path", "data.limit_test", "data.eval_batch_size", "data.protocol"),
        *("trainer.accelerator", "against", "rounds", "steps", "scaling", "json"),
    ),
}

#: What prints the keys of a section, or more.
SECTIONS = (
    ("--model.help", "how the base is held and trained"),
    ("--trainer.help", "the Trainer"),
    ("--adapter.help LoRA", "an adapter method"),
    ("--data.help GSM8K", "a dataset"),
    ("--optimizer.help SGD", "an optimizer; likewise --lr_scheduler.help StepLR"),
    ("--help_all", "every key of every section"),
    ("--print_config ...", "the configuration that would run"),
)

#: Characters of a line, where the terminal is that wide.
LONGEST = 120

_WORDS = {"str": "text", "bool": "true|false", "float": "number", "AtLeast0": "int", "AtLeast1": "int"}
_WORDS |= {"AtLeast8": "int", "Above0": "number", "NotNegative": "number", "Share": "number", "Names": "text or list"}


def text(command: str, summary: str) -> str:
    """The short help of ``command``, whose one line is ``summary``."""
    columns = max(60, min(LONGEST, shutil.get_terminal_size((LONGEST, 24)).columns))
    width = max(len(key) for key in KEYS[command]) + 6
    indent = len(command) + 40
    return "\n".join(
        [
            f"usage: adapters-pl {command} [--config NAME ...] [--key value ...]",
            "",
            _hanging(
                "", f"{summary[0].upper()}{summary[1:]}. In brackets: what a key takes = its default.", 0, columns
            ),
            "",
            *(_row(key, width, columns) for key in KEYS[command]),
            "",
            _hanging("adapters:", ", ".join(names("adapters")), 10, columns),
            _hanging("datasets:", ", ".join(names("data")), 10, columns),
            "",
            *(_hanging(f"  adapters-pl {command} {words}", line, indent, columns) for words, line in SECTIONS),
        ]
    )


def names(room: str) -> list[str]:
    """The public adapter methods or datasets."""
    public = [name for name, home in adapters_pl.exports().items() if home == room and name[0].isupper()]
    general = ("Adapter", "AdapterLayer", "LinearAdapter", "LinearAdapterLayer", "ReasoningDataModule", "Example")
    return [name for name in public if name not in general]


def describe(key: str) -> Key:
    """What the help says of ``key``; of one that not every class of its section has, also whose it is."""
    if key in OWN:
        return OWN[key]
    section, name = key.split(".")
    for file, cls in _CLASSES[section]:
        if name in (known := _arguments(file, cls)):
            return known[name] if cls in _GENERAL else replace(known[name], of=cls)
    raise KeyError(key)


def _row(name: str, width: int, columns: int) -> str:
    """A key and its first sentence, of which only the first part is said where the whole is too long for a line."""
    title, key = f"  --{name}", describe(name)
    if width + len(str(key)) > LONGEST:
        key = replace(key, line=re.split("[;:] ", key.line)[0])
    return _hanging(title, str(key), width, columns)


def _hanging(title: str, words: str, indent: int, columns: int) -> str:
    return textwrap.fill(f"{title:<{indent}}{words}", columns, subsequent_indent=" " * indent, break_on_hyphens=False)


@cache
def _tree(file: str) -> ast.Module:
    return ast.parse(Path(adapters_pl.__path__[0], file).read_text(encoding="utf-8"))


@cache
def _arguments(file: str, cls: str) -> dict[str, Key]:
    """The arguments of a class, from its constructor or a dataclass's fields, and its docstring."""
    body = next(node for node in _tree(file).body if isinstance(node, ast.ClassDef) and node.name == cls)
    declared: dict[str, tuple[ast.expr | None, ast.expr]] = {
        ast.unparse(node.target): (node.annotation, node.value)
        for node in body.body
        if isinstance(node, ast.AnnAssign) and node.value and "ClassVar" not in ast.unparse(node.annotation)
        if not isinstance(node.value, ast.Call)  # a field that is no argument
    }
    for node in body.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names = [*node.args.args, *node.args.kwonlyargs]
            values = [*node.args.defaults, *node.args.kw_defaults]
            pairs = zip(names[len(names) - len(values) :], values, strict=True)
            declared = {arg.arg: (arg.annotation, value) for arg, value in pairs if value}
    documented = _documented(ast.get_docstring(body) or "")
    return {
        name: Key(documented[name], _kind(file, annotation), ast.literal_eval(value))
        for name, (annotation, value) in declared.items()
    }


def _documented(docstring: str) -> dict[str, str]:
    """The first sentence on each argument under ``Args:``."""
    listed = inspect.cleandoc(docstring).partition("\nArgs:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", listed, re.MULTILINE)
    return {name: re.split(r"\.(?:\s|$)", " ".join(words.replace("``", "").split()))[0] for name, words in found}


def _kind(file: str, annotation: ast.expr | None) -> str:
    """What a person gives for an annotation: ``AtLeast1 | None`` is an int, a ``Literal`` its choices."""
    if isinstance(annotation, ast.BinOp):
        sides = (side for side in (annotation.left, annotation.right) if ast.unparse(side) != "None")
        return " or ".join(_kind(file, side) for side in sides)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        return "|".join(ast.literal_eval(annotation.slice))
    if isinstance(annotation, ast.Subscript):
        return ast.unparse(annotation.value)
    name = ast.unparse(annotation) if annotation else "text"
    return _WORDS.get(name) or (_kind(*found) if (found := _alias(file, name)) else name)


def _alias(file: str, name: str) -> tuple[str, ast.expr] | None:
    """Where the module defines ``name``, or the module of ours that it comes from."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return file, node.value
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            package, _, module = (node.module or "").partition(".")
            return _alias(f"{module.replace('.', '/')}.py", name) if package == adapters_pl.__name__ else None
    return None
