"""Compares engines for the lexical index, each in a process of its own; run by `make bench`.

    bm25s      finished scores, as indexes from before segments have them: built anew for every change
    postings   numpy segments and tombstones, weighed at query time by the living documents, as `index.lexical` has them
    fts5       SQLite, ranked by its bm25()
    tantivy    if it is installed (`pip install tantivy`); it is no dependency of the project

All get the terms of our own analyzer, as words `t<number>`. Documents: the real English sets, then mixtures of two of
them, RELEVANCE_BENCH_DOCUMENTS in all (200,000). One in a hundred is then replaced. The error is the largest difference
between a score of the engine's first ten and plain BM25 over the live documents, as a share of that score and
without a constant factor.
"""

import importlib.util
import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.benchmark, pytest.mark.data]

SETS = ("homedepot", "crowdflower", "wikiqa", "vaswani", "cranfield", "cisi")
QUERIES = 200
CHECKED = 20
K1, B, K = 1.2, 0.75, 100

Results = list[tuple[int, float]]
"""(document, score), best first."""


class LexicalEngine(Protocol):
    """Builds over documents of term numbers, replaces some of them, and answers queries."""

    def build(self, documents: Sequence[list[int]]) -> None: ...
    def replace(self, changed: dict[int, list[int]], documents: Sequence[list[int]]) -> None: ...
    def search(self, query: list[int]) -> Results: ...


class Bm25sEngine:
    """Scores are computed at build time, so every change is a build."""

    def build(self, documents: Sequence[list[int]]) -> None:
        import bm25s

        self.count = len(documents)
        terms = 1 + max(max(document, default=0) for document in documents)
        bm25 = bm25s.BM25(method="lucene", k1=K1, b=B)
        bm25.index(
            (documents, {str(term): term for term in range(terms)}), create_empty_token=False, show_progress=False
        )
        self.scores, self.rows, self.starts = (bm25.scores[name] for name in ("data", "indices", "indptr"))

    def replace(self, changed: dict[int, list[int]], documents: Sequence[list[int]]) -> None:
        self.build(documents)

    def search(self, query: list[int]) -> Results:
        totals = np.zeros(self.count, np.float32)
        for term, times in Counter(query).items():
            if term + 1 < len(self.starts):
                part = slice(self.starts[term], self.starts[term + 1])
                totals[self.rows[part]] += times * self.scores[part]
        return _best(totals)


class PostingsSegment:
    """Postings of some documents: for each term the documents that have it, and how often."""

    def __init__(self, ids: Sequence[int], documents: Sequence[list[int]]) -> None:
        self.ids = np.asarray(ids, np.int64)
        lengths = np.array([len(document) for document in documents], np.int64)
        terms = np.fromiter((term for document in documents for term in document), np.int64, int(lengths.sum()))
        pairs, times = np.unique(
            terms * len(documents) + np.repeat(np.arange(len(documents)), lengths), return_counts=True
        )
        self.terms, starts = np.unique(pairs // len(documents), return_index=True)
        self.starts = np.append(starts, len(pairs))
        self.rows = (pairs % len(documents)).astype(np.int32)
        self.times = times.astype(np.float32)
        self.lengths = lengths.astype(np.float32)
        self.live = np.ones(len(documents), bool)

    def postings(self, term: int) -> slice:
        row = int(np.searchsorted(self.terms, term))
        if row == len(self.terms) or self.terms[row] != term:
            return slice(0, 0)
        return slice(int(self.starts[row]), int(self.starts[row + 1]))


class PostingsEngine:
    """Segments and tombstones: a change writes one segment and marks the old documents dead."""

    def build(self, documents: Sequence[list[int]]) -> None:
        self.segments = [PostingsSegment(range(len(documents)), documents)]

    def replace(self, changed: dict[int, list[int]], documents: Sequence[list[int]]) -> None:
        for segment in self.segments:
            segment.live &= ~np.isin(segment.ids, list(changed))
        self.segments.append(PostingsSegment(list(changed), list(changed.values())))

    def search(self, query: list[int]) -> Results:
        live = sum(int(segment.live.sum()) for segment in self.segments)
        average = sum(float(segment.lengths[segment.live].sum(dtype=np.float64)) for segment in self.segments) / live
        parts = [(segment, np.zeros(len(segment.ids), np.float32)) for segment in self.segments]
        for term, repeats in Counter(query).items():
            slices = [segment.postings(term) for segment in self.segments]
            rows = [segment.rows[part] for segment, part in zip(self.segments, slices, strict=True)]
            has = sum(int(segment.live[matching].sum()) for segment, matching in zip(self.segments, rows, strict=True))
            idf = np.log(1 + (live - has + 0.5) / (has + 0.5))
            for (segment, totals), matching, part in zip(parts, rows, slices, strict=True):
                times = segment.times[part]
                norm = K1 * (1 - B + B * segment.lengths[matching] / average)
                totals[matching] += repeats * idf * times / (times + norm)
        merged: Results = []
        for segment, totals in parts:
            totals[~segment.live] = 0
            merged += [(int(segment.ids[row]), score) for row, score in _best(totals)]
        return sorted(merged, key=lambda item: (-item[1], item[0]))[:K]


class Fts5Engine:
    """SQLite's full-text index in a file."""

    def build(self, documents: Sequence[list[int]]) -> None:
        self.file = sqlite3.connect(Path(sys.argv[2]).with_suffix(".fts5"))
        self.file.execute("CREATE VIRTUAL TABLE t USING fts5(terms)")
        with self.file:
            rows = ((row, _words(document)) for row, document in enumerate(documents))
            self.file.executemany("INSERT INTO t(rowid, terms) VALUES (?, ?)", rows)

    def replace(self, changed: dict[int, list[int]], documents: Sequence[list[int]]) -> None:
        with self.file:
            self.file.executemany("DELETE FROM t WHERE rowid = ?", [(row,) for row in changed])
            rows = ((row, _words(document)) for row, document in changed.items())
            self.file.executemany("INSERT INTO t(rowid, terms) VALUES (?, ?)", rows)

    def search(self, query: list[int]) -> Results:
        wanted = " OR ".join(f'"t{term}"' for term in query)
        ranked = "SELECT rowid, -bm25(t) FROM t WHERE t MATCH ? ORDER BY bm25(t) LIMIT ?"
        return [(int(row), float(score)) for row, score in self.file.execute(ranked, (wanted, K))]


class TantivyEngine:
    """Tantivy in a folder."""

    def build(self, documents: Sequence[list[int]]) -> None:
        import tantivy

        self.tantivy: Any = tantivy
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("row", stored=True, tokenizer_name="raw")
        builder.add_text_field("terms", tokenizer_name="whitespace", index_option="freq")
        folder = Path(sys.argv[2]).with_suffix(".tantivy")
        folder.mkdir()
        self.index = tantivy.Index(builder.build(), path=str(folder))
        writer = self.index.writer(100_000_000, 1)
        for row, document in enumerate(documents):
            writer.add_document(self._document(row, document))
        self._commit(writer)

    def replace(self, changed: dict[int, list[int]], documents: Sequence[list[int]]) -> None:
        writer = self.index.writer(100_000_000, 1)
        for row in changed:
            writer.delete_documents_by_term("row", str(row))
        for row, document in changed.items():
            writer.add_document(self._document(row, document))
        self._commit(writer)

    def _document(self, row: int, terms: Sequence[int]) -> Any:
        document = self.tantivy.Document()
        document.add_text("row", str(row))
        document.add_text("terms", _words(terms))
        return document

    def _commit(self, writer: Any) -> None:
        writer.commit()
        writer.wait_merging_threads()
        self.index.reload()
        self.searcher = self.index.searcher()

    def search(self, query: list[int]) -> Results:
        parsed = self.index.parse_query(_words(query), ["terms"])
        hits = self.searcher.search(parsed, K).hits
        return [(int(self.searcher.doc(address)["row"][0]), float(score)) for score, address in hits]


ENGINES: dict[str, type[LexicalEngine]] = {
    "bm25s": Bm25sEngine,
    "postings": PostingsEngine,
    "fts5": Fts5Engine,
    "tantivy": TantivyEngine,
}


def _words(terms: Sequence[int]) -> str:
    return " ".join(f"t{term}" for term in terms)


def _best(totals: np.ndarray) -> Results:
    rows = np.flatnonzero(totals)
    if len(rows) > K:
        rows = rows[np.argpartition(-totals[rows], K)[:K]]
    rows = rows[np.lexsort((rows, -totals[rows]))]
    return [(int(row), float(totals[row])) for row in rows]


def plain_bm25(query: list[int], documents: Sequence[list[int]]) -> dict[int, float]:
    """Scores of all documents with a term of the query, by a plain loop."""
    average = sum(map(len, documents)) / len(documents)
    wanted = set(query)
    counts = {row: Counter(term for term in document if term in wanted) for row, document in enumerate(documents)}
    counts = {row: times for row, times in counts.items() if times}
    has = Counter(term for times in counts.values() for term in times)
    idf = {term: np.log(1 + (len(documents) - has[term] + 0.5) / (has[term] + 0.5)) for term in wanted}
    return {
        row: sum(
            idf[term] * times[term] / (times[term] + K1 * (1 - B + B * len(documents[row]) / average))
            for term in query
            if times[term]
        )
        for row, times in counts.items()
    }


def main(name: str, path: Path) -> None:
    """Measures one engine and prints the figures as JSON."""
    given = json.loads(path.read_text())
    documents, queries, changed = given["documents"], given["queries"], given["changed"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    engine = ENGINES[name]()
    began = time.process_time()
    engine.build(documents)
    build = time.process_time() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    replaced = {int(row): document for row, document in changed.items()}
    for row, document in replaced.items():
        documents[row] = document
    began = time.process_time()
    engine.replace(replaced, documents)
    change = time.process_time() - began
    seconds = []
    for query in queries:
        began = time.thread_time()
        engine.search(query)
        seconds.append(time.thread_time() - began)
    ratios: list[float] = []
    for query in queries[:CHECKED]:
        plain = plain_bm25(query, documents)
        ratios += [score / plain.get(row, 1e-9) for row, score in engine.search(query)[:10]]
    error = float(np.abs(np.array(ratios) / np.median(ratios) - 1).max())  # A constant factor changes no order.
    half, most = np.quantile(seconds, [0.5, 0.95]) * 1000
    figures = {"build_cpu_s": build, "memory_mb": memory / 1024, "change_cpu_s": change, "change_share": change / build}
    print(json.dumps({**figures, "p50_ms": half, "p95_ms": most, "score_error": error}))


@pytest.fixture(scope="module")
def given(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from index.analyzer import analyser

    analyse, vocabulary = analyser("english"), dict[str, int]()
    documents: list[list[int]] = []
    queries: list[list[int]] = []
    began = time.process_time()
    for name in SETS:
        corpus = pq.read_table(shared_data / name / "corpus.parquet").to_pydict()
        for title, text in zip(corpus["title"], corpus["text"], strict=True):
            words = analyse(f"{title} {text}")[:200]
            documents.append([vocabulary.setdefault(term, len(vocabulary)) for term in words])
        for text in pq.read_table(shared_data / name / "queries.parquet").column("text").to_pylist()[:QUERIES]:
            queries.append([vocabulary.setdefault(term, len(vocabulary)) for term in dict.fromkeys(analyse(text))])
    print(f"{len(documents)} documents analysed at {len(documents) / (time.process_time() - began):,.0f} a CPU-second")
    rng = np.random.default_rng(13)
    count = int(os.environ.get("RELEVANCE_BENCH_DOCUMENTS", "200000"))
    documents += list(_mixed(documents, count - len(documents), rng))
    documents = documents[:count]
    picked = [queries[index] for index in rng.permutation(len(queries))[:QUERIES]]
    chosen = rng.permutation(count)[: count // 100]
    changed = dict(zip(chosen.tolist(), _mixed(documents, len(chosen), rng), strict=True))
    path = tmp_path_factory.mktemp("lexical") / "given.json"
    path.write_text(
        json.dumps({"documents": documents, "queries": [query for query in picked if query], "changed": changed})
    )
    return path


def _mixed(documents: list[list[int]], count: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Documents of half the terms of one and half the terms of another."""
    for first, second in rng.integers(0, len(documents), (max(count, 0), 2)).tolist():
        yield documents[first][::2] + documents[second][1::2]


@pytest.mark.parametrize("name", list(ENGINES))
def test_what_an_engine_costs(name: str, given: Path) -> None:
    if name == "tantivy" and importlib.util.find_spec("tantivy") is None:
        pytest.skip("tantivy is not installed")
    done = subprocess.run([sys.executable, __file__, name, str(given)], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    print(f"{name:9}", {key: float(f"{value:.3g}") for key, value in figures.items()})
    if name in ("bm25s", "postings"):
        assert figures["score_error"] < 1e-5


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
