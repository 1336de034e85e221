"""Several processes that train one model, each on its own GPU or cores: what `torchrun` started.

    torchrun --nproc-per-node N -m flows.cli retrain RECIPE

The first process, rank 0, alone runs the stages and writes. The others wait here until it trains: then it sends them
module, task and state (`lead`, `receive`), and all go through the same steps, each with its part of every step's
chunks. The chunks' losses are shares of the step's, so the sum of all gradients is that of one process. All ranks run
on one machine, as they read the same files.
"""

import io
import mmap
import pickle
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=7)
"""The others wait as long as rank 0 needs for stages that are not trainings."""

BUCKET = 2**24
"""Gradient values that are summed at once."""


def join(local_rank: int) -> None:
    """Makes this process one of those that torchrun started; `local_rank` chooses its GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """On rank 0: the others are let go."""
    lead(None)
    dist.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 where it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def lead(job: Any) -> None:
    """On rank 0: sends the others what they are to do; None for nothing more."""
    written = io.BytesIO()
    _Pickler(written, protocol=pickle.HIGHEST_PROTOCOL).dump(job)
    dist.broadcast_object_list([written.getvalue()], src=0)


def receive() -> Any:
    """On the other ranks: what rank 0 sends next, with its GPU's tensors on the GPU of this process."""
    held: list[Any] = [None]
    dist.broadcast_object_list(held, src=0)
    return pickle.loads(held[0])  # noqa: S301 (from a process of our own)


class _Pickler(pickle.Pickler):
    """Sends a mapped file as its name, and what is on this rank's GPU to the GPU of the one that reads it."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.memmap) and isinstance(obj.base, mmap.mmap):
            return _mapped, (str(obj.filename), obj.dtype, obj.offset, obj.shape)
        if type(obj) is Tensor and obj.is_cuda:
            return _on_gpu, (obj.detach().cpu(),)
        if isinstance(obj, torch.device) and obj.type == "cuda":
            return _this_gpu, ()
        return NotImplemented


def _mapped(file: str, dtype: Any, offset: int, shape: Any) -> Any:
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=shape)


def _on_gpu(tensor: Tensor) -> Tensor:
    return tensor.cuda()


def _this_gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Gives every rank the sum of all ranks' gradients, the same bits everywhere; one without stays without."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if not learning:
        return
    touched = torch.tensor([float(parameter.grad is not None) for parameter in learning])
    dist.all_reduce(touched)
    learning = [parameter for parameter, count in zip(learning, touched.tolist(), strict=True) if count]
    begin = 0
    while begin < len(learning):
        end, size = begin, 0
        while end < len(learning) and (end == begin or size + learning[end].numel() <= BUCKET):
            size += learning[end].numel()
            end += 1
        bucket = learning[begin:end]
        flat = torch.cat([_gradient(parameter).flatten() for parameter in bucket])
        dist.all_reduce(flat)
        for parameter, values in zip(bucket, torch.split(flat, [one.numel() for one in bucket]), strict=True):
            parameter.grad = values.view_as(parameter).clone()
        begin = end


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def sum_parts(parts: Mapping[str, float], seconds: float) -> tuple[dict[str, float], float]:
    """The sums of what all ranks logged at a step, and the seconds of rank 0."""
    held: list[Any] = [None] * world()
    dist.all_gather_object(held, (dict(parts), seconds))
    sums: dict[str, float] = {}
    for found, _ in held:
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums, held[0][1]


def follow(work: Callable[[Any], None]) -> None:
    """On the other ranks: does what rank 0 sends until it sends None."""
    while (job := receive()) is not None:
        work(job)
    dist.destroy_process_group()
