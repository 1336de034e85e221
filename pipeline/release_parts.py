"""The parts of a release: their names, whether they belong together, and how one is opened.

A part is named by its kind, such as `ranker`, `lexical` or `documents`; an index of one field alone by kind and field,
such as `lexical.title`. `verify` is the one check that a release must pass, before promotion and before serving alike.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import artifacts, regular_files
from pipeline.artifacts import Artifact
from pipeline.command_line import typed, workspace_of
from pipeline.errors import ArtifactError, MissingError
from pipeline.features import Fusion
from pipeline.manifest import Manifest

MODELS = ("ranker", "encoder")
"""The parts of a release that are trained models."""

_OVER_DOCUMENTS = ("lexical", "documents", "index")
"""The kinds of parts that are made from documents: all from the same."""


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
    check(release)
    return release


def check(release: Artifact) -> None:
    """Checks the parts of a release and that they fit together; the caller has checked the files that it lists.

    Raises:
        ArtifactError: a check fails; the message names the file or the parts.
    """
    path, listed = release.path, release.manifest.files
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


def check_parts(where: Path, parts: Mapping[str, Path]) -> None:
    """Checks that the parts of a release belong together, as far as they say what they were made with.

    Raises:
        ArtifactError: names the parts that do not belong together, or the file with a number that is not finite.
    """
    manifests = {name: artifacts.read_manifest(path) for name, path in parts.items()}

    def refuse(problem: str) -> None:
        workspace = workspace_of(next(iter(parts.values())))
        commands = (typed(command, workspace) for command in ("retrain RECIPE", "reindex --documents DOCUMENTS"))
        raise ArtifactError(
            f"{where}: {problem}; its parts do not belong together. Run `{'` or `'.join(commands)}`, which make a "
            "release that fits, or roll back"
        )

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
    if problem := _documents_problem(manifests) or _collection_problem(manifests, encoder or ""):
        refuse(problem)
    for name, manifest in manifests.items():
        indexed = manifest.config.get("field", "")
        if "." in name and name != field_part(_kind(name), indexed):
            refuse(f"its part {name} holds an index of the field '{indexed}'")
    for feature in _check_numbers(parts, manifests):
        score, _, field = feature.partition(".")
        needed = field_part("lexical" if score == "bm25" else "index", field)
        # Shards have the indexes of a release of models alone.
        if "documents" in manifests and needed not in manifests:
            refuse(f"its fusion weighs {feature}, but it has no {needed}")


def _documents_problem(manifests: Mapping[str, Manifest]) -> str:
    """The reason why parts were not made from the same documents; empty where they were, as far as can be told."""
    over_documents = [name for name in manifests if _kind(name) in _OVER_DOCUMENTS]
    corpora = {name: corpus for name in over_documents if (corpus := _corpus(manifests[name]))}
    if len(set(corpora.values())) > 1:
        named = ", ".join(f"{name} of {corpus[:12]}" for name, corpus in corpora.items())
        return f"its parts were made from different documents: {named}"
    counts = {name: manifests[name].metrics.get("documents") for name in over_documents}
    if len({count for count in counts.values() if count is not None}) > 1:
        return f"its parts hold different numbers of documents: {counts}"
    return ""


def _collection_problem(manifests: Mapping[str, Manifest], encoder: str) -> str:
    """The reason why a release is none of its collection (`index.shards`); empty where it is one, or has none.

    Args:
        encoder: digest of the release's encoder.
    """
    collection = manifests.get("collection")
    if collection is None:
        return ""
    embedded = collection.config.get("encoder", encoder)
    if encoder != embedded:
        return f"its collection holds vectors of encoder {embedded[:12]}, but its encoder is {encoder[:12]}"
    for name, manifest in manifests.items():
        if _kind(name) == "lexical" and manifest.inputs.get("full") != collection.inputs.get(name):
            return f"its {name} is no shard of its collection"
    return ""


def _corpus(manifest: Manifest) -> str | None:
    """Fingerprint of the documents that a part was made from; the semantic index keeps it among its metrics."""
    return manifest.inputs.get("data") or manifest.metrics.get("data")


def _json(parts: Mapping[str, Path], manifests: Mapping[str, Manifest], part: str, file: str) -> Mapping[str, Any]:
    """The content of a JSON file of a part; empty where the part has no such file."""
    if part not in manifests or file not in manifests[part].files:
        return {}
    path = parts[part] / file
    try:
        content = json.loads(regular_files.read(path))
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
            weighed = Fusion.from_json(regular_files.read(path).decode()).fields
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
