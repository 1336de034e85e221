"""`relevance index list|verify|gc` over releases that share segments."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from typer.testing import CliRunner

from flows import gc, indexes
from flows import reindex as reindexing
from flows.cli.command import app
from index import documents, lexical_build
from index.document_store import DocumentStore
from pipeline import artifacts, release_parts
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.config import Recipe
from pipeline.errors import ConflictError
from pipeline.releases import Releases
from tests.flows.test_before import registry_documents, workspace
from tests.serving.processes import start

__all__ = ["workspace"]  # A fixture.

Change = Callable[[int], str]


@pytest.fixture
def change(workspace: Path, tmp_path: Path) -> Change:
    """Re-indexes the documents of the workspace with another text in one of them, and returns the release."""
    frame = pd.DataFrame(registry_documents(Releases(workspace)))

    def changed(number: int) -> str:
        frame.loc[number, "text"] = f"a samovar for kitchen {number}"
        folder = tmp_path / f"documents-{number}"
        folder.mkdir(exist_ok=True)
        frame.to_parquet(folder / "documents.parquet", index=False)
        return str(reindexing.reindex([str(folder)], workspace)["release"])

    return changed


def unclaimed(workspace: Path, number: int) -> list[Artifact]:
    """A lexical index and a document store that were made for a release which was never published."""
    release = Releases(workspace).open()
    corpus = workspace / "artifacts" / "corpus" / release_parts.part(release, "lexical").manifest.inputs["data"]
    config = recipes.parse(Recipe, {**release.manifest.config, "index": {"k1": 1.2 + number / 10}}).index
    data = artifacts.load(corpus)
    other = artifacts.make(
        workspace,
        "corpus",
        version=1,
        config={"copy": number},
        inputs={},
        build=lambda staging: (
            staging.folder.joinpath("documents.parquet").write_bytes(data.file("documents.parquet").read_bytes()) and {}
        ),
    )
    return [lexical_build.make(workspace, config, data=data), documents.make(workspace, data=other)]


def test_the_list_says_what_each_release_holds_and_shares(workspace: Path, change: Change) -> None:
    first, second = change(1), change(2)
    listed = {item["release"]: item for item in indexes.inventory(workspace)["releases"]}
    assert [item["live"] for item in listed.values()] == [False, False, False, True]
    for release, item in listed.items():
        assert item["damaged"] is None
        assert {segment["part"] for segment in item["segments"]} >= {"lexical", "documents", "index"}
        for part in ("lexical", "documents", "index"):
            segments = [segment for segment in item["segments"] if segment["part"] == part]
            assert sum(segment["live"] for segment in segments) == 100
            folder = Releases(workspace).path(release) / part
            for segment in segments:
                on_disk = [path for path in (folder / segment["segment"]).iterdir() if path.is_file()]
                assert segment["bytes"] <= sum(path.stat().st_size for path in on_disk)
                assert segment["documents"] == segment["live"] + segment["tombstones"]
    for release, other in ((first, second), (second, first)):
        for part in ("lexical", "documents"):
            large = max(
                (segment for segment in listed[release]["segments"] if segment["part"] == part),
                key=lambda segment: segment["documents"],
            )
            assert (large["documents"], large["shared_with"]) == (100, [other])
    tombstones = {
        release: max(segment["tombstones"] for segment in item["segments"]) for release, item in listed.items()
    }
    assert (tombstones[first], tombstones[second]) == (0, 1)


def test_the_commands_print_json_and_their_exit_code_says_whether_a_release_is_damaged(
    workspace: Path, change: Change
) -> None:
    release = change(1)

    def run(*words: str) -> Any:
        return CliRunner().invoke(app, ["index", *words, "--workspace", str(workspace)])

    assert [item["release"] for item in json.loads(run("list", "--json").output)["releases"]][-1] == release
    assert "documents" in run("list").output
    assert run("verify").exit_code == 0
    path = next(Releases(workspace).path(release).rglob("counts.npy"))
    path.write_bytes(path.read_bytes()[:-1])
    refused = run("verify", release, "--json")
    assert refused.exit_code == 1
    ((problem,),) = [item["problems"] for item in json.loads(refused.output)["releases"]]
    assert str(path) in problem
    assert "restore" in problem
    assert "delete" not in problem
    assert run("verify", "nothing").exit_code != 0
    assert not json.loads(run("gc", "--dry-run", "--json").output)["removed"]
    assert "would be removed; --yes removes them" in run("gc").output
    assert "were removed" in run("gc", "--yes").output
    assert run("gc").output == "nothing to remove\n"


def test_a_flipped_bit_and_a_cut_in_any_file_are_named(workspace: Path, change: Change) -> None:
    """Seed 5. Every file of a release of segments, its manifests, and the vectors that it was built from."""
    change(1)
    release = Releases(workspace).open(change(2))
    index = release_parts.part(release, "index").manifest
    vectors = artifacts.load(workspace / "artifacts" / "vectors" / index.inputs["vectors"])
    generator = random.Random(5)
    files = [folder.path / name for folder in (release, vectors) for name in [*folder.manifest.files, "manifest.json"]]
    assert len([path for path in files if path.parent.parent.name in ("lexical", "documents")]) >= 8
    for path in files:
        original = path.read_bytes()
        flipped = bytearray(original)
        flipped[generator.randrange(len(original))] ^= 1 << generator.randrange(8)
        for damaged in (bytes(flipped), original[: generator.randrange(len(original))]):
            path.write_bytes(damaged)
            (item,) = indexes.verify(workspace, release.fingerprint)["releases"]
            assert any(str(path) in problem for problem in item["problems"]), path
        path.write_bytes(original)
    assert indexes.verify(workspace)["sound"]


def test_a_file_that_two_releases_share_is_named_in_both(workspace: Path, change: Change) -> None:
    releases = [change(1), change(2)]
    path = max(Releases(workspace).path(releases[1]).rglob("documents.sqlite"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    damaged = {item["release"]: item["problems"] for item in indexes.verify(workspace)["releases"] if item["problems"]}
    assert set(damaged) == set(releases)
    listing = indexes.inventory(workspace)["releases"]
    assert all((item["damaged"] is not None) == (item["release"] in releases) for item in listing)


def test_gc_keeps_releases_and_readers_and_removes_what_was_never_published(workspace: Path, change: Change) -> None:
    change(1)
    releases = Releases(workspace).ids()
    index, store = unclaimed(workspace, 1)
    reader = DocumentStore.load(store.path)
    listed = gc.gc(workspace, keep=None)
    named = [
        item["path"] for item in listed["items"] if item["reason"] != gc.TEMPORARY
    ]  # Lock files that nobody holds.
    assert named == [str(index.path.relative_to(workspace))]
    assert index.path.is_dir()
    assert gc.gc(workspace, keep=None, act=True)["items"] == listed["items"]
    assert (index.path.exists(), store.path.exists()) == (False, True)
    assert reader.get(3).doc_id == "d3"
    reader.close()
    gc.gc(workspace, keep=None, act=True)
    assert not store.path.exists()
    assert Releases(workspace).ids() == releases
    assert indexes.verify(workspace)["sound"]
    assert len(artifacts.finished(workspace, "corpus")) == 2  # What may not be made again stays.


def test_gc_beside_a_running_service(workspace: Path, change: Change) -> None:
    served = change(1)
    server = start(workspace, RELEVANCE_RELEASE=served)
    try:
        for number in range(2, 5):
            change(number)
        unclaimed(workspace, 1)
        for keep in (None, 1):
            assert gc.gc(workspace, keep=keep, act=True)["items"]
            answer = httpx.post(f"{server.url}/search", json={"query": "samovar kitchen"}, timeout=60)
            assert answer.status_code == 200
            assert answer.json()["reranked"]
        assert Releases(workspace).path(served).is_dir()
        assert indexes.verify(workspace)["sound"]
    finally:
        assert server.stop() == 0


def test_gc_beside_a_publisher(workspace: Path, change: Change, tmp_path: Path) -> None:
    before = change(1)
    frame = pd.DataFrame(registry_documents(Releases(workspace)))
    frame.loc[7, "text"] = "a balalaika"
    (tmp_path / "other").mkdir()
    frame.to_parquet(tmp_path / "other" / "documents.parquet", index=False)
    command = [sys.executable, "-m", "flows.cli", "reindex", "--documents", str(tmp_path / "other"), "--json"]
    refused = removed = 0
    with subprocess.Popen([*command, "--workspace", str(workspace)], stdout=subprocess.PIPE) as publisher:
        while publisher.poll() is None:
            try:
                gc.gc(workspace, keep=None, act=True)
                removed += 1
            except ConflictError:
                refused += 1
        assert publisher.stdout is not None
        outcome = json.loads(publisher.stdout.read())
    assert publisher.returncode == 0
    assert refused
    assert removed
    assert outcome["live"]
    assert outcome["release"] != before
    assert indexes.verify(workspace)["sound"]
