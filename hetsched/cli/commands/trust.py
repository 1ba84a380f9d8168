"""consent to the code that a pipeline brings, or to what it reads outside its folder, until the file changes"""

from __future__ import annotations

from typing import Any

from hetsched.cli.output import write
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched trust`."""
    parser.add_argument("file", metavar="FILE", help="a pipeline that you have read")


def execute(args: Any) -> int:
    """Remember the file's place and hash."""
    from hetsched.pipeline.trust import trust

    digest = trust(args.file)
    write(f"{args.file}: trusted as it is now (SHA-256 {digest[:16]}...)")
    return 0
