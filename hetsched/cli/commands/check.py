"""check pipelines: every mistake with its line and column, and a way out; where there is none, what is proved of the plan and its memory"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option, machine_of, overrides, pipeline_options, placement_arguments, placement_options
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.errors import NotTrustedError, OutOfMemoryError, PipelineError, PlacementError

if TYPE_CHECKING:
    from hetsched.check.certificate import Certificate
    from hetsched.pipeline.mistakes import Mistake


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched check`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a pipeline")
    pipeline_options(parser)
    placement_options(parser)
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print every mistake; 3 if there is one, 8 if consent is all that is missing, 4 if all that is wrong is what no device or plan can satisfy, 5 if

    it is a memory that no plan fits. A file without any is planned, and what is proved of the plan is told: shapes and dtypes, and the most bytes of
    each memory node.
    """
    from hetsched.pipeline.build import check
    from hetsched.pipeline.mistakes import error_for, render

    given, machine = overrides(args), machine_of(args.machine)
    found: dict[str, list[Mistake]] = {file: check(file, given, trust=args.trust, machine=machine) for file in args.files}
    is_readable = not any(found.values())
    proved: dict[str, Certificate] = {}
    for file, row in found.items():
        if not row:
            certificate, unplaceable = _certificate(file, given, args)
            row.extend(unplaceable)
            if certificate is not None:
                proved[file] = certificate
    mistakes = [m for row in found.values() for m in row]
    if args.format == "json":
        from hetsched.report.record import certificate_record

        data = [
            {"line": m.line, "column": m.column, "message": m.message, "rule": m.rule, "file": m.path}
            for m in mistakes
        ]  # fmt: skip
        certificates = {file: certificate_record(certificate) for file, certificate in proved.items()}
        write_json({"version": 1, "files": list(found), "mistakes": data, "certificates": certificates})
    else:
        from hetsched.report.plan_text import certificate_text

        for file, certificate in proved.items():
            write(f"{file}: ok\n  {certificate_text(certificate)}")
        if mistakes:
            write(render(mistakes))
    if not mistakes:
        return 0
    if is_readable:
        return OutOfMemoryError.exit_code if all(m.rule == "memory" for m in mistakes) else PlacementError.exit_code
    return NotTrustedError.exit_code if isinstance(error_for(mistakes), NotTrustedError) else PipelineError.exit_code


def _certificate(file: str, given: dict[str, Any], args: Any) -> tuple[Certificate | None, list[Mistake]]:
    """What is proved of the plan, or what `run` would refuse before anything runs: devices and `same_as` that no device suits, an objective that the

    machine states no figures for, a deadline that no plan keeps, a memory that no plan fits. A plan is made; no device is opened.
    """
    from hetsched.check.certificate import certify
    from hetsched.pipeline.build import load
    from hetsched.pipeline.placing import at_memory, at_objective, mistakes
    from hetsched.run import plan

    pipeline = load(file, given, trust=args.trust, machine=machine_of(args.machine))
    try:
        return certify(plan(pipeline.graph, **placement_arguments(args, pipeline.goal))), []
    except PlacementError as error:
        return None, mistakes(pipeline, error) or [at_objective(pipeline, str(error))]
    except OutOfMemoryError as error:
        return None, [at_memory(pipeline, error)]
