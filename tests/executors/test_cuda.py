"""The CUDA backend: on a device where there is one, and its logic on a CuPy of NumPy (see fake_cupy.py), which is no GPU."""

import importlib
import importlib.util
import sys
import threading
from dataclasses import replace

import fake_cupy
import numpy as np
import pytest
from leftovers import running_threads

import hetsched as hs
from hetsched.errors import DeviceGoneError, OutOfMemoryError, PlacementError
from hetsched.executors import live
from hetsched.executors.backends import cuda, through_host
from hetsched.machine import HOST, Device, Link, Machine, MemoryNode
from hetsched.run import check_inputs
from hetsched.testing import check_backend
from hetsched.testing.backend import _machine_of

REAL = cuda.find()
on_device = pytest.mark.skipif(not REAL.devices, reason="; ".join(REAL.notes) or "no CUDA device")


@pytest.fixture
def fake(monkeypatch):
    backend = fake_cupy.install(monkeypatch, devices=2)
    yield backend
    fake_cupy.Stream.failing = None


def box(backend):
    """The machine of the fake devices. Its kernels are those of the array API: what is written in CUDA C++ has no compiler here."""
    machine = _machine_of(backend)
    return replace(machine, devices=tuple(d if d.memory == HOST else replace(d, languages=("array",)) for d in machine.devices))


# On a device --------------------------------------------------------------------------------------------------------------------------


@on_device
def test_the_contract_on_a_device():
    figures = check_backend("cuda")
    assert all(f["skew_seconds"] <= 50e-6 for f in figures.values())


@on_device
def test_a_kernel_with_an_illegal_access_says_that_the_process_must_be_started_anew():
    """In a process of its own: nothing of CUDA works in it afterwards."""
    import subprocess

    code = """
import numpy as np, hetsched as hs
op = hs.kernel("bad", {"x": "in float32[n]", "y": "out float32[n]"}, size=1,
               cuda="__global__ void bad(const float *x, float *y) { y[1L << 40] = 1; }")
g = hs.Graph.build()
g.output(g.op(op, g.input("x", (4,))), "y")
try:
    hs.run(g.freeze(), {"x": np.ones(4, np.float32)})
except hs.DeviceGoneError as error:
    print("gone:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert "gone: device 'cuda:0' is gone" in done.stdout, done.stderr
    assert "start it anew" in done.stdout


# Without one --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(REAL.devices), reason="there is a device")
def test_without_a_device_there_is_a_note_that_says_why():
    assert len(REAL.notes) == 1
    assert REAL.notes[0].startswith("no CUDA: ")
    if importlib.util.find_spec("cupy") is None:
        assert "pip install 'hetsched[cuda12]'" in REAL.notes[0]
    with pytest.raises(PlacementError, match=r"there is no CUDA device 'cuda:0' here.*no CUDA"):
        cuda.open(replace(hs.Machine.here().device("cpu"), id="cuda:0"), 64)


def test_what_stands_in_for_cupy_is_gone_behind_a_test(monkeypatch):
    """Or a test of a card, in the same process, would run on it."""
    before = sys.modules.get(fake_cupy.LIVE)
    with monkeypatch.context() as patch:
        opened(fake_cupy.install(patch)).close()
        assert sys.modules[fake_cupy.LIVE].cupy.__version__ == "fake"
    assert sys.modules.get(fake_cupy.LIVE) is before


def test_devices_are_found_with_links_each_way_and_between_them(fake):
    found = fake.find()
    assert [d.id for d in found.devices] == ["cuda:0", "cuda:1"]
    assert (found.devices[0].name, found.devices[0].hardware, found.devices[0].languages) == ("Fake GPU", "gpu", ("cuda", "array"))
    assert {x.id for x in found.links} == {"host->cuda:0", "cuda:0->host", "host->cuda:1", "cuda:1->host", "cuda:0->cuda:1", "cuda:1->cuda:0"}
    assert all(m.nbytes == int(0.9 * fake_cupy.TOTAL) for m in found.memories)
    here = hs.Machine.here()
    Machine((*here.devices[:1], *found.devices), found.links, (here.memory("host"), *found.memories), here.resources)


def test_compute_streams_are_as_many_as_the_environment_says(monkeypatch):
    for asked, lanes, notes in (("", 1, 0), ("3", 3, 0), (" 2 ", 2, 0), ("0", 1, 1), ("many", 1, 1), ("17", 1, 1)):
        monkeypatch.setenv("HETSCHED_CUDA_STREAMS", asked)
        found = fake_cupy.install(monkeypatch).find()
        assert found.devices[0].lanes == lanes
        assert len(found.notes) == notes
        assert all(f"HETSCHED_CUDA_STREAMS is {asked!r}" in note for note in found.notes)


def test_links_between_devices_by_the_peer_path_or_through_the_host():
    a = {"down_latency": 1e-5, "up_latency": 2e-5, "down_bytes": 2e10, "up_bytes": 1e10}
    direct = cuda.between(0, a, 1, a, True)
    assert direct == Link("cuda:0", "cuda:1", pytest.approx(1.5e-5), 1e10)
    through = cuda.between(0, a, 1, a, False)
    assert through.latency_seconds == pytest.approx(3e-5)
    assert through.bytes_per_second == pytest.approx(1 / (1 / 2e10 + 1 / 1e10))


def test_the_contract_on_a_cupy_of_numpy(fake):
    """All but what only a device can show: its kernels, its speed, whether CuPy does what is asked of it."""
    check_backend(fake, box(fake), devices=["cuda:0"], graphs=10, runs=100)
    check_backend(fake, box(fake), graphs=10, only=["values"])


def test_devices_of_several_backends_are_one_machine_and_reach_each_other_through_the_host(fake):
    """Its links are made up of those to the host and from it; the bytes go that way."""
    machine = emulate_one(fake)
    link = machine.link("cuda:0", "gpu:0")
    assert link.latency_seconds == pytest.approx(machine.link("cuda:0", HOST).latency_seconds + machine.link(HOST, "gpu:0").latency_seconds)
    b = hs.Graph.build()
    x = b.input("x", (1000,))
    for i in range(6):
        x = b.op("tensor.add", x, x, where=hs.Where(("cuda:0", "gpu:0")[i % 2 :][:1]))
    graph = b.output(x, "y").freeze()
    plan = hs.plan(graph, machine)
    assert {c.command.dst.node for c in plan.copies} >= {"cuda:0", "gpu:0"}
    assert (hs.run(plan, {"x": np.ones(1000, np.float32)})["y"] == 64).all()


def emulate_one(backend):
    """The host, the fake devices, and an emulated one."""
    found = box(backend)
    gpu = Device("gpu:0", "emulated", memory="gpu:0", hardware="gpu", bytes_per_second=1e11, flops_per_second={"float32": 1e13})
    links = [*found.links, Link(HOST, "gpu:0", 1e-6), Link("gpu:0", HOST, 1e-6)]
    links += through_host(links, [m.name for m in found.memories] + ["gpu:0"])
    return Machine((*found.devices, gpu), tuple(links), (*found.memories, MemoryNode("gpu:0")), found.resources)


def opened(backend, nbytes=1 << 16):
    return backend.open(backend.find().devices[0], nbytes)


def test_streams_are_used_again_but_by_one_at_a_time(fake):
    """What CuPy's pool keeps for a stream would be lost with it."""
    device = opened(fake)
    used = {id(s.stream): s.stream for s in (device.stream("compute"), device.stream("copy"))}
    device.close()
    device.close()
    device = opened(fake)
    again = [device.stream("compute").stream, device.stream("copy").stream, device._clock_stream, device.stream("copy").stream]
    assert len(set(map(id, again))) == 4
    assert set(used) <= set(map(id, again))
    device.close()


def test_an_upload_of_what_a_download_has_yet_to_bring_waits_for_it(fake):
    """Bytes that are put out of a full device and come back."""
    device = opened(fake, 16 << 20)
    out, back = device.stream("copy"), device.stream("copy")
    big = device.array(0, (2 << 20,), np.float32)
    out.upload(np.full(2 << 20, 7, np.float32), big)
    host = np.zeros(2 << 20, np.float32)
    out.download(big, host)
    back.wait(out.record())
    other = device.array(8 << 20, (2 << 20,), np.float32)
    back.upload(host, other)
    seen = np.zeros(2 << 20, np.float32)
    back.download(other, seen)
    back.record().wait()
    assert (seen == 7).all()
    device.close()


def test_two_downloads_to_one_place_land_in_their_order(fake):
    device = opened(fake, 16 << 20)
    first, second = device.stream("copy"), device.stream("copy")
    a, b = (device.array(i << 23, (2 << 20,), np.float32) for i in range(2))
    first.upload(np.full(2 << 20, 1, np.float32), a)
    first.upload(np.full(2 << 20, 2, np.float32), b)
    ready = first.record()
    host = np.zeros(2 << 20, np.float32)
    first.download(a, host)
    early = first.record()
    second.wait(ready)
    second.wait(early)
    second.download(b, host)
    second.record().wait()
    early.wait()
    assert (host == 2).all()
    device.close()


@pytest.mark.parametrize(("status", "kind"), [(700, DeviceGoneError), (719, DeviceGoneError), (2, MemoryError), (1, RuntimeError)])
def test_errors_of_cuda_by_their_numbers(fake, status, kind):
    device = opened(fake)
    stream, x = device.stream("compute"), device.array(0, (16,), np.float32)
    fake_cupy.Stream.failing = status
    with pytest.raises(kind, match="cuda:0") as caught:
        stream.upload(np.ones(16, np.float32), x)
    assert isinstance(caught.value, DeviceGoneError) == (kind is DeviceGoneError)
    if kind is DeviceGoneError:
        assert "start it anew" in str(caught.value)
        fake_cupy.Stream.failing = None
        with pytest.raises(DeviceGoneError):
            stream.record()
    fake_cupy.Stream.failing = None
    device.close()


def test_a_device_that_is_lost_in_a_run_ends_it_and_is_named(fake):
    b = hs.Graph.build()
    x = b.input("x", (64,))
    for _ in range(10):
        x = b.op("tensor.neg", x, where=hs.Where(("cuda:0",)))
    graph = b.output(x, "y").freeze()
    plan = hs.plan(graph, box(fake))
    fake_cupy.Stream.failing = None

    class Failing:
        def open(self, device, nbytes):
            opened = fake.open(device, nbytes)
            fake_cupy.Stream.failing = 700
            return opened

    with pytest.raises(DeviceGoneError, match="device 'cuda:0' is gone"):
        live.run_plan(plan, check_inputs(graph, {"x": np.ones(64, np.float32)}), backends={"cuda": Failing()})


def test_an_event_of_a_lost_device_is_done(fake):
    """CuPy's `Event.done` is False where CUDA answers with an error, and would be waited for without end."""
    device = opened(fake)
    stream = device.stream("compute")
    event = stream.record()
    event.wait()
    fake_cupy.Stream.failing = 700
    assert event.last.done is False
    assert event.done()
    with pytest.raises(DeviceGoneError):
        event.span()
    fake_cupy.Stream.failing = None
    device.close()


def test_cublas_without_room_is_out_of_memory(fake):
    device = opened(fake)
    failure = type("CUBLASError", (RuntimeError,), {"status": 3, "__module__": "cupy_backends.cuda.libs.cublas"})
    assert isinstance(device.refusal("a launch", failure("CUBLAS_STATUS_ALLOC_FAILED")), MemoryError)
    assert isinstance(device.refusal("a launch", fake_cupy.CUDARuntimeError(3)), RuntimeError)
    device.close()


def test_a_large_upload_uses_its_pinned_memory_again(fake):
    device = opened(fake, 64 << 20)
    stream = device.stream("copy")
    x = np.random.default_rng(0).integers(0, 255, 50 << 20).astype(np.uint8)
    array = device.array(0, x.shape, np.uint8)
    fake_cupy.pinned_sizes.clear()
    stream.upload(x, array)
    assert sum(fake_cupy.pinned_sizes) == 32 << 20
    seen = np.zeros_like(x)
    stream.download(array, seen)
    stream.record().wait()
    assert np.array_equal(seen, x)
    device.close()


def held_download(device, nbytes):
    """(stream, what opens it, the event of a download that waits for that, what is to be downloaded, to where)."""
    stream, gate = device.stream("copy"), threading.Event()
    x = np.arange(nbytes, dtype=np.uint8)
    array, seen = device.array(0, x.shape, np.uint8), np.zeros_like(x)
    stream.upload(x, array)
    stream.stream.put(gate.wait)
    stream.download(array, seen)
    return stream, gate, stream.record(), x, seen


def watched(stream):
    """Wait until the watching thread has done what it was given before."""
    told = threading.Event()
    stream.watcher.watch(lambda: None, told.set)
    assert told.wait(60)


def test_large_downloads_land_by_the_watching_thread_and_are_done_when_they_have(fake):
    device = opened(fake, 8 << 20)
    stream, gate, event, x, seen = held_download(device, 2 << 20)
    assert not event.done()
    gate.set()
    watched(stream)
    assert np.array_equal(seen, x)  # nobody has waited for the event
    assert event.done()
    event.wait()
    assert np.array_equal(seen, x)
    device.close()


def test_small_downloads_land_where_they_are_waited_for(fake):
    device = opened(fake, 8 << 20)
    stream, gate, event, x, seen = held_download(device, 1000)
    gate.set()
    stream.stream.synchronize()
    watched(stream)
    assert event.done()
    assert not seen.any()
    event.wait()
    assert np.array_equal(seen, x)
    device.close()


def test_a_large_download_from_a_device_that_is_lost_is_done_and_says_so(fake):
    device = opened(fake, 8 << 20)
    stream, gate, event, _, _ = held_download(device, 2 << 20)
    fake_cupy.Stream.failing = 700
    gate.set()
    watched(stream)
    assert event.done()
    with pytest.raises(DeviceGoneError):
        event.wait()
    fake_cupy.Stream.failing = None
    device.close()


def test_large_copies_are_shared_by_threads_which_end_with_the_device(fake, monkeypatch):
    module = importlib.import_module("hetsched.executors.backends._cuda_live")  # the one of this fake
    monkeypatch.setattr(module, "copying_threads", lambda: 3)
    before = running_threads()
    device = opened(fake, 32 << 20)
    stream = device.stream("copy")
    for shape in ((3 << 20,), (5, 1 << 20, 1), (1001, 999), (7,)):
        x = np.random.default_rng(0).random(shape, np.float32)
        array, seen = device.array(0, x.shape, np.float32), np.zeros(shape, np.float32)
        stream.upload(x, array)
        stream.download(array, seen)
        stream.record().wait()
        assert np.array_equal(seen, x)
        turned = np.zeros(shape[::-1], np.float32).T  # lies otherwise: nobody shares it
        stream.download(array, turned)
        stream.record().wait()
        assert np.array_equal(turned, x)
    assert any(t.name.startswith("hetsched-cuda:0-copies") for t in threading.enumerate())
    device.close()
    assert not any(t.name.startswith("hetsched-cuda:0-copies") for t in running_threads() - before)


def test_copies_from_and_to_pinned_memory_stop_nowhere(fake):
    device = opened(fake)
    stream, x = device.stream("copy"), device.array(0, (1000,), np.uint8)
    there, back = device.pinned_array(1000), device.pinned_array(1000)
    there[:] = np.arange(1000) % 251
    fake_cupy.pinned_sizes.clear()
    stream.upload_pinned(there, x)
    stream.download_pinned(x, back)
    stream.record().wait()
    assert np.array_equal(there, back)
    assert fake_cupy.pinned_sizes == []
    device.close()


def test_equal_devices_share_what_is_learned(fake):
    first, second = fake.find().devices
    assert first.fingerprint == second.fingerprint != ""


def _copy_kernel(streams):
    """A kernel that hands its copy to the stream, as CUDA's do: `streams` are the current ones."""

    def kernel(xp, inputs, outputs, workspace, attributes):
        a, b = inputs[0], outputs[0]
        streams.append(getattr(fake_cupy.allocators, "now", None))
        if attributes.get("asks"):
            attributes["stream"].stream.synchronize()
        xp.cuda.runtime.memcpyAsync(b.data.ptr, a.data.ptr, a.nbytes, 3, attributes["stream"].stream.ptr)

    return kernel


def segment_of(device, stream, **attributes):
    """x -> y -> z, twice copied, as the calls of a segment; and the kernel's allocators."""
    x, y, z = (device.array(4096 * i, (16,), np.float32) for i in range(3))
    seen = []
    kernel, given = _copy_kernel(seen), {"stream": stream, **attributes}
    return (x, z), [(kernel, (x,), (y,), None, given, 0), (kernel, (y,), (z,), None, given, 1)], seen


def run_segment(stream, calls):
    """As a driving thread does: at once where the stream can, else one by one."""
    if not stream.segment(calls):
        for call in calls:
            stream.launch(*call[:5])


@pytest.mark.parametrize("graphs", ["", "1", "0"])
def test_launches_that_come_again_are_one_graph_unless_that_is_turned_off(fake, monkeypatch, graphs):
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", graphs)
    device = opened(fake)
    stream = device.stream("compute")
    (x, z), calls, allocators = segment_of(device, stream)
    fake_cupy.Graph.launched = 0
    for turn in range(4):
        out = np.zeros(16, np.float32)
        stream.upload(np.full(16, turn, np.float32), x)
        run_segment(stream, calls)
        stream.download(z, out)
        event = stream.record()
        event.wait()
        start, finish = event.span()
        assert start <= finish
        assert (out == turn).all()
    if graphs != "0":
        assert fake_cupy.Graph.launched == 3
        assert allocators[:2] == [None, None]
        assert allocators[2:] == [stream._pool.malloc] * 2  # once, while they were captured
    else:
        assert fake_cupy.Graph.launched == 0
        assert allocators == [None] * 8
    device.close()


def test_what_cannot_be_captured_is_launched_one_by_one(fake, monkeypatch):
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", "1")
    device = opened(fake)
    stream = device.stream("compute")
    (x, z), calls, _ = segment_of(device, stream, asks=True)
    fake_cupy.Graph.launched = 0
    for turn in range(4):
        out = np.zeros(16, np.float32)
        stream.upload(np.full(16, turn, np.float32), x)
        run_segment(stream, calls)
        stream.download(z, out)
        stream.record().wait()
        assert (out == turn).all()
    assert fake_cupy.Graph.launched == 0
    device.close()


def test_captures_are_one_at_a_time(fake, monkeypatch):
    """The stand-in refuses a second capture while one is under way; each thread drives a stream of its own."""
    import threading

    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", "1")
    device = opened(fake, 1 << 20)
    wrong = []

    def drive(number):
        try:
            stream = device.stream("compute")
            for _ in range(10):
                _, calls, _ = segment_of(device, stream)
                run_segment(stream, calls)
                run_segment(stream, calls)
            stream.record().wait()
            wrong.extend(k for k in stream._segments.values() if k.refused)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=drive, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    device.close()


def test_an_arena_that_cannot_be_had_names_the_bytes(fake):
    with pytest.raises(OutOfMemoryError, match=rf"cuda:0 cannot give an arena of {1 << 40} bytes: {fake_cupy.TOTAL} of its"):
        opened(fake, 1 << 40)


def test_what_cupys_pool_keeps_is_given_back_for_an_arena(fake, monkeypatch):
    import cupy

    kept, plain = [1], cupy.cuda.Memory

    def memory(size):
        if kept:
            raise fake_cupy.CUDARuntimeError(2)
        return plain(size)

    monkeypatch.setattr(cupy.cuda, "Memory", memory)
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: type("Pool", (), {"free_all_blocks": lambda self: kept.clear()})())
    device = opened(fake)
    assert device.memory is not None
    device.close()


def test_speeds_are_measured_by_running(fake):
    """On a CuPy of NumPy: what is measured is this machine, but it is measured, and gives every figure that a machine needs."""
    speeds = cuda.measure(0, 32, 1 << 20)
    assert set(speeds) == set(cuda._NEEDED)
    assert all(0 < v < float("inf") for v in speeds.values())
    assert speeds["replay"] <= speeds["launch"]


def test_a_launch_in_a_graph_is_timed_in_one(fake):
    fake_cupy.Graph.launched = 0
    cuda.measure(0, 32, 1 << 20)
    assert fake_cupy.Graph.launched > 10


@pytest.mark.parametrize(("graphs", "seconds"), [("", 2e-6), ("0", None)])
def test_a_device_states_what_a_launch_in_a_graph_takes_unless_there_are_none(fake, monkeypatch, graphs, seconds):
    monkeypatch.setenv("HETSCHED_CUDA_GRAPHS", graphs)
    monkeypatch.setattr(cuda, "_fingerprint", lambda properties: "")
    speeds = dict.fromkeys(cuda._NEEDED, 1.0) | {"launch": 9e-6, "replay": 2e-6}
    assert cuda.described(0, {"name": "card"}, speeds).replay_seconds == seconds
