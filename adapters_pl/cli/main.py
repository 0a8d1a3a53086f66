"""The command line's front door. It answers what needs no heavy library, and hands the rest on."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType

from adapters_pl import __version__
from adapters_pl.cli.command import COMMANDS
from adapters_pl.inputs import terminal
from adapters_pl.inputs.errors import UserError, did_you_mean, shortened
from adapters_pl.inputs.masking import begin, masked

DONE, USER_ERROR, PROGRAM_ERROR, INTERRUPTED = 0, 1, 2, 130


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
    terminal.prepare()
    sys.excepthook = _print_traceback
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    sys.exit(code)
