"""Opens ONNX Runtime's sessions, and pads the inputs of one run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.errors import ArtifactError, ConfigError
from serving.runtime.items import Item, rounded_up
from serving.runtime.processor import Device

# ONNX Runtime's fused kernel is slower on a CPU than the two nodes it replaces: 170 against 207 pairs per CPU-second
# in int8, 73 against 79 in fp32 (6 layers, 384 wide, 64 tokens, Zen 4).
SLOW_ON_CPU = ["SkipLayerNormFusion"]
"""ONNX Runtime's optimisers that make a model slower on a CPU."""


def padded(items: Sequence[Item], inputs: Sequence[str], bucket: int, longest: int) -> dict[str, NDArray[np.int64]]:
    """The inputs of one run, padded to one length; padding stands at the end, and the attention mask is 0 there.

    Args:
        items: the inputs, each at its own length.
        inputs: names of the graph's inputs.
        bucket: the common length is rounded up to a multiple of this.
        longest: maximum length, which rounding does not exceed.

    Returns:
        Name of each of the graph's inputs → (items, tokens).
    """
    width = min(rounded_up(max(len(item.ids) for item in items), bucket), longest)
    feeds = {name: np.zeros((len(items), width), np.int64) for name in inputs}
    for row, item in enumerate(items):
        feeds["input_ids"][row, : len(item.ids)] = item.ids
        feeds["attention_mask"][row, : len(item.ids)] = 1
        if "token_type_ids" in feeds and item.types:
            feeds["token_type_ids"][row, : len(item.ids)] = item.types
    return feeds


def open_session(path: Path, device: Device) -> ort.InferenceSession:
    """A session of an exported model that computes each run on the thread that calls it.

    On a CPU there are as many such threads as cores, so more threads within a run would compete for the same cores.

    Args:
        path: the ONNX file.
        device: cpu or cuda.

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
    # TF32 would round the factors of products to ten bits. The arena would else grow by doubling, not as needed.
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
