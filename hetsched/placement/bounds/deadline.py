"""Bounds by contradiction: suppose that a plan kept a deadline, and draw conclusions until none is possible. The longest deadline so refuted is a
lower bound on the makespan ("destructive" bounds: Klein, Scholl: Computing lower bounds by destructive improvement, EJOR 112(2), 1999).

Two kinds of conclusion, in rounds:
heads and tails. A task cannot start on a memory node before its inputs have come there, nor can what follows it take less than what its readers
and their copies take; and a choice with head + seconds + tail above the deadline is out. For a task with several inputs: at any start, those
whose copies would come later must have been made on the same node, so that node's lanes had to do all of their work (the argument of Papadimitriou,
Yannakakis: Towards an architecture-independent analysis of parallel algorithms, SIAM J. Comput. 19(2), 1990, for unlike devices; tails likewise).
work in intervals. Within any interval a pool of lanes does at most lanes * length seconds of work; each task that may run there has to spend at least
min(seconds, length, head + seconds - start, tail + seconds - end) of it inside, shifted as far as it goes either way (energetic reasoning: Erschler,
Lopez, 1990; Baptiste, Le Pape, Nuijten 1999). With prices of the intervals that sum to 1, where all lanes of an interval are worth its price, the
tasks can pay at most 1; if what each pays on its cheapest choice comes to more, the deadline is refuted. The prices are those of a
zero-sum game between intervals and tasks (the dual of the linear programme of fractional assignments), played by optimistic multiplicative
weights (Rakhlin, Sridharan 2013). No solver is needed, and no result of one is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hetsched.placement.bounds.paths import fastest_by_node, from_host, shortest_links, to_host
from hetsched.placement.problem import FloatArray, IntArray, Problem
from hetsched.placement.ranks import levels

# A choice is out, and a deadline refuted, only by more than this share, so that rounding cannot decide.
MARGIN = 1e-9
_ROUNDS = 8
# Inputs of one task that may be shown to be made on its node: of more, those that would come last.
_MOST_INPUTS = 128
# Floats of the largest array that is made in one go; of the work of all tasks in all intervals.
_AT_ONCE = 2_000_000
_WORK_FLOATS = 3_000_000
_MOST_CUTS = 14
_TURNS = 400
# Steps of the game: of the intervals, and of each task times the number of tasks. Larger ones swing.
_INTERVAL_STEP, _TASK_STEP = 1.0, 0.15


class Round(NamedTuple):
    """float64[n, M] each: no task starts on a node before `heads`, and after its finish there at least `tails` follow until the end."""

    heads: FloatArray
    tails: FloatArray


class Interval(NamedTuple):
    """From `start` until `end` seconds before the deadline, on the lanes of `pool`, at `price` for all of them."""

    start: float
    end: float
    pool: int
    price: float


class Refutation(NamedTuple):
    """Why no plan keeps `deadline`. Each round follows from the one before; after the last a task has no choice, or the intervals cannot hold the
    work. Without intervals it is the former.
    """

    deadline: float
    rounds: tuple[Round, ...]
    intervals: tuple[Interval, ...]


@dataclass(frozen=True)
class Facts:
    """What of a problem the conclusions are drawn from."""

    problem: Problem

    @cached_property
    def links(self) -> tuple[FloatArray, FloatArray]:
        return shortest_links(self.problem)

    @cached_property
    def start(self) -> Round:
        """What holds without any conclusion."""
        return Round(from_host(self.problem, *self.links), to_host(self.problem, *self.links))

    @cached_property
    def lanes_of_node(self) -> FloatArray:
        """float64[M]: lanes of all devices of each node, at least 1."""
        lanes = np.zeros(len(self.problem.node_names))
        for pool, node in {c.pool: c.node for c in self.problem.choices if c.pool >= 0}.items():
            lanes[node] += self.problem.pools[pool].lanes
        out: FloatArray = np.maximum(lanes, 1.0)
        return out

    @cached_property
    def work(self) -> FloatArray:
        """float64[n, C]: lane-seconds of each launch; 0 of a loop, whose lanes may be those of another node."""
        width = np.array([c.width if c.pool >= 0 else 0.0 for c in self.problem.choices])
        out: FloatArray = np.where(np.isfinite(self.problem.durations), self.problem.durations, 0.0) * width
        return out

    @cached_property
    def before(self) -> tuple[_Side, list[tuple[IntArray, IntArray, IntArray]]]:
        p = self.problem
        return _Side(p.pred_task, p.pred_largest, *self.links), list(levels(len(p), p.pred_start, p.pred_task, p.order.tolist()))

    @cached_property
    def behind(self) -> tuple[_Side, list[tuple[IntArray, IntArray, IntArray]]]:
        p = self.problem
        latency, per_byte = self.links
        return _Side(p.succ[1], p.succ_of(p.pred_largest), latency.T, per_byte.T), list(levels(len(p), *p.succ[:2], reversed(p.order.tolist())))


class _Side(NamedTuple):
    """One direction along the edges: the task at the other end, its bytes, and the links towards this end."""

    other: IntArray
    nbytes: FloatArray
    latency: FloatArray
    per_byte: FloatArray


def best_refutation(
    problem: Problem, low: float, high: float, until: float, clock: Callable[[], float], *, close: float = 5e-4, steps: int = 16
) -> Refutation | None:
    """The longest deadline that is refuted before `clock()` reaches `until`; None where there is none.

    By bisection between `low` (proved otherwise) and `high` (a plan has it; inf: none is known), to a share of `close`, in at most `steps`.
    """
    facts = Facts(problem)
    found = None
    # A plan may be the best there is: then the first try says so.
    trial = max(low, high * (1 - close)) if high < np.inf else low * 1.1
    for _ in range(steps):
        if clock() >= until:
            break
        refuted = refute(facts, trial, until, clock)
        if refuted is not None:
            found, low = refuted, trial
        else:
            high = trial
        if high / low - 1 <= 2 * close:
            break
        trial = (low + high) / 2 if high < np.inf else low * 1.25
    return found


def refute(facts: Facts, deadline: float, until: float, clock: Callable[[], float]) -> Refutation | None:
    """Why no plan keeps `deadline`; None where no reason was found."""
    problem = facts.problem
    rounds: list[Round] = []
    now, able = facts.start, np.isfinite(problem.durations)
    for _ in range(_ROUNDS):
        now = conclude(facts, able, now)
        rounds.append(now)
        left = able & keeps(problem, now, deadline)
        if not left.any(axis=1).all():
            return Refutation(deadline, tuple(rounds), ())
        if (left == able).all():
            break
        able = left
        if clock() >= until:
            return None
    intervals = _overfull(facts, able, now, deadline, until, clock)
    return Refutation(deadline, tuple(rounds), intervals) if intervals else None


def keeps(problem: Problem, now: Round, deadline: float) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """bool[n, C]: which choices leave room for head and tail."""
    out: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = now.heads[:, problem.nodes] + problem.durations + now.tails[
        :, problem.nodes
    ] <= deadline * (1 + MARGIN)
    return out


# Heads and tails ------------------------------------------------------------------------------------------------------------------


def conclude(facts: Facts, able: np.ndarray[tuple[int, int], np.dtype[np.bool_]], now: Round) -> Round:
    """Heads and tails once more, with the choices that are left."""
    durations = np.where(able, facts.problem.durations, np.inf)
    fastest = fastest_by_node(facts.problem, durations)
    work = fastest_by_node(facts.problem, np.where(able, facts.work, np.inf)) / facts.lanes_of_node
    return Round(_sweep(*facts.before, fastest, work, now.heads), _sweep(*facts.behind, fastest, work, now.tails))


def _sweep(side: _Side, groups: list[tuple[IntArray, IntArray, IntArray]], fastest: FloatArray, work: FloatArray, known: FloatArray) -> FloatArray:
    """float64[n, M]: heads (or, backwards, tails) from those of the neighbours."""
    out = known.copy()
    for tasks, edges, first in groups:
        if not len(edges):
            continue
        other, nbytes = side.other[edges], side.nbytes[edges]
        here = out[other] + fastest[other]
        away = _from_elsewhere(here, nbytes, side)
        # Order without data needs no copy and no common node.
        order_only = nbytes < 0
        if order_only.any():
            away[order_only] = here[order_only] = here[order_only].min(axis=1)[:, None]
        ready = np.maximum.reduceat(np.minimum(here, away), first)
        counts = np.diff(np.append(first, len(edges)))
        for k in np.unique(np.ceil(np.log2(np.maximum(counts, 1)))).astype(int).tolist():
            if k:
                some = np.flatnonzero((counts > 2 ** (k - 1)) & (counts <= 2**k))
                _join(ready, some, first, counts, away, out[other], fastest[other], work[other])
        out[tasks] = np.maximum(out[tasks], ready)
    return out


def _from_elsewhere(here: FloatArray, nbytes: FloatArray, side: _Side) -> FloatArray:
    """float64[E, M]: when what is ready at `here[e, node]` can be in each node if it comes from another one."""
    away = np.full(here.shape, np.inf)
    for src in range(here.shape[1]):
        arrive = here[:, src, None] + side.latency[src][None] + np.maximum(nbytes, 0.0)[:, None] * side.per_byte[src][None]
        arrive[:, src] = np.inf
        np.minimum(away, arrive, out=away)
    return away


def _join(
    ready: FloatArray, some: IntArray, first: IntArray, counts: IntArray, away: FloatArray, heads: FloatArray, fastest: FloatArray, work: FloatArray
) -> None:
    """Raise `ready` of the tasks `some`: the inputs that come later than the start were made on the same node, one after the other on its lanes.

    With inputs by falling arrival from elsewhere, start >= min over k of max(arrival of input k + 1, when the node can have made the first k).
    """
    widest = int(counts[some].max())
    kept = min(widest, _MOST_INPUTS)
    per = max(1, _AT_ONCE // (kept * kept * ready.shape[1]))
    for begin in range(0, len(some), per):
        rows = some[begin : begin + per]
        column = np.arange(widest)[None, :]
        exists = column < counts[rows][:, None]
        at = np.where(exists, first[rows][:, None] + column, 0)
        gone = np.where(exists[:, :, None], away[at], -np.inf)
        by_arrival = np.argsort(-gone, axis=1, kind="stable")

        def sort(values: FloatArray, at: IntArray = at, order: IntArray = by_arrival) -> FloatArray:
            return np.take_along_axis(values[at], order, axis=1)

        gone = np.take_along_axis(gone, by_arrival, axis=1)
        padding = np.isneginf(gone)[:, :kept]
        following = np.concatenate((gone[:, 1:], np.full_like(gone[:, :1], -np.inf)), axis=1)[:, :kept]
        head, one, share = sort(heads)[:, :kept], sort(fastest)[:, :kept], sort(work)[:, :kept]
        head = np.where(padding, np.inf, head)
        share = np.where(padding, 0.0, share)
        # made[g, k, m]: when the first k + 1 can all have been made on node m: from any of their heads on, those that start no earlier.
        later = head[:, :, None, :] >= head[:, None, :, :]
        queue = np.where(later, share[:, :, None, :], 0.0).cumsum(axis=1) + head[:, None, :, :]
        queue = np.where(np.tri(kept, dtype=bool)[None, :, :, None], queue, -np.inf).max(axis=2)
        made = np.maximum(queue, np.maximum.accumulate(np.where(padding, -np.inf, head + one), axis=1))
        last = np.maximum(following, made)
        last[padding] = np.inf
        if widest > kept:
            last[:, -1] = made[:, -1]
        least = np.minimum(gone[:, 0], last.min(axis=1))
        ready[rows] = np.maximum(ready[rows], least)


# Work in intervals ----------------------------------------------------------------------------------------------------------------


def _overfull(
    facts: Facts, able: np.ndarray[tuple[int, int], np.dtype[np.bool_]], now: Round, deadline: float, until: float, clock: Callable[[], float]
) -> tuple[Interval, ...]:
    """Prices of intervals at which the tasks would have to pay more than there is; () where none were found."""
    problem = facts.problem
    lanes = np.array([problem.pools[c.pool].lanes / c.width if c.pool >= 0 else np.inf for c in problem.choices])
    seconds = np.where(able, problem.durations, 0.0)
    head = np.where(able, now.heads[:, problem.nodes], np.inf)
    tail = np.where(able, now.tails[:, problem.nodes], np.inf)
    cuts = int(min(_MOST_CUTS, max(3, (_WORK_FLOATS / seconds.size) ** 0.5)))
    some = np.linspace(0, 1, cuts)
    starts, ends = (np.unique(np.quantile(x.min(axis=1), some)) for x in (head, tail))
    pairs = [(a, b) for a in starts.tolist() for b in ends.tolist() if deadline - a - b > 1e-3 * deadline]
    if not pairs:
        return ()
    a, b = (np.array(x)[:, None, None] for x in zip(*pairs, strict=True))
    length = deadline - a - b
    load = np.minimum(np.minimum(seconds, length), np.minimum(np.where(able, head, 0.0) + seconds - a, np.where(able, tail, 0.0) + seconds - b))
    # Of what all lanes do in the interval, the share that each task takes on each choice.
    load = np.where(able, np.maximum(load, 0.0), 0.0) / (lanes * length)
    prices = _play(load, able, np.array([c.pool for c in problem.choices]), len(problem.pools), until, clock)
    if prices is None:
        return ()
    used = np.argwhere(prices > 0)
    return tuple(Interval(pairs[w][0], pairs[w][1], pool, float(prices[w, pool])) for w, pool in used.tolist())


def _play(
    load: FloatArray,
    able: np.ndarray[tuple[int, int], np.dtype[np.bool_]],
    pool_of: IntArray,
    n_pools: int,
    until: float,
    clock: Callable[[], float],
) -> FloatArray | None:
    """float64[W, P]: prices that sum to 1 at which all tasks, each on its cheapest choice, pay more than 1; None where none were found."""
    n_intervals, n, n_choices = load.shape
    enough = 1 + 1e-6
    columns = [np.flatnonzero(pool_of == p) for p in range(n_pools)]

    def paid(prices: FloatArray) -> FloatArray:
        """float64[n, C]: what each task pays on each choice; where it holds lanes of its own, nothing."""
        out: FloatArray = np.einsum("wc,wtc->tc", prices[:, pool_of], load)
        return out

    def value(by_choice: FloatArray) -> float:
        return float(np.where(able, by_choice, np.inf).min(axis=1).sum())

    prices = np.full((n_intervals, n_pools), 1.0 / (n_intervals * n_pools))
    shares = able / able.sum(axis=1, keepdims=True)
    score, regret = np.zeros_like(prices), np.zeros((n, n_choices))
    total = np.zeros_like(prices)
    full_before: FloatArray | None = None
    due_before: FloatArray | None = None
    for turn in range(1, _TURNS + 1):
        due = paid(prices)
        if value(due) > enough:
            return prices
        per_choice = np.einsum("wtc,tc->wc", load, shares)
        full = np.stack([per_choice[:, own].sum(axis=1) for own in columns], axis=1)
        score += _INTERVAL_STEP * (2 * full - (full if full_before is None else full_before))
        regret -= _TASK_STEP * n * (2 * due - (due if due_before is None else due_before))
        full_before, due_before = full, due
        prices = np.exp(score - score.max())
        prices /= prices.sum()
        scaled = np.where(able, regret, -np.inf)
        shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        total += prices
        if turn % 20 == 0:
            mean = total / turn
            if value(paid(mean)) > enough:
                return mean
            # The assignment at hand fits all intervals: no prices can refute it.
            if full.max() <= 1 or clock() >= until:
                return None
    return None
