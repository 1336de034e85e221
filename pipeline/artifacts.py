"""Artifacts: folders that hold the output of a stage, with a manifest that proves that they are complete.

    <workspace>/artifacts/<kind>/<fingerprint>/manifest.json    written last
                                              /…                the stage's files
    <workspace>/artifacts/<kind>/<fingerprint>.partial/         unfinished, whatever it holds
    <workspace>/artifacts/<kind>/<fingerprint>.checkpoint/      state of an interrupted training, to resume from

An artifact that exists and verifies is never made twice (see `pipeline.manifest` on fingerprints), and a killed run
continues after its last finished stage.

Only the name of a folder says whether it is finished: 32 hex digits and nothing else (`finished`).

The files of a finished artifact are never written again. Releases hard-link them and services map them into memory,
so a file that somebody truncates in place breaks every release that shares it and ends the services that map it
(SIGBUS). Copies would cost the full size again for every release; so edit nothing below `artifacts/`.
"""

import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline import disk, regular_files
from pipeline.command_line import typed
from pipeline.errors import ArtifactError, MissingError
from pipeline.locks import locked, mark_used
from pipeline.manifest import FileRecord, Manifest, fingerprint
from pipeline.outside import OutsideFile, OutsideFolder, files_below
from pipeline.secrets import hide_passwords, without_passwords

MANIFEST = "manifest.json"
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished folder whose manifest was checked."""

    path: Path
    manifest: Manifest
    is_new: bool = field(default=False, compare=False)
    """Whether this call made it. If not, metrics of the work, such as texts embedded, describe an earlier run."""

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
            raise ArtifactError(
                f"{self.path}: a {self.manifest.kind} artifact without {name}; it has "
                f"{', '.join(sorted(self.manifest.files)) or 'none'}. Give the folder of another kind of artifact, or "
                "one that this version made"
            )
        return self.path / name


@dataclass(frozen=True, slots=True)
class LinkedFile:
    """A file of an earlier artifact that a new one shares."""

    source: Path
    record: FileRecord
    """The record in the earlier artifact's manifest, which the file must still match."""


@dataclass(frozen=True, slots=True)
class Staging:
    """The folders that a stage writes into while its artifact is being made."""

    folder: Path
    """Empty at the start; becomes the artifact."""
    checkpoint: Path
    """Survives a kill; may not exist. Removed when the artifact is finished."""
    began: float = field(default_factory=time.monotonic)
    """The monotonic clock when the stage began."""
    linked: dict[str, "LinkedFile"] = field(default_factory=dict)
    """Path inside the folder → the file of an earlier artifact that it is a hard link to."""


Input = Artifact | OutsideFile | OutsideFolder | str
"""Source of an artifact; a text stands for one that cannot change while it is read, such as a digest of texts in
memory."""


def _digest(item: Input) -> str:
    if isinstance(item, Artifact):
        return item.fingerprint
    return item if isinstance(item, str) else item.digest


def seal(
    folder: Path, manifest: Manifest, final: Path, linked: Mapping[str, LinkedFile] = MappingProxyType({})
) -> Artifact:
    """Turns a staging folder into an artifact: sync and hash its files, manifest last, rename, sync the parent.

    The hashes are of what is read back, so a library that lost a write without saying so (Faiss may) is found
    by the next verified read at the latest.

    Args:
        linked: see `Staging.linked`.

    Raises:
        ArtifactError: a linked file is not what was written.
    """
    records = {}
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if name not in linked or not path.samefile(linked[name].source):  # A file of a finished artifact is synced.
            disk.fsync(path)
        records[name] = FileRecord(path.stat().st_size, disk.sha256(path))
        if name in linked and linked[name].record != records[name]:
            source = linked[name].source
            raise ArtifactError(f"{source}: its content is not what was written; {remedy(source)}")
    complete = replace(manifest, files=records)
    text = complete.to_json()
    finish(folder, text, final)
    return Artifact(final, replace(complete, checksum=Manifest.from_json(text).checksum), is_new=True)


def finish(folder: Path, manifest: str, final: Path) -> None:
    """Gives a folder of synced files its manifest and then its final name; a power cut leaves all of it or none.

    Args:
        folder: the folder, on the same disk as `final`.
        manifest: the text of the manifest.
    """
    for directory in [path for path in folder.rglob("*") if path.is_dir()]:
        disk.fsync(directory)
    disk.write_atomically(folder / MANIFEST, manifest, Manifest.from_json)
    folder.rename(final)
    disk.fsync(final.parent)


def is_fingerprint(name: str) -> bool:
    """Whether this is the name of a finished artifact's folder."""
    return _FINGERPRINT.fullmatch(name) is not None


def finished(workspace: Path, kind: str) -> list[Path]:
    """The folders of all finished artifacts of a kind, the oldest first, damaged ones too.

    The order is that of the times in their manifests, as a copy or a restored backup has new file times.
    """
    dated = []
    for path in _entries(workspace / "artifacts" / kind):
        if is_fingerprint(path.name):
            try:
                dated.append((*_creation_time(path), path))
            except FileNotFoundError:
                continue  # Removed meanwhile.
    return [path for *_, path in sorted(dated)]


def _creation_time(path: Path) -> tuple[float, int]:
    """When an artifact was made, as its manifest says or else its files, in seconds; its time on the disk in ns."""
    manifest = path / MANIFEST
    written = (manifest if manifest.exists() else path).stat().st_mtime_ns
    try:
        return datetime.fromisoformat(read_manifest(path).created).timestamp(), written
    except (ArtifactError, ValueError):
        return written // 10**9, written


def folder_of(workspace: Path, fingerprint: str) -> Path | None:
    """The folder of the finished artifact with this fingerprint, of whatever kind; None where there is none."""
    for kind in _entries(workspace / "artifacts"):
        if kind.is_dir() and is_fingerprint(fingerprint) and (kind / fingerprint / MANIFEST).is_file():
            return kind / fingerprint
    return None


def input_of(workspace: Path, artifact: Artifact, name: str, *, verify: bool = True) -> Artifact | None:
    """The finished artifact that another one was made from by this name; None where the workspace lacks it."""
    fingerprint = artifact.manifest.inputs.get(name, "")
    folder = folder_of(workspace, fingerprint)
    return None if folder is None else load(folder, verify=verify)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def read_manifest(path: Path) -> Manifest:
    """The manifest of the artifact in this folder, checked against itself; no other file is looked at.

    Raises:
        MissingError: no such folder.
        ArtifactError: no manifest, or a damaged one.
    """
    if not path.is_dir():
        raise MissingError(f"{path}: no such artifact; run the stage that makes it")
    try:
        return Manifest.from_json(regular_files.read(path / MANIFEST).decode())
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path / MANIFEST}: not a readable manifest ({error}); {remedy(path)}") from error


def remedy(path: Path) -> str:
    """Advice on how to mend damage at this path, for an error message; it never says to delete anything."""
    folder = path.absolute()
    for inner, outer in pairwise([folder, *folder.parents]):
        if outer.name == "release" and outer.parent.name == "artifacts":
            rollback = typed("releases rollback", outer.parent.parent)
            return f"restore {inner} from a copy, or put an earlier release in its place with `{rollback}`"
        if outer.parent.name == "artifacts" and inner.name.startswith(tuple("0123456789abcdef")):
            return f"restore {inner} from a copy, or move it out of the workspace and run again, which makes it anew"
    return (
        "expected is the folder of an artifact as a retraining leaves it, such as "
        "WORKSPACE/artifacts/ranker/0123…; give its path"
    )


def load(path: Path, kind: str | None = None, *, verify: bool = True) -> Artifact:
    """The artifact at `path`, after checking each file's size and, with `verify`, its sha256.

    Raises:
        MissingError: no such folder.
        ArtifactError: no manifest, another kind, or a file missing or changed; the message names it.
    """
    manifest = read_manifest(path)
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{path}: holds a {manifest.kind}, not a {kind}; give the path of a {kind}")
    artifact = Artifact(path, manifest)
    for _, problem in damaged_files(artifact, verify=verify):
        raise ArtifactError(problem)
    return artifact


def damaged_files(artifact: Artifact, *, verify: bool = True) -> Iterator[tuple[str, str]]:
    """Each file that is not what the manifest says: its name, and a sentence with its path and what to do.

    Args:
        verify: compare the sha256 of each file too, not its size alone.
    """
    kind, folder = artifact.manifest.kind, artifact.path
    for name, record in artifact.manifest.files.items():
        file = folder / name
        if not file.is_file():
            yield name, f"{file}: missing from this {kind}; {remedy(folder)}"
        elif file.stat().st_size != record.bytes:
            size = file.stat().st_size
            yield name, f"{file}: {size} bytes, the manifest says {record.bytes}; {remedy(folder)}"
        elif verify and disk.sha256(file) != record.sha256:
            yield name, f"{file}: its content is not what was written; {remedy(folder)}"


def make(
    workspace: Path,
    kind: str,
    *,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, Input],
    build: Callable[[Staging], Mapping[str, Any]],
) -> Artifact:
    """The artifact of this kind, config and inputs: the one that exists, or the one `build` makes now.

    Args:
        workspace: the folder that holds `artifacts/`.
        kind: the artifact's kind and folder name.
        version: raise it when the stage's code changes what it makes.
        config: plain JSON values; part of the fingerprint.
        inputs: what `build` reads, by name; part of the fingerprint. Outside files are hashed again after `build`.
        build: writes the files into `staging.folder` and returns the metrics to store.

    Raises:
        ArtifactError: the existing artifact is damaged, or the disk is full; nothing half-written is left
            under the final name.
        SchemaError: an outside file was changed while `build` read it.
    """
    digests = {hide_passwords(name): _digest(item) for name, item in inputs.items()}
    plain = without_passwords(json.loads(json.dumps(config)))
    mark = fingerprint(kind, version, plain, digests)
    final = workspace / "artifacts" / kind / mark
    mark_used(workspace)
    with disk.readable_errors(final), locked(final):
        if final.exists():
            existing = load(final, kind)
            log.debug("%s %s: already made", kind, mark[:12])
            return existing
        staging = Staging(final.with_name(f"{mark}.partial"), final.with_name(f"{mark}.checkpoint"))
        shutil.rmtree(staging.folder, ignore_errors=True)
        staging.folder.mkdir(parents=True)
        began = time.monotonic()
        try:
            metrics = dict(build(staging))
            metrics.setdefault("seconds", round(time.monotonic() - began, 1))
            for item in inputs.values():
                if isinstance(item, OutsideFile):
                    item.check()
            manifest = Manifest(
                kind=kind,
                fingerprint=mark,
                version=version,
                config=plain,
                inputs=digests,
                files={},
                metrics=without_passwords(json.loads(json.dumps(metrics))),
                code=f"search-relevance {metadata.version('search-relevance')}",
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            artifact = seal(staging.folder, manifest, final, staging.linked)
        except BaseException:
            shutil.rmtree(staging.folder, ignore_errors=True)
            raise
        shutil.rmtree(staging.checkpoint, ignore_errors=True)
    log.debug("%s %s: made in %.1f s", kind, mark[:12], time.monotonic() - began)
    return artifact
