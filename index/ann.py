"""Faiss indexes of vectors, of one file or of segments: reading them, and searching all rows or some."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from index.segments import SegmentMap
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError

FILE = "vectors.faiss"
BLOCK = 1 << 16
"""Stored vectors in memory at once."""

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@contextmanager
def one_thread() -> Iterator[None]:
    """Sets OpenMP to one thread within the block, and to its former number afterwards.

    OpenMP keeps the number for each calling thread and shares it with PyTorch: left at one, the next training in this
    process would be half as fast and, as sums are then cut otherwise, differ in its last bits.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows that a search inside an index may find."""

    total: int
    """Documents in the index."""
    rows: npt.NDArray[np.int64]
    nprobe: int
    """Lists to visit; 0 in an exact index."""

    def parameters(self) -> Any:
        """Faiss's search parameters; they must live as long as the search."""
        marks = np.zeros(self.total, bool)
        marks[self.rows] = True
        loosely: Any = faiss  # Its type stubs do not know what Python may pass here.
        selector = loosely.IDSelectorBitmap(np.packbits(marks, bitorder="little"))
        if self.nprobe:
            return loosely.SearchParametersIVF(sel=selector, nprobe=self.nprobe)
        return loosely.SearchParameters(sel=selector)


class SegmentedVectors:
    """The Faiss indexes of several segments, searched as one; each has its rows, and tombstones that no search finds.

    It answers like a Faiss index, in rows of the whole; so an index of one file and one of many are used alike.
    """

    def __init__(self, parts: list[Any], layout: SegmentMap) -> None:
        self._parts, self._layout = parts, layout
        self._rows = [layout.rows_of(number) for number in range(len(parts))]
        self._living = [_living(part, rows) for part, rows in zip(parts, self._rows, strict=True)]
        self.d = int(parts[0].d)
        self.ntotal = sum(int((rows >= 0).sum()) for rows in self._rows)

    @classmethod
    def read(cls, artifact: Artifact, layout: SegmentMap) -> "SegmentedVectors":
        """The segments of an artifact.

        Raises:
            ArtifactError: a file that cannot be read, or that holds another number of vectors.
        """
        parts = []
        for segment in layout.segments:
            path = artifact.file(segment.file(FILE))
            parts.append(read_ann(path))
            if parts[-1].ntotal != segment.documents or parts[-1].d != parts[0].d:
                raise ArtifactError(
                    f"{path}: holds {parts[-1].ntotal} vectors of {parts[-1].d} dimensions, {segment.documents} of "
                    f"{parts[0].d} are listed; {artifacts.remedy(path)}"
                )
        return cls(parts, layout)

    def search(self, queries: Vectors, k: int) -> tuple[Vectors, Rows]:
        """Scores and rows of the nearest k of each query, both (queries, k); row -1 where fewer are found."""
        answers = []
        for part, living, own in zip(self._parts, self._living, self._rows, strict=True):
            scores, numbers = part.search(queries, min(k, part.ntotal), params=living)
            answers.append((scores, _mapped(own, numbers)))
        return _nearest(answers, k)

    def search_selected(self, query: Vectors, k: int, selection: "Selection") -> tuple[Vectors, Rows]:
        """Scores and rows of the k nearest to a query among selected rows, both (k,); row -1 where there are fewer."""
        answers = []
        located = self._layout.located(selection.rows)
        for part, own, (_, chosen) in zip(self._parts, self._rows, located, strict=True):
            if len(chosen):
                inside = Selection(part.ntotal, chosen, selection.nprobe if is_inverted(part) else 0)
                scores, numbers = part.search(query[None], min(k, len(chosen)), params=inside.parameters())
                answers.append((scores, _mapped(own, numbers)))
        scores, rows = _nearest(answers, k)
        return scores[0], rows[0]

    def reconstruct_batch(self, rows: Rows) -> Vectors:
        """The stored vectors of these rows, (rows, dimensions)."""
        vectors = np.empty((len(rows), self.d), np.float32)
        for part, (held, numbers) in zip(self._parts, self._layout.located(rows), strict=True):
            if len(held):
                vectors[held] = part.reconstruct_batch(numbers)
        return vectors


def _living(part: Any, rows: npt.NDArray[np.int32]) -> Any:
    """The parameters of a search among the living documents of a segment; None where all live."""
    alive = np.flatnonzero(rows >= 0)
    nprobe = int(part.nprobe) if is_inverted(part) else 0
    return None if len(alive) == len(rows) else Selection(len(rows), alive, nprobe).parameters()


def is_inverted(ann: Any) -> bool:
    """Whether a Faiss index has inverted lists, of which a search visits some."""
    return isinstance(ann, faiss.IndexIVF)


def _mapped(rows: npt.NDArray[np.int32], numbers: Rows) -> Rows:
    """The rows of documents by their numbers in a segment; -1 for the number -1, where Faiss found nothing."""
    return np.where(numbers >= 0, rows[numbers], -1).astype(np.int64)


def _nearest(answers: list[tuple[Vectors, Rows]], k: int) -> tuple[Vectors, Rows]:
    """The nearest k of several lists of a query, nearest first; of equally near ones the first row first."""
    scores = np.concatenate([scores for scores, _ in answers], axis=1)
    rows = np.concatenate([rows for _, rows in answers], axis=1)
    scores[rows < 0] = -np.inf
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    missing = ((0, 0), (0, max(k - scores.shape[1], 0)))
    return np.pad(scores, missing, constant_values=-np.inf), np.pad(rows, missing, constant_values=-1)


def search_selected(ann: Any, query: Vectors, k: int, selection: Selection) -> tuple[Vectors, npt.NDArray[np.int64]]:
    """Scores and rows of the nearest k of the selected rows, both (k,); row -1 where the visited lists hold fewer."""
    with one_thread():
        if isinstance(ann, SegmentedVectors):
            return ann.search_selected(query, k, selection)
        scores, rows = ann.search(query[None], k, params=selection.parameters())
    return scores[0], rows[0]


def similarities(ann: Any, query: Vectors, rows: npt.NDArray[np.int64]) -> Vectors:
    """Cosine of a query with each of these stored vectors, (rows,), a block at a time in memory."""
    parts = [np.zeros(0, np.float32)]
    with one_thread():
        for start in range(0, len(rows), BLOCK):
            parts.append(ann.reconstruct_batch(rows[start : start + BLOCK]) @ query)  # (block, dimensions) → (block,)
    return np.concatenate(parts)


def load(artifact: Artifact, vectors: int) -> Any:
    """The Faiss index of an artifact: one index, or several segments that answer as one.

    Args:
        artifact: an `index` artifact.
        vectors: the number of vectors that it must hold.

    Raises:
        ArtifactError: a file that cannot be read, or files that do not belong together.
    """
    layout = SegmentMap.read(artifact, vectors)
    return read_ann(artifact.file(FILE)) if layout.rows is None else SegmentedVectors.read(artifact, layout)


def read_ann(path: Path) -> Any:
    """The Faiss index in a file, able to search and to give vectors back by row.

    Raises:
        ArtifactError: not a readable Faiss file.
    """
    try:
        ann = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactError(f"{path}: not a readable Faiss index ({error}); build the index again") from error
    if isinstance(ann, faiss.IndexIVF):
        ann.make_direct_map()  # row → position in the lists, 8 bytes a document
    return ann
