"""What we use of jsonargparse that it does not promise to keep: its messages, and how its help is laid out.

``tests/compat/test_jsonargparse.py`` goes red where a new version changes one of them. ``cli.parser`` has our words.
"""

from __future__ import annotations

import argparse
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import DefaultHelpFormatter

from adapters_pl.inputs.masking import masked
from adapters_pl.inputs.ranges import in_words

#: Every message that is reworded: our name for it, and its pattern, whose groups our words are made of. The first that
#: fits counts, so that what is wrong within a class comes before what is wrong with the class.
MESSAGES: tuple[tuple[str, str], ...] = (
    ("unknown key", r"Option '(?P<key>[\w.]+)' is not accepted"),
    ("unknown key", r"unrecognized arguments: (?:--)?(?P<key>[^\s=]+)"),
    ("key before class", r"is abstract(?s:.*)NestedArg\(key='(?P<key>[\w.]+)'"),
    ("missing key", r"the following arguments are required: (?P<key>.+)"),
    ("out of range", r"Not of type (?P<kind>\w+)(?:: (?P<said>.*?) (?:does not conform|not a)|.*: '(?P<text>.*)')?"),
    ("another type", r"Expected an? <class '(?:int|float|bool)'>"),
    ("no subclass", r"Import path (?:(?P<name>\S+) )?does not correspond to a subclass of (?P<kind>\w+)"),
    ("no subclass", r'"(?P<name>.*)" is not a subclass of (?P<kind>\w+)'),
    ("no subclass", r"Not a valid subclass of (?P<kind>\w+)\. Got value: (?P<name>.*)"),
    ("ambiguous class", r"Multiple subclasses with name (?P<name>\w+)\. .* ambiguity: (?P<paths>.*)\."),
    ("no module", r"class_path '(?P<name>[\w.]+)':\s+.*(?P<reason>No module named '[\w.]+'|has no attribute '\w+')"),
    ("no module", r"import path string: (?P<name>[\w.]+\.[\w.]*)"),
    ("class fails", r"class_path '(?P<name>[\w.]+)':\s+(?P<reason>.+)"),
    ("no class", r"import path string: ?(?P<name>.*)"),
    ("no mapping", r"Unable to load config '(?P<name>.*)'"),
    ("another type", r"Expected an? (?!path |<class 'NoneType'>)"),
)

_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
}


@dataclass(frozen=True)
class Refusal:
    """What jsonargparse refused.

    Attributes:
        message: our name for what it says, of :data:`MESSAGES`; empty for any other message.
        where: the dotted key; empty where it is the command line as such.
        class_path: the class whose argument that is, if it is one's.
        value: what was given, if that is said.
        found: the groups of the message's pattern.
        types: what would have been taken, in words.
        text: the first line of what it says.
    """

    message: str
    where: str
    class_path: str
    value: str | None
    found: dict[str, str]
    types: tuple[str, ...]
    text: str


def refusal(text: str) -> Refusal:
    """What the text of an ``ArgumentError`` says.

    Reports lie within one another, by their indentation, as deep as classes do; the innermost says what is wrong.
    """
    text = masked(text)  # before anything is cut off a secret
    lines = [line.strip(" -") for line in text.splitlines() if line.strip() and "Parser key" not in line]
    keys = [found[1]] if (found := re.match(r"--([\w.]+)\.help: ", text)) else []
    class_path = ""
    while found := re.search(r'^( *)Parser key "([^"]+)":', text, re.MULTILINE):
        keys.append(found[2])
        depth, inner = len(found[1]), []
        for line in text[found.end() :].splitlines():
            if line.strip() and len(line) - len(line.lstrip()) < depth:
                break
            inner.append(line)
        text = "\n".join(inner)
        first = re.search(r"Problem with given class_path '([\w.]+)'", text)
        class_path = first[1] if first else ""
    given = re.search(r"Given value: (?:NestedArg\(.*val=(.*)\)$|(.*))|Got value: (.*)", text, re.DOTALL)
    value = next((part for part in given.groups() if part), "").strip().strip("'") if given else None
    fitting = ((name, found) for name, pattern in MESSAGES if (found := re.search(pattern, text)))
    message, matched = next(fitting, ("", None))
    groups = matched.groupdict(default="") if matched else {}
    return Refusal(
        message,
        ".".join(keys),
        class_path,
        value,
        {name: part.strip() for name, part in groups.items()},
        _types_in(text),
        lines[0] if lines else text,
    )


def _types_in(text: str) -> tuple[str, ...]:
    """What would have been taken: ``Expected a <class 'float'>`` is a number; choices of several types are one list."""
    names = re.findall(r"Expected an? (.+?)(?:\. Got value.*)?$", text, re.MULTILINE)
    names = [name for name in dict.fromkeys(names) if "NoneType" not in name and not name.startswith("path ")]
    choices = [choice for name in names if "Literal" in name for choice in re.findall(r"[^\[\],' ]+", name)[1:]]
    choices = [choice for choice in choices if choice != "typing.Literal"]
    if choices:
        return (f"one of {', '.join(choices)}",)
    plain = [re.sub(r"<class '([\w.]+)'>", r"\1", name).replace("typing.", "") for name in names]
    return tuple(_TYPES.get(name, name) for name in plain)


def refusal_while_building(error: Exception) -> Refusal | None:
    """What was refused, where jsonargparse notices it only while it builds what a value is for."""
    if not isinstance(error, ValueError | TypeError) or "validate against" not in str(error):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    ours = frames and "jsonargparse" in Path(frames[-1].filename).parts
    return refusal(str(error)) if ours else None


class HelpInWords(DefaultHelpFormatter):
    """Help that says in words what an argument takes."""

    def _get_type_str(self, action: argparse.Action) -> str | None:
        hint = getattr(action, "_typehint", None) or action.type
        return in_words(hint) if hint else super()._get_type_str(action)


def under_headings(parser: argparse.ArgumentParser) -> None:
    """Group the arguments of a class that has ``headings`` (``--data.help GSM8K``) by them, without the usage line."""
    groups: Any = parser._action_groups
    for group in list(groups):
        kind: Any = getattr(group, "group_class", None)
        if not hasattr(kind, "headings"):
            continue
        parser.usage, parser.description = argparse.SUPPRESS, f"{group.title}."
        arguments = {action.dest.rpartition(".")[2]: action for action in group._group_actions}
        for heading, names in kind.headings.items():
            parser.add_argument_group(heading)._group_actions = [arguments.pop(name) for name in names]
        parser.add_argument_group(f"Of {kind.__name__} alone")._group_actions = list(arguments.values())
        groups.remove(group)


class SectionHelp(argparse.Action):
    """An option ``--SECTION.help`` that prints the keys of a section, as jsonargparse's own does for a class's."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print them and end."""
        first = self.option_strings[0].removesuffix("help")
        groups = re.split(r"\n(?=\S)", parser.format_help())
        print(next(g for g in groups if re.search(rf"^  {re.escape(first)}(?!help\b)\w+ ", g, re.MULTILINE)))
        parser.exit()
