"""Rules for publishing: the documents that a release is published over, and what keeps it from going live."""

import contextlib
import logging
from dataclasses import asdict
from typing import Any

from flows import plausibility
from pipeline import artifacts, release_parts
from pipeline.artifacts import Artifact
from pipeline.command_line import typed
from pipeline.errors import ArtifactError, RelevanceError
from pipeline.pointer import Pointer
from pipeline.releases import Releases

log = logging.getLogger(__name__)


def live_documents(registry: Releases, pointer: Pointer | None) -> Artifact | None:
    """The documents that a re-index made live; None where the live documents are those of a training data set.

    A retraining publishes over these, so that it does not un-publish what a re-index added. They are the artifact that
    the live release was made from; see `documents_of`.
    """
    if pointer is None:
        return None
    try:
        release = registry.open(pointer.release)
        if release.metrics.get("documents", {}).get("kind") == "data":
            return None
        published = documents_of(registry, release)
        return None if published.manifest.kind == "data" else published
    except RelevanceError as error:
        log.warning("the live documents cannot be read, those of the training data are published: %s", error)
        return None


def documents_of(registry: Releases, release: Artifact) -> Artifact:
    """The documents that a release searches, as an artifact with documents.parquet.

    They are the artifact that the release was made from or, where that is gone or damaged, are restored from the
    release's own document store.

    Raises:
        RelevanceError: the release has no documents, or is damaged.
    """
    from index import documents

    folder = artifacts.folder_of(registry.workspace, release_parts.part(release, "lexical").manifest.inputs["data"])
    if folder is not None:
        try:
            return artifacts.load(folder)
        except ArtifactError as error:
            log.warning("the documents are restored from release %s: %s", release.fingerprint[:12], error)
    return documents.restore(registry.workspace, release_parts.part(release, "documents"))


def corpus_of(registry: Releases, release: Artifact) -> Artifact | None:
    """The `corpus` artifact, documents with their watermark, that a re-index made this release from.

    None for a release over the documents of a training. Documents that were restored have no watermark.

    Raises:
        RelevanceError: the release has no documents, or is damaged.
    """
    documents = documents_of(registry, release)
    return documents if documents.manifest.kind == "corpus" else None


def refit_chain(registry: Releases, release: str) -> list[str]:
    """The release and those whose order it and they learned anew (`flows.refit`), as far as they still exist."""
    chain: list[str] = [release]
    with contextlib.suppress(RelevanceError):  # A damaged or missing release ends it.
        while former := registry.open(chain[-1], verify=False).metrics.get("refit", {}).get("of"):
            chain.append(former)
    return chain


def comparable(registry: Releases, pointer: Pointer | None) -> Artifact | None:
    """The release that a new one is compared with: the live one or, where it is damaged, the nearest complete one."""
    if pointer is None:
        return None
    for name in (pointer.release, *registry.pointer_file.earlier(pointer)):
        try:
            return registry.open(name)
        except RelevanceError as error:
            log.warning("not compared with release %s: %s", name[:12], error)
    return None


def earlier_rivals(registry: Releases, pointer: Pointer, compared: Artifact, count: int) -> tuple[Artifact, ...]:
    """The releases that were live before the compared one, latest first, which the gate compares a new one with too.

    A re-index keeps the models, so of releases with the same models only the latest counts. Releases that were rolled
    back by hand and incomplete ones are left out.

    Args:
        compared: the release that a new one is compared with.
        count: the largest number of releases.
    """

    def order(release: Artifact) -> tuple[str | None, ...]:
        """Fingerprints of the models and the fusion: releases with the same ones rank alike."""
        return tuple(release.manifest.inputs.get(name) for name in (*release_parts.MODELS, "fusion"))

    seen = {order(compared)}
    rivals: list[Artifact] = []
    for name in registry.pointer_file.earlier(pointer):
        if len(rivals) == count:
            break
        try:
            release = registry.open(name)
        except RelevanceError as error:
            log.warning("not compared with the earlier release %s: %s", name[:12], error)
            continue
        if order(release) not in seen:
            rivals.append(release)
        seen.add(order(release))
    return tuple(rivals)


def metrics(figures: Artifact, documents: Artifact, corpus_kind: str) -> dict[str, Any]:
    """The metrics of a release: the figures of a report or of an older release, and what is known of its documents.

    `figures` says which of them are the release's own and from which release the others are carried over.
    """
    measured = {
        name: value for name, value in figures.metrics.items() if name not in ("documents", "figures", "collection")
    }
    carried: dict[str, Any] = {"own": ["documents", *sorted(measured)], "carried": [], "carried_from": None}
    if figures.manifest.kind == "release":
        source = figures.metrics.get("figures", {}).get("carried_from") or figures.fingerprint
        carried = {"own": ["documents"], "carried": sorted(measured), "carried_from": source}
    return {**measured, "documents": {"kind": corpus_kind, **asdict(plausibility.stats(documents))}, "figures": carried}


def refusals(registry: Releases, old: Artifact | None, release: Artifact, documents: Artifact) -> tuple[str, ...]:
    """Reasons why the gate may not promote this release, so that it goes live by hand only; empty for none."""
    promote = typed(f"releases promote {release.fingerprint[:12]}", registry.workspace)
    by_hand = f"`{promote}` makes it live all the same"
    reasons = []
    if registry.was_rolled_back(release):
        reasons.append(f"a person rolled back these models; {by_hand}")
    if old is not None and release_parts.has_part(old, "collection"):
        divide = typed(
            f"reindex --documents DOCUMENTS --shards N --release {release.fingerprint[:12]}", registry.workspace
        )
        reasons.append(
            "the live release is one of several that divide the documents, and this one would stand in for all of "
            f"them; `{divide}` divides them for these models; {by_hand}"
        )
    if old is not None and (wrong := plausibility.implausible(old, documents)):
        reasons.append(f"the documents look wrong: {'; '.join(wrong)}; {by_hand}")
    return tuple(reasons)
