"""Maps the vectors of a semantic index to documents: one vector a document, none for some, or one a passage."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index.digests import Rows
from pipeline.errors import ArtifactError

Spans = npt.NDArray[np.int32]
"""(vectors, 2): where the text of each vector begins and ends in its document, in characters."""


@dataclass(frozen=True, slots=True)
class FoundPassage:
    """The passage of a document whose vector is nearest to a query's."""

    start: int
    """Where it begins in the document as the models read it, title first, in characters."""
    end: int
    number: int
    """Number of the passage within its document, from 1."""
    of: int
    """Number of passages of the document."""


@dataclass(frozen=True, slots=True)
class VectorRows:
    """The documents of vectors, by the positions of the vectors in the index."""

    vectors: int
    """Number of vectors."""
    rows: Rows | None = None
    """(vectors,) row of each vector's document among all documents, ascending; None where position and row are the
    same."""
    spans: Spans | None = None
    """None where the text of every vector is a whole document."""

    @classmethod
    def read(cls, path: Path, vectors: int) -> "VectorRows":
        """Reads documents and spans from a rows.parquet; either is None where the file lacks its columns.

        Args:
            path: the file.
            vectors: number of vectors that it must describe.

        Raises:
            ArtifactError: the documents do not ascend, or one without passages has several vectors.
        """
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            names = [name for name in ("document", "start", "end") if name in file.schema_arrow.names]
            if not names:
                return cls(vectors)
            # Batches to plain arrays: read_table and to_numpy would load pandas, half a second in the service.
            batches = [[np.asarray(batch.column(name)) for name in names] for batch in file.iter_batches(columns=names)]
        empty = [np.zeros(0, np.int64)] * len(names)
        rows, *ends = (np.concatenate(column) for column in zip(empty, *batches, strict=True))
        least = 0 if ends else 1  # Passages of one document stand beside each other.
        if len(rows) and (rows[0] < 0 or bool((np.diff(rows) < least).any())):
            raise ArtifactError(f"{path}: its document rows do not ascend; build the index again")
        return cls(vectors, rows.astype(np.int64), np.stack(ends, 1).astype(np.int32) if ends else None)

    @property
    def documents(self) -> int:
        """Number of documents that have a vector."""
        return self.vectors if self.rows is None else int(np.count_nonzero(np.diff(self.rows, prepend=-1)))

    def located(self, rows: Rows) -> tuple[Rows, Rows]:
        """The positions of all vectors of these documents, and for each the index into `rows` of its document."""
        if self.rows is None:
            return rows, np.arange(len(rows))
        first, last = (np.searchsorted(self.rows, rows, side) for side in ("left", "right"))
        counts = last - first
        owners = np.repeat(np.arange(len(rows)), counts)
        before = np.cumsum(counts) - counts  # Vectors of the documents ahead of each.
        return np.arange(len(owners)) + np.repeat(first - before, counts), owners

    def best(self, positions: Rows, scores: npt.NDArray[np.float32]) -> dict[int, int]:
        """Row of each document → position of its vector with the highest score; of equal ones, the first.

        Args:
            positions: positions of the vectors that are compared.
            scores: (positions,) of these vectors.
        """
        order = np.lexsort((-positions, scores))  # Ascending, so the best vector of a document is set last.
        rows = positions if self.rows is None else self.rows[positions]
        return dict(zip(rows[order].tolist(), positions[order].tolist(), strict=True))

    def passage(self, position: int) -> FoundPassage | None:
        """The passage of a vector; None where its text is a whole one."""
        if self.rows is None or self.spans is None:
            return None
        first, last = (int(np.searchsorted(self.rows, self.rows[position], side)) for side in ("left", "right"))
        if last - first == 1:
            return None
        start, end = self.spans[position].tolist()
        return FoundPassage(start=start, end=end, number=position - first + 1, of=last - first)
