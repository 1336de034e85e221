"""Runs the stages of a flow in one workspace, each as a plain call or as a Prefect task."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol

from pipeline import compute, progress
from pipeline.artifacts import Artifact
from pipeline.compute import ComputeEngine
from pipeline.stage import stage_of

P = ParamSpec("P")

log = logging.getLogger(__name__)


class Execute(Protocol):
    """Executes one named stage; may record and retry it."""

    def __call__(self, name: str, stage: Callable[[], Artifact]) -> Artifact: ...


def directly(name: str, stage: Callable[[], Artifact]) -> Artifact:
    """Executes a stage as a plain call."""
    log.debug("%s: begins", name)
    return stage()


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs stages in a workspace: `run(lexical_build.make, recipe.index, data=data)`."""

    workspace: Path
    execute: Execute = directly
    label: str = ""
    """Prefix of the stages' names in the log, to tell apart stages that run more than once."""
    engine: ComputeEngine = compute.LOCAL
    """Engine that embeds documents and scores pairs, on this machine or on a Ray cluster; passed to stages that do."""
    reported: set[str] = field(default_factory=set, compare=False)
    """Fingerprints of the artifacts that a log line has named."""

    def __call__(
        self, stage: Callable[Concatenate[Path, P], Artifact], /, *args: P.args, **kwargs: P.kwargs
    ) -> Artifact:
        """The artifact of a stage's function, called with the workspace and these arguments.

        A log line says that it is made, or, the first time that it is met, that it was there already.
        """
        name, began = self.name(stage), time.monotonic()
        artifact = self.execute(name, partial(stage, self.workspace, *args, **kwargs))
        if artifact.is_new:
            log.info("%s: made in %s", name, progress.duration(time.monotonic() - began))
        elif artifact.fingerprint not in self.reported:
            log.info("%s: there already", name)
        self.reported.add(artifact.fingerprint)
        return artifact

    def labelled(self, label: str) -> "Runner":
        """The same runner with one more label before the names."""
        return replace(self, label=f"{self.label}{label}: ")

    def name(self, stage: Callable[..., Artifact]) -> str:
        """The name of a stage in logs and in Prefect."""
        declared = stage_of(stage)
        if declared is None:
            raise TypeError(f"{stage!r} is no stage; decorate the function with its Stage")
        return f"{self.label}{declared.name}"
