"""Threads kept between runs: starting one takes 50-100 us, waking one 10."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from hetsched.executors.cores import Cores
from hetsched.executors.forks import forgets


class Door:
    """Threads wait at it until it is opened: that starting them takes time is no part of what a run is measured to take."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Let all through, those too that come later."""
        self._lock.release()

    def behind(self, work: Callable[[str, int], None], cores: Cores | None = None) -> Callable[[str, int], None]:
        """`work` of a lane, begun when the door is open, by threads that compute on cores of their own."""

        def enter(kind: str, lane: int) -> None:
            with cores.waiting(lane) if cores is not None and kind == "compute" else nullcontext(), self._lock:
                pass
            work(kind, lane)

        return enter


class Hands:
    """Threads that do one function after another. `thread` gives something that starts and joins like a `threading.Thread`."""

    def __init__(self) -> None:
        self.idle: list[_Hand] = []
        self.closed = False
        self._lock = threading.Lock()
        forgets(self)

    def thread(self, target: Callable[..., None], args: tuple[Any, ...] = (), name: str = "hetsched", daemon: bool = True) -> Turn:
        """A call of `target(*args)` on one of the threads, begun by `start()`. All threads here are daemons."""
        return Turn(self, target, args, name)

    def take(self, name: str) -> _Hand:
        """A thread that has nothing to do."""
        with self._lock:
            if self.idle:
                return self.idle.pop()
        return _Hand(self, name)

    def close(self) -> None:
        """End the threads. Those that are at something end after it."""
        with self._lock:
            self.closed = True
            idle, self.idle = self.idle, []
        for hand in idle:
            hand.turn = None
            hand.gate.release()
            hand.thread.join()

    def forget(self) -> None:
        """In a process that was forked off: its threads are those of the parent."""
        self.idle, self._lock = [], threading.Lock()


class Turn:
    """One call on a thread that is kept."""

    def __init__(self, hands: Hands, target: Callable[..., None], args: tuple[Any, ...], name: str) -> None:
        self._hands, self.target, self.args, self.name = hands, target, args, name
        self.done = threading.Lock()
        self.done.acquire()
        self.ident: int | None = None

    def start(self) -> None:
        """Begin."""
        hand = self._hands.take(self.name)
        hand.turn = self
        self.ident = hand.thread.ident
        hand.gate.release()

    def join(self) -> None:
        """Wait for the end."""
        self.done.acquire()


class _Hand:
    def __init__(self, hands: Hands, name: str) -> None:
        self.hands = hands
        self.gate = threading.Lock()
        self.gate.acquire()
        self.turn: Turn | None = None
        self.thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            self.gate.acquire()
            turn = self.turn
            if turn is None:
                return
            self.turn = None
            try:
                turn.target(*turn.args)
            finally:
                ends = self._rest()
                done = turn.done
                del turn  # what it held is let go before anybody is told
                done.release()
            if ends:
                return

    def _rest(self) -> bool:
        with self.hands._lock:
            if not self.hands.closed:
                self.hands.idle.append(self)
            return self.hands.closed
