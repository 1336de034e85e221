"""The BM25 teacher: the sum is of the teacher's score and the share of the query's best BM25, on the grades' scale."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.config import RankerConfig
from pipeline.errors import ArtifactError, ConfigError
from pipeline.recipe import load
from pipeline.training import bm25_teacher, preflight, ranker
from tests.pipeline.training.test_fused_teacher import _artifact, world


def scored(workspace: Path, **noise: float) -> tuple[pd.DataFrame, tuple[object, object, object]]:
    """The pairs with the scores of teacher and BM25, and the artifacts: teacher's scores, BM25's, pairs."""
    scores, features, pairs = world(workspace, **noise)
    bm25 = pd.read_parquet(features.file("features.parquet"))[["row_id", "bm25"]].rename(columns={"bm25": "score"})
    rows = pd.read_parquet(pairs.file("pairs.parquet"))
    rows = rows.merge(pd.read_parquet(scores.file("scores.parquet")).rename(columns={"score": "teacher"}), on="row_id")
    rows = rows.merge(bm25.rename(columns={"score": "bm25"}), on="row_id")
    return rows, (scores, _artifact(workspace, "scores", bm25), pairs)


def test_the_order_is_that_of_the_weighted_sum(tmp_path: Path) -> None:
    rows, (scores, bm25, pairs) = scored(tmp_path, bm25_noise=0.7, teacher_noise=0.7)
    rows.loc[rows["query_id"] == rows["query_id"][0], "bm25"] = 0.0  # No word of the query occurs in its documents.
    bm25 = _artifact(tmp_path, "scores", rows[["row_id", "bm25"]].rename(columns={"bm25": "score"}))
    both = bm25_teacher.make(tmp_path, 3.0, scores=scores, bm25=bm25, pairs=pairs)
    learned = rows.merge(pd.read_parquet(both.file("scores.parquet")), on="row_id", validate="1:1")
    for _, documents in learned.groupby("query_id"):
        best = documents["bm25"].max()
        expected = [
            own + (3.0 * words / best if best else 0.0)
            for own, words in zip(documents["teacher"], documents["bm25"], strict=True)
        ]
        # One scale for all pairs: differences within a query keep their proportions.
        assert np.corrcoef(expected, documents["score"])[0, 1] == pytest.approx(1.0, abs=1e-5)
        assert list(np.argsort(expected)) == list(np.argsort(documents["score"].to_numpy()))


def test_scores_are_on_the_scale_of_the_training_grades_and_keep_the_teachers_states(tmp_path: Path) -> None:
    rows, (scores, bm25, pairs) = scored(tmp_path, bm25_noise=0.7, teacher_noise=0.7)
    both = bm25_teacher.make(tmp_path, 3.0, scores=scores, bm25=bm25, pairs=pairs)
    levels = json.loads(both.file("head.json").read_text(encoding="utf-8"))["thresholds"]
    train = rows.merge(pd.read_parquet(both.file("scores.parquet")), on="row_id").query("split == 'train'")
    for grade, level in enumerate(levels, start=1):
        reached = 1 / (1 + np.exp(level - train["score"]))
        assert reached.mean() == pytest.approx((train["grade"] >= grade).mean(), abs=0.02)
    assert np.load(both.file("states.npy")).shape == (len(rows), 1, 2)
    assert both.manifest.inputs["teacher"] == "a teacher"


def test_a_pair_without_a_score_is_named(tmp_path: Path) -> None:
    rows, (scores, _, pairs) = scored(tmp_path, bm25_noise=1.0, teacher_noise=1.0)
    fewer = rows.loc[rows["row_id"] != 17, ["row_id", "bm25"]].rename(columns={"bm25": "score"})
    with pytest.raises(ArtifactError, match="row 17 "):
        bm25_teacher.make(tmp_path, 3.0, scores=scores, bm25=_artifact(tmp_path, "scores", fewer), pairs=pairs)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"ranker\.bm25_teacher"):
        RankerConfig(bm25_teacher=weight)


def test_two_ways_to_join_bm25_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bm25_teacher is 2 beside fused_teacher"):
        RankerConfig(bm25_teacher=2.0, fused_teacher=True)


def test_changed_documents_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[ranker]\nbm25_teacher = 2.0\n[candidates]\naugmented = 0.5\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"ranker\.bm25_teacher.*candidates\.augmented"):
        preflight.check_rankers(load(path, []))


def test_a_plain_student_does_not_depend_on_the_weight() -> None:
    settings = [ranker._settings(RankerConfig(bm25_teacher=weight), False) for weight in (0.0, 2.0)]
    assert settings[0] == settings[1]
    assert ranker._settings(RankerConfig(bm25_teacher=2.0), True)["bm25_teacher"] == 2.0
