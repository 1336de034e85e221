"""Makes documents searchable: lexical index, document store, vectors and semantic index."""

import logging
from dataclasses import dataclass
from pathlib import Path

from flows.runner import Runner, directly
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig
from pipeline.errors import ArtifactError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchableCorpus:
    """Documents made searchable with one encoder."""

    lexical: Artifact
    documents: Artifact
    vectors: Artifact
    index: Artifact


def make_searchable(
    workspace: Path,
    config: IndexConfig,
    encoder: Artifact,
    documents: Artifact,
    *,
    run: Runner = directly,
) -> SearchableCorpus:
    """Lexical index, document store, vectors and semantic index of the documents in a data or corpus artifact.

    Vectors that this encoder made before, of documents that are unchanged, are taken as they are.
    """
    from index import documents as store
    from index import lexical, semantic_build, vectors
    from serving.runtime import offline

    known = _known_vectors(workspace, offline.digest(encoder))
    return SearchableCorpus(
        lexical=run("lexical index", lambda: lexical.make(workspace, config, documents)),
        documents=run("document store", lambda: store.make(workspace, documents)),
        vectors=(
            made := run(
                "document vectors",
                lambda: vectors.make(
                    workspace, offline.digest(encoder), documents, offline.embedder(encoder), previous=known
                ),
            )
        ),
        index=run("semantic index", lambda: semantic_build.make(workspace, config, made)),
    )


def _known_vectors(workspace: Path, encoder_digest: str) -> Artifact | None:
    """The largest vectors artifact of this encoder, the newest of equals, whatever its documents; None without one."""
    found = []
    for manifest in (workspace / "artifacts" / "vectors").glob(f"*/{artifacts.MANIFEST}"):
        try:
            known = artifacts.load(manifest.parent, "vectors", verify=False)
            if known.manifest.config.get("encoder_digest") == encoder_digest:
                found.append((known.metrics["documents"], manifest.stat().st_mtime_ns, known.path))
        except ArtifactError as error:
            log.warning("not used to save embedding: %s", error)
    return artifacts.load(max(found)[2], "vectors") if found else None
