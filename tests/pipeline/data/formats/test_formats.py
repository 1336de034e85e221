"""Every format is read from a small set in the very form in which it is published."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
import pytest
from pydantic import TypeAdapter

from pipeline import text
from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.data.formats import registry, sql
from pipeline.data.sources import Source
from pipeline.errors import InputError, MissingError, SchemaError


def lines(path: Path, *rows: str, encoding: str = "utf-8", end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(end.join((*rows, "")).encode(encoding))


def objects(path: Path, *rows: object) -> None:
    lines(path, *(json.dumps(row, ensure_ascii=False) for row in rows))


def ours(folder: Path) -> None:
    """Writes corpus, queries and qrels with further columns and the split `all`, as folders of real data have them."""
    corpus = {"doc_id": ["1", "2"], "title": ["a", ""], "text": ["", "b"], "author": ["x", None]}
    pd.DataFrame(corpus).to_parquet(folder / "corpus.parquet")
    pd.DataFrame({"query_id": ["q"], "text": ["which"]}).to_parquet(folder / "queries.parquet")
    rows = {"query_id": ["q", "q"], "doc_id": ["1", "2"], "grade": [0, 4], "split": ["all", "dev"], "grade_raw": [5, 1]}
    pd.DataFrame(rows).to_parquet(folder / "qrels.parquet")


def beir(folder: Path) -> None:
    objects(
        folder / "corpus.jsonl",
        {"_id": "MED-10", "title": "Statins", "text": 'A "quoted"\ttext', "metadata": {"url": "u"}},
        {"_id": "MED-11", "title": "", "text": "Zweiter Text über Ärzte"},
    )
    objects(
        folder / "queries.jsonl",
        {"_id": "PLAIN-1", "text": "do statins help?", "metadata": {}},
        {"_id": "PLAIN-2", "text": "test query"},
    )
    head = "query-id\tcorpus-id\tscore"
    lines(folder / "qrels" / "train.tsv", head, "PLAIN-1\tMED-10\t2")
    lines(folder / "qrels" / "dev.tsv", head, "PLAIN-1\tMED-11\t1")
    lines(folder / "qrels" / "test.tsv", head, "PLAIN-2\tMED-10\t1")


def trec(folder: Path) -> None:
    lines(folder / "collection.tsv", '7\tThe presence of "communication" amid', "8\tsecond, passage")
    lines(folder / "queries.tsv", "1030303\twho is aziz hashim", "1037496\twho is rep scalise?")
    lines(folder / "qrels.dl19-passage.txt", "1030303 Q0 7 3", "1030303\t0\t8\t0", "1037496 0  8 1", end="\r\n")


def esci(folder: Path) -> None:
    examples = {
        "example_id": [0, 1, 2, 3, 4],
        "query": ["revent 80 cfm", "revent 80 cfm", "revent 80 cfm", "bohrer", "revent 80 cfm"],
        "query_id": [0, 0, 0, 9, 0],
        "product_id": ["B000MOO21W", "B07X3Y6B1V", "B000MOO21W", "B07X3Y6B1V", "B09"],
        "product_locale": ["us", "us", "us", "es", "us"],
        "esci_label": ["I", "E", "I", "S", "C"],
        "small_version": [0, 0, 0, 1, 0],
        "large_version": [1, 1, 1, 1, 1],
        "split": ["train", "train", "train", "test", "train"],
    }
    pd.DataFrame(examples).to_parquet(folder / "shopping_queries_dataset_examples.parquet")
    products = {
        "product_id": ["B000MOO21W", "B07X3Y6B1V", "B07X3Y6B1V", "B09"],
        "product_title": ["Panasonic fan", "Homewerks", "Homewerks ES", None],
        "product_description": [None, "<p>quiet</p>", None, None],
        "product_bullet_point": ["WhisperCeiling", "80 CFM\nquiet", None, None],
        "product_brand": ["Panasonic", None, None, None],
        "product_color": ["White", "80 CFM", None, None],
        "product_locale": ["us", "us", "es", "us"],
    }
    pd.DataFrame(products).to_parquet(folder / "shopping_queries_dataset_products.parquet")


def wands(folder: Path) -> None:
    lines(
        folder / "query.csv",
        "query_id\tquery\tquery_class",
        "0\tsalon chair\tMassage Chairs",
        '208\t"fawkes 36"" blue vanity"\tVanities',
        "222\tsmall loving roomtables\t",
    )
    lines(
        folder / "product.csv",
        "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features\t"
        "rating_count\taverage_rating\treview_count",
        "0\tsolid wood platform bed\tBeds\tFurniture / Beds\tgood , deep sleep\toverallwidth:64.7|color : red\t15.0\t"
        "4.5\t15.0",
        '1\t"griffin 29 \'\' bar stool"\tBar Stools\tFurniture\t"two\nlines"\tx:1\t\t\t',
    )
    lines(
        folder / "label.csv",
        "id\tquery_id\tproduct_id\tlabel",
        "0\t0\t0\tExact",
        "1\t208\t1\tIrrelevant",
        "2\t208\t0\tPartial",
    )


def t2ranking(folder: Path) -> None:
    lines(folder / "collection.tsv", "pid\ttext", '0\t"蜂巢"取快递验证码', "1\t收到的取件码")
    lines(folder / "queries.train.tsv", "qid\ttext", "0\t蜂巢取快递验证码摁错怎么办", '1\t"引号')
    lines(folder / "queries.dev.tsv", "qid\ttext", "0\t西安发源地的卡没用完")
    lines(folder / "qrels.train.tsv", "qid\t-\tpid\trel", "0\t0\t0\t3", "0\t0\t1\t0", "1\t0\t1\t2")
    lines(folder / "qrels.dev.tsv", "qid\t-\tpid\trel", "0\t0\t1\t1")
    lines(folder / "qrels.retrieval.train.tsv", "qid\tpid", "0\t0")


def qbqtc(folder: Path) -> None:
    objects(
        folder / "train.json",
        {"id": 0, "query": "小孩咳嗽感冒", "title": "小孩感冒过后久咳嗽该吃什么药", "label": "1"},
        {"id": 1, "query": "小孩咳嗽感冒", "title": "宝宝树", "label": "0"},
    )
    objects(folder / "dev.json", {"id": 0, "query": "前列腺癌", "title": "前列腺癌的治疗", "label": "2"})
    objects(folder / "test_public.json", {"id": 0, "query": "曼城", "title": "曼城\u2028球迷", "label": "1"})
    objects(folder / "test.json", {"id": 0, "query": "没有标注", "title": "没有标注的标题"})


def crowdflower(folder: Path) -> None:
    lines(
        folder / "train.csv",
        '"id","query","product_title","product_description","median_relevance","relevance_variance"',
        '1,"bridal shower decorations","Accent Pillow - Red/Black","Red satin, 8"" x 8"".',
        'Second <b>line</b>",1,0',
        '2,"led christmas lights","Set of 10 Battery Operated","",4,0.471',
        '4,"led christmas lights","Accent Pillow - Red/Black","Red satin, 8"" x 8"".',
        'Second <b>line</b>",2,0',
    )


def homedepot(folder: Path) -> None:
    lines(
        folder / "train.csv",
        '"id","product_uid","product_title","search_term","relevance"',
        '2,100001,"Simpson Strong-Tie 12-Gauge Angle","angle bracket",3',
        '3,100001,"Simpson Strong-Tie 12-Gauge Angle","l bracket",2.5',
        '9,100002,"BEHR Premium 1-gal. #SC-141 caf\xe9 ""Tugboat"" Stain","deck over",2.33',
        '16,100005,"Delta Vero 1-Handle","rain shower head",1',
        encoding="latin-1",
    )
    lines(
        folder / "product_descriptions.csv",
        '"product_uid","product_description"',
        '100001,"Not only do angles make joints stronger, 90\xb0"',
        '100002,"BEHR, a ""solid"" finish"',
        '199999,"of another product"',
        encoding="latin-1",
    )


def text_files(folder: Path) -> None:
    lines(folder / "guide" / "install.md", "# Install it #", "", "Unpack the archive.", "", "# Then", "Run it.")
    lines(folder / "guide" / "old.rst", "Older versions", "==============", "", "Keep two of them.", end="\r\n")
    lines(folder / "blog.markdown", "---", 'title: "Nine lives"', "tags: [cat]", "---", "A cat has nine.")
    lines(folder / "käse.TXT", "# no title", "Gouda")
    lines(folder / "notes.txt", "milk", "bread")
    lines(folder / "empty.md")
    lines(folder / "logo.svg", "<svg/>")
    lines(folder / ".git" / "description.txt", "hidden")


WRITERS: dict[str, Callable[[Path], None]] = {
    "parquet": ours,
    "beir": beir,
    "trec": trec,
    "esci": esci,
    "wands": wands,
    "t2ranking": t2ranking,
    "qbqtc": qbqtc,
    "crowdflower": crowdflower,
    "homedepot": homedepot,
    "text": text_files,
}


def read(folder: Path, name: str, **config: object) -> Source:
    WRITERS[name](folder)
    source = sources.read(SourceConfig(path=str(folder), **config), Path())  # type: ignore[arg-type]
    assert source.faults == ()
    return source


def judged(source: Source) -> list[tuple[str, str, int, str | None]]:
    """(query text, title or text, grade, split) of each judgment: what the ids stand for."""
    queries = dict(zip(source.queries["query_id"].to_pylist(), source.queries["text"].to_pylist(), strict=True))
    documents = {row["doc_id"]: row["title"] or row["text"] for row in source.documents.to_pylist()}
    return [
        (queries[row["query_id"]], documents[row["doc_id"]], row["grade"], row["split"])
        for row in source.judgments.to_pylist()
    ]


def rows(source: Source, *columns: str) -> list[tuple[object, ...]]:
    return [tuple(row[name] for name in columns) for row in source.documents.to_pylist()]


def bare(text: str) -> str:
    """The text without the marks that quoting adds."""
    return re.sub(r'["\\\\]', "", text)


def line_at(folder: Path, location: str) -> str:
    """The line that a location such as `qrels/test.tsv, line 3` names."""
    name, _, number = location.partition(", line ")
    content = (folder / name).read_bytes()
    try:
        return bare(content.decode().split("\n")[int(number) - 1])
    except UnicodeDecodeError:
        return bare(content.decode("latin-1").split("\n")[int(number) - 1])


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("parquet", "esci", "text")])
def test_every_row_of_a_format_of_text_is_named_by_its_file_and_line(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    for file in tmp_path.rglob("*"):
        if file.is_file():  # An empty line is no row, so that lines and numbers of rows differ.
            file.write_bytes(b"\n" + file.read_bytes())
    source = sources.read(SourceConfig(path=str(tmp_path)), Path())
    cells: dict[str, dict[str, str]] = {"documents": {}, "queries": {}}
    for kind, table in (("documents", source.documents), ("queries", source.queries)):
        locations = source.locations[kind](range(table.num_rows))
        assert len(set(locations)) == table.num_rows or kind == "documents"
        for row, location in zip(table.to_pylist(), locations, strict=True):
            text = bare(row.get("title") or row["text"]).split("\n")[0]
            assert text in line_at(tmp_path, location.partition(" and ")[0])
            cells[kind][row["doc_id" if kind == "documents" else "query_id"]] = text
    locations = source.locations["judgments"](range(source.judgments.num_rows))
    assert len(set(locations)) == source.judgments.num_rows
    for row, location in zip(source.judgments.to_pylist(), locations, strict=True):
        line = line_at(tmp_path, location)
        for kind, key in (("queries", row["query_id"]), ("documents", row["doc_id"])):
            assert cells[kind][key] in line or re.search(rf"\b{key.rpartition('-')[2]}\b", line)


def test_documents_that_are_files_are_named_by_their_file(tmp_path: Path) -> None:
    source = read(tmp_path, "text")
    locations = source.locations["documents"](range(source.documents.num_rows))
    assert locations == source.documents["doc_id"].to_pylist()
    assert all((tmp_path / location).is_file() for location in locations)


def test_rows_of_esci_are_named_by_the_rows_of_its_files(tmp_path: Path) -> None:
    source = read(tmp_path, "esci")
    examples = "shopping_queries_dataset_examples.parquet, row "
    assert source.locations["queries"]([0, 1]) == [f"{examples}1", f"{examples}4"]
    assert source.locations["judgments"]([4]) == [f"{examples}5"]
    assert source.locations["documents"]([2]) == ["shopping_queries_dataset_products.parquet, row 3"]


def test_a_description_of_home_depot_is_named_by_its_line_too(tmp_path: Path) -> None:
    source = read(tmp_path, "homedepot")
    names = source.locations["documents"]([0, 1, 2])
    assert names == [
        "train.csv, line 2 and product_descriptions.csv, line 2",
        "train.csv, line 4 and product_descriptions.csv, line 3",
        "train.csv, line 5",
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_auto_knows_each_format_by_its_files(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, name).format == name


def test_every_format_of_files_is_tried_here() -> None:
    """The others are tried in files of their own: thumbs, mapped tables, databases, qrels, installed packages."""
    assert {*WRITERS, "thumbs", "table", "sql", "qrels", "python_api"} == set(registry.NAMES)


def test_the_recipe_key_and_the_readme_name_every_format() -> None:
    description = TypeAdapter(SourceConfig).json_schema()["properties"]["format"]["description"]
    assert sorted(re.findall(r"\w+", description.partition(";")[0])) == sorted(registry.NAMES)
    readme = (Path(__file__).parents[4] / "README.md").read_text(encoding="utf-8").lower().replace(" ", "")
    assert [name for name in WRITERS if name not in readme] == []


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_changes_the_digest_and_is_named(tmp_path: Path, name: str) -> None:
    """A file that is read without being in the digest would leave artifacts of the old content in use."""
    WRITERS[name](tmp_path)
    config = SourceConfig(path=str(tmp_path))
    source = sources.read(config, Path())
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    refused = 0
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[:-20] if file.suffix == ".parquet" else content + b"\xff\n")
        if sources.find(config, Path()).digest == source.digest:
            assert sources.read(config, Path()) == source
        else:
            refused += 1
            with pytest.raises(SchemaError, match=re.escape(file.name)):
                sources.read(config, Path())
        file.write_bytes(content)
    assert refused


@pytest.mark.parametrize("name", WRITERS)
def test_another_format_asked_for_says_what_it_looked_for(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    other = "wands" if name != "wands" else "esci"
    with pytest.raises(InputError, match=rf"looked for[^\n]*\n  {other}: "):
        sources.read(SourceConfig(path=str(tmp_path), format=other), Path())


def test_our_own_tables_keep_their_columns_and_lose_the_split_all(tmp_path: Path) -> None:
    source = read(tmp_path, "parquet")
    assert rows(source, "doc_id", "title", "text", "author") == [("1", "a", "", "x"), ("2", "", "b", None)]
    assert judged(source) == [("which", "a", 0, None), ("which", "b", 4, "valid")]
    assert source.judgments["grade_raw"].to_pylist() == [5, 1]


def test_a_single_parquet_file_is_documents(tmp_path: Path) -> None:
    ours(tmp_path)
    source = sources.read(SourceConfig(path="corpus.parquet"), tmp_path)
    assert (source.name, source.documents.num_rows, source.judgments.num_rows) == (tmp_path.name, 2, 0)


def test_beir(tmp_path: Path) -> None:
    source = read(tmp_path, "beir")
    assert rows(source, "doc_id", "title", "text") == [
        ("MED-10", "Statins", 'A "quoted"\ttext'),
        ("MED-11", "", "Zweiter Text über Ärzte"),
    ]
    assert sorted(judged(source)) == [
        ("do statins help?", "Statins", 2, "train"),
        ("do statins help?", "Zweiter Text über Ärzte", 1, "valid"),
        ("test query", "Statins", 1, "test"),
    ]


def test_beir_without_queries_is_documents(tmp_path: Path) -> None:
    beir(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    source = sources.read(SourceConfig(path=str(tmp_path)), Path())
    assert (source.documents.num_rows, source.queries.num_rows, source.judgments.num_rows) == (2, 0, 0)


def test_trec_qrels_beside_a_tsv_collection(tmp_path: Path) -> None:
    source = read(tmp_path, "trec")
    assert judged(source) == [
        ("who is aziz hashim", 'The presence of "communication" amid', 3, None),
        ("who is aziz hashim", "second, passage", 0, None),
        ("who is rep scalise?", "second, passage", 1, None),
    ]


def test_trec_qrels_of_several_splits_beside_json_lines(tmp_path: Path) -> None:
    beir(tmp_path)
    for file in (tmp_path / "qrels").iterdir():
        file.unlink()
    (tmp_path / "qrels").rmdir()
    lines(tmp_path / "qrels.train.txt", "PLAIN-1 0 MED-10 2")
    lines(tmp_path / "qrels.dev.txt", "PLAIN-2 0 MED-10 0")
    source = sources.read(SourceConfig(path=str(tmp_path)), Path())
    assert source.format == "trec"
    assert sorted(judged(source)) == [
        ("do statins help?", "Statins", 2, "train"),
        ("test query", "Statins", 0, "valid"),
    ]


def test_esci_has_a_document_for_each_locale(tmp_path: Path) -> None:
    source = read(tmp_path, "esci")
    assert rows(source, "doc_id", "title", "text", "brand") == [
        ("us:B000MOO21W", "Panasonic fan", "WhisperCeiling", "Panasonic"),
        ("us:B07X3Y6B1V", "Homewerks", "<p>quiet</p>\n80 CFM\nquiet", ""),
        ("es:B07X3Y6B1V", "Homewerks ES", "", ""),
        ("us:B09", "", "", ""),
    ]
    assert judged(source) == [
        ("revent 80 cfm", "Panasonic fan", 0, "train"),
        ("revent 80 cfm", "Homewerks", 3, "train"),
        ("revent 80 cfm", "Panasonic fan", 0, "train"),
        ("bohrer", "Homewerks ES", 2, "test"),
        ("revent 80 cfm", "", 1, "train"),
    ]


def test_wands_is_tabs_with_doubled_quotes(tmp_path: Path) -> None:
    source = read(tmp_path, "wands")
    assert source.queries["text"].to_pylist() == ["salon chair", 'fawkes 36" blue vanity', "small loving roomtables"]
    assert rows(source, "title", "text", "category_hierarchy") == [
        ("solid wood platform bed", "good , deep sleep", "Furniture / Beds"),
        ("griffin 29 '' bar stool", "two\nlines", "Furniture"),
    ]
    assert [row[2] for row in judged(source)] == [2, 0, 1]


@pytest.mark.parametrize("with_names", [True, False])
def test_t2ranking_counts_the_queries_of_each_split_anew(tmp_path: Path, with_names: bool) -> None:
    t2ranking(tmp_path)
    if not with_names:  # The form in its authors' code repository.
        for file in tmp_path.iterdir():
            file.write_text(file.read_text(encoding="utf-8").split("\n", 1)[1], encoding="utf-8")
    source = sources.read(SourceConfig(path=str(tmp_path)), Path())
    assert judged(source) == [
        ("蜂巢取快递验证码摁错怎么办", '"蜂巢"取快递验证码', 3, "train"),
        ("蜂巢取快递验证码摁错怎么办", "收到的取件码", 0, "train"),
        ('"引号', "收到的取件码", 2, "train"),
        ("西安发源地的卡没用完", "收到的取件码", 1, "valid"),
    ]


def test_qbqtc_keeps_the_texts_of_the_unlabelled_test(tmp_path: Path) -> None:
    source = read(tmp_path, "qbqtc")
    assert judged(source) == [
        ("小孩咳嗽感冒", "小孩感冒过后久咳嗽该吃什么药", 1, "train"),
        ("小孩咳嗽感冒", "宝宝树", 0, "train"),
        ("前列腺癌", "前列腺癌的治疗", 2, "valid"),
        ("曼城", "曼城\u2028球迷", 1, "test"),
    ]
    assert "没有标注" in source.queries["text"].to_pylist()
    assert "没有标注的标题" in source.documents["title"].to_pylist()


def test_qbqtc_of_the_first_release_calls_the_grade_relevant(tmp_path: Path) -> None:
    objects(tmp_path / "train.json", {"id": 16300, "query": "宝宝开荤", "title": "开荤仪式", "relevant": "2"})
    assert judged(sources.read(SourceConfig(path=str(tmp_path)), Path())) == [("宝宝开荤", "开荤仪式", 2, "train")]


def test_crowdflower(tmp_path: Path) -> None:
    source = read(tmp_path, "crowdflower")
    assert rows(source, "title", "text") == [
        ("Accent Pillow - Red/Black", 'Red satin, 8" x 8".\nSecond <b>line</b>'),
        ("Set of 10 Battery Operated", ""),
    ]
    assert judged(source) == [
        ("bridal shower decorations", "Accent Pillow - Red/Black", 0, None),
        ("led christmas lights", "Set of 10 Battery Operated", 3, None),
        ("led christmas lights", "Accent Pillow - Red/Black", 1, None),
    ]


def test_home_depot_is_latin_1_and_its_means_become_thirds(tmp_path: Path) -> None:
    source = read(tmp_path, "homedepot")
    assert rows(source, "doc_id", "title", "text") == [
        ("100001", "Simpson Strong-Tie 12-Gauge Angle", "Not only do angles make joints stronger, 90°"),
        ("100002", 'BEHR Premium 1-gal. #SC-141 café "Tugboat" Stain', 'BEHR, a "solid" finish'),
        ("100005", "Delta Vero 1-Handle", ""),
    ]
    # 3 → 6, 2.5 → 4 (4.5, to the even one), 2.33 → 4, 1 → 0.
    assert [row[2] for row in judged(source)] == [6, 4, 4, 0]
    assert [row[0] for row in judged(source)] == ["angle bracket", "l bracket", "deck over", "rain shower head"]


def test_home_depot_saved_as_utf_8_is_read_as_that(tmp_path: Path) -> None:
    homedepot(tmp_path)
    file = tmp_path / "train.csv"
    file.write_text(file.read_text(encoding="latin-1"), encoding="utf-8-sig")
    source = sources.read(SourceConfig(path=str(file)), Path())
    assert source.documents["title"][1].as_py() == 'BEHR Premium 1-gal. #SC-141 café "Tugboat" Stain'


def test_a_folder_of_texts_has_a_document_for_each_file(tmp_path: Path) -> None:
    source = read(tmp_path, "text")
    assert rows(source, "doc_id", "title", "text") == [
        ("blog.markdown", "Nine lives", "A cat has nine."),
        ("empty.md", "empty", ""),
        ("guide/install.md", "Install it", "Unpack the archive.\n\n# Then\nRun it."),
        ("guide/old.rst", "Older versions", "Keep two of them."),
        ("käse.TXT", "no title", "Gouda"),
        ("notes.txt", "notes", "milk\nbread"),
    ]
    assert (source.queries.num_rows, source.judgments.num_rows) == (0, 0)


def test_a_text_that_moves_is_another_document(tmp_path: Path) -> None:
    before = read(tmp_path, "text").digest
    (tmp_path / "guide" / "old.rst").rename(tmp_path / "old.rst")
    assert sources.find(SourceConfig(path=str(tmp_path)), Path()).digest != before


@pytest.mark.parametrize("other", ["table.csv", "deep/rows.jsonl", "qrels.test.txt", "judged.txt"])
def test_texts_beside_tables_are_read_only_when_named(tmp_path: Path, other: str) -> None:
    text_files(tmp_path)
    lines(tmp_path / other, "q1 0 d1 2" if other.endswith("txt") else '{"a": "b"}')
    with pytest.raises(InputError, match=r"text: a folder of \.txt, .*; only when named"):
        sources.find(SourceConfig(path=str(tmp_path)), Path())
    assert sources.read(SourceConfig(path=str(tmp_path), format="text"), Path()).documents.num_rows >= 6


def store(path: Path, rows: Iterable[tuple[object, ...]], table: str = "documents") -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"create table {table} (doc_id integer, title text, text text, upvotes integer)")
        connection.executemany(f"insert into {table} values (?, ?, ?, ?)", rows)
    connection.close()


def test_documents_out_of_a_database_stand_in_order_of_their_ids(tmp_path: Path) -> None:
    store(tmp_path / "shop.db", [(3, "c", None, None), (1, "a", "x", 5), (2, None, "y", 7)])
    source = sources.read(SourceConfig(path="sqlite:///shop.db"), tmp_path)
    assert (source.name, source.format) == ("documents", "sql")
    assert rows(source, "doc_id", "title", "text", "upvotes") == [
        ("1", "a", "x", 5),
        ("2", "", "y", 7),
        ("3", "c", "", None),
    ]


def test_another_table_of_a_database_and_many_rows(tmp_path: Path) -> None:
    count = sql.ROWS_AT_ONCE * 2 + 5
    store(tmp_path / "shop.db", ((number, f"t{number}", "", number) for number in range(count)), "articles")
    source = sources.read(SourceConfig(path="sqlite:///shop.db?table=articles", name="shop"), tmp_path)
    assert source.name == "shop"
    assert source.documents["upvotes"].to_pylist() == list(range(count))


def test_names_beyond_ascii_stand_in_messages_as_a_person_writes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path / "商店.db", [(1, "a", "", 1)], "文章")
    with caplog.at_level("INFO"):
        assert sources.read(SourceConfig(path="sqlite:///商店.db?table=文章"), tmp_path).documents.num_rows == 1
    assert "商店.db: sql, 1 document" in caplog.text
    assert sql.other_tables("sqlite:///商店.db", tmp_path) == ["sqlite:///商店.db?table=文章"]
    with pytest.raises(MissingError, match=r"商店\.db.*no such table; it has 文章"):
        sources.read(SourceConfig(path="sqlite:///商店.db?table=评分"), tmp_path)
    with (tmp_path / "商店.db").open("rb") as file:
        assert "商店.db?table=文章'" in str(text.other_format(tmp_path / "商店.db", file.read(100)))


def test_the_digest_of_a_database_follows_its_content(tmp_path: Path) -> None:
    digests = []
    for number, rows in enumerate(([(1, "a", "b", 1)], [(1, "a", "b", 1)], [(1, "a", "c", 1)])):
        store(tmp_path / f"{number}.db", rows)
        digests.append(sources.find(SourceConfig(path=f"sqlite:///{number}.db"), tmp_path).digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_of_files_follows_their_content_not_their_place(tmp_path: Path) -> None:
    digests = []
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
        wands(tmp_path / folder)
        if folder == "three":
            lines(tmp_path / folder / "label.csv", "id\tquery_id\tproduct_id\tlabel", "0\t0\t0\tPartial")
        digests.append(sources.find(SourceConfig(path=folder), tmp_path).digest)
    assert digests[0] == digests[1] != digests[2]


def test_grades_are_mapped_as_the_recipe_says(tmp_path: Path) -> None:
    assert [row[2] for row in judged(read(tmp_path, "homedepot", grades=(0, 0, 1, 1, 2, 2, 3)))] == [3, 2, 2, 0]


def test_a_grade_without_a_place_in_the_mapping_is_a_fault_of_its_row(tmp_path: Path) -> None:
    homedepot(tmp_path)
    source = sources.read(SourceConfig(path=str(tmp_path), grades=(0, 1, 2, 3, 3)), Path())
    assert [(fault.row, fault.reason) for fault in source.faults] == [
        (0, "grade 6 has no place in the source's grades = [0, 1, 2, 3, 3]")
    ]
