"""The quality filter: which documents get vectors, and what searches do with the others."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from index import semantic_build, vectors
from index.quality import QualityFilter, wilson
from index.semantic import SemanticIndex
from index.vector_texts import TextChoice
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from pipeline.errors import ConfigError, SchemaError

COUNT = 300
VOTES = QualityFilter("up", "down", 0.5)


@pytest.fixture
def data(make_data: Callable[..., Artifact]) -> Artifact:
    rng = np.random.default_rng(3)
    columns = {"up": rng.integers(0, 40, COUNT).tolist(), "down": rng.integers(0, 20, COUNT).tolist()}
    columns["up"][7] = columns["down"][7] = 0
    return make_data([f"text {row}" for row in range(COUNT)], columns=columns)


def test_the_bound_is_that_of_scipy() -> None:
    for up, down in [(0, 1), (1, 0), (5, 0), (90, 10), (3, 4), (100_000, 1)]:
        expected = binomtest(up, up + down).proportion_ci(0.95, method="wilson").low
        assert wilson([up], [down])[0] == pytest.approx(expected, abs=1e-6)
    assert wilson([0], [0])[0] == 0


@pytest.mark.parametrize("config", [{}, {"flat_below": 1, "nprobe": 64}, {"recall": 0.9}])
def test_a_search_is_that_among_the_kept_documents(
    config: dict[str, float], data: Artifact, tmp_path: Path, embed: Callable[[Sequence[str]], np.ndarray]
) -> None:
    kept = VOTES.kept(data)
    assert 50 < len(kept) < COUNT - 50
    assert 7 not in kept
    vector_artifact = vectors.make(
        tmp_path, vectors.DocumentEncoder("e", embed), data=data, choice=TextChoice(quality=VOTES)
    )
    matrix = embed([f"text {row}" for row in range(COUNT)])
    np.testing.assert_array_equal(np.load(vector_artifact.file("vectors.npy")), matrix[kept])
    artifact = semantic_build.make(tmp_path, IndexConfig(**config), vectors=vector_artifact)
    assert (artifact.metrics["documents"], artifact.metrics["with_vectors"]) == (COUNT, len(kept))
    index = SemanticIndex.load(artifact.path)
    dropped = np.setdiff1d(np.arange(COUNT), kept)
    for query in embed([f"query {number}" for number in range(10)]):
        cosines = matrix @ query
        expected = kept[np.argsort(-cosines[kept])[:10]].tolist()
        hits = index.search(query, 10)
        assert len({hit.row for hit in hits} & set(expected)) >= 9
        assert [hit.doc_id for hit in hits] == [f"d{hit.row}" for hit in hits]
        among = np.arange(50, 250)
        both = np.intersect1d(among, kept)
        hit_rows = [hit.row for hit in index.search_among(query, 400, among)]
        assert sorted(hit_rows) == both.tolist()
        assert len(set(hit_rows[:10]) & set(both[np.argsort(-cosines[both])[:10]].tolist())) >= 9
        rows = np.arange(COUNT)
        np.testing.assert_allclose(index.similarities(query, rows)[kept], cosines[kept], atol=2e-3)
        assert not index.similarities(query, rows)[dropped].any()
    with pytest.raises(SchemaError, match=f"there are 0 to {COUNT - 1}"):
        index.similarities(matrix[0], [COUNT])


def test_the_filter_is_part_of_the_fingerprint_and_known_vectors_are_used_again(
    data: Artifact, tmp_path: Path, embed: Callable[[Sequence[str]], np.ndarray]
) -> None:
    everything = vectors.make(tmp_path, vectors.DocumentEncoder("e", embed), data=data)
    assert "with_vectors" not in everything.metrics
    filtered = vectors.make(
        tmp_path,
        vectors.DocumentEncoder("e", embed),
        data=data,
        previous=[everything],
        choice=TextChoice(quality=VOTES),
    )
    assert filtered.metrics["embedded"] == 0
    other = vectors.make(
        tmp_path,
        vectors.DocumentEncoder("e", embed),
        data=data,
        choice=TextChoice(quality=QualityFilter("up", "down", 0.4)),
    )
    assert len({everything.fingerprint, filtered.fingerprint, other.fingerprint}) == 3


def test_columns_that_count_no_votes_are_refused(make_data: Callable[..., Artifact]) -> None:
    texts = ["a", "b"]
    with pytest.raises(SchemaError, match=r"no column 'up'.*doc_id, title, text"):
        VOTES.kept(make_data(texts))
    for wrong, message in ([1.0, -1.0], "row 2: up is -1"), ([float("nan"), 1.0], "row 1: up is nan"):
        with pytest.raises(SchemaError, match=message):
            VOTES.kept(make_data(texts, columns={"up": wrong, "down": [0.0, 0.0]}))
    with pytest.raises(SchemaError, match=r"column 'up'.*not of numbers"):
        VOTES.kept(make_data(texts, columns={"up": ["many", "few"], "down": [0, 0]}))
    with pytest.raises(SchemaError, match=r"no document of 2 passes.*the best has 0\.342"):
        VOTES.kept(make_data(texts, columns={"up": [2, None], "down": [0, 0]}))


@pytest.mark.parametrize("values", [{"votes": ("up",)}, {"votes": ("up", "down")}, {"least_quality": 0.5}])
def test_half_a_filter_is_a_wrong_recipe(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"index\.votes is"):
        IndexConfig(**values)
