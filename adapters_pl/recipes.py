"""Finding a configuration by name, and listing the recipes. Imports nothing heavy."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from pathlib import Path

from adapters_pl.errors import UserError, did_you_mean


def folders() -> list[Path]:
    """Where names are looked up after the path itself: ``./configs``, then what came with the package."""
    package = Path(str(importlib.resources.files("adapters_pl")))
    # A wheel carries the recipes inside the package, a checkout has them beside it.
    return [Path("configs"), package / "configs", package.parent / "configs"]


def available() -> dict[str, Path]:
    """Every configuration by its name relative to its folder (``trainer/fsdp.yaml``); the nearest folder wins."""
    found: dict[str, Path] = {}
    for folder in reversed([folder for folder in folders() if folder.is_dir()]):
        files = [path for path in sorted(folder.rglob("*.yaml")) if path.is_file()]
        found.update({path.relative_to(folder).as_posix(): path for path in files})
    return found


def find(name: str) -> Path:
    """The file that ``--config name`` means.

    Raises:
        UserError: there is none; the message offers the nearest names.
    """
    for candidate in (Path(name), Path(f"{name}.yaml")):
        if candidate.is_file():
            return candidate
    known = available()
    for key in (name, f"{name}.yaml"):
        if key in known:
            return known[key]
    raise UserError(f"config '{name}': no such file or recipe: {did_you_mean(name, known)}")


def describe(path: Path) -> str:
    """The recipe's first comment line."""
    first = path.read_text(encoding="utf-8", errors="replace").splitlines()[:1]
    return first[0].lstrip("# ").strip() if first and first[0].startswith("#") else ""


def main(arguments: Sequence[str]) -> int:
    """List the recipes and overlays, a line each."""
    if list(arguments) in (["--help"], ["-h"]):
        print("usage: adapters-pl recipes\n\nList the configurations that --config finds by name, a line each.")
        return 0
    if arguments:
        raise UserError(f"recipes takes no arguments, got {' '.join(arguments)}.")
    listing = sorted(available().items(), key=lambda item: ("/" in item[0], item[0]))
    width = max((len(name) for name, _ in listing), default=0)
    for name, path in listing:
        print(f"{name:<{width}}  {describe(path)}")
    print("\nUse one with: adapters-pl fit --config NAME")
    return 0
