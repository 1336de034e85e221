"""The golden inputs of a bundle: this machine's outputs for them are held against those that were stored at export."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ArtifactError
from serving.errors import DeadlineError
from serving.runtime.deadline import Deadline
from serving.runtime.processor import Device

TOLERANCE: Mapping[str, float] = {"fp32": 1e-5, "fp16": 2e-2, "int8": 5e-2, "w8": 5e-2}
"""Largest distance of a golden output from the stored one, divided by (1 + its size): from PyTorch's output in fp32,
else from that at export. Another processor sums in another order; in int8 and w8 that moves some activations by one
step. An int8 product that overflows, or another model, is far beyond."""
CUDA_TOLERANCE = 2e-3
"""Minimum of the tolerance for golden outputs on CUDA, whose fp32 products may be computed in TF32."""

CHECK_S = 20.0
"""Seconds for the output of one golden input. A model that never comes back must be refused before the process, which
has lost a runner to it, is replaced: the next one would try the same release."""


def check(
    file: Path,
    output: Callable[[Mapping[str, Any], Deadline], NDArray[np.float32]],
    precision: str,
    device: Device,
) -> None:
    """Checks that a model gives its golden outputs on this machine.

    Args:
        file: golden.json of the bundle.
        output: a golden input → the model's output for it, of shape (1,) or (dimensions,).
        precision: the precision in which the model runs.
        device: the device that it runs on.

    Raises:
        ArtifactError: an output is too far from the stored one, or did not come within CHECK_S.
    """
    stored_in = "torch" if precision == "fp32" else precision
    tolerance = TOLERANCE[precision] if device == "cpu" else max(TOLERANCE[precision], CUDA_TOLERANCE)
    for number, item in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        try:
            computed = output(item, Deadline.after(CHECK_S))
        except DeadlineError as error:
            raise ArtifactError(
                f"{file}, item {number}: the model gave no output in {CHECK_S:g} s; serve another release"
            ) from error
        stored = np.array((item["scores"] if "scores" in item else item["vectors"])[stored_in])
        gap = float((np.abs(computed - stored) / (1 + np.abs(stored))).max())
        if not gap <= tolerance:
            raise ArtifactError(
                f"{file}, item {number}: {precision} on this {device} is {gap:.2g} from what was exported, more than "
                f"{tolerance}; export the model on such a machine, or serve another precision"
            )
