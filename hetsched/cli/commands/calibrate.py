"""measure the devices of this machine: launches, copies, memory, arithmetic, a curve for each family of ops; kept for every later plan"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option
from hetsched.cli.output import write, write_json
from hetsched.cli.parser import Parser
from hetsched.cli.units import duration

if TYPE_CHECKING:
    from hetsched.machine import Device
    from hetsched.machine.calibration import Calibration

MOST_SECONDS = 60.0


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched calibrate`."""
    parser.add_argument("device", nargs="?", metavar="DEVICE", help="cpu, cuda:0, opencl ...: only devices that this matches (default: all)")
    parser.add_argument("--time", metavar="D", default="40s", help="at most about this long a device, up to 60s (default: 40s)")
    parser.add_argument("--fresh", action="store_true", help="measure all anew, where the last one ran out of time and could be gone on with")
    parser.add_argument("--show", action="store_true", help="show what was measured before, and measure nothing")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Measure each device, one after the other; nothing else should keep the machine busy."""
    from hetsched.errors import CommandLineError, PlacementError
    from hetsched.report.calibration import calibration_lines, calibration_record

    budget = duration(args.time, "--time")
    if not 1.0 <= budget <= MOST_SECONDS:
        raise CommandLineError(f"--time {args.time} is not between 1s and {MOST_SECONDS:.0f}s")
    from hetsched.costing import calibrate_device
    from hetsched.executors.backends import here
    from hetsched.machine.calibration import complaints, load

    machine = here(args.device or "any")
    devices = [d for d in machine.devices if args.device is None or d.matches(args.device)]
    if not devices:
        known = ", ".join(d.id for d in machine.devices)
        raise PlacementError(f"no device here matches {args.device!r}; there are: {known}")
    found: list[tuple[Device, Calibration, list[str]]] = []
    for device in devices:
        if args.show:
            kept = load(device)
            if kept is None:
                raise PlacementError(f"{device.id} has not been calibrated; `hetsched calibrate {device.id}` does it")
            partly = [] if kept.whole else [f"only what a first run needs was measured; `hetsched calibrate {device.id}` measures the rest"]
            found.append((device, kept, [*kept.notes, *partly, *complaints(kept)]))
        else:
            # A tenth is left for dispatching and for what devices lose together.
            calibration, remarks = calibrate_device(device, machine, max(0.9 * budget - 1.0, 0.5), _telling(device.id), args.fresh)
            found.append((device, calibration, remarks))
        if args.format == "text":
            _clear()
            write("\n".join(calibration_lines(*found[-1])))
    if args.format == "json":
        write_json({"version": 1, "devices": [calibration_record(c, remarks) for _, c, remarks in found]})
    return 0


def _telling(device: str) -> Any:
    def tell(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{device}: {text:<40}", end="", file=sys.stderr, flush=True)

    return tell


def _clear() -> None:
    if sys.stderr.isatty():
        print(f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)
