"""explain why a task runs where and when it does: what it would take on each device, and what would move it"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option, machine_of, overrides, pipeline_options, placement_arguments, placement_options
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.cli.units import duration

if TYPE_CHECKING:
    from hetsched.graph.graph import Graph
    from hetsched.machine import Machine
    from hetsched.pipeline.build import Pipeline
    from hetsched.placement.why import Parameter

# Searches for flip points that have not begun after this time are left out, unless --flip-time says otherwise.
FLIP_SECONDS = 20.0
# A group of more tasks than this is told as a table.
MOST_EXPLAINED = 8


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched explain`."""
    parser.add_argument("file", metavar="FILE", help="a pipeline")
    parser.add_argument(
        "task", metavar="TASK", help="a task, a task inside a loop (train/steps/train/dense1, or train/dense1), or a group of tasks (split)"
    )
    parser.add_argument("--no-flips", action="store_true", help="do not search for what would move the task: faster")
    parser.add_argument("--flip-time", metavar="D", help="begin no new search for a flip point after this long (default: 20 s)")
    pipeline_options(parser)
    placement_options(parser)
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Plan the file and explain the task; touches no device."""
    given = overrides(args)
    from hetsched.graph.op import Op
    from hetsched.pipeline.build import load
    from hetsched.pipeline.placing import placing
    from hetsched.placement.why import names, op_at
    from hetsched.report.explain import explain, find, group_text
    from hetsched.run import plan

    pipeline = load(args.file, given, trust=args.trust, machine=machine_of(args.machine))
    with placing(pipeline):
        planned = plan(pipeline.graph, **placement_arguments(args, pipeline.goal))
    found = find(planned, args.task)
    placed = {path for path, chain in names(planned.graph) if isinstance(op_at(planned.graph, chain), Op)}  # what is in a branch of an if is not
    single = [path for path, _, _ in found if path in placed]
    if len(found) > MOST_EXPLAINED and args.format == "text":
        write(group_text(args.task, found))
        return 0
    # Of a group each task's own place is told; what would move them is asked for one at a time.
    flips = not args.no_flips and len(single) == 1
    seconds = duration(args.flip_time, "--flip-time") if args.flip_time is not None else FLIP_SECONDS
    vary = parameters(pipeline, args.file, given, args.trust, machine_of(args.machine)) if flips else {}
    why = {path: planned.explain(path, flips=flips, vary=vary, seconds=seconds) for path in single}
    if args.format == "json":
        write_json({"version": 1, "file": args.file, "name": pipeline.name, "tasks": [asdict(x) for x in why.values()]})
        return 0
    texts = []
    for path, _, _ in found:
        texts.append(explain(planned, path))
        if path in why:
            texts[-1] += "\n" + "\n".join(f"  {line.removeprefix('  ')}" for line in str(why[path]).splitlines()[1:])
    write("\n\n".join(texts))
    return 0


def parameters(pipeline: Pipeline, file: str, given: dict[str, Any], trust: bool, machine: Machine | None = None) -> dict[str, Parameter]:
    """The whole numbers among the file's parameters, but for the seed: what a flip point may be searched over."""
    from hetsched.pipeline.build import load
    from hetsched.placement.why import Parameter

    def builder(name: str) -> Any:
        def build(value: int) -> Graph:
            return load(file, {**given, name: str(value)}, trust=trust, machine=machine).graph

        return build

    whole = {k: v for k, v in pipeline.params.items() if isinstance(v, int) and not isinstance(v, bool) and k != "seed"}
    return {name: Parameter(value, builder(name), least=1 if value >= 1 else value) for name, value in whole.items()}
