"""compare two kept runs: what was asked for, where tasks ran, how long each took"""

from __future__ import annotations

from typing import Any

from hetsched.cli.output import write
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched diff`."""
    parser.add_argument("a", metavar="RUN", help="an id of `hetsched runs`, its beginning, last, or last~1")
    parser.add_argument("b", metavar="RUN", help="the other run")


def execute(args: Any) -> int:
    """Print what differs."""
    from hetsched.report.run_text import diff_lines
    from hetsched.report.runs import Runs

    runs = Runs()
    write("\n".join(diff_lines(runs.load(args.a), runs.load(args.b))))
    return 0
