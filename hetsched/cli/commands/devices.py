"""list the devices of this machine, or of a described one"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option, machine_of
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser

if TYPE_CHECKING:
    from hetsched.machine import Machine


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched devices`."""
    parser.add_argument("--machine", metavar="FILE|NAME", help="a described machine, not the one found here")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print devices, memory nodes and links."""
    from hetsched.report.record import machine_record

    machine = machine_of(args.machine)
    if machine is None:
        import hetsched.executors.backends  # noqa: F401 (makes Machine.here() work)
        from hetsched.machine import Machine

        machine = Machine.here()
    if args.format == "json":
        write_json(machine_record(machine))
    else:
        write(_text(machine))
    return 0


def _text(machine: Machine) -> str:
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
    if machine.links:
        links = [[x.id, seconds_text(x.latency_seconds), f"{x.bytes_per_second / 1e9:,.1f}", str(x.engines or "any")] for x in machine.links]
        lines += ["", *table(["link", "latency", "GB/s", "copies at a time"], links, right=(2, 3))]
    if machine.resources:
        users = {r.name: [d.id for d in machine.devices if d.uses.get(r.name)] for r in machine.resources}
        rows = [[r.name, f"{r.capacity:g}", ", ".join(users[r.name]) or "-"] for r in machine.resources]
        lines += ["", *table(["resource", "capacity", "shared by"], rows, right=(1,))]
    return "\n".join(lines)
