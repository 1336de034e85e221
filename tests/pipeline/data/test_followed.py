"""A table followed by its watermark: equal to a fresh read after any writes, and clear about what it cannot see."""

import logging
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import SourceConfig
from pipeline.data import corpus, sources
from pipeline.data.formats import sql_changes
from pipeline.errors import ConfigError, MissingError, SchemaError, UnavailableError

Deletions = Literal["flag", "table", "scan", "none"]
DELETED = {"flag": "removed", "table": "tombstones", "scan": "", "none": ""}


class Shop:
    """A SQLite file with a table of articles, written to as an application would."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "shop.db"
        self.connection = sqlite3.connect(self.path)
        self.connection.executescript(
            """CREATE TABLE articles
                (doc_id TEXT PRIMARY KEY, title TEXT, text TEXT, price, updated_at INTEGER, removed INTEGER);
            CREATE TABLE tombstones (doc_id TEXT, updated_at INTEGER);"""
        )
        self.clock = 100

    def source(self, deletions: Deletions, **keys: Any) -> SourceConfig:
        return SourceConfig(
            path=f"sqlite:///{self.path}?table=articles",
            watermark="updated_at",
            deletions=deletions,
            deleted=DELETED[deletions],
            **keys,
        )

    def put(self, name: str, text: str = "text", **columns: Any) -> None:
        self.clock += columns.pop("later", 1)
        row = {"price": 1, "updated_at": self.clock, "removed": None, **columns}
        self.connection.execute(
            "INSERT OR REPLACE INTO articles VALUES (?, ?, ?, ?, ?, ?)",
            (name, f"title of {name}", text, row["price"], row["updated_at"], row["removed"]),
        )
        self.connection.commit()

    def delete(self, name: str, deletions: Deletions) -> None:
        if deletions == "flag":
            self.clock += 1
            statement = "UPDATE articles SET removed = 1, updated_at = ? WHERE doc_id = ?"
            self.connection.execute(statement, (self.clock, name))
        else:
            self.connection.execute("DELETE FROM articles WHERE doc_id = ?", (name,))
        if deletions == "table":
            self.clock += 1
            self.connection.execute("INSERT INTO tombstones VALUES (?, ?)", (name, self.clock))
        self.connection.commit()

    def run(self, statement: str, *values: Any) -> None:
        self.connection.execute(statement, values)
        self.connection.commit()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    opened = Shop(tmp_path)
    yield opened
    opened.connection.close()


@pytest.fixture
def follow(tmp_path: Path) -> Callable[..., Artifact]:
    def make(source: SourceConfig, previous: Artifact | None = None, rows: Any = "error") -> Artifact:
        return corpus.make(tmp_path / "workspace", [source], tmp_path, rows, previous=previous)

    return make


def rows_of(documents: Artifact) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(documents.file("documents.parquet")).to_pylist()
    assert len({row["doc_id"] for row in rows}) == len(rows) == documents.metrics["documents"]
    return {row["doc_id"]: row for row in rows}


def fresh(shop: Shop, source: SourceConfig) -> dict[str, dict[str, Any]]:
    """The documents by the other reader, which takes the whole table into memory."""
    unfollowed = replace(source, watermark="", deletions="", deleted="")
    documents = {row["doc_id"]: row for row in sources.read(unfollowed, Path()).documents.to_pylist()}
    if source.deletions == "flag":
        return {
            name: {key: value for key, value in row.items() if key != "removed"}
            for name, row in documents.items()
            if not row["removed"]
        }
    return documents


@pytest.mark.parametrize("deletions", ["flag", "table", "scan"])
@pytest.mark.parametrize("seed", range(4))
def test_after_any_writes_the_documents_are_those_of_a_fresh_read(
    deletions: Deletions, seed: int, shop: Shop, follow: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_changes, "ROWS_AT_ONCE", 7)
    rng, source = random.Random(seed), shop.source(deletions)
    for number in range(40):
        shop.put(f"d{number}", rng.choice(["a", "b"]))
    documents = follow(source)
    assert documents.metrics["read"] == 40
    for _ in range(15):
        names = [name for (name,) in shop.connection.execute("SELECT doc_id FROM articles ORDER BY doc_id")]
        for _ in range(rng.randint(0, 4)):
            name = rng.choice([*names, f"d{rng.randint(0, 60)}"])
            if rng.random() < 0.4:
                shop.delete(name, deletions)
            else:
                # Several rows may have one value of the watermark, and a content may stay as it is.
                shop.put(name, rng.choice(["a", "b", "c"]), price=rng.randint(1, 5), later=rng.randint(0, 1))
        documents = follow(source, documents)
        assert rows_of(documents) == fresh(shop, source)


def test_only_what_changed_is_read(shop: Shop, follow: Callable[..., Artifact]) -> None:
    source = shop.source("scan")
    for number in range(50):
        shop.put(f"d{number}")
    first = follow(source)
    assert follow(source, first) == first  # The last row alone was read again, and is as it was.
    shop.put("d7", "other")
    shop.put("new")
    second = follow(source, first)
    assert {name: second.metrics[name] for name in ("documents", "read", "changed", "gone")} == {
        "documents": 51,
        "read": 3,  # With the row that has the last watermark.
        "changed": 2,
        "gone": 0,
    }
    assert rows_of(second)["d7"]["text"] == "other"


def test_each_release_starts_from_its_own_watermark(shop: Shop, follow: Callable[..., Artifact]) -> None:
    source = shop.source("scan")
    shop.put("a")
    first = follow(source)
    shop.put("b")
    second = follow(source, first)
    shop.put("c")
    assert follow(source, second).metrics["read"] == 2
    assert follow(source, first).metrics["read"] == 3  # After a rollback, b is read once more.
    assert rows_of(follow(source, first)) == rows_of(follow(source, second)) == fresh(shop, source)


def test_a_row_that_is_written_while_others_are_read_is_not_lost(
    shop: Shop, follow: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shop.source("scan")
    for number in range(30):
        shop.put(f"d{number:02d}")
    first = follow(source)
    for number in range(20):
        shop.put(f"d{number:02d}", "second")
    rows, newest = sql_changes.FollowedTable.rows, sql_changes.FollowedTable.newest

    def late(table: sql_changes.FollowedTable) -> sql_changes.Mark | None:
        mark = newest(table)
        shop.put("d05", "third")  # Between the newest value and the rows.
        shop.put("d31", "third")
        return mark

    def slow(table: sql_changes.FollowedTable, *args: Any, **keys: Any) -> Iterator[Any]:
        yield from rows(table, *args, **keys)
        shop.put("d06", "third")  # After the rows were read.

    monkeypatch.setattr(sql_changes.FollowedTable, "newest", late)
    monkeypatch.setattr(sql_changes.FollowedTable, "rows", slow)
    second = follow(source, first)
    monkeypatch.undo()
    assert rows_of(second)["d05"]["text"] == "third"
    assert rows_of(second)["d06"]["text"] == "second"
    assert rows_of(follow(source, second)) == fresh(shop, source)


def test_rows_without_a_watermark_are_read_every_time(
    shop: Shop, follow: Callable[..., Artifact], caplog: pytest.LogCaptureFixture
) -> None:
    source = shop.source("scan")
    shop.put("a")
    shop.put("b", updated_at=None)
    with caplog.at_level(logging.WARNING):
        first = follow(source)
    assert "1 row has no updated_at, so all such rows are read every time" in caplog.text
    shop.run("UPDATE articles SET text = 'other' WHERE doc_id = 'b'")
    assert rows_of(follow(source, first))["b"]["text"] == "other"


def test_a_table_without_any_watermark_is_read_whole_every_time(shop: Shop, follow: Callable[..., Artifact]) -> None:
    source = shop.source("none")
    shop.put("a", updated_at=None)
    first = follow(source)
    shop.put("b", updated_at=None)
    shop.run("DELETE FROM articles WHERE doc_id = 'a'")
    assert list(rows_of(follow(source, first))) == ["b"]


def test_a_clock_or_backup_that_went_back_is_noticed_by_the_newest_rows(
    shop: Shop, follow: Callable[..., Artifact], caplog: pytest.LogCaptureFixture
) -> None:
    source = shop.source("none")
    shop.put("a")
    shop.put("b", updated_at=500)
    first = follow(source)
    shop.run("UPDATE articles SET updated_at = 50, text = 'restored' WHERE doc_id = 'a'")
    shop.run("UPDATE articles SET updated_at = 60, text = 'restored' WHERE doc_id = 'b'")
    with caplog.at_level(logging.INFO):
        second = follow(source, first)
    assert "a clock or backup went back, so all rows are read" in caplog.text
    assert rows_of(second) == fresh(shop, source)
    assert follow(source, second) == second
    assert second.metrics["watermark"]["documents"] == ["number", "60"]


@pytest.mark.parametrize("emptied", [False, True])
def test_a_table_of_deletions_that_went_back_hides_no_deletion(
    emptied: bool, shop: Shop, follow: Callable[..., Artifact], caplog: pytest.LogCaptureFixture
) -> None:
    source = shop.source("table")
    for name in "abcd":
        shop.put(name)
    shop.delete("d", "table")
    first = follow(source)
    assert sorted(rows_of(first)) == ["a", "b", "c"]
    shop.run("DELETE FROM tombstones")
    shop.run("DELETE FROM articles WHERE doc_id = 'b'")
    if not emptied:
        shop.run("INSERT INTO tombstones VALUES ('b', 7)")  # By a machine whose clock is behind.
    with caplog.at_level(logging.INFO):
        second = follow(source, first)
    assert "no row of tombstones reaches the updated_at 105 any more" in caplog.text
    assert rows_of(second) == fresh(shop, source)
    caplog.clear()
    assert follow(source, second) == second
    assert "so all rows are read" not in caplog.text


def test_an_id_that_is_deleted_and_comes_back_or_was_never_there_is_as_in_a_fresh_read(
    shop: Shop, follow: Callable[..., Artifact]
) -> None:
    source = shop.source("table")
    shop.put("a")
    shop.put("b")
    first = follow(source)
    shop.delete("a", "table")
    second = follow(source, first)
    assert sorted(rows_of(second)) == ["b"]
    shop.put("a", text="back")
    shop.run("INSERT INTO tombstones VALUES ('never seen', ?)", shop.clock)
    third = follow(source, second)
    assert rows_of(third) == fresh(shop, source)
    assert rows_of(third)["a"]["text"] == "back"
    shop.delete("b", "table")
    shop.put("b", text="at once", later=0)  # In one batch, with the mark of its deletion.
    fourth = follow(source, third)
    assert rows_of(fourth) == fresh(shop, source)
    assert follow(source, fourth) == fourth


@pytest.mark.parametrize(
    ("kind", "last", "late"),
    [
        ("INTEGER", 1000, 990),
        ("REAL", 1000.5, 990.5),
        ("TEXT", "2026-01-01 10:00:00", "2026-01-01 09:59:50"),
        ("TIMESTAMP", "2026-01-01T10:00:00Z", "2026-01-01T09:59:50Z"),
    ],
)
def test_an_overlap_finds_rows_that_were_written_with_an_older_value(
    kind: str, last: Any, late: Any, tmp_path: Path, follow: Callable[..., Artifact]
) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"CREATE TABLE documents (doc_id TEXT, title TEXT, text TEXT, seen {kind})")
        connection.execute("INSERT INTO documents VALUES ('a', '', 'a', ?)", (last,))
        connection.commit()
        source = SourceConfig(path=f"sqlite:///{path}", watermark="seen", deletions="scan")
        first = follow(source)
        connection.execute("INSERT INTO documents VALUES ('b', '', 'b', ?)", (late,))
        connection.commit()
        assert set(rows_of(follow(source, first))) == {"a"}  # As stated: an older value is not seen without overlap.
        assert set(rows_of(follow(replace(source, overlap=10), first))) == {"a", "b"}
        assert set(rows_of(follow(replace(source, overlap=9), first))) == {"a"}
    connection.close()


def test_an_overlap_below_a_text_that_is_no_time_is_refused(tmp_path: Path, follow: Callable[..., Artifact]) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE documents (doc_id TEXT, title TEXT, text TEXT, seen TEXT)")
        connection.execute("INSERT INTO documents VALUES ('a', '', 'a', 'rev-0001')")
    connection.close()
    source = SourceConfig(path=f"sqlite:///{path}", watermark="seen", deletions="scan", overlap=5)
    with pytest.raises(ConfigError, match="overlap is 5, and the watermark 'rev-0001' is neither a number nor a time"):
        follow(source, follow(source))


def test_a_value_in_the_future_is_refused(tmp_path: Path, follow: Callable[..., Artifact]) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE documents (doc_id TEXT, title TEXT, text TEXT, seen TIMESTAMP)")
        connection.execute("INSERT INTO documents VALUES ('a', '', 'a', '2926-01-01 00:00:00')")
    connection.close()
    source = SourceConfig(path=f"sqlite:///{path}", watermark="seen", deletions="scan")
    with pytest.raises(
        SchemaError, match=r"2926-01-01 00:00:00 lies in the future.*of this machine, which says 20\d\d-"
    ):
        follow(source)


def test_values_of_several_kinds_are_refused(shop: Shop, follow: Callable[..., Artifact]) -> None:
    shop.put("a")
    first = follow(shop.source("none"))
    shop.put("b", updated_at="2026-01-01")
    for previous in (None, first):
        with pytest.raises(SchemaError, match=r"updated_at: holds values of several kinds \(number, text\)"):
            follow(shop.source("none"), previous)


def test_a_missing_column_or_table_is_named(shop: Shop, follow: Callable[..., Artifact]) -> None:
    shop.put("a")
    with pytest.raises(
        SchemaError, match=r"has no column changed, which `watermark` of its source names; name one of .*updated_at"
    ):
        follow(replace(shop.source("none"), watermark="changed"))
    with pytest.raises(
        SchemaError, match=r"has no column gone, which `deleted` of its source names; name one of doc_id, "
    ):
        follow(replace(shop.source("flag"), deleted="gone"))
    with pytest.raises(MissingError, match="no table graves, which `deleted` names"):
        follow(replace(shop.source("table"), deleted="graves"))
    shop.run("CREATE TABLE graves (doc_id TEXT)")
    with pytest.raises(SchemaError, match=r"the table graves, .* has no column updated_at"):
        follow(replace(shop.source("table"), deleted="graves"))


def test_ids_that_stand_twice_are_named(tmp_path: Path, follow: Callable[..., Artifact]) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE documents (doc_id TEXT, title TEXT, text TEXT, seen INTEGER)")
        connection.executemany("INSERT INTO documents VALUES (?, '', 'a', 1)", [("a",), ("b",), ("b",), ("c",)])
    connection.close()
    source = SourceConfig(path=f"sqlite:///{path}", watermark="seen", deletions="scan")
    with pytest.raises(SchemaError, match=r"1 ids stand in several rows \('b'\)"):
        follow(source)


def test_a_row_that_can_be_used_no_more_goes_where_the_recipe_drops_such_rows(
    shop: Shop, follow: Callable[..., Artifact]
) -> None:
    source = shop.source("none")
    shop.put("a")
    shop.put("b")
    first = follow(source, rows="drop")
    shop.put("a", "nul \x00 inside")
    with pytest.raises(SchemaError, match="1 row cannot be used"):
        follow(source, first)
    second = follow(source, first, rows="drop")
    assert list(rows_of(second)) == ["b"]
    assert second.metrics["dropped"] == {"text": 1}


def test_a_change_of_columns_or_types_reads_all_rows(
    shop: Shop, follow: Callable[..., Artifact], caplog: pytest.LogCaptureFixture
) -> None:
    source = shop.source("none")
    shop.put("a", price=1)
    shop.put("b", price=2)
    first = follow(source)
    shop.put("c", price=2.5)
    with caplog.at_level(logging.INFO):
        second = follow(source, first)
    assert "column price holds another kind of value than before, so all rows are read" in caplog.text
    assert rows_of(second) == fresh(shop, source)
    shop.run("ALTER TABLE articles ADD COLUMN brand TEXT DEFAULT 'ours'")
    assert rows_of(follow(source, second))["a"]["brand"] == "ours"


def test_another_map_or_table_reads_all_rows(shop: Shop, follow: Callable[..., Artifact]) -> None:
    source = shop.source("none", columns={"doc_id": "doc_id", "text": "text"})
    shop.put("a", "first")
    first = follow(source)
    shop.put("b", "second")
    by_title = replace(source, columns={"doc_id": "doc_id", "text": "title"})
    second = follow(by_title, first)
    assert {name: row["text"] for name, row in rows_of(second).items()} == {"a": "title of a", "b": "title of b"}
    shop.run("CREATE VIEW others AS SELECT doc_id, 'other' AS title, text, price, updated_at FROM articles")
    other = replace(by_title, path=by_title.path.replace("table=articles", "table=others"))
    assert {row["text"] for row in rows_of(follow(other, second)).values()} == {"other"}


def test_a_table_that_was_emptied_is_an_error(shop: Shop, follow: Callable[..., Artifact]) -> None:
    source = shop.source("scan")
    shop.put("a")
    first = follow(source)
    shop.run("DELETE FROM articles")
    with pytest.raises(SchemaError, match="there are no documents to index"):
        follow(source, first)


def test_a_failed_run_leaves_nothing_and_moves_nothing(
    shop: Shop, follow: Callable[..., Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shop.source("scan")
    shop.put("a")
    first = follow(source)
    shop.put("b")

    def lost(*args: Any, **keys: Any) -> Any:
        raise sqlite3.OperationalError("database is locked")

    execute = sql_changes.FollowedTable._parts
    monkeypatch.setattr(sql_changes.FollowedTable, "_parts", lambda table, query: execute(table, query.where(lost())))
    with pytest.raises(sqlite3.OperationalError):
        follow(source, first)
    monkeypatch.undo()
    folder = tmp_path / "workspace" / "artifacts" / "corpus"
    assert [path for path in folder.iterdir() if path.is_dir()] == [first.path]
    assert artifacts.load(first.path).metrics == first.metrics
    assert follow(source, first).metrics["changed"] == 1


def test_a_locked_database_is_worth_another_try(shop: Shop, follow: Callable[..., Artifact]) -> None:
    shop.put("a")
    other = sqlite3.connect(shop.path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    source = shop.source("none")
    try:
        with pytest.raises(UnavailableError, match=r"database is locked.*run again later"):
            follow(replace(source, path=f"{source.path}&timeout=0.1"))
    finally:
        other.close()
    assert list(rows_of(follow(source))) == ["a"]


def test_other_sources_beside_it_may_hold_judgments_alone(
    shop: Shop, tmp_path: Path, follow: Callable[..., Artifact]
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "documents.jsonl").write_text("", encoding="utf-8")
    shop.put("a")
    other = tmp_path / "other.csv"
    other.write_text("name\nlamp\n", encoding="utf-8")
    table = SourceConfig(path=str(other), columns={"title": "name"})
    with pytest.raises(ConfigError, match="a source with a watermark is indexed alone"):
        corpus.make(tmp_path / "workspace", [shop.source("none"), table], tmp_path, "error")
    queries = SourceConfig(path=str(other), columns={"query": "name"})
    with pytest.raises(ConfigError, match="give all of them one name"):
        corpus.make(tmp_path / "workspace", [shop.source("none"), queries], tmp_path, "error")
    named = [shop.source("none", name="shop"), replace(queries, name="shop")]
    documents = corpus.make(tmp_path / "workspace", named, tmp_path, "error")
    assert list(rows_of(documents)) == ["a"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"watermark": "seen"}, "deletions does not say"),
        ({"deletions": "scan"}, "need a watermark"),
        ({"overlap": 5.0}, "need a watermark"),
        ({"watermark": "seen", "deletions": "flag"}, "deleted is the column of a flag"),
        ({"watermark": "seen", "deletions": "scan", "deleted": "gone"}, "deleted is the column of a flag"),
        ({"watermark": "seen", "deletions": "scan", "overlap": -1.0}, "overlap is -1"),
        ({"watermark": "seen", "deletions": "scan", "query": "SELECT 1"}, "not a query"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SourceConfig(path="sqlite:///shop.db", **keys)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SourceConfig(path="folder", watermark="seen", deletions="scan"), "needs the table of a database"),
        (
            SourceConfig(
                path="sqlite:///shop.db?table=articles",
                watermark="updated_at",
                deletions="scan",
                columns={"title": "title"},
            ),
            "map doc_id",
        ),
        (
            SourceConfig(
                path="sqlite:///shop.db?table=articles",
                watermark="updated_at",
                deletions="scan",
                columns={"doc_id": "doc_id", "query": "title"},
            ),
            "read query from a source of its own",
        ),
    ],
)
def test_only_tables_of_documents_can_be_followed(
    source: SourceConfig, message: str, shop: Shop, follow: Callable[..., Artifact]
) -> None:
    with pytest.raises(ConfigError, match=message):
        follow(source)


def test_a_map_names_the_columns_that_are_kept(shop: Shop, follow: Callable[..., Artifact]) -> None:
    source = shop.source("flag", columns={"doc_id": "doc_id", "title": "text", "cost": "price"})
    shop.put("a", "the title", price=7)
    assert rows_of(follow(source)) == {"a": {"doc_id": "a", "title": "the title", "text": "", "cost": 7}}


def test_rows_that_a_flag_marks_are_not_trained_on_either(shop: Shop, tmp_path: Path) -> None:
    shop.put("a", removed=0)
    shop.put("b", removed=1)
    documents = sources.read(shop.source("flag"), tmp_path).documents
    assert documents["doc_id"].to_pylist() == ["a"]
    assert "removed" not in documents.column_names
