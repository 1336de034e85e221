"""The documents that a release is published over survive damage of the artifact that they came from."""

import pytest

from flows import publishing
from pipeline import artifacts, schema
from tests.serving.conftest import TinyWorkspace


def test_documents_of_a_damaged_artifact_are_restored_from_the_release(
    tiny: TinyWorkspace, caplog: pytest.LogCaptureFixture
) -> None:
    release = tiny.releases.open()
    original = publishing.documents_of(tiny.releases, release)
    before = schema.read(original.file("documents.parquet"), "documents")
    damaged = bytearray(original.file("documents.parquet").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    original.file("documents.parquet").write_bytes(damaged)
    with caplog.at_level("WARNING"):
        restored = publishing.documents_of(tiny.releases, release)
    assert f"restored from release {release.fingerprint[:12]}" in caplog.text
    assert artifacts.load(restored.path, "corpus")
    after = schema.read(restored.file("documents.parquet"), "documents")
    names = ["doc_id", "title", "text"]
    assert after.select(names).to_pylist() == before.select(names).to_pylist()
    pointer = tiny.releases.live()
    published = publishing.live_documents(tiny.releases, pointer)
    assert published is not None
    assert published.fingerprint == restored.fingerprint
