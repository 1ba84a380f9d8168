"""list the devices of this machine, or of a described one"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetsched.cli.options import changed, format_option, machine_of, machine_options
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError

if TYPE_CHECKING:
    from hetsched.machine import Machine
    from hetsched.machine.named import Source


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched devices`."""
    machine_options(parser)
    parser.add_argument("--sources", action="store_true", help="where each figure of a described machine comes from, and the day it was read")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print devices, memory nodes and links; of this machine also what cannot be used, and why."""
    from hetsched.machine.named import sources_of
    from hetsched.report.record import machine_record

    if args.sources and (args.machine is None or args.what_if):
        raise CommandLineError("--sources tells of a described machine as it is: give --machine FILE|NAME, and no --what-if")
    machine = changed(machine_of(args.machine), args.what_if, args.watts)
    notes: list[str] = []
    if args.machine is None:
        from hetsched.executors import backends

        machine, notes = machine or backends.here(), backends.notes()
    assert machine is not None
    sources = sources_of(args.machine) if args.machine is not None and not args.what_if else []
    if args.format == "json":
        told = [{"figure": s.figure, "source": s.text, "read": s.read, "verified": s.is_verified} for s in sources]
        write_json(machine_record(machine) | ({"sources": told} if sources else {}) | ({"notes": notes} if args.machine is None else {}))
    else:
        write("\n".join([_text(machine), *_sources_text(sources, args.sources), *(f"note: {note}" for note in notes)]))
    return 0


def _sources_text(sources: list[Source], every: bool) -> list[str]:
    """A line for each figure, or only which figures are unverified."""
    from hetsched.report.text import table

    if every:
        return ["", *table(["figure", "read", "source"], [[s.figure, s.read if s.is_verified else "never", s.text] for s in sources])]
    unverified = [s.figure for s in sources if not s.is_verified]
    return ["", f"unverified: {', '.join(unverified)} (--sources tells where the others come from)"] if unverified else []


def _text(machine: Machine) -> str:
    from hetsched.report.links import grouped
    from hetsched.report.text import bytes_text, seconds_text, table

    capacity = {m.name: "no limit" if m.nbytes is None else bytes_text(m.nbytes) for m in machine.memories}
    rows = []
    for d in machine.devices:
        lanes = f"{d.lanes}" + (f" + {d.io_lanes} io" if d.io_lanes else "")
        speed = d.flops_per_second.get("float32")
        rows.append(
            [
                d.id, d.kind, d.hardware, lanes, f"{d.memory} ({capacity[d.memory]})", f"{speed / 1e9:,.1f}" if speed else "-",
                f"{d.bytes_per_second / 1e9:,.1f}", seconds_text(d.launch_seconds), d.name or "-",
            ]
        )  # fmt: skip
    head = ["device", "kind", "hardware", "lanes", "memory", "GFLOP/s a lane", "GB/s a lane", "launch", "name"]
    lines = table(head, rows, right=(5, 6))
    if machine.price_per_hour is not None:
        lines.append(f"the whole machine: {machine.price_per_hour:g} an hour")
    if machine.links:
        links = [
            [paths, seconds_text(x.latency_seconds), f"{x.bytes_per_second / 1e9:,.1f}", str(x.engines or "any")]
            for paths, x in grouped(machine.links)
        ]
        lines += ["", *table(["link", "latency", "GB/s", "copies at a time"], links, right=(2, 3))]
        if 2 * len(links) < len(machine.links):  # some line stands for more than one path there and back
            lines.append("a line may stand for many links, each of which has these figures for itself (--format json tells them one by one)")
    if machine.resources:
        users = {r.name: [d.id for d in machine.devices if d.uses.get(r.name)] for r in machine.resources}
        rows = [[r.name, f"{r.capacity:g}", ", ".join(users[r.name]) or "-"] for r in machine.resources]
        lines += ["", *table(["resource", "capacity", "shared by"], rows, right=(1,))]
    return "\n".join(lines)
