"""Documents are judged before they are divided among shards, as before any re-index."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import indexes, reindex, sources
from flows import shards as divided
from pipeline import artifacts
from pipeline.errors import ImplausibleError
from tests.serving.conftest import DOCUMENTS, TinyWorkspace

Reindex = Callable[..., dict[str, Any]]


def into_two(documents: str, workspace: Path, **options: Any) -> dict[str, Any]:
    return divided.reindex(sources.named(documents), workspace, 2, **options)


def into_one(documents: str, workspace: Path, **options: Any) -> dict[str, Any]:
    return reindex.reindex([documents], workspace, **options)


def divided_collection(tiny: TinyWorkspace) -> dict[str, int]:
    return {kind: len(artifacts.finished(tiny.path, kind)) for kind in ("lexical", "vectors", "index", "release")}


@pytest.mark.parametrize("command", [into_one, into_two], ids=["reindex", "reindex --shards"])
def test_documents_that_look_wrong_need_a_word(tiny: TinyWorkspace, tmp_path: Path, command: Reindex) -> None:
    few, before = tiny.source(tmp_path / "few", count=20), divided_collection(tiny)
    with pytest.raises(ImplausibleError, match=rf"{few}: 20 documents in place of {len(DOCUMENTS)} \(at most 20%"):
        command(few, tiny.path)
    assert divided_collection(tiny) == before
    assert command(few, tiny.path, force=True)["documents"] == 20


@pytest.mark.parametrize("command", [into_one, into_two], ids=["reindex", "reindex --shards"])
def test_documents_are_judged_beside_those_that_shards_hold(
    tiny: TinyWorkspace, tmp_path: Path, command: Reindex, caplog: pytest.LogCaptureFixture
) -> None:
    front = into_two(tiny.source(tmp_path / "all"), tiny.path)["release"]
    few = tiny.source(tmp_path / "few", count=20)
    with pytest.raises(ImplausibleError, match="20 documents in place of"):
        command(few, tiny.path, release=front)
    for kind in ("corpus", "documents"):
        for path in artifacts.finished(tiny.path, kind):
            if artifacts.read_manifest(path).metrics["documents"] == len(DOCUMENTS):
                shutil.rmtree(path)
    assert command(few, tiny.path, release=front)["documents"] == 20
    assert "documents: not judged beside those of release" in caplog.text


def test_an_id_that_stands_twice_is_in_one_shard_once(tiny: TinyWorkspace, tmp_path: Path) -> None:
    source = Path(tiny.source(tmp_path / "all"))
    table = pq.read_table(source / "documents.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 5)]), source / "documents.parquet")
    figures = into_two(str(source), tiny.path)
    assert figures["documents"] == len(DOCUMENTS) == sum(shard["documents"] for shard in figures["shards"])
    assert indexes.verify(tiny.path)["sound"]
