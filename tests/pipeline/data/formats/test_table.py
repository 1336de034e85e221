"""A team's own tables are read by a map of their columns; databases by the same map, with one type for each column."""

import decimal
import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import sources as named
from pipeline import text
from pipeline.config import SourceConfig
from pipeline.data import convert, sources, validation
from pipeline.data.formats import column_map, option_text, separated_reader, sql, sql_values, table, tables
from pipeline.data.sources import Source
from pipeline.errors import InputError, SchemaError
from tests.reads import bytes_read

ROWS = [("red lamp", "Lamp, red", "3"), ("red lamp", "Blue lamp", "1"), ("chair", "Lamp, red", "0")]
COLUMNS = {"query": "search", "title": "name", "grade": "relevance"}


def write(path: Path, rows: list[tuple[str, str, str]] = ROWS) -> SourceConfig:
    names = ("search", "name", "relevance")
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pd.DataFrame(rows, columns=list(names)).to_parquet(path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ";"
        quoted = ([f'"{cell}"' for cell in row] for row in (names, *rows))
        path.write_text("".join(separator.join(row) + "\n" for row in quoted))
    return SourceConfig(path=path.name, columns=COLUMNS)


def judged(source: Source) -> list[tuple[str, str, int]]:
    queries = {row["query_id"]: row["text"] for row in source.queries.to_pylist()}
    documents = {row["doc_id"]: row["title"] for row in source.documents.to_pylist()}
    return [(queries[row["query_id"]], documents[row["doc_id"]], row["grade"]) for row in source.judgments.to_pylist()]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_each_kind_of_file_gives_the_same_tables(tmp_path: Path, suffix: str) -> None:
    source = sources.read(write(tmp_path / f"ratings.{suffix}"), tmp_path)
    assert source.format == "table"
    assert judged(source) == [(query, title, int(grade)) for query, title, grade in ROWS]
    assert (source.documents.num_rows, source.queries.num_rows) == (2, 2)


def test_several_files_are_one_table_and_ids_follow_the_texts(tmp_path: Path) -> None:
    single = sources.read(write(tmp_path / "ratings.csv"), tmp_path)
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "a.csv", ROWS[:1])
    write(tmp_path / "parts" / "b.csv", ROWS[1:])
    (tmp_path / "parts" / "._b.csv").write_bytes(b"\x00")
    parts = sources.read(SourceConfig(path="parts/*.csv", columns=COLUMNS), tmp_path)
    assert parts.judgments.equals(single.judgments)


@pytest.mark.parametrize(
    ("grades", "settings", "expected"),
    [
        (("2", "1.0", "0"), {}, [2, 1, 0]),
        (("3", "2.33", "1"), {}, [6, 4, 0]),  # 1 to 3, three grades a point, as Home Depot's.
        (("1", "0.5", "0"), {"grade_scale": (0.0, 1.0, 4.0)}, [4, 2, 0]),
        (("good", "fair", "bad"), {"labels": {"bad": 0, "fair": 1, "good": 2}}, [2, 1, 0]),
    ],
)
def test_grades_become_whole_by_a_stated_rule(
    tmp_path: Path, grades: tuple[str, ...], settings: Mapping[str, object], expected: list[int]
) -> None:
    rows = [(query, title, grade) for (query, title, _), grade in zip(ROWS, grades, strict=True)]
    write(tmp_path / "ratings.csv", rows)
    config = SourceConfig(path="ratings.csv", columns=COLUMNS, **settings)  # type: ignore[arg-type]
    source = sources.read(config, tmp_path)
    assert source.judgments["grade"].to_pylist() == expected
    assert source.faults == ()


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        (
            b"search_term,product_title,relevance\na,b,1\n",
            {},
            r'query = "search_term", title = "product_title", grade = "rel',
        ),
        (b"a\n1\n", {"query": "q"}, r"has no column 'q'.*columns, each with its first value: a \(1\)"),
        (
            b"q,t,g\na,b,good\n",
            {"query": "q", "title": "t", "grade": "g"},
            r"grades are words \('good' in 1 row\).*labels = \{ good = GRADE \}",
        ),
        (
            b"q,t,g\na,\xff,1\n",
            {"query": "q", "title": "t", "grade": "g"},
            "line 2, byte 8: 0xff is not UTF-8; convert",
        ),
        (b"q,g\na,1\n", {"query": "q", "grade": "g"}, "maps a grade, but not title, text or doc_id"),
    ],
)
def test_a_table_that_does_not_fit_is_one_message(
    tmp_path: Path, content: bytes, columns: dict[str, str], message: str
) -> None:
    (tmp_path / "ratings.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"(?s)ratings\.csv.*{message}"):
        sources.read(SourceConfig(path="ratings.csv", columns=columns), tmp_path)


def test_convert_takes_the_map_as_one_option(tmp_path: Path) -> None:
    write(tmp_path / "ratings.csv")
    columns = option_text.parse_columns("query=search, title=name,grade=relevance")
    convert.convert(tmp_path / "ratings.csv", "auto", tmp_path / "out", columns)
    assert sources.read(SourceConfig(path="out"), tmp_path).judgments.num_rows == 3


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    config = write(tmp_path / "ratings.csv")
    source = sources.find(config, tmp_path)
    write(tmp_path / "ratings.csv", ROWS[:2])
    with pytest.raises(InputError, match=r"ratings\.csv: changed while it was read"):
        source.read()


def test_the_type_of_a_database_column_does_not_depend_on_the_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = sqlite3.connect(tmp_path / "shop.db")
    connection.execute("create table items (id integer, name text, size, price decimal(8, 2), day date, sold boolean)")
    rows = [(n, f"item {n}", n if n < 9 else "XL", n + 0.5, "2024-01-02", n % 2) for n in range(10)]
    connection.executemany("insert into items values (?, ?, ?, ?, ?, ?)", rows)
    connection.commit()
    connection.close()
    columns = {"doc_id": "id", "title": "name", "size": "size", "price": "price", "day": "day", "sold": "sold"}
    config = SourceConfig(path="sqlite:///shop.db?table=items", columns=columns)
    expected = sources.read(config, tmp_path).documents
    assert expected["size"].to_pylist() == [*map(str, range(9)), "XL"]
    assert pa.types.is_decimal(expected["price"].type)
    assert expected["sold"].type == pa.bool_()
    assert expected["day"].type == pa.date32()
    for batch in (1, 3, 9):
        monkeypatch.setattr(sql, "ROWS_AT_ONCE", batch)
        assert sources.read(config, tmp_path).documents.equals(expected)
    query = SourceConfig(
        path="sqlite:///shop.db", query="select name as title from items where id < 3", columns={"title": "title"}
    )
    assert sources.read(query, tmp_path).documents["title"].to_pylist() == ["item 0", "item 1", "item 2"]


@pytest.mark.parametrize("digits", [38, 39, 400])
def test_decimals_of_more_digits_than_a_file_takes_are_kept_as_text(digits: int, tmp_path: Path) -> None:
    """A number of PostgreSQL has up to 16,383 digits after the point."""
    smallest = decimal.Decimal(f"1e-{digits}")
    pq.write_table(pa.table({"price": sql_values.typed([smallest, None])}), tmp_path / "prices.parquet")
    read = pq.read_table(tmp_path / "prices.parquet")["price"]
    assert pa.types.is_decimal(read.type) == (digits <= 38)
    assert decimal.Decimal(read[0].as_py()) == smallest
    assert read[1].as_py() is None


@pytest.mark.parametrize(
    ("key", "role"), [("description", "text"), ("document_id", "doc_id"), ("titel", "title"), ("stars", "grade")]
)
def test_a_key_that_looks_like_a_role_is_not_taken_for_a_column_to_keep(tmp_path: Path, key: str, role: str) -> None:
    (tmp_path / "shop.csv").write_text("q,a,b\nred knife,a red knife,3\n", encoding="utf-8")
    columns = {"query": "q", "title" if role != "title" else "text": "a", key: "b"}
    with pytest.raises(InputError, match=rf"the key '{key}'.*did you mean '{role}'"):
        sources.read(SourceConfig(path="shop.csv", columns=columns), tmp_path)


def test_a_key_keeps_a_column_where_the_role_is_mapped(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("q,a,b\nred knife,a red knife,long\n", encoding="utf-8")
    columns = {"query": "q", "title": "a", "text": "a", "description": "b"}
    documents = sources.read(SourceConfig(path="shop.csv", columns=columns), tmp_path).documents
    assert documents["description"].to_pylist() == ["long"]


def test_a_long_table_in_latin_1_leaves_nothing_else_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rows of several widths are handed to a callback in Arrow, which would print what it cannot decode."""
    rows = "".join(f"Säge {n};grün, {'groß, ' * (n % 3)}leicht;gut\n" for n in range(300))
    (tmp_path / "shop.csv").write_bytes(f"Suche;Text;Wert\n{rows}".encode("latin-1"))
    source = SourceConfig(path="shop.csv", columns={"query": "Suche", "text": "Text", "grade": "Wert"})
    with pytest.raises(InputError, match=r"line 2, byte \d+: 0xe4 is not UTF-8"):
        sources.read(source, tmp_path)
    assert capfd.readouterr().err == ""


def test_a_table_in_latin_1_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_bytes("q;a;b\nrotes Messer;ein rotes Messer für dich;3\n".encode("latin-1"))
    columns = {"query": "q", "title": "a", "grade": "b"}
    with pytest.raises(InputError, match=r"0xfc is not UTF-8.*WINDOWS-1252"):
        sources.read(SourceConfig(path="shop.csv", columns=columns), tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", ["1e300", "-1e300", "99999999999999999999999", "2147483648", "-9223372036854775808"])
def test_a_grade_beyond_all_bounds_is_a_fault_of_its_row_and_no_other_number(tmp_path: Path, value: str) -> None:
    file = tmp_path / "ratings.csv"
    file.write_text(f"query,title,grade\nknife,a knife,2\nspoon,a spoon,{value}\n", encoding="utf-8")
    columns = {"query": "query", "title": "title", "grade": "grade"}
    read = sources.read(SourceConfig(path=str(file), format="table", columns=columns), Path())
    assert [str(fault) for fault in read.faults] == [f"judgments, row 2: grade '{value}' is outside 0..10"]
    assert read.judgments["grade"].to_pylist() == [2, 0]


def test_a_database_without_its_flag_is_told_so_and_given_no_map(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table documents (doc_id text, title text, text text, seen text)")
        connection.execute("create table rated (search text, name text, relevance integer, seen text)")
    for name, columns in (("documents", {}), ("rated", COLUMNS)):
        config = SourceConfig(
            path=f"sqlite:///shop.db?table={name}", columns=columns, watermark="seen", deletions="flag", deleted="gone"
        )
        with pytest.raises(SchemaError, match="has no column gone, which `deleted` of its source names") as raised:
            sources.read(config, tmp_path)
        assert "--columns" not in str(raised.value)


def _of_bytes(kind: pa.DataType, cells: pa.Array) -> pa.Array:
    """An array of a type whose values nobody checked, as a file may hold them."""
    return pa.Array.from_buffers(kind, len(cells), cells.buffers())


def test_a_sample_of_parquet_leaves_out_what_cannot_be_shown(tmp_path: Path) -> None:
    columns = {
        "latin": _of_bytes(pa.string(), pa.array([b"caf\xe9", b"x"], pa.binary())),
        "far": _of_bytes(pa.date32(), pa.array([2**31 - 1, 0], pa.int32())),
        "long": pa.array([2**60, 1], pa.duration("s")),
        "zone": pa.array([1, 2], pa.timestamp("us", "Mars/Phobos")),
        "null": pa.array([None, "x"]),
        "title": pa.array(["knife", "spoon"]),
        "grade": pa.array([2, 0]),
    }
    pq.write_table(pa.table(columns), tmp_path / "r.parquet")
    samples = column_map.samples_of(tmp_path / "r.parquet")
    assert samples == dict.fromkeys(columns, "") | {"title": "knife", "grade": "2"}
    with pytest.raises(InputError, match="'latin' holds text that is not UTF-8"):
        sources.read(SourceConfig(path=str(tmp_path / "r.parquet"), columns={"title": "latin"}), Path())


def test_a_sample_of_parquet_is_no_reading_of_the_file(tmp_path: Path) -> None:
    texts = [os.urandom(100).hex() for _ in range(40_000)]
    pq.write_table(pa.table({"text": texts, "title": texts}), tmp_path / "r.parquet", row_group_size=len(texts))
    before = bytes_read()
    assert column_map.samples_of(tmp_path / "r.parquet") == {"text": texts[0], "title": texts[0]}
    assert bytes_read() - before < (tmp_path / "r.parquet").stat().st_size / 4


def test_a_table_is_read_once_and_its_columns_from_its_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (text, separated_reader):
        monkeypatch.setattr(module, "HEAD_BYTES", 1 << 14)
    file = tmp_path / "ratings.csv"
    lines = "".join(f"knife {number};{'a knife ' * 20};{number % 3}\r\n" for number in range(10_000))
    file.write_text(f"search;name;relevance\r\n{lines}spoon;a \r spoon;1\r\n", encoding="utf-8", newline="")
    size = file.stat().st_size
    before = bytes_read()
    assert column_map.samples_of(file, tuple(COLUMNS.values())) == {
        "search": "knife 0",
        "name": "a knife " * 20,
        "relevance": "0",
    }
    looked = bytes_read()
    assert looked - before < size / 4
    assert table.read([file], SourceConfig(path="", columns=COLUMNS)).judgments.num_rows == 10_001
    assert bytes_read() - looked < size * 1.25


def test_a_json_value_that_a_later_line_has_is_missing_in_its_own(tmp_path: Path) -> None:
    lines = ['{"q": "knife", "t": "a knife"}'] * 1200 + ['{"q": "knife", "t": "a knife", "id": "d9"}']
    (tmp_path / "r.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = SourceConfig(path="r.jsonl", columns={"query": "q", "title": "t", "doc_id": "id"})
    findings = validation.sift(sources.read(config, tmp_path)).findings
    assert [str(finding.fault) for finding in findings] == ["documents, line 1: doc_id is empty"]


@pytest.mark.parametrize("value", ['"query": null, ', ""])
def test_a_null_in_json_is_a_fault_of_its_row_as_an_empty_cell_is(tmp_path: Path, value: str) -> None:
    good = '{"query": "knife", "title": "a knife", "grade": 1}'
    lines = [good, f'{{{value}"title": "a knife", "grade": 2}}', good.replace("1", "null")]
    (tmp_path / "r.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = SourceConfig(path="r.jsonl", columns={name: name for name in ("query", "title", "grade")})
    locations = {
        str(finding.fault).partition(": ")[0] for finding in validation.sift(sources.read(config, tmp_path)).findings
    }
    assert locations == {"queries, line 2", "judgments, line 2", "judgments, line 3"}


def test_ids_as_floats_and_texts_as_bytes_are_read_as_they_are_meant(tmp_path: Path) -> None:
    """Pandas writes whole numbers beside a missing one as floats, and older programs write text as bytes."""
    frame = {"doc_id": pa.array([7.0, None, 12345678.0]), "title": pa.array([b"a", "ü".encode(), b"c"], pa.binary())}
    pq.write_table(pa.table(frame), tmp_path / "r.parquet")
    config = SourceConfig(path="r.parquet", columns={"doc_id": "doc_id", "title": "title"})
    documents = sources.read(config, tmp_path).documents
    assert documents.select(["doc_id", "title"]).to_pydict() == {
        "doc_id": ["7", "", "12345678"],
        "title": ["a", "ü", "c"],
    }
    for name, values in (("doc_id", pa.array([1.5])), ("title", pa.array([b"\xff"])), ("title", pa.array([[1]]))):
        pq.write_table(pa.table({"doc_id": [1], "title": ["a"]} | {name: values}), tmp_path / "r.parquet")
        with pytest.raises(SchemaError, match=rf"column '{name}'.*write it as text, or map another column"):
            sources.read(config, tmp_path)


def test_columns_of_categories_are_read_as_their_values(tmp_path: Path) -> None:
    rows = {"query": ["knife", "spoon"], "title": ["a knife", "a spoon"], "grade": ["2", "0"]}
    pq.write_table(
        pa.table({name: pa.array(cells).dictionary_encode() for name, cells in rows.items()}), tmp_path / "r.parquet"
    )
    columns = {"query": "query", "title": "title", "grade": "grade"}
    read = sources.read(SourceConfig(path=str(tmp_path / "r.parquet"), format="table", columns=columns), Path())
    assert read.queries["text"].to_pylist() == rows["query"]
    assert read.judgments["grade"].to_pylist() == [2, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"query": "a", "title": "b", "grade": 1}]',
            r"line 1: a JSON list, .*jq -c '\.\[\]' /\S*/r\.json > /\S*/r-lines\.jsonl`",
        ),
        ('[\n{"query": "a", "title": "b", "grade": 1}\n]', r"line 1: a JSON list, .*jq -c"),
        (
            '{\n"data": [{"query": "a"}]\n}',
            r"line 1: a JSON object over several lines.*jq -c '\.data\[\]' /\S*/r\.json > /\S*/r-lines\.jsonl`",
        ),
        ('{"query": "a", "title": "x\\ud800", "grade": 1}', r"line 1: the title contains a lone surrogate"),
    ],
)
def test_json_that_is_no_lines_of_objects_is_answered_with_what_to_do(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "r.json").write_text(content, encoding="utf-8")
    columns = {"query": "query", "title": "title", "grade": "grade"}
    with pytest.raises(InputError, match=message):
        sources.read(SourceConfig(path=str(tmp_path / "r.json"), format="table", columns=columns), Path())


def test_a_folder_without_tables_means_those_of_its_folders(tmp_path: Path) -> None:
    single = sources.read(write(tmp_path / "all.csv"), tmp_path)
    for name, rows in (("train", ROWS[:1]), ("test", ROWS[1:]), (".cache", ROWS)):
        (tmp_path / "hub" / name).mkdir(parents=True)
        write(tmp_path / "hub" / name / "0000.parquet", rows)
    (tmp_path / "hub" / "README.md").write_text("# Ratings\n", encoding="utf-8")
    (source,) = named.of_any_data(str(tmp_path / "hub"))
    assert source.columns == {"query": "search", "title": "name", "grade": "relevance"}
    assert sorted(judged(sources.read(source, Path()))) == sorted(judged(single))


def test_a_folder_that_datasets_saved_is_told_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "data-00000-of-00001.arrow").write_bytes(b"\xff\xff\xff\xff")
    with pytest.raises(InputError, match=r"save_to_disk.*to_parquet"):
        sources.read(SourceConfig(path=str(tmp_path)), Path())


def test_a_file_whose_name_is_not_utf_8_has_a_digest(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"r\xe9.csv")
    file.write_text("query,title,grade\nknife,a knife,1\n", encoding="utf-8")
    assert tables.digest_of("table", [file]) != tables.digest_of("other", [file])


@pytest.mark.parametrize("head", ["query,title,grade", "query,title,text,grade"])
def test_judged_rows_without_a_text_or_an_id_are_faults_and_no_common_document(tmp_path: Path, head: str) -> None:
    blanks = "," * (head.count(",") - 1)
    lines = [head, f"red knife,a knife{blanks}2", f"red knife, {blanks}0", f"fork,{blanks}1"]
    (tmp_path / "ratings.csv").write_text("\n".join(lines), encoding="utf-8")
    columns = {name: name for name in head.split(",")}
    source = sources.read(SourceConfig(path=str(tmp_path / "ratings.csv"), columns=columns), Path())
    sifted = validation.sift(source)
    assert sifted.documents["title"].to_pylist() == ["a knife"]
    assert sifted.judgments["grade"].to_pylist() == [2]
    assert {str(finding.fault).partition(":")[0] for finding in sifted.findings} == {
        "documents, line 3",
        "documents, line 4",
        "judgments, line 3",
        "judgments, line 4",
    }


def test_documents_alone_may_have_no_text(tmp_path: Path) -> None:
    """A blank document that no row judges is counted by `data check`, and used."""
    (tmp_path / "docs.csv").write_text("title,text\na,b\n,\n", encoding="utf-8")
    config = SourceConfig(path=str(tmp_path / "docs.csv"), columns={"title": "title", "text": "text"})
    assert sources.read(config, Path()).faults == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'query, title, grade\n"knife", "red, long", 1\n', "line 2: .*take the blanks there away"),
        ("b.csv", "# exported in May\nquery,title,grade\na,b,1\n", "has the first line '# exported in May', a comment"),
        (
            "c.jsonl",
            '{"title": "a", "tag": ["x"]}\n{"title": "b"}\n{"title": "c", "tag": "y"}\n',
            "line 3: the tag is of another kind",
        ),
        ("d.jsonl", '{"title": "a", "tag": 1}\n{"title": "b", "tag": "y"}\n', "line 2: the tag is of another kind"),
    ],
)
def test_a_table_that_is_written_oddly_is_told_what_to_change(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    names = ("title", "tag") if "tag" in content else ("query", " title", " grade")
    columns = {} if name == "b.csv" else {column.strip(): column for column in names}
    with pytest.raises(InputError, match=message):
        convert.convert(tmp_path / name, "auto", tmp_path / "out", columns)


def test_ids_that_are_nan_are_faults_of_their_rows(tmp_path: Path) -> None:
    """A frame of pandas turned into a table by hand keeps NaN where one that pandas writes has null."""
    rows = {"doc_id": [1.0, float("nan")], "query": ["a", "b"], "title": ["t", "u"], "grade": [1, 0]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    columns = {name: name for name in rows}
    source = sources.read(SourceConfig(path=str(tmp_path / "rows.parquet"), columns=columns), Path())
    assert source.documents["doc_id"].to_pylist() == ["1", ""]
    assert {finding.kind for finding in validation.sift(source).findings} == {"empty id", "unusable doc_id"}
