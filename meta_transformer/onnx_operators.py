"""What ONNX makes of operators that its exporter lacks, or translates for sizes of one kind alone.

Only `export_onnx` imports this module: it needs onnxscript.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import BOOL, FLOAT, INT64, opset18, script
from onnxscript.values import Opset

from . import geometry  # noqa: F401  # registers the operators

__all__ = ["TRANSLATIONS"]

op: Any = opset18
_DOMAIN = Opset("meta_transformer", 1)
_INFINITY = float("inf")


def _floor_divide(number: INT64, divisor: INT64) -> INT64:
    """Python's `//`. The exporter's own rounds to zero, so that `-(-size // patch)` would not count the last patch."""
    return op.Div(op.Sub(number, op.Mod(number, divisor)), divisor)


@script(_DOMAIN, default_opset=op)
def _farthest_points(points: FLOAT, mask: BOOL, start: INT64, count: INT64) -> INT64:
    """As `geometry._farthest_points_in_torch`: of equally far points, `ArgMax` gives the first."""
    nearest = op.Where(mask, _INFINITY, -1.0)
    last = op.Unsqueeze(start, [1])
    chosen = op.Slice(last, [0], [0], [1])
    for _ in range(count):  # ty: ignore[invalid-argument-type]  # it is the count of a Loop
        chosen = op.Concat(chosen, last, axis=1)
        offsets = points - op.Unsqueeze(op.GatherND(points, last, batch_dims=1), [1])
        x, y, z = op.Split(offsets * offsets, axis=2, num_outputs=3)
        nearest = op.Min(nearest, op.Squeeze(x + y + z, [2]))
        last = op.ArgMax(nearest, axis=1)
    return chosen


@script(_DOMAIN, default_opset=op)
def _nearest_points(centres: FLOAT, points: FLOAT, mask: BOOL, count: INT64) -> INT64:
    """As `geometry._nearest_points_in_torch`: of equally near points, `TopK` gives those that come first."""
    real = op.Where(op.Unsqueeze(mask, [2]), points, _INFINITY)
    x, y, z = op.Split(centres, axis=2, num_outputs=3)  # each (batch, centres, 1)
    u, v, w = op.Split(op.Transpose(real, perm=[0, 2, 1]), axis=1, num_outputs=3)  # each (batch, 1, points)
    squares = (x - u) * (x - u) + (y - v) * (y - v) + (z - w) * (z - w)
    distances, nearest = op.TopK(squares, op.Reshape(count, [1]), axis=2, largest=0)
    first = op.Slice(nearest, [0], [1], [2])
    return op.Where(op.IsInf(distances), first, nearest)


#: From operators in a program to functions that build their graph, as `torch.onnx.export` takes them.
TRANSLATIONS: dict[Callable, Callable] = {
    operator.floordiv: _floor_divide,
    torch.ops.meta_transformer.farthest_points.default: _farthest_points,
    torch.ops.meta_transformer.nearest_points.default: _nearest_points,
}
