"""report on a kept run: all that `show` tells, and what other policies would have made of the costs that it measured"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser

if TYPE_CHECKING:
    from hetsched.placement.costs.replay import Regret


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched report`."""
    parser.add_argument(
        "run", metavar="RUN", nargs="?", default="last", help="an id of `hetsched runs`, its beginning, last, or last~1 (default: last)"
    )
    parser.add_argument("--policies", metavar="A,B", help="the policies to replay (default: those that other schedulers use)")
    parser.add_argument("--trust", action="store_true", help="consent, this once, to what the file brings (see `hetsched trust`)")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print the report. The pipeline is read and planned again, and nothing is run."""
    from hetsched.report.run_text import regret_lines, run_lines
    from hetsched.report.runs import Runs

    record = Runs().load(args.run)
    found, why_not = _regret(record, args)
    if args.format == "json":
        others = [{"policy": r.policy, "seconds": r.seconds, "saved": r.saved} for r in found]
        regret = {"error": why_not} if why_not else {"followed_seconds": found[0].followed if found else None, "policies": others}
        write_json({**record, "regret": regret})
    else:
        write("\n".join([*run_lines(record, most=40), "", *([f"regret: not told: {why_not}"] if why_not else regret_lines(found))]))
    return 0


def _regret(record: dict[str, Any], args: Any) -> tuple[list[Regret], str]:
    """What other policies would have taken; and why that cannot be told, "" where it can."""
    from hetsched.cli.options import changed, machine_of
    from hetsched.costing import costs_for
    from hetsched.errors import HetschedError
    from hetsched.machine import Machine
    from hetsched.pipeline.build import load
    from hetsched.pipeline.trust import file_sha256
    from hetsched.placement.costs.replay import OTHERS, MeasuredCosts, placed, regrets
    from hetsched.placement.policies import find
    from hetsched.report.runs import compared_of, lessons_of
    from hetsched.run import plan

    policies = args.policies.split(",") if args.policies else list(OTHERS)
    for policy in policies:
        find(policy)
    options = record["options"]
    try:
        if file_sha256(record["file"]) != record["sha256"]:
            return [], f"{record['file']} has changed since the run"
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
        return regrets(followed, costs, policies, pipeline.graph, **limits), ""
    except HetschedError as error:
        return [], str(error)
