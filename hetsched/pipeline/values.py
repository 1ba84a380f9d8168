"""What stands in a pipeline's values: parameters, plain data, durations, objectives."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hetsched.errors import CommandLineError
from hetsched.pipeline.mistakes import Findings, hint
from hetsched.pipeline.reader import BROKEN, Item, Node, NumberError, scalar

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
NAME_RULE = "letters of the English alphabet, digits, _ and -, not starting with a digit"
OBJECTIVES = ("time", "latency", "energy", "price")
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}

_PARAMETER = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)\Z")
_PARAMETER_INSIDE = re.compile(r"(?<!\$)(?:\$\$)*(\$[A-Za-z_{])")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?)\s*([a-z]+)\Z")


@dataclass
class Parameters:
    """The parameters of a pipeline by name, after overrides. `overridden` are those that did not come from the file."""

    values: dict[str, Any] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()


def _family(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    return "a number" if isinstance(value, (int, float)) else "a text"


def override(name: str, text: Any, default: Any) -> Any:
    """The value of `-s name=text` for a parameter whose value in the file is `default`: read as a YAML scalar, and of the same type.

    Text stays as given where the file has a text. Raises `CommandLineError`.
    """
    value = text
    if isinstance(text, str) and not isinstance(default, str):
        try:
            value = scalar(text)
        except NumberError as error:
            raise CommandLineError(f"-s {name}={text}: {error}") from None
    if isinstance(value, float) and value != value:
        raise CommandLineError(f"-s {name}={text}: not a number; give one, as in the file: {default!r}")
    if not isinstance(value, (bool, int, float, str)) or _family(value) != _family(default):
        raise CommandLineError(f"-s {name}={text}: wants {_family(default)}, as in the file: {default!r}")
    return value


def parameters(section: Node | None, overrides: Mapping[str, Any], findings: Findings) -> Parameters:
    """The `params:` section with `overrides` (`-s`) put in. An unknown or ill-typed override is a `CommandLineError`."""
    found, broken = Parameters(), set()
    for name, (key, node) in section.value.items() if section is not None else ():
        if not _PARAMETER.match(f"${name}"):
            findings.add(key, f"parameter {name!r} cannot be used as ${name}; a name has letters, digits and _, and starts with a letter", "name")
        elif node.value is BROKEN:
            broken.add(name)
        elif not isinstance(node.value, (bool, int, float, str)):
            findings.add(node, f"parameter {name!r} must be a number, a text, or true or false, not {node.kind}", "type")
            broken.add(name)
        elif isinstance(node.value, float) and node.value != node.value:
            findings.add(node, f"parameter {name!r} is not a number (.nan); give a number", "nan")
            broken.add(name)
        else:
            found.values[name] = node.value
    found.broken = frozenset(broken)
    for name, text in overrides.items():
        if name in broken:
            continue
        if name not in found.values:
            known = hint(name, found.values) or "; the file has no params"
            raise CommandLineError(f"-s {name}={text}: the pipeline has no parameter {name!r}{known}")
        found.values[name] = override(name, text, found.values[name])
    found.overridden = frozenset(overrides)
    return found


def substitute(node: Node, known: Parameters, findings: Findings) -> None:
    """Put parameters in place of `$name`, everywhere below `node`. `$$` at the start of a text stands for `$`."""
    value = node.value
    if isinstance(value, dict):
        for item in value.values():
            substitute(item.value, known, findings)
    elif isinstance(value, list):
        for child in value:
            substitute(child, known, findings)
    elif isinstance(value, str) and "$" in value:
        match = _PARAMETER.match(value)
        if match is None:
            inside = _PARAMETER_INSIDE.search(value)
            if inside is not None:
                node.value = BROKEN
                message = f"a parameter must be the whole value, as in `key: $name`, not a part of {value!r}; write $$ for a dollar sign"
                findings.add(node, message, "parameter")
            else:
                node.value = value.replace("$$", "$")
        elif match[1] in known.values:
            node.value, node.parameter = known.values[match[1]], match[1]
        else:
            node.value = BROKEN
            if match[1] not in known.broken:
                tail = hint(match[1], known.values) or "; add a section `params:`"
                findings.add(node, f"unknown parameter ${match[1]}{tail}", "parameter")


def plain(node: Node, findings: Findings) -> Any:
    """The value as plain Python data; BROKEN where a part of it is. NaN is a mistake."""
    value = node.value
    if isinstance(value, dict):
        out = {name: plain(item.value, findings) for name, item in value.items()}
        return BROKEN if any(v is BROKEN for v in out.values()) else out
    if isinstance(value, list):
        items = [plain(child, findings) for child in value]
        return BROKEN if any(v is BROKEN for v in items) else items
    if isinstance(value, float) and value != value:
        findings.add(node, "not a number (.nan); give a number", "nan")
        return BROKEN
    return value


def is_map(node: Node | None, what: str, findings: Findings) -> bool:
    """True if `node` is a map; else a mistake, unless it is broken or absent."""
    if node is None or node.value is BROKEN:
        return False
    if not isinstance(node.value, dict):
        findings.add(node, f"{what} must be a map (`key: value`), not {node.kind}", "type")
        return False
    return True


def text(node: Node | None, what: str, findings: Findings) -> str | None:
    """The text of a scalar; a mistake where it is something else."""
    if node is None or node.value is BROKEN:
        return None
    if not isinstance(node.value, str) or not node.value:
        number = "; quote it" if isinstance(node.value, (bool, int, float)) else ""
        findings.add(node, f"{what} must be a text, not {node.kind if node.value != '' else 'an empty one'}{number}", "type")
        return None
    return node.value


def known_keys(items: Mapping[str, Item], known: Iterable[str], what: str, findings: Findings) -> None:
    """Note every key that is not one of `known`."""
    words = tuple(known)
    for name, (key, _) in items.items():
        if name not in words:
            findings.add(key, f"{what} has no key {name!r}{hint(name, words)}", "unknown-key")


def check_name(name: str, key: Node, what: str, findings: Findings) -> bool:
    """True if `name` can name a task, a model or an output; else a mistake."""
    if NAME.match(name):
        return True
    findings.add(key, f"{what} cannot be called {name!r}; a name has {NAME_RULE}", "name")
    return False


def duration(value: Any) -> float | None:
    """Seconds of a duration such as `2 min`, or None where `value` is none."""
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None or match[2] not in SECONDS or not float(match[1]) > 0:
        return None
    return float(match[1]) * SECONDS[match[2]]


def objective(node: Node | None, findings: Findings) -> tuple[str, dict[str, float]]:
    """(what to minimize, constraints) of the `objective:` section.

    What to minimize is a goal (`energy`), or weights as a text (`time=0.5,energy=0.5`). Constraints: `deadline_seconds`.
    """
    if node is None or node.value is BROKEN:
        return "time", {}
    if not isinstance(node.value, dict):
        return _goal(node, findings), {}
    items = node.value
    if items and not items.keys() & {"minimize", "deadline"} and (len(items) > 1 or items.keys() & set(OBJECTIVES)):
        return _weights(node, findings), {}
    known_keys(items, ("minimize", "deadline"), "objective", findings)
    if "minimize" not in items:
        findings.add(node, f"objective needs the key 'minimize'; write one of {', '.join(OBJECTIVES)}", "missing-key")
        goal = "time"
    else:
        wanted_node = items["minimize"].value
        goal = _weights(wanted_node, findings) if isinstance(wanted_node.value, dict) else _goal(wanted_node, findings)
    limits: dict[str, float] = {}
    if "deadline" in items and items["deadline"].value.value is not BROKEN:
        seconds = duration(items["deadline"].value.value)
        if seconds is None:
            wanted = f"a positive number and a unit ({', '.join(SECONDS)}), such as 2 min"
            findings.add(items["deadline"].value, f"deadline wants {wanted}, got {items['deadline'].value.kind}", "objective")
        else:
            limits["deadline_seconds"] = seconds
    return goal, limits


def _goal(node: Node, findings: Findings) -> str:
    if node.value is BROKEN or node.value in OBJECTIVES:
        return node.value if node.value is not BROKEN else "time"
    shown = node.value if isinstance(node.value, str) else ""
    findings.add(node, f"unknown objective {node.kind}{hint(shown, OBJECTIVES)}", "objective")
    return "time"


def _weights(node: Node, findings: Findings) -> str:
    """Weights of goals (`{time: 0.5, energy: 0.5}`) as a text; those of 0 are left out."""
    items = node.value
    known_keys(items, OBJECTIVES, "a weighted objective", findings)
    found: dict[str, float] = {}
    for name in OBJECTIVES:
        weight = items[name].value if name in items else None
        if weight is None or weight.value is BROKEN:
            continue
        if isinstance(weight.value, bool) or not isinstance(weight.value, (int, float)) or not 0 <= weight.value < math.inf:
            findings.add(weight, f"the weight of {name} must be a number from 0 on, got {weight.kind}", "objective")
        else:
            found[name] = float(weight.value)
    if not any(found.values()) and found.keys() == items.keys():
        findings.add(node, "a weighted objective wants a weight above 0, such as {time: 0.5, energy: 0.5}", "objective")
    return ",".join(f"{name}={weight!r}" for name, weight in found.items() if weight) or "time"
