"""Pairs without a grade: who is asked, that nothing of the judged queries is, and what is drawn."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import CandidatesConfig
from pipeline.data import unlabelled
from pipeline.errors import ConfigError, MissingError, SchemaError
from pipeline.training.loop.pair_tokens import read_pairs

Rows = Sequence[Mapping[str, Any]]

CONFIG = CandidatesConfig(unlabelled=1.0, max_list=4, unlabelled_depth=10)


def artifact(workspace: Path, kind: str, tables: Mapping[str, Rows], **config: Any) -> Artifact:
    def build(staging: Staging) -> Mapping[str, Any]:
        for name, rows in tables.items():
            schema.write(pa.Table.from_pylist(list(rows)), staging.folder / f"{name}.parquet", name)
        return {}

    return artifacts.make(workspace, kind, version=1, config=config, inputs={}, build=build)


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    """Nine queries, three of each split, and thirty documents, one without a title and one whose title is a query."""
    return artifact(
        tmp_path,
        "data",
        {
            "queries": [{"query_id": f"q{n}", "text": f"Query {n}"} for n in range(9)],
            "documents": [
                {"doc_id": f"d{n}", "title": {3: " ", 4: "query 8"}.get(n, f"Title {n}"), "text": f"text {n}"}
                for n in range(30)
            ],
            "judgments": [
                {"query_id": f"q{n}", "doc_id": f"d{n}", "grade": 1, "split": schema.SPLITS[n % 3], "source": "human"}
                for n in range(9)
            ],
        },
    )


def test_a_file_of_queries_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, data: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "more.txt"
    file.write_text("first new query\n")
    real = unlabelled.read_queries

    def read(path: Path) -> list[str]:
        file.write_text("another query\n")
        return real(path)

    monkeypatch.setattr(unlabelled, "read_queries", read)
    config = replace(CONFIG, unlabelled_queries=str(file))
    with pytest.raises(SchemaError, match="changed while it was read"):
        unlabelled.queries(tmp_path, config, data=data)
    monkeypatch.undo()
    queries = unlabelled.queries(tmp_path, config, data=data)
    assert "another query" in asked_of(queries).values()


def asked_of(queries: Artifact) -> dict[str, str]:
    frame = pd.read_parquet(queries.file("queries.parquet"))
    return dict(zip(frame["query_id"], frame["text"], strict=True))


def labelled(workspace: Path) -> Artifact:
    """Two documents of each training query, one of each valid one."""
    rows = [("q0", "d0", "train"), ("q0", "d1", "train"), ("q3", "d3", "train"), ("q3", "d2", "train")]
    rows += [("q6", "d6", "train"), ("q6", "d5", "train"), ("q1", "d1", "valid"), ("q4", "d4", "valid")]
    table = [
        {"row_id": n, "query_id": query, "doc_id": doc, "grade": n % 2, "split": split, "source": "human"}
        for n, (query, doc, split) in enumerate(rows)
    ]
    return artifact(workspace, "pairs", {"pairs": table})


def run_of(workspace: Path, queries: Artifact, depth: int = 12) -> Artifact:
    rows = [
        {
            "query_id": query,
            "doc_id": f"d{(number * 7 + rank) % 30}",
            "rank": rank,
            "score": 1.0 / rank,
            "system": "bm25",
        }
        for number, query in enumerate(asked_of(queries))
        for rank in range(1, depth + 1)
    ]
    return artifact(workspace, "run", {"run": rows}, depth=depth)


def drawn(workspace: Path, data: Artifact, config: CandidatesConfig) -> tuple[pd.DataFrame, pd.DataFrame, Artifact]:
    """The added rows, the lists they stand in, and the artifact."""
    queries = unlabelled.queries(workspace, config, data=data)
    pairs = unlabelled.pairs(
        workspace, config, data=data, labelled=labelled(workspace), asked=queries, run=run_of(workspace, queries)
    )
    rows = pd.read_parquet(pairs.file("pairs.parquet"))
    return rows[rows["split"] == schema.UNLABELLED], pd.read_parquet(pairs.file("queries.parquet")), pairs


def test_only_training_queries_are_asked_unless_more_are_given(tmp_path: Path, data: Artifact) -> None:
    assert asked_of(unlabelled.queries(tmp_path, CONFIG, data=data)) == {f"q{n}": f"Query {n}" for n in (0, 3, 6)}


@pytest.mark.parametrize("form", ["query", "text", "lines"])
def test_given_queries_are_asked_once_and_none_that_is_judged(tmp_path: Path, data: Artifact, form: str) -> None:
    given = ["a new one", "QUERY  5", "query 8", "Query 0", "A new  one", "another", "  "]
    file = tmp_path / ("log.txt" if form == "lines" else "log.parquet")
    if form == "lines":
        file.write_text("\n".join(given) + "\n", encoding="utf-8")
    else:
        pd.DataFrame({form: [*given, None], "clicked": True}).to_parquet(file)
    queries = unlabelled.queries(tmp_path, replace(CONFIG, unlabelled_queries=str(file)), data=data)
    texts = asked_of(queries)
    assert [text for name, text in texts.items() if name.startswith("file:")] == ["a new one", "another"]
    assert len(texts) == 5
    assert queries.metrics["file: known already"] == 4  # Of valid, test and training queries, and one twice.


def test_titles_are_asked_but_not_those_that_are_judged_queries(tmp_path: Path, data: Artifact) -> None:
    some = unlabelled.queries(tmp_path, replace(CONFIG, title_queries=5), data=data)
    every = unlabelled.queries(tmp_path, replace(CONFIG, title_queries=1000), data=data)
    titles = {text for name, text in asked_of(every).items() if name.startswith("title:")}
    assert titles == {f"Title {n}" for n in range(30) if n not in (3, 4)}
    assert every.metrics["title: known already"] == 1
    assert asked_of(some).items() <= asked_of(every).items()
    assert 3 < len(asked_of(some)) <= 8


def test_files_that_cannot_be_read_are_said(tmp_path: Path, data: Artifact) -> None:
    def refused(error: type[Exception], file: Path, words: str) -> None:
        with pytest.raises(error, match=words):
            unlabelled.queries(tmp_path, replace(CONFIG, unlabelled_queries=str(file)), data=data)

    refused(MissingError, tmp_path / "none.txt", "is no file")
    pd.DataFrame({"q": ["a"]}).to_parquet(tmp_path / "other.parquet")
    refused(SchemaError, tmp_path / "other.parquet", "no column query or text; it has q")
    pd.DataFrame({"query": [1]}).to_parquet(tmp_path / "numbers.parquet")
    refused(SchemaError, tmp_path / "numbers.parquet", "int64, not text")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    refused(SchemaError, tmp_path / "broken.parquet", "not a readable")
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    refused(SchemaError, tmp_path / "latin.txt", "not a readable")


def test_labelled_rows_stay_and_the_others_follow_without_a_grade(tmp_path: Path, data: Artifact) -> None:
    rows, lists, pairs = drawn(tmp_path, data, CONFIG)
    before = pd.read_parquet(labelled(tmp_path).file("pairs.parquet"))
    table = pd.read_parquet(pairs.file("pairs.parquet"))
    pd.testing.assert_frame_equal(table.head(len(before)), before)
    assert table["row_id"].is_unique
    assert len(rows) == 6  # One for each of the six training pairs.
    assert set(rows["grade"]) == {schema.NO_GRADE}
    originals = rows["query_id"].map(lists.set_index("query_id")["asked"])
    assert set(originals) <= {"q0", "q3", "q6"}
    assert not set(zip(originals, rows["doc_id"], strict=True)) & set(
        zip(before["query_id"], before["doc_id"], strict=True)
    )
    assert lists["text"].tolist() == [f"Query {name.removeprefix('q')}" for name in lists["asked"]]


def test_lists_are_filled_one_query_after_the_other_and_more_only_adds(tmp_path: Path, data: Artifact) -> None:
    drawn_rows = [drawn(tmp_path, data, replace(CONFIG, unlabelled=share))[0] for share in (0.5, 1.0, 3.0, 100.0)]
    keys = [list(zip(rows["query_id"], rows["doc_id"], strict=True)) for rows in drawn_rows]
    assert [len(key) for key in keys[:3]] == [3, 6, 18]
    for less, more in itertools.pairwise(keys):
        assert more[: len(less)] == less
    sizes = drawn_rows[2].groupby("query_id", sort=False).size().tolist()
    assert sizes[:3] == [4, 4, 4]  # First lists of all three queries before the second of any.
    assert [name.split(":")[1] for name in drawn_rows[2]["query_id"].unique()] == ["0", "0", "0", "1", "1"]
    # All that there is: the first ten of each run, less what is paired already.
    run = pd.read_parquet(run_of(tmp_path, unlabelled.queries(tmp_path, CONFIG, data=data)).file("run.parquet"))
    known = set(
        pd.read_parquet(labelled(tmp_path).file("pairs.parquet"))[["query_id", "doc_id"]].itertuples(index=False)
    )
    every = set(run[run["rank"] <= 10][["query_id", "doc_id"]].itertuples(index=False)) - known
    assert {(name.split(":", 2)[2], doc) for name, doc in keys[3]} == {tuple(row) for row in every}


def test_nothing_to_add_is_an_error(tmp_path: Path, data: Artifact) -> None:
    queries = unlabelled.queries(tmp_path, CONFIG, data=data)
    before = labelled(tmp_path)
    rows = pd.read_parquet(before.file("pairs.parquet")).query("split == 'train'")
    run = artifact(
        tmp_path,
        "run",
        {
            "run": [
                {"query_id": row.query_id, "doc_id": row.doc_id, "rank": 1, "score": 1.0, "system": "bm25"}
                for row in rows.itertuples()
            ]
        },
    )
    with pytest.raises(ConfigError, match="title_queries"):
        unlabelled.pairs(tmp_path, CONFIG, data=data, labelled=before, asked=queries, run=run)


def test_each_list_is_read_as_a_query_of_its_own(tmp_path: Path, data: Artifact) -> None:
    _, lists, pairs = drawn(tmp_path, data, replace(CONFIG, unlabelled=3.0))
    words = {word: n for n, word in enumerate(["?", "Query", "Title", "text", *map(str, range(30))])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    table = read_pairs(data, pairs, tokenizer, max_query_tokens=8, max_tokens=16)
    assert len(table.queries) == len(lists) + 5  # Three training and two valid queries.
    for index in table.indices(schema.UNLABELLED):
        name = pd.read_parquet(pairs.file("pairs.parquet"))["query_id"][index]
        number = name.rpartition(":q")[2]
        assert table.queries[table.query[index]] == [words["Query"], words[number]]


@pytest.mark.parametrize("key", ["unlabelled", "title_queries", "unlabelled_depth"])
def test_impossible_numbers_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        CandidatesConfig(**{key: -1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["log.csv", "log.tsv", "log.jsonl"])
def test_a_table_of_another_kind_is_not_read_as_lines(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("query,clicks\nred shoes,3\n")
    with pytest.raises(SchemaError, match=rf"{name}: queries are read from Parquet or a text"):
        unlabelled.read_queries(tmp_path / name)
