"""The time that a student's trainings take, by the manifests of the artifacts that it was made from."""

from collections.abc import Iterable
from pathlib import Path

from pipeline import artifacts
from pipeline.artifacts import Artifact

SECONDS = "training_seconds"
"""Metric of a trained model: seconds of all its steps and evaluations, those before the training was killed too."""


def seconds_of(workspace: Path, models: Iterable[Artifact], shared: Iterable[Artifact]) -> float:
    """Seconds of the trainings of models and of all models that they were made from, each once.

    So the time of a student is that of its assistants, further teachers and general distillation too.

    Args:
        workspace: the folder that holds `artifacts/`.
        models: trained models.
        shared: models whose training, and what they were made from, does not count.
    """
    known = _sources(workspace, shared)
    own = _sources(workspace, models)
    return sum(float(item.metrics.get(SECONDS, 0.0)) for name, item in own.items() if name not in known)


def _sources(workspace: Path, models: Iterable[Artifact]) -> dict[str, Artifact]:
    """Fingerprint → artifact, of these and of all that they were made from, as far as the workspace has them."""
    sources: dict[str, Artifact] = {}
    waiting = list(models)
    while waiting:
        item = waiting.pop()
        if item.fingerprint in sources:
            continue
        sources[item.fingerprint] = item
        for name in item.manifest.inputs:
            source = artifacts.input_of(workspace, item, name, verify=False)
            if source is not None:
                waiting.append(source)
    return sources
