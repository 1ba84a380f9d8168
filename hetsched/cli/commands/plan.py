"""plan pipelines, costed graphs or loop bodies without running them: where each task goes, and how long the whole takes"""

from __future__ import annotations

import gzip
import json
import re
from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option, machine_of, overrides, pipeline_options, placement_arguments, placement_options, unchanged
from hetsched.cli.output import Put, files, is_ascii_only, width, write, write_json
from hetsched.cli.parser import Parser
from hetsched.cli.units import duration
from hetsched.errors import CommandLineError, FileError, OutOfMemoryError, PlacementError, did_you_mean

if TYPE_CHECKING:
    from hetsched.pipeline.build import Pipeline
    from hetsched.report.gantt import Piece
    from hetsched.timeline import Timeline

COSTED = "placement-bench/1"
BODY = "period-bench/1"
FORMAT = "hetsched-plan/1"
_FORMAT = re.compile(rb'"format"\s*:\s*"([^"]*)"')
_HEAD = 1 << 16
MOST_LANES = 24


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched plan`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="a pipeline (.yaml), a costed graph (.json, .json.gz, .dot) or a loop body (.json)")
    pipeline_options(parser)
    placement_options(parser)
    parser.add_argument("--pareto", action="store_true", help="print the front of time, energy and price, and the devices each plan of it uses")
    parser.add_argument(
        "-o", "--output", metavar="PLAN", help="write the plan to this file (-: standard output), for `hetsched run FILE --plan PLAN`"
    )
    parser.add_argument("--diff", metavar="PLAN", help="tell what differs from this locked plan (FILE may be a locked plan too)")
    parser.add_argument("--trace", metavar="F", help="write the plan as a Chrome/Perfetto trace, for ui.perfetto.dev; - is standard output")
    format_option(parser)


def execute(args: Any) -> int:
    """Plan each file and print it; touches no device and runs no user's code."""
    if args.format == "json" and len(args.files) > 1:
        raise CommandLineError(f"--format json is one object, for one file; for {len(args.files)} files use --format jsonl")
    kinds = [kind_of(file) for file in args.files]
    if (args.output is not None or args.diff is not None) and (len(kinds) != 1 or kinds[0] not in ("pipeline", FORMAT) or args.pareto):
        raise CommandLineError("-o and --diff are for the plan of one pipeline (.yaml), without --pareto")
    if args.trace is not None and kinds != ["pipeline"]:
        raise CommandLineError("--trace is written of one pipeline's plan; give one .yaml file")
    if args.pareto and (set(kinds) != {"pipeline"} or args.trace is not None or args.objective is not None or args.plan_time is not None):
        raise CommandLineError("--pareto is for pipelines (.yaml), and without --trace, --objective and --plan-time; leave these out")
    with files({"-o": args.output, "--trace": args.trace}, args.format) as put:
        for file, kind in zip(args.files, kinds, strict=True):
            record, text = _pipeline(file, args, put) if kind == "pipeline" else _PLANNERS[kind](file, args)
            if args.format == "text":
                write(text if len(args.files) == 1 else f"{file}\n{text}\n")
            else:
                write_json(record, 2 if args.format == "json" else None)
    return 0


def kind_of(file: str) -> str:
    """What a file holds: "pipeline", or the `format` of its JSON; graphs in DOT and instances of WfCommons are costed graphs too."""
    if file.endswith((".dot", ".gv", ".dot.gz", ".gv.gz")):
        return COSTED
    if not file.endswith((".json", ".json.gz")):
        return "pipeline"
    try:
        with open(file, "rb") as raw, gzip.open(raw) if file.endswith(".gz") else raw as stream:
            head = stream.read(_HEAD)
            found = _FORMAT.search(head)
            if found:
                kind = found.group(1).decode("utf-8", "replace")
            else:
                document = json.loads(head + stream.read())
                if not isinstance(document, dict):
                    raise ValueError(f"it holds {'a list' if isinstance(document, list) else repr(document)[:40]}")
                kind = COSTED if "workflow" in document else str(document.get("format"))
    except FileNotFoundError:
        raise FileError(f"{file}: there is no such file") from None
    except (OSError, EOFError) as error:
        raise FileError(f"{file}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file}: not a JSON object: {error}") from error
    if kind not in (COSTED, BODY, FORMAT):
        raise FileError(f"{file}: `format` is {kind!r}{did_you_mean(kind, (COSTED, BODY, FORMAT))}")
    return kind


def _pipeline(file: str, args: Any, put: Put) -> tuple[dict[str, Any], str]:
    given = overrides(args)
    from hetsched.pipeline.build import load
    from hetsched.pipeline.placing import placing
    from hetsched.placement.costs.figures import measure
    from hetsched.report.plan_text import plan_text
    from hetsched.report.prediction import changed_lines, predict, prediction_lines
    from hetsched.report.record import figures_record, plan_record
    from hetsched.run import plan

    pipeline = load(file, given, trust=args.trust, machine=machine_of(args.machine))
    if args.pareto:
        return _front(file, pipeline, args)
    asked = placement_arguments(args, pipeline.goal)
    with placing(pipeline):
        planned: Timeline = plan(pipeline.graph, **asked)
    before, why_not = _before(pipeline, args, asked) if args.what_if else (None, "")
    if args.output is not None:
        from hetsched.locked import plan_text as locked_text

        put(args.output, locked_text(planned))
    if args.diff is not None:
        from hetsched.locked import document_of

        return _differences(args.diff, document_of(planned))
    if args.trace is not None:
        from hetsched.report.perfetto import perfetto_text

        put(args.trace, perfetto_text(planned))
    predicted, unverified = predict(planned), _unverified(args)
    if args.format != "text":
        record = plan_record(planned, file, pipeline.name) | {"band": predicted.record(), "unverified": unverified}
        if before is not None:
            record["before"] = {"machine": before.machine.name, **figures_record(measure(before))}
        elif why_not:
            record["before"] = {"error": why_not}
        return record, ""
    lines = [plan_text(planned, width(), ascii_only=is_ascii_only()), *prediction_lines(predicted)]
    if unverified:
        lines.append(f"unverified figures of the machine: {', '.join(unverified)}")
    if before is not None:
        lines += ["", *changed_lines(before, planned)]
    elif why_not:
        lines += ["", f"without --what-if there is no plan: {why_not}"]
    return {}, "\n".join(lines)


def _before(pipeline: Pipeline, args: Any, asked: dict[str, Any]) -> tuple[Timeline | None, str]:
    """The plan without `--what-if`; None, and why, where only what it adds makes one possible."""
    from hetsched.run import plan

    try:
        return plan(pipeline.graph, **{**asked, "machine": unchanged(args)}), ""
    except (PlacementError, OutOfMemoryError, CommandLineError) as error:
        return None, str(error).splitlines()[0]


def _unverified(args: Any) -> list[str]:
    """The figures of the machine that `--machine` names whose source nobody has read."""
    if args.machine is None:
        return []
    from hetsched.machine.named import sources_of

    return [s.figure for s in sources_of(args.machine) if not s.is_verified]


def _front(file: str, pipeline: Pipeline, args: Any) -> tuple[dict[str, Any], str]:
    from hetsched.costing import costs_for
    from hetsched.machine import Machine
    from hetsched.pipeline.placing import placing
    from hetsched.placement import plan_front
    from hetsched.report.plan_text import front_text
    from hetsched.report.record import front_record

    given = placement_arguments(args)
    machine = given["machine"] if given["machine"] is not None else Machine.here(*pipeline.graph.patterns(), given["only"] or "any")
    with placing(pipeline):
        costs = costs_for(machine, pipeline.graph, learn=given["learn"])
        points = plan_front(pipeline.graph, machine, costs, policy=given["policy"], only=given["only"], memory=given["memory"])
    return front_record(points, file, pipeline.name), front_text(points)


def _locked(file: str, args: Any) -> tuple[dict[str, Any], str]:
    """A locked plan: what it says, or what differs from another."""
    from hetsched.locked import read_document
    from hetsched.report.text import plural, seconds_text

    document = read_document(file)
    if args.diff is not None:
        return _differences(args.diff, document)
    plan = document["plan"]
    used = dict.fromkeys(lane[0] for span in plan["spans"] if span[0] == "launch" for lane in span[3])
    text = f"locked plan by {plan['policy']} for {plan['objective']}: makespan {seconds_text(plan['makespan'])}, {plural(len(plan['spans']), 'span')}"
    return document, f"{text} on {', '.join(used)} of {document['machine']['name']}; graph {document['graph']['fingerprint'][:12]}"


def _differences(before: str, after: dict[str, Any]) -> tuple[dict[str, Any], str]:
    from hetsched.locked import read_document
    from hetsched.report.plan_diff import differences, differences_record, differences_text

    found = differences(read_document(before), after)
    return {"before": before, **differences_record(found)}, differences_text(found)


def _costed(file: str, args: Any) -> tuple[dict[str, Any], str]:
    from hetsched.placement.costed.planning import plan_costed

    record = plan_costed(file, args.policy, duration(args.plan_time, "--plan-time", zero=True) if args.plan_time is not None else 0.0)
    return record, _costed_text(record) if args.format == "text" else ""


def _body(file: str, args: Any) -> tuple[dict[str, Any], str]:
    from hetsched.placement.periods import plan_body_file
    from hetsched.report.summary import above_text
    from hetsched.report.text import plural, seconds_text

    seconds = (duration(args.plan_time, "--plan-time", zero=True) or None) if args.plan_time is not None else None
    record = plan_body_file(file, seconds=seconds)
    period, bound = record["period"], record["lower_bound"]
    text = f"{record['name']}: period {seconds_text(period)}; lower bound {seconds_text(bound)}: {above_text(period, bound)}"
    return record, f"{text}; {plural(len(record['plan']['tasks']), 'task')}, planned in {seconds_text(record['seconds'])}"


def _costed_text(record: dict[str, Any]) -> str:
    from hetsched.report.gantt import ASCII_SHADES, SHADES, chart
    from hetsched.report.summary import above_text
    from hetsched.report.text import plural, seconds_text

    makespan, bound = record["makespan"], record["lower_bound"]
    drawn, more = costed_rows(record, MOST_LANES)
    lines = [*(chart(drawn, makespan, width(), ASCII_SHADES if is_ascii_only() else SHADES) if drawn else []), *more]
    lines.append(f"makespan {seconds_text(makespan)}; lower bound {seconds_text(bound)}: {above_text(makespan, bound)}")
    lines.append(f"{plural(len(record['tasks']), 'task')} planned by {record['policy']} in {seconds_text(record['plan_seconds'])}")
    if record["evaluations"]:
        loading = f"; its machine code took {seconds_text(record['compile_seconds'])} to load" if record["compile_seconds"] else ""
        lines.append(f"the search tried {plural(record['evaluations'], 'plan')}{loading}")
    return "\n".join(lines)


def costed_rows(record: dict[str, Any], most: int) -> tuple[list[tuple[str, list[Piece], float]], list[str]]:
    """The rows of a chart of a costed graph's plan, a lane each, at most `most`; and a line that says how many more there are."""
    from hetsched.report.gantt import Piece
    from hetsched.report.text import plural

    makespan, devices, names = record["makespan"], record["devices"], record.get("names")
    rows: dict[tuple[int, int], list[Piece]] = {}
    for task, (device, start, finish, lane) in enumerate(record["tasks"]):
        rows.setdefault((device, lane), []).append(Piece(names[task] if names else str(task), "=", start, finish))
    drawn = []
    for (device, lane), pieces in sorted(rows.items())[:most]:
        busy = sum(p.finish - p.start for p in pieces)
        drawn.append((f"{devices[device]}/{lane}", pieces, max(1 - busy / makespan, 0.0) if makespan else 0.0))
    return drawn, [f"... and {plural(len(rows) - most, 'more lane', 'more lanes')}"] if len(rows) > most else []


_PLANNERS = {COSTED: _costed, BODY: _body, FORMAT: _locked}
