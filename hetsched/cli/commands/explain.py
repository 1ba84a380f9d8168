"""explain where and when a task runs: what it waits for, and what it would take on each device"""

from __future__ import annotations

from typing import Any

from hetsched.cli.options import overrides, pipeline_options, placement_arguments, placement_options
from hetsched.cli.output import write
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched explain`."""
    parser.add_argument("file", metavar="FILE", help="a pipeline")
    parser.add_argument(
        "task", metavar="TASK", help="a task, a task inside a loop (train/steps/train/dense1, or train/dense1), or a group of tasks (split)"
    )
    pipeline_options(parser)
    placement_options(parser)


def execute(args: Any) -> int:
    """Plan the file and explain the task; touches no device."""
    parameters = overrides(args)
    from hetsched.costing import costs_for
    from hetsched.pipeline.build import load
    from hetsched.pipeline.placing import placing
    from hetsched.report.explain import explain
    from hetsched.run import plan

    pipeline = load(args.file, parameters, trust=args.trust)
    given = placement_arguments(args, pipeline.goal)
    with placing(pipeline):
        planned = plan(pipeline.graph, **given)
    write(explain(planned, args.task, costs_for(planned.machine, pipeline.graph, learn=given["learn"])))
    return 0
