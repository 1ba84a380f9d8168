"""Copies through pinned memory, as devices with memory of their own get them: here by request, on whatever device there is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyopencl", reason="PyOpenCL is not installed")
from hetsched.executors.backends import opencl

if not opencl.find().devices:
    pytest.skip("no OpenCL device works here", allow_module_level=True)

import pyopencl as cl

from hetsched.executors.backends._opencl_staging import wants_staging
from hetsched.machine import Device
from hetsched.testing import check_backend


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETSCHED_OPENCL_STAGING", "1")


def opened(nbytes: int) -> Any:
    return opencl.open(Device("opencl:0", "opencl"), nbytes)


@pytest.fixture
def live(staged: None) -> Iterator[Any]:
    made = opened(64 << 20)
    yield made
    made.close()


def test_devices_that_share_the_hosts_memory_copy_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Discrete:
        host_unified_memory = False

    class Shared:
        host_unified_memory = True

    class Silent:
        type = cl.device_type.GPU

        @property
        def host_unified_memory(self) -> bool:
            raise cl.LogicError("clGetDeviceInfo", cl.status_code.INVALID_VALUE, "")

    monkeypatch.delenv("HETSCHED_OPENCL_STAGING", raising=False)
    assert wants_staging(Silent())
    assert wants_staging(Discrete)
    assert not wants_staging(Shared)
    for text, wanted in (("1", True), ("0", False)):
        monkeypatch.setenv("HETSCHED_OPENCL_STAGING", text)
        assert wants_staging(Discrete) is wants_staging(Shared) is wanted


def test_the_contract_through_pinned_memory(staged: None) -> None:
    only = ["copies", "launches", "order", "events", "errors", "gone", "reopen", "values", "limits", "failures", "leaks"]
    check_backend("opencl", devices=["opencl:0"], graphs=6, runs=500, only=only)


def test_pinned_memory_is_bounded_and_used_again(live: Any) -> None:
    stream = live.stream("copy")
    x = np.tile(np.arange(251, dtype=np.uint8), 1 + (40 << 20) // 251)
    array = live.array(0, x.shape, np.uint8)
    stream.upload(x, array)
    assert live.pinned.nbytes <= 32 << 20
    stream.record().wait()
    stream.record()
    before = live.pinned.nbytes
    for _ in range(3):
        stream.upload(x[: 8 << 20], live.array(0, (8 << 20,), np.uint8))
        stream.record().wait()
        stream.record()
    assert live.pinned.nbytes == before
    seen = np.zeros_like(x)
    stream.download(array, seen)
    stream.record().wait()
    assert np.array_equal(seen, x)


def test_an_upload_of_what_a_download_has_yet_to_bring_waits_for_it(live: Any) -> None:
    """Bytes that are put out of a full device and come back, while the device is held up."""
    out, back = live.stream("copy"), live.stream("copy")
    n = 1 << 20
    a, b = live.array(0, (n,), np.float32), live.array(8 << 20, (n,), np.float32)
    out.upload(np.full(n, 7, np.float32), a)
    host, seen = np.zeros(n, np.float32), np.zeros(n, np.float32)
    out.download(a, host)
    event = out.record()
    back.wait(event)
    back.upload(host, b)
    back.download(b, seen)
    back.record().wait()
    assert (seen == 7).all()
    event.wait()
    assert (host == 7).all()


def test_bytes_land_when_the_event_is_waited_for_and_not_before_they_are_there(live: Any) -> None:
    stream = live.stream("copy")
    x = live.array(0, (64,), np.float32)
    gate = cl.UserEvent(live.context)
    stream.upload(np.full(64, 3, np.float32), x)
    stream._waits.append(gate)
    host = np.zeros(64, np.float32)
    stream.download(x, host)
    event = stream.record()
    assert not event.done()
    assert (host == 0).all()
    gate.set_status(cl.command_execution_status.COMPLETE)
    event.wait()
    assert (host == 3).all()
