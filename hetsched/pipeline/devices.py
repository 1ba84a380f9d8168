"""The grammar of `device:`: any, cpu, gpu, cuda[:N], opencl[:N], a list in order of preference, {not: ...}, {same_as: task}.

A kind may be one of hetsched's, one that an installed backend opens, one that a machine of the catalog has (tpu), or whatever the machine that the
file is read for has.
"""

from __future__ import annotations

import re
from functools import lru_cache

from hetsched.graph.graph import Where
from hetsched.machine import Machine
from hetsched.pipeline.mistakes import Findings, hint
from hetsched.pipeline.reader import BROKEN, Node
from hetsched.pipeline.values import known_keys

KINDS = ("any", "cpu", "gpu", "cuda", "opencl", "emulated")
_PATTERN = re.compile(r"([a-z][a-z0-9_-]*)(?::([A-Za-z0-9_.-]+))?\Z")


@lru_cache(maxsize=1)
def described_kinds() -> frozenset[str]:
    """The kinds of the devices of the catalog."""
    from hetsched.machine import named

    return frozenset(named.device_named(name).kind for name in named.device_names())


def names_in(machine: Machine | None) -> frozenset[str]:
    """What a file may name beside the kinds known everywhere, where it is read for `machine`: its devices and their kinds."""
    return frozenset(name for d in machine.devices for name in (d.id, d.kind)) if machine is not None else frozenset()


@lru_cache(maxsize=1)
def kinds() -> tuple[str, ...]:
    """Every kind of device that a pipeline may name: the hardware's, the backends' (their files' names) and outsiders' (entry points)."""
    from hetsched.executors import backends

    return tuple(dict.fromkeys((*KINDS, *backends.kinds())))


def pattern_problem(pattern: str, here: frozenset[str] = frozenset()) -> str | None:
    """What is wrong with one device pattern, or None. here: names of the machine at hand, see `names_in`."""
    if pattern in here:
        return None
    match = _PATTERN.match(pattern)
    kind = pattern.partition(":")[0]
    if kind not in KINDS and kind not in here and kind not in kinds() and kind not in described_kinds():
        known = dict.fromkeys((*kinds(), *sorted(described_kinds() | {name for name in here if ":" not in name})))
        return f"unknown device {pattern!r}{hint(kind, tuple(known))}"
    if match is None or (match[2] is not None and kind in ("any", "gpu")):
        return f"device {pattern!r} is not understood; write a kind ({kind}), or one device of a kind (cuda:0)"
    if match[2] is not None and kind in ("cpu", "cuda", "opencl") and not match[2].isdecimal():
        return f"device {pattern!r} wants a number after the colon, such as {kind}:0"
    return None


def _patterns(node: Node, findings: Findings) -> tuple[str, ...]:
    """The patterns of a scalar or a list."""
    nodes = node.value if isinstance(node.value, list) else [node]
    if not nodes:
        findings.add(node, "the list of devices is empty; leave `device` out to allow any", "device")
    out: list[str] = []
    for one in nodes:
        if one.value is BROKEN:
            continue
        if not isinstance(one.value, str):
            findings.add(one, f"a device must be a text such as cpu or cuda:0, not {one.kind}", "device")
            continue
        problem = pattern_problem(one.value, findings.devices)
        if problem is not None:
            findings.add(one, problem, "device")
        elif one.value in out:
            findings.add(one, f"device {one.value!r} is listed twice; remove one", "device")
        else:
            out.append(one.value)
    return tuple(out)


def where(node: Node | None, findings: Findings) -> tuple[Where | None, tuple[str, Node] | None]:
    """(where a task may run, None: anywhere; the task of `same_as` and its place)."""
    if node is None or node.value is BROKEN:
        return None, None
    if not isinstance(node.value, dict):
        allow = _patterns(node, findings)
        return (None if not allow or "any" in allow[:1] else Where(allow=allow)), None
    items = node.value
    known_keys(items, ("not", "same_as"), "device", findings)
    if len(items) != 1:
        findings.add(node, "device takes one key: {not: gpu} or {same_as: task}", "device")
        return None, None
    if "not" in items:
        exclude = _patterns(items["not"].value, findings)
        if "any" in exclude:
            findings.add(items["not"].value, "{not: any} leaves no device; name the kinds to leave out", "device")
        return (Where(exclude=exclude) if exclude else None), None
    if "same_as" in items:
        target = items["same_as"].value
        if isinstance(target.value, str):
            return None, (target.value, target)
        if target.value is not BROKEN:
            findings.add(target, f"same_as must be the name of a task, not {target.kind}", "device")
    return None, None
