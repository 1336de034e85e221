"""Sensitivity of each part of a model to the precisions int8 and w8.

One part at a time gets the lower precision and the rest stays fp32; the change of the outputs is what this part costs.
`precision` puts the costliest parts back to fp32 first.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from pipeline.config import Precision
from pipeline.export.parity import outputs, runner
from pipeline.export.sample import Floats, Sample

SCAN_INPUTS = 48
"""Number of inputs on which each part is measured, of lengths spread from the shortest to the longest."""

Build = Callable[[Precision, Sequence[str]], onnx.ModelProto]
"""build(precision, keep) makes the graph in this precision, with the parts named in `keep` in fp32."""


def scan(
    build: Build, precision: Precision, parts: Sequence[str], sample: Sample, fp32: Floats, threads: int
) -> dict[str, float]:
    """Each part with the mean change of an output when that part alone is in a lower precision.

    Args:
        precision: int8 or w8.
        parts: names of all parts of the model, see `GraphShape.parts`.
        fp32: the outputs of all the sample's inputs, (inputs,) or (inputs, dimensions).

    Returns:
        Part → mean |change| of a ranker's scores, or mean distance between an encoder's unit vectors before and after.
        A cosine with another unit vector changes by at most this distance.
    """
    indices = sample.spread(SCAN_INPUTS)
    inputs = [sample.inputs[index] for index in indices]
    costs = {}
    for part in parts:
        model = build(precision, [other for other in parts if other != part])
        costs[part] = change(outputs(runner(model.SerializeToString()), inputs, threads), fp32[indices])
    return costs


def change(ours: Floats, theirs: Floats) -> float:
    """Mean |difference| of scores, (inputs,), or mean distance of vectors, (inputs, dimensions)."""
    gap = np.abs(ours - theirs) if ours.ndim == 1 else np.linalg.norm(ours - theirs, axis=1)
    return float(gap.mean())
