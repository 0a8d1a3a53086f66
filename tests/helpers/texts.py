"""Texts that hypothesis draws, and the text of a table."""

from __future__ import annotations

from hypothesis import strategies as st
from rich.console import Console, RenderableType

# "<" would spell special tokens, and lone surrogates are no text.
TEXT = st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",)), max_size=30)


def printed(table: RenderableType, width: int = 200) -> str:
    """What is printed of ``table`` where there is room."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
