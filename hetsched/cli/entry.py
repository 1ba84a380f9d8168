"""From a command line to an exit code: finds the subcommand, runs it, and turns whatever it raises into a message and a code.

Results go to standard output, everything else to standard error. Exit codes are those of `hetsched.errors`; 141 where the reader of standard output
went away (as a shell reports a program that SIGPIPE ended).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Protocol, cast

import hetsched
from hetsched.cli import commands
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError, HetschedError, InternalError, PlanError, did_you_mean

BROKEN_PIPE = 141
INTERRUPTED = 130
DEBUG = "HETSCHED_DEBUG"


class Command(Protocol):
    """What a module in `commands/` offers. The first line of its docstring is its line of help."""

    __doc__: str | None

    def arguments(self, parser: Parser) -> None: ...
    def execute(self, args: Any) -> int: ...


def command_names() -> list[str]:
    """Every subcommand: the files of `commands/`."""
    return sorted(info.name for info in iter_modules(commands.__path__))


def load(name: str) -> Command:
    """The subcommand called `name`."""
    if name not in command_names():
        raise CommandLineError(f"hetsched has no command {name!r}{did_you_mean(name, command_names())}")
    return cast(Command, import_module(f"hetsched.cli.commands.{name}"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_what_is_closed()
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except BaseException as error:
        return report(error, argv)


def _open_what_is_closed() -> None:
    """Who closed standard output or standard error (`>&-`) wants to hear nothing: what is written there goes nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the end)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        if len(argv) > 1 and argv[0] == "help":
            return _dispatch([argv[1], "--help"])
        print(overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else CommandLineError.exit_code
    if argv[0] in ("-V", "--version"):
        print(f"hetsched {hetsched.__version__}")
        return 0
    if argv[0].startswith("-"):
        known = ["--help", "--version"]
        raise CommandLineError(f"unknown option {argv[0]!r} before the command{did_you_mean(argv[0], known)}")
    command = load(argv[0])
    parser = Parser(prog=f"hetsched {argv[0]}", description=command.__doc__)
    command.arguments(parser)
    return command.execute(parser.read(argv[1:]))


def overview() -> str:
    """The text of `hetsched --help`."""
    lines = [
        "hetsched: plans and runs deep-learning workflows on all devices of a machine at once",
        "",
        "usage: hetsched COMMAND ... ; hetsched COMMAND --help tells more",
        "",
    ]
    for name in command_names():
        lines.append(f"  {name:<12}{(load(name).__doc__ or '').strip().splitlines()[0]}")
    lines += [
        "",
        "exit: 0 done  1 a task failed  2 command line  3 pipeline invalid  4 no device fits  5 out of memory  6 timeout",
        "      7 disk or corrupt file  8 not trusted  70 internal bug  130 Ctrl-C",
    ]
    return "\n".join(lines)


def exit_code(error: BaseException) -> int:
    """The exit code that stands for `error`."""
    if isinstance(error, HetschedError):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else CommandLineError.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, MemoryError):
        return 5
    if isinstance(error, OSError):
        return 7
    return InternalError.exit_code


def report(error: BaseException, argv: Sequence[str]) -> int:
    """Tell of `error` on standard error, and return the exit code."""
    code = exit_code(error)
    if isinstance(error, BrokenPipeError):
        # Whoever read standard output is gone; the interpreter must not try again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    if isinstance(error, SystemExit):
        return code
    if os.environ.get(DEBUG):
        from traceback import print_exception

        print_exception(error)
        return code
    if isinstance(error, KeyboardInterrupt):
        print("\nhetsched: interrupted", file=sys.stderr)
    elif code == InternalError.exit_code or isinstance(error, (InternalError, PlanError)):
        print(_bug(error, argv), file=sys.stderr)
    else:
        print(message(error), file=sys.stderr)
    return code


def message(error: BaseException) -> str:
    """An error as the user reads it: `hetsched: error: ...`; a list of mistakes with their places stands as it is."""
    if isinstance(error, HetschedError):
        if getattr(error, "mistakes", None):
            return str(error)
        lines = getattr(error, "problems", None) or [str(error) or type(error).__name__]
        return "\n".join(f"hetsched: error: {line}" for line in lines)
    if isinstance(error, MemoryError):
        return "hetsched: error: out of memory; give --memory SIZE to plan within a limit, or a smaller batch"
    if isinstance(error, OSError) and error.filename is not None:
        return f"hetsched: error: {error.filename}: {error.strerror or error}"
    return f"hetsched: error: {error}"


def _bug(error: BaseException, argv: Sequence[str]) -> str:
    """A short text how to report a bug; the traceback goes to a file that the text names."""
    import platform
    import tempfile
    from traceback import format_exception

    first = (str(error).splitlines() or [""])[0]
    head = f"hetsched: internal bug: {type(error).__name__}: {first}"
    details = [
        f"hetsched {hetsched.__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"command: hetsched {' '.join(argv)}",
        "",
        *format_exception(error),
    ]
    try:
        with tempfile.NamedTemporaryFile("w", prefix="hetsched-bug-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write("\n".join(details))
    except OSError:
        return f"{head}\nPlease report it, with what {DEBUG}=1 prints."
    return f"{head}\nPlease report it with the pipeline and {file.name}, which holds the traceback ({DEBUG}=1 prints it here)."
