"""list the machines that --machine knows by name, or compare them for a pipeline: time, energy, price"""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option, overrides, pipeline_options
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError, MachineError, OutOfMemoryError, PlacementError

if TYPE_CHECKING:
    from hetsched.machine import Machine
    from hetsched.pipeline.build import Pipeline
    from hetsched.report.prediction import Candidate


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched machines`."""
    parser.add_argument("file", nargs="?", metavar="FILE", help="a pipeline: plan it on every machine, and compare")
    parser.add_argument("--on", action="append", default=[], metavar="PATTERN", help="only these machines: aws/*, *L4*, server; may be given again")
    parser.add_argument("--objective", metavar="O", help="what each plan is to be least in (default: as the file says, else time)")
    parser.add_argument("--policy", default="auto", metavar="NAME", help="the rule that writes the plans (default: auto)")
    pipeline_options(parser)
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print the catalog, a line a machine; with a pipeline the table of what each machine would take for it."""
    from hetsched.machine.described import machine_names
    from hetsched.machine.named import cloud_names, device_names, find
    from hetsched.report.record import machine_record

    if args.file is None:
        names = _chosen([*machine_names(), *cloud_names(), *device_names()], args.on)
        machines = {name: find(name) for name in names}
        if args.format == "json":
            write_json({name: machine_record(machine) for name, machine in machines.items()})
        else:
            write(_listed(machines))
        return 0
    from hetsched.pipeline.build import load
    from hetsched.report.prediction import candidates_record, candidates_text

    pipeline = load(args.file, overrides(args), trust=args.trust)
    # A device alone is a part, not a machine that somebody has; it is compared where it is asked for.
    known = [*machine_names(), *cloud_names()]
    names = _chosen(known if not args.on else [*known, *device_names()], args.on)
    found = [_candidate(pipeline, name, args) for name in names]
    if args.format == "json":
        write_json({"version": 1, "file": args.file, "name": pipeline.name, "price": "list-price estimate", "machines": candidates_record(found)})
    else:
        write(candidates_text(found))
    return 0


def _chosen(names: list[str], patterns: list[str]) -> list[str]:
    out = [name for name in names if not patterns or any(fnmatch(name.lower(), p.lower()) for p in patterns)]
    if not out:
        raise CommandLineError(f"--on {' '.join(patterns)} matches no machine; known: {', '.join(names)}")
    return out


def _listed(machines: dict[str, Machine]) -> str:
    from hetsched.machine.named import sources_of
    from hetsched.report.text import table

    rows = []
    for name, machine in machines.items():
        alike: dict[str, int] = {}
        for d in machine.devices:
            alike[d.name or d.kind] = alike.get(d.name or d.kind, 0) + 1
        hour = f"{machine.price_per_hour:g}" if machine.price_per_hour is not None else "-"
        open_figures = [s.figure for s in sources_of(name) if not s.is_verified]
        mark = "?" if "price_per_hour" in open_figures else ""
        rows.append([name, hour + mark, str(len(open_figures)), ", ".join(what if n == 1 else f"{n} x {what}" for what, n in alike.items())])
    lines = table(["machine", "an hour", "unverified", "devices"], rows, right=(1, 2))
    lines.append("an hour: list price of the whole; ?: unverified, its source was not read (hetsched devices --machine NAME --sources)")
    return "\n".join(lines)


def _candidate(pipeline: Pipeline, name: str, args: Any) -> Candidate:
    from hetsched.machine.named import find, sources_of
    from hetsched.report.prediction import Candidate, predict
    from hetsched.run import plan

    unverified = tuple(s.figure for s in sources_of(name) if not s.is_verified)
    if sys.stderr.isatty():
        print(f"planning on {name} ...", file=sys.stderr)
    try:
        made = plan(pipeline.graph, machine=find(name), policy=args.policy, objective=args.objective or pipeline.goal)
    except (PlacementError, OutOfMemoryError, MachineError) as error:
        return Candidate(name, None, str(error).splitlines()[0], unverified)
    return Candidate(name, predict(made), "", unverified)
