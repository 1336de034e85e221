"""The processor that models run on: its cores, a CUDA device, and what identifies its arithmetic."""

import ctypes
import functools
import hashlib
import os
import platform
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from pipeline.cores import cores

Device = Literal["cpu", "cuda"]


def has_cuda() -> bool:
    """Whether ONNX Runtime has its CUDA part and the driver finds a device."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def runners(device: Device) -> int:
    """Runner threads for a device: one a core, or two for CUDA, of which one pads while the other's run is computed."""
    return 2 if device == "cuda" else cores()


@functools.cache
def processor() -> str:
    """A short digest of what this machine computes with; machines that share one round alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    core_features = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    description = "\n".join([platform.machine(), platform.processor(), *core_features])
    return hashlib.blake2b(description.encode(), digest_size=8).hexdigest()
