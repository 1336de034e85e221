"""Settings of the index in a recipe, through the flows: queries that judge it, and documents without vectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import indexing, judging
from flows import reindex as reindexing
from flows.runner import Runner
from index.document_store import DocumentStore
from index.semantic import SemanticIndex
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from pipeline.evaluation import report_stats
from pipeline.releases import Releases
from tests.flows.test_before import workspace

__all__ = ["workspace"]  # A fixture.

QUERIES = 120


def data_of(release: Artifact, workspace: Path) -> Artifact:
    """A data artifact of a release's documents, with queries made of their titles."""
    store = DocumentStore.load(release_parts.part(release, "documents").path)
    stored = [store.get(row) for row in range(len(store))]
    titles = [f"a {document.title}" for document in stored]
    queries = [f"{titles[number % len(titles)]} {number}" for number in range(QUERIES)]
    ids = [f"q{number}" for number in range(QUERIES)]
    texts = {name: [getattr(item, name) for item in stored] for name in ("doc_id", "title", "text")}
    tables = {
        "documents": {**texts, "up": [number % 7 for number in range(len(stored))], "down": [1] * len(stored)},
        "queries": {"query_id": ids, "text": queries},
        "judgments": {
            "query_id": ids,
            "doc_id": [stored[number % len(stored)].doc_id for number in range(QUERIES)],
            "grade": [1] * QUERIES,
            "split": ["test"] * QUERIES,
        },
    }

    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        for name, columns in tables.items():
            pq.write_table(pa.table(columns), staging.folder / f"{name}.parquet")
        return {}

    return artifacts.make(workspace, "data", version=1, config={}, inputs={}, build=build)


def test_the_report_says_what_the_quality_filter_keeps_and_costs(workspace: Path) -> None:
    old, run = Releases(workspace).open(), Runner(workspace)
    data, encoder = data_of(old, workspace), release_parts.part(old, "encoder")
    config = IndexConfig(votes=("up", "down"), least_quality=0.3)
    corpus = indexing.make_searchable(config, run, encoder=encoder, data=data)
    count = corpus.vectors.metrics["documents"]
    # Wilson's bound of 3 up and 1 down is 0.30, that of 2 and 1 is 0.21.
    kept = [number for number in range(count) if number % 7 >= 3]
    cost = judging.quality_cost(config, run, encoder=encoder, corpus=corpus, data=data)["quality filter"]
    assert cost["documents with a vector"] == len(kept) == len(SemanticIndex.load(corpus.index.path).doc_ids)
    assert cost["share with a vector"] == pytest.approx(len(kept) / count, abs=1e-4)
    assert count <= 100  # So the first 100 hold every document that has a vector.
    assert cost["encoder's recall@100, all documents"] == 1
    answered = sum(number % count in kept for number in range(QUERIES)) / QUERIES
    assert cost["encoder's recall@100, kept documents"] == pytest.approx(answered, abs=1e-4)
    assert cost["encoder's ndcg@10, kept documents"] > 0
    assert judging.quality_cost(IndexConfig(), run, encoder=encoder, corpus=corpus, data=data) == {}


def test_a_reindex_judges_its_index_on_the_queries_of_the_data(workspace: Path, tmp_path: Path) -> None:
    registry, run = Releases(workspace), Runner(workspace)
    old = registry.open()
    data, encoder = data_of(old, workspace), release_parts.part(old, "encoder")
    first = indexing.make_searchable(IndexConfig(recall=0.9), run, encoder=encoder, data=data)
    assert first.index.metrics["recall_measured_on"] == "held-out queries"
    assert first.index.metrics["recall_queries"] == QUERIES
    group = report_stats.of({}, first.vectors, first.index, {})["index"]
    assert group["recall at 100, lower 95 % bound"] == first.index.metrics["recall_at_100_lower"]

    parts = {name: release_parts.part(old, name) for name in judging.PARTS}
    parts |= {"lexical": first.lexical, "documents": first.documents, "index": first.index}
    settings = {**old.manifest.config, "index": {**old.manifest.config["index"], "recall": 0.9}}
    stated = registry.publish(parts, metrics=old.metrics, config=settings)
    registry.promote(stated.fingerprint, reason="test")

    store = DocumentStore.load(first.documents.path)
    kept = [store.get(row) for row in range(len(store) - 1)]
    (tmp_path / "documents").mkdir()
    columns = {name: [getattr(item, name) for item in kept] for name in ("doc_id", "title", "text")}
    pq.write_table(pa.table(columns), tmp_path / "documents" / "documents.parquet")
    assert reindexing.reindex([str(tmp_path / "documents")], workspace)["live"]
    index = release_parts.part(registry.open(), "index")
    assert index.metrics["recall_measured_on"] == "held-out queries"
    assert index.manifest.inputs["queries"] == first.index.manifest.inputs["queries"]
    np.testing.assert_array_equal(np.load(index.file("queries.npy")), np.load(first.index.file("queries.npy")))
    assert len(SemanticIndex.load(index.path).doc_ids) == len(kept)
