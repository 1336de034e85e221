"""The fused teacher: its order is the one that fusion chooses on the valid queries, on the scale of the grades."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import Recipe
from pipeline.errors import ConfigError, SchemaError
from pipeline.recipe import load
from pipeline.training import fused_teacher, fusion, preflight
from tests.tables import stage

QUERIES, DOCUMENTS = 80, 6


def world(workspace: Path, *, bm25_noise: float, teacher_noise: float) -> tuple[Artifact, Artifact, Artifact]:
    """Teacher's scores, features and pairs of QUERIES lists: half train, half valid, and two lists without a grade."""
    rng = np.random.default_rng(7)
    count = QUERIES * DOCUMENTS
    grade = np.tile([0, 0, 0, 1, 1, 2], QUERIES)
    split = np.repeat(["train", "valid"], count // 2)
    query = np.repeat(np.arange(QUERIES), DOCUMENTS)
    split[:DOCUMENTS], grade[:DOCUMENTS] = "unlabelled", -1
    rows = pd.DataFrame(
        {
            "row_id": 10 + np.arange(count),
            "query_id": [f"q{number:02}" for number in query],
            "doc_id": [f"d{number}" for number in range(count)],
            "grade": grade,
            "split": split,
            "source": "human",
        }
    )
    true = np.tile([0, 0, 0, 1, 1, 2], QUERIES)
    features = rows[["row_id", "query_id", "doc_id", "split"]].assign(
        bm25=np.maximum(0, 3 + true + bm25_noise * rng.normal(size=count)),
        encoder=rng.uniform(0, 0.1, size=count),
        ranker=0.0,
    )
    pairs = stage(workspace, "pairs", {"pairs": pa.Table.from_pandas(rows, preserve_index=False)})
    scores = rows[["row_id"]].assign(score=(true + teacher_noise * rng.normal(size=count)).astype(np.float32))
    return _artifact(workspace, "teacher_scores", scores), _artifact(workspace, "features", features), pairs


def _artifact(workspace: Path, kind: str, frame: pd.DataFrame) -> Artifact:
    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        name = "scores" if kind == "teacher_scores" else kind
        frame.sample(frac=1, random_state=1).to_parquet(staging.folder / f"{name}.parquet", index=False)
        if kind == "teacher_scores":
            np.save(staging.folder / "states.npy", np.ones((len(frame), 1, 2), np.float16))
            (staging.folder / "states.json").write_text(json.dumps({"layers": [1], "width": 2}))
        return {}

    inputs = {"teacher": "a teacher"} if kind == "teacher_scores" else {}
    return artifacts.make(workspace, kind, version=1, config={"content": frame.to_json()}, inputs=inputs, build=build)


def test_the_order_is_that_of_the_fusion_on_the_valid_queries(tmp_path: Path) -> None:
    scores, features, pairs = world(tmp_path, bm25_noise=0.7, teacher_noise=0.7)
    fused = fused_teacher.make(tmp_path, scores=scores, features=features, pairs=pairs)

    rows = pd.read_parquet(pairs.file("pairs.parquet")).merge(
        pd.read_parquet(features.file("features.parquet"))[["row_id", "bm25", "encoder"]], on="row_id"
    )
    rows = rows.merge(pd.read_parquet(scores.file("scores.parquet")).rename(columns={"score": "ranker"}), on="row_id")
    rows = rows.sort_values("row_id", ignore_index=True)
    order, measured = fusion.fit(rows[rows["split"] == "valid"].reset_index(drop=True))
    assert fused.metrics["weights"] == dict(order.weights)
    assert fused.metrics["ndcg"]["fused"] > fused.metrics["ndcg"]["teacher"] + 0.01
    assert measured["ndcg"]["fused"] == pytest.approx(fused.metrics["ndcg"]["fused"], abs=1e-4)

    learned = rows.merge(pd.read_parquet(fused.file("scores.parquet")), on="row_id", validate="1:1")
    for _, one_list in learned.groupby("query_id"):
        top = one_list["bm25"].max()
        expected = order.weights["bm25"] * one_list["bm25"] / top + order.weights["ranker"] * one_list["ranker"]
        expected += order.weights["encoder"] * one_list["encoder"]
        if not any(order.weights[name] for name in order.weights if name.endswith("rank")):
            assert one_list["score"].rank().tolist() == expected.rank().tolist()
    assert len(learned) == QUERIES * DOCUMENTS  # Those without a grade have a score too.


def test_scores_are_on_the_scale_of_the_training_grades_and_keep_the_teachers_states(tmp_path: Path) -> None:
    scores, features, pairs = world(tmp_path, bm25_noise=0.7, teacher_noise=0.7)
    fused = fused_teacher.make(tmp_path, scores=scores, features=features, pairs=pairs)
    levels = json.loads(fused.file("head.json").read_text(encoding="utf-8"))["thresholds"]
    rows = pd.read_parquet(pairs.file("pairs.parquet")).merge(
        pd.read_parquet(fused.file("scores.parquet")), on="row_id"
    )
    train = rows[rows["split"] == "train"]
    for grade, level in enumerate(levels, start=1):
        reached = 1 / (1 + np.exp(level - train["score"]))
        assert reached.mean() == pytest.approx((train["grade"] >= grade).mean(), abs=0.02)
    assert np.load(fused.file("states.npy")).shape == (QUERIES * DOCUMENTS, 1, 2)
    assert fused.manifest.inputs["teacher"] == "a teacher"


def test_a_fused_order_that_is_no_better_leaves_the_teachers(tmp_path: Path) -> None:
    scores, features, pairs = world(tmp_path, bm25_noise=50.0, teacher_noise=0.01)
    fused = fused_teacher.make(tmp_path, scores=scores, features=features, pairs=pairs)
    assert fused.metrics["chosen"] == "teacher"
    both = pd.read_parquet(fused.file("scores.parquet")).merge(
        pd.read_parquet(scores.file("scores.parquet")), on="row_id"
    )
    assert both["score_x"].corr(both["score_y"], method="spearman") == pytest.approx(1.0)


def test_a_pair_without_features_is_named(tmp_path: Path) -> None:
    scores, features, pairs = world(tmp_path, bm25_noise=1.0, teacher_noise=1.0)
    frame = pd.read_parquet(features.file("features.parquet"))
    fewer = _artifact(tmp_path, "features", frame[frame["row_id"] != 17])
    with pytest.raises(SchemaError, match="row 17 "):
        fused_teacher.make(tmp_path, scores=scores, features=fewer, pairs=pairs)


def test_changed_documents_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[ranker]\nfused_teacher = true\n[candidates]\naugmented = 0.5\n", encoding="utf-8")
    recipe: Recipe = load(path, [])
    with pytest.raises(ConfigError, match=r"ranker\.fused_teacher.*candidates\.augmented"):
        preflight.check_rankers(recipe)
