import json
import math
import random

import pytest

from pipeline import features
from pipeline.errors import ArtifactError, SchemaError
from pipeline.features import FEATURES, Fusion


def test_reciprocal_ranks_by_hand() -> None:
    assert features.reciprocal_ranks([0.1, 0.9, 0.5]) == pytest.approx([61 / 63, 61 / 61, 61 / 62])


def test_of_equal_scores_the_first_ranks_first() -> None:
    ranks = features.reciprocal_ranks([1.0, 1.0, 1.0])
    assert ranks == sorted(ranks, reverse=True)
    assert len(set(ranks)) == 3


def test_fusion_of_two_systems_orders_as_the_paper_s_formula() -> None:
    rng = random.Random(7)
    first, second = ([rng.random() for _ in range(20)] for _ in range(2))
    rank = [
        {index: 1 + sum(other > score for other in scores) for index, score in enumerate(scores)}
        for scores in (first, second)
    ]
    expected = [1 / (60 + rank[0][index]) + 1 / (60 + rank[1][index]) for index in range(20)]
    fused = features.reciprocal_rank_fusion(first, second)
    assert sorted(range(20), key=lambda index: -fused[index]) == sorted(range(20), key=lambda index: -expected[index])


def test_table_scales_bm25_by_the_pool() -> None:
    rows = features.table([2.0, 4.0], [0.1, 0.2], [1.0, -1.0])
    assert [row[FEATURES.index("bm25")] for row in rows] == [0.5, 1.0]
    assert [row[FEATURES.index("ranker")] for row in rows] == [1.0, -1.0]
    assert features.table([0.0], [0.5], [0.5])[0][0] == 0.0
    assert features.table([], [], []) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(SchemaError, match="not a finite number"):
        features.table([1.0], [bad], [0.0])
    with pytest.raises(SchemaError, match="2 bm25, 1 encoder"):
        features.table([1.0, 2.0], [0.0], [0.0])


def test_fusion_round_trip_and_refusals() -> None:
    fusion = Fusion(weights={name: float(index) for index, name in enumerate(FEATURES)})
    again = Fusion.from_json(fusion.to_json())
    row = [1.0, 0.5, 0.25, 2.0, -1.0, 0.1]
    assert again.scores([row])[0] == pytest.approx(sum(index * value for index, value in enumerate(row)))
    with pytest.raises(ArtifactError, match="fit it again"):
        Fusion.from_json('{"weights": {"bm25": 1}}')
    with pytest.raises(ArtifactError, match="not readable"):
        Fusion.from_json("{")


def test_scores_of_single_fields_come_after_the_others_by_name() -> None:
    fields = {"encoder.title": [0.3, -0.1], "bm25.title": [1.0, 4.0], "bm25.text": [0.0, 0.0]}
    rows = features.table([2.0, 4.0], [0.1, 0.2], [1.0, -1.0], fields)
    assert [row[len(FEATURES) :] for row in rows] == [(0.0, 0.25, 0.3), (0.0, 1.0, -0.1)]
    weights = {**dict.fromkeys(FEATURES, 0.0), "encoder.title": 1.0, "bm25.title": 10.0, "bm25.text": 100.0}
    again = Fusion.from_json(Fusion(weights=weights, rerank="fused").to_json())
    assert again.rerank == "fused"
    assert Fusion.from_json(json.dumps({"weights": weights})).rerank == "ranker"
    assert again.names == (*FEATURES, "bm25.text", "bm25.title", "encoder.title")
    assert again.scores(rows) == pytest.approx([2.8, 9.9])
    with pytest.raises(SchemaError, match=r"1 bm25\.title scores"):
        features.table([2.0, 4.0], [0.1, 0.2], [1.0, -1.0], {"bm25.title": [1.0]})
    with pytest.raises(SchemaError, match="not a finite number"):
        features.table([2.0], [0.1], [1.0], {"bm25.title": [math.nan]})
    with pytest.raises(ArtifactError, match="fit it again"):
        Fusion(weights={**dict.fromkeys(FEATURES, 0.0), "ranker.title": 1.0})
    with pytest.raises(ArtifactError, match="neither ranker nor fused"):
        Fusion.from_json(json.dumps({"weights": weights, "rerank": "bm25"}))
