"""The contract of a recipe with `index.recall`: bound, choice, estimate, measured recall, filters."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from scipy.stats import binomtest

from index import index_types, semantic_build, tuning, vectors
from index.held_out import FEWEST, HeldOutQueries
from index.semantic import SemanticIndex
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from pipeline.errors import ArtifactError, ConfigError

ROWS, DIMENSIONS = 6000, 32


def clustered(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((80, DIMENSIONS))
    drawn = centres[rng.integers(0, 80, count)] + 0.7 * rng.standard_normal((count, DIMENSIONS))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def held_out(count: int = 300) -> HeldOutQueries:
    queries = clustered(99, count)
    return HeldOutQueries(f"queries {count}", lambda: queries)


@pytest.fixture
def index_of(tmp_path: Path, make_data: Callable[..., Artifact]) -> Callable[..., Artifact]:
    def make(matrix: np.ndarray, config: IndexConfig, queries: HeldOutQueries | None = None) -> Artifact:
        data = make_data([str(row) for row in range(len(matrix))])
        digest = f"encoder {matrix.sum()}"
        vector_artifact = vectors.make(
            tmp_path, vectors.DocumentEncoder(digest, lambda texts: matrix[[int(text) for text in texts]]), data=data
        )
        return semantic_build.make(tmp_path, config, vectors=vector_artifact, queries=queries)

    return make


def true_recall(index: SemanticIndex, matrix: np.ndarray, queries: np.ndarray, k: int = 100) -> float:
    """Recall by a plain sort of all cosines."""
    shares = []
    for query in queries:
        nearest = set(np.argsort(-(matrix @ query), kind="stable")[:k].tolist())
        shares.append(len(nearest & {hit.row for hit in index.search(query, k)}) / k)
    return float(np.mean(shares))


@pytest.mark.parametrize("right", [0, 1, 37, 99, 100])
def test_the_bound_is_wilsons_where_answers_are_independent(right: int) -> None:
    shares = np.full(50, right / 100)  # Equal queries: the bootstrap knows of no spread.
    wilson = binomtest(50 * right, 5000).proportion_ci(0.90, method="wilson").low
    assert tuning.lower_bound(shares, 100) == pytest.approx(wilson, abs=1e-5)


def test_a_bound_is_never_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.eye(8, dtype=np.float32)
    flat = faiss.IndexFlatIP(8)
    flat.add(matrix)
    monkeypatch.setattr(tuning, "lower_bound", lambda *_: 0.949996)
    assert tuning.measured_point(flat, matrix, tuning.Truth.of(matrix, matrix, 1)).lower < 0.95


@pytest.mark.parametrize("queries", [FEWEST, 300])
def test_the_bound_lies_below_the_true_recall_in_nineteen_of_twenty_trials(queries: int) -> None:
    rng = np.random.default_rng(4)
    above = 0
    for trial in range(400):
        # Queries differ: each has a recall of its own, whose mean is 0.9.
        shares = rng.binomial(100, rng.beta(9, 1, queries)) / 100
        above += tuning.lower_bound(shares, 100, seed=trial) > 0.9
    assert above / 400 <= 0.08


@pytest.mark.parametrize(
    ("limit", "codes"), [(0, "SQfp16"), (84, "SQfp16"), (60, "SQ8"), (40, "PQ16x4fsr,Refine(SQ4)")]
)
def test_the_type_is_the_most_exact_that_fits_and_its_size_was_estimated(limit: float, codes: str) -> None:
    matrix = clustered(1, 20_000)
    config = IndexConfig(flat_below=1, recall=0.5, bytes_per_document=limit)
    chosen = index_types.choices(len(matrix), DIMENSIONS, config)[0]
    assert chosen.factory == f"IVF{chosen.lists},{codes}"
    ann = index_types.build(chosen, matrix, seed=1)
    ann.add(matrix)
    size = len(faiss.serialize_index(ann)) / len(matrix)
    assert size == pytest.approx(chosen.bytes_per_document, rel=0.05)
    assert not limit or size <= limit
    assert 0 < chosen.seconds(len(matrix), DIMENSIONS) < 3600


def test_a_small_index_is_exact_unless_the_bytes_forbid_it() -> None:
    free = index_types.choices(1000, 64, IndexConfig(recall=0.9))
    assert [index_type.factory for index_type in free] == ["Flat"]
    limited = index_types.choices(1000, 64, IndexConfig(recall=0.9, bytes_per_document=200))
    assert limited[0].factory == "IVF16,SQfp16"
    with pytest.raises(ConfigError, match=r"smallest index of 1,000 documents and 64 dimensions takes 68\.\d bytes"):
        index_types.choices(1000, 64, IndexConfig(recall=0.9, bytes_per_document=10))


@pytest.mark.parametrize("target", [0.7, 0.9, 0.98])
def test_the_stated_recall_holds_for_other_queries(target: float, index_of: Callable[..., Artifact]) -> None:
    matrix = clustered(1, ROWS)
    artifact = index_of(matrix, IndexConfig(flat_below=1, recall=target), held_out())
    metrics = artifact.metrics
    assert metrics["recall_at_100_lower"] >= target
    assert metrics["recall_measured_on"] == "held-out queries"
    index = SemanticIndex.load(artifact.path)
    assert index.stats.nprobe == metrics["nprobe"]
    assert true_recall(index, matrix, clustered(5, 300)) >= target - 0.01
    points = metrics["recall_curve"]
    assert [point["nprobe"] for point in points] == sorted({point["nprobe"] for point in points})
    assert points[-1]["nprobe"] > metrics["nprobe"] or metrics["nprobe"] == 128
    fewer = [point for point in points if point["nprobe"] < metrics["nprobe"]]
    assert fewer
    assert max(point["lower"] for point in fewer) < target
    assert metrics["nprobe"] <= tuning.FINE * fewer[-1]["nprobe"] + 1


def test_the_measured_recall_is_that_of_a_plain_sort(index_of: Callable[..., Artifact]) -> None:
    matrix, queries = clustered(1, ROWS), held_out()
    artifact = index_of(matrix, IndexConfig(flat_below=1, recall=0.9), queries)
    recall = true_recall(SemanticIndex.load(artifact.path), matrix, queries.load())
    assert artifact.metrics["recall_at_100"] == pytest.approx(recall, abs=1e-3)


def test_a_better_type_is_taken_where_one_does_not_keep_the_recall(
    index_of: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = clustered(1, ROWS)
    choices = index_types.choices

    def coarse(rows: int, dimensions: int, config: IndexConfig) -> list[index_types.IndexType]:
        smallest = choices(rows, dimensions, IndexConfig(flat_below=1, recall=0.5, bytes_per_document=40))
        return [*smallest, *choices(rows, dimensions, config)]

    monkeypatch.setattr(index_types, "choices", coarse)
    artifact = index_of(matrix, IndexConfig(flat_below=1, recall=0.985), held_out())
    assert artifact.metrics["factory"].endswith("SQfp16")
    assert list(artifact.metrics["refused"]) == ["IVF128,PQ16x4fsr,Refine(SQ4)"]


def test_a_recall_that_no_type_keeps_within_the_bytes_is_refused(index_of: Callable[..., Artifact]) -> None:
    config = IndexConfig(flat_below=1, recall=0.9999, bytes_per_document=62)
    with pytest.raises(
        ConfigError, match=r"IVF128,SQ8, keeps 0\.9\d+ by its lower bound over 300 queries.*raise the limit"
    ):
        index_of(clustered(1, ROWS), config, held_out())


@pytest.mark.parametrize("flat_below", [1, 50_000])
def test_a_filter_finds_the_same_inside_the_index_as_exactly(
    flat_below: int, index_of: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> float:
        return next(times)

    times = iter([1.0, 2.0] * 3 + [2.0, 1.0])  # Inside, exact: the fourth share is faster exactly.
    monkeypatch.setattr(tuning, "_seconds", slow)
    matrix = clustered(1, ROWS)
    artifact = index_of(matrix, IndexConfig(flat_below=flat_below, recall=0.9), held_out())
    index = SemanticIndex.load(artifact.path)
    assert [rows for rows, _ in index.stats.filters] == [3000, 1200, 600]
    assert [point["rows"] for point in artifact.metrics["filters"]] == [3000, 1200, 600]
    rng = np.random.default_rng(8)
    for count in (6000, 3000, 700, 599, 20, 1, 0):
        rows = np.sort(rng.permutation(ROWS)[:count])
        shares = []
        for query in clustered(6, 30):
            hits = index.search_among(query, 100, rows)
            nearest = rows[np.argsort(-(matrix[rows] @ query), kind="stable")[:100]].tolist()
            assert len(hits) == len(nearest)
            assert {hit.row for hit in hits} <= set(rows.tolist())
            assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.row))
            shares.append(len({hit.row for hit in hits} & set(nearest)) / max(len(nearest), 1))
        least = 0.98 if flat_below > ROWS or count < 600 else 0.88
        assert np.mean(shares) >= least or not count


def test_a_filter_that_the_visited_lists_cannot_fill_is_answered_exactly(index_of: Callable[..., Artifact]) -> None:
    matrix = clustered(1, ROWS)
    index = SemanticIndex.load(index_of(matrix, IndexConfig(flat_below=1, recall=0.5), held_out()).path)
    object.__setattr__(index.stats, "filters", ((1, 1),))
    query = clustered(6, 1)[0]
    farthest = np.sort(np.argsort(matrix @ query)[:200])
    rows = [hit.row for hit in index.search_among(query, 50, farthest)]
    nearest = farthest[np.argsort(-(matrix[farthest] @ query), kind="stable")[:50]].tolist()
    assert len(rows) == 50
    assert len(set(rows) & set(nearest)) >= 49  # fp16 may change the order at the border.


def test_only_a_contract_changes_an_index_and_its_fingerprint(index_of: Callable[..., Artifact]) -> None:
    matrix = clustered(1, 300)
    plain = index_of(matrix, IndexConfig(), held_out())
    assert plain.manifest.config == {"flat_below": 50_000, "nprobe": 16, "seed": 13}
    assert list(plain.manifest.inputs) == ["vectors"]
    assert "filters" not in (plain.path / "index.json").read_text(encoding="utf-8")
    assert "queries.npy" not in plain.manifest.files
    promised = [index_of(matrix, IndexConfig(recall=0.9), held_out(count)).fingerprint for count in (300, 299, 300)]
    assert promised[0] == promised[2] != promised[1]


def test_the_next_index_is_judged_on_the_same_queries(index_of: Callable[..., Artifact]) -> None:
    matrix, config, queries = clustered(1, ROWS), IndexConfig(flat_below=1, recall=0.9), held_out()
    first = index_of(matrix, config, queries)
    kept = HeldOutQueries.of_index(first)
    assert kept is not None
    assert kept.key == queries.key
    np.testing.assert_array_equal(kept.load(), queries.load())
    assert index_of(matrix, config, kept).fingerprint == first.fingerprint
    assert HeldOutQueries.of_index(index_of(matrix, IndexConfig())) is None
    (first.path / "queries.npy").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"queries\.npy: not a readable array"):
        kept.load()


@pytest.mark.parametrize("limit", [0.0, 10_000.0, 100.0])
@pytest.mark.parametrize("count", [1, 2, 50, 700])
def test_few_documents_and_equal_ones_keep_the_contract(
    count: int, limit: float, index_of: Callable[..., Artifact]
) -> None:
    matrix = clustered(3, count)
    matrix[count // 2 :] = matrix[count // 2]
    config = IndexConfig(flat_below=1 if limit else 50_000, recall=0.9, bytes_per_document=limit)
    if count < 3 and limit == 100:  # The centre of its one list alone takes 128 bytes.
        with pytest.raises(ConfigError, match="the smallest index"):
            index_of(matrix, config, held_out())
        return
    index = SemanticIndex.load(index_of(matrix, config, held_out()).path)
    hits = index.search(matrix[0], 100)
    assert len({hit.row for hit in hits}) == min(count, 100)
    assert hits[0].row == 0
    assert hits[0].score == pytest.approx(1, abs=0.02)


def test_queries_come_from_splits_that_training_did_not_see(
    make_data: Callable[..., Artifact], embed: Callable[[Sequence[str]], np.ndarray]
) -> None:
    queries = {f"q{number}": f"query {number}" for number in range(3 * FEWEST)}
    splits = {query: ("train", "valid", "test")[number % 3] for number, query in enumerate(queries)}
    seen: list[str] = []

    def noted(texts: Sequence[str]) -> np.ndarray:
        seen.extend(texts)
        return embed(texts)

    drawn = HeldOutQueries.of_data(make_data(["text"], queries=queries, splits=splits), "digest", noted)
    assert drawn is not None
    assert drawn.load().shape == (2 * FEWEST, 16)
    assert {int(text.split()[1]) % 3 for text in seen} == {1, 2}
    other = HeldOutQueries.of_data(make_data(["text"], queries=queries, splits=splits), "other", noted)
    assert other is not None
    assert other.key != drawn.key
    few = dict(list(queries.items())[: FEWEST - 1])
    assert HeldOutQueries.of_data(make_data(["text"], queries=few), "digest", noted) is None


def test_documents_stand_in_for_queries_where_there_are_none(index_of: Callable[..., Artifact]) -> None:
    artifact = index_of(clustered(1, ROWS), IndexConfig(flat_below=1, recall=0.9))
    assert artifact.metrics["recall_measured_on"] == "documents"
    assert "queries.npy" not in artifact.manifest.files


@pytest.mark.parametrize("wrong", [np.ones((40, 31), np.float32), np.full((40, DIMENSIONS), np.nan, np.float32)])
def test_queries_of_another_encoder_are_refused(wrong: np.ndarray, index_of: Callable[..., Artifact]) -> None:
    with pytest.raises(ArtifactError, match="embed queries and documents with one encoder"):
        index_of(clustered(1, 500), IndexConfig(recall=0.9), HeldOutQueries("wrong", lambda: wrong))


@pytest.mark.parametrize("values", [{"recall": 1.0}, {"recall": -0.1}, {"bytes_per_document": 75.0}])
def test_a_contract_that_cannot_be_kept_is_a_wrong_recipe(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"index\.(recall|bytes_per_document) is"):
        IndexConfig(**values)
