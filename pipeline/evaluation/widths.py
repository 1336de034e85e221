"""What fewer dimensions cost: nDCG and recall of an exact search over a whole collection, by the width of its vectors.

A shorter vector is the first so many dimensions of the whole one, scaled to unit length.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.evaluation import metrics
from pipeline.evaluation.plots import Scale

Floats = NDArray[np.float32]

MEASURES = ("ndcg@10", "recall@100")
BLOCK = 32
"""Queries whose cosines with all documents are held at once."""


def quality(queries: Floats, documents: Floats, grades: NDArray[np.int64]) -> dict[str, float]:
    """The mean of each measure over the queries, every document ranked by cosine.

    Args:
        queries: (queries, width).
        documents: (documents, width).
        grades: (queries, documents), 0 where nobody judged.
    """
    left, right = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, documents))
    sums = dict.fromkeys(MEASURES, 0.0)
    for start in range(0, len(left), BLOCK):
        cosines = left[start : start + BLOCK] @ right.T  # (block, documents)
        names = np.repeat(np.arange(len(cosines)), len(documents))
        found = metrics.by_query(names, grades[start : start + BLOCK].ravel(), cosines.ravel(), MEASURES)
        for measure, values in found.items():
            sums[measure] += float(values.sum())
    return {measure: total / len(left) for measure, total in sums.items()}


def curve(
    queries: Floats, documents: Floats, grades: NDArray[np.int64], widths: Sequence[int]
) -> dict[int, dict[str, float]]:
    """`quality` at each of these widths."""
    return {width: quality(queries[:, :width], documents[:, :width], grades) for width in widths}


def drawing(curves: Mapping[str, Mapping[int, float]], full: float) -> Markup:
    """Lines of one measure over the width, each width as far from the next, with a rule at 98 % of full width.

    Args:
        curves: name → width → value; all of the same widths.
        full: the measure at full width, which is 100 %.
    """
    widths = sorted(next(iter(curves.values())))
    shares = {name: [points[width] / full for width in widths] for name, points in curves.items()}
    scale = Scale.over([0.98, 1.0, *(share for line in shares.values() for share in line)])
    places = np.linspace(8, 76, len(widths))

    def height(share: float) -> float:
        return round(92 - 0.84 * scale.place(share), 2)

    parts = [
        Markup('<text x="7" y="{0}" text-anchor="end">{1:.0%}</text>').format(height(tick) + 1, tick)
        for tick in scale.ticks()
    ]
    parts += [
        Markup('<text x="{0:.2f}" y="97" text-anchor="middle">{1}</text>').format(place, width)
        for place, width in zip(places, widths, strict=True)
    ]
    parts.append(
        Markup('<line x1="8" x2="76" y1="{0}" y2="{0}" stroke="currentColor" stroke-width="0.2"/>').format(height(0.98))
    )
    for number, (name, line) in enumerate(shares.items()):
        points = " ".join(f"{place:.2f},{height(share)}" for place, share in zip(places, line, strict=True))
        parts.append(
            Markup(
                '<polyline points="{1}" fill="none" stroke="currentColor" stroke-width="0.5" stroke-dasharray="{0}"/>'
                '<line x1="55" x2="62" y1="{2}" y2="{2}" stroke="currentColor" stroke-width="0.5" '
                'stroke-dasharray="{0}"/>'
                '<text x="63" y="{3}">{4}</text>'
            ).format("none" if number == 0 else f"{number} 1", points, 75 + 5 * number, 76 + 5 * number, name)
        )
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 110 100" font-size="3" role="img">{}</svg>'
    ).format(Markup("").join(parts))
