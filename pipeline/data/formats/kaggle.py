"""Two Kaggle sets of product search: CrowdFlower and Home Depot."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.formats import tables, text_files
from pipeline.data.formats.tables import Tables
from pipeline.data.formats.text_files import STRING

CROWDFLOWER_GRADES = {"1": 0, "2": 1, "3": 2, "4": 3}

_CROWDFLOWER = ("id", "query", "product_title", "product_description", "median_relevance")

_HOMEDEPOT = ("id", "product_uid", "product_title", "search_term", "relevance")


def crowdflower_files(path: Path) -> list[Path]:
    """The folder's train.csv, or the file itself, if it has CrowdFlower's columns."""
    return _train_csv(path, _CROWDFLOWER)


def crowdflower(path: Path) -> Tables:
    """CrowdFlower's train.csv (Kaggle 2015): median_relevance 1..4 → 0..3; text is the description."""
    (file,) = crowdflower_files(path)
    rows = text_files.titled(file, _CROWDFLOWER)
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
    ratings = _train_csv(path, _HOMEDEPOT)
    descriptions = (file.with_name("product_descriptions.csv") for file in ratings)
    return [*ratings, *(file for file in descriptions if file.is_file())]


def homedepot(path: Path) -> Tables:
    """Home Depot's train.csv (Kaggle 2016) and, if there, product_descriptions.csv; Latin-1 unless they are UTF-8.

    Relevance, a mean of raters from 1 to 3, becomes a grade 0..6 in thirds of a point.
    """
    file, *descriptions = homedepot_files(path)
    rows = text_files.titled(file, _HOMEDEPOT, encoding=_encoding(file))
    good = pc.match_substring_regex(rows["relevance"], r"^(?:[12](?:\.[0-9]+)?|3(?:\.0+)?)$")
    means = pc.cast(pc.if_else(good, rows["relevance"], pa.scalar("1", STRING)), pa.float64())
    grades = pc.cast(pc.round(pc.multiply(pc.subtract(means, 1.0), 3.0)), pa.int64())
    products = pa.table({"doc_id": rows["product_uid"], "title": rows["product_title"]})
    documents = tables.first_of(products, "doc_id")
    texts = tables.all_the_same("", documents.num_rows)
    for description in descriptions:
        wanted = ("product_uid", "product_description")
        more = tables.first_of(text_files.titled(description, wanted, encoding=_encoding(description)), "product_uid")
        indices = pc.index_in(documents["doc_id"], value_set=more["product_uid"])
        texts = pc.fill_null(pc.take(more["product_description"], indices), "")
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


def _train_csv(path: Path, wanted: Sequence[str]) -> list[Path]:
    file = path if path.is_file() else path / "train.csv"
    if file.suffix != ".csv" or not file.is_file():
        return []
    return [file] if set(wanted) <= set(text_files.header(file, ",", "latin-1")) else []


def _encoding(file: Path) -> str:
    return "utf-8" if text_files.is_utf8(file) else "latin-1"
