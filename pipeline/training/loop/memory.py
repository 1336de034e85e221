"""The memory of a training: freed blocks are kept between steps, and a shortage is met or explained.

Layers can compute their activations anew in place of keeping them, and an error names the keys to lower.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pipeline import machine_memory
from pipeline.errors import ConfigError, MemoryShortageError
from pipeline.models.families import family_of

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Settings of glibc's mallopt: the free memory at the end of the heap from which it is given back, and the number of
blocks that get a mapping of their own."""

NEVER, NONE = -1, 0
"""Values of M_TRIM_THRESHOLD and M_MMAP_MAX while a training runs: give nothing back, and map no block."""

USUAL_TRIM, USUAL_MAPPINGS = 128 * 1024, 65536
"""The default values of M_TRIM_THRESHOLD, in bytes, and M_MMAP_MAX in glibc."""


@contextmanager
def kept_between_steps() -> Iterator[None]:
    """A context in which freed memory stays with the process, and is given back at the end.

    Each step frees and asks for the same large tensors; glibc would return them to the system, which clears every page
    again. Does nothing where the C library has no mallopt.
    """
    library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    library.mallopt(M_MMAP_MAX, NONE)
    try:
        yield
    finally:
        library.mallopt(M_TRIM_THRESHOLD, USUAL_TRIM)
        library.mallopt(M_MMAP_MAX, USUAL_MAPPINGS)
        library.malloc_trim(0)


@contextmanager
def recomputed(module: nn.Module) -> Iterator[None]:
    """A context in which each transformer layer keeps only its input and runs again in the backward pass.

    The gradients stay the same; memory for activations falls to about a layer's, time grows by about a third.

    Raises:
        ConfigError: the module has no transformer layers.

    Source: Chen et al., Training deep nets with sublinear memory cost, arXiv:1604.06174.
    """
    bodies = {id(body): body for model in module.modules() if (body := _body_of(model)) is not None}
    layers: list[Any] = [layer for body in bodies.values() for layer in family_of(body.config).layers(body)]
    if not layers:
        raise ConfigError(
            "loop.checkpoint_activations is set, but this model has no transformer layers; set it to false"
        )
    for layer in layers:
        layer.forward = partial(_recompute, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # The method of the class comes back.


def _body_of(module: nn.Module) -> Any:
    """The base model of a transformers model, or None."""
    return module.base_model if isinstance(module, PreTrainedModel) else None


def _recompute(forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@contextmanager
def shortage_named(where: str, advice: str) -> Iterator[None]:
    """Turns an error that says memory ran out into one that says what to do.

    Raises:
        MemoryShortageError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and not machine_memory.is_shortage(error):
            raise
        reason = str(error).split("\n")[0] or type(error).__name__
        raise MemoryShortageError(f"{where} memory ran out ({reason}); {advice}") from error
