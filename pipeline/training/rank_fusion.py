"""Reciprocal-rank fusion, for a release without judgments: BM25, the encoder and the ranker, if any, weigh the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import features
from pipeline.artifacts import Artifact, Staging
from pipeline.features import Fusion
from pipeline.stage import Stage

STAGE = Stage("fusion", version=1, inputs={"ranker": "bundle", "encoder": "bundle"}, title="rank fusion")


@STAGE
def make(workspace: Path, *, ranker: Artifact | None, encoder: Artifact) -> Artifact:
    """A `fusion` artifact: the sum of the reciprocal ranks of BM25, the encoder and, where there is one, the ranker.

    Source: Cormack, Clarke and Büttcher, Reciprocal Rank Fusion, SIGIR 2009.
    """
    models = {"encoder": encoder} | ({"ranker": ranker} if ranker else {})
    summed = {f"{name}_reciprocal_rank" for name in ("bm25", *models)}
    weights = {name: float(name in summed) for name in features.FEATURES}

    def build(staging: Staging) -> Mapping[str, Any]:
        (staging.folder / "fusion.json").write_text(Fusion(weights=weights).to_json(), encoding="utf-8")
        return {
            "chosen": "reciprocal-rank fusion",
            "reason": "nothing is judged",
            # A release checks that it holds these models.
            "models": {role: item.fingerprint for role, item in models.items()},
        }

    return STAGE.make(workspace, config={"weights": json.loads(json.dumps(weights))}, inputs=dict(models), build=build)
