"""The small world from pairs to served scores: one retraining, looked at from all sides."""

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from flows import judging, promotion, retrain, summary, training
from flows import reindex as reindexing
from flows import report as reporting
from index import vector_matrix
from pipeline import artifacts, release_parts
from pipeline.config import ExportConfig, Recipe, SourceConfig
from pipeline.errors import ArtifactError, ConflictError
from pipeline.evaluation.runs import RunFile
from pipeline.releases import Releases
from serving.runtime import processor
from tests.flows.conftest import Trained


def test_release_is_live_and_holds_every_part(trained: Trained) -> None:
    registry = Releases(trained.workspace)
    opened = registry.open("live")
    assert opened.fingerprint == trained.outcome.release.fingerprint
    assert trained.outcome.live
    for name in judging.PARTS:
        assert release_parts.part(opened, name).manifest.files


def test_served_score_is_the_trained_models_score(trained: Trained) -> None:
    """Text → service engine → ONNX equals text → tokenizer → PyTorch."""
    from pipeline.models.cross_encoder import CrossEncoder
    from serving.runtime.engine import Engine

    opened = Releases(trained.workspace).open()
    bundle = release_parts.part(opened, "ranker")
    engine = Engine(bundle.path, precision="fp32")
    source = json.loads(bundle.file("bundle.json").read_text(encoding="utf-8"))["source"]
    model = CrossEncoder.load(trained.workspace / "artifacts" / "ranker" / source)
    query, documents = "best knife 3", ["red knife\na knife for the kitchen", "", "blue lawn", "x " * 400]
    served = engine.scores(query, documents)
    for score, document in zip(served, documents, strict=True):
        ids, types = model.template.assemble(
            model.tokenizer.encode(query, add_special_tokens=False).ids,
            model.tokenizer.encode(document, add_special_tokens=False).ids,
        )
        with torch.no_grad():
            expected = model(torch.tensor([ids]), torch.tensor([types]), torch.ones(1, len(ids), dtype=torch.long))
        assert score == pytest.approx(float(expected), abs=1e-4)


def test_report_judges_every_system_on_the_same_queries(trained: Trained) -> None:
    per_query = pd.read_parquet(trained.outcome.report.file("per_query.parquet"))
    systems = {"BM25", "encoder", "BM25+encoder", "plain student", "distilled student", "teacher", "fused"}
    assert set(per_query["system"]) == systems
    assert per_query.groupby("system")["query_id"].nunique().nunique() == 1
    test_queries = pd.read_parquet(_artifact(trained, "data") / "judgments.parquet").query("split == 'test'")
    assert set(per_query["query_id"]) == set(test_queries["query_id"])


def _artifact(trained: Trained, kind: str) -> Path:
    (manifest,) = (trained.workspace / "artifacts" / kind).glob("*/manifest.json")
    return manifest.parent


def test_the_fusion_of_judged_lists_sees_what_is_retrieved_too(copied: Trained) -> None:
    opened, workspace = copied.outcome.release, copied.workspace
    data, vectors = (artifacts.load(_artifact(copied, kind)) for kind in ("data", "vectors"))
    parts = {name: release_parts.part(opened, name) for name in ("lexical", "documents", "index")}
    models = judging.ScoringModels(
        ranker=release_parts.part(opened, "ranker"), encoder=release_parts.part(opened, "encoder")
    )
    judged = judging.judge(
        dataclasses.replace(copied.recipe.candidates, pool="judged"),
        retrain.Runner(workspace),
        models=models,
        corpus=judging.SearchableCorpus(vectors=vectors, **parts),
        data=data,
    )
    inputs = judged.fusion.manifest.inputs
    pool = pd.read_parquet(judged.pool.file("pairs.parquet"))
    retrieved = pd.read_parquet(workspace / "artifacts" / "pool" / str(inputs["retrieved_pool"]) / "pairs.parquet")
    assert set(inputs) == {"features", "pool", "retrieved_features", "retrieved_pool"}
    assert "unjudged" not in set(pool["source"])
    assert "unjudged" in set(retrieved["source"])
    assert set(retrieved["split"]) == {"valid"}
    assert set(retrieved["query_id"]) == set(pool[pool["split"] == "valid"]["query_id"])


def test_second_retraining_does_no_work_and_changes_nothing(copied: Trained) -> None:
    before = sorted(str(path) for path in copied.workspace.rglob("manifest.json"))
    outcome = retrain.retrain(copied.recipe, copied.workspace)
    assert outcome.release.fingerprint == copied.outcome.release.fingerprint
    assert outcome.live
    assert sorted(str(path) for path in copied.workspace.rglob("manifest.json")) == before
    live = Releases(copied.workspace).live()
    assert live is not None
    assert live.generation == 1


def test_new_recipe_is_compared_with_the_live_release(copied: Trained) -> None:
    recipe = dataclasses.replace(copied.recipe, encoder=dataclasses.replace(copied.recipe.encoder, dimensions=8))
    outcome = retrain.retrain(recipe, copied.workspace, promote=False)
    assert outcome.release.fingerprint != copied.outcome.release.fingerprint
    assert not outcome.live
    assert "there is no live release" not in " ".join(outcome.reasons)
    reports = [
        json.loads(path.read_text(encoding="utf-8")) for path in copied.workspace.glob("artifacts/report/*/report.json")
    ]
    assert ["fused", "live"] in [
        [name for name in report["systems"] if name in ("fused", "live")] for report in reports
    ]


def test_reindex_embeds_only_what_changed(copied: Trained, tmp_path: Path) -> None:
    source = tmp_path / "documents"
    source.mkdir()
    frame = pd.read_parquet(copied.world / "tiny" / "documents.parquet")
    frame.loc[3, "text"] = "a samovar for the kitchen, very shiny"
    frame = pd.concat(
        [frame.drop(index=[5, 6]), pd.DataFrame([{"doc_id": "new", "title": "teapot", "text": "holds tea"}])]
    )
    frame.to_parquet(source / "documents.parquet", index=False)
    figures = reindexing.reindex([str(source)], copied.workspace)
    assert figures["live"]
    assert (figures["documents"], figures["embedded"], figures["reused"]) == (149, 2, 147)
    # The second run finds what the first one made, and says what it did itself.
    again = reindexing.reindex([str(source)], copied.workspace)
    assert again["release"] == figures["release"]
    assert (again["documents"], again["embedded"], again["reused"]) == (149, 0, 149)

    from serving.scoring.searcher import Searcher

    results = Searcher(Releases(copied.workspace).open().path).search("samovar", top_n=3)
    assert results.lexical[0].doc_id == "d3"
    back = Releases(copied.workspace).rollback(reason="test")
    assert back.release == copied.outcome.release.fingerprint
    assert Searcher(Releases(copied.workspace).open().path).search("samovar", top_n=3).lexical == []


def test_reindexed_vectors_equal_a_full_reindex(copied: Trained, tmp_path: Path) -> None:
    frame = pd.read_parquet(copied.world / "tiny" / "documents.parquet").iloc[::-1]
    (tmp_path / "documents").mkdir()
    frame.to_parquet(tmp_path / "documents" / "documents.parquet", index=False)
    matrices, embedded = [], []
    for full in (False, True):
        figures = reindexing.reindex([str(tmp_path / "documents")], copied.workspace, full=full, promote=False)
        manifests = (copied.workspace / "artifacts" / "vectors").glob("*/manifest.json")
        newest = max(manifests, key=lambda path: path.stat().st_mtime_ns).parent
        matrices.append(vector_matrix.read(artifacts.load(newest))[:])
        embedded.append(figures["embedded"])
    assert embedded == [0, 150]
    assert np.array_equal(matrices[0], matrices[1])


def test_report_of_a_release_on_given_judgments_uses_only_queries_kept_from_training(
    copied: Trained, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    source = SourceConfig(path=str(copied.world / "tiny"))
    own_report = reporting.report(source, copied.workspace)
    reporting.copy_files(own_report, out)
    judged = set(pd.read_parquet(out / "per_query.parquet")["query_id"])
    data = pd.read_parquet(_data_with_all_splits(copied))
    assert judged == set(data.query("split == 'test'")["query_id"])
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    every = reporting.report(source, copied.workspace, split="all")
    assert set(pd.read_parquet(every.file("per_query.parquet"))["query_id"]) == set(data["query_id"])
    assert own_report.fingerprint != every.fingerprint


def _data_with_all_splits(trained: Trained) -> Path:
    for path in (trained.workspace / "artifacts" / "data").glob("*/judgments.parquet"):
        if pd.read_parquet(path)["split"].nunique() == 3:
            return path
    raise AssertionError("no data artifact with three splits")


def test_report_of_a_release_judges_what_trec_eval_judges(copied: Trained, tmp_path: Path) -> None:
    """A negative grade counts as 0, and a judged document that the collection lacks is no error."""
    source = tmp_path / "tiny"
    shutil.copytree(copied.world / "tiny", source)
    frame = pd.read_parquet(source / "judgments.parquet")
    frame.loc[1, "grade"] = -1
    absent = frame.head(1).assign(doc_id="absent", grade=1)
    pd.concat([frame, absent]).to_parquet(source / "judgments.parquet", index=False)
    for split in ("test", "all"):
        judged = reporting.report(SourceConfig(path=str(source)), copied.workspace, split=split)  # type: ignore[arg-type]
        assert json.loads(judged.file("report.json").read_text(encoding="utf-8"))["queries"]["judged"] > 0


def test_report_of_a_run_file(copied: Trained, tmp_path: Path) -> None:
    judgments = pd.read_parquet(copied.world / "tiny" / "judgments.parquet")
    run = tmp_path / "perfect.txt"
    lines = (f"{row.query_id} Q0 {row.doc_id} 1 {row.grade} perfect" for row in judgments.itertuples())
    run.write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = SourceConfig(path=str(copied.world / "tiny"))
    artifact = reporting.report_on_run(source, copied.workspace, run=RunFile(run), baseline="live")
    report = json.loads(artifact.file("report.json").read_text(encoding="utf-8"))
    assert report["systems"]["perfect"]["measures"]["ndcg@10"]["mean"] == pytest.approx(1.0)
    assert report["systems"]["fused"]["measures"]["ndcg@10"]["mean"] < 1.0


@pytest.mark.parametrize(
    "stage", ["pretrained", "teacher", "teacher_scores", "ranker", "encoder", "vectors", "features"]
)
def test_killed_retraining_ends_in_the_same_release(trained: Trained, tmp_path: Path, stage: str) -> None:
    """Takes the stage and what follows away, kills the run while it makes the stage again, and starts once more."""
    workspace = tmp_path / "workspace"
    shutil.copytree(trained.workspace, workspace)
    shutil.rmtree(workspace / "releases")
    order = [
        "pretrained",
        "teacher",
        "teacher_scores",
        "ranker",
        "encoder",
        "bundle",
        "vectors",
        "index",
        "run",
        "pool",
    ]
    order += ["features", "fusion", "scores", "systems", "report", "release"]
    for kind in order[order.index(stage) :]:
        shutil.rmtree(workspace / "artifacts" / kind, ignore_errors=True)
    command = [sys.executable, "-m", "flows.cli", "retrain", str(trained.world / "tiny.toml")]
    command += ["--workspace", str(workspace), "--set", f"data.root={trained.world}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not list((workspace / "artifacts" / stage).glob("*.partial")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    outcome = retrain.retrain(trained.recipe, workspace)
    assert outcome.release.fingerprint == trained.outcome.release.fingerprint
    assert outcome.live
    ours, theirs = (
        pd.read_parquet(item.file("per_query.parquet")) for item in (outcome.report, trained.outcome.report)
    )
    pd.testing.assert_frame_equal(ours, theirs)


def test_damaged_artifact_is_named(copied: Trained) -> None:
    path = next((copied.workspace / "artifacts" / "teacher").glob("*/head.json"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"head\.json"):
        retrain.retrain(copied.recipe, copied.workspace)


def test_promotion_that_another_publisher_overtook_is_refused(copied: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Releases(copied.workspace)
    recipe = dataclasses.replace(
        copied.recipe, gate=dataclasses.replace(copied.recipe.gate, margin=1.0, slice_margin=1.0, min_queries=1)
    )
    first = retrain.retrain(recipe, copied.workspace, promote=False).release
    real = promotion.compare_with_live

    def overtaken(*args: object, **kwargs: object) -> object:
        registry.promote(first.fingerprint, reason="another publisher")
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(promotion, "compare_with_live", overtaken)
    other = dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, dimensions=8))
    with pytest.raises(ConflictError, match="generation"):
        retrain.retrain(other, copied.workspace)
    assert os.listdir(copied.workspace / "artifacts" / "release")


def test_fp16_is_exported_only_where_a_gpu_is_or_the_recipe_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> bool:
        return False

    monkeypatch.setattr("torch.cuda.is_available", no)
    monkeypatch.setattr(processor, "has_cuda", no)
    assert training.fitted(Recipe()).export.precisions == ("fp32", "int8", "w8")
    named = Recipe(export=ExportConfig(precisions=("fp32", "fp16")))
    assert training.fitted(named) == named
    monkeypatch.setattr(processor, "has_cuda", lambda: True)
    assert training.fitted(Recipe()) == Recipe()


def test_a_verdict_names_the_release_that_was_live(copied: Trained) -> None:
    outcome = copied.outcome

    def verdict(**gate: Any) -> str:
        decided = promotion.GateOutcome(**{"live": True, "agreed": True, "reasons": ("why",), **gate})
        return dataclasses.replace(outcome, gate=decided).verdict.removeprefix(
            f"Release {outcome.release.fingerprint[:12]} "
        )

    other = "ab" * 16
    assert verdict(before=None) == "went live: why"
    assert verdict(before=other) == "went live in place of release abababababab: why"
    assert verdict(before=outcome.release.fingerprint) == "is live: why"
    refused = {"live": False, "agreed": False}
    assert verdict(before=other, **refused) == "is not live, and release abababababab stays: why"
    assert verdict(before=None, **refused) == "is not live, and no other is: why"


def test_the_commands_to_try_next_are_those_of_what_is_live(copied: Trained) -> None:
    """A refused release is searched by its name: without it the one that stays live would answer."""
    new = copied.outcome.release.fingerprint[:12]
    registry = Releases(copied.workspace)
    pointer = registry.pointer_file.recover()
    assert pointer is not None

    def shown(*, live: bool) -> tuple[list[str], str]:
        gate = promotion.GateOutcome(live=live, agreed=live, reasons=("why",), before="ab" * 16)
        card = summary.make(dataclasses.replace(copied.outcome, gate=gate), copied.workspace)
        assert all(command.endswith(f" --workspace {copied.workspace}") for command in card["next"])
        console = Console(width=200, record=True, file=io.StringIO())
        console.print(summary.render(card, copied.workspace))
        commands = [command.removesuffix(f" --workspace {copied.workspace}") for command in card["next"]]
        heading = console.export_text().split(card["next"][0])[0].strip().splitlines()[-1]
        return commands, heading

    assert shown(live=True) == (["relevance serve", 'relevance search "…"'], "try next")
    refused = [f'relevance search "…" --release {new}', f"relevance releases promote {new}"]
    heading = f"release {pointer.release[:12]} answers as before; to search with the new one, and to make it live"
    assert shown(live=False) == (refused, heading)
    (copied.workspace / "releases" / "live.json").unlink()
    (copied.workspace / "releases" / "history.jsonl").unlink()
    assert shown(live=False) == (refused[1:], "nothing is live; to make the new one live")


def test_a_release_keeps_the_precisions_of_its_recipe_whatever_the_machine_exports(
    copied: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(processor, "has_cuda", lambda: False)
    default = ExportConfig()
    recipe = dataclasses.replace(copied.recipe, export=default)
    release = retrain.retrain(recipe, copied.workspace, promote=False).release
    assert "fp16" in release.manifest.config["export"]["precisions"]
    exported = release_parts.part(release, "ranker").metrics["precisions"]
    assert set(exported) == set(default.precisions) - {"fp16"}
