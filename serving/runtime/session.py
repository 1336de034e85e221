"""ONNX Runtime's sessions, and the padded inputs of one run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, ConfigError
from serving.runtime.items import Item
from serving.runtime.processor import Device

# ONNX Runtime's fused kernel is slower on a CPU than the two nodes it replaces: 170 against 207 pairs per CPU-second
# in int8, 73 against 79 in fp32 (6 layers, 384 wide, 64 tokens, Zen 4).
SLOW_ON_CPU = ["SkipLayerNormFusion"]


def padded(items: Sequence[Item], inputs: Sequence[str], bucket: int, longest: int) -> dict[str, NDArray[np.int64]]:
    """The feeds of one padded batch, each (items, tokens); padding stands at the end and the mask is 0 there."""
    width = min(_rounded(max(len(item.ids) for item in items), bucket), longest)
    feeds = {name: np.zeros((len(items), width), np.int64) for name in inputs}
    for row, item in enumerate(items):
        feeds["input_ids"][row, : len(item.ids)] = item.ids
        feeds["attention_mask"][row, : len(item.ids)] = 1
        if "token_type_ids" in feeds and item.types:
            feeds["token_type_ids"][row, : len(item.ids)] = item.types
    return feeds


def _rounded(length: int, bucket: int) -> int:
    return -(-length // bucket) * bucket


def open_session(path: Path, device: Device) -> ort.InferenceSession:
    """A session of an exported model on one thread, without batching and without memory plans.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
        ConfigError: the device is cuda and ONNX Runtime cannot use it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False  # It keeps a plan for every length ever seen, and saves no time here.
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without TF32, whose products have ten bits; with memory asked for as needed.
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"})
    try:
        if device == "cuda":
            session = ort.InferenceSession(str(path), options, providers=[cuda, "CPUExecutionProvider"])
        else:
            session = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_ON_CPU
            )
    except Exception as error:  # ONNX Runtime's errors share no class of their own.
        raise ArtifactError(f"{path}: ONNX Runtime cannot load it ({error}); export the model again") from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise ConfigError(
            f"{path}: ONNX Runtime cannot use the CUDA device; install the CUDA and cuDNN that its version needs, or "
            "serve on the CPU"
        )
    return session
