"""Seconds and peak memory of reading a table by its watermark, whole and after a change of 1 %; run by `make bench`.

RELEVANCE_BENCH_ROWS gives the numbers of rows. Each reading is a process of its own. Rows have a title of five words
and a text of thirty, drawn from 50,000; deletions are found by a scan of all ids.
"""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.benchmark

COUNTS = [int(count) for count in os.environ.get("RELEVANCE_BENCH_ROWS", "100000,1000000").split(",")]

READ = """
import json, sys, time
from pathlib import Path
from pipeline import artifacts
from pipeline.config import SourceConfig
from pipeline.data import corpus
workspace, address, previous = sys.argv[1:]
held = artifacts.load(Path(previous)) if previous else None
source = SourceConfig(path=address, watermark="written", deletions="scan")
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
before = peak()
began, spent = time.monotonic(), time.process_time()
documents = corpus.make(Path(workspace), [source], Path(), "error", previous=held)
print(json.dumps({
    "path": str(documents.path), "read": documents.metrics["read"], "changed": documents.metrics["changed"],
    "gone": documents.metrics["gone"], "seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - spent,
    "imported_mib": before, "peak_mib": peak(),
}))
"""


def read(workspace: Path, table: Path, previous: str = "") -> dict[str, Any]:
    command = [sys.executable, "-c", READ, str(workspace), f"sqlite:///{table}", previous]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def show(label: str, figures: dict[str, Any]) -> None:
    shown = {name: round(value, 1) if isinstance(value, float) else value for name, value in figures.items()}
    print(f"{label:24} { {name: value for name, value in shown.items() if name != 'path'} }")


@pytest.mark.parametrize("count", COUNTS)
def test_reading_a_table_by_its_watermark(count: int, tmp_path: Path) -> None:
    table = tmp_path / "shop.db"
    with sqlite3.connect(table) as connection:
        connection.execute("CREATE TABLE documents (doc_id TEXT PRIMARY KEY, title TEXT, text TEXT, written INTEGER)")
        connection.execute("CREATE INDEX by_written ON documents (written)")
        title, text = (", ".join(["abs(random()) % 50000"] * words) for words in (5, 30))
        connection.execute(
            f"""WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < ? - 1)
            INSERT INTO documents SELECT printf('d%09d', n), printf('{"w%d " * 5}', {title}),
            printf('{"w%d " * 30}', {text}), n FROM numbers""",
            (count,),
        )
    first = read(tmp_path / "workspace", table)
    show(f"{count:,} rows, whole", first)
    with sqlite3.connect(table) as connection:
        connection.execute(
            "UPDATE documents SET text = text || ' new', written = written + ? WHERE rowid % 100 = 0", (count,)
        )
        connection.execute("DELETE FROM documents WHERE rowid % 1000 = 1")
    connection.close()
    changed = read(tmp_path / "workspace", table, first["path"])
    show(f"{count:,} rows, 1 % changed", changed)
    assert (first["read"], changed["read"], changed["changed"]) == (count, count // 100, count // 100)
    assert changed["gone"] == count // 1000
