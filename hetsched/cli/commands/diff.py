"""compare two kept runs, or two locked plans: what was asked for, where tasks run, how long it takes"""

from __future__ import annotations

from typing import Any

from hetsched.cli.options import format_option
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched diff`."""
    parser.add_argument("a", metavar="RUN", help="an id of `hetsched runs`, its beginning, last, or last~1; or a locked plan (PLAN.json)")
    parser.add_argument("b", metavar="RUN", help="the other run, or locked plan")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print what differs."""
    plans = [x.endswith(".json") for x in (args.a, args.b)]
    if any(plans):
        if not all(plans):
            raise CommandLineError(f"{args.a} and {args.b}: a run is compared with a run, and a locked plan (.json) with a locked plan")
        from hetsched.locked import read_document
        from hetsched.report.plan_diff import differences, differences_record, differences_text

        found = differences(read_document(args.a), read_document(args.b))
        if args.format == "json":
            write_json({"version": 1, "plans": [args.a, args.b], **differences_record(found)})
        else:
            write(differences_text(found))
        return 0
    from hetsched.report.run_text import diff_lines, diff_record
    from hetsched.report.runs import Runs

    runs = Runs()
    a, b = runs.load(args.a), runs.load(args.b)
    if args.format == "json":
        write_json(diff_record(a, b))
    else:
        write("\n".join(diff_lines(a, b)))
    return 0
