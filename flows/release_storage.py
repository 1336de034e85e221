"""Copies releases to and from shared storage, each file once by its content.

    URL/objects/<sha256>                       a file of any release; releases that share a segment share its object
    URL/releases/<fingerprint>/manifest.json   written when all objects of the release are there
    URL/live.json                              the fingerprint of the release to serve, written last

Every object is read back and compared with its digest after it was written, and compared again when it is pulled.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from index.store_file import UseLock
from pipeline import artifacts, disk, regular_files, storage
from pipeline.errors import ArtifactError, MissingError
from pipeline.locks import locked, mark_used
from pipeline.manifest import FileRecord, Manifest
from pipeline.releases import Releases
from pipeline.text import counted

BLOCK = 1 << 20
"""Bytes that are read at once where a digest is computed."""

log = logging.getLogger(__name__)


def push(workspace: Path, address: str, release: str = "live") -> dict[str, Any]:
    """Copies a release to shared storage and, if it is the live one, makes it live there.

    Raises:
        MissingError, ArtifactError: no such release, or a damaged one.
        UnavailableError: the storage cannot be written; what was copied is not copied again.
    """
    registry = Releases(workspace)
    with UseLock(registry.path(registry.resolve(release))):  # gc keeps the release until it is copied.
        artifact = registry.open(release)
        target = _Storage(address)
        copied = sum(target.put(artifact.path / name, record) for name, record in artifact.manifest.files.items())
        manifest = regular_files.read(artifact.path / artifacts.MANIFEST)
        target.write(f"releases/{artifact.fingerprint}/manifest.json", manifest)
    is_live = _is_live(registry, artifact.fingerprint)
    if is_live:
        target.write("live.json", json.dumps({"release": artifact.fingerprint}).encode())
    return {
        "release": artifact.fingerprint,
        "live_there": is_live,
        "files": len(artifact.manifest.files),
        "copied_bytes": copied,
        "bytes": sum(record.bytes for record in artifact.manifest.files.values()),
    }


@disk.digests_remembered()
def pull(workspace: Path, address: str, release: str = "live", *, promote: bool = True) -> dict[str, Any]:
    """Copies a release from shared storage into a workspace, checks it, and makes it live if `live` was asked for.

    Args:
        release: live, or the first digits of a release that is there.
        promote: False leaves the pointer of the workspace as it is.

    Raises:
        MissingError: no such release there.
        ArtifactError: an object is not what its digest says, the parts of the release do not fit each other, or a copy
            that was here before is damaged.
        UnavailableError: the storage cannot be read.
        ConflictError: another publisher made another release live here meanwhile; the pulled one is not live.
    """
    source = _Storage(address)
    fingerprint = source.resolve(release)
    registry = Releases(workspace)
    final = registry.path(fingerprint)
    final.parent.mkdir(parents=True, exist_ok=True)
    mark_used(workspace)
    with disk.readable_errors(final), locked(final):
        copied = 0 if final.exists() else _fetch(source, fingerprint, final)
    seen = registry.generation()
    try:
        artifact = registry.open(fingerprint)
    except ArtifactError as error:
        if copied:
            raise
        raise ArtifactError(f"{error}; this copy was here before: move {final} elsewhere and pull again") from error
    if promote and release == "live":
        registry.promote(fingerprint, reason=f"pulled from {address}", expected=seen)
    return {
        "release": fingerprint,
        "live": _is_live(registry, fingerprint),
        "files": len(artifact.manifest.files),
        "copied_bytes": copied,
    }


def _is_live(registry: Releases, fingerprint: str) -> bool:
    live = registry.pointer_file.recover()
    return live is not None and live.release == fingerprint


def _fetch(source: "_Storage", fingerprint: str, final: Path) -> int:
    """Copies a release into the folder `final`, created atomically; returns the number of bytes copied."""
    content = source.read(f"releases/{fingerprint}/manifest.json")
    try:
        text = content.decode()
        manifest = Manifest.from_json(text)
        if manifest.fingerprint != fingerprint or manifest.kind != "release":
            raise ValueError(f"it is that of {manifest.kind} {manifest.fingerprint}")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{source.address}: the manifest of {fingerprint[:12]} is damaged ({error})") from error
    partial = final.with_name(f"{fingerprint}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for name, record in manifest.files.items():
            path = partial / name
            if not path.resolve().is_relative_to(partial.resolve()):
                raise ArtifactError(f"{source.address}: the manifest of {fingerprint[:12]} names {name!r}")
            path.parent.mkdir(parents=True, exist_ok=True)
            source.get(record, path)
        artifacts.finish(partial, text, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return sum(record.bytes for record in manifest.files.values())


class _Storage:
    """One folder of shared storage with releases in it."""

    def __init__(self, address: str) -> None:
        if not storage.is_address(address):
            raise MissingError(f"{address}: write an address such as s3://bucket/folder or file:///folder")
        self.address = address.rstrip("/")
        self._system, path = storage.opened(self.address)
        self._root = path.rstrip("/")

    def put(self, path: Path, record: FileRecord) -> int:
        """Copies a file unless its object is there; returns the number of bytes copied."""
        with storage.readable_errors(self.address):
            target = f"{self._root}/objects/{record.sha256}"
            if self._system.exists(target) and self._system.info(target)["size"] == record.bytes:
                return 0
            with self._atomic_target(target) as written:
                self._system.put_file(str(path), written)
                if self._digest(written) != record.sha256:
                    if written == target:
                        self._system.rm_file(written)
                    raise ArtifactError(f"{self.address}: {path.name} reads back as another content; try again")
        return record.bytes

    def get(self, record: FileRecord, path: Path) -> None:
        """Copies an object into a file, synced and compared with its digest."""
        with storage.readable_errors(self.address):
            self._system.get_file(f"{self._root}/objects/{record.sha256}", str(path))
        disk.fsync(path)
        if path.stat().st_size != record.bytes or disk.sha256(path) != record.sha256:
            raise ArtifactError(
                f"{self.address}/objects/{record.sha256}: its content is not what its name says; push the release "
                "again from a workspace that has it, after moving that object away"
            )

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, and reads it back."""
        with storage.readable_errors(self.address):
            target = f"{self._root}/{name}"
            with self._atomic_target(target) as written:
                self._system.pipe_file(written, content)
            if self._system.cat_file(target) != content:
                raise ArtifactError(f"{self.address}/{name}: reads back as another content; try again")

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        with storage.readable_errors(f"{self.address}/{name}"):
            content: bytes = self._system.cat_file(f"{self._root}/{name}")
            return content

    def resolve(self, release: str) -> str:
        """The fingerprint of a release in the storage, from `live` or from the first digits of the fingerprint.

        Raises:
            MissingError: no fingerprint there begins with these digits, or several do.
            ArtifactError: `live.json`, which names the live release, cannot be read.
        """
        if release == "live":
            try:
                fingerprint = json.loads(self.read("live.json"))["release"]
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactError(f"{self.address}/live.json: not readable ({error}); push again") from error
            if not isinstance(fingerprint, str) or not artifacts.is_fingerprint(fingerprint):
                raise ArtifactError(f"{self.address}/live.json: names no release; push again")
            return fingerprint
        known = sorted(self._releases())
        matches = [name for name in known if name.startswith(release)]
        if len(matches) != 1:
            listed = ", ".join(name[:12] for name in known) or "none"
            raise MissingError(
                f"{self.address}: {counted(len(matches), 'release')} called '{release}'; there are: {listed}"
            )
        return matches[0]

    def _releases(self) -> Iterator[str]:
        """Yields the fingerprints of the releases there."""
        with storage.readable_errors(f"{self.address}/releases"):
            for path in self._system.find(f"{self._root}/releases"):
                name = path.split("/")[-2]
                if path.endswith("/manifest.json") and artifacts.is_fingerprint(name):
                    yield name

    @contextlib.contextmanager
    def _atomic_target(self, target: str) -> Iterator[str]:
        """Yields the path to write a file to; on leaving, the complete file is at `target`.

        An object store writes objects atomically. On a disk an interrupted write would leave part of a file, so it is
        written under another name and renamed.
        """
        self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
        written = f"{target}.{uuid4().hex}" if "file" in self._system.protocol else target
        try:
            yield written
            if written != target:
                self._system.mv(written, target)
        except BaseException:  # A full disk would be filled further by each new try.
            if written != target:
                with contextlib.suppress(OSError):
                    self._system.rm_file(written)
            raise

    def _digest(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._system.open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()
