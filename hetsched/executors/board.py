"""The launches of a straight frame, bound once for all its runs: arrays lie in numbered cells, and a launch takes those it is about.

Inputs and outputs are other arrays in every run. Where each launch held its arrays itself, thousands of them would be bound anew for it; here only
the cells that show inputs and outputs are filled again (1 us each), and nothing is made that the interpreter's collector would look through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from hetsched.executors.steps import Step
from hetsched.executors.straight import Straight
from hetsched.graph.guard import read_only
from hetsched.graph.op import Op
from hetsched.graph.spec import Spec
from hetsched.machine import HOST
from hetsched.timeline import Launch, Replica

if TYPE_CHECKING:
    from hetsched.executors.frame import Frame

IntArray: TypeAlias = NDArray[np.int64]
Take: TypeAlias = Callable[[list[Any]], Sequence[Any]]

# A launch: kernel, what it takes from the cells as inputs and as outputs, workspace, attributes, task.
Bill: TypeAlias = tuple[Any, Take, Take, Any, Mapping[str, Any], int]


class Board:
    """The steps of one frame on the host. cells: the arrays. single: by step its launch, where it is one; several: of the other steps, the launches

    of each (a view needs none). A step of objects or of bounded dimensions, whose arrays are found when it runs, is in neither.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.cells: list[Any] = []
        self.single: list[Bill | None] = []
        self.several: dict[int, list[Bill]] = {}
        self._own = {v for v in (*frame.owned, *frame.borrowed) if (v, HOST) not in frame.copied}
        self._views = {v for task in frame.graph.views for v in frame.graph.writes(task)}
        self._filled: list[tuple[int, int, bool]] = []  # (cell, value, whether read-only): the run's own arrays, and views of them
        self._cell_of: dict[tuple[int, bool], int] = {}  # by value, and whether it is shown read-only
        self._shared: dict[tuple[int, int, bool], int] = {}  # (offset in the arena, id of the spec, whether read-only)
        self._kernels: dict[int, tuple[Any, bool]] = {}  # by op
        if frame.program.straight is not None and not frame.dynamic and not self._views:
            self._plain(frame.program.straight)
        else:
            for step in frame.program.steps:
                bills = self._bills_of(step)
                self.single.append(bills[0] if bills is not None and len(bills) == 1 else None)
                if bills is not None and len(bills) != 1:
                    self.several[step.index] = bills

    @property
    def bound(self) -> frozenset[int]:
        """The steps that are bound here."""
        return frozenset([*[s for s, bill in enumerate(self.single) if bill is not None], *self.several])

    # Making, all at once ------------------------------------------------------------------------------------------------------

    def _plain(self, plain: Straight) -> None:
        """Launches alone, all on the host, in no other generation than the first, and each array where the plan says: 1 us a task."""
        frame, graph = self.frame, self.frame.graph
        tasks = plain.tasks.tolist()
        ops = list(map(graph.task_ops.__getitem__, tasks))
        kinds = list(map(id, ops))
        named = {kind: self._kernel_of(task, cast(Op, op), plain.owner) for kind, task, op in _each(kinds, tasks, ops)}
        start, count = graph.input_start[plain.tasks], np.diff(graph.input_start)[plain.tasks]
        made, written = graph.output_start[plain.tasks], np.diff(graph.output_start)[plain.tasks]
        read = graph.input_values[_ranges(start, count)]
        shut: NDArray[np.bool_] = np.full(len(read), all(shuts for _, shuts in named.values()))
        if len({shuts for _, shuts in named.values()}) > 1:
            shut = np.repeat(np.fromiter((named[kind][1] for kind in kinds), np.bool_, len(kinds)), count)
        values = np.concatenate((read, _ranges(made, written)))
        cells = self._lay_out(values, np.concatenate((shut, np.zeros(len(values) - len(read), np.bool_))))
        kernels = map({kind: kernel for kind, (kernel, _) in named.items()}.__getitem__, kinds)
        inputs, outputs = _takes(cells[: len(read)], count), _takes(cells[len(read) :], written)
        workspaces = frame.plan.workspaces
        scratch = [frame.workspace(task) if task in workspaces else None for task in tasks] if workspaces else repeat(None, len(tasks))
        attributes = map(graph.task_attributes.__getitem__, tasks)
        bills = list(zip(kernels, inputs, outputs, scratch, attributes, tasks, strict=True))
        first = plain.steps.first
        self.single = cast(list[Bill | None], bills)
        if len(first) != len(bills) + 1:
            self.single = list(map(self.single.__getitem__, first[:-1].tolist()))
            for step in np.flatnonzero(np.diff(first) > 1).tolist():
                self.single[step] = None
                self.several[step] = bills[int(first[step]) : int(first[step + 1])]

    def _lay_out(self, values: IntArray, shut: NDArray[np.bool_]) -> IntArray:
        """The cell of each of `values`, read-only where `shut`. Values that follow each other in one place of the arena have one."""
        frame, graph = self.frame, self.frame.graph
        n, kinds = len(graph.value_specs), graph.spec_kinds
        place = np.full(n, -1, dtype=np.int64)
        offsets = frame.plan.offsets
        if offsets:
            place[list(map(itemgetter(0), offsets))] = list(offsets.values())
        own = list(self._own)
        place[own] = -1
        is_own = np.zeros(n, np.bool_)
        is_own[own] = True
        # What is one array: a place and a spec; or a value, of which the numbers come after all of these.
        key = np.where(place >= 0, place * n + kinds, (int(place.max(initial=0)) + 1) * n + np.arange(n))
        _, one, array = np.unique(key, return_index=True, return_inverse=True)
        wanted = array.reshape(-1)[values] * 2 + shut  # an array, writable or read-only
        is_wanted = np.zeros(2 * len(one), np.bool_)
        is_wanted[wanted] = True
        number: IntArray = np.cumsum(is_wanted) - 1
        of = np.flatnonzero(is_wanted)
        value_of = one[of // 2]
        columns = [x.tolist() for x in (value_of, place[value_of], of % 2 == 1, is_own[value_of])]
        memory = frame.memories.get(HOST)
        for cell, (value, at, shuts, mine) in enumerate(zip(*columns, strict=True)):
            if mine:
                self._filled.append((cell, value, shuts))
                self.cells.append(None)
                continue
            spec = graph.value_specs[value]
            found = memory.array(at, spec) if memory is not None and at >= 0 and isinstance(spec, Spec) else frame.locate(value, HOST, 0)
            self.cells.append(read_only(found) if shuts else found)
        cells: IntArray = number[wanted]
        return cells

    # Making, step by step -----------------------------------------------------------------------------------------------------

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
            if any(node != HOST or generation or value in dynamic for value, _, node, generation in (*reads, *writes)):
                return None
            if op.view and writes[0].value not in frame.owned:
                continue
            kernel, shuts = self._kernel_of(task, op, step.owner)
            scratch = frame.workspace(task) if task in workspaces else None
            out.append((kernel, self._take(reads, shuts), self._take(writes, False), scratch, graph.task_attributes[task], task))
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
        return _take_of([cell if (cell := self._cell_of.get((r[0], shuts), -1)) >= 0 else self._new_cell(r[0], shuts) for r in replicas])

    def _new_cell(self, value: int, shuts: bool) -> int:
        frame = self.frame
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
        self._cell_of[value, shuts] = cell
        return cell

    # Every run ----------------------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Show the inputs and outputs of this run."""
        cells, locate, owned, borrowed = self.cells, self.frame.locate, self.frame.owned, self.frame.borrowed
        for cell, value, shuts in self._filled:
            if value in owned:
                found = owned[value]
            elif value in borrowed:  # (read-only already)
                cells[cell] = borrowed[value]
                continue
            else:
                found = locate(value, HOST, 0)
            cells[cell] = read_only(found) if shuts else found

    def clear(self) -> None:
        """Show them no more."""
        for cell, _, _ in self._filled:
            self.cells[cell] = None


def _takes(cells: IntArray, counts: IntArray) -> list[Take]:
    """What takes the cells of each row: rows stand one after another in `cells`, of `counts` each."""
    out: list[Any] = [None] * len(counts)
    ends = np.cumsum(counts)
    for count in np.unique(counts).tolist():
        rows = np.flatnonzero(counts == count)
        columns = [cells[ends[rows] - count + i].tolist() for i in range(count)]
        if count > 1:
            takes: list[Any] = list(map(itemgetter, *columns))
        elif count:
            known = {cell: _one(cell) for cell in set(columns[0])}
            takes = list(map(known.__getitem__, columns[0]))
        else:
            takes = [_none] * len(rows)
        if len(rows) == len(out):
            return takes
        for row, take in zip(rows.tolist(), takes, strict=True):
            out[row] = take
    return out


def _take_of(cells: Sequence[int]) -> Take:
    return itemgetter(*cells) if len(cells) > 1 else _one(cells[0]) if cells else _none


def _one(cell: int) -> Take:
    return itemgetter(slice(cell, cell + 1))


def _none(cells: list[Any]) -> Sequence[Any]:
    return ()


def _ranges(start: IntArray, count: IntArray) -> IntArray:
    """start[0], start[0] + 1, ... of `count[0]` numbers, then those of the next."""
    ends = np.cumsum(count)
    found: IntArray = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(start - (ends - count), count)
    return found


def _each(kinds: list[int], tasks: list[int], ops: list[Any]) -> Iterable[tuple[int, int, Any]]:
    """(kind, a task of it, its op), of each kind once."""
    return ((kind, task, op) for kind, (task, op) in dict(zip(kinds, zip(tasks, ops, strict=True), strict=True)).items())
