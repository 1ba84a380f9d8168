"""Discovery of OpenCL devices and the cache of their programs; what needs an environment of its own runs in a process of its own."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from hetsched.executors.backends import opencl
from hetsched.machine import HOST, Device, Machine, MemoryNode

cl = pytest.importorskip("pyopencl")
if not opencl.find().devices:
    pytest.skip("no OpenCL device works here", allow_module_level=True)

from hetsched.executors.backends._opencl_programs import DeviceError, Programs, complaints, found_in  # noqa: E402

SOURCE = "__kernel void one(OUT(float, y)) { LET_OUT(float, y) y[get_global_id(0)] = 1; }\n"


def python(code, **environment):
    """What a fresh process prints, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().split("\n")[-1])


def test_what_is_found_makes_a_machine():
    found = opencl.find()
    machine = Machine((Device("cpu", "cpu"), *found.devices), found.links, (MemoryNode(HOST), *found.memories), found.resources)
    for i, device in enumerate(found.devices):
        assert device.id == device.memory == f"opencl:{i}"
        assert device.languages == ("opencl",)
        assert device.hardware in ("cpu", "gpu", "accelerator")
        assert bool(device.uses) == (device.hardware == "cpu")
        assert device.flops_per_second["float32"] > 1e6
        assert 0 < device.launch_seconds < 0.1
        assert not device.shares_lanes
        assert machine.memory(device.memory).nbytes > 1 << 20
        for link in (machine.link(HOST, device.memory), machine.link(device.memory, HOST)):
            assert link.bytes_per_second > 1e6
            assert 0 < link.latency_seconds < 0.1
    assert opencl.find().devices == found.devices


def test_speeds_are_measured_once(tmp_path):
    code = """
        import json
        from hetsched.executors.backends import opencl
        measured = []
        measure = opencl.measure
        opencl.measure = lambda device: measured.append(device) or measure(device)
        found = opencl.find()
        print(json.dumps([len(measured), [repr(x) for x in found.devices], len(found.notes)]))
    """
    first = python(code, XDG_CACHE_HOME=str(tmp_path))
    second = python(code, XDG_CACHE_HOME=str(tmp_path))
    assert first[0] >= len(first[1]) > 0
    assert second == [0, first[1], first[2]]
    for path in (tmp_path / "hetsched").glob("opencl-*.json"):
        path.write_text(path.read_text()[:10])
    assert python(code, XDG_CACHE_HOME=str(tmp_path))[0] == first[0]


def test_no_driver_is_a_note_and_no_error():
    notes, devices = python(
        """
        import json, pyopencl
        from hetsched.executors.backends import opencl
        def none():
            raise pyopencl.LogicError("clGetPlatformIDs failed: PLATFORM_NOT_FOUND_KHR")
        pyopencl.get_platforms = none
        found = opencl.find()
        print(json.dumps([found.notes, len(found.devices)]))
        """
    )
    assert devices == 0
    assert "there is no driver" in notes[0]


BROKEN = """
    import json, sys
    import pyopencl as cl
    from hetsched.executors.backends import opencl
    from hetsched.executors.backends._opencl_programs import DeviceError
    tried = []
    def refuse(device):
        tried.append(1)
        error = DeviceError("OpenCL source does not build on it\\nerror: unknown target CPU 'generic'")
        error.complaints = COMPLAINTS
        raise error
    opencl.measure = refuse
    from hetsched.cli import main
    try:
        main(["devices"])
    except SystemExit:
        pass
    print(json.dumps([len(opencl.find().devices), list(opencl.find().notes), len(tried)]))
"""


@pytest.mark.parametrize(("complaints", "twice"), [("[]", False), ("None", True)], ids=["by its compiler", "by a launch"])
def test_a_device_that_does_not_work_is_told_with_the_reason_and_a_way_out(tmp_path, complaints, twice):
    """A second process does not ask its compiler again, for a day; what else went wrong may pass."""
    code = textwrap.dedent(BROKEN).replace("COMPLAINTS", complaints)
    for tried in (True, twice):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        *shown, last = done.stdout.strip().split("\n")
        devices, notes, times = json.loads(last)
        assert (devices, times > 0) == (0, tried)
        assert "unknown target CPU 'generic'" in notes[0]
        assert any(line.startswith("note: OpenCL device") and "cannot be used" in line for line in shown)
        if "PoCL" in notes[0]:
            assert "apt-get install pocl-opencl-icd" in notes[0]


def test_tests_are_not_skipped_where_a_device_is_required(tmp_path):
    (tmp_path / "conftest.py").write_text((Path(__file__).parents[1] / "conftest.py").read_text())
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    hidden = tmp_path / "pyopencl.py"
    for text, code in (("raise ImportError('hidden')", 3), (None, 0)):
        hidden.write_text(text) if text else hidden.unlink()
        path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_nothing.py"], cwd=tmp_path,
            env={**os.environ, "HETSCHED_REQUIRE_OPENCL": "1", "PYTHONPATH": path}, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert code == 0 or "no OpenCL device works" in done.stdout + done.stderr


def test_no_pyopencl_is_a_note_and_no_error():
    notes, devices = python(
        """
        import json, sys
        sys.modules["pyopencl"] = None
        from hetsched.executors.backends import opencl
        found = opencl.find()
        print(json.dumps([found.notes, len(found.devices)]))
        """
    )
    assert devices == 0
    assert "PyOpenCL cannot be imported" in notes[0]


def test_a_command_that_needs_no_device_does_not_load_pyopencl():
    assert python("import json, sys, hetsched, hetsched.cli, hetsched.executors.backends; print(json.dumps('pyopencl' in sys.modules))") is False


TWO = """
    import json
    import numpy as np
    from hetsched.executors.backends import opencl
    from hetsched.graph.spec import Spec
    from hetsched.testing.opencl import runner
    found = opencl.find()
    twins = [d for d in found.devices if "Portable" in d.name][:2]
    a, b = (opencl.open(d, 1 << 20) for d in twins)
    first, second = a.stream("compute"), b.stream("copy")
    sums = []
    for turn in range(50):
        x, y = a.array(64 * turn, (500,), np.float32), b.array(640, (500,), np.float32)
        first.fill(x, turn)
        second.wait(first.record())
        second.copy(x, y)
        out = np.empty(500, np.float32)
        second.download(y, out)
        event = second.record()
        start, finish = event.span()
        assert start <= finish
        sums.append(float(out.sum()))
    a.close()
    b.close()
    links = [[x.src, x.dst] for x in found.links]
    print(json.dumps([[d.id for d in found.devices], [d.name for d in twins], sums, links]))
"""


def test_two_devices_hand_bytes_to_each_other():
    names = [d.name for d in opencl.find().devices]
    if not any("Portable" in name for name in names):
        pytest.skip("only PoCL makes two devices of one")
    ids, twins, sums, links = python(TWO, POCL_DEVICES="pthread pthread")
    assert len(ids) == len(set(ids)) >= 2
    assert len(twins) == 2
    assert sums == [500.0 * turn for turn in range(50)]
    assert all([a, b] in links for a in (HOST, *ids) for b in (HOST, *ids) if a != b)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """Makes `Programs` that share a cache of their own and nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = opencl._programs_of(opencl._usable()[0][0].device)
    return lambda: Programs(kept.context, kept.device)


def test_a_program_is_built_once_and_then_read(fresh):
    first, second = fresh(), fresh()
    first.kernel(SOURCE, "one")
    first.kernel(SOURCE, "one")
    assert (first.built, first.loaded) == (1, 0)
    second.kernel(SOURCE, "one")
    assert (second.built, second.loaded) == (0, 1)
    second.kernel(SOURCE + "// changed\n", "one")
    assert (second.built, second.loaded) == (1, 1)


def test_a_binary_in_which_nothing_is_found_is_ignored_and_written_anew(fresh):
    """Such as a driver may give of a program that has kernels; that of one without is not written."""
    first, second, third = fresh(), fresh(), fresh()
    empty = first.get("// no kernel\n")
    assert not first.path("// no kernel\n").exists()
    binary = empty.get_info(cl.program_info.BINARIES)[0]
    path = second.path(SOURCE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(second.head(SOURCE, binary) + binary)
    second.kernel(SOURCE, "one")
    assert (second.built, second.loaded) == (1, 0)
    third.kernel(SOURCE, "one")
    assert (third.built, third.loaded) == (0, 1)


def test_a_source_without_kernels_has_none_by_any_name(fresh):
    with pytest.raises(DeviceError, match="no kernel 'one'; it has: none"):
        fresh().kernel("// no kernel\n", "one")


def test_the_binary_of_another_program_does_not_reach_the_driver(fresh, monkeypatch):
    first, second = fresh(), fresh()
    other = SOURCE.replace("one", "two")
    first.get(other)
    second.path(SOURCE).write_bytes(first.path(other).read_bytes())
    given = []
    program = cl._cl._Program
    monkeypatch.setattr(cl._cl, "_Program", lambda *args: given.append(len(args)) or program(*args))
    second.kernel(SOURCE, "one")
    assert (second.built, second.loaded) == (1, 0)
    assert given == [2], "the source, not a device and a binary"


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:40] + bytes([b[40] ^ 1]) + b[41:], lambda b: b"", lambda b: b"rubbish" * 100])
def test_a_damaged_file_is_ignored_and_written_anew(fresh, damage):
    first, second, third = fresh(), fresh(), fresh()
    first.get(SOURCE)
    path = first.path(SOURCE)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    second.get(SOURCE)
    assert (second.built, second.loaded) == (1, 0)
    third.get(SOURCE)
    assert (third.built, third.loaded) == (0, 1)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cache_that_cannot_be_written_costs_only_time(fresh, tmp_path):
    (tmp_path / "hetsched").write_text("a file where the folder should be")
    programs = fresh()
    programs.kernel(SOURCE, "one")
    assert programs.built == 1


def test_a_second_process_builds_nothing(tmp_path):
    code = """
        import json
        import numpy as np
        from hetsched.executors.backends import opencl
        from hetsched.machine import Device
        live = opencl.open(Device("opencl:0", "opencl"), 4096)
        before = live.programs.built, live.programs.loaded
        stream = live.stream("compute")
        y, out = live.array(64, (8,), np.float32), np.zeros(8, np.float32)
        stream.run(SOURCE, "one", (8,), y)
        stream.download(y, out)
        stream.record().wait()
        programs = live.programs
        live.close()
        print(json.dumps([programs.built - before[0], programs.loaded - before[1], out.tolist()]))
    """.replace("SOURCE", repr(SOURCE))
    assert python(code, XDG_CACHE_HOME=str(tmp_path)) == [1, 0, [1.0] * 8]
    assert python(code, XDG_CACHE_HOME=str(tmp_path)) == [0, 1, [1.0] * 8]


def test_build_logs_for_people():
    source = "int a;\n\nfloot b;\n"
    for log in ("k.cl:3:1: error: unknown type", "error: /tmp/x.cl:3:1: unknown type\nDevice x failed", "<kernel>:3:1: fatal error: unknown type"):
        assert complaints(log, source) == "line 3, column 1: unknown type\n    floot b;\n    ^"
    assert complaints("k.cl:1:1: warning: unused\nlinker failed", source) == "k.cl:1:1: warning: unused\nlinker failed"
    # NVIDIA's compiler counts what stands in front.
    log = "<kernel>:11:1: error: unknown type name 'floot'\nfloot b;\n^\n"
    assert complaints(log, source, 8) == "line 3, column 1: unknown type name 'floot'\n    floot b;\n    ^"
    assert found_in(log, 8) == [(3, 1, "unknown type name 'floot'")]
    many = "\n".join(f"k.cl:1:{i}: error: e{i}" for i in range(1, 9))
    assert complaints(many, source).endswith("and 3 more")


def test_check_op_sees_what_a_kernel_does_wrong():
    from hetsched.graph.spec import Spec
    from hetsched.testing.opencl import runner

    x, spec = np.ones((3, 5), np.float32), Spec((3, 5), np.float32)
    source = SOURCE.replace("= 1", "+= 1")

    def outside(cl, inputs, outputs, workspace, attributes):
        cl.run(SOURCE, "one", (16,), outputs[0])

    def on_input(cl, inputs, outputs, workspace, attributes):
        cl.run(source, "one", (1,), inputs[0])

    def right(cl, inputs, outputs, workspace, attributes):
        assert (workspace.nbytes, workspace.offset % 64) == (40, 0)
        cl.run(SOURCE, "one", (15,), outputs[0])

    run = runner()
    with pytest.raises(AssertionError, match="wrote outside its arrays"):
        run(outside, [x], [spec], 0, {})
    with pytest.raises(AssertionError, match="wrote input 0"):
        run(on_input, [x], [spec], 0, {})
    (y,) = run(right, [x], [spec], 40, {})
    np.testing.assert_array_equal(y, x)


def test_a_gpu_has_one_compute_stream_or_as_many_as_asked(monkeypatch):
    """Of more, launches that follow each other would be spread over them, and no step would be joined."""
    known = opencl._usable()[0][0]

    class Gpu:
        type = cl.device_type.GPU

        def __getattr__(self, name):
            return getattr(known.device, name)

    for asked, lanes in ((None, 1), ("3", 3), ("no", 1)):
        if asked is not None:
            monkeypatch.setenv("HETSCHED_OPENCL_STREAMS", asked)
        assert opencl._described(0, opencl.Usable(Gpu(), known.speeds), 4).lanes == lanes
        assert opencl._described(0, known, 4).lanes == (1 if known.device.type & cl.device_type.CPU else lanes)
    assert any(note.startswith("HETSCHED_OPENCL_STREAMS is 'no'") for note in opencl.find().notes)


def test_errors_of_programs_are_errors_of_the_device(fresh):
    with pytest.raises(DeviceError, match="does not build"):
        fresh().get("__kernel nonsense")


PARTS = """
    import json
    from hetsched.executors import backends
    from hetsched.executors.backends import opencl
    import hetsched as hs
    import numpy as np
    found = opencl.find()
    b = hs.Graph.build()
    x = b.input("x", (1000,))
    where = [hs.Where((d.id,)) for d in found.devices] * 2
    y = b.op("tensor.exp", b.op("tensor.neg", x, where=where[0]), where=where[1])
    result = hs.run(hs.plan(b.output(y, "y").freeze(), backends.here()), {"x": np.ones(1000, np.float32)})
    used = sorted({lane.owner for span in result.trace.spans for lane in span.lanes if "->" not in lane.owner})
    units = [int(u.device.max_compute_units) for u in opencl._usable()[0]]
    print(json.dumps([[d.id for d in found.devices], units, list(found.notes), used, float(result["y"][0])]))
"""


def test_a_device_is_split_into_sub_devices_by_request():
    device = opencl._usable()[0][0].device
    whole = device.max_compute_units
    if whole < 2 or cl.device_partition_property.EQUALLY not in device.partition_properties:
        pytest.skip("the device has one compute unit, or its driver does not split it (NVIDIA's)")
    names, units, notes, used, value = python(PARTS, HETSCHED_OPENCL_PARTS="0:2", HETSCHED_LEARN="0")
    assert names[:2] == used == ["opencl:0", "opencl:1"]
    assert units[:2] == [whole // 2] * 2
    assert notes == []
    assert value == pytest.approx(np.exp(-1))


@pytest.mark.parametrize(("asked", "words"), [("two", "give a number of parts"), ("9:2", "there are"), ("100000", "too few for 100000 parts")])
def test_a_split_that_cannot_be_is_a_note(asked, words):
    _, _, notes, _, _ = python(PARTS, HETSCHED_OPENCL_PARTS=asked, HETSCHED_LEARN="0")
    assert any(words in note for note in notes)


def test_devices_work_where_the_users_cache_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    code = """
        import json, os
        import numpy as np
        import hetsched as hs
        b = hs.Graph.build()
        x = b.input("x", (8,))
        graph = b.output(b.op("tensor.add", x, x, where=hs.Where(("opencl",))), "y").freeze()
        y = hs.run(graph, {"x": np.arange(8, dtype="f4")})["y"]
        print(json.dumps([y.tolist(), os.path.isdir(os.environ["POCL_CACHE_DIR"]), os.environ["POCL_CACHE_DIR"]]))
    """
    without = {k: v for k, v in os.environ.items() if k != "POCL_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**without, "XDG_CACHE_HOME": str(tmp_path / "file" / "cache")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    values, was_there, folder = json.loads(done.stdout.strip().split("\n")[-1])
    assert values == [2.0 * i for i in range(8)]
    assert was_there
    assert not os.path.exists(folder), "it goes with the process"
    assert "Traceback" not in done.stderr
