"""Numbers and tables as text: seconds, bytes, aligned columns."""

from __future__ import annotations

from collections.abc import Sequence


def seconds_text(seconds: float) -> str:
    """Three significant digits with a unit: `1.25 ms`, `3.2 s`, `2 min 5 s`."""
    if seconds != seconds or seconds in (float("inf"), float("-inf")):
        return str(seconds)
    size = abs(seconds)
    if size >= 119.5:
        minutes, rest = divmod(round(size), 60)
        hours, minutes = divmod(minutes, 60)
        sign = "-" if seconds < 0 else ""
        return f"{sign}{hours} h {minutes} min" if hours else f"{sign}{minutes} min {rest} s"
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if size >= factor * 0.9995 or unit == "us":
            return f"{_three(seconds / factor)} {unit}" if size else "0 s"
    raise AssertionError("unreachable")


def bytes_text(nbytes: float) -> str:
    """Bytes with a binary unit: `512 B`, `1.5 MiB`."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1023.5:
            return f"{_three(size)} {unit}"
        size /= 1024
    return f"{_three(size)} TiB"


def _three(number: float) -> str:
    text = f"{number:.3g}"
    return f"{float(text):g}" if "e" not in text else f"{number:.0f}"


def percent_text(fraction: float) -> str:
    """`12 %`; a fraction that is neither nothing nor all is never shown as 0 % or 100 %."""
    whole = round(100 * fraction)
    if whole == 0 and fraction > 0:
        return "<1 %"
    if whole == 100 and fraction < 1:
        return ">99 %"
    return f"{whole} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of a table with columns two spaces apart; the columns numbered in `right` are set flush right."""
    every = [list(head), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in every) for i in range(len(head))]
    return ["  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))).rstrip() for row in every]


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` characters; what is left out in the middle is `..`."""
    if len(text) <= width:
        return text
    if width <= 4:
        return text[: max(width, 0)]
    head = (width - 2) // 2
    return text[:head] + ".." + text[len(text) - (width - 2 - head) :]


def cut(text: str, width: int) -> str:
    """The beginning of `text`, in at most `width` characters; `...` where something is left out."""
    return text if len(text) <= width else text[: max(width - 3, 0)].rstrip() + "..."


def plural(n: int, noun: str, many: str = "") -> str:
    """`1 task`, `2 tasks`, `3 copies`."""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"
