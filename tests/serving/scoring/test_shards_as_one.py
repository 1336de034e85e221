"""Random small collections with fields, passages and votes: shards answer as one index does. Seeds 1 to 4, 6 and 8."""

import random
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows import shards
from index.shards import shard_of
from pipeline.config import IndexConfig
from serving.errors import InvalidRequestError, NotServedError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring import shard_candidates
from serving.scoring.answers import MissingShard, SearchDetails, ShardCounts
from serving.scoring.shard_candidates import ShardQuery
from tests.serving.divided_collection import CONFIGS, QUERIES, WORDS, Collection, random_documents


def assert_equal(merged: Sequence[Any], single: Sequence[Any]) -> None:
    """Compares two lists of results; documents with equal scores may stand in any order."""
    np.testing.assert_allclose([hit.score for hit in merged], [hit.score for hit in single], rtol=0, atol=1e-6)
    hits_by_id = {hit.doc_id: hit for hit in single}
    last = single[-1].score if single else 0.0
    for hit in merged:
        other = hits_by_id.get(hit.doc_id)
        if other is None:  # Of several that are equally near to the last, the lists may hold different ones.
            assert hit.score == pytest.approx(last, abs=1e-6)
            continue
        assert hit.score == pytest.approx(other.score, abs=1e-6)
        assert (hit.title, hit.snippet, hit.matches, hit.passage, hit.relevance is None) == (
            other.title,
            other.snippet,
            other.matches,
            other.passage,
            other.relevance is None,
        )
        if other.explain is not None:
            assert hit.explain.terms == pytest.approx(other.explain.terms, abs=1e-6)
            assert list(hit.explain.features) == list(other.explain.features)
            for name, part in other.explain.features.items():
                if not name.endswith("_rank"):  # Ranks of equal scores differ.
                    assert hit.explain.features[name].value == pytest.approx(part.value, abs=1e-6)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_shards_answer_as_one_index(tmp_path: Path, name: str, seed: int) -> None:
    collection = Collection.of(tmp_path, CONFIGS[name], seed)
    details = SearchDetails(explain=True, matches=True)
    for count in (1, 2, 3):
        front, _ = collection.divided(count)
        for query, depth in product(QUERIES, (30, 5)):  # All documents are candidates, or few.
            single, merged = (
                searcher.search(query, top_n=depth, retrieve=depth, details=details)
                for searcher in (collection.single_index, front)
            )
            assert merged.shards is not None
            assert (merged.shards.answered, list(merged.shards.missing)) == (count, [])
            for listed in ("lexical", "semantic", "reranked"):
                assert_equal(getattr(merged, listed), getattr(single, listed))
        filtered = {"tags": ["t1", "t2"]}
        single, merged = (
            searcher.search(QUERIES[0], top_n=30, retrieve=30, filters=filtered)
            for searcher in (collection.single_index, front)
        )
        assert_equal(merged.reranked, single.reranked)


@pytest.mark.parametrize("name", ["fields", "fields by words", "passages"])
def test_a_shard_whose_documents_have_no_text_answers_with_them(tmp_path: Path, name: str) -> None:
    table = random_documents(random.Random(8))
    for column in ("title", "text"):
        values = zip(table["doc_id"].to_pylist(), table[column].to_pylist(), strict=True)
        texts = [value if shard_of(doc_id, 2) else "" for doc_id, value in values]
        table = table.set_column(table.column_names.index(column), column, pa.array(texts))
    collection = Collection.of(tmp_path, CONFIGS[name], 8, table)
    front, _ = collection.divided(2)
    for query in QUERIES:
        single, merged = (
            searcher.search(query, top_n=30, retrieve=30) for searcher in (collection.single_index, front)
        )
        assert merged.shards == ShardCounts(answered=2, of=2, missing=[])
        assert_equal(merged.lexical, single.lexical)
        assert_equal(merged.semantic, single.semantic)
        assert {hit.doc_id for hit in merged.reranked} == {hit.doc_id for hit in single.reranked}


def test_a_missing_shard_is_named_and_the_others_answer_with_fields_and_passages(tmp_path: Path) -> None:
    collection = Collection.of(tmp_path, CONFIGS["fields, passages and votes"], 3)
    front, client = collection.divided(3)
    client.gone = {"shard 2"}
    result = front.search(QUERIES[0], top_n=30, retrieve=30, details=SearchDetails(explain=True))
    assert result.shards == ShardCounts(answered=2, of=3, missing=[MissingShard(shard="shard 2", reason="gone")])
    ids = {doc_id for doc_id in collection.single_index.lexical.doc_ids if shard_of(doc_id, 3) != 2}
    assert {hit.doc_id for hit in result.reranked} <= ids
    best = collection.single_index.search(QUERIES[0], top_n=30, retrieve=30, details=SearchDetails(explain=True))
    wholes = {hit.doc_id: hit.explain.features for hit in best.reranked if hit.explain}
    for hit in result.reranked:
        assert hit.explain is not None
        for name in ("encoder", "encoder.title", "encoder.text", "ranker"):
            assert hit.explain.features[name].value == pytest.approx(wholes[hit.doc_id][name].value, abs=1e-6)
    assert any(hit.passage for hit in result.semantic)


def test_a_shard_without_a_field_is_an_error_and_not_a_score_of_0(tmp_path: Path) -> None:
    collection = Collection.of(tmp_path, CONFIGS["passages"], 4)
    _, client = collection.divided(2)
    query = ShardQuery(query="list", depth=3, vector=None, filters={}, terms=False, features=["bm25.title"])
    with pytest.raises(NotServedError, match=r"no index that gives bm25\.title"):
        shard_candidates.answer(client.searchers[0], query, Deadline.never())


def test_given_texts_are_cut_as_the_shards_cut_documents(tmp_path: Path) -> None:
    collection = Collection.of(tmp_path, CONFIGS["passages"], 4)
    front, _ = collection.divided(2)
    texts, options = [" ".join(WORDS * 6), "a list"], RequestOptions(Deadline.never())
    whole_index, merged = (
        searcher.fused("stable list", texts, [2.0, 1.0], options) for searcher in (collection.single_index, front)
    )
    assert merged.values == pytest.approx(whole_index.values, abs=1e-6)


def test_other_documents_make_another_release_of_models(tmp_path: Path) -> None:
    collection, other = (Collection.of(tmp_path, CONFIGS["fields"], seed) for seed in (1, 2))
    fronts = [
        shards.divide(item.run, collection.release, item.data, count, item.whole_index)[1]
        for item, count in ((collection, 2), (collection, 3), (other, 2), (collection, 2))
    ]
    assert [front.metrics["collection"] for front in fronts] == [
        {"data": data.fingerprint, "shards": count}
        for data, count in ((collection.data, 2), (collection.data, 3), (other.data, 2), (collection.data, 2))
    ]
    assert len({front.fingerprint for front in fronts}) == 3


def table_of_mixed_fields() -> pa.Table:
    """Twenty documents with fields of all types, some without values; each of two fields in one document alone."""
    count = 20
    moment, infinite = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), float("inf")
    kinds: dict[str, tuple[list[Any], pa.DataType]] = {
        "price": ([Decimal("5.00"), Decimal("0.50"), None], pa.decimal128(38, 2)),
        "prices": ([[Decimal("5.00"), Decimal("7.10")], []], pa.list_(pa.decimal128(9, 2))),
        "float": ([5.0, 0.1, -0.0, 1e20, float("nan"), infinite, None], pa.float64()),
        "floats": ([[4.1, float("nan")], [infinite, 5.0], None], pa.list_(pa.float32())),
        "large": ([2**63 - 1, 2**53 + 1, -(2**63)], pa.int64()),
        "larger": ([2**64 - 1, 7], pa.uint64()),
        "flag": ([True, False, None], pa.bool_()),
        "word": (["5", "5.0", "true", "", None], pa.string()),
        "day": ([date(2026, 1, 2), None], pa.date32()),
        "moment": ([moment, None], pa.timestamp("s", "UTC")),
        "tags": ([["a", None, "b"], [], None, ["5"]], pa.list_(pa.string())),
    }
    columns = {
        name: pa.array([values[row % len(values)] for row in range(count)], kind)
        for name, (values, kind) in kinds.items()
    }
    ids = [f"d{row}" for row in range(count)]
    first, second = (next(row for row in range(count) if shard_of(ids[row], 2) == shard) for shard in (0, 1))
    for name, only in (("of one", first), ("of another", second)):
        columns[name] = pa.array([1 if row == only else None for row in range(count)])
    texts = {"title": ["list"] * count, "text": [f"list {row}" for row in range(count)]}
    return pa.table({"doc_id": ids, **texts, **columns})


def test_a_filter_by_each_value_of_a_facet_gives_the_documents_that_it_counts(tmp_path: Path) -> None:
    collection = Collection.of(tmp_path, IndexConfig(), 6, table_of_mixed_fields())
    front, _ = collection.divided(2)
    single, names = collection.single_index, collection.single_index.fields
    details = SearchDetails(facets=tuple(names))
    counts = single.search("list", top_n=30, retrieve=30, details=details).facets
    assert front.search("list", top_n=30, retrieve=30, details=details).facets == counts
    assert counts["price"] == {"5": 7, "0.5": 7}
    assert sorted(counts["word"]) == ["", "5", "5.0", "true"]
    assert len(names) == 13
    assert counts["float"] == {"5": 3, "0": 3, "0.1": 3, "100000000000000000000": 3}
    for name in names:
        for value, count in counts[name].items():
            for searcher in (single, front):
                results = searcher.search("list", top_n=30, retrieve=30, filters={name: [value]}).reranked
                assert len(results) == count, (name, value)


def test_filters_by_fields_of_different_shards_are_no_error(tmp_path: Path) -> None:
    collection = Collection.of(tmp_path, IndexConfig(), 6, table_of_mixed_fields())
    front, _ = collection.divided(2)
    for searcher in (collection.single_index, front):
        assert searcher.search("list", top_n=30, filters={"of one": [1], "of another": [1]}).reranked == []
        for name in ("of one", "of another"):
            assert len(searcher.search("list", top_n=30, filters={name: [1]}).reranked) == 1
        with pytest.raises(InvalidRequestError, match="no document has a field 'of none'; there are: day, flag"):
            searcher.search("list", top_n=30, filters={"of one": [1], "of none": [1]})
