"""The training loop of every model: optimizer steps over a planned list of batches, evaluation, checkpoints.

A stage gives the loop a module and a task. The task answers three questions:

    plan(epoch)   the steps of the epoch: a list of `Step`, each of chunks small enough for memory. It must be a
                  pure function of the epoch, as a resumed training plans again and goes on in the middle.
    loss(chunk)   the chunk's share of its step's loss, and shares of its parts to log. The shares of a step's
                  chunks add up to its loss, so a step may be cut in any way and stays the same step: divide by
                  counts of the entire step, which the chunk carries.
    evaluate()    how good the module is now; higher is better. Called in eval mode, without gradients.

`loss` and `evaluate` run under autocast, and the random generators are seeded by (seed, step) before each step. So
dropout, masks and samples need no saved generator state, and on a CPU a resumed training equals an uninterrupted one
bit by bit, unless it is bounded in time. Under `torchrun` the chunks of a step are dealt to the processes and their
gradients summed; see `distributed`. There each process draws its own random numbers, so a step equals that of one
process where nothing is drawn.
"""

import hashlib
import logging
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
from pipeline.training.loop.schedule import LEAST_TRAINING, Schedule, Step, schedule_of

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

log = logging.getLogger(__name__)


class Task(Protocol[Chunk]):
    """A learning problem: the batches, the loss and the measure. See the head of this module."""

    unit: str
    """The noun that `Step.examples` counts, plural: pairs, texts."""

    def plan(self, epoch: int) -> Sequence[Step[Chunk]]: ...

    def loss(self, chunk: Chunk) -> tuple[Tensor, Mapping[str, Tensor]]: ...

    def evaluate(self) -> float: ...


@dataclass(slots=True)
class TrainingRun:
    """One training and its state, which changes with each step; process 0 sends it to the others."""

    module: nn.Module
    task: Task[Any]
    config: LoopConfig
    label: str
    fresh: tuple[str, ...]
    progress: Progress
    best: dict[str, Tensor]
    """Weights of the best evaluation, on the CPU; empty without evaluations and on all processes but 0."""
    checkpoint: Path | None
    """Folder to save to; only process 0 saves."""

    def optimizer(self) -> torch.optim.Optimizer:
        """A new AdamW over the module's parameters."""
        groups = parameter_groups(self.module, self.config, self.fresh)
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)

    def evaluate(self) -> float:
        """Measures the module and keeps its weights if they are the best so far; of equals the later.

        Raises:
            TrainingError: the measure is not a number.
        """
        self.module.eval()
        with torch.no_grad(), autocast(self.config.precision, next(self.module.parameters()).device):
            value = self.task.evaluate()
        self.module.train()
        progress = self.progress
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.label}: after step {progress.step} the measure of the valid split is {value}; lower "
                f"loop.learning_rate ({self.config.learning_rate}) or set loop.precision to fp32"
                if progress.step
                else f"{self.label}: before the first step the measure of the valid split is {value}, so the "
                "starting weights give no numbers; set loop.precision to fp32 or take another base model"
            )
        if progress.best is None or value >= progress.best:
            progress.best, progress.best_step = value, progress.step
            self.best.update(
                {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights(self.module).items()}
            )
        progress.evaluations.append((progress.step, round(value, 5)))
        return value


def train(
    module: nn.Module,
    task: Task[Chunk],
    config: LoopConfig,
    *,
    label: str,
    checkpoint: Path | None = None,
    fresh: Collection[str] = (),
    began: float | None = None,
) -> Progress:
    """Trains the module in place and leaves it in its best evaluated state (the last one without evaluations).

    Args:
        module: everything that learns.
        task: batches, loss and measure, over the same module.
        config: the loop's hyperparameters.
        label: shown beside the progress bar.
        checkpoint: folder to save to and to go on from; None keeps nothing.
        fresh: beginnings of names of parameters that start from nothing, such as a new head; they learn
            `config.fresh_rate` times as fast.
        began: the monotonic clock when the stage began, from which `config.max_seconds` counts; now, where it is None.

    Raises:
        TrainingError: nothing to train on, the loss, gradient or measure is not a number, or memory runs out; the
            weights are then those before that step and the last checkpoint is whole.
        ArtifactError: the disk is full when a checkpoint is written.
        ConfigError: `config.checkpoint_activations` for a model without transformer layers.
    """
    began = time.monotonic() if began is None else began
    run = TrainingRun(module, task, config, label, tuple(fresh), Progress(), {}, checkpoint)
    optimizer = run.optimizer()
    run.progress = restore(checkpoint, module, optimizer, run.best) or run.progress
    if run.progress.step == 0 and config.evaluations:
        ready = time.monotonic()
        run.progress.before = run.evaluate()
        run.progress.evaluation = time.monotonic() - ready
    run.progress.preparation += time.monotonic() - began
    _warn_of_little_time(run)
    if distributed.processes() > 1:
        followed = TrainingRun(module, task, config, label, tuple(fresh), run.progress, {}, None)
        distributed.lead((followed, optimizer.state_dict()))
    _take_steps(run, optimizer)
    if run.best:
        load_weights(module, run.best)
    module.eval()
    return run.progress


def _warn_of_little_time(run: TrainingRun) -> None:
    """Says so where the stage's preparation leaves little of its time for the training."""
    bound, spent = run.config.max_seconds, run.progress.preparation + run.progress.evaluation
    if bound and spent > (1 - LEAST_TRAINING) * bound:
        log.warning(
            "%s: preparation and evaluations take %.0f of loop.max_seconds = %g; the training gets %.0f s all the "
            "same. Raise the bound, or lower loop.valid_pairs",
            *(run.label, spent, bound, LEAST_TRAINING * bound),
        )


def follow(sent: tuple[TrainingRun, dict[str, Any]]) -> None:
    """Takes all steps of a training beside process 0, which alone evaluates and writes.

    Args:
        sent: the training and the optimizer's state.
    """
    run, state = sent
    optimizer = run.optimizer()
    optimizer.load_state_dict(state)
    _take_steps(run, optimizer)


def _take_steps(run: TrainingRun, optimizer: torch.optim.Optimizer) -> None:
    """Takes all steps from where `run.progress` is to the end; changes module, optimizer, best state and progress."""
    module, task, config, progress = run.module, run.task, run.config, run.progress
    process, processes = distributed.process(), distributed.processes()
    device = next(module.parameters()).device
    schedule = schedule_of(task.plan, config)

    module.train()
    saved = resumed = time.monotonic()
    before_resume = progress.seconds
    recomputed = memory.recomputed(module) if config.checkpoint_activations else nullcontext()
    with memory.kept_between_steps(), recomputed, _bar(run, schedule.examples(progress), process) as advance:
        for step in schedule.steps(progress.step):
            if schedule.finished(progress):
                break
            where = f"{run.label}: at step {progress.step + 1}"
            torch.manual_seed(step_seed(config.seed, progress.step, process))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * group["rate"] * schedule.rate(progress, step)
            with memory.shortage_named(where, _less_memory(config)):
                parts = _accumulate(run, step.chunks[process::processes], device)
                seconds = before_resume + time.monotonic() - resumed
                if processes > 1:
                    distributed.sum_gradients(list(module.parameters()))
                    parts, seconds = distributed.sum_parts(parts, seconds)
                _update(run, optimizer, parts["loss"], where)

            wanted = schedule.evaluations(progress)
            evaluations = schedule.parts_done(progress, wanted or 1)
            _record(progress, schedule, step, parts, seconds)
            note = f"loss {parts['loss']:.3f}"
            if wanted and schedule.parts_done(progress, wanted) > evaluations and process == 0:
                note += f", valid {run.evaluate():.4f}"
            if run.checkpoint is not None and time.monotonic() - saved >= config.checkpoint_s:
                save(run.checkpoint, module, optimizer, run.best, progress)
                saved = time.monotonic()
            advance(step.examples, note, total=schedule.examples(progress))
    if not progress.step:
        raise TrainingError(f"{run.label}: nothing to train on; look at the split 'train' of the pairs")


def _accumulate(run: TrainingRun, chunks: Sequence[Any], device: torch.device) -> dict[str, float]:
    """Adds the gradients of these chunks; returns the sums of their losses and logged parts."""
    sums: dict[str, Tensor] = {}
    for chunk in chunks:
        with autocast(run.config.precision, device):
            loss, logs = run.task.loss(chunk)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": loss, **logs}.items():
            sums[name] = sums.get(name, 0.0) + value.detach()
    return {name: float(value) for name, value in sums.items()}


def _update(run: TrainingRun, optimizer: torch.optim.Optimizer, loss: float, where: str) -> None:
    """Updates the parameters by their clipped gradients, which are zero afterwards.

    Raises:
        TrainingError: the loss or the norm of the gradient is not finite.
    """
    norm = float(nn.utils.clip_grad_norm_(run.module.parameters(), run.config.clip_norm))
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"{where} the loss is {loss} and the norm of the gradient {norm}; lower "
            f"loop.learning_rate ({run.config.learning_rate}) or set loop.precision to fp32"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _record(
    progress: Progress, schedule: Schedule[Any], step: Step[Any], parts: dict[str, float], seconds: float
) -> None:
    """Adds a step to the progress and, where one is due, a point to its history.

    Args:
        parts: its loss and logged parts.
        seconds: the time that the training has taken, with this step.
    """
    points = schedule.parts_done(progress, HISTORY)
    progress.step += 1
    progress.examples += step.examples
    progress.tokens += step.tokens
    progress.padded += step.padded
    progress.seconds = seconds
    progress.window.append(parts)
    if schedule.parts_done(progress, HISTORY) > points:
        progress.history.append({"step": float(progress.step), **_means(progress.window)})
        progress.window = []


def _less_memory(config: LoopConfig) -> str:
    return (
        f"lower loop.chunk_tokens ({config.chunk_tokens}) or set loop.checkpoint_activations, and start again: the "
        "last checkpoint is whole"
    )


@contextmanager
def _bar(run: TrainingRun, total: float, process: int) -> Iterator[Advance]:
    """The progress bar, which process 0 alone shows."""
    if process:
        yield lambda *_, **__: None
        return
    with bar(run.label, total, run.task.unit, run.progress.examples) as advance:
        yield advance


def _means(window: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(sum(parts[name] for parts in window) / len(window), 4) for name in window[-1]}


def step_seed(seed: int, step: int, process: int = 0) -> int:
    """A seed for the random generators at this step; neighbouring steps get unrelated streams."""
    text = f"{seed} {step} {process}" if process else f"{seed} {step}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest())


def parameter_groups(module: nn.Module, config: LoopConfig, fresh: Collection[str]) -> list[dict[str, Any]]:
    """AdamW's groups: only matrices decay. `rate` multiplies the learning rate: `fresh_rate` for fresh ones, else 1."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = config.fresh_rate if name.startswith(tuple(fresh)) else 1.0
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": parameters, "rate": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """A context in bf16 where the config asks for it, or for `auto` where the device multiplies bf16 matrices."""
    if precision == "bf16" or (precision == "auto" and bf16_is_native(device)):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def bf16_is_native(device: torch.device) -> bool:
    """Whether bf16 matrix products have their own instructions here (AVX512-BF16, AMX, an Ampere GPU or later)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
