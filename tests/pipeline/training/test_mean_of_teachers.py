"""The mean of several teachers' scores, by numpy."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import ExternalTeacherConfig, RankerConfig, Recipe
from pipeline.errors import ArtifactError, ConfigError
from pipeline.training import teacher_scores


def scores(workspace: Path, name: str, values: Mapping[int, float], *, states: bool = False) -> Artifact:
    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        frame = pd.DataFrame({"row_id": list(values), "score": np.array(list(values.values()), np.float32)})
        frame.to_parquet(staging.folder / "scores.parquet", index=False)
        if states:
            np.save(staging.folder / "states.npy", np.ones((len(values), 1, 2), np.float16))
            (staging.folder / "states.json").write_text(json.dumps({"layers": [1], "width": 2}))
        return {}

    return artifacts.make(
        workspace,
        "teacher_scores",
        version=1,
        config={"name": name},
        inputs={"teacher": f"teacher {name}"},
        build=build,
    )


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_brought_to_the_first_teachers_scale_and_averaged(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.permutation(50)
    own, other, third = rng.normal(1, 2, 50), rng.normal(-3, 0.5, 50), rng.normal(0, 9, 50)
    first = scores(tmp_path, "first", dict(zip(rows.tolist(), own, strict=True)), states=True)
    shuffled = rng.permutation(50)  # The others have the pairs in another order.
    other_scores = [
        scores(tmp_path, name, {int(rows[index]): values[index] for index in shuffled})
        for name, values in (("second", other), ("third", third))
    ]
    mean = teacher_scores.mean(tmp_path, first=first, others=other_scores)
    frame = pd.read_parquet(mean.file("scores.parquet"))
    expected = np.mean([own, *((x - x.mean()) / x.std() * own.std() + own.mean() for x in (other, third))], axis=0)
    assert frame["row_id"].tolist() == rows.tolist()
    assert frame["score"].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert mean.manifest.inputs["teacher"] == "teacher first"
    assert np.load(mean.file("states.npy")).shape == (50, 1, 2)
    correlation = np.corrcoef(own, other)[0, 1]
    assert mean.metrics["correlation_with_first"][0] == pytest.approx(correlation, abs=1e-3)


def test_a_pair_that_a_teacher_did_not_score_is_named(tmp_path: Path) -> None:
    first, other = scores(tmp_path, "first", {1: 0.5, 2: 0.1}), scores(tmp_path, "second", {1: 0.5})
    with pytest.raises(ArtifactError, match="2"):
        teacher_scores.mean(tmp_path, first=first, others=[other])


def test_an_external_teacher_is_one() -> None:
    with pytest.raises(ConfigError, match=r"ranker\.teachers is 2"):
        Recipe(external_teacher=ExternalTeacherConfig(scores="x"), ranker=RankerConfig(teachers=2, hidden_weight=0))
