"""The contract by which a stage calls a model on many batches, in its own process or on other machines.

    vectors, teacher_scores ─► ComputeEngine.map(model, batches) ─► results in the order of the batches
                                     │
                      LocalEngine, in this process       RayEngine (pipeline.ray_engine), on workers of a Ray cluster

The stage writes down what it gets as it gets it, so a run that was killed goes on after the last result that was
written, whatever the engine. No result depends on the engine, so no fingerprint names it.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, MissingError

if TYPE_CHECKING:
    from pipeline.config import ComputeConfig

Batch = TypeVar("Batch")
Result = TypeVar("Result")


class ComputeEngine(Protocol):
    """Calls a model on batches."""

    def map(self, model: Callable[[Batch], Result], batches: Iterable[Batch], *, label: str) -> Iterator[Result]:
        """The model's result for each batch, in the order of the batches.

        Batches are drawn as results are taken, a bounded number ahead.

        Args:
            model: may be pickled and called in another process, on another machine; it loads what it needs when it is
                first called. It must give the same result for the same batch wherever it runs.
            batches: each may be pickled, and is independent of the others.
            label: the work in a few words, for the log and for errors.

        Raises:
            UnavailableError: machines were lost, and the work cannot go on.
            RelevanceError: whatever the model raised.
        """
        ...


class LocalEngine:
    """Calls the model in this process, one batch after the other."""

    def map(self, model: Callable[[Batch], Result], batches: Iterable[Batch], *, label: str) -> Iterator[Result]:
        """See `ComputeEngine.map`; a batch is drawn when its result is asked for."""
        del label  # The model shows its own progress.
        return map(model, batches)


LOCAL = LocalEngine()


def engine_of(config: "ComputeConfig") -> ComputeEngine:
    """The engine that the section compute of a recipe names. A cluster is connected to when there is work for it.

    Raises:
        MissingError: the extra `ray` is not installed.
    """
    if config.engine == "local":
        return LOCAL
    from pipeline.ray_engine import RayEngine

    return RayEngine(config)


_worker_threads: int | None = None


def worker_threads() -> int | None:
    """Threads that a model may use in this process, where it is a worker of a cluster; None in any other process."""
    return _worker_threads


def become_worker(threads: int) -> None:
    """Makes this process a worker whose models use `threads` threads."""
    global _worker_threads  # noqa: PLW0603
    _worker_threads = threads


@dataclass(frozen=True, slots=True)
class PinnedArtifact:
    """An artifact that another process reads from storage that both share: its path, and what it must hold."""

    path: Path
    kind: str
    digests: Mapping[str, str]
    """File → sha256."""

    @classmethod
    def of(cls, artifact: Artifact) -> "PinnedArtifact":
        """The artifact as it is here."""
        files = artifact.manifest.files
        return cls(
            artifact.path.absolute(), artifact.manifest.kind, {name: record.sha256 for name, record in files.items()}
        )

    def opened(self, *, verify: bool) -> Artifact:
        """The artifact as this process sees it.

        Args:
            verify: compare the content of the files too, not only their digests in the manifest.

        Raises:
            ArtifactError: it is not there, is damaged, or is another one; names the machine and the file.
        """
        machine = platform.node()
        try:
            artifact = artifacts.load(self.path, self.kind, verify=verify)
        except MissingError as error:
            raise ArtifactError(
                f"{self.path}: not there on {machine}; keep the workspace on storage that all machines of the cluster "
                "see by the same path"
            ) from error
        except ArtifactError as error:
            raise ArtifactError(f"on {machine}: {error}") from error
        digests = PinnedArtifact.of(artifact).digests
        for name in sorted({*self.digests, *digests}):
            if self.digests.get(name) != digests.get(name):
                raise ArtifactError(
                    f"{self.path / name}: another file on {machine} than where the work was started; keep the "
                    "workspace on storage that all machines of the cluster share"
                )
        return artifact
