"""The matrix of a `vectors` artifact: one file of all vectors, or one file a segment, which re-indexes share.

vectors.npy, rows.parquet           a fresh embedding; digests.npy too, except in artifacts from before segments
segments.json, rows.npy             after a re-index (see `index.segments`), with rows.parquet of the whole
<name>/vectors.npy, digests.npy     each segment
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from index import segments
from index.digests import Rows
from index.segments import DIGESTS, SegmentMap, StoredSegment, read_array
from index.vector_texts import text_digests
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.text import counted

KIND = "vectors"
FILE = "vectors.npy"
BLOCK = 1 << 16
"""Vectors in memory at once."""

Vectors = npt.NDArray[np.float32]
TOLERANCE = 1e-3
"""Largest distance of a vector's length from 1."""


def unit_vectors(embedded: np.ndarray, ids: Sequence[str], kind: str = "document") -> Vectors:
    """The vectors that an encoder gave, (ids, dimensions), after a check.

    Args:
        ids: the ids of the documents or queries, for messages.
        kind: document or query.

    Raises:
        ArtifactError: another number of vectors, or one that is not of unit length or not finite; names its id.
    """
    vectors: Vectors = np.ascontiguousarray(embedded, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(ids):
        raise ArtifactError(
            f"vectors: the encoder gave an array of {vectors.shape} for {counted(len(ids), kind)}; it must give "
            "(texts, dimensions)"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= TOLERANCE))  # A length that is not a number is wrong too.
    if len(wrong):
        raise ArtifactError(
            f"vectors: the vector of {kind} '{ids[wrong[0]]}' has length {lengths[wrong[0]]}, not 1 "
            f"({len(wrong)} of {len(ids)} in its batch); export the encoder again in fp32 and compare"
        )
    return vectors


class SegmentedMatrix:
    """(vectors, dimensions) float32, read from the files of several segments as parts of it are asked for.

    It is indexed like an array, by a slice or by an array of rows, and gives arrays.
    """

    ndim = 2

    def __init__(self, parts: Sequence[Vectors], layout: SegmentMap) -> None:
        assert layout.positions is not None
        self._parts, self._layout = parts, layout
        self.shape = len(layout.positions), int(parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    def __getitem__(self, chosen: slice | Rows) -> Vectors:
        """The vectors of a slice, or of an array of rows of any shape: (*rows, dimensions)."""
        rows = np.arange(*chosen.indices(len(self))) if isinstance(chosen, slice) else np.asarray(chosen, np.int64)
        flat = np.where(rows.ravel() < 0, rows.ravel() + len(self), rows.ravel())
        vectors = np.empty((0, self.shape[1]), np.float32)
        for part, (held, numbers) in zip(self._parts, self._layout.located(flat), strict=True):
            if len(held) == len(flat):  # Most blocks lie in one segment, and most of these in its order.
                in_order = len(numbers) and np.all(np.diff(numbers) == 1)
                vectors = part[numbers[0] : numbers[-1] + 1] if in_order else part[numbers]
                break
            if not len(vectors):
                vectors = np.empty((len(flat), self.shape[1]), np.float32)
            vectors[held] = part[numbers]
        return vectors.reshape(*rows.shape, self.shape[1])

    def __matmul__(self, vector: Vectors) -> Vectors:
        """The product with a vector (dimensions,) → (vectors,), a block at a time in memory."""
        return np.concatenate([self[start : start + BLOCK] @ vector for start in range(0, len(self), BLOCK)])


Matrix = Vectors | SegmentedMatrix


def count(metrics: Mapping[str, Any]) -> int:
    """The number of vectors of a `vectors` artifact, by its metrics; passages of a document count each."""
    name = next(name for name in ("passages", "with_vectors", "documents") if name in metrics)
    return int(metrics[name])


def read(vectors: Artifact) -> Matrix:
    """The matrix of a `vectors` artifact, (vectors, dimensions), mapped into memory.

    Raises:
        ArtifactError: a file that cannot be read, or files that do not belong together.
    """
    layout = SegmentMap.read(vectors, count(vectors.metrics))
    parts = []
    for segment in layout.segments:
        path = vectors.file(segment.file(FILE))
        parts.append(read_array(path))
        if parts[-1].ndim != 2 or not parts[-1].shape[1]:
            raise ArtifactError(
                f"{path}: an array of {parts[-1].shape}, not of (documents, dimensions); {artifacts.remedy(path)}"
            )
        if len(parts[-1]) != segment.documents or parts[-1].shape[1] != parts[0].shape[1]:
            raise ArtifactError(
                f"{path}: holds {len(parts[-1])} vectors of {parts[-1].shape[1]} dimensions, {segment.documents} of "
                f"{parts[0].shape[1]} are listed; {artifacts.remedy(path)}"
            )
    return parts[0] if layout.rows is None else SegmentedMatrix(parts, layout)


def stored_segments(vectors: Artifact) -> list[StoredSegment]:
    """The segments of a `vectors` artifact; one from before segments is a single one.

    Raises:
        ArtifactError: the list or the digests cannot be read.
    """
    files = vectors.manifest.files
    if segments.LIST in files or DIGESTS in files:
        return segments.stored_segments(vectors, [FILE])
    records = {FILE: files[FILE]} if FILE in files else {}
    return [StoredSegment(vectors.path, records, text_digests(vectors.file("rows.parquet")))]
