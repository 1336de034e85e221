"""Sets like ArguAna, where a query is a document: no search, pair, pool, loss or report joins the two."""

import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval

from index import lexical, lexical_build
from pipeline import schema
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, EvaluationConfig, IndexConfig
from pipeline.data import candidates, unlabelled
from pipeline.evaluation import report
from pipeline.evaluation.metrics import evaluate
from pipeline.evaluation.runs import RunFile
from tests.tables import stage

WORDS = [f"word{number}" for number in range(14)]
CONFIG = CandidatesConfig(negatives=4, negatives_depth=12, retrieve=6, unlabelled=2.0, unlabelled_depth=9, max_list=3)


def world(folder: Path, seed: int) -> tuple[Artifact, set[str]]:
    """Data whose ids are all drawn from one range, and the ids of the queries that are documents.

    A third of the queries have a document's text and its id, a third its id alone, a third neither.
    """
    rng = random.Random(seed)
    documents = [
        {"doc_id": str(number), "title": rng.choice(["", "a title"]), "text": " ".join(rng.choices(WORDS, k=6))}
        for number in range(40)
    ]
    queries, own = [], set()
    for number, document in enumerate(rng.sample(documents, 24)):
        text, query_id = " ".join(rng.choices(WORDS, k=3)), document["doc_id"]
        if number % 3 == 0:
            text = document["text"] if number % 2 else f"  {document['text'].upper()}"
            own.add(query_id)
        elif number % 3 == 1:
            query_id = f"q{number}"
        queries.append({"query_id": query_id, "text": text})
    judgments = [
        {"query_id": query["query_id"], "doc_id": doc_id, "grade": rng.randint(0, 3), "source": "human", "split": split}
        for query in queries
        for split in [rng.choice(schema.SPLITS)]
        for doc_id in {*(d["doc_id"] for d in rng.sample(documents, 5)), query["query_id"]}
        if not doc_id.startswith("q")
    ]
    tables = {"documents": documents, "queries": queries, "judgments": judgments}
    return stage(folder, "data", {name: pa.Table.from_pylist(rows) for name, rows in tables.items()}), own


def joined(artifact: Artifact, file: str, own: set[str]) -> list[str]:
    """The queries that a table of pairs joins with the document that they are."""
    rows = pq.read_table(artifact.file(file)).to_pylist()
    return [row["query_id"] for row in rows if row["query_id"] == row["doc_id"] and row["query_id"] in own]


@pytest.mark.parametrize("seed", range(8))
def test_no_run_and_no_table_of_pairs_joins_a_query_with_itself(tmp_path: Path, seed: int) -> None:
    data, own = world(tmp_path, seed)
    assert schema.own_documents(data.path) == own
    index = lexical_build.make(tmp_path, IndexConfig(language="english"), data=data)
    run = lexical.run(tmp_path, lexical=index, data=data, depth=12, splits=schema.SPLITS)
    searched = lexical.LexicalIndex.load(index.path)
    texts = dict(zip(*pq.read_table(data.file("queries.parquet")).to_pydict().values(), strict=True))
    for query_id, rows in pq.read_table(run.file("run.parquet")).to_pandas().groupby("query_id"):
        hits = [hit.doc_id for hit in searched.search(texts[str(query_id)], 13)]
        expected = [doc_id for doc_id in hits if not (query_id in own and doc_id == query_id)][:12]
        assert rows.sort_values("rank")["doc_id"].tolist() == expected

    frame = pq.read_table(run.file("run.parquet")).to_pandas()
    itself = pd.DataFrame({"query_id": sorted(own), "doc_id": sorted(own), "rank": 1, "score": 99.0, "system": "bm25"})
    frame["rank"] += 1  # As an earlier version or another program wrote it: the query itself first.
    foreign = stage(tmp_path, "run", {"run": pa.Table.from_pandas(pd.concat([itself, frame]), preserve_index=False)})
    for chosen in (run, foreign):
        pairs = candidates.pairs(tmp_path, CONFIG, data=data, run=chosen)
        pool = candidates.pool(tmp_path, CONFIG, data=data, runs=[chosen])
        mined = candidates.mined(tmp_path, 9, data=data, pairs=pairs, runs=[chosen])
        for artifact in (pairs, pool, mined):
            assert joined(artifact, "pairs.parquet", own) == []
        ids = {row["query_id"] for row in pq.read_table(pairs.file("pairs.parquet")).to_pylist()}
        assert ids & own, "these queries are still learned from"


def test_unlabelled_pairs_do_not_join_a_query_with_itself(tmp_path: Path) -> None:
    data, own = world(tmp_path, 3)
    index = lexical_build.make(tmp_path, IndexConfig(language="english"), data=data)
    run = lexical.run(tmp_path, lexical=index, data=data, depth=12, splits=schema.SPLITS)
    pairs = candidates.pairs(tmp_path, CONFIG, data=data, run=run)
    queries = unlabelled.queries(tmp_path, CONFIG, data=data)
    results = lexical.run(tmp_path, lexical=index, data=queries, depth=9, splits=())
    assert joined(results, "run.parquet", own), "these queries stand alone, so the search cannot know"
    added = unlabelled.pairs(tmp_path, CONFIG, data=data, labelled=pairs, asked=queries, run=results)
    lists = pq.read_table(added.file("queries.parquet")).to_pandas().set_index("query_id")["asked"]
    rows = pq.read_table(added.file("pairs.parquet")).to_pandas()
    rows = rows[rows["split"] == schema.UNLABELLED]
    assert len(rows)
    assert not (rows["query_id"].map(lists) == rows["doc_id"]).where(rows["doc_id"].isin(own), False).any()


@pytest.mark.parametrize("seed", range(4))
def test_a_run_file_is_judged_as_trec_eval_does_after_the_removal(tmp_path: Path, seed: int) -> None:
    data, own = world(tmp_path, seed)
    rng = random.Random(seed)
    judgments = pq.read_table(data.file("judgments.parquet")).to_pylist()
    doc_ids = pq.read_table(data.file("documents.parquet")).column("doc_id").to_pylist()
    run: dict[str, dict[str, float]] = {
        query: {query: 2.0} | {doc_id: rng.random() for doc_id in rng.sample(doc_ids, 20)} if query in own else
        {doc_id: rng.random() for doc_id in rng.sample(doc_ids, 20)}
        for query in {row["query_id"] for row in judgments}
    }  # fmt: skip
    lines = (f"{query} Q0 {doc_id} 1 {score!r} s\n" for query, docs in run.items() for doc_id, score in docs.items())
    (tmp_path / "run.txt").write_text("".join(lines))
    config = EvaluationConfig(bootstrap=20)
    plan = report.ReportPlan(title="run", split=None)
    systems = {"s": RunFile(tmp_path / "run.txt")}
    judged = report.make_from_run(tmp_path, config, data=data, systems=systems, plan=plan)
    values = pq.read_table(judged.file("per_query.parquet")).to_pandas().set_index("query_id")

    def kept(query: str, doc_id: str) -> bool:
        return not (query in own and doc_id == query)

    qrels: dict[str, dict[str, int]] = {}
    for row in judgments:
        if kept(row["query_id"], row["doc_id"]):
            qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["grade"]
    ranked = {query: {name: s for name, s in docs.items() if kept(query, name)} for query, docs in run.items()}
    expected = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map", "recip_rank"}).evaluate(ranked)
    assert set(values.index) == set(qrels)
    for query, measures in expected.items():
        for theirs, ours in (("ndcg_cut_10", "ndcg@10"), ("map", "map"), ("recip_rank", "mrr")):
            assert values.loc[query, ours] == pytest.approx(measures[theirs], abs=1e-9), (query, ours)
    with_itself = evaluate(_table(run), pa.Table.from_pylist(judgments), ["mrr"]).mean("mrr")
    reported = json.loads(judged.file("report.json").read_text())["systems"]["s"]["measures"]["mrr"]["mean"]
    assert reported == pytest.approx(values["mrr"].mean())
    assert abs(with_itself - reported) > 1e-3


def _table(run: dict[str, dict[str, float]]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {"query_id": query, "doc_id": doc_id, "score": score}
        for query, documents in run.items()
        for doc_id, score in documents.items()
    ]
    return pa.Table.from_pylist(rows)


def test_numbered_sets_keep_documents_of_the_same_number(tmp_path: Path) -> None:
    """Cranfield numbers queries and documents both from 1; a query there is not the document of its number."""
    tables = {
        "documents": [{"doc_id": "1", "title": "slipstream of a wing", "text": "what a wing does"}],
        "queries": [{"query_id": "1", "text": "what does a wing do"}],
        "judgments": [{"query_id": "1", "doc_id": "1", "grade": 2, "source": "human", "split": "test"}],
    }
    data = stage(tmp_path, "data", {name: pa.Table.from_pylist(rows) for name, rows in tables.items()})
    assert schema.own_documents(data.path) == set()
    index = lexical_build.make(tmp_path, IndexConfig(language="english"), data=data)
    run = lexical.run(tmp_path, lexical=index, data=data, depth=5, splits=("test",))
    pool = candidates.pool(tmp_path, CONFIG, data=data, runs=[run])
    assert len(pq.read_table(pool.file("pairs.parquet"))) == 1
