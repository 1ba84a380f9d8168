"""look at what is installed: libraries, whether devices compute, what was measured of them, folders, variables; with a way out where it is wrong"""

from __future__ import annotations

from typing import Any

from hetsched.cli.options import format_option
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.errors import TaskError


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched doctor`."""
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print what is seen, a line each; 1 if something is wrong, 0 where there are remarks at most."""
    from hetsched.cli.health import BAD, NOTE, look
    from hetsched.report.text import plural

    if args.format == "json":
        found = list(look())
        write_json({"version": 1, "status": "wrong" if any(s.state == BAD for s in found) else "ok", "seen": [s._asdict() for s in found]})
    else:
        found = []
        for seen in look():  # told as it comes: building OpenCL programs takes seconds
            found.append(seen)
            write(f"{seen.state:<6} {seen.what}: {seen.found}")
    wrong, notes = (sum(s.state == state for s in found) for state in (BAD, NOTE))
    if args.format == "text":
        write(f"{plural(wrong, 'thing')} wrong, {plural(notes, 'remark')}")
    return TaskError.exit_code if wrong else 0
