"""A table of a real PostgreSQL server, followed by its watermark: changed, deleted from, lost on the way, back."""

import os
import random
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from pipeline.artifacts import Artifact
from pipeline.config import SourceConfig
from pipeline.data import corpus, sources
from pipeline.data.formats import sql_changes
from pipeline.errors import UnavailableError

pytestmark = pytest.mark.postgres

ROWS = 3_000
TABLES = ("relevance_followed", "relevance_gone")


@pytest.fixture
def engine() -> Iterator[sa.Engine]:
    """A server with a table whose trigger stamps each written row with the time of its statement."""
    engine = sa.create_engine(os.environ["RELEVANCE_TEST_POSTGRES"])
    with engine.begin() as connection:
        for table in TABLES:
            connection.execute(sa.text(f"DROP TABLE IF EXISTS {table}"))
        connection.execute(
            sa.text(
                """CREATE TABLE relevance_followed (doc_id TEXT PRIMARY KEY, title TEXT, text TEXT, price NUMERIC(8, 2),
                seen DATE, changed TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp())"""
            )
        )
        connection.execute(
            sa.text("CREATE TABLE relevance_gone (doc_id TEXT, changed TIMESTAMPTZ DEFAULT clock_timestamp())")
        )
        connection.execute(
            sa.text(
                f"""INSERT INTO relevance_followed (doc_id, title, text, price, seen)
                SELECT 'd' || n, '标题 ' || n, repeat('body ', n % 7), n / 100.0, DATE '2026-01-01' + n
                FROM generate_series(1, {ROWS}) AS n"""
            )
        )
    yield engine
    with engine.begin() as connection:
        for table in TABLES:
            connection.execute(sa.text(f"DROP TABLE {table}"))
    engine.dispose()


def run(engine: sa.Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text(statement))


def source(deletions: Any = "table") -> SourceConfig:
    return SourceConfig(
        path=f"{os.environ['RELEVANCE_TEST_POSTGRES']}?table=relevance_followed",
        watermark="changed",
        deletions=deletions,
        deleted="relevance_gone" if deletions == "table" else "",
    )


def follow(folder: Path, previous: Artifact | None = None, deletions: Any = "table") -> Artifact:
    return corpus.make(folder, [source(deletions)], folder, "error", previous=previous)


def rows_of(documents: Artifact) -> dict[str, dict[str, Any]]:
    return {row["doc_id"]: row for row in pq.read_table(documents.file("documents.parquet")).to_pylist()}


def fresh(folder: Path) -> dict[str, dict[str, Any]]:
    unfollowed = replace(source(), watermark="", deletions="", deleted="")
    return {row["doc_id"]: row for row in sources.read(unfollowed, folder).documents.to_pylist()}


@pytest.mark.parametrize("deletions", ["table", "scan"])
def test_after_any_writes_the_documents_are_those_of_a_fresh_read(
    deletions: str, engine: sa.Engine, tmp_path: Path
) -> None:
    rng = random.Random(3)
    documents = follow(tmp_path, None, deletions)
    assert rows_of(documents) == fresh(tmp_path)
    for _ in range(6):
        for name in {f"d{rng.randint(1, ROWS + 50)}" for _ in range(20)}:
            if rng.random() < 0.5:
                run(engine, f"DELETE FROM relevance_followed WHERE doc_id = '{name}'")
                run(engine, f"INSERT INTO relevance_gone (doc_id) VALUES ('{name}')")
            else:
                run(
                    engine,
                    f"""INSERT INTO relevance_followed (doc_id, title, text) VALUES ('{name}', 'new', '{rng.random()}')
                    ON CONFLICT (doc_id) DO UPDATE SET text = excluded.text, changed = clock_timestamp()""",
                )
        documents = follow(tmp_path, documents, deletions)
        assert documents.metrics["read"] < 30
        assert rows_of(documents) == fresh(tmp_path)


def test_a_server_that_goes_in_the_middle_moves_nothing_and_is_read_when_it_is_back(
    engine: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = follow(tmp_path)
    run(engine, "UPDATE relevance_followed SET text = 'second', changed = clock_timestamp()")
    monkeypatch.setattr(sql_changes, "ROWS_AT_ONCE", 100)
    rows = sql_changes.FollowedTable.rows
    parts = 0

    def lost(table: sql_changes.FollowedTable, *args: Any, **keys: Any) -> Iterator[Any]:
        nonlocal parts
        backend = table._connection.execute(sa.text("SELECT pg_backend_pid()")).scalar()
        for part in rows(table, *args, **keys):
            parts += 1
            if parts == 5:
                run(engine, f"SELECT pg_terminate_backend({backend})")
            yield part

    monkeypatch.setattr(sql_changes.FollowedTable, "rows", lost)
    with pytest.raises(UnavailableError, match="run again later") as raised:
        follow(tmp_path, first)
    assert 5 <= parts < ROWS // 100
    assert f":{sa.make_url(os.environ['RELEVANCE_TEST_POSTGRES']).password}@" not in str(raised.value)
    folder = tmp_path / "artifacts" / "corpus"
    assert [path for path in folder.iterdir() if path.is_dir()] == [first.path]
    monkeypatch.undo()
    second = follow(tmp_path, first)
    assert second.metrics["changed"] == ROWS
    assert rows_of(second) == fresh(tmp_path)


def test_a_server_that_is_not_there_is_worth_another_try(tmp_path: Path) -> None:
    away = sa.make_url(os.environ["RELEVANCE_TEST_POSTGRES"]).set(host="127.0.0.1", port=9)
    address = away.render_as_string(hide_password=False)
    with pytest.raises(UnavailableError, match=r"not reached.*run again later"):
        corpus.make(tmp_path, [replace(source(), path=f"{address}?table=relevance_followed")], tmp_path, "error")


def test_a_late_commit_is_found_by_an_overlap(engine: sa.Engine, tmp_path: Path) -> None:
    with engine.begin() as slow:
        slow.execute(
            sa.text("INSERT INTO relevance_followed (doc_id, title, text) VALUES ('late', '', 'written before others')")
        )
        run(engine, "INSERT INTO relevance_followed (doc_id, title, text) VALUES ('quick', '', 'committed first')")
        first = follow(tmp_path)
    assert {"late", "quick"} & set(rows_of(first)) == {"quick"}
    assert "late" not in rows_of(follow(tmp_path, first))
    overlapping = corpus.make(tmp_path, [replace(source(), overlap=600)], tmp_path, "error", previous=first)
    assert rows_of(overlapping) == fresh(tmp_path)


@pytest.mark.parametrize(
    ("kind", "kind_of_deleted"),
    [("INTEGER", "TEXT"), ("TEXT", "BIGINT"), ("NUMERIC(9)", "TEXT"), ("UUID", "TEXT"), ("TEXT", "UUID")],
)
def test_an_id_that_came_back_stays_whatever_type_the_table_of_deletions_gives_it(
    kind: str, kind_of_deleted: str, engine: sa.Engine, tmp_path: Path
) -> None:
    is_uuid = "UUID" in (kind, kind_of_deleted)
    back, gone = (str(uuid.UUID(int=number)) if is_uuid else str(number) for number in (5, 6))
    run(engine, "DELETE FROM relevance_followed")
    run(engine, f"ALTER TABLE relevance_followed ALTER doc_id TYPE {kind} USING doc_id::{kind}")
    run(engine, f"ALTER TABLE relevance_gone ALTER doc_id TYPE {kind_of_deleted} USING doc_id::{kind_of_deleted}")
    run(engine, f"INSERT INTO relevance_followed (doc_id, title, text) VALUES ('{back}', '', ''), ('{gone}', '', '')")
    first = follow(tmp_path)
    run(engine, "DELETE FROM relevance_followed")
    run(engine, f"INSERT INTO relevance_gone (doc_id) VALUES ('{back}'), ('{gone}')")
    run(engine, f"INSERT INTO relevance_followed (doc_id, title, text) VALUES ('{back}', '', 'again')")
    assert set(rows_of(follow(tmp_path, first))) == {back}
