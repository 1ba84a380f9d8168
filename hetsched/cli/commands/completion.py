"""print what completes commands, options and files in a shell: bash, zsh or fish"""

from __future__ import annotations

import argparse
from typing import Any

from hetsched.cli.output import write
from hetsched.cli.parser import Parser

SHELLS = ("bash", "zsh", "fish")

BASH = """\
# hetsched in bash: eval "$(hetsched completion bash)"
_hetsched() {
  local word="${COMP_WORDS[COMP_CWORD]}" words="@COMMANDS"
  if ((COMP_CWORD > 1)); then
    case "${COMP_WORDS[1]}" in
@CASES
      *) words="" ;;
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if ((COMP_CWORD > 1)) && [[ $word != -* ]]; then COMPREPLY+=($(compgen -f -- "$word")); fi
}
complete -o filenames -F _hetsched hetsched"""

ZSH = """\
# hetsched in zsh: eval "$(hetsched completion zsh)"
autoload -U +X bashcompinit && bashcompinit
"""


def arguments(parser: Parser) -> None:
    """The arguments of `hetsched completion`."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def execute(args: Any) -> int:
    """Print the script."""
    write({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell]())
    return 0


def options_of() -> dict[str, tuple[str, dict[str, str]]]:
    """Command -> its line of help, and its options with theirs."""
    from hetsched.cli import entry

    found = {}
    for name in entry.command_names():
        command = entry.load(name)
        parser = Parser(prog=name, add_help=False)
        command.arguments(parser)
        texts = {
            option: "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
            for action in parser._actions
            for option in action.option_strings
        }
        found[name] = ((command.__doc__ or "").strip().splitlines()[0], texts)
    return found


def _bash() -> str:
    found = options_of()
    cases = "\n".join(f'      {name}) words="{" ".join(options)}" ;;' for name, (_, options) in found.items())
    return BASH.replace("@COMMANDS", " ".join(found)).replace("@CASES", cases)


def _zsh() -> str:
    return ZSH + _bash()


def _fish() -> str:
    lines = ["# hetsched in fish: hetsched completion fish | source"]
    for name, (text, options) in options_of().items():
        lines.append(f"complete -c hetsched -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
        for option, told in options.items():
            flag = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            lines.append(f"complete -c hetsched -n '__fish_seen_subcommand_from {name}' {flag} -d {_quoted(told)}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
