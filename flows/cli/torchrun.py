"""Training commands under torchrun: process 0 runs the command, the other processes take part in its trainings.

    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \
        -m flows.cli retrain RECIPE --workspace SHARED

Data, indexes, exports, reports and releases are the work of process 0 alone. The other ones get a training's module and
data from it. Large files, such as the teacher's hidden states, they read from the workspace, so all machines share it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from flows.cli import surroundings
from pipeline.errors import GateError, InputError

LIBRARIES = ("search-relevance", "torch", "numpy", "transformers", "tokenizers", "safetensors")
"""Installed packages whose version must be the same in all processes."""

PACKAGES = ("pipeline", "index", "serving", "flows")
"""Packages whose files must be the same for all processes."""

COMMANDS: list[str] = []
"""The names of the commands that torchrun may start."""


def watched() -> AbstractContextManager[None]:
    """A context in which the processes that torchrun started end together; without torchrun it does nothing."""
    if surroundings.torchrun_rank() is None:
        return nullcontext()
    from pipeline.training.loop import peers

    return peers.watched()


def require_training(command: str | None) -> None:
    """Raises InputError where torchrun started several processes of a command that trains nothing."""
    if surroundings.torchrun_rank() is not None and command not in COMMANDS:
        raise InputError(f"torchrun starts {', '.join(COMMANDS)}; start `relevance {command or ''}` without it")


def training_command(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command that trains, so that torchrun may start it. The command has a workspace and a recipe."""
    COMMANDS.append(command.__name__)

    @functools.wraps(command)
    def run(**options: Any) -> None:
        local_rank = surroundings.torchrun_rank()
        if local_rank is None:
            command(**options)
        else:
            _run_distributed(command, options, local_rank)

    return run


def _run_distributed(command: Callable[..., None], options: Mapping[str, Any], local_rank: int) -> None:
    """Runs the command as process 0; as any other, takes part in its trainings until it ends."""
    from pipeline.training.loop import distributed, loop, peers

    peers.agree(options["workspace"], _settings(command.__name__, options))
    distributed.join(local_rank)
    if distributed.process():
        distributed.follow(loop.follow)
        return
    try:
        command(**options)
    except GateError:  # The training ended well, so the other processes may end too.
        distributed.leave()
        raise
    distributed.leave()


def _settings(command: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Everything that must be the same for all processes, by its name in a message."""
    import platform
    from importlib import metadata

    import torch

    from flows.built_in_recipes import RECIPES
    from pipeline import disk
    from pipeline import recipe as recipes
    from pipeline.training.loop.loop import bf16_is_native

    root = Path(__file__).parents[2]
    recipe = recipes.load(Path(options.get("recipe", RECIPES / f"{command}.toml")), options["overrides"] or [])
    given = {name: value for name, value in options.items() if name not in ("workspace", "recipe", "overrides")}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "the command": f"{command} {given}",
        **{f"the recipe's {key}": value for key, value in _flat(recipes.to_dict(recipe, complete=True))},
        "Python": platform.python_version(),
        **{library: metadata.version(library) for library in LIBRARIES},
        "the device": device.type,
        "bf16 on it": str(bf16_is_native(device)),
        **{
            f"the file {path.relative_to(root)}": disk.sha256(path)[:12]
            for package in PACKAGES
            for path in sorted((root / package).rglob("*.py"))
        },
    }


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and texts of nested values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value)
