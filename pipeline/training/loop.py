"""The training loop of every model: optimizer steps over a planned list of batches, evaluation, checkpoints.

A stage gives the loop a module and a task. The task answers three questions:

    plan(epoch)   which steps the epoch has: a list of `Step`, each of chunks small enough for memory. It must
                  be a pure function of the epoch, as a resumed training plans again and goes on in the middle.
    loss(chunk)   the chunk's share of its step's loss, and shares of its parts to log. The shares of a step's
                  chunks add up to its loss, so a step may be cut in any way and stays the same step: divide by
                  counts of the whole step, which the chunk carries.
    evaluate()    how good the module is now; higher is better. Called in eval mode, without gradients.

Both calls happen under autocast, after the random generators were seeded by (seed, step). So dropout, masks and
samples need no saved generator state, and on a CPU a resumed training equals an uninterrupted one bit by bit.
One process and one device: several GPUs (`torchrun`) would add up gradients where `clip_grad_norm_` is called.
"""

import hashlib
import math
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pipeline.config import LoopConfig
from pipeline.errors import TrainingError
from pipeline.progress import bar
from pipeline.training.checkpoint import Progress, load_weights, restore, save, weights

HISTORY = 20
"""Points of the loss history that a stage stores."""

Chunk = TypeVar("Chunk")


@dataclass(frozen=True, slots=True)
class Step(Generic[Chunk]):
    """One optimizer step."""

    chunks: Sequence[Chunk]
    """Go through the module one after the other; their gradients add up."""
    examples: int
    """Shown as progress, in the task's unit."""
    tokens: int
    """Real tokens."""
    padded: int
    """Tokens with padding."""


class Task(Protocol[Chunk]):
    """What is learned: the batches, the loss and the measure. See the head of this module."""

    unit: str
    """What `Step.examples` counts, plural: pairs, texts."""

    def plan(self, epoch: int) -> Sequence[Step[Chunk]]: ...

    def loss(self, chunk: Chunk) -> tuple[Tensor, Mapping[str, Tensor]]: ...

    def evaluate(self) -> float: ...


def train(  # noqa: PLR0915 (an open loop, to be read straight down)
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
        TrainingError: nothing to train on, or the loss or gradient is not a number; the weights are then those
            before that step and the last checkpoint is whole.
    """
    steps = [step for epoch in range(math.ceil(config.epochs)) for step in task.plan(epoch)]
    steps = steps[: max(1, round(len(steps) * config.epochs / math.ceil(config.epochs)))]
    if not steps:
        raise TrainingError(f"{label}: nothing to train on; look at the split 'train' of the pairs")
    device = next(module.parameters()).device
    optimizer = torch.optim.AdamW(parameter_groups(module, config, fresh), lr=0.0, betas=(0.9, 0.98), fused=True)
    best: dict[str, Tensor] = {}
    progress = restore(checkpoint, module, optimizer, best) or Progress()
    evaluated_at = {round(len(steps) * (part + 1) / config.evaluations) for part in range(config.evaluations)}

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

    if progress.step == 0 and evaluated_at:
        progress.before = evaluate()
    module.train()
    saved = resumed = time.monotonic()
    before_resume = progress.seconds
    window: list[dict[str, float]] = []
    total = sum(step.examples for step in steps)
    with bar(label, total, task.unit, done=progress.examples) as advance:
        for number in range(progress.step, len(steps)):
            step = steps[number]
            torch.manual_seed(step_seed(config.seed, number))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * group["rate"] * schedule(number, len(steps), config.warmup_share)
            parts: dict[str, float] = {}
            for chunk in step.chunks:
                with autocast(config.precision, device):
                    loss, logs = task.loss(chunk)
                loss.backward()  # type: ignore[no-untyped-call]
                for name, value in {"loss": loss, **logs}.items():
                    parts[name] = parts.get(name, 0.0) + float(value.detach())
            norm = float(nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm))
            if not (math.isfinite(parts["loss"]) and math.isfinite(norm)):
                raise TrainingError(
                    f"{label}: at step {number + 1} of {len(steps)} the loss is {parts['loss']} and the norm of the "
                    f"gradient {norm}; lower loop.learning_rate ({config.learning_rate}) or set loop.precision to fp32"
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            progress.step = number + 1
            progress.examples += step.examples
            progress.tokens += step.tokens
            progress.padded += step.padded
            progress.seconds = before_resume + time.monotonic() - resumed
            window.append(parts)
            if progress.step * HISTORY // len(steps) > number * HISTORY // len(steps):
                progress.history.append({"step": float(progress.step), **_means(window)})
                window = []
            note = f"loss {parts['loss']:.3f}"
            if progress.step in evaluated_at:
                note += f", valid {evaluate():.4f}"
            if checkpoint is not None and time.monotonic() - saved >= config.checkpoint_s:
                save(checkpoint, module, optimizer, best, progress)
                saved = time.monotonic()
            advance(step.examples, note)
    if best:
        load_weights(module, best)
    module.eval()
    return progress


def _means(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(sum(parts[name] for parts in window) / len(window), 4) for name in window[-1]}


def schedule(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then linear to a tenth."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 1 - 0.9 * (step - warmup) / max(1, steps - 1 - warmup)


def step_seed(seed: int, step: int) -> int:
    """A seed for the random generators at this step; unlike neighbours give unlike streams."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=7).digest())


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
