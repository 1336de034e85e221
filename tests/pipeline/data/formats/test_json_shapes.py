"""JSON files that hold rows elsewhere than one a line are refused with a command, and what it writes can be read."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest

from pipeline.data.formats import text_files
from pipeline.errors import SchemaError

DOCUMENTS = [{"title": "a knife", "text": "cuts"}, {"title": "a fork", "text": "holds"}]
HITS = [{"_id": str(number), "_source": row} for number, row in enumerate(DOCUMENTS)]
GRADES = [
    {"query": "knife", "doc_id": "1", "grade": 3},
    {"query": "knife", "doc_id": "2", "grade": 0},
    {"query": "fork", "doc_id": "2", "grade": 3},
]
TASKS = [
    {
        "id": number,
        "annotations": [
            {"result": [{"value": {"choices": ["Exact"]}}], "was_cancelled": False},
            {"result": [{"value": {"choices": ["Partial"]}}], "was_cancelled": True},
        ],
        "data": {"query": "cutlery", **row},
    }
    for number, row in enumerate(DOCUMENTS)
]
FILES: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "a list": (DOCUMENTS, DOCUMENTS),
    "a list below a key": ({"total": 2, "data": DOCUMENTS}, DOCUMENTS),
    "an answer of Elasticsearch": ({"took": 3, "hits": {"total": {"value": 2}, "hits": HITS}}, HITS),
    "an answer of Solr": (
        {"responseHeader": {"status": 0}, "response": {"numFound": 2, "start": 0, "docs": DOCUMENTS}},
        DOCUMENTS,
    ),
    "tasks of Label Studio": (TASKS, [{"query": "cutlery", **row, "grade": "Exact"} for row in DOCUMENTS]),
    "ratings of Quepid": (
        {"queries": [{"text": "knife", "ratings": {"1": 3, "2": 0}}, {"text": "fork", "ratings": {"2": 3}}]},
        GRADES,
    ),
    "ratings of RRE": (
        {
            "topics": [
                {
                    "query_groups": [
                        {
                            "name": "knives",
                            "queries": [{"template": "q.json", "placeholders": {"$query": "knife"}}],
                            "relevant_documents": {"3": ["1"], "0": ["2"]},
                        },
                        {"name": "fork", "queries": [], "relevant_documents": {"2": {"gain": 3}}},
                    ]
                }
            ]
        },
        [{**row, "grade": str(row["grade"]) if row["query"] == "knife" else row["grade"]} for row in GRADES],
    ),
}
"""Name of a shape → the content of a file, and the rows that its command must write."""


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("what", FILES)
def test_the_command_writes_one_object_a_line(tmp_path: Path, what: str, indent: int | None) -> None:
    content, rows = FILES[what]
    file = tmp_path / "it's data.json"
    file.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    assert [row for _, row in text_files.json_lines(run_advice(file))] == rows


@pytest.mark.skipif(not shutil.which("jq"), reason="jq is not installed")
def test_actions_and_documents_of_bulk_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "bulk.ndjson"
    actions = [{"index": {"_index": "shop", "_id": "a"}}, {"create": {"_id": "b"}}]
    lines = [json.dumps(line) for pair in zip(actions, DOCUMENTS, strict=True) for line in pair]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [row for _, row in text_files.json_lines(run_advice(file))]
    assert rows == [{"_id": name, **row} for name, row in zip("ab", DOCUMENTS, strict=True)]


def run_advice(file: Path) -> Path:
    """Runs the command that the message on a file gives, and returns the file that it writes."""
    with pytest.raises(SchemaError, match=r"line 1: a JSON .*; write one object a line") as refused:
        list(text_files.json_lines(file))
    (command,) = re.findall(r"`(jq .*)`$", str(refused.value))
    subprocess.run(["/bin/sh", "-c", command], check=True)
    return file.with_name(f"{file.stem}-lines.jsonl")


@pytest.mark.parametrize("orient", ["columns", "split"])
def test_a_table_by_columns_is_told_how_pandas_writes_rows(tmp_path: Path, orient: Literal["columns", "split"]) -> None:
    file = tmp_path / "frame.json"
    pd.DataFrame({"query": ["knife", "fork"], "grade": [1, 0]}).to_json(file, orient=orient)
    with pytest.raises(SchemaError, match=r'to_json\(FILE, orient="records", lines=True\)'):
        list(text_files.json_lines(file))


@pytest.mark.parametrize(
    "row",
    [
        {"title": "a shirt", "variants": [{"size": "S"}, {"size": "M"}]},
        {"index": {"title": "a contents page"}, "title": "a book"},
        {"index": "a text"},
        {"data": {"title": "a lamp"}},
        {"data": [{"title": "a lamp"}]},
    ],
)
def test_a_single_row_is_read_as_it_is(tmp_path: Path, row: dict[str, Any]) -> None:
    file = tmp_path / "row.jsonl"
    file.write_text(json.dumps(row), encoding="utf-8")
    assert list(text_files.json_lines(file)) == [(1, row)]


def test_a_second_line_makes_the_first_a_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(2 * (json.dumps({"data": DOCUMENTS}) + "\n"), encoding="utf-8")
    assert len(list(text_files.json_lines(file))) == 2
