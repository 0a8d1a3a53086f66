"""Reading what may come from a stranger, within stated limits and with one error for whatever is wrong with it.

Imports nothing heavy.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.inputs.masking import remember

#: How deep and how large a value in a checkpoint or a settings file may be, and the bytes of such a file.
MOST_LEVELS, MOST_VALUES, MOST_BYTES = 16, 1_000_000, 64 * 2**20
#: The size of a configuration file: what can be read within two seconds; and the keys of a mapping in it.
MOST_CONFIG_BYTES, _MOST_KEYS = 2**16, 10_000


@contextmanager
def reading(where: object, remedy: str = "take another copy") -> Iterator[None]:
    """Within it, whatever goes wrong is the input's fault: one ``UserError`` that names ``where``.

    Args:
        where: the file or directory that is read.
        remedy: what to do about it.
    """
    try:
        yield
    except UserError as error:
        if str(where) in str(error):
            raise
        raise UserError(f"{where}: {error}") from error
    except MemoryError:
        raise
    except RecursionError as error:
        raise UserError(f"{where}: it is nested too deep to be read; {remedy}.") from error
    except Exception as error:
        raise UserError(f"{where}: it is not as it should be ({reason_of(error)}); {remedy}.") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of settings.

    Raises:
        UserError: it cannot be read, is no object, or is beyond :data:`MOST_LEVELS`, :data:`MOST_VALUES` or
            :data:`MOST_BYTES`.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no file of text; put a copy in its place.")
        content = at_most(path, MOST_BYTES)
        if len(content) > MOST_BYTES:
            raise UserError(f"{path}: holds more than {MOST_BYTES >> 20} MiB, which no file of settings does.")
        found = json.loads(content.decode())
    except RecursionError as error:
        raise UserError(f"{path}: is nested deeper than {MOST_LEVELS} levels; take another copy.") from error
    except ValueError as error:  # no text, no JSON, a number of very many digits
        raise UserError(f"{path}: cannot be read, it may be cut: {first_line(error)}; copy it again.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: should hold an object, but holds {type(found).__name__}; take another copy.")
    if not is_plain(found):
        raise UserError(f"{path}: is deeper than {MOST_LEVELS} levels or has too many values; take another copy.")
    return found


def at_most(path: Path, most: int) -> bytes:
    """The bytes of a file, and of one that has more than ``most`` the first ``most`` and one.

    What a file says of its size is not believed: some of the system's have none, and never end.
    """
    with path.open("rb") as file:
        return file.read(most + 1)


def is_plain(value: Any) -> bool:
    """Whether ``value`` is nothing but numbers, texts, lists and mappings with text keys, and within the limits."""
    left, layer = MOST_VALUES, [value]
    for _ in range(MOST_LEVELS):
        below: list[Any] = []
        for each in layer:
            if isinstance(each, Mapping):
                if not all(isinstance(key, str) for key in each):
                    return False
                below += each.values()
            elif isinstance(each, list | tuple):
                below += each
            elif not (each is None or isinstance(each, bool | int | float | str)):
                return False
            if len(below) > left:  # a value that stands in many places counts in each
                return False
        left -= len(below)
        if not below:
            return True
        layer = below
    return False


def has_shape(value: Any, shape: Any) -> bool:
    """Whether ``value`` has a stated form.

    A form is a type or several; ``[form]`` is a list of it, ``{"key": form}`` a mapping with at least these keys, and
    ``{str: form}`` a mapping from any text.
    """
    if isinstance(shape, list):
        return isinstance(value, list | tuple) and all(has_shape(each, shape[0]) for each in value)
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return False
        if str in shape:
            return all(isinstance(key, str) and has_shape(each, shape[str]) for key, each in value.items())
        return all(key in value and has_shape(value[key], form) for key, form in shape.items())
    if isinstance(shape, tuple):
        return any(has_shape(value, form) for form in shape)
    if shape is None:
        return value is None
    return isinstance(value, shape) and not (shape is int and isinstance(value, bool))


def reason_of(error: BaseException) -> str:
    """What an error says, its kind before it where that says more."""
    said = first_line(error)
    if isinstance(error, pickle.UnpicklingError):  # whose own advice is to run the file
        return "it holds something else than tensors, of which nothing was run, or it is cut"
    if isinstance(error, KeyError):
        return f"{said} is missing"
    return said if said.startswith(type(error).__name__) else f"{type(error).__name__}: {said}"


# ---- configuration files


def load_config_file(path: Path) -> Any:
    """The contents of a YAML file, in which a key that stands twice is an error and not the last one's win."""
    try:
        text = at_most(path, MOST_CONFIG_BYTES)
        if len(text) > MOST_CONFIG_BYTES:
            raise UserError(
                f"config {path}: holds more than {MOST_CONFIG_BYTES >> 10} KiB, which no configuration does."
            )
        content = _parsed(text.decode())
        if not is_plain(content):
            raise UserError(
                f"config {path}: holds something else than numbers, texts, lists and mappings, is nested deeper than "
                f"{MOST_LEVELS} levels, or its aliases stand for more than {MOST_VALUES:,} values."
            )
    except (ValueError, OverflowError) as error:  # a date that there is none of, a number of very many digits
        raise UserError(f"config {path}: {first_line(error)}; mend it.") from error
    except RecursionError as error:
        raise UserError(f"config {path}: is nested deeper than {MOST_LEVELS} levels.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"config {path}:{where} {problem}.") from error
    if not isinstance(content, dict):
        what = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"config {path}: should hold keys like 'model:' and 'trainer:', but holds {what}.")
    remember(content)
    return content


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    """What a YAML text says; a command asks its files for one key after another, and changes nothing in them."""
    return yaml.load(text, Loader=_StrictLoader)


class _StrictLoader(yaml.SafeLoader):
    """YAML without duplicate keys, merges (``<<``) that grow, and brackets so deep that they take for ever to read."""

    flow_level: int

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > MOST_LEVELS:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a mapping has more than {_MOST_KEYS:,} keys", node.start_mark
            )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key has to be a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
