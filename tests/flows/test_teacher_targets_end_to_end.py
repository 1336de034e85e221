"""Retrainings of the tiny world whose ranker learns from others than its own teacher and from pairs without grades."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows import retrain, training
from flows.runner import Runner
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact, load
from pipeline.config import Recipe
from pipeline.errors import ConfigError, SchemaError, TrainingError
from pipeline.training import score_scale
from tests.flows.conftest import Trained
from tests.pipeline.training.test_external_teacher import save_model


def recipe_of(trained: Trained, *overrides: str) -> Recipe:
    return recipes.load(trained.world / "tiny.toml", [f"data.root={trained.world}", *overrides])


@pytest.fixture(scope="module")
def workspace(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained workspace, so that data, pre-training and teacher are there already."""
    copy = tmp_path_factory.mktemp("lessons") / "workspace"
    shutil.copytree(trained.workspace, copy)
    return copy


def only(workspace: Path, kind: str) -> Artifact:
    (manifest,) = (workspace / "artifacts" / kind).glob("*/manifest.json")
    return load(manifest.parent, kind)


def by_row(scores: Artifact) -> pd.Series:
    return pd.read_parquet(scores.file("scores.parquet")).set_index("row_id")["score"]


def test_scores_of_a_file_teach_in_place_of_the_teachers(trained: Trained, workspace: Path, tmp_path: Path) -> None:
    pairs = only(trained.workspace, "pairs")
    frame = pd.read_parquet(pairs.file("pairs.parquet"))
    noise = np.random.default_rng(0).normal(size=len(frame))
    file = tmp_path / "scores.parquet"
    settings = (f"external_teacher.scores={file}", "ranker.hidden_weight=0", "ranker.plain=false")

    def give(scores: pd.Series) -> None:
        frame.assign(score=scores)[["query_id", "doc_id", "score"]].to_parquet(file)

    give(40 - 7 * (frame["grade"] + noise))
    with pytest.raises(TrainingError, match="higher scores go with lower grades"):
        training.prepare(recipe_of(trained, *settings), Runner(workspace))
    give(frame["grade"].head(3))
    with pytest.raises(SchemaError, match="no finite number"):
        training.prepare(recipe_of(trained, *settings), Runner(workspace))
    given = 40 + 7 * (frame["grade"] + noise)
    give(given)
    with pytest.raises(ConfigError, match="hidden_weight"):
        training.prepare(recipe_of(trained, f"external_teacher.scores={file}", "ranker.layers=2"), Runner(workspace))

    outcome = retrain.retrain(recipe_of(trained, *settings), workspace, promote=False)
    inputs = training.prepare(recipe_of(trained, *settings), Runner(workspace))
    assert inputs.teacher.fingerprint == only(trained.workspace, "teacher").fingerprint  # Not trained again.
    assert inputs.teacher_scores.manifest.inputs.keys() == {"outside", "data", "pairs"}
    assert np.corrcoef(by_row(inputs.teacher_scores)[frame["row_id"]], given)[0, 1] == pytest.approx(1.0, abs=1e-6)
    systems = set(pd.read_parquet(outcome.report.file("per_query.parquet"))["system"])
    assert {"distilled student", "teacher"} <= systems
    rankers = [load(path.parent, "ranker") for path in (workspace / "artifacts" / "ranker").glob("*/manifest.json")]
    assert inputs.teacher_scores.fingerprint in [ranker.manifest.inputs.get("teacher_scores") for ranker in rankers]


def test_a_language_model_teaches_labelled_and_unlabelled_pairs(
    trained: Trained, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = score_scale.ScoreScale(
        0.0, 1.0, 1.0, 0.0, (-1.0, 1.0)
    )  # A random model's scores need not rise with the grades.
    monkeypatch.setattr(score_scale, "fit", lambda *_: scale)
    model = save_model(tmp_path / "model")
    log = tmp_path / "log.txt"
    log.write_text("shiny kettle\nold red hammer\nsoft towel\n", encoding="utf-8")
    settings = [f"outside.causal_lm={model}", "outside.max_tokens=120", "outside.max_query_tokens=12"]
    settings += ["ranker.hidden_weight=0", "ranker.plain=false"]
    settings += ["candidates.unlabelled=1.5", f"candidates.unlabelled_queries={log}", "candidates.title_queries=20"]
    recipe = recipe_of(trained, *settings)
    inputs = training.prepare(recipe, Runner(workspace))
    labelled, every = (pd.read_parquet(pairs.file("pairs.parquet")) for pairs in (inputs.pairs, inputs.ranker_pairs))
    train = (labelled["split"] == "train").sum()
    assert (every["split"] == "unlabelled").sum() == round(1.5 * train)
    assert sorted(by_row(inputs.teacher_scores).index) == sorted(every["row_id"])
    lists = pd.read_parquet(inputs.ranker_pairs.file("queries.parquet"))
    assert {"file", "title"} <= {name.partition(":")[0] for name in lists["asked"]}

    outcome = retrain.retrain(recipe, workspace, promote=False)
    rankers = [load(path.parent, "ranker") for path in (workspace / "artifacts" / "ranker").glob("*/manifest.json")]
    (student,) = (ranker for ranker in rankers if ranker.manifest.inputs["pairs"] == inputs.ranker_pairs.fingerprint)
    assert student.manifest.inputs["teacher_scores"] == inputs.teacher_scores.fingerprint
    assert outcome.report.metrics


def test_an_albert_from_scratch_goes_all_the_way(trained: Trained, tmp_path: Path) -> None:
    """Pre-trained, taught, cut to fewer passes, exported, indexed and judged."""
    settings = ("pretrain.scratch.family=albert", "pretrain.scratch.embedding=16", "ranker.plain=false")
    retrain.retrain(recipe_of(trained, *settings), tmp_path)
    teacher, ranker = only(tmp_path, "teacher"), only(tmp_path, "ranker")
    sizes = [model.file("model/model.safetensors").stat().st_size for model in (teacher, ranker)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)  # The same weights, gone through once instead of twice.
    assert ranker.metrics["keep_layers"] == [2]
