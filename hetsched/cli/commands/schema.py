"""print the JSON Schema of pipeline files, for editors that complete and check while one types"""

from __future__ import annotations

from typing import Any

from hetsched.cli.output import write_json
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched schema`: none."""


def execute(args: Any) -> int:
    """Print the schema."""
    from hetsched.pipeline.schema import schema

    write_json(schema())
    return 0
