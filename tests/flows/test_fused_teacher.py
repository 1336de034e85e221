"""A ranker of the fused teacher in a retraining: the encoder is made first, and both learn from what they should."""

import dataclasses

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from flows import retrain, training
from flows.runner import Runner
from index.hits import judged_queries
from index.lexical import LexicalIndex
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import CandidatesConfig, Recipe
from pipeline.errors import ConfigError
from tests.flows.conftest import Trained


def retrained(recipe: Recipe, trained: Trained) -> tuple[retrain.RetrainResult, list[str]]:
    """The result of a retraining that promotes nothing, and the names of its stages in the order that they ran."""
    stages: list[str] = []

    def run(name: str, stage: object) -> Artifact:
        stages.append(name)
        return stage()  # type: ignore[operator,no-any-return]

    return retrain.retrain(recipe, trained.workspace, promote=False, execute=run), stages


def test_the_ranker_alone_learns_the_fused_order(copied: Trained) -> None:
    """The ranker's pairs include unlabelled ones, whose queries are no part of the graded pairs."""
    recipe = dataclasses.replace(
        copied.recipe,
        ranker=dataclasses.replace(copied.recipe.ranker, fused_teacher=True, plain=False),
        candidates=dataclasses.replace(copied.recipe.candidates, unlabelled=0.2, unlabelled_depth=10),
    )
    outcome, stages = retrained(recipe, copied)
    assert stages.index("encoder: bundle") < stages.index("fused teacher scores") < stages.index("ranker")

    inputs = training.prepare(recipe, Runner(copied.workspace))
    fused, own = inputs.ranker_teacher_scores, inputs.teacher_scores
    assert fused.manifest.inputs["scores"] == own.fingerprint
    assert fused.metrics["pairs"] == own.metrics["pairs"] > inputs.pairs.metrics["train"]["pairs"]
    rankers = [
        artifacts.load(path.parent, "ranker")
        for path in (copied.workspace / "artifacts" / "ranker").glob("*/manifest.json")
    ]
    assert sum(item.manifest.inputs.get("teacher_scores") == fused.fingerprint for item in rankers) == 1
    first = inputs.first_stage
    assert first is not None
    assert first.encoder.fingerprint == outcome.release.manifest.inputs["encoder"]


def test_the_ranker_learns_the_sum_of_teacher_and_bm25_without_an_encoder(copied: Trained) -> None:
    """BM25 scores unlabelled lists too, whose queries are no part of the data."""
    recipe = dataclasses.replace(
        copied.recipe,
        ranker=dataclasses.replace(copied.recipe.ranker, bm25_teacher=4.0, plain=False),
        candidates=dataclasses.replace(copied.recipe.candidates, unlabelled=0.2, unlabelled_depth=10),
    )
    inputs = training.prepare(recipe, Runner(copied.workspace))
    assert inputs.first_stage is None
    ranker_scores = inputs.ranker_teacher_scores
    assert ranker_scores.manifest.inputs["scores"] == inputs.teacher_scores.fingerprint

    def read(artifact: Artifact, name: str) -> pd.DataFrame:
        return pq.read_table(artifact.file(name)).to_pandas().sort_values("row_id", ignore_index=True)

    pairs, own, both = (
        read(inputs.ranker_pairs, "pairs.parquet"),
        read(inputs.teacher_scores, "scores.parquet"),
        read(ranker_scores, "scores.parquet"),
    )
    queries = judged_queries(inputs.data, []) | judged_queries(inputs.ranker_pairs, [])
    index = LexicalIndex.load(inputs.lexical.path)
    number = {doc_id: row for row, doc_id in enumerate(index.doc_ids)}
    raw = np.zeros(len(pairs))
    for query_id, rows in pairs.groupby("query_id").indices.items():
        bm25 = index.scores(queries[str(query_id)], [number[doc_id] for doc_id in pairs["doc_id"].iloc[rows]])
        raw[rows] = own["score"].iloc[rows] + 4.0 * bm25 / (bm25.max() or 1.0)
    assert (pairs["grade"] < 0).any()
    assert np.corrcoef(raw, both["score"])[0, 1] == pytest.approx(1.0, abs=1e-5)


def test_the_teacher_learns_from_the_documents_of_both_ways_to_find(copied: Trained) -> None:
    """The encoder is made ahead of it, alone, and the retraining goes on with that one."""
    recipe = dataclasses.replace(
        copied.recipe,
        candidates=dataclasses.replace(copied.recipe.candidates, negatives=1, encoder_negatives=2),
        encoder=dataclasses.replace(copied.recipe.encoder, train_body=False),
        ranker=dataclasses.replace(copied.recipe.ranker, plain=False),
    )
    outcome, stages = retrained(recipe, copied)
    assert stages.index("encoder: bundle") < stages.index("both ways: pairs") < stages.index("teacher")

    inputs = training.prepare(recipe, Runner(copied.workspace))
    first = inputs.first_stage
    assert first is not None
    assert "teacher_scores" not in first.trained.manifest.inputs
    assert first.encoder.fingerprint == outcome.release.manifest.inputs["encoder"]
    assert inputs.teacher.manifest.inputs["pairs"] == inputs.ranker_pairs.fingerprint == inputs.pairs.fingerprint
    train = pq.read_table(inputs.pairs.file("pairs.parquet")).to_pandas().query("split == 'train'")
    drawn = train[train["source"] == "negative"].groupby("query_id").size()
    assert drawn.max() == 3
    bm25_rows = pq.read_table(inputs.bm25_run.file("run.parquet")).to_pandas()
    by_words = set(zip(bm25_rows["query_id"], bm25_rows["doc_id"], strict=True))
    negatives = train[train["source"] == "negative"]
    assert set(zip(negatives["query_id"], negatives["doc_id"], strict=True)) - by_words


def test_an_encoder_that_learns_from_the_teacher_cannot_bring_it_documents() -> None:
    with pytest.raises(ConfigError, match=r"candidates\.encoder_negatives is 2.*train_body"):
        Recipe(candidates=CandidatesConfig(encoder_negatives=2))
