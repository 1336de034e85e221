"""Sensitivity of each part of a model to whole numbers: the rest stays fp32, and the outputs are held against
fp32's. The parts that suffer most are the first to go back."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from pipeline.config import Precision
from pipeline.export.parity import outputs, runner
from pipeline.export.sample import Floats, Sample

SCAN_INPUTS = 48
"""Inputs on which each part is looked at, from the shortest to the longest."""

Build = Callable[[Precision, Sequence[str]], onnx.ModelProto]
"""build(precision, keep) writes the graph with the parts named in `keep` in fp32."""


def scan(
    build: Build, precision: Precision, parts: Sequence[str], sample: Sample, fp32: Floats, threads: int
) -> dict[str, float]:
    """Each part with the mean change of an output when that part alone is in a lower precision.

    Args:
        precision: int8 or w8.
        parts: all of the model's, see `GraphShape.parts`.
        fp32: the outputs of all the sample's inputs, (inputs,) or (inputs, dimensions).

    Returns:
        Part → mean |score change| of a ranker; of an encoder, mean distance of a text's two unit vectors, which no
        cosine with it can change by more than.
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
