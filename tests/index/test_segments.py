"""Segments against a fresh build: any sequence of inserts, updates and deletes gives the same documents and scores."""

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from index import (
    ann,
    contract,
    documents,
    lexical_build,
    segments,
    semantic_build,
    tuning,
    vector_matrix,
    vectors,
)
from index.digests import Digests, matched
from index.document_reader import content_digest
from index.document_store import DocumentStore
from index.lexical import LexicalIndex
from index.semantic import SemanticIndex
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from pipeline.errors import ArtifactError, MissingError
from pipeline.text import document_text

SEQUENCES = int(os.environ.get("RELEVANCE_SEQUENCES", "24"))
"""Random sequences that are tried; a release is tried with 1,000."""
STEPS = 4
WORDS = ["apple", "pear", "plum", "苹果", "手机", "read_csv", "the", "run", "running", "garden", "lamp"]
QUERIES = ("apple", "pear plum", "苹果手机", "the running apple apple", "read_csv", "nothing")

Documents = dict[str, dict[str, Any]]
"""doc_id → its other columns, in the order of the source."""


def digests(values: Sequence[int]) -> Digests:
    return np.array([[value] * 16 for value in values], np.uint8).reshape(-1, 16)


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12))
def test_equal_contents_are_paired_first_with_first(held: list[int], wanted: list[int]) -> None:
    rows = matched(digests(held), digests(wanted)).tolist()
    left = list(enumerate(wanted))
    expected = []
    for value in held:
        pair = next((pair for pair in left if pair[1] == value), None)
        expected.append(-1 if pair is None else pair[0])
        if pair is not None:
            left.remove(pair)
    assert rows == expected


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 300)), max_size=12), st.integers(0, 500))
def test_sizes_of_segments_differ_by_the_ratio_after_merging(sizes: list[tuple[int, int]], fresh: int) -> None:
    given_segments = [(live, live + dead) for live, dead in sizes]
    merging = segments.merges(given_segments, fresh)
    written = fresh + sum(given_segments[number][0] for number in merging)
    kept = [item for number, item in enumerate(given_segments) if number not in merging and item[0]]
    assert all(total - live <= segments.MAX_DEAD * total for live, total in kept)
    if written:
        assert all(live > segments.RATIO * written for live, _ in kept)


def test_many_small_changes_keep_few_segments_and_little_is_written_again() -> None:
    """200,000 documents, 100 changes of 1 % each."""
    held, rewritten = [(200_000, 200_000)], 0
    for _ in range(100):
        merging = segments.merges(held, 2000)
        merged = sum(held[number][0] for number in merging)
        rewritten += merged
        held = [item for number, item in enumerate(held) if number not in merging] + [(merged + 2000, merged + 2000)]
    assert len(held) <= 6
    assert rewritten <= 5 * (200_000 + 100 * 2000)


@dataclass(frozen=True)
class Corpus:
    """Documents indexed twice: over the segments of the state before, and fresh."""

    segmented: Mapping[str, Artifact]
    fresh: Mapping[str, Artifact]


def data_of(workspace: Path, corpus: Documents) -> Artifact:
    rows = [{"doc_id": doc_id, **columns} for doc_id, columns in corpus.items()]
    table = pa.Table.from_pylist(
        rows, pa.schema([("doc_id", pa.string()), ("title", pa.string()), ("text", pa.string()), ("size", pa.int64())])
    )

    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        pq.write_table(table, staging.folder / "documents.parquet", row_group_size=7)
        return {}

    return artifacts.make(workspace, "data", version=1, config={"rows": json.dumps(rows)}, inputs={}, build=build)


def random_document(rng: random.Random) -> dict[str, Any]:
    title = rng.choice(WORDS) if rng.random() < 0.5 else ""
    text = " ".join(rng.choices(WORDS, k=rng.randint(0, 8)))
    return {"title": title, "text": text, "size": rng.choice([None, 1, 2, 3])}


def changed(rng: random.Random, corpus: Documents) -> Documents:
    """One re-index's worth of inserts, updates, deletes, returning contents and another order."""
    corpus = dict(corpus)
    for _ in range(rng.choice([0, 1, 1, 2, 3, 8])):
        action = rng.choice(["insert", "update", "delete", "back", "same"])
        known = list(corpus)
        if action == "insert" or not known:
            corpus[f"d{rng.randint(0, 60)}"] = random_document(rng)
        elif action == "update":
            corpus[rng.choice(known)] = random_document(rng)
        elif action == "delete":
            del corpus[rng.choice(known)]
        elif action == "back":
            corpus[rng.choice(known)] = {"title": "", "text": "the first apple", "size": 1}
        else:
            corpus[rng.choice(known)] = dict(corpus[rng.choice(known)])
    corpus["anchor"] = {"title": "garden", "text": "lamp", "size": None}  # A corpus without a word is refused.
    order = list(corpus.items())
    if rng.random() < 0.3:
        rng.shuffle(order)
    return dict(order)


def steps(seed: int, folder: Path) -> Iterator[tuple[Documents, Corpus]]:
    """The states of one sequence, each indexed over the one before and fresh."""
    rng = random.Random(seed)
    corpus = {f"d{number}": random_document(rng) for number in range(rng.choice([1, 5, 30]))}
    before: Mapping[str, Artifact] = {}
    for number in range(STEPS):
        corpus = changed(rng, corpus)
        segmented = indexed(folder / f"{number}-segmented", corpus, before)
        yield corpus, Corpus(segmented, indexed(folder / f"{number}-fresh", corpus, {}))
        before = segmented


def indexed(workspace: Path, corpus: Documents, before: Mapping[str, Artifact]) -> dict[str, Artifact]:
    data = data_of(workspace, corpus)
    return {
        "lexical": lexical_build.make(workspace, IndexConfig(), data=data, previous=before.get("lexical")),
        "documents": documents.make(workspace, data=data, previous=before.get("documents")),
    }


def assert_same_search(segmented: LexicalIndex, fresh: LexicalIndex, corpus: Documents) -> None:
    count, rows = len(corpus), list(range(len(corpus)))
    texts = [document_text(document["title"], document["text"]) for document in corpus.values()]
    for query in QUERIES:
        for k in (1, 3, count):
            hits, expected = segmented.search(query, k), fresh.search(query, k)
            assert [(hit.row, hit.doc_id) for hit in hits] == [(hit.row, hit.doc_id) for hit in expected]
            np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in expected], rtol=1e-6)
        np.testing.assert_allclose(segmented.scores(query, rows), fresh.scores(query, rows), rtol=1e-6)
        np.testing.assert_array_equal(segmented.text_scores(query, texts), segmented.scores(query, rows))
        assert segmented.term_scores(query, rows) == [
            pytest.approx(scores, rel=1e-6) for scores in fresh.term_scores(query, rows)
        ]


def assert_same_documents(segmented: DocumentStore, fresh: DocumentStore, corpus: Documents) -> None:
    rows = list(range(len(corpus)))
    assert len(segmented) == len(fresh) == len(corpus)
    assert segmented.get_many(rows) == fresh.get_many(rows)
    assert [segmented.row_of(doc_id) for doc_id in corpus] == rows
    assert segmented.row_of("gone") is None
    assert segmented.stats() == fresh.stats()
    assert segmented.fields() == fresh.fields()
    for size in (1, 2, 7):
        try:
            expected = fresh.rows_where({"size": [size]}).tolist()
        except MissingError as error:
            with pytest.raises(MissingError, match=str(error)):
                segmented.rows_where({"size": [size]})
        else:
            assert segmented.rows_where({"size": [size]}).tolist() == expected


@settings(max_examples=SEQUENCES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
@example(0)
def test_any_sequence_of_changes_equals_a_fresh_build(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for corpus, both in steps(seed, Path(folder)):
            stores = [DocumentStore.load(item["documents"].path) for item in (both.segmented, both.fresh)]
            try:
                assert_same_documents(*stores, corpus)
            finally:
                for store in stores:
                    store.close()
            indexes = [LexicalIndex.load(item["lexical"].path) for item in (both.segmented, both.fresh)]
            assert_same_search(*indexes, corpus)
            for name in ("lexical", "documents"):
                segmented, fresh = both.segmented[name], both.fresh[name]
                assert segmented.fingerprint == fresh.fingerprint
                for key in ("documents", "terms", "empty", "duplicates"):
                    assert segmented.metrics.get(key) == fresh.metrics.get(key)


def test_a_small_change_shares_the_files_of_the_old_segment(tmp_path: Path) -> None:
    corpus = {f"d{number}": random_document(random.Random(number)) for number in range(50)}
    corpus["anchor"] = {"title": "garden", "text": "lamp", "size": None}
    first = indexed(tmp_path, corpus, {})
    corpus["d7"] = {"title": "new", "text": "words", "size": 3}
    del corpus["d9"]
    second = indexed(tmp_path, corpus, first)
    for name in first:
        assert second[name].metrics["segments"] == 2
        assert second[name].metrics["tombstones"] == 2
        assert second[name].metrics["rewritten"] == 1
        inodes = {path.stat().st_ino for path in first[name].path.rglob("*") if path.is_file()}
        shared = [path for path in second[name].path.rglob("*") if path.is_file() and path.stat().st_ino in inodes]
        own = {item.name for item in first[name].path.iterdir()} - {artifacts.MANIFEST, "ids.parquet"}
        assert {path.name for path in shared} == own
    assert [hit.doc_id for hit in LexicalIndex.load(second["lexical"].path).search("new words", 5)] == ["d7"]


def test_a_full_merge_is_a_fresh_build_byte_for_byte(tmp_path: Path) -> None:
    corpus = {f"d{number}": random_document(random.Random(number)) for number in range(20)}
    corpus["anchor"] = {"title": "garden", "text": "lamp", "size": None}
    first = indexed(tmp_path / "first", corpus, {})
    later = {f"d{number}": random_document(random.Random(number % 3 and number + 99)) for number in range(20)} | corpus
    later |= {f"d{number}": random_document(random.Random(number + 99)) for number in range(12)}
    merged, fresh = (
        indexed(tmp_path / "merged", later, first)["lexical"],
        indexed(tmp_path / "fresh", later, {})["lexical"],
    )
    assert merged.manifest.files == fresh.manifest.files
    assert "segments" not in merged.metrics


def test_a_shared_file_that_was_damaged_is_refused_by_name(tmp_path: Path) -> None:
    corpus = {f"d{number}": random_document(random.Random(number)) for number in range(50)}
    corpus["anchor"] = {"title": "garden", "text": "lamp", "size": None}
    first = indexed(tmp_path, corpus, {})
    path = first["lexical"].path / "counts.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    corpus["d7"] = {"title": "new", "text": "words", "size": 3}
    with pytest.raises(ArtifactError, match=rf"{first['lexical'].fingerprint}/counts\.npy: its content is not"):
        indexed(tmp_path, corpus, first)
    path.write_bytes(content)
    assert indexed(tmp_path, corpus, first)["lexical"].metrics["segments"] == 2


def damage(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if name == segments.LIST:
            (folder / name).write_text('{"segments": [{"folder": ""}]}')
        else:
            rows = np.load(folder / name)
            rows[np.flatnonzero(rows >= 0)[0]] = -1
            np.save(folder / name, rows)

    return change


@pytest.mark.parametrize("name", [segments.LIST, segments.ROWS])
@pytest.mark.parametrize("kind", ["lexical", "documents"])
def test_a_list_or_a_map_that_does_not_fit_is_refused_by_name(
    name: str, kind: str, tmp_path: Path, resealed: Callable[..., Path]
) -> None:
    corpus = {f"d{number}": random_document(random.Random(number)) for number in range(50)}
    corpus["anchor"] = {"title": "garden", "text": "lamp", "size": None}
    first = indexed(tmp_path, corpus, {})
    corpus["d7"] = {"title": "new", "text": "words", "size": 3}
    second = indexed(tmp_path, corpus, first)[kind]
    load: Any = {"lexical": LexicalIndex, "documents": DocumentStore}[kind].load
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        load(resealed(second, damage(name)))


def test_a_content_that_two_documents_share_is_held_twice(tmp_path: Path) -> None:
    corpus: Documents = {f"d{number}": {"title": "", "text": "apple pear", "size": None} for number in range(9)}
    first = indexed(tmp_path, corpus, {})
    corpus["d9"] = {"title": "", "text": "apple pear", "size": None}
    second = indexed(tmp_path, corpus, first)
    index = LexicalIndex.load(second["lexical"].path)
    assert Counter(hit.score for hit in index.search("apple", 20)).most_common(1)[0][1] == 10


def unit_vectors(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of 8 dimensions that depend on the text alone."""
    seeds = [int.from_bytes(content_digest(text)[:8], "big") for text in texts]
    drawn = np.array([np.random.default_rng(seed).normal(size=8) for seed in seeds], np.float32).reshape(-1, 8)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def semantic(workspace: Path, corpus: Documents, before: Artifact | None, config: IndexConfig) -> Artifact:
    known: list[Artifact] = []
    if before is not None:
        kinds = before.path.parents[1]
        known = [artifacts.load(kinds / vectors.KIND / before.manifest.inputs["vectors"])]
    embedded = vectors.make(
        workspace, vectors.DocumentEncoder("encoder", unit_vectors), data=data_of(workspace, corpus), previous=known
    )
    return semantic_build.make(workspace, config, vectors=embedded, previous=before)


@settings(max_examples=SEQUENCES // 2, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
@example(0)
def test_vectors_in_segments_are_found_as_in_a_fresh_index(seed: int) -> None:
    """One inverted list, so that it finds all; its fp16 residuals differ from the new segment's fp32."""
    config, rng, before = IndexConfig(flat_below=1), random.Random(seed), None
    corpus = {f"d{number}": random_document(rng) for number in range(rng.choice([1, 5, 30]))}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(STEPS):
            corpus = changed(rng, corpus)
            before = semantic(Path(folder) / f"{number}-segmented", corpus, before, config)
            fresh = semantic(Path(folder) / f"{number}-fresh", corpus, None, config)
            assert before.fingerprint == fresh.fingerprint
            index, expected = SemanticIndex.load(before.path), SemanticIndex.load(fresh.path)
            assert index.doc_ids == expected.doc_ids == list(corpus)
            kept, anew = (
                vector_matrix.read(
                    artifacts.load(item.path.parents[1] / vectors.KIND / item.manifest.inputs["vectors"])
                )
                for item in (before, fresh)
            )
            np.testing.assert_array_equal(kept[:], anew[:])
            queries = unit_vectors(QUERIES)
            everything = index.search_batch(queries, len(corpus))
            assert all(sorted(hit.row for hit in hits) == list(range(len(corpus))) for hits in everything)
            rows = np.arange(0, len(corpus), 2)
            for query, hits in zip(queries, everything, strict=True):
                exact = unit_vectors(list(document_texts(corpus))) @ query
                np.testing.assert_allclose([hit.score for hit in hits], exact[[hit.row for hit in hits]], atol=2e-3)
                np.testing.assert_allclose(index.similarities(query, rows), exact[rows], atol=2e-3)
                first = index.search(query, 3)
                assert [hit.score for hit in first] == [hit.score for hit in hits[:3]]
                assert index.search_among(query, 9, rows) == sorted(
                    index.search_among(query, 9, rows), key=lambda hit: (-hit.score, hit.row)
                )


def document_texts(corpus: Documents) -> Iterator[str]:
    return (document_text(columns["title"], columns["text"]) for columns in corpus.values())


@pytest.mark.parametrize("seed", range(5))
def test_segments_of_exact_indexes_answer_as_one_exact_index(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(60).astype(np.int32)
    rows[rows >= 45] = -1  # A quarter are tombstones.
    stored = rng.normal(size=(60, 8)).astype(np.float32)
    parts = []
    for start, end in ((0, 30), (30, 31), (31, 60)):
        parts.append(faiss.IndexFlatIP(8))
        parts[-1].add(stored[start:end])
    layout = segments.SegmentMap(tuple(segments.Segment(str(part), part.ntotal) for part in parts), rows)
    segmented = ann.SegmentedVectors(parts, layout)
    vectors_of_rows = np.empty((45, 8), np.float32)
    vectors_of_rows[rows[rows >= 0]] = stored[rows >= 0]
    expected = faiss.IndexFlatIP(8)
    expected.add(vectors_of_rows)
    assert (segmented.ntotal, segmented.d) == (45, 8)
    queries = rng.normal(size=(7, 8)).astype(np.float32)
    for k in (1, 10, 45, 70):
        scores, rows_found = segmented.search(queries, k)
        assert rows_found.tolist() == expected.search(queries, k)[1].tolist()
        np.testing.assert_allclose(scores[:, :45], expected.search(queries, min(k, 45))[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(segmented.reconstruct_batch(np.array([44, 0, 7])), vectors_of_rows[[44, 0, 7]])
    chosen = ann.Selection(45, np.sort(rng.permutation(45)[:9]), 0)
    _, rows_found = ann.search_selected(segmented, queries[0], 5, chosen)
    assert rows_found.tolist() == ann.search_selected(expected, queries[0], 5, chosen)[1].tolist()


@pytest.mark.parametrize("kept", [True, False])
def test_an_index_of_segments_that_does_not_keep_its_contract_is_built_anew(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus: Documents = {f"d{number}": {"title": "", "text": f"text {number}", "size": None} for number in range(900)}
    config = IndexConfig(flat_below=1, recall=0.9)
    first = semantic(tmp_path, corpus, None, config)
    assert first.metrics["factory"].startswith("IVF")
    corpus["d7"] = {"title": "", "text": "another text", "size": None}
    if not kept:
        poor = tuning.CurvePoint(nprobe=0, recall=0.91, lower=0.89, p50_ms=1, p95_ms=1)
        monkeypatch.setattr(contract.tuning, "measured_point", lambda *_: poor)
        monkeypatch.setattr(contract.tuning, "curve", lambda *_: (replace(poor, nprobe=4, lower=0.95), [poor]))
    second = semantic(tmp_path, corpus, first, config)
    assert ("segments" in second.metrics) == (second.path / segments.LIST).exists() == kept
    assert second.metrics["recall_at_100_lower"] >= 0.9
    assert second.metrics["recall_measured_on"] == "documents"
    assert len(SemanticIndex.load(second.path).doc_ids) == 900


def test_a_flipped_bit_or_a_cut_in_any_file_of_any_segment_is_refused_by_name(tmp_path: Path) -> None:
    corpus = {f"d{number}": random_document(random.Random(number)) for number in range(50)}
    corpus["anchor"] = {"title": "garden", "text": "lamp", "size": None}
    first = indexed(tmp_path, corpus, {})
    corpus["d7"] = {"title": "new", "text": "words", "size": 3}
    loads: dict[str, Any] = {"lexical": LexicalIndex.load, "documents": DocumentStore.load}
    for kind, artifact in indexed(tmp_path, corpus, first).items():
        assert len([name for name in artifact.manifest.files if "/" in name]) >= 4
        for name in artifact.manifest.files:
            path = artifact.path / name
            content = path.read_bytes()
            for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1]):
                path.write_bytes(damaged)
                with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
                    loads[kind](artifact.path)
            path.write_bytes(content)
        loads[kind](artifact.path)
