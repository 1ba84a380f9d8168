"""What a forked process does with what it inherits."""

import os
import subprocess
import sys
import textwrap

import pytest

CODE = """
    import gc, os, sys, threading
    import hetsched.executors.forks as forks

    class Memory:
        __module__ = "driver"

        def __init__(self, name):
            self.name = name

        def __del__(self, os=os, parent=os.getpid()):
            os.write(1, f"{self.name} given back by {'the parent' if os.getpid() == parent else 'the child'}\\n".encode())

    forks.leaves_alone("driver")
    kept, dropped, local = Memory("kept"), Memory("dropped"), threading.local()
    local.handle = Memory("of this thread")
    there, go = threading.Event(), threading.Event()

    def other():
        local.handle = Memory("of another thread")
        there.set()
        go.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    there.wait(60)
    child = os.fork()
    if not child:
        if not (grandchild := os.fork()):  # what this one held it holds on to
            sys.exit(0)
        assert os.waitpid(grandchild, 0)[1] == 0
        del dropped
        gc.collect()
        sys.exit(0)  # as a program ends, modules and all
    assert os.waitpid(child, 0)[1] == 0
    print("the child is over", flush=True)
    go.set()
    thread.join()
    del dropped, kept
    assert not forks._held
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_gives_nothing_back_to_a_driver_that_is_its_parents() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(CODE)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "the child is over",
        *(f"{name} given back by the parent" for name in ("of another thread", "dropped", "kept", "of this thread")),
    ]
