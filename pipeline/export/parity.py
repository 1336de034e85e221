"""Checks that an exported model gives the outputs of its PyTorch model, on golden inputs that run through both."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pipeline.errors import ArtifactError
from pipeline.export.sample import Floats, Input

Runner = Callable[[Input], Floats]
"""The output of one input at its exact length: () for a ranker, (dimensions,) for an encoder."""


def runner(model: Path | bytes) -> Runner:
    """Runs an ONNX file, or the bytes of one, as the service does on a CPU: one thread, one input, no padding.

    Raises:
        ArtifactError: ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    name, content = ("the graph", model) if isinstance(model, bytes) else (model, str(model))
    try:
        # The fused node that is left out is slower on a CPU; see serving.runtime.session.
        session = ort.InferenceSession(
            content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
    except Exception as error:  # ONNX Runtime's errors share no class of their own.
        raise ArtifactError(f"{name}: ONNX Runtime cannot load it: {error}") from error
    typed = "token_type_ids" in {item.name for item in session.get_inputs()}

    def run(item: Input) -> Floats:
        ids = np.array([item.ids], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        if typed:
            feeds["token_type_ids"] = np.array([item.types], np.int64) if item.types else np.zeros_like(ids)
        output: Floats = session.run(None, feeds)[0][0]
        return output

    return run


def outputs(
    run: Runner, inputs: Sequence[Input], threads: int = 1, advance: Callable[..., None] | None = None
) -> Floats:
    """Outputs of all inputs in their order, (inputs,) or (inputs, dimensions)."""

    def outputs_of(item: Input) -> Floats:
        output = run(item)
        if advance:
            advance(len(item.ids))
        return output

    with ThreadPoolExecutor(threads) as pool:
        return np.array(list(pool.map(outputs_of, inputs)), np.float32)


def difference(ours: Floats, theirs: Floats) -> float:
    """The largest |ours − theirs| / (1 + |theirs|) of all numbers; infinite where one of them is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float((np.abs(ours - theirs) / (1 + np.abs(theirs))).max())


def check(inputs: Sequence[Input], torch: Floats, fp32: Floats, allowed: float) -> float:
    """The largest `difference` of ONNX from PyTorch.

    Raises:
        ArtifactError: it is more than `allowed`, or the model gives no finite number; names the input.
    """
    for item, reference, exported in zip(inputs, torch, fp32, strict=True):
        if not np.isfinite(reference).all():
            raise ArtifactError(
                f"export: for {dict(item.source)!r:.200} PyTorch itself gives no finite number; the model's weights "
                "are damaged or far too large"
            )
        gap = difference(exported, reference)
        if not gap <= allowed:
            raise ArtifactError(
                f"export: for {dict(item.source)!r:.200} ONNX is {gap:.2g} from PyTorch, more than export.parity "
                f"{allowed:g}; the graph does not fit this model, or so deep a one adds up more than that: raise it"
            )
    return difference(fp32, torch)


def golden(inputs: Sequence[Input], outputs: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """The golden outputs, checked at every load: each input with its output in PyTorch and in each precision."""
    key = "scores" if "query" in inputs[0].source else "vectors"
    return [
        {**item.source, key: {name: values[number].tolist() for name, values in outputs.items()}}
        for number, item in enumerate(inputs)
    ]
