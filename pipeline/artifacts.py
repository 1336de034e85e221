"""Folders that hold what a stage made, with a manifest that proves they are whole.

    <workspace>/artifacts/<kind>/<fingerprint>/manifest.json    written last
                                              /…                the stage's files
    <workspace>/artifacts/<kind>/<fingerprint>.partial/         while it is being made
    <workspace>/artifacts/<kind>/<fingerprint>.checkpoint/      what an interrupted training left to go on from

A fingerprint is a hash of the kind, the stage's version, its config and its inputs' fingerprints. So an
artifact that exists and verifies is never made twice, and a killed run continues from what is finished.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import ArtifactError, MissingError, RelevanceError

MANIFEST = "manifest.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of an artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What an artifact is, what it was made from, and which files it has."""

    kind: str
    fingerprint: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Name of each input → its fingerprint."""
    files: Mapping[str, FileRecord]
    """Path inside the folder, with forward slashes → size and sha256."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    created: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        fields = json.loads(text)
        fields["files"] = {name: FileRecord(**record) for name, record in fields["files"].items()}
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished, verified folder."""

    path: Path
    manifest: Manifest

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def metrics(self) -> Mapping[str, Any]:
        return self.manifest.metrics

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            ArtifactError: the artifact has no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactError(f"{self.path}: a {self.manifest.kind} artifact without {name}; delete it and run again")
        return self.path / name


@dataclass(frozen=True, slots=True)
class Staging:
    """Where a stage writes while its artifact is being made."""

    folder: Path
    """Empty at the start; becomes the artifact."""
    checkpoint: Path
    """Survives a kill; may not exist. Removed when the artifact is finished."""


def fingerprint(kind: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """32 hex digits that change when the kind, the stage's version, its config or an input does."""
    text = json.dumps([kind, version, config, dict(inputs)], sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """A digest of names and contents of all files below a folder; the fingerprint of an outside source."""
    parts = [f"{path.relative_to(folder).as_posix()} {sha256(path)}" for path in _files(folder)]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def fsync(path: Path) -> None:
    """Makes a file's content, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small text file so that a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def seal(folder: Path, manifest: Manifest, final: Path) -> Artifact:
    """Turns a staging folder into an artifact: sync and hash its files, manifest last, rename, sync the parent.

    The hashes are of what is read back, so a library that lost a write without saying so (Faiss may) is found
    by the next verified read at the latest.
    """
    records = {}
    for path in _files(folder):
        fsync(path)
        records[path.relative_to(folder).as_posix()] = FileRecord(path.stat().st_size, sha256(path))
    for directory in [path for path in folder.rglob("*") if path.is_dir()]:
        fsync(directory)
    whole = Manifest(**{**_shallow(manifest), "files": records})
    write_atomically(folder / MANIFEST, whole.to_json())
    folder.rename(final)
    fsync(final.parent)
    return Artifact(final, whole)


def _shallow(manifest: Manifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in Manifest.__dataclass_fields__}


def load(path: Path, kind: str | None = None, *, verify: bool = True) -> Artifact:
    """The artifact at `path`, after checking each file's size and, with `verify`, its sha256.

    Raises:
        MissingError: no such folder.
        ArtifactError: no manifest, another kind, or a file missing or changed; the message names it.
    """
    if not path.is_dir():
        raise MissingError(f"{path}: no such artifact; run the stage that makes it")
    try:
        manifest = Manifest.from_json((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST}: not a readable manifest ({error}); delete {path} and run again"
        ) from error
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path}: holds a {manifest.kind}, not a {kind}; give the path of a {kind}")
    for name, record in manifest.files.items():
        file = path / name
        if not file.is_file():
            raise ArtifactError(f"{file}: missing from this {manifest.kind}; delete {path} and run again")
        if file.stat().st_size != record.bytes:
            raise ArtifactError(
                f"{file}: {file.stat().st_size} bytes, the manifest says {record.bytes}; delete {path} and run again"
            )
        if verify and sha256(file) != record.sha256:
            raise ArtifactError(f"{file}: its content is not what was written; delete {path} and run again")
    return Artifact(path, manifest)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file beside `path`; a second process waits. The lock dies with its process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(
    workspace: Path,
    kind: str,
    *,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, Artifact | str],
    build: Callable[[Staging], Mapping[str, Any]],
) -> Artifact:
    """The artifact of this kind, config and inputs: the one that exists, or the one `build` makes now.

    Args:
        workspace: the folder that holds `artifacts/`.
        kind: the artifact's kind and folder name.
        version: raise it when the stage's code changes what it makes.
        config: plain JSON values; part of the fingerprint.
        inputs: artifacts, or for things from outside their digests; part of the fingerprint.
        build: writes the files into `staging.folder` and returns the metrics to store.

    Raises:
        ArtifactError: the existing artifact is damaged, or the disk is full; nothing half-written is left
            under the final name.
    """
    digests = {name: item.fingerprint if isinstance(item, Artifact) else item for name, item in inputs.items()}
    plain = json.loads(json.dumps(config))
    mark = fingerprint(kind, version, plain, digests)
    final = workspace / "artifacts" / kind / mark
    with _disk_errors(final), locked(final):
        if final.exists():
            found = load(final, kind)
            log.info("%s %s: already made", kind, mark[:12])
            return found
        staging = Staging(final.with_name(f"{mark}.partial"), final.with_name(f"{mark}.checkpoint"))
        shutil.rmtree(staging.folder, ignore_errors=True)
        staging.folder.mkdir(parents=True)
        began = time.monotonic()
        try:
            metrics = dict(build(staging))
            metrics.setdefault("seconds", round(time.monotonic() - began, 1))
            made = seal(
                staging.folder,
                Manifest(
                    kind=kind,
                    fingerprint=mark,
                    version=version,
                    config=plain,
                    inputs=digests,
                    files={},
                    metrics=json.loads(json.dumps(metrics)),
                    code=f"search-relevance {metadata.version('search-relevance')}",
                    created=datetime.now(UTC).isoformat(timespec="seconds"),
                ),
                final,
            )
        except BaseException:
            shutil.rmtree(staging.folder, ignore_errors=True)
            raise
        shutil.rmtree(staging.checkpoint, ignore_errors=True)
    log.info("%s %s: made in %.1f s", kind, mark[:12], time.monotonic() - began)
    return made


@contextmanager
def _disk_errors(final: Path) -> Iterator[None]:
    """Turns a full or read-only disk, however a library words it, into one clear error."""
    try:
        yield
    except RelevanceError:
        raise
    except Exception as error:
        reason: BaseException | None = error
        while reason is not None and not _disk_is_full(reason):
            reason = reason.__cause__ or reason.__context__
        if reason is None:
            raise
        free = shutil.disk_usage(final.parent if final.parent.exists() else "/").free
        why = os.strerror(getattr(reason, "errno", None) or errno.ENOSPC)
        raise ArtifactError(
            f"{final}: could not be written ({why}; {free / 2**20:.0f} MiB free); "
            "make room and run again, nothing half-written was kept"
        ) from error


def _disk_is_full(error: BaseException) -> bool:
    if not isinstance(error, OSError):
        return False
    if error.errno is None:  # As numpy has it: "10000 requested and 2484 written".
        return "requested and" in str(error)
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
