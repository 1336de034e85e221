"""Chooses the mined pairs from which the encoder learns as hard negatives.

A document that a search ranks high and nobody judged is often relevant. The teacher decides: it is kept out when its
score is above the mean score of the query's positives less a margin, so the bound moves with how sure the teacher is
about the query. Source: Qu et al., RocketQA, NAACL 2021, arXiv:2010.08191 (negatives denoised by a cross-encoder);
Moreira et al., NV-Retriever, 2024, arXiv:2407.15831 (bounds relative to the positive's score).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline import schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import MiningConfig
from pipeline.data.candidates import MINED
from pipeline.stage import Stage
from pipeline.training.tasks.bi_encoder import within_query_std
from pipeline.training.tasks.teacher_targets import joined

STAGE = Stage(
    "hard_pairs",
    version=1,
    inputs={"pairs": "pairs", "scores": "teacher_scores", "mined": "mined", "mined_scores": "teacher_scores"},
    section="encoder.mining",
    title="hard negatives",
)


@STAGE
def make(
    workspace: Path, config: MiningConfig, *, pairs: Artifact, scores: Artifact, mined: Artifact, mined_scores: Artifact
) -> Artifact:
    """The `hard_pairs` artifact: pairs.parquet has the pairs and the negatives that pass, scores.parquet the teacher's
    scores of both.

    The first rows are those of `pairs`, with their row ids. Of each query the first `negatives` that pass follow, in
    the order of `mined`. A query without a document above grade 0 has no bound, so nothing is added to it.

    Args:
        scores, mined_scores: one teacher's, of `pairs` and of `mined`.

    Raises:
        ArtifactError: scores of other pairs.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        judged, candidates = _scored(pairs, scores), _scored(mined, mined_scores)
        train = judged[judged["split"] == "train"]
        queries = pd.factorize(train["query_id"])[0]
        margin = config.guard * within_query_std(train["score"].to_numpy(np.float32, copy=True), queries)
        bound = train[train["grade"] > 0].groupby("query_id")["score"].mean() - margin
        limit = candidates["query_id"].map(bound)
        passed = candidates[candidates["score"] <= limit]
        kept = passed.groupby("query_id", sort=False).head(config.negatives)
        first = int(judged["row_id"].max()) + 1
        kept = kept.assign(row_id=np.arange(first, first + len(kept)), source=MINED)
        table = pa.Table.from_pandas(pd.concat([judged, kept], ignore_index=True), preserve_index=False)
        schema.write(table.drop_columns("score"), staging.folder / "pairs.parquet", "pairs")
        schema.write(table.select(["row_id", "score"]), staging.folder / "scores.parquet", "scores")
        return {
            "mined": len(candidates),
            "guarded": int((candidates["score"] > limit).sum()),
            "without_positive": int(limit.isna().sum()),
            "kept": len(kept),
            "queries": int(kept["query_id"].nunique()),
        }

    inputs: dict[str, Artifact | str] = {"pairs": pairs, "scores": scores, "mined": mined, "mined_scores": mined_scores}
    settings = {"negatives": config.negatives, "guard": config.guard}
    return STAGE.make(workspace, config=settings, inputs=inputs, build=build)


def _scored(pairs: Artifact, scores: Artifact) -> pd.DataFrame:
    """The rows of a table of pairs with the teacher's score of each."""
    rows: pd.DataFrame = schema.read(pairs.file("pairs.parquet"), "pairs").to_pandas()
    return rows.assign(score=joined(scores, rows["row_id"].to_numpy())[0])
