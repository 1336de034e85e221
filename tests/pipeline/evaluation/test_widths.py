"""The cost of fewer dimensions, against a ranking sorted by hand."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.evaluation import widths


def test_quality_is_that_of_the_whole_collection_ranked_by_cosine() -> None:
    draw = np.random.default_rng(3)
    queries, documents = (draw.normal(size=(count, 6)).astype(np.float32) for count in (5, 300))
    grades = (draw.random((5, 300)) < 0.05) * draw.integers(1, 4, size=(5, 300))
    curve = widths.curve(queries, documents, grades, [6, 2])
    for width, values in curve.items():
        ndcgs, recalls = [], []
        for query, row in zip(queries[:, :width].tolist(), grades.tolist(), strict=True):
            cosines = [
                sum(a * b for a, b in zip(query, document, strict=True)) / math.hypot(*query) / math.hypot(*document)
                for document in documents[:, :width].tolist()
            ]
            order = sorted(range(300), key=lambda column: -cosines[column])
            gains = [row[column] / math.log2(rank + 2) for rank, column in enumerate(order[:10])]
            ideal = [grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(row, reverse=True)[:10])]
            ndcgs.append(sum(gains) / sum(ideal))
            recalls.append(sum(row[column] > 0 for column in order[:100]) / sum(grade > 0 for grade in row))
        assert values == pytest.approx({"ndcg@10": sum(ndcgs) / 5, "recall@100": sum(recalls) / 5}, rel=1e-5)


def test_the_drawing_has_a_point_for_each_width_and_the_better_one_stands_higher() -> None:
    svg = widths.drawing({"one <": {8: 0.2, 64: 0.38, 384: 0.4}, "two": {8: 0.1, 64: 0.3, 384: 0.4}}, full=0.4)
    root = ElementTree.fromstring(str(svg))
    space = "{http://www.w3.org/2000/svg}"
    lines = [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in root.iter(f"{space}polyline")
    ]
    assert [len(line) for line in lines] == [3, 3]
    for (x, upper), (same, lower) in list(zip(*lines, strict=True))[:2]:
        assert x == same
        assert upper < lower
    assert lines[0][2] == lines[1][2]
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"8", "64", "384", "one <", "two"} <= set(texts)
