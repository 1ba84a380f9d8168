"""compare two kept runs, or two locked plans: what was asked for, where tasks run, how long it takes"""

from __future__ import annotations

from typing import Any

from hetsched.cli.output import write
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched diff`."""
    parser.add_argument("a", metavar="RUN", help="an id of `hetsched runs`, its beginning, last, or last~1; or a locked plan (PLAN.json)")
    parser.add_argument("b", metavar="RUN", help="the other run, or locked plan")


def execute(args: Any) -> int:
    """Print what differs."""
    plans = [x.endswith(".json") for x in (args.a, args.b)]
    if any(plans):
        if not all(plans):
            raise CommandLineError(f"{args.a} and {args.b}: a run is compared with a run, and a locked plan (.json) with a locked plan")
        from hetsched.locked import read_document
        from hetsched.report.plan_diff import differences, differences_text

        write(differences_text(differences(read_document(args.a), read_document(args.b))))
        return 0
    from hetsched.report.run_text import diff_lines
    from hetsched.report.runs import Runs

    runs = Runs()
    write("\n".join(diff_lines(runs.load(args.a), runs.load(args.b))))
    return 0
