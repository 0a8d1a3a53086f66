"""The options of ``export``, ``data`` and ``compare``. Imports nothing heavy, so that their help comes at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from adapters_pl.inputs.errors import UserError


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are worded and numbered like all others."""

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("adapters-pl ")
        raise UserError(f"{name}: {message}. See: {self.prog} --help")


def parsed(command: str, arguments: Sequence[str]) -> argparse.Namespace | None:
    """The options that ``arguments`` give, or ``None`` where they ask for help, which is then printed."""
    try:
        return PARSERS[command]().parse_args(arguments)
    except SystemExit:
        return None


def _export() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="adapters-pl export",
        description="A trained adapter as a directory for other tools, or merged into its base.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the directory to write; it must be new or empty")
    parser.add_argument("--ckpt_path", metavar="FILE", help="a checkpoint, a run's directory, last or best (last)")
    parser.add_argument("--adapter_path", metavar="DIR", help="instead, an adapter directory or its hub id")
    parser.add_argument("--merge", action="store_true", help="write the whole model with the adapter folded in")
    parser.add_argument("--base", help="another place of the base than the one the adapter names")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument(
        "--quantization",
        choices=("8bit", "4bit", "none"),
        help="the base's in training, into whose weights the adapter is folded (what the checkpoint says, or none)",
    )
    parser.add_argument("--push", metavar="REPO", help="upload to this hub repository; HF_TOKEN is the key")
    parser.add_argument("--trainer.default_root_dir", dest="root", metavar="DIR", help="where the runs are (runs)")
    parser.add_argument("--trust_checkpoint", action="store_true", help="import a checkpoint's own adapter classes")
    return parser


def _data() -> argparse.ArgumentParser:
    parser = _Parser(prog="adapters-pl data", description="The published datasets and their files.")
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|fetch|verify|show")
    listing = actions.add_parser("list", help="every dataset: rows, licence, and where its files are")
    fetch = actions.add_parser("fetch", help="bring the files of datasets or suites into the cache")
    verify = actions.add_parser("verify", help="compare files with their registered checksums")
    show = actions.add_parser("show", help="print what is known of a dataset, and some rows")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    verify.add_argument("names", nargs="*", metavar="NAME", help="all that are at hand if none is given")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--rows", type=int, default=3, help="how many rows to print (3)")
    show.add_argument("--split", choices=("train", "test"), help="the split to print; test if there is one")
    for action in (listing, fetch, verify, show):
        action.add_argument("--root", help="the folder with the published layout (else ADAPTERS_PL_DATA, else here)")
    return parser


def _compare() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="adapters-pl compare",
        description="Test results of several runs side by side. Each run is compared with the first, set by set, over "
        "the rows that both answered: McNemar's exact test, and a bootstrap interval of the difference.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or names of runs below the root")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where runs are (default: runs)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return parser


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {"export": _export, "data": _data, "compare": _compare}
