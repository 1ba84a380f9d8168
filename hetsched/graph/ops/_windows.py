"""What convolution and pooling share: batches of images, windows that slide over them, and the texts of their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from hetsched.errors import GraphError
from hetsched.graph.op import Attribute, Attributes
from hetsched.graph.spec import AnySpec, Spec

Pair: TypeAlias = tuple[int, int]

STRIDE = Attribute("ints", (1,), "steps of the window: one number, or rows and columns", low=1)
PADDING = Attribute("any", 0, "zeros around each image: a number, (rows, columns), 'valid' (none), or 'same' (the extents stay; stride 1 only)")
DILATION = Attribute("ints", (1,), "steps between the elements of a window", low=1)


def pair(values: Sequence[int], name: str) -> Pair:
    """(rows, columns) of one number or two."""
    if len(values) not in (1, 2):
        raise GraphError(f"{name} wants one number or two (rows, columns), got {tuple(values)}")
    return int(values[0]), int(values[-1])


def paddings(padding: Any, kernel: Pair, stride: Pair, dilation: Pair = (1, 1)) -> tuple[Pair, Pair]:
    """((above, below), (left, right)) of the attribute `padding`."""
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise GraphError(f"padding 'same' wants stride 1, got {stride}; give the padding in numbers")
        rows, columns = (kernel[0] - 1) * dilation[0], (kernel[1] - 1) * dilation[1]
        return (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)
    values = (padding,) if isinstance(padding, int) and not isinstance(padding, bool) else padding
    if not isinstance(values, (tuple, list)) or not all(type(v) is int and v >= 0 for v in values):
        raise GraphError(f"padding wants 'same', 'valid', or whole numbers of at least 0, got {padding!r}")
    up, left = pair(values, "padding")
    return (up, up), (left, left)


def output_extent(extent: int, kernel: int, stride: int, dilation: int, padding: int) -> int:
    """Windows that fit along one axis; `padding` is the sum of both sides. Dumoulin & Visin 2016 (arXiv:1603.07285), relationship 15."""
    return (extent + padding - dilation * (kernel - 1) - 1) // stride + 1


def want_images(spec: AnySpec, name: str, problems: list[str]) -> bool:
    """True if `spec` is a batch of images with known extents; what is wrong otherwise is added to `problems`."""
    if not isinstance(spec, Spec) or spec.ndim != 4:
        problems.append(f"{name} must have 4 axes (images, channels, rows, columns), got {spec!r}")
        return False
    if Spec(spec.shape[1:], spec.dtype).is_bounded:
        problems.append(f"only the number of images of {name} may be bounded, got {spec!r}")
        return False
    if spec.dtype.kind != "f":
        problems.append(f"{name} must be of a floating dtype, got {spec!r}; convert it with tensor.cast")
    return True


def extents(size: Sequence[int], kernel: Sequence[int], a: Attributes, problems: list[str], word: str = "window") -> Pair | None:
    """Rows and columns of the output for images of `size`, or None and what is wrong in `problems`. `word`: what errors call the window."""
    try:
        window, stride, dilation = pair(kernel, word), pair(a["stride"], "stride"), pair(a.get("dilation", (1,)), "dilation")
        pads = paddings(a["padding"], window, stride, dilation)
    except GraphError as error:
        problems += error.problems
        return None
    out, before = [], len(problems)
    for axis, extent, k, s, d, pad in zip(("rows", "columns"), size, window, stride, dilation, pads, strict=True):
        if k < 1:
            problems.append(f"a {word} needs at least 1 of {axis}, got {window}")
            continue
        out.append(output_extent(extent, k, s, d, sum(pad)))
        if out[-1] < 1:
            seen = f"{extent} {axis} with padding {pad[0]} + {pad[1]} are fewer than the {d * (k - 1) + 1} a {word} covers"
            problems.append(f"{seen}; use a smaller {word} or more padding")
    return (out[0], out[1]) if len(problems) == before else None
