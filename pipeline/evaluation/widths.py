"""The cost of fewer dimensions: nDCG and recall of an exact search over a whole collection, by width of the vectors.

A shorter vector is the first dimensions of the whole one, scaled to unit length.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.evaluation import metrics, plots

Floats = NDArray[np.float32]

MEASURES = ("ndcg@10", "recall@100")
"""Measures by which the widths of a vector are compared."""
BLOCK = 32
"""Number of queries whose cosines with all documents are held in memory at once."""


def by_query(queries: Floats, documents: Floats, grades: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Each measure for each query, (queries,), every document ranked by cosine.

    Args:
        queries: (queries, width).
        documents: (documents, width).
        grades: (queries, documents), 0 where nobody judged.
    """
    left, right = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, documents))
    blocks = []
    for start in range(0, len(left), BLOCK):
        cosines = left[start : start + BLOCK] @ right.T  # (block, documents)
        names = np.repeat(np.arange(len(cosines)), len(documents))
        blocks.append(metrics.by_query(names, grades[start : start + BLOCK].ravel(), cosines.ravel(), MEASURES))
    return {measure: np.concatenate([block[measure] for block in blocks]) for measure in MEASURES}


def quality(queries: Floats, documents: Floats, grades: NDArray[np.int64]) -> dict[str, float]:
    """The mean of each measure over the queries; the arguments are those of `by_query`."""
    return {measure: float(values.mean()) for measure, values in by_query(queries, documents, grades).items()}


def curve(
    queries: Floats, documents: Floats, grades: NDArray[np.int64], widths: Sequence[int]
) -> dict[int, dict[str, float]]:
    """`quality` at each of these widths."""
    return {width: quality(queries[:, :width], documents[:, :width], grades) for width in widths}


def drawing(curves: Mapping[str, Mapping[int, float]], full: float) -> Markup:
    """An SVG plot of one measure over the width, with a horizontal line at 98 % of its value at full width.

    Args:
        curves: name → width → value; all of the same widths.
        full: the measure at full width, which is 100 %.
    """
    shares = {name: {str(width): points[width] / full for width in sorted(points)} for name, points in curves.items()}
    return plots.lines(shares, rule=0.98, rule_name="98 %", tick="{:.0%}", shows=[1.0])
