"""A second round of the encoder on the tiny world: what it learns from, and that a kill changes nothing."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import encoder_rounds, training
from flows.runner import Runner
from pipeline.artifacts import Artifact
from pipeline.config import MiningConfig, Recipe
from pipeline.models.bi_encoder import BiEncoder
from pipeline.training.tasks import bi_encoder
from tests.flows.conftest import Trained


def two_rounds(trained: Trained) -> Recipe:
    mined = MiningConfig(rounds=2, negatives=3, depth=10, guard=0.0)
    return dataclasses.replace(trained.recipe, encoder=dataclasses.replace(trained.recipe.encoder, mining=mined))


def train(recipe: Recipe, workspace: Path) -> tuple[Artifact, list[str]]:
    names: list[str] = []

    def run(name: str, stage: Any) -> Artifact:
        names.append(name)
        artifact: Artifact = stage()
        return artifact

    inputs = training.prepare(recipe, Runner(workspace))
    return encoder_rounds.train_encoder(recipe, inputs, Runner(workspace, run)), names


def test_the_second_round_learns_from_what_the_first_found(copied: Trained) -> None:
    first, names = train(copied.recipe, copied.workspace)
    assert names == ["encoder"]
    trained, names = train(two_rounds(copied), copied.workspace)
    assert names[0] == "encoder"
    assert names[-1] == "encoder round 2: encoder"
    assert trained.manifest.inputs["start"] == first.fingerprint

    (hard,) = (copied.workspace / "artifacts" / "hard_pairs").glob("*/pairs.parquet")
    rows = pd.read_parquet(hard)
    mined = rows[rows["source"] == "mined"]
    judged = set(map(tuple, rows.loc[rows["source"] != "mined", ["query_id", "doc_id"]].to_numpy().tolist()))
    assert len(mined) > 10
    assert mined.groupby("query_id").size().max() <= 3
    assert not judged & set(map(tuple, mined[["query_id", "doc_id"]].to_numpy().tolist()))
    assert set(mined["query_id"]) <= set(rows.loc[rows["split"] == "train", "query_id"])
    runs = [json.loads(path.read_text()) for path in (copied.workspace / "artifacts" / "run").glob("*/manifest.json")]
    assert len({run["inputs"].get("index") for run in runs}) > 1  # One of them is the encoder's own.
    assert BiEncoder.load(trained.path).widths == (16,)


def test_mining_looks_deeper_than_the_pairs_were_drawn(copied: Trained) -> None:
    recipe = two_rounds(copied)
    deep = dataclasses.replace(recipe.encoder.mining, depth=30)
    deeper = dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, mining=deep))
    inputs = training.prepare(deeper, Runner(copied.workspace))
    assert inputs.bm25_run.manifest.config["depth"] == 20
    assert inputs.bm25_run.fingerprint == training.prepare(copied.recipe, Runner(copied.workspace)).bm25_run.fingerprint

    _, names = train(deeper, copied.workspace)
    assert names[1] == "encoder mining: BM25 run"
    (mined,) = (copied.workspace / "artifacts" / "mined").glob("*/manifest.json")
    inputs = json.loads(mined.read_text())["inputs"]
    run = json.loads((copied.workspace / "artifacts" / "run" / inputs["run 0"] / "manifest.json").read_text())
    assert (run["config"]["system"], run["config"]["depth"]) == ("bm25", 30)
    _, names = train(recipe, copied.workspace)
    assert "encoder mining: BM25 run" not in names


def test_a_killed_second_round_goes_on_and_becomes_the_same(
    copied: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = two_rounds(copied)
    loop = dataclasses.replace(recipe.encoder.loop, checkpoint_s=0.0)
    recipe = dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, loop=loop))
    straight = tmp_path / "straight"
    shutil.copytree(copied.workspace, straight)
    uninterrupted, _ = train(recipe, straight)

    class Killed(BaseException):
        pass

    calls, original = 0, bi_encoder.EncoderTask.loss

    def loss(task: bi_encoder.EncoderTask, chunk: bi_encoder.BiEncoderChunk) -> Any:
        nonlocal calls
        hard = len(task.known_keys) < len(task.pairs)  # Only the second round has mined pairs.
        calls += hard
        if calls == 3:
            raise Killed
        return original(task, chunk)

    monkeypatch.setattr(bi_encoder.EncoderTask, "loss", loss)
    with pytest.raises(Killed):
        train(recipe, copied.workspace)
    assert len(list((copied.workspace / "artifacts" / "encoder").glob("*.checkpoint/step-*.safetensors"))) == 2
    calls = 10
    resumed, _ = train(recipe, copied.workspace)
    assert calls - 10 == uninterrupted.metrics["steps"] - 2
    assert resumed.fingerprint == uninterrupted.fingerprint
    assert resumed.manifest.files == uninterrupted.manifest.files
