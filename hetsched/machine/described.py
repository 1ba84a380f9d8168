"""Machines described in YAML: read, written, and a small catalog.

A file is one map with the keys of `Machine`: `name`, `memories`, `resources`, `devices`, `links`, each of the last four a list of maps with the
fields of `MemoryNode`, `Resource`, `Device` and `Link`, and `hetsched_machine: 1`, the version of the format. What is left out has the default of
the class. Units are in the names: seconds, bytes, bytes per second, floating-point operations per second, watts; prices are per hour in a
currency of your own. Bytes may carry a unit: `24 GiB` (2**30) or `24 GB` (10**9). Figures of a device are those of one lane.
Every item, and the file, may have `sources`, field -> where the figure comes from, and the file `read`, the day on which the sources were read.
A source that says `unverified` was not read. Sources are not kept in the `Machine`; `hetsched.machine.named.sources_of` gives them.

    hetsched_machine: 1
    name: small
    memories: [{name: host, nbytes: 16 GiB}]
    devices:
      - {id: cpu, kind: cpu, lanes: 4, languages: [host, array], flops_per_second: {float32: 9e10}, bytes_per_second: 1e10}

Mistakes raise `MachineError`, all at once, each with file, line, column, key, the value seen and the words allowed. Aliases, tags, duplicate keys and
several documents are refused. Importing this module loads pydantic and PyYAML; nothing else of hetsched does so for machines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from hetsched.errors import FileError, MachineError, did_you_mean
from hetsched.machine.machine import Device, Link, Machine, MemoryNode, Resource, Where, faults

VERSION = 1
MOST_BYTES = 1 << 20
MOST_DEPTH = 12
# Of a device: every lane is a row of a plan.
MOST_LANES = 4096
CATALOG = Path(__file__).with_name("catalog")

M = TypeVar("M", bound=BaseModel)


class _Place(NamedTuple):
    """In a file; both from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


class _Places(NamedTuple):
    """Where keys and values of a file stand."""

    keys: dict[Where, _Place]
    values: dict[Where, _Place]

    def of(self, where: Where, *, key: bool = False) -> _Place:
        """The place of a value (of a key), or of the nearest thing around it that is there."""
        if key and where in self.keys:
            return self.keys[where]
        return next((self.values[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.values), _Place(1, 1))


_UNITS = {"": 1, "b": 1, **{f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)}, **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)}}


def read_machine(path: str | Path) -> Machine:
    """The machine that the file describes. Raises `FileError` where it cannot be read, `MachineError` with every mistake."""
    path = Path(path)
    model, places = _read(path, _MachineModel, _model_at)
    devices = tuple(Device(**_given(d)) for d in model.devices)
    links = tuple(Link(**_given(x)) for x in model.links)
    memories = tuple(MemoryNode(**_given(m)) for m in model.memories)
    resources = tuple(Resource(**_given(r)) for r in model.resources)
    found = faults(devices, links, memories, resources)
    if found:
        at = sorted((places.of(fault.where, key=fault.where[-2:-1] == ("uses",)), fault.text) for fault in found)
        raise MachineError([f"{path}:{place}: {text}" for place, text in at])
    return Machine(devices, links, memories, resources, model.name, model.price_per_hour)


def machine_sources(path: str | Path) -> tuple[str, dict[str, str]]:
    """(the day on which the sources were read, or "", item.field -> source) of a described machine; links by `src->dst`."""
    model = validated(Path(path), _MachineModel, _model_at)
    found = dict(model.sources)
    for items, key in ((model.memories, "name"), (model.resources, "name"), (model.devices, "id")):
        for item in items:
            found |= {f"{getattr(item, key)}.{field}": text for field, text in item.sources.items()}
    for link in model.links:
        found |= {f"{link.src}->{link.dst}.{field}": text for field, text in link.sources.items()}
    return model.read or "", found


def validated(path: Path, model: type[M], model_at: Callable[[Where], type[BaseModel]]) -> M:
    """The YAML file at `path` as a `model`. `model_at`: the model of the map at a place, to tell its words.

    Raises `FileError` where it cannot be read, `MachineError` with every mistake.
    """
    return _read(path, model, model_at)[0]


def _read(path: Path, model: type[M], model_at: Callable[[Where], type[BaseModel]]) -> tuple[M, _Places]:
    try:
        text = path.read_bytes()[: MOST_BYTES + 1]
    except OSError as error:
        raise FileError(f"cannot read the machine {path}: {error.strerror or error}") from error
    if len(text) > MOST_BYTES:
        raise MachineError(f"{path}: a machine takes at most {MOST_BYTES} bytes")
    data, places = _parsed(text, path)
    if not isinstance(data, dict):
        seen = "an empty file" if data is None else "a list" if isinstance(data, list) else repr(data)
        required = [f"`{name}:`" for name, field in model.model_fields.items() if field.is_required()]
        raise MachineError(f"{path}:{places.of(())}: a description is a map (`key: value`) with at least {' and '.join(required)}, not {seen}")
    try:
        return model.model_validate(data), places
    except ValidationError as error:
        told = sorted(_told(places, dict(e), model_at) for e in error.errors(include_url=False))
        raise MachineError([f"{path}:{place}: {text}" for place, text in told]) from error


def write_machine(machine: Machine, path: str | Path) -> None:
    """Write `machine` so that `read_machine` gives it back, equal. Defaults are left out. Raises `FileError` where the file cannot be written."""
    data: dict[str, Any] = {"hetsched_machine": VERSION, "name": machine.name}
    if machine.price_per_hour is not None:
        data["price_per_hour"] = machine.price_per_hour
    for key, items in (("memories", machine.memories), ("resources", machine.resources), ("devices", machine.devices), ("links", machine.links)):
        data[key] = [_plain(item) for item in items]
    try:
        Path(path).write_text(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=150), encoding="utf-8")
    except OSError as error:
        raise FileError(f"cannot write the machine {path}: {error.strerror or error}") from error


def machine_names() -> list[str]:
    """The machines of the catalog."""
    return sorted(p.stem for p in CATALOG.glob("*.yaml"))


def machine_named(name: str) -> Machine:
    """A machine of the catalog; an error with the nearest name where there is none."""
    if name not in machine_names():
        raise MachineError(f"no machine {name!r} in the catalog{did_you_mean(name, machine_names())}; or give the path of a .yaml file")
    return read_machine(CATALOG / f"{name}.yaml")


# The shape of a file --------------------------------------------------------------------------------------------------------------------


def _bytes(value: object) -> object:
    """`24 GiB` as a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", value.strip()) if isinstance(value, str) else None
    if found is None:
        return value
    scale = _UNITS.get(found[2].lower())
    if scale is None:
        raise ValueError(f"unknown unit {found[2]!r}{did_you_mean(found[2].lower(), [u for u in _UNITS if u])}")
    return int(float(found[1]) * scale)


def _dtypes(value: dict[str, float]) -> dict[str, float]:
    known = [np.dtype(kind).name for kind in "?bBhHiIlLefdFD"]
    for name in value:
        if name not in known:
            raise ValueError(f"unknown dtype {name!r}{did_you_mean(name, known)}")
    return value


Bytes: TypeAlias = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]
Rate: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]
Day: TypeAlias = Annotated[str, Field(pattern=r"^20\d\d-[01]\d-[0-3]\d$")]
Flops: TypeAlias = Annotated[dict[str, Rate], AfterValidator(_dtypes)]
Language: TypeAlias = Literal["host", "array", "cuda", "opencl"]
Hardware: TypeAlias = Literal["cpu", "gpu", "accelerator"]


class Model(BaseModel):
    """A map of a file: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sourced(Model):
    """A map whose figures have sources, by field."""

    sources: dict[str, str] = {}


class Dated(Sourced):
    """A file with the day on which its sources were read."""

    read: Day | None = None


class _MemoryModel(Sourced):
    name: Name
    nbytes: Bytes | None = None


class _ResourceModel(Sourced):
    name: Name
    capacity: Amount


class _LinkModel(Sourced):
    src: Name
    dst: Name
    latency_seconds: Amount = 10e-6
    bytes_per_second: Rate = 10e9
    engines: Annotated[int, Field(ge=0)] = 1


class _DeviceModel(Sourced):
    id: Name
    kind: Name
    lanes: Annotated[int, Field(ge=1, le=MOST_LANES)] = 1
    io_lanes: Annotated[int, Field(ge=0, le=MOST_LANES)] = 0
    memory: Name = "host"
    name: str = ""
    hardware: Hardware = "cpu"
    languages: tuple[Language, ...] = ("array",)
    flops_per_second: Flops = {}
    bytes_per_second: Rate = 10e9
    launch_seconds: Amount = 2e-6
    replay_seconds: Amount | None = None
    crossing_seconds: Amount = 0.0
    shares_lanes: bool = False
    widths: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    uses: dict[str, Amount] = {}
    busy_watts: Amount | None = None
    idle_watts: Amount | None = None
    price_per_hour: Amount | None = None
    unified: bool = False
    always_on: bool = True
    cache_nbytes: Bytes | None = None
    caches: Annotated[int, Field(ge=1)] = 1
    lane_cache_nbytes: Bytes | None = None

    @field_validator("caches")
    @classmethod
    def _has_lanes_for_them(cls, caches: int, info: ValidationInfo) -> int:
        lanes = info.data.get("lanes", 1)
        if caches > lanes:
            raise ValueError(f"{caches} last caches for {lanes} lanes: a cache has at least one lane; correct one of them")
        return caches

    @field_validator("lane_cache_nbytes")
    @classmethod
    def _is_below_the_last(cls, nbytes: int | None, info: ValidationInfo) -> int | None:
        last = info.data.get("cache_nbytes")
        if nbytes is not None and last is not None and nbytes > last:
            raise ValueError(f"a lane's own cache of {nbytes:,} bytes below a last cache of {last:,} holds no more than that; correct one of them")
        return nbytes

    @field_validator("idle_watts")
    @classmethod
    def _is_not_above_busy(cls, idle: float | None, info: ValidationInfo) -> float | None:
        busy, lanes = info.data.get("busy_watts"), info.data.get("lanes", 1)
        if idle is not None and busy is not None and idle > busy * lanes:
            raise ValueError(
                f"a device draws no more idle ({idle:g} W) than with all {lanes} lanes at work ({busy * lanes:g} W); correct one of them"
            )
        return idle


class _MachineModel(Dated):
    hetsched_machine: Literal[1]
    name: Name = "machine"
    price_per_hour: Amount | None = None
    memories: tuple[_MemoryModel, ...] = (_MemoryModel(name="host"),)
    resources: tuple[_ResourceModel, ...] = ()
    devices: tuple[_DeviceModel, ...]
    links: tuple[_LinkModel, ...] = ()


_ITEMS: Mapping[str, type[BaseModel]] = {"memories": _MemoryModel, "resources": _ResourceModel, "devices": _DeviceModel, "links": _LinkModel}


def _model_at(where: Where) -> type[BaseModel]:
    return _ITEMS.get(str(where[0]), _MachineModel) if len(where) > 1 else _MachineModel


def _given(model: Sourced) -> dict[str, Any]:
    return model.model_dump(exclude={"sources"}, exclude_unset=True)


def _plain(item: Any) -> dict[str, Any]:
    """The fields of a part of a machine that differ from their defaults, as YAML can write them."""
    out: dict[str, Any] = {}
    for f in fields(item):
        if f.name in ("fingerprint", "stands_for"):  # of the device found here, or of one in software; not of a description
            continue
        value = getattr(item, f.name)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if value != default:
            out[f.name] = dict(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
    return out


# What YAML calls the kinds that pydantic misses.
_WORDS = {"tuple_type": "a list", "model_type": "a map (`key: value`)", "dict_type": "a map (`key: value`)", "string_type": "a text"}


def _told(places: _Places, error: dict[str, Any], model_at: Callable[[Where], type[BaseModel]]) -> tuple[_Place, str]:
    """One mistake that pydantic found: its place, and a sentence."""
    where: Where = tuple(k for k in error["loc"] if k != "[key]")
    key = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in where).lstrip(".")
    kind, context = error["type"], error.get("ctx", {})
    seen = error.get("input")
    if kind == "extra_forbidden":
        text = f"unknown key {str(where[-1])!r}{did_you_mean(str(where[-1]), model_at(where).model_fields)}"
    elif kind == "missing":
        text = f"{key!r} is missing; give it"
    elif kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", context.get("expected", "")) or [str(context.get("expected", ""))]
        text = f"{key}: {seen!r} is not allowed{did_you_mean(str(seen), allowed)}"
    elif kind == "value_error":
        text = f"{key}: {context.get('error')}"
    elif kind in _WORDS:
        text = f"{key} must be {_WORDS[kind]}, got {'nothing' if seen is None else repr(seen)}"
    else:
        wanted = error["msg"][0].lower() + error["msg"][1:]
        text = f"{key}: {wanted}, got {seen!r}"
    return places.of(where, key=kind == "extra_forbidden"), text


# YAML -----------------------------------------------------------------------------------------------------------------------------------


def _parsed(text: bytes, path: Path) -> tuple[Any, _Places]:
    """The data of a file and the place of every key and value. Works on events, so that neither depth nor aliases can hurt."""
    places = _Places({}, {})
    try:
        events = _Events(yaml.parse(text, Loader=yaml.SafeLoader), path)
        data = _node(events, (), places)
        after = events.take()
        if after is not None:
            raise MachineError(f"{path}:{_place(after.start_mark)}: a machine is one document; remove what follows '---'")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise MachineError(f"{path}:{_place(mark)}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MachineError(f"{path}: not a text in UTF-8 that YAML allows: {' '.join(str(error).split())}") from error
    return data, places


class _Events:
    """The events of one document."""

    def __init__(self, events: Iterator[Any], path: Path) -> None:
        self.events, self.path = events, path

    def take(self) -> Any:
        """The next event that says something, None at the end; refuses aliases and tags."""
        silent = (yaml.StreamStartEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent, yaml.StreamEndEvent)
        event = next((e for e in self.events if not isinstance(e, silent)), None)
        if event is None:
            return None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self.mistake(event, "anchors and aliases are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            raise self.mistake(event, f"tags are not allowed, got {event.tag!r}; remove it")
        return event

    def mistake(self, event: Any, text: str) -> MachineError:
        """An error at the place of an event."""
        return MachineError(f"{self.path}:{_place(event.start_mark)}: {text}")


def _place(mark: Any) -> _Place:
    return _Place(int(mark.line) + 1, int(mark.column) + 1) if mark is not None else _Place(1, 1)


def _node(events: _Events, where: Where, places: _Places, event: Any = None) -> Any:
    event = event if event is not None else events.take()
    if event is None:
        return None  # an empty file
    places.values[where] = _place(event.start_mark)
    if len(where) > MOST_DEPTH:
        raise events.mistake(event, f"nested more than {MOST_DEPTH} deep; a machine is flatter")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event.value) if event.implicit[0] else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        items: list[Any] = []
        while not isinstance(event := events.take(), yaml.SequenceEndEvent):
            items.append(_node(events, (*where, len(items)), places, event))
        return items
    if isinstance(event, yaml.MappingStartEvent):
        found: dict[str, Any] = {}
        while not isinstance(event := events.take(), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise events.mistake(event, "a key must be a word, not a list or a map")
            if event.value in found:
                raise events.mistake(event, f"key {event.value!r} stands twice; remove one")
            places.keys[*where, event.value] = _place(event.start_mark)
            found[event.value] = _node(events, (*where, event.value), places)
        return found
    raise events.mistake(event, "a map, a list or a value was expected")


def _scalar(text: str) -> Any:
    """A plain scalar by the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): `1e-3` is a number, `no` a text."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text[0] in "tT"
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return float(text)
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes texts that would be read as something else by YAML 1.2, which PyYAML does not follow (`1e3`)."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if isinstance(_scalar(text), str) else '"')


_Dumper.add_representer(str, _text)
