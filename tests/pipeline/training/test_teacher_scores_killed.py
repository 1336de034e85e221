"""Teacher scores after a real SIGKILL: finished parts are not computed again, and the artifact is the same."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.numpy import load_file

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import teacher_scores
from pipeline.training.loop import scoring, shards
from tests import forked
from tests.pipeline.training.test_stages import LIST, QUERIES, base_model, tables
from tests.tables import stage


def score(workspace: Path, teacher: Path, data: Path, pairs: Path, kill_after: int, layers: Sequence[int]) -> int:
    """Makes teacher scores, in a process that is killed once it has read that many pairs; returns the pairs read."""
    pairs_read, original = 0, CrossEncoder.read

    def read(model: CrossEncoder, ids: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal pairs_read
        if 0 < kill_after <= pairs_read:
            os.kill(os.getpid(), signal.SIGKILL)
        pairs_read += len(ids)
        return original(model, ids, *args, **kwargs)

    with (
        mock.patch.object(scoring, "CPU_TOKENS", 256),
        mock.patch.object(shards, "SHARD", 40),
        mock.patch.object(CrossEncoder, "read", read),
    ):
        teacher_scores.make(
            workspace,
            teacher=artifacts.load(teacher),
            data=artifacts.load(data),
            pairs=artifacts.load(pairs),
            layers=layers,
            width=16,
        )
    return pairs_read


def untrained_teacher(workspace: Path) -> Artifact:
    def build(staging: artifacts.Staging) -> dict[str, object]:
        base = base_model(workspace / "base")
        torch.manual_seed(5)
        model = CrossEncoder.start(base, thresholds=[-1.0, 1.0], max_tokens=24, max_query_tokens=6, seed=1)
        model.save(staging.folder)
        return {}

    return artifacts.make(workspace, "teacher", version=1, config={}, inputs={}, build=build)


@pytest.mark.parametrize("layers", [(), (2, 4)], ids=["scores", "scores and states"])
def test_killed_scoring_keeps_finished_parts_and_ends_with_the_same_bytes(
    tmp_path: Path, layers: Sequence[int]
) -> None:
    tables_of_data, pair_table = tables()
    data, pairs = stage(tmp_path, "data", tables_of_data), stage(tmp_path, "pairs", {"pairs": pair_table})
    teacher = untrained_teacher(tmp_path)
    count = LIST * QUERIES
    sample = count if layers else 0  # The sample for principal directions is read first; here it is all pairs.

    def run(workspace: str, kill_after: int) -> forked.Ended:
        paths = [artifact.path for artifact in (teacher, data, pairs)]
        log = tmp_path / f"{workspace}.log"
        return forked.run(score, tmp_path / workspace, *paths, kill_after, layers, log=log)

    undisturbed = run("undisturbed", 0)
    assert undisturbed.exit_code == 0, undisturbed.output
    assert undisturbed.returned == count + sample
    folder = tmp_path / "killed" / "artifacts" / "teacher_scores"
    finished = 0
    for kill_after in (sample + count // 3, count // 3):  # Killed twice, each time in the middle of a part.
        assert run("killed", kill_after).exit_code == -signal.SIGKILL
        assert not list(folder.glob("*/manifest.json"))
        parts = [load_file(file)["scores"] for file in folder.glob("*.checkpoint/scores-*.safetensors")]
        assert finished < sum(map(len, parts)) < count
        finished = sum(map(len, parts))
    resumed = run("killed", 0)
    assert resumed.exit_code == 0, resumed.output
    assert resumed.returned == count - finished
    assert not list(folder.glob("*.checkpoint"))

    first, second = (
        artifacts.load(next((tmp_path / name / "artifacts" / "teacher_scores").glob("*/manifest.json")).parent)
        for name in ("undisturbed", "killed")
    )
    assert first.fingerprint == second.fingerprint
    assert first.manifest.files == second.manifest.files
    assert ("states.npy" in first.manifest.files) == bool(layers)
