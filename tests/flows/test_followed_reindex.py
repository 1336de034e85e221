"""A re-index of a table that is followed by its watermark, through the flows: publish, change, roll back, fail."""

import sqlite3
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import publishing
from flows import reindex as reindexing
from pipeline.config import SourceConfig
from pipeline.data.formats import sql_changes
from pipeline.errors import ImplausibleError
from pipeline.releases import Releases
from serving.scoring.searcher import Searcher
from tests.flows.conftest import Trained


@pytest.fixture
def shop(trained: Trained, tmp_path: Path) -> Path:
    """The tiny world's documents in a SQLite file whose rows were written one after another."""
    documents = pq.read_table(trained.world / "tiny" / "documents.parquet").to_pydict()
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE documents (doc_id TEXT PRIMARY KEY, title TEXT, text TEXT, written INTEGER)")
        rows = zip(documents["doc_id"], documents["title"], documents["text"], range(150), strict=True)
        connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?)", rows)
    connection.close()
    return path


def write(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def source_of(path: Path) -> SourceConfig:
    return SourceConfig(path=f"sqlite:///{path}", watermark="written", deletions="scan")


def best(workspace: Path, query: str) -> list[str]:
    return [hit.doc_id for hit in Searcher(Releases(workspace).open().path).search(query, top_n=1).lexical]


def test_a_reindex_reads_what_changed_and_a_rollback_brings_the_older_watermark_back(
    copied: Trained, shop: Path
) -> None:
    registry, source = Releases(copied.workspace), source_of(shop)
    assert reindexing.reindex([source], copied.workspace)["live"]
    first = publishing.corpus_of(registry, registry.open())
    assert first is not None
    assert first.metrics["watermark"]["documents"] == ["number", "149"]

    write(shop, "UPDATE documents SET text = 'samovar', written = 200 WHERE doc_id = 'd3'")
    write(shop, "DELETE FROM documents WHERE doc_id = 'd4'")
    figures = reindexing.reindex([source], copied.workspace)
    assert (figures["embedded"], figures["documents"]) == (1, 149)
    second = publishing.corpus_of(registry, registry.open())
    assert second is not None
    assert (second.metrics["read"], second.metrics["gone"]) == (2, 1)
    assert best(copied.workspace, "samovar") == ["d3"]
    unchanged = reindexing.reindex([source], copied.workspace)
    assert (unchanged["release"], unchanged["live"]) == (figures["release"], True)

    registry.rollback(reason="test")
    assert publishing.corpus_of(registry, registry.open()) == first
    assert best(copied.workspace, "samovar") == []
    write(shop, "UPDATE documents SET text = 'balalaika', written = 300 WHERE doc_id = 'd5'")
    reindexing.reindex([source], copied.workspace)
    third = publishing.corpus_of(registry, registry.open())
    assert third is not None
    assert third.metrics["read"] == 3  # What the second release had read is read again.
    assert best(copied.workspace, "samovar") == ["d3"]
    assert best(copied.workspace, "balalaika") == ["d5"]
    assert len(Searcher(registry.open().path).documents) == 149


def test_what_is_not_published_moves_no_watermark(copied: Trained, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, source = Releases(copied.workspace), source_of(shop)
    reindexing.reindex([source], copied.workspace)
    live = registry.open().fingerprint
    write(shop, "UPDATE documents SET text = '', title = '', written = 200 WHERE written < 100")
    with pytest.raises(ImplausibleError):
        reindexing.reindex([source], copied.workspace)

    def fail(table: sql_changes.FollowedTable) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(sql_changes.FollowedTable, "ids", fail)
    with pytest.raises(RuntimeError):
        reindexing.reindex([source], copied.workspace)
    monkeypatch.undo()
    held = publishing.corpus_of(registry, registry.open())
    assert held is not None
    assert (registry.open().fingerprint, held.metrics["watermark"]["documents"]) == (live, ["number", "149"])
    assert reindexing.reindex([source], copied.workspace, force=True)["live"]


def test_full_reads_all(copied: Trained, shop: Path) -> None:
    source = source_of(shop)
    reindexing.reindex([source], copied.workspace)
    write(shop, "UPDATE documents SET text = 'samovar' WHERE doc_id = 'd3'")  # The watermark does not tell of it.
    reindexing.reindex([source], copied.workspace)
    assert best(copied.workspace, "samovar") == []
    reindexing.reindex([source], copied.workspace, full=True)
    assert best(copied.workspace, "samovar") == ["d3"]
