"""The turnstile: one thread inside at a time, nobody lost, nobody waits while others come in again and again."""

import os
import threading
import warnings

import pytest

from hetsched.executors.turnstile import SHORT_WORK, Turnstile


def test_one_thread_is_inside_at_a_time_and_everybody_comes_through() -> None:
    """A counter that is read, and written only later, loses nothing; with slices of nothing, of a little, and of more than the test takes."""
    for seconds in (0.0, 1e-5, 30.0):
        turnstile, counter = Turnstile(seconds), [0]

        def work(turnstile: Turnstile = turnstile, counter: list[int] = counter) -> None:
            for _ in range(300):
                turnstile.enter()
                before = counter[0]
                for _ in range(20):
                    pass
                counter[0] = before + 1
                turnstile.leave()

        threads = [threading.Thread(target=work) for _ in range(5)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert counter == [1500]
        assert not turnstile._line
        assert not turnstile._has_first
        assert turnstile.is_free


def test_who_waits_when_the_slice_is_over_is_let_in_before_who_comes_again() -> None:
    """The one inside leaves when the other waits, and comes back at once: the other has been inside by then."""
    turnstile, log = Turnstile(0.0), []
    turnstile.enter()

    def other() -> None:
        turnstile.enter()
        log.append("other")
        turnstile.leave()

    thread = threading.Thread(target=other)
    thread.start()
    while not turnstile._has_first:
        pass
    turnstile.leave()
    turnstile.enter()
    log.append("again")
    turnstile.leave()
    thread.join(60)
    assert log == ["other", "again"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_nobody_is_inside_in_a_process_that_was_forked_off() -> None:
    SHORT_WORK.enter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads
            child = os.fork()
        if not child:
            os._exit(0 if SHORT_WORK.is_free else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert not SHORT_WORK.is_free
    finally:
        SHORT_WORK.leave()
    assert SHORT_WORK.is_free


def test_who_waits_in_line_is_let_in_in_order() -> None:
    turnstile, log = Turnstile(0.0), []
    turnstile.enter()

    def wait(number: int) -> None:
        turnstile.enter()
        log.append(number)
        turnstile.leave()

    threads = []
    for i in range(4):
        threads.append(threading.Thread(target=wait, args=(i,)))
        threads[-1].start()
        while turnstile._has_first + len(turnstile._line) <= i:
            pass
    turnstile.leave()
    for t in threads:
        t.join(60)
    assert log == [0, 1, 2, 3]
