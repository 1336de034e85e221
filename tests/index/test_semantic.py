import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index import index_types, semantic_build, vectors
from index import semantic as search
from index.hits import Hit
from index.semantic import SemanticIndex
from pipeline import artifacts, disk, schema
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from pipeline.errors import ArtifactError, MissingError, SchemaError

INVERTED = IndexConfig(flat_below=1, nprobe=8)


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    drawn = rng.normal(size=shape)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True), np.float32)


def clustered(rng: np.random.Generator, count: int, dimensions: int = 32) -> np.ndarray:
    centres = unit(rng, 60, dimensions)
    drawn = centres[rng.integers(0, 60, size=count)] + 0.05 * rng.normal(size=(count, dimensions))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


@pytest.fixture
def index_of(tmp_path: Path, make_data: Callable[..., Artifact]) -> Callable[..., Artifact]:
    def make(matrix: np.ndarray, config: IndexConfig | None = None) -> Artifact:
        data = make_data([str(row) for row in range(len(matrix))])
        digest = f"encoder {matrix.sum()}"
        vector_artifact = vectors.make(
            tmp_path, vectors.DocumentEncoder(digest, lambda texts: matrix[[int(text) for text in texts]]), data=data
        )
        return semantic_build.make(tmp_path, config or IndexConfig(), vectors=vector_artifact)

    return make


@pytest.mark.parametrize("seed", range(5))
def test_exact_search_is_the_sorted_cosines(seed: int, index_of: Callable[..., Artifact]) -> None:
    rng = np.random.default_rng(seed)
    matrix, queries = unit(rng, 200, 16), unit(rng, 20, 16)
    artifact = index_of(matrix)
    index = SemanticIndex.load(artifact.path)
    assert artifact.metrics["factory"] == "Flat"
    assert artifact.metrics["recall_at_10"] == artifact.metrics["recall_at_100"] == 1
    cosines = queries.astype(float) @ matrix.T.astype(float)
    for k in (1, 10, 200, 5000):
        results = index.search_batch(queries, k)
        expected = np.argsort(-cosines, axis=1)[:, :k]
        assert [[hit.row for hit in hits] for hits in results] == expected.tolist()
        scores = [[hit.score for hit in hits] for hits in results]
        np.testing.assert_allclose(scores, np.take_along_axis(cosines, expected, 1), atol=1e-6)
        assert [hit.doc_id for hit in results[0]] == [f"d{row}" for row in expected[0]]
        assert index.search(queries[3], k) == results[3]
    np.testing.assert_allclose(index.similarities(queries[0], [5, 0, 5, 199]), cosines[0, [5, 0, 5, 199]], atol=1e-6)


def test_inverted_lists_find_nearly_all_on_clustered_vectors(index_of: Callable[..., Artifact]) -> None:
    rng = np.random.default_rng(0)
    matrix = clustered(rng, 6000)
    artifact = index_of(matrix, INVERTED)
    assert artifact.metrics["factory"] == "IVF128,SQfp16"
    queries = clustered(rng, 200)  # Around other centres, so harder than the documents' own.
    index = SemanticIndex.load(artifact.path)
    rows = [[hit.row for hit in hits] for hits in index.search_batch(queries, 10)]
    exact = np.argsort(-(queries @ matrix.T), axis=1)[:, :10].tolist()
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)])
    assert artifact.metrics["recall_at_10"] >= 0.95
    assert share >= 0.8
    curve = artifact.metrics["recall_at_10_by_nprobe"]
    assert list(curve) == ["1", "4", "16", "64"]
    assert sorted(curve.values()) == list(curve.values())
    # 2 bytes a dimension, 8 of the id, and the centres.
    assert artifact.metrics["bytes_per_document"] == pytest.approx(72 + 128 * 32 * 4 / 6000, rel=0.02)


def test_similarities_are_the_scores_of_search(index_of: Callable[..., Artifact]) -> None:
    rng = np.random.default_rng(1)
    matrix = clustered(rng, 3000)
    for config in (IndexConfig(), INVERTED):
        index = SemanticIndex.load(index_of(matrix, config).path)
        for query in clustered(rng, 10):
            hits = index.search(query, 50)
            rows = [hit.row for hit in hits]
            np.testing.assert_allclose(index.similarities(query, rows), [hit.score for hit in hits], atol=2e-6)
            np.testing.assert_allclose(index.similarities(query, rows), matrix[rows] @ query, atol=2e-3)
            assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.row))


def test_stated_recall_is_the_recall(index_of: Callable[..., Artifact]) -> None:
    rng = np.random.default_rng(2)
    matrix = unit(rng, 2000, 32)  # Nothing clusters, so recall is low and must be told so.
    artifact = index_of(matrix, IndexConfig(flat_below=1, nprobe=4))
    index = SemanticIndex.load(artifact.path)
    rows = rng.choice(2000, size=600, replace=False)
    shares = []
    for row in rows.tolist():
        cosines = matrix @ matrix[row]
        cosines[row] = -2
        near = set(np.argsort(-cosines)[:10].tolist())
        shares.append(len(near & {hit.row for hit in index.search(matrix[row], 11)}) / 10)
    assert artifact.metrics["recall_at_10"] == pytest.approx(np.mean(shares), abs=0.05)
    assert artifact.metrics["recall_at_10"] < 0.9


def test_equal_vectors_come_in_the_order_of_rows(index_of: Callable[..., Artifact]) -> None:
    matrix = np.repeat(unit(np.random.default_rng(3), 3, 8), 4, axis=0)
    artifact = index_of(matrix)
    hits = SemanticIndex.load(artifact.path).search(matrix[4], 12)
    assert [hit.row for hit in hits[:4]] == [4, 5, 6, 7]
    assert artifact.metrics["recall_at_10"] == 1


@pytest.mark.parametrize("config", [IndexConfig(), INVERTED], ids=["flat", "ivf"])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_few_documents(count: int, config: IndexConfig, index_of: Callable[..., Artifact]) -> None:
    matrix = unit(np.random.default_rng(4), count, 8)
    index = SemanticIndex.load(index_of(matrix, config).path)
    hits = index.search(matrix[0], 100)
    assert sorted(hit.row for hit in hits) == list(range(count))
    assert (hits[0].row, hits[0].score) == (0, pytest.approx(1, abs=2e-3))
    assert index.search(matrix[0], 0) == []
    assert index.search_batch(np.zeros((0, 8)), 5) == []
    assert index.similarities(matrix[0], []).shape == (0,)


def test_vectors_that_do_not_fit_are_refused(index_of: Callable[..., Artifact]) -> None:
    index = SemanticIndex.load(index_of(unit(np.random.default_rng(5), 10, 8)).path)
    for wrong in ([1.0] * 7, [[1.0] * 8], 1.0):
        with pytest.raises(ArtifactError, match="documents have 8 dimensions"):
            index.search(wrong, 3)
        with pytest.raises(ArtifactError, match="documents have 8 dimensions"):
            index.similarities(wrong, [0])
    with pytest.raises(ArtifactError, match="not finite"):
        index.search([math.nan] * 8, 3)
    for rows in ([10], [-1]):
        with pytest.raises(SchemaError, match="there are 0 to 9"):
            index.similarities([1.0] + [0.0] * 7, rows)


def test_one_seed_builds_one_index(index_of: Callable[..., Artifact], tmp_path: Path) -> None:
    matrix = clustered(np.random.default_rng(6), 3000)
    first = index_of(matrix, INVERTED)
    shutil.move(first.path, tmp_path / "first")
    second = index_of(matrix, INVERTED)
    results = (SemanticIndex.load(path).search_batch(matrix[:50], 10) for path in (tmp_path / "first", second.path))
    assert next(results) == next(results)
    assert disk.sha256(tmp_path / "first" / "vectors.faiss") == disk.sha256(second.path / "vectors.faiss")


class Spy:
    """A Faiss index that notes how many threads it was searched with."""

    def __init__(self, ann: Any) -> None:
        self.ann = ann
        self.threads: list[int] = []

    def search(self, queries: Any, k: int) -> Any:
        self.threads.append(faiss.omp_get_max_threads())
        return self.ann.search(queries, k)


def test_every_thread_searches_on_one_thread_and_keeps_its_own_number(index_of: Callable[..., Artifact]) -> None:
    matrix = unit(np.random.default_rng(7), 500, 16)
    index = SemanticIndex.load(index_of(matrix).path)
    expected = index.search_batch(matrix, 10)
    spy = index._ann = Spy(index._ann)

    def go(row: int) -> tuple[list[Hit], int]:
        faiss.omp_set_num_threads(2)
        return index.search(matrix[row], 10), faiss.omp_get_max_threads()

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(go, range(500)))
    assert set(spy.threads) == {1}
    assert {threads for _, threads in together} == {2}
    assert [hits for hits, _ in together] == expected


@pytest.mark.parametrize("config", [IndexConfig(), INVERTED], ids=["flat", "ivf"])
def test_a_damaged_file_of_the_index_is_refused_by_name(config: IndexConfig, index_of: Callable[..., Artifact]) -> None:
    artifact = index_of(unit(np.random.default_rng(8), 300, 8), config)
    for name in artifact.manifest.files:
        path = artifact.path / name
        intact = path.read_bytes()
        path.write_bytes(intact[:200] + bytes([intact[200 % len(intact)] ^ 1]) + intact[201:])
        with pytest.raises(ArtifactError, match=name):
            SemanticIndex.load(artifact.path)
        path.write_bytes(intact + b"\0")
        with pytest.raises(ArtifactError, match=name):
            SemanticIndex.load(artifact.path, verify=False)
        path.write_bytes(intact)
    assert SemanticIndex.load(artifact.path).encoder_digest.startswith("encoder")
    with pytest.raises(MissingError):
        SemanticIndex.load(artifact.path / "nowhere")


def test_files_that_do_not_belong_together_are_refused(
    index_of: Callable[..., Artifact], resealed: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(9)
    artifact, other = index_of(unit(rng, 30, 8)), index_of(unit(rng, 20, 8))

    def swapped(name: str) -> Callable[[Path], None]:
        return lambda folder: shutil.copyfile(other.path / name, folder / name) and None

    for name in ("vectors.faiss", "rows.parquet", "index.json"):
        with pytest.raises(ArtifactError, match="build the index again"):
            SemanticIndex.load(resealed(artifact, swapped(name)))

    def garbage(folder: Path) -> None:
        (folder / "vectors.faiss").write_bytes(b"IxFI" + b"\xff" * 500)

    with pytest.raises(ArtifactError, match=r"vectors\.faiss: not a readable Faiss index"):
        SemanticIndex.load(resealed(artifact, garbage))

    def no_facts(folder: Path) -> None:
        (folder / "index.json").write_text('{"rows": 30}')

    with pytest.raises(ArtifactError, match=r"index\.json"):
        SemanticIndex.load(resealed(artifact, no_facts))


def test_a_lost_write_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = faiss.IndexFlatIP(4)
    ann.add(np.eye(4, dtype=np.float32))
    with pytest.raises(OSError, match="No space left"):
        semantic_build.write_ann(ann, Path("/dev/full"))

    def lose(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[:-4] + b"\0\0\0\0")

    monkeypatch.setattr(disk, "fsync", lose)
    with pytest.raises(ArtifactError, match="not what was written"):
        semantic_build.write_ann(ann, tmp_path / "vectors.faiss")


@given(st.integers(1, 10**10))
def test_lists_are_a_power_of_two_near_four_roots_that_can_be_learned(count: int) -> None:
    number = index_types.lists(count)
    assert number & (number - 1) == 0
    assert number == 1 or 39 * number <= count
    if count > 50_000:
        assert 4 * math.sqrt(count) / 1.42 <= number <= 4 * math.sqrt(count) * 1.42


hit_lists = st.lists(st.integers(0, 20), unique=True).map(lambda rows: [Hit(row, f"d{row}", 1.0) for row in rows])


def test_join_goes_back_and_forth() -> None:
    lexical = [Hit(row, "", 1.0) for row in (1, 2, 3, 4)]
    semantic = [Hit(row, "", 1.0) for row in (3, 5)]
    assert search.join(lexical, semantic) == [1, 3, 2, 5, 4]
    assert search.join([], semantic) == [3, 5]
    assert search.join([], []) == []


@given(hit_lists, hit_lists)
def test_join_has_each_row_once_and_no_later_than_in_its_list(lexical: list[Hit], semantic: list[Hit]) -> None:
    rows = search.join(lexical, semantic)
    assert len(rows) == len(set(rows))
    assert set(rows) == {hit.row for hit in [*lexical, *semantic]}
    for hits in (lexical, semantic):
        assert all(rows.index(hit.row) <= 2 * position + 1 for position, hit in enumerate(hits))


def test_a_semantic_run_ranks_the_queries_of_its_splits(
    tmp_path: Path, make_data: Callable[..., Artifact], embed: Callable[[Sequence[str]], np.ndarray]
) -> None:
    queries = {f"q{number}": f"query {number}" for number in range(600)}
    splits = {query: "valid" if number % 2 else "train" for number, query in enumerate(queries)}
    data = make_data([f"text {row}" for row in range(40)], queries=queries, splits=splits)
    vector_artifact = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=data)
    index = semantic_build.make(tmp_path, IndexConfig(), vectors=vector_artifact)
    run = search.run(tmp_path, index=index, data=data, embed_queries=embed, depth=5, splits=["valid"])
    matrix = np.load(vector_artifact.file("vectors.npy"))
    table = schema.read(run.file("run.parquet"), "run").to_pylist()
    assert len(table) == 300 * 5
    assert {row["system"] for row in table} == {"encoder"}
    for number in (1, 301, 599):
        expected = np.argsort(-(matrix @ embed([queries[f"q{number}"]])[0]))[:5]
        rows = [row for row in table if row["query_id"] == f"q{number}"]
        assert [(row["doc_id"], row["rank"]) for row in rows] == [
            (f"d{row}", rank) for rank, row in enumerate(expected, start=1)
        ]
    other = search.run(tmp_path, index=index, data=data, embed_queries=embed, depth=5, splits=["valid"], system="other")
    assert {row["system"] for row in pq.read_table(other.file("run.parquet")).to_pylist()} == {"other"}

    def write_pairs(staging: artifacts.Staging) -> dict[str, int]:
        row = {"row_id": 0, "query_id": "q301", "doc_id": "d1", "grade": 1, "split": "valid", "source": "human"}
        schema.write(pa.Table.from_pylist([row]), staging.folder / "pairs.parquet", "pairs")
        return {}

    pairs = artifacts.make(tmp_path, "pairs", version=1, config={}, inputs={}, build=write_pairs)
    some = search.run(tmp_path, index=index, data=data, embed_queries=embed, depth=5, splits=["valid"], pairs=pairs)
    rows = schema.read(some.file("run.parquet"), "run").to_pylist()
    assert rows == [row for row in table if row["query_id"] == "q301"]


def test_a_query_that_the_encoder_gives_no_vector_is_named(
    tmp_path: Path, make_data: Callable[..., Artifact], embed: Callable[[Sequence[str]], np.ndarray]
) -> None:
    queries = {f"q{number}": f"query {number}" for number in range(300)}
    data = make_data(["red", "blue"], queries=queries, splits=dict.fromkeys(queries, "valid"))
    index = semantic_build.make(
        tmp_path, IndexConfig(), vectors=vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=data)
    )

    def fail_one(texts: Sequence[str]) -> np.ndarray:
        embedded = embed(texts)
        embedded[[number for number, text in enumerate(texts) if text == "query 280"]] = np.nan
        return embedded

    with pytest.raises(ArtifactError, match=r"the vector of query 'q280' has length nan, not 1 \(1 of 44 in its batch"):
        search.run(tmp_path, index=index, data=data, embed_queries=fail_one, depth=1, splits=["valid"])
