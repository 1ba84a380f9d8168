"""Made-up data, labelled as such: for timing, and where no real data may be shipped."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes, Composite, Scene

if TYPE_CHECKING:
    from hetsched.graph.graph import Builder, Value

MAX_ELEMENTS = 1 << 33


def _expand_synthetic(builder: Builder, inputs: Mapping[str, Any], a: Attributes, scene: Scene) -> dict[str, Value]:
    rows, shape, classes, seed = a["rows"], a["shape"], a["classes"], a["seed"]
    if rows * math.prod(shape) > MAX_ELEMENTS or classes * math.prod(shape) > MAX_ELEMENTS:
        raise GraphError(f"option 'rows': {rows} rows of {list(shape)} in {classes} classes are more than {MAX_ELEMENTS} numbers; make less")
    if classes > rows:
        raise GraphError(f"option 'classes': {classes} classes need at least as many rows, got {rows}")
    order = builder.op("random.permutation", name="order", n=rows, seed=seed)
    in_turn = builder.constant(np.arange(rows, dtype=np.int64) % classes, "labels_in_turn")
    y = builder.op("tensor.gather", in_turn, order, name="y")
    centers = builder.op("random.normal", name="centers", shape=(classes, *shape), std=a["spread"], seed=seed)
    noise = builder.op("random.normal", name="noise", shape=(rows, *shape), seed=seed)
    around = builder.op("tensor.gather", centers, y, name="around")
    return {"x": builder.op("tensor.add", around, noise, name="x"), "y": y}


SYNTHETIC = Composite(
    "data.synthetic",
    (),
    ("x", "y"),
    _expand_synthetic,
    attributes={
        "rows": Attribute(int, doc="how many rows", low=1),
        "shape": Attribute("ints", doc="the shape of a row", low=1),
        "classes": Attribute(int, 10, "how many labels", low=1),
        "spread": Attribute(float, 1.0, "how far the centers of the classes lie apart; the noise around them is 1", low=0.0),
        "seed": Attribute(int, 0, "of the random numbers", low=0),
    },
    doc="""Made-up rows for a classifier: normal noise around one center a class. x float32 [rows, *shape], y int64 [rows].

    Every class has equally many rows (to within one). For timing and tests; what is learned from it says nothing about real data.""",
)
