"""Damage in the files of divided documents: refused by name at the start, and named by `relevance index verify`."""

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import indexes, publishing, shards
from index import ann, checks
from index.shards import ROWS, shard_of
from index.term_weights import COLLECTION, HOLDERS
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.releases import Releases
from serving.runtime.scheduler import Scheduler
from serving.scoring.searcher import Searcher
from serving.scoring.sharded import ShardClient
from tests.serving.divided_collection import CONFIGS, Collection, searcher_of

COUNT = 2

Divided = tuple[Path, list[Artifact], Artifact]
"""A workspace, the releases of its shards, and the release that asks them."""


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Divided:
    """A workspace, the releases of two shards with fields, passages and votes, and the release that asks them."""
    workspace = tmp_path_factory.mktemp("divided")
    collection = Collection.of(workspace, CONFIGS["fields, passages and votes"], 5)
    published, front = shards.divide(collection.run, collection.release, collection.data, COUNT, collection.whole_index)
    return workspace, published, front


def start(release: Artifact) -> None:
    """Loads a release as the service of a shard does, or the one that asks them."""
    if "documents" in release.manifest.inputs:
        Searcher(release.path)
        return
    client, scheduler = ShardClient(["http://127.0.0.1:1", "http://127.0.0.1:2"]), Scheduler(1)
    try:
        searcher_of(release.path, client, scheduler)
    finally:
        client.close()
        scheduler.stop()


def problems(workspace: Path, release: Artifact) -> list[str]:
    (item,) = indexes.verify(workspace, release.fingerprint)["releases"]
    return list(item["problems"])


def test_a_flipped_bit_and_a_cut_in_any_file_of_a_shard_or_of_the_asking_release_are_refused_by_name(
    divided: Divided,
) -> None:
    """Seed 6."""
    workspace, published, front = divided
    generator = random.Random(6)
    assert indexes.verify(workspace)["sound"]
    assert f"collection/{COLLECTION}" in front.manifest.files
    for release in (*published, front):
        assert problems(workspace, release) == []
        start(release)
        for name in [*release.manifest.files, artifacts.MANIFEST]:
            path = release.path / name
            original = path.read_bytes()
            flipped = bytearray(original)
            flipped[generator.randrange(len(original))] ^= 1 << generator.randrange(8)
            for damaged in (bytes(flipped), original[: generator.randrange(len(original))]):
                path.write_bytes(damaged)
                with pytest.raises(ArtifactError, match=name):
                    start(release)
                assert any(str(path) in problem for problem in problems(workspace, release)), path
            path.write_bytes(original)
    assert indexes.verify(workspace)["sound"]


def array(name: str, change: Callable[[np.ndarray], None]) -> Callable[[Path], None]:
    """Changes an array of a part."""

    def changed(folder: Path) -> None:
        values = np.load(folder / name)
        change(values)
        np.save(folder / name, values)

    return changed


def less_than_here(values: np.ndarray) -> None:
    values[0] = 0


def swap(values: np.ndarray) -> None:
    values[[0, 1]] = values[[1, 0]]


def document_of_another_shard(folder: Path) -> None:
    table = pq.read_table(folder / "ids.parquet")
    ids = table.column("doc_id").to_pylist()
    ids[0] = next(name for name in map(str, range(100)) if shard_of(name, COUNT) != shard_of(ids[0], COUNT))
    pq.write_table(table.set_column(1, "doc_id", pa.array(ids)), folder / "ids.parquet", compression="zstd")


def vector_of(value: float) -> Callable[[Path], None]:
    """Sets all numbers of the first vector to a value."""

    def changed(folder: Path) -> None:
        index = faiss.read_index(str(folder / ann.FILE))
        vectors = index.reconstruct_n(0, index.ntotal)
        vectors[0] = value
        index.reset()
        index.add(vectors)
        faiss.write_index(index, str(folder / ann.FILE))

    return changed


FAULTS: list[tuple[str, Callable[[Path], None], str]] = [
    ("lexical", array(HOLDERS, less_than_here), "its numbers are not those of"),
    ("lexical.title", array(HOLDERS, lambda values: values.fill(10_000)), "its numbers are not those of"),
    ("lexical", array(ROWS, swap), "its rows do not ascend"),
    ("lexical.text", array(ROWS, lambda values: values.fill(10_000)), "its rows do not ascend"),
    ("lexical", document_of_another_shard, f"belongs to shard . of {COUNT}, not "),
    ("index.title", vector_of(np.nan), "zero, or not finite"),
    ("index.text", vector_of(0.0), "zero, or not finite"),
    ("index", vector_of(np.inf), "zero, or not finite"),
]


@pytest.mark.parametrize(("name", "change", "words"), FAULTS, ids=[f"{name}-{words}" for name, _, words in FAULTS])
def test_contents_of_a_shard_that_cannot_be_are_named(
    divided: Divided,
    tmp_path: Path,
    name: str,
    change: Callable[[Path], None],
    words: str,
) -> None:
    _, published, _ = divided
    release = max(published, key=lambda item: release_parts.part(item, name).metrics["documents"])
    folder = tmp_path / "part"
    shutil.copytree(release.path / name, folder)
    change(folder)
    part = Artifact(folder, artifacts.read_manifest(folder))
    (problem, *_) = checks.problems({name: part})
    assert str(folder) in problem
    assert re.search(words, problem)


def test_no_retraining_stands_in_for_shards_by_itself(divided: Divided) -> None:
    """It was published over the documents of one shard, or of the training, and went live in the place of all."""
    workspace, published, front = divided
    registry = Releases(workspace)
    new = registry.open(published[0].fingerprint)
    documents = release_parts.part(published[0], "documents")
    for old in (front, *published):
        (reason, *_) = publishing.refusals(registry, old, new, documents)
        assert f"--shards N --release {new.fingerprint[:12]}" in reason
        assert f"releases promote {new.fingerprint[:12]}" in reason
