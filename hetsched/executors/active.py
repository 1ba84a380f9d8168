"""What a crew walks: frames with their walks, and steps that may start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from hetsched.executors.frame import Frame
from hetsched.executors.program import is_chain
from hetsched.executors.steps import Step
from hetsched.executors.tracing import Logs, Note, Noted
from hetsched.executors.walk import Arc, Walk
from hetsched.graph.graph import Nested
from hetsched.timeline import Copy, Launch, Timeline


class Driver(Protocol):
    """What drives the lanes of a device that runs ahead of the host; `hetsched.executors.live` has it."""

    name: str

    def put(self, item: Item) -> None:
        """Take a step that may be handed to its stream."""


class Item(NamedTuple):
    """A step that may start: what has the lowest `priority` goes first, then what became ready first."""

    priority: float
    number: int
    active: Active
    step: Step
    turn: int


class Active:
    """A frame being walked: its walk, its place in the frame around it, and what was measured. `drivers`: lane owner -> driver of its streams."""

    def __init__(self, frame: Frame, base: float, around: Item | None, drivers: Mapping[str, Driver], is_walked: bool = True) -> None:
        """is_walked: False where others than the crew walk it (`relay`), and nothing is counted here."""
        self.frame = frame
        program = frame.program
        self.drivers: list[Driver | None] = [None] * len(program.steps)
        if drivers:
            self.drivers = [None if is_loop(program.plan, step) else drivers.get(step.owner) for step in program.steps]
        steps, arcs = (len(program.steps), program.arcs) if is_walked else (0, ())
        self.walk = Walk(steps, arcs, frame.turns, program.window, self._is_soft if drivers else None)
        self._soft_before: list[list[tuple[int, int]]] = [[] for _ in program.steps] if drivers else []
        self._awaited: set[int] = set()
        if drivers:
            for arc in program.arcs:
                # A stream keeps the order of its own steps: only those of other lanes are waited for.
                if self._is_soft(arc) and program.steps[arc.before].lanes[0] != program.steps[arc.later].lanes[0]:
                    self._soft_before[arc.later].append((arc.before, arc.turns))
                    self._awaited.add(arc.before)
        self._tells = [self.walk.tells(step.index) or frame.gathers(step.index) for step in program.steps] if drivers else []
        self.base = base
        period = program.plan.period or 0.0
        self.stages = 1 + int(max((step.start for step in program.steps), default=0.0) / period) if period > 0 else 1
        self.around = around
        self.began = 0.0
        self.notes: list[Note] = []
        self.logs: Logs | None = None  # instead of notes, where threads kept logs
        self.busy: dict[str, float] = {}
        self.loops: dict[int, Noted] = {}
        # The loop of the outermost graph that this is in (None: it is that graph itself), whether it is lost, and how many of its steps are
        # under way.
        self.top: Active | None = None if around is None else around.active.top or self
        self.is_lost = False
        self.under_way = 0
        self.stop_step = frame.program.stop_step
        self.is_chain = is_chain(frame.program)
        self.finished: set[int] = set()  # spans, of the outermost frame
        self.measured: list[list[float]] = [[0, 0.0] for _ in range(steps)]  # step -> [times, seconds]

    def soft_before(self, step: int) -> list[tuple[int, int]]:
        """(step before, turns) of the soft arcs that end at a step and come from another stream."""
        return self._soft_before[step]

    def is_awaited(self, step: int) -> bool:
        """True if another stream of its device may have to wait for a step."""
        return step in self._awaited

    def tells(self, step: int) -> bool:
        """True if somebody waits until a step is done: the host, or another device."""
        return self._tells[step]

    def _is_soft(self, arc: Arc) -> bool:
        """Streams of one device keep the order of two of its steps, but not against the host, which gathers what a step has brought, and

        looks at the stop value before the next turn begins.
        """
        driver = self.drivers[arc.before]
        if driver is None or driver is not self.drivers[arc.later]:
            return False
        return not self.frame.gathers(arc.before) and not (arc.before == self.frame.program.stop_step and arc.turns > 0)

    def priority(self, step: Step, turn: int) -> float:
        """The planned start: what is meant to begin earlier goes first. In a loop what is left of the oldest turn: whoever waits for it waits in vain

        meanwhile, and what is ahead of it lies in a ring.
        """
        return self.base + step.start / self.stages + turn * (self.frame.plan.period or 0.0)

    def noted(self) -> Noted:
        """What was measured: the trace, when somebody writes it."""
        return Noted(self.frame.program, self.logs or self.notes, self.busy, self.walk.turns, self.loops, self.frame.cold)


def width_of(item: Item) -> int:
    """How many lanes a launch takes."""
    plan = item.active.frame.plan
    command = plan.spans[item.step.spans[0]].command
    plain = isinstance(command, Launch) and item.step.kind == "compute" and len(item.step.spans) == 1 and not is_loop(plan, item.step)
    return command.width if plain and isinstance(command, Launch) else 1


def is_loop(plan: Timeline, step: Step) -> bool:
    """True if the step is a loop task."""
    command = plan.spans[step.spans[0]].command
    return isinstance(command, Launch) and isinstance(plan.graph.task_ops[command.task], Nested)


def name_of(plan: Timeline, step: Step) -> str:
    """What progress calls a step: its last task, or `copy of` the value that it copies last."""
    command = plan.spans[step.spans[-1]].command
    if isinstance(command, Launch):
        return plan.graph.task_names[command.task]
    return f"copy of {plan.graph.value_names[command.value]}" if isinstance(command, Copy) else ""
