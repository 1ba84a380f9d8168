"""On what: devices, links, resources, machines; described in YAML or found by the backends."""

from hetsched.machine.machine import HOST, Device, Link, Machine, MemoryNode, Resource

__all__ = ["HOST", "Device", "Link", "Machine", "MemoryNode", "Resource"]
