"""Several processes, started by `torchrun`, that train one model, each on its own GPU or cores.

    torchrun --nproc-per-node N -m flows.cli retrain RECIPE

Process 0 alone runs the stages and writes. The others wait here until it trains: then it sends them module, task and
state (`lead`, `receive`), and all go through the same steps, each with its part of every step's chunks. The chunks'
losses are shares of the step's, so the sum of all gradients is that of one process. A mapped file is sent by its path:
processes on several machines read it from the workspace that they share (see `peers`).
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
"""The longest wait of the others while process 0 runs stages that are not trainings."""

BUCKET = 2**24
"""Number of gradient values that are summed at once."""


def join(local_rank: int) -> None:
    """Makes this process one of those that torchrun started; `local_rank` chooses its GPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)


def leave() -> None:
    """Lets the other processes end; called by process 0."""
    lead(None)
    dist.destroy_process_group()


def process() -> int:
    """The number of this process; 0 where it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def lead(job: Any) -> None:
    """Sends a job from process 0 to the others; None ends them."""
    written = io.BytesIO()
    _Pickler(written, protocol=pickle.HIGHEST_PROTOCOL).dump(job)
    dist.broadcast_object_list([written.getvalue()], src=0)


def receive() -> Any:
    """The next job that process 0 sends; tensors of its GPU arrive on the GPU of this process."""
    received: list[Any] = [None]
    dist.broadcast_object_list(received, src=0)
    return pickle.loads(received[0])  # noqa: S301 (from a process of our own)


class _Pickler(pickle.Pickler):
    """A pickler that sends a mapped file as its name, and a tensor on this GPU to the GPU of the receiver."""

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
    """Gives every process the sum of all gradients, the same bits everywhere.

    A parameter without a gradient on any process keeps none.
    """
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
        for parameter, values in zip(
            bucket, torch.split(flat, [parameter.numel() for parameter in bucket]), strict=True
        ):
            parameter.grad = values.view_as(parameter).clone()
        begin = end


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def sum_parts(parts: Mapping[str, float], seconds: float) -> tuple[dict[str, float], float]:
    """The sums of the parts that all processes logged at a step, and the seconds of process 0."""
    gathered: list[Any] = [None] * processes()
    dist.all_gather_object(gathered, (dict(parts), seconds))
    sums: dict[str, float] = {}
    for logged, _ in gathered:
        for name, value in logged.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums, gathered[0][1]


def follow(work: Callable[[Any], None]) -> None:
    """Does the jobs that process 0 sends until it sends None; called by all others."""
    while (job := receive()) is not None:
        work(job)
    dist.destroy_process_group()
