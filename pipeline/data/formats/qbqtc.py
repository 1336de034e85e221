"""QBQTC: query and title pairs of QQ Browser search, grades 0..2."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.formats import row_locations, tables, text_files
from pipeline.data.formats.tables import SPLIT_OF, Tables
from pipeline.data.formats.text_files import STRING
from pipeline.errors import SchemaError

QBQTC_GRADES = {"0": 0, "1": 1, "2": 2}


def qbqtc_files(path: Path) -> list[Path]:
    """The published JSON lines files in a folder, if one of them begins with a query and a title."""
    names = (path / f"{name}.json" for name in ("train", "dev", "test_public", "test"))
    files = [file for file in names if file.is_file()]
    return files if any(text_files.first_keys(file) >= {"query", "title"} for file in files) else []


def qbqtc(path: Path) -> Tables:
    """QQ Browser's train, dev, test_public .json: lines of id, query, title, label (`relevant` in the first release).

    test.json, whose labels are not published, gives texts only.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ("query", "title", "grade", "split")}
    located = []
    for file in qbqtc_files(path):
        before = len(columns["query"])
        split = None if file.stem == "test" else SPLIT_OF[file.stem.split("_")[0]]
        for number, row in text_files.json_lines(file):
            label = row.get("label", row.get("relevant"))
            if label is None and split:
                raise SchemaError(f"{file}, line {number}: has neither 'label' nor 'relevant'; it has {list(row)}")
            columns["query"].append(tables.text_of(row, "query", file, number))
            columns["title"].append(tables.text_of(row, "title", file, number))
            if isinstance(label, (bool, float, list, dict)):
                raise SchemaError(f"{file}, line {number}: the label is {json.dumps(label)}, not one of 0, 1, 2")
            columns["grade"].append(None if label is None else str(label))
            columns["split"].append(split)
        located.append(row_locations.one_a_line(file, len(columns["query"]) - before))
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
        locations=row_locations.in_files(located, path),
    )
