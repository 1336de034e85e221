"""The gate in a real workspace: a first release has a floor, and a later one has a memory of earlier releases."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import judging, publishing, retrain
from flows.cli.command import main
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.config import GateConfig
from pipeline.evaluation import systems
from pipeline.features import FEATURES, Fusion
from pipeline.releases import Releases
from pipeline.training import fusion
from tests.flows.conftest import Trained

WORST_FIRST = Fusion(weights=dict.fromkeys(FEATURES, -1.0))
"""An order that puts the documents with the best scores last."""


def with_fusion(registry: Releases, release: Artifact, fusion: Fusion) -> Artifact:
    """Publishes the release's parts with another fusion."""
    parts = {name: release_parts.part(release, name) for name in judging.PARTS}

    def build(staging: artifacts.Staging) -> Mapping[str, Any]:
        (staging.folder / "fusion.json").write_text(fusion.to_json(), encoding="utf-8")
        return parts["fusion"].metrics

    weights = dict(fusion.weights)
    parts["fusion"] = artifacts.make(registry.workspace, "fusion", version=1, config=weights, inputs={}, build=build)
    return registry.publish(parts, metrics=release.metrics, config=release.manifest.config)


def gate_report(workspace: Path, live: Artifact) -> Artifact:
    """The newest report against this live release."""
    reports = [
        artifacts.load(path.parent)
        for path in (workspace / "artifacts" / "report").glob("*/manifest.json")
        if f"against live {live.fingerprint[:12]}" in path.read_text(encoding="utf-8")
    ]
    return max(reports, key=lambda report: (report.path / "manifest.json").stat().st_mtime_ns)


def test_a_release_worse_than_an_earlier_one_is_refused_though_it_beats_the_live_one(copied: Trained) -> None:
    registry = Releases(copied.workspace)
    first = registry.open()
    bad = with_fusion(registry, first, WORST_FIRST)
    registry.promote(bad.fingerprint, reason="a person wants it")
    gate = GateConfig(margin=0.0, slice_margin=1.0, min_queries=1)
    recipe = dataclasses.replace(
        copied.recipe, gate=gate, encoder=dataclasses.replace(copied.recipe.encoder, dimensions=8)
    )
    outcome = retrain.retrain(recipe, copied.workspace)
    assert not outcome.live
    name = systems.earlier_system(first.fingerprint)
    assert [name in reason for reason in outcome.reasons] == [True]
    report = gate_report(copied.workspace, bad)
    assert set(report.metrics["systems"]) >= {name, systems.LIVE, systems.FUSED}

    forgetful = dataclasses.replace(recipe, gate=dataclasses.replace(gate, earlier_releases=0))
    assert retrain.retrain(forgetful, copied.workspace).live
    assert name not in gate_report(copied.workspace, bad).metrics["systems"]


def test_an_earlier_release_is_judged_as_it_was_when_it_was_made(copied: Trained) -> None:
    registry = Releases(copied.workspace)
    first = registry.open()
    bad = with_fusion(registry, first, WORST_FIRST)
    registry.promote(bad.fingerprint, reason="a person wants it")
    recipe = dataclasses.replace(copied.recipe, encoder=dataclasses.replace(copied.recipe.encoder, dimensions=8))
    retrain.retrain(recipe, copied.workspace, promote=False)

    def values(report: Artifact, system: str) -> dict[str, float]:
        frame = pd.read_parquet(report.file("per_query.parquet"))
        frame = frame[frame["system"] == system]
        return dict(zip(frame["query_id"], frame["ndcg@10"], strict=True))

    now = values(gate_report(copied.workspace, bad), systems.earlier_system(first.fingerprint))
    assert now == pytest.approx(values(copied.outcome.report, systems.FUSED))


def test_the_memory_holds_distinct_complete_releases_that_nobody_rolled_back(copied: Trained) -> None:
    registry = Releases(copied.workspace)
    first = registry.open()
    published = [first]
    for number in range(1, 5):
        fusion = Fusion(weights=dict.fromkeys(FEATURES, float(number)))
        published.append(with_fusion(registry, first, fusion))
        registry.promote(published[-1].fingerprint, reason="step")
    registry.rollback(reason="a person dislikes it")
    same_order = registry.publish(
        {name: release_parts.part(published[3], name) for name in judging.PARTS},
        metrics={},
        config={"documents": "others"},
    )
    registry.promote(same_order.fingerprint, reason="a re-index")
    live = registry.live()
    assert live is not None

    def rivals(count: int) -> list[str]:
        return [item.fingerprint for item in publishing.earlier_rivals(registry, live, same_order, count)]

    assert rivals(5) == [published[number].fingerprint for number in (2, 1, 0)]
    assert rivals(2) == [published[number].fingerprint for number in (2, 1)]
    assert rivals(0) == []
    damaged = published[2].path / "fusion" / "fusion.json"
    text = damaged.read_text(encoding="utf-8")
    damaged.unlink()
    damaged.write_text(text.replace("2.0", "9.0"), encoding="utf-8")
    assert rivals(2) == [published[number].fingerprint for number in (1, 0)]


def retrained_anew(
    copied: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *changes: str
) -> tuple[int, str, dict[str, Any]]:
    """The exit code, output and card of a first retraining over finished stages."""
    shutil.rmtree(copied.workspace / "releases", ignore_errors=True)
    command = ["relevance", "retrain", str(copied.world / "tiny.toml"), "--workspace", str(copied.workspace)]
    overrides = [f"data.root={copied.world}", *changes]
    monkeypatch.setattr("sys.argv", [*command, *(word for change in overrides for word in ("--set", change))])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    card = json.loads((copied.workspace / "card.json").read_text(encoding="utf-8"))
    return code, " ".join(capsys.readouterr().out.split()), card


def without_fusion(copied: Trained) -> None:
    """Removes the fusion and what was made from it, so that a retraining makes them anew."""
    for kind in ("fusion", "systems", "report", "release"):
        shutil.rmtree(copied.workspace / "artifacts" / kind)


@pytest.fixture
def ranker_alone(copied: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `/rerank` give the order of the ranker alone, which trained for seconds and is surely worse than BM25."""
    without_fusion(copied)
    monkeypatch.setattr(fusion, "_rerank_order", lambda values, fields: "ranker")


def test_a_ranker_surely_worse_than_bm25_lets_rerank_give_the_fused_order(copied: Trained) -> None:
    metrics = copied.outcome.report.metrics
    assert metrics["systems"]["distilled student"]["mean"] < metrics["systems"]["BM25"]["mean"]
    assert metrics["surfaces"]["/rerank"]["system"] == "fused"
    assert metrics["surfaces"]["/rerank"]["verdict"] != "worse"


def test_a_first_release_surely_worse_than_bm25_ends_with_exit_code_3_and_is_not_live(
    copied: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_fusion(copied)
    monkeypatch.setattr(fusion, "fit", lambda *_: (WORST_FIRST, {"chosen": "worst first", "ndcg": {}}))
    code, output, card = retrained_anew(copied, monkeypatch, capsys)
    assert code == 3
    assert "is not live, and no other is" in output
    assert "/search is surely worse than BM25" in output
    assert Releases(copied.workspace).live() is None
    assert card["live"] is False
    assert card["next"] == [f"relevance releases promote {card['release'][:12]} --workspace {copied.workspace}"]


@pytest.mark.usefixtures("ranker_alone")
def test_a_first_release_whose_rerank_is_surely_worse_than_bm25_is_not_live_and_says_so_first(
    copied: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, card = retrained_anew(copied, monkeypatch, capsys, "gate.rerank_floor=true")
    assert code == 3
    assert Releases(copied.workspace).live() is None
    verdict = f"Release {card['release'][:12]} is not live, and no other is: /rerank, the ranker alone, is surely worse"
    assert output.startswith(verdict)
    assert card["next"] == [f"relevance releases promote {card['release'][:12]} --workspace {copied.workspace}"]

    monkeypatch.setattr("sys.argv", ["relevance", *card["next"][0].split()[1:]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    promoted = capsys.readouterr().out
    assert "warning: /rerank is surely worse than BM25" in " ".join(promoted.split())


@pytest.mark.usefixtures("ranker_alone")
def test_a_recipe_that_allows_it_goes_live_and_the_card_and_the_report_begin_with_a_warning(
    copied: Trained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output, card = retrained_anew(copied, monkeypatch, capsys)
    assert code == 0
    first, rest = output.split(" Warning: /rerank is surely worse than BM25", 1)
    assert first.startswith(f"Release {card['release'][:12]} went live: there was no live release to compare with")
    assert "/search is " in first
    assert "than BM25: ndcg@10 " in first
    assert '"fused": true' in rest[: rest.index("search-relevance")]
    live = Releases(copied.workspace).open("live")
    page = (live.path / "report" / "report.html").read_text(encoding="utf-8")
    assert 0 < page.index("/rerank is surely worse than BM25") < page.index("<section")
