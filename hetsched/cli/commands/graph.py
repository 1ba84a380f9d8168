"""draw the graph of a pipeline: text, a picture (.svg), a page (.html), Mermaid (.mmd) or Graphviz (.dot)"""

from __future__ import annotations

import os
from typing import Any

from hetsched.cli.options import overrides, pipeline_options
from hetsched.cli.output import STANDARD, files, write
from hetsched.cli.parser import Parser
from hetsched.errors import CommandLineError, did_you_mean

FORMS = ("txt", "svg", "html", "mmd", "dot")


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched graph`."""
    parser.add_argument("file", metavar="FILE", help="a pipeline")
    pipeline_options(parser)
    forms = ", ".join(f".{form}" for form in FORMS)
    parser.add_argument("-o", "--output", metavar="F", help=f"write to F; its extension says the form: {forms}; - is standard output")
    parser.add_argument("--format", choices=FORMS, help="the form (default: as -o says, else txt)")


def execute(args: Any) -> int:
    """Print the picture, or write it to a file."""
    with files({"-o": args.output}) as put:
        form = args.format or (os.path.splitext(args.output)[1][1:] if args.output not in (None, STANDARD) else "txt")
        if not form:
            raise CommandLineError(f"-o {args.output}: the extension says the form, and there is none: add one of .{', .'.join(FORMS)}, or --format")
        if form not in FORMS:
            raise CommandLineError(f"-o {args.output}: no picture of form {form!r}{did_you_mean(form, FORMS)}")
        from hetsched.pipeline.build import load
        from hetsched.report.pictures import PICTURES, graph_text
        from hetsched.report.svg import html, svg

        pipeline = load(args.file, overrides(args), trust=args.trust)
        named = {"txt": graph_text, "svg": svg, "html": html}
        text = named[form](pipeline.graph, pipeline.name) if form in named else PICTURES[form](pipeline.graph)
        if args.output is None:
            write(text.rstrip("\n"))
        else:
            put(args.output, text.rstrip("\n") + "\n")
    return 0
