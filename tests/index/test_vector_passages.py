"""Documents in passages: each has a vector, and a document's score is its nearest passage's, by a slow loop of ours."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import semantic_build, vectors
from index.document_reader import content_digest
from index.quality import QualityFilter
from index.semantic import SemanticIndex
from index.vector_texts import DocumentCutter, TextChoice
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig, PassagesConfig
from pipeline.errors import ArtifactError, ConfigError, SchemaError
from pipeline.passages import Passages

RULE = Passages(most=4)
ROOM = 6
"""Words of one passage."""


def unit_vectors(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of 16 dimensions that depend on the text alone."""
    seeds = [int.from_bytes(content_digest(text)[:8], "big") for text in texts]
    drawn = np.array([np.random.default_rng(seed).normal(size=16) for seed in seeds], np.float32).reshape(-1, 16)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


class WordCutter:
    """Cuts texts of single-letter words, and notes which."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        self.seen += texts
        return [spans(text) for text in texts]


def spans(text: str) -> list[tuple[int, int]]:
    words = len(text.split())
    if words <= ROOM:
        return [(0, len(text))]
    return [(2 * first, 2 * last - 1) for first, last in RULE.spans(words, ROOM)]


def texts_of(rng: np.random.Generator, count: int) -> list[str]:
    lengths = rng.choice([1, 3, ROOM, ROOM + 1, 12, 40], size=count)
    return [" ".join(rng.choice(list("abcdefgh"), size=length)) for length in lengths]


def nearest(texts: Sequence[str], query: np.ndarray) -> np.ndarray:
    """The cosine of each text's nearest passage."""
    return np.array([max(unit_vectors([text[a:b] for a, b in spans(text)]) @ query) for text in texts])


def indexed(
    workspace: Path,
    data: Artifact,
    config: IndexConfig,
    previous: tuple[Artifact, Artifact] | None = None,
    embed: Callable[..., Any] = unit_vectors,
    cut: Any = None,
    **options: Any,
) -> tuple[Artifact, Artifact]:
    """The vectors and the index of these documents, over those of an earlier state."""
    known = previous[:1] if previous else ()
    cutter = DocumentCutter(RULE, cut or WordCutter())
    embedded = vectors.make(
        workspace,
        vectors.DocumentEncoder("e", embed),
        data=data,
        previous=known,
        choice=TextChoice(cutter=cutter, **options),
    )
    return embedded, semantic_build.make(workspace, config, vectors=embedded, previous=previous and previous[1])


@pytest.mark.parametrize("config", [IndexConfig(), IndexConfig(flat_below=1)], ids=["exact", "lists"])
@pytest.mark.parametrize("seed", range(3))
def test_a_documents_score_is_that_of_its_nearest_passage(
    seed: int, config: IndexConfig, make_data: Callable[..., Artifact], tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    texts = texts_of(rng, 60)
    embedded, artifact = indexed(tmp_path, make_data(texts), config)
    index = SemanticIndex.load(artifact.path)
    counts = [len(spans(text)) for text in texts]
    assert embedded.metrics["passages"] == sum(counts) > 100
    assert embedded.metrics["in_passages"] == artifact.metrics["in_passages"] == sum(count > 1 for count in counts)
    assert "with_vectors" not in embedded.metrics
    assert index.passages == RULE
    for query in unit_vectors(["one", "two", "three"]):
        exact = nearest(texts, query)
        order = np.lexsort((np.arange(len(texts)), -np.round(exact, 9)))
        np.testing.assert_allclose(index.similarities(query, range(len(texts))), exact, atol=2e-3)
        for k in (1, 7, 60, 500):
            hits = index.search(query, k)
            assert len({hit.row for hit in hits}) == len(hits) == min(k, 60)
            np.testing.assert_allclose([hit.score for hit in hits], exact[order[:k]], atol=2e-3)
            assert [hit.doc_id for hit in hits] == [f"d{hit.row}" for hit in hits]
            np.testing.assert_allclose([hit.score for hit in hits], exact[[hit.row for hit in hits]], atol=2e-3)
        some = np.array([40, 3, 3, 59, 17])
        among = index.search_among(query, 9, some)
        assert sorted(hit.row for hit in among) == [3, 17, 40, 59]
        np.testing.assert_allclose([hit.score for hit in among], sorted(exact[[3, 17, 40, 59]])[::-1], atol=2e-3)


def test_the_nearest_passage_is_told_with_its_place(make_data: Callable[..., Artifact], tmp_path: Path) -> None:
    texts = texts_of(np.random.default_rng(1), 30)
    index = SemanticIndex.load(indexed(tmp_path, make_data(texts), IndexConfig())[1].path)
    (query,) = unit_vectors(["query"])
    passages = index.nearest_passages(query, range(30))
    for row, text in enumerate(texts):
        cuts = spans(text)
        if len(cuts) == 1:
            assert row not in passages
            continue
        best = int(np.argmax(unit_vectors([text[a:b] for a, b in cuts]) @ query))
        passage = passages[row]
        assert ((passage.start, passage.end), passage.number, passage.of) == (cuts[best], best + 1, len(cuts))
    with pytest.raises(SchemaError, match="rows 30 to 30"):
        index.nearest_passages(query, [30])


def test_neighbours_are_near_by_any_passage(make_data: Callable[..., Artifact], tmp_path: Path) -> None:
    long = "a b c d e f g h a b c d"
    part = long[slice(*spans(long)[-1])]
    texts = [long, "h h h", part, *texts_of(np.random.default_rng(2), 20)]
    index = SemanticIndex.load(indexed(tmp_path, make_data(texts), IndexConfig())[1].path)
    hits = index.neighbours(0, 5)
    assert hits[0].row == 2
    assert hits[0].score == pytest.approx(1, abs=1e-6)
    own = unit_vectors([long[a:b] for a, b in spans(long)])
    best = {row: max(nearest([text], vector)[0] for vector in own) for row, text in enumerate(texts) if row}
    expected = sorted(best, key=lambda row: (-best[row], row))[:5]
    np.testing.assert_allclose([hit.score for hit in hits], [best[row] for row in expected], atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_reindex_cuts_and_embeds_what_is_new_and_finds_what_a_fresh_index_finds(
    seed: int, make_data: Callable[..., Artifact], tmp_path: Path
) -> None:
    rng, config = np.random.default_rng(seed), IndexConfig(flat_below=1)
    texts, before, known = texts_of(rng, 80), None, set[str]()
    for number in range(4):
        data, cut, embedded_texts = make_data(texts), WordCutter(), list[str]()

        def embed(batch: Sequence[str], seen: list[str] = embedded_texts) -> np.ndarray:
            seen += batch
            return unit_vectors(batch)

        new = indexed(tmp_path / "segmented", data, config, before, embed, cut)
        if before is not None:
            assert set(cut.seen) == {text for text in texts if text not in known}
            old = {text[a:b] for text in known for a, b in spans(text)}
            assert set(embedded_texts) == {text[a:b] for text in texts for a, b in spans(text)} - old
            assert new[0].metrics["embedded"] == len(set(embedded_texts))
        fresh = indexed(tmp_path / f"fresh{number}", data, config)
        assert [item.fingerprint for item in new] == [item.fingerprint for item in fresh]
        index, expected = (SemanticIndex.load(pair[1].path) for pair in (new, fresh))
        for query in unit_vectors(["x", "y"]):
            exact = nearest(texts, query)
            for searched in (index, expected):
                np.testing.assert_allclose(searched.similarities(query, range(len(texts))), exact, atol=2e-3)
                hits = searched.search(query, len(texts))
                assert sorted(hit.row for hit in hits) == list(range(len(texts)))
                np.testing.assert_allclose([hit.score for hit in hits], np.sort(exact)[::-1], atol=2e-3)
        before, known = new, set(texts)
        # Some documents leave, some come, and some change at their end alone.
        kept = [text for text in texts if rng.random() > 0.01]
        texts = [text + " a b" if rng.random() < 0.03 else text for text in kept] + texts_of(rng, 2)
    assert list(tmp_path.glob("segmented/artifacts/index/*/segments.json"))


def test_a_filter_leaves_documents_out_and_passages_follow(make_data: Callable[..., Artifact], tmp_path: Path) -> None:
    texts = texts_of(np.random.default_rng(4), 30)
    data = make_data(texts, columns={"up": [row % 3 * 20 for row in range(30)], "down": [0] * 30})
    embedded, artifact = indexed(tmp_path, data, IndexConfig(), quality=QualityFilter("up", "down", 0.5))
    index = SemanticIndex.load(artifact.path)
    (query,) = unit_vectors(["query"])
    exact = np.where(np.arange(30) % 3 > 0, nearest(texts, query), 0)
    np.testing.assert_allclose(index.similarities(query, range(30)), exact, atol=1e-5)
    assert {hit.row for hit in index.search(query, 99)} == {row for row in range(30) if row % 3}
    assert (embedded.metrics["with_vectors"], embedded.metrics["documents"]) == (20, 30)
    assert index.neighbours(0, 3) == []


def test_bytes_are_counted_by_document(make_data: Callable[..., Artifact], tmp_path: Path) -> None:
    texts = ["a b c d e f g h a b c d"] * 3 + ["a"]
    data = make_data([f"{text} {'abcd'[row]}" for row, text in enumerate(texts)])
    artifact = indexed(tmp_path, data, IndexConfig())[1]
    assert artifact.metrics["passages"] == 13
    assert artifact.metrics["bytes_per_document"] == pytest.approx(13 * 64 / 4, abs=30)


def test_a_document_that_is_cut_into_nothing_is_named(make_data: Callable[..., Artifact], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="document 'd1' was cut into no passage"):
        indexed(tmp_path, make_data(["a", "b"]), IndexConfig(), cut=lambda texts: [[(0, 1)], []])


def test_an_index_has_one_best_passage() -> None:
    assert IndexConfig(passages=PassagesConfig(most=8)).passages.passages(None) == Passages(most=8)
    with pytest.raises(ConfigError, match=r"index\.passages\.best is 3"):
        IndexConfig(passages=PassagesConfig(most=8, best=3))
