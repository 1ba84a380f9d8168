"""The timeline: one type for the plan (predicted by a policy) and the trace (measured by an executor).

A straight plan has `turns == 1` and `period is None`. The plan of a loop's body is a timeline of its own, with the spans of turn 0 and a
`period`: turn i starts i periods later, and a span's start may lie beyond the period (it is then in a later stage of the pipeline). A loop is one
`Launch` of the outer plan, which holds every lane the body uses; the body's plan is `outer.loops[task number]`. So is an if, of which that is the
plan of the branch `then`, whose `otherwise` is that of the other; both are straight plans, and a run does one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeAlias

from hetsched.errors import CommandLineError
from hetsched.graph.graph import Graph, If, Loop
from hetsched.machine import Machine

# The threads of a device share its tasks: one goes on with what it has made ready, whose inputs lie in its core's cache, unless something that waits
# is planned this share of all steps earlier, and so many steps at least. Executors keep to it, and plans are timed by it. (Tiled Cholesky, tiles of
# 256 KiB: of two free threads 0.936 where it is 32 steps, 0.963 without a limit.)
STAY_SHARE, STAY_STEPS = 1 / 8, 32


class Lane(NamedTuple):
    """A row of a plan: lane `number` of a device (`kind` "compute" or "io") or of a link ("copy", `owner` is `Link.id`)."""

    owner: str
    number: int
    kind: str = "compute"

    def __str__(self) -> str:
        return f"{self.owner}/{'' if self.kind != 'io' else 'io'}{self.number}"


class Replica(NamedTuple):
    """A value (by its id in the graph) of one turn in one memory node. In the plan of a body `turn` is 0 and stands for every turn.

    generation: 0, or how often the value was evicted from the node before: its bytes were given up, and a copy brought it in again. A launch
    writes generation 0 only; plans of bodies know no other.
    """

    value: int
    turn: int
    node: str
    generation: int = 0


class Launch(NamedTuple):
    """Run task number `task` of the graph; `width` lanes at once. `writes` are in the order of the task's outputs, `reads` of its inputs."""

    task: int
    turn: int
    reads: tuple[Replica, ...]
    writes: tuple[Replica, ...]
    width: int = 1


class Copy(NamedTuple):
    """Copy a value from one memory node to another."""

    value: int
    turn: int
    src: Replica
    dst: Replica


class Free(NamedTuple):
    """The bytes of a replica may be used again from here on."""

    replica: Replica


Command: TypeAlias = Launch | Copy | Free


class Span(NamedTuple):
    """A command on its lanes from `start` to `finish`, seconds from the start of the run. A `Free` has no lanes and no length."""

    lanes: tuple[Lane, ...]
    command: Command
    start: float
    finish: float


class After(NamedTuple):
    """Reuse edge: span number `later`, `turns` turns on, starts only when span number `before` has finished."""

    before: int
    later: int
    turns: int = 0


@dataclass(frozen=True)
class Bound:
    """A lower bound on the makespan (or period) in seconds. `witness` proves it to `check_bound`; `kind` says how."""

    seconds: float
    kind: str
    witness: Any = None


@dataclass(frozen=True, eq=False)
class Timeline:
    """Spans on lanes, predicted or measured.

    spans: in any order: their times say what comes first, and on a lane, where times are equal, their places here.
    after: reuse edges, indices into `spans`.
    offsets: replica -> byte offset in the arena of its node, for every replica that lives in an arena. Not in an arena: values of the
    graph's inputs and constants on the host (borrowed), its outputs on the host (owned by the caller), opaque values and sequences of them.
    A replica whose value is a view, or is written in place, has the offset of what it aliases.
    arenas: node -> bytes. rings: replica -> slots, in the plan of a body; slot s of a replica lies `s * stride` bytes after its offset, where
    stride is the value's bytes rounded up to 64; absent: 1 slot. Turn i uses slot i % slots (value that runs every k turns: (i // k) % slots).
    A carried input of a body has no bytes of its own: at turn i it is the carried output's replica of turn i - 1.
    workspaces: task -> (memory node, byte offset in its arena, bytes) of the scratch of its launch; one slot, so two turns of it never overlap.
    loops: loop task -> plan of its body; if -> plan of `then`. loop: the loop whose body this plans, else None.
    branch: the if of which this plans a branch, else None. otherwise: of the plan of `then`, the plan of the other branch. (Of a trace: which branch
    has run says its `graph`.)
    prologue, epilogue: in the plan of a body, copies that run once: of invariants and first carried values from the host before turn 0
    (`dst` is the replica that the body reads), of last carried values to the host after the last turn. Starts count from the start of the
    prologue (epilogue); the period does not hold them.
    bodies: loop task -> node -> byte offset in this plan's arena where the arena of the body's plan lies (`loops[task].arenas[node]` bytes).
    peak: node -> most bytes alive at once. bound: the lower bound. policy, objective: what was asked for. measured: True for a trace.
    totals: of a trace: device or link -> busy seconds, turns whose spans were not kept included.
    begin_seconds: of a loop's body: what beginning and ending the loop takes beside its turns, prologue and epilogue; of a branch: beside its tasks.
    attributed: of a trace: indices into `spans` of those whose times are shares of a step that was measured as a whole. cold: of those of a launch
    that also did what a process does once (see `executors.warming`). Costs learn from neither, where they know better.
    keeps_order: True where threads that share a device keep to the order of the starts, which was chosen for the sake of the cache
    (`placement.reuse`); False where one may stay with what it has made ready.
    notes: remarks for the user (fallbacks, ignored preferences).
    """

    graph: Graph
    machine: Machine
    spans: tuple[Span, ...]
    after: tuple[After, ...] = ()
    offsets: Mapping[Replica, int] = field(default_factory=dict)
    arenas: Mapping[str, int] = field(default_factory=dict)
    period: float | None = None
    rings: Mapping[Replica, int] = field(default_factory=dict)
    workspaces: Mapping[int, tuple[str, int, int]] = field(default_factory=dict)
    prologue: tuple[Span, ...] = ()
    epilogue: tuple[Span, ...] = ()
    loops: Mapping[int, Timeline] = field(default_factory=dict)
    loop: Loop | None = None
    branch: If | None = None
    otherwise: Timeline | None = None
    turns: int = 1
    peak: Mapping[str, int] = field(default_factory=dict)
    bound: Bound | None = None
    policy: str = ""
    objective: str = "time"
    measured: bool = False
    notes: tuple[str, ...] = ()
    plan_seconds: float = 0.0
    bodies: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    attributed: frozenset[int] = frozenset()
    cold: frozenset[int] = frozenset()
    begin_seconds: float = 0.0
    keeps_order: bool = False
    version: int = 1

    explainer: ClassVar[Callable[..., Any] | None] = None

    @property
    def makespan(self) -> float:
        """Seconds from 0 to the last finish (all turns of a loop's body)."""
        once = max([s[3] for s in self.spans], default=0.0)
        if self.measured:
            return once
        return once + (self.turns - 1) * self.period if self.period is not None and self.turns > 0 else once

    @property
    def nested(self) -> tuple[tuple[int, Timeline], ...]:
        """(task, plan or trace) of everything in `loops`, both branches of an if."""
        return tuple((t, plan) for t, first in self.loops.items() for plan in first.alternatives)

    @property
    def alternatives(self) -> tuple[Timeline, ...]:
        """This timeline, and that of the other branch where it is the plan of an if's first."""
        return (self,) if self.otherwise is None else (self, self.otherwise)

    @property
    def booked(self) -> tuple[tuple[float, Timeline], ...]:
        """(share, plan) of what a plan counts with: of an if both branches by its likelihood, or the longer one where that is not known."""
        if self.otherwise is None or self.branch is None:
            return ((1.0, self),)
        share = self.branch.likelihood
        if share is None:
            return ((1.0, max(self.alternatives, key=lambda plan: plan.makespan)),)
        return ((share, self), (1.0 - share, self.otherwise))

    @property
    def likeliest(self) -> Timeline:
        """This timeline; of an if the plan of the branch that counts most."""
        return max(self.booked, key=lambda row: row[0])[1]

    @property
    def prefix(self) -> str:
        """What names of tasks are prefixed with within their task: `then/` or `otherwise/` in a branch."""
        return "" if self.branch is None else "then/" if self.graph is self.branch.then else "otherwise/"

    @property
    def room(self) -> Mapping[str, int]:
        """Memory node -> bytes that a run of this plan takes, whichever branch it does: `arenas`, of the larger branch."""
        other = self.otherwise
        if other is None:
            return self.arenas
        return {node: max(self.arenas.get(node, 0), other.arenas.get(node, 0)) for node in dict.fromkeys((*self.arenas, *other.arenas))}

    @property
    def launches(self) -> list[Span]:
        """The spans that are launches, in the order of the timeline."""
        return [s for s in self.spans if isinstance(s.command, Launch)]

    @property
    def copies(self) -> list[Span]:
        """The spans that are copies."""
        return [s for s in self.spans if isinstance(s.command, Copy)]

    @cached_property
    def lane_sets(self) -> tuple[tuple[Lane, ...], ...]:
        """The lanes of the spans, each object once: spans of a lane share it, mostly."""
        rows = [s[0] for s in self.spans]
        return tuple(dict(zip(map(id, rows), rows, strict=True)).values())

    @property
    def lanes(self) -> list[Lane]:
        """Every lane used, sorted."""
        return sorted({lane for lanes in self.lane_sets for lane in lanes})

    @cached_property
    def owners(self) -> frozenset[str]:
        """The devices and links whose lanes are used."""
        return frozenset(lane.owner for lane in self.lanes)

    def by_lane(self) -> dict[Lane, list[Span]]:
        """Lane -> its spans by start."""
        out: dict[Lane, list[Span]] = {lane: [] for lane in self.lanes}
        for span in sorted(self.spans, key=lambda s: (s.start, s.finish)):
            for lane in span.lanes:
                out[lane].append(span)
        return out

    def device_of(self, task: int) -> str:
        """The device that task number `task` runs on (a loop: the devices of its lanes, joined by "+")."""
        for span in self.spans:
            if isinstance(span.command, Launch) and span.command.task == task:
                return "+".join(dict.fromkeys(lane.owner for lane in span.lanes))
        raise KeyError(task)

    def explain(self, task: str, **options: Any) -> Any:
        """Why `task` is where it is: what it would take on each device, and what would move it; `print` it.

        options: see `hetsched.placement.why.explain_task` (set by `hetsched.placement`, from where plans come).
        """
        if Timeline.explainer is None:
            raise CommandLineError("nothing is loaded that explains plans; import hetsched.placement before plan.explain()")
        return Timeline.explainer(self, task, **options)

    def __repr__(self) -> str:
        kind = "trace" if self.measured else f"plan by {self.policy or 'hand'}"
        return f"<Timeline ({kind}): {len(self.spans)} spans on {len(self.lanes)} lanes, {self.makespan:.6g} s>"
