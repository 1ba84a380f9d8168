"""The argument parser of subcommands: `argparse` with errors that are `CommandLineError` and name the nearest word."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from hetsched.errors import CommandLineError

# Options whose value may begin with a dash, which argparse would take for an option.
DASHED = ("--what-if",)


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that never guesses at abbreviations and raises `CommandLineError`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The namespace of `argv`; an unknown option is told with the nearest known one."""
        found, extra = self.parse_known_args(_joined(argv))
        if extra:
            self.error(self._unknown(extra))
        return found

    def _unknown(self, extra: Sequence[str]) -> str:
        for word in extra:
            if word.startswith("-") and word != "-":
                option = word.partition("=")[0]
                near = get_close_matches(option, self._option_string_actions, 1, 0.6)
                hint = f"; did you mean {near[0]}?" if near else ""
                return f"unknown option {option!r}{hint}"
        return f"one argument too many: {extra[0]!r}"

    def error(self, message: str) -> NoReturn:
        self.color = False  # from Python 3.14 on usage is coloured for a terminal, and this text may go elsewhere
        raise CommandLineError(f"{self.prog}: {message}\n{self.format_usage().strip()}\ntell more: {self.prog} --help")


def _joined(argv: Sequence[str]) -> list[str]:
    """`argv` with the values of `DASHED` joined to their options: `--what-if -cuda:0` as `--what-if=-cuda:0`."""
    out: list[str] = []
    for word in argv:
        if out and out[-1] in DASHED:
            out[-1] = f"{out[-1]}={word}"
        else:
            out.append(word)
    return out
