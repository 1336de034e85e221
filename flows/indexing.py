"""Makes documents searchable: lexical index, document store, vectors and semantic index."""

from dataclasses import dataclass

from flows.runner import Runner
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchableCorpus:
    """Documents made searchable with one encoder."""

    lexical: Artifact
    documents: Artifact
    vectors: Artifact
    index: Artifact


def make_searchable(
    config: IndexConfig, run: Runner, *, encoder: Artifact, data: Artifact, anew: bool = False
) -> SearchableCorpus:
    """Makes lexical index, document store, vectors and semantic index of the documents in a data or corpus artifact.

    Vectors that this encoder made before, of documents that are unchanged, are reused.

    Args:
        encoder: an exported bundle.
        anew: embed every document again.
    """
    from index import documents, lexical, semantic_build, vectors
    from serving.runtime import offline

    digest = offline.digest(encoder)
    known = vectors.earlier(run.workspace, digest)
    number = vectors.next_round(known) if anew else vectors.last_round(known, data)
    lexical_index = run(lexical.make, config, data=data)
    store = run(documents.make, data=data)
    embedded = run(
        vectors.make,
        digest,
        data=data,
        embed=offline.embedder(encoder),
        previous=() if anew else known,
        embedding_round=number,
    )
    index = run(semantic_build.make, config, vectors=embedded)
    return SearchableCorpus(lexical=lexical_index, documents=store, vectors=embedded, index=index)
