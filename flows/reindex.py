"""The flow that keeps an index current: the models of a release stay, its documents are replaced.

Only new and changed documents are analysed, stored and embedded: the new release shares the segments of the old one
that hold the others (`index.segments`). It differs from the old one in its lexical index, document store and semantic
index, and is made live only if the old one still is. Its report is that of the old release; its metrics say so.
"""

import logging
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flows import indexing, judging, plausibility, publishing, runner, sources
from pipeline import disk, release_parts, releases
from pipeline import recipe as recipes
from pipeline.artifacts import Artifact
from pipeline.compute import engine_of
from pipeline.config import ComputeConfig, Recipe, SourceConfig
from pipeline.errors import ConflictError
from pipeline.pointer import Pointer
from pipeline.secrets import hide_passwords

LOCAL = ComputeConfig()
"""The section `compute` by which documents are embedded in this process."""

log = logging.getLogger(__name__)


@disk.digests_remembered()
def reindex(
    documents: Sequence[str | SourceConfig],
    workspace: Path,
    *,
    format: str = "auto",
    release: str = "live",
    full: bool = False,
    promote: bool = True,
    force: bool = False,
    left_out: Collection[str] = (),
    examples: Sequence[str] = (),
    compute: ComputeConfig = LOCAL,
    execute: runner.Execute = runner.directly,
) -> dict[str, Any]:
    """Indexes the documents of these sources with the models of a release; returns figures as plain values.

    Args:
        documents: folders, files, SQLAlchemy URLs, or recipes, whose sources are meant.
        workspace: the folder of artifacts and releases.
        format: how the documents are written; see `SourceConfig`.
        release: the release whose models are kept; see `Releases.resolve`.
        full: read and embed every document again, and build the semantic index anew; False reuses known vectors.
        promote: make the new release live if the old one is.
        force: publish documents that look wrong; see `flows.plausibility`.
        left_out: columns that were left out on purpose; other columns that vanished are warned of in the log.
        examples: queries that the page offers to try; empty keeps those of the release whose models are kept.
        compute: where documents are embedded.
        execute: runs one stage, as a plain call or as a Prefect task.

    Raises:
        MissingError: no such release or source, or the release has no encoder.
        ImplausibleError: the documents look wrong beside those of the release; nothing is embedded or published.
        ConflictError: another publisher made another release live meanwhile; the new one is published, not live.
    """
    from pipeline.data import corpus

    began = time.monotonic()
    registry, run = releases.Releases(workspace), runner.Runner(workspace, execute, engine=engine_of(compute))
    live = registry.pointer_file.recover()
    old = registry.open(release)
    recipe = recipes.parse(Recipe, old.manifest.config)
    chosen = _chosen(documents, format)
    shown = ", ".join(hide_passwords(source.path) for source in chosen)
    is_followed = any(source.watermark for source in chosen) and not full
    previous = publishing.corpus_of(registry, old) if is_followed else None
    data = run(corpus.make, chosen, Path(), recipe.data.faulty_rows, previous=previous)
    parts = {name: release_parts.part(old, name) for name in judging.PARTS if release_parts.has_part(old, name)}
    searchable = indexing.make_searchable(
        recipe.index,
        run,
        encoder=release_parts.part(old, "encoder"),
        data=data,
        queries=parts.get("index"),
        replaced=indexing.ReplacedDocuments(
            parts=parts | release_parts.field_parts(old),
            check=partial(plausibility.check, old, shown=shown, force=force, left_out=left_out),
            anew=full,
        ),
    )
    parts |= searchable.parts
    metrics = publishing.metrics(old, searchable.documents, "corpus")
    metrics |= {"examples": list(examples)} if examples else {}
    new = registry.publish(parts, metrics=metrics, config=old.manifest.config)
    if promote and live is not None and live.release == old.fingerprint != new.fingerprint:
        new = _promoted(registry, new, live, f"re-indexed {shown}")
    pointer = registry.pointer_file.recover()
    return {
        "release": new.fingerprint,
        "live": pointer is not None and pointer.release == new.fingerprint,
        **_figures(searchable),
        "seconds": round(time.monotonic() - began, 1),
    }


def _chosen(documents: Sequence[str | SourceConfig], format: str) -> list[SourceConfig]:
    """Sources of all documents: given ones unchanged, those of paths, URLs and recipes by `sources.of_documents`."""
    return [
        source
        for item in documents
        for source in ((item,) if isinstance(item, SourceConfig) else sources.of_documents([item], format))
    ]


def _figures(searchable: indexing.SearchableCorpus) -> dict[str, Any]:
    """Size of an index, and numbers of texts embedded for it and taken over from an earlier one, as plain values."""
    metrics, work = searchable.vectors.metrics, indexing.EmbeddingWork.of(searchable.vectors)
    return {
        "documents": metrics["documents"],
        **{name: item for name, item in metrics.items() if name in ("with_vectors", "passages")},
        "embedded": work.embedded,
        "reused": work.reused,
        "bytes_per_document": searchable.index.metrics["bytes_per_document"],
    }


def _promoted(registry: releases.Releases, new: Artifact, live: Pointer, reason: str) -> Artifact:
    """The release that is live after `new` was made live in the place of an older one; see `_same_but_live`."""
    try:
        registry.promote(new.fingerprint, reason=reason, expected=live.generation)
    except ConflictError:
        return _same_but_live(registry, new)
    return new


def _same_but_live(registry: releases.Releases, new: Artifact) -> Artifact:
    """The live release, if it has the models and documents of `new`: another process published the same first.

    Raises:
        ConflictError: another release is live.
    """
    live = registry.open(verify=False)
    inputs = [{name: mark for name, mark in item.manifest.inputs.items() if name != "index"} for item in (live, new)]
    if inputs[0] != inputs[1]:
        raise ConflictError(
            f"release {new.fingerprint[:12]} is published and not live: another publisher made "
            f"{live.fingerprint[:12]} live meanwhile; look at it and try again"
        )
    return live
