"""The JSON Schema of pipeline files (`hetsched schema`), for editors: the shape from pydantic models, inputs and options from the ops.

It accepts every valid pipeline; what needs more than shapes (names that exist, cycles, files) is left to `hetsched check`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from hetsched.graph.op import REQUIRED, Attribute, Composite, Op
from hetsched.pipeline import devices
from hetsched.pipeline.document import fixed_inputs
from hetsched.pipeline.values import SECONDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
PARAMETER = {"type": "string", "pattern": r"^\$[A-Za-z_][A-Za-z0-9_]*$", "description": "a parameter of the section `params:`"}

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$")]
ParameterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
ArgumentName = ParameterName
ParameterUse = Annotated[str, StringConstraints(pattern=r"^\$[A-Za-z_][A-Za-z0-9_]*$")]
Edge = Annotated[str, StringConstraints(pattern=r"^[^.]+(\..+)?$"), Field(description="`task.output`, or `task` where it has one output")]
Pattern = Annotated[str, Field(description="any, cpu, gpu, cuda[:N], opencl[:N], ...")]
Goal = Literal["time", "latency", "energy", "price"]
Weight = Annotated[float, Field(ge=0)] | ParameterUse


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Weights(_Part):
    """A weighted sum of goals, each as a share of what the plan for time costs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})
    time: Weight | None = None
    latency: Weight | None = None
    energy: Weight | None = None
    price: Weight | None = None


class Objective(_Part):
    """What the plan is to minimize, and within which limits."""

    minimize: Goal | ParameterUse | Weights
    deadline: Annotated[str, StringConstraints(pattern=rf"^([0-9]+(\.[0-9]*)?\s*({'|'.join(SECONDS)})|\$[A-Za-z_][A-Za-z0-9_]*)$")] | None = None


class Exclusion(_Part):
    """Every device but these."""

    exclude: Pattern | list[Pattern] = Field(alias="not")


class Together(_Part):
    """The device of another task."""

    same_as: str


class Task(_Part):
    """One use of an op."""

    op: str
    inputs: dict[str, Edge | list[Edge]] = Field({}, alias="in", description="input of the op -> `task.output`")
    options: dict[str, Any] = Field({}, alias="with", description="options of the op")
    device: Pattern | Annotated[list[Pattern], Field(min_length=1)] | Exclusion | Together = Field("any", description="where it may run")
    after: str | list[str] = Field([], description="tasks to wait for without reading their outputs")


class Branch(_Part):
    """Tasks that run where the condition of an if says so, and what they give; they may read tasks around the if."""

    tasks: dict[Name, Task | If] = {}
    outputs: Annotated[dict[Name, Edge], Field(min_length=1)] = Field(description="name -> `task.output`; the same names in both branches")


class If(_Part):
    """One of two branches, as a value says."""

    condition: Edge = Field(alias="if", description="a scalar of bool or of an integer dtype")
    then: Branch
    otherwise: Branch = Field(alias="else")
    likelihood: Annotated[float, Field(ge=0, le=1)] | ParameterUse | None = Field(None, description="how often the condition is true, for the plan")
    device: Pattern | Annotated[list[Pattern], Field(min_length=1)] | Exclusion = Field("any", description="where its tasks may run")
    after: str | list[str] = Field([], description="tasks to wait for without reading their outputs")


class Output(_Part):
    """A value to keep, and the file to save it in."""

    source: Edge = Field(alias="from")
    save: str | None = Field(None, description="a path relative to this file; .safetensors, .json, .csv, .npz or .npy")


class Model(_Part):
    """A neural network: the shape of one row, and layers."""

    input: list[int | ParameterUse] | ParameterUse
    layers: list[Any]
    dtype: Literal["float32", "float64"] | ParameterUse = "float32"


class SourceFile(_Part):
    """Source text in a file of its own."""

    file: str


class Cost(_Part):
    """What a launch costs."""

    flops: str | float | None = None
    bytes: str | float | None = None


class Kernel(_Part):
    """A kernel of the user's own; needs consent."""

    arguments: Annotated[dict[ArgumentName, str], Field(min_length=1)] = Field(description="in the order of the function's parameters")
    cuda: str | SourceFile | None = None
    opencl: str | SourceFile | None = None
    function: str | None = None
    size: str | int | Annotated[list[str | int], Field(min_length=1, max_length=3)] = Field(description="work items along each axis, expressions")
    group: int | list[int] | None = None
    cost: Cost | None = None
    check: str | None = Field(None, description="an op that computes the same")
    doc: str | None = None


class Pipeline(_Part):
    """A pipeline of hetsched."""

    hetsched: Literal[1] = Field(description="version of this format")
    name: str | None = None
    params: dict[ParameterName, bool | int | float | str] = {}
    objective: Goal | ParameterUse | Objective | Weights = "time"
    models: dict[Name, Model] = {}
    tasks: Annotated[dict[Name, Task | If], Field(min_length=1)]
    outputs: dict[Name, Output] = {}
    kernels: dict[Name, Kernel] = Field({}, description="own kernels, ops called kernels.NAME; needs consent")


def schema(registry: Mapping[str, Op | Composite] | None = None) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a pipeline whose ops are those of `registry`, by default all there are."""
    if registry is None:
        from hetsched.graph.ops import registry as every_op

        registry = every_op()
    out = _tidied(Pipeline.model_json_schema(by_alias=True))
    assert isinstance(out, dict)
    definitions = out["$defs"]
    definitions["Parameter"] = PARAMETER
    task = definitions["Task"]
    own = {"type": "string", "pattern": r"^kernels\.[A-Za-z_][A-Za-z0-9_-]*$"}
    task["properties"]["op"] = {"anyOf": [{"enum": sorted(registry)}, own], "description": "what to compute; `hetsched ops` describes them"}
    task["allOf"] = [
        {"if": {"properties": {"op": {"const": name}}, "required": ["op"]}, "then": _of_op(op)} for name, op in sorted(registry.items())
    ]  # fmt: skip
    kinds = "|".join(devices.kinds())
    _set_patterns(definitions, rf"^(({kinds})(:[A-Za-z0-9_.-]+)?|\$[A-Za-z_][A-Za-z0-9_]*)$")
    return {"$schema": DIALECT, **out}


def _tidied(node: Any) -> Any:
    """Without nulls (absent keys stand for None in pydantic) and defaults of empty maps; names that break the pattern are refused."""
    if isinstance(node, dict):
        kept = {k: _tidied(v) for k, v in node.items() if k != "default" or not isinstance(v, (dict, list, type(None)))}
        if "patternProperties" in kept:
            kept.setdefault("additionalProperties", False)
        options = kept.get("anyOf")
        if isinstance(options, list) and {"type": "null"} in options:
            options = [o for o in options if o != {"type": "null"}]
            rest = {k: v for k, v in kept.items() if k != "anyOf"}
            return {**rest, **options[0]} if len(options) == 1 else {**rest, "anyOf": options}
        return kept
    return [_tidied(v) for v in node] if isinstance(node, list) else node


def _set_patterns(node: Any, pattern: str) -> None:
    """Give every device pattern below `node` the regular expression of the kinds that exist here."""
    if isinstance(node, dict):
        if str(node.get("description", "")).startswith("any, cpu, gpu"):
            node["pattern"] = pattern
        for value in node.values():
            _set_patterns(value, pattern)
    elif isinstance(node, list):
        for value in node:
            _set_patterns(value, pattern)


def _of_op(op: Op | Composite) -> dict[str, Any]:
    """What a task must look like that uses `op`."""
    marks = fixed_inputs(op)
    edge: dict[str, Any] = {"type": "string"}
    many = {"anyOf": [edge, {"type": "array", "items": edge}]}
    needed_inputs = [name for name, mark in marks.items() if not mark]
    hidden = {"key"} if isinstance(op, Op) and op.random else set()
    attributes = {name: a for name, a in op.attributes.items() if name not in hidden}
    needed_options = [name for name, a in attributes.items() if a.default is REQUIRED]
    inputs = {"properties": {name: many if mark == "*" else edge for name, mark in marks.items()}, "additionalProperties": False}
    options = {"properties": {name: _of_attribute(a) for name, a in attributes.items()}, "additionalProperties": False}
    out: dict[str, Any] = {
        "properties": {
            "in": inputs | ({"required": needed_inputs} if needed_inputs else {}),
            "with": options | ({"required": needed_options} if needed_options else {}),
        }
    }
    needed = [*(["in"] if needed_inputs else []), *(["with"] if needed_options else [])]
    return out | ({"required": needed} if needed else {})


def _of_attribute(attribute: Attribute) -> dict[str, Any]:
    """The schema of an option's values; a parameter may stand for any."""
    limits = {k: v for k, v in (("minimum", attribute.low), ("maximum", attribute.high)) if v is not None}
    integer = {"type": "integer", **limits}
    kinds: dict[Any, dict[str, Any]] = {
        bool: {"type": "boolean"}, int: integer, float: {"type": "number", **limits}, str: {"type": "string"}, "path": {"type": "string"},
        "ints": {"anyOf": [integer, {"type": "array", "items": {"anyOf": [integer, {"$ref": "#/$defs/Parameter"}]}}]}, "any": {},
    }  # fmt: skip
    own = {"enum": list(attribute.kind)} if isinstance(attribute.kind, tuple) else kinds.get(attribute.kind, {})
    choices = [own, {"$ref": "#/$defs/Parameter"}]
    if attribute.optional or attribute.default is None:
        choices.append({"type": "null"})
    out = {"anyOf": choices} if own else {}
    return {**out, **({"description": attribute.doc} if attribute.doc else {})}
