"""A workspace that commit 4896034 made serves, re-indexes and rolls back with the code of today.

`before/workspace.tar.xz` holds two releases of 100 documents, the second one a re-index; `before/answers.json` holds
what the service of that commit answered to a fixed list of requests.
"""

import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from starlette.testclient import TestClient

from flows import reindex as reindexing
from flows import releases as listing
from pipeline import release_parts
from pipeline.releases import Releases
from serving import settings
from serving.api import app as apps
from serving.rollout.lifecycle import Lifecycle
from serving.scoring.searcher import Searcher

BEFORE = Path(__file__).with_name("before")


def unpacked(parent: Path) -> Path:
    """Unpacks the workspace of the earlier version into a folder `workspace`."""
    folder = parent / "workspace"
    with tarfile.open(BEFORE / "workspace.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return unpacked(tmp_path)


def _comparable(path: str, text: str) -> Any:
    """An answer without its random id and its times."""
    answer = json.loads(re.sub(r'"id":"[0-9a-f]{32}"', '"id":""', text))
    if path == "/search":
        answer.pop("milliseconds")
    return answer


def _assert_same(new: Any, old: Any, where: str) -> None:
    """Same keys in the same order, same values; numbers may differ as those of two processors do."""
    if isinstance(old, dict):
        assert list(new)[: len(old)] == list(old), where
        for name, value in old.items():
            _assert_same(new[name], value, f"{where}.{name}")
    elif isinstance(old, list):
        assert len(new) == len(old), where
        for index, (ours, theirs) in enumerate(zip(new, old, strict=True)):
            _assert_same(ours, theirs, f"{where}[{index}]")
    elif isinstance(old, float):
        assert new == pytest.approx(old, abs=1e-6), where
    else:
        assert new == old, where


def test_answers_are_those_of_before(workspace: Path) -> None:
    lifecycle = Lifecycle(settings.from_environment(workspace=workspace, precision="fp32"))
    lifecycle.start()
    try:
        with TestClient(apps.create(lifecycle), base_url="http://localhost") as client:
            for path, body, status, text in json.loads((BEFORE / "answers.json").read_text(encoding="utf-8")):
                answer = client.post(path, json=body)
                assert answer.status_code == status
                _assert_same(_comparable(path, answer.text), _comparable(path, text), path)
    finally:
        lifecycle.close()


def test_releases_of_before_verify_reindex_and_roll_back(workspace: Path, tmp_path: Path) -> None:
    registry = Releases(workspace)
    first, second = registry.ids()
    for name in (first, second):
        assert release_parts.verify(registry.path(name)).manifest.checksum == ""
    frame = pd.DataFrame(registry_documents(registry))
    frame.loc[1, "text"] = "a balalaika for the garden"
    (tmp_path / "documents").mkdir()
    frame.to_parquet(tmp_path / "documents" / "documents.parquet", index=False)
    figures = reindexing.reindex([str(tmp_path / "documents")], workspace)
    assert figures["live"]
    assert Searcher(registry.open().path).search("balalaika", top_n=1).lexical[0].doc_id == "d1"
    assert registry.rollback(reason="test").release == second
    assert registry.rollback(reason="further").release == first
    assert Searcher(registry.open().path).search("samovar", top_n=1).lexical == []
    shown = listing.releases(workspace)
    assert shown["damaged"] == []
    assert len(shown["history"]) == 5


def registry_documents(registry: Releases) -> list[dict[str, str]]:
    from index.document_store import DocumentStore

    store = DocumentStore.load(release_parts.part(registry.open(), "documents").path)
    documents = [store.get(row) for row in range(len(store))]
    return [{"doc_id": item.doc_id, "title": item.title, "text": item.text} for item in documents]
