"""An arena finds by its orders what a look at every stretch finds."""

import random
from itertools import pairwise
from math import inf

import pytest

from hetsched.placement.memory import arena
from hetsched.placement.memory.arena import FEW, Arena, Held, Rank, Want, padded

KEY = {}  # of what lies there; a random number, as the position of a next use is


def rank():
    def full(window, when):
        return (max(KEY[v] for v in window.victims), len(window.victims), max(window.free_at - when, 0.0))

    return Rank(KEY.__getitem__, full)


def stretches(pieces, size):
    """Each stretch of `size` bytes that begins where a piece begins: (low, what lies there, when the rest is free, bytes left in its last piece)."""
    for first, piece in enumerate(pieces):
        high = piece.low + size
        if high > pieces[-1].high:
            continue
        last = next(i for i in range(first, len(pieces)) if pieces[i].high >= high)
        row = pieces[first : last + 1]
        held = tuple(p.held for p in row if p.held is not None)
        yield piece.low, held, max((p.free_at for p in row if p.held is None), default=0.0), row[-1].high - high


def by_looking_everywhere(pieces, size, when, fixed):
    """(low, what has to go) of the best stretch; None where there is none."""
    found = list(stretches(pieces, size))
    free = [(max(free_at - when, 0.0), left, low) for low, held, free_at, left in found if not held]
    if free:
        return min(free)[2], ()
    held = [row for row in found if not any(fixed(h) for h in row[1])]
    few = sorted(held, key=lambda row: max(KEY[h] for h in row[1]))[:FEW]
    best = min(few, key=lambda row: (max(KEY[h] for h in row[1]), len(row[1]), max(row[2] - when, 0.0)), default=None)
    return (best[0], best[1]) if best is not None else None


def fixed(held):
    return held.pinned or held.kept


def used(seed, sizes=(64, 100, 192, 640), steps=150):
    """An arena and what lies in it, as so many launches have left it; yields after each."""
    rng = random.Random(seed)
    KEY.clear()
    own = Arena(8 << 10, rank(), fixed)
    inside = []
    for step in range(steps):
        want = Want(rng.choice(sizes), rng.choice([0.0, float(step), rng.uniform(0, steps)]))
        yield rng, own, want
        found = own.fit([want])
        if found is not None:
            for gone in found[1]:
                own.give_up(gone)
                inside.remove(gone)
            held = Held(0, want.nbytes, [step], free_at=rng.choice([float(step), rng.uniform(0, steps)]), kept=rng.random() < 0.1)
            KEY[held] = rng.choice([float(rng.randint(0, 20)), -inf])
            own.lay(held, found[0][0])
            inside.append(held)
        for held in rng.sample(inside, min(len(inside), rng.choice([0, 0, 0, 1, 2]))):
            own.give_up(held)
            inside.remove(held)
        for held in rng.sample(inside, min(len(inside), 2)):
            KEY[held] = float(rng.randint(0, 20))
            own.touch(held)
            held.pinned = rng.random() < 0.2


@pytest.mark.parametrize("seed", range(12))
def test_the_place_found_is_that_of_a_look_at_every_stretch(seed):
    kinds = set()
    for _, own, want in used(seed):
        found = own.fit([want])
        wanted = by_looking_everywhere(own.pieces, padded(want.nbytes), want.when, fixed)
        assert (found and (found[0][0], tuple(found[1]))) == wanted
        kinds.add("none" if found is None else "evicts" if found[1] else "free")
    assert {"free", "evicts"} <= kinds


@pytest.mark.parametrize("seed", range(6))
def test_with_many_free_pieces_the_place_is_as_good(seed, monkeypatch):
    """It is free no later, and leaves no more behind it."""
    monkeypatch.setattr(arena, "MANY_FREE", 2)
    for _, own, want in used(seed):
        found = own.fit([want])
        wanted = by_looking_everywhere(own.pieces, padded(want.nbytes), want.when, fixed)
        assert (found is None) == (wanted is None)
        if wanted is not None and not wanted[1]:
            rows = {low: (max(free_at - want.when, 0.0), left) for low, held, free_at, left in stretches(own.pieces, padded(want.nbytes)) if not held}
            assert rows[found[0][0]] == rows[wanted[0]]


@pytest.mark.parametrize("seed", range(6))
def test_several_wants_lie_side_by_side_and_leave_alone_what_is_fixed(seed):
    for rng, own, want in used(seed, steps=80):
        wants = [want, *(Want(rng.choice([64, 100, 192, 640]), want.when) for _ in range(rng.randint(1, 3)))]
        before = list(own.pieces)
        found = own.fit(wants)
        assert own.pieces == before  # `fit` only says
        if found is None:
            continue
        taken = sorted((at, at + padded(w.nbytes)) for at, w in zip(found[0], wants, strict=True))
        assert all(a[1] <= b[0] for a, b in pairwise(taken))
        assert len(set(found[1])) == len(found[1])
        under = {p.held for p in own.pieces for low, high in taken if p.held is not None and p.low < high and low < p.high}
        assert under == set(found[1])
        assert not any(fixed(h) for h in under)


def test_bytes_that_nothing_fits_in():
    own = Arena(640, rank(), fixed)
    assert own.fit([Want(641, 0.0)]) is None
    assert own.fit([Want(0, 0.0), Want(640, 0.0)]) == ([0, 0], [])
    held = Held(0, 64, [1], pinned=True)
    KEY[held] = 0.0
    assert own.lay(held, 576) == 0.0
    assert own.fit([Want(577, 0.0)]) is None
    assert own.fit([Want(576, 0.0), Want(64, 0.0)]) is None
