"""A table whose columns cannot be told is answered with its columns and the map to type, and nothing is half made."""

import json
import re
import shlex
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import init, quickstart, source_columns, sources
from flows.cli import data
from flows.ready_made import ReadyMadeModels
from pipeline.config import SourceConfig
from pipeline.data import convert
from pipeline.data import sources as readers
from pipeline.data.formats import option_text
from pipeline.data.formats.column_advice import Contents
from pipeline.errors import ConfigError, InputError, MissingError, SchemaError


def table(path: Path, names: str, values: str = "red knife,a sharp red knife,2") -> str:
    path.write_text(f"{names}\n" + f"{values}\n" * 30, encoding="utf-8")
    return str(path)


def typed(message: str) -> dict[str, str]:
    """The map that a message tells to type, read back as the command line reads it."""
    match = re.search(r"type: --columns ('[^']*'|\S+?)(?:, with|$)", message)
    assert match, message
    return option_text.parse_columns(shlex.split(match[1])[0])


@pytest.mark.parametrize(
    ("names", "columns", "words", "fit"),
    [
        (
            "query,title,verdict",
            {},
            r"usual name for: grade \(.*guessed by the names: query=query,title=title\n.*verdict \(2\)",
            {"query": "query", "title": "title", "grade": "COLUMN"},
        ),
        (
            "phrase,title,grade",
            {},
            r"for: query \(.*phrase \(red knife\)",
            {"title": "title", "grade": "grade", "query": "COLUMN"},
        ),
        ("query,item,grade", {}, r"for: title or text", {"query": "query", "grade": "grade", "title": "COLUMN"}),
        (
            "phrase,item,verdict",
            {"query": "phrase", "title": "itme", "grade": "verdct"},
            r"no column 'itme', 'verdct'.*did you mean 'item' in place of 'itme'\?",
            {"query": "phrase", "title": "item", "grade": "verdict"},
        ),
        (
            "phrase,item,verdict",
            {"qury": "phrase", "title": "item", "grade": "verdict"},
            r"did you mean the key 'query' in place of 'qury'\?",
            {"query": "phrase", "title": "item", "grade": "verdict"},
        ),
        (
            "phrase,title,verdict",
            {"query": "phrase"},
            r"--columns lacks: grade .*type: --columns query=phrase,title=title,grade=COLUMN",
            {"query": "phrase", "title": "title", "grade": "COLUMN"},
        ),
        (
            '"what, exactly",title,grade',
            {"query": "what exactly"},
            "did you mean",
            {"query": "what, exactly", "title": "title", "grade": "grade"},
        ),
    ],
)
def test_init_shows_what_it_read_and_the_map_to_type(
    tmp_path: Path, names: str, columns: Mapping[str, str], words: str, fit: Mapping[str, str]
) -> None:
    ratings = table(tmp_path / "ratings.csv", names)
    with pytest.raises(SchemaError, match=rf"(?s)ratings\.csv: .*{words}") as raised:
        init.write(ratings, tmp_path / "own.toml", columns)
    assert typed(str(raised.value)) == fit
    assert [path.name for path in tmp_path.iterdir()] == ["ratings.csv"]


def test_a_quickstart_asks_for_what_documents_need_and_leaves_nothing(tmp_path: Path) -> None:
    items = table(tmp_path / "items.csv", "sku,label_text,stars", "a1,Red knife,5")
    workspace = tmp_path / "workspace"
    for columns in ({}, {"title": "labl_text"}):
        source = SourceConfig(path=items, columns=columns)
        with pytest.raises(SchemaError, match=r"label_text \(Red knife\)") as raised:
            quickstart.quickstart([source], workspace, ReadyMadeModels())
        assert not re.search("query|grade", str(raised.value).partition("columns, each")[0])
        assert set(typed(str(raised.value))) - {"doc_id"} == {"title"}
        assert not workspace.exists()


def test_the_documents_of_a_quickstart_need_no_judgments_where_a_column_looks_like_grades(tmp_path: Path) -> None:
    items = table(tmp_path / "items.csv", "id,name,description,rating,keywords", "a1,Red knife,sharp,5,knife")
    mapped = source_columns.with_columns(SourceConfig(path=items), "documents")
    assert mapped.columns == {"doc_id": "id", "title": "name", "text": "description"}
    assert readers.read(mapped, Path()).judgments.num_rows == 0


@pytest.mark.parametrize("contents", ["judgments", "documents"])
def test_a_database_is_asked_for_in_the_same_way(tmp_path: Path, contents: Contents) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table rated (phrase text, item text, verdict integer)")
        connection.execute("insert into rated values ('red knife', 'a knife', 2)")
    connection.close()
    url = f"sqlite:///{tmp_path}/shop.db?table=rated"
    with pytest.raises(SchemaError, match=r"item \(a knife\), verdict \(2\)") as raised:
        source_columns.with_columns(SourceConfig(path=url), contents)
    assert typed(str(raised.value))["title"] == "COLUMN"
    assert "recipe" not in str(raised.value)
    assert "first line" not in str(raised.value)


def test_a_sqlite_file_by_its_path_is_answered_with_the_address_of_each_table(tmp_path: Path) -> None:
    for name in ("shop.db", "shop.csv", "shop.jsonl"):
        with sqlite3.connect(tmp_path / name) as connection:
            connection.execute("create table rated (phrase text)")
            connection.execute("create table 'two words' (phrase text)")
        connection.close()
        before = (tmp_path / name).read_bytes()
        uses: list[Callable[[], object]] = [
            lambda name=name: init.write(str(tmp_path / name), tmp_path / "own.toml"),
            lambda name=name: convert.convert(tmp_path / name, "auto", tmp_path / "out"),
            lambda name=name: quickstart.quickstart(
                [SourceConfig(path=str(tmp_path / name))], tmp_path / "workspace", ReadyMadeModels()
            ),
        ]
        for use in uses:
            with pytest.raises(InputError, match="a file of SQLite") as raised:
                use()
            address = f"sqlite:///{tmp_path}/{name}?table="
            assert f"'{address}rated', '{address}two%20words'" in str(raised.value)
        assert (tmp_path / name).read_bytes() == before
    assert not (tmp_path / "workspace").exists()


def test_a_json_column_that_no_line_has_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"sku": "a", "label": "Red knife"}\n' * 3, encoding="utf-8")
    source = SourceConfig(path=str(tmp_path / "items.jsonl"), columns={"title": "lable"})
    with pytest.raises(SchemaError, match=r"(?s)no column 'lable'.*did you mean 'label'.*--columns title=label"):
        readers.read(source, Path())


def test_a_json_column_that_only_a_late_line_has_may_be_mapped(tmp_path: Path) -> None:
    lines = '{"sku": "a", "label": "Red knife"}\n' * 1200 + '{"sku": "b", "label": "x", "blurb": "long"}\n'
    (tmp_path / "items.jsonl").write_text(lines, encoding="utf-8")
    source = SourceConfig(path=str(tmp_path / "items.jsonl"), columns={"title": "label", "text": "blurb"})
    mapped = source_columns.with_columns(source, "documents")
    assert readers.read(mapped, Path()).documents["text"].to_pylist() == ["", "long"]


def recipe(folder: Path, *written: str) -> str:
    lines = ["[data]", f"root = {json.dumps(str(folder))}", f"sources = [{', '.join(written)}]", ""]
    (folder / "own.toml").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "own.toml")


def test_a_recipe_s_table_without_a_map_is_mapped_as_one_by_its_path(tmp_path: Path) -> None:
    table(tmp_path / "items.csv", "sku,name,description", "a1,Red knife,sharp")
    table(tmp_path / "odd.csv", "a,b", "x,y")
    (tmp_path / "train.csv").write_text(
        "id,query,product_title,product_description,median_relevance\n1,knife,a knife,,4\n", encoding="utf-8"
    )
    usual = {"doc_id": "sku", "title": "name", "text": "description"}
    judged = {"query_id": "a", "doc_id": "b", "grade": "b"}
    own = recipe(
        tmp_path,
        '{ path = "items.csv" }',
        '{ path = "items.csv", columns = { title = "name" } }',
        '{ path = "odd.csv" }',
        '{ path = "odd.csv", columns = { query_id = "a", doc_id = "b", grade = "b" } }',
        '{ path = "train.csv" }',
    )
    by_recipe = [dict(source.columns) for source in sources.of_documents([own])]
    assert by_recipe == [usual, {"title": "name"}, {}, judged, {}]
    by_path = sources.of_documents([str(tmp_path / "items.csv"), SourceConfig(path=str(tmp_path / "items.csv"))])
    assert [dict(source.columns) for source in by_path] == [usual, usual]
    assert readers.read(sources.of_documents([own])[0], Path()).documents["title"].to_pylist() == ["Red knife"]


def test_columns_map_the_tables_that_stand_in_no_recipe(tmp_path: Path) -> None:
    table(tmp_path / "items.csv", "sku,name,description", "a1,Red knife,sharp")
    own = recipe(tmp_path, '{ path = "items.csv" }')
    chosen = sources.of_documents([own, str(tmp_path / "items.csv")], columns={"title": "description"})
    assert [source.columns["title"] for source in chosen] == ["name", "description"]
    with pytest.raises(ConfigError, match="--columns: the sources of a recipe have maps of their own"):
        sources.of_documents([own], columns={"title": "description"})
    with pytest.raises(SchemaError, match="no column 'nmae'"):
        sources.of_documents([str(tmp_path / "items.csv")], columns={"title": "nmae"})


def test_a_scheduled_reindex_is_given_the_map_of_its_documents(tmp_path: Path) -> None:
    from flows import schedules
    from pipeline import recipe as recipes

    items, own = table(tmp_path / "items.csv", "a,b", "a1,Red knife"), Path(recipe(tmp_path))
    given = {"judgments": "", "columns": {"title": "b"}}

    def parameters(documents: list[str]) -> dict[str, Any]:
        return schedules._parameters(own, [], tmp_path, recipes.load(own), documents=documents, **given)["reindex"]

    scheduled = parameters([items])
    assert sources.of_documents(scheduled["documents"], columns=scheduled["columns"])[0].columns == {"title": "b"}
    with pytest.raises(ConfigError, match="--columns: maps the tables of --documents, and none are named"):
        parameters([])


@pytest.mark.parametrize("path", ["", "  "])
def test_an_empty_path_is_not_the_working_folder(path: str, tmp_path: Path) -> None:
    for use in (
        lambda: init.write(path, tmp_path / "own.toml"),
        lambda: readers.find(SourceConfig(path=path), tmp_path),
    ):
        with pytest.raises(ConfigError, match="has an empty path"):
            use()


@pytest.mark.parametrize(
    ("names", "unread"),
    [("sku,headline,blurb", " (not read: blurb); to filter by one, keep it: blurb=blurb"), ("id,title,text", "")],
)
def test_a_guess_names_the_columns_that_it_does_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: str, unread: str
) -> None:
    file = table(tmp_path / "own.csv", names, "1,a knife,cuts bread")
    with caplog.at_level("INFO"):
        source_columns.with_columns(SourceConfig(path=file), "documents")
    assert caplog.messages[0].endswith(f"; --columns names others{unread}")


def test_every_command_on_judged_data_asks_for_the_same_map(tmp_path: Path) -> None:
    ratings = table(tmp_path / "ratings.csv", "phrase,title,grade")
    messages = []
    for use in (lambda: init.write(ratings, tmp_path / "own.toml"), lambda: sources.of_any_data(ratings)):
        with pytest.raises(SchemaError) as raised:
            use()
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    with pytest.raises(InputError, match=r"--columns title=title,grade=grade,query=COLUMN on .*place of COLUMN"):
        convert.convert(ratings, "auto", tmp_path / "out")
    guessed = sources.of_any_data(table(tmp_path / "usual.csv", "query,title,grade"))
    assert guessed[0].columns == {"query": "query", "title": "title", "grade": "grade"}


@pytest.mark.parametrize(
    ("names", "given", "columns"),
    [
        ("id,name,body", {}, {"doc_id": "id", "title": "name", "text": "body"}),
        ("query_id,query", {}, {"query_id": "query_id", "query": "query"}),
        ("phrase,title,grade", {"query": "phrase"}, {"query": "phrase", "title": "title", "grade": "grade"}),
        ("query,sku,title,grade", {"query": "query", "doc_id": "sku", "grade": "grade"}, None),
        ("id,name,rating", {"title": "name"}, None),
    ],
)
def test_a_table_of_anything_keeps_a_map_that_suffices_and_has_another_completed(
    tmp_path: Path, names: str, given: Mapping[str, str], columns: Mapping[str, str] | None
) -> None:
    file = table(tmp_path / "any.csv", names, ",".join("1" * (names.count(",") + 1)))
    assert sources.of_any_data(file, columns=given)[0].columns == (given if columns is None else columns)


def test_a_map_of_documents_that_names_no_text_is_completed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = table(tmp_path / "items.csv", "sku,title,description,tags,brand,query")
    caplog.set_level("INFO")
    guessed = {"doc_id": "sku", "title": "title", "text": "description"}
    assert sources.of_documents([file])[0].columns == guessed
    assert caplog.messages[-1].endswith("(not read: tags, brand, query); to filter by one, keep it: tags=tags")
    assert sources.of_documents([file], columns={"tags": "tags"})[0].columns == {"tags": "tags", **guessed}
    kept = {"title": "title", "brand": "brand"}
    assert sources.of_documents([file], columns=kept)[0].columns == kept
    assert sources.of_documents([table(tmp_path / "all.csv", "sku,title,query")])[0].columns == {
        "doc_id": "sku",
        "title": "title",
    }
    assert "to filter" not in caplog.messages[-1], "the key query would not keep a column"


def test_a_recipe_s_sources_keep_their_maps(tmp_path: Path) -> None:
    table(tmp_path / "items.csv", "query,title,grade")
    own = recipe(tmp_path, '{ path = "items.csv" }')
    assert sources.of_any_data(own)[0].columns == {}  # A retraining would not guess either.
    with pytest.raises(ConfigError, match="--labels: the sources of a recipe have their own; write it there, as lab"):
        sources.of_any_data(own, labels={"Exact": 2})


@pytest.mark.parametrize(
    ("names", "fit"),
    [
        ("query,title,slot,n_clicks", {"position": "slot", "clicked": "n_clicks"}),
        ("query,title,where,click_type", {"position": "COLUMN", "clicked": "click_type"}),
        ("query,title,rank,click_flag", {"position": "rank", "clicked": "click_flag"}),
        ("query,title,rang_nr,klick_anzahl", {"position": "rang_nr", "clicked": "klick_anzahl"}),
    ],
)
def test_a_table_that_looks_like_a_click_log_is_called_one(tmp_path: Path, names: str, fit: Mapping[str, str]) -> None:
    log = table(tmp_path / "log.csv", names, "knife,a knife,1,0")
    with pytest.raises(SchemaError, match="it looks like a click log") as raised:
        init.write(log, tmp_path / "own.toml")
    assert typed(str(raised.value)) == {"query": "query", "title": "title", **fit}
    with pytest.raises(SchemaError, match="or position and clicked of a click log") as raised:
        init.write(table(tmp_path / "other.csv", "query,title,worth"), tmp_path / "own.toml")
    assert "looks like" not in str(raised.value)


def test_documents_alone_are_answered_with_the_quickstart(tmp_path: Path) -> None:
    items = table(tmp_path / "items.csv", "id,title,text")
    with pytest.raises(SchemaError, match=rf"`relevance quickstart {items} --workspace workspace`"):
        init.write(items, tmp_path / "own.toml")


@pytest.mark.parametrize("name", ["qrels.txt", "qrels.tsv", "judged"])
def test_a_qrels_file_is_called_one_and_its_uses_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("q1\t0\td1\t1\nq1\t0\td2\t0\n", encoding="utf-8")
    for use in (
        lambda: init.write(str(tmp_path / name), tmp_path / "own.toml"),
        lambda: [readers.read(source, Path()) for source in sources.of_any_data(str(tmp_path / name))],
    ):
        with pytest.raises(InputError, match=r"is a TREC qrels file .*report --run RUN --judgments .*name the fold"):
            use()


@pytest.mark.parametrize("known", [{}, {"query": "query", "doc_id": "article_id", "grade": "stars"}])
def test_judgments_without_texts_are_answered_with_a_recipe_of_both_tables(
    tmp_path: Path, known: Mapping[str, str]
) -> None:
    """The sources in the message, copied into a file, are what `init` reads."""
    ids = [(f"d{number}", f"knife {number}", "cuts") for number in range(30)]
    judged = [(f"knife {number % 25}", f"d{number}", number % 3) for number in range(30)]
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table articles (id text, name text, description text)")
        connection.executemany("insert into articles values (?, ?, ?)", ids)
        connection.execute("create table ratings (query text, article_id text, stars integer)")
        connection.executemany("insert into ratings values (?, ?, ?)", judged)
    connection.close()
    for name, head, rows in (("a", "id,name,description", ids), ("b", "query,article_id,stars", judged)):
        lines = [head, *(",".join(map(str, row)) for row in rows)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    for path, seen in ((f"sqlite:///{tmp_path}/shop.db?table=ratings", "articles"), (str(tmp_path / "b.csv"), "a.csv")):
        with pytest.raises(SchemaError, match=rf"(?s)\(seen: {seen}\).*sources of one name") as raised:
            init.write(path, tmp_path / "own.toml", known)
        lines = str(raised.value).splitlines()
        written = lines[lines.index("    [data]") : lines.index("    ]") + 1]
        (tmp_path / f"both-{seen}.toml").write_text("\n".join(written), encoding="utf-8")
        look, text = init.write(str(tmp_path / f"both-{seen}.toml"), tmp_path / f"filled-{seen}.toml")
        assert (look.documents, look.judgments, look.judged_queries, look.unusable) == (30, 30, 25, 0)
        assert text.count('name = "shop", columns') == (2 if "://" in path else 0)


def test_sources_of_two_names_are_no_collection_for_a_recipe(tmp_path: Path) -> None:
    table(tmp_path / "items.csv", "query,title,grade")
    own = recipe(tmp_path, *(f'{{ path = "items.csv", name = "{name}" }}' for name in "ab"))
    with pytest.raises(ConfigError, match=r"2 collections \(a, b\).*one `name`"):
        init.write(own, tmp_path / "new.toml")


@pytest.mark.parametrize(
    ("judgments", "documents", "source", "words"),
    [
        ("gone.csv", "items.csv", "judged.csv", "gone.csv: no such file or folder"),
        ("items.csv", "items.csv", "judged.csv", "items.csv: .*(?s:.)*grade=COLUMN"),
        ("judged.csv", "gone.csv", "judged.csv", "gone.csv: no such file or folder"),
        ("judged.csv", "sqlite:///shop.db?table=gone", "judged.csv", "no such table; it has items, seen"),
        ("judged.csv", "items.csv", "gone.csv", "gone.csv: no such table; name a file"),
        ("odd.csv", "items.csv", "judged.csv", "--judgments RECIPE"),
        ("judged.csv", "items.csv", "odd.csv", "no column 'query', 'grade'"),
    ],
)
def test_a_schedule_of_data_that_is_not_there_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judgments: str, documents: str, source: str, words: str
) -> None:
    from flows import schedules

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(schedules, "check_server", lambda: None)
    monkeypatch.setattr(schedules, "serve_deployments", lambda *_, **__: pytest.fail("a schedule was made"))
    table(tmp_path / "items.csv", "id,title,text", "a1,Red knife,sharp")
    table(tmp_path / "judged.csv", "query,title,grade")
    table(tmp_path / "odd.csv", "phrase,title,verdict")
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table items (id text, title text)")
        connection.execute("create view seen as select * from items")
    connection.close()
    columns = '{ query = "query", title = "title", grade = "grade" }'
    own = recipe(tmp_path, f'{{ path = "{source}", columns = {columns} }}')
    with pytest.raises(InputError, match=words):
        schedules.serve(Path(own), [], tmp_path / "workspace", judgments=judgments, documents=[documents])


def test_data_that_is_there_passes_the_check_of_a_schedule(tmp_path: Path) -> None:
    table(tmp_path / "judged.csv", "query,title,grade")
    (source,) = sources.of_judgments(str(tmp_path / "judged.csv"))
    sources.refuse_absent(source, Path())
    sources.refuse_absent(SourceConfig(path="judged.csv", columns={"title": "title"}), tmp_path)
    with pytest.raises(SchemaError, match="no column 'name'"):
        sources.refuse_absent(SourceConfig(path="judged.csv", columns={"title": "name"}), tmp_path)
    sources.refuse_absent(SourceConfig(path="s3://bucket/folder"), tmp_path)  # Never fetched for a check.


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("select id, title from gone", "no such table: gone"),
        ("select id, titel from items", "no such column: titel"),
        ("select id, title as name from items", "no column 'title'"),
        ("selekt id from items", "syntax error"),
        ("select id, title from items where id = 'none'", ""),
        ("select id, title from items order by id", ""),
    ],
)
def test_the_query_of_a_source_is_tried_before_a_schedule_is_made(tmp_path: Path, query: str, words: str) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table items (id text, title text)")
        connection.execute("insert into items values ('a', 'knife')")
    connection.close()
    source = SourceConfig(path="sqlite:///shop.db", query=query, columns={"doc_id": "id", "title": "title"})
    with pytest.raises(SchemaError, match=words) if words else nullcontext():
        sources.refuse_absent(source, tmp_path)


def test_judgments_without_texts_are_told_that_a_report_needs_only_ids(tmp_path: Path) -> None:
    table(tmp_path / "odd.csv", "query,number,stars")
    with pytest.raises(SchemaError, match=r"from the release.*doc_id=COLUMN"):
        sources.of_judgments(str(tmp_path / "odd.csv"))


def test_a_folder_of_tables_is_answered_with_the_recipe_that_reads_them(tmp_path: Path) -> None:
    """Copied into a file, it is what `init` reads; the queries keep their texts, which are not their ids."""
    files = {
        "products.csv": ["sku,name,description", *(f"d{number},knife {number},cuts" for number in range(30))],
        "searches.csv": ["query_id,query", *(f"q{number},sharp knife {number}" for number in range(30))],
        "ratings.csv": ["query_id,product_id,score", *(f"q{number},d{number},{number % 3}" for number in range(30))],
    }
    data = tmp_path / "data"
    data.mkdir()
    for name, lines in files.items():
        (data / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (data / "notes.txt").write_text("hello", encoding="utf-8")
    for path in (data, data / "ratings.csv"):
        with pytest.raises(InputError, match=r"\[data\]") as raised:
            init.write(str(path), tmp_path / "none.toml")
        lines = str(raised.value).splitlines()
        written = lines[lines.index("    [data]") : lines.index("    ]") + 1]
        own = tmp_path / f"{path.stem}.toml"
        own.write_text("\n".join(written), encoding="utf-8")
        look, _ = init.write(str(own), tmp_path / f"{path.stem}-filled.toml")
        assert (look.documents, look.judgments, look.judged_queries, look.unusable) == (30, 30, 30, 0)
        read = [readers.read(source, Path()) for source in sources.named(str(own))]
        texts = [text for source in read for text in source.queries["text"].to_pylist()]
        assert {text for text in texts if text} == {f"sharp knife {number}" for number in range(30)}


@pytest.mark.parametrize("path", ["months", "months/*.csv"])
def test_tables_of_the_same_columns_are_mapped_as_one(tmp_path: Path, path: str) -> None:
    (tmp_path / "months").mkdir()
    for month in "ab":
        table(tmp_path / "months" / f"{month}.csv", "search_term,title,grade", f"{month},a knife,1")
    look, _ = init.write(str(tmp_path / path), tmp_path / "own.toml")
    assert look.sources[0]["columns"] == {"query": "search_term", "title": "title", "grade": "grade"}
    assert look.judgments == 60


def test_tables_that_one_map_fits_are_read_as_one_whatever_else_they_have(tmp_path: Path) -> None:
    (tmp_path / "months").mkdir()
    table(tmp_path / "months" / "a.csv", "query,title,grade", "a,a knife,1")
    table(tmp_path / "months" / "b.csv", "note,title,grade,query", "new,a knife,1,b")
    look, _ = init.write(str(tmp_path / "months"), tmp_path / "own.toml")
    assert look.sources[0]["columns"] == {"query": "query", "title": "title", "grade": "grade"}
    assert look.judgments == 60
    (tmp_path / "months" / "c.csv").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"c\.csv is empty, or its first line is.* or take the file out of the folder"):
        init.write(str(tmp_path / "months"), tmp_path / "none.toml")


def test_what_looks_like_data_beside_tables_is_named_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "shards"
    (folder / "more").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for name in ("a.csv", "more/b.csv", ".cache/c.csv"):
        table(folder / name, "query,title,grade", "a,a knife,1")
    for name in ("a.csv.gz", "d.csv.gz", "e.JSONL.zst", "f.xlsx", "notes.txt", "img.png.gz", "h.zip"):
        (folder / name).write_bytes(b"x")
    data.data_convert(str(folder), tmp_path / "out")
    assert "not d.csv.gz, e.JSONL.zst, f.xlsx, h.zip, more/;" in caplog.text
    caplog.clear()
    data.data_convert(f"{folder}/*.csv", tmp_path / "out of a pattern")
    assert "are read, and not" not in caplog.text
    (folder / "z.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(MissingError, match=r"z\.csv: is a link to .*gone\.csv, which is not there"):
        data.data_convert(str(folder), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_split_reads_any_table_by_its_map_as_a_conversion_does(tmp_path: Path) -> None:
    rows = [(f"knife {number}", f"a {word} knife {number}", word) for number in range(40) for word in ("exact", "no")]
    lines = [",".join(row) for row in [("such", "artikel", "relevance"), *rows]]
    (tmp_path / "ratings.csv").write_text("\n".join(lines), encoding="utf-8")
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("create table ratings (such text, artikel text, relevance text)")
        connection.executemany("insert into ratings values (?, ?, ?)", rows)
        connection.commit()
    for number, path in enumerate((f"{tmp_path}/ratings.csv", f"sqlite:///{tmp_path}/shop.db?table=ratings")):
        out = tmp_path / f"out {number}"
        data.data_split(path, out, 0.2, 0.4, columns="query=such,title=artikel", labels="exact=1,no=0")
        judged = readers.read(SourceConfig(path=str(out)), Path()).judgments.to_pylist()
        assert len(judged) == len(rows)
        assert {row["split"] for row in judged} == {"train", "valid", "test"}
    (tmp_path / "recipe.toml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="is a recipe; name one of its sources"):
        data.data_split(str(tmp_path / "recipe.toml"), tmp_path / "out 2")


def test_the_line_that_excel_writes_about_the_separator_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("sep=;\nquery;title;grade\nknife;a knife;1\n", encoding="utf-8-sig")
    with pytest.raises(SchemaError, match="has the first line 'sep=' and a separator, which Excel writes; delete"):
        init.write(str(tmp_path / "own.csv"), tmp_path / "own.toml")


JUDGED_ROW = {"query": "red knife", "title": "a sharp red knife", "grade": "2"}
ODD_ROW = {"gesucht": "red knife", "ware": "a sharp red knife", "punkte": "2"}
WRITERS: Mapping[str, Callable[[pd.DataFrame, Path], Any]] = {
    "csv": lambda frame, path: frame.to_csv(path, index=False),
    "tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "parquet": lambda frame, path: frame.to_parquet(path, index=False),
}
"""Suffix of a table → the function that writes it."""


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("is_folder", [False, True])
def test_every_kind_of_table_is_answered_with_its_columns_and_a_map(tmp_path: Path, kind: str, is_folder: bool) -> None:
    """By its path, and as a recipe's source without a map."""
    folder = tmp_path / ("tables" if is_folder else "")
    folder.mkdir(exist_ok=True)
    for number in range(1 + is_folder):
        WRITERS[kind](pd.DataFrame([ODD_ROW] * 3), folder / f"odd{number}.{kind}")
    path = str(folder if is_folder else folder / f"odd0.{kind}")
    with pytest.raises(SchemaError, match=r"no column has a usual name.*\n.*gesucht \(red knife\), ware") as raised:
        sources.of_judgments(path)
    assert typed(str(raised.value)) == dict.fromkeys(("query", "title", "grade"), "COLUMN")
    text_file = kind in ("csv", "tsv")
    assert ("first line must name" in str(raised.value)) == text_file
    with pytest.raises(InputError, match=r"has the columns gesucht .*columns = \{ query = .COLUMN.") as in_recipe:
        readers.read(SourceConfig(path=path), tmp_path)
    assert ("first line must name" in str(in_recipe.value)) == text_file


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("ids", [{}, {"doc_id": "d1", "text": "of steel"}])
def test_a_table_of_judged_pairs_is_read_as_one_whatever_its_kind(
    tmp_path: Path, kind: str, ids: Mapping[str, str]
) -> None:
    """A Parquet table that has all columns of documents too is no table of documents alone."""
    file = tmp_path / f"ratings.{kind}"
    WRITERS[kind](pd.DataFrame([JUDGED_ROW | ids] * 3), file)
    (source,) = sources.of_any_data(str(file))
    read = readers.read(source, tmp_path)
    assert (read.documents.num_rows, read.queries.num_rows, read.judgments.num_rows) == (1, 1, 3)


def test_a_database_of_judged_pairs_with_all_columns_of_documents_is_read_as_one(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        frame = pd.DataFrame([JUDGED_ROW | {"doc_id": "d1", "text": "of steel"}])
        frame.to_sql("pairs", connection, index=False)
    (source,) = sources.of_any_data(f"sqlite:///{tmp_path}/shop.db?table=pairs")
    read = readers.read(source, tmp_path)
    assert (read.documents.num_rows, read.queries.num_rows, read.judgments.num_rows) == (1, 1, 1)


def test_a_single_parquet_file_of_documents_needs_no_map_in_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "some.parquet"
    pd.DataFrame([{"doc_id": "d1", "title": "a knife", "text": "", "score": 3}]).to_parquet(file)
    assert readers.read(SourceConfig(path=str(file)), tmp_path).documents.num_rows == 1
    (source,) = sources.of_any_data(str(file))
    assert not source.columns
