"""A runner runs one named stage, as a plain call or as a Prefect task."""

import logging
from collections.abc import Callable
from typing import Protocol

from pipeline.artifacts import Artifact

log = logging.getLogger(__name__)


class Runner(Protocol):
    """Runs one named stage; may record and retry it."""

    def __call__(self, name: str, stage: Callable[[], Artifact]) -> Artifact: ...


def directly(name: str, stage: Callable[[], Artifact]) -> Artifact:
    """Runs a stage as a plain call, with one line before it."""
    log.info("── %s", name)
    return stage()
