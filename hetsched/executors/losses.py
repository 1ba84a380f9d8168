"""What a run that keeps going has lost: the tasks that failed, and those that need what they would have made.

Lost steps are passed over, not run, and count as finished for everything else: who only waits for the bytes, or for the order, goes on. A loop
in whose body something fails is lost as a whole; it is passed over when nothing of it is under way any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from hetsched.executors.steps import Step
from hetsched.timeline import Copy, Launch, Timeline


class Losses:
    """failed: task -> its error. tasks: every lost task of the outermost graph, by number."""

    def __init__(self, plan: Timeline) -> None:
        self.plan = plan
        self.failed: dict[str, Exception] = {}
        self.tasks: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self.tasks)

    def fail(self, step: Step, task: str | None, error: Exception) -> None:
        """A step has failed, at `task` where that is known: it and what the step would have done after it are lost."""
        graph = self.plan.graph
        tasks = list(self._tasks(step))
        names = [graph.task_names[t] for t in tasks]
        first = names.index(task) if task in names else 0
        if names:
            self.failed.setdefault(names[first], error)
            self.tasks.update(tasks[first:])
        else:
            command = self.plan.spans[step.spans[0]].command
            assert isinstance(command, Copy)
            maker = int(graph.value_task[command.value])
            self.failed.setdefault(graph.task_names[maker] if maker >= 0 else graph.value_names[command.value], error)
            self.tasks.update({maker} if maker >= 0 else {t for t in range(len(graph)) if command.value in graph.reads(t)})

    def takes(self, step: Step) -> bool:
        """True if a step needs what is lost; then what it would make is lost too."""
        graph = self.plan.graph
        needs = False
        for i in step.spans:
            command = self.plan.spans[i].command
            if isinstance(command, Launch):
                needs = needs or command.task in self.tasks or any(self.has(v) for v in graph.reads(command.task))
            elif isinstance(command, Copy):
                needs = needs or self.has(command.value)
        if needs:
            self.tasks.update(self._tasks(step))
        return needs

    def has(self, value: int) -> bool:
        """True if a value is lost."""
        return int(self.plan.graph.value_task[value]) in self.tasks

    def _tasks(self, step: Step) -> Iterable[int]:
        commands = [self.plan.spans[i].command for i in step.spans]
        return [c.task for c in commands if isinstance(c, Launch)]
