"""run a pipeline: plan it, run it, write its outputs, and say where each task ran and why it took that long"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hetsched.cli.keeping import Keeping
from hetsched.cli.options import format_option, machine_of, options_of, overrides, pipeline_options, placement_arguments, placement_options
from hetsched.cli.output import Progress, ProgressLines, Put, files, folder, is_ascii_only, refuse, width, write, write_json
from hetsched.cli.parser import Parser
from hetsched.cli.units import duration
from hetsched.errors import CommandLineError, FileError, PlacementError, TaskError

if TYPE_CHECKING:
    from hetsched.costing import Taught
    from hetsched.executors.result import Result
    from hetsched.machine import Machine
    from hetsched.pipeline.build import Pipeline
    from hetsched.placement.costs.history import Drift
    from hetsched.report.energy import Energy
    from hetsched.timeline import Timeline


class _Told(TaskError):
    """Tasks failed under --keep-going, and the object that tells of the run has been printed."""


class _Unwritten(FileError):
    """Files could not be written, and what there is to tell of the run has been printed."""


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched run`."""
    parser.add_argument("file", metavar="FILE", help="a pipeline, such as pipelines/digits_mlp.yaml")
    pipeline_options(parser)
    placement_options(parser)
    parser.add_argument("-o", "--output", metavar="DIR", help="where outputs are written (default: beside the file, as it says)")
    parser.add_argument(
        "--plan", metavar="PLAN", help="run by this locked plan (`hetsched plan FILE -o PLAN`); refused where FILE or machine have changed"
    )
    parser.add_argument("--trace", metavar="F", help="write what happened as a Chrome/Perfetto trace, for ui.perfetto.dev; - is standard output")
    parser.add_argument("--gantt", action="store_true", help="draw what happened as a chart (with --format text)")
    parser.add_argument("--keep-going", action="store_true", help="a task that fails stops only what needs it")
    parser.add_argument("--timeout", metavar="D", help="give up after this long: 30s, 2min")
    parser.add_argument("--replan", action="store_true", help="plan the rest anew where durations leave the plan and another one pays")
    parser.add_argument(
        "--checkpoint",
        metavar="WHEN",
        help="keep the state of long loops every 30s, 5min or 500turns, so that `hetsched resume` goes on from there after a failure or Ctrl-C",
    )
    parser.add_argument(
        "--retries", type=int, default=0, metavar="N", help="with --checkpoint: a task that fails is tried again from there, N times in all"
    )
    format_option(parser)


def execute(args: Any) -> int:
    """Run the file. With json or jsonl a run that fails prints an object as well, with `status` "failed"."""
    folder(args.output, "-o")
    with files({"--trace": args.trace}, args.format, refused=False) as put:
        return _run_or_tell(args, put)


def _run_or_tell(args: Any, put: Put) -> int:
    try:
        refuse({"--trace": args.trace})
        return _run(args, put)
    except (_Told, _Unwritten):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if args.format != "text":
            from hetsched.cli.entry import exit_code

            told = {"version": 1, "status": "failed", "exit_code": exit_code(error), "error": str(error) or "interrupted"}
            write_json(told if args.format == "json" else {"event": "end", **told}, 2 if args.format == "json" else None)
        raise


def _run(args: Any, put: Put) -> int:
    timeout = duration(args.timeout, "--timeout") if args.timeout is not None else None
    for option in ("keep_going", "deterministic"):
        if args.replan and getattr(args, option):
            raise CommandLineError(f"--replan cannot be used with --{option.replace('_', '-')}; leave one out")
    for option in ("keep_going", "replan"):
        if args.checkpoint is not None and getattr(args, option):
            raise CommandLineError(f"--checkpoint cannot be used with --{option.replace('_', '-')}; leave one out")
    parameters = overrides(args)
    from hetsched.pipeline.build import load, refuse_unwritable
    from hetsched.pipeline.placing import at_task, failing, placing
    from hetsched.report.text import plural
    from hetsched.run import plan, read_plan, run

    kept = Keeping.of(args)
    pipeline = load(args.file, parameters, trust=args.trust, machine=machine_of(args.machine))
    refuse_unwritable(pipeline, args.output)
    given = placement_arguments(args, pipeline.goal)
    if kept is not None and kept.plan is not None:
        planned = read_plan(kept.plan, pipeline.graph, given["machine"])
    elif args.plan is not None:
        planned = _locked(args, pipeline, given["machine"])
    else:
        with placing(pipeline):
            planned = plan(pipeline.graph, measure=given["learn"], **given)
    if args.format == "text":
        from hetsched.report.summary import bound_line

        write(f"{pipeline.name}: {plural(len(pipeline.tasks), 'task')}, planned by {planned.policy}: {bound_line(planned)}")
    progress = Progress(quiet=args.format != "text")
    with progress:
        told = ProgressLines(progress) if args.format == "jsonl" else progress
        how = {"timeout": timeout, "keep_going": args.keep_going, "progress": told, "learn": False, "energy": True, "replan": args.replan}
        try:
            with failing(pipeline):
                result = run(planned, **how) if kept is None else kept.run(functools.partial(run, planned, **how), pipeline)
        except PlacementError as absent:
            if args.emulate or (args.machine is None and not args.what_if):
                raise
            described = " and ".join(o for o, given in (("--machine", args.machine), ("--what-if", args.what_if)) if given)
            verb = "describe" if args.machine and args.what_if else "describes"
            way_out = f"--emulate runs what {described} {verb} in software, and `hetsched plan` plans for it without running"
            raise PlacementError(f"{absent}; {way_out}") from absent
    written, unwritten = _publish(pipeline, result, args.output)
    if kept is not None:
        kept.end()
    if args.trace is not None:
        from hetsched.report.perfetto import perfetto_text

        try:
            put(args.trace, perfetto_text(result.trace))
        except FileError as refused:
            unwritten.append(str(refused))
    if args.gantt and args.format == "text":
        from hetsched.report.gantt import gantt

        write(gantt(result.trace, width(), ascii_only=is_ascii_only()) + "\n")
    from hetsched.costing import learn_from_run
    from hetsched.report.energy import energy_of

    taught = learn_from_run(result) if given["learn"] else None
    drifts = taught.drifts if taught is not None else ()
    energy = energy_of(result.trace, result.energy)
    _tell(args.format, pipeline, result, written, energy, drifts, unwritten)
    if taught is not None and taught.warning:
        print(f"hetsched: warning: {taught.warning}", file=sys.stderr)
    _keep(args, pipeline, parameters, given, result, written, energy, taught)
    for task, error in result.failed.items():
        first = at_task(pipeline, error) if isinstance(error, TaskError) else str(error)
        raise _Told(
            task, f"{plural(len(result.failed), 'task')} failed: {', '.join(result.failed)}; the first: {'; '.join((first, *unwritten))}"
        ) from error
    if unwritten:
        raise _Unwritten("; ".join(unwritten))
    return 0


def _locked(args: Any, pipeline: Pipeline, machine: Machine | None) -> Timeline:
    """The locked plan of `--plan`, for the file and the machine of the command line."""
    from hetsched.locked import OtherMachineError, read_plan
    from hetsched.machine.machine import HERE

    given = [("--policy", args.policy != "auto"), ("--objective", args.objective), ("-d", args.device), ("--plan-time", args.plan_time)]
    for option, value in [*given, ("--memory", args.memory)]:
        if value:
            raise CommandLineError(f"{option} is for planning, and --plan {args.plan} is a plan already; leave one out")
    try:
        return read_plan(args.plan, pipeline.graph, machine)
    except OtherMachineError as error:
        if error.made_for == (HERE if machine is None else machine.name):
            raise
        options = " ".join(options_of(error.made_for)) or "neither --machine nor --what-if"
        software = "" if args.emulate or options.startswith("neither") else ", and --emulate, which runs it in software, where it is not here"
        raise PlacementError(f"{error}, or give what it was planned with: {options}{software}") from error


def _keep(
    args: Any,
    pipeline: Pipeline,
    parameters: Mapping[str, Any],
    given: Mapping[str, Any],
    result: Result,
    written: Mapping[str, str],
    energy: Energy,
    taught: Taught | None,
) -> None:
    """Keep the run for `hetsched runs`."""
    from hetsched.report.runs import Runs, record_of

    options = {
        "machine": args.machine, "what_if": args.what_if or None, "watts": args.watts or None, "emulate": args.emulate, "only": given["only"],
        "memory": given["memory"],
    }  # fmt: skip
    files = {name: written.get(name) for name in pipeline.outputs}
    record = record_of(
        result, file=args.file, sha256=pipeline.sha256, name=pipeline.name, parameters=parameters, options=options, metrics=metrics(pipeline, result),
        outputs=files, drifts=taught.drifts if taught is not None else (), taught=(taught.lessons or None) if taught is not None else None,
        energy=energy,
    )  # fmt: skip
    Runs().add(record)


def _publish(pipeline: Pipeline, result: Result, folder: str | None) -> tuple[Mapping[str, str], list[str]]:
    """Write the outputs that are there (all of them, unless a task failed under --keep-going): output -> path, and what could not be written."""
    from hetsched.pipeline.build import UnwrittenError, publish

    there = {name: o for name, o in pipeline.outputs.items() if all(value in result for value in o.values.values())}
    try:
        return publish(replace(pipeline, outputs=there), result, folder), []
    except UnwrittenError as error:
        return error.written, [str(error)]


def metrics(pipeline: Pipeline, result: Mapping[str, Any]) -> dict[str, float]:
    """`task.metric` -> number, of every output that is a bundle of metrics; the name of every output that is one number -> it."""
    out = {}
    for output in pipeline.outputs.values():
        if not output.is_bundle:
            value: Any = result.get(next(iter(output.values.values())))
            if getattr(value, "size", 0) == 1 and value.dtype.kind in "biuf":
                out[output.name] = float(value.reshape(()))
        elif output.kind == "metrics":
            task = output.source.partition(".")[0]
            out.update({f"{task}.{part}": float(result[name]) for part, name in output.values.items() if name in result and result[name].ndim == 0})
    return out


def histories(pipeline: Pipeline, result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Task -> metric -> what it was, number by number, of every output that is a bundle of metrics."""
    bundles = [o for o in pipeline.outputs.values() if o.is_bundle and o.kind == "metrics"]
    return {o.source.partition(".")[0]: {part: result[name] for part, name in o.values.items() if name in result} for o in bundles}


def _from_here(path: str) -> str:
    """A path as one would type it here: relative where it lies below the current folder."""
    with suppress(OSError, ValueError):  # no current folder any more; another drive
        near = os.path.relpath(path)
        return path if near.startswith(os.pardir) else near
    return path


def _tell(
    form: str,
    pipeline: Pipeline,
    result: Result,
    written: Mapping[str, str],
    energy: Energy,
    drifts: tuple[Drift, ...] = (),
    unwritten: Sequence[str] = (),
) -> None:
    from hetsched.pipeline.publish import to_json
    from hetsched.report.after import compare, drift_lines, worst_line
    from hetsched.report.doubts import doubts
    from hetsched.report.energy import energy_lines, energy_record
    from hetsched.report.history import history_lines, history_of
    from hetsched.report.record import run_record
    from hetsched.report.summary import three_lines
    from hetsched.report.text import table

    numbers = metrics(pipeline, result)
    doubted = doubts((o.source, {part: result[name] for part, name in o.values.items() if name in result}) for o in pipeline.outputs.values())
    if form != "text":
        files = {name: written.get(name) for name in pipeline.outputs}
        record = run_record(result.plan, result.trace, result.wall_seconds, numbers, files, pipeline.name)
        found = {f"{task}.{name}": values for task, parts in histories(pipeline, result).items() for name, values in history_of(parts).items()}
        if found:
            record["history"] = to_json(found)
        record["warnings"] = doubted
        record["energy"] = energy_record(energy)
        record["drifts"] = [{"device": d.device.partition("|")[0], "factor": d.factor, "kinds": d.kinds, "counts": d.counts} for d in drifts]
        if result.failed:
            record |= {"status": "failed", "failed": {task: str(error) for task, error in result.failed.items()}}
        if unwritten:
            record |= {"status": "failed", "unwritten": list(unwritten)}
        if form == "jsonl":
            record = {"event": "end", **record}
        write_json(record, 2 if form == "json" else None)
        return
    lines = [line for parts in histories(pipeline, result).values() for line in history_lines(parts)]
    lines += table(["metric", "value"], [[name, f"{value:.6g}"] for name, value in numbers.items()])[1:] if numbers else []
    lines += [f"{name} -> {_from_here(path)}" for name, path in written.items()]
    missing = [name for name, o in pipeline.outputs.items() if any(value not in result for value in o.values.values())]
    lost = [name for name, o in pipeline.outputs.items() if o.save is None and o.kind != "metrics" and name not in (*numbers, *missing)]
    lines += [f"not kept: {', '.join(lost)} (save: FILE under outputs: writes them)"] if lost else []
    lines += [f"not made: {', '.join(missing)} (needed what failed)"] if missing else []
    lines += [f"warning: {text}" for text in doubted]
    lines += drift_lines(drifts)
    far = worst_line(compare(result.plan, result.trace), result.trace.makespan)
    lines += [far] if far else []
    write("\n".join([*lines, *three_lines(result.plan, result.trace), *energy_lines(energy)]))
