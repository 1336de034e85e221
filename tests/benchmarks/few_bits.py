"""Weights of 4 bits against 8: what a ranker or encoder of a workspace keeps of its order, its bytes and its speed.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.few_bits WORKSPACE [--model FINGERPRINT] [--tokens 60000]

Blocks of 32 weights share a scale and a zero point, as in Q-BERT (Shen et al. 2020, arXiv:1909.05840), whose groups
these are; activations have 8 bits. In `mixed` the half of the layers that changes the outputs least, each alone at 4
bits, has 4 bits and the other half 8, in the place of Q-BERT's second derivatives. Rounded after the training; nothing
is trained again. WORKSPACE holds a retraining or study that is done; the model is judged on valid queries.
"""

import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pipeline.export import graph, precision, sample, sensitivity
from pipeline.export.bundle import ExportSource
from pipeline.export.graph_shape import EMBEDDINGS
from pipeline.export.parity import outputs, runner
from pipeline.export.quantisation import Floats
from tests.benchmarks.judged_model import JudgedModel

BLOCK = 32
LEVELS = 15
"""The largest number of 4 bits."""


def four_bits(rows: Floats) -> tuple[NDArray[np.uint8], Floats, NDArray[np.uint8]]:
    """Rows (rows, width) as numbers of 4 bits: rows ≈ (numbers - zeros) × scales in each block of `BLOCK`.

    Returns:
        Two numbers to a byte, the first in its low half: numbers (rows, blocks, BLOCK / 2) and zeros
        (rows, ⌈blocks / 2⌉); scales (rows, blocks).
    """
    blocks = rows.reshape(len(rows), -1, BLOCK)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    scales = (np.where(high > low, high - low, 1) / LEVELS).astype(np.float32)
    zeros = np.rint(-low / scales)
    numbers = np.clip(np.rint(blocks / scales[:, :, None] + zeros[:, :, None]), 0, LEVELS)
    return _halves(numbers), scales, _halves(zeros)


def _halves(numbers: Floats) -> NDArray[np.uint8]:
    """Numbers of 4 bits, two to a byte along the last axis."""
    padded = np.pad(numbers, [(0, 0)] * (numbers.ndim - 1) + [(0, numbers.shape[-1] % 2)]).astype(np.uint8)
    halves: NDArray[np.uint8] = padded[..., ::2] | np.left_shift(padded[..., 1::2], np.uint8(4))
    return halves


def writer(few: Collection[str]) -> type[graph._Writer]:
    """A writer of w8 graphs whose parts named here have weights of 4 bits."""

    class Writer(graph._Writer):
        def block_product(self, value: str, name: str, matrix: Floats, bias: str) -> str:
            layer = re.search(r"layer\.\d+", name)
            assert layer is not None, name
            if layer.group() not in few:
                return super().block_product(value, name, matrix, bias)
            weight, scales, zeros = four_bits(matrix.T)
            stored = (
                self.constant(f"{name}.blocks", weight),
                self.constant(f"{name}.scales", scales),
                self.constant(f"{name}.zeros", zeros),
            )
            sizes = {"K": matrix.shape[0], "N": matrix.shape[1], "block_size": BLOCK}
            return self.fused("MatMulNBits", value, *stored, "", bias, bits=4, accuracy_level=4, **sizes)

        def words(self) -> str:
            if EMBEDDINGS not in few:
                return super().words()
            weight, scales, zeros = four_bits(self.weights["embeddings.word_embeddings.weight"])
            self.constants["words.halves"] = helper.make_tensor(
                "words.halves", TensorProto.UINT4, [len(weight), weight.shape[1] * BLOCK], weight.tobytes(), raw=True
            )
            self.constants["words.zeros"] = helper.make_tensor(
                "words.zeros", TensorProto.UINT4, list(scales.shape), zeros.tobytes(), raw=True
            )
            stored = "words.halves", "input_ids", self.constant("words.scales", scales), "words.zeros"
            return self.fused("GatherBlockQuantized", *stored, block_size=BLOCK, quantize_axis=1, gather_axis=0)

    return Writer


def written(source: ExportSource, few: Collection[str], keep: Collection[str] = ()) -> onnx.ModelProto:
    """The w8 graph with these parts at 4 bits and those to keep in fp32."""
    with mock.patch.object(graph, "_Writer", writer(few)):
        return source.graph("w8", list(keep))


def least_sensitive(source: ExportSource, layers: list[str], taken: sample.Sample, fp32: Floats) -> list[str]:
    """The half of the layers that changes the outputs least when each alone is at 4 bits."""
    indices = taken.spread(sensitivity.SCAN_INPUTS)
    inputs = [taken.inputs[index] for index in indices]
    costs = {}
    for layer in layers:
        model = written(source, [layer], [other for other in [*layers, EMBEDDINGS] if other != layer])
        costs[layer] = sensitivity.change(outputs(runner(model.SerializeToString()), inputs, 1), fp32[indices])
    changes = ", ".join(f"{name} {cost:.4f}" for name, cost in costs.items())
    print(f"mean change of an output, each layer alone at 4 bits: {changes}")
    return sorted(layers, key=costs.__getitem__)[: len(layers) // 2]


def main() -> None:
    model = JudgedModel.of_arguments((__doc__ or "").split("\n")[0])
    source = model.source
    layers = [part for part in source.shape.parts if part != EMBEDDINGS]
    with tempfile.TemporaryDirectory() as folder:
        paths = {"fp32": Path(folder) / "model.fp32.onnx"}
        onnx.save(source.graph("fp32"), paths["fp32"])
        fp32 = precision.measure(paths["fp32"], model.sample, None, 1)
        graphs = {
            "int8": source.graph("int8"),
            "8 bits": written(source, ()),
            "mixed, 4 and 8 bits": written(source, least_sensitive(source, layers, model.sample, fp32.outputs)),
            "layers of 4 bits": written(source, layers),
            "layers and embeddings of 4 bits": written(source, [*layers, EMBEDDINGS]),
        }
        for number, (name, written_graph) in enumerate(graphs.items()):
            paths[name] = Path(folder) / f"model.{number}.onnx"
            onnx.save(written_graph, paths[name])
        results = model.by_turns(paths, fp32)
    print("| weights | nDCG@10 | Kendall's tau to fp32 | largest change | MB | inputs per CPU-second |")
    print("|---|---|---|---|---|---|")
    for name, (measured, rate) in results.items():
        print(
            f"| {name} | {measured.ndcg:.4f} | {measured.kendall_tau:.4f} | {measured.max_change:.3f} "
            f"| {measured.bytes / 1e6:.1f} | {rate:.0f} |"
        )


if __name__ == "__main__":
    main()
