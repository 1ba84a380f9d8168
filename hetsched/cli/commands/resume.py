"""go on with a run that was begun with --checkpoint and did not end, from its last checkpoint"""

from __future__ import annotations

import argparse
from typing import Any

from hetsched.cli.options import format_option
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched resume`."""
    parser.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        default="last",
        help="an id of `hetsched runs`, its beginning, or last: of the unfinished ones (default: last)",
    )
    parser.add_argument("--fresh", action="store_true", help="begin it anew, with the file as it is now, and forget what was kept")
    format_option(parser)


def execute(args: Any) -> int:
    """Run what was asked for then: the same file, parameters and options. What has changed since is refused, with what it is."""
    from hetsched.cli.commands import run
    from hetsched.report.unfinished import Unfinished

    runs = Unfinished()
    record = runs.load(args.run)
    if args.fresh:
        runs.remove(record["id"])
    again = {**record["args"], "format": args.format, "resumed": "" if args.fresh else record["id"]}
    parser = Parser(prog="hetsched run")
    run.arguments(parser)
    return run.execute(argparse.Namespace(**{**vars(parser.read([record["file"]])), **again}))
