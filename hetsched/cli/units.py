"""Durations and sizes as people write them: `30s`, `2min`, `500ms`; `512MiB`, `2GB`."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Mapping

from hetsched.errors import CommandLineError, did_you_mean

SECONDS: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
BYTES: Mapping[str, int] = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
_FORM = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def duration(text: str, option: str = "", *, zero: bool = False) -> float:
    """Seconds of `30s`, `2min`, `500ms`, `1.5h`; a number alone is seconds. Finite and more than 0 (or 0, with `zero`), else `CommandLineError`.

    option: where it was given, named by errors.
    """
    return _scaled(text, option, SECONDS, "s", "a duration", "30s, 2min, 500ms", zero)


def size(text: str, option: str = "") -> int:
    """Bytes of `512MiB` (powers of 1024), `2GB` (powers of 1000); a number alone is bytes. More than 0, else `CommandLineError`. option: as above."""
    return int(_scaled(text, option, BYTES, "B", "a size", "512MiB, 2GB"))


def whole(text: str) -> int:
    """A whole number of at least 1, for `argparse`."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def days(text: str) -> float:
    """A finite number of days of at least 0, for `argparse`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text!r} is no number of days of at least 0")
    return value


def _scaled(given: str, option: str, units: Mapping[str, float], plain: str, what: str, examples: str, zero: bool = False) -> float:
    shown = f"{option} {given!r}".strip()
    found = _FORM.fullmatch(given)
    if found is None:
        raise CommandLineError(f"{shown} is not {what}; write it like {examples}")
    number, unit = found.groups()
    if unit and unit not in units:
        raise CommandLineError(f"{shown}: unknown unit {unit!r}{did_you_mean(unit, units)}")
    try:
        value = float(number) * units[unit or plain]
    except ValueError:
        raise CommandLineError(f"{shown} is not {what}; write it like {examples}") from None
    if not (0 < value < math.inf or (zero and value == 0)):
        raise CommandLineError(f"{shown}: {what} must be more than 0 and finite")
    return value


def assignment(text: str) -> tuple[str, str]:
    """`KEY=VALUE` as a pair."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise CommandLineError(f"-s {text!r}: write KEY=VALUE, such as -s epochs=3")
    return key.strip(), value


_TURNS = re.compile(r"\s*(?:every\s+)?([0-9]+)\s*turns?\s*")


def how_often(text: str) -> tuple[float | None, int | None]:
    """(seconds, None) of `30s`, `5min`; (None, turns) of `500turns`. `CommandLineError` for anything else."""
    found = _TURNS.fullmatch(text)
    if found is None:
        try:
            return duration(text), None
        except CommandLineError as error:
            raise CommandLineError(f"--checkpoint {error}; or every so many turns of a loop: 500turns") from None
    if int(found[1]) < 1:
        raise CommandLineError(f"--checkpoint {text!r}: every 1 turn or more")
    return None, int(found[1])
