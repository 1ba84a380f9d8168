"""report on a kept run: all that `show` tells, and what other policies would have made of the costs that it measured"""

from __future__ import annotations

from typing import Any

from hetsched.cli.output import write
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched report`."""
    parser.add_argument(
        "run", metavar="RUN", nargs="?", default="last", help="an id of `hetsched runs`, its beginning, last, or last~1 (default: last)"
    )
    parser.add_argument("--policies", metavar="A,B", help="the policies to replay (default: those that other schedulers use)")
    parser.add_argument("--trust", action="store_true", help="consent, this once, to what the file brings (see `hetsched trust`)")


def execute(args: Any) -> int:
    """Print the report. The pipeline is read and planned again, and nothing is run."""
    from hetsched.report.run_text import run_lines
    from hetsched.report.runs import Runs

    record = Runs().load(args.run)
    write("\n".join([*run_lines(record, most=40), "", *_regret(record, args)]))
    return 0


def _regret(record: dict[str, Any], args: Any) -> list[str]:
    from hetsched.cli.options import changed, machine_of
    from hetsched.costing import costs_for
    from hetsched.errors import HetschedError
    from hetsched.machine import Machine
    from hetsched.pipeline.build import load
    from hetsched.pipeline.trust import file_sha256
    from hetsched.placement.costs.replay import OTHERS, MeasuredCosts, placed, regrets
    from hetsched.placement.policies import find
    from hetsched.report.run_text import regret_lines
    from hetsched.report.runs import compared_of, lessons_of
    from hetsched.run import plan

    policies = args.policies.split(",") if args.policies else list(OTHERS)
    for policy in policies:
        find(policy)
    options = record["options"]
    try:
        if file_sha256(record["file"]) != record["sha256"]:
            return [f"regret: not told, {record['file']} has changed since the run"]
        described = machine_of(options.get("machine"))
        pipeline = load(record["file"], record["parameters"], trust=args.trust, machine=described)
        machine = changed(described, options.get("what_if") or [], options.get("watts") or [])
        if machine is None:
            import hetsched.executors.backends  # noqa: F401 (makes Machine.here() work)

            machine = Machine.here(*pipeline.graph.patterns(), options.get("only") or "any")
        where: dict[str, set[str]] = {}
        for row in compared_of(record):
            where.setdefault(row.name, set()).add(row.device)
        ran = placed(pipeline.graph, {name: used.pop() for name, used in where.items() if len(used) == 1})
        limits = {"only": options.get("only"), "memory": options.get("memory")}
        followed = plan(ran, machine, record["policy"], record["objective"], costs=costs_for(machine, ran), **limits)
        costs = MeasuredCosts(lessons_of(record), costs_for(machine, pipeline.graph))
        return regret_lines(regrets(followed, costs, policies, pipeline.graph, **limits))
    except HetschedError as error:
        return [f"regret: not told: {error}"]
