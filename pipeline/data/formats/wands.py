"""WANDS: Wayfair product search with three grades."""

from pathlib import Path

import pyarrow as pa

from pipeline.data.formats import row_locations, separated_files, tables
from pipeline.data.formats.tables import Tables, all_or_none

WANDS_GRADES = {"Exact": 2, "Partial": 1, "Irrelevant": 0}


def wands_files(path: Path) -> list[Path]:
    """Wayfair's three files, in the folder or in `dataset` below it."""
    folder = path / "dataset" if (path / "dataset").is_dir() else path
    return all_or_none(folder / name for name in ("query.csv", "product.csv", "label.csv"))


def wands(path: Path) -> Tables:
    """Wayfair's WANDS, whose .csv files are separated by tabs: Exact, Partial, Irrelevant → 2, 1, 0."""
    query_file, product_file, label_file = wands_files(path)
    names = {"product_id": "doc_id", "product_name": "title", "product_description": "text"}
    products = separated_files.titled(product_file, list(names), delimiter="\t")
    queries = separated_files.titled(query_file, ("query_id", "query"), delimiter="\t")
    rows = separated_files.titled(label_file, ("query_id", "product_id", "label"), delimiter="\t")
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
        locations=row_locations.of_tables(
            {
                "documents": [row_locations.separated(product_file, products.num_rows, "\t")],
                "queries": [row_locations.separated(query_file, queries.num_rows, "\t")],
                "judgments": [row_locations.separated(label_file, rows.num_rows, "\t")],
            },
            path,
        ),
    )
