"""Re-indexes a million documents and starts the service on them: memory and seconds; run by `make bench`.

Documents: the real English sets, then mixtures of two of them, RELEVANCE_BENCH_DOCUMENTS in all (1,000,000). The
encoder is a random BERT of one layer and 64 dimensions, so that a million texts are embedded in minutes: what the
process holds of documents, terms and vectors is that of a real encoder of 64 dimensions, whose own weights come on
top. Each command runs in a process of its own. Measured are the largest resident memory of the re-index, then of the
service the seconds until it is ready and, after a hundred searches, its resident memory: of its own and of files.
"""

import json
import os
import random
import re
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import BertConfig, BertModel

from pipeline.config import ScratchConfig
from pipeline.training.tasks import vocabulary
from tests.benchmarks.test_reindex import Texts, mixed, real_texts
from tests.serving import processes

pytestmark = [pytest.mark.benchmark, pytest.mark.data]

COUNT = int(os.environ.get("RELEVANCE_BENCH_DOCUMENTS", "1000000"))
BLOCK = 50_000
"""Documents that are written at once."""


def write_encoder(folder: Path, texts: Texts) -> str:
    """A random encoder of one layer in a folder of transformers."""
    tokenizer = vocabulary.train(
        [f"{title} {text}" for title, text in texts[::20]], ScratchConfig(family="bert", vocab_size=8000, positions=64)
    )
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_documents(folder: Path, texts: Texts, count: int) -> str:
    folder.mkdir()
    rest = mixed(texts, max(count - len(texts), 0), random.Random(13))
    schema = pa.schema([("doc_id", pa.string()), ("title", pa.string()), ("text", pa.string())])
    written = 0
    with pq.ParquetWriter(folder / "documents.parquet", schema) as file:
        while written < count:
            size = min(BLOCK, count - written)
            block = texts[written : written + size]
            block += list(islice(rest, size - len(block)))
            titles, bodies = zip(*block, strict=True)
            doc_ids = [f"d{number}" for number in range(written, written + size)]
            file.write_table(pa.table([doc_ids, list(titles), list(bodies)], schema=schema))
            written += size
    return str(folder)


def measured(*arguments: str) -> dict[str, Any]:
    """The JSON that a command prints, with its seconds, CPU-seconds and largest resident memory."""
    began = time.monotonic()
    command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return {
        **json.loads(output),
        "seconds": round(time.monotonic() - began, 1),
        "CPU-seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak GiB": round(usage.ru_maxrss / 2**20, 2),
    }


def resident(server: processes.Server) -> dict[str, float]:
    """GiB of resident memory of all processes of a service: their own, and of the files that they map."""
    sums = {"RssAnon": 0, "RssFile": 0}
    for process in [server.process.pid, *server.workers]:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        for name in sums:
            match = re.search(rf"{name}:\s+(\d+) kB", status)
            assert match is not None
            sums[name] += int(match.group(1))
    return {name: round(kilobytes / 2**20, 2) for name, kilobytes in sums.items()}


def test_a_million_documents(shared_data: Path, tmp_path: Path) -> None:
    texts, queries = real_texts(shared_data)
    workspace = ["--workspace", str(tmp_path / "workspace")]
    few = write_documents(tmp_path / "few", texts, 1000)
    encoder = write_encoder(tmp_path / "encoder", texts)
    subprocess.run(
        [sys.executable, "-m", "flows.cli", "quickstart", few, "--encoder", encoder, "--no-serve", *workspace],
        check=True,
    )
    many = write_documents(tmp_path / "many", texts, COUNT)
    reindexed = measured("reindex", "--documents", many, "--force", *workspace)
    print(f"\nre-index of {COUNT:,} documents:", reindexed)
    assert reindexed["documents"] == COUNT
    assert reindexed["live"]
    began = time.monotonic()
    server = processes.start(tmp_path / "workspace")
    try:
        seconds = time.monotonic() - began
        for query in queries[:100]:
            assert httpx.post(f"{server.url}/search", json={"query": query}, timeout=60).status_code == 200
        print(f"service ready in {seconds:.1f} s, resident GiB", resident(server))
    finally:
        assert server.stop() == 0
