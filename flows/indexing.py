"""Makes documents searchable: lexical index, document store, vectors and semantic index."""

from dataclasses import dataclass
from pathlib import Path

from flows.runner import Runner, directly
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
    workspace: Path,
    config: IndexConfig,
    encoder: Artifact,
    documents: Artifact,
    *,
    anew: bool = False,
    run: Runner = directly,
) -> SearchableCorpus:
    """Lexical index, document store, vectors and semantic index of the documents in a data or corpus artifact.

    Vectors that this encoder made before, of documents that are unchanged, are reused, unless all are to be made anew.
    """
    from index import documents as store
    from index import lexical, semantic_build, vectors
    from serving.runtime import offline

    known = vectors.earlier(workspace, offline.digest(encoder))
    number = vectors.next_round(known) if anew else vectors.last_round(known, documents)
    return SearchableCorpus(
        lexical=run("lexical index", lambda: lexical.make(workspace, config, documents)),
        documents=run("document store", lambda: store.make(workspace, documents)),
        vectors=(
            made := run(
                "document vectors",
                lambda: vectors.make(
                    workspace,
                    offline.digest(encoder),
                    documents,
                    offline.embedder(encoder),
                    () if anew else known,
                    embedding_round=number,
                ),
            )
        ),
        index=run("semantic index", lambda: semantic_build.make(workspace, config, made)),
    )
