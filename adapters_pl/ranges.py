"""Numbers with a range: declared in a signature, refused by the command line and by the constructor alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from jsonargparse.typing import restricted_number_type

from adapters_pl.errors import UserError

if TYPE_CHECKING:
    PositiveInt = NonNegativeInt = int
    PositiveFloat = NonNegativeFloat = Share = float
else:
    PositiveInt = restricted_number_type("PositiveInt", int, (">=", 1))
    NonNegativeInt = restricted_number_type("NonNegativeInt", int, (">=", 0))
    PositiveFloat = restricted_number_type("PositiveFloat", float, [(">", 0), ("<", math.inf)])
    NonNegativeFloat = restricted_number_type("NonNegativeFloat", float, [(">=", 0), ("<", math.inf)])
    Share = restricted_number_type("Share", float, [(">=", 0), ("<", 1)])

_WORDS = {
    "PositiveInt": "at least 1",
    "NonNegativeInt": "at least 0",
    "PositiveFloat": "above 0",
    "NonNegativeFloat": "at least 0",
    "Share": "at least 0 and below 1",
}


def words_for(type_name: str) -> str | None:
    """What a number of a type of this module must be, in words."""
    return _WORDS.get(type_name)


def refuse_out_of_range(section: str, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for the first of ``values`` outside the range that ``function`` declares for it.

    Args:
        section: what messages put before the name: ``data`` for ``data.batch_size``.
        function: the constructor with the annotations.
        values: its arguments by name.
    """
    for name, hint in get_type_hints(function).items():
        kinds = [kind for kind in (hint, *get_args(hint)) if hasattr(kind, "_restrictions")]
        value = values.get(name)
        if not kinds or value is None or isinstance(value, str | list | dict):
            continue
        (kind,) = kinds
        if not all(compare(value, bound) for compare, bound in kind._restrictions):
            raise UserError(f"{section}.{name} is {value}; it must be {_WORDS[kind.__name__]}.")
