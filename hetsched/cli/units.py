"""Durations and sizes as people write them: `30s`, `2min`, `500ms`; `512MiB`, `2GB`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from hetsched.errors import CommandLineError, did_you_mean

SECONDS: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
BYTES: Mapping[str, int] = {
    "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}  # fmt: skip
_FORM = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)\s*")


def duration(text: str, *, zero: bool = False) -> float:
    """Seconds of `30s`, `2min`, `500ms`, `1.5h`; a number alone is seconds. Finite and more than 0 (or 0, with `zero`), else `CommandLineError`."""
    return _scaled(text, SECONDS, "s", "a duration", "30s, 2min, 500ms", zero)


def size(text: str) -> int:
    """Bytes of `512MiB` (powers of 1024), `2GB` (powers of 1000); a number alone is bytes. More than 0, else `CommandLineError`."""
    return int(_scaled(text, BYTES, "B", "a size", "512MiB, 2GB"))


def _scaled(text: str, units: Mapping[str, float], plain: str, what: str, examples: str, zero: bool = False) -> float:
    found = _FORM.fullmatch(text)
    if found is None:
        raise CommandLineError(f"{text!r} is not {what}; write it like {examples}")
    number, unit = found.groups()
    if unit and unit not in units:
        raise CommandLineError(f"{text!r}: unknown unit {unit!r}{did_you_mean(unit, units)}")
    try:
        value = float(number) * units[unit or plain]
    except ValueError:
        raise CommandLineError(f"{text!r} is not {what}; write it like {examples}") from None
    if not (0 < value < math.inf or (zero and value == 0)):
        raise CommandLineError(f"{text!r}: {what} must be more than 0 and finite")
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
