"""show one kept run: how long it took, where its tasks ran, and which were furthest from the plan"""

from __future__ import annotations

from typing import Any

from hetsched.cli.options import format_option
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched show`."""
    parser.add_argument(
        "run", metavar="RUN", nargs="?", default="last", help="an id of `hetsched runs`, its beginning, last, or last~1 (default: last)"
    )
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print the run."""
    from hetsched.report.run_text import run_lines
    from hetsched.report.runs import Runs

    record = Runs().load(args.run)
    if args.format == "json":
        write_json(record)
    else:
        write("\n".join(run_lines(record)))
    return 0
