"""The engine in batch: what it gives an index, and the features of a pool."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index import documents, lexical, lexical_build, semantic_build, vectors
from index.semantic import SemanticIndex
from pipeline import artifacts, schema, text
from pipeline.artifacts import Artifact
from pipeline.config import ExportConfig, IndexConfig
from pipeline.errors import ArtifactError, SchemaError
from pipeline.export import bundle
from serving.runtime import offline
from serving.runtime.engine import Engine
from serving.runtime.items import Item

CONFIG = ExportConfig(golden=4, max_ndcg_drop=1.0, min_kendall_tau=-1.0)


@pytest.fixture(scope="module")
def parts(untrained: Any) -> dict[str, Artifact]:
    """Everything that `features` reads, made from the untrained models."""
    workspace, data = untrained.workspace, untrained.data
    by_name = {
        name: bundle.make(workspace, CONFIG, model=getattr(untrained, name), data=data, pairs=untrained.pairs)
        for name in ("ranker", "encoder")
    }
    embedded = vectors.make(
        workspace,
        vectors.DocumentEncoder(offline.digest(by_name["encoder"]), offline.embedder(by_name["encoder"])),
        data=data,
    )
    by_name |= {
        "lexical": lexical_build.make(workspace, IndexConfig(), data=data),
        "index": semantic_build.make(workspace, IndexConfig(), vectors=embedded),
        "documents": documents.make(workspace, data=data),
        "data": data,
        "pool": untrained.pairs,
    }
    return by_name


def rows(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    table_rows: list[dict[str, Any]] = pq.read_table(artifact.file(name)).to_pylist()
    return table_rows


def test_a_row_has_the_scores_that_a_search_would_give(untrained: Any, parts: dict[str, Artifact]) -> None:
    artifact = offline.features(untrained.workspace, **parts)
    feature_rows, pool = rows(artifact, "features.parquet"), rows(parts["pool"], "pairs.parquet")
    keys = ("row_id", "query_id", "doc_id", "split")
    assert [[row[key] for key in keys] for row in feature_rows] == [[row[key] for key in keys] for row in pool]
    queries = {row["query_id"]: row["text"] for row in rows(parts["data"], "queries.parquet")}
    texts = {row["doc_id"]: row for row in rows(parts["data"], "documents.parquet")}
    ranker, encoder = (Engine(parts[name].path, threads=1) for name in ("ranker", "encoder"))
    bm25 = lexical.LexicalIndex.load(parts["lexical"].path)
    for row in feature_rows[::7]:
        query, document = queries[row["query_id"]], texts[row["doc_id"]]
        body = text.document_text(document["title"], document["text"])
        cosine = encoder.embed([query], "query")[0] @ encoder.embed([body], "document")[0]
        searched = {hit.doc_id: hit.score for hit in bm25.search(query, 60)}
        assert row["ranker"] == ranker.scores(query, [body])[0]
        assert row["encoder"] == pytest.approx(float(cosine), abs=1e-5)
        assert row["bm25"] == pytest.approx(searched.get(row["doc_id"], 0.0))


def test_the_index_holds_what_the_engine_gives_for_documents(parts: dict[str, Artifact]) -> None:
    semantic = SemanticIndex.load(parts["index"].path)
    assert semantic.encoder_digest == offline.digest(parts["encoder"])
    embed = offline.embedder(parts["encoder"], "query")
    body = rows(parts["data"], "documents.parquet")[5]
    (vector,) = offline.embedder(parts["encoder"])([text.document_text(body["title"], body["text"])])
    assert semantic.search(vector, 1)[0].doc_id == body["doc_id"]
    long = ["adam buim oi " * 20]
    assert not np.allclose(embed(long), offline.embedder(parts["encoder"])(long))  # Roles are cut at other lengths.


def test_a_document_whose_vector_is_no_number_is_named_and_nothing_is_made(
    untrained: Any, parts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = offline.embedder(parts["encoder"])
    table = pq.read_table(parts["data"].file("documents.parquet"))
    bad = table["doc_id"][7].as_py()
    body = text.document_text(table["title"][7].as_py(), table["text"][7].as_py())
    (broken,) = embed.engine.texts([body], "document")
    run = Engine._run_exact

    def run_exact(engine: Engine, item: Item) -> Any:
        output = run(engine, item)
        return np.full_like(output, np.nan) if list(item.ids) == list(broken.ids) else output

    monkeypatch.setattr(Engine, "_run_exact", run_exact)
    with pytest.raises(ArtifactError, match=f"the vector of document '{bad}' has length nan, not 1 .1 of "):
        vectors.make(tmp_path, vectors.DocumentEncoder("another", embed), data=parts["data"])
    assert not artifacts.finished(tmp_path, "vectors")


def test_the_engine_is_loaded_when_it_is_first_needed(
    parts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    monkeypatch.setattr(offline, "Engine", lambda path, **knobs: loaded.append(path) or Engine(path, **knobs))
    embed = offline.embedder(parts["encoder"])
    assert loaded == []
    embed(["a"])
    embed(["b"])
    assert loaded == [parts["encoder"].path]


def test_an_index_of_another_encoder_is_refused(untrained: Any, parts: dict[str, Artifact]) -> None:
    embedded = vectors.make(
        untrained.workspace, vectors.DocumentEncoder("0" * 32, offline.embedder(parts["encoder"])), data=parts["data"]
    )
    other = semantic_build.make(untrained.workspace, IndexConfig(), vectors=embedded)
    with pytest.raises(ArtifactError, match=r"holds vectors of encoder 0{12}, not of .*; index the documents again"):
        offline.features(untrained.workspace, **{**parts, "index": other})


@pytest.mark.parametrize(
    ("column", "says"),
    [("doc_id", r"documents \['nowhere'\] of the pool are not indexed"), ("query_id", "query 'nowhere' is not in")],
)
def test_a_pool_of_other_data_is_refused(
    untrained: Any, parts: dict[str, Artifact], tmp_path: Path, column: str, says: str
) -> None:
    def write(staging: Any) -> dict[str, Any]:
        table = pq.read_table(parts["pool"].file("pairs.parquet")).to_pydict()
        table[column][3] = "nowhere"
        schema.write(pa.table(table), staging.folder / "pairs.parquet", "pairs")
        return {}

    pool = artifacts.make(tmp_path, "pool", version=1, config={"column": column}, inputs={}, build=write)
    with pytest.raises(SchemaError, match=says):
        offline.features(untrained.workspace, **{**parts, "pool": pool})


def test_another_precision_is_another_bundle(untrained: Any, parts: dict[str, Artifact]) -> None:
    """Whoever changes what is chosen changes the fingerprint, so no features of the old choice are taken for new."""
    fp32_only = replace(CONFIG, precisions=("fp32",))
    other = bundle.make(
        untrained.workspace, fp32_only, model=untrained.ranker, data=untrained.data, pairs=untrained.pairs
    )
    assert other.fingerprint != parts["ranker"].fingerprint
    artifact = offline.features(untrained.workspace, **{**parts, "ranker": other})
    assert artifact.metrics["ranker_precision"] == "fp32"
