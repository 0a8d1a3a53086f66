"""Finding configurations by name, listing them, and showing what they come to. Imports nothing heavy.

A recipe ``METHOD_MODEL`` is put together from ``methods/METHOD.yaml`` and ``models/MODEL.yaml``.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from adapters_pl.inputs.errors import UserError, did_you_mean
from adapters_pl.inputs.untrusted import load_config_file

#: The folders of the two halves of a recipe, and what lies below both.
METHODS, MODELS = "methods", "models"
COMMON = f"{METHODS}/_common.yaml"

#: The usage and the description of the command.
USAGE = (
    "adapters-pl recipes\n       adapters-pl recipes show NAME",
    "List the configurations that --config finds by name, a line each: the recipes, every METHOD_MODEL of methods/ and "
    "models/ among them, and then what goes over a recipe or is a part of it. 'show' prints what NAME comes to as one "
    "file, with the file that each value is from; save it in ./configs to change it.",
)


def folders() -> list[Path]:
    """Where names are looked up after the path itself: ``./configs``, then what came with the package."""
    package = Path(str(importlib.resources.files("adapters_pl")))
    # A wheel carries the recipes inside the package, a checkout has them beside it.
    return [Path("configs"), package / "configs", package.parent / "configs"]


def available() -> dict[str, list[Path]]:
    """The files that every name stands for, in the order in which they merge.

    A file is known by its name relative to its folder (``trainer/fsdp.yaml``); the nearest folder wins. A name that
    no file has can be a method's and a model's, whose files may lie in different folders.
    """
    files: dict[str, Path] = {}
    for folder in reversed([folder for folder in folders() if folder.is_dir()]):
        paths = [path for path in sorted(folder.rglob("*.yaml")) if path.is_file()]
        files.update({path.relative_to(folder).as_posix(): path for path in paths})
    return {name: found for name, found, _ in _pairs(files)} | {name: [path] for name, path in files.items()}


def _pairs(files: Mapping[str, Path]) -> Iterator[tuple[str, list[Path], str]]:
    """Every method with every model: their name, their files, and which two they are."""
    common = [files[COMMON]] if COMMON in files else []
    for method, above in _parts(files, METHODS):
        for model, below in _parts(files, MODELS):
            yield f"{method}_{model}.yaml", [*common, below, above], f"method {method} with model {model}"


def _parts(files: Mapping[str, Path], folder: str) -> list[tuple[str, Path]]:
    """The methods or models among ``files`` with their names."""
    return [(path.stem, path) for name, path in files.items() if re.fullmatch(rf"{folder}/[^_/][^/]*", name)]


def find(name: str) -> list[Path]:
    """The files that ``--config name`` means, in the order in which they merge.

    Raises:
        UserError: there are none, and the message offers the nearest name; or two pairs have this name.
    """
    for candidate in (Path(name), Path(f"{name}.yaml")):
        if candidate.is_file():
            return [candidate]
    known = available()
    for key in (name, f"{name}.yaml"):
        if len(found := known.get(key, [])) > 1:
            single = {key: files[0] for key, files in known.items() if len(files) == 1}
            if len(meant := [pair for pair_name, _, pair in _pairs(single) if pair_name == key]) > 1:
                raise UserError(f"config '{name}' could be {' or '.join(meant)}: rename a file of one of them.")
        if found:
            return found
    nearest = did_you_mean(name, known, most=1, otherwise="adapters-pl recipes lists them.")
    raise UserError(f"config '{name}': no such file or recipe: {nearest}")


def name_of(files: Sequence[Path]) -> str:
    """The name of the first recipe in ``files``: a file's, or that of a method and a model."""
    own = [file for file in files if file.name != Path(COMMON).name] or files
    if [file.parent.name for file in own[:2]] == [MODELS, METHODS]:
        return f"{own[1].stem}_{own[0].stem}"
    return own[0].stem


def describe(files: Sequence[Path]) -> str:
    """What the files say of themselves in their first comment lines, the method before the model."""
    said = [_first_comment(file) for file in reversed(files) if len(files) == 1 or file.name != Path(COMMON).name]
    return "; ".join(filter(None, said))


def _first_comment(file: Path) -> str:
    first = file.read_text(encoding="utf-8", errors="replace").splitlines()[:1]
    return first[0].lstrip("# ").strip() if first and first[0].startswith("#") else ""


# ---- what a name comes to


class Value(NamedTuple):
    """A value in a merged configuration, and where it is from: the file, and what is written behind it there."""

    value: Any
    source: str


def merged(name: str) -> dict[str, Any]:
    """What ``--config name`` comes to: keys in mappings, and every value a :class:`Value`.

    Raises:
        UserError: there is no such name, or a file of it cannot be read.
    """
    names = {files[0]: name for name, files in available().items() if len(files) == 1}
    tree: dict[str, Any] = {}
    for file in find(name):
        content = load_config_file(file)
        comments = dict(_comments(file.read_text(encoding="utf-8")))
        tree = _over(tree, _with_sources(content, names.get(file, file.as_posix()), comments))
    return tree


def _comments(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is written behind the values of a YAML text on their lines, by the keys that lead to them."""
    lines = text.splitlines()
    nodes: list[tuple[tuple[str, ...], yaml.Node | None]] = [((), yaml.compose(text, yaml.SafeLoader))]
    while nodes:
        path, node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            nodes += [((*path, key.value), value) for key, value in node.value]
        elif node is not None and node.start_mark.line == node.end_mark.line:
            behind = lines[node.end_mark.line][node.end_mark.column :]
            if found := re.search(r"\s#\s*(.*)", behind):
                yield path, found[1].strip()


def _with_sources(node: Any, file: str, comments: Mapping[tuple[str, ...], str], path: tuple[str, ...] = ()) -> Any:
    if isinstance(node, dict) and node:
        return {key: _with_sources(part, file, comments, (*path, str(key))) for key, part in node.items()}
    return Value(node, f"{file}: {comments[path]}" if path in comments else file)


def _over(below: Any, above: Any) -> Any:
    """``above`` laid over ``below`` as ``--config`` files are: key by key, and a class keeps its arguments."""
    if isinstance(below, dict) != isinstance(above, dict) or _is_class(below) or _is_class(above):
        below, above = _as_class(below), _as_class(above)
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: _over(below[key], part) if key in below else part for key, part in above.items()}
    return above


def _is_class(node: Any) -> bool:
    return isinstance(node, dict) and not node.keys().isdisjoint({"class_path", "init_args"})


def _as_class(node: Any) -> Any:
    """``LoRA``, or arguments alone, written as ``{class_path, init_args}``."""
    if isinstance(node, Value):
        return {"class_path": node} if isinstance(node.value, str) else node
    return node if _is_class(node) else {"init_args": node}


def _lines(tree: Mapping[Any, Any], indent: str = "") -> Iterator[str]:
    for key, node in tree.items():
        if isinstance(node, Value):
            yield f"{indent}{_yaml(key)}: {_yaml(node.value)}  # {node.source}"
        else:
            yield f"{indent}{_yaml(key)}:"
            yield from _lines(node, f"{indent}  ")


def _yaml(value: Any) -> str:
    """``value`` in one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    text = text.removesuffix("\n").removesuffix("\n...")
    return json.dumps(value) if "\n" in text else text


# ---- the command


def main(options: Namespace, debug: bool = False) -> int:
    """List the recipes and overlays, a line each, or show one."""
    if not options.words:
        listing = sorted(available().items(), key=lambda item: ("/" in item[0], item[0]))
        width = max((len(name) for name, _ in listing), default=0)
        for name, files in listing:
            print(f"{name:<{width}}  {describe(files)}")
        print("\nUse one with: adapters-pl fit --config NAME")
    elif len(options.words) == 2 and options.words[0] == "show":
        name = options.words[1]
        print(f"# {describe(find(name))}", *_lines(merged(name)), sep="\n")
    else:
        said = " ".join(options.words)
        raise UserError(f"recipes takes nothing or 'show NAME', got: {said}. See: adapters-pl recipes --help")
    return 0
