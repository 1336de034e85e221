"""Makes documents searchable: lexical index, document store, vectors and semantic index."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from flows.runner import Runner
from pipeline import release_parts
from pipeline.artifacts import Artifact
from pipeline.config import IndexConfig

if TYPE_CHECKING:
    from index.held_out import HeldOutQueries
    from index.vector_texts import TextChoice
    from serving.runtime.offline import BundleEmbedder


Check = Callable[[Artifact], None]
"""Looks at the document store, which is made first, and raises where the documents must not be published; then nothing
is analysed and nothing embedded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplacedDocuments:
    """The documents of a release that others take the place of."""

    parts: Mapping[str, Artifact] = field(default_factory=dict)
    """Parts of the release by name; their segments are shared as far as the documents are unchanged."""
    check: Check | None = None
    """The check of the new documents before anything that takes long; None where they replace no others."""
    anew: bool = False
    """Whether to embed every document again and share no segment."""

    @property
    def shared(self) -> Mapping[str, Artifact]:
        """The parts whose segments are shared."""
        return {} if self.anew else self.parts


NO_DOCUMENTS = ReplacedDocuments()
"""The documents that are replaced where none are."""


@dataclass(frozen=True, slots=True)
class EmbeddingWork:
    """The work on document vectors that this process did."""

    embedded: int
    """Texts embedded; each distinct text counts once."""
    reused: int
    """Documents or passages whose vector was known: from earlier artifacts, or because the artifact existed already."""
    embedded_per_s: float | None
    """None where nothing was embedded."""

    @classmethod
    def of(cls, vectors: Artifact) -> "EmbeddingWork":
        """The work behind a `vectors` artifact as its stage returned it; where it existed already, all is reused."""
        from index.vector_matrix import count

        metrics = vectors.metrics
        if not vectors.is_new:
            return cls(0, count(metrics), None)
        return cls(metrics["embedded"], metrics["reused"], metrics.get("embedded_per_s"))


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchableParts:
    """Documents made searchable with one encoder, as a release holds them."""

    lexical: Artifact
    documents: Artifact
    index: Artifact
    fields: Mapping[str, Artifact] = field(default_factory=dict)
    """Name of a part of a release (`pipeline.release_parts.field_part`) → index of one field alone."""

    @property
    def parts(self) -> dict[str, Artifact]:
        """The parts of a release that are made from documents, by name."""
        return {"lexical": self.lexical, "documents": self.documents, "index": self.index, **self.fields}

    @staticmethod
    def of_release(release: Artifact) -> "SearchableParts":
        """The parts of a release that has documents."""
        named = {name: release_parts.part(release, name) for name in ("lexical", "documents", "index")}
        return SearchableParts(**named, fields=release_parts.field_parts(release))


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchableCorpus(SearchableParts):
    """The same as it is made, with the vectors that the index holds."""

    vectors: Artifact


def make_searchable(
    config: IndexConfig,
    run: Runner,
    *,
    encoder: Artifact,
    data: Artifact,
    queries: Artifact | None = None,
    replaced: ReplacedDocuments = NO_DOCUMENTS,
    whole_parts: Mapping[str, Artifact] = MappingProxyType({}),
) -> SearchableCorpus:
    """Makes lexical index, document store, vectors and semantic index of the documents in a data or corpus artifact.

    Vectors that this encoder made before, of documents that are unchanged, are reused.

    Args:
        encoder: an exported bundle.
        run: runs each stage.
        data: the data or corpus artifact.
        queries: the artifact whose queries measure recall where the recipe sets `index.recall`: a data artifact, or an
            earlier index of the same encoder. None takes `data`.
        replaced: the documents that these take the place of.
        whole_parts: the result of `index_whole`, where `data` is a shard of these documents; else empty.
    """
    from index import lexical_build, semantic_build, shards, vectors
    from serving.runtime import offline

    digest = offline.digest(encoder)
    known = vectors.of_index(vectors.earlier(run.workspace, digest), replaced.parts.get("index"))
    number = vectors.next_round(known) if replaced.anew else vectors.last_round(known, data)
    shared = replaced.shared
    store = _stored(run, data=data, previous=shared, check=replaced.check)
    lexical_index = (
        run(lexical_build.make, config, data=data, previous=shared.get("lexical"))
        if not whole_parts
        else run(shards.lexical, data=data, full=whole_parts["lexical"])
    )
    embed = offline.embedder(encoder)
    embedded = run(
        vectors.make,
        vectors.DocumentEncoder(digest, embed, run.engine),
        data=data,
        previous=() if replaced.anew else known,
        embedding_round=number,
        choice=_choice(config, embed),
    )
    apart = _fields(config, run, encoder=encoder, data=data, replaced=replaced, whole_parts=whole_parts)
    judged = held_out(config, encoder, digest, queries or data)
    index = run(semantic_build.make, config, vectors=embedded, queries=judged, previous=shared.get("index"))
    return SearchableCorpus(lexical=lexical_index, documents=store, vectors=embedded, index=index, fields=apart)


def index_whole(
    config: IndexConfig, run: Runner, *, data: Artifact, previous: Mapping[str, Artifact], check: Check
) -> dict[str, Artifact]:
    """Makes the lexical indexes of all documents, from which those of shards are cut, and returns them by part.

    Args:
        previous: the parts of a release, whose segments are shared as far as their documents are unchanged.
        check: see `Check`.

    Raises:
        SchemaError: no term in any document or in a field of `index.fields`, or no document passes `index.votes`.
    """
    from index import lexical_build
    from index.quality import QualityFilter

    _stored(run, data=data, previous=previous, check=check)
    if quality := QualityFilter.of(config):
        quality.kept(data)
    indexes = {"lexical": run(lexical_build.make, config, data=data, previous=previous.get("lexical"))}
    for field_name in config.fields:
        part = release_parts.field_part("lexical", field_name)
        named = run.labelled(field_name)
        indexes[part] = named(lexical_build.make, config, data=data, field=field_name, previous=previous.get(part))
    return indexes


def _stored(run: Runner, *, data: Artifact, previous: Mapping[str, Artifact], check: Check | None) -> Artifact:
    """The document store of documents that passed the check; it is made before anything that takes long."""
    from index import documents

    store = run(documents.make, data=data, previous=previous.get("documents"))
    if check is not None:
        check(store)
    return store


def _fields(
    config: IndexConfig,
    run: Runner,
    *,
    encoder: Artifact,
    data: Artifact,
    replaced: ReplacedDocuments,
    whole_parts: Mapping[str, Artifact],
) -> dict[str, Artifact]:
    """The indexes of single fields, by their names as parts of a release.

    Args:
        replaced: see `make_searchable`.
        whole_parts: see `make_searchable`.
    """
    from index import lexical_build, semantic_build, shards, vectors
    from serving.runtime import offline

    indexes = {}
    embed = offline.embedder(encoder)
    document_encoder = vectors.DocumentEncoder(offline.digest(encoder), embed, run.engine)
    for field_name in config.fields:
        named = run.labelled(field_name)
        part = release_parts.field_part("lexical", field_name)
        indexes[part] = (
            named(lexical_build.make, config, data=data, field=field_name, previous=replaced.shared.get(part))
            if not whole_parts
            else named(shards.lexical, data=data, full=whole_parts[part])
        )
        if not config.field_vectors:
            continue
        index_part = release_parts.field_part("index", field_name)
        shared = replaced.shared.get(index_part)
        known = vectors.of_index(vectors.earlier(run.workspace, document_encoder.digest), shared)
        embedded = named(
            vectors.make,
            document_encoder,
            data=data,
            previous=() if replaced.anew else known,
            embedding_round=vectors.last_round(known, data),
            choice=_choice(config, embed, field_name),
        )
        # Nothing is searched for in it, so no recall is asked of it.
        plain = replace(config, recall=0.0, bytes_per_document=0.0)
        indexes[index_part] = named(semantic_build.make, plain, vectors=embedded, previous=shared)
    return indexes


def _choice(config: IndexConfig, embed: "BundleEmbedder", field_name: str = "") -> "TextChoice":
    """The texts that get vectors by the section `index`: whole documents or passages, or the values of one field."""
    from index.quality import QualityFilter
    from index.vector_texts import TextChoice
    from serving.runtime import offline

    return TextChoice(
        quality=QualityFilter.of(config),
        field=field_name,
        cutter=offline.cutter(embed, config.passages.passages(None)),
    )


def held_out(config: IndexConfig, encoder: Artifact, digest: str, source: Artifact) -> "HeldOutQueries | None":
    """The queries that an index is judged on; None where the recipe states no recall, or where there are none."""
    from index.held_out import HeldOutQueries
    from index.semantic import KIND
    from serving.runtime import offline

    if not config.recall:
        return None
    if source.manifest.kind == KIND:
        return HeldOutQueries.of_index(source)
    return HeldOutQueries.of_data(source, digest, offline.embedder(encoder, "query"))
