"""The command `hetsched`. One file a subcommand in `commands/`, loaded when it is named; nothing heavy is imported before that."""

from hetsched.cli.entry import main

__all__ = ["main"]
