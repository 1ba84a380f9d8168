"""The steps of a frame as bound calls: arrays looked up once, not every turn.

A step is a list of calls, made once for every combination of ring slots that turns can meet. Launches that touch what cannot be bound ahead (elements
of a sequence, the number of the turn, opaque objects, bounded dimensions) find their arrays when they run. What has run `HOT_RUNS` times on the
host's threads becomes straight-line code (`segments`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

import numpy as np

from hetsched.errors import PlacementError
from hetsched.executors.memory import HERE, Doer, HostMemory, shaped
from hetsched.executors.segments import Segment, compile_segment
from hetsched.executors.steps import Step
from hetsched.graph.guard import read_only, shut
from hetsched.graph.op import Op
from hetsched.graph.spec import AnySpec, Spec, array_form, seen_spec
from hetsched.machine import HOST
from hetsched.timeline import Command, Copy, Launch, Replica

if TYPE_CHECKING:
    from hetsched.executors.frame import Frame

# (kernel, inputs, outputs, workspace, attributes, task). Kernel `MOVE`: a copy from inputs[0] to outputs[0]; `LATER`: `inputs` is a function of
# the turn and of who does it; `GATHER`: `inputs` is a function of the turn, called when the step is done.
Call: TypeAlias = tuple[Any, Any, Any, Any, Any, int]
MOVE, LATER, GATHER = "move", "later", "gather"
Later: TypeAlias = Callable[[int, Doer], None]

# Languages of kernels that threads of this process run: both are called with NumPy.
THREADS = ("host", "array")

# Code costs 10-25 us a task to generate and saves 0.1-1 us a run.
HOT_RUNS = 50

# Sets of values that change from run to run, of which it is known which steps touch them: they are nearly always the same two.
MOST_CHANGES = 16


class Bound:
    """A step for one combination of ring slots: its calls, how often they ran, and, once they are hot, the code that took their place."""

    __slots__ = ("calls", "pieces", "runs", "segment")

    def __init__(self) -> None:
        self.calls: list[Call] | None = None
        self.pieces: tuple[list[Call], list[list[Call]]] | None = None  # calls, and the same where launches that are bound stand together
        self.runs = 0
        self.segment: Segment | None = None


class Template(NamedTuple):
    """A step of one launch that is bound anew for every run: `call` without the arrays that are the run's own, and (position, value) of those."""

    call: Call
    reads: tuple[tuple[int, int], ...]
    writes: tuple[tuple[int, int], ...]


class Bindings:
    """The bound steps of one frame."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        steps = frame.program.steps
        self._tables: list[dict[Any, Bound] | None] = [None] * len(steps)
        self._key_of = [self._keys(step) for step in steps] if frame.loop is not None else []
        self._may_be_hot: list[bool | None] = [None] * len(steps)
        self.elsewhere: frozenset[int] = frozenset()  # steps that are bound once for all runs (`board`)
        self._touching: dict[int, list[int]] | None = None
        self._steps_of: dict[frozenset[int], set[int]] = {}  # values that change together, from run to run -> the steps that touch one of them
        self._templates: dict[int, Template | None] = {}
        self._shown: dict[int, Any] = {}  # input or output of this run -> the array, read-only
        self._kernels: dict[tuple[int, str], Any] = {}

    # What a turn's number means for a step ------------------------------------------------------------------------------------

    def _keys(self, step: Step) -> list[int]:
        """Turn modulo the length of the list -> which of the step's bindings: turns that meet the same ring slots, and in which the same tasks of

        every k turns run, have one.
        """
        frame = self.frame
        rings: set[tuple[int, int, int]] = set()  # (k, slots, turns ago)
        fires: set[int] = set()
        for i in step.spans:
            command = frame.plan.spans[i].command
            k = frame.every.get(command.task, 1) if isinstance(command, Launch) else frame.every_k(command.value) if isinstance(command, Copy) else 1
            if k > 1:
                fires.add(k)
            for replica in _touched(command):
                value, ago = frame.root(replica.value, replica.node)
                slots = frame.offset.get((value, replica.node), (0, 1))[1]
                if slots > 1:
                    k = frame.every_k(value)
                    rings.add((k, slots, ago if k > 1 else 0))  # every turn: the slot of turn i - 1 follows from that of turn i
        length = min(math.lcm(*(k * n for k, n, _ in rings), *fires), max(frame.turns, 1))
        known: dict[Any, int] = {}
        out = []
        for turn in range(length):
            slots_met = [((turn - ago) // k) % n for k, n, ago in rings]
            out.append(known.setdefault((*slots_met, *(turn % k == 0 for k in fires)), len(known)))
        return out

    def may_be_hot(self, step: int) -> bool:
        """True for a step that can become code: of launches on the host's threads."""
        found = self._may_be_hot[step]
        if found is None:
            found = self._may_be_hot[step] = self._is_host_step(self.frame.program.steps[step])
        return found

    def _is_host_step(self, step: Step) -> bool:
        plain = all(isinstance(self.frame.plan.spans[i].command, Launch) for i in step.spans)
        # The first lane of a loop's step may be that of a link.
        device = next((d for d in self.frame.plan.machine.devices if d.id == step.owner), None)
        return plain and device is not None and device.memory == HOST and device.shares_lanes

    def bound(self, step: int, turn: int) -> Bound:
        """The binding of a step in a turn."""
        loop = self.frame.loop
        key: Any = 0
        if loop is not None:
            keys = self._key_of[step]
            key = keys[turn % len(keys)]
            if loop.is_remainder(turn):
                key = -1 - key
        table = self._tables[step]
        if table is None:
            table = self._tables[step] = {}
        found = table.get(key)
        if found is None:
            found = table[key] = Bound()
        return found

    def calls(self, step: int, turn: int) -> list[Call]:
        """The bound calls of a step in a turn."""
        bound = self.bound(step, turn)
        found = bound.calls  # looked at once: whoever makes code of the step takes them away
        if found is None:
            found = bound.calls = (self._bind_again(step) if self._touching is not None else None) or self._bind(self.frame.program.steps[step], turn)
        return found

    def _bind_again(self, step: int) -> list[Call] | None:
        """The calls of a step of a straight plan that has been bound before, a tenth of the time; None where there is no short way."""
        if step not in self._templates:
            self._templates[step] = self._template(self.frame.program.steps[step])
        template = self._templates[step]
        if template is None:
            return None
        kernel, reads, writes, workspace, attributes, task = template.call
        frame, shown = self.frame, self._shown
        if template.reads:
            reads = list(reads)
            for i, value in template.reads:
                found = shown.get(value)
                if found is None:
                    found = shown[value] = read_only(frame.owned[value] if value in frame.owned else frame.borrowed[value])
                reads[i] = found
        if template.writes:
            writes = list(writes)
            for i, value in template.writes:
                writes[i] = frame.owned[value]
        return [(kernel, reads, writes, workspace, attributes, task)]

    def _template(self, step: Step) -> Template | None:
        frame = self.frame
        command = frame.plan.spans[step.spans[0]].command
        if frame.loop is not None or len(step.spans) != 1 or not isinstance(command, Launch) or command.task in frame.plan.loops:
            return None
        calls = self._bind(step, 0)
        if len(calls) != 1 or not callable(calls[0][0]) or getattr(calls[0][0], "bound", None) is not None:
            return None
        own = {v for v in (*frame.owned, *frame.borrowed) if (v, HOST) not in frame.copied}
        for replica in _touched(command):
            if replica.node != HOST or replica.value in frame.dynamic or (replica.value not in own and frame.root(replica.value, HOST)[0] in own):
                return None  # on another memory node, or a part of what is the run's own
        reads = tuple((i, r.value) for i, r in enumerate(command.reads) if r.value in own)
        writes = tuple((i, r.value) for i, r in enumerate(command.writes) if r.value in own)
        kernel, ins, outs, *rest = calls[0]
        kept = tuple(None if r.value in own else x for x, r in zip(ins, command.reads, strict=True))
        return Template((kernel, kept, tuple(None if r.value in own else x for x, r in zip(outs, command.writes, strict=True)), *rest), reads, writes)

    def forget(self, changed: Iterable[int]) -> None:
        """Bind anew what touches the bytes of `changed` (inputs, outputs): other arrays hold them from here on. Code looks them up itself."""
        self._shown.clear()
        if self._touching is None:
            self._touching = self._find_touching()
        values = frozenset(changed)
        steps = self._steps_of.get(values)
        if steps is None:
            if len(self._steps_of) >= MOST_CHANGES:
                self._steps_of.clear()
            steps = self._steps_of[values] = {s for value in values for s in self._touching.get(value, ())}
        for step in steps:
            for bound in (self._tables[step] or {}).values():
                bound.calls = None

    def close(self) -> None:
        """Hold no array any more."""
        self._tables = [None] * len(self._tables)
        self._templates.clear()
        self._shown.clear()

    def _find_touching(self) -> dict[int, list[int]]:
        frame = self.frame
        out: dict[int, list[int]] = {}
        if len(self.elsewhere) == len(frame.program.steps):
            return out
        roots = {*frame.graph.inputs.values(), *frame.owned}
        known: dict[tuple[int, str], int] = {}
        for step in frame.program.steps:
            if step.index in self.elsewhere:
                continue
            touched: set[int] = set()
            for i in step.spans:
                command = frame.plan.spans[i].command
                for r in _touched(command):
                    key = (r.value, r.node)
                    if key not in known:
                        known[key] = frame.root(*key)[0]
                    touched |= {r.value, known[key]}
            for value in touched & roots:
                out.setdefault(value, []).append(step.index)
        return out

    # Doing --------------------------------------------------------------------------------------------------------------------

    def perform(self, step: int, turn: int) -> None:
        """Do a step here and now: every launch or copy of it. Raises `TaskError` with the task's name."""
        bound = self.bound(step, turn)
        segment = bound.segment
        if segment is not None:
            try:
                segment.run(turn)
            except Exception as error:
                raise self.frame.failure(error, segment.task_of(error), turn) from error
            return
        task = -1
        try:
            for kernel, inputs, outputs, workspace, attributes, task in bound.calls or self.calls(step, turn):  # noqa: B007 (read in the handler)
                if callable(kernel):
                    kernel(np, inputs, outputs, workspace, attributes)
                elif kernel is LATER:
                    inputs(turn, HERE)
                elif kernel is MOVE:
                    np.copyto(outputs[0], inputs[0])
                else:
                    inputs(turn)
        except Exception as error:
            raise self.frame.failure(error, task, turn) from error
        bound.runs += 1
        if bound.runs >= HOT_RUNS and self.may_be_hot(step):
            self.compile(step, turn)

    def period(self, step: int) -> int:
        """After so many turns a step of a loop's body meets the same ring slots again."""
        return len(self._key_of[step])

    def act(self, step: int, turn: int, runs: int) -> Callable[[int], None]:
        """A step on the host's threads as one function of the turn, for turns that meet the ring slots of `turn`; it will be called about `runs`

        times. It raises what `perform` raises.
        """
        bound, failure = self.bound(step, turn), self.frame.failure
        bound.runs += runs
        if bound.segment is None and bound.runs >= HOT_RUNS and self.may_be_hot(step):
            self.compile(step, turn)
        segment = bound.segment
        if segment is not None:
            return _with_failure(segment.run, failure, segment.task_of)
        called = bound.calls or self.calls(step, turn)
        if len(called) == 1 and callable(called[0][0]):
            return _launch_alone(called[0], failure)
        calls = [(call[-1], _function_of(call)) for call in called]

        def act(turn: int) -> None:
            task = -1
            try:
                for task, function in calls:  # noqa: B007 (read in the handler)
                    function(turn)
            except Exception as error:
                raise failure(error, task, turn) from error

        return act

    def prepare(self, step: int, turn: int) -> None:
        """Bind a step, so that the time it takes is its own."""
        bound = self.bound(step, turn)
        frame = self.frame
        command = frame.plan.spans[frame.program.steps[step].spans[0]].command
        is_loop = isinstance(command, Launch) and command.task in frame.plan.loops
        if bound.segment is None and bound.calls is None and not is_loop:
            bound.calls = self._bind(frame.program.steps[step], turn)

    def perform_timed(self, step: int, turn: int, zero: float) -> dict[int, float] | None:
        """`perform`, and task -> when it ended, `perf_counter` seconds after `zero`; None where the step has become code, not timed inside."""
        bound = self.bound(step, turn)
        if bound.segment is not None:
            self.perform(step, turn)
            return None
        task, marks = -1, {}
        try:
            for call in bound.calls or self.calls(step, turn):
                kernel, inputs, outputs, workspace, attributes, task = call
                if callable(kernel):
                    kernel(np, inputs, outputs, workspace, attributes)
                elif kernel is LATER:
                    inputs(turn, HERE)
                elif kernel is MOVE:
                    np.copyto(outputs[0], inputs[0])
                else:
                    inputs(turn)
                marks[task] = perf_counter() - zero
        except Exception as error:
            raise self.frame.failure(error, task, turn) from error
        bound.runs += 1
        return marks

    def compile(self, step: int, turn: int = 0) -> None:
        """Make code of a step, for the ring slots of `turn`. Only for steps of launches on the host's threads."""
        bound = self.bound(step, turn)
        bound.segment = compile_segment(self.frame, self.frame.program.steps[step], turn, self.launch_later)
        bound.calls = None

    def issue(self, step: int, turn: int, doer: Doer, handed_over: Callable[[int], None] | None = None) -> None:
        """Hand the launches and copies of a step to a stream. `gather` follows when they are done. `handed_over(task)`: called behind each launch."""
        task, calls = -1, self.calls(step, turn)
        try:
            for piece in [calls] if handed_over is not None or len(calls) == 1 else self._pieces(self.bound(step, turn), calls):
                if len(piece) > 1 and handed_over is None:
                    task = piece[0][5]
                    if doer.segment(piece):
                        continue
                for kernel, inputs, outputs, workspace, attributes, task in piece:
                    if callable(kernel):
                        doer.launch(kernel, inputs, outputs, workspace, attributes)
                    elif kernel is LATER:
                        inputs(turn, doer)
                    elif kernel is MOVE:
                        doer.move(inputs[0], outputs[0])
                    if handed_over is not None:
                        handed_over(task)
        except Exception as error:
            # A stream that takes a piece as a whole tells which launch of it failed.
            raise self.frame.failure(error, getattr(error, "failed_task", task), turn) from error

    @staticmethod
    def _pieces(bound: Bound, calls: list[Call]) -> list[list[Call]]:
        """`calls` in pieces: launches with all their arrays that follow each other, and others one by one."""
        if bound.pieces is None or bound.pieces[0] is not calls:
            pieces: list[list[Call]] = []
            for call in calls:
                if pieces and callable(call[0]) and callable(pieces[-1][-1][0]):
                    pieces[-1].append(call)
                else:
                    pieces.append([call])
            bound.pieces = (calls, pieces)
        return bound.pieces[1]

    def gather(self, step: int, turn: int) -> None:
        """Gather what a step that a stream has done has brought to the host."""
        for kernel, inputs, *_ in self.calls(step, turn):
            if kernel is GATHER:
                inputs(turn)

    # Binding ------------------------------------------------------------------------------------------------------------------

    def _bind(self, step: Step, turn: int) -> list[Call]:
        frame, calls = self.frame, []
        gathering = frame.gathering if frame.loop is not None else None
        for i in step.spans:
            command = frame.plan.spans[i].command
            if isinstance(command, Copy):
                if turn % frame.every_k(command.value) == 0:
                    calls.append(self._bind_copy(command, turn))
                made: Iterable[Any] = (command.dst,)
                task = -1
            elif isinstance(command, Launch):
                task = command.task
                call = self._bind_launch(command, step, turn) if frame.fires(task, turn) else None
                if call is not None:
                    calls.append(call)
                made = command.writes
            else:
                continue
            if gathering is not None:
                for r in made:
                    if r.node == HOST and not gathering.is_straight(r.value):
                        calls += [(GATHER, collect, None, None, None, task) for collect in gathering.collectors(r.value)]
        return calls

    def _bind_copy(self, command: Copy, turn: int) -> Call:
        frame, value, src, dst = self.frame, command.value, command.src.node, command.dst.node
        old, new = command.src.generation, command.dst.generation
        if value in frame.dynamic:

            def move(now: int, doer: Doer) -> None:
                found = frame.locate(value, src, now, old)
                if array_form(frame.graph.spec(value)) is not None:
                    target = shaped(frame.buffer(value, dst, now, new), tuple(found.shape))
                    doer.move(found, target)
                    found = target
                frame.cells[value, dst, new or frame.slot(value, dst, now)] = found

            return (LATER, move, None, None, None, -1)
        if dst == HOST and frame.gathering.is_straight(value):
            source = frame.locate(value, src, turn)

            def place(now: int, doer: Doer) -> None:
                doer.move(source, frame.gathering.row(value, now, tuple(source.shape)))

            return (LATER, place, None, None, None, -1)
        return (MOVE, (frame.locate(value, src, turn, old),), (frame.buffer(value, dst, turn, new),), None, None, -1)

    def kernel_of(self, task: int, owner: str) -> Any:
        """The kernel that a task runs on device `owner`; None for a view, which readers find through its base."""
        frame, op = self.frame, cast(Op, self.frame.graph.task_ops[task])
        key = (id(op), owner)
        kernel = self._kernels.get(key)
        if kernel is None:
            device = frame.plan.machine.device(owner)
            kernel = op.kernel_for(device, [frame.graph.spec(v) for v in frame.graph.reads(task)])
            if device.shares_lanes:
                # Threads of this process run what is written for them, whatever a description says. A view that the caller shall own is copied.
                spoken = [language for language in THREADS if language in device.languages or op.view]
                kernel = next((op.kernels[language] for language in spoken if language in op.kernels), None)
            elif device.memory != HOST and isinstance(frame.memories.get(device.memory), HostMemory):
                # The memory of a device that is not here (`simulated`): NumPy does what the device's own kernel would.
                kernel = op.kernels.get("array") or op.kernels.get("host") or kernel
            if kernel is None:
                name, has = frame.graph.task_names[task], ", ".join(op.kernels) or "none"
                raise PlacementError(
                    f"the plan puts task {name!r} on {owner}, which runs no kernel that {op.name} has ({has}); "
                    f"{owner} is described with languages {', '.join(device.languages) or 'none'}"
                    + (f", and threads of this process run {' and '.join(THREADS)} alone" if device.shares_lanes else "")
                )
            if "opencl" not in op.kernels:  # else it may depend on the inputs
                self._kernels[key] = kernel
        return kernel

    def is_alias(self, command: Launch, node: str) -> bool:
        """True for a view that no kernel makes. What the caller shall own is copied."""
        op = self.frame.graph.task_ops[command.task]
        return isinstance(op, Op) and op.view and not (node == HOST and command.writes[0].value in self.frame.owned)

    def _bind_launch(self, command: Launch, step: Step, turn: int) -> Call | None:
        frame, task = self.frame, command.task
        node = frame.plan.machine.device(step.owner).memory
        if self.is_alias(command, node):
            return None
        kernel = self.kernel_of(task, step.owner)
        attributes, workspace, dynamic = frame.attributes(task, turn), frame.workspace(task), frame.dynamic
        if any(r.value in dynamic for r in command.writes):
            return (LATER, self.launch_later(command, kernel, node, workspace, attributes), None, None, None, task)
        if any(r.value in dynamic and not self._lies_as_planned(r) for r in command.reads):
            return (LATER, self._launch_partly(command, kernel, node, workspace, attributes, turn), None, None, None, task)
        reads = tuple(
            frame.buffer(r.value, node, turn) if r.value in dynamic else frame.locate(r.value, node, turn, r.generation) for r in command.reads
        )
        writes = tuple(frame.buffer(r.value, node, turn) for r in command.writes)
        return (*shut(kernel, reads), writes, workspace, attributes, task)

    def _lies_as_planned(self, replica: Replica) -> bool:
        """True for what every turn finds on the host anew (an element of a sequence, the turn's number) and copies to a device: there it lies."""
        frame, form = self.frame, array_form(self.frame.graph.spec(replica.value))
        copied = replica.node != HOST and (replica.value, replica.node) in frame.copied and replica.value not in frame.passed
        return copied and frame.loop is not None and not replica.generation and form is not None and not form.is_bounded

    def _launch_partly(self, command: Launch, kernel: Any, node: str, workspace: Any, attributes: Mapping[str, Any], turn: int) -> Later:
        """A launch bound but for the inputs that only its turn knows."""
        frame = self.frame
        known = [None if r.value in frame.dynamic else frame.locate(r.value, node, turn, r.generation) for r in command.reads]
        kernel, bound = shut(kernel, known)
        writes = tuple(frame.buffer(r.value, node, turn) for r in command.writes)
        later = [(i, r.value, r.generation) for i, r in enumerate(command.reads) if r.value in frame.dynamic]
        number = frame.turn_value if node == HOST else None

        def launch(now: int, doer: Doer) -> None:
            reads = list(bound)
            for i, value, generation in later:
                reads[i] = np.array(now, np.int64) if value == number else read_only(frame.locate(value, node, now, generation))
            doer.launch(kernel, reads, writes, workspace, attributes)

        return launch

    def launch_later(self, command: Launch, kernel: Any, node: str, workspace: Any, attributes: Mapping[str, Any]) -> Later:
        """A launch that finds its arrays when it runs."""
        frame, graph = self.frame, self.frame.graph
        op = cast(Op, graph.task_ops[command.task])
        bounded = any(isinstance(s := graph.spec(r.value), Spec) and s.is_bounded for r in command.writes)
        cells, locate = frame.cells, frame.locate
        if frame.loop is None and not bounded and all(array_form(graph.spec(r.value)) is None for r in command.writes):
            reads_of = [(r.value, r.generation) for r in command.reads]
            keys = [(r.value, r.node, 0) for r in command.writes]

            def make_objects(turn: int, doer: Doer) -> None:
                made: list[Any] = [None] * len(keys)  # the kernel puts the objects there
                doer.launch(kernel, [locate(v, node, 0, g) for v, g in reads_of], made, workspace, attributes)
                for key, found in zip(keys, made, strict=True):
                    cells[key] = found

            return make_objects

        def launch(turn: int, doer: Doer) -> None:
            reads = [locate(r.value, node, turn, r.generation) for r in command.reads]
            specs = frame.specs(turn)
            writes: list[Any] = []
            actual: list[AnySpec] | None = None
            if bounded:
                seen = [seen_spec(a, specs[r.value]) for a, r in zip(reads, command.reads, strict=True)]
                actual = list(op.infer(seen, attributes))
            for i, r in enumerate(command.writes):
                if array_form(specs[r.value]) is None:
                    writes.append(None)  # the kernel puts the object there
                    continue
                target = frame.buffer(r.value, node, turn)
                if actual is not None and isinstance(a := actual[i], Spec):
                    target = shaped(target, a.bounds)
                writes.append(target)
            shapes = doer.launch(kernel, reads, writes, workspace, attributes)
            for i, r in enumerate(command.writes):
                if r.value not in frame.dynamic:
                    continue
                result = writes[i]
                if shapes is not None and isinstance(result, np.ndarray) and isinstance(actual, list) and cast(Spec, actual[i]).is_bounded:
                    result = np.ascontiguousarray(result[tuple(slice(n) for n in shapes[i])])
                cells[r.value, r.node, frame.slot(r.value, r.node, turn)] = result

        return launch


def _function_of(call: Call) -> Callable[[int], Any]:
    """A call by a thread of this process as a function of the turn."""
    kernel, inputs, outputs, workspace, attributes, _ = call

    def act(turn: int) -> Any:
        return kernel(np, inputs, outputs, workspace, attributes)

    if callable(kernel):
        return act
    if kernel is LATER:
        return lambda turn: inputs(turn, HERE)
    if kernel is MOVE:
        return lambda turn: np.copyto(outputs[0], inputs[0])
    return cast(Callable[[int], Any], inputs)


def _launch_alone(call: Call, failure: Callable[..., Exception]) -> Callable[[int], None]:
    def act(turn: int) -> None:
        kernel, inputs, outputs, workspace, attributes, task = call  # one object of the function instead of six, which are not in the cache
        try:
            kernel(np, inputs, outputs, workspace, attributes)
        except Exception as error:
            raise failure(error, task, turn) from error

    return act


def _with_failure(function: Callable[[int], Any], failure: Callable[..., Exception], task_of: Callable[[Exception], int]) -> Callable[[int], None]:
    def act(turn: int) -> None:
        try:
            function(turn)
        except Exception as error:
            raise failure(error, task_of(error), turn) from error

    return act


def _touched(command: Command) -> tuple[Replica, ...]:
    """The replicas that a launch or a copy reads and writes."""
    if isinstance(command, Launch):
        return (*command.reads, *command.writes)
    return (command.src, command.dst) if isinstance(command, Copy) else ()


__all__ = ["GATHER", "HOT_RUNS", "LATER", "MOVE", "Bindings", "Bound", "Call"]
