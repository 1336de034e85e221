"""Divided documents kept and removed by gc, and divided anew: the number of shards changes, and goes back."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows import gc, indexes, reindex, shards, sources
from pipeline import artifacts, release_parts
from pipeline.errors import ConflictError
from serving.scoring.searcher import Searcher
from serving.scoring.sharded import ShardClient
from tests.serving.conftest import TinyWorkspace
from tests.serving.divided_collection import LocalShards, searcher_of

Figures = dict[str, Any]


def divide(tiny: TinyWorkspace, source: str, count: int, release: str = "live") -> Figures:
    return shards.reindex(sources.named(source), tiny.path, count, release=release)


def family(figures: Figures) -> list[str]:
    return [*(shard["release"] for shard in figures["shards"]), figures["release"]]


def files(tiny: TinyWorkspace, release: str) -> dict[str, str]:
    """The digests of all files of a release but the manifests of its parts, which hold times."""
    manifest = artifacts.read_manifest(tiny.folder(release))
    return {name: record.sha256 for name, record in manifest.files.items() if not name.endswith(artifacts.MANIFEST)}


def answers(tiny: TinyWorkspace, figures: Figures) -> list[Any]:
    local = LocalShards([Searcher(tiny.folder(name)) for name in family(figures)[:-1]])
    front = searcher_of(tiny.folder(figures["release"]), local)
    return [[(hit.doc_id, hit.score) for hit in front.search(query).reranked] for query in ("sort a list", "open file")]


def test_gc_keeps_the_shards_of_a_kept_release_and_removes_those_of_others(tiny: TinyWorkspace, tmp_path: Path) -> None:
    old = divide(tiny, tiny.source(tmp_path / "old"), 3)
    new = divide(tiny, tiny.source(tmp_path / "new", "lately"), 3)
    first = tiny.releases.resolve("live")
    tiny.releases.promote(old["release"], reason="test")
    tiny.releases.promote(new["release"], reason="test")
    assert gc.gc(tiny.path, keep=0)["items"]
    gc.gc(tiny.path, keep=0, act=True)  # The live one and the one before it stay, with their shards.
    assert set(tiny.releases.ids()) == {*family(old), *family(new)}
    tiny.releases.rollback(reason="test")
    serving = Searcher(tiny.folder(new["shards"][1]["release"]))
    gc.gc(tiny.path, keep=0, act=True)
    assert set(tiny.releases.ids()) == {*family(old), *family(new)}
    assert serving.search("sort a list").reranked
    del serving
    listed = gc.gc(tiny.path, keep=0)
    removed = {Path(item["path"]).name for item in listed["items"] if "/release/" in item["path"]}
    assert removed == set(family(new))
    assert gc.gc(tiny.path, keep=0, act=True)["items"] == listed["items"]
    assert set(tiny.releases.ids()) == set(family(old))
    assert first not in tiny.releases.ids()
    assert indexes.verify(tiny.path)["sound"]
    assert answers(tiny, old)


def test_gc_keeps_a_release_of_models_while_a_service_asks_its_shards(tiny: TinyWorkspace, tmp_path: Path) -> None:
    figures = divide(tiny, tiny.source(tmp_path / "documents"), 2)
    addresses = ShardClient(["http://127.0.0.1:1", "http://127.0.0.1:2"])
    front = searcher_of(tiny.folder(figures["release"]), addresses)
    tiny.releases.promote(tiny.publish(2), reason="test")
    gc.gc(tiny.path, keep=0, act=True)
    assert set(family(figures)) <= set(tiny.releases.ids())
    del front
    addresses.close()
    gc.gc(tiny.path, keep=0, act=True)
    assert set(family(figures)).isdisjoint(tiny.releases.ids())


def test_index_gc_lists_what_no_shard_needs(tiny: TinyWorkspace, tmp_path: Path) -> None:
    source = tiny.source(tmp_path / "documents")
    figures = divide(tiny, source, 2)
    named = [item["path"] for item in gc.gc(tiny.path, keep=None)["items"] if item["reason"] != gc.TEMPORARY]
    kinds = [Path(path).parent.name for path in named]
    assert kinds == ["documents"]  # The store by which the documents were judged; no release has it.
    gc.gc(tiny.path, keep=None, act=True)
    assert not (tiny.path / named[0]).exists()
    assert indexes.verify(tiny.path)["sound"]
    assert [item["damaged"] for item in indexes.inventory(tiny.path)["releases"]] == [None] * 4
    assert family(divide(tiny, source, 2)) == family(figures)


def test_gc_beside_a_division(tiny: TinyWorkspace, tmp_path: Path) -> None:
    source = tiny.source(tmp_path / "documents", "lately")
    before = divide(tiny, tiny.source(tmp_path / "before"), 2)
    tiny.releases.promote(before["release"], reason="test")
    command = [sys.executable, "-m", "flows.cli", "reindex", "--documents", source, "--shards", "3", "--json"]
    refused = removed = 0
    with subprocess.Popen([*command, "--workspace", str(tiny.path)], stdout=subprocess.PIPE) as publisher:
        while publisher.poll() is None:
            try:
                gc.gc(tiny.path, keep=4, act=True)
                removed += 1
            except ConflictError:
                refused += 1
        assert publisher.stdout is not None
        outcome = json.loads(publisher.stdout.read())
    assert (publisher.returncode, len(outcome["shards"])) == (0, 3)
    assert refused
    assert removed
    assert {*family(before), *family(outcome)} <= set(tiny.releases.ids())
    assert indexes.verify(tiny.path)["sound"]


def test_another_number_of_shards_and_back_is_a_fresh_division(tiny: TinyWorkspace, tmp_path: Path) -> None:
    source = tiny.source(tmp_path / "documents")
    fresh = TinyWorkspace(tmp_path / "fresh")
    shutil.copytree(tiny.path, fresh.path)
    two = divide(tiny, source, 2)
    three = divide(tiny, tiny.source(tmp_path / "later", "lately"), 3, two["release"])
    again = divide(tiny, source, 2, three["release"])
    assert family(again) == family(two)
    other = divide(fresh, tiny.source(tmp_path / "later", "lately"), 3)
    assert family(other) == family(three)
    for release in family(three):
        assert files(tiny, release) == files(fresh, release)
    for figures in (two, three):
        tiny.releases.promote(figures["release"], reason="test")
    assert answers(tiny, three) == answers(fresh, other)
    assert tiny.releases.rollback(reason="test").release == two["release"]
    assert answers(tiny, two) == answers(tiny, again)


def test_one_index_then_shards_then_one_index_is_a_fresh_build(tiny: TinyWorkspace, tmp_path: Path) -> None:
    source, later = tiny.source(tmp_path / "documents"), tiny.source(tmp_path / "later", "lately")
    fresh = TinyWorkspace(tmp_path / "fresh")
    shutil.copytree(tiny.path, fresh.path)
    figures = divide(tiny, source, 3)
    tiny.releases.promote(figures["release"], reason="test")
    expected = fresh.folder(reindex.reindex([later], fresh.path, full=True)["release"])
    wanted = Searcher(expected).search("sort a list lately")
    for release in (figures["shards"][0]["release"], figures["release"]):
        result = reindex.reindex([later], tiny.path, release=release)
        assert result["live"] is (release == figures["release"])
        path = tiny.folder(result["release"])
        assert not release_parts.has_part(tiny.releases.open(result["release"]), "collection")
        answer = Searcher(path).search("sort a list lately")
        for name in ("lexical", "semantic", "reranked"):
            hits = [[(hit.doc_id, hit.score) for hit in getattr(result, name)] for result in (answer, wanted)]
            assert hits[0] == hits[1]
    assert indexes.verify(tiny.path)["sound"]
    assert tiny.releases.rollback(reason="test").release == figures["release"]
    assert answers(tiny, figures)
