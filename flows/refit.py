"""The flow that learns the order of a release anew: its models and documents stay, the weights that join scores do not.

Of use where the judged queries are nearer to what people type than those of the training, where the documents have
changed much since, and for ready-made models, whose order was learned from nothing. Neither PyTorch nor a training is
needed: the models score what they find for the judged queries, and `pipeline.training.fusion` fits weights to that.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flows import figures, judged_sources, judging, publishing
from flows.indexing import SearchableParts, make_searchable
from flows.runner import Runner
from pipeline import recipe as recipes
from pipeline import release_parts
from pipeline.artifacts import Artifact
from pipeline.command_line import typed
from pipeline.config import DataConfig, EvaluationConfig, Recipe, SourceConfig
from pipeline.errors import MissingError, SchemaError
from pipeline.evaluation import significance, surfaces, systems
from pipeline.evaluation.metrics import RANGE
from pipeline.evaluation.significance import Difference
from pipeline.features import Fusion
from pipeline.releases import Releases
from pipeline.text import counted, signed
from pipeline.training import fusion as fusions
from pipeline.training.fusion_candidates import MEASURE
from serving.scoring import loaded_release

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

Queries = Literal["held out", "all"]


def refit(
    judgments: SourceConfig | Sequence[SourceConfig],
    workspace: Path,
    *,
    release: str = "live",
    queries: Queries = "held out",
    promote: bool = True,
    rules: DataConfig | None = None,
) -> dict[str, Any]:
    """Fits the order of a release to judged queries; returns figures as plain values.

    A release with the new weights is published, and made live if the old one is. Where queries that were held out do
    not gain more than a standard error, or are fewer than `fusion.MIN_QUERIES`, nothing is published.

    Args:
        judgments: queries and judgments, and their documents; without any, those of the release are searched.
        workspace: the folder of artifacts and releases.
        release: the release whose order is learned anew; see `Releases.resolve`.
        queries: "held out" takes the valid queries of the release's recipe, which its models have not learned from; of
            ready-made models, all but those that a report judges by. "all" takes every query, also those that models
            have learned from or a report would judge by.
        promote: make the new release live if the old one is.
        rules: the section `data` of the recipe that names the judgments, whose rules on unusable rows and on pairs of
            several grades hold; None for those of the release's recipe.

    Raises:
        MissingError: no such release or source, or the release has no documents, or holds a shard of them.
        SchemaError: none of the queries may be learned from, or rows that cannot be used.
        ConflictError: another publisher made another release live meanwhile; the new one is published, not live.
    """
    began = time.monotonic()
    registry, run = Releases(workspace), Runner(workspace)
    live = registry.pointer_file.recover()
    old = registry.open(release)
    _check(old, registry)
    recipe = recipes.parse(Recipe, old.manifest.config)
    sources = judged_sources.several(judgments)
    completed = judged_sources.with_documents(sources, registry, old)
    data = judged_sources.read(completed, _config(recipe.data, old, queries, rules), run)
    _check_queries(data, old)
    models = replace(judging.ScoringModels.of_release(old), fusion=None)
    corpus: SearchableParts = SearchableParts.of_release(old)
    if completed == sources:
        corpus = make_searchable(judging.index_config(old, recipe.index), run, encoder=models.encoder, data=data)
    candidates = replace(recipe.candidates, pool="retrieved")
    pool, features = judging.score(candidates, run, models=models, corpus=corpus, data=data, splits=("valid",))
    before = loaded_release.fusion_of(old)
    assert before is not None  # `_check` has looked.
    outcome = Refit.of(features, pool, before)
    published = old
    if outcome.is_supported:
        fusion = run(fusions.make, features=features, pool=pool)
        order = Fusion.from_json(fusion.file("fusion.json").read_text(encoding="utf-8"))
        if order != before:
            own = {
                "surfaces": outcome.surfaces(recipe.evaluation, order),
                "refit": {"of": old.fingerprint, "all_queries": queries == "all", **outcome.figures()},
            }
            published = _publish(registry, old, fusion, own)
    if promote and published is not old and live is not None and live.release == old.fingerprint:
        reason = f"refit to {counted(outcome.gain.queries, 'judged query')}"
        registry.promote(published.fingerprint, reason=reason, expected=live.generation)
    pointer = registry.pointer_file.recover()
    return {
        "release": published.fingerprint,
        "changed": published is not old,
        "live": pointer is not None and pointer.release == published.fingerprint,
        **outcome.figures(),
        "seconds": round(time.monotonic() - began, 1),
    }


@dataclass(frozen=True, slots=True)
class Refit:
    """The nDCG of a new order and of others, by query, each query's by weights that were fitted without it."""

    values: "pd.DataFrame"
    """A row for each query whose documents differ in grade; see `pipeline.training.fusion.held_out`."""
    gain: Difference
    """The new order less the old one."""

    @classmethod
    def of(cls, features: Artifact, pool: Artifact, old: Fusion) -> "Refit":
        """The values of an order that is fitted to these features, beside another order."""
        values = fusions.held_out(features, pool, old)
        return cls(values, significance.difference(values["fused"], values["before"], bounds=RANGE))

    @property
    def is_supported(self) -> bool:
        """Whether at least `fusion.MIN_QUERIES` queries gain more than one standard error on the mean."""
        gaps = (self.values["fused"] - self.values["before"]).to_numpy(dtype=np.float64)
        return len(gaps) >= fusions.MIN_QUERIES and bool(gaps.mean() > gaps.std(ddof=1) / np.sqrt(len(gaps)))

    def figures(self) -> dict[str, Any]:
        """Plain values; those that no query could give are None."""
        return {
            "queries": self.gain.queries,
            **{f"{MEASURE}, {name}": _rounded(self.values[name].mean()) for name in ("before", "fused", "rrf")},
            "gain": {name: _rounded(getattr(self.gain, name)) for name in ("mean", "low", "high", "p")},
        }

    def surfaces(self, config: EvaluationConfig, order: Fusion) -> dict[str, dict[str, Any]]:
        """The worth of each path of the service on these queries, see `pipeline.evaluation.surfaces`.

        Args:
            order: the new one, which also decides the order of `/rerank`.
        """
        names = {"fused": systems.FUSED, "rrf": systems.BOTH, "bm25": systems.BM25, "ranker": systems.RANKER}
        rerank = systems.FUSED if order.rerank == "fused" else systems.RANKER
        return surfaces.worth(self.values.rename(columns=names), MEASURE, config, rerank)


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _check(release: Artifact, registry: Releases) -> None:
    """Raises MissingError where a release does not search documents of its own, all of a collection."""
    name = release.fingerprint[:12]
    if release_parts.has_part(release, "collection"):
        divide = "reindex --documents DOCUMENTS --shards N"
        raise MissingError(
            f"release {name} shares its documents with others; refit the release that they were divided from, then "
            f"divide the documents for the new one: `{typed(divide, registry.workspace)}`"
        )
    if not release_parts.has_part(release, "fusion"):
        raise MissingError(
            f"release {name} has no documents, so it has no order to learn; index some: "
            f"`{typed('quickstart DOCUMENTS', registry.workspace)}`"
        )


def _config(own: DataConfig, release: Artifact, queries: Queries, rules: DataConfig | None) -> DataConfig:
    """The section `data` whose split valid has the queries to learn from.

    Args:
        own: the section of the release's recipe.
    """
    if queries == "all":
        own = replace(own, splits="valid", test_share=0.0)
    elif "ready_made" in release.metrics:
        own = replace(own, splits="valid")
    return judged_sources.by_rules(own, rules)


def _check_queries(data: Artifact, release: Artifact) -> None:
    """Raises SchemaError where no query may be learned from."""
    counts = {split: item["queries"] for split, item in data.metrics["splits"].items()}
    if not counts.get("valid"):
        raise SchemaError(
            f"none of the {counted(sum(counts.values()), 'judged query')} is a valid query by the recipe of release "
            f"{release.fingerprint[:12]}, which its models have not learned from; give more queries or, if they are "
            "none that training saw, learn from all of them: --all"
        )


def _publish(registry: Releases, old: Artifact, fusion: Artifact, own: Mapping[str, Any]) -> Artifact:
    """The release with this fusion in the place of the old one.

    Args:
        own: metrics of the new order, in the place of the old one's.
    """
    parts = {name: release_parts.part(old, name) for name in old.manifest.inputs} | {"fusion": fusion}
    metrics = publishing.metrics(old, parts["documents"], old.metrics.get("documents", {}).get("kind", "data"))
    metrics["figures"] |= {
        "own": sorted({*metrics["figures"]["own"], *own}),
        "carried": sorted(set(metrics["figures"]["carried"]) - set(own)),
    }
    return registry.publish(parts, metrics={**metrics, **own}, config=old.manifest.config)


def render(outcome: Mapping[str, Any]) -> "Table":
    """A table of what `refit` returns, for a terminal."""
    gain = outcome["gain"]
    shown = {name: value for name, value in outcome.items() if name != "gain"}
    spread = "" if gain["low"] is None else f" [{signed(gain['low'])}, {signed(gain['high'])}]"
    shown["gain"] = "none" if gain["mean"] is None else f"{signed(gain['mean'])}{spread}"
    table = figures.table(shown, "refit")
    if not outcome["changed"]:
        few = f"; {fusions.MIN_QUERIES} are needed" if outcome["queries"] < fusions.MIN_QUERIES else ""
        judged = counted(outcome["queries"], "query", "were")
        table.caption = (
            f"{judged} held out, and the new order is not shown to be better on them{few}; the old one stays."
        )
        table.caption_justify = "left"
    return table
