"""The quality filter: which documents get vectors, by the votes they have; the others are found by BM25 alone.

Rule: the lower bound of Wilson's 95 % interval of up / (up + down) is at least `index.least_quality`. The bound is 0
for a document without votes, 0.57 for 5 up and none down, 0.83 for 90 up and 10 down: few votes prove little.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from index.document_reader import is_shard
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from pipeline.errors import SchemaError
from pipeline.schema import row_name
from pipeline.text import counted

Z = 1.959964
"""Half-width of the 95 % interval in standard deviations."""

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


def wilson(up: npt.ArrayLike, down: npt.ArrayLike) -> Floats:
    """Lower bound of Wilson's 95 % interval of up / (up + down), (n,); 0 where there are no votes.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
    """
    positive = np.asarray(up, np.float64)
    total = positive + np.asarray(down, np.float64)
    votes = np.maximum(total, 1)
    share = positive / votes
    spread = Z * np.sqrt(share * (1 - share) / votes + Z**2 / (4 * votes**2))
    return np.where(total > 0, np.maximum((share + Z**2 / (2 * votes) - spread) / (1 + Z**2 / votes), 0), 0.0)


@dataclass(frozen=True, slots=True)
class QualityFilter:
    """Two columns of the documents that count votes, and the least bound with which a document gets a vector."""

    up: str
    down: str
    least: float

    @classmethod
    def of(cls, config: IndexConfig) -> "QualityFilter | None":
        """The filter of a recipe; None where it has none."""
        if not config.votes:
            return None
        up, down = config.votes
        return cls(up, down, config.least_quality)

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the vectors' fingerprint that the filter adds."""
        return {"votes": [self.up, self.down], "least_quality": self.least}

    def kept(self, data: Artifact) -> Rows:
        """Ascending rows of the documents that get vectors.

        Raises:
            SchemaError: a column is missing, holds no numbers or a negative one, or no document of a whole collection
                passes; a shard then has no vectors.
        """
        up, down = (_votes(data, name) for name in (self.up, self.down))
        bounds = wilson(up, down)
        rows = np.flatnonzero(bounds >= self.least)
        if not len(rows) and not is_shard(data):
            raise SchemaError(
                f"{data.path}: no document of {len(bounds):,} passes index.least_quality = {self.least:g}; the best "
                f"has {bounds.max(initial=0.0):.3f} by {self.up} and {self.down}; lower it, or look at the columns"
            )
        return rows.astype(np.int64)


def _votes(data: Artifact, name: str) -> Floats:
    """A column of counts; a document without a value has 0 votes."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = data.file("documents.parquet")
    names = pq.read_schema(path).names
    if name not in names:
        raise SchemaError(f"{path}: has no column '{name}', which index.votes names; there are: {', '.join(names)}")
    column = pq.read_table(path, columns=[name]).column(name)
    try:
        counts = np.asarray(pc.fill_null(column.cast(pa.float64()), 0.0).to_numpy(), np.float64)
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{path}: column '{name}', which index.votes names, is not of numbers ({error})") from error
    wrong = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))
    if len(wrong):
        raise SchemaError(
            f"{path}, {row_name(wrong[0])}: {name} is {counts[wrong[0]]}, which counts no votes "
            f"({counted(len(wrong), 'such row')})"
        )
    return counts
