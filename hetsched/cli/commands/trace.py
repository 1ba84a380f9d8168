"""write what happened in a kept run as a Chrome/Perfetto trace: of loops the first turns"""

from __future__ import annotations

import json
from typing import Any

from hetsched.cli.output import files, write
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched trace`."""
    parser.add_argument(
        "run", metavar="RUN", nargs="?", default="last", help="an id of `hetsched runs`, its beginning, last, or last~1 (default: last)"
    )
    parser.add_argument(
        "-o", "--output", metavar="F", help="the file; - is standard output (default: RUN.trace.json here); `run --trace F` keeps all turns"
    )


def execute(args: Any) -> int:
    """Write the file; open it in ui.perfetto.dev."""
    from hetsched.report.runs import Runs, chrome_trace

    with files({"-o": args.output}) as put:
        record = Runs().load(args.run)
        path = args.output if args.output is not None else f"{record['id']}.trace.json"
        put(path, json.dumps(chrome_trace(record)))
        write(f"trace of {record['id']} -> {path}")
    return 0
