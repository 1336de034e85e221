"""The training loop of every model: optimizer steps over a planned list of batches, evaluation, checkpoints.

A stage gives the loop a module and a task. The task answers three questions:

    plan(epoch)   which steps the epoch has: a list of `Step`, each of chunks small enough for memory. It must
                  be a pure function of the epoch, as a resumed training plans again and goes on in the middle.
    loss(chunk)   the chunk's share of its step's loss, and shares of its parts to log. The shares of a step's
                  chunks add up to its loss, so a step may be cut in any way and stays the same step: divide by
                  counts of the whole step, which the chunk carries.
    evaluate()    how good the module is now; higher is better. Called in eval mode, without gradients.

Both calls happen under autocast, after the random generators were seeded by (seed, step). So dropout, masks and
samples need no saved generator state, and on a CPU a resumed training equals an uninterrupted one bit by bit, unless
it is bounded in time. Under `torchrun` the chunks of a step are dealt to the ranks and their gradients summed; see
`ranks`. There each rank draws its own random numbers, so a step equals that of one process where nothing is drawn.
"""

import hashlib
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pipeline.config import LoopConfig
from pipeline.errors import TrainingError
from pipeline.progress import Advance, bar
from pipeline.training.loop import distributed, memory
from pipeline.training.loop.checkpoint import Progress, load_weights, restore, save, weights
from pipeline.training.loop.schedule import Step, course

__all__ = [
    "Step",
    "Task",
    "TrainingRun",
    "autocast",
    "bf16_is_native",
    "follow",
    "parameter_groups",
    "step_seed",
    "train",
]

HISTORY = 20
"""Points of the loss history that a stage stores."""

Chunk = TypeVar("Chunk")


class Task(Protocol[Chunk]):
    """What is learned: the batches, the loss and the measure. See the head of this module."""

    unit: str
    """What `Step.examples` counts, plural: pairs, texts."""

    def plan(self, epoch: int) -> Sequence[Step[Chunk]]: ...

    def loss(self, chunk: Chunk) -> tuple[Tensor, Mapping[str, Tensor]]: ...

    def evaluate(self) -> float: ...


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """What rank 0 sends to the others: a training, as it is at its first or resumed step."""

    module: nn.Module
    task: Task[Any]
    config: LoopConfig
    label: str
    fresh: tuple[str, ...]
    optimizer: dict[str, Any]
    progress: Progress


def train(
    module: nn.Module,
    task: Task[Chunk],
    config: LoopConfig,
    *,
    label: str,
    checkpoint: Path | None = None,
    fresh: Collection[str] = (),
) -> Progress:
    """Trains the module in place and leaves it in its best evaluated state (the last one without evaluations).

    Args:
        module: everything that learns.
        task: batches, loss and measure, over the same module.
        config: how.
        label: shown beside the progress bar.
        checkpoint: folder to save to and to go on from; none keeps nothing.
        fresh: beginnings of names of parameters that start from nothing, such as a new head; they learn
            `config.fresh_rate` times as fast.

    Raises:
        TrainingError: nothing to train on, the loss or gradient is not a number, or memory runs out; the weights
            are then those before that step and the last checkpoint is whole.
        ConfigError: `config.checkpoint_activations` for a model without transformer layers.
    """
    optimizer = _optimizer(module, config, fresh)
    best: dict[str, Tensor] = {}
    progress = restore(checkpoint, module, optimizer, best) or Progress()
    if distributed.world() > 1:
        distributed.lead(TrainingRun(module, task, config, label, tuple(fresh), optimizer.state_dict(), progress))
    _run(module, task, config, optimizer, best, progress, label=label, checkpoint=checkpoint)
    if best:
        load_weights(module, best)
    module.eval()
    return progress


def follow(job: TrainingRun) -> None:
    """On the ranks above 0: goes through a training beside rank 0, which alone evaluates and writes."""
    optimizer = _optimizer(job.module, job.config, job.fresh)
    optimizer.load_state_dict(job.optimizer)
    _run(job.module, job.task, job.config, optimizer, {}, job.progress, label=job.label, checkpoint=None)


def _run(  # noqa: PLR0915 (an open loop, to be read straight down)
    module: nn.Module,
    task: Task[Chunk],
    config: LoopConfig,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    progress: Progress,
    *,
    label: str,
    checkpoint: Path | None,
) -> None:
    """All steps from where `progress` is to the end; changes module, optimizer, best state and progress."""
    rank, world = distributed.rank(), distributed.world()
    device = next(module.parameters()).device
    parameters = list(module.parameters())
    way = course(task.plan, config)

    def evaluate() -> float:
        module.eval()
        with torch.no_grad(), autocast(config.precision, device):
            value = task.evaluate()
        module.train()
        if progress.best is None or value >= progress.best:  # Of equals the later, which has learned more.
            progress.best, progress.best_step = value, progress.step
            best.update({name: value.detach().to("cpu", copy=True) for name, value in weights(module).items()})
        progress.evaluations.append((progress.step, round(value, 5)))
        return value

    if progress.step == 0 and config.evaluations and rank == 0:
        progress.before = evaluate()
    module.train()
    saved = resumed = time.monotonic()
    before_resume = progress.seconds
    smaller = (
        f"lower loop.chunk_tokens ({config.chunk_tokens}) or set loop.checkpoint_activations, and start again: the "
        "last checkpoint is whole"
    )
    recomputed = memory.recomputed(module) if config.checkpoint_activations else nullcontext()
    with recomputed, _bar(label, way.examples(progress), task.unit, progress.examples, rank) as advance:
        for step in way.steps(progress.step):
            if way.finished(progress):
                break
            where = f"{label}: at step {progress.step + 1}"
            torch.manual_seed(step_seed(config.seed, progress.step, rank))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * group["rate"] * way.rate(progress, step)
            sums: dict[str, Tensor] = {}
            with memory.shortage_named(where, smaller):
                for chunk in step.chunks[rank::world]:
                    with autocast(config.precision, device):
                        loss, logs = task.loss(chunk)
                    loss.backward()  # type: ignore[no-untyped-call]
                    for name, value in {"loss": loss, **logs}.items():
                        sums[name] = sums.get(name, 0.0) + value.detach()
                parts = {name: float(value) for name, value in sums.items()}
                seconds = before_resume + time.monotonic() - resumed
                if world > 1:
                    distributed.sum_gradients(parameters)
                    parts, seconds = distributed.sum_parts(parts, seconds)
                norm = float(nn.utils.clip_grad_norm_(parameters, config.clip_norm))
                if not (math.isfinite(parts["loss"]) and math.isfinite(norm)):
                    raise TrainingError(
                        f"{where} the loss is {parts['loss']} and the norm of the gradient {norm}; lower "
                        f"loop.learning_rate ({config.learning_rate}) or set loop.precision to fp32"
                    )
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            measured, told = way.marks(progress, config.evaluations or 1), way.marks(progress, HISTORY)
            progress.step += 1
            progress.examples += step.examples
            progress.tokens += step.tokens
            progress.padded += step.padded
            progress.seconds = seconds
            progress.window.append(parts)
            if way.marks(progress, HISTORY) > told:
                progress.history.append({"step": float(progress.step), **_means(progress.window)})
                progress.window = []
            note = f"loss {parts['loss']:.3f}"
            if config.evaluations and way.marks(progress, config.evaluations) > measured and rank == 0:
                note += f", valid {evaluate():.4f}"
            if checkpoint is not None and time.monotonic() - saved >= config.checkpoint_s:
                save(checkpoint, module, optimizer, best, progress)
                saved = time.monotonic()
            advance(step.examples, note, total=way.examples(progress))
    if not progress.step:
        raise TrainingError(f"{label}: nothing to train on; look at the split 'train' of the pairs")


@contextmanager
def _bar(label: str, total: float, unit: str, done: float, rank: int) -> Iterator[Advance]:
    """Progress is shown by rank 0 alone."""
    if rank:
        yield lambda *_, **__: None
        return
    with bar(label, total, unit, done) as advance:
        yield advance


def _optimizer(module: nn.Module, config: LoopConfig, fresh: Collection[str]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(module, config, fresh), lr=0.0, betas=(0.9, 0.98), fused=True)


def _means(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(sum(parts[name] for parts in window) / len(window), 4) for name in window[-1]}


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed for the random generators at this step; unlike neighbours give unlike streams."""
    text = f"{seed} {step} {rank}" if rank else f"{seed} {step}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def parameter_groups(module: nn.Module, config: LoopConfig, fresh: Collection[str]) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, vectors do not; fresh ones learn faster. Each has its `rate`."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = config.fresh_rate if name.startswith(tuple(fresh)) else 1.0
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": parameters, "rate": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 where the config asks for it, or for auto where the device multiplies bf16 matrices."""
    if precision == "bf16" or (precision == "auto" and bf16_is_native(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def bf16_is_native(device: torch.device) -> bool:
    """Whether bf16 matrix products have their own instructions here (AVX512-BF16, AMX, an Ampere GPU or later)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
