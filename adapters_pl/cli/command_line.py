"""The options of a command that takes a configuration, as they were typed, and the files that ``--config`` names.

jsonargparse parses these options, but some questions come before it: which checkpoint the command starts from (what it
recorded is laid below the options), which files a recipe's name means, and which modules hold the classes that are
named. ``LightningCLI`` cannot be the first to read the command line: ``adapters-pl test`` alone is an error to it, as
only the checkpoint says which dataset that is. All such questions are asked here, of words that are read once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_pl.inputs.errors import UserError
from adapters_pl.inputs.untrusted import load_config_file
from adapters_pl.runs import recipes

#: Takes over all that a checkpoint records. It is only ever typed.
TRUST = "trust_checkpoint"
#: Options that name a class; what they are given stands before the arguments of that class, wherever it was typed.
_CLASSES = ("model", "data", "adapter", "optimizer", "lr_scheduler")
#: Options that are given without a value.
_SWITCHES = (TRUST, "overwrite")


@dataclass(frozen=True)
class Option:
    """An option as it was typed.

    Attributes:
        key: its name without dashes; empty for a word that belongs to no option.
        value: what follows it, after ``=`` or as the next word; ``None`` if nothing does.
        words: the words of both.
    """

    key: str
    value: str | None
    words: tuple[str, ...]


@dataclass(frozen=True)
class CommandLine:
    """What was typed after a command's name.

    Attributes:
        command: ``fit``, ``validate``, ``test``, ``predict`` or ``plan``.
        options: all but ``--config``, in their order; those that name a class come first.
        files: the configuration files, in the order in which they merge.
        contents: what stands in each of them.
    """

    command: str
    options: tuple[Option, ...] = ()
    files: tuple[Path, ...] = ()
    contents: tuple[dict[str, Any], ...] = ()

    @classmethod
    def read(cls, command: str, words: Sequence[str]) -> CommandLine:
        """Read ``words``.

        Raises:
            UserError: a configuration is not there, cannot be read or is a study, or a switch is given a value.
        """
        options: list[Option] = []
        files: list[Path] = []
        left = list(words)
        while left:
            word = left.pop(0)
            name, equals, value = word.partition("=")
            key = name[2:] if name.startswith("--") else {"-c": "config", "-h": "help"}.get(name, "")
            taken = [word]
            if key and not equals and left and not left[0].startswith("--"):
                taken.append(left.pop(0))
            given = (value if equals else taken[-1] if len(taken) == 2 else None) if key else word
            if key == "config":
                if given is None:
                    raise UserError("--config needs a file or the name of a recipe.")
                files += recipes.find(given)
                continue
            if key in _SWITCHES and given is not None:
                raise UserError(f"--{key} takes no value, and was given '{given}'; leave the value out.")
            options.append(Option(key, given, tuple(taken)))
        options.sort(key=lambda option: option.key not in _CLASSES)
        contents = tuple(load_config_file(file) for file in files)
        for file, content in zip(files, contents, strict=True):
            if "axes" in content:
                raise UserError(f"{file} is a study: run it with adapters-pl study --config {file}")
        return cls(command, tuple(options), tuple(files), contents)

    def typed(self, key: str) -> str | None:
        """The last value that was typed for ``key``."""
        return next((option.value for option in reversed(self.options) if option.key == key), None)

    def has(self, key: str) -> bool:
        """Whether ``key`` was typed."""
        return any(option.key == key for option in self.options)

    def get(self, *keys: str) -> Any:
        """The value of the first of the dotted ``keys`` that was typed or stands in a file; ``None`` if none does."""
        for key in keys:
            if (value := self.typed(key)) is not None:
                return value
            for content in reversed(self.contents):
                node: Any = content
                for part in key.split("."):
                    node = node.get(part) if isinstance(node, dict) else None
                if node is not None:
                    return node
        return None

    @property
    def only_prints(self) -> bool:
        """Whether a help or the configuration is asked for, and nothing is to run."""
        keys = [option.key for option in self.options]
        return any(key in ("help", "help_all", "print_config") or key.endswith(".help") for key in keys)

    def words(self, without: Sequence[str] = (), names: Mapping[str, Mapping[str, str]] | None = None) -> list[str]:
        """The words for the parser: the configurations, so that what is typed wins wherever it stands, then the rest.

        Args:
            without: keys that are left out.
            names: what the value of a key is replaced by, by key and value; ``--KEY.help VALUE`` likewise.
        """
        words = [word for file in self.files for word in ("--config", str(file))]
        for option in self.options:
            full = (names or {}).get(option.key.removesuffix(".help"), {}).get(option.value or "")
            if option.key == "help_all":
                words.append("--help")
            elif full:
                words += [f"--{option.key}", full]
            elif option.key not in without:
                words += option.words
        return words
