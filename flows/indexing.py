"""Makes documents searchable: lexical index, document store, vectors and semantic index."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from flows.runner import Runner
from pipeline import releases
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig

if TYPE_CHECKING:
    from index.held_out import HeldOutQueries


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchableCorpus:
    """Documents made searchable with one encoder."""

    lexical: Artifact
    documents: Artifact
    vectors: Artifact
    index: Artifact
    fields: Mapping[str, Artifact] = field(default_factory=dict)
    """Name as a part of a release (`pipeline.releases.field_part`) → index of one field alone."""

    @property
    def parts(self) -> dict[str, Artifact]:
        """The parts of a release that are made from documents, by name."""
        return {"lexical": self.lexical, "documents": self.documents, "index": self.index, **self.fields}


def make_searchable(
    config: IndexConfig,
    run: Runner,
    *,
    encoder: Artifact,
    data: Artifact,
    queries: Artifact | None = None,
    previous: Mapping[str, Artifact] = MappingProxyType({}),
    anew: bool = False,
) -> SearchableCorpus:
    """Makes lexical index, document store, vectors and semantic index of the documents in a data or corpus artifact.

    Vectors that this encoder made before, of documents that are unchanged, are reused.

    Args:
        encoder: an exported bundle.
        queries: a data artifact, or an earlier index of the same encoder, whose queries recall is measured on where the
            recipe states `index.recall`; None takes those of `data`.
        previous: the parts of a release, whose segments are shared as far as their documents are unchanged.
        anew: embed every document again, and share nothing.
    """
    from index import documents, lexical, semantic_build, vectors
    from index.quality import QualityFilter
    from serving.runtime import offline

    digest = offline.digest(encoder)
    known = vectors.earlier(run.workspace, digest)
    number = vectors.next_round(known) if anew else vectors.last_round(known, data)
    shared = {} if anew else previous
    lexical_index = run(lexical.make, config, data=data, previous=shared.get("lexical"))
    apart = {
        (part := releases.field_part("lexical", name)): run.labelled(name)(
            lexical.make, config, data=data, field=name, previous=shared.get(part)
        )
        for name in config.fields
    }
    store = run(documents.make, data=data, previous=shared.get("documents"))
    embedded = run(
        vectors.make,
        digest,
        data=data,
        embed=offline.embedder(encoder),
        previous=() if anew else known,
        embedding_round=number,
        quality=QualityFilter.of(config),
    )
    judged = _held_out(config, encoder, digest, queries or data)
    index = run(semantic_build.make, config, vectors=embedded, queries=judged, previous=shared.get("index"))
    return SearchableCorpus(lexical=lexical_index, documents=store, vectors=embedded, index=index, fields=apart)


def _held_out(config: IndexConfig, encoder: Artifact, digest: str, source: Artifact) -> "HeldOutQueries | None":
    """The queries that an index is judged on; None where the recipe states no recall, or where there are none."""
    from index.held_out import HeldOutQueries
    from index.semantic import KIND
    from serving.runtime import offline

    if not config.recall:
        return None
    if source.manifest.kind == KIND:
        return HeldOutQueries.of_index(source)
    return HeldOutQueries.of_data(source, digest, offline.embedder(encoder, "query"))
