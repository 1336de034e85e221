"""Releases: immutable folders that hold all that serving needs, and one pointer that says which is live.

    <workspace>/artifacts/release/<fingerprint>/    an artifact like any other; one sub-folder a part
    <workspace>/releases/                           the pointer and its history; see `pipeline.pointer`

A pointer is moved only by a publisher that names the generation it saw. Of two that saw the same one, the
second is told that it lost, unless its own release is live. Rolling back is pointing at the nearest complete release
that was live before. `verify` is the one check that a release must pass, before promotion and before serving alike.

The files of a release are hard links to those of its parts; see `pipeline.artifacts` on what that means.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifacts, disk
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, ConflictError, MissingError, RelevanceError
from pipeline.features import Fusion
from pipeline.manifest import Manifest
from pipeline.pointer import Move, Pointer, PointerFile
from pipeline.secrets import without_passwords

VERSION = 1
MODELS = ("ranker", "encoder")
"""The parts of a release that are trained models."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Releases:
    """The releases of one workspace."""

    workspace: Path

    @property
    def root(self) -> Path:
        return self.workspace / "releases"

    @property
    def pointer_file(self) -> PointerFile:
        return PointerFile(self.root)

    def publish(self, parts: Mapping[str, Artifact], metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Artifact:
        """A release made of these artifacts, each in a sub-folder of its name; not yet live.

        The files are hard links where the file system has them, so a release costs no second copy.

        Raises:
            ArtifactError: the parts do not belong together, or the disk is full.
        """
        check_parts(self.workspace, {name: part.path for name, part in parts.items()})

        def build(staging: Staging) -> Mapping[str, Any]:
            for name, part in parts.items():
                for file in [*part.manifest.files, artifacts.MANIFEST]:
                    target = staging.folder / name / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    disk.link_or_copy(part.path / file, target)
            return metrics

        return artifacts.make(
            self.workspace,
            "release",
            version=VERSION,
            config=without_passwords(config),
            inputs=dict(parts),
            build=build,
        )

    def ids(self) -> list[str]:
        """Fingerprints of all finished releases, the oldest first; damaged ones are among them."""
        return [path.name for path in artifacts.finished(self.workspace, "release")]

    def resolve(self, name: str) -> str:
        """The fingerprint that `name` means: live, previous, or the first digits of one.

        Raises:
            MissingError: no release, or more than one, is meant.
        """
        if name in ("live", "previous"):
            pointer = self.live()
            release = pointer and (pointer.release if name == "live" else pointer.previous)
            if not release:
                raise MissingError(f"{self.root}: there is no {name} release; run `relevance retrain` first")
            return release
        ids = self.ids()
        matches = [known for known in ids if known.startswith(name)]
        if len(matches) != 1:
            known = ", ".join(item[:12] for item in ids) or "none"
            what = "no release" if not matches else f"{len(matches)} releases"
            raise MissingError(f"{self.root}: {what} called '{name}'; there are: {known}")
        return matches[0]

    def path(self, release: str) -> Path:
        """The folder of the release with this fingerprint, whether it exists or not."""
        return self.workspace / "artifacts" / "release" / release

    def open(self, name: str = "live", *, verify: bool = True) -> Artifact:
        """The release called `name` (see `resolve`), checked as `verify` does.

        Raises:
            MissingError: no such release.
            ArtifactError: the release is damaged.
        """
        return self._checked(self.resolve(name), verify_files=verify)

    def live(self) -> Pointer | None:
        """The pointer, or None before the first promotion.

        Raises:
            ArtifactError: the pointer cannot be read.
        """
        return self.pointer_file.read()

    def promote(self, name: str, *, reason: str, expected: int | None = None) -> Pointer:
        """Makes a release live, if it passes `verify`.

        Args:
            name: see `resolve`.
            reason: kept in the history.
            expected: the generation that the caller saw; 0 for none yet. Without it the pointer moves whatever it is.

        Raises:
            ConflictError: the pointer has moved since, to another release than this.
            ArtifactError: the release is damaged; the pointer stays.
        """
        release = self.resolve(name)
        self._checked(release)
        current = self.pointer_file.recover()
        earlier: tuple[str, ...] = ()
        rolled_back: dict[str, str] = {}
        if current is not None:
            chain = (current.release, *self.pointer_file.earlier(current))
            earlier = tuple(item for item in dict.fromkeys(chain) if item != release)
            rolled_back = {item: models for item, models in current.rolled_back.items() if item != release}
        move = Move(
            release=release,
            action="promote",
            reason=reason,
            expected=expected,
            earlier=earlier,
            rolled_back=rolled_back,
        )
        return self.pointer_file.move(move)

    def rollback(self, *, reason: str, expected: int | None = None) -> Pointer:
        """Makes the nearest complete release live that was live before; a second time, the one before that.

        Neither the history nor the live release need be readable. A damaged release on the way is passed over.

        Raises:
            MissingError: there is no earlier release that is complete; names the damaged ones.
            ConflictError: the pointer has moved since.
        """
        current = self.pointer_file.recover()
        generation = current.generation if current else 0
        if expected is not None and expected != generation:
            raise ConflictError(
                f"{self.pointer_file.path}: is at generation {generation}, not {expected}; it moved meanwhile, look at "
                "it and try again"
            )
        chain = self.pointer_file.earlier(current) if current else ()
        damaged = []
        for number, release in enumerate(chain):
            try:
                self._checked(release)
            except RelevanceError as error:
                log.warning("rollback: release %s is passed over: %s", release[:12], error)
                damaged.append(release[:12])
                continue
            assert current is not None
            move = Move(
                release=release,
                action="rollback",
                reason=reason,
                expected=generation,
                earlier=chain[number + 1 :],
                rolled_back={**current.rolled_back, current.release: self._models_digest(current.release)},
            )
            return self.pointer_file.move(move)
        also = f"; damaged or missing: {', '.join(damaged)}, restore one of them from a copy" if damaged else ""
        raise MissingError(f"{self.root}: no earlier release to roll back to{also}; see `relevance releases list`")

    def history(self) -> list[Pointer]:
        """Every readable change of the pointer, the oldest first; lines that cannot be read are logged and left out."""
        records, unreadable = self.pointer_file.history()
        if unreadable:
            log.warning("%s: %d lines cannot be read and are left out", self.pointer_file.history_path, unreadable)
        return records

    def was_rolled_back(self, release: Artifact) -> bool:
        """Whether a person rolled back this release, or another one with the same models; only a person promotes it.

        Models that are live now are not meant: then it was the documents that were rolled back.
        """
        current = self.pointer_file.recover()
        if current is None:
            return False
        models = models_digest(release.manifest)
        live_models = self._models_digest(current.release)
        return release.fingerprint in current.rolled_back or (
            bool(models) and models != live_models and models in current.rolled_back.values()
        )

    def _models_digest(self, release: str) -> str:
        try:
            return models_digest(artifacts.read_manifest(self.path(release)))
        except RelevanceError:
            return ""  # A damaged release is rolled back by its fingerprint alone.

    def _checked(self, release: str, *, verify_files: bool = True) -> Artifact:
        artifact = (
            verify(self.path(release)) if verify_files else artifacts.load(self.path(release), "release", verify=False)
        )
        if artifact.fingerprint != release:
            raise ArtifactError(
                f"{artifact.path}: holds release {artifact.fingerprint}; give the folder its own name again, "
                f"or {artifacts.remedy(artifact.path)}"
            )
        return artifact


def models_digest(manifest: Manifest) -> str:
    """A digest of the trained models of a release; empty where it has none."""
    models = [manifest.inputs.get(name, "") for name in MODELS]
    return hashlib.blake2b(" ".join(models).encode(), digest_size=16).hexdigest() if any(models) else ""


def verify(path: Path) -> Artifact:
    """The release in this folder, after every check that promotion and loading share.

    1. The release's manifest is what was written, and so is every file that it lists, the parts' manifests included.
    2. Each sub-folder is the part that the release was made of.
    3. The parts belong together (`check_parts`), and the numbers that decide an order are finite.

    What is verified follows from the manifest alone, so a new part or file is verified without being named here.

    Raises:
        MissingError: no such folder.
        ArtifactError: a check fails; the message names the file or the parts.
    """
    release = artifacts.load(path, "release")
    listed = release.manifest.files
    parts = sorted({name.split("/")[0] for name in listed if "/" in name} | set(release.manifest.inputs))
    for name in parts:
        manifest = artifacts.read_manifest(path / name) if (path / name).is_dir() else None
        if manifest is None or manifest.fingerprint != release.manifest.inputs.get(name):
            expected = release.manifest.inputs.get(name, "no such part")
            raise ArtifactError(
                f"{path / name}: holds {manifest.fingerprint if manifest else 'nothing'}, the release was made with "
                f"{expected}; {artifacts.remedy(path)}"
            )
        for file, record in manifest.files.items():
            if listed.get(f"{name}/{file}") != record:
                raise ArtifactError(
                    f"{path / name / file}: the manifests of the part and of the release differ; "
                    f"{artifacts.remedy(path)}"
                )
    check_parts(path, {name: path / name for name in parts})
    return release


def check_parts(where: Path, parts: Mapping[str, Path]) -> None:
    """Checks that the parts of a release belong together, as far as they say what they were made with.

    Raises:
        ArtifactError: names the parts that do not belong together, or the file with a number that is not finite.
    """
    manifests = {name: artifacts.read_manifest(path) for name, path in parts.items()}

    def refuse(problem: str) -> None:
        raise ArtifactError(f"{where}: {problem}; its parts do not belong together. {_HOW_TO_FIT}")

    encoder = _json(parts, manifests, "encoder", "bundle.json").get("digest")
    for name in [name for name in manifests if _kind(name) == "index"]:
        vectors = _json(parts, manifests, name, "index.json").get("encoder_digest")
        if encoder and vectors and encoder != vectors:
            refuse(f"its {name} holds vectors of encoder {vectors[:12]}, but its encoder is {encoder[:12]}")
    if "fusion" in manifests:
        for role, fingerprint in manifests["fusion"].metrics.get("models", {}).items():
            if role in manifests and manifests[role].fingerprint != fingerprint:
                refuse(
                    f"its fusion was fitted with {role} {fingerprint[:12]}, but its {role} is "
                    f"{manifests[role].fingerprint[:12]}"
                )
    over_documents = [name for name in manifests if _kind(name) in _OVER_DOCUMENTS]
    corpora = {name: corpus for name in over_documents if (corpus := _corpus(manifests[name]))}
    if len(set(corpora.values())) > 1:
        named = ", ".join(f"{name} of {corpus[:12]}" for name, corpus in corpora.items())
        refuse(f"its parts were made from different documents: {named}")
    counts = {name: manifests[name].metrics.get("documents") for name in over_documents}
    if len({count for count in counts.values() if count is not None}) > 1:
        refuse(f"its parts hold different numbers of documents: {counts}")
    for name, manifest in manifests.items():
        indexed = manifest.config.get("field", "")
        if "." in name and name != field_part(_kind(name), indexed):
            refuse(f"its part {name} holds an index of the field '{indexed}'")
    for feature in _check_numbers(parts, manifests):
        score, _, field = feature.partition(".")
        if (needed := field_part("lexical" if score == "bm25" else "index", field)) not in manifests:
            refuse(f"its fusion weighs {feature}, but it has no {needed}")


_HOW_TO_FIT = "Run `relevance retrain` or `relevance reindex`, which make a release that fits, or roll back"
_OVER_DOCUMENTS = ("lexical", "documents", "index")
"""The kinds of parts that are made from documents: all from the same."""


def _corpus(manifest: Manifest) -> str | None:
    """Fingerprint of the documents that a part was made from; the semantic index keeps it among its metrics."""
    return manifest.inputs.get("data") or manifest.metrics.get("data")


def _json(parts: Mapping[str, Path], manifests: Mapping[str, Manifest], part: str, file: str) -> Mapping[str, Any]:
    """The content of a JSON file of a part; empty where the part has no such file."""
    if part not in manifests or file not in manifests[part].files:
        return {}
    path = parts[part] / file
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable ({error}); {artifacts.remedy(path)}") from error
    return content


def _check_numbers(parts: Mapping[str, Path], manifests: Mapping[str, Manifest]) -> tuple[str, ...]:
    """Checks that the numbers that decide an order are finite; returns the features of single fields in the fusion."""
    weighed: tuple[str, ...] = ()
    if "fusion" in manifests and "fusion.json" in manifests["fusion"].files:
        path = parts["fusion"] / "fusion.json"
        try:
            weighed = Fusion.from_json(path.read_bytes().decode()).fields
        except (OSError, ValueError, ArtifactError) as error:
            raise ArtifactError(f"{path}: {error}; {artifacts.remedy(path)}") from error
    for name in MODELS:
        thresholds = _json(parts, manifests, name, "bundle.json").get("thresholds") or ()
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in thresholds):
            path = parts[name] / "bundle.json"
            raise ArtifactError(f"{path}: a threshold is not a finite number; {artifacts.remedy(path)}")
    return weighed


def field_part(kind: str, field: str) -> str:
    """The name of the part that is an index of one field alone: `lexical.title`."""
    return f"{kind}.{field}"


def _kind(part: str) -> str:
    return part.partition(".")[0]


def field_parts(release: Artifact) -> dict[str, Artifact]:
    """The indexes of single fields of a release: `field_part` → artifact."""
    return {name: part(release, name) for name in sorted(release.manifest.inputs) if "." in name}


def fields(release: Artifact) -> tuple[str, ...]:
    """The fields that a release indexes apart, see `index.fields`."""
    return tuple(dict.fromkeys(name.partition(".")[2] for name in sorted(release.manifest.inputs) if "." in name))


def has_part(release: Artifact, name: str) -> bool:
    """Whether a release has this part; one of ready-made models may lack a ranker, or documents."""
    return name in release.manifest.inputs


def part(release: Artifact, name: str) -> Artifact:
    """One part of a release as an artifact of its own; its files were verified with the release.

    Raises:
        MissingError: the release was made without this part.
    """
    if not has_part(release, name):
        parts = ", ".join(sorted(release.manifest.inputs))
        raise MissingError(f"release {release.fingerprint[:12]} has no {name}; its parts are {parts}")
    return artifacts.load(release.path / name, verify=False)
