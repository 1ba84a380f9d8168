"""What the benchmarks' branches for GPUs share: whether there is one, and why not."""

from __future__ import annotations


def missing() -> str | None:
    """Why nothing can be measured on CUDA here; None where there is a device that hetsched can use."""
    from hetsched.executors.backends import cuda

    found = cuda.find()
    return None if found.devices else "; ".join(found.notes) or "no CUDA device"


def device_name() -> str:
    """The first device, as CUDA calls it."""
    from hetsched.executors.backends import cuda

    return cuda.find().devices[0].name


def torch_on_cuda() -> str | None:
    """Why torch cannot be measured beside; None where it can."""
    try:
        import torch
    except ImportError:
        return "torch is not installed (pip install '.[bench]')"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"
