"""Where downloads and tokenised data are kept, and whether downloads are allowed. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "ADAPTERS_PL_CACHE"
OFFLINE_VARIABLES = ("ADAPTERS_PL_OFFLINE", "HF_HUB_OFFLINE")


def offline() -> str | None:
    """The environment variable that forbids downloads, if one does."""
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on"):
            return name
    return None


def cache_folder() -> Path:
    """Where downloads and tokenised data are kept: ``ADAPTERS_PL_CACHE``, else the user's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(os.path.expanduser(given))
    return Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "adapters_pl"
