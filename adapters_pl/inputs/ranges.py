"""Numbers with a range: declared in a signature, refused by the command line and by the constructor alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse.typing import register_type

from adapters_pl.inputs.errors import UserError

if TYPE_CHECKING:
    AtLeast0 = int
    AtLeast1 = int
    AtLeast8 = int
    Above0 = float
    NotNegative = float
    Share = float
else:

    def _number(name: str, base: type, least: float, above: bool = False, below: float = math.inf) -> type:
        """A type for signatures alone: what is parsed by it is a plain ``base``, which any file can hold."""

        def within(value: float) -> bool:
            return (least < value if above else least <= value) and value < below

        def parsed(value: Any) -> float:
            if isinstance(value, bool) or not within(number := base(value)) or number != float(value):
                raise ValueError(f"{value} does not conform to the range")
            return number

        kind = type(name, (base,), {"within": staticmethod(within)})
        register_type(kind, base, parsed, type_check=lambda value, _: type(value) is base and within(value))
        return kind

    AtLeast0 = _number("AtLeast0", int, 0)
    AtLeast1 = _number("AtLeast1", int, 1)
    AtLeast8 = _number("AtLeast8", int, 8)
    Above0 = _number("Above0", float, 0, above=True)
    NotNegative = _number("NotNegative", float, 0)
    Share = _number("Share", float, 0, below=1)

#: What a number of each type must be.
WORDS = {
    "AtLeast0": "at least 0",
    "AtLeast1": "at least 1",
    "AtLeast8": "at least 8",
    "Above0": "above 0",
    "NotNegative": "at least 0",
    "Share": "at least 0 and below 1",
}


_PLAIN = {str: "text", bool: "true or false", int: "whole number", float: "number", type(None): "null"}


def in_words(hint: Any) -> str:
    """What a person gives for a type.

    >>> in_words(list[str] | None), in_words(Literal["keep", "drop"]), in_words(AtLeast1)
    ('list of text, or null', 'keep or drop', 'whole number, at least 1')
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin in (Union, UnionType):
        *others, last = map(in_words, inner)
        return f"{', '.join(others)}, or {last}"
    if origin is list:
        return f"list of {in_words(inner[0])}"
    if origin is dict:
        return f"mapping from {in_words(inner[0])} to {in_words(inner[1])}"
    if hasattr(hint, "within"):
        return f"{_PLAIN[hint.__mro__[1]]}, {WORDS[hint.__name__]}"
    return _PLAIN.get(hint) or str(getattr(hint, "__name__", hint))


def refuse_out_of_range(section: str, function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for the first of ``values`` outside the range that ``function`` declares for it.

    Args:
        section: what messages put before the name: ``data.`` for ``data.batch_size``.
        function: the constructor with the annotations.
        values: its arguments by name.
    """
    for name, hint in get_type_hints(function).items():
        kinds = [kind for kind in (hint, *get_args(hint)) if hasattr(kind, "within")]
        if name not in values:
            continue
        value = values[name]
        if value is None and not (hint in (Any, type(None)) or type(None) in get_args(hint)):
            wanted = f"it must be {WORDS[kinds[0].__name__]}" if kinds else "give a value, or leave it out"
            raise UserError(f"{section}{name} is null; {wanted}.")
        if kinds and isinstance(value, int | float) and not kinds[0].within(value):
            raise UserError(f"{section}{name} is {value}; it must be {WORDS[kinds[0].__name__]}.")
