"""The command `hetsched`. One file a subcommand in `commands/`, loaded when it is named; nothing heavy is imported before that."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return the exit code. Ctrl-C while it is still being loaded ends it as later."""
    try:
        from hetsched.cli.entry import main as run

        return run(argv)
    except KeyboardInterrupt:
        import sys

        print("\nhetsched: interrupted", file=sys.stderr)
        return 130


__all__ = ["main"]
