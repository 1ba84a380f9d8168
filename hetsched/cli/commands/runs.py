"""list the runs that are kept, the newest first"""

from __future__ import annotations

import sys
from typing import Any

from hetsched.cli.keeping import turns_text
from hetsched.cli.options import format_option
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.cli.units import whole


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched runs`."""
    parser.add_argument("-n", type=whole, default=20, metavar="N", help="at most so many (default: 20)")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print a line a run."""
    from hetsched.report.run_text import runs_lines
    from hetsched.report.runs import Runs
    from hetsched.report.text import plural
    from hetsched.report.unfinished import Unfinished

    runs = Runs()
    found = runs.every(args.n)
    unfinished = Unfinished().every()
    broken = len(runs.broken()) if len(found) < args.n else 0
    if args.format == "json":
        keys = ("id", "at", "name", "file", "status", "measured_seconds", "planned_seconds", "policy", "objective", "devices")
        left = [{k: r[k] for k in ("id", "at", "name", "file", "turns", "is_running")} for r in reversed(unfinished)]
        write_json({"version": 1, "runs": [{k: r[k] for k in keys} for r in reversed(found)], "unfinished": left})
    else:
        write("\n".join(runs_lines(found)) if found else "no runs are kept yet; `hetsched run FILE` keeps each")
        for r in reversed(unfinished):
            way = "is running" if r["is_running"] else f"`hetsched resume {r['id']}` goes on"
            write(f"unfinished: {r['id']}, {r['name']} ({r['file']}), {turns_text(r['turns'])}; {way}")
        if broken:
            print(f"hetsched: warning: {plural(broken, 'run')} cannot be read; `hetsched cache gc` removes broken ones", file=sys.stderr)
    return 0
