"""A mistake in a pipeline file: where it is, what is wrong, the way out; and how a list of them is shown."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Protocol

from hetsched.errors import FileError, NotTrustedError, PipelineError

# Rules whose mistakes a user may consent to (exit 8); every other mistake must be mended (exit 3).
CONSENT = frozenset({"path", "trust"})
SHOWN = 100
# One more mistake than this ends the search: a file of 1 MiB could hold a hundred thousand.
MOST = 500
# Words that a hint compares with, and that it lists.
COMPARED, LISTED = 500, 20
WIDEST = 160
LONGEST = 900


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake. `line` and `column` count characters from 1; `source` is the text of the line; `rule` is the mistake's kind."""

    path: str
    line: int
    column: int
    message: str
    rule: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: error: {self.message} [{self.rule}]"

    def render(self) -> str:
        """The mistake, its line, and a caret under the place."""
        if not self.source.strip():
            return str(self)
        text, at = _window(self.source, self.column - 1)
        caret = "".join("\t" if c == "\t" else " " * _cells(c) for c in text[:at])
        shown = "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)
        return f"{self}\n  {shown}\n  {caret}^"


def _cells(char: str) -> int:
    """Columns of a terminal that `char` takes."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _window(text: str, at: int) -> tuple[str, int]:
    """The part of a long line around position `at`, and the position in it."""
    if len(text) <= WIDEST:
        return text, at
    start = max(0, min(at - WIDEST // 2, len(text) - WIDEST))
    head, tail = "..." if start else "", "..." if start + WIDEST < len(text) else ""
    return head + text[start : start + WIDEST] + tail, at - start + len(head)


def render(mistakes: Sequence[Mistake], limit: int = SHOWN) -> str:
    """Every mistake with its line and caret, then how many there are. Past `limit` the rest is only counted."""
    if not mistakes:
        return "no mistakes"
    blocks = [m.render() for m in mistakes[:limit]]
    if len(mistakes) > limit:
        blocks.append(f"... and {len(mistakes) - limit} more")
    files = len({m.path for m in mistakes})
    count = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
    return "\n".join([*blocks, count if files == 1 else f"{count} in {files} files"])


class InvalidPipelineError(PipelineError):
    """A pipeline file is invalid. `mistakes` are in the order of the file."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes: tuple[Mistake, ...] = tuple(mistakes)
        super().__init__(render(self.mistakes))


class ConsentError(NotTrustedError):
    """A pipeline is valid, but does what needs consent. `mistakes` tell what does."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes: tuple[Mistake, ...] = tuple(mistakes)
        file = self.mistakes[0].path
        ways = f"read the file; then run with --trust (this once), or `hetsched trust {file}` (until the file changes)"
        super().__init__(f"{render(self.mistakes)}\n{ways}")


class DamagedFileError(FileError):
    """A pipeline is valid, but files that it names cannot be read. `mistakes` tell which."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes: tuple[Mistake, ...] = tuple(mistakes)
        super().__init__(render(self.mistakes))


def error_for(mistakes: Sequence[Mistake]) -> InvalidPipelineError | ConsentError | DamagedFileError:
    """The error that stands for `mistakes`: `ConsentError` where consent is all that is missing, `DamagedFileError` where only files are at fault."""
    if all(m.rule == "damaged" for m in mistakes):
        return DamagedFileError(mistakes)
    if all(m.rule in CONSENT for m in mistakes):
        return ConsentError(mistakes)
    return InvalidPipelineError(mistakes)


class Place(Protocol):
    """Anything with a line and a column."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


class TooManyMistakesError(Exception):
    """A file has more mistakes than are worth telling; what was found is in its `Findings`."""


@dataclass
class Findings:
    """The mistakes found in one file so far. lines: the file's text by lines. devices: names of the machine that the file is read for."""

    path: str
    lines: Sequence[str] = ()
    found: list[Mistake] = field(default_factory=list)
    devices: frozenset[str] = frozenset()

    def add(self, place: Place, message: str, rule: str) -> None:
        """Note a mistake at `place`."""
        self.at(place.line, place.column, message, rule)

    def at(self, line: int, column: int, message: str, rule: str) -> None:
        """Note a mistake at `line` and `column`, both from 1; the same one at the same place once. Past MOST `TooManyMistakesError`."""
        if len(message) > LONGEST:
            message = f"{message[: LONGEST * 2 // 3]} ... {message[-LONGEST // 3 :]}"
        mistake = self.mistake(line, column, message, rule)
        if mistake in self.found[-50:]:
            return
        self.found.append(mistake)
        if len(self.found) > MOST:
            raise TooManyMistakesError

    def mistake(self, line: int, column: int, message: str, rule: str) -> Mistake:
        """A mistake at `line` and `column`, not noted."""
        return Mistake(self.path, line, column, message, rule, self.lines[line - 1] if 0 < line <= len(self.lines) else "")

    def sorted(self) -> list[Mistake]:
        """Every mistake in the order of the file."""
        return sorted(self.found, key=lambda m: (m.line, m.column))


def hint(word: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown word: the nearest known one, and those there are.

    >>> hint("relo", ["relu", "tanh"])
    "; did you mean 'relu'? known: relu, tanh"
    """
    words = list(islice(known, COMPARED))
    if not words:
        return ""
    near = get_close_matches(word[:100], words, 1, 0.6)
    more = ", ..." if len(words) > LISTED else ""
    return (f"; did you mean {near[0]!r}? known: " if near else "; known: ") + ", ".join(sorted(words)[:LISTED]) + more


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """The tail of an error about a word out of a list too long to show: the nearest known ones; `otherwise` says where to look."""
    near = get_close_matches(word[:100], list(islice(known, COMPARED)), 3, 0.6)
    return f"; did you mean {' or '.join(repr(n) for n in near)}? ({otherwise})" if near else f"; {otherwise}"
