"""Amazon's shopping queries (ESCI), in the form in which its authors publish them.

Grades become whole numbers from 0, higher is better; published
splits become train, valid and test; texts stay as they are.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.formats import parquet_reader, row_locations, tables
from pipeline.data.formats.tables import Tables, all_or_none

ESCI_GRADES = {"E": 3, "S": 2, "C": 1, "I": 0}


def esci_files(path: Path) -> list[Path]:
    """Amazon's two Parquet files, in the folder or in `shopping_queries_dataset` below it."""
    below = path / "shopping_queries_dataset"
    folder = below if below.is_dir() else path
    return all_or_none(folder / f"shopping_queries_dataset_{part}.parquet" for part in ("examples", "products"))


def esci(path: Path) -> Tables:
    """Amazon's shopping queries (arXiv:2206.06588): E, S, C, I → 3, 2, 1, 0; text is description and bullet points.

    One product is another document in each locale, so the locale stands before its id.
    """
    examples_file, products_file = esci_files(path)
    products = parquet_reader.read_foreign(products_file, ("product_id", "product_locale", "product_title"))
    wanted = ("query_id", "query", "product_id", "product_locale", "esci_label", "split")
    examples = parquet_reader.read_foreign(examples_file, wanted)
    grades, faults = tables.named_grades(tables.column(examples, "esci_label"), ESCI_GRADES)
    query_ids = tables.column(examples, "query_id")
    judgments = {
        "query_id": query_ids,
        "doc_id": _with_locale(examples),
        "grade": grades,
        "split": tables.splits(tables.column(examples, "split")),
    }
    query_rows = pa.table(
        {
            "query_id": query_ids,
            "text": tables.column(examples, "query"),
            "locale": tables.column(examples, "product_locale"),
        }
    )
    in_examples = row_locations.in_files([row_locations.numbered(examples_file, examples.num_rows)], path)
    queries, in_queries = tables.first_of(query_rows, "query_id", locations=in_examples)
    return Tables(
        documents=_documents(products),
        queries=queries,
        judgments=pa.table(judgments),
        faults=tuple(faults),
        locations={
            "documents": row_locations.in_files([row_locations.numbered(products_file, products.num_rows)], path),
            "queries": in_queries,
            "judgments": in_examples,
        },
    )


def _documents(products: pa.Table) -> pa.Table:
    """The table of documents, a product each."""
    parts = [tables.column(products, f"product_{name}") for name in ("description", "bullet_point")]
    documents = {
        "doc_id": _with_locale(products),
        "title": tables.column(products, "product_title"),
        "text": pc.utf8_trim_whitespace(tables.joined("\n", *parts)),
        **{name: tables.column(products, f"product_{name}") for name in ("locale", "brand", "color")},
    }
    return pa.table(documents)


def _with_locale(table: pa.Table) -> pa.ChunkedArray:
    return tables.joined(":", tables.column(table, "product_locale"), tables.column(table, "product_id"))
