"""A walk from a plan to better ones: changes of the order on the critical cycle, and moves of tasks to other devices."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from hetsched.placement.periods.assign import Balance, Cycles
from hetsched.placement.periods.order import Order, guesses, settled
from hetsched.placement.periods.problem import Core, Ops

# Share of the steps that move tasks, where most tasks wait for each other in cycles and where loads matter more; temperature at the first (in
# cycles) and the last step, as a share of the period.
_MOVES_IN_CYCLES, _MOVES = 0.4, 0.25
_SHARE = 0.4
_HOT, _COLD = 0.04, 0.0005
# A new assignment counts for as many orders solved as a body has hundreds of tasks: it is worked out in Python, orders are solved by machine code.
# Steps that come to nothing count for this share of one.
_HUNDRED, _NOTHING = 100, 0.1
# A new assignment may be this much worse than allowed before its order is mended, in so many exchanges.
_PROBATION, _MENDING = 1.5, 12


class Walk:
    """Simulated annealing over orders and assignments. `best` is the best order found; `spent` counts the orders solved."""

    def __init__(self, core: Core, cycles: Cycles, order: Order, least: int, enough: int, rng: random.Random) -> None:
        self.core, self.cycles, self.rng, self.enough = core, cycles, rng, enough
        self.order, self.least = order, least
        self.best = order.copy()
        self.spent = 0
        self.adopted = max(1, core.n // _HUNDRED)
        self.moves = _MOVES_IN_CYCLES if cycles.dominate else _MOVES
        self.balance = Balance(core, order.ops.assignment)
        self.movable = [t for t in range(core.n) if len(core.allowed[t]) > 1]
        self.near: list[list[int]] = [[] for _ in range(core.n)]
        for u, v, _ in core.task_arcs:
            if u != v:
                self.near[u].append(v)
                self.near[v].append(u)
        self.sharing: dict[int, list[int]] = {}

    def run(self, steps: int, heat: float = 1.0, over: Callable[[], bool] = lambda: False) -> None:
        """About `steps` orders solved, fewer where `enough` is reached or `over` says so. Steps that come to nothing count for a tenth.

        heat: share of the first temperature to begin with.
        """
        step, rng = 0.0, self.rng
        hot = _HOT * heat
        while step < steps and self.best.period > self.enough and not over():
            temperature = hot * (_COLD / hot) ** (step / steps)
            limit = int(self.order.period * (1 - temperature * math.log(rng.random() + 1e-9)))
            critical = self.order.critical() if self.order.period > self.least else []
            before = self.spent
            if critical and (rng.random() > self.moves or not self.movable):
                self._reorder(critical[int(rng.random() * len(critical))], limit)
            elif self.movable:
                self._reassign(limit)
            else:
                return
            step += max(self.spent - before, _NOTHING * self.adopted)

    def _roof(self) -> int:
        """B of an assignment may grow to this: a share of the way from the least B known to the period. What is over B, an order can still mend."""
        return self.enough + int(_SHARE * (self.order.period - self.enough))

    def _note(self) -> None:
        if self.order.period < self.best.period:
            self.best = self.order.copy()

    def _reorder(self, u: int, limit: int) -> None:
        trial = self.order.copy()
        rng = self.rng
        resource = trial.ops.resource
        changed = False
        if self.core.capacity[resource[u]] > 1 and rng.random() < 0.7:
            others = [x for x in range(trial.ops.count) if resource[x] == resource[u] and x != u]
            first = int(rng.random() * len(others)) if others else 0
            changed = any(trial.relink(u, x) for x in (*others[first:], *others[:first]))
            if not changed and others:
                changed = trial.relink(u, others[first], strict=False)
        if not changed:
            times = 1 if rng.random() < 0.7 else 2 + int(rng.random() * 3)
            for _ in range(times):
                if not trial.exchange(u):
                    break
                changed = True
        if changed:
            self.spent += 1
            if trial.solve(self.least, limit):
                self.order = trial
                self._note()

    def _reassign(self, limit: int) -> None:
        changes = self._change()
        balance = self.balance
        undo = [(t, balance.assignment[t]) for t in changes]
        for t, d in changes.items():
            balance.move(t, d)
        least = max(1, math.ceil(max(balance.load) - 1e-6))
        if changes and least <= limit:
            roof = min(max(self.least, self._roof()), limit)
            least = self.cycles.ratio(balance.assignment, least, roof)
            if least <= roof and self._adopt(least, limit):
                return
        for t, d in undo:
            balance.move(t, d)

    def _change(self) -> dict[int, int]:
        """A task (often one of the critical cycle), some of its neighbours with it, and a device for them; or two tasks that change places."""
        core, rng, assignment = self.core, self.rng, self.balance.assignment
        cycle = [t for t in self.order.cycle if t < core.n and len(core.allowed[t]) > 1]
        among = cycle if cycle and rng.random() < 0.7 else self.movable
        t = among[int(rng.random() * len(among))]
        device = core.allowed[t][int(rng.random() * len(core.allowed[t]))]
        if device == assignment[t]:
            return {}
        kind = rng.random()
        if kind < 0.15:
            u = self.movable[int(rng.random() * len(self.movable))]
            swaps = assignment[u] == device and core.durations[u][assignment[t]] is not None
            return {t: device, u: assignment[t]} if swaps else {t: device}
        group = {t: device}
        tries = 0 if kind < 0.5 else 1 if kind < 0.8 else 2 + int(rng.random() * 5)
        for _ in range(tries):
            members = list(group)
            around = self.near[members[int(rng.random() * len(members))]]
            u = around[int(rng.random() * len(around))] if around else t
            if core.durations[u][device] is not None:
                group[u] = device
        return group

    def _adopt(self, least: int, limit: int) -> bool:
        """Try the assignment of `balance`; True if it was taken."""
        ops = Ops(self.core, self.balance.assignment)
        trial = settled(ops, guesses(self.order, ops), max(self.order.period, least))
        self.spent += self.adopted
        if trial is None or not trial.solve(least, int(limit * _PROBATION)):
            return False
        for _ in range(_MENDING):
            critical = trial.critical()
            if trial.period <= limit or not critical:
                break
            mended = trial.copy()
            self.spent += 1
            if mended.exchange(critical[int(self.rng.random() * len(critical))]) and mended.solve(least, trial.period):
                trial = mended
        if trial.period > limit:
            return False
        self.order, self.least = trial, least
        self._note()
        return True
