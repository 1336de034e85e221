"""Mined negatives: what searches found and nobody judged, less what the teacher takes for relevant."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.artifacts import Artifact
from pipeline.config import MiningConfig
from pipeline.data import candidates
from pipeline.errors import ArtifactError, SchemaError
from pipeline.training import negatives
from tests.tables import stage

QUERIES, DOCUMENTS, FOUND = 12, 40, 15
CONFIG = MiningConfig(rounds=2, negatives=3, depth=10, guard=0.5)


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = schema.read(artifact.file("pairs.parquet"), "pairs").to_pylist()
    return rows


def scored(workspace: Path, pairs: Artifact, kind: str, seed: int) -> Artifact:
    ids = [row["row_id"] for row in rows_of(pairs)]
    values = np.random.default_rng(seed).normal(size=len(ids)) * 3
    order = np.random.default_rng(seed).permutation(len(ids))  # joined by id, not by place
    table = pa.table({"row_id": np.array(ids)[order], "score": values[order]})
    return stage(workspace, kind, {"scores": table})


def run(workspace: Path, seed: int, queries: range = range(QUERIES)) -> Artifact:
    draw = np.random.default_rng(seed)
    rows = [
        {"query_id": f"q{query}", "doc_id": f"d{document}", "rank": rank, "score": 1.0 / rank, "system": f"s{seed}"}
        for query in queries
        for rank, document in enumerate(draw.permutation(DOCUMENTS)[:FOUND].tolist(), start=1)
    ]
    return stage(workspace, "run", {"run": pa.Table.from_pylist(rows)})


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    draw = np.random.default_rng(0)
    documents = [f"d{number}" for number in range(DOCUMENTS)]
    judgments = [
        {
            "query_id": f"q{query}",
            "doc_id": f"d{document}",
            "grade": 0 if query == 0 else int(draw.integers(0, 3)),
            "split": "train" if query < 9 else "valid",
            "source": "human",
        }
        for query in range(QUERIES)
        for document in draw.permutation(DOCUMENTS)[:6].tolist()
    ]
    names = [f"q{number}" for number in range(QUERIES)]
    return stage(
        tmp_path,
        "data",
        {
            "documents": pa.table({"doc_id": documents, "title": documents, "text": documents}),
            "queries": pa.table({"query_id": names, "text": names}),
            "judgments": pa.Table.from_pylist(judgments),
        },
    )


@pytest.fixture
def pairs(tmp_path: Path, data: Artifact) -> Artifact:
    rows = schema.read(data.file("judgments.parquet"), "judgments").to_pylist()
    rows.append({"query_id": "q1", "doc_id": "d0", "grade": 0, "split": "train", "source": "negative"})
    ids = (np.random.default_rng(7).permutation(len(rows)) * 3).tolist()
    table = pa.Table.from_pylist([{**row, "row_id": number} for row, number in zip(rows, ids, strict=True)])
    return stage(tmp_path, "pairs", {"pairs": table})


def test_what_is_mined_is_found_early_and_joined_by_no_pair(tmp_path: Path, data: Artifact, pairs: Artifact) -> None:
    runs = [run(tmp_path, 1), run(tmp_path, 2)]
    rows = rows_of(candidates.mined(tmp_path, 10, data=data, pairs=pairs, runs=runs))
    best: dict[tuple[str, str], tuple[int, int]] = {}
    for number, run_artifact in enumerate(runs):
        for row in schema.read(run_artifact.file("run.parquet"), "run").to_pylist():
            key = row["query_id"], row["doc_id"]
            if row["rank"] <= 10:
                best[key] = min(best.get(key, (99, 9)), (row["rank"], number))
    taken = {(row["query_id"], row["doc_id"]) for row in rows_of(pairs)}
    for query in range(QUERIES):
        expected = sorted((rank, key) for key, rank in best.items() if key[0] == f"q{query}" and key not in taken)
        joined = [(row["query_id"], row["doc_id"]) for row in rows if row["query_id"] == f"q{query}"]
        assert joined == ([key for _, key in expected] if query < 9 else [])
    assert {(row["grade"], row["source"], row["split"]) for row in rows} == {(0, "mined", "train")}
    assert [row["row_id"] for row in rows] == list(range(len(rows)))


def test_a_run_without_training_queries_is_refused(tmp_path: Path, data: Artifact, pairs: Artifact) -> None:
    with pytest.raises(SchemaError, match="split train"):
        candidates.mined(tmp_path, 10, data=data, pairs=pairs, runs=[run(tmp_path, 1, range(9, 12))])


def guarded(workspace: Path, data: Artifact, pairs: Artifact, config: MiningConfig = CONFIG) -> tuple[Artifact, ...]:
    mined = candidates.mined(
        workspace, config.depth, data=data, pairs=pairs, runs=[run(workspace, 1), run(workspace, 2)]
    )
    scores, mined_scores = scored(workspace, pairs, "teacher_scores", 3), scored(workspace, mined, "teacher_scores", 4)
    return (
        negatives.make(workspace, config, pairs=pairs, scores=scores, mined=mined, mined_scores=mined_scores),
        scores,
        mined,
        mined_scores,
    )


def says(scores: Artifact) -> dict[int, float]:
    table = schema.read(scores.file("scores.parquet"), "scores")
    return dict(zip(table["row_id"].to_pylist(), table["score"].to_pylist(), strict=True))


def test_the_guard_keeps_out_what_the_teacher_takes_for_relevant(
    tmp_path: Path, data: Artifact, pairs: Artifact
) -> None:
    hard_pairs, scores, mined, mined_scores = guarded(tmp_path, data, pairs)
    known, of_pairs, of_mined, all_scores = rows_of(pairs), says(scores), says(mined_scores), says(hard_pairs)
    by_query: dict[str, list[dict[str, Any]]] = {}
    for row in known:
        if row["split"] == "train":
            by_query.setdefault(row["query_id"], []).append(row)
    gaps = []
    for rows in by_query.values():
        values = [of_pairs[row["row_id"]] for row in rows]
        gaps += [value - sum(values) / len(values) for value in values]
    margin = 0.5 * (sum(gap**2 for gap in gaps) / len(gaps)) ** 0.5

    expected = []
    for query, rows in by_query.items():
        positives = [of_pairs[row["row_id"]] for row in rows if row["grade"] > 0]
        bound = sum(positives) / len(positives) - margin if positives else -np.inf
        allowed = [row for row in rows_of(mined) if row["query_id"] == query and of_mined[row["row_id"]] <= bound]
        expected += [(query, row["doc_id"], pytest.approx(of_mined[row["row_id"]])) for row in allowed[:3]]
    everything = rows_of(hard_pairs)
    assert everything[: len(known)] == [{key: row[key] for key in everything[0]} for row in known]
    added = everything[len(known) :]
    allowed = [(row["query_id"], row["doc_id"], all_scores[row["row_id"]]) for row in added]
    assert sorted(allowed, key=lambda row: row[:2]) == sorted(expected, key=lambda row: row[:2])
    assert len({row["row_id"] for row in everything}) == len(everything)
    assert not any(row["query_id"] == "q0" for row in added)  # It has no positive.
    assert all(all_scores[number] == pytest.approx(value, rel=1e-6) for number, value in of_pairs.items())
    assert hard_pairs.metrics["kept"] == len(added) > 10
    assert hard_pairs.metrics["guarded"] > 10


def test_a_wider_margin_lets_fewer_pass(tmp_path: Path, data: Artifact, pairs: Artifact) -> None:
    narrow, wide = (guarded(tmp_path, data, pairs, replace(CONFIG, guard=guard))[0] for guard in (-1.0, 2.0))
    assert narrow.metrics["guarded"] < wide.metrics["guarded"]
    assert narrow.metrics["kept"] > wide.metrics["kept"]


def test_scores_of_other_pairs_are_refused(tmp_path: Path, data: Artifact, pairs: Artifact) -> None:
    mined = candidates.mined(tmp_path, 10, data=data, pairs=pairs, runs=[run(tmp_path, 1)])
    scores = scored(tmp_path, pairs, "teacher_scores", 3)
    with pytest.raises(ArtifactError, match="no score for row"):
        negatives.make(
            tmp_path,
            CONFIG,
            pairs=pairs,
            scores=scores,
            mined=mined,
            mined_scores=scored(tmp_path, pairs, "teacher_scores", 4),
        )
