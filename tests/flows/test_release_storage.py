"""Shared storage: releases pushed and pulled, and documents read, on a disk and on an S3-compatible server."""

import errno
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import gc, release_storage
from pipeline import locks, release_parts, storage
from pipeline.config import SourceConfig
from pipeline.data import sources
from pipeline.errors import ArtifactError, MissingError, UnavailableError
from pipeline.releases import Releases
from tests.serving.conftest import TinyWorkspace

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty bucket on a server of moto's, which the environment names."""
    pytest.importorskip("s3fs")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        import s3fs

        s3fs.S3FileSystem().mkdir("search")
        yield "s3://search"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server.stop()


@pytest.fixture(params=["disk", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return f"file://{tmp_path / 'shared'}"
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyWorkspace:
    workspace = TinyWorkspace(tmp_path_factory.mktemp("tiny"))
    workspace.releases.promote(workspace.publish(1), reason="test")
    workspace.publish(2)
    return workspace


def objects(shared: str) -> dict[str, Any]:
    system, path = storage.opened(f"{shared}/objects")
    return {Path(name).name: name for name in system.find(path)}


def test_a_release_arrives_as_it_was_and_shared_files_are_copied_once(
    tiny: TinyWorkspace, shared: str, tmp_path: Path
) -> None:
    live = tiny.releases.resolve("live")
    other = next(name for name in tiny.releases.ids() if name != live)
    first = release_storage.push(tiny.path, shared)
    assert (first["release"], first["live_there"]) == (live, True)
    second = release_storage.push(tiny.path, shared, other)
    assert not second["live_there"]
    assert 0 < second["copied_bytes"] < second["bytes"]
    assert release_storage.push(tiny.path, shared)["copied_bytes"] == 0
    manifests = [tiny.releases.open(name).manifest for name in (live, other)]
    assert set(objects(shared)) == {item.sha256 for manifest in manifests for item in manifest.files.values()}

    pulled = release_storage.pull(tmp_path / "there", shared)
    assert (pulled["release"], pulled["live"]) == (live, True)
    there = Releases(tmp_path / "there")
    assert there.open().manifest == manifests[0]
    assert release_parts.verify(there.path(live)).fingerprint == live
    assert release_storage.pull(tmp_path / "there", shared)["copied_bytes"] == 0
    by_name = release_storage.pull(tmp_path / "there", shared, other[:8])
    assert (by_name["release"], by_name["live"]) == (other, False)
    assert there.resolve("live") == live
    with pytest.raises(MissingError, match="0 releases called 'abc'"):
        release_storage.pull(tmp_path / "there", shared, "abc")


def test_a_damaged_object_is_refused_by_name_and_a_lost_one_too(
    tiny: TinyWorkspace, shared: str, tmp_path: Path
) -> None:
    live = tiny.releases.open()
    release_storage.push(tiny.path, shared)
    system, _ = storage.opened(shared)
    record = live.manifest.files["encoder/model.fp32.onnx"]
    path = objects(shared)[record.sha256]
    content = bytearray(system.cat_file(path))
    content[100] ^= 1
    system.pipe_file(path, bytes(content))
    with pytest.raises(ArtifactError, match=f"{record.sha256}: its content is not what its name says"):
        release_storage.pull(tmp_path / "there", shared)
    assert not list((tmp_path / "there").glob("artifacts/release/*/*"))
    system.rm_file(path)
    with pytest.raises(MissingError, match="no such file"):
        release_storage.pull(tmp_path / "there", shared)
    assert Releases(tmp_path / "there").live() is None
    assert release_storage.push(tiny.path, shared)["copied_bytes"] == record.bytes
    assert release_storage.pull(tmp_path / "there", shared)["live"]


def test_a_damaged_copy_is_moved_elsewhere_and_pulled_again(tiny: TinyWorkspace, shared: str, tmp_path: Path) -> None:
    release_storage.push(tiny.path, shared)
    pulled = release_storage.pull(tmp_path / "there", shared)["release"]
    copy = Releases(tmp_path / "there").path(pulled)
    (copy / "encoder" / "model.fp32.onnx").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match=f"model.fp32.onnx.*move {copy} elsewhere and pull again"):
        release_storage.pull(tmp_path / "there", shared)
    copy.rename(tmp_path / "elsewhere")
    assert release_storage.pull(tmp_path / "there", shared)["copied_bytes"] > 0
    assert release_parts.verify(copy).fingerprint == pulled


@pytest.mark.parametrize("content", [b"\xff{}", b"", b"[]", b"{}"])
def test_a_damaged_manifest_is_refused_by_name(
    content: bytes, tiny: TinyWorkspace, shared: str, tmp_path: Path
) -> None:
    release_storage.push(tiny.path, shared)
    live = tiny.releases.open().fingerprint
    system, root = storage.opened(shared)
    system.pipe_file(f"{root}/releases/{live}/manifest.json", content)
    with pytest.raises(ArtifactError, match=f"the manifest of {live[:12]} is damaged"):
        release_storage.pull(tmp_path / "there", shared)
    assert Releases(tmp_path / "there").live() is None


def test_the_pointer_is_written_last(
    tiny: TinyWorkspace, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = 3
    original = release_storage._Storage.put

    def put(self: Any, path: Path, record: Any) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise UnavailableError("the network is gone")
        return original(self, path, record)

    monkeypatch.setattr(release_storage._Storage, "put", put)
    with pytest.raises(UnavailableError, match="network"):
        release_storage.push(tiny.path, shared)
    with pytest.raises(MissingError, match=r"live\.json"):
        release_storage.pull(tmp_path / "there", shared)
    left = 1000
    assert release_storage.push(tiny.path, shared)["live_there"]
    assert release_storage.pull(tmp_path / "there", shared)["live"]


def test_documents_in_shared_storage_are_those_of_a_copy(tiny: TinyWorkspace, shared: str, tmp_path: Path) -> None:
    here = Path(tiny.source(tmp_path / "documents"))
    system, path = storage.opened(f"{shared}/documents")
    system.makedirs(path, exist_ok=True)
    system.put_file(str(here / "documents.parquet"), f"{path}/documents.parquet")
    of_copy, of_shared = (sources.find(SourceConfig(path=name), Path()) for name in (str(here), f"{shared}/documents"))
    assert (of_copy.name, of_copy.digest, of_copy.format) == (of_shared.name, of_shared.digest, of_shared.format)
    assert of_copy.read().documents.equals(of_shared.read().documents)
    with pytest.raises(MissingError, match="nowhere: there is no such file"):
        sources.find(SourceConfig(path=f"{shared}/nowhere"), Path())


def test_a_push_that_fails_leaves_no_part_of_a_file_behind(
    tiny: TinyWorkspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.local import LocalFileSystem

    put = LocalFileSystem.put_file

    def full(self: LocalFileSystem, source: str, target: str, **options: Any) -> None:
        put(self, source, target, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "put_file", full)
        with pytest.raises(UnavailableError, match="No space left"):
            release_storage.push(tiny.path, f"file://{tmp_path}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_gc_keeps_a_release_while_it_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    workspace = TinyWorkspace(tmp_path / "workspace")
    old, live = workspace.publish(1), workspace.publish(2)
    workspace.releases.promote(live, reason="test")
    locks.let_go(workspace.path)
    put = LocalFileSystem.put_file

    def put_after_gc(self: LocalFileSystem, source: str, target: str, **options: Any) -> None:
        gc.gc(workspace.path, keep=1, act=True)
        put(self, source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFileSystem, "put_file", put_after_gc)
        pushed = release_storage.push(workspace.path, f"file://{tmp_path / 'shared'}", old)
    assert pushed["release"] == old
    gc.gc(workspace.path, keep=1, act=True)
    assert workspace.releases.ids() == [live], "it is in use no longer"
