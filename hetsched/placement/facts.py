"""Costed problems as the arrays that the inner loops want (`search_walk.Facts`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from hetsched.placement.problem import Problem
from hetsched.placement.ranks import least_tails
from hetsched.placement.search_walk import DRAWS, Facts


def facts_of(problem: Problem) -> Facts:
    """Everything: for the search."""
    succ_starts, succs, _ = problem.succ
    possible = np.isfinite(problem.durations)
    return list_facts(problem)._replace(
        tail=least_tails(problem),
        succ_starts=succ_starts,
        succs=succs,
        able_starts=_starts(possible.sum(axis=1)),
        able=np.nonzero(possible)[1].astype(np.int64),
        draws=-np.log((np.arange(DRAWS) + 0.5) / DRAWS),
    )


def list_facts(problem: Problem) -> Facts:
    """What booking a list of tasks asks for; the rest is left empty."""
    none, no_real = np.zeros(0, dtype=np.int64), np.zeros(0)
    return Facts(
        seconds=np.ascontiguousarray(problem.durations),
        tail=no_real,
        starts=problem.pred_start,
        preds=problem.pred_task,
        nbytes=problem.pred_nbytes,
        succ_starts=none,
        succs=none,
        node=problem.nodes,
        lanes=_starts([pool.lanes for pool in problem.pools]),
        latency=np.ascontiguousarray(problem.latency),
        per_byte=np.ascontiguousarray(problem.seconds_per_byte),
        able_starts=none,
        able=none,
        draws=no_real,
    )


def _starts(counts: Any) -> Any:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
