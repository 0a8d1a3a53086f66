"""Texts that hypothesis draws."""

from __future__ import annotations

from hypothesis import strategies as st

# "<" would spell special tokens, and lone surrogates are no text.
TEXT = st.text(st.characters(exclude_characters="<", exclude_categories=("Cs",)), max_size=30)
