"""The held-out queries that an approximate index is judged on: their vectors, and the rule that draws them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.hits import judged_queries
from pipeline import array_files
from pipeline.artifacts import Artifact

MOST = 1000
"""Maximum number of queries that are drawn; the bound on recall narrows with the square root of it."""
FEWEST = 100
"""Below this number of queries, recall is measured on documents' vectors instead."""
FILE = "queries.npy"
"""The file of an `index` artifact that keeps the queries' vectors, for the next index of the same encoder."""

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeldOutQueries:
    """A set of queries to measure recall with: a key that identifies it, and a function that gives its vectors."""

    key: str
    """Part of the fingerprint of an index that is judged on them."""
    load: Callable[[], Vectors]
    """Returns (queries, dimensions) unit vectors; may take seconds."""

    @classmethod
    def of_data(
        cls, data: Artifact, encoder_digest: str, embed: Callable[[Sequence[str]], np.ndarray]
    ) -> "HeldOutQueries | None":
        """Queries of a data artifact: those of valid and test, or all where these are too few; None below FEWEST.

        Args:
            embed: texts of queries → unit vectors, by the encoder with this digest.
        """
        if "queries.parquet" not in data.manifest.files:
            return None
        queries = judged_queries(data, ("valid", "test"))
        if len(queries) < FEWEST:
            queries = judged_queries(data, ())
        if len(queries) < FEWEST:
            return None
        # By digest, so that the draw does not depend on the order of the data.
        drawn = sorted(queries, key=lambda query: hashlib.blake2b(query.encode()).digest())[:MOST]
        texts = [queries[query_id] for query_id in drawn]
        content = "\0".join([encoder_digest, *texts]).encode()
        return cls(hashlib.blake2b(content, digest_size=16).hexdigest(), lambda: np.asarray(embed(texts), np.float32))

    @classmethod
    def of_index(cls, index: Artifact) -> "HeldOutQueries | None":
        """The queries that an earlier index of the same encoder was judged on; None where it kept none."""
        if FILE not in index.manifest.files:
            return None
        return cls(index.manifest.inputs["queries"], lambda: array_files.of_artifact(index.file(FILE)))
