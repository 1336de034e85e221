"""Readers of published collections, each in the very form in which its authors give it out.

Each takes the folder (or file) and gives `Tables`. Grades become whole numbers from 0, higher is better; published
splits become train, valid and test; texts stay as they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data import files, layouts, tables
from pipeline.data.files import STRING
from pipeline.data.tables import SPLIT_OF, Tables
from pipeline.errors import MissingError, SchemaError

ESCI_GRADES = {"E": 3, "S": 2, "C": 1, "I": 0}
WANDS_GRADES = {"Exact": 2, "Partial": 1, "Irrelevant": 0}
T2RANKING_GRADES = {"0": 0, "1": 1, "2": 2, "3": 3}
QBQTC_GRADES = {"0": 0, "1": 1, "2": 2}
CROWDFLOWER_GRADES = {"1": 0, "2": 1, "3": 2, "4": 3}

_CROWDFLOWER = ("id", "query", "product_title", "product_description", "median_relevance")
_HOMEDEPOT = ("id", "product_uid", "product_title", "search_term", "relevance")


def esci_files(path: Path) -> list[Path]:
    """Amazon's two Parquet files, in the folder or in `shopping_queries_dataset` below it."""
    below = path / "shopping_queries_dataset"
    folder = below if below.is_dir() else path
    return _whole(folder / f"shopping_queries_dataset_{part}.parquet" for part in ("examples", "products"))


def esci(path: Path) -> Tables:
    """Amazon's shopping queries (arXiv:2206.06588): E, S, C, I → 3, 2, 1, 0; text is description and bullet points.

    One product is another document in each locale, so the locale stands before its id.
    """
    examples_file, products_file = esci_files(path)
    products = tables.read_foreign(products_file, ("product_id", "product_locale", "product_title"))
    wanted = ("query_id", "query", "product_id", "product_locale", "esci_label", "split")
    examples = tables.read_foreign(examples_file, wanted)
    parts = [tables.column(products, f"product_{name}") for name in ("description", "bullet_point")]
    documents = {
        "doc_id": _with_locale(products),
        "title": tables.column(products, "product_title"),
        "text": pc.utf8_trim_whitespace(tables.joined("\n", *parts)),
        **{name: tables.column(products, f"product_{name}") for name in ("locale", "brand", "color")},
    }
    grades, faults = tables.named_grades(tables.column(examples, "esci_label"), ESCI_GRADES)
    query_ids = tables.column(examples, "query_id")
    judgments = {
        "query_id": query_ids,
        "doc_id": _with_locale(examples),
        "grade": grades,
        "split": tables.splits(tables.column(examples, "split")),
    }
    queries = {
        "query_id": query_ids,
        "text": tables.column(examples, "query"),
        "locale": tables.column(examples, "product_locale"),
    }
    return Tables(
        documents=pa.table(documents),
        queries=tables.first_of(pa.table(queries), "query_id"),
        judgments=pa.table(judgments),
        faults=tuple(faults),
    )


def wands_files(path: Path) -> list[Path]:
    """Wayfair's three files, in the folder or in `dataset` below it."""
    folder = path / "dataset" if (path / "dataset").is_dir() else path
    return _whole(folder / name for name in ("query.csv", "product.csv", "label.csv"))


def wands(path: Path) -> Tables:
    """Wayfair's WANDS, whose .csv files are separated by tabs: Exact, Partial, Irrelevant → 2, 1, 0."""
    query_file, product_file, label_file = wands_files(path)
    names = {"product_id": "doc_id", "product_name": "title", "product_description": "text"}
    products = files.titled(product_file, list(names), delimiter="\t")
    queries = files.titled(query_file, ("query_id", "query"), delimiter="\t")
    rows = files.titled(label_file, ("query_id", "product_id", "label"), delimiter="\t")
    extra = [name for name in products.column_names if name not in names]
    grades, faults = tables.named_grades(rows["label"], WANDS_GRADES)
    judgments = {
        "query_id": rows["query_id"],
        "doc_id": rows["product_id"],
        "grade": grades,
        "split": tables.all_the_same(None, rows.num_rows),
    }
    return Tables(
        documents=products.select([*names, *extra]).rename_columns(
            [*names.values(), *(name.replace(" ", "_") for name in extra)]
        ),
        queries=queries.select(["query_id", "query"]).rename_columns(["query_id", "text"]),
        judgments=pa.table(judgments),
        faults=tuple(faults),
    )


def t2ranking_files(path: Path) -> list[Path]:
    """The collection, and queries and qrels of each split that is there, in the folder or in `data` below it."""
    folder = path / "data" if (path / "data" / "collection.tsv").is_file() else path
    splits = [split for split in ("train", "dev", "test") if (folder / f"qrels.{split}.tsv").is_file()]
    names = [f"{kind}.{split}.tsv" for split in splits for kind in ("queries", "qrels")]
    return [folder / name for name in ("collection.tsv", *names)] if names and path.is_dir() else []


def t2ranking(path: Path) -> Tables:
    """T2Ranking (arXiv:2304.03679): 4 grades of collection.tsv's passages for queries.{train,dev}.tsv.

    Each split counts its query ids from 0, so its name stands before them. The retrieval qrels, which keep only what is
    relevant, and the mined negatives are not read. A line of names at a file's head is skipped where it is.
    """
    collection, *others = t2ranking_files(path)
    documents = layouts.id_and_text(collection, "documents")
    queries, parts = [], []
    for queries_file, qrels_file in zip(others[::2], others[1::2], strict=True):
        split = queries_file.name.split(".")[1]
        queries.append(_numbered(split, layouts.id_and_text(queries_file, "queries")))
        skip = int(files.header(qrels_file, "\t")[:1] == ["qid"])
        rows = files.untitled(qrels_file, ("query_id", "iteration", "doc_id", "grade"), skip=skip)
        rows = rows.append_column("split", tables.all_the_same(SPLIT_OF[split], rows.num_rows))
        parts.append(_numbered(split, rows))
    judgments, faults = tables.judgments(parts, lambda values: tables.named_grades(values, T2RANKING_GRADES))
    return Tables(documents=documents, queries=pa.concat_tables(queries), judgments=judgments, faults=tuple(faults))


def qbqtc_files(path: Path) -> list[Path]:
    """The JSON lines files that are there, if one begins with a query and a title."""
    names = (path / f"{name}.json" for name in ("train", "dev", "test_public", "test"))
    found = [file for file in names if file.is_file()]
    return found if any(_first_names(file) >= {"query", "title"} for file in found) else []


def qbqtc(path: Path) -> Tables:
    """QQ Browser's train, dev, test_public .json: lines of id, query, title, label (`relevant` in the first release).

    test.json, whose labels are not published, gives texts only.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("query", "title", "grade", "split")}
    for file in qbqtc_files(path):
        split = None if file.stem == "test" else SPLIT_OF[file.stem.split("_")[0]]
        for number, row in files.json_lines(file):
            label = row.get("label", row.get("relevant"))
            if label is None and split:
                raise SchemaError(f"{file}, line {number}: has neither 'label' nor 'relevant'; it has {list(row)}")
            columns["query"].append(layouts.text_of(row, "query", file, number))
            columns["title"].append(layouts.text_of(row, "title", file, number))
            columns["grade"].append(None if label is None else str(label))
            columns["split"].append(split)
    queries, faults = tables.strings(columns["query"], "judgments", "query")
    titles, more = tables.strings(columns["title"], "judgments", "title")
    labels = pa.chunked_array([pa.array(columns["grade"], STRING)])
    grades, wrong = tables.named_grades(pc.fill_null(labels, "0"), QBQTC_GRADES)
    return tables.from_pairs(
        queries,
        titles,
        tables.all_the_same("", len(titles)),
        grades=pc.if_else(pc.is_valid(labels), grades, pa.scalar(None, pa.int64())),
        splits=pa.array(columns["split"], STRING),
        faults=[*faults, *more, *wrong],
    )


def crowdflower_files(path: Path) -> list[Path]:
    """The folder's train.csv, or the file itself, if it has CrowdFlower's columns."""
    return _train_csv(path, _CROWDFLOWER)


def crowdflower(path: Path) -> Tables:
    """CrowdFlower's train.csv (Kaggle 2015): median_relevance 1..4 → 0..3; text is the description."""
    (file,) = crowdflower_files(path)
    rows = files.titled(file, _CROWDFLOWER)
    grades, faults = tables.named_grades(rows["median_relevance"], CROWDFLOWER_GRADES)
    return tables.from_pairs(
        rows["query"],
        rows["product_title"],
        rows["product_description"],
        grades=grades,
        splits=tables.all_the_same(None, rows.num_rows),
        faults=faults,
    )


def homedepot_files(path: Path) -> list[Path]:
    """train.csv, if it has Home Depot's columns, and product_descriptions.csv beside it."""
    found = _train_csv(path, _HOMEDEPOT)
    descriptions = (file.with_name("product_descriptions.csv") for file in found)
    return [*found, *(file for file in descriptions if file.is_file())]


def homedepot(path: Path) -> Tables:
    """Home Depot's train.csv (Kaggle 2016) and, if there, product_descriptions.csv; Latin-1 unless they are UTF-8.

    Relevance, a mean of raters from 1 to 3, becomes a grade 0..6 in thirds of a point.
    """
    file, *descriptions = homedepot_files(path)
    rows = files.titled(file, _HOMEDEPOT, encoding=_encoding(file))
    good = pc.match_substring_regex(rows["relevance"], r"^(?:[12](?:\.[0-9]+)?|3(?:\.0+)?)$")
    means = pc.cast(pc.if_else(good, rows["relevance"], pa.scalar("1", STRING)), pa.float64())
    grades = pc.cast(pc.round(pc.multiply(pc.subtract(means, 1.0), 3.0)), pa.int64())
    products = pa.table({"doc_id": rows["product_uid"], "title": rows["product_title"]})
    documents = tables.first_of(products, "doc_id")
    texts = tables.all_the_same("", documents.num_rows)
    for description in descriptions:
        wanted = ("product_uid", "product_description")
        more = tables.first_of(files.titled(description, wanted, encoding=_encoding(description)), "product_uid")
        places = pc.index_in(documents["doc_id"], value_set=more["product_uid"])
        texts = pc.fill_null(pc.take(more["product_description"], places), "")
    query_ids = tables.ids("q", rows["search_term"])
    judgments = {
        "query_id": query_ids,
        "doc_id": rows["product_uid"],
        "grade": grades,
        "split": tables.all_the_same(None, rows.num_rows),
    }
    return Tables(
        documents=documents.append_column("text", texts),
        queries=tables.first_of(pa.table({"query_id": query_ids, "text": rows["search_term"]}), "query_id"),
        judgments=pa.table(judgments),
        faults=tuple(tables.unknown_grades(rows["relevance"], good, "is not a mean between 1 and 3")),
    )


def _whole(names: Any) -> list[Path]:
    """All of these files, or none where one is missing."""
    found = list(names)
    return found if all(file.is_file() for file in found) else []


def _with_locale(table: pa.Table) -> pa.ChunkedArray:
    return tables.joined(":", tables.column(table, "product_locale"), tables.column(table, "product_id"))


def _numbered(split: str, table: pa.Table) -> pa.Table:
    """The table with a split's name before its query ids."""
    place = table.column_names.index("query_id")
    return table.set_column(place, "query_id", tables.joined("-", split, table["query_id"]))


def _train_csv(path: Path, wanted: Sequence[str]) -> list[Path]:
    file = path if path.is_file() else path / "train.csv"
    if file.suffix != ".csv" or not file.is_file():
        return []
    return [file] if set(wanted) <= set(files.header(file, ",", "latin-1")) else []


def _encoding(file: Path) -> str:
    return "utf-8" if files.is_utf8(file) else "latin-1"


def _first_names(file: Path) -> set[str]:
    """The names in the first object of a JSON lines file; none where it is something else."""
    try:
        return set(next(files.json_lines(file), (0, {}))[1])
    except (SchemaError, MissingError):
        return set()
