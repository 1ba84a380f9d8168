"""A card that two drivers offer is one device of the machine, unless somebody asks for the other by name."""

from dataclasses import replace

import numpy as np
import pytest

import hetsched as hs
from hetsched.cli import main
from hetsched.executors import backends
from hetsched.executors.backends import Found, Place, cuda, opencl
from hetsched.machine import HOST, Device, Link, MemoryNode
from hetsched.testing.opencl import available

pytestmark = pytest.mark.skipif(not available(), reason="no OpenCL device works here")

PLACE = "0000:3b:00"
SLOW = dict.fromkeys(("float32", "float64"), 1e6)
CARD = Device(
    "cuda:0", "cuda", memory="cuda:0", name="A card", hardware="gpu", languages=("cuda", "array"), flops_per_second=SLOW, bytes_per_second=1e6
)


@pytest.fixture
def twin(monkeypatch):
    """A CUDA card that is said to be the first OpenCL device too, and cannot be opened; gives what the other backend finds."""
    monkeypatch.delenv("HETSCHED_OPENCL_TWINS")
    links = (Link(HOST, "cuda:0"), Link("cuda:0", HOST))
    card = Found((CARD,), (MemoryNode("cuda:0", 1 << 30),), links, places={"cuda:0": Place(PLACE, "A card", "CUDA")})
    monkeypatch.setattr(cuda, "find", lambda: card)
    found = opencl.find()
    found = replace(found, places={"opencl:0": Place(PLACE, "The card", "OpenCL")})
    monkeypatch.setattr(opencl, "find", lambda: found)
    return found


def graph_of(where=None):
    b = hs.Graph.build()
    x = b.input("x", (8,))
    return b.output(b.op("tensor.add", x, x, where=where), "y").freeze()


X = {"x": np.arange(8, dtype=np.float32)}


def test_the_twin_is_left_out_with_its_memory_and_links_unless_it_is_named(twin, monkeypatch):
    others = {d.id for d in twin.devices} - {"opencl:0"}
    for named in ((), ("any",), ("gpu", "cpu"), ("cuda",), (("cuda", "opencl"),), (("gpu", "opencl:0"), "cpu")):
        machine = hs.Machine.here(*named)
        assert {d.id for d in machine.devices} >= {"cpu", "cuda:0", *others}
        assert "opencl:0" not in {d.id for d in machine.devices} | {m.name for m in machine.memories}
        assert all("opencl:0" not in (x.src, x.dst) for x in machine.links)
    for named in (("opencl",), ("cpu", "opencl:0"), (("opencl", "cuda"),), (("cuda:7", "opencl"),)):
        machine = hs.Machine.here(*named)
        assert machine.link("cuda:0", "opencl:0").bytes_per_second > 0
    monkeypatch.setenv("HETSCHED_OPENCL_TWINS", "1")
    assert hs.Machine.here().device("opencl:0").kind == "opencl"


def test_parts_of_a_device_are_no_twins_of_each_other():
    rows = [(PLACE, "NVIDIA"), (PLACE, "NVIDIA"), (PLACE, "rusticl"), ("0000:5e:00", "NVIDIA")]
    parts = Found(places={f"opencl:{i}": Place(address, f"{i}", driver) for i, (address, driver) in enumerate(rows)})
    assert backends.twins([parts]) == {"opencl:2": "opencl:0"}
    card = Found(places={"cuda:0": Place(PLACE, "card", "CUDA")})
    assert backends.twins([card, parts]) == dict.fromkeys(["opencl:0", "opencl:1", "opencl:2"], "cuda:0")


def test_cards_of_one_name_are_twins_where_addresses_do_not_tell():
    two = Found(places={f"cuda:{i}": Place(f"0000:0{i}:05", "H100", "CUDA") for i in range(2)})
    unknown = Found(places={f"opencl:{i}": Place(None, "H100", "NVIDIA") for i in range(2)})
    assert backends.twins([two, unknown]) == {"opencl:0": "cuda:0", "opencl:1": "cuda:1"}
    half = Found(places={"opencl:0": Place("0000:01:05", "H100", "NVIDIA"), "opencl:1": Place("0000:00:00", "H100", "NVIDIA")})
    assert backends.twins([two, half]) == {"opencl:0": "cuda:1", "opencl:1": "cuda:0"}
    one = Found(places={"opencl:0": Place(None, "H100", "NVIDIA")})
    assert backends.twins([two, one]) == {}
    others = Found(places={f"opencl:{i}": Place(None, "A100", "NVIDIA") for i in range(2)})
    assert backends.twins([two, others]) == {}


def test_who_asks_for_the_twin_gets_it(twin, tmp_path):
    plain = graph_of()
    assert "opencl:0" not in {d.id for d in hs.plan(plain).machine.devices}
    plan = hs.plan(plain, only="opencl", learn=False)
    assert plan.device_of(0) == "opencl:0"
    np.testing.assert_array_equal(hs.run(plan, X, learn=False)["y"], 2 * X["x"])
    assert hs.plan(graph_of(hs.Where(("opencl:0",))), learn=False).device_of(0) == "opencl:0"
    body = hs.Graph.build()
    s = body.input("s", (8,))
    body.output(body.op("tensor.add", s, s, where=hs.Where(("opencl",))), "t")
    b = hs.Graph.build()
    (last,) = b.loop(hs.Loop(body.freeze(), 3, carried=(("s", "t"),)), b.input("x", (8,)))
    assert "opencl:0" in {d.id for d in hs.plan(b.output(last, "y").freeze(), learn=False).machine.devices}
    with hs.Session() as session:
        assert "opencl:0" not in {d.id for d in session.machine.devices}
        np.testing.assert_array_equal(session.compile(plain, only="opencl")(X["x"])["y"], 2 * X["x"])
    path = tmp_path / "plan.json"
    hs.write_plan(plan, path)
    assert hs.read_plan(path, plain).device_of(0) == "opencl:0"


def test_the_twin_is_told_with_the_way_to_it(twin, capsys, monkeypatch):
    assert main(["devices"]) == 0
    told = capsys.readouterr().out
    line = next(x for x in told.splitlines() if x.startswith("note: opencl:0 ("))
    assert line.endswith("is cuda:0 by another driver: plans leave it out; -d opencl:0 takes it, and HETSCHED_OPENCL_TWINS=1 counts it as another")
    assert not any(x.startswith("opencl:0") for x in told.splitlines())
    monkeypatch.setenv("HETSCHED_OPENCL_TWINS", "1")
    assert main(["devices"]) == 0
    told = capsys.readouterr().out
    assert "is cuda:0 by another driver: plans use both as two (HETSCHED_OPENCL_TWINS is set)" in told
    assert any(x.startswith("opencl:0") for x in told.splitlines())


def test_where_drivers_say_that_a_device_sits(monkeypatch):
    import pyopencl as cl

    class Card:
        def __init__(self, known):
            self.known = known

        def get_info(self, key):
            if key not in self.known:
                raise cl.LogicError("clGetDeviceInfo", cl.status_code.INVALID_VALUE, "")
            return self.known[key]

    known = cl.device_info
    old = {known.PCI_BUS_ID_NV: 0x3B, known.PCI_SLOT_ID_NV: 1}
    assert opencl._address(Card(old)) == "0000:3b:01"
    assert opencl._address(Card(old | {known.PCI_DOMAIN_ID_NV: 2})) == "0002:3b:01"
    assert cuda._address({"pciDomainID": 2, "pciBusID": 59, "pciDeviceID": 1}) == "0002:3b:01"
    assert opencl._address(Card({})) is cuda._address({"pciBusID": 59}) is None
