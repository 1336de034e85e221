"""The transcripts in `flows/examples`: their commands, as written, lead from a file to a served answer."""

import csv
import json
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.flows.world import write_tiny_world

EXAMPLES = Path(__file__).parents[2] / "flows" / "examples"

TINY = (
    'teacher.base="scratch"',
    "pretrain.max_tokens=32",
    "pretrain.scratch={layers=1,hidden=32,heads=2,intermediate=64,positions=64,vocab_size=300}",
    "pretrain.loop={epochs=1.0,evaluations=0,learning_rate=1e-3,max_tokens=0,max_seconds=0}",
    "teacher.max_tokens=32",
    "teacher.max_query_tokens=8",
    "teacher.loop={epochs=1.0,evaluations=0,learning_rate=1e-3,max_tokens=0,max_seconds=0}",
    "ranker.layers=1",
    "ranker.intermediate=0",
    "ranker.loop={epochs=1.0,evaluations=0,learning_rate=1e-3,max_tokens=0,max_seconds=0}",
    "encoder.dimensions=16",
    "encoder.max_tokens=32",
    "encoder.max_query_tokens=8",
    "encoder.similarity_weight=0",
    'encoder.projection="directions"',
    "encoder.loop={epochs=1.0,evaluations=0,learning_rate=1e-3,max_tokens=0,max_seconds=0}",
    'export.precisions=["fp32"]',
    "candidates.unlabelled=0",
    "evaluation.bootstrap=200",
    "gate.rerank_floor=false",
)
"""Values laid over the recipe of a transcript, so that all trainings together take seconds."""

Row = dict[str, Any]


def write_csv(folder: Path, world: Mapping[str, list[Row]]) -> None:
    names = ("search_term", "product_title", "product_description", "relevance")
    _write_rows(folder / "ratings.csv", names, _judged(world))


def write_json_lines(folder: Path, world: Mapping[str, list[Row]]) -> None:
    rows = [
        {"question": query, "passage": f"{title}: {text}", "label": grade}
        for query, title, text, grade in _judged(world)
    ]
    _write_lines(folder / "answers.jsonl", rows)


def write_click_log(folder: Path, world: Mapping[str, list[Row]]) -> None:
    """Sessions of one query each; the user looks at place k in one of k cases and clicks what fits."""
    draw = random.Random(3)
    documents = {row["doc_id"]: row for row in world["documents"]}
    rows = []
    for query in world["queries"]:
        grades = {row["doc_id"]: row["grade"] for row in world["judgments"] if row["query_id"] == query["query_id"]}
        shown = [*grades, *draw.sample(sorted(documents.keys() - grades.keys()), 3)]
        for session in range(25):
            draw.shuffle(shown)
            for position, doc_id in enumerate(shown, start=1):
                clicked = draw.random() < (0.1, 0.4, 0.8)[grades.get(doc_id, 0)] / position
                name = f"{query['query_id']}-{session}"
                document = documents[doc_id]
                rows.append((name, query["text"], document["title"], document["text"], position, int(clicked)))
    _write_rows(folder / "clicks.csv", ("session", "query", "title", "text", "position", "clicked"), rows)


def write_database(folder: Path, world: Mapping[str, list[Row]]) -> None:
    with sqlite3.connect(folder / "shop.db") as connection:
        connection.execute("CREATE TABLE articles (sku TEXT PRIMARY KEY, name TEXT, description TEXT, price REAL)")
        rows = [(row["doc_id"], row["title"], row["text"], 9.5) for row in world["documents"]]
        connection.executemany("INSERT INTO articles VALUES (?, ?, ?, ?)", rows)
    connection.close()
    (folder / "judged").mkdir()
    for name in ("queries", "judgments"):
        pq.write_table(pa.Table.from_pylist(world[name]), folder / "judged" / f"{name}.parquet")


def write_beir(folder: Path, world: Mapping[str, list[Row]]) -> None:
    (folder / "beir" / "qrels").mkdir(parents=True)
    documents = [{"_id": row["doc_id"], "title": row["title"], "text": row["text"]} for row in world["documents"]]
    _write_lines(folder / "beir" / "corpus.jsonl", documents)
    queries = [{"_id": row["query_id"], "text": row["text"]} for row in world["queries"]]
    _write_lines(folder / "beir" / "queries.jsonl", queries)
    lines = ["query-id\tcorpus-id\tscore"]
    lines += ["\t".join(map(str, row.values())) for row in world["judgments"]]
    (folder / "beir" / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


WRITERS: Mapping[str, Callable[[Path, Mapping[str, list[Row]]], None]] = {
    "csv": write_csv,
    "json_lines": write_json_lines,
    "click_log": write_click_log,
    "database": write_database,
    "beir": write_beir,
}
"""Transcript → writer of the files that it starts from."""


def _judged(world: Mapping[str, list[Row]]) -> Iterator[tuple[str, str, str, int]]:
    """Texts of query and document, and the grade, of each judgment."""
    queries = {row["query_id"]: row["text"] for row in world["queries"]}
    documents = {row["doc_id"]: row for row in world["documents"]}
    for row in world["judgments"]:
        document = documents[row["doc_id"]]
        yield queries[row["query_id"]], document["title"], document["text"], row["grade"]


def _write_rows(path: Path, names: tuple[str, ...], rows: Any) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])


def _write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    folder = tmp_path_factory.mktemp("small")
    write_tiny_world(folder, documents=60, queries=60)
    return {
        name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("documents", "queries", "judgments")
    }


def blocks(transcript: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", transcript, re.MULTILINE | re.DOTALL)


def shell_script(transcript: str, port: int) -> str:
    """The commands of a transcript, its service on a free port and stopped at the end."""
    lines = [line for block in blocks(transcript, "console") for line in block.splitlines()]
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    body = "\n".join(commands).replace("localhost:8080", f"127.0.0.1:{port}")
    return f"set -e\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n{body}\n"


def command_in(folder: Path, overlaid: Sequence[str]) -> Path:
    """A folder with the command `relevance` of this repository, whose retrainings get these values."""
    folder.mkdir()
    command = folder / "relevance"
    overrides = " ".join(f"--set '{value}'" for value in overlaid)
    command.write_text(
        "#!/bin/sh\n"
        f'case "$1" in retrain) set -- "$@" {overrides};; serve) export RELEVANCE_THREADS=1;; esac\n'
        f'exec {sys.executable} -m flows.cli "$@"\n',
        encoding="utf-8",
    )
    command.chmod(0o755)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.skipif(not shutil.which("curl"), reason="the transcripts ask the service with curl")
@pytest.mark.parametrize("name", WRITERS)
def test_a_transcript_leads_from_a_file_to_a_served_answer(
    name: str, world: dict[str, list[Row]], tmp_path: Path
) -> None:
    answer = follow(name, world, tmp_path, TINY)
    assert "hammer" in json.dumps(answer["reranked"][0])


def follow(name: str, world: Mapping[str, list[Row]], tmp_path: Path, overlaid: Sequence[str]) -> dict[str, Any]:
    """The answer to the last command of a transcript, all of whose commands ran."""
    transcript = (EXAMPLES / f"{name}.md").read_text(encoding="utf-8")
    folder = tmp_path / "own"
    folder.mkdir()
    WRITERS[name](folder, world)
    for recipe in blocks(transcript, "toml"):
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    port = free_port()
    environment = {
        **os.environ,
        "PATH": f"{command_in(tmp_path / 'bin', overlaid)}:{os.environ['PATH']}",
        "PYTHONPATH": str(EXAMPLES.parents[1]),
        "RELEVANCE_PORT": str(port),
    }
    done = subprocess.run(
        ["bash", "-c", shell_script(transcript, port)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=3600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_every_transcript_is_run() -> None:
    ours = {path.stem for path in EXAMPLES.glob("*.md") if "relevance retrain" in path.read_text(encoding="utf-8")}
    assert ours == set(WRITERS)
