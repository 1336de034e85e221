"""Vectors that an encoder gave before: segments that new ones share, and single vectors by the digest of their text."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from index import segments, vector_matrix
from index.digests import as_bytes
from index.segments import StoredSegment
from index.vector_matrix import FILE, KIND, Vectors
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, RelevanceError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedVectors:
    """The segments of earlier vectors that new ones share."""

    segments: Sequence[StoredSegment] = ()
    dimensions: int | None = None
    """None where there are no segments."""

    @classmethod
    def of(cls, previous: Sequence[Artifact], encoder_digest: str, field: str) -> "SharedVectors":
        """The first earlier artifact of the same encoder and field. A damaged one is named in the log and left out."""
        for artifact in previous:
            config = artifact.manifest.config
            if config.get("encoder_digest") != encoder_digest or config.get("field", "") != field:
                continue
            try:
                artifacts.load(artifact.path, KIND)
                return cls(vector_matrix.stored_segments(artifact), int(artifact.metrics["dimensions"]))
            except (RelevanceError, OSError, ValueError) as error:  # pyarrow's errors are among these.
                log.warning("vectors: not reused: %s", error)
        return cls()


class KnownVectors:
    """Known vectors of needed texts, by the digest of the text."""

    def __init__(self, dimensions: int | None = None) -> None:
        """
        Args:
            dimensions: width of the segments that are shared; None where there are none.
        """
        self._dimensions = dimensions
        self._rows: dict[bytes, int] = {}
        self._blocks: list[Vectors] = []
        self._ends: list[int] = []

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._rows

    def missing(self, digests: Iterable[bytes]) -> int:
        """Number of these digests whose vectors are not known; equal ones count each."""
        return sum(digest not in self for digest in digests)

    def add(self, digests: Iterable[bytes], vectors: Vectors, rows: Iterable[int] | None = None) -> None:
        """Adds the vectors of texts.

        Args:
            rows: the row of each digest in `vectors`; all, in order, where None.

        Raises:
            ArtifactError: the vectors have another width than those that are known.
        """
        self._dimensions = self._dimensions or vectors.shape[1]
        if vectors.shape[1] != self._dimensions:
            raise ArtifactError(
                f"vectors: the encoder gives {vectors.shape[1]} dimensions now and gave {self._dimensions} before; "
                "its digest must change with its width"
            )
        start = self._ends[-1] if self._ends else 0
        self._blocks.append(vectors)
        self._ends.append(start + len(vectors))
        for digest, row in zip(digests, range(len(vectors)) if rows is None else rows, strict=True):
            self._rows.setdefault(digest, start + row)

    def reuse(self, previous: Sequence[Artifact], encoder_digest: str, needed: Iterable[bytes]) -> None:
        """Adds earlier vectors until no needed text is missing. A damaged artifact is named in the log and left out."""
        missing = set(needed)
        seen = set[str]()
        for artifact in previous:
            if not missing:
                return
            made_by = artifact.manifest.config.get("encoder_digest")
            if artifact.manifest.kind != KIND or made_by != encoder_digest:
                log.info("vectors: %s is of another encoder (%s), so it is not reused", artifact.path, made_by)
                continue
            try:
                for segment in vector_matrix.stored_segments(artifact):
                    # A folder's name stands for its texts: a segment that many artifacts share is looked at once.
                    if segment.path.name not in seen:
                        self._take(artifact, segment, missing)
                        seen.add(segment.path.name)
            except (RelevanceError, OSError, ValueError) as error:  # pyarrow's errors are among these.
                log.warning("vectors: not reused: %s", error)

    def _take(self, artifact: Artifact, segment: StoredSegment, missing: set[bytes]) -> None:
        """Adds the vectors of missing texts in one segment, and takes these texts from `missing`."""
        held = as_bytes(segment.digests)
        rows = [row for row, digest in enumerate(held) if digest in missing]
        if rows:
            artifacts.load(artifact.path, KIND)
            chosen = [held[row] for row in rows]
            self.add(chosen, segments.read_array(segment.path / FILE), rows)
            missing.difference_update(chosen)

    @property
    def dimensions(self) -> int:
        """Width of the vectors; one at least is known."""
        assert self._dimensions is not None
        return self._dimensions

    def take(self, digests: Sequence[bytes]) -> Vectors:
        """(digests, dimensions) vectors; each digest must be known."""
        rows = np.array([self._rows[digest] for digest in digests], np.int64)
        owners = np.searchsorted(self._ends, rows, side="right")
        vectors = np.empty((len(rows), self.dimensions), np.float32)
        for owner in np.unique(owners).tolist():
            chosen = owners == owner
            block = self._blocks[owner]
            vectors[chosen] = block[rows[chosen] - (self._ends[owner] - len(block))]
        return vectors
