"""Types of semantic index, and the choice of one by the recall and the bytes a document that a recipe asks for.

    exact    Flat                             4 bytes a dimension; every vector is compared
    fp32     IVF n,Flat                       4 bytes a dimension and 8 a document
    fp16     IVF n,SQfp16                     2 bytes a dimension and 8 a document
    int8     IVF n,SQ8                        1 byte a dimension and 8 a document
    4 bits   IVF n,PQ d/2x4fsr,Refine(SQ4)    3/4 byte a dimension and 8 a document; a fast scan, its best refined

Measured at 64 dimensions and 1,000,000 documents: fp16 loses nothing that shows; int8 loses about 2 of the nearest
100 however many lists are visited; the fast scan loses 6 or more, with a sharper refinement than this one. So each is
taken only where the limit of bytes excludes the one before. HNSW was larger, slower to build and cannot delete.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from pipeline import progress
from pipeline.config import IndexConfig
from pipeline.errors import ConfigError
from pipeline.text import counted

POINTS_PER_LIST = 39
"""Vectors that each list's centre is learned from. More made the build longer and the recall no better."""
ROUNDS = 6
"""Rounds of k-means. Over a million vectors, more rounds let a search visit at most a tenth fewer vectors."""
ROOTS = 8
"""Number of inverted lists, as a multiple of the square root of the documents. Over a million vectors 8,192
lists reach recall 0.98 in 0.19 ms where 4,096 took 0.32 ms, for 20 CPU-seconds more and a byte a document."""
REFINED = 16
"""Candidates of the fast scan that are compared again, for each document that a search asks for."""
FEWEST_FOR_CODES = 16 * 39
"""Minimum number of documents from which a code book of 16 entries is learned."""
BLOCK = 1 << 16
"""Vectors that are added at once."""
ENCODING_S = 2e-8
"""Seconds to encode a dimension of a document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexType:
    """A type of index that may be built, and its cost."""

    factory: str
    """Faiss factory string."""
    reason: str
    """The sentence that the report gives for the choice."""
    bytes_per_document: float
    lists: int
    """Inverted lists; 0 for an exact index."""

    def seconds(self, rows: int, dimensions: int) -> float:
        """Estimates the time to learn the lists and add all documents, from a timed sample on this machine."""
        encoding = rows * dimensions * ENCODING_S
        if not self.lists:
            return encoding
        sample = np.random.default_rng(0).standard_normal((2048, dimensions), np.float32)
        centres = faiss.IndexFlatIP(dimensions)
        centres.add(np.random.default_rng(1).standard_normal((self.lists, dimensions), np.float32))
        began = time.monotonic()
        centres.search(sample, 1)
        each = (time.monotonic() - began) / len(sample)
        return each * (min(POINTS_PER_LIST * self.lists, rows) * ROUNDS + rows) + encoding


def lists(count: int, roots: int = 4) -> int:
    """Number of inverted lists for this many vectors: about `roots` times their square root, a power of two.

    Never so many that a list's centre would be learned from fewer than 39 vectors, where Faiss begins to warn.
    """
    wanted = round(math.log2(roots * math.sqrt(count)))
    affordable = math.floor(math.log2(max(count / 39, 1)))
    return int(2 ** min(wanted, affordable))


def choices(rows: int, dimensions: int, config: IndexConfig) -> list[IndexType]:
    """The types to try in order until one reaches `index.recall`: the preferred one, then types of higher recall.

    Args:
        rows: number of vectors.
        dimensions: width of each.
        config: `bytes_per_document` bounds every type; below `flat_below` rows the index is exact.

    Raises:
        ConfigError: no type is as small as `index.bytes_per_document`.
    """
    number = lists(rows, ROOTS)
    limit = config.bytes_per_document or math.inf
    centres = number * dimensions * 4 / rows

    def inverted(codes: str, size: float, reason: str) -> IndexType:
        per_document = size + 8 + centres  # 8 bytes of a row's number
        return IndexType(factory=f"IVF{number},{codes}", reason=reason, bytes_per_document=per_document, lists=number)

    exact = IndexType(factory="Flat", reason="exact", bytes_per_document=4 * dimensions, lists=0)
    fp32 = inverted("Flat", 4 * dimensions, "inverted lists of fp32, as fp16 does not keep the recall")
    compressed = [
        inverted("SQfp16", 2 * dimensions, "inverted lists of fp16: nothing lost that shows, half the bytes of fp32"),
        inverted("SQ8", dimensions, f"inverted lists of int8: fp16 takes more than {limit:g} bytes a document"),
    ]
    if dimensions % 2 == 0 and rows >= FEWEST_FOR_CODES:
        codes = f"PQ{dimensions // 2}x4fsr,Refine(SQ4)"
        padding = 16 * number * dimensions / 4 / rows  # The scan reads 32 codes at once, so each list is filled up.
        size = 0.75 * dimensions + padding + 64 * dimensions / rows  # and the code book
        reason = f"a fast scan of 4 bits with a refinement: int8 takes more than {limit:g} bytes a document"
        compressed.append(inverted(codes, size, reason))
    if rows < config.flat_below and exact.bytes_per_document <= limit:
        return [exact]
    fitting = [choice for choice in compressed if choice.bytes_per_document <= limit]
    if not fitting:
        smallest = min(choice.bytes_per_document for choice in compressed)
        raise ConfigError(
            f"index.bytes_per_document is {limit:g}: the smallest index of {counted(rows, 'document')} and "
            f"{dimensions} dimensions takes {smallest:.1f} bytes a document; raise the limit or lower "
            "encoder.dimensions"
        )
    return [fitting[0], *(choice for choice in (fp32, exact) if choice.bytes_per_document <= limit)]


def build(chosen: IndexType, matrix: Any, seed: int) -> Any:
    """The trained and still empty Faiss index of a type; the caller adds the vectors.

    Args:
        matrix: (documents, dimensions) unit vectors; a sample of them trains the index.
        seed: draws the sample and starts k-means.
    """
    ann: Any = faiss.index_factory(matrix.shape[1], chosen.factory, faiss.METRIC_INNER_PRODUCT)
    if not chosen.lists:
        return ann
    inner = inverted_lists(ann)
    inner.cp.seed, inner.cp.niter = seed, ROUNDS
    sampled = np.random.default_rng(seed).permutation(len(matrix))[: max(POINTS_PER_LIST * chosen.lists, 256)]
    ann.train(np.ascontiguousarray(matrix[np.sort(sampled)], np.float32))
    if isinstance(ann, faiss.IndexRefine):
        ann.k_factor = REFINED
    return ann


def add(ann: Any, matrix: Any) -> None:
    """Adds all vectors to a trained Faiss index; ids inside it are the rows, by the order of adding.

    Args:
        matrix: (documents, dimensions) unit vectors; a block of them is in memory at a time.
    """
    with progress.bar("Indexing vectors", len(matrix), "documents") as advance:
        for start in range(0, len(matrix), BLOCK):
            block = np.ascontiguousarray(matrix[start : start + BLOCK], np.float32)
            ann.add(block)
            advance(len(block))


def inverted_lists(ann: Any) -> Any:
    """The inverted lists inside an index; None in an exact one."""
    return faiss.try_extract_index_ivf(ann)
