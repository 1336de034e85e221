"""Teacher scores after a real SIGKILL: finished parts are not computed again, and the artifact is the same."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.models.cross_encoder import CrossEncoder
from tests.pipeline.training.test_stages import LIST, QUERIES, base_model, tables
from tests.tables import stage

CHILD = """
import os, signal, sys
from pathlib import Path
from pipeline import artifacts
from pipeline.models.cross_encoder import CrossEncoder
from pipeline.training import teacher_scores
from pipeline.training.loop import scoring, shards
scoring.CPU_TOKENS, shards.SHARD = 256, 40
workspace, teacher, data, pairs, kill_after = sys.argv[1:]
pairs_read, original = 0, CrossEncoder.read
def read(model, ids, *args, **kwargs):
    global pairs_read
    if 0 < int(kill_after) <= pairs_read:
        os.kill(os.getpid(), signal.SIGKILL)
    pairs_read += len(ids)
    return original(model, ids, *args, **kwargs)
CrossEncoder.read = read
teacher_scores.make(
    Path(workspace), teacher=artifacts.load(Path(teacher)), data=artifacts.load(Path(data)),
    pairs=artifacts.load(Path(pairs)), layers={layers}, width=16,
)
print(pairs_read)
"""


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

    def run(workspace: str, kill_after: int) -> subprocess.CompletedProcess[str]:
        paths = [str(artifact.path) for artifact in (teacher, data, pairs)]
        code = CHILD.replace("{layers}", repr(list(layers)))
        command = [sys.executable, "-c", code, str(tmp_path / workspace), *paths, str(kill_after)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)

    undisturbed = run("undisturbed", 0)
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert int(undisturbed.stdout) == count + sample
    folder = tmp_path / "killed" / "artifacts" / "teacher_scores"
    finished = 0
    for kill_after in (sample + count // 3, count // 3):  # Killed twice, each time in the middle of a part.
        assert run("killed", kill_after).returncode == -signal.SIGKILL
        assert not list(folder.glob("*/manifest.json"))
        parts = [load_file(file)["scores"] for file in folder.glob("*.checkpoint/scores-*.safetensors")]
        assert finished < sum(map(len, parts)) < count
        finished = sum(map(len, parts))
    resumed = run("killed", 0)
    assert resumed.returncode == 0, resumed.stderr
    assert int(resumed.stdout) == count - finished
    assert not list(folder.glob("*.checkpoint"))

    first, second = (
        artifacts.load(next((tmp_path / name / "artifacts" / "teacher_scores").glob("*/manifest.json")).parent)
        for name in ("undisturbed", "killed")
    )
    assert first.fingerprint == second.fingerprint
    assert first.manifest.files == second.manifest.files
    assert ("states.npy" in first.manifest.files) == bool(layers)
