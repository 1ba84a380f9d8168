"""`--checkpoint` and `hetsched resume`: how a run was asked for is kept beside its state, so that it can be asked for again."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetsched.cli.units import how_often
from hetsched.errors import CommandLineError, GraphError

if TYPE_CHECKING:
    from hetsched.executors.result import Result
    from hetsched.pipeline.build import Pipeline

# Options that are paths: of another folder they would be other files.
_PATHS = ("file", "output", "trace", "plan", "machine")


@dataclass
class Keeping:
    """The checkpoints of a run of the command. name: its id, "" before it has one. plan: the plan that it began with, where it goes on."""

    args: dict[str, Any]
    seconds: float | None
    turns: int | None
    retries: int = 0
    name: str = ""
    plan: Path | None = None

    @staticmethod
    def of(args: Any) -> Keeping | None:
        """That of a command line, None without `--checkpoint`. Where it goes on with a run, its file must be as it was."""
        if args.checkpoint is None:
            if args.retries:
                raise CommandLineError("--retries goes back to the last checkpoint; give --checkpoint 30s as well")
            return None
        seconds, turns = how_often(args.checkpoint)
        name = getattr(args, "resumed", "")
        given = {key: value for key, value in vars(args).items() if key != "resumed"}
        keeping = Keeping({**given, **{k: _whole(k, given[k]) for k in _PATHS}}, seconds, turns, args.retries, name)
        if name:
            from hetsched.checkpoints.store import PLAN, STATE
            from hetsched.report.unfinished import Unfinished

            runs = Unfinished()
            _refuse_another_file(runs.load(name), args.file)
            folder = runs.state(name)
            keeping.plan = folder / PLAN if (folder / STATE).exists() else None
        return keeping

    def run(self, run: Callable[..., Result], pipeline: Pipeline) -> Result:
        """Run with checkpoints; where the run ends before its end, say how to go on."""
        from hetsched.checkpoints import Checkpoint
        from hetsched.report.unfinished import Unfinished

        runs, is_new = Unfinished(), not self.name
        if is_new:
            self.name = runs.add({"name": pipeline.name, "file": self.args["file"], "sha256": pipeline.sha256, "args": self.args})
        every = {"seconds": self.seconds} if self.seconds is not None else {"turns": self.turns}
        try:
            return run(checkpoint=Checkpoint(runs.state(self.name), tell=_tell, clear=False, retries=self.retries, **every))
        except BaseException as error:
            turns = runs.turns(self.name)
            if not turns:
                runs.remove(self.name)  # nothing is lost by beginning anew
            elif is_new or not isinstance(error, GraphError):  # that tells what has changed, and the way out
                print(f"hetsched: `hetsched resume {self.name}` goes on from {turns_text(turns)}", file=sys.stderr)
            raise

    def end(self) -> None:
        """The run is done, and its outputs are written."""
        from hetsched.report.unfinished import Unfinished

        Unfinished().remove(self.name)


def turns_text(turns: Mapping[str, list[int]]) -> str:
    """How far loops are, in words."""
    return ", ".join(f"turn {done:,} of {of:,} of {loop!r}" for loop, (done, of) in turns.items()) or "its beginning"


def _tell(text: str) -> None:
    print(f"hetsched: {text}", file=sys.stderr)


def _whole(option: str, given: Any) -> Any:
    if not isinstance(given, str) or given == "-" or (option == "machine" and not os.path.exists(given)):
        return given
    return os.path.abspath(given)


def _refuse_another_file(record: Mapping[str, Any], file: str) -> None:
    from hetsched.pipeline.trust import file_sha256

    if file_sha256(file) != record["sha256"]:
        way = f"bring back what was, or begin anew: `hetsched resume {record['id']} --fresh`"
        raise GraphError(f"{file} has changed since run {record['id']} began, so it cannot go on; {way}")
