"""What a training writes now and then, so that a killed one goes on: weights, optimizer, best state, progress.

One safetensors file, replaced atomically. The random generators need not be in it, as the loop seeds them anew
at each step.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import artifacts
from pipeline.errors import TrainingError

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a training has come; all of it but the tensors is in a checkpoint's header."""

    step: int = 0
    examples: int = 0
    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0
    before: float | None = None
    """The measure of the untrained module; None without evaluations."""
    best: float | None = None
    best_step: int = 0
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    """Mean loss and its parts over each twentieth of the steps."""
    window: list[dict[str, float]] = field(default_factory=list)
    """Loss and parts of the steps since the last point of the history."""

    def metrics(self, measure: str, unit: str) -> dict[str, Any]:
        """For an artifact's manifest; `measure` names what `evaluate` returns."""
        return {
            f"{measure} before": self.before,
            measure: self.best,
            "best_step": self.best_step,
            "steps": self.step,
            unit: self.examples,
            "tokens": self.tokens,
            "padding_share": round(1 - self.tokens / max(self.padded, 1), 4),
            f"{unit}_per_s": round(self.examples / max(self.seconds, 1e-9), 1),
            "training_seconds": round(self.seconds, 1),
            "evaluations": self.evaluations,
            "history": self.history,
        }


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name; a tied one appears once, as safetensors wants it."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def load_weights(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copies values of the same names into the module."""
    with torch.no_grad():
        for name, tensor in weights(module).items():
            tensor.copy_(values[name])


def save(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, best: Mapping[str, Tensor], progress: Progress
) -> None:
    """Replaces the checkpoint in `folder`: a reader finds the old one or the new one, never a part."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"module.{name}": tensor for name, tensor in weights(module).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for name, parameter in module.named_parameters():
        tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    file, temporary = folder / "state.safetensors", folder / f".state.{os.getpid()}.tmp"
    try:
        plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(plain, temporary, metadata={"progress": json.dumps(asdict(progress))})
        artifacts.fsync(temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    artifacts.fsync(folder)


def restore(
    folder: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]
) -> Progress | None:
    """Puts module, optimizer and best state back as they were saved; None when there is no checkpoint."""
    file = folder / "state.safetensors" if folder else None
    if file is None or not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as saved:
            tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 (not a mapping)
            fields = json.loads(saved.metadata()["progress"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise TrainingError(f"{file}: not a readable checkpoint ({error}); delete it and run again") from error
    load_weights(module, {name: tensors[f"module.{name}"] for name in weights(module)})
    best.update({name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")})
    for name, parameter in module.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"optimizer.{key}.{name}")) is not None:
                optimizer.state[parameter][key] = value.to(parameter.device)
    progress = Progress(**fields)
    progress.evaluations = [(int(step), value) for step, value in progress.evaluations]
    log.info("going on from step %d of a checkpoint", progress.step)
    return progress
