"""Fields that are scored apart, through the flows: judged, published, served, re-indexed; nothing is trained."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import indexing, judging
from flows import reindex as reindexing
from flows import releases as listing
from flows.runner import Runner
from index.document_store import DocumentStore
from index.lexical import LexicalIndex
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, IndexConfig
from pipeline.errors import ArtifactError
from pipeline.evaluation import report_stats, systems
from pipeline.features import FEATURES, Fusion
from pipeline.releases import Releases
from serving.errors import NotServedError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring.answers import SearchDetails
from serving.scoring.searcher import Searcher
from tests.flows.test_before import unpacked
from tests.flows.test_indexing import data_of

CONFIG = IndexConfig(fields=("title", "text"), field_vectors=True)


@dataclass(frozen=True)
class Fielded:
    """A workspace with an old release, and its documents indexed by their fields too."""

    workspace: Path
    release: Artifact
    data: Artifact
    corpus: indexing.SearchableCorpus

    @property
    def registry(self) -> Releases:
        return Releases(self.workspace)

    def published(self, feature: str, **parts: Artifact) -> Artifact:
        """A published release that orders by one feature alone."""
        config = dict(self.release.manifest.config)
        config["index"] = {**config["index"], "fields": list(CONFIG.fields), "field_vectors": True}
        own = {name: release_parts.part(self.release, name) for name in self.release.manifest.inputs}
        own |= {**self.corpus.parts, "fusion": weighed(self.workspace, self.release, feature)}
        return self.registry.publish({**own, **parts}, metrics=self.release.metrics, config=config)


def weighed(workspace: Path, release: Artifact, feature: str) -> Artifact:
    """A fusion artifact that weighs one feature with 2 and the others with 0, for the models of a release."""

    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        fusion = Fusion(weights={**dict.fromkeys(FEATURES, 0.0), feature: 2.0})
        (staging.folder / "fusion.json").write_text(fusion.to_json(), encoding="utf-8")
        return {"models": {role: release.manifest.inputs[role] for role in ("ranker", "encoder")}}

    return artifacts.make(workspace, "fusion", version=1, config={"feature": feature}, inputs={}, build=build)


def graded(data: Artifact, workspace: Path) -> Artifact:
    """The data with judgments that say who made them, as training data has."""

    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        for name in ("documents", "queries"):
            shutil.copyfile(data.file(f"{name}.parquet"), staging.folder / f"{name}.parquet")
        judgments = pq.read_table(data.file("judgments.parquet"))
        judgments = judgments.append_column("source", pa.array(["human"] * judgments.num_rows))
        pq.write_table(judgments, staging.folder / "judgments.parquet")
        return {}

    return artifacts.make(workspace, "data", version=1, config={"graded": True}, inputs={}, build=build)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Fielded:
    workspace = unpacked(tmp_path_factory.mktemp("fielded"))
    release = Releases(workspace).open()
    data = graded(data_of(release, workspace), workspace)
    encoder = release_parts.part(release, "encoder")
    return Fielded(
        workspace, release, data, indexing.make_searchable(CONFIG, Runner(workspace), encoder=encoder, data=data)
    )


def test_fields_are_judged_and_reported(indexed: Fielded) -> None:
    release = indexed.published("bm25.title")
    assert release_parts.fields(release) == ("text", "title")
    assert sorted(release_parts.field_parts(release)) == ["index.text", "index.title", "lexical.text", "lexical.title"]
    assert {"lexical.title", "index.text"} <= set(listing.show(indexed.workspace, release.fingerprint)["parts"])
    group = report_stats.fields(indexed.corpus.fields)["fields indexed apart"]
    assert min(group["lexical.title, bytes a document"], group["index.text, bytes a document"]) > 0

    # A recipe without fields judges the release by the fields of its own.
    run, recipe = Runner(indexed.workspace), CandidatesConfig(retrieve=4)
    judged, corpus = judging.judge_release(release, IndexConfig(), recipe, run, data=indexed.data)
    assert corpus.parts == indexed.corpus.parts
    frame = pd.read_parquet(judged.features.file("features.parquet"))
    queries = pq.read_table(indexed.data.file("queries.parquet")).to_pydict()
    texts = dict(zip(queries["query_id"], queries["text"], strict=True))
    for field in CONFIG.fields:
        index = LexicalIndex.load(corpus.fields[f"lexical.{field}"].path)
        for row in frame.sample(20, random_state=3).itertuples():
            score = index.scores(texts[row.query_id], [index.doc_ids.index(row.doc_id)])[0]
            assert frame.loc[row.Index, f"bm25.{field}"] == pytest.approx(score)
    ranked = run(systems.make, features=judged.features, fusion=judged.fusion, scores={})
    assert {"BM25 title", "BM25 text", "encoder title", "encoder text"} <= set(ranked.metrics["systems"])
    table = pd.read_parquet(ranked.file("run.parquet"))
    orders = {name: rows[["query_id", "doc_id", "rank"]].to_numpy().tolist() for name, rows in table.groupby("system")}
    assert orders["fused"] == orders["BM25 title"] != orders["BM25"]


def test_the_service_orders_by_the_weight_of_a_field(indexed: Fielded) -> None:
    release = indexed.published("bm25.title")
    searcher = Searcher(release.path)
    index = LexicalIndex.load(release_parts.part(release, "lexical.title").path)
    results = searcher.search("blue knife", top_n=8, retrieve=8, details=SearchDetails(explain=True)).reranked
    scores = {hit.doc_id: float(index.scores("blue knife", [index.doc_ids.index(hit.doc_id)])[0]) for hit in results}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert len(set(scores.values())) > 2
    for hit in results:
        assert hit.explain is not None
        assert hit.explain.features["bm25.title"].weight == 2
        expected = 2 * scores[hit.doc_id] / max(scores.values())
        assert hit.score == pytest.approx(hit.explain.features["bm25.title"].share) == pytest.approx(expected)
    with pytest.raises(NotServedError, match="fields of its own documents"):
        searcher.fused("blue knife", ["a knife"], [1.0], RequestOptions(Deadline.never()))


def test_the_service_orders_by_the_vector_of_a_field(indexed: Fielded) -> None:
    searcher = Searcher(indexed.published("encoder.title").path)
    results = searcher.search("blue knife", top_n=8, retrieve=8).reranked
    query = searcher.encoder.embed(["blue knife"], "query")[0]
    for hit in results:
        (vector,) = searcher.encoder.embed([hit.title], "document")
        assert hit.score == pytest.approx(2 * float(query @ vector), abs=1e-5)
    assert [hit.score for hit in results] == sorted((hit.score for hit in results), reverse=True)
    assert len({hit.score for hit in results}) > 2


def test_a_reindex_indexes_the_same_fields_of_new_documents(indexed: Fielded, tmp_path: Path) -> None:
    published = indexed.published("bm25.title")
    workspace = tmp_path / "workspace"
    shutil.copytree(indexed.workspace, workspace)
    registry = Releases(workspace)
    registry.promote(published.fingerprint, reason="test")
    store = DocumentStore.load(indexed.corpus.documents.path)
    stored = [store.get(row) for row in range(len(store))]
    documents = {name: [getattr(item, name) for item in stored] for name in ("doc_id", "title", "text")}
    documents["title"][3] = "balalaika"
    (tmp_path / "new").mkdir()
    pq.write_table(pa.table(documents), tmp_path / "new" / "documents.parquet")
    assert reindexing.reindex([str(tmp_path / "new")], workspace)["live"]
    release = registry.open()
    assert sorted(release_parts.field_parts(release)) == ["index.text", "index.title", "lexical.text", "lexical.title"]
    assert Searcher(release.path).search("balalaika", top_n=1).reranked[0].doc_id == documents["doc_id"][3]


def test_a_release_whose_parts_do_not_fit_its_fusion_is_refused(indexed: Fielded) -> None:
    fields = indexed.corpus.fields
    for name, other in (("lexical.title", "lexical.text"), ("index.text", "index.title")):
        field = other.partition(".")[2]
        with pytest.raises(ArtifactError, match=rf"its part {name} holds an index of the field '{field}'"):
            indexed.published("bm25.title", **{name: fields[other]})
    own = {name: release_parts.part(indexed.release, name) for name in indexed.release.manifest.inputs}
    own["fusion"] = weighed(indexed.workspace, indexed.release, "bm25.title")
    with pytest.raises(ArtifactError, match=r"its fusion weighs bm25\.title, but it has no lexical\.title"):
        indexed.registry.publish(own, metrics={}, config={})


def test_names_of_systems() -> None:
    assert systems.field_system("bm25.title") == "BM25 title"
    assert systems.field_system("encoder.text") == "encoder text"
