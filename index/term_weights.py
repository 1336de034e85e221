"""The weight of a term in the documents that have it: segments of a lexical index as a search reads them.

    BM25    times × idf × count / (count + norm)
    idf     ln(1 + (living − holders + 1/2) / (holders + 1/2)), over the living documents of all segments
    norm    k1 × (1 − b + b × length / average length of the living documents); infinite for a tombstone

A norm is computed once for each document, when an index is loaded; idf and fraction when a query asks for them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from index.postings import Postings
from index.segments import SegmentMap, read_array
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.text import counted

HOLDERS = "holders.npy"
"""The file of an index of several segments with the number of living documents of each term, segment after segment."""

COLLECTION = "collection.json"
"""The file of a shard with the statistics of the whole collection; see `index.shards`."""

Indices = slice | npt.NDArray[np.int64]
"""Indices into a list of documents."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LengthNorm:
    """The norm of a document by its length; see above."""

    k1: float
    b: float
    average: float
    """Mean number of terms of the living documents of the whole collection."""

    def of(self, lengths: npt.NDArray[np.int32]) -> Floats:
        """The norms of documents with these numbers of terms, (documents,)."""
        return (self.k1 * (1 - self.b + self.b * lengths / self.average)).astype(np.float32)


class LexicalSegment(Protocol):
    """One segment: the documents of each term, numbered from 0, and the weight of the term in them."""

    documents: int

    def bounds(self, term: str) -> tuple[int, int] | None:
        """Start and end of a term's list; None where no document has the term."""

    def holders(self, term: str) -> int:
        """The number of living documents that have the term."""

    def listed(self, bounds: tuple[int, int]) -> npt.NDArray[np.int32]:
        """The documents of a list, ascending; tombstones are among them."""

    def weights(self, bounds: tuple[int, int], indices: Indices) -> Floats:
        """The weights in the documents at some indices of a list, (indices,); 0 for a tombstone."""


class CountedSegment:
    """Postings of counts, weighed by the norms of their documents."""

    def __init__(self, postings: Postings, holders: npt.NDArray[np.int32], norms: Floats) -> None:
        self.documents = len(norms)
        self._columns = {term: column for column, term in enumerate(postings.terms)}
        self._postings, self._holders, self._norms = postings, holders, norms

    def bounds(self, term: str) -> tuple[int, int] | None:
        column = self._columns.get(term)
        if column is None:
            return None
        starts = self._postings.starts
        return int(starts[column]), int(starts[column + 1])

    def holders(self, term: str) -> int:
        column = self._columns.get(term)
        return 0 if column is None else int(self._holders[column])

    def listed(self, bounds: tuple[int, int]) -> npt.NDArray[np.int32]:
        return self._postings.documents[slice(*bounds)]

    def weights(self, bounds: tuple[int, int], indices: Indices) -> Floats:
        counts = self._postings.counts[slice(*bounds)][indices].astype(np.float32)
        norms = self._norms[self.listed(bounds)[indices]]
        norms += counts
        return np.divide(counts, norms, out=counts)


class WeighedSegment:
    """The matrix of bm25s, with final scores, as indexes from before segments have it."""

    FILES = ("vocab.index.json", "data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy")

    def __init__(self, artifact: Artifact, documents: int, *, verify: bool) -> None:
        self.documents = documents
        names, *arrays = (artifact.file(name) for name in self.FILES)
        try:
            self._columns: Mapping[str, int] = json.loads(names.read_bytes())
        except ValueError as error:
            raise ArtifactError(f"{names}: not a readable vocabulary ({error}); build the index again") from error
        self._scores, self._rows, self._starts = (read_array(path) for path in arrays)
        scores, rows, starts = self._scores, self._rows, self._starts
        if not (len(starts) == len(self._columns) + 1 and starts[-1] == len(scores) == len(rows)):
            raise ArtifactError(
                f"{artifact.path}: {len(self._columns)} terms, {len(starts) - 1} lists that end at {starts[-1]}, "
                f"{len(scores)} scores and {counted(len(rows), 'row')} do not belong together; build the index again"
            )
        if verify:
            sound = starts[0] == 0 and bool((np.diff(starts) >= 0).all()) and bool(np.isfinite(scores).all())
            if not sound or (len(rows) and not (rows.min() >= 0 and rows.max() < documents)):
                raise ArtifactError(
                    f"{artifact.path}: its lists overlap, hold a score that is not finite, or name rows beyond "
                    f"{counted(documents, 'document')}; {artifacts.remedy(artifact.path)}"
                )

    def bounds(self, term: str) -> tuple[int, int] | None:
        column = self._columns.get(term)
        return None if column is None else (int(self._starts[column]), int(self._starts[column + 1]))

    def holders(self, term: str) -> int:
        start, end = self.bounds(term) or (0, 0)
        return end - start

    def listed(self, bounds: tuple[int, int]) -> npt.NDArray[np.int32]:
        rows: npt.NDArray[np.int32] = self._rows[slice(*bounds)]
        return rows

    def weights(self, bounds: tuple[int, int], indices: Indices) -> Floats:
        scores: Floats = self._scores[slice(*bounds)][indices]
        return scores


def idf(living: int, holders: int) -> float:
    """The inverse document frequency of a term, in Lucene's form, which is above 0.

    Args:
        living: number of documents without tombstones.
        holders: number of these that have the term.
    """
    return math.log(1 + (living - holders + 0.5) / (holders + 0.5))


def load_counted(artifact: Artifact, layout: SegmentMap, *, verify: bool) -> tuple[list[LexicalSegment], LengthNorm]:
    """The segments of an index of postings, and the norm of their documents.

    Raises:
        ArtifactError: a file that cannot be read, by name, or files that do not belong together.
    """
    folders = [artifact.path / segment.folder for segment in layout.segments]
    postings = [Postings.read(folder) for folder in folders]
    for folder, item, segment in zip(folders, postings, layout.segments, strict=True):
        if len(item.lengths) != segment.documents:
            raise ArtifactError(
                f"{folder}: {len(item.lengths)} lengths and {counted(segment.documents, 'document')} do not belong "
                f"together; {artifacts.remedy(folder)}"
            )
        if verify:
            item.check(folder)
    alive = [layout.rows_of(number) >= 0 for number in range(len(postings))]
    total = sum(int(item.lengths[living].sum(dtype=np.int64)) for item, living in zip(postings, alive, strict=True))
    documents = sum(int(living.sum()) for living in alive)
    if COLLECTION in artifact.manifest.files:
        collection = read_collection(artifact)
        total, documents = collection["terms"], collection["documents"]
    k1, b = (float(artifact.manifest.config[name]) for name in ("k1", "b"))
    norm = LengthNorm(k1, b, total / documents)
    segments: list[LexicalSegment] = []
    for item, living, holders in zip(postings, alive, _holders(artifact, postings), strict=True):
        norms = norm.of(item.lengths)
        norms[~living] = np.inf
        segments.append(CountedSegment(item, holders, norms))
    return segments, norm


def read_collection(artifact: Artifact) -> Mapping[str, Any]:
    """Reads the statistics of the whole collection, of which an index holds one shard: its `documents` and `terms`.

    Raises:
        ArtifactError: the file cannot be read, or a number is missing.
    """
    path = artifact.file(COLLECTION)
    try:
        collection: Mapping[str, Any] = json.loads(path.read_bytes())
        if not (collection["documents"] > 0 and collection["terms"] >= 0):
            raise ValueError("its numbers are not above 0")
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: not readable ({error!r}); {artifacts.remedy(path)}") from error
    return collection


def _holders(artifact: Artifact, postings: list[Postings]) -> list[npt.NDArray[np.int32]]:
    if HOLDERS not in artifact.manifest.files:
        return [np.diff(item.starts).astype(np.int32) for item in postings]
    path: Path = artifact.file(HOLDERS)
    held: npt.NDArray[Any] = read_array(path)
    ends = np.cumsum([len(item.terms) for item in postings])
    if len(held) != ends[-1]:
        raise ArtifactError(f"{path}: {len(held)} numbers for {ends[-1]} terms; {artifacts.remedy(path)}")
    return np.split(held, ends[:-1])
