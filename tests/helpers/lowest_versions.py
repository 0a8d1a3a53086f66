"""Constraints by which pip installs the lowest versions that ``pyproject.toml`` allows: ``make test-lowest``."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def lowest(project: dict) -> list[str]:
    """``name==version`` for every dependency, the extras' that users install included."""
    extras = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *(line for extra, lines in extras.items() if extra != "test" for line in lines),
    ]
    return [re.sub(r"\[.*?\]|\s", "", line).replace(">=", "==") for line in requirements]


if __name__ == "__main__":
    print(*lowest(tomllib.loads(Path("pyproject.toml").read_text())["project"]), sep="\n")
