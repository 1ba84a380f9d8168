"""check pipelines: every mistake with its line and column, and a way out"""

from __future__ import annotations

from typing import Any

from hetsched.cli.options import format_option, overrides, pipeline_options
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.errors import NotTrustedError, PipelineError


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched check`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a pipeline")
    pipeline_options(parser)
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print every mistake; 3 if there is one, 8 if consent is all that is missing."""
    from hetsched.pipeline.build import check
    from hetsched.pipeline.mistakes import Mistake, error_for, render

    given = overrides(args)
    found: dict[str, list[Mistake]] = {file: check(file, given, trust=args.trust) for file in args.files}
    mistakes = [m for row in found.values() for m in row]
    if args.format == "json":
        data = [
            {"line": m.line, "column": m.column, "message": m.message, "rule": m.rule, "file": m.path}
            for m in mistakes
        ]  # fmt: skip
        write_json({"version": 1, "files": list(found), "mistakes": data})
    else:
        for file, row in found.items():
            if not row:
                write(f"{file}: ok")
        if mistakes:
            write(render(mistakes))
    if not mistakes:
        return 0
    return NotTrustedError.exit_code if isinstance(error_for(mistakes), NotTrustedError) else PipelineError.exit_code
