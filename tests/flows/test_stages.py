"""The contracts of all stages: fingerprints of before, kinds of input that are refused, the graph that is printed."""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows import stages
from pipeline import artifacts, config
from pipeline.artifacts import Artifact
from pipeline.errors import WrongKindError
from pipeline.manifest import FileRecord, Manifest, fingerprint
from pipeline.stage import Stage, stage_of

ROOT = Path(__file__).resolve().parents[2]

FINGERPRINTS = {
    "judgments.make": (1, "710015936431bc78d6d6f95a1c7f7394"),
    "corpus.make": (1, "8c7885f18663a74cae5a19fc788cd5e4"),
    "candidates.pairs": (1, "219fade81cfcccf6ba4fb1e36c409149"),
    "candidates.pool": (1, "69997c5e76ccd5876a7c22ff791a1fa8"),
    "candidates.mined": (1, "f426a7426a1574f16f554d16075de077"),
    "unlabelled.queries": (1, "7ff120b1638089ac68afc7c089f4d21a"),
    "unlabelled.pairs": (1, "eb1769b95cf411956175d420ab6d64bb"),
    "pretrain.make": (1, "70333e20e93f0bc958a35700befe40c1"),
    "teacher.make": (2, "811d0fa98b09924f73c0680841061c87"),
    "teacher_scores.make": (1, "43d9f587fd914c109ab6e7b5fb436d1a"),
    "teacher_scores.score": (1, "0650981a7182c0f78155ed5b3f1e1560"),
    "external_teacher.make": (1, "0052d9869645c9a021e024a232bb416f"),
    "ranker.make": (2, "66430c82d1149a86b3f391bb04f2d017"),
    "ranker.make, plain": (2, "f1bad6daea526740d039748707277129"),
    "encoder.make": (3, "b63811070b6767726adeff68675d5600"),
    "encoder.make, round 2": (3, "6ac1a8a303e6f1c3101a08bc8c2f3f54"),
    "negatives.make": (1, "955d838af5d99d72fa9ed1a4e5f2ff8c"),
    "fusion.make": (1, "0d0d876d7c51f4855929e96bae74a157"),
    "systems.make": (2, "e53e71595ebab7af243f6cfe9461febe"),  # Beside a live release its ranker is judged too now.
    "report.make": (1, "16e2f95e9ade411df0941a6a86b2efbf"),
    "report.make_from_run": (1, "6b80f4e31f35202be47e13708d91c61b"),
    "ablation.make": (2, "43872dbc3fba89115c0ee0d4790748df"),
    "bundle.make": (3, "b8f7ad35e73f02814a25fb725571b0eb"),
    "lexical_build.make": (1, "a2fee328d0e00d49160ba9989c1d6661"),  # Analysis 4: a re-index keeps its release's models.
    "lexical.run": (1, "09db4e89ae344c16911a12c400efb4a8"),
    "lexical.score": (1, "30ad7439594b787b648ab62097a50e16"),
    "documents.make": (2, "24cb7c520f947934bf1b0e6e82feb33a"),
    "vectors.make": (1, "5cd92cd6f2aabdc2ad990020c86d1c99"),
    "semantic_build.make": (1, "8a24154782ebfe607161cbea0b2cc8de"),
    "semantic.run": (1, "0ebec48655ce8a77ef547ea0c4ff73db"),
    "offline.features": (1, "9f28bdbacd0fe9663d422657bbd16801"),
}
"""Version and fingerprint that each stage had at commit 4896034 for the inputs of `calls`.

An artifact of that time is used again as long as the fingerprint stays. It changes only where the version is raised;
then CHANGELOG says what is made again.
"""


LATER = {
    "shards.collection",
    "augmentation.pairs",
    "general.make",
    "teacher_scores.mean",
    "study.make",
    "ranker_trials.scores",
    "ranker_trials.speeds",
    "bundle.make_unjudged",
    "import_stage.ranker",
    "import_stage.encoder",
    "fused_teacher.make",
    "bm25_teacher.make",
    "rank_fusion.make",
    "followed.make",
    "shards.documents",
    "shards.lexical",
}
"""Stages that commit 4896034 did not have."""


def artifact(folder: Path, kind: str, **metrics: Any) -> Artifact:
    """An artifact that has a manifest in memory, and a small model's config on disk."""
    path = folder / kind
    (path / "model").mkdir(parents=True, exist_ok=True)
    shape = {"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 4}
    shape |= {"intermediate_size": 64, "vocab_size": 300, "max_position_embeddings": 128}
    (path / "model" / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    files = {name: FileRecord(0, "") for name in ("run.parquet", "model/config.json")}
    manifest = Manifest(kind=kind, fingerprint=kind, version=1, config={}, inputs={}, files=files, metrics=metrics)
    return Artifact(path, manifest)


def calls(folder: Path) -> Iterator[tuple[str, Callable[[], Artifact]]]:
    """Each stage called with the defaults of the recipe and artifacts whose fingerprints are their kinds."""
    from index import documents, lexical, lexical_build, semantic, semantic_build, vectors
    from pipeline.data import candidates, corpus, judgments, unlabelled
    from pipeline.evaluation import ablation, report, systems
    from pipeline.evaluation.ablation import AblationRun
    from pipeline.evaluation.runs import RunFile
    from pipeline.export import bundle
    from pipeline.training import encoder, external_teacher, fusion, negatives, pretrain, ranker, teacher
    from pipeline.training import teacher_scores as scoring
    from serving.runtime import offline

    def of(kind: str) -> Artifact:
        return artifact(folder, kind)

    recipe = config.Recipe()
    pool_config, data, pairs, pool, run = recipe.candidates, of("data"), of("pairs"), of("pool"), of("run")
    source = config.SourceConfig(path=str(folder / "source"), name="s")
    (folder / "source" / "qrels").mkdir(parents=True)
    (folder / "source" / "corpus.jsonl").write_text('{"_id": "d1", "title": "a", "text": "b"}\n')
    (folder / "source" / "queries.jsonl").write_text('{"_id": "q1", "text": "a"}\n')
    (folder / "source" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    file = folder / "scores.txt"
    file.write_text("x")
    inputs = {"data": data, "pairs": pairs, "base": of("pretrained")}
    narrow = dataclasses.replace(recipe.encoder, dimensions=32, layers=0)
    hard = {"data": data, "pairs": of("hard_pairs"), "base": of("pretrained"), "teacher_scores": of("hard_pairs")}
    judged = {"features": of("features"), "fusion": of("fusion")}
    live = {"live": systems.ReleaseScores(features=of("features"), fusion=of("fusion"))}
    scores, two = of("scores"), artifact(folder, "systems", systems=["a", "b"])
    trial = AblationRun("plain", 0, 1, {"valid": scores, "test": scores})
    parts: Mapping[str, Any] = {"ranker": of("bundle"), "encoder": of("bundle"), "data": data, "pool": pool}
    parts = {**parts, **{kind: of(kind) for kind in ("lexical", "index", "documents")}}

    def call(function: Callable[..., Artifact], *arguments: Any, **inputs: Any) -> Callable[[], Artifact]:
        return lambda: function(folder, *arguments, **inputs)

    def embed(texts: Any) -> Any:
        raise AssertionError("no stage runs here")

    yield "judgments.make", call(judgments.make, config.DataConfig(sources=(source,)))
    yield "corpus.make", call(corpus.make, [source], Path(), "error")
    yield "candidates.pairs", call(candidates.pairs, pool_config, data=data, run=run)
    yield "candidates.pool", call(candidates.pool, pool_config, data=data, runs=[run, run])
    yield "candidates.mined", call(candidates.mined, 30, data=data, pairs=pairs, runs=[run, run])
    yield "unlabelled.queries", call(unlabelled.queries, pool_config, data=data)
    yield (
        "unlabelled.pairs",
        call(unlabelled.pairs, pool_config, data=data, labelled=pairs, asked=of("asked"), run=run),
    )
    yield "pretrain.make", call(pretrain.make, recipe.pretrain, "scratch", data=data)
    yield "teacher.make", call(teacher.make, recipe.teacher, pool_config, **inputs)
    scored = {"teacher": of("teacher"), "data": data, "pairs": pairs}
    yield "teacher_scores.make", call(scoring.make, **scored, layers=(1, 2), width=64)
    yield "teacher_scores.score", call(scoring.score, model=of("teacher"), data=data, pairs=pool, split="test")
    external = config.ExternalTeacherConfig(scores=str(file))
    yield "external_teacher.make", call(external_teacher.make, external, data=data, pairs=pairs, layers=())
    student = {**inputs, "teacher": of("teacher")}
    yield (
        "ranker.make",
        call(ranker.make, recipe.ranker, pool_config, **student, teacher_scores=of("teacher_scores")),
    )
    plain = ranker.plain(recipe.ranker)
    yield "ranker.make, plain", call(ranker.make, plain, pool_config, **student, teacher_scores=None)
    yield "encoder.make", call(encoder.make, narrow, pool_config, **inputs, teacher_scores=of("teacher_scores"))
    yield "encoder.make, round 2", call(encoder.make, narrow, pool_config, **hard, start=of("encoder"))
    mined = {"mined": of("mined"), "mined_scores": of("teacher_scores")}
    yield (
        "negatives.make",
        call(negatives.make, recipe.encoder.mining, pairs=pairs, scores=of("teacher_scores"), **mined),
    )
    yield "fusion.make", call(fusion.make, features=of("features"), pool=pool)
    yield "systems.make", call(systems.make, **judged, scores={"teacher": scores}, **live)
    about: dict[str, Any] = {"data": data, "title": "t"}
    plan = report.ReportPlan(title="t", baseline="a", subject="b")
    yield "report.make", call(report.make, recipe.evaluation, data=data, systems=two, plan=plan)
    files, plan = {"a": RunFile(file)}, report.ReportPlan(title="t", split=None)
    yield "report.make_from_run", call(report.make_from_run, recipe.evaluation, data=data, systems=files, plan=plan)
    trials = {"references": [trial], "students": [trial], "ceiling": "plain"}
    yield "ablation.make", call(ablation.make, recipe.evaluation, **about, pool=pool, **trials)
    yield "bundle.make", call(bundle.make, recipe.export, model=of("ranker"), data=data, pairs=pairs)
    yield "lexical_build.make", call(lexical_build.make, recipe.index, data=data)
    yield "lexical.run", call(lexical.run, lexical=of("lexical"), data=data, depth=20, splits=("train",))
    yield "lexical.score", call(lexical.score, lexical=of("lexical"), data=data, pairs=pool, split="test")
    yield "documents.make", call(documents.make, data=data)
    yield "vectors.make", call(vectors.make, vectors.DocumentEncoder("digest", embed), data=data)
    yield "semantic_build.make", call(semantic_build.make, recipe.index, vectors=of("vectors"))
    searched = {"index": of("index"), "data": data, "embed_queries": embed}
    yield "semantic.run", call(semantic.run, **searched, depth=20, splits=("train",))
    yield "offline.features", call(offline.features, **parts)


def test_fingerprints_are_those_of_before_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks: list[tuple[int, str]] = []

    def fingerprinted(
        _workspace: Path, kind: str, *, version: int, config: Any, inputs: Mapping[str, artifacts.Input], build: object
    ) -> Artifact:
        digests = {name: artifacts._digest(item) for name, item in inputs.items()}
        marks.append((version, fingerprint(kind, version, json.loads(json.dumps(config)), digests)))
        return artifact(tmp_path, kind)

    monkeypatch.setattr(artifacts, "make", fingerprinted)
    names = []
    for name, make in calls(tmp_path):
        make()
        names.append(name)
    now = dict(zip(names, marks, strict=True))
    assert now.keys() == FINGERPRINTS.keys()
    assert {name: mark for name, mark in now.items() if mark[0] <= FINGERPRINTS[name][0]} == {
        name: mark for name, mark in FINGERPRINTS.items() if now[name][0] <= mark[0]
    }
    functions = {name.split(",")[0] for name in names} | {"retrain.publish"}
    assert functions | LATER == {f"{entry.module.split('.')[-1]}.{entry.function}" for entry in stages.graph()}


def declared() -> list[tuple[Callable[..., Artifact], Stage, str]]:
    return [(stages.function(entry), entry.stage, name) for entry in stages.graph() for name in entry.stage.inputs]


@pytest.mark.parametrize(("function", "stage", "name"), declared())
def test_an_artifact_of_another_kind_is_refused_by_both_kinds_names(
    function: Callable[..., Artifact], stage: Stage, name: str, tmp_path: Path
) -> None:
    wrong = artifact(tmp_path, "card")
    for value in (wrong, [wrong], {"a": wrong}):
        with pytest.raises(WrongKindError) as raised:
            function(tmp_path, **{name: value})
        message = str(raised.value)
        assert all(kind in message for kind in ("card", stage.name, name, *stage.kinds(name)))
        assert "delete" not in message
    assert raised.value.exit_code == 2


def test_every_artifact_that_a_stage_takes_is_declared_and_passed_by_keyword() -> None:
    for entry in stages.graph():
        function = stages.function(entry)
        assert stage_of(function) is entry.stage
        for name, parameter in inspect.signature(function).parameters.items():
            if "Artifact" in str(parameter.annotation):
                assert name in entry.stage.inputs, (entry, name)
            if name in entry.stage.inputs:
                assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_the_graph_has_every_file_that_declares_a_stage() -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for package in ("pipeline", "index", "serving", "flows")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"^\w+ = Stage\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert files == {entry.file for entry in stages.graph()}
    fields = {field.name for field in dataclasses.fields(config.Recipe)}
    for entry in stages.graph():
        assert not entry.stage.section or entry.stage.section.split(".")[0] in fields, entry


def test_every_kind_that_a_stage_takes_is_made_by_a_stage() -> None:
    kinds = {entry.stage.kind for entry in stages.graph()}
    for entry in stages.graph():
        for name in entry.stage.inputs:
            assert set(entry.stage.kinds(name)) <= kinds, (entry, name)


def test_the_readme_has_the_picture_of_the_stages() -> None:
    readme = (ROOT / "flows" / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- stages -->\n(.*?)\n<!-- /stages -->", readme, re.DOTALL)
    assert block, "flows/README.md has no block <!-- stages -->"
    assert block[1] == stages.mermaid(), "print it with `relevance stages --mermaid` and put it into flows/README.md"
