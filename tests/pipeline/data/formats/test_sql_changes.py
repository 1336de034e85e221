"""Marks hold a watermark to its last digit, and ids are compared as the texts that documents have."""

import datetime
import decimal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.artifacts import Artifact
from pipeline.config import SourceConfig
from pipeline.data import corpus
from pipeline.data.formats.sql_changes import Mark
from pipeline.errors import ConfigError

NANOSECONDS = 1_764_518_535_123_456_901
"""A time that a float would round up by 123."""


def ids_of(documents: Artifact) -> set[str]:
    return set(pq.read_table(documents.file("documents.parquet"))["doc_id"].to_pylist())


@pytest.fixture
def follow(tmp_path: Path) -> Callable[..., Artifact]:
    def make(deletions: Any, previous: Artifact | None = None) -> Artifact:
        source = SourceConfig(
            path=f"sqlite:///{tmp_path}/shop.db?table=documents",
            watermark="seen",
            deletions=deletions,
            deleted="gone" if deletions == "table" else "",
        )
        return corpus.make(tmp_path / "workspace", [source], tmp_path, "error", previous=previous)

    return make


@pytest.mark.parametrize(
    "value",
    [
        NANOSECONDS,
        -NANOSECONDS,
        2**63 - 1,
        1.5,
        decimal.Decimal("123456789012345678901234567890.12345678"),
        datetime.datetime(2026, 1, 2, 3, 4, 5, 678901),
        datetime.date(2026, 1, 2),
        "rev-0001",
        b"\x00\xff",
    ],
)
def test_a_mark_is_the_value_that_it_was_made_of(value: Any) -> None:
    assert Mark.of(value, "column").value() == value


def test_an_overlap_is_taken_off_exactly() -> None:
    assert Mark.of(NANOSECONDS, "column").value(5) == NANOSECONDS - 5
    assert Mark.of(NANOSECONDS, "column").value(4.5) == NANOSECONDS - 5
    large = decimal.Decimal("123456789012345678901234567890.125")
    assert str(Mark.of(large, "column").value(0.5)) == "123456789012345678901234567889.625"


@pytest.mark.parametrize("value", [datetime.datetime(2026, 1, 1), datetime.date(2026, 1, 1), "2026-01-01"])
def test_an_overlap_beyond_all_times_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"overlap is 1e\+12 seconds, which reach further back than times do"):
        Mark.of(value, "column").value(1e12)


def test_a_row_just_above_a_watermark_in_nanoseconds_is_read(tmp_path: Path, follow: Callable[..., Artifact]) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("CREATE TABLE documents (doc_id TEXT, title TEXT, text TEXT, seen INTEGER)")
        connection.execute("INSERT INTO documents VALUES ('a', '', 'a', ?)", (NANOSECONDS,))
    first = follow("none")
    with connection:
        connection.execute("INSERT INTO documents VALUES ('b', '', 'b', ?)", (NANOSECONDS + 1,))
        connection.execute("INSERT INTO documents VALUES ('c', '', 'c', ?)", (NANOSECONDS + 1000,))
    connection.close()
    assert ids_of(follow("none", first)) == {"a", "b", "c"}


@pytest.mark.parametrize("kind", ["INTEGER", "TEXT", "", "NUMERIC(9)"])
@pytest.mark.parametrize("kind_of_deleted", ["INTEGER", "TEXT", "", "NUMERIC(9)"])
def test_an_id_that_came_back_stays_whatever_type_the_table_of_deletions_gives_it(
    kind: str, kind_of_deleted: str, tmp_path: Path, follow: Callable[..., Artifact]
) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute(f"CREATE TABLE documents (doc_id {kind}, title TEXT, text TEXT, seen INTEGER)")
        connection.execute(f"CREATE TABLE gone (doc_id {kind_of_deleted}, seen INTEGER)")
        connection.execute("INSERT INTO documents VALUES (5, '', 'five', 1), (6, '', 'six', 2)")
    first = follow("table")
    with connection:
        connection.execute("DELETE FROM documents")
        connection.execute("INSERT INTO gone VALUES ('5', 3), ('6', 3)")
        connection.execute("INSERT INTO documents VALUES (5, '', 'five again', 4)")
    connection.close()
    assert ids_of(follow("table", first)) == {"5"}
