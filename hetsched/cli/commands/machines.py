"""list the described machines that --machine knows by name"""

from __future__ import annotations

from typing import Any

from hetsched.cli.options import format_option
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched machines`."""
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print the catalog: a line a machine."""
    from hetsched.machine.described import machine_named, machine_names
    from hetsched.report.record import machine_record
    from hetsched.report.text import table

    machines = {name: machine_named(name) for name in machine_names()}
    if args.format == "json":
        write_json({name: machine_record(machine) for name, machine in machines.items()})
        return 0
    rows = [[name, ", ".join(f"{d.id} ({d.name or d.kind})" for d in machine.devices)] for name, machine in machines.items()]
    write("\n".join(table(["machine", "devices"], rows)))
    return 0
