"""The launches of a straight frame, bound once for all its runs: arrays lie in numbered cells, and a launch takes those it is about.

Inputs and outputs are other arrays in every run. Where each launch held its arrays itself, thousands of them would be bound anew for it; here only
the cells that show inputs and outputs are filled again (1 us each), and nothing is made that the interpreter's collector would look through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from hetsched.executors.program import Step
from hetsched.graph.guard import read_only
from hetsched.graph.op import Op
from hetsched.machine import HOST
from hetsched.timeline import Launch, Replica

if TYPE_CHECKING:
    from hetsched.executors.frame import Frame

Take: TypeAlias = Callable[[list[Any]], Sequence[Any]]

# Makes a named tuple of a tuple, three times as fast as calling its class.
_new: Any = tuple.__new__


class Bill(NamedTuple):
    """A launch: what it takes from the cells."""

    kernel: Any
    inputs: Take
    outputs: Take
    workspace: Any
    attributes: Mapping[str, Any]
    task: int


class Board:
    """The steps of one frame on the host. cells: the arrays. bills: by step its launches (a view needs none); None where one is of objects or of

    bounded dimensions, whose arrays are found when it runs.
    """

    def __init__(self, frame: Frame) -> None:
        graph = frame.graph
        self.frame = frame
        self.cells: list[Any] = []
        self._own = {v for v in (*frame.owned, *frame.borrowed) if (v, HOST) not in frame.copied}
        views = {key for key, op in {id(op): op for op in graph.task_ops}.items() if isinstance(op, Op) and op.view}
        self._views = {v for task, op in enumerate(graph.task_ops) if id(op) in views for v in graph.writes(task)} if views else set()
        self._filled: list[tuple[int, int, bool]] = []  # (cell, value, whether read-only): the run's own arrays, and views of them
        self._cell_of = [-1] * len(graph.value_specs), [-1] * len(graph.value_specs)  # by value; of those that are shown read-only
        self._shared: dict[tuple[int, int, bool], int] = {}  # (offset in the arena, id of the spec, whether read-only)
        self._takes: dict[tuple[int, ...], Take] = {}
        self._kernels: dict[int, tuple[Any, bool]] = {}  # by op
        # All on the host, in no other generation than the first, and each where the plan says.
        self._is_plain = bool(frame.program.plain_on) and not frame.dynamic and not views
        self._laid: set[bool] = set()
        self.bills = [self._bills_of(step) for step in frame.program.steps]

    # Making -------------------------------------------------------------------------------------------------------------------

    def _bills_of(self, step: Step) -> list[Bill] | None:
        frame, out = self.frame, []
        spans, graph, dynamic, workspaces = frame.plan.spans, frame.graph, frame.dynamic, frame.plan.workspaces
        for i in step.spans:
            command = spans[i][1]
            if type(command) is not Launch:
                return None
            task, _, reads, writes, _ = command
            op = graph.task_ops[task]
            if not isinstance(op, Op):
                return None
            if not self._is_plain and any(node != HOST or generation or value in dynamic for value, _, node, generation in (*reads, *writes)):
                return None
            if op.view and writes[0].value not in frame.owned:
                continue
            kernel, shuts = self._kernel_of(task, op, step.owner)
            scratch = frame.workspace(task) if task in workspaces else None
            out.append(_new(Bill, (kernel, self._take(reads, shuts), self._take(writes, False), scratch, graph.task_attributes[task], task)))
        return out

    def _kernel_of(self, task: int, op: Op, owner: str) -> tuple[Any, bool]:
        """What to call (threads of the host run one kernel of an op, whatever its inputs), and whether its inputs have to be shown read-only:

        then it is called without what would make them so.
        """
        found = self._kernels.get(id(op))
        if found is None:
            kernel = self.frame.bindings.kernel_of(task, owner)
            bound = getattr(kernel, "bound", None)
            found = self._kernels[id(op)] = (kernel, False) if bound is None else (bound, True)
        return found

    def _take(self, replicas: Sequence[Replica], shuts: bool) -> Take:
        cell_of = self._cell_of[shuts]
        cells = tuple([cell if (cell := cell_of[r[0]]) >= 0 else self._new_cell(r[0], shuts) for r in replicas])
        take = self._takes.get(cells)
        if take is None:
            take = self._takes[cells] = itemgetter(*cells) if len(cells) > 1 else _one(cells[0]) if cells else _none
        return take

    def _lay_out(self, shuts: bool) -> None:
        """The cells of all values that lie in the arena, at once: a tenth of the time that one takes by itself."""
        frame, cells, shared, cell_of = self.frame, self.cells, self._shared, self._cell_of[shuts]
        own, specs, offset = self._own, frame.graph.value_specs, frame.offset
        for value in range(int(frame.graph.output_start[0]), len(specs)):
            place = offset.get((value, HOST))
            if place is None or value in own:
                continue
            key = (place[0], id(specs[value]), shuts)
            cell = shared.get(key)
            if cell is None:
                cell = shared[key] = len(cells)
                found = frame.buffer(value, HOST, 0)
                cells.append(read_only(found) if shuts else found)
            cell_of[value] = cell

    def _new_cell(self, value: int, shuts: bool) -> int:
        """The cell of a value. Values that follow each other in one place of the arena have one."""
        frame = self.frame
        if self._is_plain and shuts not in self._laid:
            self._laid.add(shuts)
            self._lay_out(shuts)
            if self._cell_of[shuts][value] >= 0:
                return self._cell_of[shuts][value]
        cell = len(self.cells)
        if value in self._own or (value in self._views and frame.root(value, HOST)[0] in self._own):
            self._filled.append((cell, value, shuts))
            self.cells.append(None)
        else:
            place = frame.offset.get((value, HOST)) if value not in self._views else None
            key = (place[0], id(frame.graph.value_specs[value]), shuts) if place is not None else (-1 - value, 0, shuts)
            known = self._shared.setdefault(key, cell)
            if known == cell:
                found = frame.locate(value, HOST, 0)
                self.cells.append(read_only(found) if shuts else found)
            cell = known
        self._cell_of[shuts][value] = cell
        return cell

    # Every run ----------------------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Show the inputs and outputs of this run."""
        cells, locate = self.cells, self.frame.locate
        for cell, value, shuts in self._filled:
            found = locate(value, HOST, 0)
            cells[cell] = read_only(found) if shuts else found

    def clear(self) -> None:
        """Show them no more."""
        for cell, _, _ in self._filled:
            self.cells[cell] = None


def _one(cell: int) -> Take:
    return lambda cells: (cells[cell],)


def _none(cells: list[Any]) -> Sequence[Any]:
    return ()
