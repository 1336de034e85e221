"""One run file with every system that a report compares, all scoring the same pool.

BM25, encoder and ranker come from the features; reciprocal-rank fusion and learned fusion of them are computed here;
other models (the teacher, the plain student) bring scores by row id. The live release and those that were live before
it are judged on their own pools and stand beside them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import schema
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import SchemaError
from pipeline.feature_tables import SCORES, by_query
from pipeline.features import FEATURES, Fusion, field_features
from pipeline.stage import Stage
from pipeline.text import counted

if TYPE_CHECKING:
    import pandas as pd

STAGE = Stage(
    "systems",
    version=4,  # The order of /rerank may be the fused one.
    inputs={
        "features": "features",
        "fusion": "fusion",
        "scores": "scores",
        "live": ("features", "fusion"),
        "earlier": ("features", "fusion"),
    },
)

BM25, ENCODER, BOTH, RANKER, FUSED, LIVE = "BM25", "encoder", "BM25+encoder", "distilled student", "fused", "live"
"""BOTH is reciprocal-rank fusion of the first two; RANKER is the bundle in the precision that is served; FUSED is the
order of `/search`; LIVE is the live release's own FUSED. `/rerank` gives RANKER or FUSED, see `Fusion.rerank`."""
LIVE_RERANK = "live /rerank"
"""The order of the live release's `/rerank`."""

_EARLIER = "release "


@dataclass(frozen=True, kw_only=True, slots=True)
class ReleaseScores:
    """A published release's scores of its own pool for the queries that are judged."""

    features: Artifact
    fusion: Artifact


def earlier_system(release: str) -> str:
    """The name of the FUSED order of a release that was live before the present one."""
    return f"{_EARLIER}{release[:12]}"


def field_system(feature: str) -> str:
    """The name of the order by one field's own score: `BM25 title` for the feature `bm25.title`."""
    score, _, field = feature.partition(".")
    return f"{BM25 if score == 'bm25' else ENCODER} {field}"


def is_earlier(system: str) -> bool:
    """Whether a system's name was made by `earlier_system`."""
    return system.startswith(_EARLIER)


@STAGE
def make(
    workspace: Path,
    *,
    features: Artifact,
    fusion: Artifact,
    scores: Mapping[str, Artifact],
    live: ReleaseScores | None = None,
    earlier: Mapping[str, ReleaseScores] | None = None,
) -> Artifact:
    """A run artifact (kind `systems`) over the test queries; the column `system` names who ranked.

    Its metrics name the systems, and as `rerank` the one whose order `/rerank` gives.

    Args:
        workspace: the folder that holds `artifacts/`.
        features: scores of the pool by the models that are judged.
        fusion: the weights of the final order.
        scores: name of another system → its scores of the same rows.
        live: the live release; adds the systems LIVE and, where it has a ranker, LIVE_RERANK.
        earlier: fingerprint of a release that was live before → its scores; each adds the system `earlier_system`.

    Raises:
        SchemaError: a scores artifact lacks rows of the pool.
    """
    former = {earlier_system(release): item for release, item in (earlier or {}).items()}
    inputs = {"features": features, "fusion": fusion, **{f"scores:{name}": item for name, item in scores.items()}}
    for name, item in {**({"live": live} if live else {}), **former}.items():
        inputs |= {f"{name} features": item.features, f"{name} fusion": item.fusion}
    config = {"live rerank": True} if live else {}

    def build(staging: Staging) -> dict[str, object]:
        import pandas as pd
        import pyarrow as pa

        frame = _test_rows(features)
        weighed = _fusion(fusion)
        table = scored(frame, weighed)
        columns = [(BM25, "bm25"), (ENCODER, "encoder"), (BOTH, "both"), (FUSED, "fused")]
        columns += [(RANKER, "ranker")] if _has_ranker(features) else []
        apart = {field_system(name): name for name in field_features(frame.columns)}
        columns += apart.items()
        parts = [_system(table, name, column) for name, column in columns]
        parts += [_system(_with_scores(frame, item, name), name, "score") for name, item in scores.items()]
        parts += _of_live(live) if live else []
        for name, item in former.items():
            parts.append(_system(scored(_test_rows(item.features), _fusion(item.fusion)), name, "fused"))
        order = [BM25, ENCODER, *apart, BOTH, *sorted(scores), RANKER, FUSED, *former, LIVE_RERANK, LIVE]
        table = pd.concat(parts, ignore_index=True).sort_values(
            "system", key=lambda names: names.map(order.index), kind="stable"
        )
        schema.write(pa.Table.from_pandas(table, preserve_index=False), staging.folder / "run.parquet", "run")
        return {
            "systems": [name for name in order if name in set(table["system"])],
            "rerank": FUSED if weighed.rerank == "fused" else RANKER,
            "rows": len(table),
        }

    return STAGE.make(workspace, config=config, inputs=inputs, build=build)


def _of_live(live: ReleaseScores) -> "list[pd.DataFrame]":
    """The orders of the live release: that of /search and, where it has a ranker, that of /rerank."""
    fusion = _fusion(live.fusion)
    ordered = scored(_test_rows(live.features), fusion)
    orders = [_system(ordered, LIVE, "fused")]
    return [*orders, _system(ordered, LIVE_RERANK, fusion.rerank)] if _has_ranker(live.features) else orders


def _fusion(artifact: Artifact) -> Fusion:
    return Fusion.from_json(artifact.file("fusion.json").read_text(encoding="utf-8"))


def _test_rows(features: Artifact) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.read_parquet(features.file("features.parquet"))
    return frame[frame["split"] == "test"]


def scored(frame: "pd.DataFrame", fusion: Fusion) -> "pd.DataFrame":
    """The rows with two columns more: `both` (reciprocal-rank fusion) and `fused`.

    Args:
        frame: query_id, doc_id, bm25, encoder, ranker, and the scores of fields that the fusion weighs; all rows of a
            query must be there, as ranks are features.
    """
    names = [*FEATURES, *fusion.fields]
    first_stage = [names.index(f"{name}_reciprocal_rank") for name in ("bm25", "encoder")]
    both, fused = np.zeros(len(frame)), np.zeros(len(frame))
    for positions, columns in by_query(frame[["query_id", "doc_id", *SCORES, *fusion.fields]]):
        both[positions] = columns[:, first_stage].sum(axis=1)
        fused[positions] = fusion.scores(columns.tolist())
    return frame.assign(both=both, fused=fused)


def _has_ranker(features: Artifact) -> bool:
    """Whether a ranker gave the scores of a features artifact; without one they are all 0."""
    return "ranker" in features.manifest.inputs


def _with_scores(frame: "pd.DataFrame", scores: Artifact, name: str) -> "pd.DataFrame":
    import pandas as pd

    joined = frame.merge(pd.read_parquet(scores.file("scores.parquet")), on="row_id", how="left", validate="1:1")
    missing = int(joined["score"].isna().sum())
    if missing:
        raise SchemaError(
            f"{scores.path}: has no score of {name} for {counted(missing, 'row')} of the pool; move its folder out of "
            "the workspace and run again, which makes it anew"
        )
    return joined


def _system(frame: "pd.DataFrame", name: str, column: str) -> "pd.DataFrame":
    """Rows of the schema `run`; of equal scores the greater document id ranks first, as in the metrics."""
    chosen = frame[["query_id", "doc_id", column]].rename(columns={column: "score"})
    chosen = chosen.astype({"score": "float64"}).sort_values(["query_id", "doc_id"], ascending=[True, False])
    rank = chosen.groupby("query_id")["score"].rank(method="first", ascending=False).astype("int64")
    return chosen.assign(rank=rank, system=name)[["query_id", "doc_id", "rank", "score", "system"]]
