"""An index of passages through the flows: published over an old release, re-indexed, judged, searched; no training."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import judging
from flows import reindex as reindexing
from flows.runner import Runner
from index import checks, inventory
from index.semantic import SemanticIndex
from pipeline import artifacts, release_parts
from pipeline.config import CandidatesConfig, IndexConfig, PassagesConfig
from pipeline.evaluation import report_stats
from pipeline.passages import Passages
from pipeline.releases import Releases
from serving.runtime import offline
from serving.scoring.searcher import Searcher
from tests.flows.test_before import unpacked
from tests.flows.test_fields import graded
from tests.flows.test_indexing import data_of

FILLER = "a spoon for the kitchen, size 4; with plate bowl whisk. "


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(tmp_path_factory.mktemp("passages"))


def with_passages(workspace: Path) -> str:
    """The old release with a recipe that reads documents in passages; its index does not yet."""
    registry = Releases(workspace)
    old = registry.open()
    config = {**old.manifest.config, "index": {**old.manifest.config["index"], "passages": {"most": 6}}}
    parts = {name: release_parts.part(old, name) for name in old.manifest.inputs}
    return registry.publish(parts, metrics=old.metrics, config=config).fingerprint


def write(folder: Path, texts: dict[str, str]) -> str:
    folder.mkdir(exist_ok=True)
    rows = {"doc_id": list(texts), "title": [""] * len(texts), "text": list(texts.values())}
    pq.write_table(pa.table(rows), folder / "documents.parquet")
    return str(folder)


def test_a_reindex_reads_long_documents_in_passages_and_shares_them(workspace: Path, tmp_path: Path) -> None:
    texts = {f"d{number}": f"a towel for the bath, size {number}" for number in range(30)}
    texts |= {"long": FILLER * 4 + "a drill for the garage, size 77", "longer": FILLER * 9}
    release = with_passages(workspace)
    before = reindexing.reindex([write(tmp_path / "docs", texts)], workspace, release=release, force=True)
    assert before["documents"] == 32
    assert before["passages"] >= 40
    texts["long"] += "; with wrench and bolt"
    after = reindexing.reindex([write(tmp_path / "docs", texts)], workspace, release=before["release"], force=True)
    assert 0 < after["embedded"] <= 2
    assert after["embedded"] + after["reused"] == after["passages"]
    published = Releases(workspace).open(after["release"])
    index = SemanticIndex.load(release_parts.part(published, "index").path)
    assert index.passages == Passages(most=6)
    parts = {name: release_parts.part(published, name) for name in ("lexical", "documents", "index")}
    folder = artifacts.folder_of(workspace, parts["index"].manifest.inputs["vectors"])
    assert folder is not None
    vectors = artifacts.load(folder)
    assert inventory.indexed(parts["index"]) == inventory.indexed(vectors) == after["passages"]
    assert list(checks.problems(parts, vectors)) == []
    few = reindexing.reindex([write(tmp_path / "few", {"d0": texts["d0"]})], workspace, force=True, promote=False)
    fewer = release_parts.part(Releases(workspace).open(few["release"]), "lexical")
    problems = list(checks.problems({**parts, "lexical": fewer}, vectors))
    assert [sum(words in item for item in problems) for words in ("not those of documents", "other texts")] == [1, 1]
    searcher = Searcher(published.path, threads=1)
    result = searcher.search("a drill for the garage", top_n=40, retrieve=40)
    (hit,) = (hit for hit in result.semantic if hit.doc_id == "long")
    assert hit.passage is not None
    assert hit.passage.text == texts["long"][hit.passage.start : hit.passage.end]
    embedded = searcher.encoder.embed(
        [texts["long"][start:end] for start, end in _cut(searcher, texts["long"])], "document"
    )
    (query,) = searcher.encoder.embed(["a drill for the garage"], "query")
    assert hit.score == pytest.approx(float((embedded @ query).max()), abs=1e-5)


def _cut(searcher: Searcher, text: str) -> list[tuple[int, int]]:
    (spans,) = searcher.encoder.text_cutter(Passages(most=6)).cut([text])
    return spans


def test_a_release_is_judged_with_the_passages_of_its_own_recipe(workspace: Path) -> None:
    registry = Releases(workspace)
    old = registry.open()
    data, run = graded(data_of(old, workspace), workspace), Runner(workspace)
    new = registry.open(with_passages(workspace))
    recipe = CandidatesConfig(retrieve=4)
    _, plain = judging.judge_release(old, IndexConfig(passages=PassagesConfig(most=6)), recipe, run, data=data)
    _, passages = judging.judge_release(new, IndexConfig(), recipe, run, data=data)
    assert "passages" not in plain.index.metrics
    assert passages.index.metrics["passages"] >= passages.index.metrics["documents"]
    encoder = release_parts.part(new, "encoder")
    group = report_stats.of({"encoder": encoder}, passages.vectors, passages.index, {})["index"]
    assert group["vectors, one a passage"] == passages.index.metrics["passages"]
    assert (
        "vectors, one a passage" not in report_stats.of({"encoder": encoder}, plain.vectors, plain.index, {})["index"]
    )
    assert json.loads(plain.index.file("index.json").read_text()).keys().isdisjoint({"passages", "documents"})
    assert offline.cutter(offline.embedder(encoder), None) is None
