import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import pytrec_eval

from index import analyzer, lexical, lexical_build, postings, segments
from index.analyzer import analyser
from index.lexical import LexicalIndex
from pipeline import artifacts, schema
from pipeline.artifacts import MANIFEST, Artifact
from pipeline.config import IndexConfig
from pipeline.errors import ArtifactError, ConfigError, MissingError, SchemaError

WORDS = ["apple", "pear", "苹果", "手机", "read_csv", "DataFrame", "10mm", "the", "a", "of", "run", "running"]


def random_texts(rng: np.random.Generator, count: int) -> list[str]:
    return [" ".join(rng.choice(WORDS, size=rng.integers(0, 12))) for _ in range(count)]


def lucene(texts: list[str], query: str, config: IndexConfig, scored: list[str] | None = None) -> list[float]:
    """BM25 as Lucene computes it, without its constant factor, straight from the formula.

    Args:
        texts: the documents, whose terms and lengths count.
        scored: the texts that get a score; the documents where None.
    """
    analyse, k1, b = analyser(config.language), config.k1, config.b
    documents = [Counter(analyse(text)) for text in texts]
    mean = sum(document.total() for document in documents) / len(documents)
    scores = []
    for document in documents if scored is None else [Counter(analyse(text)) for text in scored]:
        length, score = document.total(), 0.0
        for term in analyse(query):
            frequency = document[term]
            holders = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - holders + 0.5) / (holders + 0.5))
            score += idf * frequency / (frequency + k1 * (1 - b + b * length / mean)) if frequency and holders else 0.0
        scores.append(score)
    return scores


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_those_of_the_formula(seed: int, tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    rng = np.random.default_rng(seed)
    texts = random_texts(rng, 60)
    config = IndexConfig(k1=float(rng.uniform(0.3, 2)), b=float(rng.uniform()), language=["", "english"][seed % 2])
    index = LexicalIndex.load(lexical_build.make(tmp_path, config, data=make_data(texts)).path)
    for query in [*random_texts(rng, 5), "apple apple 苹果手机", "runs"]:
        expected = np.array(lucene(texts, query, config))
        np.testing.assert_allclose(index.scores(query, range(60)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_a_text_has_the_score_that_it_would_have_as_a_document(
    seed: int, tmp_path: Path, make_data: Callable[..., Artifact]
) -> None:
    rng = np.random.default_rng(seed)
    texts, unindexed = random_texts(rng, 60), ["apple banana apple", "", "unknown words", *random_texts(rng, 5)]
    config = IndexConfig(language=["", "english"][seed % 2], b=[0.4, 1.0][seed % 2])
    index = LexicalIndex.load(lexical_build.make(tmp_path, config, data=make_data(texts)).path)
    for query in [*random_texts(rng, 5), "apple apple 苹果手机", "runs"]:
        np.testing.assert_array_equal(index.text_scores(query, texts), index.scores(query, range(60)))
        expected = lucene(texts, query, config, unindexed)
        np.testing.assert_allclose(index.text_scores(query, unindexed), expected, rtol=1e-5, atol=1e-6)
    assert index.text_scores("apple", []).shape == (0,)


@pytest.mark.parametrize("seed", range(6))
def test_search_is_the_sorted_scores(seed: int, tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    rng = np.random.default_rng(seed)
    texts = random_texts(rng, 30) * 2  # Each twice, so that ties abound.
    index = LexicalIndex.load(lexical_build.make(tmp_path, IndexConfig(), data=make_data(texts)).path)
    for query in random_texts(rng, 8):
        scores = index.scores(query, range(60)).tolist()
        order = sorted((row for row in range(60) if scores[row] > 0), key=lambda row: (-scores[row], row))
        for k in (1, 3, 10, 59, 60, 1000):
            hits = index.search(query, k)
            assert [(hit.row, hit.score) for hit in hits] == [(row, scores[row]) for row in order[:k]]
            assert [hit.doc_id for hit in hits] == [f"d{hit.row}" for hit in hits]


def test_queries_that_find_nothing_give_an_empty_list(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    index = LexicalIndex.load(lexical_build.make(tmp_path, IndexConfig(), data=make_data(["apple pear", ""])).path)
    for query in ("", " ", "unknown", "\x00", "\ud800", "!?", "未知", "\U0001f34f" * 3):
        assert index.search(query, 5) == []
        assert index.scores(query, [0, 1]).tolist() == [0, 0]
    assert index.search("apple", 0) == index.search("apple", -1) == []
    assert index.scores("apple", []).shape == (0,)
    assert [hit.row for hit in index.search("apple " * 200_000, 5)] == [0]


def test_one_document_is_found(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    index = LexicalIndex.load(lexical_build.make(tmp_path, IndexConfig(), data=make_data(["三江有哪三江"])).path)
    (hit,) = index.search("三江", 10)
    assert (hit.row, hit.doc_id) == (0, "d0")
    assert hit.score > 0


def test_title_and_text_are_both_searched(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    data = make_data(["pear", "plum"], columns={"title": ["apple", "cherry"]})
    index = LexicalIndex.load(lexical_build.make(tmp_path, IndexConfig(), data=data).path)
    assert [hit.row for hit in index.search("apple", 5)] == [hit.row for hit in index.search("pears", 5)] == [0]
    assert index.doc_ids == ["d0", "d1"]


@pytest.mark.parametrize(("texts", "reason"), [([], "no document"), (["", "!?"], "not one word in 2 documents")])
def test_nothing_to_index_is_an_error_that_leaves_nothing(
    texts: list[str], reason: str, tmp_path: Path, make_data: Callable[..., Artifact]
) -> None:
    with pytest.raises(SchemaError, match=reason):
        lexical_build.make(tmp_path, IndexConfig(), data=make_data(texts))
    assert [path.name for path in (tmp_path / "artifacts" / "lexical").iterdir() if path.is_dir()] == []


def test_an_unknown_language_is_refused_before_any_work(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    with pytest.raises(ConfigError, match="klingon"):
        lexical_build.make(tmp_path, IndexConfig(language="klingon"), data=make_data(["apple"]))


def test_rows_that_are_not_there_are_named(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    index = LexicalIndex.load(lexical_build.make(tmp_path, IndexConfig(), data=make_data(["apple", "pear"])).path)
    for rows in ([2], [-1]):
        with pytest.raises(SchemaError, match="there are 0 to 1"):
            index.scores("apple", rows)


def test_threads_find_what_one_finds(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    rng = np.random.default_rng(3)
    index = LexicalIndex.load(lexical_build.make(tmp_path, IndexConfig(), data=make_data(random_texts(rng, 500))).path)
    queries = random_texts(rng, 200)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda query: index.search(query, 20), queries))
    assert together == [index.search(query, 20) for query in queries]


def test_a_damaged_file_is_refused_by_name(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    artifact = lexical_build.make(tmp_path, IndexConfig(), data=make_data(["apple pear", "plum"]))
    for name in artifact.manifest.files:
        path = artifact.path / name
        intact = path.read_bytes()
        path.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
        with pytest.raises(ArtifactError, match=name):
            LexicalIndex.load(artifact.path)
        path.write_bytes(intact[:-1])
        with pytest.raises(ArtifactError, match=name):
            LexicalIndex.load(artifact.path, verify=False)
        path.write_bytes(intact)
    assert LexicalIndex.load(artifact.path).search("plum", 1)[0].row == 1
    with pytest.raises(MissingError):
        LexicalIndex.load(tmp_path / "nowhere")


def test_pickled_arrays_and_files_of_another_index_are_refused(
    tmp_path: Path, make_data: Callable[..., Artifact], resealed: Callable[..., Path]
) -> None:
    artifact = lexical_build.make(tmp_path, IndexConfig(), data=make_data(["apple pear", "plum"]))

    def pickled(folder: Path) -> None:
        np.save(folder / "counts.npy", np.array([print], object), allow_pickle=True)

    with pytest.raises(ArtifactError, match=r"counts\.npy"):
        LexicalIndex.load(resealed(artifact, pickled))

    def other_words(folder: Path) -> None:
        (folder / "terms.json").write_text('["apple"]')

    with pytest.raises(ArtifactError, match="do not belong together"):
        LexicalIndex.load(resealed(artifact, other_words))

    def no_json(folder: Path) -> None:
        (folder / "terms.json").write_bytes(b"\xff{")

    with pytest.raises(ArtifactError, match=r"terms\.json"):
        LexicalIndex.load(resealed(artifact, no_json))

    def rows_swapped(folder: Path) -> None:
        table = pq.read_table(folder / "ids.parquet")
        pq.write_table(table.take([1, 0]), folder / "ids.parquet")

    with pytest.raises(ArtifactError, match=r"ids\.parquet.*in order"):
        LexicalIndex.load(resealed(artifact, rows_swapped))


def test_a_run_ranks_the_queries_of_its_splits(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    queries = {"q1": "apple", "q2": "pear", "q3": "unknown", "q4": "plum apple"}
    data = make_data(
        ["apple pie", "apple", "pear", "plum"],
        queries=queries,
        splits={"q1": "valid", "q2": "train", "q3": "valid", "q4": "test"},
    )
    index = lexical_build.make(tmp_path, IndexConfig(), data=data)
    run = lexical.run(tmp_path, lexical=index, data=data, depth=2, splits=["test", "valid"])
    table = schema.read(run.file("run.parquet"), "run").to_pylist()
    searched = LexicalIndex.load(index.path)
    assert table == [
        {"query_id": query, "doc_id": hit.doc_id, "rank": rank, "score": hit.score, "system": "bm25"}
        for query in ("q1", "q3", "q4")
        for rank, hit in enumerate(searched.search(queries[query], 2), start=1)
    ]
    assert {key: run.metrics[key] for key in ("queries", "queries_without_hits", "hits")} == {
        "queries": 3,
        "queries_without_hits": 1,
        "hits": 4,
    }
    again = lexical.run(tmp_path, lexical=index, data=data, depth=2, splits=["valid", "test"])
    assert again.fingerprint == run.fingerprint
    with pytest.raises(ConfigError, match="no split called dev"):
        lexical.run(tmp_path, lexical=index, data=data, depth=2, splits=["dev"])


def test_the_service_loads_nothing_heavy(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    from index import documents, semantic_build, vectors

    data = make_data(["apple", "pear"])
    paths = [
        lexical_build.make(tmp_path, IndexConfig(), data=data).path,
        documents.make(tmp_path, data=data).path,
        semantic_build.make(
            tmp_path,
            IndexConfig(),
            vectors=vectors.make(
                tmp_path, vectors.DocumentEncoder("e", lambda texts: np.eye(2)[: len(texts)]), data=data
            ),
        ).path,
    ]
    program = (
        "import sys, index.analyzer, index.hits\n"
        "from index.lexical import LexicalIndex\nfrom index.documents import DocumentStore\n"
        "from index.semantic import SemanticIndex\n"
        "LexicalIndex.load(P[0]).search('apple', 1); DocumentStore.load(P[1]).get(0)\n"
        "SemanticIndex.load(P[2]).search([1, 0], 1)\n"
        "heavy = ('torch', 'transformers', 'sklearn', 'pandas', 'scipy', 'bm25s')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    program = f"from pathlib import Path\nP = [Path(path) for path in {[str(path) for path in paths]}]\n" + program
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def judged(folder: Path, split: str | None, config: IndexConfig, tmp_path: Path, *, whole_collection: bool) -> float:
    """Mean nDCG@10 (linear gain) by trec_eval of BM25 over judged lists, or over the whole collection."""

    def build(staging: artifacts.Staging) -> dict[str, Any]:
        pq.write_table(pq.read_table(folder / "corpus.parquet"), staging.folder / "documents.parquet")
        return {}

    data = artifacts.make(tmp_path, "data", version=1, config={"folder": folder.name}, inputs={}, build=build)
    index = LexicalIndex.load(lexical_build.make(tmp_path, config, data=data).path)
    row_of = {doc_id: row for row, doc_id in enumerate(index.doc_ids)}
    texts = {row["query_id"]: row["text"] for row in pq.read_table(folder / "queries.parquet").to_pylist()}
    qrels: dict[str, dict[str, int]] = {}
    for row in pq.read_table(folder / "qrels.parquet").to_pylist():
        if split in (None, row["split"]):
            qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["grade"]
    run = {}
    for query_id, grades in qrels.items():
        if whole_collection:
            run[query_id] = {hit.doc_id: hit.score for hit in index.search(texts[query_id], 100)}
        else:
            scores = index.scores(texts[query_id], [row_of[doc_id] for doc_id in grades])
            run[query_id] = dict(zip(grades, scores.tolist(), strict=True))
    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    return sum(values.get(query_id, {}).get("ndcg_cut_10", 0.0) for query_id in qrels) / len(qrels)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "split", "k1", "whole_collection", "least"),
    [
        ("qbqtc_v1", "valid", 0.6, False, 0.865),
        ("qbqtc_v1", None, 0.6, False, 0.830),
        ("crowdflower", "valid", 1.2, False, 0.854),
        ("crowdflower", None, 1.2, False, 0.857),
        ("vaswani", None, 1.2, True, 0.431),
        ("cranfield", None, 1.2, True, 0.472),
    ],
)
def test_terms_and_weights_rank_real_judgments_well(
    name: str, split: str | None, k1: float, whole_collection: bool, least: float, tmp_path: Path, shared_data: Path
) -> None:
    # Published with the sets: 0.865 qbqtc_v1 valid, 0.843 crowdflower, 0.370 vaswani.
    assert judged(shared_data / name, split, IndexConfig(k1=k1), tmp_path, whole_collection=whole_collection) >= least


def weighed_by_bm25s(texts: list[str], config: IndexConfig) -> Callable[[Path], None]:
    """Replaces the files of a lexical index by those that were written before segments."""
    import bm25s

    def change(folder: Path) -> None:
        vocabulary: dict[str, int] = {}
        analyse = analyser(config.language)
        counted = [[vocabulary.setdefault(term, len(vocabulary)) for term in analyse(text)] for text in texts]
        bm25 = bm25s.BM25(method="lucene", k1=config.k1, b=config.b)
        bm25.index((counted, vocabulary), create_empty_token=False, show_progress=False)
        for name in (*postings.FILES, segments.DIGESTS):
            (folder / name).unlink()
        bm25.save(folder)

    return change


@pytest.mark.parametrize("seed", range(3))
def test_an_index_of_bm25s_is_searched_and_indexed_over_as_before(
    seed: int, tmp_path: Path, make_data: Callable[..., Artifact], resealed: Callable[..., Path]
) -> None:
    rng = np.random.default_rng(seed)
    texts, config = random_texts(rng, 200), IndexConfig(k1=0.9, b=0.4)
    artifact = lexical_build.make(tmp_path, config, data=make_data(texts))
    path = resealed(artifact, weighed_by_bm25s(texts, config))
    old, new = LexicalIndex.load(path), LexicalIndex.load(artifact.path)
    for query in [*random_texts(rng, 8), "apple apple 苹果手机", "unknown"]:
        np.testing.assert_allclose(old.scores(query, range(200)), new.scores(query, range(200)), rtol=1e-6)
        np.testing.assert_allclose(
            [hit.score for hit in old.search(query, 9)], [hit.score for hit in new.search(query, 9)], rtol=1e-6
        )
        assert old.term_scores(query, [3, 7]) == [pytest.approx(terms) for terms in new.term_scores(query, [3, 7])]
    with pytest.raises(MissingError, match="older than BM25 of texts"):
        old.text_scores("apple", ["an apple"])
    over = lexical_build.make(
        tmp_path / "over", config, data=make_data([*texts, "pear"]), previous=artifacts.load(path)
    )
    assert "segments" not in over.metrics
    assert len(LexicalIndex.load(over.path).doc_ids) == 201

    def scores_damaged(folder: Path) -> None:
        weighed_by_bm25s(texts, config)(folder)
        scores = np.load(folder / "data.csc.index.npy")
        scores[0] = np.nan
        np.save(folder / "data.csc.index.npy", scores)

    with pytest.raises(ArtifactError, match="not finite"):
        LexicalIndex.load(resealed(artifact, scores_damaged))


def test_an_index_that_knew_no_acute_accent_as_an_apostrophe_finds_as_before(
    tmp_path: Path, make_data: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a shelf", "I don\u00b4t know"]
    with monkeypatch.context() as earlier:
        earlier.setattr(analyzer, "VERSION", 3)
        old = lexical_build.make(tmp_path, IndexConfig(), data=make_data(texts))
    assert LexicalIndex.load(old.path).search("don't", 5) == []
    assert [hit.row for hit in LexicalIndex.load(old.path).search("don\u00b4t", 5)] == [1]
    new = lexical_build.make(tmp_path, IndexConfig(), data=make_data(texts), previous=old)
    assert [hit.row for hit in LexicalIndex.load(new.path).search("don't", 5)] == [1]


@pytest.mark.parametrize("version", [1, 2])
def test_an_index_of_an_earlier_analysis_is_searched_with_it_and_shares_no_segment(
    version: int,
    tmp_path: Path,
    make_data: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = [*(f"shelf number {row}" for row in range(40)), "a Wi\u2011Fi router", "a wifi stick"]
    with monkeypatch.context() as earlier:
        earlier.setattr(analyzer, "VERSION", version)
        old = lexical_build.make(tmp_path, IndexConfig(), data=make_data(texts))
    assert old.manifest.config["analysis"] == version
    assert [hit.row for hit in LexicalIndex.load(old.path).search("wifi", 5)] == [41]
    assert [hit.row for hit in LexicalIndex.load(old.path).search("Wi\u2013Fi", 5)] == [40]
    with caplog.at_level("INFO"):
        new = lexical_build.make(tmp_path, IndexConfig(), data=make_data([*texts, "one more"]), previous=old)
    assert f"words of analysis {version}" in caplog.text
    assert "segments" not in new.metrics
    for query in ("wifi", "Wi-Fi", "wi\u2212fi"):
        assert {hit.row for hit in LexicalIndex.load(new.path).search(query, 5)} == {40, 41}
    again = lexical_build.make(
        tmp_path, IndexConfig(), data=make_data([*texts, "one more", "and another"]), previous=new
    )
    assert again.metrics["segments"] == 2


def test_the_manifest_is_the_last_word_on_the_language(tmp_path: Path, make_data: Callable[..., Artifact]) -> None:
    data = make_data(["running horses"])
    stemmed = LexicalIndex.load(lexical_build.make(tmp_path, IndexConfig(language="english"), data=data).path)
    whole_words = lexical_build.make(tmp_path, IndexConfig(language=""), data=data)
    assert stemmed.search("run", 1)
    assert not LexicalIndex.load(whole_words.path).search("run", 1)
    assert (whole_words.path / MANIFEST).is_file()


@pytest.mark.parametrize("head", [" " * 5000, "\n\t" * 3000, "-" * 5000, "\u00ad" * 5000])
def test_a_query_is_bounded_by_its_terms_and_not_by_its_characters(
    tmp_path: Path, make_data: Callable[..., Artifact], head: str
) -> None:
    index = LexicalIndex.load(
        lexical_build.make(tmp_path, IndexConfig(), data=make_data(["apple", "pear", "run"])).path
    )
    assert index.search(f"{head}pear", 3) == index.search("pear", 3) != []
    # The 4,096 terms before it are searched for, the unindexed not.
    assert [hit.row for hit in index.search("zebra " * 4095 + "run pear", 3)] == [2]
