"""Addresses and queries of databases as people write them: the rows, or what to write in their place."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.config import SourceConfig
from pipeline.data.formats import sql
from pipeline.errors import ConfigError, MissingError


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A database of two documents."""
    file = tmp_path / "shop.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("create table documents (doc_id text, title text, text text)")
        rows = [("1", "opens at 10:30 :daily", "50% off"), ("2", "closed", "never")]
        connection.executemany("insert into documents values (?, ?, ?)", rows)
    return file


QUERY = "select * from documents where "


@pytest.mark.parametrize(
    "query",
    [
        f"{QUERY}title like '%:daily'",
        f"{QUERY}text like '50%' and 1 % 2 = 1",
        f"{QUERY}doc_id = '1' -- not :this",
        f"/* as of :now,\n100% sure */ {QUERY}title like '%10:30 :daily%'",
        f"{QUERY}text = '50% off' and '%s' <> '%(name)s' and '?' = '?'",
    ],
)
def test_a_query_reaches_the_database_as_it_is_written(shop: Path, query: str) -> None:
    config = SourceConfig(path=f"sqlite:///{shop}", query=query)
    assert sql.read(config, Path()).documents["doc_id"].to_pylist() == ["1"]
    assert sql.samples_of(config, Path())["doc_id"] == "1"


@pytest.mark.parametrize(
    "query",
    [
        "drop table documents",
        " -- old\n /* rows */ DELETE FROM documents",
        "with x as (select 1) delete from documents",
    ],
)
def test_a_query_that_writes_is_refused_and_writes_nothing(shop: Path, query: str) -> None:
    config = SourceConfig(path=f"sqlite:///{shop}", query=query)
    for use in (sql.read, sql.samples_of):
        with pytest.raises(ConfigError, match="gives no rows; write a SELECT"):
            use(config, Path())
    assert sql.read(SourceConfig(path=f"sqlite:///{shop}"), Path()).documents.num_rows == 2


def test_a_sqlite_path_that_lacks_slashes_is_answered_with_the_address_that_works(shop: Path) -> None:
    for slashes in ("//", "///"):
        with pytest.raises(MissingError) as raised:
            sql.read(SourceConfig(path=f"sqlite:{slashes}{str(shop).lstrip('/')}"), Path())
        advised = str(raised.value).rpartition("four slashes: ")[2]
        assert sql.read(SourceConfig(path=advised), Path()).documents.num_rows == 2


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("sqlite://shop.db", "a path follows three slashes, an absolute one four: sqlite:///shop.db"),
        ("postgres://me:secret@host/shop", r"did you mean postgresql://\?"),
        ("sqlite3:///shop.db", r"did you mean sqlite://\?"),
        ("https://example.org/ratings.csv", "download the file and name it"),
        ("mongodb://host/shop", "known are sqlite, postgresql, .*s3://"),
        ("mysql+nodriver://me:secret@host/shop", "install the driver"),
    ],
)
def test_an_address_of_no_known_kind_is_answered_with_what_to_write(path: str, advice: str) -> None:
    with pytest.raises((ConfigError, MissingError), match=advice) as raised:
        sql.read(SourceConfig(path=path), Path())
    assert "secret" not in str(raised.value)
