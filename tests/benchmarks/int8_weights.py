"""int8 weights of 64 steps against 127, on this processor: quality beside fp32 and speed, by turns.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.int8_weights WORKSPACE [--model FINGERPRINT] [--tokens 60000]

WORKSPACE holds a retraining or study that is done: its teacher, or another cross-encoder or encoder of it, is judged on
valid queries as every export is. Weights of 127 steps come twice: as int8, whose products a processor with AVX2 alone
cuts off, and as uint8 around 128, which ONNX Runtime multiplies exactly and more slowly on such a processor.
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx

from pipeline.export import graph, precision, quantisation
from pipeline.export.bundle import ExportSource
from pipeline.export.quantisation import Floats
from pipeline.models.int8_rounding import LARGEST_WEIGHT
from tests.benchmarks.judged_model import JudgedModel

VARIANTS = {"int8, 64 steps": (LARGEST_WEIGHT, False), "int8, 127 steps": (127, False), "uint8, 127 steps": (127, True)}
"""Name → the largest size of a weight, and whether it is stored as uint8 around 128."""


class _Writer(graph._Writer):
    """A writer whose weights are uint8 around 128."""

    def integers(self, name: str, matrix: Floats) -> tuple[str, str, str]:
        weight, scales = quantisation.weight_columns(matrix)
        return (
            self.constant(f"{name}.uint8", (weight.astype(np.int16) + 128).astype(np.uint8)),
            self.constant(f"{name}.scale", scales),
            self.constant(f"{name}.zero", np.full(len(scales), 128, np.uint8)),
        )


def written(source: ExportSource, name: str) -> onnx.ModelProto:
    """The int8 graph in one of the variants."""
    plain = graph._Writer
    largest, unsigned = VARIANTS[name]
    quantisation.LARGEST_WEIGHT = largest
    graph._Writer = _Writer if unsigned else plain  # type: ignore[misc]
    try:
        return source.graph("int8")
    finally:
        quantisation.LARGEST_WEIGHT, graph._Writer = LARGEST_WEIGHT, plain  # type: ignore[misc]


def main() -> None:
    model = JudgedModel.of_arguments((__doc__ or "").split("\n")[0])
    source = model.source
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"model.{number}.onnx" for number, name in enumerate(["fp32", *VARIANTS])}
        for name, path in paths.items():
            onnx.save(source.graph("fp32") if name == "fp32" else written(source, name), path)
        results = model.by_turns(paths, precision.measure(paths["fp32"], model.sample, None, 1))
    print("| weights | nDCG@10 | Kendall's tau to fp32 | smallest cosine to fp32 | inputs per CPU-second |")
    print("|---|---|---|---|---|")
    for name, (measured, rate) in results.items():
        cosine = f"{measured.min_cosine:.4f}" if source.role == "encoder" else ""
        print(f"| {name} | {measured.ndcg:.4f} | {measured.kendall_tau:.4f} | {cosine} | {rate:.0f} |")


if __name__ == "__main__":
    main()
