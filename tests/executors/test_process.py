from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from hetsched.executors.process import tuned, wide


def blas_threads():
    np.ones((2, 2)) @ np.ones((2, 2))
    return [x["num_threads"] for x in ThreadpoolController().info() if x["user_api"] == "blas"]


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.skipif(max(blas_threads(), default=1) < 2, reason="BLAS of this machine has one thread")
def test_a_wide_launch_raises_the_limit_on_whatever_thread_it_runs_and_all_is_given_back():
    before = blas_threads(), sys.getswitchinterval()

    def launch():
        with wide(2):
            return blas_threads()

    with tuned():
        assert set(blas_threads()) == {1}
        assert set(in_thread(launch)) == {2}
        assert set(launch()) == {2}
        assert set(in_thread(launch)) == {2}
        assert set(blas_threads()) == {1}
    assert (blas_threads(), sys.getswitchinterval()) == before


def test_a_run_in_another_thread_gives_back_what_it_changed():
    before = blas_threads(), sys.getswitchinterval()

    def run():
        with tuned():
            return blas_threads()

    for _ in range(2):
        assert set(run()) <= {1}
        assert set(in_thread(run)) <= {1}
        assert (blas_threads(), sys.getswitchinterval()) == before
