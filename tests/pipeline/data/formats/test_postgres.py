"""Documents out of a real PostgreSQL server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.errors import InputError

pytestmark = pytest.mark.postgres


@pytest.fixture
def table() -> Iterator[str]:
    """A URL with ?table=… of a table that lives as long as the test."""
    address = os.environ["RELEVANCE_TEST_POSTGRES"]
    engine = sa.create_engine(address)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE IF EXISTS relevance_documents"))
        connection.execute(
            sa.text("CREATE TABLE relevance_documents (doc_id TEXT PRIMARY KEY, title TEXT, text TEXT, upvotes INT)")
        )
        connection.execute(
            sa.text("INSERT INTO relevance_documents VALUES (:doc_id, :title, :text, :upvotes)"),
            [
                {"doc_id": f"d{n:05d}", "title": f"标题 {n}", "text": "body " * (n % 7), "upvotes": n}
                for n in range(5000)
            ],
        )
    yield f"{address}?table=relevance_documents"
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE relevance_documents"))
    engine.dispose()


def test_documents_come_whole_and_their_digest_follows_them(table: str, tmp_path: Path) -> None:
    first = sources.read(SourceConfig(path=table), tmp_path)
    assert first.documents.num_rows == 5000
    rows = {row["doc_id"]: row for row in first.documents.to_pylist()}
    assert rows["d00013"] == {"doc_id": "d00013", "title": "标题 13", "text": "body " * 6, "upvotes": 13}
    engine = sa.create_engine(os.environ["RELEVANCE_TEST_POSTGRES"])
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE relevance_documents SET text = 'new' WHERE doc_id = 'd00013'"))
    engine.dispose()
    assert sources.read(SourceConfig(path=table), tmp_path).digest != first.digest


def test_a_table_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    address = os.environ["RELEVANCE_TEST_POSTGRES"]
    with pytest.raises(InputError, match="no_such_table") as caught:
        sources.read(SourceConfig(path=f"{address}?table=no_such_table"), tmp_path)
    password = sa.make_url(address).password
    assert password
    assert f":{password}@" not in str(caught.value)


def test_a_query_reaches_the_database_as_it_is_written_and_writes_nothing(table: str) -> None:
    """Neither a colon nor a per cent sign names a value, and a statement that writes is refused."""
    rows = "SELECT * FROM relevance_documents WHERE"
    query = f"{rows} title LIKE '标题 12%' AND upvotes::text <> ':x' AND '%s' <> '%(y)s' AND 7 % 2 = 1 -- :z"
    read = sources.read(SourceConfig(path=table, query=query), Path())
    assert read.documents.num_rows == 111
    for writes in ("DELETE FROM relevance_documents", "DROP TABLE relevance_documents"):
        with pytest.raises(InputError, match=r"gives no rows|syntax error"):  # PostgreSQL declares a cursor for it.
            sources.read(SourceConfig(path=table, query=writes), Path())
    assert sources.read(SourceConfig(path=table), Path()).documents.num_rows == 5000
