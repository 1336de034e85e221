"""The order of a release is learned anew: from which queries, over which documents, and what stays."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows import publishing, refit, report, retrain
from flows import quickstart as quickstarts
from flows.cli import command
from pipeline import artifacts, features, release_parts
from pipeline.artifacts import Artifact, Staging
from pipeline.config import SourceConfig
from pipeline.data import splits
from pipeline.errors import MissingError, SchemaError
from pipeline.evaluation import significance
from pipeline.features import Fusion
from pipeline.releases import Releases
from tests.flows.conftest import Trained
from tests.serving.conftest import TinyWorkspace


def with_order(workspace: Path, weights: dict[str, float], **metrics: Any) -> Artifact:
    """The live release with these weights in its order and these metrics more, made live in its place."""
    registry = Releases(workspace)
    old = registry.open()

    def build(staging: Staging) -> dict[str, Any]:
        text = Fusion(weights=dict.fromkeys(features.FEATURES, 0.0) | weights).to_json()
        (staging.folder / "fusion.json").write_text(text, encoding="utf-8")
        return dict(release_parts.part(old, "fusion").metrics)

    fusion = artifacts.make(workspace, "fusion", version=1, config=weights, inputs={}, build=build)
    parts = {name: release_parts.part(old, name) for name in old.manifest.inputs} | {"fusion": fusion}
    release = registry.publish(parts, metrics={**old.metrics, **metrics}, config=old.manifest.config)
    registry.promote(release.fingerprint, reason="test")
    return release


@pytest.fixture
def worst_first(copied: Trained) -> Trained:
    """A workspace whose live release orders by falling dislike: the less a document has of the query, the better."""
    with_order(copied.workspace, {"bm25": -1.0, "encoder": -0.1})
    return copied


def judgments_alone(copied: Trained, folder: Path) -> SourceConfig:
    """The judged queries of the tiny world, without its documents."""
    folder.mkdir()
    for name in ("queries", "judgments"):
        shutil.copyfile(copied.world / "tiny" / f"{name}.parquet", folder / f"{name}.parquet")
    return SourceConfig(path=str(folder))


def parts_of(release: Artifact, *but: str) -> dict[str, str]:
    return {name: mark for name, mark in release.manifest.inputs.items() if name not in but}


def test_the_order_is_replaced_where_it_is_better_and_nothing_else(worst_first: Trained, tmp_path: Path) -> None:
    registry = Releases(worst_first.workspace)
    old = registry.open()
    outcome = refit.refit(judgments_alone(worst_first, tmp_path / "judged"), worst_first.workspace)
    new = registry.open()
    assert (outcome["changed"], outcome["live"], outcome["release"]) == (True, True, new.fingerprint)
    assert outcome["gain"]["mean"] > 0.1
    assert parts_of(new, "fusion") == parts_of(old, "fusion")
    assert new.manifest.config == old.manifest.config
    assert new.metrics["refit"]["of"] == old.fingerprint
    assert {"refit", "surfaces"} <= set(new.metrics["figures"]["own"])
    assert new.metrics["surfaces"]["/search"]["queries"] == outcome["queries"]
    assert release_parts.verify(new.path)

    again = refit.refit(SourceConfig(path=str(tmp_path / "judged")), worst_first.workspace)
    assert (again["changed"], again["release"]) == (False, new.fingerprint)
    assert registry.open().fingerprint == new.fingerprint
    assert refit.render(again).caption


def test_only_held_out_queries_are_learned_from_unless_all_are_asked_for(worst_first: Trained, tmp_path: Path) -> None:
    source = judgments_alone(worst_first, tmp_path / "judged")
    queries = pq.read_table(tmp_path / "judged" / "queries.parquet").to_pydict()
    cut = splits.assign(queries["text"], [None] * len(queries["text"]), worst_first.recipe.data)
    learned = {}
    for which in ("held out", "all"):
        outcome = refit.refit(source, worst_first.workspace, queries=which, promote=False)  # type: ignore[arg-type]
        release = Releases(worst_first.workspace).open(outcome["release"])
        assert not outcome["live"]
        pool = artifacts.input_of(worst_first.workspace, release_parts.part(release, "fusion"), "pool")
        assert pool is not None
        learned[which] = set(pq.read_table(pool.file("pairs.parquet"))["query_id"].to_pylist())
    valid = {name for name, split in zip(queries["query_id"], cut, strict=True) if split == "valid"}
    assert learned["held out"] <= valid
    assert len(learned["all"]) > len(learned["held out"])


def test_a_few_queries_or_a_chance_gain_replace_nothing() -> None:
    draw = np.random.default_rng(4)
    for queries, mean, enough in ((19, 0.2, False), (20, 0.2, True), (200, 0.0, False), (200, -0.1, False)):
        gains = draw.normal(0, 0.05, queries)
        gains += mean - gains.mean()
        values = pd.DataFrame({"before": 0.5, "fused": 0.5 + gains, "rrf": 0.4})
        gain = significance.difference(values["fused"], values["before"])
        assert refit.Refit(values, gain).is_supported == enough


def test_queries_that_the_models_learned_from_are_none(worst_first: Trained, tmp_path: Path) -> None:
    judgments_alone(worst_first, tmp_path / "judged")
    queries = pq.read_table(tmp_path / "judged" / "queries.parquet")
    cut = splits.assign(queries["text"].to_pylist(), [None] * len(queries), worst_first.recipe.data)
    trained = [row for row, split in enumerate(cut) if split == "train"]
    pq.write_table(queries.take(trained), tmp_path / "judged" / "queries.parquet")
    judged = pq.read_table(tmp_path / "judged" / "judgments.parquet")
    names = set(queries.take(trained)["query_id"].to_pylist())
    kept = [row for row, name in enumerate(judged["query_id"].to_pylist()) if name in names]
    pq.write_table(judged.take(kept), tmp_path / "judged" / "judgments.parquet")
    before = Releases(worst_first.workspace).ids()
    with pytest.raises(SchemaError, match=r"none of the \d+ judged queries is a valid query .* --all"):
        refit.refit(SourceConfig(path=str(tmp_path / "judged")), worst_first.workspace)
    assert Releases(worst_first.workspace).ids() == before


def test_documents_beside_the_judgments_are_searched(worst_first: Trained) -> None:
    """Also where the release has others."""
    outcome = refit.refit(SourceConfig(path=str(worst_first.world / "tiny")), worst_first.workspace)
    assert outcome["changed"]


def test_a_retraining_of_the_same_models_leaves_the_order_that_was_learned_since(copied: Trained) -> None:
    trained = copied.outcome.release.fingerprint
    refitted = with_order(copied.workspace, {"bm25": 1.0, "encoder": 0.5}, refit={"of": trained})
    again = with_order(copied.workspace, {"bm25": 1.0, "encoder": 0.7}, refit={"of": refitted.fingerprint})
    registry = Releases(copied.workspace)
    assert publishing.refit_chain(registry, again.fingerprint) == [again.fingerprint, refitted.fingerprint, trained]
    result = retrain.retrain(copied.recipe, copied.workspace)
    assert result.release.fingerprint == trained
    assert result.live
    assert "its order was learned anew since" in result.verdict
    assert registry.open().fingerprint == again.fingerprint


def test_a_report_of_ready_made_models_with_a_learned_order_judges_no_query_that_it_learned_from(
    worst_first: Trained,
) -> None:
    registry = Releases(worst_first.workspace)
    old = registry.open()
    for metrics, learned in (({"ready_made": {}}, 0), ({"ready_made": {}, "refit": {}}, 1), ({}, 1)):
        release = Artifact(old.path, old.manifest.__class__(**{**_fields(old), "metrics": metrics}))
        assert len(report._learned([release])) == learned


def _fields(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}


def test_a_release_without_an_order_is_refused(tiny: TinyWorkspace, tmp_path: Path) -> None:
    registry = tiny.releases
    old = registry.open()
    parts = {name: release_parts.part(old, name) for name in ("ranker", "encoder")}
    bare = registry.publish(parts, metrics={}, config=old.manifest.config)
    with pytest.raises(MissingError, match="has no documents"):
        refit.refit(SourceConfig(path=str(tmp_path)), tiny.path, release=bare.fingerprint)


def test_the_command_prints_what_it_learned(worst_first: Trained, tmp_path: Path) -> None:
    judgments_alone(worst_first, tmp_path / "judged")
    arguments = ["refit", "--judgments", str(tmp_path / "judged"), "--workspace", str(worst_first.workspace)]
    result = CliRunner().invoke(command.app, [*arguments, "--no-promote", "--json"])
    assert result.exit_code == 0, result.output
    outcome = json.loads(result.stdout)
    assert outcome["changed"]
    assert not outcome["live"]
    assert CliRunner().invoke(command.app, arguments).exit_code == 0
    live = Releases(worst_first.workspace).live()
    assert live is not None
    assert live.release == outcome["release"]


def test_a_quickstart_does_not_replace_an_order_that_was_learned(copied: Trained) -> None:
    registry = Releases(copied.workspace)
    for metrics, stays in (({"ready_made": {}}, False), ({"ready_made": {}, "refit": {"of": "another"}}, True)):
        release = with_order(copied.workspace, {"bm25": 1.0 + stays}, **metrics)
        pointer = registry.live()
        assert pointer is not None
        assert pointer.release == release.fingerprint
        assert bool(quickstarts._why_it_stays(registry, pointer)) == stays
