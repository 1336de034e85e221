"""Ready-made models served alone and over documents, from the command line to the answers and the next retraining."""

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from flows import export, gc, judging, own_process, publishing, quickstart, ready_made, refit, reindex, report, retrain
from flows import releases as listing
from flows.ready_made import ReadyMadeModels
from pipeline import recipe as recipes
from pipeline import release_parts, releases
from pipeline.config import SourceConfig
from pipeline.errors import ConfigError, ImplausibleError, MissingError
from pipeline.evaluation import systems
from pipeline.features import Fusion
from pipeline.models.ready_made_files import ReadyMadeOptions
from pipeline.passages import Passages
from serving.scoring.searcher import Searcher
from tests.flows.conftest import Trained, index_artifacts
from tests.flows.test_refit import with_order
from tests.pipeline.models.test_ready_made import body
from tests.serving.processes import Server, watch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A small random ranker and encoder, each a folder of transformers."""
    folder = tmp_path_factory.mktemp("models")
    return {"ranker": str(body(folder / "ranker", "bert", head=1)), "encoder": str(body(folder / "encoder", "bert"))}


def poisoned(folder: Path) -> str:
    """A folder for PYTHONPATH in which torch and transformers are modules that must not be imported."""
    for name in ("torch", "transformers"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    return str(folder)


@contextmanager
def served(*arguments: str, path: str = "", cwd: Path) -> Iterator[Server]:
    """The service of one `relevance` command on a free port, which must end well."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "flows.cli", *arguments, "--port", "0"],
        env={
            **os.environ,
            "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
            "RELEVANCE_THREADS": "1",
            "RELEVANCE_LOG": "json",
        },
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
    )
    server = watch(process)
    try:
        yield server
    finally:
        assert server.stop() == 0


def ask(server: Server, path: str, body: Any = None) -> Any:
    """The JSON answer of a path; that of an error has its status under `code`."""
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode() if body else None, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error) | {"code": error.code}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports models in this process; one of its own, as the tests that start a service have it, loads torch anew."""
    monkeypatch.setattr(own_process, "run", lambda function, *arguments: function(*arguments))


@pytest.mark.parametrize("command", [("serve", "--ranker"), ("quickstart", "docs.csv", "--encoder")], ids=" ".join)
def test_a_model_that_is_not_there_is_answered_before_torch_is_loaded(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "docs.csv").write_text("title\na steel deck\n", encoding="utf-8")
    path = f"{poisoned(tmp_path / 'poison')}{os.pathsep}{ROOT}"
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", *command, "no/such-model"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("relevance: no/such-model: not in the local hub cache, and the hub cannot be reached")
    assert "give the folder of a model, or package:NAME" in last
    assert "scratch" not in last
    assert not (tmp_path / "workspace").exists()


def test_two_folders_are_served_and_the_second_start_imports_no_torch(folders: dict[str, str], tmp_path: Path) -> None:
    arguments = ("serve", "--ranker", folders["ranker"], "--encoder", folders["encoder"])
    answers = []
    for path in ("", poisoned(tmp_path / "poison")):
        with served(*arguments, path=path, cwd=tmp_path) as server:
            ranked = ask(server, "/rerank", {"query": "steel angle", "texts": ["a deck", "steel angle"]})
            vectors = ask(server, "/embed", {"inputs": ["steel angle"]})
            openai = ask(server, "/v1/embeddings", {"input": "steel angle", "model": "x"})
            assert openai["data"][0]["embedding"] == pytest.approx(vectors[0])
            search = ask(server, "/search", {"query": "steel"})
            assert search["code"] == 404
            assert "no documents to search" in search["message"]
            unanswered = ask(server, "/v1/models")["unanswered"]
            assert "/search" in unanswered
            assert not {"/rerank", "/embed"} & set(unanswered)
            answers.append((ranked, vectors))
    assert answers[0] == answers[1]
    assert len(listing.releases(tmp_path / "workspace")["releases"]) == 1


@pytest.mark.usefixtures("in_this_process")
def test_a_changed_folder_is_imported_again_and_another_width_refused(folders: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(folders["encoder"], folder)
    models, workspace = ReadyMadeModels(encoder=str(folder)), tmp_path / "workspace"
    first = ready_made.release(models, workspace)
    assert ready_made.release(models, workspace) == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-6}))
    second = ready_made.release(models, workspace)
    assert second != first
    shutil.rmtree(folder)
    from tests.pipeline.models import test_ready_made as layouts

    narrow = layouts.saved(tmp_path / "narrow", "bert", "mean", layouts.modules.Dense(16, 6))
    shutil.copytree(narrow, folder)
    with pytest.raises(ConfigError, match=r"of 6 numbers, and gave 16 when .*another --workspace"):
        ready_made.release(models, workspace)
    assert {item["release"] for item in listing.releases(workspace)["releases"]} == {first, second}
    assert ready_made.release(models, tmp_path / "another")


@pytest.mark.usefixtures("in_this_process")
def test_a_lost_or_damaged_memory_only_costs_another_import(folders: dict[str, str], tmp_path: Path) -> None:
    models = ReadyMadeModels(ranker=folders["ranker"])
    first = ready_made.release(models, tmp_path)
    for text in ("{", "[]", None):
        (tmp_path / ready_made.MEMORY).unlink() if text is None else (tmp_path / ready_made.MEMORY).write_text(text)
        assert ready_made.release(models, tmp_path) == first


@pytest.mark.usefixtures("in_this_process")
def test_models_of_two_languages_are_refused_and_nothing_is_made(folders: dict[str, str], tmp_path: Path) -> None:
    copies = {}
    for role, code in (("ranker", "de"), ("encoder", "fr")):
        copies[role] = tmp_path / role
        shutil.copytree(folders[role], copies[role])
        (copies[role] / "README.md").write_text(f"---\nlanguage:\n- {code}\ntags: [x]\n---\n# A card\n")
    models = ReadyMadeModels(ranker=str(copies["ranker"]), encoder=str(copies["encoder"]))
    with pytest.raises(ConfigError, match=r"reads de and .* reads fr"):
        ready_made.release(models, tmp_path / "workspace")
    assert not list((tmp_path / "workspace").rglob("manifest.json"))
    (copies["encoder"] / "README.md").write_text("---\nlanguage: [fr, de]\n---\n")
    assert ready_made.release(models, tmp_path / "workspace")


def _no_process(*arguments: object) -> str:
    raise AssertionError("torch would be loaded before the files are looked at")


def test_half_a_model_beside_a_whole_one_leaves_nothing(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    shutil.copytree(folders["encoder"], half)
    (half / "model.safetensors").unlink()
    models = ReadyMadeModels(ranker=folders["ranker"], encoder=str(half))
    monkeypatch.setattr(own_process, "run", _no_process)
    with pytest.raises(MissingError, match=r"holds no model\.safetensors"):
        ready_made.release(models, tmp_path / "workspace")
    assert not list((tmp_path / "workspace").rglob("manifest.json"))


@pytest.mark.usefixtures("in_this_process")
def test_half_a_model_is_refused_before_a_document_is_read(folders: dict[str, str], tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(folders["encoder"], half)
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:-100])
    (tmp_path / "docs.csv").write_text("title\na steel deck\n", encoding="utf-8")
    for models in (ReadyMadeModels(encoder=str(half)), ReadyMadeModels(encoder=folders["encoder"], ranker=str(half))):
        with pytest.raises(ConfigError, match=r"model\.safetensors: cut off or damaged"):
            quickstart.quickstart([SourceConfig(path=str(tmp_path / "docs.csv"))], tmp_path / "workspace", models)
    assert not (tmp_path / "workspace" / "artifacts" / "corpus").exists()


def test_a_ranker_that_sentence_transformers_saved_passes_the_check_of_files(
    folders: dict[str, str], tmp_path: Path
) -> None:
    saved = shutil.copytree(folders["ranker"], tmp_path / "ranker")
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    (saved / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    ready_made.check_files(ReadyMadeModels(ranker=str(saved)))


def test_int8_is_measured_on_texts_or_on_judgments(
    folders: dict[str, str], tiny_world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for judgments, words in (("", "unjudged lists"), (str(tiny_world / "tiny"), "nDCG@10")):
        models = ReadyMadeModels(ranker=folders["ranker"], precision="int8", judgments=judgments)
        parts = ready_made.bundles(models, tmp_path)
        assert set(parts["ranker"].metrics["precisions"]) == {"fp32", "int8"}
        assert words in caplog.text
        assert "Kendall's tau" in caplog.text


@pytest.fixture(scope="module")
def started(folders: dict[str, str], tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose live release was made by a quickstart with an encoder alone."""
    workspace = tmp_path_factory.mktemp("quickstart") / "workspace"
    source = SourceConfig(path=str(tiny_world / "tiny"))
    result = quickstart.quickstart([source], workspace, ReadyMadeModels(encoder=folders["encoder"]))
    assert (result.live, result.dimensions) == (True, 16)
    return workspace


@pytest.fixture
def quick(started: Path, tmp_path: Path) -> Path:
    """A copy of that workspace, to change."""
    return Path(shutil.copytree(started, tmp_path / "workspace"))


def test_a_recipe_names_the_documents_such_as_a_query_of_a_database(folders: dict[str, str], tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table items (sku text, name text, sold integer)")
        rows = [(f"d{number}", f"steel angle {number}", number % 2) for number in range(40)]
        connection.executemany("insert into items values (?, ?, ?)", rows)
    connection.close()
    (tmp_path / "judged.csv").write_text("query,sku,stars\nangle,d1,2\n", encoding="utf-8")
    read = 'query = "select sku, name from items where sold = 0", columns = { doc_id = "sku", title = "name" }'
    judged = 'columns = { query = "query", doc_id = "sku", grade = "stars" }'
    sources = ", ".join(
        f'{{ path = "{path}", name = "shop", {keys} }}'
        for path, keys in (("sqlite:///shop.db", read), ("judged.csv", judged))
    )
    (tmp_path / "own.toml").write_text(f'[data]\nroot = "{tmp_path}"\nsources = [{sources}]\n', encoding="utf-8")
    models = ReadyMadeModels(encoder=folders["encoder"])
    result = quickstart.quickstart([str(tmp_path / "own.toml")], tmp_path / "workspace", models)
    assert (result.documents, result.live) == (20, True)


def test_the_release_is_one_like_any_other(quick: Path, tiny_world: Path, folders: dict[str, str]) -> None:
    registry = releases.Releases(quick)
    (entry,) = listing.releases(quick)["releases"]
    assert (entry["recipe"], entry["damaged"]) == ("quickstart", None)
    console = Console(file=io.StringIO(), width=140)
    console.print(listing.render_releases(listing.releases(quick), quick))
    assert "– was not judged when it was made: `relevance report" in console.file.getvalue()
    assert f"--workspace {quick}" in console.file.getvalue().replace("\n", "")
    described = listing.show(quick, "live")
    assert set(described["parts"]) == {"encoder", "lexical", "documents", "index", "fusion"}
    first = registry.open().fingerprint
    console = Console(file=io.StringIO(), width=300)
    console.print(listing.render_show(described, quick))
    judging_it = f"report --judgments FILE --release {first[:12]} --workspace {quick}"
    assert f"was not judged when it was made: `relevance {judging_it}` judges it." in console.file.getvalue()
    assert "mean" not in console.file.getvalue(), "there is no empty table of measures"

    more = quickstart.quickstart([SourceConfig(path=str(tiny_world / "tiny"))], quick, ReadyMadeModels(**folders))
    assert more.live
    results = Searcher(registry.open().path).search("knife", top_n=3)
    assert "knife" in results.lexical[0].title
    assert None not in {answer.relevance for answer in results.reranked}

    corpus = quick.parent / "corpus"
    corpus.mkdir()
    (corpus / "corpus.jsonl").write_text('{"_id": "d1", "title": "samovar", "text": "boils water"}\n')
    renewed = reindex.reindex([str(corpus)], quick, force=True)
    assert (renewed["live"], renewed["documents"]) == (True, 1)
    assert Searcher(registry.open().path).search("samovar").lexical[0].doc_id == "d1"

    registry.rollback(reason="test")
    registry.rollback(reason="test")
    assert registry.open().fingerprint == first
    gc.gc(quick, keep=1, act=True)
    assert "knife" in Searcher(registry.open().path).search("knife", top_n=1).lexical[0].title


def test_an_export_of_ready_made_models_names_the_way_to_another_precision(quick: Path) -> None:
    (model,) = (quick / "artifacts" / "encoder").glob("*/manifest.json")
    for given in ({}, {"model": model.parent}):
        with pytest.raises(MissingError, match=r"from a ready-made model, without the data .*; give --precision"):
            export.export(quick, **given)


def test_the_page_offers_titles_or_what_a_reindex_names_and_later_reindexes_keep(quick: Path, tiny_world: Path) -> None:
    registry = releases.Releases(quick)
    titles = set(pq.read_table(tiny_world / "tiny" / "documents.parquet")["title"].to_pylist())
    offered = Searcher(registry.open().path, verify=False).examples
    assert offered
    assert set(offered) <= titles
    documents = [str(tiny_world / "tiny")]
    reindex.reindex(documents, quick, examples=["a cheap hammer"], full=True)
    assert Searcher(registry.open().path, verify=False).examples == ["a cheap hammer"]
    assert reindex.reindex(documents, quick)["live"]
    assert Searcher(registry.open().path, verify=False).examples == ["a cheap hammer"]


def test_the_order_without_judgments_is_reciprocal_rank_fusion(quick: Path) -> None:
    release = releases.Releases(quick).open()
    fusion = Fusion.from_json(release_parts.part(release, "fusion").file("fusion.json").read_text())
    assert {name for name, weight in fusion.weights.items() if weight} == {
        "bm25_reciprocal_rank",
        "encoder_reciprocal_rank",
    }
    results = Searcher(release.path).search("red pan for the kitchen with knife recipe spoon whisk bowl", top_n=200)
    scores = [answer.score for answer in results.lexical]
    alone = {
        answer.doc_id for answer in results.lexical if scores.count(answer.score) == 1
    }  # Equal ones tie otherwise.
    both = [answer for answer in results.reranked if answer.doc_id in alone and answer.semantic_rank]
    assert len(both) > 3
    sums = [1 / (60 + (answer.lexical_rank or 0)) + 1 / (60 + (answer.semantic_rank or 0)) for answer in both]
    assert sums == sorted(sums, reverse=True)


def test_a_report_on_it_has_no_ranker(quick: Path, tiny_world: Path) -> None:
    judged = report.report(SourceConfig(path=str(tiny_world / "tiny")), quick)
    every = report.report(SourceConfig(path=str(tiny_world / "tiny")), quick, split="all")
    assert judged.fingerprint == every.fingerprint, "it learned from no judgments, so all queries are judged"
    content = json.loads(judged.file("report.json").read_text())
    assert set(content["systems"]) == {systems.BM25, systems.ENCODER, systems.BOTH, systems.FUSED}
    assert list(content["surfaces"]) == ["/search"]


def test_a_retraining_is_held_against_it_and_publishes_over_its_documents(quick: Path, tiny_world: Path) -> None:
    registry = releases.Releases(quick)
    before = registry.open()
    recipe = recipes.load(tiny_world / "tiny.toml", [f"data.root={tiny_world}", "gate.min_queries=1"])
    outcome = retrain.retrain(recipe, quick)
    assert outcome.reasons[0].startswith("/search is surely better"), "it was compared with the live one"
    assert publishing.comparable(registry, registry.live()) is not None
    scores, _ = judging.judge_release(
        before, recipe.index, recipe.candidates, retrain.Runner(quick), data=_data(outcome, quick)
    )
    assert "ranker" not in scores.features.manifest.inputs
    retrained = registry.open(outcome.release.fingerprint)
    assert set(judging.PARTS) <= set(retrained.manifest.inputs)
    assert (
        release_parts.part(retrained, "lexical").manifest.inputs
        == release_parts.part(before, "lexical").manifest.inputs
    )


def _data(outcome: retrain.RetrainResult, workspace: Path) -> Any:
    from pipeline import artifacts

    return artifacts.load(workspace / "artifacts" / "data" / outcome.report.manifest.inputs["data"])


def test_an_order_of_an_encoder_alone_is_learned_and_served(
    quick: Path, folders: dict[str, str], tiny_world: Path
) -> None:
    """Its fused order weighs BM25 and encoder; a ranker that is not there has no part in it."""
    release = with_order(quick, {"bm25": 1.0})
    results = Searcher(release.path, verify=False).search("best knife 3", top_n=8)
    best = results.lexical[0].score
    assert [hit.score for hit in results.reranked] == pytest.approx([hit.score / best for hit in results.lexical])
    with_order(quick, {"bm25": -1.0})
    outcome = refit.refit(SourceConfig(path=str(tiny_world / "tiny")), quick)
    assert outcome["live"]
    live = releases.Releases(quick).open()
    weights = json.loads((live.path / "fusion" / "fusion.json").read_text(encoding="utf-8"))["weights"]
    assert weights["ranker"] == weights["ranker_reciprocal_rank"] == 0
    assert set(live.metrics["surfaces"]) == {"/search"}
    models = ReadyMadeModels(encoder=folders["encoder"])
    stays = quickstart.quickstart([SourceConfig(path=str(tiny_world / "tiny"))], quick, models)
    assert not stays.live
    assert "learned from judgments" in stays.not_live_because


def test_documents_that_look_wrong_do_not_replace_those_of_a_live_quickstart(
    quick: Path, tiny_world: Path, folders: dict[str, str]
) -> None:
    registry, models = releases.Releases(quick), ReadyMadeModels(encoder=folders["encoder"])
    live = registry.open().fingerprint
    indexes = index_artifacts(quick)
    pages = quick.parent / "pages.jsonl"
    ids = pq.read_table(tiny_world / "tiny" / "documents.parquet")["doc_id"].to_pylist()
    rows = [{"doc_id": doc_id, "title": "", "text": f"Access denied to page {doc_id}"} for doc_id in ids]
    pages.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = SourceConfig(path=str(pages))
    with pytest.raises(ImplausibleError, match=r"pages\.jsonl: 100% of the texts .*Nothing is published.*--force"):
        quickstart.quickstart([source], quick, models)
    assert registry.open().fingerprint == live
    assert len(listing.releases(quick)["releases"]) == 1
    assert index_artifacts(quick) == indexes, "nothing was analysed or embedded"
    assert quickstart.quickstart([source], quick, models, force=True).live


def test_a_damaged_live_quickstart_is_replaced_without_a_comparison(
    quick: Path, tiny_world: Path, folders: dict[str, str]
) -> None:
    parts = release_parts.part(releases.Releases(quick).open(), "documents").path
    (store,) = parts.rglob("documents.sqlite")
    content = store.read_bytes()
    store.unlink()
    store.write_bytes(bytes(len(content)))
    few = quick.parent / "few.jsonl"
    few.write_text('{"doc_id": "d1", "title": "samovar", "text": "boils water"}\n', encoding="utf-8")
    models = ReadyMadeModels(encoder=folders["encoder"])
    assert quickstart.quickstart([SourceConfig(path=str(few))], quick, models).live


@pytest.mark.parametrize("name", ["manifest.json", "encoder/manifest.json", "fusion/fusion.json"])
def test_the_result_says_that_a_live_release_which_cannot_be_read_stays(
    quick: Path, tiny_world: Path, folders: dict[str, str], name: str
) -> None:
    registry = releases.Releases(quick)
    live = registry.open()
    file = live.path / name
    file.unlink()
    file.write_bytes(b"{")
    models = ReadyMadeModels(encoder=folders["encoder"], ranker=folders["ranker"])
    result = quickstart.quickstart([SourceConfig(path=str(tiny_world / "tiny"))], quick, models)
    assert not result.live
    pointer = registry.live()
    assert pointer is not None
    assert pointer.release == live.fingerprint
    caption = str(quickstart.render(result, quick).caption)
    assert "trained" not in caption
    assert caption.startswith(f"Release {live.fingerprint[:12]} is live, cannot be read, and stays until a person has")
    assert name.rsplit("/", maxsplit=1)[-1] in caption
    assert caption.endswith(
        f"`relevance releases promote {result.release[:12]} --workspace {quick}` makes this one live."
    )


def test_a_trained_release_that_is_live_stays(copied: Trained, folders: dict[str, str]) -> None:
    live = releases.Releases(copied.workspace).open().fingerprint
    result = quickstart.quickstart(
        [SourceConfig(path=str(copied.world / "tiny"))], copied.workspace, ReadyMadeModels(encoder=folders["encoder"])
    )
    assert not result.live
    assert "A release that learned from judgments is live and stays" in str(
        quickstart.render(result, copied.workspace).caption
    )
    assert releases.Releases(copied.workspace).open().fingerprint == live


def test_passages_are_read_by_the_encoder_too(folders: dict[str, str], tmp_path: Path) -> None:
    table = tmp_path / "documents.jsonl"
    rows = [{"doc_id": f"d{number}", "title": "", "text": "a list of files " * 4 * number} for number in range(1, 9)]
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    models = ReadyMadeModels(encoder=folders["encoder"], options=ReadyMadeOptions(passages=4, max_tokens=30))
    result = quickstart.quickstart([SourceConfig(path=str(table))], tmp_path / "w", models)
    index = Searcher(releases.Releases(tmp_path / "w").open(result.release).path).semantic
    assert index.passages == Passages(most=4)
    assert result.documents == 8 < index.stats.rows


def test_documents_in_a_script_that_the_encoder_lacks_are_refused(folders: dict[str, str], tmp_path: Path) -> None:
    table = tmp_path / "documents.jsonl"
    rows = [
        {"doc_id": f"d{number}", "title": "排序", "text": "对列表进行排序, 返回一个新的列表。"} for number in range(9)
    ]
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"documents are in Han script, which the vocabulary of.*relevance init"):
        quickstart.quickstart(
            [SourceConfig(path=str(table))], tmp_path / "w", ReadyMadeModels(encoder=folders["encoder"])
        )
    assert listing.releases(tmp_path / "w")["releases"] == []


def test_widths_and_prompts_of_the_caller_reach_the_vectors(folders: dict[str, str], tmp_path: Path) -> None:
    options = ReadyMadeOptions(widths=(8,), query_prompt="steel ")
    parts = ready_made.bundles(ReadyMadeModels(encoder=folders["encoder"], options=options), tmp_path)
    from serving.runtime.engine import Engine

    engine = Engine(parts["encoder"].path, threads=1)
    assert engine.bundle.widths == (8, 16)
    (query_vector,), (document_vector,) = engine.embed(["angle"], "query"), engine.embed(["steel angle"], "document")
    engine.close()
    assert np.array_equal(query_vector, document_vector)
    with pytest.raises(ConfigError, match="width 17"):
        ready_made.bundles(
            ReadyMadeModels(encoder=folders["encoder"], options=ReadyMadeOptions(widths=(17,))), tmp_path
        )


def test_options_of_models_without_models_are_refused(tmp_path: Path) -> None:
    for arguments, words in (
        (("--label", "yes"), "belong to --ranker or --encoder"),
        (("--ranker", "x", "--release", "live"), "give one"),
        (("--encoder", str(tmp_path / "none")), "no such folder"),
        (("--encoder", "x", "--precision", "int4"), "not one of fp32"),
        (("--encoder", "x", "--widths", "a"), "whole numbers"),
        (("--ranker", "x", "--widths", "8", "--query-prompt", "q: "), "--query-prompt, --widths: of use to --encoder"),
        (("--encoder", "x", "--label", "yes", "--passages", "3"), "--label, --passages: of use to --ranker"),
        (("--encoder", "x", "--judgments", "j.csv"), "--judgments: measures a precision below fp32"),
    ):
        command = [sys.executable, "-m", "flows.cli", "serve", *arguments]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_torch_is_what_the_poison_would_find() -> None:
    """The test of the second start proves something only while the first one imports torch."""
    assert torch.__name__ in sys.modules
