"""Damage, recovery and removal on the tiny world: each command does what its message promises."""

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from flows import gc, publishing, retrain
from flows import reindex as reindexing
from flows import releases as listing
from index.document_store import DocumentStore
from index.store_file import UseLock
from pipeline import artifacts, release_parts
from pipeline.errors import ArtifactError, ConflictError, ImplausibleError, MissingError, RelevanceError
from pipeline.releases import Releases
from serving.scoring.searcher import Searcher
from tests.flows.conftest import Trained, index_artifacts


def changed_documents(trained: Trained, folder: Path, text: str, *, rows: int | None = None) -> str:
    frame = pd.read_parquet(trained.world / "tiny" / "documents.parquet").iloc[:rows].copy()
    frame.loc[frame.index[0], "text"] = text
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(folder / "documents.parquet", index=False)
    return str(folder)


def test_a_flipped_bit_in_any_file_of_a_release_is_refused_by_name(copied: Trained) -> None:
    """Seed 11. Every file of the release is damaged in turn at random bits, manifests included."""
    generator = random.Random(11)
    registry = Releases(copied.workspace)
    release = registry.open()
    for name in [*release.manifest.files, artifacts.MANIFEST]:
        file = release.path / name
        original = file.read_bytes()
        if not original:
            continue
        for _ in range(12 if name.endswith(artifacts.MANIFEST) else 3):
            damaged = bytearray(original)
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(ArtifactError) as refused:
                release_parts.verify(release.path)
            assert name in str(refused.value)
            with pytest.raises(ArtifactError):
                registry.promote(release.fingerprint, reason="damaged")
        file.write_bytes(original)
    assert release_parts.verify(release.path).fingerprint == release.fingerprint


def test_parts_that_do_not_belong_together_are_not_published(copied: Trained, tmp_path: Path) -> None:
    registry = Releases(copied.workspace)
    old = registry.open()
    figures = reindexing.reindex([changed_documents(copied, tmp_path / "d", "samovar")], copied.workspace)
    new = registry.open(figures["release"])
    for name in ("lexical", "documents", "index"):
        parts = {part: release_parts.part(old, part) for part in old.manifest.inputs}
        parts[name] = release_parts.part(new, name)
        with pytest.raises(ArtifactError, match="different documents"):
            registry.publish(parts, metrics={}, config={})


def test_a_damaged_release_is_listed_and_passed_over(copied: Trained, tmp_path: Path) -> None:
    registry = Releases(copied.workspace)
    ids = [copied.outcome.release.fingerprint]
    for number in range(3):
        figures = reindexing.reindex([changed_documents(copied, tmp_path / "d", f"samovar {number}")], copied.workspace)
        ids.append(figures["release"])
    (registry.path(ids[2]) / artifacts.MANIFEST).unlink()
    shown = {item["release"]: item["damaged"] for item in listing.releases(copied.workspace)["releases"]}
    assert [name for name, damaged in shown.items() if damaged] == [ids[2]]
    assert "delete" not in (shown[ids[2]] or "")
    history = copied.workspace / "releases" / "history.jsonl"
    history.write_bytes(b'{"release": "torn')
    assert registry.rollback(reason="test").release == ids[1]
    (copied.workspace / "releases" / "live.json").write_text("{", encoding="utf-8")
    assert listing.releases(copied.workspace)["live"] == ids[1]
    assert registry.rollback(reason="again").release == ids[0]
    with pytest.raises(MissingError, match="no earlier release"):
        registry.rollback(reason="further")


def test_a_retraining_keeps_the_documents_of_a_reindex_and_survives_a_damaged_live_release(
    copied: Trained, tmp_path: Path
) -> None:
    registry = Releases(copied.workspace)
    indexed = reindexing.reindex([changed_documents(copied, tmp_path / "d", "a samovar, very shiny")], copied.workspace)
    again = retrain.retrain(copied.recipe, copied.workspace)
    assert again.live
    assert again.release.fingerprint == indexed["release"]
    assert Searcher(registry.open().path).search("samovar", top_n=1).lexical[0].doc_id == "d0"
    # The corpus artifact is gone: the documents come back from the release itself.
    for corpus in artifacts.finished(copied.workspace, "corpus"):
        corpus.rename(tmp_path / corpus.name)
    restored = publishing.live_documents(registry, registry.live())
    assert restored is not None
    written = pd.read_parquet(tmp_path / "d" / "documents.parquet")
    pd.testing.assert_frame_equal(
        pd.read_parquet(restored.file("documents.parquet"))[list(written.columns)], written, check_dtype=False
    )
    (registry.path(indexed["release"]) / "fusion" / "fusion.json").unlink()
    outcome = retrain.retrain(copied.recipe, copied.workspace)
    assert outcome.release.fingerprint == copied.outcome.release.fingerprint


def test_what_a_person_rolled_back_only_a_person_promotes(copied: Trained, tmp_path: Path) -> None:
    registry = Releases(copied.workspace)
    models = copied.outcome.release.fingerprint
    other = reindexing.reindex([changed_documents(copied, tmp_path / "d", "samovar")], copied.workspace)["release"]
    registry.promote(models, reason="by hand")
    registry.rollback(reason="worse")
    live = registry.live()
    assert live is not None
    assert live.release == other
    assert registry.was_rolled_back(registry.open(models))
    registry.promote(models, reason="a person")
    assert not registry.was_rolled_back(registry.open(models))


def test_implausible_documents_need_a_word(copied: Trained, tmp_path: Path) -> None:
    single_document = changed_documents(copied, tmp_path / "one", "alone", rows=1)
    before, indexes = Releases(copied.workspace).live(), index_artifacts(copied.workspace)
    for full in (False, True):
        with pytest.raises(ImplausibleError, match=r"1 document in place of 150.*--force"):
            reindexing.reindex([single_document], copied.workspace, full=full)
    assert Releases(copied.workspace).live() == before
    assert index_artifacts(copied.workspace) == indexes, "it is refused before anything is analysed or embedded"
    figures = reindexing.reindex([single_document], copied.workspace, force=True)
    assert (figures["live"], figures["documents"]) == (True, 1)
    shown = listing.show(copied.workspace, "live")
    assert shown["carried_from"] == copied.outcome.release.fingerprint
    assert "systems" in shown["figures"]["carried"]
    frame = pd.read_parquet(copied.world / "tiny" / "documents.parquet")
    for name, columns in (("empty", ["title", "text"]), ("repeated", ["title", "text"])):
        broken = frame.copy()
        broken.loc[broken.index[:40], columns] = "" if name == "empty" else "same"
        (tmp_path / name).mkdir()
        broken.to_parquet(tmp_path / name / "documents.parquet", index=False)
        with pytest.raises(ImplausibleError, match=name):
            reindexing.reindex([str(tmp_path / name)], copied.workspace, release=copied.outcome.release.fingerprint)


def test_a_full_reindex_makes_a_new_index_and_two_at_once_both_end(copied: Trained, tmp_path: Path) -> None:
    source = changed_documents(copied, tmp_path / "d", "samovar")
    first = reindexing.reindex([source], copied.workspace)
    command = [sys.executable, "-m", "flows.cli", "reindex", "--documents", source, "--full", "--json"]
    command += ["--workspace", str(copied.workspace)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    results = [(process.communicate()[0], process.returncode) for process in processes]
    assert [code for _, code in results] == [0, 0]
    figures = [json.loads(output) for output, _ in results]
    assert all(item["live"] and item["release"] != first["release"] for item in figures)
    assert max(item["embedded"] for item in figures) == 150


def test_gc_removes_only_what_no_kept_release_needs(copied: Trained, tmp_path: Path) -> None:
    registry = Releases(copied.workspace)
    for number in range(4):
        reindexing.reindex([changed_documents(copied, tmp_path / "d", f"samovar {number}")], copied.workspace)
    held = Searcher(registry.open(copied.outcome.release.fingerprint).path)
    ids = registry.ids()
    dead = registry.path("f" * 32).with_name("f" * 32 + ".partial")
    dead.mkdir()
    (dead / artifacts.MANIFEST).write_text("{}", encoding="utf-8")
    assert "f" * 32 not in registry.ids()
    listed = gc.gc(copied.workspace, keep=1)
    assert registry.ids() == ids
    removed = gc.gc(copied.workspace, keep=1, act=True)
    assert removed["items"] == listed["items"]
    assert registry.ids() == [ids[0], *ids[-2:]]  # One is served, one is live, one a rollback returns to.
    assert not dead.exists()
    for release in registry.ids():
        release_parts.verify(registry.path(release))
    assert held.search("knife", top_n=3).reranked
    assert retrain.retrain(copied.recipe, copied.workspace).live
    registry.rollback(reason="test")
    assert {item["reason"] for item in gc.gc(copied.workspace, keep=10)["items"]} <= {"temporary"}  # Lock files.


def test_gc_removes_nothing_while_it_is_not_known_which_release_was_live(copied: Trained, tmp_path: Path) -> None:
    registry = Releases(copied.workspace)
    reindexing.reindex([changed_documents(copied, tmp_path / "d", "samovar")], copied.workspace, promote=False)
    ids = registry.ids()
    for lost in ("live.json", "history.jsonl"):
        (copied.workspace / "releases" / lost).unlink()
        with pytest.raises(ArtifactError, match="promote one first"):
            gc.gc(copied.workspace, keep=1, act=True)
        assert registry.ids() == ids
    registry.promote(ids[0], reason="as advised")
    gc.gc(copied.workspace, keep=0, act=True)
    assert registry.ids() == [ids[0]]


def test_gc_leaves_unclaimed_work_of_a_restored_backup(copied: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restored folder has its old times; that it was put there today says that somebody wants to go on."""
    unclaimed = copied.workspace / "artifacts" / "teacher" / f"{'0' * 32}.checkpoint"
    unclaimed.mkdir()
    os.utime(unclaimed, (0, 0))
    gc.gc(copied.workspace, keep=1, act=True)
    assert unclaimed.is_dir()
    monkeypatch.setattr(gc, "UNCLAIMED_DAYS", -1.0)
    gc.gc(copied.workspace, keep=1, act=True)
    assert not unclaimed.exists()


def test_gc_removes_nothing_while_what_a_release_was_made_from_cannot_be_read(
    copied: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all that the unreadable artifact was made from would look as if nothing needed it."""
    release = copied.outcome.release
    ranker = artifacts.folder_of(copied.workspace, release.manifest.inputs["ranker"])
    assert ranker is not None
    model = artifacts.folder_of(copied.workspace, artifacts.read_manifest(ranker).inputs["model"])
    assert model is not None
    monkeypatch.setattr(gc, "UNCLAIMED_DAYS", -1.0)  # What belongs to no release counts as old.
    intact = (model / artifacts.MANIFEST).read_bytes()
    (model / artifacts.MANIFEST).write_bytes(intact[:-100])
    before = sorted((copied.workspace / "artifacts").rglob("*"))
    with pytest.raises(ArtifactError, match=f"{model.name}.*not a readable manifest"):
        gc.gc(copied.workspace, keep=1, act=True)
    assert sorted((copied.workspace / "artifacts").rglob("*")) == before
    (model / artifacts.MANIFEST).write_bytes(intact)
    gc.gc(copied.workspace, keep=1, act=True)
    assert model.is_dir()


def test_gc_waits_for_who_makes_artifacts(copied: Trained) -> None:
    script = "import sys; from pipeline import locks; from pathlib import Path\n"
    script += "locks.mark_used(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(copied.workspace)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(RelevanceError, match="another command"):
            gc.gc(copied.workspace, keep=1, act=True)
        process.communicate()
    gc.gc(copied.workspace, keep=1, act=True)


@pytest.mark.parametrize("action", ["promote", "rollback"])
def test_gc_leaves_a_release_that_is_becoming_live(
    action: str, copied: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Releases(copied.workspace)
    for words in ("samovar", "kettle", "teapot"):
        reindexing.reindex([changed_documents(copied, tmp_path / words, words)], copied.workspace)
    first = registry.ids()[0]
    verify = release_parts.verify

    def verified_while_gc_comes(path: Path) -> artifacts.Artifact:
        release = verify(path)
        with pytest.raises(ConflictError, match="run gc again"):
            gc.gc(copied.workspace, keep=0, act=True)
        return release

    monkeypatch.setattr("pipeline.releases.verify", verified_while_gc_comes)
    pointer = registry.promote(first, reason="") if action == "promote" else registry.rollback(reason="")
    monkeypatch.undo()
    assert verify(registry.path(pointer.release)).fingerprint == pointer.release
    gc.gc(copied.workspace, keep=0, act=True)
    assert verify(registry.path(pointer.release)).fingerprint == pointer.release


def test_gc_leaves_a_release_that_a_service_opened_since_it_looked(
    copied: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Releases(copied.workspace)
    for words in ("samovar", "kettle", "teapot"):
        reindexing.reindex([changed_documents(copied, tmp_path / words, words)], copied.workspace)
    first = registry.ids()[0]
    planned, opened = gc._plan, []

    def plan(workspace: Path, keep: int | None) -> list[gc.Removal]:
        removals = list(planned(workspace, keep))
        opened.append(UseLock(registry.path(first)))
        return removals

    monkeypatch.setattr(gc, "_plan", plan)
    removed = gc.gc(copied.workspace, keep=0, act=True)
    assert first not in {Path(item["path"]).name for item in removed["items"]}
    assert release_parts.verify(registry.path(first)).fingerprint == first
    opened[0].let_go()
    monkeypatch.undo()
    removed = gc.gc(copied.workspace, keep=0, act=True)
    assert first in {Path(item["path"]).name for item in removed["items"]}


@pytest.mark.parametrize("reason", [errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP])
def test_gc_takes_a_release_for_one_in_use_where_the_file_system_cannot_tell(
    reason: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS an exclusive lock needs a file that is open for writing."""
    (tmp_path / artifacts.MANIFEST).write_text("{}", encoding="utf-8")
    assert not gc._in_use(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr("fcntl.flock", refuse)
    assert gc._in_use(tmp_path)
    assert not gc._in_use(tmp_path / "absent")


def test_a_password_of_a_database_is_written_nowhere(copied: Trained, tmp_path: Path) -> None:
    registry = Releases(copied.workspace)
    release = registry.open()
    url = "postgresql://shop:s3cret%21@db/shop?table=documents&sslpassword=s3cret%21"
    parts = {name: release_parts.part(release, name) for name in release.manifest.inputs}
    new = registry.publish(parts, metrics={"source": url}, config={**release.manifest.config, "x": [url]})
    registry.promote(new.fingerprint, reason=f"re-indexed {url}, {url}")
    for file in [new.path / artifacts.MANIFEST, *(copied.workspace / "releases").glob("*.json*")]:
        assert "s3cret" not in file.read_text(encoding="utf-8")
    assert "s3cret" not in str(RelevanceError(f"{url}: no such table"))
    assert "shop:***@db" in (registry.live() or pytest.fail("no pointer")).reason


@pytest.mark.parametrize("seed", range(5))
def test_a_reason_of_any_characters_is_listed_and_rolled_back(copied: Trained, tmp_path: Path, seed: int) -> None:
    """Characters that some readers take for ends of lines or files, and halves of surrogate pairs."""
    registry = Releases(copied.workspace)
    first = copied.outcome.release.fingerprint
    other = reindexing.reindex([changed_documents(copied, tmp_path / "d", "samovar")], copied.workspace)["release"]
    generator = random.Random(seed)
    odd = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\x00\n\r\t\ufeff\ud800\\\"'{}"
    reason = "".join(generator.choices(odd + "words ", k=40)) + odd
    registry.promote(first, reason=reason)
    shown = listing.releases(copied.workspace)
    assert shown["live"] == first
    assert not [item for item in shown["releases"] if item["damaged"]]
    for line in (copied.workspace / "releases" / "history.jsonl").read_bytes().split(b"\n")[:-1]:
        json.loads(line)
    assert registry.rollback(reason=reason).release == other
    assert registry.live() == Releases(copied.workspace).pointer_file.recover()


def test_gc_removes_old_releases_and_keeps_the_segments_that_newer_ones_share(copied: Trained, tmp_path: Path) -> None:
    registry = Releases(copied.workspace)
    ids = [
        reindexing.reindex([changed_documents(copied, tmp_path / "d", f"samovar {number}")], copied.workspace)[
            "release"
        ]
        for number in range(4)
    ]
    newest = registry.open(ids[3])
    shared = [name for name in newest.manifest.files if name.endswith("documents.sqlite")]
    assert len(shared) == 2
    store = DocumentStore.load(release_parts.part(registry.open(ids[1]), "documents").path)  # A service holds this one.
    before = {release: registry.path(release).is_dir() for release in ids}
    gc.gc(copied.workspace, keep=1, act=True)
    after = {release: registry.path(release).is_dir() for release in ids}
    assert (before, after) == (dict.fromkeys(ids, True), dict(zip(ids, (False, True, True, True), strict=True)))
    store.close()
    gc.gc(copied.workspace, keep=1, act=True)
    assert [registry.path(release).is_dir() for release in ids] == [False, False, True, True]  # One to roll back to.
    assert release_parts.verify(newest.path).fingerprint == ids[3]
    assert Searcher(newest.path).search("samovar 3", top_n=1).lexical[0].doc_id == "d0"
