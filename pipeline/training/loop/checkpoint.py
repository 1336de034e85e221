"""Checkpoints of a training: weights, optimizer, best state and progress, so that a killed training goes on.

    <folder>/step-00000120-<sha256>.safetensors    the newest
    <folder>/step-00000080-<sha256>.safetensors    the one before

A file's name holds the sha256 of its content, and the file appears under that name in one step. So a single flipped bit
is noticed before anything is loaded, and the checkpoint before is taken. Random generators need not be stored, as the
loop seeds them anew at each step.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline import disk
from pipeline.errors import ArtifactError
from pipeline.temporary import temporary_folder

KEPT = 2
"""Checkpoints on disk: the newest, and the one before in case the newest is damaged."""

UNCHECKED = "state.safetensors"
"""Name of the checkpoint that earlier versions wrote, without a checksum."""

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Progress:
    """The progress of a training: counters, best measure and history; JSON in the header of a checkpoint."""

    step: int = 0
    examples: int = 0
    tokens: int = 0
    padded: int = 0
    """Tokens with padding."""
    seconds: float = 0.0
    """Seconds since the first step, evaluations and earlier runs included."""
    preparation: float = 0.0
    """Seconds of the stage before its first step, in all its runs: reading, vectors, the first evaluation."""
    evaluation: float = 0.0
    """Seconds of the first evaluation; later ones take about as long."""
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
        """The entries for an artifact's manifest; `measure` names what `evaluate` returns."""
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
    """Adds a checkpoint to `folder` and removes those that are older than the one before.

    Raises:
        ArtifactError: the disk is full or cannot be written; the newest earlier checkpoint stays whole.
    """
    tensors = {f"module.{name}": tensor for name, tensor in weights(module).items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for name, parameter in module.named_parameters():
        tensors |= {f"optimizer.{key}.{name}": value for key, value in optimizer.state.get(parameter, {}).items()}
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in _newest_first(folder)[KEPT - 1 :]:
            old.unlink()
        with temporary_folder(folder / "step") as temporary:  # A folder, as the library makes temporaries of its own.
            written = temporary / "step.safetensors"
            save_file(plain, written, metadata={"progress": json.dumps(asdict(progress))})
            disk.fsync(written)
            file = folder / f"step-{progress.step:08}-{disk.sha256(written)}.safetensors"
            os.replace(written, file)
        for same_step in folder.glob(f"step-{progress.step:08}-*.safetensors"):
            if same_step != file:
                same_step.unlink()
        disk.fsync(folder)
    except (OSError, SafetensorError) as error:
        raise _not_written(folder, sum(tensor.nbytes for tensor in plain.values()), progress.step, error) from error


def _not_written(folder: Path, size: int, step: int, error: Exception) -> ArtifactError:
    earlier = _newest_first(folder)
    resumed = f"training goes on from {earlier[0].name}" if earlier else "there is no earlier checkpoint"
    return ArtifactError(
        f"{folder}: the checkpoint of step {step} could not be written ({error}); it takes {size / 2**20:.0f} MiB, "
        f"{disk.free_mib(folder):.0f} MiB are free on that disk. To go on, {disk.writing_advice(error)} and run again: "
        f"{resumed}"
    )


def restore(
    folder: Path | None, module: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]
) -> Progress | None:
    """Puts module, optimizer and best state back as the newest undamaged checkpoint has them.

    A damaged checkpoint is named in the log and removed, and the one before is tried. One that cannot be read stays, as
    its disk may only be away for a while.

    Raises:
        ArtifactError: the newest checkpoint cannot be read.

    Returns:
        None without a checkpoint that can be used: the training then starts from the beginning.
    """
    if folder is None or not folder.is_dir():
        return None
    if (folder / UNCHECKED).exists():
        log.warning("%s: a checkpoint of an earlier version, without a checksum, is not used", folder / UNCHECKED)
    files = _newest_first(folder)
    for file in files:
        try:
            with disk.kept_if_unreadable(file):
                tensors, progress = _read(file)
            _check_fit(tensors, module)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            log.warning("%s: a damaged checkpoint (%s); it is not used", file, error)
            file.unlink(missing_ok=True)
            continue
        _load(tensors, module, optimizer, best)
        log.info("going on from step %d of a checkpoint", progress.step)
        return progress
    if files:
        log.warning("%s: no checkpoint is whole, so the training starts from the beginning", folder)
    return None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)


def _read(file: Path) -> tuple[dict[str, Tensor], Progress]:
    """Tensors and progress of one checkpoint.

    Raises:
        ValueError: its content is not what was written.
    """
    if disk.sha256(file) != file.stem.rpartition("-")[2]:
        raise ValueError("its content is not what was written: the checksum in its name differs")
    with safe_open(file, framework="pt") as saved:
        tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 (not a mapping)
        progress = Progress(**json.loads(saved.metadata()["progress"]))
    progress.evaluations = [(int(step), value) for step, value in progress.evaluations]
    return tensors, progress


def _check_fit(tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    """Raises ValueError unless the checkpoint holds this module, name by name and shape by shape."""
    for name, tensor in weights(module).items():
        saved = tensors.get(f"module.{name}")
        if saved is None or saved.shape != tensor.shape:
            raise ValueError(f"it holds another model: {name} differs")


def _load(
    tensors: Mapping[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer, best: dict[str, Tensor]
) -> None:
    load_weights(module, dict(_without_prefix(tensors, "module.")))
    best.update(_without_prefix(tensors, "best."))
    for name, parameter in module.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := tensors.get(f"optimizer.{key}.{name}")) is not None:
                optimizer.state[parameter][key] = value.to(parameter.device)


def _without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((name.removeprefix(prefix), value) for name, value in tensors.items() if name.startswith(prefix))
