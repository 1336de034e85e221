"""Whatever is wrong with a source, a person gets one clear message, and nothing half-written is left."""

import ast
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import DataConfig, SourceConfig
from pipeline.data import convert, judgments, sources, validation
from pipeline.data.checks import check
from pipeline.errors import ConfigError, InputError, MissingError, SchemaError

LONG = 1_000_001


def beir(
    folder: Path,
    *,
    title: str = "t",
    text: str = "x",
    query: str = "a query",
    grades: tuple[str, ...] = ("1",),
    head: str = "query-id\tcorpus-id\tscore",
) -> None:
    (folder / "qrels").mkdir(parents=True)
    documents = [{"_id": "d0", "title": "fine", "text": "fine"}, {"_id": "d1", "title": title, "text": text}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    queries = [{"_id": "q0", "text": "fine"}, {"_id": "q1", "text": query}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    rows = ["q0\td0\t1", *(f"q1\td1\t{grade}" for grade in grades)]
    (folder / "qrels" / "test.tsv").write_text("\n".join([head, *rows, ""]))


def parquet(folder: Path, **columns: object) -> None:
    """Tables of ours, with other columns in place of theirs: `documents__title=[1]`; None leaves the column out."""
    folder.mkdir(parents=True)
    tables: dict[str, dict[str, object]] = {
        "documents": {"doc_id": ["d1"], "title": ["t"], "text": ["x"]},
        "queries": {"query_id": ["q1"], "text": ["a query"]},
        "judgments": {"query_id": ["q1"], "doc_id": ["d1"], "grade": [1]},
    }
    for name, values in columns.items():
        table, column = name.split("__")
        tables[table][column] = values
    for table, content in tables.items():
        kept = {name: values for name, values in content.items() if values is not None}
        pq.write_table(pa.table(kept), folder / f"{table}.parquet")


def cut_off(folder: Path) -> None:
    parquet(folder)
    file = folder / "documents.parquet"
    file.write_bytes(file.read_bytes()[:-20])


def not_utf8_parquet(folder: Path) -> None:
    raw = pa.array([b"caf\xe9"], pa.binary())
    parquet(folder, documents__text=pa.StringArray.from_buffers(1, raw.buffers()[1], raw.buffers()[2]))


def not_utf8_json(folder: Path) -> None:
    beir(folder)
    (folder / "corpus.jsonl").write_bytes(
        '{"_id": "d0", "text": "ok"}\n{"_id": "d1", "text": "价格"}\n'.encode("gb18030")
    )


def not_utf8_tsv(folder: Path) -> None:
    beir(folder)
    (folder / "qrels" / "test.tsv").write_bytes(b"query-id\tcorpus-id\tscore\nq0\td0\t1\nq1\td\xff1\t1\n")


def half_a_line(folder: Path) -> None:
    beir(folder)
    file = folder / "corpus.jsonl"
    file.write_text(file.read_text()[:-8])


def esci(folder: Path, label: str) -> None:
    folder.mkdir(parents=True)
    pd.DataFrame(
        {
            "query": ["a"], "query_id": [1], "product_id": ["p"], "product_locale": ["us"], "esci_label": [label],
            "split": ["train"],
        }
    ).to_parquet(folder / "shopping_queries_dataset_examples.parquet")  # fmt: skip
    pd.DataFrame({"product_id": ["p"], "product_locale": ["us"], "product_title": ["t"]}).to_parquet(
        folder / "shopping_queries_dataset_products.parquet"
    )


def wands(folder: Path, label: str) -> None:
    folder.mkdir(parents=True)
    (folder / "query.csv").write_text("query_id\tquery\n0\tsofa\n")
    (folder / "product.csv").write_text("product_id\tproduct_name\tproduct_description\n0\tsofa\t\n")
    (folder / "label.csv").write_text(f"id\tquery_id\tproduct_id\tlabel\n0\t0\t0\tExact\n1\t0\t0\t{label}\n")


def text_file(folder: Path, content: bytes) -> None:
    (folder / "notes").mkdir(parents=True)
    (folder / "notes" / "a.txt").write_bytes(content)


def homedepot(folder: Path, relevance: str) -> None:
    folder.mkdir(parents=True)
    head = '"id","product_uid","product_title","search_term","relevance"'
    (folder / "train.csv").write_text(f'{head}\n2,1,"a","b",3\n3,2,"c","d",{relevance}\n')


UNREADABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "column missing": (
        lambda folder: parquet(folder, documents__title=None),
        r"documents\.parquet: documents: has no column 'title'; it has \['doc_id', 'text'\]",
    ),
    "column of another type": (
        lambda folder: parquet(folder, documents__doc_id=[1]),
        r"column 'doc_id' is int64, not string",
    ),
    "null": (lambda folder: parquet(folder, queries__text=pa.array([None], pa.string())), r"queries, row 1: .*is null"),
    "grades that are words": (lambda folder: parquet(folder, judgments__grade=["good"]), r"'grade' is string, not int"),
    "cut-off Parquet": (cut_off, r"documents\.parquet: not a readable Parquet file .*write it again"),
    "Parquet that is not UTF-8": (not_utf8_parquet, r"documents\.parquet: column 'text' holds text that is not UTF-8"),
    "JSON lines that are not UTF-8": (not_utf8_json, r"corpus\.jsonl, line 2, byte 51: 0xbc is not UTF-8; convert"),
    "TSV that is not UTF-8": (not_utf8_tsv, r"test\.tsv, line 3, byte 37: 0xff is not UTF-8"),
    "cut-off JSON lines": (half_a_line, r"corpus\.jsonl, line 2: not JSON .*cut off"),
    "wrong head of a TSV": (
        lambda folder: beir(folder, head="qid\tdid\tscore"),
        r"test\.tsv: has no column 'query-id', 'corpus-id'; its first line has \['qid', 'did', 'score'\]",
    ),
    "text file that is not UTF-8": (
        lambda folder: text_file(folder, b"K\xe4se"),
        r"notes/a\.txt, byte 1: 0xe4 is not UTF-8; convert the file",
    ),
    "row of another width": (lambda folder: beir(folder, grades=("1\textra",)), r"test\.tsv, line 3: has 4 fields"),
}

FAULTY: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty query": (
        lambda folder: beir(folder, query=" \u3000"),
        r"queries, queries\.jsonl, line 2: the query is empty",
    ),
    "a million characters": (
        lambda folder: beir(folder, text="x" * LONG),
        r"documents, corpus\.jsonl, line 2: text has 1,000,001 characters; the limit is 1,000,000",
    ),
    "NUL": (
        lambda folder: beir(folder, title="a\x00b"),
        r"documents, corpus\.jsonl, line 2: title contains a NUL character",
    ),
    "NUL in a document's id": (
        lambda folder: parquet(folder, documents__doc_id=["d\x00"], judgments__doc_id=["d\x00"]),
        "documents, row 1: doc_id contains a NUL character",
    ),
    "NUL in a query's id": (
        lambda folder: parquet(folder, queries__query_id=["q\x00"], judgments__query_id=["q\x00"]),
        "queries, row 1: query_id contains a NUL character",
    ),
    "lone surrogate": (
        lambda folder: beir(folder, text="a\ud800b"),
        r"documents, corpus\.jsonl, line 2: text contains a lone surrogate, so it is not valid Unicode",
    ),
    "lone surrogate in a query": (
        lambda folder: beir(folder, query="\udfff"),
        r"queries, queries\.jsonl, line 2: text contains a lone",
    ),
    "grade that is no number": (
        lambda folder: beir(folder, grades=("good",)),
        r"judgments, qrels/test\.tsv, line 3: grade 'good' is not a whole number",
    ),
    "grade too high": (
        lambda folder: beir(folder, grades=("99",)),
        r"judgments, qrels/test\.tsv, line 3: grade 99 is outside 0\.\.10",
    ),
    "unknown split": (
        lambda folder: parquet(folder, judgments__split=["practice"]),
        "judgments, row 1: split 'practice' is none of train, valid, test",
    ),
    "unknown ESCI label": (
        lambda folder: esci(folder, "X"),
        r"judgments, shopping_queries_dataset_examples\.parquet, row 1: grade 'X' is none of E, S, C, I",
    ),
    "unknown WANDS label": (
        lambda folder: wands(folder, "exact"),
        r"judgments, label\.csv, line 3: grade 'exact' is none of Exact, Partial, Irrelevant",
    ),
    "relevance out of range": (
        lambda folder: homedepot(folder, "4"),
        r"judgments, train\.csv, line 3: grade '4' is not a mean",
    ),
    "unknown document": (
        lambda folder: parquet(folder, judgments__doc_id=["d2"]),
        "judgments, row 1: doc_id 'd2' is not among the documents",
    ),
    "unknown query": (
        lambda folder: parquet(folder, judgments__query_id=["q2"]),
        "judgments, row 1: query_id 'q2' is not among the queries",
    ),
    "NUL in a text file": (lambda folder: text_file(folder, b"a\0b"), "documents, notes/a.txt: text contains a NUL"),
    "one id twice": (
        lambda folder: parquet(
            folder, documents__doc_id=["d1", "d1"], documents__title=["a", "b"], documents__text=["", ""]
        ),
        "documents, row 2: doc_id 'd1' stands here again with another text",
    ),
}


def left_behind(folder: Path) -> list[str]:
    """Files below a folder other than locks, of which `.use` is one."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and not path.name.endswith((".lock", ".use"))]


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_one_error_everywhere(tmp_path: Path, name: str) -> None:
    write, message = UNREADABLE[name]
    write(tmp_path / "source")
    source = SourceConfig(path=str(tmp_path / "source"))
    with pytest.raises(SchemaError, match=message):
        judgments.make(tmp_path / "work", DataConfig(sources=(source,), faulty_rows="drop"))
    with pytest.raises(SchemaError, match=message):
        convert.convert(tmp_path / "source", "auto", tmp_path / "out")
    with pytest.raises(SchemaError, match=message):
        check.examine([source], Path())
    assert left_behind(tmp_path / "work") == []
    assert not [path for path in tmp_path.iterdir() if path.name not in ("source", "work")]


@pytest.mark.parametrize("name", FAULTY)
def test_a_row_that_cannot_be_used_is_named_dropped_if_wanted_and_listed_by_check(tmp_path: Path, name: str) -> None:
    write, message = FAULTY[name]
    write(tmp_path / "source")
    source = SourceConfig(path=str(tmp_path / "source"))
    with pytest.raises(SchemaError, match=rf"/source: [0-9]+ rows? cannot be used.*{message}.*data.faulty_rows"):
        judgments.make(tmp_path / "work", DataConfig(sources=(source,)))
    with pytest.raises(SchemaError, match=message):
        convert.convert(tmp_path / "source", "auto", tmp_path / "out")
    assert left_behind(tmp_path / "work") == []
    assert not [path for path in tmp_path.iterdir() if path.name not in ("source", "work")]

    (report,) = check.examine([SourceConfig(path=str(tmp_path / "source"))], Path())
    reasons = [str(fault) for fault in report.faults]
    assert len([reason for reason in reasons if pd.Series([reason]).str.contains(message).item()]) == 1
    assert sum(sum(kinds.values()) for kinds in report.dropped.values()) == len(reasons)
    if report.judgments > 1:
        data = judgments.make(tmp_path / "work", DataConfig(sources=(source,), faulty_rows="drop"))
        assert data.metrics["dropped"] == report.dropped
        assert data.metrics["judgments"] == 1


def test_a_pair_with_two_grades_is_named_by_check(tmp_path: Path) -> None:
    beir(tmp_path / "source", grades=("1", "2"))
    (report,) = check.examine([SourceConfig(path=str(tmp_path / "source"))], Path())
    assert [str(fault) for fault in report.faults] == [
        "judgments, qrels/test.tsv, line 4: query_id 'q1', doc_id 'd1' has grade 2 here and 1 before"
    ]


def test_a_surrogate_does_not_hide_the_nul_of_another_row(tmp_path: Path) -> None:
    beir(tmp_path, title="\ud800")
    file = tmp_path / "corpus.jsonl"
    file.write_text(file.read_text() + json.dumps({"_id": "d2", "title": "\x00", "text": ""}) + "\n")
    (report,) = check.examine([SourceConfig(path=str(tmp_path))], Path())
    reasons = [fault.reason for fault in report.faults if fault.table == "documents"]
    assert reasons == ["title contains a lone surrogate, so it is not valid Unicode", "title contains a NUL character"]


def test_an_error_names_a_few_rows_and_counts_the_others(tmp_path: Path) -> None:
    beir(tmp_path / "alike", grades=("x",) * 100)
    with pytest.raises(
        SchemaError, match=r"100 rows cannot be used \(judgments, qrels/test\.tsv, line 3: .*and 99 more rows alike\)"
    ):
        convert.convert(tmp_path / "alike", "auto", tmp_path / "out")
    beir(tmp_path / "source", grades=("x", "x", *(f"x{number}" for number in range(98))))
    with pytest.raises(SchemaError, match=r"100 rows .*'x' is .*, and 1 more row alike; .*; and 94 more\)") as raised:
        convert.convert(tmp_path / "source", "auto", tmp_path / "out")
    assert len(str(raised.value)) < 1000


def test_rows_of_one_kind_are_named_once_whatever_they_hold(tmp_path: Path) -> None:
    beir(tmp_path / "source", grades=tuple(map(str, range(11, 18))))
    with pytest.raises(
        SchemaError, match=r"7 rows cannot be used \(judgments, qrels/test\.tsv, line 3: .*, and 6 more rows alike\);"
    ):
        convert.convert(tmp_path / "source", "auto", tmp_path / "out")
    source = sources.read(SourceConfig(path=str(tmp_path / "source")), Path())
    strangers = pa.table({"query_id": ["q1"] * 3, "doc_id": ["O'Brien", "it's 'x", "y"], "grade": [1] * 3})
    findings = validation.sift(replace(source, judgments=strangers)).findings
    assert validation.summary(findings) == (
        "judgments, qrels/test.tsv, line 2: doc_id 'O'Brien' is not among the documents, and 2 more rows alike"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "d", "title": "t"}', "line 1: has no 'text'"),
        ('{"_id": "d", "text": ["t"]}', "line 1: 'text' is a list, not a text"),
        ('{"_id": "d", "text": null}', "line 1: has no 'text'"),
        ('{"_id": "d", "text": 7}', "line 1: 'text' is a int, not a text"),
        ('{"_id": true, "text": "t"}', "line 1: '_id' is a bool, not a text"),
        ('["d", "t"]', "line 1: a JSON list, not an object"),
    ],
)
def test_a_json_line_of_another_shape_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "corpus.jsonl").write_text(line + "\n")
    with pytest.raises(SchemaError, match=message):
        sources.read(SourceConfig(path=str(tmp_path)), Path())


def test_nothing_that_is_known_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.pdf").write_text("hello")
    with pytest.raises(MissingError, match=r"(?s)looked for.*parquet: documents\.parquet.*homedepot: train\.csv"):
        sources.read(SourceConfig(path=str(tmp_path)), Path())


def test_a_file_is_held_against_the_format_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "README.txt").write_text("hello")
    (tmp_path / "ratings.csv").write_text("query,title,grade\nknife,a knife,1\n")
    for name in ("README.txt", "ratings.csv"):
        with pytest.raises(MissingError) as raised:
            sources.read(SourceConfig(path=name, format="beir"), tmp_path)
        assert str(raised.value) == (
            f"{tmp_path / name}: these files were looked for and are not there:\n"
            "  beir: corpus.jsonl, queries.jsonl and qrels/*.tsv"
        )
    with pytest.raises(MissingError, match=r"README\.txt: its name tells no format"):
        sources.read(SourceConfig(path="README.txt"), tmp_path)
    with pytest.raises(MissingError, match=r"(?s)ratings\.csv: is not a file of a format .*The map that fits best"):
        sources.read(SourceConfig(path="ratings.csv"), tmp_path)


def test_a_missing_folder_and_an_unknown_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nowhere: no such file or folder"):
        sources.read(SourceConfig(path="nowhere"), tmp_path)
    with pytest.raises(ConfigError, match="format 'xml' is none of auto, parquet, beir"):
        sources.read(SourceConfig(path=".", format="xml"), tmp_path)
    with pytest.raises(ConfigError, match=r"grades has 12, which is outside 0\.\.10"):
        sources.read(SourceConfig(path=".", grades=(0, 12)), tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///missing.db", "missing.db: no such SQLite file"),
        ("sqlite:///shop.db?table=nothing", "table nothing: no such table; it has bare; name one as"),
        ("sqlite:///shop.db?table=bare", "has no column doc_id, title; it has .*--columns"),
        ("sqlite:///notes.txt", "cannot be read .*not a database"),
        ("nosuchdb://host/x", "no driver for this database"),
        ("sqlite://user@:bad:url", "SQLAlchemy URL|cannot be read|no driver"),
    ],
)
def test_a_database_that_cannot_be_read_is_one_clear_error(tmp_path: Path, url: str, message: str) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table bare (id integer, text text)")
    connection.close()
    (tmp_path / "notes.txt").write_text("this is text and no database at all, but long enough" * 20)
    with pytest.raises(InputError, match=message):
        sources.read(SourceConfig(path=url, format="sql"), tmp_path)
    assert not (tmp_path / "missing.db").exists()


def test_a_password_is_in_no_message(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        sources.read(SourceConfig(path="nosuchdb://me:secret@host/x"), tmp_path)
    assert "secret" not in str(raised.value)


def test_a_file_whose_name_begins_with_a_dot_is_no_data(tmp_path: Path) -> None:
    beir(tmp_path)
    expected = sources.find(SourceConfig(path=str(tmp_path)), Path()).digest
    for name in ("qrels/._test.tsv", "qrels/~$test.tsv", "qrels/.test.tsv.swp.tsv", "._qrels.txt", ".qrels.old.txt"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07\xff")
    source = sources.find(SourceConfig(path=str(tmp_path)), Path())
    assert source.digest == expected
    assert source.read().judgments.num_rows == 2


def test_an_editor_s_link_to_nothing_is_no_table(tmp_path: Path) -> None:
    """Emacs marks a file that is being edited by a hidden link to nothing."""
    (tmp_path / "ratings.csv").write_text("q,t,g\nhammer,a steel hammer,2\nsaw,a saw,1\n", encoding="utf-8")
    (tmp_path / ".#ratings.csv").symlink_to("someone@host.4711")
    config = SourceConfig(path=str(tmp_path), columns={"query": "q", "title": "t", "grade": "g"})
    assert sources.read(config, Path()).judgments.num_rows == 2
    (tmp_path / "more.csv").symlink_to("gone.csv")
    with pytest.raises(MissingError, match="is a link to gone"):
        sources.read(config, Path())


def test_every_search_for_files_leaves_hidden_ones_out() -> None:
    """`tables.data_files` holds the rule; no reader lists a folder by itself."""
    folder = Path(sources.__file__).parent
    callers = [
        file.name
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("glob", "rglob", "iterdir", "listdir", "scandir")
    ]
    assert callers.count("tables.py") == 1
    # Python modules are looked for among installed packages, and convert looks whether its own folder is empty.
    assert set(callers) <= {"tables.py", "python_modules.py", "convert.py"}


def test_judging_takes_what_trec_eval_takes_and_training_does_not(tmp_path: Path) -> None:
    parquet(
        tmp_path / "source",
        judgments__query_id=["q1", "q1"],
        judgments__doc_id=["d1", "absent"],
        judgments__grade=[-2, 2],
    )
    source = SourceConfig(path=str(tmp_path / "source"))
    with pytest.raises(SchemaError, match="2 rows cannot be used"):
        judgments.make(tmp_path / "work", DataConfig(sources=(source,)))
    judged = judgments.make(tmp_path / "work", DataConfig(sources=(source,), splits="test"))
    rows = pq.read_table(judged.file("judgments.parquet")).select(["doc_id", "grade"]).to_pylist()
    assert rows == [{"doc_id": "d1", "grade": 0}, {"doc_id": "absent", "grade": 2}]
