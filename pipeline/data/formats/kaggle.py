"""Two Kaggle sets of product search: CrowdFlower and Home Depot."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.formats import row_locations, separated_files, tables, text_files
from pipeline.data.formats.tables import Tables
from pipeline.data.formats.text_files import STRING
from pipeline.schema import NameRows

CROWDFLOWER_GRADES = {"1": 0, "2": 1, "3": 2, "4": 3}

_CROWDFLOWER = ("id", "query", "product_title", "product_description", "median_relevance")

_HOMEDEPOT = ("id", "product_uid", "product_title", "search_term", "relevance")


def crowdflower_files(path: Path) -> list[Path]:
    """The folder's train.csv, or the file itself, if it has CrowdFlower's columns."""
    return _train_csv(path, _CROWDFLOWER)


def crowdflower(path: Path) -> Tables:
    """CrowdFlower's train.csv (Kaggle 2015): median_relevance 1..4 → 0..3; text is the description."""
    (file,) = crowdflower_files(path)
    rows = separated_files.titled(file, _CROWDFLOWER)
    grades, faults = tables.named_grades(rows["median_relevance"], CROWDFLOWER_GRADES)
    return tables.from_pairs(
        rows["query"],
        rows["product_title"],
        rows["product_description"],
        grades=grades,
        splits=tables.all_the_same(None, rows.num_rows),
        faults=faults,
        locations=row_locations.in_files([row_locations.separated(file, rows.num_rows)], path),
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
    rows = separated_files.titled(file, _HOMEDEPOT, encoding=_encoding(file))
    good = pc.match_substring_regex(rows["relevance"], r"^(?:[12](?:\.[0-9]+)?|3(?:\.0+)?)$")
    means = pc.cast(pc.if_else(good, rows["relevance"], pa.scalar("1", STRING)), pa.float64())
    grades = pc.cast(pc.round(pc.multiply(pc.subtract(means, 1.0), 3.0)), pa.int64())
    products = pa.table({"doc_id": rows["product_uid"], "title": rows["product_title"]})
    locations = row_locations.in_files([row_locations.separated(file, rows.num_rows)], path)
    documents, in_documents = tables.first_of(products, "doc_id", locations=locations)
    texts = tables.all_the_same("", documents.num_rows)
    for description in descriptions:
        texts, indices, in_texts = _descriptions(description, documents["doc_id"], path)
        in_documents = _in_both(in_documents, in_texts, indices)
    query_ids = tables.ids("q", rows["search_term"])
    judgments = {
        "query_id": query_ids,
        "doc_id": rows["product_uid"],
        "grade": grades,
        "split": tables.all_the_same(None, rows.num_rows),
    }
    query_rows = pa.table({"query_id": query_ids, "text": rows["search_term"]})
    queries, in_queries = tables.first_of(query_rows, "query_id", locations=locations)
    return Tables(
        documents=documents.append_column("text", texts),
        queries=queries,
        judgments=pa.table(judgments),
        faults=tuple(tables.unknown_grades(rows["relevance"], good, "is not a mean between 1 and 3")),
        locations={
            "documents": in_documents,
            "queries": in_queries,
            "judgments": locations,
        },
    )


def _descriptions(file: Path, doc_ids: pa.ChunkedArray, path: Path) -> tuple[pa.ChunkedArray, pa.Array, NameRows]:
    """The text of each document, the row of the file that it stands in, null for none, and names for these rows."""
    more = separated_files.titled(file, ("product_uid", "product_description"), encoding=_encoding(file))
    firsts = tables.first_rows(more, "product_uid")
    indices = firsts.take(pc.index_in(doc_ids, value_set=more["product_uid"].take(firsts)))
    texts = pc.fill_null(pc.take(more["product_description"], indices), "")
    return texts, indices, row_locations.in_files([row_locations.separated(file, more.num_rows)], path)


def _in_both(titles: NameRows, texts: NameRows, indices: pa.Array) -> NameRows:
    """Names for documents that are named by the locations of their title and of their text.

    Args:
        indices: (documents,) row of the text; null for a document without.
    """

    def name(rows: Sequence[int]) -> list[str]:
        with_text = [row for row in rows if indices[row].is_valid]
        known = dict(zip(with_text, texts([indices[row].as_py() for row in with_text]), strict=True))
        return [
            f"{title} and {known[row]}" if row in known else title
            for row, title in zip(rows, titles(rows), strict=True)
        ]

    return name


def _train_csv(path: Path, wanted: Sequence[str]) -> list[Path]:
    file = path if path.is_file() else path / "train.csv"
    if file.suffix != ".csv" or not file.is_file():
        return []
    return [file] if set(wanted) <= set(separated_files.header(file, ",", "latin-1")) else []


def _encoding(file: Path) -> str:
    return "utf-8" if text_files.is_utf8(file) else "latin-1"
