"""Reading a configuration file, within limits. Imports nothing heavy."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from adapters_pl.inputs.errors import UserError, first_line
from adapters_pl.inputs.masking import remember
from adapters_pl.inputs.untrusted import MOST_LEVELS, MOST_VALUES, is_plain

#: The size of a configuration file: what can be read within two seconds.
MOST_CONFIG_BYTES = 2**16
_MOST_KEYS = 10_000


def load_config_file(path: Path) -> Any:
    """The contents of a YAML file, in which a key that stands twice is an error and not the last one's win."""
    try:
        if path.stat().st_size > MOST_CONFIG_BYTES:
            raise UserError(
                f"config {path}: holds more than {MOST_CONFIG_BYTES >> 10} KiB, which no configuration does."
            )
        content = _parsed(path.read_text(encoding="utf-8"))
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
