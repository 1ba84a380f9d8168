"""compare policies on one pipeline or costed graph: makespans, bounds, planning times and Gantt charts side by side"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetsched.cli.commands.plan import COSTED, costed_rows, kind_of
from hetsched.cli.options import format_option, machine_of, overrides, pipeline_options, placement_arguments, placement_options
from hetsched.cli.output import is_ascii_only, width, write, write_json
from hetsched.cli.parser import Parser
from hetsched.cli.units import duration
from hetsched.errors import CommandLineError

if TYPE_CHECKING:
    from hetsched.timeline import Timeline

# Compared unless policies are named: those of the literature, and what is planned without one.
POLICIES = ("auto", "heft", "peft", "cpop", "lookahead", "heteroprio", "min_min", "mct", "one_device")
MOST_LANES = 12


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched compare`."""
    parser.add_argument("graph", metavar="GRAPH", help="a pipeline (.yaml), or a costed graph (.json, .json.gz, .dot; WfCommons instances too)")
    parser.add_argument("--policies", metavar="A,B,...", help=f"the policies to compare (default: {','.join(POLICIES)})")
    parser.add_argument("--no-gantt", action="store_true", help="print the table only")
    pipeline_options(parser)
    placement_options(parser, policy=False)
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Plan the graph by each policy and print the plans, the shortest first; touches no device."""
    names = _names(args.policies)
    kind = kind_of(args.graph)
    if kind not in ("pipeline", COSTED):
        raise CommandLineError(
            f"{args.graph}: compare takes a pipeline or a costed graph; a loop body is planned by one planner only (hetsched plan)"
        )
    found, charts = _costed(args, names) if kind == COSTED else _pipeline(args, names)
    bound = max(row["lower_bound"] for row in found)
    best = min(row["makespan"] for row in found)
    for row in found:
        row["lower_bound"] = bound
        row["above_best"] = row["makespan"] / best - 1 if best else 0.0
    order = sorted(range(len(found)), key=lambda i: found[i]["makespan"])
    if args.format == "json":
        write_json({"file": args.graph, "lower_bound": bound, "policies": [found[i] for i in order]})
        return 0
    lines = _table([found[i] for i in order], bound)
    if not args.no_gantt:
        for i in order:
            lines += ["", found[i]["policy"], *charts[i]]
    write("\n".join(lines))
    return 0


def _names(text: str | None) -> list[str]:
    from hetsched.placement.policies import find

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip())) if text is not None else list(POLICIES)
    if not names:
        raise CommandLineError("--policies names none; give some, such as --policies auto,heft")
    for name in names:
        find(name)
    return names


def _costed(args: Any, names: list[str]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    from hetsched.placement.costed.planning import plan_costed
    from hetsched.report.gantt import ASCII_SHADES, SHADES, chart

    given = [("--machine", args.machine), ("-d", args.device), ("--memory", args.memory), ("--objective", args.objective), ("-s", args.set)]
    for option, value in given:
        if value:
            raise CommandLineError(f"{option} is for pipelines; a costed graph brings its machine and is planned for time")
    seconds = duration(args.plan_time, "--plan-time", zero=True) if args.plan_time is not None else 0.0
    records = [plan_costed(args.graph, name, seconds) for name in names]
    longest = max(record["makespan"] for record in records)
    shades = ASCII_SHADES if is_ascii_only() else SHADES
    charts = []
    for record in records:
        rows, more = costed_rows(record, MOST_LANES)
        charts.append([*(chart(rows, longest, width(), shades) if rows else []), *more])
    keys = ("policy", "makespan", "lower_bound", "plan_seconds")
    return [{key: record[key] for key in keys} for record in records], charts


def _pipeline(args: Any, names: list[str]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    from hetsched.pipeline.build import load
    from hetsched.pipeline.placing import placing
    from hetsched.report.gantt import gantt
    from hetsched.run import plan

    pipeline = load(args.graph, overrides(args), trust=args.trust, machine=machine_of(args.machine))
    given = placement_arguments(args, pipeline.goal)
    plans: list[Timeline] = []
    with placing(pipeline):
        for name in names:
            plans.append(plan(pipeline.graph, **{**given, "policy": name}))
    found = [
        {
            "policy": name,
            "makespan": p.makespan,
            "lower_bound": p.bound.seconds if p.bound is not None else 0.0,
            "plan_seconds": p.plan_seconds,
        }
        for name, p in zip(names, plans, strict=True)
    ]
    return found, [gantt(p, width(), ascii_only=is_ascii_only()).splitlines() for p in plans]


def _table(rows: list[dict[str, Any]], bound: float) -> list[str]:
    from hetsched.report.summary import above_text
    from hetsched.report.text import percent_text, seconds_text, table

    shown = [
        [
            row["policy"],
            seconds_text(row["makespan"]),
            f"+{percent_text(row['above_best'])}" if row["above_best"] > 1e-9 else "best",
            seconds_text(row["plan_seconds"]),
        ]
        for row in rows
    ]
    lines = table(["policy", "makespan", "above the best here", "planned in"], shown, right=(1, 2, 3))
    return [*lines, "", f"lower bound {seconds_text(bound)}: {rows[0]['policy']} is {above_text(rows[0]['makespan'], bound)}"]
