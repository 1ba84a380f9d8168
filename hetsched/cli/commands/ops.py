"""list the ops, or show one with its inputs, outputs and options"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from hetsched.cli.options import format_option
from hetsched.cli.output import width, write, write_json
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError, did_you_mean

if TYPE_CHECKING:
    from hetsched.graph.op import Attribute, Composite, Op


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched ops`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="an op (tensor.matmul), or a family (tensor)")
    format_option(parser, "text", "json")


def execute(args: Any) -> int:
    """Print the list, a family of it, or one op."""
    from hetsched.graph.ops import registry

    known = registry()
    chosen = [op for name, op in known.items() if args.name is None or name == args.name or name.startswith(args.name + ".")]
    if not chosen:
        raise CommandLineError(f"unknown op {args.name!r}{did_you_mean(args.name, known)}")
    if args.format == "json":
        data = [_record(op) for op in chosen]
        write_json(data[0] if args.name in known else data)
    elif args.name in known:
        write(_page(known[args.name]))
    else:
        write(_list(chosen))
    return 0


def _first_line(op: Op | Composite) -> str:
    return op.doc.strip().partition("\n")[0].partition(". ")[0].rstrip(".")


def _list(ops: list[Op | Composite]) -> str:
    from hetsched.report.text import cut, table

    rows = [[op.name, f"{', '.join(op.inputs) or '-'} -> {', '.join(op.outputs) or '-'}", _runs_on(op)] for op in ops]
    lines = table(["op", "inputs -> outputs", "kernels"], rows)
    room = max(width() - max(map(len, lines)) - 2, 24) if sys.stdout.isatty() else 1000
    edge = max(map(len, lines))
    texts = ["what it does", *(_first_line(op) for op in ops)]
    return "\n".join(f"{line:<{edge}}  {cut(text, room)}".rstrip() for line, text in zip(lines, texts, strict=True))


def _runs_on(op: Op | Composite) -> str:
    from hetsched.graph.op import Composite

    if isinstance(op, Composite):
        return "composite"
    return "view" if op.view else ", ".join(op.kernels)


def _page(op: Op | Composite) -> str:
    from hetsched.report.text import table

    lines = [f"{op.name}({', '.join(op.inputs)}) -> {', '.join(op.outputs) or 'nothing'}", ""]
    if op.doc.strip():
        lines += [*op.doc.strip().splitlines(), ""]
    lines.append(f"kernels: {_runs_on(op)}")
    facts = _facts(op)
    if facts:
        lines.append(", ".join(facts))
    if op.attributes:
        rows = [[name, a.wanted, _default(a), a.doc] for name, a in op.attributes.items()]
        lines += ["", *table(["option", "wants", "default", ""], rows)]
    if any(x.endswith("*") for x in (*op.inputs, *op.outputs)) or any(x.endswith("?") for x in op.inputs):
        lines += ["", "x? may be left out; x* stands for any number"]
    return "\n".join(lines)


def _facts(op: Op | Composite) -> list[str]:
    from hetsched.graph.op import Composite

    if isinstance(op, Composite):
        return ["expands to primitive ops, each placed by itself"]
    facts = [("differentiable", op.gradient is not None), ("element-wise", op.elementwise), ("may write in place", bool(op.inplace))]
    facts += [("waits for input or output", op.waits), ("random by seed and task name", op.random), ("has an effect outside", not op.pure)]
    return [text for text, holds in facts if holds]


def _default(attribute: Attribute) -> str:
    from hetsched.graph.op import REQUIRED

    if attribute.default is REQUIRED:
        return "required"
    value = attribute.default
    return (
        "none"
        if value is None
        else str(value).lower()
        if isinstance(value, bool)
        else " ".join(map(str, value))
        if isinstance(value, tuple)
        else str(value)
    )


def _record(op: Op | Composite) -> dict[str, Any]:
    from hetsched.graph.op import REQUIRED, Composite

    options = {
        name: {"wants": a.wanted, "required": a.default is REQUIRED, "default": None if a.default is REQUIRED else a.default, "doc": a.doc}
        for name, a in op.attributes.items()
    }
    composite = isinstance(op, Composite)
    return {
        "name": op.name,
        "composite": composite,
        "inputs": list(op.inputs),
        "outputs": list(op.outputs),
        "kernels": [] if isinstance(op, Composite) else sorted(op.kernels),
        "facts": _facts(op),
        "options": options,
        "doc": op.doc,
    }
