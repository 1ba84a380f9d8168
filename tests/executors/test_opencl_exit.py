"""A process that has used OpenCL ends with the code it means to, whatever it holds when it ends."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("pyopencl", reason="PyOpenCL is not installed")
from hetsched.executors.backends import opencl

if not opencl.find().devices:
    pytest.skip("no OpenCL device works here", allow_module_level=True)

OPENED = """
import sys
import numpy as np
from hetsched.executors.backends import opencl
from hetsched.machine import Device

SOURCE = "__kernel void one(OUT(float, y)) { LET_OUT(float, y) y[get_global_id(0)] = 1; }"
live = opencl.open(Device("opencl:0", "opencl"), 1 << 16)
stream = live.stream("compute")
y = live.array(0, (8,), np.float32)
kernel, given, attributes = (lambda cl, i, o, w, a: cl.run(SOURCE, "one", (8,), *o)), (y,), {}
for _ in range(3):  # plain, taped, from the tape
    stream.launch(kernel, given, given, None, attributes)
event = stream.record()
"""
ENDS = {
    "an open device": ("", 0),
    "a command under way": ("event.on_done(lambda: None)", 0),
    "an error": ("raise RuntimeError(live)", 1),
    "a chosen code": ("sys.exit(7)", 7),
    "a cycle": ("live.itself = live", 0),
    "what outlives the modules": ("sys.kept = [live, stream, stream._kernels, opencl._programs, event]", 0),
    "a source that does not build": (
        "try: stream.run('__kernel void one(floot x) {}', 'one', (1,), y)\nexcept Exception as e: sys.kept = [e]\nraise SystemExit(5)", 5,
    ),
    "a closed device": ("event.wait(); live.close(); live.close()", 0),
    "no program any more": ("opencl.release(); del live, stream, y, event", 0),
}  # fmt: skip


@pytest.mark.parametrize("how", ENDS)
def test_a_process_ends_as_it_means_to(how):
    code, wanted = ENDS[how]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OPENED) + code], env=os.environ.copy(), capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == wanted, done.stderr
    assert "LLVM" not in done.stderr
    assert "Fatal" not in done.stderr


def test_pytest_that_stops_at_collection_ends_with_its_code(tmp_path):
    test = tmp_path / "test_broken.py"
    test.write_text(OPENED + "import a_module_that_is_not_there\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
        cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout + done.stderr
    assert "LLVM" not in done.stderr


def test_after_release_a_device_can_be_opened_again():
    code = OPENED + "opencl.release()\n" + OPENED.replace("import sys", "") + "event.wait(); print(live)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ.copy(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "LiveDevice opencl:0" in done.stdout
