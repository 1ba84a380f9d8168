"""What a run gives: values by name, the trace, the plans it followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hetsched.errors import GraphError, did_you_mean
from hetsched.executors.energy import Measured
from hetsched.timeline import Timeline


@dataclass(frozen=True, eq=False)
class Result(Mapping[str, Any]):
    """The outputs of a run, by name: arrays that belong to the caller.

    trace: what happened, as a timeline on the clock of the run. plans: what was meant to happen, one an epoch.
    wall_seconds: from the call to the last output. failed: with `keep_going`, the tasks that failed, with their errors.
    energy: what meters counted during the run, where that was asked for. crowded: seconds that the process's threads waited
    for a core that other work had, over those of the run, at most 1, where that was looked at.
    traces: where the run was planned anew, what happened in each epoch, in terms of the graph of its plan; `trace` is all of it. Where it had
    checkpoints, what happened when the last piece ran of each plan but the first, that of the whole graph.
    """

    outputs: Mapping[str, Any]
    trace: Timeline
    plans: tuple[Timeline, ...]
    wall_seconds: float
    failed: Mapping[str, Exception]
    traces: tuple[Timeline, ...] = ()
    energy: Measured | None = None
    crowded: float = 0.0

    @staticmethod
    def lazily(outputs: Mapping[str, Any], trace: Callable[[], Timeline], plan: Timeline, wall_seconds: float) -> Result:
        """A result whose trace is made when it is asked for: 10 us a span that most callers never look at."""
        result = object.__new__(Result)
        object.__setattr__(result, "__dict__", {"outputs": outputs, "plans": (plan,), "wall_seconds": wall_seconds, "failed": {}, "_trace": trace})
        return result

    def in_a_crowd(self, share: float) -> Result:
        """This result, with `crowded`; its trace is not made for that."""
        self.__dict__["crowded"] = share
        return self

    def __getattr__(self, name: str) -> Any:
        if name == "trace" and "_trace" in self.__dict__:
            found = self.__dict__["trace"] = self.__dict__["_trace"]()
            return found
        raise AttributeError(f"a result has no {name!r}{did_you_mean(name, [*self.__dict__, 'trace', 'plan'])}")

    def __getitem__(self, name: str) -> Any:
        try:
            return self.outputs[name]
        except KeyError:
            raise KeyError(f"no output {name!r}{did_you_mean(name, self.outputs)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    @property
    def plan(self) -> Timeline:
        """The plan that the run began with, of the whole graph; `plans` has what it was replaced by."""
        return self.plans[0]

    def bundle(self, name: str) -> dict[str, Any]:
        """The values of an output that is a bundle, by their names inside it."""
        bundles = self.plan.graph.bundles
        if name not in bundles:
            raise GraphError(f"no output bundle {name!r}{did_you_mean(name, bundles)}")
        return {part[len(name) + 1 :]: self.outputs[part] for part in bundles[name][0] if part in self.outputs}

    def __repr__(self) -> str:
        return f"<Result: {', '.join(self.outputs) or 'no outputs'} in {self.wall_seconds:.6g} s>"
