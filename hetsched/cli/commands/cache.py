"""what hetsched keeps for this user: `cache ls` lists it, `cache gc` removes what is old or broken"""

from __future__ import annotations

from typing import Any

from hetsched.cli.options import format_option
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.cli.units import days


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched cache`."""
    parser.add_argument(
        "action", choices=("ls", "gc"), help="ls: list; gc: remove what was not used for long, broken files, and runs beyond the limit"
    )
    parser.add_argument("--days", type=days, default=180.0, metavar="N", help="gc: what was not used for so many days goes (default: 180)")
    parser.add_argument("--all", action="store_true", help="gc: everything goes that can be found out anew; runs and consents stay")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """List or clean."""
    from hetsched.report.kept import collect, kept
    from hetsched.report.text import bytes_text, plural, table

    if args.action == "ls":
        found = kept()
        if args.format == "json":
            write_json({"version": 1, "kept": [item._asdict() for item in found]})
            return 0
        rows = [[item.what, plural(item.files, "file"), bytes_text(item.nbytes), item.folder] for item in found]
        write("\n".join(table(["what", "files", "bytes", "where"], rows, right=(2,))))
        return 0
    files, nbytes = collect(args.days, everything=args.all)
    if args.format == "json":
        write_json({"version": 1, "removed_files": files, "removed_bytes": nbytes})
    else:
        write(f"removed {plural(files, 'file')}, {bytes_text(nbytes)}")
    return 0
