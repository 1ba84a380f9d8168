"""The options that `run`, `plan` and their like share, and what they mean as arguments of `hetsched.plan` and `hetsched.run`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetsched.cli.parser import Parser
from hetsched.cli.units import assignment, duration, size
from hetsched.errors import CommandLineError

if TYPE_CHECKING:
    from hetsched.machine import Machine

FORMATS = ("text", "json", "jsonl")


def format_option(parser: Parser, *formats: str) -> None:
    """`--format text|json|...`."""
    names = formats or FORMATS
    parser.add_argument("--format", choices=names, default="text", help="what is printed on standard output (default: text)")


def pipeline_options(parser: Parser) -> None:
    """What changes how a file is read."""
    parser.add_argument("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="give a parameter of the file another value")
    parser.add_argument("--seed", type=int, metavar="N", help="the same as -s seed=N")
    parser.add_argument("--trust", action="store_true", help="consent, this once, to what the file brings (see `hetsched trust`)")


def placement_options(parser: Parser, *, policy: bool = True) -> None:
    """What changes where tasks are placed. policy: False for a command that takes several policies, and runs nothing."""
    parser.add_argument("-d", "--device", metavar="PATTERN", help="cpu, gpu, cuda:0, opencl ...: only this device for every task that can run on it")
    if policy:
        parser.add_argument("--policy", default="auto", metavar="NAME", help="the rule that writes the plan (default: auto)")
    parser.add_argument(
        "--objective",
        metavar="O",
        help="time, latency, energy, price, time=0.5,energy=0.5, energy,deadline=2min (default: as the file says, else time)",
    )
    parser.add_argument("--plan-time", metavar="D", help="search at most this long for a better plan, where the policy searches: 500ms, 30s, 2min")
    machine_options(parser)
    if policy:
        parser.add_argument(
            "--emulate", action="store_true", help="with --machine or --what-if: run on it in software, its devices' speeds and links modelled"
        )
    parser.add_argument("--no-learn", action="store_true", help="neither use nor keep what runs teach about costs (also: HETSCHED_LEARN=0)")
    parser.add_argument("--deterministic", action="store_true", help="equal plans for equal files: nothing that runs have taught is used")
    parser.add_argument(
        "--memory",
        action="append",
        default=[],
        metavar="[NODE=]SIZE",
        help="use at most this much memory of the host (512MiB), of a device (cuda:0=2GB), of all such (gpu=2GB); several with commas, or again; "
        "what exceeds it is evicted",
    )


def machine_options(parser: Parser) -> None:
    """Which machine, and what is different about it."""
    parser.add_argument(
        "--machine",
        metavar="FILE|NAME",
        help="a described machine, not the one found here: a file, aws/p5.48xlarge, l4 ... (see `hetsched machines`)",
    )
    parser.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="SPEC",
        help="the machine with devices more or less: +l4 or +l4:2 (of the catalog), -cuda:0 (of the machine); may be given again",
    )
    parser.add_argument(
        "--watts",
        action="append",
        default=[],
        metavar="DEVICE=BUSY/IDLE",
        help="what a device draws with all lanes at work, and idle, where no meter counts it: cpu=65/12 (also: HETSCHED_WATTS)",
    )


def overrides(args: Any) -> dict[str, Any]:
    """Parameters given on the command line, by name, as texts."""
    found: dict[str, Any] = dict(assignment(text) for text in args.set)
    if args.seed is not None:
        if "seed" in found:
            raise CommandLineError(f"the seed is given twice: --seed {args.seed} and -s seed={found['seed']}; leave one out")
        found["seed"] = str(args.seed)
    return found


def memory_limits(texts: list[str]) -> dict[str, int] | None:
    """`["512MiB", "cuda:0=2GB,gpu=1GB"]` as memory node (or device, or pattern of devices) -> bytes; without a name it is the host's."""
    limits: dict[str, int] = {}
    for text in [part.strip() for given in texts for part in given.split(",")]:
        node, equals, amount = text.rpartition("=")
        node = node if equals else "host"
        if node in limits:
            raise CommandLineError(f"--memory gives {node!r} twice; leave one out")
        limits[node] = size(amount, "--memory")
    return limits or None


def machine_of(text: str | None) -> Machine | None:
    """The machine that `--machine` names: a file if it looks like one or exists, else a name of the catalog. None: the one found here."""
    if text is None:
        return None
    from hetsched.machine.named import read_or_find

    return read_or_find(text)


def changed(machine: Machine | None, changes: list[str], watts: list[str] | None = None, device: str | None = None) -> Machine | None:
    """`machine` (None: the one found here) with the changes of `--what-if`, and the watts of `--watts`. device: what `-d` asks for."""
    if not (changes or watts):
        return machine
    from hetsched.machine.named import what_if
    from hetsched.machine.watts import with_watts

    if machine is None:
        import hetsched.executors.backends  # noqa: F401 (makes Machine.here() work)
        from hetsched.machine import Machine

        machine = Machine.here(device or "any")
    return with_watts(what_if(machine, changes), watts or [], "--watts")


def options_of(machine: str) -> list[str]:
    """The options that a machine called `machine` came from; of a described one, whose file nobody knows, `FILE` with its name."""
    from hetsched.machine.machine import HERE
    from hetsched.machine.named import changes_of, names

    base, changes = changes_of(machine)
    known = next((name for name in names() if name.lower() == base.lower()), None)
    first = [] if base == HERE else ["--machine", known if known is not None else f"FILE (of {base!r})"]
    return [*first, *(word for change in changes for word in ("--what-if", change))]


def unchanged(args: Any) -> Machine | None:
    """The machine of the command line without its `--what-if`."""
    return emulated(changed(machine_of(args.machine), [], args.watts, args.device), getattr(args, "emulate", False))


def emulated(machine: Machine | None, wanted: bool) -> Machine | None:
    """`machine`, its devices in software where that is wanted."""
    if not wanted:
        return machine
    if machine is None:
        raise CommandLineError("--emulate needs what to emulate: give --machine FILE, --machine NAME (see `hetsched machines`) or --what-if +DEVICE")
    from hetsched.executors.backends.emulated import emulate

    return emulate(machine)


def placement_arguments(args: Any, objective: str = "time") -> dict[str, Any]:
    """The keyword arguments of `hetsched.plan` that the command line asks for; `objective` is the file's."""
    seconds = duration(args.plan_time, "--plan-time", zero=True) if args.plan_time is not None else 0.0
    if seconds and args.deterministic:
        way = "leave one out, or give --policy search, which tries a number of plans that does not depend on time"
        raise CommandLineError(f"--plan-time {args.plan_time} finds other plans each time, and --deterministic wants the same: {way}")
    return {
        "machine": emulated(changed(machine_of(args.machine), args.what_if, args.watts, args.device), getattr(args, "emulate", False)),
        "policy": getattr(args, "policy", "auto"),
        "objective": args.objective or objective,
        "plan_seconds": seconds,
        "only": args.device,
        "memory": memory_limits(args.memory),
        "learn": not (args.no_learn or args.deterministic),
    }
