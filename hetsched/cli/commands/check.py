"""check pipelines: every mistake with its line and column, and a way out"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option, overrides, pipeline_options
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.errors import NotTrustedError, PipelineError, PlacementError

if TYPE_CHECKING:
    from hetsched.pipeline.mistakes import Mistake


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched check`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a pipeline")
    pipeline_options(parser)
    parser.add_argument("--machine", metavar="FILE|NAME", help="check devices and objective for this described machine, not the one here")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print every mistake; 3 if there is one, 8 if consent is all that is missing, 4 if all that is wrong is what no device or plan can satisfy."""
    from hetsched.pipeline.build import check
    from hetsched.pipeline.mistakes import error_for, render

    given = overrides(args)
    found: dict[str, list[Mistake]] = {file: check(file, given, trust=args.trust) for file in args.files}
    is_readable = not any(found.values())
    for file, row in found.items():
        if not row:
            row.extend(_unplaceable(file, given, args))
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
    if is_readable:
        return PlacementError.exit_code
    return NotTrustedError.exit_code if isinstance(error_for(mistakes), NotTrustedError) else PipelineError.exit_code


def _unplaceable(file: str, given: dict[str, Any], args: Any) -> list[Mistake]:
    """What `run` would refuse before anything runs: devices and `same_as` that no device suits, an objective that the machine states no figures for,
    a deadline that no plan keeps. A plan is made; no device is opened.
    """
    from hetsched.cli.options import machine_of
    from hetsched.pipeline.build import load
    from hetsched.pipeline.placing import at_objective, mistakes
    from hetsched.run import plan

    pipeline = load(file, given, trust=args.trust)
    try:
        plan(pipeline.graph, machine_of(args.machine), objective=pipeline.goal)
    except PlacementError as error:
        return mistakes(pipeline, error) or [at_objective(pipeline, str(error))]
    return []
