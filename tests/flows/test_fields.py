"""Fields that BM25 scores apart, through the flows: judged, published, served, re-indexed."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import judging, retrain
from flows import reindex as reindexing
from flows import releases as listing
from flows.runner import Runner
from index.lexical import LexicalIndex
from pipeline import artifacts, releases
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.evaluation import systems
from pipeline.features import FEATURES, Fusion
from pipeline.releases import Releases
from serving.errors import NotServedError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring.answers import SearchDetails
from serving.scoring.searcher import Searcher
from tests.flows.conftest import Trained

FIELDS = ("title", "text")


def weighed(workspace: Path, release: Artifact, **weights: float) -> Artifact:
    """A fusion artifact with these weights, for the models of a release; 0 for the other features."""

    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        fusion = Fusion(weights={**dict.fromkeys(FEATURES, 0.0), **weights})
        (staging.folder / "fusion.json").write_text(fusion.to_json(), encoding="utf-8")
        return {"models": {role: release.manifest.inputs[role] for role in ("ranker", "encoder")}}

    return artifacts.make(workspace, "fusion", version=1, config=dict(weights), inputs={}, build=build)


@pytest.fixture
def fielded(copied: Trained) -> Trained:
    """A workspace whose live release was retrained with title and text indexed apart, vectors too."""
    recipe = copied.recipe
    recipe = replace(recipe, index=replace(recipe.index, fields=FIELDS, field_vectors=True))
    return Trained(copied.world, copied.workspace, retrain.retrain(recipe, copied.workspace))


def by_field(fielded: Trained, feature: str = "bm25.title") -> Artifact:
    """A published release that orders by one score of one field alone."""
    registry, release = Releases(fielded.workspace), fielded.outcome.release
    parts = {name: releases.part(release, name) for name in release.manifest.inputs}
    parts["fusion"] = weighed(fielded.workspace, release, **{feature: 2.0})
    return registry.publish(parts, metrics=release.metrics, config=release.manifest.config)


def test_fields_are_judged_published_and_reported(fielded: Trained) -> None:
    release, report = fielded.outcome.release, fielded.outcome.report
    assert releases.fields(release) == ("text", "title")
    assert sorted(releases.field_parts(release)) == ["index.text", "index.title", "lexical.text", "lexical.title"]
    shown = json.loads(report.file("report.json").read_text(encoding="utf-8"))
    assert {"BM25 title", "BM25 text", "encoder title", "encoder text"} <= set(shown["systems"])
    assert shown["facts"]["fields indexed apart"]["lexical.title, bytes a document"] > 0
    assert {"lexical.title", "index.text"} <= set(listing.show(fielded.workspace, release.fingerprint)["parts"])

    run = Runner(fielded.workspace)
    judged, corpus = judging.judge_release(
        release, fielded.recipe.index, fielded.recipe.candidates, run, data=data_of(fielded)
    )
    frame = pd.read_parquet(judged.features.file("features.parquet"))
    queries = dict(
        pq.read_table(data_of(fielded).file("queries.parquet")).select(["query_id", "text"]).to_pandas().values
    )
    for field in FIELDS:
        index = LexicalIndex.load(corpus.fields[f"lexical.{field}"].path)
        for row in frame.sample(20, random_state=3).itertuples():
            score = index.scores(queries[row.query_id], [index.doc_ids.index(row.doc_id)])[0]
            assert frame.loc[row.Index, f"bm25.{field}"] == pytest.approx(score)


def data_of(trained: Trained) -> Artifact:
    return artifacts.load(next((trained.workspace / "artifacts" / "data").glob("?" * 32)))


def test_the_service_orders_by_the_weight_of_a_field(fielded: Trained) -> None:
    release = by_field(fielded)
    searcher = Searcher(release.path)
    index = LexicalIndex.load(releases.part(release, "lexical.title").path)
    results = searcher.search("blue knife", top_n=8, retrieve=8, details=SearchDetails(explain=True)).reranked
    scores = {hit.doc_id: float(index.scores("blue knife", [index.doc_ids.index(hit.doc_id)])[0]) for hit in results}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert len(set(scores.values())) > 2
    top = max(scores.values())
    for hit in results:
        assert hit.explain is not None
        assert hit.explain.features["bm25.title"].weight == 2
        assert hit.score == pytest.approx(hit.explain.features["bm25.title"].share) == 2 * scores[hit.doc_id] / top
    with pytest.raises(NotServedError, match="fields of its own documents"):
        searcher.fused("blue knife", ["a knife"], [1.0], RequestOptions(Deadline.never()))


def test_the_service_orders_by_the_vector_of_a_field(fielded: Trained) -> None:
    release = by_field(fielded, "encoder.title")
    searcher = Searcher(release.path)
    results = searcher.search("blue knife", top_n=8, retrieve=8, details=SearchDetails(explain=True)).reranked
    query = searcher.encoder.embed(["blue knife"], "query")[0]
    for hit in results:
        (vector,) = searcher.encoder.embed([hit.title], "document")
        assert hit.score == pytest.approx(2 * float(query @ vector), abs=1e-5)
    assert [hit.score for hit in results] == sorted((hit.score for hit in results), reverse=True)
    assert len({hit.score for hit in results}) > 2


def test_a_reindex_indexes_the_same_fields_of_new_documents(fielded: Trained, tmp_path: Path) -> None:
    registry = Releases(fielded.workspace)
    registry.promote(by_field(fielded).fingerprint, reason="test")
    documents = pq.read_table(fielded.world / "tiny" / "documents.parquet").to_pydict()
    documents["title"][3] = "samovar"
    (tmp_path / "new").mkdir()
    pq.write_table(pa.table(documents), tmp_path / "new" / "documents.parquet")
    assert reindexing.reindex([str(tmp_path / "new")], fielded.workspace)["live"]
    release = registry.open()
    assert releases.fields(release) == ("text", "title")
    assert Searcher(release.path).search("samovar", top_n=1).reranked[0].doc_id == "d3"


def test_a_release_whose_parts_do_not_fit_its_fusion_is_refused(fielded: Trained) -> None:
    registry, release = Releases(fielded.workspace), by_field(fielded)
    parts = {name: releases.part(release, name) for name in release.manifest.inputs}
    config = release.manifest.config
    swapped = {**parts, "lexical.title": parts["lexical.text"]}
    with pytest.raises(ArtifactError, match=r"lexical\.title holds an index of the field 'text'"):
        registry.publish(swapped, metrics={}, config=config)
    swapped = {**parts, "index.text": parts["index.title"]}
    with pytest.raises(ArtifactError, match=r"index\.text holds an index of the field 'title'"):
        registry.publish(swapped, metrics={}, config=config)
    del parts["lexical.title"]
    with pytest.raises(ArtifactError, match=r"its fusion weighs bm25\.title, but it has no lexical\.title"):
        registry.publish(parts, metrics={}, config=config)


def test_names_of_systems() -> None:
    assert systems.field_system("bm25.title") == "BM25 title"
    assert systems.field_system("encoder.text") == "encoder text"
